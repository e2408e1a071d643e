"""Whether scores can be told from noise: codes and labels come in, p-values and intervals for each neuron go out.

Shuffles and resamples run one after the other within one jitted pass: each fills the machine by itself, and memory
stays at that of one histogram. A metric is any function from counts [neuron, class, code] to scores [neuron] that JAX
can compile: those of `ja.metrics`, with another estimator by `functools.partial`, or the user's own.
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxablate._checks import JaxablateWarning, require, require_integer
from jaxablate._typing import AnyArray, Codes, Counts, Labels, Scores
from jaxablate.histograms import joint_histogram
from jaxablate.metrics import Metric, mutual_information, predicted_bias

RELATIVE_TIE, ABSOLUTE_TIE = 1e-6, 1e-7
"""Scores that differ by less are the same but for float32 rounding."""


class BiasWarning(JaxablateWarning):
    """Plug-in scores that are no larger than the bias predicted for them."""


class ShuffleNull(NamedTuple):
    """Scores beside what they would be if the labels meant nothing.

    Attributes:
        score: float32 [neuron], of the labels as they are.
        mean: float32 [neuron], the mean score over shuffled labels: the bias, for a neuron that knows nothing.
        p_value: float64 [neuron], (1 + number of shuffles with a score at least as high) / (1 + number of shuffles).
    """

    score: Scores
    mean: Scores
    p_value: Float[np.ndarray, "neuron"]

    def share_of_noise(self, level: float = 0.05) -> float:
        """The share of neurons indistinguishable from noise at this level: those with p > level."""
        _require_level(level)
        return float((self.p_value > level).mean())


class Interval(NamedTuple):
    """Interval of a score for each neuron: `low` and `high`, float32 [neuron], in the unit of the metric."""

    low: Scores
    high: Scores


def warn_of_bias(counts: Counts) -> Bool[np.ndarray, "neuron"]:
    """Warn where the predicted bias of plug-in mutual information exceeds the score itself.

    Args:
        counts: int32 [neuron, class, code], from `joint_histogram`.

    Returns:
        bool [neuron], where it does. If anywhere, a `BiasWarning` says for how many neurons.

    Raises:
        InputError: for counts of another shape or dtype, or without an example.

    Example:
        >>> ja.uncertainty.warn_of_bias(np.array([[[9, 1], [1, 9]]], np.int32)).tolist()
        [False]
    """
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
    key: jax.Array,
    num_shuffles: int = 200,
    *,
    num_codes: int,
    num_classes: int,
    metric: Metric = mutual_information,
) -> ShuffleNull:
    """Scores of shuffled labels: which neurons know more of the class than chance would have it?

    The labels are permuted, the same way for all neurons; p = (1 + #{shuffled >= observed}) / (1 + num_shuffles).
    Scores that differ by rounding alone (1e-6 of the score plus 1e-7) are equal. Entropy does not depend on which
    label is whose: its p-value is always 1.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        key: a JAX random key.
        num_shuffles: how many permutations; the smallest possible p-value is 1 / (1 + num_shuffles).
        num_codes: the number of codes of the quantizer.
        num_classes: the number of classes.
        metric: from counts [neuron, class, code] to scores [neuron].

    Returns:
        A `ShuffleNull` of scores, means over shuffles (in the unit of the metric, nats) and p-values, each [neuron].

    Raises:
        InputError: for codes or labels of another shape, dtype or range, or fewer than one shuffle.

    Source: permutation test; Phipson and Smyth (2010), Permutation p-values should never be zero.

    Example:
        >>> labels = np.arange(40) % 2
        >>> codes = np.stack([labels, np.arange(40) < 20], axis=1).astype(np.int32)
        >>> null = ja.uncertainty.shuffle_null(codes, labels, jax.random.key(0), 99, num_codes=2, num_classes=2)
        >>> null.p_value.tolist(), null.share_of_noise(0.05)
        ([0.01, 1.0], 0.5)
    """
    num_shuffles = _require_many("num_shuffles", num_shuffles)
    joint_histogram(codes, labels, num_codes=num_codes, num_classes=num_classes)  # for its checks
    scores = _shuffled(jnp.asarray(codes), jnp.asarray(labels), key, num_shuffles, num_codes, num_classes, metric)
    observed, shuffled = np.asarray(scores[0]), np.asarray(scores[1:])
    reached = shuffled >= observed - (ABSOLUTE_TIE + RELATIVE_TIE * np.abs(observed))
    return ShuffleNull(observed, shuffled.mean(axis=0), (1 + reached.sum(axis=0)) / (1 + num_shuffles))


def bootstrap(
    codes: Codes,
    labels: Labels,
    key: jax.Array,
    num_resamples: int = 1000,
    *,
    num_codes: int,
    num_classes: int,
    level: float = 0.95,
    metric: Metric = mutual_information,
) -> Interval:
    """Percentile bootstrap intervals: between which scores would other examples of the same kind put a neuron?

    Examples are drawn with replacement, as many as there are and the same for all neurons; the interval runs from the
    (1 - level) / 2 quantile of the scores to the (1 + level) / 2 quantile. Resampling adds the bias of the plug-in
    estimate once more, so that intervals of mutual information lie too high where the bias is no smaller than they
    are wide, and never hold 0; there take the estimator "miller_madow", and `shuffle_null` to tell scores from 0.

    Args:
        codes: integers [example, neuron] in 0..num_codes-1.
        labels: integers [example] in 0..num_classes-1.
        key: a JAX random key.
        num_resamples: how many resamples.
        num_codes: the number of codes of the quantizer.
        num_classes: the number of classes.
        level: the share of the scores that the interval holds, between 0 and 1.
        metric: from counts [neuron, class, code] to scores [neuron].

    Returns:
        An `Interval`: low and high, float32 [neuron] each, in the unit of the metric (nats).

    Raises:
        InputError: for codes or labels of another shape, dtype or range, no resample, or a level out of range.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.

    Example:
        >>> labels = np.arange(40) % 2
        >>> interval = ja.uncertainty.bootstrap(labels[:, None], labels, jax.random.key(0), num_codes=2, num_classes=2)
        >>> bool(0.6 < interval.low[0] < interval.high[0] < 0.7)
        True
    """
    num_resamples = _require_many("num_resamples", num_resamples)
    _require_level(level)
    joint_histogram(codes, labels, num_codes=num_codes, num_classes=num_classes)  # for its checks
    scores = _resampled(jnp.asarray(codes), jnp.asarray(labels), key, num_resamples, num_codes, num_classes, metric)
    low, high = np.quantile(np.asarray(scores), ((1 - level) / 2, (1 + level) / 2), axis=0)
    return Interval(low.astype(np.float32), high.astype(np.float32))


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _shuffled(
    codes: Codes, labels: Labels, key: jax.Array, number: int, num_codes: int, num_classes: int, metric: Metric
) -> Float[AnyArray, "shuffle neuron"]:
    """Scores of the labels as they are, then of `number` shuffles; by the same code, so that rounding is the same."""

    def score(shuffle: tuple[AnyArray, jax.Array]) -> Scores:
        index, own_key = shuffle
        shuffled = jnp.where(index == 0, labels, jax.random.permutation(own_key, labels))
        return metric(joint_histogram(codes, shuffled, num_codes=num_codes, num_classes=num_classes))

    return jax.lax.map(score, (jnp.arange(number + 1), jax.random.split(key, number + 1)))


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _resampled(
    codes: Codes, labels: Labels, key: jax.Array, number: int, num_codes: int, num_classes: int, metric: Metric
) -> Float[AnyArray, "resample neuron"]:
    def score(own_key: jax.Array) -> Scores:
        drawn = jax.random.randint(own_key, labels.shape, 0, len(labels))
        return metric(joint_histogram(codes[drawn], labels[drawn], num_codes=num_codes, num_classes=num_classes))

    return jax.lax.map(score, jax.random.split(key, number))


def _require_many(what: str, number: int) -> int:
    number = require_integer(what, number)
    require(number >= 1, f"{what}: expected at least 1, got {number}")
    return number


def _require_level(level: float) -> None:
    require(0 < level < 1, f"level: expected a number between 0 and 1, got {level}")
