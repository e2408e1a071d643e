"""Meshes of devices: examples are cut along the axis `data`; masks, curves and seeds along `study`."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import InputError, require, require_integer, traced

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
        InputError: for more devices than there are, or a number that `study` does not divide.

    Example:
        >>> dict(ja.meshes.make_mesh(1).shape)
        {'data': 1, 'study': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    number = len(devices) if num_devices is None else require_integer("num_devices", num_devices)
    study = require_integer("study", study)
    require(
        1 <= number <= len(devices),
        f"num_devices: expected 1 to {len(devices)}, got {number}; a CPU counts as several where "
        "jax.config.update('jax_num_cpu_devices', N) comes before anything else of JAX",
    )
    require(study >= 1 and number % study == 0, f"study: expected a divisor of the {number} devices, got {study}")
    return Mesh(np.array(devices[:number]).reshape(-1, study), (DATA, STUDY))


def choose_mesh(num_devices: int, num_examples: int) -> Mesh:
    """The mesh of so many devices that cuts the examples most finely, as long as each device has enough of them."""
    data = [d for d in range(1, num_devices + 1) if num_devices % d == 0 and (d == 1 or num_examples >= d * ENOUGH)]
    return make_mesh(num_devices, study=num_devices // data[-1] if data else 1)


def mesh_for(mesh: Mesh | None, *arrays: Any) -> Mesh | None:
    """The mesh to work on: the one given, or that of arrays that are sharded already; None for one device.

    Raises:
        InputError: for a mesh without the axes, or arrays sharded in another way.
    """
    concrete = [array for array in arrays if isinstance(array, jax.Array) and not traced(array)]
    placed = [(array.sharding, array.ndim) for array in concrete]
    sharded = [(of, ndim) for of, ndim in placed if isinstance(of, NamedSharding) and of.mesh.size > 1]
    found = mesh if mesh is not None or not sharded else sharded[0][0].mesh
    if found is None:
        return None
    if not isinstance(found, Mesh) or found.axis_names != (DATA, STUDY):
        raise InputError(
            f"mesh: expected one with the axes ('{DATA}', '{STUDY}'), as ja.meshes.make_mesh makes, got "
            f"{getattr(found, 'axis_names', type(found).__name__)}"
        )
    for sharding, ndim in sharded:
        if not any(sharding.is_equivalent_to(NamedSharding(found, spec), ndim) for spec in (P(DATA), P())):
            raise InputError(f"sharding: expected examples along '{DATA}' of one mesh, got {sharding.spec}")
    return found


def spread_examples(mesh: Mesh, values: Any, labels: Any, *others: Any) -> tuple[jax.Array, ...]:
    """Put values [example, ...], labels [example] and others [example, ...] (or None) on the devices of a mesh, cut
    along `data`.

    Where the devices do not divide them, the first example comes again, with the label -1, which stands for no class.
    """
    missing = -len(labels) % mesh.shape[DATA]

    def put(array: Any, more: Any) -> Any:
        if array is not None and missing:
            array = np.concatenate([array, np.repeat(np.asarray(more)[None], missing, axis=0)])
        return array if array is None else jax.device_put(array, NamedSharding(mesh, P(DATA)))

    labels = np.asarray(labels, np.int32)
    return put(values, values[0]), put(labels, np.int32(-1)), *(put(of, None if of is None else of[0]) for of in others)
