"""Evaluate any masks of any network by masked forward passes, batched by `vmap` over the masks.

Input: masks bool [network, mask, neuron] and an `AblationProblem`.
Output: sums of the outcomes [network, mask, ...].
Memory: activations of one chunk of examples under one batch of masks.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, split_by_site
from jaxablate.ablation._outcomes import Batch, measure, zero_sums
from jaxablate.fills import LinearFill
from jaxablate.linear_compensation import predictors
from jaxablate.models._model import ModelSpec, peak_activation_bytes, stack_states, start_forward
from jaxablate.models._sites import Prediction

# Loops, from the outside: slabs of masks (one jitted call each), networks (`lax.map`), chunks of examples (`lax.scan`),
# batches of masks (`lax.map`), masks (`vmap`). The part of the forward pass that no mask changes is computed once for
# each chunk. Chunks are so small that one activation of a chunk under a whole batch of masks
# stays in a core's cache. All batches have nearly the same number of masks, so that little padding is evaluated.
# Counts are exact: every mask gets a forward pass at full precision, and integer sums do not depend on the cuts.
SLAB = 8192  # largest number of masks in one call; it bounds the memory of masks and counts on the device
MASKS_PER_BATCH = 81
CACHED_BYTES = {"cpu": 6_480_000}  # largest size of one activation of a chunk under a batch of masks
CACHED_BYTES_ELSEWHERE = 32_000_000
PREDICTOR_BYTES = 2**28  # largest size of the predictors of a slab's masks (or of one mask), with a linear fill


def measure_masks(problem: AblationProblem, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Return sums of the problem's outcomes [network, mask, ...] under masks bool [network, mask, neuron]."""
    network = problem.network
    sites = tuple(np.unique(network.site_of(np.flatnonzero(~keep.all(axis=(0, 1))))).tolist())
    num_networks, num_masks, num_neurons = keep.shape
    # All numbers are rounded up so that slabs, batches and masks divide evenly; the masks that this adds keep all
    # neurons and are dropped at the end.
    slab_size = SLAB
    if problem.linear is not None:
        per_mask = 4 * sum(network.sizes[site] ** 2 for site in sites)
        slab_size = max(1, min(SLAB, PREDICTOR_BYTES // max(1, per_mask)))
    num_slabs = -(-num_networks * num_masks // slab_size)
    batches = -(-num_masks // (num_slabs * MASKS_PER_BATCH))
    batch = -(-num_masks // (num_slabs * batches))
    padded = np.ones((num_networks, num_slabs * batches * batch, num_neurons), bool)
    padded[:, :num_masks] = keep
    cached_bytes = CACHED_BYTES.get(jax.default_backend(), CACHED_BYTES_ELSEWHERE)
    largest = peak_activation_bytes(network, sites or (len(network.sites) - 1,))
    # Two successive activations are held at a time, for each mask of the batch and for the prefix.
    chunks = ChunkRunner(problem, 2 * largest * (batch + 1), max(1, cached_bytes // (batch * largest)))
    parts = []
    for slab in padded.reshape(num_networks, num_slabs, batches, batch, -1).swapaxes(0, 1):
        static = network, sites, problem.outcomes, problem.precision
        weights, places = _predictors_of_masks(network, sites, problem.linear, slab)
        replicated = slab, places, problem.states, problem.fill, problem.scale, weights
        sums = chunks.run(_engine, static, replicated)
        parts.append({name: values.reshape(num_networks, -1, *values.shape[3:]) for name, values in sums.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1)[:, :num_masks] for name in parts[0]}


def _predictors_of_masks(
    network: ModelSpec, sites: tuple[int, ...], fill: LinearFill | None, keep: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return the weights of a linear fill's predictions; masks that agree at a site share their weights.

    Args:
        network: the network.
        sites: indices of the ablated sites.
        fill: the fill, with a leading axis [network]; None gives empty dictionaries.
        keep: bool [network, batch, mask, neuron].

    Returns:
        For each site float32 [network, distinct, unit, unit] as in `predictors`, and for each site the number of each
        mask's weights, int32 [network, batch, mask].
    """
    weights, places = {}, {}
    if fill is None:
        return weights, places
    for site in sites:
        masks = keep[..., network.offsets[site] : network.offsets[site + 1]].reshape(len(keep), -1, network.sizes[site])
        unique = [np.unique(network_masks, axis=0, return_inverse=True) for network_masks in masks]
        places[site] = np.reshape([index for _, index in unique], keep.shape[:-1]).astype(np.int32)
        # The program is compiled for the number of distinct masks, so this is a power of 2, or the number of masks.
        most = max(len(distinct) for distinct, _ in unique)
        num_distinct = min(2 ** (most - 1).bit_length(), masks.shape[1])
        weights[site] = np.zeros((len(keep), num_distinct, *fill.covariances[site].shape[1:]), np.float32)
        for array, covariance, (distinct, _) in zip(weights[site], fill.covariances[site], unique, strict=True):
            array[: len(distinct)] = predictors(covariance, fill.ridge, distinct)
    return weights, places


@Engine
def _engine(static, replicated, shard: Shard):
    """Evaluate masks on one shard of examples; return sums [network, batch, mask, ...].

    Args:
        static: the network, the ablated sites, outcomes, precision.
        replicated: keep [network, batch, mask, neuron], by site the number of each mask's predictor [network, batch,
            mask], the state of each network, fill, scale, and by site the predictors [network, distinct, unit, unit];
            without a linear fill the dictionaries are empty.
        shard: the examples.
    """
    network, sites, outcomes, precision = static
    keep, places, states, fill, scale, weights = replicated
    splits = network.offsets[1:-1]

    def measure_network(arguments):
        state, keep, places, fill, scale, weights = arguments

        def add_chunk(totals, images, labels, targets, rows):
            finish = start_forward(network, state, images, sites)
            constants, scales = split_by_site(fill, rows, splits), split_by_site(scale, None, splits)
            has_divergence = any(function == "divergence" for _, function in outcomes)
            examples = Batch(labels, targets, finish({}) if has_divergence else None)

            def measure_mask(masks, places):
                predicted = {site: Prediction(constants[site], weights[site][place]) for site, place in places.items()}
                fills = dict(enumerate(constants)) | predicted
                outputs = finish({site: (masks[site], fills[site], scales[site]) for site in sites})
                return measure(outcomes, network.kind, outputs, examples)

            def measure_batch(arguments):
                keep, places, totals = arguments
                sums = jax.vmap(measure_mask)(jnp.split(keep, splits, axis=1), places)
                return jax.tree.map(jnp.add, totals, sums)

            return jax.lax.map(measure_batch, (keep, places, totals))

        return shard.add_chunks(add_chunk, zero_sums(outcomes, network, shard.targets, keep.shape[:2]))

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), keep, places, fill, scale, weights))
