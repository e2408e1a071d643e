"""Ablation: a network and masks (or orders) come in, exact counts of correct predictions go out.

Two engines give the same counts. `vmap` evaluates any masks by batched masked forward passes; `incremental` follows
cumulative orders, updating at each step what the neuron that goes has changed. Both compute what lies before the first
ablated layer once, share the examples out among the cores of a CPU, and keep their activations within `memory_limit`.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import (
    InputError,
    require,
    require_finite,
    require_integer,
    require_known,
    require_labels,
    require_shape,
)
from jaxablate._typing import CorrectPerMask, CorrectPerStep, Fill, Images, Labels, Masks, Orders
from jaxablate.ablation import _incremental, _vmap
from jaxablate.models import MLP, check_images
from jaxablate.orders import check_orders, masks_of_orders

ENGINES = ("auto", "vmap", "incremental")
ROOM = 32  # orders are made up to a multiple of this, so that few programs are compiled
PRECISIONS = ("highest", "TF32_TF32_F32_X3", "tensorfloat32")

__all__ = ["ENGINES", "PRECISIONS", "cumulative_ablation", "evaluate_masks"]


def evaluate_masks(
    model: MLP | Sequence[MLP],
    keep: Masks,
    images: Images,
    labels: Labels,
    fill: Fill | None = None,
    *,
    scale: Fill | None = None,
    memory_limit: int | None = None,
    precision: str = "highest",
) -> CorrectPerMask:
    """Count the correct predictions of a network under each of many masks.

    A masked neuron's output h becomes m h + (1 - m) f: its own value where it is kept, the fill where it is ablated
    (with a scale, s h + f).

    Args:
        model: the network, or several of one architecture (one for each seed, say); then `keep`, `fill` and the result
            have a leading axis for the networks.
        keep: bool [mask, neuron] over all hidden neurons in network order, True = kept.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.
        scale: float [neuron]; an ablated neuron puts out scale * h + fill in place of its h. None for fill alone.
        memory_limit: bytes of activations held at a time; None for 1 GiB.
        precision: of matrix products: "highest" is full float32 everywhere; "TF32_TF32_F32_X3" and "tensorfloat32" are
            faster on some GPUs, and do nothing on CPU. Only "highest" keeps the counts exact.

    Returns:
        int32 [mask]: for how many examples the largest logit (the first, if tied) is the label's.

    Raises:
        InputError: for a mask or fill of another width, a fill that is not finite, labels out of range, networks of
            different architectures, or logits that are not finite.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.evaluate_masks(model, np.array([[True] * 3, [False] * 3]), images, labels).shape
        (2,)
    """
    models, leading = _networks(model)
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    _require_shape("keep", keep, leading, (None, sum(models[0].hidden)), "mask, neuron")
    require(keep.size > 0, "keep: expected at least one mask, got none")
    fill, scale, images, labels, precision = _checked(models, leading, fill, scale, images, labels, precision)
    keep = keep.reshape(len(models), *keep.shape[-2:])
    correct, finite = _vmap.count_masks(
        models, keep, fill, scale, images, labels, memory_limit=memory_limit, precision=precision
    )
    shape = (*leading, -1)
    return _counts(correct.reshape(shape), finite.reshape(shape), ("mask",))


def cumulative_ablation(
    model: MLP | Sequence[MLP],
    orders: Orders,
    images: Images,
    labels: Labels,
    fill: Fill | None = None,
    *,
    scale: Fill | None = None,
    steps: int = 80,
    neurons_per_step: int = 1,
    engine: str = "auto",
    memory_limit: int | None = None,
    precision: str = "highest",
) -> CorrectPerStep:
    """Count the correct predictions while the neurons of each order are ablated one after another.

    Args:
        model: the network, or several of one architecture (one for each seed, say); then `orders`, `fill` and the
            result have a leading axis for the networks.
        orders: integers [order, rank] of network-wide neuron ids, each at most once in an order.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.
        scale: float [neuron]; an ablated neuron puts out scale * h + fill in place of its h. None for fill alone.
        steps: how many steps to go.
        neurons_per_step: how many neurons go at each step; all steps together at most the ranks of an order.
        engine: "vmap", "incremental", or "auto", which takes incremental on CPU and vmap elsewhere. Same counts.
        memory_limit: bytes of activations held at a time; None for 1 GiB.
        precision: of matrix products: "highest" is full float32 everywhere; "TF32_TF32_F32_X3" and "tensorfloat32" are
            faster on some GPUs, and do nothing on CPU. Only "highest" keeps the counts exact.

    Returns:
        int32 [order, steps + 1]; step k has the first k * neurons_per_step neurons of the order ablated, step 0 is the
        intact network.

    Raises:
        InputError: for more steps than ranks, a repeated or unknown neuron, or as in `evaluate_masks`.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.cumulative_ablation(model, np.array([[2, 0, 1]]), images, labels, steps=3).shape
        (1, 4)
    """
    require_known("engine", engine, ENGINES)
    steps = require_integer("steps", steps)
    neurons_per_step = require_integer("neurons_per_step", neurons_per_step)
    require(steps >= 1, f"steps: expected at least 1, got {steps}")
    require(neurons_per_step >= 1, f"neurons_per_step: expected at least 1, got {neurons_per_step}")
    models, leading = _networks(model)
    num_neurons, ranks = sum(models[0].hidden), steps * neurons_per_step
    orders = np.asarray(orders)
    _require_shape("orders", orders, leading, (None, None), "order, rank")
    require(orders.size > 0, f"orders: expected at least one neuron, got shape {orders.shape}")
    require(
        ranks <= orders.shape[-1],
        f"steps: expected at most the {orders.shape[-1]} neurons of the scope, got {ranks} ({steps} steps of "
        f"{neurons_per_step}); {orders.shape[-1] // neurons_per_step} steps is the largest possible",
    )
    num_orders = orders.shape[-2]
    orders = check_orders(orders.reshape(-1, orders.shape[-1]), num_neurons, ranks)[:, :ranks]
    orders = orders.reshape(len(models), num_orders, ranks)
    fill, scale, images, labels, precision = _checked(models, leading, fill, scale, images, labels, precision)
    orders, numbers, duplicate_of = _distinct(orders)
    if engine == "auto":
        engine = "incremental" if jax.default_backend() == "cpu" else "vmap"
    options = {"memory_limit": memory_limit, "precision": precision}
    if engine == "incremental":
        correct, finite = _incremental.count_steps(
            models, orders, numbers, fill, scale, images, labels, neurons_per_step=neurons_per_step, **options
        )
    else:
        orders = orders[:, : numbers.max()]
        keep = masks_of_orders(orders.reshape(-1, ranks), num_neurons, ranks)
        keep = keep.reshape(*orders.shape[:2], ranks + 1, -1)[:, :, ::neurons_per_step]
        keep = keep.reshape(len(models), -1, num_neurons)
        correct, finite = _vmap.count_masks(models, keep, fill, scale, images, labels, **options)

    def of_every_order(part: np.ndarray) -> np.ndarray:
        distinct = part.reshape(len(models), -1, steps + 1)
        return np.take_along_axis(distinct, duplicate_of[:, :, None], axis=1).reshape(*leading, num_orders, -1)

    return _counts(of_every_order(correct), of_every_order(finite), ("order", "step"))


def _networks(model: MLP | Sequence[MLP]) -> tuple[list[MLP], tuple[int, ...]]:
    """The networks as a list, and the leading axis of what belongs to them: none for a network on its own."""
    if isinstance(model, MLP):
        return [model], ()
    require(isinstance(model, Iterable), f"model: expected a network or several, got {type(model).__name__}")
    models = list(model)
    require(len(models) > 0, "model: expected at least one network, got none")
    for index, other in enumerate(models):
        require(isinstance(other, MLP), f"model: expected networks, got {type(other).__name__} at place {index}")
        require(
            nnx.graphdef(other) == nnx.graphdef(models[0]),
            f"model: expected networks of one architecture, got hidden layers {models[0].hidden} for network 0 "
            f"and {other.hidden} for network {index}, or other inputs, classes or activation functions",
        )
    return models, (len(models),)


def _distinct(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct orders of each network in front [network, order, rank], how many they are [network], and where each
    order is among them [network, order].

    Scores of silent neurons tie, so that orders often agree as far as they are followed.
    """
    found = [np.unique(of_network, axis=0, return_inverse=True) for of_network in orders]
    # a program is compiled for a number of orders and takes no time over those beyond the distinct ones
    room = ROOM * -(-orders.shape[1] // ROOM)
    in_front = np.stack([np.resize(distinct, (room, orders.shape[2])) for distinct, _ in found])
    numbers = np.array([len(distinct) for distinct, _ in found], np.int32)
    return in_front, numbers, np.stack([duplicate_of.ravel() for _, duplicate_of in found])


def _require_shape(
    what: str, array: np.ndarray, leading: tuple[int, ...], shape: tuple[int | None, ...], meaning: str
) -> None:
    """`require_shape`, with the leading axis of several networks."""
    require_shape(what, array, (*leading, *shape), "network, " * len(leading) + meaning)


def _checked(models: list[MLP], leading: tuple[int, ...], fill, scale, images: Images, labels: Labels, precision: str):
    """Fill and scale (or None) [network, neuron], images, labels and precision of the two functions, checked."""
    require_known("precision", precision, PRECISIONS)
    num_neurons = sum(models[0].hidden)
    images = check_images(models[0], images)
    require_labels(np.asarray(labels), len(images), models[0].stages[-1].linear.out_features)

    def of_neurons(what: str, values: Fill) -> np.ndarray:
        values = np.asarray(values, np.float32)
        _require_shape(what, values, leading, (num_neurons,), "neuron")
        require_finite(what, values)
        return values.reshape(len(models), num_neurons)

    fill = of_neurons("fill", np.zeros((*leading, num_neurons)) if fill is None else fill)
    scale = None if scale is None else of_neurons("scale", scale)
    if jax.default_backend() == "cpu":
        precision = "highest"  # a CPU knows no other and refuses the algorithm by name
    return fill, scale, images, jnp.asarray(labels), precision


def _counts(correct: np.ndarray, finite: np.ndarray, axes: tuple[str, ...]) -> jax.Array:
    """The counts, provided that all logits were finite; `axes` name the last axes."""
    if not finite.all():
        axes = ("network", *axes)[-finite.ndim :]
        places = zip(axes, np.unravel_index(finite.argmin(), finite.shape), strict=True)
        raise InputError(
            f"logits: expected finite numbers, got NaN or infinite ones under {(~finite).sum()} of {finite.size} "
            f"{axes[-1]}s, the first being {', '.join(f'{axis} {index}' for axis, index in places)}; check the weights "
            "and the images"
        )
    return jnp.asarray(correct)
