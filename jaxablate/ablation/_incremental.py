"""The engine for cumulative orders: each step updates what the step before has computed.

Step k differs from step k-1 by a few neurons. Where a neuron j goes whose site is followed by a linear map with rows
w_j, the map's output changes by (a_j - h_j) w_j, where a_j is what the ablated neuron puts out: a rank-one update; only
what comes after it is computed anew. The state carried from step to step is that output behind every site that the
orders touch, and which neurons are still there.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, by_site
from jaxablate.ablation._outcomes import Sums, measure, zeros
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

CHUNK = 500  # examples whose state a CPU core's cache holds
CHUNK_ELSEWHERE = 10_000
LARGE = 100.0  # a larger output is not subtracted: its rounding error would be near a tie's 1e-5


def ablated_sites(network: ModelSpec, orders: np.ndarray) -> tuple[int, ...]:
    """The sites whose neurons are in the orders, by their numbers."""
    return tuple(np.unique(network.site_of(orders)).tolist())


def incremental_obstacle(network: ModelSpec, state: nnx.State, touched: tuple[int, ...]) -> str:
    """Why the engine cannot follow orders that touch these sites; empty if it can."""
    segments = split_at_sites(nnx.merge(network.graphdef, state))
    if segments is None:
        return "a model that is a chain"
    for site in touched:
        in_float32 = network.outputs[site].dtype == jnp.float32
        if not (in_float32 and segments[site + 1] and _is_linear(segments[site + 1][0])):
            return f"an nnx.Linear in float32 right behind site {network.sites[site]!r}"
    return ""


@functools.cache
def _plain_linear() -> nnx.Linear:
    """A linear map without anything special."""
    return nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def _is_linear(link: Layer) -> bool:
    """Whether a link maps outputs h to h @ kernel + bias in float32, and nothing else."""
    if type(link) is not nnx.Linear or any(
        getattr(link, name, None) is not getattr(_plain_linear(), name, None)
        for name in ("dot_general", "promote_dtype", "preferred_element_type", "precision")
    ):
        return False
    return isinstance(link, nnx.Linear) and link.kernel.dtype == jnp.float32 and link.dtype in (None, jnp.float32)


def measure_steps(
    problem: AblationProblem, orders: np.ndarray, numbers: np.ndarray, *, neurons_per_step: int
) -> dict[str, np.ndarray]:
    """Sums of the problem's measures [network, order, step + 1, ...] along orders
    [network, order, step * neurons_per_step], of which the first `numbers` [network] are followed."""
    network = problem.network
    touched = ablated_sites(network, orders)
    last_only = touched == (len(network.sites) - 1,)
    preferred = CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE
    # what is before and behind the touched sites, one update in flight, and what is on the way out
    per_example = (len(touched) + 4) * peak_activation_bytes(network, touched[0])
    grouped = orders.reshape(*orders.shape[:2], -1, neurons_per_step)
    static = network, touched, problem.outcomes, problem.precision, problem.moderate
    whole = grouped, numbers.astype(np.int32), problem.states, problem.fill, problem.scale
    return ChunkRunner(problem, per_example, preferred).run(_engine, static, whole)


class _Level(NamedTuple):
    """A touched site and what follows it.

    The ids of its first neuron and of the one past its last, fill and scale of its neurons and whether they are
    moderate, the linear map, the links from that map to where the next level begins (or to the logits), and what makes
    the site's outputs of what its level begins with, one by one.
    """

    start: int
    stop: int
    fill: jax.Array
    scale: jax.Array | None
    moderate: bool
    linear: nnx.Linear
    close: list[Layer]
    activate: Callable[[jax.Array], jax.Array]

    @property
    def bounded(self) -> bool:
        """Whether the site's outputs, ablated or not, are small."""
        return self.moderate and ELEMENTWISE.get(self.activate, False)

    def behind(self, before: jax.Array, kept: jax.Array) -> jax.Array:
        """The linear map's output, from what the level begins with and which neurons are kept."""
        outputs = apply_masks(self.activate(before), kept, self.fill, self.scale)
        kernel, bias = self.linear.kernel[...], self.linear.bias
        return outputs @ kernel if bias is None else outputs @ kernel + bias[...]

    def change(self, before: jax.Array, neurons: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        """By how much the outputs of some neurons change that go (those that are `here`), and the linear map's."""
        scale = None if self.scale is None else self.scale[neurons]
        outputs = self.activate(before[..., neurons])
        difference = jnp.where(here, ablated_values(outputs, self.fill[..., neurons], scale) - outputs, 0)
        rows = self.linear.kernel[...][neurons]
        return difference, (difference * rows if len(neurons) == 1 else difference @ rows)


def _levels(
    model: Model, network: ModelSpec, touched: tuple[int, ...], moderate: bool, fill, scale, rows
) -> tuple[list, list[_Level]]:
    """The links to where the first level begins, and the levels.

    A level begins before the activation function, where that is the last link before the site, so that single outputs
    can be computed again in place of being kept.
    """
    segments = split_at_sites(model)
    assert segments is not None
    splits = network.offsets[1:-1]
    fills, scales = by_site(fill, rows, splits), by_site(scale, None, splits)
    cuts = [0, *(site + 1 for site in touched), len(segments)]
    parts = [[link for segment in segments[a:b] for link in segment] for a, b in itertools.pairwise(cuts)]
    entrance, *following = parts
    levels = []
    for site, links, before in zip(touched, following, parts[:-1], strict=True):
        activate = before.pop() if before and before[-1] in ELEMENTWISE else _identity
        linear = links.pop(0)
        assert isinstance(linear, nnx.Linear)
        start, stop = network.offsets[site : site + 2].tolist()
        levels.append(_Level(start, stop, fills[site], scales[site], moderate, linear, links, activate))
    return entrance, levels


def _identity(outputs: jax.Array) -> jax.Array:
    return outputs


@Engine
def _engine(static: tuple[ModelSpec, tuple[int, ...], tuple[str, ...], str, bool], whole, shard: Shard):
    """Sums [network, order, step + 1, ...].

    whole are orders [network, order, step, neuron], the number of orders to follow [network], the weights of each
    network, fill and scale as in `AblationProblem`; static are the network, the ablated sites, measures, precision and
    whether fill and scale are moderate.
    """
    network, touched, outcomes, precision, moderate = static
    orders, numbers, states, fill, scale = whole

    def measure_network(arguments):
        state, orders, number, fill, scale = arguments
        model = nnx.merge(network.graphdef, state)

        def add_chunk(totals, images, labels, rows):
            entrance, levels = _levels(model, network, touched, moderate, fill, scale, rows)
            return _add_chunk(levels, outcomes, orders, number, totals, apply_layers(entrance, images), labels)

        start = zeros(outcomes, network.num_classes, (orders.shape[0], orders.shape[1] + 1))
        return shard.add_chunks(add_chunk, start)

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), orders, numbers, fill, scale))


def _add_chunk(levels: list[_Level], outcomes: tuple[str, ...], orders, number, totals: Sums, before, labels) -> Sums:
    """Totals [order, step + 1, ...] with one chunk of examples added; `before` is where the first level begins."""
    start = _Progress(
        step=jnp.int32(0),
        sums={name: jnp.zeros(of.shape[1:], of.dtype) for name, of in totals.items()},
        kept=[jnp.ones(level.stop - level.start, bool) for level in levels],
    )
    intact = None
    if "divergence" in outcomes:
        intact = before
        for level in levels:
            intact = apply_layers(level.close, level.behind(intact, jnp.ones(level.stop - level.start, bool)))
    curve = _Curve(levels, outcomes, labels, intact)

    def add_curve(i, totals):
        order = orders[i]
        # the level that a step begins in: the first that loses a neuron
        stops = jnp.array([level.stop for level in levels])
        depths = jnp.searchsorted(stops, order.min(axis=1), side="right")
        done = curve.run_level(order, jnp.append(depths, -1), 0, before, start)
        return jax.tree.map(lambda total, sums: total.at[i].add(sums), totals, done.sums)

    # a number that is not part of the program: networks differ in how many distinct orders they have
    return jax.lax.fori_loop(0, number, add_curve, totals)


class _Progress(NamedTuple):
    """How far a curve has come: the next step, the results so far [step + 1, ...], which neurons of each level are
    kept."""

    step: jax.Array
    sums: Sums
    kept: list[jax.Array]


class _Curve(NamedTuple):
    """What is the same for all curves of a chunk of examples."""

    levels: list[_Level]
    outcomes: tuple[str, ...]
    labels: jax.Array
    intact: jax.Array | None

    def run_level(self, order, depths, depth: int, before, progress: _Progress) -> _Progress:
        """Follow the order from the state at hand for as long as its steps begin in this level or behind it.

        `before` is what this level begins with, which does not change meanwhile; `depths` [step + 1] is the level
        that each step begins in, -1 at the end. The levels nest: each keeps what its linear map puts out, and runs the
        next one anew after every change.
        """
        level = self.levels[depth]

        def run_next(behind, progress):
            after = apply_layers(level.close, behind)
            if depth + 1 < len(self.levels):
                return self.run_level(order, depths, depth + 1, after, progress)
            measured = measure(self.outcomes, after, self.labels, self.intact)
            sums = jax.tree.map(lambda sums, new: sums.at[progress.step].set(new), progress.sums, measured)
            return progress._replace(step=progress.step + 1, sums=sums)

        def ablate(state):
            behind, progress = state
            neurons = order[progress.step - 1]  # step 0 is the intact network
            kept = [
                flags & (jnp.arange(of.start, of.stop)[:, None] != neurons).all(axis=1)
                for flags, of in zip(progress.kept, self.levels, strict=True)
            ]
            here = (neurons >= level.start) & (neurons < level.stop)
            difference, change = level.change(before, jnp.where(here, neurons - level.start, 0), here)
            updated = behind + change
            if not level.bounded:
                # what a large output leaves behind when it is subtracted again is its rounding error
                small = jnp.abs(difference).max() < LARGE
                updated = jax.lax.cond(small, lambda: updated, lambda: level.behind(before, kept[depth]))
            return updated, run_next(updated, progress._replace(kept=kept))

        behind = level.behind(before, progress.kept[depth])
        progress = run_next(behind, progress)
        return jax.lax.while_loop(lambda state: depths[state[1].step - 1] == depth, ablate, (behind, progress))[1]
