"""What the engines share: what an ablated neuron puts out, and how work is cut to fit a machine (threads, shards of
examples, chunks within a memory budget)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_integer
from jaxablate._parallel import num_cores, run_all

MEMORY_LIMIT = 2**30
"""Bytes of activations that an engine may hold at a time, unless told otherwise."""


def by_layer(values: jax.Array | None, splits: np.ndarray) -> list:
    """A value for each neuron of the network, cut into layers; None for each where there is none."""
    return [None] * (len(splits) + 1) if values is None else jnp.split(values, splits)


def ablated(outputs: jax.Array, fill: jax.Array, scale: jax.Array | None) -> jax.Array:
    """What neurons put out when ablated, from what they would: s h + f, or f without a scale."""
    return fill if scale is None else scale * outputs + fill


@dataclass(frozen=True)
class Layout:
    """How the examples are cut: `shards` run side by side, each in `chunks` of `chunk` examples, one after another."""

    shards: int
    chunks: int
    chunk: int

    @partial(jax.jit, static_argnums=0)
    def split(self, images: jax.Array, labels: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Pixels [chunk, example, pixel] and labels [chunk, example] of each shard.

        The last examples are repeated to fill the last chunk, with the label -1, which is never predicted.
        """
        surplus = self.shards * self.chunks * self.chunk - len(labels)
        images = jnp.pad(images.reshape(len(images), -1), ((0, surplus), (0, 0)), mode="edge")
        labels = jnp.pad(labels.astype(jnp.int32), (0, surplus), constant_values=-1)
        shape = (self.shards, self.chunks, self.chunk)
        return list(zip(images.reshape(*shape, -1), labels.reshape(shape), strict=True))


def lay_out(num_examples: int, bytes_per_example: int, memory_limit: int | None, preferred_chunk: int) -> Layout:
    """Choose shards (one for each CPU core, fewer if memory is short) and chunks that keep within the memory limit.

    Raises:
        InputError: if not even one example at a time fits; the message says how much is needed.
    """
    limit = MEMORY_LIMIT if memory_limit is None else require_integer("memory_limit", memory_limit)
    require(
        limit >= bytes_per_example,
        f"memory_limit: expected at least {bytes_per_example} bytes, which one example takes under all masks of a "
        f"batch, got {limit}",
    )
    cores = num_cores() if jax.default_backend() == "cpu" else 1
    shards = min(cores, num_examples, limit // bytes_per_example)
    per_shard = -(-num_examples // shards)
    chunks = -(-per_shard // min(preferred_chunk, limit // (shards * bytes_per_example)))
    return Layout(shards, chunks, -(-per_shard // chunks))


def run_shards(function: Callable, shards: Sequence[tuple]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Call the jitted function on every shard, on a thread each: one XLA program alone does not fill a CPU.

    Calls that start together still compile once: JAX lets the others wait for the first.
    """
    results = run_all(lambda shard, _: jax.block_until_ready(function(*shard)), shards, threads=len(shards))
    return [jax.tree.map(np.asarray, result) for result in results]


def total(results: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Any, Any]:
    """Add the counts of all shards; logits are finite where those of every shard are."""
    counts, finite = map(np.stack, zip(*results, strict=True))
    return counts.sum(axis=0, dtype=np.int32), finite.all(axis=0)
