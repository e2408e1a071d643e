"""The engine for cumulative orders: each step updates what the step before has computed.

Step k differs from step k-1 by a few neurons. Where a neuron j of layer l goes, the pre-activation of layer l+1
changes by (f_j - h_j) w_j, a rank-one update; only the layers after it are computed anew. The state carried from step
to step is the pre-activation behind every layer that the orders touch, and which neurons are still there.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate.ablation._machine import COMPILER_OPTIONS, lay_out, require_finite_logits, run_shards, total
from jaxablate.models import ACTIVATIONS, MLP, site_bounds

CHUNK = 500  # examples whose state a CPU core's cache holds
CHUNK_ELSEWHERE = 10_000


def count_steps(
    model: MLP, orders: np.ndarray, fill, images, labels, *, neurons_per_step: int, memory_limit: int | None, precision
) -> np.ndarray:
    """Correct predictions int32 [order, step + 1] for checked orders [order, step * neurons_per_step]."""
    bounds = site_bounds(model)
    layers = np.searchsorted(bounds, orders, side="right") - 1
    touched = tuple(int(layer) for layer in np.unique(layers))
    last_only = touched == (len(model.hidden) - 1,)
    preferred = CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE
    widest = max(*model.hidden, model.stages[-1].linear.out_features)
    # pre-activations behind the layers from the first touched to the last, twice for the update in flight, and what is
    # on the way out
    per_example = 4 * (2 * (touched[-1] - touched[0] + 1) + 2) * widest
    layout = lay_out(len(images), per_example, memory_limit, preferred)
    graphdef, state = nnx.split(model)
    grouped = orders.reshape(len(orders), -1, neurons_per_step)
    call = partial(_count, graphdef, touched, precision, state, jnp.asarray(grouped), fill)
    correct, finite = total(run_shards(call, layout.split(images, labels)))
    require_finite_logits(finite, "step")
    return correct


class _Network(NamedTuple):
    """What a program knows of the network: `weights` of every stage, `fills` of every hidden layer, where its neurons
    begin and end (`bounds`), the activation function, and the hidden layers that any order touches."""

    weights: list[tuple[jax.Array, jax.Array]]
    fills: list[jax.Array]
    bounds: np.ndarray
    activate: Callable[[jax.Array], jax.Array]
    touched: tuple[int, ...]

    def behind(self, layer: int, before: jax.Array, kept: dict[int, jax.Array]) -> jax.Array:
        """The pre-activation behind a hidden layer, from the pre-activation before it and which neurons are kept."""
        outputs = self.activate(before)
        if layer in kept:
            outputs = jnp.where(kept[layer], outputs, self.fills[layer])
        kernel, bias = self.weights[layer + 1]
        return outputs @ kernel + bias


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=COMPILER_OPTIONS)
def _count(graphdef: nnx.GraphDef, touched: tuple[int, ...], precision: str, state, orders, fill, images, labels):
    """Correct predictions and whether all logits were finite, both [order, step + 1], for orders [order, step, neuron].

    `touched` are the hidden layers that any order touches; images are [chunk, example, pixel].
    """
    model = nnx.merge(graphdef, state)
    bounds = site_bounds(model)
    weights = [stage.weights for stage in model.stages]
    network = _Network(weights, jnp.split(fill, bounds[1:-1]), bounds, ACTIVATIONS[model.activation], touched)

    def add_chunk(totals, examples):
        correct, finite = _count_chunk(network, orders, *examples)
        return (totals[0] + correct, totals[1] & finite), None

    with jax.default_matmul_precision(precision):
        shape = (orders.shape[0], orders.shape[1] + 1)
        start = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        return jax.lax.scan(add_chunk, start, (images, labels))[0]


def _count_chunk(network: _Network, orders, pixels, labels) -> tuple[jax.Array, jax.Array]:
    """Counts and finiteness of one chunk of examples, both [order, step + 1]."""
    kernel, bias = network.weights[0]
    before = [pixels @ kernel + bias]  # the pre-activation of every layer, the last being the logits
    for layer in range(len(network.fills)):
        before.append(network.behind(layer, before[layer], {}))
    first, last = network.touched[0], network.touched[-1]
    intact, logits = network.activate(before[first]), before[-1]
    # behind the last touched layer everything follows from what is before it
    carried = {layer: before[layer + 1] for layer in range(first, last + 1)}
    kept = {layer: jnp.ones(len(network.fills[layer]), bool) for layer in network.touched}

    def count(logits):
        correct = (logits.argmax(axis=-1) == labels).sum(dtype=jnp.int32)
        return correct, jnp.isfinite(logits).all()

    def step(state, neurons):
        pre, kept = state
        state, logits = _ablate(network, intact, pre, kept, neurons)
        return state, count(logits)

    def curve(order):
        return jax.lax.scan(step, (carried, kept), order)[1]

    return jax.tree.map(
        lambda one, steps: jnp.concatenate([jnp.broadcast_to(one, (len(orders), 1)), steps], axis=1),
        count(logits),
        jax.lax.map(curve, orders),
    )


def _ablate(network: _Network, intact, pre: dict[int, jax.Array], kept: dict[int, jax.Array], neurons):
    """One step: the state (pre-activation behind each layer, flags of the kept neurons) after these neurons go, and
    the logits. `intact` are the outputs of the first touched layer, which nothing before it changes."""
    bounds, first, last = network.bounds, network.touched[0], network.touched[-1]
    kept = {
        layer: flags & (jnp.arange(bounds[layer], bounds[layer + 1])[:, None] != neurons).all(axis=1)
        for layer, flags in kept.items()
    }
    new: dict[int, jax.Array] = {}
    changed = jnp.array(False)  # whether what is before the layer has changed
    for layer in range(first, last + 1):
        here = (neurons >= bounds[layer]) & (neurons < bounds[layer + 1])

        def moved(layer=layer, here=here):
            """Only neurons of this layer go: their share in what is behind it."""
            if layer not in network.touched:
                return pre[layer]
            local = jnp.where(here, neurons - bounds[layer], 0)
            outputs = intact[:, local] if layer == first else network.activate(pre[layer - 1][:, local])
            change = jnp.where(here, network.fills[layer][local] - outputs, 0)
            rows = network.weights[layer + 1][0][local]
            return pre[layer] + (change * rows if len(neurons) == 1 else change @ rows)

        def anew(layer=layer):
            return network.behind(layer, new[layer - 1], kept)

        new[layer] = moved() if layer == first else jax.lax.cond(changed, anew, moved)
        changed |= here.any()
    logits = new[last]
    for layer in range(last + 1, len(network.fills)):
        logits = network.behind(layer, logits, kept)
    return (new, kept), logits
