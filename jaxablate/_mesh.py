"""Meshes of devices: examples are cut along the axis `data`; masks, curves and seeds along `study`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import (
    InputError,
    require,
    require_integer,
    require_integers,
    require_labels,
    require_range,
    require_shape,
    traced,
)
from jaxablate._processes import allgather_text, is_partly_remote, put_global

DATA, STUDY = "data", "study"
ENOUGH = 250  # examples that are worth a device


def make_mesh(num_devices: int | None = None, *, study: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh with the axes "data" (examples) and "study" (masks, curves, seeds).

    Args:
        num_devices: how many of the devices; None for all.
        study: how many of them share out masks, curves or seeds; the others share out examples.
        devices: which ones; None for `jax.devices()`.

    Returns:
        A mesh [data, study].

    Raises:
        InputError: for more devices than there are, one that comes again, or a number that `study` does not divide.

    Example:
        >>> dict(ja.meshes.make_mesh(1).shape)
        {'data': 1, 'study': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    require(len(set(devices)) == len(devices), "devices: expected each once, got one again")
    number = len(devices) if num_devices is None else require_integer("num_devices", num_devices)
    study = require_integer("study", study)
    require(
        1 <= number <= len(devices),
        f"num_devices: expected 1 to {len(devices)}, got {number}; a CPU counts as several where "
        "jax.config.update('jax_num_cpu_devices', N) comes before anything else of JAX",
    )
    require(study >= 1 and number % study == 0, f"study: expected a divisor of the {number} devices, got {study}")
    return Mesh(np.array(devices[:number]).reshape(-1, study), (DATA, STUDY))


def layout_for(num_devices: int, num_examples: int) -> tuple[int, int]:
    """How many of the devices to take along `data` and along `study`: examples divide well enough, however many, and
    are cut as finely as leaves each device enough of them."""
    data = [d for d in range(1, num_devices + 1) if num_devices % d == 0 and (d == 1 or num_examples >= d * ENOUGH)]
    return (data[-1], num_devices // data[-1]) if data else (1, 1)


def choose_mesh(num_devices: int, num_examples: int) -> Mesh:
    """The mesh of so many devices that fits so many examples."""
    return make_mesh(num_devices, study=layout_for(num_devices, num_examples)[1])


def is_sharded(array: Any) -> bool:
    """Whether an array is on several devices."""
    if not isinstance(array, jax.Array) or traced(array):
        return False
    return isinstance(array.sharding, NamedSharding) and array.sharding.mesh.size > 1


def mesh_for(mesh: Mesh | None, *arrays: Any) -> Mesh | None:
    """The mesh to work on: the one given, or that of arrays that are sharded already; None for one device.

    Raises:
        InputError: for a mesh without the axes, or arrays sharded in another way.
    """
    sharded = [(array.sharding, array.ndim) for array in arrays if is_sharded(array)]
    found = mesh if mesh is not None or not sharded else sharded[0][0].mesh
    if found is None:
        return None
    if not isinstance(found, Mesh) or found.axis_names != (DATA, STUDY):
        raise InputError(
            f"mesh: expected one with the axes ('{DATA}', '{STUDY}'), as ja.meshes.make_mesh makes, got "
            f"{type(found).__name__} {getattr(found, 'axis_names', found)}"
        )
    processes = {device.process_index for device in found.devices.flat}
    require(
        processes in ({jax.process_index()}, set(range(jax.process_count()))),
        f"mesh: expected devices of every process, or of this one ({jax.process_index()}) alone, got those of "
        f"{sorted(processes)}",
    )
    for sharding, ndim in sharded:
        if not any(sharding.is_equivalent_to(NamedSharding(found, spec), ndim) for spec in (P(DATA), P())):
            raise InputError(
                f"sharding: expected examples along '{DATA}' of one mesh, here {_told(found)}, got {sharding.spec} of "
                f"{_told(sharding.mesh)}; take the mesh of the images, or images that are on one device"
            )
    return found


def _told(mesh: Any) -> str:
    return f"{dict(mesh.shape)} on the devices {[device.id for device in mesh.devices.flat]}"


def first_example(images: Any) -> Any:
    """One example, also of those of which other processes hold a part."""
    if isinstance(images, jax.Array):
        return images.addressable_shards[0].data[:1]
    images = np.asarray(images)
    return images[:1] if images.ndim else images


def require_examples(labels: Any, num_examples: int, num_classes: int) -> int:
    """Raise unless labels are integers [example] in 0..classes-1, or -1 as `spread` adds; return how many are not -1.

    Raises:
        InputError: also if none counts.
    """
    if not is_partly_remote(labels):
        require_labels(np.asarray(labels), num_examples, num_classes)
        return num_examples
    require_integers("labels", labels)
    require_shape("labels", labels, (num_examples,), "example")
    require_range("labels", np.asarray(range_of(labels)), -1, num_classes - 1)
    number = int(number_of(labels))
    require(number > 0, "labels: expected at least one of 0 or more, got none")
    return number


def pad_and_shard(mesh: Mesh, values: Any, labels: Any, *others: Any) -> tuple[Any, ...]:
    """Put values [example, ...], labels [example] and others [example, ...] (or None) on the devices of a mesh, cut
    along `data`; those of all processes are there already, or in each of them.

    Where the devices do not divide them, the first example comes again, with the label -1, which stands for no class.
    """
    missing = -len(labels) % mesh.shape[DATA]

    def put(array: Any) -> Any:
        kept = array is None or is_sharded(array)
        return array if kept else put_global(NamedSharding(mesh, P(DATA)), array)

    padded = _with_none(labels, missing), *(array if array is None else _padded(array, missing) for array in others)
    return put(_padded(values, missing)), *map(put, padded)


def shard_examples(mesh: Mesh, images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Put examples on the devices of a mesh, where each process has examples of its own: a shard of a file, say.

    Args:
        mesh: from `make_mesh`, with the devices of all processes; along `study` it may not go from one to another.
        images: [example, ...], those of this process.
        labels: integers [example].

    Returns:
        Images and labels of all processes, cut along "data", as `evaluate_masks` and its relatives take them. Where a
        process has fewer than another, its first example comes again with the label -1, which never counts. On
        devices of one process, examples that they do not divide are copied to each instead.

    Raises:
        InputError: for no example, another number of labels, negative ones, images of other shapes or dtypes in other
            processes, or a mesh where processes share examples.

    Example:
        >>> images, labels = ja.meshes.shard_examples(ja.meshes.make_mesh(1), np.zeros((5, 2, 2)), np.zeros(5, int))
        >>> images.shape
        (5, 2, 2)
    """
    if mesh_for(mesh) is None:
        raise InputError("mesh: expected one, as ja.meshes.make_mesh makes, got none")
    labels = np.asarray(labels)
    require_integers("labels", labels)
    require_shape("labels", labels, (len(images),), "example")
    require_range("labels", labels, 0, 2**31 - 1)
    require(len(labels) > 0, "images: expected at least one example in every process, got none")
    if not mesh.is_multi_process:
        return on_devices(mesh, images), on_devices(mesh, labels)
    images, labels = np.asarray(images), labels.astype(np.int32)  # -1 is among them
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    require(
        bool((owners == owners[:, :1]).all()),
        f"mesh: expected each process to have its own examples, got {STUDY} of {mesh.shape[STUDY]} across processes",
    )
    kinds = allgather_text(lambda: f"{images.dtype}{list(images.shape[1:])}")
    require(len(set(kinds)) == 1, f"images: expected the same in each process, got {', '.join(kinds)}")
    own = int((owners[:, 0] == jax.process_index()).sum())
    each = int(multihost_utils.process_allgather(np.int32(-(-len(labels) // own))).max())
    missing = each * own - len(labels)
    across, examples = NamedSharding(mesh, P(DATA)), (_padded(images, missing), _with_none(labels, missing))
    images, labels = (jax.make_array_from_process_local_data(across, of) for of in examples)
    return images, labels


def on_devices(mesh: Mesh, array: Any) -> jax.Array:
    """An array [example, ...] on the devices of this process: cut along `data` where they divide it, else whole on
    each, so that nothing is added to it."""
    return jax.device_put(array, NamedSharding(mesh, P() if len(array) % mesh.shape[DATA] else P(DATA)))


def _padded(array: Any, missing: int) -> Any:
    """The array with its first example again at the end, so many times."""
    return np.concatenate([array, np.repeat(np.asarray(array[:1]), missing, axis=0)]) if missing else array


def _with_none(labels: Any, missing: int) -> Any:
    """The labels with -1 at the end, so many times."""
    return np.append(np.asarray(labels, np.int32), np.full(missing, -1, np.int32)) if missing else labels


@jax.jit
def range_of(array: jax.Array) -> jax.Array:
    """The lowest and the highest value, of the devices of all processes too."""
    # row by row first: on a CPU, XLA reduces a matrix to a row several times faster than to a number
    return jnp.stack([array.min(axis=0).min(), array.max(axis=0).max()])


@jax.jit
def number_of(labels: jax.Array) -> jax.Array:
    """How many labels are not -1, of the devices of all processes too."""
    return (labels >= 0).sum()
