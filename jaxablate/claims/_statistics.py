"""Judge the comparisons of one claim over the networks.

Input: comparisons, each with one value for each network.
Output: `Effect`s with verdicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxablate.statistics import CONFIDENCE, Estimate, estimate, holm, holm_of_families

HOLDS, FAILS, REVERSED, NO_DIFFERENCE, UNDECIDED = "holds", "does not hold", "reversed", "no difference", "undecided"
LEVEL = 1 - CONFIDENCE
FEWEST_NETWORKS = 5
POINTS, NATS, CORRELATION, LOG_RATIO = "accuracy points", "nat", "correlation", "log ratio"
MARGINS = {POINTS: 0.25, NATS: 0.02, CORRELATION: 0.05, LOG_RATIO: 0.1}
"""Effects inside of -margin..margin count as no difference, by unit."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim.

    Attributes:
        label: the comparison in words; it names the direction, and is unique within its claim.
        unit: unit of the values.
        values: float64 [network], positive where a network supports the claim; NaN if it is undefined.
        group: comparisons of one group are "reversed" if all of them are significantly opposed to the claim. ""
            belongs to no group: the comparison then does not hold.
        threshold: a bound that the paper does not give and that is part of `values`; None without one.
        slope: change of `values` per unit of the threshold: -1 if the claim says "more than", 1 for "less than".
        margin: effects inside of -margin..margin count as no difference; None takes the margin of the unit in
            `MARGINS`, or 0 for another unit.
    """

    label: str
    unit: str
    values: np.ndarray
    group: str = ""
    threshold: float | None = None
    slope: int = 0
    margin: float | None = None


@dataclass(frozen=True)
class Effect:
    """The estimate of one comparison over the networks.

    Intervals and p-values are NaN if fewer than two networks define the comparison.

    Attributes:
        label: the comparison in words; a positive mean supports the claim.
        unit: "accuracy points", "nat", "correlation" or "log ratio", or the unit that your claim names.
        values: value of each network, in the order of the seeds; NaN if it is undefined.
        num_networks: number of networks where the comparison is defined.
        mean: mean over these networks; NaN if there is none.
        low, high: 95% t-interval of the mean.
        p: p-value of a two-sided one-sample t-test against 0; of a sign test if all values are equal.
        p_holm: p-value corrected by Holm's method over the comparisons of the claim.
        verdict: "no difference" if the 90% interval lies inside of the margin. Otherwise "holds" for a positive mean
            with p < 0.05; "does not hold" for a negative mean with p_holm < 0.05, or "reversed" if its whole group is
            opposed; "undecided" in all other cases.
        threshold: a bound that the paper does not give; `measured` is compared with it. None without one.
        slope: as in `Comparison`.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    num_networks: int
    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    verdict: str = UNDECIDED
    threshold: float | None = None
    slope: int = 0

    @property
    def measured(self) -> float:
        """The mean of the quantity that is compared with the threshold; the mean itself without a threshold."""
        return self.mean if self.threshold is None else self.threshold - self.slope * self.mean


def family_verdicts(estimated: Estimate, margins: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the verdicts on families of comparisons, text [..., test].

    Args:
        estimated: the effects, arrays [..., test]; the last axis is a family.
        margins: for each comparison [test].
        groups: name of the group of each comparison, "" for none.
    """
    mean = estimated.mean
    # Values that are equal in all networks leave nothing to test: the value decides.
    p_values = np.where((estimated.standard_error == 0) & (mean != 0), 0.0, estimated.p_value)
    corrected = holm_of_families(p_values)
    # A claim holds only if all its comparisons hold, so a raw p-value suffices there. It does not hold if any
    # comparison fails, and any of many may fail by chance.
    failed = (mean < 0) & (corrected < LEVEL)
    same = estimated.equivalence_p_value(margins) < LEVEL
    opposed = np.zeros(mean.shape, bool)
    for group in {*groups} - {""}:
        members = [i for i, name in enumerate(groups) if name == group]
        opposed[..., members] = (failed & ~same)[..., members].all(axis=-1, keepdims=True)
    return np.select(
        [same, (mean > 0) & (p_values < LEVEL), opposed, failed], [NO_DIFFERENCE, HOLDS, REVERSED, FAILS], UNDECIDED
    )


def estimate_family(family: Sequence[Comparison]) -> Estimate:
    """Estimate the effects of comparisons over the networks, arrays [test]."""
    # A comparison can be undefined in a network, for example the mean score of a layer without a defined score. Such a
    # network is left out of this comparison only.
    return estimate(np.stack([comparison.values for comparison in family], axis=1))


def margins_of(family: Sequence[Comparison]) -> np.ndarray:
    """Return the margin of each comparison."""
    return np.array([MARGINS.get(c.unit, 0.0) if c.margin is None else c.margin for c in family])


def judge_family(family: Sequence[Comparison]) -> list[Effect]:
    """Judge the comparisons of one claim, in one kind of network under one protocol.

    Args:
        family: all comparisons of the claim; the p-values are corrected over them.

    Returns:
        One `Effect` for each comparison.
    """
    estimated = estimate_family(family)
    verdicts = family_verdicts(estimated, margins_of(family), [comparison.group for comparison in family])
    low, high = estimated.interval()
    p_values = estimated.p_value
    columns = estimated.num_networks, estimated.mean, low, high, p_values, holm(p_values)
    return [
        Effect(
            comparison.label,
            comparison.unit,
            tuple(map(float, comparison.values)),
            int(number),
            *map(float, numbers),
            verdict=str(verdict),
            threshold=comparison.threshold,
            slope=comparison.slope,
        )
        for comparison, number, *numbers, verdict in zip(family, *columns, verdicts, strict=True)
    ]
