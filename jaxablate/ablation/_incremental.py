"""The engine for cumulative orders: each step updates what the step before has computed.

Step k differs from step k-1 by a few neurons. Where a neuron j of layer l goes, the pre-activation of layer l+1
changes by (a_j - h_j) w_j, where a_j is what the ablated neuron puts out: a rank-one update; only the layers after it
are computed anew. The state carried from step to step is the pre-activation behind every layer that the orders touch,
and which neurons are still there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._parallel import COMPILER_OPTIONS
from jaxablate.ablation._machine import ablated, by_layer, lay_out, run_shards, total
from jaxablate.models import ACTIVATIONS, MLP, site_bounds, stack_states

CHUNK = 500  # examples whose state a CPU core's cache holds
CHUNK_ELSEWHERE = 10_000
BOUNDED = ("sigmoid", "tanh")  # activation functions whose outputs lie in [-1, 1]
LARGE = 100.0  # a larger output is not subtracted: its rounding error would be near a tie's 1e-5


def count_steps(
    models: Sequence[MLP],
    orders: np.ndarray,
    numbers: np.ndarray,
    fill,
    scale,
    images,
    labels,
    *,
    neurons_per_step: int,
    memory_limit: int | None,
    precision: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Correct predictions int32 and whether all logits were finite, both [network, order, step + 1].

    For networks of one architecture, orders [network, order, step * neurons_per_step], of which the first
    `numbers` [network] are followed, fill [network, neuron], scale like fill or None; the caller has checked the
    arguments.
    """
    model = models[0]
    bounds = site_bounds(model.hidden)
    touched = tuple(np.unique(np.searchsorted(bounds, orders, side="right") - 1).tolist())
    last_only = touched == (len(model.hidden) - 1,)
    preferred = CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE
    widest = max(*model.hidden, model.stages[-1].linear.out_features)
    # pre-activations around the layers from the first touched to the last, one update in flight, and what is on the
    # way out
    per_example = 4 * ((touched[-1] - touched[0] + 2) + 3) * widest
    layout = lay_out(len(images), per_example, memory_limit, preferred)
    grouped = orders.reshape(*orders.shape[:2], -1, neurons_per_step)
    states = [nnx.state(model) for model in models]
    call = partial(_count, nnx.graphdef(model), touched, precision, states, grouped, numbers, fill, scale)
    return total(run_shards(call, layout.split(images, labels)))


class _Network(NamedTuple):
    """What a program knows of the network: `weights` of every stage, `fills` and `scales` of every hidden layer,
    where its neurons begin and end (`bounds`), the activation function and whether it is bounded, and the hidden layers
    that any order touches."""

    weights: list[tuple[jax.Array, jax.Array]]
    fills: list[jax.Array]
    scales: list[jax.Array | None]
    bounds: np.ndarray
    activate: Callable[[jax.Array], jax.Array]
    bounded: bool
    touched: tuple[int, ...]

    def values_of(self, layer: int, neurons: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Fill and scale of some neurons of a layer."""
        scale = self.scales[layer]
        return self.fills[layer][neurons], None if scale is None else scale[neurons]

    def behind(self, layer: int, before: jax.Array, kept: dict[int, jax.Array]) -> jax.Array:
        """The pre-activation behind a hidden layer, from the pre-activation before it and which neurons are kept."""
        outputs = self.activate(before)
        if layer in kept:
            outputs = jnp.where(kept[layer], outputs, ablated(outputs, self.fills[layer], self.scales[layer]))
        kernel, bias = self.weights[layer + 1]
        return outputs @ kernel + bias


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=COMPILER_OPTIONS)
def _count(
    graphdef: nnx.GraphDef,
    touched: tuple[int, ...],
    precision: str,
    states,
    orders,
    numbers,
    fill,
    scale,
    images,
    labels,
):
    """Correct predictions and whether all logits were finite, both [network, order, step + 1].

    `states` are the weights of each network, orders are [network, order, step, neuron], of which the first `numbers`
    [network] are followed, fill and scale (or None) are [network, neuron]; `touched` are the hidden layers that any
    order touches; images are [chunk, example, pixel].
    """

    def count_network(arguments):
        state, orders, number, fill, scale = arguments
        model = nnx.merge(graphdef, state)
        bounds = site_bounds(model.hidden)
        weights = [stage.weights for stage in model.stages]
        name = model.activation
        fills, scales = by_layer(fill, bounds[1:-1]), by_layer(scale, bounds[1:-1])
        network = _Network(weights, fills, scales, bounds, ACTIVATIONS[name], name in BOUNDED, touched)

        def add_chunk(totals, examples):
            return _add_chunk(network, orders, number, totals, *examples), None

        shape = (orders.shape[0], orders.shape[1] + 1)
        start = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        return jax.lax.scan(add_chunk, start, (images, labels))[0]

    with jax.default_matmul_precision(precision):
        return jax.lax.map(count_network, (stack_states(states), orders, numbers, fill, scale))


def _add_chunk(network: _Network, orders, number, totals, pixels, labels) -> tuple[jax.Array, jax.Array]:
    """Totals of counts and finiteness, both [order, step + 1], with one chunk of examples added."""
    first = network.touched[0]
    kernel, bias = network.weights[0]
    before = pixels @ kernel + bias
    for layer in range(first):
        before = network.behind(layer, before, {})
    start = _Progress(
        step=jnp.int32(0),
        correct=jnp.zeros(orders.shape[1] + 1, jnp.int32),
        finite=jnp.ones(orders.shape[1] + 1, bool),
        kept={layer: jnp.ones(len(network.fills[layer]), bool) for layer in network.touched},
    )

    def add_curve(i, totals):
        order, (correct, finite) = orders[i], totals
        # the layer that a step begins in: the first that loses a neuron
        depths = jnp.searchsorted(network.bounds[1:], order.min(axis=1), side="right")
        done = _run_layer(network, order, jnp.append(depths, -1), labels, first, before, start)
        return correct.at[i].add(done.correct), finite.at[i].set(finite[i] & done.finite)

    # a number that is not part of the program: networks differ in how many distinct orders they have
    return jax.lax.fori_loop(0, number, add_curve, totals)


class _Progress(NamedTuple):
    """How far a curve has come: the next step, the results so far [step + 1], which neurons of each layer are kept."""

    step: jax.Array
    correct: jax.Array
    finite: jax.Array
    kept: dict[int, jax.Array]


def _run_layer(network: _Network, order, depths, labels, layer: int, before, progress: _Progress) -> _Progress:
    """Follow the order from the state at hand for as long as its steps begin in this layer or behind it.

    `before` is the pre-activation of this layer, which does not change meanwhile; `depths` [step + 1] is the layer
    that each step begins in, -1 at the end. The layers nest: each keeps its own pre-activation, and runs the next one
    anew after every change.
    """

    def run_next(behind, progress):
        if layer < network.touched[-1]:
            return _run_layer(network, order, depths, labels, layer + 1, behind, progress)
        for later in range(layer + 1, len(network.fills)):
            behind = network.behind(later, behind, {})
        correct = (behind.argmax(axis=-1) == labels).sum(dtype=jnp.int32)
        return progress._replace(
            step=progress.step + 1,
            correct=progress.correct.at[progress.step].set(correct),
            finite=progress.finite.at[progress.step].set(jnp.isfinite(behind).all()),
        )

    def ablate(state):
        behind, progress = state
        neurons = order[progress.step - 1]  # step 0 is the intact network
        start, stop = network.bounds[layer : layer + 2]
        kept = {
            i: flags & (jnp.arange(*network.bounds[i : i + 2])[:, None] != neurons).all(axis=1)
            for i, flags in progress.kept.items()
        }
        here = (neurons >= start) & (neurons < stop)
        local = jnp.where(here, neurons - start, 0)
        outputs, (fill, scale) = network.activate(before[:, local]), network.values_of(layer, local)
        change = jnp.where(here, ablated(outputs, fill, scale) - outputs, 0)
        rows = network.weights[layer + 1][0][local]
        updated = behind + (change * rows if len(neurons) == 1 else change @ rows)
        if not network.bounded:
            # what a large output leaves behind when it is subtracted again is its rounding error
            small = jnp.abs(change).max() < LARGE
            updated = jax.lax.cond(small, lambda: updated, lambda: network.behind(layer, before, kept))
        return updated, run_next(updated, progress._replace(kept=kept))

    behind = network.behind(layer, before, progress.kept)
    progress = run_next(behind, progress)
    if layer not in network.touched:
        return progress
    return jax.lax.while_loop(lambda state: depths[state[1].step - 1] == layer, ablate, (behind, progress))[1]
