"""Execute an engine: cut the examples into shards and chunks, run the engine on each, and add up its sums.

Input: an `AblationProblem` and an `Engine`.
Output: the engine's sums over all examples, in int64 or float64.
Memory: `memory_limit` bytes of activations; chunks are halved if memory runs out.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import JaxablateWarning, require, require_integer
from jaxablate.ablation._outcomes import Named
from jaxablate.devices import COMPILER_OPTIONS, DATA, num_cores, put_global, run_all
from jaxablate.fills import LinearFill
from jaxablate.models._model import ModelSpec, State

MEMORY_LIMIT = 2**30
"""Default number of bytes of activations that an engine holds at a time."""

Tables = tuple[jax.Array, ...]
"""For each site the table of a `PerExampleFill`, [network, row, ..., neuron]."""


class AblationProblem(NamedTuple):
    """The checked arguments of an ablation, as the engines take them.

    Attributes:
        network: specification that all networks share.
        states: the state of each network.
        fill: [network, neuron], or `Tables`, from which each example takes a row.
        scale: [network, neuron] for an `AffineFill`, else None.
        linear: the fill with a leading axis [network] if it is a `LinearFill`, whose means are `fill`, else None.
        images, labels, targets, rows: the examples. Labels are int [example]. Targets are the labels as the user gave
            them, None if no outcome needs them. Rows [example] are each example's rows in the tables, None without
            tables. On a mesh the examples are sharded along "data". Padding, with the label -1, gives every device the
            same number of examples.
        num_examples: number of examples without padding.
        mesh: mesh of several devices, or None.
        outcomes: pairs of a name, and the name of a built-in outcome or a function.
        memory_limit: as in `evaluate_masks`.
        precision: precision of matrix products.
    """

    network: ModelSpec
    states: list[State]
    fill: np.ndarray | Tables
    scale: np.ndarray | None
    linear: LinearFill | None
    images: jax.Array
    labels: jax.Array
    targets: Any
    rows: jax.Array | None
    num_examples: int
    mesh: Mesh | None
    outcomes: Named
    memory_limit: int | None
    precision: str

    def lay_out(self, bytes_per_example: int, preferred_chunk: int) -> "Layout":
        """Choose the number of shards and the size of chunks within the memory limit.

        There is one shard for each CPU core (fewer if memory is short), or for each device of a mesh. All CPU cores
        together stay within the limit. On a mesh each device stays within the limit.

        Args:
            bytes_per_example: bytes of activations that one example takes.
            preferred_chunk: largest number of examples in a chunk, for speed.

        Raises:
            InputError: if the limit is less than one example takes; a chunk has two examples or more.
        """
        limit = MEMORY_LIMIT if self.memory_limit is None else require_integer("memory_limit", self.memory_limit)
        require(
            limit >= bytes_per_example,
            f"memory_limit: {limit} bytes are less than the {bytes_per_example} that one example takes; raise it",
        )
        num_examples = len(self.images)
        if self.mesh is None:
            cores = num_cores() if jax.default_backend() == "cpu" else 1
            shards = min(cores, num_examples, limit // bytes_per_example)
            limit //= shards
        else:
            shards = self.mesh.size
        # -(-a // b) rounds up. Chunks are made equally large, so that the last ones repeat few examples.
        per_shard = -(-num_examples // shards)
        chunks = -(-per_shard // min(preferred_chunk, limit // bytes_per_example))
        # A chunk has at least two examples if there are any: with one, a model may compute other operations.
        return Layout(shards, chunks, max(min(2, per_shard if self.mesh else num_examples), -(-per_shard // chunks)))


def split_by_site(values: jax.Array | Tables | None, rows: jax.Array | None, splits: np.ndarray) -> list:
    """Return the values of each site: [neuron], or [example, ..., neuron] if `values` are tables.

    Args:
        values: [neuron] over all sites, tables, or None, which gives None for every site.
        rows: [example], the row of each example in the tables.
        splits: network-wide ids of the first neuron of every site but the first.
    """
    if values is None:
        return [None] * (len(splits) + 1)
    if isinstance(values, tuple):
        return [table[rows] for table in values]
    return jnp.split(values, splits)


# Examples are cut twice. Shards run in parallel: one for each CPU core in a thread, or one for each device of a mesh by
# `shard_map`. Within a shard, `lax.scan` runs over chunks of equal size. One program serves all chunks, and its memory
# does not grow with the number of examples. A chunk holds as many examples as a core's cache or the memory limit
# admits. Outcomes are sums over examples, and integer sums do not depend on the cuts. This is why counts are the same
# for every number of cores, devices, chunks and processes.
@dataclass(frozen=True)
class Layout:
    """The cuts of the examples: `shards` run in parallel, each in `chunks` consecutive chunks of `chunk` examples."""

    shards: int
    chunks: int
    chunk: int

    def split(self, problem: AblationProblem) -> list["Shard"]:
        """Return one `Shard` for each thread; all of them refer to the same arrays."""
        examples = problem.images, problem.labels, problem.targets, problem.rows
        starts, valid = self.chunk_starts(len(problem.labels), self.shards)
        return [Shard(*examples, *chunks) for chunks in zip(starts, valid, strict=True)]

    def on_mesh(self, problem: AblationProblem) -> "Shard":
        """Return one `Shard` whose arrays are sharded over the devices; all devices cut their examples alike."""
        starts, valid = self.chunk_starts(len(problem.labels) // self.shards, 1)
        starts, valid = np.repeat(starts, self.shards, axis=0), np.repeat(valid, self.shards, axis=0)
        return Shard(problem.images, problem.labels, problem.targets, problem.rows, starts, valid)

    def chunk_starts(self, num_examples: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first example of each chunk [shard, chunk], and which examples count [shard, chunk, example]."""
        nominal = np.arange(shards * self.chunks) * self.chunk
        # All chunks have one size. A chunk that would reach beyond the last example starts earlier instead. Examples
        # that it shares with an earlier chunk are marked as not valid, so that each example counts once.
        starts = np.minimum(nominal, num_examples - self.chunk)
        indices = starts[:, None] + np.arange(self.chunk)
        valid = (indices >= nominal[:, None]).reshape(shards, self.chunks, self.chunk)
        return starts.astype(np.int32).reshape(shards, self.chunks), valid


class Shard(NamedTuple):
    """Examples and their chunks.

    Attributes:
        images: [example, ...].
        labels: [example].
        targets: [example, ...], or None.
        rows: [example], or None without tables.
        starts: first example of each chunk [chunk].
        valid: True for the examples of a chunk that count [chunk, example].
    """

    images: jax.Array
    labels: jax.Array
    targets: Any
    rows: jax.Array | None
    starts: Any
    valid: Any

    def add_chunks(self, add: Callable, start):
        """Return the totals after `add(totals, images, labels, targets, rows)` for every chunk.

        Examples that do not count get the label -1, which no network predicts.
        """

        def add_chunk(totals, chunk):
            first, valid = chunk
            take = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=len(valid))
            labels = jnp.where(valid, take(self.labels), -1)
            targets, rows = (None if array is None else take(array) for array in (self.targets, self.rows))
            return add(totals, take(self.images), labels, targets, rows), None

        return jax.lax.scan(add_chunk, start, (self.starts, self.valid))[0]


class MemoryWarning(JaxablateWarning):
    """Memory ran out, and the evaluation continues with smaller chunks."""


class Engine:
    """A jitted function of one shard of examples, for one device or for every device of a mesh.

    The function takes static values, `replicated` arrays that every device gets, and a `Shard`. It returns sums
    [network, mask or curve, ...] over the shard's examples.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.single_device = jax.jit(function, static_argnums=0, compiler_options=COMPILER_OPTIONS)
        self.sharded = jax.jit(self._sharded, static_argnums=(0, 1), compiler_options=COMPILER_OPTIONS)

    def _sharded(self, mesh: Mesh, static: tuple, replicated, shard: Shard):
        def on_device(replicated, shard):
            local = shard._replace(starts=shard.starts[0], valid=shard.valid[0])
            return jax.lax.psum(self.function(static, replicated, local), DATA)

        specs = P(), P(DATA)
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(replicated, shard)


class ChunkRunner:
    """Run an engine over all shards of a problem, in chunks of at most `preferred` examples.

    If memory runs out, the next attempt and all following runs use chunks of half the size.
    """

    def __init__(self, problem: AblationProblem, bytes_per_example: int, preferred: int):
        self.problem, self.bytes_per_example, self.preferred = problem, bytes_per_example, preferred

    def run(self, engine: Engine, static: tuple, replicated) -> Any:
        """Return the engine's sums over all examples, as NumPy arrays in the engine's structure.

        Raises:
            InputError: if memory runs out with two examples at a time.
        """
        # Each attempt starts over with smaller chunks; sums of a failed attempt are dropped, so nothing counts twice.
        while True:
            layout = self.problem.lay_out(self.bytes_per_example, self.preferred)
            try:
                if self.problem.mesh is None:
                    return run_shards(partial(engine.single_device, static, replicated), layout.split(self.problem))
                copies = put_global(NamedSharding(self.problem.mesh, P()), replicated)
                sums = engine.sharded(self.problem.mesh, static, copies, layout.on_mesh(self.problem))
                return jax.tree.map(_total, sums)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                require(
                    jax.process_count() == 1,
                    f"memory: it ran out with {layout.chunk} examples at a time, and several processes cannot halve "
                    "their chunks together; lower memory_limit",
                )
                require(
                    layout.chunk > 2,
                    "memory: it ran out with two examples at a time, and each takes "
                    f"{self.bytes_per_example} bytes under a batch of masks, in addition to images, weights and "
                    "results; use a larger machine",
                )
                self.preferred = layout.chunk // 2
            warnings.warn(
                f"memory ran out with {layout.chunk} examples at a time; continuing with {self.preferred}; a lower "
                "memory_limit avoids this",
                MemoryWarning,
                stacklevel=3,
            )


def run_shards(function: Callable, shards: Sequence) -> Any:
    """Call the jitted function on all shards, each in a separate thread, and add the sums.

    A single XLA program does not use all cores of a CPU. Calls that start together compile once, because JAX lets later
    calls wait for the first.
    """
    results = run_all(lambda shard, _: jax.block_until_ready(function(shard)), shards, threads=len(shards))
    return jax.tree.map(_total, *results)


def _total(*parts: jax.Array) -> np.ndarray:
    """Add the sums of all shards in int64 or float64."""
    stacked: Any = np.stack(parts)
    return stacked.sum(axis=0, dtype=np.int64 if np.issubdtype(stacked.dtype, np.integer) else np.float64)
