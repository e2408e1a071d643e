"""The engine for small sets of neurons of one site, each ablated on its own from the same network.

Where a linear map follows the site, each set is a low-rank update of what that map puts out, which is computed once.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, by_site
from jaxablate.ablation._incremental import CHUNK, CHUNK_ELSEWHERE, LARGE
from jaxablate.ablation._outcomes import measure, zeros
from jaxablate.models._network import (
    ModelSpec,
    apply_layers,
    ends_bounded,
    peak_activation_bytes,
    run_segments,
    split_at_sites,
)
from jaxablate.models._sites import ablated_values, apply_masks


def measure_sets(problem: AblationProblem, sets: np.ndarray, number: int, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of the outcomes [set, ...] with each of the first `number` sets of neurons [set, member] of one site
    ablated, beside those that `keep` [neuron] leaves out, to which they do not belong.

    The problem is of one network, one that the engine fits.
    """
    network = problem.network
    site = int(network.site_of(sets[:1, 0])[0])
    last_only = site == len(network.sites) - 1
    preferred = CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE
    # what is before and behind the site, one update in flight, and what is on the way out
    per_example = 5 * peak_activation_bytes(network, 0)
    fill = jax.tree.map(lambda values: values[0], problem.fill)
    scale = None if problem.scale is None else problem.scale[0]
    static = network, site, problem.outcomes, problem.precision, problem.moderate
    whole = sets, np.int32(number), problem.states[0], keep, fill, scale
    return ChunkRunner(problem, per_example, preferred).run(_engine, static, whole)


@Engine
def _engine(static: tuple[ModelSpec, int, tuple[str, ...], str, bool], whole, shard: Shard):
    """Sums [set, ...].

    whole are sets [set, member], the number of sets to evaluate, the weights, which neurons are kept, fill and scale;
    static are the network, the site, measures, precision and whether fill and scale are moderate.
    """
    network, site, outcomes, precision, moderate = static
    sets, number, state, keep, fill, scale = whole
    segments = split_at_sites(nnx.merge(network.graphdef, state))
    assert segments is not None
    splits, local = network.offsets[1:-1], sets - network.offsets[site]
    linear, bounded = segments[site + 1][0], moderate and ends_bounded(segments[site])
    assert isinstance(linear, nnx.Linear)

    def add_chunk(totals, images, labels, rows):
        values = by_site(keep, None, splits), by_site(fill, rows, splits), by_site(scale, None, splits)
        changes = dict(enumerate(zip(*values, strict=True)))
        kept, fills, scales = changes[site]

        def logits_of(behind: jax.Array) -> jax.Array:
            outputs = apply_layers(segments[site + 1][1:], behind)
            return run_segments(segments, outputs, site + 1, changes)

        intact = run_segments(segments, images, -1, {}) if "divergence" in outcomes else None
        outputs = run_segments(segments[: site + 1], images, -1, changes)
        base = linear(apply_masks(outputs, kept, fills, scales))
        # what changes where a neuron goes, neuron by neuron: reading a column of the outputs is slow
        changes_of = jnp.moveaxis(ablated_values(outputs, fills, scales) - outputs, -1, 0)

        def add_set(i, totals):
            members = local[i]
            difference = jnp.moveaxis(changes_of[members], 0, -1)
            rows_of = linear.kernel[...][members]
            updated = base + (difference * rows_of if len(members) == 1 else difference @ rows_of)

            def computed_anew():
                left = kept & (jnp.arange(len(kept))[:, None] != members).all(axis=1)
                return linear(apply_masks(outputs, left, fills, scales))

            behind = updated
            if not bounded:
                # what a large output leaves behind when it is subtracted again is its rounding error
                behind = jax.lax.cond(jnp.abs(difference).max() < LARGE, lambda: updated, computed_anew)
            measured = measure(outcomes, logits_of(behind), labels, intact)
            return jax.tree.map(lambda total, new: total.at[i].add(new), totals, measured)

        return jax.lax.fori_loop(0, number, add_set, totals)

    start = zeros(outcomes, network.num_classes, (len(sets),))
    with jax.default_matmul_precision(precision):
        return shard.add_chunks(add_chunk, start)
