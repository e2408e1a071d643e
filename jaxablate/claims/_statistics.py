"""Estimate effects over networks: means, intervals, corrected p-values and verdicts.

Input: comparisons, each with one value for each network.
Output: `Effect`s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxablate.results import CONFIDENCE, confidence_interval

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NUM_RESAMPLES = 9999


class Comparison(NamedTuple):
    """Hold one comparison of a claim.

    Attributes:
        label: the comparison in words.
        unit: unit of the values.
        values: float64 [network], positive where a network supports the claim; NaN if it is undefined.
    """

    label: str
    unit: str
    values: np.ndarray


@dataclass(frozen=True)
class Effect:
    """Hold the estimate of one comparison over the networks.

    All numbers but the mean are NaN if fewer than two networks define the comparison.

    Attributes:
        label: the comparison in words; a positive mean supports the claim.
        unit: "accuracy points" or "nat".
        values: value of each network, in the order of the seeds; NaN if it is undefined.
        num_networks: number of networks where the comparison is defined.
        mean: mean over these networks; NaN if there is none.
        low, high: 95% t-interval of the mean.
        bootstrap_low, bootstrap_high: 95% bootstrap interval of the mean (percentiles of 9,999 resamples).
        p: p-value of a two-sided one-sample t-test against 0; of a sign test if all values are equal.
        p_holm: p-value corrected by Holm's method over the family of tests.
        verdict: "undecided" if p_holm is 0.05 or more; otherwise "holds" for a positive mean, "does not hold" for a
            negative one.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    num_networks: int
    mean: float
    low: float = math.nan
    high: float = math.nan
    bootstrap_low: float = math.nan
    bootstrap_high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    verdict: str = UNDECIDED


def estimate(family: Sequence[Comparison]) -> list[Effect]:
    """Estimate the effect of every comparison; the p-values are corrected over this family.

    Args:
        family: comparisons that are tested together.

    Returns:
        One `Effect` for each comparison.
    """
    # A comparison can be undefined in a network, for example the mean score of a layer without a defined score. Such a
    # network is left out of this comparison only.
    defined = [values[np.isfinite(values)] for _, _, values in family]
    p_values = np.array([_p_value(values) if len(values) > 1 else np.nan for values in defined])
    effects = []
    for comparison, values, p, p_holm in zip(family, defined, p_values, holm(p_values), strict=True):
        label, unit, all_values = comparison
        common = (label, unit, tuple(map(float, all_values)), len(values))
        if len(values) < 2:
            effects.append(Effect(*common, float(values[0]) if len(values) else math.nan))
            continue
        low, high = map(float, confidence_interval(values))
        bootstrap_low, bootstrap_high = map(float, _bootstrap_interval(values))
        direction = HOLDS if values.mean() > 0 else FAILS
        effects.append(
            Effect(
                *common,
                mean=float(values.mean()),
                low=low,
                high=high,
                bootstrap_low=bootstrap_low,
                bootstrap_high=bootstrap_high,
                p=float(p),
                p_holm=float(p_holm),
                verdict=direction if p_holm < 1 - CONFIDENCE else UNDECIDED,
            )
        )
    return effects


def paired_difference(first: Effect, second: Effect) -> tuple[float, float, float]:
    """Return the mean of first minus second, paired within networks, and the ends of its 95% t-interval.

    Networks where one of the effects is undefined are left out. Without any network the mean is NaN, and with fewer
    than two the ends are NaN.
    """
    # Both protocols start from the same trained networks, so a difference per network removes the variation between
    # networks.
    difference = np.array(first.values) - np.array(second.values)
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return (float(difference[0]) if len(difference) else math.nan, math.nan, math.nan)
    low, high = confidence_interval(difference)
    return float(difference.mean()), float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values [test] after Holm's step-down correction; NaN marks a test that was not made and does not count.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    # The i-th smallest of m p-values is multiplied by m - i; the running maximum keeps the order of the p-values.
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    corrected = np.full(len(p_values), np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected


def _p_value(values: np.ndarray) -> float:
    """Return the two-sided p-value of the mean against 0."""
    from scipy import stats

    # n differences of one sign have probability 2 * 0.5^n if each sign is equally likely.
    if _all_equal(values):  # a t-test needs a variance, so the sign test is used instead
        return 2 * 0.5 ** len(values) if values[0] != 0 else 1.0
    return float(stats.ttest_1samp(values, 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _all_equal(values: np.ndarray) -> bool:
    """Return True if the values are equal up to the rounding of a mean of accuracies."""
    return bool(np.ptp(values) < 1e-9)


def _bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of the mean."""
    from scipy import stats

    if _all_equal(values):
        return float(values[0]), float(values[0])
    # A fixed seed: the same results must give the same files, byte for byte.
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval
