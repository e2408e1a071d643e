"""The engine for cumulative orders: each step updates what the step before has computed.

Step k differs from step k-1 by a few neurons. Where a neuron j of layer l goes, the pre-activation of layer l+1
changes by (f_j - h_j) w_j, a rank-one update; only the layers after it are computed anew. The state carried from step
to step is the pre-activation behind every layer that the orders touch, and which neurons are still there.
"""

from functools import partial

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
    # pre-activations behind the touched layers, twice for the update in flight, and the activations on the way out
    per_example = 4 * (2 * len(touched) + 2) * max(*model.hidden, model.stages[-1].linear.out_features)
    layout = lay_out(len(images), per_example, memory_limit, preferred)
    graphdef, state = nnx.split(model)
    grouped = orders.reshape(len(orders), -1, neurons_per_step)
    call = partial(_count, graphdef, touched, precision, state, jnp.asarray(grouped), fill)
    correct, finite = total(run_shards(call, layout.split(images, labels)))
    require_finite_logits(finite, "step")
    return correct


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=COMPILER_OPTIONS)
def _count(graphdef: nnx.GraphDef, touched: tuple[int, ...], precision: str, state, orders, fill, images, labels):
    """Correct predictions and whether all logits were finite, both [order, step + 1], for orders [order, step, neuron].

    `touched` are the hidden layers that any order touches; images are [chunk, example, pixel].
    """
    model = nnx.merge(graphdef, state)
    weights = [stage.weights for stage in model.stages]
    activate = ACTIVATIONS[model.activation]
    bounds = site_bounds(model)
    fills = jnp.split(fill, bounds[1:-1])
    first, num_layers = touched[0], len(fills)

    def masked(layer, outputs, kept):
        return jnp.where(kept[layer], outputs, fills[layer]) if layer in kept else outputs

    def onwards(layer, pre, kept):
        """All pre-activations behind `layer` on, the last being the logits, from the one just behind it."""
        found = {layer: pre}
        for later in range(layer + 1, num_layers):
            kernel, bias = weights[later + 1]
            pre = masked(later, activate(pre), kept) @ kernel + bias
            found[later] = pre
        return found

    def count(logits, labels):
        correct = (logits.argmax(axis=-1) == labels).sum(dtype=jnp.int32)
        return correct, jnp.isfinite(logits).all()

    def count_chunk(examples):
        outputs, labels = examples
        for kernel, bias in weights[: first + 1]:
            outputs = activate(outputs @ kernel + bias)
        kernel, bias = weights[first + 1]
        kept = {layer: jnp.ones(bounds[layer + 1] - bounds[layer], bool) for layer in touched}
        start = onwards(first, outputs @ kernel + bias, kept)
        logits = start[num_layers - 1]

        def update(layer, state, neurons):
            """The state after these neurons are ablated, none of which lies before `layer`, and the logits."""
            pre, kept = state
            kept = {
                at: flags & (jnp.arange(bounds[at], bounds[at + 1])[:, None] != neurons).all(axis=1)
                for at, flags in kept.items()
            }
            here = (neurons >= bounds[layer]) & (neurons < bounds[layer + 1])
            local = jnp.where(here, neurons - bounds[layer], 0)
            intact = outputs[:, local] if layer == first else activate(pre[layer - 1][:, local])
            change = jnp.where(here, fills[layer][local] - intact, 0)
            if len(neurons) == 1:
                behind = pre[layer] + change * weights[layer + 1][0][local]
            else:
                behind = pre[layer] + change @ weights[layer + 1][0][local]
            found = onwards(layer, behind, kept)
            return ({**pre, **{at: found[at] for at in pre if at >= layer}}, kept), found[num_layers - 1]

        def step(state, neurons):
            if len(touched) == 1:
                state, logits = update(first, state, neurons)
            else:
                lowest = jnp.searchsorted(jnp.asarray(bounds[1:]), neurons.min(), side="right")
                branch = jnp.searchsorted(jnp.asarray(touched), lowest)
                state, logits = jax.lax.switch(branch, [partial(update, layer) for layer in touched], state, neurons)
            return state, count(logits, labels)

        # a layer's pre-activation is carried if its neurons, or those of the layer before, can go later
        carried = {layer: start[layer] for layer in start if layer in touched or layer + 1 in touched}

        def curve(order):
            return jax.lax.scan(step, (carried, kept), order)[1]

        intact = count(logits, labels)
        return jax.tree.map(
            lambda one, steps: jnp.concatenate([jnp.broadcast_to(one, (len(orders), 1)), steps], axis=1),
            intact,
            jax.lax.map(curve, orders),
        )

    def add_chunk(totals, examples):
        correct, finite = count_chunk(examples)
        return (totals[0] + correct, totals[1] & finite), None

    with jax.default_matmul_precision(precision):
        shape = (orders.shape[0], orders.shape[1] + 1)
        start = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        return jax.lax.scan(add_chunk, start, (images, labels))[0]
