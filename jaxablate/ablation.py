"""Ablation: a network and masks (or orders) come in, exact counts of correct predictions go out.

All masks of a call run in one jitted pass: a batch of masks by `vmap`, the batches by `lax.map`, chunks of examples by
`lax.scan`. What comes before the first ablated layer is computed once. Memory: the activations of that layer for all
examples, and `MAX_ROWS` rows of activations (mask x example), whatever the number of masks.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, require, require_finite, require_labels, require_shape
from jaxablate._typing import CorrectPerMask, CorrectPerStep, Fill, Images, Labels, Masks, Orders
from jaxablate.models import MLP, check_images, flatten_images
from jaxablate.orders import masks_of_orders

MAX_ROWS = 8_100  # of one activation in flight: small enough for the cache of a CPU core
MASKS_PER_BATCH = 81


def evaluate_masks(model: MLP, keep: Masks, images: Images, labels: Labels, fill: Fill | None = None) -> CorrectPerMask:
    """Count the correct predictions of a network under each of many masks.

    A masked neuron's output h becomes m h + (1 - m) f: its own value where it is kept, the fill where it is ablated.

    Args:
        model: the network.
        keep: bool [mask, neuron] over all hidden neurons in network order, True = kept.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.

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
    num_neurons = sum(model.hidden)
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    require_shape("keep", keep, (None, num_neurons), "mask, neuron")
    require(len(keep) > 0, "keep: expected at least one mask, got none")
    check_images(model, images)
    num_classes = model.stages[-1].linear.out_features
    require_labels(np.asarray(labels), len(images), num_classes)
    fill = np.zeros(num_neurons, np.float32) if fill is None else np.asarray(fill, np.float32)
    require_shape("fill", fill, (num_neurons,), "neuron")
    require_finite("fill", fill)

    ablated = np.flatnonzero(~keep.all(axis=0))
    ends = np.cumsum(model.hidden)
    first = int(np.searchsorted(ends, ablated[0], side="right")) if len(ablated) else len(ends) - 1
    num_batches = -(-len(keep) // MASKS_PER_BATCH)
    batch = -(-len(keep) // num_batches)  # evenly, so that padding stays below one mask for each batch
    padded = np.ones((num_batches * batch, num_neurons), bool)
    padded[: len(keep)] = keep
    graphdef, state = nnx.split(model)
    correct, finite = _count_correct(
        graphdef,
        state,
        padded.reshape(num_batches, batch, num_neurons),
        fill,
        images,
        labels,
        first=first,
        chunk=min(MAX_ROWS // batch, len(images)),
    )
    finite = np.asarray(finite).ravel()[: len(keep)]
    if not finite.all():
        raise InputError(
            f"logits: expected finite numbers, got NaN or infinite ones under {(~finite).sum()} of {len(keep)} masks, "
            f"the first being mask {finite.argmin()}; check the weights and the images"
        )
    return correct.ravel()[: len(keep)]


def cumulative_ablation(
    model: MLP, orders: Orders, images: Images, labels: Labels, fill: Fill | None = None, *, steps: int = 80
) -> CorrectPerStep:
    """Count the correct predictions while the neurons of each order are ablated one after another.

    Args:
        model: the network.
        orders: integers [order, rank] of network-wide neuron ids, each at most once in an order.
        images: float32 [example, height, width].
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing.
        steps: how many neurons to ablate, at most the ranks of an order.

    Returns:
        int32 [order, steps + 1]; step k has the first k neurons of the order ablated, step 0 is the intact network.

    Raises:
        InputError: for more steps than ranks, a repeated or unknown neuron, or as in `evaluate_masks`.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.cumulative_ablation(model, np.array([[2, 0, 1]]), images, labels, steps=3).shape
        (1, 4)
    """
    keep = masks_of_orders(orders, sum(model.hidden), steps)
    return evaluate_masks(model, keep, images, labels, fill).reshape(len(orders), steps + 1)


@partial(jax.jit, static_argnames=("graphdef", "first", "chunk"))
def _count_correct(graphdef, state, keep, fill, images, labels, *, first: int, chunk: int):
    """Correct predictions and whether all logits were finite, both [batch, mask], for keep [batch, mask, neuron].

    `first` is the first hidden layer that any mask touches; `chunk` the examples evaluated together.
    """
    model = nnx.merge(graphdef, state)
    stages = list(model.stages)
    splits = np.cumsum(model.hidden)[:-1]
    fills = jnp.split(fill, splits)

    def logits_of(prefix, masks):
        outputs = jnp.where(masks[first], prefix, fills[first])
        for layer in range(first + 1, len(fills)):
            outputs = jnp.where(masks[layer], stages[layer](outputs), fills[layer])
        return stages[-1](outputs)

    def count_batch(keep):
        masks = jnp.split(keep, splits, axis=1)

        def count_chunk(totals, examples):
            prefix, labels = examples
            logits = jax.vmap(logits_of, in_axes=(None, 0))(prefix, masks)
            correct = (logits.argmax(axis=-1) == labels).sum(axis=-1, dtype=jnp.int32)
            finite = jnp.isfinite(logits).all(axis=(1, 2))
            return (totals[0] + correct, totals[1] & finite), None

        start = jnp.zeros(len(keep), jnp.int32), jnp.ones(len(keep), bool)
        return jax.lax.scan(count_chunk, start, chunks)[0]

    with jax.default_matmul_precision("highest"):
        prefix = flatten_images(images)
        for stage in stages[: first + 1]:
            prefix = stage(prefix)
        surplus = -len(labels) % chunk
        # repeats of the last example fill the last chunk; their label -1 is never predicted
        prefix = jnp.pad(prefix, ((0, surplus), (0, 0)), mode="edge").reshape(-1, chunk, prefix.shape[1])
        labels = jnp.pad(labels.astype(jnp.int32), (0, surplus), constant_values=-1).reshape(-1, chunk)
        chunks = prefix, labels
        return jax.lax.map(count_batch, keep)
