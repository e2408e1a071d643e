"""Streams: examples that come in batches, since all of them do not fit the device, or the memory at all.

Memory: the batch at work, and those that wait for it.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import InputError, require, require_count, require_range
from jaxablate._typing import AnyArray
from jaxablate.devices import allgather_text, broadcast_from_primary, mesh_for, put_local

Batch = tuple[AnyArray, ...]


def prefetch(batches: Iterable[Batch], *, depth: int = 2) -> Iterator[tuple[jax.Array, ...]]:
    """Take batches from an iterator on a thread, and put them on the device, while others are at work.

    Args:
        batches: tuples of arrays, such as images and labels; what is in them is copied, so that an iterator may fill
            the same arrays again and again.
        depth: how many batches are taken ahead of the one at work.

    Returns:
        An iterator over the batches, on the device.

    Raises:
        InputError: for a depth below 1, or where a batch is no tuple of arrays of numbers that the device can hold; an
            error of the iterator is raised where its batch would have come.

    Example:
        >>> batches = ((np.full((2, 3), i), np.zeros(2, int)) for i in range(3))
        >>> [int(images[0, 0]) for images, labels in ja.streams.prefetch(batches)]
        [0, 1, 2]
    """
    return _prefetched(batches, require_count("depth", depth))


def _prefetched(batches: Iterable[Batch], depth: int) -> Iterator[tuple[jax.Array, ...]]:
    room, taken, stop = threading.Semaphore(depth), queue.SimpleQueue(), threading.Event()

    def take() -> None:
        end = None
        try:
            iterator = iter(batches)
            while room.acquire() and not stop.is_set():
                batch = next(iterator)
                require(isinstance(batch, tuple | list), f"batches: expected tuples, got {type(batch).__name__}")
                taken.put((tuple(map(_on_device, batch)), None))
        except StopIteration:
            pass
        except BaseException as error:
            end = error
        taken.put((None, end))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = taken.get()
            if error is not None:
                raise error
            if batch is None:
                return
            room.release()
            yield batch
    finally:
        stop.set()
        room.release()
        thread.join(timeout=1)  # an iterator that hangs ends with the program


def _on_device(array: Any) -> jax.Array:
    if isinstance(array, jax.Array):
        return array
    try:
        copied = np.array(array)  # by NumPy: JAX may read an array after it has said to have copied it
        held = jax.device_put(copied)
    except (TypeError, ValueError):
        raise InputError(f"batches: expected arrays of numbers, got {type(array).__name__} of another kind") from None
    if np.issubdtype(held.dtype, np.integer):
        require_range("batches", copied, np.iinfo(held.dtype).min, np.iinfo(held.dtype).max)
    return held


def add_up(
    batches: Iterable[Batch],
    function: Callable[[jax.Array, jax.Array], Any],
    *,
    depth: int = 2,
    mesh: Mesh | None = None,
) -> Any:
    """What a function of images and labels finds in all batches together, where that is a count or a mean.

    Fits all whose results are counts, which add up, or means over the examples, which are weighted by how many a batch
    has: `evaluate_masks`, `cumulative_ablation` and `single_ablation` with any measure, `joint_histogram`,
    `mean_activations`. Not those that choose by what they have seen of all examples (`greedy_ablation`, quantiles); and
    the fill "resample" draws anew for each batch.

    Args:
        batches: pairs of images [example, ...] and labels [example]; programs are compiled for each size of batch.
        function: of the images and labels of a batch; returns arrays, by name or in a tuple if there are several.
            Integers are counts, floating-point numbers means.
        depth: how many batches are taken ahead, as in `prefetch`.
        mesh: devices to share each batch. With several processes each has batches of its own, any number of them, which
            its own devices share; all get what all have found.

    Returns:
        What the function returns, for all examples: NumPy arrays, int64 for counts and float64 for means.

    Raises:
        InputError: for no batch, an empty one, images and labels of different lengths, or results that change shape or
            are no numbers.

    Example:
        >>> batches = ((np.full((3, 1), h), np.array([0, 1, 1])) for h in (0, 1))
        >>> found = ja.streams.add_up(batches, lambda h, y: {"mean": h.mean(), "ones": (h * y[:, None]).sum()})
        >>> float(found["mean"]), int(found["ones"])
        (0.5, 2)
    """
    if (mesh := mesh_for(mesh)) is not None and mesh.is_multi_process:
        examples, total = _of_all_processes(lambda: _added(batches, function, depth, mesh.local_mesh))
    else:
        examples, total = _added(batches, function, depth, mesh)
    return jax.tree.map(lambda of: of if of.dtype == np.int64 else np.asarray(of / examples), total)


def _added(batches: Iterable[Batch], function: Callable, depth: int, mesh: Mesh | None) -> tuple[np.ndarray, Any]:
    """The number of examples, and the sums of what the function finds: counts, and means times examples."""
    sums = None
    for batch in prefetch(batches, depth=depth):
        shapes = [of.shape for of in batch]
        require(
            len(shapes) == 2 and all(shapes) and shapes[0][0] == shapes[1][0] > 0,
            f"batches: expected pairs of images and as many labels, at least one, got shapes {shapes}",
        )
        images, labels = batch if mesh is None else (put_local(mesh, of) for of in batch)
        number = np.asarray(len(labels))
        found = number, jax.tree.map(lambda of, number=number: _weighted(of, number), function(images, labels))
        if sums is None:
            sums = found
        else:
            _require_alike(_kind(sums[1]), _kind(found[1]))
            sums = jax.tree.map(lambda *of: np.asarray(np.add(*of)), sums, found)
    if sums is None:
        raise InputError("batches: expected at least one, got none; an iterator yields its batches only once")
    return sums


def _weighted(found: Any, number: np.ndarray) -> np.ndarray:
    found = np.asarray(found)
    if jnp.issubdtype(found.dtype, jnp.floating):  # JAX knows more of them than NumPy
        return np.asarray(found.astype(np.float64) * number)
    require(
        np.issubdtype(found.dtype, np.integer),
        f"function: expected integers (counts) or floating-point numbers (means), got {found.dtype}",
    )
    return found.astype(np.int64)


def _of_all_processes(added: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
    """What each process has added up, added up.

    Raises:
        InputError: in all of them, if one fails; in that one, what it has raised.
    """
    own, failed = None, None
    try:
        own = added()
    except Exception as error:
        failed = error

    def kind() -> str:
        if failed is not None:
            raise failed
        assert own is not None
        return _kind(own[1])

    _require_alike(*allgather_text(kind))
    leaves, structure = jax.tree.flatten(own)
    arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
    parts = [broadcast_from_primary(lambda: arrays, process) for process in range(jax.process_count())]
    return jax.tree.unflatten(structure, [np.asarray(sum(part[name] for part in parts)) for name in arrays])


def _kind(found: Any) -> str:
    return str(jax.tree.map(lambda of: f"{of.dtype}{list(of.shape)}", found))


def _require_alike(*kinds: str) -> None:
    """Raise unless what was found in several places has the same names, shapes and kinds."""
    different = list(dict.fromkeys(kinds))
    require(len(different) == 1, f"function: expected the same of each batch, got {' and then '.join(different)}")
