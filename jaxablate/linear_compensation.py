"""Predict ablated units from the kept units of their site: the algebra of `ja.fills.LinearFill`, in float64 NumPy.

Input: the covariance of a site's activations, a ridge, masks or the sequence in which units are ablated.
Output: weights of predictions, and the basis in which ablating one more unit is a rank-one update.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Basis", "order_basis", "predictors", "regularize", "removal_basis"]

MASKS_AT_A_TIME = 32  # bounds the float64 systems that are solved together


class Basis(NamedTuple):
    """The compensated outputs of a site as units are ablated one by one.

    Let c = h - mu be centred activations [unit], and gone the units that are ablated. Kept units keep c, and ablated
    units get the rows of (start - columns diag(gone) residuals) c. To ablate unit j changes the compensated outputs by
    -e_j columns[:, j], where e_j = residuals[j] c is the part of unit j that the remaining units do not predict.

    Attributes:
        start: [unit, unit], predictions before the first unit is ablated.
        columns: [unit, unit], column j is the weight of e_j in every unit.
        residuals: [unit, unit], row j gives e_j.
    """

    start: np.ndarray
    columns: np.ndarray
    residuals: np.ndarray


def regularize(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return C + lambda I, float64 [unit, unit], with lambda = ridge times the mean of the diagonal of C.

    A site whose units are all constant gets lambda = 1: its predictions are the means.
    """
    mean_variance = float(np.trace(covariance)) / len(covariance)
    return covariance + (ridge * mean_variance if mean_variance > 0 else 1.0) * np.eye(len(covariance))


def predictors(covariance: np.ndarray, ridge: float, keep: np.ndarray) -> np.ndarray:
    """Return the weights with which kept units predict ablated units.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        keep: bool [mask, unit], True = kept.

    Returns:
        float32 [mask, kept unit, ablated unit], (C_KK + lambda I)^-1 C_KG, and 0 at all other places.
    """
    inner = regularize(covariance, ridge)
    diagonal = np.diag(np.diag(inner - covariance))
    weights = np.empty((*keep.shape, keep.shape[1]), np.float32)
    for i in range(0, len(keep), MASKS_AT_A_TIME):
        rows, columns = keep[i : i + MASKS_AT_A_TIME, :, None], keep[i : i + MASKS_AT_A_TIME, None, :]
        # Ablated units stay in the system with lambda on the diagonal and 0 elsewhere: all systems have one size.
        systems = np.where(rows & columns, covariance, 0) + diagonal
        weights[i : i + MASKS_AT_A_TIME] = np.linalg.solve(systems, np.where(rows & ~columns, covariance, 0))
    return weights


def order_basis(covariance: np.ndarray, ridge: float, gone: np.ndarray) -> Basis:
    """Return the basis for ablating the units `gone` in their sequence, all units being kept at the start.

    With the units in reverse order of ablation, C + lambda I = L D L^T with unit lower triangular L: the units that
    remain always come first, and L_GK L_KK^-1 are their predictions. So columns = L and residuals = L^-1.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        gone: int [rank], distinct units in the order of their ablation.
    """
    size = len(covariance)
    order = np.concatenate([np.setdiff1d(np.arange(size), gone), gone[::-1]])
    places = np.ix_(order, order)
    lower = np.linalg.cholesky(regularize(covariance, ridge)[places])
    lower /= np.diag(lower)
    columns, residuals = np.empty((size, size)), np.empty((size, size))
    columns[places], residuals[places] = lower, np.tril(np.linalg.inv(lower))
    return Basis(np.eye(size), columns, residuals)


def removal_basis(covariance: np.ndarray, ridge: float, keep: np.ndarray) -> Basis:
    """Return the basis for ablating any single unit in addition to those that `keep` already removes.

    With P = (C_KK + lambda I)^-1, the residual of unit j given all other kept units is sum_i P_ji c_i / P_jj.

    Args:
        covariance: float64 [unit, unit].
        ridge: as in `ja.fills.LinearFill`.
        keep: bool [unit], True = kept at the start.
    """
    start = np.diag(keep.astype(float)) + predictors(covariance, ridge, keep[None])[0].T.astype(float)
    residuals = np.zeros_like(start)
    kept = np.flatnonzero(keep)
    precision = np.linalg.inv(regularize(covariance, ridge)[np.ix_(kept, kept)])
    residuals[np.ix_(kept, kept)] = precision / np.diag(precision)[:, None]
    return Basis(start, start, residuals)


def stack(bases: Sequence[Basis]) -> Basis:
    """Stack bases along a new leading axis, in float32."""
    return Basis(*(np.stack(arrays).astype(np.float32) for arrays in zip(*bases, strict=True)))
