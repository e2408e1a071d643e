"""Arrange devices in meshes, share arrays among processes, and run jobs on the cores of a CPU.

`evaluate_masks`, `cumulative_ablation` and most functions built on them take a mesh from `make_mesh`, or images that
are sharded over one. The counts are the same as on one device.

Input: arrays of the host.
Output: arrays sharded along the mesh axis "data", or gathered on every host.
Memory: each device holds its part of the examples and a copy of everything else.
"""

import contextlib
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import (
    InputError,
    as_array,
    check_labels,
    describe_value,
    require,
    require_integer,
    require_integers,
    require_range,
    require_same_index,
    require_shape,
    traced,
)

__all__ = ["make_mesh", "shard_examples"]

DATA = "data"
"""Name of the mesh axis along which examples are sharded."""

COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
"""Compiler options of the slow programs: with XLA's default of 256 bits a modern CPU is 10% slower."""

MAX_MAPPINGS = Path("/proc/sys/vm/max_map_count")

Arrays = dict[str, np.ndarray]
Job = TypeVar("Job")
Result = TypeVar("Result")


# Meshes. Examples are sharded along the only axis. If the devices do not divide the number of examples, the first
# example is repeated with the label -1, which no engine ever counts: sums over the mesh stay exact.


def make_mesh(num_devices: int | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh with the one axis "data", along which examples are sharded.

    Args:
        num_devices: number of devices to use; None for all.
        devices: devices to choose from, in this order; None for `jax.devices()`.

    Returns:
        A mesh [data].

    Raises:
        InputError: if there are fewer devices than `num_devices`, or a device is repeated.

    Example:
        >>> dict(ja.devices.make_mesh(1).shape)
        {'data': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    require(len(set(devices)) == len(devices), "devices: a device is repeated; give each once")
    number = len(devices) if num_devices is None else require_integer("num_devices", num_devices)
    require(
        1 <= number <= len(devices),
        f"num_devices: {number} is not in 1..{len(devices)}, the available devices; to split a CPU into N virtual "
        "devices, call jax.config.update('jax_num_cpu_devices', N) before any other JAX function",
    )
    return Mesh(np.array(devices[:number]), (DATA,))


def is_sharded(array: Any) -> bool:
    """Return True if an array is a JAX array on several devices of a mesh."""
    if not isinstance(array, jax.Array) or traced(array):
        return False
    return isinstance(array.sharding, NamedSharding) and array.sharding.mesh.size > 1


def mesh_for(mesh: Mesh | None, *arrays: Any) -> Mesh | None:
    """Return the given mesh, or the mesh of arrays that are sharded already; None for one device.

    Raises:
        InputError: if the mesh does not come from `make_mesh`, or an array is sharded in another way.
    """
    sharded = [(array.sharding, array.ndim) for array in arrays if is_sharded(array)]
    if mesh is None and sharded:
        mesh = sharded[0][0].mesh
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh) or mesh.axis_names != (DATA,):
        actual = f"axes {mesh.axis_names}" if isinstance(mesh, Mesh) else describe_value(mesh)
        raise InputError(
            f"mesh: expected a mesh with the one axis '{DATA}', got {actual}; make it with ja.devices.make_mesh"
        )
    processes = {device.process_index for device in mesh.devices.flat}
    # Results are gathered either in this process alone or from all processes. With a mesh of some of them, the others
    # would not take part, and the gathering would wait forever.
    require(
        processes in ({jax.process_index()}, set(range(jax.process_count()))),
        f"mesh: its devices belong to the processes {sorted(processes)}; take the devices of every process, or of "
        f"process {jax.process_index()} alone",
    )
    for sharding, ndim in sharded:
        if not any(sharding.is_equivalent_to(NamedSharding(mesh, spec), ndim) for spec in (P(DATA), P())):
            raise InputError(
                f"sharding: expected examples along '{DATA}' on {_devices_text(mesh)}, got {sharding.spec} on "
                f"{_devices_text(sharding.mesh)}; pass the mesh of the images, or images on one device"
            )
    return mesh


def _devices_text(mesh: Any) -> str:
    return f"the devices {[device.id for device in mesh.devices.flat]}"


def first_example(images: Any) -> Any:
    """Return the first example of this process, with its leading axis; also works for arrays sharded by processes."""
    if isinstance(images, jax.Array):
        return images.addressable_shards[0].data[:1]
    images = np.asarray(images)
    return images[:1] if images.ndim else images


def require_examples(labels: Any, num_examples: int, num_classes: int) -> int:
    """Return the number of labels that are not -1 (padding); raise unless labels are integers [example].

    Raises:
        InputError: if a label is not a class, or every label is padding.
    """
    if not is_partly_remote(labels):
        return len(check_labels(labels, num_examples, num_classes))
    require_integers("labels", labels)
    require_shape("labels", labels, (num_examples,), "example")
    require_range("labels", np.asarray(range_of(labels)), -1, num_classes - 1)
    number = int(_num_counted(labels))
    require(number > 0, "labels: every label is -1 (padding); there is no example to evaluate")
    return number


def pad_and_shard(mesh: Mesh, values: Any, labels: Any, *more: Any) -> tuple[Any, ...]:
    """Return values [example, ...], labels [example] and more arrays (or None) sharded along the axis "data".

    Arrays that are sharded already stay where they are. Other arrays must be the same in every process.
    """
    # -n % size is the number of examples that n lacks to the next multiple of size.
    missing = -len(labels) % mesh.size

    def put(array: Any) -> Any:
        return array if array is None or is_sharded(array) else put_global(NamedSharding(mesh, P(DATA)), array)

    padded = _pad_labels(labels, missing), *(array if array is None else _pad(array, missing) for array in more)
    return put(_pad(values, missing)), *map(put, padded)


def shard_examples(mesh: Mesh, images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Join the examples of all processes into arrays sharded over a mesh; each process passes its own examples.

    If one process has fewer examples than another, its first example is repeated with the label -1, which never counts.
    In a single process nothing is repeated: if the devices do not divide the examples, each device gets all of them.

    Args:
        mesh: devices of all processes, from `make_mesh`.
        images: [example, ...], the examples of this process.
        labels: integers [example].

    Returns:
        The images and labels of all processes. `evaluate_masks` and every other function with an argument `mesh` takes
        them.

    Raises:
        InputError: if a process has no example, if labels are negative or not as many as the images, or if the images
            of two processes differ in shape or dtype.

    Example:
        >>> images, labels = ja.devices.shard_examples(ja.devices.make_mesh(1), np.zeros((5, 2, 2)), np.zeros(5, int))
        >>> images.shape
        (5, 2, 2)
    """
    if mesh_for(mesh) is None:
        raise InputError("mesh: expected a mesh, got None; make it with ja.devices.make_mesh")
    require_same_index("labels", images, labels)
    images, labels = as_array("images", images), check_labels(labels)
    require_shape("labels", labels, images.shape[:1], "example")
    require_range("labels", labels, 0, 2**31 - 1)
    require(len(labels) > 0, "images: a process has no example; give each process at least one")
    if not mesh.is_multi_process:
        return put_local(mesh, images), put_local(mesh, labels)
    images, labels = np.asarray(images), labels.astype(np.int32)  # int32, since -1 must fit
    kinds = allgather_text(lambda: f"{images.dtype}{list(images.shape[1:])}")
    require(len(set(kinds)) == 1, f"images: expected one dtype and shape in all processes, got {', '.join(kinds)}")
    num_local = len(mesh.local_devices)
    per_device = int(process_allgather(np.int32(-(-len(labels) // num_local))).max())
    missing = per_device * num_local - len(labels)
    sharding, examples = NamedSharding(mesh, P(DATA)), (_pad(images, missing), _pad_labels(labels, missing))
    images, labels = (jax.make_array_from_process_local_data(sharding, array) for array in examples)
    return images, labels


def to_device(values: Any) -> jax.Array:
    """Return values as a JAX array; unlike `jnp.asarray`, compile no program for a new shape."""
    return values if isinstance(values, jax.Array) else jax.device_put(np.asarray(values))


def put_local(mesh: Mesh, array: Any) -> jax.Array:
    """Return an array [example, ...] on the devices of this process, sharded if they divide it, else copied to each."""
    return jax.device_put(array, NamedSharding(mesh, P() if len(array) % mesh.size else P(DATA)))


def _pad(array: Any, missing: int) -> Any:
    return np.concatenate([array, np.repeat(np.asarray(array[:1]), missing, axis=0)]) if missing else array


def _pad_labels(labels: Any, missing: int) -> Any:
    return np.append(np.asarray(labels, np.int32), np.full(missing, -1, np.int32)) if missing else labels


@jax.jit
def range_of(array: jax.Array) -> jax.Array:
    """Return the lowest and the highest value, also of an array sharded by processes."""
    # row by row first: on a CPU, XLA reduces a matrix to a row several times faster than to a number
    return jnp.stack([array.min(axis=0).min(), array.max(axis=0).max()])


@jax.jit
def _num_counted(labels: jax.Array) -> jax.Array:
    return (labels >= 0).sum()


# Processes. All run the same program, and process 0 alone reads and writes files. Every process must reach each of
# these calls in the same order, since each is a collective operation that waits for all.


def is_primary() -> bool:
    """Return True if this process prints and writes: process 0, or the only one."""
    # `process_index` alone would start the devices, which commands without them do not need.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def backend_failure() -> str | None:
    """Return a sentence if JAX cannot start its devices, for example `JAX_PLATFORMS=cuda` without a GPU; else None."""
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, AssertionError, or what a plugin raises
        platforms = os.environ.get("JAX_PLATFORMS")
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        return (
            f"devices: JAX cannot start {'a device' if platforms is None else f'JAX_PLATFORMS={platforms}'} ({cause}); "
            "set JAX_PLATFORMS=cpu, or install driver and JAX for the device"
        )
    return None


def broadcast_from_primary(function: Callable[[], Arrays], source: int = 0) -> Arrays:
    """Call the function in one process and return its arrays in every process.

    Raises:
        InputError: in the other processes if the function raises; in all if their numbers of devices differ.
    """
    from safetensors.numpy import load, save

    if jax.process_count() == 1:
        return function()
    numbers = Counter(device.process_index for device in jax.devices())
    require(
        len(set(numbers.values())) == 1,
        f"devices: the processes have {', '.join(map(str, numbers.values()))} devices; give all the same --devices N",
    )
    # the other processes do not know shapes and dtypes, so the arrays travel as bytes; "-" marks an error's message
    payload, failure = b"", None
    if jax.process_index() == source:
        try:
            arrays = {name: np.asarray(array, order="C") for name, array in function().items()}
            payload = b"+" + save(arrays)
        except Exception as error:
            payload, failure = b"-" + str(error).encode(errors="replace"), error
    payload = _broadcast_bytes(payload, source)
    if payload[:1] == b"-":
        raise failure or InputError(payload[1:].decode())
    return load(payload[1:])


def broadcast_text(function: Callable[[], str], source: int = 0) -> str:
    """Call the function in one process and return its text in every process."""
    arrays = broadcast_from_primary(lambda: {"text": np.frombuffer(function().encode(), np.uint8)}, source)
    return arrays["text"].tobytes().decode()


def allgather_text(function: Callable[[], str]) -> list[str]:
    """Call the function in every process and return all texts, by process, in every process."""
    return [broadcast_text(function, process) for process in range(jax.process_count())]


def _broadcast_bytes(payload: bytes, source: int) -> bytes:
    def broadcast(array: np.ndarray) -> np.ndarray:
        return np.asarray(broadcast_one_to_all(array, is_source=jax.process_index() == source))

    # bytes, since an int64 would lose its upper half
    size = int.from_bytes(broadcast(np.frombuffer(len(payload).to_bytes(8, "big"), np.uint8)).tobytes(), "big")
    padded = 1 << size.bit_length()  # few sizes, since each compiles a program
    return broadcast(np.frombuffer(payload.ljust(padded, b"\0")[:padded], np.uint8)).tobytes()[:size]


def put_global(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    """Return arrays that every process holds as arrays on the devices of all; each process fills its own devices."""

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])

    return jax.tree.map(put, tree)


def is_partly_remote(array: Any) -> bool:
    """Return True if this process lacks a part of the array that another process holds."""
    known = isinstance(array, jax.Array) and not traced(array)
    return known and not (array.is_fully_addressable or array.is_fully_replicated)


def to_host(tree: Any) -> Any:
    """Return NumPy arrays from any devices; every process gets arrays that are sharded by processes whole."""

    def fetch(array: Any) -> np.ndarray:
        # np.array copies. np.asarray may share the memory of a JAX array, which a later program may overwrite if the
        # array is donated to it.
        return np.asarray(process_allgather(array, tiled=True)) if is_partly_remote(array) else np.array(array)

    return jax.tree.map(fetch, tree)


# Threads. One XLA program does not fill a CPU, so each core runs a job of its own.


class StoppedError(Exception):
    """End a job early because another job failed or the user interrupted."""


class Stop(threading.Event):
    """Ask running jobs to end by `set`; they call `check` now and then."""

    def check(self) -> None:
        """Raise `StoppedError` if the jobs are asked to end."""
        if self.is_set():
            raise StoppedError


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


THREAD_SETTINGS = (
    "enable_x64", "default_device", "default_matmul_precision", "default_prng_impl", "debug_nans", "disable_jit",
    "numpy_dtype_promotion", "numpy_rank_promotion",
)  # fmt: skip
"""Settings that a user may make for a block of code; JAX keeps them for its thread alone."""


def run_all(function: Callable[[Job, Stop], Result], jobs: Sequence[Job], *, threads: int) -> list[Result]:
    """Call function(job, stop) for every job, on several threads, and return the results in the order of the jobs.

    If a job fails or the user interrupts, jobs that wait are dropped and running jobs are asked to end. The error is
    raised after they have ended.
    """
    if len(jobs) <= 1:
        return [function(job, Stop()) for job in jobs]
    stop = Stop()
    settings = {name: getattr(jax.config, f"jax_{name}") for name in THREAD_SETTINGS}

    def run(job: Job) -> Result:
        with contextlib.ExitStack() as stack:
            for name, value in settings.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            return function(job, stop)

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            # in the order in which they end, so that the first error stops the other jobs at once
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_room_for_programs() -> None:
    """Drop compiled programs if this process uses half of the memory mappings that Linux allows.

    A program takes about six mappings. Past the limit of 65,530 the process crashes, after 70 shapes of networks in a
    study. The programs of this library go first; only if that is not enough, JAX drops the user's programs too.
    """
    if _uses_half_of_mappings():
        # every jitted function is known to the garbage collector, so no list of them has to be kept
        jitted = type(jax.jit(lambda: None))
        for function in gc.get_objects():
            if type(function) is jitted and function.__module__.partition(".")[0] == "jaxablate":
                function.clear_cache()  # pyright: ignore[reportAttributeAccessIssue] (the stub lacks it)
    if _uses_half_of_mappings():  # operations outside of jitted functions have programs as well
        jax.clear_caches()


def _uses_half_of_mappings() -> bool:
    """Return True if this process uses more than half of its memory mappings; False where there is no such limit."""
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        return used > int(MAX_MAPPINGS.read_bytes()) // 2
    except OSError:  # another operating system
        return False
