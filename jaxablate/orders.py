"""Orders of neurons: scores (or a random key) come in, permutations and masks go out.

Ids are network-wide: the neurons of all hidden layers counted through in network order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from jaxablate._checks import InputError, require, require_finite, require_integers, require_known, require_range
from jaxablate._typing import AnyArray, Masks, Order, Orders, Scores

DIRECTIONS = ("low", "high")


def ablation_order(scores: Num[AnyArray, "neuron"], *, direction: str) -> Order:
    """Rank neurons by score, ties by index.

    Args:
        scores: numbers [neuron], finite.
        direction: "low" for low values first (LVF), "high" for high values first (HVF).

    Returns:
        int32 [rank]: the index of the neuron at each rank, a permutation of 0..neurons-1.

    Raises:
        InputError: for an unknown direction, another shape, or a score that is not finite.

    Example:
        >>> ja.ablation_order(np.array([0.3, 0.1, 0.3]), direction="high").tolist()
        [0, 2, 1]
    """
    require_known("direction", direction, DIRECTIONS)
    values = np.asarray(scores)
    require(values.ndim == 1, f"scores: expected shape [neuron], got {values.shape}")
    require_finite("scores", values)
    # NumPy's sort keeps the precision that the scores came in; integers without a sign have no negative
    if direction == "low":
        order = np.argsort(values, kind="stable")
    else:
        order = len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
    return jnp.asarray(order.astype(np.int32))


NORMALIZATIONS = ("none", "rank", "z", "share")


def normalize_per_layer(scores: Scores, layers: Int[AnyArray, "neuron"], how: str) -> np.ndarray:
    """Make the scores of different layers comparable, for an order over the whole network.

    Raw scores of one layer are often all higher than those of another, so that a ranking of the whole network empties
    one layer first. Within a layer the order stays as it is.

    Args:
        scores: float [neuron], finite.
        layers: integers [neuron]: which layer each neuron is of, any numbers.
        how: "none"; "rank": the share of the layer's neurons that score lower (ties: half of those that tie) in [0, 1];
            "z": distance from the layer's mean in standard deviations (0 where all are equal); "share": of the largest
            absolute score in the layer (0 where all are 0).

    Returns:
        float64 [neuron].

    Raises:
        InputError: for an unknown way, scores that are not finite, or another number of layers than scores.

    Example:
        >>> ja.orders.normalize_per_layer(np.array([0.1, 0.3, 5.0, 9.0]), np.array([1, 1, 2, 2]), "rank").tolist()
        [0.25, 0.75, 0.25, 0.75]
    """
    require_known("normalization", how, NORMALIZATIONS)
    values, layers = np.asarray(scores, np.float64), np.asarray(layers)
    require(values.ndim == 1, f"scores: expected shape [neuron], got {values.shape}")
    require(layers.shape == values.shape, f"layers: expected one for each of {len(values)} neurons, got {layers.shape}")
    require_finite("scores", values)
    if how == "none":
        return values
    normalized = np.empty_like(values)
    for layer in np.unique(layers):
        of = values[layers == layer]
        if how == "rank":
            ranked = np.sort(of)
            below = np.searchsorted(ranked, of, side="left") + np.searchsorted(ranked, of, side="right")
            result = below / (2 * len(of))
        else:
            zero, unit = (of.mean(), of.std()) if how == "z" else (0.0, np.abs(of).max())
            # the mean of equal numbers may be another one, a rounding apart
            flat = unit == 0 or (how == "z" and np.ptp(of) == 0)
            result = np.zeros_like(of) if flat else (of - zero) / unit
        normalized[layers == layer] = result
    return normalized


def random_orders(key: jax.Array, num_neurons: int, num_orders: int) -> Orders:
    """Independent uniformly random permutations.

    Args:
        key: a random key, `jax.random.key(seed)`.
        num_neurons: how many neurons to permute.
        num_orders: how many permutations.

    Returns:
        int32 [order, rank].

    Example:
        >>> ja.random_orders(jax.random.key(0), 5, 3).shape
        (3, 5)
    """
    keys = jax.random.split(key, num_orders)
    return jax.vmap(lambda k: jax.random.permutation(k, num_neurons))(keys).astype(jnp.int32)


def check_orders(orders: Orders, num_neurons: int, steps: int) -> np.ndarray:
    """Check orders of network-wide ids and return them as a NumPy array [order, rank].

    Raises:
        InputError: for more steps than ranks, or a repeated or unknown neuron.
    """
    array = np.asarray(orders)
    require_integers("orders", array)
    require(array.ndim == 2 and array.size > 0, f"orders: expected shape [order, rank], got {array.shape}")
    require(
        0 <= steps <= array.shape[1],
        f"steps: expected at most the {array.shape[1]} neurons of the scope, got {steps}; "
        f"{array.shape[1]} is the largest possible",
    )
    require_range("orders", array, 0, num_neurons - 1)
    ranked = np.sort(array, axis=1)
    repeated = ranked[:, 1:][ranked[:, 1:] == ranked[:, :-1]]
    if repeated.size:
        raise InputError(f"orders: expected each neuron once, got neuron {repeated[0]} twice in one order")
    return array


def masks_of_orders(orders: Orders, num_neurons: int, steps: int) -> Masks:
    """The masks of cumulative ablation: step k ablates the first k neurons of its order.

    Args:
        orders: integers [order, rank] of network-wide neuron ids.
        num_neurons: all hidden neurons of the network.
        steps: how many neurons to ablate, at most the ranks of an order.

    Returns:
        bool [order * (steps + 1), neuron], True = kept; order by order, each from step 0 (intact) to `steps`.

    Raises:
        InputError: for more steps than ranks, or a repeated or unknown neuron.

    Example:
        >>> ja.orders.masks_of_orders(np.array([[2, 0]]), 3, 2).astype(int).tolist()
        [[1, 1, 1], [1, 1, 0], [0, 1, 0]]
    """
    array = check_orders(orders, num_neurons, steps)
    rank = np.full((len(array), num_neurons), array.shape[1], np.int32)
    np.put_along_axis(rank, array, np.arange(array.shape[1], dtype=np.int32)[None], axis=1)
    keep = rank[:, None, :] >= np.arange(steps + 1)[:, None]
    return keep.reshape(-1, num_neurons)
