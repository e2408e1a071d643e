"""Ablation: a network and masks (or orders) come in, exact counts of correct predictions go out.

Two engines give the same counts. `vmap` evaluates any masks by batched masked forward passes; `incremental` follows
cumulative orders, updating at each step what the neuron that goes has changed. Both compute what lies before the first
ablated layer once, share the examples out among the cores of a CPU, and keep their activations within `memory_limit`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_finite, require_known, require_labels, require_shape
from jaxablate._typing import CorrectPerMask, CorrectPerStep, Fill, Images, Labels, Masks, Orders
from jaxablate.ablation import _incremental, _vmap
from jaxablate.models import MLP, check_images
from jaxablate.orders import check_orders, masks_of_orders

ENGINES = ("auto", "vmap", "incremental")
PRECISIONS = ("highest", "TF32_TF32_F32_X3", "tensorfloat32")

__all__ = ["ENGINES", "PRECISIONS", "cumulative_ablation", "evaluate_masks"]


def evaluate_masks(
    model: MLP,
    keep: Masks,
    images: Images,
    labels: Labels,
    fill: Fill | None = None,
    *,
    memory_limit: int | None = None,
    precision: str = "highest",
) -> CorrectPerMask:
    """Count the correct predictions of a network under each of many masks.

    A masked neuron's output h becomes m h + (1 - m) f: its own value where it is kept, the fill where it is ablated.

    Args:
        model: the network.
        keep: bool [mask, neuron] over all hidden neurons in network order, True = kept.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.
        memory_limit: bytes of activations held at a time; None for 1 GiB.
        precision: of matrix products: "highest" is full float32 everywhere; "TF32_TF32_F32_X3" and "tensorfloat32" are
            faster on some GPUs, and do nothing on CPU. Only "highest" keeps the counts exact.

    Returns:
        int32 [mask]: for how many examples the largest logit (the first, if tied) is the label's.

    Raises:
        InputError: for a mask or fill of another width, a fill that is not finite, labels out of range, or logits
            that are not finite.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.evaluate_masks(model, np.array([[True] * 3, [False] * 3]), images, labels).shape
        (2,)
    """
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    require_shape("keep", keep, (None, sum(model.hidden)), "mask, neuron")
    require(len(keep) > 0, "keep: expected at least one mask, got none")
    fill, images, labels = _checked(model, fill, images, labels, precision)
    correct = _vmap.count_masks(model, keep, fill, images, labels, memory_limit=memory_limit, precision=precision)
    return jnp.asarray(correct)


def cumulative_ablation(
    model: MLP,
    orders: Orders,
    images: Images,
    labels: Labels,
    fill: Fill | None = None,
    *,
    steps: int = 80,
    neurons_per_step: int = 1,
    engine: str = "auto",
    memory_limit: int | None = None,
    precision: str = "highest",
) -> CorrectPerStep:
    """Count the correct predictions while the neurons of each order are ablated one after another.

    Args:
        model: the network.
        orders: integers [order, rank] of network-wide neuron ids, each at most once in an order.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.
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
    require(steps >= 1, f"steps: expected at least 1, got {steps}")
    require(neurons_per_step >= 1, f"neurons_per_step: expected at least 1, got {neurons_per_step}")
    ranks = steps * neurons_per_step
    orders = check_orders(orders, sum(model.hidden), ranks)[:, :ranks]
    fill, images, labels = _checked(model, fill, images, labels, precision)
    # scores of silent neurons tie, so that orders often agree as far as they are followed
    orders, duplicate_of = np.unique(orders, axis=0, return_inverse=True)
    if engine == "auto":
        engine = "incremental" if jax.default_backend() == "cpu" else "vmap"
    options = {"memory_limit": memory_limit, "precision": precision}
    if engine == "incremental":
        correct = _incremental.count_steps(
            model, orders, fill, images, labels, neurons_per_step=neurons_per_step, **options
        )
    else:
        keep = masks_of_orders(orders, sum(model.hidden), ranks).reshape(len(orders), ranks + 1, -1)
        keep = keep[:, ::neurons_per_step].reshape(len(orders) * (steps + 1), -1)
        correct = _vmap.count_masks(model, keep, fill, images, labels, **options).reshape(len(orders), steps + 1)
    return jnp.asarray(correct[duplicate_of.ravel()])


def _checked(model: MLP, fill: Fill | None, images: Images, labels: Labels, precision: str):
    """The fill, images and labels that the two functions share, checked."""
    require_known("precision", precision, PRECISIONS)
    num_neurons = sum(model.hidden)
    images = check_images(model, images)
    require_labels(np.asarray(labels), len(images), model.stages[-1].linear.out_features)
    fill = np.zeros(num_neurons, np.float32) if fill is None else np.asarray(fill, np.float32)
    require_shape("fill", fill, (num_neurons,), "neuron")
    require_finite("fill", fill)
    return fill, images, jnp.asarray(labels)
