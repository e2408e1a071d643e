"""The engine for cumulative orders: each step updates the result of the step before.

Input: orders of neuron ids [network, order, step, neuron] in chains, and an `AblationProblem`.
Output: sums of the outcomes [network, order, step + 1, ...].
Memory: for one chunk of examples, the output of the linear map after each ablated site.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, split_by_site
from jaxablate.ablation._outcomes import Sums, measure, zero_sums
from jaxablate.models import Model
from jaxablate.models._mlp import ELEMENTWISE
from jaxablate.models._network import (
    Layer,
    ModelSpec,
    apply_layers,
    peak_activation_bytes,
    split_at_sites,
    stack_states,
)
from jaxablate.models._sites import ablated_values, apply_masks

# Shapes: h [example, unit] are a site's outputs. W [unit, output] is the kernel of the linear map after the site. Its
# output is z = h W + b [example, output].
# Rank-one update: step k ablates neuron j, whose output changes from h_j to a_j. Then z changes by (a_j - h_j) w_j,
# with w_j row j of W. Only the layers after z are evaluated again; the prefix and h are not.
# Levels: each ablated site is a level, numbered in network order. An order over several sites may visit them in any
# sequence. A change of z at level d changes the input of every deeper level, so the loops over levels nest. Level d
# keeps its input and updates its z while consecutive steps ablate neurons at level d or deeper. After each update of z,
# level d + 1 starts again with a new input. A step updates z of its own level and evaluates the layers after it.
# Invariant: at step k, exactly the neurons of the first k steps are ablated. When the step is measured, z of every
# level equals the linear map of that site's outputs, up to rounding.
# Exactness: each update adds about one float32 rounding error to z. After n steps the error is that of a sum of n
# terms, as in the matrix product itself. Counts can differ from a full forward pass only for near ties. If h_j or a_j
# is large, the update would lose digits of z. So z is computed again from h if the difference reaches LARGE_OUTPUT.

CHUNK = 500  # examples whose state fits a CPU core's cache
CHUNK_ELSEWHERE = 10_000  # on a GPU, or if only the last site is ablated: its z is small
LARGE_OUTPUT = 100.0  # subtracting larger outputs would leave rounding errors near 1e-5, the margin of a tie


def ablated_sites(network: ModelSpec, orders: np.ndarray) -> tuple[int, ...]:
    """Return the indices of the sites whose neurons are in the orders."""
    return tuple(np.unique(network.site_of(orders)).tolist())


def preferred_chunk(network: ModelSpec, sites: tuple[int, ...]) -> int:
    """Return the number of examples of a chunk: few on a CPU, unless only the last site is ablated."""
    last_only = sites == (len(network.sites) - 1,)
    return CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE


def incremental_obstacle(network: ModelSpec, state: nnx.State, sites: tuple[int, ...]) -> str:
    """Return what the engine needs but this model lacks, for example "a model that is a chain"; "" if nothing.

    `sites` are the indices of the sites whose neurons are ablated.
    """
    segments = split_at_sites(nnx.merge(network.graphdef, state))
    if segments is None:
        return "a model that is a chain"
    for site in sites:
        is_float32 = network.outputs[site].dtype == jnp.float32
        if not (is_float32 and segments[site + 1] and _is_linear(segments[site + 1][0])):
            return f"an nnx.Linear in float32 right after site {network.sites[site]!r}"
    return ""


@functools.cache
def _plain_linear() -> nnx.Linear:
    """Return a linear map with Flax's default settings."""
    return nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def _is_linear(layer: Layer) -> bool:
    """Return True if a layer computes h @ kernel + bias in float32 and nothing else."""
    if type(layer) is not nnx.Linear or any(
        getattr(layer, name, None) is not getattr(_plain_linear(), name, None)
        for name in ("dot_general", "promote_dtype", "preferred_element_type", "precision")
    ):
        return False
    return isinstance(layer, nnx.Linear) and layer.kernel.dtype == jnp.float32 and layer.dtype in (None, jnp.float32)


def measure_steps(
    problem: AblationProblem, orders: np.ndarray, num_distinct: np.ndarray, *, neurons_per_step: int
) -> dict[str, np.ndarray]:
    """Follow orders and sum the problem's outcomes at every step.

    Args:
        problem: networks to which the engine applies.
        orders: network-wide ids [network, order, step * neurons_per_step].
        num_distinct: number of orders to follow [network]; the remaining ones are padding.
        neurons_per_step: number of neurons that each step ablates.

    Returns:
        Sums [network, order, step + 1, ...].
    """
    network = problem.network
    sites = ablated_sites(network, orders)
    # One example takes the state of each level, one update, and the activations before and after the levels.
    per_example = (len(sites) + 4) * peak_activation_bytes(network, sites[0])
    steps = orders.reshape(*orders.shape[:2], -1, neurons_per_step)
    static = network, sites, problem.outcomes, problem.precision, problem.has_moderate_fill
    replicated = steps, num_distinct.astype(np.int32), problem.states, problem.fill, problem.scale
    return ChunkRunner(problem, per_example, preferred_chunk(network, sites)).run(_engine, static, replicated)


class _Level(NamedTuple):
    """An ablated site, the linear map after it, and the layers up to the next level.

    Attributes:
        start, stop: first id of the site's neurons and one past the last.
        fill: [unit], or [example, ..., unit] if it differs between examples.
        scale: [unit], or None for a fill without a scale.
        has_moderate_fill: as in `AblationProblem`.
        linear: the linear map after the site.
        layers_after: layers from the linear map's output to the next level's input, or to the logits.
        activate: elementwise function from the level's input to the site's outputs.
    """

    start: int
    stop: int
    fill: jax.Array
    scale: jax.Array | None
    has_moderate_fill: bool
    linear: nnx.Linear
    layers_after: list[Layer]
    activate: Callable[[jax.Array], jax.Array]

    @property
    def is_bounded(self) -> bool:
        """Return True if the site's outputs, ablated or not, cannot differ by `LARGE_OUTPUT`."""
        return self.has_moderate_fill and ELEMENTWISE.get(self.activate, False)

    def linear_output(self, level_input: jax.Array, keep: jax.Array) -> jax.Array:
        """Compute z [example, ..., output] from the level's input [example, ..., unit] and keep, bool [unit]."""
        outputs = apply_masks(self.activate(level_input), keep, self.fill, self.scale)
        kernel, bias = self.linear.kernel[...], self.linear.bias
        return outputs @ kernel if bias is None else outputs @ kernel + bias[...]

    def update(self, level_input: jax.Array, neurons: jax.Array, is_member: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute how much the neurons' outputs and z change when the neurons are ablated.

        Args:
            level_input: [example, ..., unit].
            neurons: ids within the site [neuron], ablated at one step.
            is_member: bool [neuron]; False for a neuron of another level, whose change is 0 here.

        Returns:
            The changes of the outputs [example, ..., neuron] and of z [example, ..., output].
        """
        scale = None if self.scale is None else self.scale[neurons]
        outputs = self.activate(level_input[..., neurons])
        difference = jnp.where(is_member, ablated_values(outputs, self.fill[..., neurons], scale) - outputs, 0)
        kernel_rows = self.linear.kernel[...][neurons]
        return difference, (difference * kernel_rows if len(neurons) == 1 else difference @ kernel_rows)


def _split_into_levels(
    model: Model, network: ModelSpec, sites: tuple[int, ...], has_moderate_fill: bool, fill, scale, rows
) -> tuple[list[Layer], list[_Level]]:
    """Return the layers before the first level, and the levels.

    If an activation function is the last layer before a site, the level's input is taken before that function. The
    outputs of single neurons are then computed from the input when they are needed, instead of being stored.
    """
    segments = split_at_sites(model)
    assert segments is not None
    splits = network.offsets[1:-1]
    fills, scales = split_by_site(fill, rows, splits), split_by_site(scale, None, splits)
    cuts = [0, *(site + 1 for site in sites), len(segments)]
    parts = [[layer for segment in segments[a:b] for layer in segment] for a, b in itertools.pairwise(cuts)]
    prefix, *parts_after_sites = parts
    levels = []
    for site, layers_after, layers_before in zip(sites, parts_after_sites, parts[:-1], strict=True):
        activate = layers_before.pop() if layers_before and layers_before[-1] in ELEMENTWISE else _identity
        linear = layers_after.pop(0)
        assert isinstance(linear, nnx.Linear)
        start, stop = network.offsets[site : site + 2].tolist()
        site_fill = fills[site], scales[site], has_moderate_fill
        levels.append(_Level(start, stop, *site_fill, linear, layers_after, activate))
    return prefix, levels


def _identity(outputs: jax.Array) -> jax.Array:
    return outputs


@Engine
def _engine(static: tuple[ModelSpec, tuple[int, ...], tuple[str, ...], str, bool], replicated, shard: Shard):
    """Follow orders on one shard of examples; return sums [network, order, step + 1, ...].

    Args:
        static: the network, the ablated sites, outcomes, precision, and True if fill and scale are moderate.
        replicated: orders [network, order, step, neuron], the number of orders to follow [network], the state of each
            network, fill and scale.
        shard: the examples.
    """
    network, sites, outcomes, precision, has_moderate_fill = static
    orders, num_distinct, states, fill, scale = replicated

    def measure_network(arguments):
        state, orders, number, fill, scale = arguments
        model = nnx.merge(network.graphdef, state)

        def add_chunk(totals, images, labels, rows):
            prefix, levels = _split_into_levels(model, network, sites, has_moderate_fill, fill, scale, rows)
            return _add_chunk(levels, outcomes, orders, number, totals, apply_layers(prefix, images), labels)

        start = zero_sums(outcomes, network.num_classes, (orders.shape[0], orders.shape[1] + 1))
        return shard.add_chunks(add_chunk, start)

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), orders, num_distinct, fill, scale))


def _add_chunk(
    levels: list[_Level], outcomes: tuple[str, ...], orders, number, totals: Sums, first_input, labels
) -> Sums:
    """Add the outcomes of one chunk of examples to the totals.

    Args:
        levels: the ablated sites.
        outcomes: names of outcomes.
        orders: [order, step, neuron].
        number: number of orders to follow.
        totals: sums so far [order, step + 1, ...].
        first_input: input of the first level [example, ..., unit].
        labels: [example].
    """
    start = _Progress(
        step=jnp.int32(0),
        sums={name: jnp.zeros(values.shape[1:], values.dtype) for name, values in totals.items()},
        keep=[jnp.ones(level.stop - level.start, bool) for level in levels],
    )
    intact = None
    if "divergence" in outcomes:
        intact = first_input
        for level in levels:
            all_kept = jnp.ones(level.stop - level.start, bool)
            intact = apply_layers(level.layers_after, level.linear_output(intact, all_kept))
    curve = _Curve(levels, outcomes, labels, intact)

    def add_curve(i, totals):
        order = orders[i]
        # depths[step]: the first level that loses a neuron at this step; the last entry, -1, ends every loop.
        stops = jnp.array([level.stop for level in levels])
        depths = jnp.searchsorted(stops, order.min(axis=1), side="right")
        progress = curve.run_level(order, jnp.append(depths, -1), 0, first_input, start)
        return jax.tree.map(lambda total, sums: total.at[i].add(sums), totals, progress.sums)

    # The number of orders is an argument, not a constant of the program: networks differ in their distinct orders.
    return jax.lax.fori_loop(0, number, add_curve, totals)


class _Progress(NamedTuple):
    """The state of a curve.

    Attributes:
        step: the next step to measure.
        sums: outcomes of the steps measured so far [step + 1, ...].
        keep: for each level bool [unit], True = kept.
    """

    step: jax.Array
    sums: Sums
    keep: list[jax.Array]


class _Curve(NamedTuple):
    """The constants of all curves of one chunk of examples."""

    levels: list[_Level]
    outcomes: tuple[str, ...]
    labels: jax.Array
    intact: jax.Array | None

    def run_level(self, order, depths, depth: int, level_input, progress: _Progress) -> _Progress:
        """Measure the next step, then follow the order as long as its steps start at level `depth` or deeper.

        Args:
            order: network-wide ids [step, neuron].
            depths: level at which each step starts [step + 1], with -1 at the end.
            depth: this level.
            level_input: this level's input, constant during the call.
            progress: the state of the curve.
        """
        level = self.levels[depth]

        def run_deeper(linear_output, progress):
            outputs = apply_layers(level.layers_after, linear_output)
            if depth + 1 < len(self.levels):
                return self.run_level(order, depths, depth + 1, outputs, progress)
            step_sums = measure(self.outcomes, outputs, self.labels, self.intact)
            sums = jax.tree.map(lambda sums, new: sums.at[progress.step].set(new), progress.sums, step_sums)
            return progress._replace(step=progress.step + 1, sums=sums)

        def ablate(state):
            linear_output, progress = state
            neurons = order[progress.step - 1]  # step 0 is the intact network
            keep = [
                site_keep & (jnp.arange(site.start, site.stop)[:, None] != neurons).all(axis=1)
                for site_keep, site in zip(progress.keep, self.levels, strict=True)
            ]
            is_member = (neurons >= level.start) & (neurons < level.stop)
            difference, change = level.update(level_input, jnp.where(is_member, neurons - level.start, 0), is_member)
            updated = linear_output + change
            if not level.is_bounded:
                is_small = jnp.abs(difference).max() < LARGE_OUTPUT
                updated = jax.lax.cond(is_small, lambda: updated, lambda: level.linear_output(level_input, keep[depth]))
            return updated, run_deeper(updated, progress._replace(keep=keep))

        linear_output = level.linear_output(level_input, progress.keep[depth])
        progress = run_deeper(linear_output, progress)
        return jax.lax.while_loop(lambda state: depths[state[1].step - 1] == depth, ablate, (linear_output, progress))[
            1
        ]
