"""The engine for small sets of neurons of one site, each ablated on its own from the same network.

Where a linear map follows the site, each set is a low-rank update of what that map puts out, which is computed once.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._incremental import CHUNK, CHUNK_ELSEWHERE, LARGE
from jaxablate.ablation._machine import Chunks, Engine, Shard, Task, by_site, in_turn, places_of
from jaxablate.ablation._measures import measure, zeros
from jaxablate.models import (
    Network,
    ablated,
    bytes_on_the_way,
    ends_bounded,
    intervene,
    run,
    run_segments,
    segments_of,
)


def measure_sets(task: Task, sets: np.ndarray, number: int, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of the task's measures [set, ...] with each of the first `number` sets of neurons [set, member] of one site
    ablated, beside those that `keep` [neuron] leaves out, to which they do not belong.

    The task is of one network, one that the engine fits.
    """
    network = task.network
    site = int(network.site_of(sets[:1, 0])[0])
    last_only = site == len(network.sites) - 1
    preferred = CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE
    # what is before and behind the site, one update in flight, and what is on the way out
    per_example = 5 * bytes_on_the_way(network, 0)
    fill = jax.tree.map(lambda values: values[0], task.fill)
    scale = None if task.scale is None else task.scale[0]
    turns, shares = in_turn(len(sets), np.array([number]), task.study)
    static = network, site, task.measures, task.precision, task.moderate
    whole = task.states[0], keep, fill, scale
    sums = Chunks(task, per_example, preferred).run(_engine, static, (sets[None, turns], shares), whole)
    return {name: of[0, places_of(turns, len(sets))] for name, of in sums.items()}


@Engine
def _engine(static: tuple[Network, int, tuple[str, ...], str, bool], spread, whole, shard: Shard):
    """Sums [1, set, ...].

    spread are sets [1, set, member] and how many of the first are evaluated [1, 1]; whole are the weights, which
    neurons are kept, fill and scale; static are the network, the site, measures, precision and whether fill and scale
    are moderate.
    """
    network, site, measures, precision, moderate = static
    ((sets,), ((number,),)), (state, keep, fill, scale) = spread, whole
    segments = segments_of(nnx.merge(network.graphdef, state))
    assert segments is not None
    splits, local = network.bounds[1:-1], sets - network.bounds[site]
    linear, bounded = segments[site + 1][0], moderate and ends_bounded(segments[site])
    assert isinstance(linear, nnx.Linear)

    def add_chunk(totals, images, labels, rows):
        values = by_site(keep, None, splits), by_site(fill, rows, splits), by_site(scale, None, splits)
        changes = dict(enumerate(zip(*values, strict=True)))
        kept, fills, scales = changes[site]

        def logits_of(behind: jax.Array) -> jax.Array:
            outputs = run(segments[site + 1][1:], behind)
            return run_segments(segments, outputs, site + 1, changes)

        intact = run_segments(segments, images, -1, {}) if "divergence" in measures else None
        outputs = run_segments(segments[: site + 1], images, -1, changes)
        base = linear(intervene(outputs, kept, fills, scales))
        # what changes where a neuron goes, neuron by neuron: reading a column of the outputs is slow
        changes_of = jnp.moveaxis(ablated(outputs, fills, scales) - outputs, -1, 0)

        def add_set(i, totals):
            members = local[i]
            difference = jnp.moveaxis(changes_of[members], 0, -1)
            rows_of = linear.kernel[...][members]
            updated = base + (difference * rows_of if len(members) == 1 else difference @ rows_of)

            def computed_anew():
                left = kept & (jnp.arange(len(kept))[:, None] != members).all(axis=1)
                return linear(intervene(outputs, left, fills, scales))

            behind = updated
            if not bounded:
                # what a large output leaves behind when it is subtracted again is its rounding error
                behind = jax.lax.cond(jnp.abs(difference).max() < LARGE, lambda: updated, computed_anew)
            measured = measure(measures, logits_of(behind), labels, intact)
            return jax.tree.map(lambda total, new: total.at[i].add(new), totals, measured)

        return jax.lax.fori_loop(0, number, add_set, totals)

    start = zeros(measures, network.num_classes, (len(sets),))
    with jax.default_matmul_precision(precision):
        return jax.tree.map(lambda sums: sums[None], shard.add_chunks(add_chunk, start))
