"""Networks: sites that a model marks, chains, a multilayer perceptron, and its file."""

from jaxablate.models._files import load_model, save_model
from jaxablate.models._mlp import ACTIVATIONS, ELEMENTWISE, MLP, from_arrays, layer_of_neuron
from jaxablate.models._network import (
    Change,
    Link,
    Model,
    Network,
    bytes_on_the_way,
    describe,
    enter,
    record,
    reductions_of,
    run,
    run_on,
    run_segments,
    segments_of,
    site_bounds,
    stack_states,
)
from jaxablate.models._sites import Chain, RowFill, Site, SiteVariable, ablated, intervene, with_sites

__all__ = [
    "ACTIVATIONS",
    "ELEMENTWISE",
    "MLP",
    "Chain",
    "Change",
    "Link",
    "Model",
    "Network",
    "RowFill",
    "Site",
    "SiteVariable",
    "ablated",
    "bytes_on_the_way",
    "describe",
    "enter",
    "from_arrays",
    "intervene",
    "layer_of_neuron",
    "load_model",
    "record",
    "reductions_of",
    "run",
    "run_on",
    "run_segments",
    "save_model",
    "segments_of",
    "site_bounds",
    "stack_states",
    "with_sites",
]
