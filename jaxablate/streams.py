"""Streams: examples that come in batches, since all of them do not fit the device, or the memory at all.

Memory: the batch at work, and those that wait for it.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxablate._checks import InputError, require, require_count
from jaxablate._mesh import mesh_for, number_of, spread
from jaxablate._typing import AnyArray

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
        InputError: for a depth below 1; an error of the iterator is raised where its batch would have come.

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
                # copied by NumPy: JAX may read an array after it has said to have copied it
                batch = (of if isinstance(of, jax.Array) else np.array(of) for of in next(iterator))
                taken.put((tuple(map(jax.device_put, batch)), None))
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
        thread.join()


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
    `mean_activations`. Not those that choose by what they have seen of all examples (`greedy_ablation`, quantiles).

    Args:
        batches: pairs of images [example, ...] and labels [example]; programs are compiled for each size of batch.
        function: of the images and labels of a batch; returns arrays, by name or in a tuple if there are several.
            Integers are counts, floating-point numbers means.
        depth: how many batches are taken ahead, as in `prefetch`.
        mesh: devices to share each batch; with several processes each has batches of its own, as many as the others.

    Returns:
        What the function returns, for all examples: NumPy arrays, int64 for counts and float64 for means.

    Raises:
        InputError: for no batch, an empty one, images and labels of different lengths, or results that change shape.

    Example:
        >>> batches = ((np.full((3, 1), h), np.array([0, 1, 1])) for h in (0, 1))
        >>> found = ja.streams.add_up(batches, lambda h, y: {"mean": h.mean(), "ones": (h * y[:, None]).sum()})
        >>> float(found["mean"]), int(found["ones"])
        (0.5, 2)
    """
    mesh = mesh_for(mesh)
    total, examples = None, 0
    for images, labels in _in_step(prefetch(batches, depth=depth), mesh):
        require(
            len(images) == len(labels) > 0,
            f"batches: expected as many labels as images, at least one, got {len(images)} and {len(labels)}",
        )
        number = len(labels)
        if mesh is not None:
            images, labels = spread(mesh, images, labels)
            number = int(number_of(labels))
        found = jax.tree.map(lambda of, number=number: _weighted(np.asarray(of), number), function(images, labels))
        if total is None:
            total = found
        else:
            _require_alike(total, found)
            total = jax.tree.map(np.add, total, found)
        examples += number
    if total is None:
        raise InputError("batches: expected at least one, got none; an iterator yields its batches only once")
    return jax.tree.map(lambda of: of if of.dtype == np.int64 else of / examples, total)


def _in_step(batches: Iterator[tuple[jax.Array, ...]], mesh: Mesh | None) -> Iterator[tuple[jax.Array, ...]]:
    """The batches of this process, while all processes of a mesh have one.

    Raises:
        InputError: in all of them, if one has fewer than the others.
    """
    together = mesh is not None and jax.process_count() > 1
    while True:
        batch = next(batches, None)
        if together:
            have = process_allgather(np.array(batch is not None))
            require(have.all() or not have.any(), "batches: expected as many in each process, got fewer in some")
        if batch is None:
            return
        yield batch


def _weighted(found: np.ndarray, number: int) -> np.ndarray:
    floating = np.issubdtype(found.dtype, np.floating)
    return np.asarray(found.astype(np.float64) * number if floating else found.astype(np.int64))


def _require_alike(one: Any, other: Any) -> None:
    """Raise unless what two batches gave has the same names, shapes and kinds."""
    told = [str(jax.tree.map(lambda of: f"{of.dtype}{list(of.shape)}", found)) for found in (one, other)]
    require(told[0] == told[1], f"function: expected the same of each batch, got {told[0]} and then {told[1]}")
