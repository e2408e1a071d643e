"""Networks and their sites.

Input: your own Flax NNX modules with sites, layer sizes, or files of weights.
Output: models that the other modules record, score, ablate and prune; files of `MLP`s.
"""

from jaxablate.models._files import SavedModel, load_model, save_model
from jaxablate.models._mlp import ACTIVATIONS, MLP, from_arrays, layer_of_neuron
from jaxablate.models._network import Model, site_neurons
from jaxablate.models._pytorch import load_pytorch
from jaxablate.models._sites import Chain, Site, SiteVariable, with_sites

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Chain",
    "Model",
    "SavedModel",
    "Site",
    "SiteVariable",
    "from_arrays",
    "layer_of_neuron",
    "load_model",
    "load_pytorch",
    "save_model",
    "site_neurons",
    "with_sites",
]
