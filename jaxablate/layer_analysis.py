"""Explain whole-network rankings by the layers of their neurons and by the damage of single neurons.

Input: the results of one architecture.
Output: arrays for figures: the layers that a ranking takes its neurons from, and the correlation of every score with
the damage of ablating only that neuron.
"""

import numpy as np
import xarray as xr

from jaxablate.results import NETWORK_SCOPE
from jaxablate.results._labels import require_network_results
from jaxablate.statistics import estimate

__all__ = ["damage_correlations", "layer_shares", "mean_and_interval"]


def layer_shares(network: xr.Dataset) -> xr.DataArray:
    """Return the fraction of each layer among the first neurons of every whole-network order.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, ordering, rank, layer) in 0..1: the fraction of the first `rank` neurons that are in the layer.
        Random curves that draw a fresh subset at every step follow no order and are left out.

    Example:
        >>> shares = ja.layer_analysis.layer_shares(results["3-layer-10-8-9"].to_dataset())
        >>> bool((abs(shares.sum("layer") - 1) < 1e-12).all())
        True
    """
    require_network_results(network)
    ablated = network["ablated"].sel(scope=NETWORK_SCOPE).drop_vars("scope")
    ablated = ablated.isel(ordering=np.flatnonzero((ablated >= 0).all(("seed", "rank"))))
    layers = np.unique(network["layer"])
    in_layer = network["layer"].values[ablated.values][..., None] == layers  # [seed, ordering, rank, layer]
    shares = in_layer.cumsum(axis=2) / ablated["rank"].values[:, None]
    return xr.DataArray(shares, {**ablated.coords, "layer": layers}, (*ablated.dims, "layer"))


def damage_correlations(network: xr.Dataset) -> xr.DataArray:
    """Return Spearman's correlation of every score with the damage of ablating only that neuron.

    The damage is the rise of the test loss in nats, with bias balancing. Lost predictions would be a poor damage: one
    neuron changes few predictions, and most of their change is noise.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, score, scope) in -1..1: within each layer, and over all layers for the scope "network". NaN if
        all scores or all damages are equal. Neurons with an undefined score are left out.

    Example:
        >>> ja.layer_analysis.damage_correlations(results["3-layer-10-8-9"].to_dataset()).dims
        ('seed', 'score', 'scope')
    """
    require_network_results(network)
    scopes, damage = network["scope"].values, network["single_damage"].values[:, None]
    scores = np.where(np.isfinite(network["scores"]), network["scores"], np.nan)
    # Rank correlation, since a score need not be proportional to the damage. Within a layer it compares like with like;
    # over the whole network it also shows whether scores of different layers are comparable.
    chosen = [(network["layer"].values == i + 1) | (scope == NETWORK_SCOPE) for i, scope in enumerate(scopes)]
    correlations = np.stack([spearman(scores[..., inside], damage[..., inside]) for inside in chosen], axis=-1)
    coords = {name: network[name].values for name in ("seed", "score", "scope")}
    return xr.DataArray(correlations, coords, list(coords))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation along the last axis, without the places where `first` is NaN.

    NaN for fewer than two values, for values that are all equal, or if `second` is NaN at a place that counts.
    """
    from scipy import stats

    defined, second = ~np.isnan(first), np.where(np.isnan(first), np.nan, second)
    mean = (defined.sum(axis=-1, keepdims=True) + 1) / 2  # tied values share the mean of their ranks
    ranks = (stats.rankdata(values, axis=-1, nan_policy="omit") for values in (first, second))
    x, y = (np.where(defined, rank - mean, 0) for rank in ranks)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.asarray((x * y).sum(axis=-1) / np.where(scale == 0, np.nan, scale))


def mean_and_interval(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return the mean over networks and the ends of its 95% t-interval.

    Args:
        values: (seed, ...); NaN marks a value that a network does not define, and is left out.

    Returns:
        Mean, low and high, each (...). All are NaN if no network defines the value; all are equal if only one network
        does.

    Example:
        >>> mean, low, high = ja.layer_analysis.mean_and_interval(ja.results.auc(results["2-layer-12-10"].to_dataset()))
        >>> bool((low <= mean).all()), mean.dims
        (True, ('scope', 'ordering', 'fill'))
    """
    values = values.transpose("seed", ...)
    estimated = estimate(values.values)
    ends = [np.where(estimated.num_networks > 1, end, estimated.mean) for end in estimated.interval()]
    template = values.isel(seed=0, drop=True)
    mean, low, high = (template.copy(data=part) for part in (estimated.mean, *ends))
    return mean, low, high
