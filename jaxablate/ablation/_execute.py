"""What the engines share: what they are given, and how work is cut to fit a machine (threads, shards of examples,
chunks within a memory budget)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import JaxablateWarning, require, require_integer
from jaxablate.devices import COMPILER_OPTIONS, DATA, num_cores, put_global, run_all
from jaxablate.models._network import ModelSpec

MEMORY_LIMIT = 2**30
"""Bytes of activations that an engine may hold at a time, unless told otherwise."""

MODERATE = 10.0
"""A fill or scale that is larger makes updates of which rounding errors stay behind."""

Tables = tuple[jax.Array, ...]


class AblationProblem(NamedTuple):
    """What an engine evaluates, checked by its caller.

    Attributes:
        network: what the networks have in common.
        states: the weights of each.
        fill: [network, neuron], or for each site a table [network, row, ..., neuron] from which each example takes one
            row.
        scale: [network, neuron], or None.
        images, labels, rows: of the examples; rows is None without tables. On a mesh they are cut along `data`, and
            examples that were added so that all devices have as many have the label -1.
        num_examples: those that count.
        mesh: of several devices, or None.
        measures: names.
        memory_limit, precision: as in `evaluate_masks`.
    """

    network: ModelSpec
    states: list[nnx.State]
    fill: np.ndarray | Tables
    scale: np.ndarray | None
    images: jax.Array
    labels: jax.Array
    rows: jax.Array | None
    num_examples: int
    mesh: Mesh | None
    outcomes: tuple[str, ...]
    memory_limit: int | None
    precision: str

    @property
    def moderate(self) -> bool:
        """Whether no ablated neuron puts out much, as long as its own output does not either."""
        values = jax.tree.leaves((self.fill, self.scale))
        return all(float(np.abs(np.asarray(array)).max(initial=0)) < MODERATE for array in values)

    def lay_out(self, bytes_per_example: int, preferred_chunk: int) -> "Layout":
        """Choose shards (one for each CPU core, fewer if memory is short; on a mesh one for each device along `data`,
        whose memory the limit is) and chunks that keep within the limit.

        Raises:
            InputError: if not even one example at a time fits; the message says how much is needed.
        """
        limit = MEMORY_LIMIT if self.memory_limit is None else require_integer("memory_limit", self.memory_limit)
        require(
            limit >= bytes_per_example,
            f"memory_limit: expected at least {bytes_per_example} bytes, which one example takes under all masks of a "
            f"batch, got {limit}; raise it or give fewer masks",
        )
        num_examples = len(self.images)
        if self.mesh is None:
            cores = num_cores() if jax.default_backend() == "cpu" else 1
            shards = min(cores, num_examples, limit // bytes_per_example)
            limit //= shards
        else:
            shards = self.mesh.size
        per_shard = -(-num_examples // shards)
        chunks = -(-per_shard // min(preferred_chunk, limit // bytes_per_example))
        return Layout(shards, chunks, -(-per_shard // chunks))


def by_site(values: jax.Array | Tables | None, rows: jax.Array | None, splits: np.ndarray) -> list:
    """Values of each site [neuron], or [example, ..., neuron] from the rows of tables; None where there are none."""
    if values is None:
        return [None] * (len(splits) + 1)
    if isinstance(values, tuple):
        return [table[rows] for table in values]
    return jnp.split(values, splits)


@dataclass(frozen=True)
class Layout:
    """How the examples are cut: `shards` run side by side, each in `chunks` of `chunk` examples, one after another."""

    shards: int
    chunks: int
    chunk: int

    def split(self, problem: AblationProblem) -> list["Shard"]:
        """The examples of each shard."""
        examples = problem.images, problem.labels, problem.rows
        return [Shard(*examples, *of) for of in zip(*self.places(len(problem.labels), self.shards), strict=True)]

    def on_mesh(self, problem: AblationProblem) -> "Shard":
        """The examples of all devices: each has its own, and finds its places in them."""
        starts, valid = self.places(len(problem.labels) // self.shards, 1)
        starts, valid = (np.repeat(of, self.shards, axis=0) for of in (starts, valid))
        return Shard(problem.images, problem.labels, problem.rows, starts, valid)

    def places(self, num_examples: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each chunk begins [shard, chunk], and which of its examples count [shard, chunk, place]."""
        wanted = np.arange(shards * self.chunks) * self.chunk
        # a chunk that would reach beyond the last example begins earlier, and leaves out what was there before
        starts = np.minimum(wanted, num_examples - self.chunk)
        places = starts[:, None] + np.arange(self.chunk)
        valid = (places >= wanted[:, None]).reshape(shards, self.chunks, self.chunk)
        return starts.astype(np.int32).reshape(shards, self.chunks), valid


class Shard(NamedTuple):
    """Examples cut into chunks: all images [example, ...], labels and rows (or None) [example], where each chunk begins
    [chunk], and which of its examples count [chunk, place]."""

    images: jax.Array
    labels: jax.Array
    rows: jax.Array | None
    starts: Any
    valid: Any

    def add_chunks(self, add: Callable, start):
        """Totals after `add(totals, images, labels, rows)` for every chunk; examples that do not count get the label
        -1, which is never predicted."""

        def add_chunk(totals, chunk):
            begin, valid = chunk
            cut = partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=len(valid))
            labels = jnp.where(valid, cut(self.labels), -1)
            return add(totals, cut(self.images), labels, None if self.rows is None else cut(self.rows)), None

        return jax.lax.scan(add_chunk, start, (self.starts, self.valid))[0]


class MemoryWarning(JaxablateWarning):
    """Memory ran out, and work goes on in smaller chunks."""


class Engine:
    """A jitted function of one shard of examples, for one device or for every device of a mesh.

    Its arguments are static values, `whole` (arrays that every device gets) and a `Shard`; it returns sums
    [network, mask or curve, ...] over the shard's examples.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.single_device = jax.jit(function, static_argnums=0, compiler_options=COMPILER_OPTIONS)
        self.sharded = jax.jit(self._sharded, static_argnums=(0, 1), compiler_options=COMPILER_OPTIONS)

    def _sharded(self, mesh: Mesh, static: tuple, whole, shard: Shard):
        def on_device(whole, shard):
            local = shard._replace(starts=shard.starts[0], valid=shard.valid[0])
            return jax.lax.psum(self.function(static, whole, local), DATA)

        specs = P(), P(DATA)
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(whole, shard)


class ChunkRunner:
    """Runs an engine over the shards of a problem, in chunks of at most `preferred` examples that are halved, for good,
    whenever memory runs out all the same."""

    def __init__(self, problem: AblationProblem, bytes_per_example: int, preferred: int):
        self.problem, self.bytes_per_example, self.preferred = problem, bytes_per_example, preferred

    def run(self, engine: Engine, static: tuple, whole) -> dict[str, np.ndarray]:
        """The engine's sums over all examples.

        Raises:
            InputError: if memory does not do for one example at a time; the message says how much was asked for.
        """
        while True:
            layout = self.problem.lay_out(self.bytes_per_example, self.preferred)
            try:
                if self.problem.mesh is None:
                    return run_shards(partial(engine.single_device, static, whole), layout.split(self.problem))
                copies = put_global(NamedSharding(self.problem.mesh, P()), whole)
                sums = engine.sharded(self.problem.mesh, static, copies, layout.on_mesh(self.problem))
                return jax.tree.map(_total, sums)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                require(
                    jax.process_count() == 1,
                    f"memory ran out with {layout.chunk} examples at a time, and other processes do not know: expected "
                    "a lower memory_limit",
                )
                require(
                    layout.chunk > 1,
                    f"memory: expected room for {self.bytes_per_example} bytes, which one example takes under all "
                    "masks of a batch, beside images, weights and results, but it ran out; use a larger machine",
                )
                self.preferred = layout.chunk // 2
            warnings.warn(
                f"memory ran out with {layout.chunk} examples at a time: going on with {self.preferred}; a lower "
                "memory_limit avoids this",
                MemoryWarning,
                stacklevel=3,
            )


def run_shards(function: Callable, shards: Sequence) -> dict[str, np.ndarray]:
    """Call the jitted function on every shard, on a thread each, and add their sums.

    One XLA program alone does not fill a CPU. Calls that start together still compile once: JAX lets the others wait
    for the first.
    """
    results = run_all(lambda shard, _: jax.block_until_ready(function(shard)), shards, threads=len(shards))
    return jax.tree.map(_total, *results)


def _total(*parts: jax.Array) -> np.ndarray:
    """The sum over shards, in int64 or float64."""
    total: Any = np.stack(parts)
    return total.sum(axis=0, dtype=np.int64 if np.issubdtype(total.dtype, np.integer) else np.float64)
