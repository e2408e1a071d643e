"""The engine for any masks: masked forward passes, batched by `vmap` over the masks.

A batch of masks by `vmap`, the batches by `lax.map`, chunks of examples by `lax.scan`, all in one jitted call for up
to `SLAB` masks. What comes before the first ablated layer is computed once for each chunk.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._parallel import COMPILER_OPTIONS
from jaxablate.ablation._machine import ablated, by_layer, lay_out, run_shards, total
from jaxablate.models import MLP, site_bounds, stack_states

SLAB = 8192  # masks of one call: bounds what masks and counts take on the device
MASKS_PER_BATCH = 81
ROWS = {"cpu": 8_100}  # mask x example of one activation in flight: what a core's cache holds
ROWS_ELSEWHERE = 40_000


def count_masks(
    models: Sequence[MLP], keep, fill, scale, images, labels, *, memory_limit: int | None, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Correct predictions int32 and whether all logits were finite, both [network, mask].

    For networks of one architecture, keep bool [network, mask, neuron], fill [network, neuron], scale like fill or
    None; the caller has checked the arguments.
    """
    ablated = np.flatnonzero(~keep.all(axis=(0, 1)))
    ends = site_bounds(models[0].hidden)[1:]
    first = int(np.searchsorted(ends, ablated[0], side="right")) if len(ablated) else len(ends) - 1
    num_networks, num_masks, num_neurons = keep.shape
    num_slabs = -(-num_networks * num_masks // SLAB)
    batches = -(-num_masks // (num_slabs * MASKS_PER_BATCH))
    batch = -(-num_masks // (num_slabs * batches))  # evenly, so that little is padded
    padded = np.ones((num_networks, num_slabs * batches * batch, num_neurons), bool)
    padded[:, :num_masks] = keep
    rows = ROWS.get(jax.default_backend(), ROWS_ELSEWHERE)
    # an activation and its successor in flight for each mask of the batch, and the prefix
    width = 2 * max(*models[0].hidden, models[0].stages[-1].linear.out_features)
    layout = lay_out(len(images), 4 * width * (batch + 1), memory_limit, max(1, rows // batch))
    states = [nnx.state(model) for model in models]
    shards = layout.split(images, labels)
    results = []
    for slab in padded.reshape(num_networks, num_slabs, batches, batch, -1).swapaxes(0, 1):
        call = partial(_count, nnx.graphdef(models[0]), first, precision, states, slab, fill, scale)
        results.append([part.reshape(num_networks, -1) for part in total(run_shards(call, shards))])
    correct, finite = (np.concatenate(parts, axis=1)[:, :num_masks] for parts in zip(*results, strict=True))
    return correct, finite


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=COMPILER_OPTIONS)
def _count(graphdef: nnx.GraphDef, first: int, precision: str, states, keep, fill, scale, images, labels):
    """Correct predictions, and whether all logits were finite, both [network, batch, mask].

    `states` are the weights of each network, keep is [network, batch, mask, neuron], fill and scale (or None)
    [network, neuron]; `first` is the first hidden layer that any mask touches; images are [chunk, example, pixel].
    """

    def count_network(arguments):
        state, keep, fill, scale = arguments
        return _count_network(nnx.merge(graphdef, state), first, keep, fill, scale, images, labels)

    with jax.default_matmul_precision(precision):
        return jax.lax.map(count_network, (stack_states(states), keep, fill, scale))


def _count_network(model: MLP, first: int, keep, fill, scale, images, labels) -> tuple[jax.Array, jax.Array]:
    """The same for one network, [batch, mask]."""
    stages = list(model.stages)
    splits = site_bounds(model.hidden)[1:-1]
    fills, scales = by_layer(fill, splits), by_layer(scale, splits)

    def logits_of(prefix, masks):
        outputs = jnp.where(masks[first], prefix, ablated(prefix, fills[first], scales[first]))
        for layer in range(first + 1, len(fills)):
            outputs = stages[layer](outputs)
            outputs = jnp.where(masks[layer], outputs, ablated(outputs, fills[layer], scales[layer]))
        return stages[-1](outputs)

    def add_chunk(totals, examples):
        prefix, labels = examples
        for stage in stages[: first + 1]:
            prefix = stage(prefix)

        def count_batch(arguments):
            keep, correct, finite = arguments
            logits = jax.vmap(logits_of, in_axes=(None, 0))(prefix, jnp.split(keep, splits, axis=1))
            counted = (logits.argmax(axis=-1) == labels).sum(axis=-1, dtype=jnp.int32)
            return correct + counted, finite & jnp.isfinite(logits).all(axis=(1, 2))

        return jax.lax.map(count_batch, (keep, *totals)), None

    start = jnp.zeros(keep.shape[:2], jnp.int32), jnp.ones(keep.shape[:2], bool)
    return jax.lax.scan(add_chunk, start, (images, labels))[0]
