"""Quantizers: activations [example, neuron] come in, integer codes of the same shape go out."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Float

from jaxablate._checks import require_known
from jaxablate._typing import Activations, AnyArray, Codes

Quantizer = Callable[[Activations], Codes]


def threshold(value: float | Float[AnyArray, "neuron"], *, strict: bool = False) -> Quantizer:
    """A one-bit quantizer: T = 1 where h >= value, else 0.

    Args:
        value: the threshold, in the unit of the activations; one for all neurons, or float [neuron].
        strict: compare with h > value instead.

    Returns:
        A function from activations [example, neuron] to int32 codes 0 or 1 of the same shape.

    Source: paper, section 4 (sigmoid units, threshold 0.5).

    Example:
        >>> ja.quantizers.threshold(0.5)(jnp.array([[0.2, 0.5, 0.9]])).tolist()
        [[0, 1, 1]]
    """

    def quantize(activations: Activations) -> Codes:
        activations = jnp.asarray(activations)
        return (activations > value if strict else activations >= value).astype(jnp.int32)

    return quantize


_DEFAULTS = {
    "sigmoid": threshold(0.5),
    "tanh": threshold(0.0),
    "relu": threshold(0.0, strict=True),
    "gelu": threshold(0.0, strict=True),
}


def default_quantizer(activation: str) -> Quantizer:
    """The one-bit quantizer of an activation function: "does the neuron fire?".

    sigmoid: h >= 0.5; tanh: h >= 0; relu and gelu: h > 0.

    Args:
        activation: the name of the activation function.

    Returns:
        A quantizer, as from `threshold`.

    Raises:
        InputError: for an unknown activation.

    Example:
        >>> ja.quantizers.default_quantizer("relu")(jnp.array([[0.0, 0.1]])).tolist()
        [[0, 1]]
    """
    require_known("activation", activation, _DEFAULTS)
    return _DEFAULTS[activation]
