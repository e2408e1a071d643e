"""Look into an `nnx.Sequential`: its layers, and the functions among them.

Input: an `nnx.Sequential`, also with nested ones.
Output: its layers in order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx

Layer = Callable[..., Any]

ELEMENTWISE = {
    jax.nn.sigmoid, jnp.tanh, nnx.tanh, jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.elu, jax.nn.leaky_relu,
    jax.nn.softplus,
}  # fmt: skip
"""Functions that act on each neuron separately."""


def is_plain_sequential(layer: object) -> TypeGuard[nnx.Sequential]:
    """Return True for an `nnx.Sequential` whose call no subclass has replaced."""
    return isinstance(layer, nnx.Sequential) and type(layer).__call__ is nnx.Sequential.__call__


def flatten_layers(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yield the layers of a sequential; an `nnx.Sequential` among them is replaced by its layers."""
    for layer in layers:
        if is_plain_sequential(layer):
            yield from flatten_layers(layer.layers)
        else:
            yield layer


def apply_layers(layers: Iterable[Layer], outputs: Any) -> Any:
    """Apply layers one after another, passing tuples and dictionaries on as `nnx.Sequential` does."""
    for layer in layers:
        if isinstance(outputs, tuple):
            outputs = layer(*outputs)
        else:
            outputs = layer(**outputs) if isinstance(outputs, dict) else layer(outputs)
    return outputs
