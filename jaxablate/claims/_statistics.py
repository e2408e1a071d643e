"""Statistics over networks: effects [network] come in; means, intervals, corrected p-values and verdicts go out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxablate.results import CONFIDENCE, confidence_interval

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
RESAMPLES = 9999


class Comparison(NamedTuple):
    """One effect of a claim: in words, its unit, and its values [network]; NaN where a network leaves it undefined."""

    label: str
    unit: str
    values: np.ndarray


@dataclass(frozen=True)
class Effect:
    """What the networks say of a comparison; all numbers but the mean are NaN where fewer than two define it.

    Attributes:
        label: the comparison in words; positive supports the claim.
        unit: "accuracy points" or "nat".
        values: the comparison in each network, by seed.
        num_networks: networks in which the effect is defined.
        mean: over them; NaN if there is none.
        low, high: 95 % t-interval of the mean.
        bootstrap_low, bootstrap_high: 95 % bootstrap interval of the mean (percentiles of 9 999 resamples).
        p: of a two-sided one-sample t-test against 0 (where all networks agree exactly, of a sign test).
        p_holm: the same, corrected by Holm's method over the family.
        verdict: "holds" or "does not hold" where p_holm is below 0.05, by the sign of the mean; else "undecided".
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
    """Estimate every effect of a family of tests."""
    known = [values[np.isfinite(values)] for _, _, values in family]
    p_values = np.array([_p_value(values) if len(values) > 1 else np.nan for values in known])
    effects = []
    for (label, unit, by_seed), values, p, p_holm in zip(family, known, p_values, holm(p_values), strict=True):
        about = (label, unit, tuple(map(float, by_seed)), len(values))
        if len(values) < 2:
            effects.append(Effect(*about, float(values[0]) if len(values) else math.nan))
            continue
        low, high = map(float, confidence_interval(values))
        bootstrap_low, bootstrap_high = map(float, _bootstrap_interval(values))
        judged = HOLDS if values.mean() > 0 else FAILS
        verdict = judged if p_holm < 1 - CONFIDENCE else UNDECIDED
        effects.append(
            Effect(
                *about,
                mean=float(values.mean()),
                low=low,
                high=high,
                bootstrap_low=bootstrap_low,
                bootstrap_high=bootstrap_high,
                p=float(p),
                p_holm=float(p_holm),
                verdict=verdict,
            )
        )
    return effects


def paired_difference(one: Effect, other: Effect) -> tuple[float, float, float]:
    """Mean of one less the other within each network, and the ends of its 95 % t-interval; NaN where not defined."""
    difference = np.array(one.values) - np.array(other.values)
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return (float(difference[0]) if len(difference) else math.nan, math.nan, math.nan)
    low, high = confidence_interval(difference)
    return float(difference.mean()), float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction [test]; NaN marks a test that was not made, and does not count.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    corrected = np.full(len(p_values), np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected


def _p_value(values: np.ndarray) -> float:
    from scipy import stats

    if _all_equal(values):  # no variance for a t-test: the sign test
        return 2 * 0.5 ** len(values) if values[0] != 0 else 1.0
    return float(stats.ttest_1samp(values, 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _all_equal(values: np.ndarray) -> bool:
    """Up to the rounding of a mean of accuracies."""
    return bool(np.ptp(values) < 1e-9)


def _bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    if _all_equal(values):
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return found.confidence_interval
