"""Test scores against shuffled labels, and compute their bootstrap intervals and predicted bias.

A metric is any function from counts [neuron, class, code] to scores [neuron] that JAX can compile: a function of
`ja.metrics`, a `functools.partial` of one (for another estimator), or your own.

Input: codes [example, neuron] and labels [example].
Output: p-values or intervals, one for each neuron.
Memory: one histogram. Shuffles and resamples run one after another in one jitted pass; each keeps the device busy.
"""

import warnings
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxablate._checks import (
    JaxablateWarning,
    describe_value,
    require,
    require_count,
    require_finite,
    require_key,
    short_repr,
)
from jaxablate._typing import AnyArray, Codes, Counts, Labels, Scores
from jaxablate.histograms import joint_histogram
from jaxablate.metrics import Metric, mutual_information, predicted_bias

__all__ = ["BiasWarning", "Interval", "ShuffleNull", "bootstrap", "shuffle_null", "warn_of_bias"]

RELATIVE_TIE, ABSOLUTE_TIE = 1e-6, 1e-7
"""Scores that differ by less than this are equal up to float32 rounding."""


class BiasWarning(JaxablateWarning):
    """Warn that plug-in scores do not exceed their predicted bias."""


# The plug-in estimate of mutual information is never negative, so chance alone makes it positive. For independent codes
# and labels its mean is about (K - 1)(C - 1) / 2n nats, with n examples, K codes and C classes. The shuffle null
# measures this bias. A permutation of the labels keeps the class sizes and the distribution of codes, and removes every
# dependence. One permutation serves all neurons, so their null scores are as correlated as the neurons are.
@dataclass(frozen=True, eq=False)
class ShuffleNull:
    """Scores of the neurons and their distribution under shuffled labels.

    Attributes:
        score: float32 [neuron], with the given labels.
        mean: float32 [neuron], the mean score over shuffled labels. For a neuron without information about the class
            this is the bias.
        p_value: float64 [neuron], (1 + number of shuffles with a score at least as high) / (1 + number of shuffles).
    """

    score: Scores
    mean: Scores
    p_value: Float[np.ndarray, "neuron"]

    __repr__ = short_repr

    def fraction_not_significant(self, level: float = 0.05) -> float:
        """Return the fraction of neurons with p > level, in 0..1: a chance score is not excluded for these neurons."""
        _require_level(level)
        return float((self.p_value > level).mean())


@dataclass(frozen=True, eq=False)
class Interval:
    """An interval of a score for each neuron.

    Attributes:
        low: float32 [neuron], in the unit of the metric.
        high: float32 [neuron], in the unit of the metric.
    """

    low: Scores
    high: Scores

    __repr__ = short_repr


def warn_of_bias(counts: Counts) -> Bool[np.ndarray, "neuron"]:
    """Warn if the plug-in mutual information of a neuron is below its own predicted bias.

    Args:
        counts: integers [neuron, class, code], from `joint_histogram`.

    Returns:
        bool [neuron], True if the predicted bias exceeds the score. If any is True, a `BiasWarning` gives their number.

    Raises:
        InputError: if counts have another shape or dtype, or a neuron has no example.

    Example:
        >>> ja.uncertainty.warn_of_bias(np.array([[[9, 1], [1, 9]]], np.int32)).tolist()
        [False]
    """
    # The bias of a neuron without information is its whole expected score, so a lower score is not evidence of any.
    biased = np.asarray(predicted_bias(counts)) > np.asarray(mutual_information(counts))
    if biased.any():
        warnings.warn(
            f"mutual information of {biased.sum()} of {len(biased)} neurons: expected scores above the bias of the "
            "plug-in estimate, got lower ones; take fewer codes, more examples or the estimator 'miller_madow'",
            BiasWarning,
            stacklevel=2,
        )
    return biased


def shuffle_null(
    codes: Codes,
    labels: Labels,
    *,
    num_codes: int,
    num_classes: int,
    metric: Metric = mutual_information,
    num_shuffles: int = 200,
    key: jax.Array,
) -> ShuffleNull:
    """Score the neurons under shuffled labels, to see which scores exceed chance.

    Every shuffle permutes the labels in the same way for all neurons.
    p = (1 + #{shuffled >= observed}) / (1 + num_shuffles); scores are equal if they differ by rounding alone (1e-6 of
    the score plus 1e-7). Entropy does not depend on the labels, so its p-value is always 1.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        num_codes: number of codes of the quantizer.
        num_classes: number of classes.
        metric: function from counts [neuron, class, code] to scores [neuron].
        num_shuffles: number of permutations; the smallest possible p-value is 1 / (1 + num_shuffles).
        key: a JAX random key; the same key draws the same permutations.

    Returns:
        A `ShuffleNull`: scores, means over the shuffles (both in the unit of the metric) and p-values, each [neuron].

    Raises:
        InputError: if codes or labels have another shape, dtype or range, if there is no example, neuron or shuffle,
            or if the metric returns scores that are not finite.

    Source: permutation test; Phipson and Smyth (2010), Permutation p-values should never be zero.

    Example:
        >>> labels = np.arange(40) % 2
        >>> codes = np.stack([labels, np.arange(40) < 20], axis=1).astype(np.int32)
        >>> null = ja.uncertainty.shuffle_null(
        ...     codes, labels, num_codes=2, num_classes=2, num_shuffles=99, key=jax.random.key(0)
        ... )
        >>> null.p_value.tolist(), null.fraction_not_significant(0.05)
        ([0.01, 1.0], 0.5)
    """
    num_shuffles = require_count("num_shuffles", num_shuffles)
    _check_inputs(codes, labels, num_codes, num_classes)
    require_key(key)
    require(callable(metric), f"metric: expected a function of counts, got {describe_value(metric)}")
    scores = _shuffled_scores(
        jnp.asarray(codes), jnp.asarray(labels), key, num_shuffles, num_codes, num_classes, metric
    )
    observed, shuffled = np.asarray(scores[0]), np.asarray(scores[1:])
    # NaN compares as lower than every score: without this check its p-value would be the smallest possible.
    require_finite("scores of the metric", np.asarray(scores))
    reached = shuffled >= observed - (ABSOLUTE_TIE + RELATIVE_TIE * np.abs(observed))
    return ShuffleNull(observed, shuffled.mean(axis=0), (1 + reached.sum(axis=0)) / (1 + num_shuffles))


def bootstrap(
    codes: Codes,
    labels: Labels,
    *,
    num_codes: int,
    num_classes: int,
    metric: Metric = mutual_information,
    level: float = 0.95,
    num_resamples: int = 1000,
    key: jax.Array,
) -> Interval:
    """Return percentile bootstrap intervals of the scores.

    Every resample draws as many examples as there are, with replacement and the same for all neurons. The interval
    runs from the (1 - level) / 2 quantile of the scores to the (1 + level) / 2 quantile.

    Resampling adds the bias of the plug-in estimate a second time. Intervals of mutual information are therefore too
    high if the bias is as large as they are wide, and they never contain 0. In this case use the estimator
    "miller_madow", and `shuffle_null` to compare scores with 0.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        num_codes: number of codes of the quantizer.
        num_classes: number of classes.
        metric: function from counts [neuron, class, code] to scores [neuron].
        level: fraction of the resampled scores inside the interval, between 0 and 1.
        num_resamples: number of resamples.
        key: a JAX random key; the same key draws the same resamples.

    Returns:
        An `Interval` with `low` and `high`, float32 [neuron] each, in the unit of the metric.

    Raises:
        InputError: if codes or labels have another shape, dtype or range, if there is no example, neuron or resample,
            if the level is out of range, or if the metric returns scores that are not finite.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.

    Example:
        >>> labels = np.arange(40) % 2
        >>> interval = ja.uncertainty.bootstrap(
        ...     labels[:, None], labels, num_codes=2, num_classes=2, key=jax.random.key(0)
        ... )
        >>> bool(0.6 < interval.low[0] < interval.high[0] < 0.7)
        True
    """
    num_resamples = require_count("num_resamples", num_resamples)
    _require_level(level)
    _check_inputs(codes, labels, num_codes, num_classes)
    require_key(key)
    require(callable(metric), f"metric: expected a function of counts, got {describe_value(metric)}")
    scores = _resampled_scores(
        jnp.asarray(codes), jnp.asarray(labels), key, num_resamples, num_codes, num_classes, metric
    )
    require_finite("scores of the metric", np.asarray(scores))
    low, high = np.quantile(np.asarray(scores), ((1 - level) / 2, (1 + level) / 2), axis=0)
    return Interval(low.astype(np.float32), high.astype(np.float32))


# The metric is a static argument of both passes below, so the same function object compiles once. `lax.map` runs the
# draws in sequence: one histogram already fills the device, and a vmap would multiply the memory by their number.


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _shuffled_scores(
    codes: Codes, labels: Labels, key: jax.Array, num_shuffles: int, num_codes: int, num_classes: int, metric: Metric
) -> Float[AnyArray, "shuffle neuron"]:
    """Return the scores with the given labels (row 0), then with each of `num_shuffles` shuffles."""

    # Row 0 goes through the same program as the shuffles, so equal tables give equal scores, rounding included.
    def score(shuffle: tuple[AnyArray, jax.Array]) -> Scores:
        index, shuffle_key = shuffle
        shuffled = jnp.where(index == 0, labels, jax.random.permutation(shuffle_key, labels))
        return metric(joint_histogram(codes, shuffled, num_codes=num_codes, num_classes=num_classes))

    return jax.lax.map(score, (jnp.arange(num_shuffles + 1), jax.random.split(key, num_shuffles + 1)))


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _resampled_scores(
    codes: Codes, labels: Labels, key: jax.Array, num_resamples: int, num_codes: int, num_classes: int, metric: Metric
) -> Float[AnyArray, "resample neuron"]:
    """Return the scores of `num_resamples` samples of the examples, drawn with replacement."""

    def score(resample_key: jax.Array) -> Scores:
        # Codes and labels are drawn together, which keeps their dependence; a shuffle would break it.
        drawn = jax.random.randint(resample_key, labels.shape, 0, len(labels))
        return metric(joint_histogram(codes[drawn], labels[drawn], num_codes=num_codes, num_classes=num_classes))

    return jax.lax.map(score, jax.random.split(key, num_resamples))


def _check_inputs(codes: Codes, labels: Labels, num_codes: int, num_classes: int) -> None:
    """Raise unless codes and labels fit together and there is at least one example and one neuron."""
    # Inside jit the values are unknown and unchecked; one histogram outside runs all checks on them.
    joint_histogram(codes, labels, num_codes=num_codes, num_classes=num_classes)
    require(np.size(codes) > 0, f"codes: expected at least one example and neuron, got shape {np.shape(codes)}")


def _require_level(level: float) -> None:
    require(0 < level < 1, f"level: expected a number between 0 and 1, got {level}")
