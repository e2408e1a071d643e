"""The engine for any masks: masked forward passes, batched by `vmap` over the masks.

A batch of masks by `vmap`, the batches by `lax.map`, chunks of examples by `lax.scan`, all in one jitted call for up
to `SLAB` masks. In a chain, what comes before the first ablated site is computed once for each chunk.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, by_site
from jaxablate.ablation._outcomes import measure, zeros
from jaxablate.models._network import ModelSpec, peak_activation_bytes, run_from_site, run_prefix, stack_states

SLAB = 8192  # masks of one call: bounds what masks and counts take on the device
MASKS_PER_BATCH = 81
IN_FLIGHT = {"cpu": 6_480_000}  # bytes of one activation under a batch of masks: what a core's cache holds
IN_FLIGHT_ELSEWHERE = 32_000_000


def measure_masks(problem: AblationProblem, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of the problem's measures [network, mask, ...] under masks bool [network, mask, neuron]."""
    network = problem.network
    touched = tuple(np.unique(network.site_of(np.flatnonzero(~keep.all(axis=(0, 1))))).tolist())
    first = touched[0] if touched else len(network.sites) - 1
    num_networks, num_masks, num_neurons = keep.shape
    num_slabs = -(-num_networks * num_masks // SLAB)
    batches = -(-num_masks // (num_slabs * MASKS_PER_BATCH))
    batch = -(-num_masks // (num_slabs * batches))  # evenly, so that little is padded
    padded = np.ones((num_networks, num_slabs * batches * batch, num_neurons), bool)
    padded[:, :num_masks] = keep
    in_flight = IN_FLIGHT.get(jax.default_backend(), IN_FLIGHT_ELSEWHERE)
    largest = peak_activation_bytes(network, first)
    # an activation and its successor in flight for each mask of the batch, and what is before the first site
    chunks = ChunkRunner(problem, 2 * largest * (batch + 1), max(1, in_flight // (batch * largest)))
    results = []
    for slab in padded.reshape(num_networks, num_slabs, batches, batch, -1).swapaxes(0, 1):
        static = network, first, touched, problem.outcomes, problem.precision
        sums = chunks.run(_engine, static, (slab, problem.states, problem.fill, problem.scale))
        results.append({name: of.reshape(num_networks, -1, *of.shape[3:]) for name, of in sums.items()})
    return {name: np.concatenate([part[name] for part in results], axis=1)[:, :num_masks] for name in results[0]}


@Engine
def _engine(static: tuple[ModelSpec, int, tuple[int, ...], tuple[str, ...], str], whole, shard: Shard):
    """Sums [network, batch, mask, ...].

    whole are keep [network, batch, mask, neuron], the weights of each network, fill and scale;
    static are the network, the site where evaluation begins, the sites that any mask touches, measures and precision.
    """
    network, first, touched, outcomes, precision = static
    keep, states, fill, scale = whole

    def measure_network(arguments):
        state, keep, fill, scale = arguments
        splits = network.offsets[1:-1]

        def add_chunk(totals, images, labels, rows):
            entered = run_prefix(network, state, images, first)
            fills, scales = by_site(fill, rows, splits), by_site(scale, None, splits)

            def logits_of(masks):
                changes = {i: (masks[i], fills[i], scales[i]) for i in touched}
                return run_from_site(network, state, entered, first, changes)

            intact = run_from_site(network, state, entered, first, {}) if "divergence" in outcomes else None

            def measure_batch(arguments):
                keep, totals = arguments
                logits = jax.vmap(logits_of)(jnp.split(keep, splits, axis=1))
                return jax.tree.map(jnp.add, totals, measure(outcomes, logits, labels, intact))

            return jax.lax.map(measure_batch, (keep, totals))

        start = zeros(outcomes, network.num_classes, keep.shape[:2])
        return shard.add_chunks(add_chunk, start)

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), keep, fill, scale))
