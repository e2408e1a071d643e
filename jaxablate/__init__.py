"""Information-ordered cumulative ablation of neural networks, in JAX."""

from importlib.metadata import version as _version

from jaxablate._checks import InputError as InputError
from jaxablate.ablation import cumulative_ablation as cumulative_ablation
from jaxablate.ablation import evaluate_masks as evaluate_masks
from jaxablate.ablation import greedy_order as greedy_order
from jaxablate.ablation import pair_ablation as pair_ablation
from jaxablate.ablation import single_ablation as single_ablation
from jaxablate.activations import compute_fill as compute_fill
from jaxablate.activations import mean_activations as mean_activations
from jaxablate.activations import record_activations as record_activations
from jaxablate.claims import explain_flips as explain_flips
from jaxablate.claims import judge_claims as judge_claims
from jaxablate.claims import save_claims as save_claims
from jaxablate.datasets import Dataset as Dataset
from jaxablate.datasets import dataset_status as dataset_status
from jaxablate.datasets import load_dataset as load_dataset
from jaxablate.histograms import joint_histogram as joint_histogram
from jaxablate.mechanism import damage_correlations as damage_correlations
from jaxablate.mechanism import layer_shares as layer_shares
from jaxablate.mechanism import mean_and_interval as mean_and_interval
from jaxablate.metrics import METRICS as METRICS
from jaxablate.metrics import entropy as entropy
from jaxablate.metrics import get_metric as get_metric
from jaxablate.metrics import kl_selectivity as kl_selectivity
from jaxablate.metrics import mutual_information as mutual_information
from jaxablate.models import MLP as MLP
from jaxablate.models import Chain as Chain
from jaxablate.models import Site as Site
from jaxablate.models import from_arrays as from_arrays
from jaxablate.models import layer_of_neuron as layer_of_neuron
from jaxablate.models import load_model as load_model
from jaxablate.models import save_model as save_model
from jaxablate.models import with_sites as with_sites
from jaxablate.orders import ablation_order as ablation_order
from jaxablate.orders import masks_of_orders as masks_of_orders
from jaxablate.orders import random_orders as random_orders
from jaxablate.protocols import get_protocol as get_protocol
from jaxablate.quantizers import default_quantizer as default_quantizer
from jaxablate.quantizers import threshold as threshold
from jaxablate.results import auc as auc
from jaxablate.results import curve as curve
from jaxablate.results import load_results as load_results
from jaxablate.results import protocols_of as protocols_of
from jaxablate.results import save_results as save_results
from jaxablate.results import select_protocol as select_protocol
from jaxablate.results import summarize as summarize
from jaxablate.study import StudyConfig as StudyConfig
from jaxablate.study import network_name as network_name
from jaxablate.study import run_study as run_study
from jaxablate.training import History as History
from jaxablate.training import default_epochs as default_epochs
from jaxablate.training import train as train
from jaxablate.training import train_many as train_many

__version__ = _version("jaxablate")
