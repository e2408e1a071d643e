"""Quantizers: activations [example, neuron] come in, integer codes of the same shape go out.

A quantizer holds increasing edges; the code of an activation is the number of edges that it reaches. So an activation
on an edge belongs to the upper code (to the lower one where the edge is strict), out-of-range values get the first
or the last code, and edges that are equal leave the codes between them empty. NaN reaches no edge: code 0.

What takes its edges from data, `quantile` and `mean`, makes a quantizer of them by `.fit(activations)`; a quantizer
whose edges are given fits itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate._checks import InputError, require, require_finite, require_integer, require_known
from jaxablate._typing import Activations, AnyArray, Codes


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Codes from edges: T = number of edges e with h >= e. A function of activations, compared by identity.

    Attributes:
        edges: float32 [edge], or [edge, neuron] where each neuron has its own; increasing, in the unit of activations.
        strict: count the edges with h > e instead.

    Example:
        >>> quantizer = ja.quantizers.threshold(0.5)
        >>> quantizer.num_codes, quantizer(jnp.array([[0.2, 0.5, 0.9]])).tolist()
        (2, [[0, 1, 1]])
    """

    edges: Float[AnyArray, "edge *neuron"]
    strict: bool = False

    @property
    def num_codes(self) -> int:
        """The number of codes, one more than edges."""
        return len(self.edges) + 1

    def fit(self, activations: Activations) -> "Quantizer":
        """This quantizer, whose edges do not depend on the data; there so that `quantile` can take its place."""
        del activations
        return self

    def __call__(self, activations: Activations) -> Codes:
        """Codes, int32 of the shape of the activations."""
        return _count_edges(jnp.asarray(activations), self.edges, self.strict)


@runtime_checkable
class Fittable(Protocol):
    """A quantizer, or what becomes one once it has seen activations."""

    @property
    def num_codes(self) -> int:
        """The number of codes."""
        ...

    def fit(self, activations: Activations) -> Quantizer:
        """A quantizer with its edges on these activations [example, neuron]."""
        ...


@dataclass(frozen=True)
class Quantile:
    """Codes of equal frequency, once fitted: see `quantile`.

    Attributes:
        num_codes: the number of codes.

    Example:
        >>> ja.quantizers.quantile(4).fit(np.arange(8, dtype=np.float32)[:, None]).edges.tolist()
        [[2.0], [4.0], [6.0]]
    """

    num_codes: int

    def fit(self, activations: Activations) -> Quantizer:
        """Place the edges of every neuron on these activations.

        Sorted, the n activations of a neuron are cut at ranks k n / num_codes, and the first activation above a cut is
        the edge. Equal activations cannot be cut apart: the cut moves to the nearer end of the tie (the lower one of
        two as near) that separates anything. Edges depend on the order of activations alone, so that an increasing
        map of all activations changes no code, on this split or another.

        Args:
            activations: float32 [example, neuron], finite; at least as many examples as codes.

        Returns:
            A `Quantizer` with edges [num_codes - 1, neuron]. Without ties, the frequencies of its codes on these
            activations differ by one at most. A constant neuron gets one code, the last; a nearly constant one gets
            as many codes as its distinct values allow, and the others stay empty.

        Raises:
            InputError: for activations of another shape, not finite, or too few.
        """
        values = np.asarray(activations, np.float32)
        require(values.ndim == 2, f"activations: expected shape [example, neuron], got {values.shape}")
        require_finite("activations", values)
        if len(values) < self.num_codes:
            raise InputError(
                f"activations: expected at least {self.num_codes} examples for {self.num_codes} quantile codes, "
                f"got {len(values)}; take fewer codes"
            )
        columns = np.ascontiguousarray(values.T)
        edges = [_quantile_edges(column, self.num_codes) for column in columns]
        return Quantizer(np.stack(edges, axis=1) if edges else np.zeros((self.num_codes - 1, 0), np.float32))

    def __call__(self, activations: Activations) -> Codes:
        """Raise: edges are unknown before `fit`."""
        raise InputError("quantile: expected a fitted quantizer, got one without edges; call .fit(activations) first")


@dataclass(frozen=True)
class Mean:
    """One bit, once fitted: see `mean`."""

    num_codes: int = 2

    def fit(self, activations: Activations) -> Quantizer:
        """Place each neuron's threshold on the mean of these activations, float [example, neuron]."""
        return threshold(np.asarray(activations).mean(axis=0))


def threshold(value: float | Float[AnyArray, "neuron"], *, strict: bool = False) -> Quantizer:
    """A one-bit quantizer: T = 1 where h >= value, else 0.

    Args:
        value: the threshold, in the unit of the activations; one for all neurons, or float [neuron].
        strict: compare with h > value instead.

    Returns:
        A `Quantizer` with 2 codes: a function from activations [example, neuron] to int32 codes of the same shape.

    Source: paper, section 4 (sigmoid units, threshold 0.5).

    Example:
        >>> ja.quantizers.threshold(0.5)(jnp.array([[0.2, 0.5, 0.9]])).tolist()
        [[0, 1, 1]]
    """
    # a jax array stays where it is; a number becomes no jax array, which would start JAX on import
    as_array: Any = jnp.asarray if isinstance(value, jax.Array) else np.asarray
    return Quantizer(as_array(value, np.float32)[None], strict)


def mean() -> Mean:
    """A one-bit quantizer that asks whether a neuron is at least at its own mean, whatever its activation function.

    Returns:
        A `Mean`; `.fit(activations)` makes a `Quantizer` of it.

    Example:
        >>> activations = np.array([[0.0, 5.0], [1.0, 5.0], [5.0, 8.0]], np.float32)
        >>> ja.quantizers.mean().fit(activations)(activations).tolist()
        [[0, 0], [0, 0], [1, 1]]
    """
    return Mean()


def sign() -> Quantizer:
    """A one-bit quantizer: T = 1 where h > 0, else 0, which asks of a ReLU whether it fires.

    Returns:
        A `Quantizer` with 2 codes.

    Example:
        >>> ja.quantizers.sign()(jnp.array([[-1.0, 0.0, 0.1]])).tolist()
        [[0, 0, 1]]
    """
    return threshold(0.0, strict=True)


def levels(edges: Sequence[float] | Float[AnyArray, "edge *neuron"]) -> Quantizer:
    """A quantizer with edges of the user's own: T = number of edges e with h >= e.

    Args:
        edges: the inner edges, strictly increasing as float32, in the unit of the activations; float [edge], or
            [edge, neuron] where each neuron has its own.

    Returns:
        A `Quantizer` with one code more than edges. Code 0 lies below the first edge, the last code at or above the
        last; an activation on an edge belongs to the upper code.

    Raises:
        InputError: for edges of another shape, not finite or not increasing.

    Example:
        >>> ja.quantizers.levels([0.25, 0.75])(jnp.array([[0.0, 0.25, 0.5, 1.0]])).tolist()
        [[0, 1, 1, 2]]
    """
    inner = np.asarray(edges, np.float32)
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
    return Quantizer(inner)


def uniform(bins: int, low: float, high: float) -> Quantizer:
    """Equal bins between low and high: T = floor(bins (h - low) / (high - low)), kept within 0..bins-1.

    An activation on an inner edge low + k (high - low) / bins, rounded to float32, belongs to the upper bin, `high`
    to the last one; activations below `low` or above `high` go to the first or the last.

    Args:
        bins: the number of codes, at least 2.
        low: the lower end of the range, in the unit of the activations.
        high: the upper end.

    Returns:
        A `Quantizer` with `bins` codes.

    Raises:
        InputError: for fewer than 2 bins, or a range that is empty, not finite or too narrow for them in float32.

    Example:
        >>> ja.quantizers.uniform(4, 0.0, 1.0)(jnp.array([[-9.0, 0.2, 0.25, 0.8, 1.0, 9.0]])).tolist()
        [[0, 0, 1, 3, 3, 3]]
    """
    bins = _require_bins(bins)
    require(bool(np.isfinite([low, high]).all() and low < high), f"range: expected low < high, got {low} and {high}")
    return levels((low + (high - low) * np.arange(1, bins) / bins).astype(np.float32))


def quantile(bins: int) -> Quantile:
    """Codes of equal frequency for every neuron, with edges from one split to be applied to another.

    Args:
        bins: the number of codes, at least 2.

    Returns:
        A `Quantile`; `.fit(activations)` makes a `Quantizer` of it. For ties and constant neurons see `Quantile.fit`.

    Raises:
        InputError: for fewer than 2 bins.

    Example:
        >>> quantizer = ja.quantizers.quantile(2).fit(np.array([[0.0], [0.0], [0.0], [7.0]], np.float32))
        >>> quantizer(np.array([[-1.0], [0.0], [6.0], [7.0], [8.0]], np.float32)).ravel().tolist()
        [0, 0, 0, 1, 1]
    """
    return Quantile(_require_bins(bins))


_DEFAULTS = {
    "sigmoid": threshold(0.5),
    "tanh": threshold(0.0),
    "relu": sign(),
    "gelu": sign(),
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


def get_quantizer(setting: str | float) -> Fittable:
    """The quantizer of a setting, as in configurations and on the command line.

    Args:
        setting: "mean"; "positive" (`sign`); "quantile:BINS"; "uniform:BINS:LOW:HIGH"; "levels:EDGE:EDGE:..."; or a
            number, the `threshold`.

    Returns:
        What makes a `Quantizer` by `.fit(activations)`.

    Raises:
        InputError: for another setting, or numbers that the quantizer refuses.

    Example:
        >>> ja.quantizers.get_quantizer("uniform:4:0:1").num_codes, ja.quantizers.get_quantizer(0.5).num_codes
        (4, 2)
    """
    name, *numbers = str(setting).split(":")
    try:
        match name, [float(number) for number in numbers]:
            case "mean", []:
                return mean()
            case "positive", []:
                return sign()
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
        pass  # no number where one is meant
    raise InputError(
        f"unknown quantizer {setting!r}: expected mean, positive, quantile:BINS, uniform:BINS:LOW:HIGH, "
        "levels:EDGE:EDGE:... or a threshold; for networks that know their activation function also activation"
    )


def _require_bins(bins: int) -> int:
    number = require_integer("bins", bins)
    require(number >= 2, f"bins: expected at least 2, got {number}")
    return number


@partial(jax.jit, static_argnames="strict")
def _count_edges(activations: Activations, edges: AnyArray, strict: bool) -> Codes:
    # written out, the comparisons fuse into one pass over the activations; a reduction over an axis of edges does
    # not beyond a few dozen, and takes 80 times as long
    codes = jnp.zeros(activations.shape, jnp.int32)
    for edge in edges:
        codes += activations > edge if strict else activations >= edge
    return codes


def _quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """The edges of one neuron, as `Quantile.fit` explains."""
    ordered = np.sort(values)
    cut = np.arange(1, bins) * len(values) // bins
    # the ends of the tie that the cut falls into: positions where a cut would separate different values
    lower = np.searchsorted(ordered, ordered[cut], side="left")
    upper = np.searchsorted(ordered, ordered[cut], side="right")
    to_lower = (upper == len(values)) | ((lower > 0) & (cut - lower <= upper - cut))
    return ordered[np.where(to_lower, lower, upper)]
