"""Streams: combine the results of a function over batches of examples.

Input: an iterable of batches (images, labels), for data that do not fit the device or the memory.
Output: sums of counts and means over all examples.
Memory: the current batch, and those that are prefetched.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import InputError, describe_value, require, require_count, require_range, require_type
from jaxablate._typing import AnyArray
from jaxablate.devices import allgather_text, broadcast_from_primary, mesh_for, put_local

__all__ = ["combine"]

Batch = tuple[AnyArray, AnyArray]


def combine(
    batches: Iterable[Batch],
    function: Callable[[jax.Array, jax.Array], Any],
    *,
    prefetch: int = 2,
    mesh: Mesh | None = None,
) -> Any:
    """Combine the results of a function of images and labels over all batches.

    Integer results are counts: they are summed exactly, in int64. Floating-point results are means over examples: they
    are averaged, weighted by the number of examples in a batch. This fits `evaluate_masks`, `cumulative_ablation` and
    `single_ablation` with any outcomes, `joint_histogram` and `mean_activations`. It does not fit functions whose
    result is neither a sum nor a mean over examples, such as `greedy_order` or a quantile. The fill "resample" draws
    new rows for each batch.

    Args:
        batches: pairs of images [example, ...] and labels [example]. Each is copied, so an iterator may reuse its
            arrays. JAX compiles a program for each size of batch.
        function: takes the images and labels of a batch, and returns arrays, or a tuple or mapping of arrays.
        prefetch: number of batches that a thread reads ahead and puts on the device.
        mesh: devices that share each batch. If there are several processes, each passes different batches, which its
            local devices share. Every process returns the result for the batches of all processes.

    Returns:
        The function's result for all examples, as NumPy arrays: int64 for counts and float64 for means.

    Raises:
        InputError: if there is no batch, a batch is empty or is not a pair of arrays of equal length, or the function's
            results change shape or are not numbers. An error that the iterator raises is passed on.

    Example:
        >>> batches = ((np.full((3, 1), h), np.array([0, 1, 1])) for h in (0, 1))
        >>> result = ja.streams.combine(batches, lambda h, y: {"mean": h.mean(), "ones": (h * y[:, None]).sum()})
        >>> float(result["mean"]), int(result["ones"])
        (0.5, 2)
    """
    require_count("prefetch", prefetch)
    require_type("batches", batches, Iterable, "an iterable of pairs (images, labels)")
    require(callable(function), f"function: expected a function of (images, labels), got {describe_value(function)}")
    if (mesh := mesh_for(mesh)) is not None and mesh.is_multi_process:
        examples, totals = _over_processes(lambda: _totals(batches, function, prefetch, mesh.local_mesh))
    else:
        examples, totals = _totals(batches, function, prefetch, mesh)
    return jax.tree.map(lambda total: total if total.dtype == np.int64 else np.asarray(total / examples), totals)


def _totals(batches: Iterable[Batch], function: Callable, depth: int, mesh: Mesh | None) -> tuple[np.ndarray, Any]:
    """Return the number of examples and the function's totals: sums of counts, and of means times examples."""
    totals = None
    for batch in _prefetched(batches, depth):
        shapes = [array.shape for array in batch]
        require(
            len(shapes) == 2 and all(shapes) and shapes[0][0] == shapes[1][0] > 0,
            f"batches: expected pairs of images and as many labels, at least one, got shapes {shapes}",
        )
        images, labels = batch if mesh is None else (put_local(mesh, array) for array in batch)
        number = np.asarray(len(labels))
        result = jax.tree.map(lambda array, number=number: _total(array, number), function(images, labels))
        if totals is None:
            totals = number, result
        else:
            _require_alike(_kind(totals[1]), _kind(result))
            totals = jax.tree.map(lambda *arrays: np.asarray(np.add(*arrays)), totals, (number, result))
    if totals is None:
        raise InputError("batches: there is none; note that an iterator yields its batches only once")
    return totals


def _total(array: Any, number: np.ndarray) -> np.ndarray:
    # Totals are kept on the host in 64 bits: JAX has 32 by default, in which sums over many batches would overflow or
    # drift.
    array = np.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.floating):  # NumPy does not know JAX's small types
        return np.asarray(array.astype(np.float64) * number)
    require(
        np.issubdtype(array.dtype, np.integer),
        f"function: expected integers (counts) or floating-point numbers (means), got {array.dtype}",
    )
    return array.astype(np.int64)


# One thread reads batches and starts their transfer to the device while the caller computes on the current batch. The
# semaphore bounds how far it reads ahead: it starts with depth - 1 slots, each batch that is put into the queue takes
# one, and each batch that the caller takes out returns one. An exception of the iterator travels through the queue and
# is raised where its batch would have come. If the caller stops early, `stop` and one more slot wake the thread.
def _prefetched(batches: Iterable[Batch], depth: int) -> Iterator[tuple[jax.Array, ...]]:
    """Yield batches on the device; a thread reads `depth` batches ahead of the current one."""
    slots, ready, stop = threading.Semaphore(depth - 1), queue.SimpleQueue(), threading.Event()

    def read() -> None:
        error = None
        try:
            for batch in batches:
                ready.put((_to_device(batch), None))
                slots.acquire()
                if stop.is_set():
                    return
        except BaseException as exception:
            error = exception
        ready.put((None, error))

    # a daemon, so that an iterator that hangs ends with the program
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := ready.get())[0] is not None:
            slots.release()
            yield item[0]
        if item[1] is not None:
            raise item[1]
    finally:
        stop.set()
        slots.release()
        thread.join(timeout=1)


def _to_device(batch: Any) -> tuple[jax.Array, ...]:
    require(isinstance(batch, tuple | list), f"batches: expected tuples, got {type(batch).__name__}")
    return tuple(array if isinstance(array, jax.Array) else _put(array) for array in batch)


def _put(array: Any) -> jax.Array:
    try:
        copied = np.array(array)  # by NumPy: JAX may still read an array after device_put has returned
        placed = jax.device_put(copied)
    except (TypeError, ValueError):
        raise InputError(f"batches: expected arrays of numbers, got {type(array).__name__} of another kind") from None
    if np.issubdtype(placed.dtype, np.integer):
        require_range("batches", copied, np.iinfo(placed.dtype).min, np.iinfo(placed.dtype).max)
    return placed


def _over_processes(local_totals: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
    """Add the totals of all processes.

    Raises:
        InputError: in all processes if one fails; in that process its own error.
    """
    totals, failure = None, None
    try:
        totals = local_totals()
    except Exception as error:
        failure = error

    def kind() -> str:
        if failure is not None:
            raise failure
        assert totals is not None
        return _kind(totals[1])

    _require_alike(*allgather_text(kind))
    leaves, structure = jax.tree.flatten(totals)
    # Each process broadcasts its totals in turn, and all add the same parts in the same order. So all processes return
    # the same bits.
    arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
    parts = [broadcast_from_primary(lambda: arrays, process) for process in range(jax.process_count())]
    return jax.tree.unflatten(structure, [np.asarray(sum(part[name] for part in parts)) for name in arrays])


def _kind(result: Any) -> str:
    return str(jax.tree.map(lambda array: f"{array.dtype}{list(array.shape)}", result))


def _require_alike(*kinds: str) -> None:
    """Raise unless all results have the same names, shapes and dtypes."""
    different = list(dict.fromkeys(kinds))
    require(len(different) == 1, f"function: expected the same of each batch, got {' and then '.join(different)}")
