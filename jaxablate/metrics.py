"""Metrics turn the joint counts of code and class into one score for each neuron.

All metrics are plug-in estimates: they use the joint frequencies P(c, t) = N[c, t] / N in place of probabilities, with
0 log 0 = 0. A neuron that never changes its code scores 0. A class without examples is left out.

From few examples a plug-in entropy is too low and a plug-in mutual information too high. The estimator "miller_madow"
removes the first-order bias, which is not all of it if many (code, class) pairs have few examples. Metrics also work
inside `jax.jit`, where counts are not checked.

Input: counts, integers [neuron, class, code].
Output: scores, float32 [neuron] in nats.
Memory: a few float32 arrays of the size of the counts.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate._checks import host_array, require, require_integers, require_known, traced
from jaxablate._typing import AnyArray, Counts, Scores

__all__ = [
    "ESTIMATORS",
    "METRICS",
    "Estimator",
    "Metric",
    "entropy",
    "get_metric",
    "kl_selectivity",
    "mutual_information",
    "predicted_bias",
    "specific_information",
]

Metric = Callable[[Counts], Scores]
Estimator = Literal["plugin", "miller_madow"]
ESTIMATORS = ("plugin", "miller_madow")


def entropy(counts: Counts, *, estimator: Estimator = "plugin") -> Scores:
    """Return the entropy of the code, H(T) = -sum_t P(t) log P(t).

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.
        estimator: "plugin", or "miller_madow", which adds (K_T - 1) / (2 N). K_T is the number of codes that the neuron
            shows, N the number of examples.

    Returns:
        float32 [neuron] in nats. Plug-in estimates lie in [0, log num_codes]; Miller-Madow estimates may exceed it.

    Raises:
        InputError: if counts have another shape or dtype, if a neuron has no example, or if the estimator is unknown.

    Source: paper, equation 3; Miller (1955), Note on the bias of information estimates.

    Example:
        >>> ja.entropy(np.array([[[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375]
    """
    require_known("estimator", estimator, ESTIMATORS)
    counts = _check_counts(counts)
    scores = _entropy(counts)
    return scores if estimator == "plugin" else scores + _entropy_bias(counts)


def mutual_information(counts: Counts, *, estimator: Estimator = "plugin") -> Scores:
    """Return the mutual information of code and class, I(T;Y) = sum_{c,t} P(c,t) log(P(c,t) / (P(c) P(t))).

    It equals H(T) - H(T|Y). The form above is computed, because its terms do not cancel.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.
        estimator: "plugin", or "miller_madow", which subtracts the `predicted_bias`.

    Returns:
        float32 [neuron] in nats. Plug-in estimates lie in [0, min(H(T), H(Y))] up to rounding, and never outside
        [0, log num_codes]. Miller-Madow estimates are often negative for neurons without information.

    Raises:
        InputError: if counts have another shape or dtype, if a neuron has no example, or if the estimator is unknown.

    Source: paper, equation 4; Miller (1955), Note on the bias of information estimates.

    Example:
        >>> ja.mutual_information(np.array([[[2, 0], [0, 2]], [[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375, 0.0]
    """
    require_known("estimator", estimator, ESTIMATORS)
    counts = _check_counts(counts)
    scores = _mutual_information(counts)
    return scores if estimator == "plugin" else scores - _predicted_bias(counts)


def kl_selectivity(counts: Counts) -> Scores:
    """Return the KL selectivity, max_c D_KL(P(T | Y=c) || P(T)) over the classes that have examples.

    It is the largest `specific_information` of the neuron, the specific surprise of one class. It is not the
    information that the code has about one class. It lies in 0..-log P(c) for the class c that attains the maximum, so
    it can exceed the entropy of the code. As a maximum it has a larger bias than mutual information: 3.7 times as much
    for one bit, ten equally frequent classes, 10,000 examples and a neuron without information.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats, never below the mutual information.

    Raises:
        InputError: if counts have another shape or dtype, or a neuron has no example.

    Source: paper, equation 5.

    Example:
        >>> ja.kl_selectivity(np.array([[[2, 0], [0, 2]]], np.int32)).round(4).tolist()
        [0.6930999755859375]
    """
    return _specific_information(_check_counts(counts)).max(axis=1)


def specific_information(counts: Counts) -> Float[AnyArray, "neuron class"]:
    """Return the specific surprise of each class, D_KL(P(T | Y=c) || P(T)).

    It is how far the codes of a class differ from all codes, in 0..-log P(c). The maximum over the classes is
    `kl_selectivity`; the mean weighted by P(c) is `mutual_information`.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron, class] in nats, never negative; 0 for a class without examples.

    Raises:
        InputError: if counts have another shape or dtype, or a neuron has no example.

    Source: paper, equation 5. DeWeese and Meister (1999) call it the specific surprise.

    Example:
        >>> ja.metrics.specific_information(np.array([[[2, 0], [1, 1]]], np.int32)).round(4).tolist()
        [[0.28769999742507935, 0.14379999041557312]]
    """
    return _specific_information(_check_counts(counts))


def predicted_bias(counts: Counts) -> Scores:
    """Return the expected excess of plug-in mutual information over the truth, to first order in 1 / N.

    The excess is (K_TY - K_T - K_Y + 1) / (2 N). K_TY, K_T and K_Y are the numbers of (code, class) pairs, codes and
    classes that occur. If all pairs occur, it is (K_T - 1)(K_Y - 1) / (2 N). With many examples for each pair, a neuron
    without information about the class scores this much on average. With few examples it scores more: 0.33 nats for 500
    examples, 32 codes and 10 classes, where this formula gives 0.21 nats for the pairs that occur.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats; may be negative if many pairs never occur.

    Raises:
        InputError: if counts have another shape or dtype, or a neuron has no example.

    Source: Miller (1955); Panzeri and Treves (1996).

    Example:
        >>> ja.metrics.predicted_bias(np.full((1, 10, 2), 500, np.int32)).round(6).tolist()
        [0.00044999999227002263]
    """
    return _predicted_bias(_check_counts(counts))


METRICS: dict[str, Metric] = {
    "entropy": entropy,
    "mutual_information": mutual_information,
    "kl_selectivity": kl_selectivity,
}
"""The metrics by name."""


def get_metric(name: str) -> Metric:
    """Return the metric with this name.

    Args:
        name: one of `METRICS`.

    Returns:
        A function from counts [neuron, class, code] to scores [neuron].

    Raises:
        InputError: if the name is unknown; the message lists the known names.

    Example:
        >>> ja.metrics.get_metric("entropy") is ja.entropy
        True
    """
    require_known("metric", name, METRICS)
    return METRICS[name]


def _check_counts(counts: Counts) -> Counts:
    """Return the counts as a JAX array; raise unless they are counts of at least one example for each neuron."""
    if traced(counts):
        return counts
    host = host_array("counts", counts)
    require_integers("counts", host)
    require(host.ndim == 3, f"counts: expected shape [neuron, class, code], got {host.shape}")
    totals = host.sum(axis=(1, 2), dtype=np.int64)
    require(
        bool((host >= 0).all() and (totals > 0).all()),
        "counts: expected counts >= 0 with at least one example for every neuron, got "
        f"{int((host < 0).sum())} counts below 0 and {int((totals <= 0).sum())} neurons without an example",
    )
    # The sums over codes and classes are int32. Counts summed over batches are int64, which JAX converts to int32.
    largest = int(totals.max(initial=0))
    require(
        largest < 2**31, f"counts: expected sums that int32 can hold, up to {2**31 - 1}, got {largest}; take a part"
    )
    return jnp.asarray(host)


# The formulas below are written so that special values are exact:
# - 0 log 0 is 0 without a NaN: the ratio inside the logarithm is replaced by 1 if p is 0.
# - Equal counts give a fraction of exactly 1, so a constant neuron has exactly 0 nats.
# - Rounding never leaves the range that the theory allows, see `_clip_to_bound`.


def _fraction(part: AnyArray, whole: AnyArray) -> AnyArray:
    """Return part / whole, 0 if the whole is 0."""
    # XLA may divide by multiplying with a reciprocal, which misses 1 for some equal numbers.
    return jnp.where(part == whole, jnp.where(whole > 0, 1.0, 0.0), part / jnp.maximum(whole, 1))


def _p_log_ratio(p: AnyArray, numerator: AnyArray, denominator: AnyArray) -> AnyArray:
    """Return p log(numerator / denominator), 0 if p is 0."""
    ratio = jnp.where(p > 0, numerator, 1) / jnp.where(p > 0, denominator, 1)
    return p * jnp.log(ratio)


def _clip_to_bound(scores: AnyArray, num_codes: int) -> AnyArray:
    """Clip scores to [0, log num_codes], which only rounding can exceed."""
    # For some numbers, such as log 2, the nearest float32 lies above the bound: take the next float32 below.
    bound = np.float32(np.log(num_codes))
    if bound > np.log(num_codes):
        bound = np.nextafter(bound, np.float32(0))
    return jnp.clip(scores, 0, bound)


@jax.jit
def _entropy(counts: Counts) -> Scores:
    # Counts [neuron, class, code] summed over the classes: [neuron, code], exact in int32.
    per_code = counts.sum(axis=1)
    p = _fraction(per_code, per_code.sum(axis=1, keepdims=True))
    return _clip_to_bound(_p_log_ratio(p, jnp.ones_like(p), p).sum(axis=1), counts.shape[2])


def _conditional(counts: Counts) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Return P(t | c) (0 for a class without examples), P(t) and P(c), broadcast over [neuron, class, code]."""
    per_class = counts.sum(axis=2, keepdims=True)
    per_code = counts.sum(axis=1, keepdims=True)
    total = per_class.sum(axis=1, keepdims=True)
    return _fraction(counts, per_class), _fraction(per_code, total), _fraction(per_class, total)


@jax.jit
def _mutual_information(counts: Counts) -> Scores:
    # I(T;Y) = sum_c P(c) D_KL(P(T|c) || P(T)): a sum of divergences, which are not negative.
    given_class, code, p_class = _conditional(counts)
    divergence = _p_log_ratio(given_class, given_class, code).sum(axis=2)
    return _clip_to_bound((p_class[..., 0] * divergence).sum(axis=1), counts.shape[2])


@jax.jit
def _specific_information(counts: Counts) -> AnyArray:
    given_class, code, _ = _conditional(counts)
    # A class without examples has P(t | c) = 0 everywhere and gets 0, which never exceeds the largest divergence.
    return jnp.maximum(_p_log_ratio(given_class, given_class, code).sum(axis=2), 0)


def _supports(counts: Counts) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """Return the numbers of pairs, codes and classes that occur, and of examples, each [neuron]."""
    per_code, per_class = counts.sum(axis=1), counts.sum(axis=2)
    # K_TY, K_T and K_Y of the bias formula: the numbers of pairs, codes and classes with at least one example.
    pairs = (counts > 0).sum(axis=(1, 2))
    return pairs, (per_code > 0).sum(axis=1), (per_class > 0).sum(axis=1), per_code.sum(axis=1)


@jax.jit
def _entropy_bias(counts: Counts) -> Scores:
    """Return by how much the plug-in entropy is too low, to first order in 1 / N."""
    _, codes, _, examples = _supports(counts)
    return (codes - 1) / (2.0 * examples)


@jax.jit
def _predicted_bias(counts: Counts) -> Scores:
    pairs, codes, classes, examples = _supports(counts)
    return (pairs - codes - classes + 1) / (2.0 * examples)
