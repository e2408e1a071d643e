"""Scores of neurons: counts[neuron, class, code] come in, one score for each neuron goes out, in nats.

All three are plug-in estimates from the joint frequencies P(c, t) = N[c, t] / N, with 0 log 0 = 0.
A neuron that never changes its code scores 0 in all of them; a class without examples is left out.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_integers, require_known
from jaxablate._typing import AnyArray, Counts, Scores

Metric = Callable[[Counts], Scores]


def entropy(counts: Counts) -> Scores:
    """Entropy of the code, H(T) = -sum_t P(t) log P(t).

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats, in [0, log num_codes].

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Source: paper, equation 3.

    Example:
        >>> ja.entropy(np.array([[[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375]
    """
    return _entropy(_checked(counts))


def mutual_information(counts: Counts) -> Scores:
    """Mutual information of code and class, I(T;Y) = sum_{c,t} P(c,t) log(P(c,t) / (P(c) P(t))).

    Equal to H(T) - H(T|Y). Computed in the form above, whose terms do not cancel.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats, in [0, min(H(T), H(Y))] up to rounding, never outside [0, log num_codes].

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Source: paper, equation 4.

    Example:
        >>> ja.mutual_information(np.array([[[2, 0], [0, 2]], [[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375, 0.0]
    """
    return _mutual_information(_checked(counts))


def kl_selectivity(counts: Counts) -> Scores:
    """KL selectivity, max_c D_KL(P(T | Y=c) || P(T)) over the classes present: the largest specific information.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats, never below the mutual information.

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Source: paper, equation 5.

    Example:
        >>> ja.kl_selectivity(np.array([[[2, 0], [0, 2]]], np.int32)).round(4).tolist()
        [0.6930999755859375]
    """
    return _kl_selectivity(_checked(counts))


METRICS: dict[str, Metric] = {
    "entropy": entropy,
    "mutual_information": mutual_information,
    "kl_selectivity": kl_selectivity,
}


def get_metric(name: str) -> Metric:
    """The metric of this name.

    Args:
        name: one of `METRICS`.

    Returns:
        A function from counts [neuron, class, code] to scores [neuron].

    Raises:
        InputError: for an unknown name; the message lists the known ones.

    Example:
        >>> ja.metrics.get_metric("entropy") is ja.entropy
        True
    """
    require_known("metric", name, METRICS)
    return METRICS[name]


def _checked(counts: Counts) -> Counts:
    host = np.asarray(counts)
    require_integers("counts", host)
    require(host.ndim == 3, f"counts: expected shape [neuron, class, code], got {host.shape}")
    totals = host.sum(axis=(1, 2))
    require(
        bool((host >= 0).all() and (totals > 0).all()),
        "counts: expected counts >= 0 with at least one example for every neuron",
    )
    return jnp.asarray(counts)


def _fraction(part: AnyArray, whole: AnyArray) -> AnyArray:
    """part / whole, 0 for an empty whole, and exactly 1 for equals, which XLA's division by reciprocals misses."""
    return jnp.where(part == whole, jnp.where(whole > 0, 1.0, 0.0), part / jnp.maximum(whole, 1))


def _xlogx_ratio(p: AnyArray, numerator: AnyArray, denominator: AnyArray) -> AnyArray:
    """P log(numerator / denominator), 0 where p = 0, without a NaN on the way."""
    ratio = jnp.where(p > 0, numerator, 1) / jnp.where(p > 0, denominator, 1)
    return p * jnp.log(ratio)


def _bounded(scores: AnyArray, num_codes: int) -> AnyArray:
    """Keep rounding within [0, log num_codes]; the float32 nearest to log 2 lies above it."""
    bound = np.float32(np.log(num_codes))
    if bound > np.log(num_codes):
        bound = np.nextafter(bound, np.float32(0))
    return jnp.clip(scores, 0, bound)


@jax.jit
def _entropy(counts: Counts) -> Scores:
    per_code = counts.sum(axis=1)
    p = _fraction(per_code, per_code.sum(axis=1, keepdims=True))
    return _bounded(_xlogx_ratio(p, jnp.ones_like(p), p).sum(axis=1), counts.shape[2])


def _conditional(counts: Counts) -> tuple[AnyArray, AnyArray, AnyArray]:
    """P(t | c) (0 for an absent class), P(t) and P(c), each broadcast over [neuron, class, code]."""
    per_class = counts.sum(axis=2, keepdims=True)
    per_code = counts.sum(axis=1, keepdims=True)
    total = per_class.sum(axis=1, keepdims=True)
    return _fraction(counts, per_class), _fraction(per_code, total), _fraction(per_class, total)


@jax.jit
def _mutual_information(counts: Counts) -> Scores:
    given_class, code, of_class = _conditional(counts)
    divergence = _xlogx_ratio(given_class, given_class, code).sum(axis=2)
    return _bounded((of_class[..., 0] * divergence).sum(axis=1), counts.shape[2])


@jax.jit
def _kl_selectivity(counts: Counts) -> Scores:
    given_class, code, _ = _conditional(counts)
    # an absent class has P(t | c) = 0 everywhere and so adds a 0, which no maximum of divergences is below
    return jnp.maximum(_xlogx_ratio(given_class, given_class, code).sum(axis=2).max(axis=1), 0)
