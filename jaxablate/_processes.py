"""Several processes at work on the same study: what one of them has, all get.

All run the same program, and process 0 alone reads and writes the files of a run.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import InputError, require, traced

Arrays = dict[str, np.ndarray]


def is_primary_process() -> bool:
    """Whether this is process 0, or the only one."""
    return jax.process_index() == 0


def broadcast_from_primary(function: Callable[[], Arrays], owner: int = 0) -> Arrays:
    """Call the function in one process and return its arrays in all of them, which must all come here.

    Raises:
        InputError: in all others, if the function raises anything; in all, if they have different numbers of devices.
    """
    from safetensors.numpy import load, save

    if jax.process_count() == 1:
        return function()
    numbers = Counter(device.process_index for device in jax.devices())
    require(
        len(set(numbers.values())) == 1,
        f"devices: expected as many in each process, got {', '.join(map(str, numbers.values()))}; give all --devices N",
    )
    told, failed = b"", None
    if jax.process_index() == owner:
        try:
            found = {name: np.asarray(array, order="C") for name, array in function().items()}
            told = b"+" + save(found)
        except Exception as error:
            told, failed = b"-" + str(error).encode(errors="replace"), error
    told = _broadcast(told, owner)
    if told[:1] == b"-":
        raise failed or InputError(told[1:].decode())
    return load(told[1:])


def broadcast_text(function: Callable[[], str], owner: int = 0) -> str:
    """As `share`, for a text."""
    found = broadcast_from_primary(lambda: {"text": np.frombuffer(function().encode(), np.uint8)}, owner)
    return found["text"].tobytes().decode()


def allgather_text(function: Callable[[], str]) -> list[str]:
    """What the function says in each process, in all of them."""
    return [broadcast_text(function, process) for process in range(jax.process_count())]


def _broadcast(told: bytes, owner: int) -> bytes:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    def send(array: np.ndarray) -> np.ndarray:
        return np.asarray(broadcast_one_to_all(array, is_source=jax.process_index() == owner))

    size = int.from_bytes(send(np.frombuffer(len(told).to_bytes(8, "big"), np.uint8)).tobytes(), "big")
    room = 1 << size.bit_length()  # few sizes, since each compiles a program
    return send(np.frombuffer(told.ljust(room, b"\0")[:room], np.uint8)).tobytes()[:size]


def put_global(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    """Arrays that all processes have, on the devices of all of them; each puts what belongs on its own."""

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])

    return jax.tree.map(put, tree)


def is_partly_remote(array: Any) -> bool:
    """Whether other processes hold a part of an array that this one does not."""
    known = isinstance(array, jax.Array) and not traced(array)
    return known and not (array.is_fully_addressable or array.is_fully_replicated)


def to_host(tree: Any) -> Any:
    """NumPy arrays of arrays on any devices; of those of all processes each gets the whole."""
    from jax.experimental.multihost_utils import process_allgather

    def fetch(array: Any) -> np.ndarray:
        return np.asarray(process_allgather(array, tiled=True)) if is_partly_remote(array) else np.array(array)

    return jax.tree.map(fetch, tree)
