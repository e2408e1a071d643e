"""Information-ordered cumulative ablation of neural networks, in JAX.

What most studies need is here; the rest is in the submodules: `ja.ablation`, `ja.activations`, `ja.claims`,
`ja.datasets`, `ja.histograms`, `ja.interactions`, `ja.layer_analysis`, `ja.devices`,
`ja.metrics`, `ja.models`, `ja.orders`,
`ja.protocols`, `ja.pruning`, `ja.quantizers`, `ja.results`, `ja.scores`, `ja.streams`, `ja.study`, `ja.training`,
`ja.uncertainty`, and `jaxablate.figures`, which is imported on its own.
"""

import os as _os
from importlib.metadata import version as _version

if _version("jaxlib") in ("0.10.0", "0.10.1") and _os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    # before JAX is imported: on some CPUs these write a page of alarm about each compiled program that a cache kept;
    # 1 is what JAX itself has set in a program that starts this one, a notebook say
    _os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from jaxablate import ablation as ablation
from jaxablate import activations as activations
from jaxablate import claims as claims
from jaxablate import datasets as datasets
from jaxablate import devices as devices
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

__version__ = _version("jaxablate")
