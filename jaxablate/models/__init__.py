"""Networks: sites that a model marks, chains, a multilayer perceptron, and its file."""

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
