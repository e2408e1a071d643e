"""Quantizers turn activations into integer codes, so that information can be counted.

A quantizer holds increasing edges. The code of an activation is the number of edges that the activation reaches:

- An activation on an edge belongs to the upper code; with strict edges it belongs to the lower one.
- Activations outside the range of the edges get the first or the last code.
- Equal edges leave the codes between them empty.
- NaN has no code and is refused.

`quantile` and `mean` take their edges from data: call `.fit(activations)` first. All others are ready to use, and their
`fit` returns the same quantizer.

Input: activations, float32 [example, neuron].
Output: codes, int32 [example, neuron] in 0..num_codes-1.
Memory: one int32 code for each activation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate._checks import (
    InputError,
    describe_value,
    host_numbers,
    require,
    require_count,
    require_finite,
    require_known,
    require_type,
    short_repr,
    traced,
)
from jaxablate._typing import Activations, AnyArray, Codes
from jaxablate.devices import to_device

__all__ = [
    "Quantizer",
    "default_quantizer",
    "get_quantizer",
    "levels",
    "mean",
    "positive",
    "quantile",
    "threshold",
    "uniform",
]


def _to_numbers(what: str, values: object) -> np.ndarray:
    """Return the values as float32; numbers beyond its range become infinite, which the callers refuse."""
    try:
        with np.errstate(over="ignore"):
            # By way of float64: a number beyond float32 becomes infinite without a warning, and words and ragged lists
            # raise here.
            return np.asarray(np.asarray(values, np.float64), np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{what}: expected numbers, got {describe_value(values)}") from None


@runtime_checkable
class Quantizer(Protocol):
    """A map from activations [example, neuron] to integer codes of the same shape.

    All functions of `ja.quantizers` return one. Your own needs these three members: `num_codes`, `fit` and `__call__`.

    Example:
        >>> quantizer = ja.quantizers.threshold(0.5)
        >>> quantizer.num_codes, quantizer(jnp.array([[0.2, 0.5, 0.9]])).tolist()
        (2, [[0, 1, 1]])
    """

    @property
    def num_codes(self) -> int:
        """Number of codes; every code lies in 0..num_codes-1."""
        ...

    def fit(self, activations: Activations, /) -> "Quantizer":
        """Return a quantizer whose edges are taken from these activations [example, neuron]."""
        ...

    def __call__(self, activations: Activations, /) -> Codes:
        """Return the codes of activations [example, neuron], int32 of the same shape."""
        ...


@dataclass(frozen=True, eq=False)
class _Edges:
    """Codes from edges: T = number of edges e with h >= e.

    Quantizers are compared by identity, since arrays have no single truth value.

    Attributes:
        edges: float32 [edge], or [edge, neuron] if each neuron has its own; increasing, in the unit of activations.
        strict: count the edges with h > e instead.
    """

    edges: Float[AnyArray, "edge *neuron"]
    strict: bool = False

    __repr__ = short_repr

    @property
    def num_codes(self) -> int:
        """Number of codes, one more than edges."""
        return len(self.edges) + 1

    def fit(self, activations: Activations) -> "_Edges":
        """Return this quantizer: its edges do not depend on data."""
        del activations
        return self

    def __call__(self, activations: Activations) -> Codes:
        """Return the codes, int32 of the shape of the activations.

        Raises:
            InputError: if each neuron has its own edges and the number of neurons differs.
        """
        activations = to_device(
            activations if isinstance(activations, jax.Array) else host_numbers("activations", activations)
        )
        # Edges [edge, neuron] are compared with activations [example, neuron] along the last axis. Without this check a
        # network of one neuron would be broadcast silently.
        neuron_shape = np.shape(self.edges)[1:]
        require(
            not neuron_shape or activations.shape[-1:] == neuron_shape,
            f"activations: expected [example, neuron] of the {neuron_shape[0] if neuron_shape else 0} neurons that the "
            f"quantizer has edges for, got shape {activations.shape}",
        )
        if not traced(activations):
            number = int(jnp.isnan(activations).sum())
            require(
                number == 0,
                f"activations: {number} of {activations.size} are NaN, which has no code; check the weights and the "
                "images",
            )
        return _count_edges(activations, self.edges, self.strict)


@dataclass(frozen=True)
class _Unfitted:
    """A quantizer that takes its edges from data, before `fit`.

    Attributes:
        name: name of the quantizer, for messages.
        num_codes: number of codes.
        place_edges: maps the number of codes and finite float32 activations [example, neuron] to a fitted quantizer.
    """

    name: str
    num_codes: int
    place_edges: Callable[[int, np.ndarray], Quantizer]

    def fit(self, activations: Activations) -> Quantizer:
        """Return the quantizer with edges from these activations."""
        values = host_numbers("activations", activations).astype(np.float32)
        require(values.ndim == 2, f"activations: expected shape [example, neuron], got {values.shape}")
        # NaN and infinity have no rank: an edge at one of them would leave codes without meaning.
        require_finite("activations", values)
        return self.place_edges(self.num_codes, values)

    def __call__(self, activations: Activations) -> Codes:
        """Raise `InputError`: there are no edges before `fit`."""
        raise InputError(f"{self.name}: the quantizer has no edges yet; call .fit(activations) first")


def _place_at_quantiles(num_codes: int, values: np.ndarray) -> Quantizer:
    """Place the edges of every neuron at the quantiles of its activations, see `quantile`."""
    if len(values) < num_codes:
        raise InputError(
            f"activations: expected at least {num_codes} examples for {num_codes} quantile codes, got {len(values)}; "
            "take fewer codes"
        )
    # [neuron, example]: the activations of a neuron lie together, since sorting jumps through them.
    columns = np.ascontiguousarray(values.T)
    edges = [_quantile_edges(column, num_codes) for column in columns]
    return _Edges(np.stack(edges, axis=1) if edges else np.zeros((num_codes - 1, 0), np.float32))


def _place_at_mean(num_codes: int, values: np.ndarray) -> Quantizer:
    """Place each neuron's threshold at the mean of its activations, see `mean`."""
    require(len(values) > 0, f"activations: expected at least one example, got shape {values.shape}")
    # A float32 sum over many examples drifts: the edge of a constant neuron could land above its activations.
    return threshold(values.mean(axis=0, dtype=np.float64))


def threshold(value: float | Float[AnyArray, "neuron"], *, strict: bool = False) -> Quantizer:
    """Return a one-bit quantizer: T = 1 if h >= value, else 0.

    Args:
        value: the threshold, in the unit of the activations; one number for all neurons, or float [neuron].
        strict: compare with h > value instead.

    Returns:
        A `Quantizer` with 2 codes.

    Raises:
        InputError: if the value is not a number, not finite or of another shape.

    Source: paper, section 4 (sigmoid units, threshold 0.5).

    Example:
        >>> ja.quantizers.threshold(0.5)(jnp.array([[0.2, 0.5, 0.9]])).tolist()
        [[0, 1, 1]]
    """
    # A JAX array stays on its device. A number becomes a NumPy array, since a JAX array would start JAX on import.
    edges: Any = value.astype(jnp.float32) if isinstance(value, jax.Array) else _to_numbers("value", value)
    require(edges.ndim <= 1, f"value: expected a number or one for each neuron, got shape {edges.shape}")
    if not traced(edges):
        require_finite("value", np.asarray(edges))
    return _Edges(edges[None], strict)


def mean() -> Quantizer:
    """Return a one-bit quantizer: T = 1 if h is at least the neuron's mean activation, else 0.

    It suits every activation function. `.fit(activations)` takes the mean in float64 and rounds it to float32.
    A constant neuron gets one code, the last. `fit` raises an `InputError` if there is no example, or if activations
    are not finite or not [example, neuron].

    Returns:
        A `Quantizer` with 2 codes, to be fitted before use.

    Example:
        >>> activations = np.array([[0.0, 5.0], [1.0, 5.0], [5.0, 8.0]], np.float32)
        >>> ja.quantizers.mean().fit(activations)(activations).tolist()
        [[0, 0], [0, 0], [1, 1]]
    """
    return _Unfitted("mean", 2, _place_at_mean)


def positive() -> Quantizer:
    """Return a one-bit quantizer: T = 1 if h > 0, else 0. For a ReLU it says whether the neuron fires.

    Returns:
        A `Quantizer` with 2 codes.

    Example:
        >>> ja.quantizers.positive()(jnp.array([[-1.0, 0.0, 0.1]])).tolist()
        [[0, 0, 1]]
    """
    return threshold(0.0, strict=True)


def levels(edges: Sequence[float] | Float[AnyArray, "edge *neuron"]) -> Quantizer:
    """Return a quantizer with given edges: T = number of edges e with h >= e.

    Args:
        edges: the inner edges, strictly increasing as float32, in the unit of the activations; float [edge], or
            [edge, neuron] if each neuron has its own.

    Returns:
        A `Quantizer` with one code more than edges. Code 0 lies below the first edge. The last code lies at or above
        the last edge. An activation on an edge belongs to the upper code.

    Raises:
        InputError: if the edges have another shape, are not finite or do not increase.

    Example:
        >>> ja.quantizers.levels([0.25, 0.75])(jnp.array([[0.0, 0.25, 0.5, 1.0]])).tolist()
        [[0, 1, 1, 2]]
    """
    inner = _to_numbers("edges", edges)
    require(
        inner.ndim in (1, 2) and len(inner) > 0,
        f"edges: expected shape [edge] or [edge, neuron] with at least one edge, got {inner.shape}",
    )
    require_finite("edges", inner)
    below = np.argwhere(np.diff(inner, axis=0) <= 0)
    if len(below):
        edge, *neuron = below[0].tolist()
        lower, upper = inner[(edge, *neuron)], inner[(edge + 1, *neuron)]
        raise InputError(f"edges: expected strictly increasing float32 numbers, got {upper} after {lower}")
    return _Edges(inner)


def uniform(bins: int, low: float, high: float) -> Quantizer:
    """Return a quantizer with equal bins from low to high: T = floor(bins (h - low) / (high - low)).

    Codes are clipped to 0..bins-1. An activation on an inner edge low + k (high - low) / bins, rounded to float32,
    belongs to the upper bin. `high` belongs to the last bin.

    Args:
        bins: number of codes, at least 2.
        low: lower end of the range, in the unit of the activations.
        high: upper end of the range.

    Returns:
        A `Quantizer` with `bins` codes.

    Raises:
        InputError: if there are fewer than 2 bins, or if the range is empty, not finite, or too narrow for the bins
            in float32.

    Example:
        >>> ja.quantizers.uniform(4, 0.0, 1.0)(jnp.array([[-9.0, 0.2, 0.25, 0.8, 1.0, 9.0]])).tolist()
        [[0, 0, 1, 3, 3, 3]]
    """
    bins = require_count("bins", bins, 2)
    ends = _to_numbers("range", [low, high])
    require(bool(np.isfinite(ends).all() and low < high), f"range: expected low < high, got {low} and {high}")
    # The edges are computed in float64 and rounded to float32 once, as the docstring promises.
    return levels((low + (high - low) * np.arange(1, bins) / bins).astype(np.float32))


def quantile(bins: int) -> Quantizer:
    """Return a quantizer whose codes are equally frequent for every neuron.

    `.fit(activations)` takes the edges from one split; the fitted quantizer then applies to any split. It sorts the n
    activations of a neuron and cuts them at ranks k n / bins. The first activation above a cut is the edge.

    - Without ties, the frequencies of the codes on these activations differ by at most one.
    - Equal activations cannot be cut apart. The cut moves to the nearer end of the tie that separates anything (to the
      lower end if both are equally near).
    - A constant neuron gets one code, the last. A nearly constant neuron gets as many codes as its distinct values
      allow; the remaining codes stay empty.
    - Edges depend only on the order of the activations, so an increasing map of all activations changes no code.

    `fit` raises an `InputError` if activations are not finite, not [example, neuron], or fewer than the codes.

    Args:
        bins: number of codes, at least 2.

    Returns:
        A `Quantizer` with `bins` codes, to be fitted before use.

    Raises:
        InputError: if there are fewer than 2 bins.

    Example:
        >>> quantizer = ja.quantizers.quantile(2).fit(np.array([[0.0], [0.0], [0.0], [7.0]], np.float32))
        >>> quantizer(np.array([[-1.0], [0.0], [6.0], [7.0], [8.0]], np.float32)).ravel().tolist()
        [0, 0, 0, 1, 1]
    """
    return _Unfitted("quantile", require_count("bins", bins, 2), _place_at_quantiles)


# A sigmoid or tanh neuron fires at the middle of its range or above. ReLU and GELU are at rest at 0, so 0 itself does
# not count as firing.
# Softplus is above 0 everywhere; above log 2 its pre-activation is positive, as for the others.
_POSITIVE = ("relu", "gelu", "gelu_exact", "silu", "leaky_relu", "elu", "hardtanh")
_DEFAULTS = {
    "sigmoid": threshold(0.5),
    "tanh": threshold(0.0),
    "softplus": threshold(math.log(2)),
    **dict.fromkeys(_POSITIVE, positive()),
}


def default_quantizer(activation: str) -> Quantizer:
    """Return the one-bit quantizer of an activation function: does the neuron fire?

    sigmoid: h >= 0.5; tanh: h >= 0; softplus: h >= log 2; all others: h > 0. The pre-activation is then positive, or at
    least 0.

    Args:
        activation: name of the activation function, as in `ja.models.get_activation`.

    Returns:
        A `Quantizer` with 2 codes; the same object in every call.

    Raises:
        InputError: if the activation is unknown.

    Example:
        >>> ja.quantizers.default_quantizer("relu")(jnp.array([[0.0, 0.1]])).tolist()
        [[0, 1]]
    """
    require_type("activation", activation, str, "a name")
    kind = activation.partition(":")[0]
    require_known("activation", kind, _DEFAULTS)
    return _DEFAULTS[kind]


def get_quantizer(setting: str | float) -> Quantizer:
    """Return the quantizer that a setting names, as in configurations and on the command line.

    Args:
        setting: "mean"; "positive"; "quantile:BINS"; "uniform:BINS:LOW:HIGH"; "levels:EDGE:EDGE:..."; or a number,
            which is a `threshold`.

    Returns:
        A `Quantizer`; "mean" and "quantile" must be fitted before use.

    Raises:
        InputError: if the setting is unknown, or if the quantizer refuses its numbers.

    Example:
        >>> ja.quantizers.get_quantizer("uniform:4:0:1").num_codes, ja.quantizers.get_quantizer(0.5).num_codes
        (4, 2)
    """
    name, *numbers = str(setting).split(":")
    try:
        # The numbers are read as floats first, so that text in their place ends in one message. Numbers of bins are
        # read again by `int`, which refuses "2.5".
        match name, [float(number) for number in numbers]:
            case "mean", []:
                return mean()
            case "positive", []:
                return positive()
            case "quantile", [_]:
                return quantile(int(numbers[0]))
            case "uniform", [_, low, high]:
                return uniform(int(numbers[0]), low, high)
            case "levels", [_, *_]:
                return levels([float(number) for number in numbers])
            case _, []:
                value = float(name)
                require(math.isfinite(value), f"quantizer: expected a finite threshold, got {setting}")
                return threshold(value)
    except InputError:
        raise
    except ValueError:
        pass  # text in the place of a number: an unknown setting
    raise InputError(
        f"quantizer: unknown {describe_value(setting)}; choose mean, positive, quantile:BINS, uniform:BINS:LOW:HIGH, "
        "levels:EDGE:EDGE:... or a threshold (also activation, for networks that know their activation function)"
    )


@partial(jax.jit, static_argnames="strict")
def _count_edges(activations: Activations, edges: AnyArray, strict: bool) -> Codes:
    # The loop is unrolled: the comparisons fuse into one pass over the activations. A reduction over an axis of edges
    # does not fuse beyond a few dozen edges and takes 80 times as long.
    codes = jnp.zeros(activations.shape, jnp.int32)
    for edge in edges:
        codes += activations > edge if strict else activations >= edge
    return codes


def _quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the edges of one neuron [edge] from its activations [example], see `quantile`."""
    # A cut falls at position `cut` of the sorted values and may lie inside a run of equal values. The run covers
    # positions lower..upper-1, so cutting at `lower` or at `upper` separates different values. Position 0 and
    # position n separate nothing: there the cut moves to the other end, even if it is farther away.
    ordered = np.sort(values)
    cut = np.arange(1, bins) * len(values) // bins
    lower = np.searchsorted(ordered, ordered[cut], side="left")
    upper = np.searchsorted(ordered, ordered[cut], side="right")
    to_lower = (upper == len(values)) | ((lower > 0) & (cut - lower <= upper - cut))
    return ordered[np.where(to_lower, lower, upper)]
