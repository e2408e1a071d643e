"""Joint histograms count how often each neuron shows each code within each class.

Counts are exact integers and additive: the histograms of batches, or of the shards of several devices, sum to the
histogram of all examples. For data in batches, see `ja.streams`.

Input: codes [example, neuron] and labels [example].
Output: counts, int32 [neuron, class, code].
Memory: one int32 index for each example and neuron (for two codes, one int32 copy of the codes).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool

from jaxablate._checks import (
    as_array,
    host_array,
    require,
    require_count,
    require_integers,
    require_range,
    require_same_index,
    require_shape,
    traced,
)
from jaxablate._typing import AnyArray, Codes, Counts, Labels
from jaxablate.devices import DATA, is_sharded, mesh_for, pad_and_shard, range_of, require_examples

__all__ = ["constant_codes", "joint_histogram"]

MAX_EXAMPLES = 2**31 - 1
"""Largest number of examples: no int32 count, and no sum of counts in a metric, can then overflow."""


def joint_histogram(
    codes: Codes, labels: Labels, *, num_codes: int, num_classes: int, mesh: Mesh | None = None
) -> Counts:
    """Count how often each neuron shows each code within each class: N[neuron, class, code].

    Works inside `jax.jit` too. Values cannot be checked there: a code or label out of range is counted in a wrong cell
    or not at all, without an error.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        num_codes: number of codes of the quantizer.
        num_classes: number of classes.
        mesh: devices that share the examples, from `ja.devices.make_mesh`. None uses the mesh of `codes` if they are
            sharded, otherwise one device.

    Returns:
        int32 [neuron, class, code]; for every neuron the counts sum to the number of examples.

    Raises:
        InputError: if codes or labels have another shape, dtype or range, if there are more examples than int32 can
            count, or if `num_codes` or `num_classes` is not an integer of at least 1.

    Source: paper, equation 2, times the number of examples.

    Example:
        >>> ja.joint_histogram(np.array([[0], [1], [1]]), np.array([0, 0, 1]), num_codes=2, num_classes=2).tolist()
        [[[1, 1], [0, 1]]]
    """
    num_codes, num_classes = require_count("num_codes", num_codes), require_count("num_classes", num_classes)
    if traced(codes, labels):
        require(mesh is None, "mesh: not used inside jax.jit, which keeps the sharding of its inputs; leave it out")
    else:
        require_same_index("labels", codes, labels)
        codes, labels = as_array("codes", codes), as_array("labels", labels)
        _check_codes(codes, labels, num_codes, num_classes)
        mesh = mesh_for(mesh, codes, labels)
    # The index of a cell is an int32, and so is its count.
    cells = codes.shape[1] * num_classes * num_codes
    require(cells < 2**31, f"histogram: expected fewer than 2^31 cells, got {cells}; split the neurons")
    if mesh is not None:
        counts = _on_mesh(mesh, *pad_and_shard(mesh, codes, labels), num_codes, num_classes)
        return jnp.asarray(np.asarray(counts))  # off the mesh: the next step may use another one
    return _joint_histogram(jnp.asarray(codes), jnp.asarray(labels), num_codes, num_classes)


def _check_codes(codes: AnyArray, labels: Labels, num_codes: int, num_classes: int) -> None:
    values = np.asarray(range_of(codes)) if is_sharded(codes) else np.asarray(codes)
    require_integers("codes", codes)
    require(codes.ndim == 2, f"codes: expected shape [example, neuron], got {codes.shape}")
    require(
        len(codes) <= MAX_EXAMPLES,
        f"examples: expected at most {MAX_EXAMPLES}, which int32 can count, got {len(codes)}; take a part",
    )
    require_range("codes", values, 0, num_codes - 1)
    require_examples(labels, len(codes), num_classes)


def constant_codes(counts: Counts) -> Bool[np.ndarray, "neuron"]:
    """Return which neurons show the same code for every counted example.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.

    Returns:
        bool [neuron].

    Example:
        >>> ja.histograms.constant_codes(np.array([[[3, 0], [4, 0]], [[3, 0], [3, 1]]])).tolist()
        [True, False]
    """
    counts = host_array("counts", counts)
    require_integers("counts", counts)
    require_shape("counts", counts, (None, None, None), "neuron, class, code")
    return (counts.sum(axis=1) > 0).sum(axis=1) <= 1


@partial(jax.jit, static_argnums=(0, 3, 4))
def _on_mesh(mesh: Mesh, codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> Counts:
    """Return the histogram of examples sharded over a mesh; examples with the label -1 are padding and not counted."""

    def count_shard(codes: Codes, labels: Labels) -> Counts:
        # Padding is counted in an extra class, which is dropped. Integer sums over the devices are exact in any order.
        labels = jnp.where(labels < 0, num_classes, labels.astype(jnp.int32))
        counts = _joint_histogram(codes, labels, num_codes, num_classes + 1)[:, :num_classes]
        return jax.lax.psum(counts, DATA)

    count = jax.shard_map(count_shard, mesh=mesh, in_specs=P(DATA), out_specs=P(), check_vma=False)
    return count(codes, labels)


@partial(jax.jit, static_argnames=("num_codes", "num_classes"))
def _joint_histogram(codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> Counts:
    """Return the histogram of examples on one device, int32 [neuron, class, code]."""
    shape = (codes.shape[1], num_classes, num_codes)
    if num_codes == 2:
        # Two codes need one number per neuron and class: how often the code is 1. Summing whole rows of codes by label
        # does that for all neurons at once, several times faster than counting cell by cell. The code 0 has the rest
        # of the examples of the class.
        ones = jax.ops.segment_sum(codes.astype(jnp.int32), labels, num_classes)
        size = jax.ops.segment_sum(jnp.ones_like(labels, jnp.int32), labels, num_classes)
        return jnp.stack([size[:, None] - ones, ones], axis=2).swapaxes(0, 1)
    # Every (neuron, class, code) has its own cell of one flat histogram: the offset neuron * classes * codes keeps the
    # neurons apart. There are fewer than 2^31 cells, so int32 indices are exact, and bincount adds integer ones.
    neuron = jnp.arange(shape[0], dtype=jnp.int32)
    cell = (neuron * num_classes + labels[:, None].astype(jnp.int32)) * num_codes + codes.astype(jnp.int32)
    counts = jnp.bincount(cell.ravel(), length=shape[0] * shape[1] * shape[2])
    return counts.reshape(shape).astype(jnp.int32)
