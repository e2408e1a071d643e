"""Predict ablated units from the kept units of their site: the algebra of `ja.fills.LinearFill`, in float64 NumPy.

Input: the covariance C of a site's activations, a ridge, and masks or the order in which units are ablated.
Output: weights of predictions, bases in which ablating one more unit is a rank-one update, and measures of how well
units are predicted.

In formulas, K are the kept units, G the ablated ones, and lambda is the ridge times the mean of the diagonal of C.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
from threadpoolctl import ThreadpoolController

from jaxablate._checks import (
    InputError,
    describe_value,
    host_array,
    host_numbers,
    require,
    require_finite,
    require_fraction,
    require_shape,
)
from jaxablate.fills import LinearFill

__all__ = ["effective_rank", "elimination_ranks", "predictors", "r_squared", "unique_variances"]

SMALLEST_RIDGE = 1e-12  # rounding errors of float64 would show with a smaller ridge


class Basis(NamedTuple):
    """A basis in which ablating one more unit of a site changes its compensated outputs by a single term.

    Let c = h - mu [unit] be the centred activations, and gone the mask of the units ablated so far. The compensated
    outputs are (S - columns diag(gone) residuals) c in the ablated units, and c in the kept units. S c are the
    compensated outputs at the start: S is the identity for `order_basis`, and equals `columns` for `removal_basis`.
    Ablating unit j then changes the compensated outputs by -e_j columns[:, j]. Here e_j = residuals[j] c is the part of
    unit j that the remaining units do not predict.

    Attributes:
        columns: [unit, unit]; column j holds the factor of e_j in every unit.
        residuals: [unit, unit]; row j maps c to e_j.
    """

    columns: np.ndarray
    residuals: np.ndarray


@functools.cache
def _blas() -> ThreadpoolController:
    """Return the control of the threads of NumPy's and SciPy's BLAS.

    Beside an ablation they are limited to one. The others would keep their cores busy for some milliseconds after each
    call, when the ablation needs them, and the systems of a layer are small enough for one.
    """
    return ThreadpoolController()


def check_ridge(ridge: object) -> None:
    """Raise `InputError` unless a ridge is a finite number of at least `SMALLEST_RIDGE`."""
    require(
        isinstance(ridge, int | float | np.number) and SMALLEST_RIDGE <= float(ridge) < np.inf,
        f"ridge: expected a number from {SMALLEST_RIDGE:g}, got {describe_value(ridge)}",
    )


def check_linear_fill(fill: LinearFill, sites: Mapping[str, int], leading: tuple[int, ...]) -> LinearFill:
    """Return a linear fill after checks, with a leading axis [network] and arrays in float64.

    Args:
        fill: the fill, with a leading axis for several networks.
        sites: number of units of each site, by name.
        leading: (number of networks,), or () for one network without a leading axis.

    Raises:
        InputError: for arrays that do not fit the sites, values that are NaN or infinite, an array that cannot be a
            covariance, or a ridge that is too small.
    """
    check_ridge(fill.ridge)
    try:
        *covariances, means = (np.asarray(array, np.float64) for array in (*fill.covariances, fill.means))
    except (TypeError, ValueError):
        raise InputError("fill: expected arrays; ja.compute_fill(model, 'linear', images) makes them") from None
    shapes = [array.shape for array in (*covariances, means)]
    expected = [*((*leading, size, size) for size in sites.values()), (*leading, sum(sites.values()))]
    require(
        shapes == expected,
        f"fill: expected covariances of shapes {expected[:-1]} and means {expected[-1]}, got {shapes[:-1]} and "
        f"{shapes[-1]}; compute the fill for this model",
    )
    require_finite("fill means", means)
    for site, covariance in zip(sites, covariances, strict=True):
        require_finite(f"fill of site {site!r}", covariance)
        # Cholesky reads one triangle only, so the symmetry needs a check of its own.
        tolerance = 1e-9 * np.abs(covariance).max(axis=(-2, -1), keepdims=True, initial=0)
        is_covariance = np.allclose(covariance, covariance.mT, rtol=1e-6, atol=tolerance)
        try:
            with _blas().limit(limits=1, user_api="blas"):
                np.linalg.cholesky(regularize(covariance, fill.ridge))
        except np.linalg.LinAlgError:
            is_covariance = False
        require(is_covariance, f"fill of site {site!r}: expected a covariance, symmetric, no negative eigenvalues")
    by_network = tuple(covariance.reshape(-1, *covariance.shape[-2:]) for covariance in covariances)
    return LinearFill(means.reshape(-1, means.shape[-1]), by_network, float(fill.ridge))


def _check_covariance(argument: str, covariance: np.ndarray, ridge: object = SMALLEST_RIDGE) -> np.ndarray:
    """Return a covariance [unit, unit] in float64; raise unless it is a finite square matrix and the ridge a number."""
    check_ridge(ridge)
    matrix = host_numbers(argument, covariance).astype(np.float64)
    require_shape(argument, matrix, (len(matrix) if matrix.ndim else None,) * 2, "unit, unit")
    require_finite(argument, matrix)
    return matrix


def regularize(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return C + lambda I from C, both float64 [..., unit, unit], with lambda from `penalty`."""
    return covariance + penalty(covariance, ridge)[..., None, None] * np.eye(covariance.shape[-1])


def penalty(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return lambda [...]: the ridge times the mean of the diagonal of C [..., unit, unit].

    A site whose units are all constant gets lambda = 1: its predictions are the means.
    """
    mean_variance = np.trace(covariance, axis1=-2, axis2=-1) / covariance.shape[-1]
    return np.where(mean_variance > 0, ridge * mean_variance, 1.0)


def predictors(covariance: np.ndarray, ridge: float, keep: np.ndarray) -> np.ndarray:
    """Return the weights with which kept units predict ablated units.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        keep: bool [mask, unit], True = kept.

    Returns:
        float32 [mask, unit, unit]: the weight of the first unit in the prediction of the second. For each mask the
        block [K, G] is (C_KK + lambda I)^-1 C_KG, and all other entries are 0.
    """
    covariance = _check_covariance("covariance", covariance, ridge)
    keep = host_array("keep", keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    require_shape("keep", keep, (None, len(covariance)), "mask, unit")
    weights, regularized = np.zeros((*keep.shape, keep.shape[1]), np.float32), regularize(covariance, ridge)
    for i, kept in enumerate(keep):
        inner, outer = np.ix_(kept, kept), np.ix_(kept, ~kept)
        weights[i][outer] = np.linalg.solve(regularized[inner], covariance[outer])
    return weights


def order_basis(covariance: np.ndarray, ridge: float, gone: np.ndarray) -> Basis:
    """Return the basis for ablating some units one after another, if all units are kept at the start.

    Sort the units so that those ablated later come first, and let C + lambda I = L D L^T with unit lower triangular L.
    At every step the kept units K then come before the ablated units G, and L_GK L_KK^-1 are the weights that predict G
    from K. So columns = L and residuals = L^-1.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        gone: int [rank], distinct units in the order of their ablation.

    Returns:
        The basis, float64 and in the site's order of units.
    """
    order = np.concatenate([np.setdiff1d(np.arange(len(covariance)), gone), gone[::-1]])
    with _blas().limit(limits=1, user_api="blas"):
        lower = scipy.linalg.cholesky(regularize(covariance, ridge)[np.ix_(order, order)], lower=True)
        # Cholesky returns L sqrt(D). Each column is divided by its diagonal entry, which leaves L.
        lower /= np.diag(lower)
        inverse = scipy.linalg.solve_triangular(lower, np.eye(len(order)), lower=True)
    places = np.argsort(order)  # the place of each unit in `order`
    return Basis(lower[np.ix_(places, places)], inverse[np.ix_(places, places)])


def removal_basis(covariance: np.ndarray, ridge: float, keep: np.ndarray) -> Basis:
    """Return the basis for ablating any single unit in addition to the units that `keep` already removes.

    With P = (C_KK + lambda I)^-1, the residual of unit j given all other kept units is sum_i P_ji c_i / P_jj.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        keep: bool [unit], True = kept at the start.

    Returns:
        The basis, float64.
    """
    # Column j: unit j itself, and its weight in the prediction of every unit that is already ablated.
    columns = np.diag(keep.astype(float)) + predictors(covariance, ridge, keep[None])[0].T
    residuals, places = np.zeros_like(columns), np.ix_(keep, keep)
    precision = np.linalg.inv(regularize(covariance, ridge)[places])
    residuals[places] = precision / np.diag(precision)[:, None]
    return Basis(columns, residuals)


def unique_variances(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return the variance of each unit j that the other units do not predict: 1 / (C + lambda I)^-1_jj - lambda.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.

    Returns:
        float64 [unit], at least 0, in the squared unit of activations.

    Example:
        >>> covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
        >>> ja.linear_compensation.unique_variances(covariance, 1e-9).round(6)
        array([0.36, 0.36])
    """
    covariance = _check_covariance("covariance", covariance, ridge)
    precision = np.linalg.inv(regularize(covariance, ridge))
    return np.maximum(1 / np.diag(precision) - penalty(covariance, ridge), 0)


def elimination_ranks(covariance: np.ndarray, ridge: float, weights: np.ndarray) -> np.ndarray:
    """Return the steps of a greedy elimination: each step removes the unit that changes the next linear map least.

    The saliency of a unit is (v + lambda) times the squared norm of its outgoing weights. Here v is the variance of the
    unit that the remaining units do not predict. After a removal, each remaining unit adds to its own weights the
    removed unit's weights, times its coefficient in the prediction of the removed unit. In a tie, the unit with the
    lower id is removed.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        weights: float [unit, ...], the outgoing weights of each unit.

    Returns:
        int [unit], the step 0, 1, ... at which each unit is removed.

    Source: B. Hassibi and D. Stork, Optimal Brain Surgeon (1992), for the squared error of the next pre-activation.

    Example:
        >>> covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 0.5]])
        >>> ja.linear_compensation.elimination_ranks(covariance, 1e-9, np.ones((3, 1)))
        array([0, 2, 1])
    """
    covariance = _check_covariance("covariance", covariance, ridge)
    precision = np.linalg.inv(regularize(covariance, ridge))
    weights = host_numbers("weights", weights).astype(np.float64)
    require_shape("weights", weights, (len(covariance), *weights.shape[1:]), "unit, ...")
    weights = weights.reshape(len(covariance), -1)
    ranks, remaining = np.empty(len(covariance), int), np.ones(len(covariance), bool)
    for step in range(len(covariance)):
        # 1 / P_jj = v_j + lambda, the factor of the saliency. Rows of removed units are 0 up to rounding.
        pivots = np.diag(precision)
        saliency = np.divide((weights**2).sum(axis=1), pivots, out=np.full(len(pivots), np.inf), where=remaining)
        unit = int(saliency.argmin())
        ranks[unit], remaining[unit] = step, False
        # Removing a row from the system that is inverted is a rank-one change of the inverse.
        coefficients = -precision[unit] / pivots[unit]
        weights += np.outer(np.where(remaining, coefficients, 0), weights[unit])
        precision -= np.outer(precision[unit], precision[unit]) / pivots[unit]
    return ranks


def r_squared(
    covariance: np.ndarray, ridge: float, means: np.ndarray, test_covariance: np.ndarray, test_means: np.ndarray
) -> np.ndarray:
    """Return the fraction of each unit's variance that the other units of its site predict on test examples.

    Args:
        covariance, means: float64 [unit, unit] and [unit], from the examples to which the prediction is fitted.
        ridge: as in `ja.fills.LinearFill`.
        test_covariance, test_means: the same, from the test examples.

    Returns:
        float64 [unit], at most 1. It is below 0 if the mean over the test examples predicts better, and NaN for a unit
        that is constant on the test examples.

    Example:
        >>> covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
        >>> ja.linear_compensation.r_squared(covariance, 1e-9, np.zeros(2), covariance, np.zeros(2)).round(6)
        array([0.64, 0.64])
    """
    covariance = _check_covariance("covariance", covariance, ridge)
    test_covariance = _check_covariance("test_covariance", test_covariance)
    means, test_means = host_numbers("means", means), host_numbers("test_means", test_means)
    for name, array in (("test_covariance", test_covariance[0]), ("means", means), ("test_means", test_means)):
        require_shape(name, array, (len(covariance),), "unit")
    # e = r (h - means) for each row r of the residuals, so E[e^2] = r E[(h - means) (h - means)^T] r^T: the means and
    # covariance of the test examples suffice.
    residuals = removal_basis(covariance, ridge, np.ones(len(covariance), bool)).residuals
    shift = test_means - means
    errors = ((residuals @ (test_covariance + np.outer(shift, shift))) * residuals).sum(axis=1)
    variances = np.diag(test_covariance)
    constant = variances <= 1e-12 * variances.max(initial=0)
    return 1 - np.divide(errors, variances, out=np.full(len(errors), np.nan), where=~constant)


def effective_rank(covariance: np.ndarray, share: float = 0.99) -> int:
    """Return the smallest number of principal components that hold a given fraction of a site's variance.

    Args:
        covariance: float64 [unit, unit].
        share: the fraction, in (0, 1].

    Returns:
        The number of components; 0 if all units are constant.

    Example:
        >>> ja.linear_compensation.effective_rank(np.diag([9.0, 0.5, 0.5]), 0.9)
        1
    """
    covariance = _check_covariance("covariance", covariance)
    require_fraction("share", share)
    # Rounding can make an eigenvalue slightly negative. It can also make the last sum smaller than `total`, so the
    # limit has a tolerance.
    variances = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)
    total = variances.sum()
    return int(np.searchsorted(np.cumsum(variances), share * total * (1 - 1e-12)) + 1) if total > 0 else 0
