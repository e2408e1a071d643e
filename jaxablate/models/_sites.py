"""Mark the sites of a network: the values whose units can be ablated.

Input: a value inside a model, and a name.
Output: the same value; `from_function` and `from_module` find the mark in the model's operations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxablate._checks import describe_value, host_numbers, require, require_known
from jaxablate._typing import AnyArray
from jaxablate.models._analysis import TAG

REDUCTIONS = {"mean": jnp.mean, "max": jnp.max}


def tag(value: AnyArray, name: str, *, axis: int | Sequence[int] = -1, reduce: str = "mean") -> jax.Array:
    """Mark a value as a site and return it unchanged; works in the code of any framework.

    Args:
        value: any value that is computed from the images, for example the result of an activation function.
        name: name of the site; results carry it. Tags of the same name are numbered "name", "name:2", ...
        axis: axis of the units, or several axes whose combinations are units (heads and their features). Negative axes
            count from the end without the axis of examples, so that `jax.vmap` over examples changes nothing.
        reduce: how scores reduce a unit with several values in an example (a channel's map, a neuron at every token)
            to one number: "mean" or "max".

    Returns:
        The value.

    Raises:
        InputError: for a name that is empty or not printable, or an unknown reduction.

    Example:
        >>> ja.tag(np.ones(3), "hidden").shape
        (3,)
    """
    require(
        isinstance(name, str) and name != "" and name.isprintable(),
        f"site: expected a printable name, got {describe_value(name)}",
    )
    require_known("reduction", reduce, REDUCTIONS)
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis) if isinstance(axis, Sequence) else ()
    require(
        len(axes) > 0 and all(isinstance(a, int | np.integer) for a in axes) and len({*axes}) == len(axes),
        f"axis: expected an integer or distinct integers, got {describe_value(axis)}",
    )
    return checkpoint_name(
        jnp.asarray(value if isinstance(value, jax.Array) else host_numbers("value", value)),
        f"{TAG} axis={','.join(map(str, axes))} reduce={reduce} {name}",
    )


class Site(nnx.Module):
    """A module that marks its input with `tag`, for example as a layer of an `nnx.Sequential`.

    Args:
        name, axis, reduce: as in `tag`.

    Raises:
        InputError: as in `tag`.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, ja.Site("hidden"),
        ...                        nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> model(np.ones((5, 4), np.float32)).shape
        (5, 2)
    """

    def __init__(self, name: str, *, axis: int | Sequence[int] = -1, reduce: str = "mean"):
        tag(jnp.zeros(1), name, axis=axis, reduce=reduce)  # checks the arguments
        self.name, self.reduce = name, reduce
        self.axis = axis if isinstance(axis, int) else tuple(axis)

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Return the outputs unchanged."""
        return tag(outputs, self.name, axis=self.axis, reduce=self.reduce)


class Prediction(NamedTuple):
    """The fill of a site that is predicted from its outputs h: mean + (h - mean) @ weights.

    Attributes:
        mean: [unit].
        weights: [unit, predicted unit]; rows of ablated units are 0.
    """

    mean: AnyArray
    weights: AnyArray


def ablated_values(outputs: jax.Array, fill: jax.Array | Prediction, scale: jax.Array | None) -> jax.Array:
    """Return the outputs that neurons have when they are ablated: scale * outputs + fill, or the fill without a scale.

    A fill [example, neuron] is used at every place of an example if the outputs have more axes.
    """
    if isinstance(fill, Prediction):
        return (outputs - fill.mean) @ fill.weights + fill.mean
    if 1 < fill.ndim < outputs.ndim:
        # [example, neuron] becomes [example, 1, ..., neuron] and is broadcast over the positions.
        fill = fill.reshape(len(fill), *(1,) * (outputs.ndim - fill.ndim), *fill.shape[1:])
    return fill if scale is None else scale * outputs + fill


def apply_masks(
    outputs: jax.Array, keep: jax.Array, fill: jax.Array | Prediction, scale: jax.Array | None
) -> jax.Array:
    """Return outputs [example, ..., neuron] in which ablated neurons have their `ablated_values`.

    Args:
        outputs: [example, ..., neuron].
        keep: bool [neuron], True = kept.
        fill: [neuron], [example, neuron], of the shape of the outputs, or a `Prediction`.
        scale: [neuron], or None for 0.
    """
    # an ablated unit predicts nothing; its row of weights is 0, but 0 times NaN would be NaN
    kept = jnp.where(keep, outputs, fill.mean) if isinstance(fill, Prediction) else outputs
    return jnp.where(keep, outputs, ablated_values(kept, fill, scale)).astype(outputs.dtype)
