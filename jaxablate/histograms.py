"""Joint histograms: codes [example, neuron] and labels [example] come in, counts[neuron, class, code] go out.

Counts are exact int32 and additive: histograms of batches sum to the histogram of the whole.
Memory: one int32 index for each example and neuron.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_integers, require_labels, require_range
from jaxablate._typing import Codes, Counts, Labels


def joint_histogram(codes: Codes, labels: Labels, *, num_codes: int, num_classes: int) -> Counts:
    """Count how often each neuron shows each code within each class: N[neuron, class, code].

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        num_codes: the number of codes of the quantizer.
        num_classes: the number of classes.

    Returns:
        int32 [neuron, class, code]; for every neuron the counts sum to the number of examples.

    Raises:
        InputError: for codes or labels of another shape, dtype or range.

    Source: paper, equation 2, times the number of examples.

    Example:
        >>> ja.joint_histogram(np.array([[0], [1], [1]]), np.array([0, 0, 1]), num_codes=2, num_classes=2).tolist()
        [[[1, 1], [0, 1]]]
    """
    host_codes = np.asarray(codes)
    require_integers("codes", host_codes)
    require(host_codes.ndim == 2, f"codes: expected shape [example, neuron], got {host_codes.shape}")
    require_range("codes", host_codes, 0, num_codes - 1)
    require_labels(np.asarray(labels), len(host_codes), num_classes)
    cells = host_codes.shape[1] * num_classes * num_codes
    require(cells < 2**31, f"histogram: expected fewer than 2^31 cells, got {cells}; split the neurons")
    return _joint_histogram(jnp.asarray(codes), jnp.asarray(labels), num_codes, num_classes)


@partial(jax.jit, static_argnames=("num_codes", "num_classes"))
def _joint_histogram(codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> Counts:
    shape = (codes.shape[1], num_classes, num_codes)
    neuron = jnp.arange(shape[0], dtype=jnp.int32)
    cell = (neuron * num_classes + labels[:, None].astype(jnp.int32)) * num_codes + codes.astype(jnp.int32)
    counts = jnp.bincount(cell.ravel(), length=shape[0] * shape[1] * shape[2])
    return counts.reshape(shape).astype(jnp.int32)
