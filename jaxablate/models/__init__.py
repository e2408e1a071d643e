"""Networks and their sites.

Input: any JAX function, Flax NNX modules, layer sizes, or files of weights.
Output: models that the other modules record, score, ablate and prune; files of `MLP`s.
"""

from jaxablate.models._analysis import SiteSpec
from jaxablate.models._files import SavedModel, load_model, save_model
from jaxablate.models._mlp import ACTIVATIONS, MLP, flatten_images, from_arrays, get_activation, layer_of_neuron
from jaxablate.models._model import AnyModel, Model, from_function, from_module, site_neurons
from jaxablate.models._pytorch import load_pytorch
from jaxablate.models._sites import Site, tag
from jaxablate.models._tensors import AssumptionWarning
from jaxablate.models._torch_modules import from_pytorch, to_pytorch

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "AnyModel",
    "AssumptionWarning",
    "Model",
    "SavedModel",
    "Site",
    "SiteSpec",
    "flatten_images",
    "from_arrays",
    "from_function",
    "from_module",
    "from_pytorch",
    "get_activation",
    "layer_of_neuron",
    "load_model",
    "load_pytorch",
    "save_model",
    "site_neurons",
    "tag",
    "to_pytorch",
]
