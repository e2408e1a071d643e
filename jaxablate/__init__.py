"""Information-ordered cumulative ablation of neural networks, in JAX.

The names below cover most studies. The rest is in the submodules, for example `ja.metrics` or `ja.ablation`;
`jaxablate.figures` and `jaxablate.report` need an import statement, since they load plotting libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are first used (PEP 562): `jaxablate --help` and shell completion need no JAX. Type
# checkers and editors read the imports below instead, and a test compares the three lists.
if TYPE_CHECKING:
    from jaxablate import ablation as ablation
    from jaxablate import activations as activations
    from jaxablate import claims as claims
    from jaxablate import datasets as datasets
    from jaxablate import devices as devices
    from jaxablate import fills as fills
    from jaxablate import histograms as histograms
    from jaxablate import interactions as interactions
    from jaxablate import layer_analysis as layer_analysis
    from jaxablate import metrics as metrics
    from jaxablate import models as models
    from jaxablate import orders as orders
    from jaxablate import protocols as protocols
    from jaxablate import pruning as pruning
    from jaxablate import quantizers as quantizers
    from jaxablate import results as results
    from jaxablate import scores as scores
    from jaxablate import streams as streams
    from jaxablate import study as study
    from jaxablate import training as training
    from jaxablate import uncertainty as uncertainty
    from jaxablate._checks import InputError as InputError
    from jaxablate.ablation import cumulative_ablation as cumulative_ablation
    from jaxablate.ablation import evaluate_masks as evaluate_masks
    from jaxablate.ablation import single_ablation as single_ablation
    from jaxablate.activations import compute_fill as compute_fill
    from jaxablate.activations import mean_activations as mean_activations
    from jaxablate.activations import record_activations as record_activations
    from jaxablate.claims import judge_claims as judge_claims
    from jaxablate.datasets import Dataset as Dataset
    from jaxablate.datasets import load_dataset as load_dataset
    from jaxablate.fills import AffineFill as AffineFill
    from jaxablate.fills import PerExampleFill as PerExampleFill
    from jaxablate.histograms import joint_histogram as joint_histogram
    from jaxablate.metrics import entropy as entropy
    from jaxablate.metrics import kl_selectivity as kl_selectivity
    from jaxablate.metrics import mutual_information as mutual_information
    from jaxablate.models import MLP as MLP
    from jaxablate.models import Chain as Chain
    from jaxablate.models import Site as Site
    from jaxablate.models import load_model as load_model
    from jaxablate.models import save_model as save_model
    from jaxablate.models import with_sites as with_sites
    from jaxablate.orders import ablation_order as ablation_order
    from jaxablate.orders import random_orders as random_orders
    from jaxablate.pruning import prune as prune
    from jaxablate.study import StudyConfig as StudyConfig
    from jaxablate.study import run_study as run_study
    from jaxablate.training import train as train

_SUBMODULES = (
    "ablation",
    "activations",
    "claims",
    "datasets",
    "devices",
    "fills",
    "histograms",
    "interactions",
    "layer_analysis",
    "metrics",
    "models",
    "orders",
    "protocols",
    "pruning",
    "quantizers",
    "results",
    "scores",
    "streams",
    "study",
    "training",
    "uncertainty",
)
_HOMES = {
    "InputError": "_checks",
    "cumulative_ablation": "ablation",
    "evaluate_masks": "ablation",
    "single_ablation": "ablation",
    "compute_fill": "activations",
    "mean_activations": "activations",
    "record_activations": "activations",
    "judge_claims": "claims",
    "Dataset": "datasets",
    "load_dataset": "datasets",
    "AffineFill": "fills",
    "PerExampleFill": "fills",
    "joint_histogram": "histograms",
    "entropy": "metrics",
    "kl_selectivity": "metrics",
    "mutual_information": "metrics",
    "MLP": "models",
    "Chain": "models",
    "Site": "models",
    "load_model": "models",
    "save_model": "models",
    "with_sites": "models",
    "ablation_order": "orders",
    "random_orders": "orders",
    "prune": "pruning",
    "StudyConfig": "study",
    "run_study": "study",
    "train": "training",
}

__all__ = [
    "MLP",
    "AffineFill",
    "Chain",
    "Dataset",
    "InputError",
    "PerExampleFill",
    "Site",
    "StudyConfig",
    "ablation",
    "ablation_order",
    "activations",
    "claims",
    "compute_fill",
    "cumulative_ablation",
    "datasets",
    "devices",
    "entropy",
    "evaluate_masks",
    "fills",
    "histograms",
    "interactions",
    "joint_histogram",
    "judge_claims",
    "kl_selectivity",
    "layer_analysis",
    "load_dataset",
    "load_model",
    "mean_activations",
    "metrics",
    "models",
    "mutual_information",
    "orders",
    "protocols",
    "prune",
    "pruning",
    "quantizers",
    "random_orders",
    "record_activations",
    "results",
    "run_study",
    "save_model",
    "scores",
    "single_ablation",
    "streams",
    "study",
    "train",
    "training",
    "uncertainty",
    "with_sites",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("importlib.metadata").version("jaxablate")
    elif name in _SUBMODULES:
        value = import_module(f"jaxablate.{name}")
    elif name in _HOMES:
        value = getattr(import_module(f"jaxablate.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'jaxablate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
