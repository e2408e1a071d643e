"""Orders of neurons: from scores or a random key to permutations, and from permutations to masks.

Input: scores [neuron], or a random key.
Output: orders int32 [rank] or [order, rank]; masks bool [mask, neuron], True = kept.
Ids count over the whole network (the neurons of all sites in network order); with `site=` they count within that site.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from jaxablate._checks import (
    InputError,
    host_array,
    host_numbers,
    require,
    require_count,
    require_finite,
    require_in_order,
    require_integers,
    require_key,
    require_known,
)
from jaxablate._typing import AnyArray, Masks, Order, Orders, Scores
from jaxablate.devices import to_device

__all__ = [
    "DIRECTIONS",
    "NORMALIZATIONS",
    "LabelledScores",
    "ablation_order",
    "masks_of_orders",
    "normalize_per_layer",
    "random_orders",
]

DIRECTIONS = ("low", "high")


@runtime_checkable
class LabelledScores(Protocol):
    """Scores [neuron] with coordinates, such as an `xarray.DataArray`."""

    @property
    def coords(self) -> Mapping[Any, Any]:
        """Coordinates by name."""
        ...


def ablation_order(
    scores: Num[AnyArray, "neuron"] | LabelledScores, *, direction: str, site: str | None = None
) -> Order:
    """Rank neurons by score; ties are ranked by index.

    Args:
        scores: numbers [neuron], finite. With `site`, a labelled array [neuron] with the coordinate `site`, for example
            `ja.study.score_neurons(model, data)["scores"].sel(score="entropy")`.
        direction: "low" for low values first (LVF), "high" for high values first (HVF).
        site: name of the site whose neurons are ranked; None ranks all neurons of `scores`.

    Returns:
        int32 [rank]: the id of the neuron at each rank, a permutation of 0..neurons-1. With `site`, the ids count
        within that site; pass the same `site=` to the ablation function.

    Raises:
        InputError: for an unknown direction or site, another shape, a score that is not finite, or scores without the
            coordinate `site` when a site is given.

    Example:
        >>> ja.ablation_order(np.array([0.3, 0.1, 0.3]), direction="high").tolist()
        [0, 2, 1]
        >>> model, data = ja.MLP(784, (5, 4), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k")
        >>> scores = ja.study.score_neurons(model, data)["scores"].sel(score="entropy")
        >>> sorted(ja.ablation_order(scores, direction="low", site="layer2").tolist())
        [0, 1, 2, 3]
    """
    require_known("direction", direction, DIRECTIONS)
    require_in_order("scores", scores)
    values = host_numbers("scores", scores)
    require(values.ndim == 1, f"scores: expected shape [neuron], got {values.shape}")
    if site is not None:
        sites = _sites_of_scores(scores)
        require_known("site", site, dict.fromkeys(sites.tolist()))
        values = values[sites == site]
    require_finite("scores", values)
    # NumPy sorts in the dtype of the scores: float64 scores that differ by less than a float32 can tell stay apart.
    # Sorting -scores would reverse the ties, and unsigned integers have no negative; so "high" sorts from the end.
    if direction == "low":
        order = np.argsort(values, kind="stable")
    else:
        order = len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
    return to_device(order.astype(np.int32))


def _sites_of_scores(scores: Any) -> np.ndarray:
    """Return the site of each neuron from the coordinate `site` of labelled scores.

    Any object with `coords`, like an xarray.DataArray, will do: xarray itself is not imported.

    Raises:
        InputError: for scores without the coordinate, or with one of another shape.
    """
    coords = getattr(scores, "coords", {})
    require(
        "site" in coords and np.shape(coords["site"]) == np.shape(scores),
        "scores: expected a labelled array with the coordinate 'site' along its axis, got "
        f"{type(scores).__name__}; take a row of score_neurons(...)['scores'], or omit site= for one site's scores",
    )
    return np.asarray(coords["site"])


NORMALIZATIONS = ("none", "rank", "z", "share")


def normalize_per_layer(scores: Scores, layers: Int[AnyArray, "neuron"], how: str) -> np.ndarray:
    """Make the scores of different layers comparable, so that one order can rank the whole network.

    Raw scores of one layer are often all higher than the scores of another layer. A ranking of the whole network then
    empties one layer first. The order within a layer does not change.

    Args:
        scores: float [neuron], finite.
        layers: integers [neuron]: the layer of each neuron, by any numbers.
        how: "none"; "rank": the fraction of the layer's neurons that score lower, in [0, 1] (tied neurons count half);
            "z": distance from the layer's mean in standard deviations (0 if all scores are equal); "share": fraction of
            the layer's largest absolute score (0 if all scores are 0).

    Returns:
        float64 [neuron].

    Raises:
        InputError: for an unknown normalization, scores that are not finite, or layers of another shape than the
            scores.

    Example:
        >>> ja.orders.normalize_per_layer(np.array([0.1, 0.3, 5.0, 9.0]), np.array([1, 1, 2, 2]), "rank").tolist()
        [0.25, 0.75, 0.25, 0.75]
    """
    require_known("normalization", how, NORMALIZATIONS)
    require_in_order("scores", scores)
    values, layers = host_numbers("scores", scores).astype(np.float64), host_array("layers", layers)
    require(values.ndim == 1, f"scores: expected shape [neuron], got {values.shape}")
    require(layers.shape == values.shape, f"layers: expected one for each of {len(values)} neurons, got {layers.shape}")
    require_finite("scores", values)
    if how == "none":
        return values
    normalized = np.empty_like(values)
    for layer in np.unique(layers):
        layer_scores = values[layers == layer]
        if how == "rank":
            ranked = np.sort(layer_scores)
            # (lower + lower_or_equal) / 2 is the number of lower scores plus half of the ties, the score itself
            # included.
            lower = np.searchsorted(ranked, layer_scores, side="left")
            lower_or_equal = np.searchsorted(ranked, layer_scores, side="right")
            result = (lower + lower_or_equal) / (2 * len(layer_scores))
        else:
            zero, unit = (layer_scores.mean(), layer_scores.std()) if how == "z" else (0.0, np.abs(layer_scores).max())
            # The mean of equal numbers can differ from them by a rounding error; dividing by the standard deviation,
            # which is then as small, would turn it into a score.
            constant = unit == 0 or (how == "z" and np.ptp(layer_scores) == 0)
            result = np.zeros_like(layer_scores) if constant else (layer_scores - zero) / unit
        normalized[layers == layer] = result
    return normalized


def random_orders(num_neurons: int, num_orders: int, *, key: jax.Array) -> Orders:
    """Draw independent, uniformly random permutations.

    Args:
        num_neurons: number of neurons to permute, of one site or of the whole network.
        num_orders: number of permutations.
        key: random key, `jax.random.key(seed)`.

    Returns:
        int32 [order, rank].

    Example:
        >>> ja.random_orders(5, 3, key=jax.random.key(0)).shape
        (3, 5)
    """
    require_key(key)
    num_neurons, num_orders = require_count("num_neurons", num_neurons), require_count("num_orders", num_orders)
    # One key for each order. The first orders are the same for every number of orders, since JAX derives key i from i
    # alone.
    keys = jax.random.split(key, num_orders)
    return jax.vmap(lambda k: jax.random.permutation(k, num_neurons))(keys).astype(jnp.int32)


def check_orders(
    orders: Orders, num_neurons: int, steps: int, *, site: str | None = None, first_id: int = 0
) -> np.ndarray:
    """Check the ids of orders and return the orders as a NumPy array [order, rank].

    Args:
        orders: integers [order, rank].
        num_neurons: number of neurons in the numbering of the ids: the site's with `site`, else the whole network's.
        steps: number of ranks that are used.
        site: name of the site within which the ids count; None if they count over the whole network.
        first_id: id that the site's first neuron has in the whole network.

    Raises:
        InputError: for more steps than ranks, or an unknown or repeated neuron.
    """
    array = host_array("orders", orders)
    require_integers("orders", array)
    require(array.ndim == 2 and array.size > 0, f"orders: expected shape [order, rank], got {array.shape}")
    require(
        0 <= steps <= array.shape[1],
        f"steps: {steps} is not within 0..{array.shape[1]}, the number of neurons in each order; choose at most "
        f"{array.shape[1]}",
    )
    require_ids("orders", array, num_neurons, site=site, first_id=first_id)
    # Equal neighbours in a sorted order are a neuron that is named twice.
    ranked = np.sort(array, axis=1)
    repeated = ranked[:, 1:][ranked[:, 1:] == ranked[:, :-1]]
    if repeated.size:
        raise InputError(f"orders: neuron {repeated[0]} is twice in one order; name each neuron once")
    return array


def require_ids(
    argument: str, ids: np.ndarray, num_neurons: int, *, site: str | None = None, first_id: int = 0
) -> None:
    """Raise unless every neuron id is in range; the message gives both numberings. Arguments as in `check_orders`."""
    # A negative id would count from the end in NumPy and ablate another neuron without an error.
    unknown = ids[(ids < 0) | (ids >= num_neurons)]
    if unknown.size and site is None:
        raise InputError(
            f"{argument}: neuron {unknown.flat[0]} is not in the network, whose {num_neurons} neurons are "
            f"0..{num_neurons - 1}; ids within a site need site="
        )
    if unknown.size:
        raise InputError(
            f"{argument}: neuron {unknown.flat[0]} is not in site {site!r}, whose {num_neurons} neurons are "
            f"0..{num_neurons - 1} within the site, {first_id}..{first_id + num_neurons - 1} in the whole network; "
            "with site= use ids within the site"
        )


def masks_of_orders(orders: Orders, num_neurons: int, steps: int) -> Masks:
    """Return the masks of cumulative ablation: step k ablates the first k neurons of its order.

    Args:
        orders: integers [order, rank] of neuron ids, each at most once in an order.
        num_neurons: number of neurons that a mask covers.
        steps: number of neurons to ablate, at most the ranks of an order.

    Returns:
        bool [order * (steps + 1), neuron], True = kept; order by order, each from step 0 (intact) to `steps`.

    Raises:
        InputError: for more steps than ranks, or a repeated or unknown neuron.

    Example:
        >>> ja.orders.masks_of_orders(np.array([[2, 0]]), 3, 2).astype(int).tolist()
        [[1, 1, 1], [1, 1, 0], [0, 1, 0]]
    """
    num_neurons, steps = require_count("num_neurons", num_neurons), require_count("steps", steps, 0)
    array = check_orders(orders, num_neurons, steps)
    # rank[order, neuron] is the step that ablates the neuron, minus one; neurons outside the order are never ablated
    rank = np.full((len(array), num_neurons), array.shape[1], np.int32)
    np.put_along_axis(rank, array, np.arange(array.shape[1], dtype=np.int32)[None], axis=1)
    keep = rank[:, None, :] >= np.arange(steps + 1)[:, None]
    return keep.reshape(-1, num_neurons)
