"""Rank the neurons of a network by scores, ablate them one after another, and count correct predictions.

The names below cover most studies. The rest is in the submodules, for example `ja.metrics` or `ja.ablation`;
`jaxablate.figures` and `jaxablate.report` need an import statement, since they load plotting libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are imported when they are first used (PEP 562): `jaxablate --help` and shell completion need no JAX. Type
# checkers and editors read the imports below instead. A name without a home in `_HOMES` is a submodule; a test compares
# all of this.
if TYPE_CHECKING:
    from jaxablate import (
        ablation,
        activations,
        claims,
        datasets,
        devices,
        fills,
        histograms,
        interactions,
        layer_analysis,
        linear_compensation,
        metrics,
        models,
        orders,
        protocols,
        pruning,
        quantizers,
        results,
        scores,
        statistics,
        streams,
        study,
        training,
        uncertainty,
    )
    from jaxablate._checks import InputError
    from jaxablate.ablation import cumulative_ablation, evaluate_masks, single_ablation
    from jaxablate.activations import compute_fill, mean_activations, record_activations
    from jaxablate.claims import judge_claims
    from jaxablate.datasets import Dataset, load_dataset
    from jaxablate.histograms import joint_histogram
    from jaxablate.metrics import entropy, kl_selectivity, mutual_information
    from jaxablate.models import (
        MLP,
        Site,
        from_function,
        from_module,
        from_pytorch,
        load_model,
        save_model,
        tag,
        to_pytorch,
    )  # fmt: skip
    from jaxablate.orders import ablation_order, random_orders
    from jaxablate.pruning import prune
    from jaxablate.results import compare
    from jaxablate.study import StudyConfig, run_study
    from jaxablate.training import train

_NAMES = {
    "_checks": ("InputError",),
    "ablation": ("cumulative_ablation", "evaluate_masks", "single_ablation"),
    "activations": ("compute_fill", "mean_activations", "record_activations"),
    "claims": ("judge_claims",),
    "datasets": ("Dataset", "load_dataset"),
    "histograms": ("joint_histogram",),
    "metrics": ("entropy", "kl_selectivity", "mutual_information"),
    "models": (
        "MLP",
        "Site",
        "from_function",
        "from_module",
        "from_pytorch",
        "load_model",
        "save_model",
        "tag",
        "to_pytorch",
    ),
    "orders": ("ablation_order", "random_orders"),
    "pruning": ("prune",),
    "results": ("compare",),
    "study": ("StudyConfig", "run_study"),
    "training": ("train",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "MLP",
    "Dataset",
    "InputError",
    "Site",
    "StudyConfig",
    "ablation",
    "ablation_order",
    "activations",
    "claims",
    "compare",
    "compute_fill",
    "cumulative_ablation",
    "datasets",
    "devices",
    "entropy",
    "evaluate_masks",
    "fills",
    "from_function",
    "from_module",
    "from_pytorch",
    "histograms",
    "interactions",
    "joint_histogram",
    "judge_claims",
    "kl_selectivity",
    "layer_analysis",
    "linear_compensation",
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
    "statistics",
    "streams",
    "study",
    "tag",
    "to_pytorch",
    "train",
    "training",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("importlib.metadata").version("jaxablate")
    elif name in __all__:
        module = import_module(f"jaxablate.{_HOMES.get(name, name)}")
        value = getattr(module, name) if name in _HOMES else module
    else:
        raise AttributeError(f"module 'jaxablate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
