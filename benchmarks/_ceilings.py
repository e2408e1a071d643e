"""Measure how fast this machine multiplies matrices and applies sigmoids: the highest speed of a sweep on a CPU."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.devices import COMPILER_OPTIONS, num_cores, run_all

CHUNKS = (125, 250, 500, 1000)  # numbers of examples whose activations stay in a core's cache; the fastest counts
OPERATIONS = 4e9  # floating-point operations that are timed on each core


def seconds_per_product(num_inputs: int, num_outputs: int) -> float:
    """Return the seconds that all cores together take for one example's sigmoids and their product with a kernel."""
    kernel = np.full((num_inputs, num_outputs), 1e-3, np.float32)
    return _seconds_per_example(_products, num_inputs, 2 * num_inputs * num_outputs, kernel)


def seconds_per_readout(num_classes: int) -> float:
    """Return the seconds that all cores together take to compare one example's largest logit with its label."""
    return _seconds_per_example(_readouts, num_classes, 20 * num_classes, np.int32(0))


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _products(repeats: int, outputs: jax.Array, kernel: jax.Array) -> jax.Array:
    def step(outputs, _):
        products = jax.nn.sigmoid(outputs) @ kernel
        # each step depends on the last one's result, so that XLA cannot hoist the work out of the loop
        return outputs + products.mean() * 1e-30, None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, outputs, None, length=repeats)[0].sum()


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _readouts(repeats: int, logits: jax.Array, label: jax.Array) -> jax.Array:
    def step(logits, _):
        return logits + (logits.argmax(axis=1) == label).sum() * 1e-30, None

    return jax.lax.scan(step, logits, None, length=repeats)[0].sum()


def _seconds_per_example(function: Callable, width: int, operations: int, *arguments) -> float:
    """Time function(repeats, inputs [example, width], *arguments) on every core at once; the fastest of three."""
    best = np.inf
    for chunk in CHUNKS:
        repeats = int(np.clip(OPERATIONS / (chunk * operations), 1, 20_000))
        shards = [jnp.full((chunk, width), 1e-3 * i, jnp.float32) for i in range(num_cores())]
        for first in (True, False, False, False):  # the first call compiles
            start = time.perf_counter()
            run_all(
                lambda inputs, _, repeats=repeats: jax.block_until_ready(function(repeats, inputs, *arguments)),
                shards,
                threads=len(shards),
            )
            seconds = (time.perf_counter() - start) / (repeats * chunk * len(shards))
            best = best if first else min(best, seconds)
    return float(best)
