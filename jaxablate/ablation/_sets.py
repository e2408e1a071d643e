"""Evaluate small sets of neurons of one site, each set ablated in the same network.

Input: sets of neuron ids [set, member] of one site that a linear map follows.
Output: sums of the outcomes [set, ...].
Memory: the outputs of one site and of the linear map after it, for one chunk of examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, split_by_site
from jaxablate.ablation._incremental import LARGE_OUTPUT, preferred_chunk
from jaxablate.ablation._outcomes import measure, zero_sums
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
    """Evaluate each of the first `number` sets, ablated in addition to the neurons that `keep` already removes.

    Args:
        problem: the problem of one network to which the incremental engine applies.
        sets: network-wide ids [set, member]; all members belong to one site and are kept by `keep`.
        number: number of sets to evaluate; the remaining ones are padding.
        keep: bool [neuron].

    Returns:
        Sums of the outcomes over the examples [set, ...].
    """
    network = problem.network
    site = int(network.site_of(sets[:1, 0])[0])
    # One example takes the outputs before and after the site, one update, and the activations up to the logits.
    per_example = 5 * peak_activation_bytes(network, 0)
    fill = jax.tree.map(lambda values: values[0], problem.fill)
    scale = None if problem.scale is None else problem.scale[0]
    static = network, site, problem.outcomes, problem.precision, problem.has_moderate_fill
    replicated = sets, np.int32(number), problem.states[0], keep, fill, scale
    return ChunkRunner(problem, per_example, preferred_chunk(network, (site,))).run(_engine, static, replicated)


# If neuron j is ablated, its output changes from h_j to a_j. The output of the linear map after the site then changes
# by (a_j - h_j) w_j, where w_j is row j of the kernel. For a set of neurons these changes add up. The base, the map's
# output with no set ablated, is computed once per chunk. Every set starts from the same base, so rounding errors do not
# accumulate. Only a large difference (an unbounded activation) would lose digits of the base. The linear map is then
# evaluated again for that set.
@Engine
def _engine(static: tuple[ModelSpec, int, tuple[str, ...], str, bool], replicated, shard: Shard):
    """Evaluate sets on one shard of examples; return sums [set, ...].

    Args:
        static: the network, the site, outcomes, precision, and True if fill and scale are moderate.
        replicated: sets [set, member], the number of sets to evaluate, the state, keep, fill and scale.
        shard: the examples.
    """
    network, site, outcomes, precision, has_moderate_fill = static
    sets, number, state, keep, fill, scale = replicated
    segments = split_at_sites(nnx.merge(network.graphdef, state))
    assert segments is not None
    splits, site_sets = network.offsets[1:-1], sets - network.offsets[site]
    linear, bounded = segments[site + 1][0], has_moderate_fill and ends_bounded(segments[site])
    assert isinstance(linear, nnx.Linear)

    def add_chunk(totals, images, labels, rows):
        values = (
            split_by_site(keep, None, splits),
            split_by_site(fill, rows, splits),
            split_by_site(scale, None, splits),
        )
        masks = dict(enumerate(zip(*values, strict=True)))
        site_keep, site_fill, site_scale = masks[site]

        def logits_after(linear_output: jax.Array) -> jax.Array:
            outputs = apply_layers(segments[site + 1][1:], linear_output)
            return run_segments(segments, outputs, site + 1, masks)

        intact = run_segments(segments, images, -1, {}) if "divergence" in outcomes else None
        outputs = run_segments(segments[: site + 1], images, -1, masks)
        base = linear(apply_masks(outputs, site_keep, site_fill, site_scale))
        # [neuron, example, ...]: the loop reads single neurons, and reading a column of the outputs is slow.
        differences = jnp.moveaxis(ablated_values(outputs, site_fill, site_scale) - outputs, -1, 0)

        def add_set(i, totals):
            members = site_sets[i]
            difference = jnp.moveaxis(differences[members], 0, -1)
            kernel_rows = linear.kernel[...][members]
            updated = base + (difference * kernel_rows if len(members) == 1 else difference @ kernel_rows)

            def evaluate_again():
                remaining = site_keep & (jnp.arange(len(site_keep))[:, None] != members).all(axis=1)
                return linear(apply_masks(outputs, remaining, site_fill, site_scale))

            linear_output = updated
            if not bounded:
                is_small = jnp.abs(difference).max() < LARGE_OUTPUT
                linear_output = jax.lax.cond(is_small, lambda: updated, evaluate_again)
            set_sums = measure(outcomes, logits_after(linear_output), labels, intact)
            return jax.tree.map(lambda total, new: total.at[i].add(new), totals, set_sums)

        return jax.lax.fori_loop(0, number, add_set, totals)

    with jax.default_matmul_precision(precision):
        return shard.add_chunks(add_chunk, zero_sums(outcomes, network.num_classes, (len(sets),)))
