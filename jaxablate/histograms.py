"""Joint histograms: codes [example, neuron] and labels [example] come in, counts[neuron, class, code] go out.

Counts are exact int32 and additive: histograms of batches, or of the shards of several devices, sum to the histogram
of the whole. Memory: one int32 index for each example and neuron of a batch.
"""

from collections.abc import Iterable
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxablate._checks import (
    InputError,
    require,
    require_count,
    require_integers,
    require_range,
    traced,
)
from jaxablate._mesh import DATA, is_sharded, mesh_for, pad_and_shard, range_of, require_examples
from jaxablate._typing import AnyArray, Codes, Counts, Labels

MOST_EXAMPLES = 2**31 - 1
"""As many examples fit int32 counts whatever their codes, and the sums over counts that metrics take."""


@runtime_checkable
class Coder(Protocol):
    """What codes activations: any of `jaxablate.quantizers`."""

    @property
    def num_codes(self) -> int:
        """The number of codes."""
        ...

    def __call__(self, activations: AnyArray, /) -> Codes:
        """Codes of activations [example, neuron]."""
        ...


def joint_histogram(
    codes: Codes, labels: Labels, *, num_codes: int, num_classes: int, mesh: Mesh | None = None
) -> Counts:
    """Count how often each neuron shows each code within each class: N[neuron, class, code].

    Works within `jax.jit` too, where values are unknown: those out of range are then counted in another cell or not
    at all, without a word.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        num_codes: the number of codes of the quantizer.
        num_classes: the number of classes.
        mesh: devices to share the examples, from `ja.meshes.make_mesh`; None for that of `codes` where they are sharded
            already, else for one device.

    Returns:
        int32 [neuron, class, code]; for every neuron the counts sum to the number of examples.

    Raises:
        InputError: for codes or labels of another shape, dtype or range, more examples than int32 can count, or numbers
            of codes or classes that are no whole numbers of at least 1.

    Source: paper, equation 2, times the number of examples.

    Example:
        >>> ja.joint_histogram(np.array([[0], [1], [1]]), np.array([0, 0, 1]), num_codes=2, num_classes=2).tolist()
        [[[1, 1], [0, 1]]]
    """
    num_codes, num_classes = require_count("num_codes", num_codes), require_count("num_classes", num_classes)
    if traced(codes, labels):
        require(mesh is None, "mesh: expected none within jax.jit, which shares what is sharded itself, got one")
    else:
        codes, labels = (of if isinstance(of, jax.Array) else np.asarray(of) for of in (codes, labels))
        _check_codes(codes, labels, num_codes, num_classes)
        mesh = mesh_for(mesh, codes, labels)
    cells = codes.shape[1] * num_classes * num_codes
    require(cells < 2**31, f"histogram: expected fewer than 2^31 cells, got {cells}; split the neurons")
    if mesh is not None:
        counts = _on_mesh(mesh, *pad_and_shard(mesh, codes, labels), num_codes, num_classes)
        return jnp.asarray(np.asarray(counts))  # on no mesh: one with others may follow
    return _joint_histogram(jnp.asarray(codes), jnp.asarray(labels), num_codes, num_classes)


def stream_histogram(
    batches: Iterable[tuple[AnyArray, Labels]],
    quantizer: Coder | None = None,
    *,
    num_classes: int,
    num_codes: int | None = None,
) -> Counts:
    """The joint histogram of data that come in batches: N[neuron, class, code], added up exactly.

    One batch is in memory at a time. Equal to `joint_histogram` of all batches together.

    Args:
        batches: pairs of activations [example, neuron] and labels [example]; of codes and labels without a quantizer.
        quantizer: from activations to codes; a fitted one, where it needs fitting.
        num_classes: the number of classes.
        num_codes: the number of codes, where batches hold codes; else the quantizer says it.

    Returns:
        int32 NumPy array [neuron, class, code]; for every neuron the counts sum to the number of examples.

    Raises:
        InputError: for no batch, batches of different neurons, more examples than int32 can count, both or neither of
            `quantizer` and `num_codes`, and as `joint_histogram`.

    Source: paper, equation 2, times the number of examples.

    Example:
        >>> batches = ((np.full((3, 1), h, np.float32), np.array([0, 1, 1])) for h in (0.2, 0.9))
        >>> ja.histograms.stream_histogram(batches, ja.quantizers.threshold(0.5), num_classes=2).tolist()
        [[[1, 1], [2, 2]]]
    """
    if quantizer is not None and num_codes is None:
        num_codes = quantizer.num_codes
    elif quantizer is not None or num_codes is None:
        given = "neither" if quantizer is None else "both"
        raise InputError(f"stream_histogram: expected either a quantizer or num_codes, got {given}")
    counts, examples = None, 0
    for values, labels in batches:
        codes = values if quantizer is None else quantizer(values)
        examples += len(codes)
        _check_examples(examples)  # before the sum, which can so never wrap
        of_batch = np.asarray(joint_histogram(codes, labels, num_codes=num_codes, num_classes=num_classes))
        if counts is not None and len(of_batch) != len(counts):
            raise InputError(f"batches: expected {len(counts)} neurons, as in the first, got {len(of_batch)}")
        counts = of_batch if counts is None else counts + of_batch
    if counts is None:
        raise InputError("batches: expected at least one, got none; an iterator yields its batches only once")
    return counts


def _check_codes(codes: AnyArray, labels: Labels, num_codes: int, num_classes: int) -> None:
    values = np.asarray(range_of(codes)) if is_sharded(codes) else np.asarray(codes)
    require_integers("codes", codes)
    require(codes.ndim == 2, f"codes: expected shape [example, neuron], got {codes.shape}")
    _check_examples(len(codes))
    require_range("codes", values, 0, num_codes - 1)
    require_examples(labels, len(codes), num_classes)


def _check_examples(number: int) -> None:
    if number > MOST_EXAMPLES:
        raise InputError(
            f"examples: expected at most {MOST_EXAMPLES}, which int32 can count, got {number}; take a part"
        )


@partial(jax.jit, static_argnums=(0, 3, 4))
def _on_mesh(mesh: Mesh, codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> Counts:
    """The histogram of examples that devices share; those with the label -1 do not count."""

    def on_device(codes: Codes, labels: Labels) -> Counts:
        # a class more than there are takes what does not count
        labels = jnp.where(labels < 0, num_classes, labels.astype(jnp.int32))
        counts = _joint_histogram(codes, labels, num_codes, num_classes + 1)[:, :num_classes]
        return jax.lax.psum(counts, DATA)

    found = jax.shard_map(on_device, mesh=mesh, in_specs=P(DATA), out_specs=P(), check_vma=False)
    return found(codes, labels)


@partial(jax.jit, static_argnames=("num_codes", "num_classes"))
def _joint_histogram(codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> Counts:
    shape = (codes.shape[1], num_classes, num_codes)
    if num_codes == 2:  # sums of whole rows, several times faster than of single cells
        fired = jax.ops.segment_sum(codes.astype(jnp.int32), labels, num_classes)
        size = jax.ops.segment_sum(jnp.ones_like(labels, jnp.int32), labels, num_classes)
        return jnp.stack([size[:, None] - fired, fired], axis=2).swapaxes(0, 1)
    neuron = jnp.arange(shape[0], dtype=jnp.int32)
    cell = (neuron * num_classes + labels[:, None].astype(jnp.int32)) * num_codes + codes.astype(jnp.int32)
    counts = jnp.bincount(cell.ravel(), length=shape[0] * shape[1] * shape[2])
    return counts.reshape(shape).astype(jnp.int32)
