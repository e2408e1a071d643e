"""Scores of neurons: counts[neuron, class, code] come in, one score for each neuron goes out, in nats.

All three are plug-in estimates from the joint frequencies P(c, t) = N[c, t] / N, with 0 log 0 = 0.
A neuron that never changes its code scores 0 in all of them; a class without examples is left out.
From few examples a plug-in entropy comes out too low and a plug-in mutual information too high; the estimator
"miller_madow" takes off the first-order bias. Metrics work within `jax.jit` too, where counts are not checked.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate._checks import require, require_integers, require_known, traced
from jaxablate._typing import AnyArray, Counts, Scores

Metric = Callable[[Counts], Scores]
Estimator = Literal["plugin", "miller_madow"]
ESTIMATORS = ("plugin", "miller_madow")


def entropy(counts: Counts, *, estimator: Estimator = "plugin") -> Scores:
    """Entropy of the code, H(T) = -sum_t P(t) log P(t).

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.
        estimator: "plugin", or "miller_madow", which adds (K_T - 1) / (2 N), where K_T is the number of codes that
            the neuron shows and N that of examples.

    Returns:
        float32 [neuron] in nats; plug-in estimates in [0, log num_codes], Miller-Madow's may lie above.

    Raises:
        InputError: for counts of another shape or dtype, or without an example; for an unknown estimator.

    Source: paper, equation 3; Miller (1955), Note on the bias of information estimates.

    Example:
        >>> ja.entropy(np.array([[[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375]
    """
    require_known("estimator", estimator, ESTIMATORS)
    counts = _checked(counts)
    scores = _entropy(counts)
    return scores if estimator == "plugin" else scores + _entropy_deficit(counts)


def mutual_information(counts: Counts, *, estimator: Estimator = "plugin") -> Scores:
    """Mutual information of code and class, I(T;Y) = sum_{c,t} P(c,t) log(P(c,t) / (P(c) P(t))).

    Equal to H(T) - H(T|Y). Computed in the form above, whose terms do not cancel.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.
        estimator: "plugin", or "miller_madow", which takes off the `predicted_bias`.

    Returns:
        float32 [neuron] in nats; plug-in estimates in [0, min(H(T), H(Y))] up to rounding, never outside
        [0, log num_codes]; Miller-Madow's go below 0 for about half of the neurons that know nothing of the class.

    Raises:
        InputError: for counts of another shape or dtype, or without an example; for an unknown estimator.

    Source: paper, equation 4; Miller (1955), Note on the bias of information estimates.

    Example:
        >>> ja.mutual_information(np.array([[[2, 0], [0, 2]], [[1, 1], [1, 1]]], np.int32)).round(4).tolist()
        [0.6930999755859375, 0.0]
    """
    require_known("estimator", estimator, ESTIMATORS)
    counts = _checked(counts)
    scores = _mutual_information(counts)
    return scores if estimator == "plugin" else scores - _predicted_bias(counts)


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
    return _specific_information(_checked(counts)).max(axis=1)


def specific_information(counts: Counts) -> Float[AnyArray, "neuron class"]:
    """What a code tells of each class: D_KL(P(T | Y=c) || P(T)), the terms of KL selectivity and mutual information.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron, class] in nats: their maximum over the classes is `kl_selectivity`, their mean weighted by P(c)
        `mutual_information`. 0 for a class without examples.

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Source: paper, equation 5. DeWeese and Meister (1999) call it the specific surprise.

    Example:
        >>> ja.metrics.specific_information(np.array([[[2, 0], [1, 1]]], np.int32)).round(4).tolist()
        [[0.28769999742507935, 0.14379999041557312]]
    """
    return _specific_information(_checked(counts))


def predicted_bias(counts: Counts) -> Scores:
    """How much plug-in mutual information exceeds the truth on average, to first order in 1 / N.

    (K_TY - K_T - K_Y + 1) / (2 N), where K_TY, K_T and K_Y are the numbers of pairs, codes and classes that come up.
    For a neuron that knows nothing of the class this is (K_T - 1)(K_Y - 1) / (2 N), all that its score consists of.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        float32 [neuron] in nats; may be negative where many pairs never come up.

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Source: Miller (1955); Panzeri and Treves (1996).

    Example:
        >>> ja.metrics.predicted_bias(np.full((1, 10, 2), 500, np.int32)).round(6).tolist()
        [0.00044999999227002263]
    """
    return _predicted_bias(_checked(counts))


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
    if traced(counts):
        return counts
    host = np.asarray(counts)
    require_integers("counts", host)
    require(host.ndim == 3, f"counts: expected shape [neuron, class, code], got {host.shape}")
    totals = host.sum(axis=(1, 2), dtype=np.int64)
    require(
        bool((host >= 0).all() and (totals > 0).all()),
        "counts: expected counts >= 0 with at least one example for every neuron, got "
        f"{int((host < 0).sum())} counts below 0 and {int((totals <= 0).sum())} neurons without an example",
    )
    most = int(totals.max(initial=0))
    require(most < 2**31, f"counts: expected sums that int32 can hold, up to {2**31 - 1}, got {most}; take a part")
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
def _specific_information(counts: Counts) -> AnyArray:
    given_class, code, _ = _conditional(counts)
    # an absent class has P(t | c) = 0 everywhere and so adds a 0, which no maximum of divergences is below
    return jnp.maximum(_xlogx_ratio(given_class, given_class, code).sum(axis=2), 0)


def _supports(counts: Counts) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """How many pairs, codes and classes come up, and the number of examples, each [neuron]."""
    per_code, per_class = counts.sum(axis=1), counts.sum(axis=2)
    pairs = (counts > 0).sum(axis=(1, 2))
    return pairs, (per_code > 0).sum(axis=1), (per_class > 0).sum(axis=1), per_code.sum(axis=1)


@jax.jit
def _entropy_deficit(counts: Counts) -> Scores:
    _, codes, _, examples = _supports(counts)
    return (codes - 1) / (2.0 * examples)


@jax.jit
def _predicted_bias(counts: Counts) -> Scores:
    pairs, codes, classes, examples = _supports(counts)
    return (pairs - codes - classes + 1) / (2.0 * examples)
