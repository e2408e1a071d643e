"""Compare independently trained networks: differences, intervals, tests, and summaries of accuracy curves.

The unit of replication is a network. An interval covers the randomness of training; it does not cover another split or
another test set.

Input: arrays [network, ...], or curves [..., step].
Output: `Estimate`s [...], p-values and summaries [...].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special  # scipy.stats takes ten times as long to import

from jaxablate._checks import host_numbers, require, require_count, require_number, short_repr

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "auc",
    "estimate",
    "false_discovery_rate",
    "first_step_below",
    "holm",
    "normalized_auc",
    "paired_difference",
    "sign_flip_test",
    "unpaired_difference",
]

CONFIDENCE = 0.95
SMALLEST_FALL = 1.0
"""Smallest fall of accuracy over a whole scope, in points, for which a normalized AUC is defined."""

Values = Float[np.ndarray, "network ..."]
Numbers = Float[np.ndarray, "..."]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean, or a difference of two means, with what its t-tests need; every array is [...].

    Attributes:
        mean: the estimate; NaN without any value.
        standard_error: its standard error; NaN if it cannot be estimated.
        degrees_of_freedom: degrees of freedom of the t-distribution.
        num_networks: number of networks, or of pairs of networks, with a value. For an unpaired difference, the smaller
            number of the two groups.
    """

    mean: Numbers
    standard_error: Numbers
    degrees_of_freedom: Numbers
    num_networks: np.ndarray

    __repr__ = short_repr

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Numbers, Numbers]:
        """Return the ends of the t-interval of the mean, each [...]; NaN for fewer than two networks."""
        half = special.stdtrit(self.degrees_of_freedom, (1 + confidence) / 2) * self.standard_error
        return np.asarray(self.mean - half), np.asarray(self.mean + half)

    def prediction_interval(self) -> tuple[Numbers, Numbers]:
        """Return the ends of the 95% prediction interval of one new network, each [...]; not for unpaired groups.

        Source: Hahn and Meeker (1991), Statistical Intervals, section 4.
        """
        # the interval of the mean has t * s / sqrt(n), that of one new network t * s * sqrt(1 + 1/n)
        low, _ = self.interval()
        half = (self.mean - low) * np.sqrt(self.num_networks + 1)
        return np.asarray(self.mean - half), np.asarray(self.mean + half)

    @property
    def p_value(self) -> Numbers:
        """The p-value [...] of the two-sided t-test that the mean is 0; NaN for fewer than two networks.

        If all values are equal, a t-test is impossible. The p-value is then that of a sign test.
        """
        # n differences of one sign have probability 2 * 0.5^n if each sign is equally likely
        sign_test = np.where(self.mean == 0, 1.0, 2 * 0.5**self.num_networks)
        return np.where(self.standard_error > 0, 2 * self._tail(-abs(self.mean)), self._defined(sign_test))

    def equivalence_p_value(self, margin: float | Numbers) -> Numbers:
        """Return the p-value [...] of two one-sided t-tests that the mean lies outside of (-margin, margin).

        It is below 0.05 exactly if the 90% interval lies inside of the margin.

        Source: Schuirmann (1987), A comparison of the two one-sided tests procedure and the power approach.
        """
        inside = np.where(abs(self.mean) < margin, 0.0, 1.0)
        return np.where(self.standard_error > 0, self._tail(abs(self.mean) - margin), self._defined(inside))

    def _tail(self, distance: Any) -> Numbers:
        """Return the probability that a t-distributed mean lies below a distance from the tested value."""
        scale = np.where(self.standard_error > 0, self.standard_error, np.nan)
        return np.asarray(special.stdtr(self.degrees_of_freedom, distance / scale))

    def _defined(self, values: np.ndarray) -> Numbers:
        """Return values that are NaN where the standard error is."""
        return np.where(np.isnan(self.standard_error), np.nan, values)


def estimate(values: Values) -> Estimate:
    """Estimate the mean over networks.

    Args:
        values: float [network, ...], in any unit. NaN marks a network that does not define the value; NaN and infinity
            are left out.

    Returns:
        An `Estimate` [...].

    Raises:
        InputError: for an array without an axis.

    Example:
        >>> low, high = ja.statistics.estimate(np.array([1.0, 2.0, 3.0])).interval()
        >>> round(float(low), 2), round(float(high), 2)
        (-0.48, 4.48)
    """
    mean, variance, number = _moments("values", values)
    return _estimate(mean, variance / np.maximum(number, 1), np.maximum(number - 1.0, 1), number)


def paired_difference(first: Values, second: Values) -> Estimate:
    """Estimate the mean of first minus second, paired within networks.

    Pairing is right if both values of a pair come from the same network, or from networks that share seed, data and
    split. It removes the variation between networks.

    Args:
        first, second: float [network, ...], of the same shape and unit. A pair with NaN or infinity is left out.

    Returns:
        An `Estimate` [...].

    Raises:
        InputError: for arrays of different shapes.

    Example:
        >>> first, second = np.array([90.0, 93.0, 96.0]), np.array([89.0, 91.0, 93.0])
        >>> float(ja.statistics.paired_difference(first, second).mean)
        2.0
    """
    first, second = (host_numbers(n, v).astype(np.float64) for n, v in (("first", first), ("second", second)))
    require(
        first.shape == second.shape,
        f"second: expected shape {first.shape} as in the first, got {second.shape}; for other networks take "
        "unpaired_difference",
    )
    with np.errstate(invalid="ignore"):  # the difference of two infinities is NaN
        return estimate(first - second)


def unpaired_difference(first: Values, second: Float[np.ndarray, "network2 ..."]) -> Estimate:
    """Estimate the mean of first minus the mean of second, for two groups of unrelated networks (Welch).

    Args:
        first, second: float [network, ...], of the same unit; the numbers of networks may differ. NaN and infinity
            are left out.

    Returns:
        An `Estimate` [...].

    Raises:
        InputError: if the shapes differ after the first axis.

    Source: Welch (1947), The generalization of "Student's" problem when several different population variances are
        involved.

    Example:
        >>> difference = ja.statistics.unpaired_difference(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0]))
        >>> float(difference.mean), int(difference.num_networks)
        (1.5, 2)
    """
    (mean, variance, number), (mean2, variance2, number2) = _moments("first", first), _moments("second", second)
    expected = ", ".join(["network", *map(str, mean.shape)])
    require(mean.shape == mean2.shape, f"second: expected shape [{expected}], got {np.shape(second)}")
    squares, squares2 = variance / np.maximum(number, 1), variance2 / np.maximum(number2, 1)
    total = squares + squares2
    # the degrees of freedom of Welch and Satterthwaite; without any variance they do not matter
    parts = squares**2 / np.maximum(number - 1, 1) + squares2**2 / np.maximum(number2 - 1, 1)
    degrees = np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1), 1.0)
    return _estimate(mean - mean2, total, degrees, np.minimum(number, number2))


def _estimate(mean: Any, squared_error: Any, degrees_of_freedom: Any, num_networks: Any) -> Estimate:
    """Return an estimate of arrays: NumPy makes numbers of arrays without an axis."""
    arrays = map(np.asarray, (mean, np.sqrt(squared_error), degrees_of_freedom, num_networks))
    return Estimate(*arrays)


def _moments(name: str, values: Any) -> tuple[Any, Any, Any]:
    """Return mean, sample variance (NaN for fewer than two values) and number of the values that are not NaN."""
    values = host_numbers(name, values).astype(np.float64)
    require(values.ndim > 0, f"{name}: expected an array [network, ...], got a number")
    defined = np.isfinite(values)
    number = defined.sum(axis=0)
    # written without a division by zero: np.nanmean would warn of an empty mean
    mean = np.where(defined, values, 0).sum(axis=0) / np.where(number > 0, number, np.nan)
    squares = np.where(defined, (values - mean) ** 2, 0).sum(axis=0)
    variance = squares / np.where(number > 1, number - 1, np.nan)
    # Equal values differ from their mean by rounding only; their variance is 0.
    spread = np.where(defined, values, -np.inf).max(axis=0, initial=-np.inf) - np.where(defined, values, np.inf).min(
        axis=0, initial=np.inf
    )
    return mean, np.where((number > 1) & (spread < 1e-9), 0, variance), number


def holm(p_values: Numbers) -> Numbers:
    """Correct the p-values of a family of tests, so that the chance of any false rejection stays below the level.

    Args:
        p_values: float [test]; NaN marks a test that was not made and does not count.

    Returns:
        float64 [test], never smaller than `p_values`; NaN stays NaN.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).

    Example:
        >>> ja.statistics.holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    p_values = host_numbers("p_values", p_values).astype(np.float64)
    require(p_values.ndim == 1, f"p_values: expected shape [test], got {p_values.shape}")
    return holm_of_families(p_values)


def holm_of_families(p_values: Numbers) -> np.ndarray:
    """Correct the p-values of many families [..., test] as `holm` does; the last axis is a family."""
    # The i-th smallest of m p-values is multiplied by m - i; the running maximum keeps the order of the p-values.
    # NaN is sorted to the end, where it changes no other number.
    order = np.argsort(p_values, axis=-1, kind="stable")
    made = np.sum(~np.isnan(p_values), axis=-1, keepdims=True)
    products = (made - np.arange(p_values.shape[-1])) * np.take_along_axis(p_values, order, axis=-1)
    corrected = np.empty_like(products)
    np.put_along_axis(corrected, order, np.minimum(np.maximum.accumulate(products, axis=-1), 1), axis=-1)
    return corrected


def false_discovery_rate(p_values: Numbers) -> Numbers:
    """Correct p-values so that the expected fraction of false rejections among all rejections stays below the level.

    Args:
        p_values: float [test]; NaN marks a test that was not made and does not count.

    Returns:
        float64 [test], never smaller than `p_values`; NaN stays NaN.

    Source: Benjamini and Hochberg (1995); it holds for independent and for positively dependent tests.

    Example:
        >>> ja.statistics.false_discovery_rate(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.04, 0.04]
    """
    from scipy import stats

    corrected = host_numbers("p_values", p_values).astype(np.float64)
    require(corrected.ndim == 1, f"p_values: expected shape [test], got {corrected.shape}")
    require(not ((corrected < 0) | (corrected > 1)).any(), "p_values: expected numbers in 0..1, got others")
    made = ~np.isnan(corrected)
    if made.any():
        corrected[made] = stats.false_discovery_control(corrected[made])
    return corrected


def sign_flip_test(values: Float[np.ndarray, "network"], *, num_resamples: int = 9999, seed: int = 0) -> float:
    """Test that paired differences are symmetric around 0, without the assumption of a normal distribution.

    With n networks the smallest p-value is 2 * 0.5^n: five networks cannot give less than 0.0625.

    Args:
        values: float [network], one difference for each network; NaN is left out.
        num_resamples: number of random sign flips; all 2^n are used if there are not more.
        seed: seed of the random sign flips.

    Returns:
        The two-sided p-value; NaN for fewer than two networks.

    Example:
        >>> ja.statistics.sign_flip_test(np.array([0.4, 0.6, 0.5, 0.7, 0.3]))
        0.0625
    """
    from scipy import stats

    values = host_numbers("values", values).astype(np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan")
    result = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=require_count("num_resamples", num_resamples),
        rng=np.random.default_rng(require_count("seed", seed, 0)),
    )
    return float(result.pvalue)


def auc(accuracy: Float[np.ndarray, "*curve step"]) -> Numbers:
    """Return the area under curves: the mean accuracy over all steps but the first, in percent.

    At the first step nothing is ablated.

    Args:
        accuracy: fractions [..., step]; NaN marks steps after the last neuron of a scope, which do not count.

    Returns:
        float64 [...] in 0..100; differences are accuracy points.

    Example:
        >>> float(ja.statistics.auc(np.array([0.9, 0.8, 0.7])))
        75.0
    """
    mean, _, _ = _moments("accuracy", np.moveaxis(_curves(accuracy)[..., 1:], -1, 0))
    return np.asarray(100 * mean)


def normalized_auc(accuracy: Float[np.ndarray, "*curve step"], all_ablated: Numbers | float | None = None) -> Numbers:
    """Return the area under curves of different scopes on one scale: 1 for no loss, 0 for the loss of the whole scope.

    It is (AUC - A_all) / (A_0 - A_all), where A_0 is the accuracy of the intact network and A_all that with the whole
    scope ablated.

    Args:
        accuracy: fractions [..., step] over all steps of each scope, the intact network first; NaN marks steps after
            the last neuron.
        all_ablated: A_all as fractions that broadcast to [...]; None takes the last step of each curve. To compare
            fills, pass the same A_all for all of them, for example that of bias balancing.

    Returns:
        float64 [...]; NaN if A_0 - A_all is less than 1 accuracy point.

    Example:
        >>> round(float(ja.statistics.normalized_auc(np.array([0.9, 0.8, 0.1]))), 4)
        0.4375
    """
    curves = _curves(accuracy)
    if all_ablated is None:
        last = np.isfinite(curves).sum(axis=-1) - 1
        all_ablated = np.take_along_axis(curves, np.expand_dims(np.maximum(last, 0), -1), -1)[..., 0]
    lowest = 100 * host_numbers("all_ablated", all_ablated).astype(np.float64)
    fall = 100 * curves[..., 0] - lowest
    return np.asarray((auc(curves) - lowest) / np.where(fall >= SMALLEST_FALL - 1e-9, fall, np.nan))


def first_step_below(accuracy: Float[np.ndarray, "*curve step"], points: float) -> Numbers:
    """Return the number of ablated neurons at which a curve first lies some points below the intact network.

    Args:
        accuracy: fractions [..., step], the intact network first; NaN marks steps after the last neuron.
        points: accuracy points, for example 1, 5 or 10.

    Returns:
        float64 [...]: the first step, or infinity if no step lies that low ("> K" for K steps).

    Raises:
        InputError: for points that are not positive, or curves of fewer than two steps.

    Example:
        >>> ja.statistics.first_step_below(np.array([[0.9, 0.88, 0.7], [0.9, 0.9, 0.89]]), 5.0).tolist()
        [2.0, inf]
    """
    require_number("points", points)
    require(points > 0, f"points: {points} is not positive; choose above 0")
    curves = _curves(accuracy)
    # the tolerance absorbs the rounding of a difference of fractions
    below = 100 * (curves[..., :1] - curves) >= points - 1e-9
    return np.where(below.any(axis=-1), below.argmax(axis=-1), np.inf)


def _curves(accuracy: Any) -> np.ndarray:
    """Return curves as float64; raise unless they have at least two steps."""
    curves = host_numbers("accuracy", accuracy).astype(np.float64)
    require(
        curves.ndim > 0 and curves.shape[-1] >= 2,
        f"accuracy: expected curves [..., step] with at least two steps, got shape {curves.shape}",
    )
    return curves
