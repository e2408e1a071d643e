"""Mechanism: what stands behind a whole-network ranking. A network's results come in; arrays for figures go out.

Which layers a ranking takes its neurons from, and how well a score predicts the damage of ablating a neuron alone.
"""

import numpy as np
import xarray as xr

from jaxablate.results import NETWORK_SCOPE, confidence_interval


def layer_shares(network: xr.Dataset) -> xr.DataArray:
    """The share of each layer among the neurons that a whole-network order has ablated.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, ordering, rank, layer): among the first `rank` neurons of the order, the share of the layer;
        orderings that follow no order (a fresh random subset at every step) are left out.

    Example:
        >>> shares = ja.layer_analysis.layer_shares(results["3-layer-10-8-9"].to_dataset())
        >>> bool((abs(shares.sum("layer") - 1) < 1e-12).all())
        True
    """
    ablated = network["ablated"].sel(scope=NETWORK_SCOPE).drop_vars("scope")
    ablated = ablated.isel(ordering=np.flatnonzero((ablated >= 0).all(("seed", "rank"))))
    layers = np.unique(network["layer"])
    found = network["layer"].values[ablated.values][..., None] == layers
    shares = found.cumsum(axis=2) / ablated["rank"].values[:, None]
    dims = (*ablated.dims, "layer_of_network")
    return xr.DataArray(shares, {**ablated.coords, "layer_of_network": layers}, dims).rename(layer_of_network="layer")


def lost_predictions(network: xr.Dataset) -> np.ndarray:
    """Correct predictions lost when a neuron alone is ablated, bias balanced: integers [seed, neuron]."""
    intact = network["correct"].isel(step=0, ordering=0, fill=0, scope=0).values
    return intact[:, None] - network["single_correct"].values


def damage_correlations(network: xr.Dataset) -> xr.DataArray:
    """Spearman's correlation of every score with the damage of ablating the neuron alone, bias balanced.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, score, scope): within each layer, and across all layers for the scope "network"; NaN where the
        scores, or the damage, of all neurons are equal. Neurons whose score is undefined are left out.

    Example:
        >>> ja.layer_analysis.damage_correlations(results["3-layer-10-8-9"].to_dataset()).dims
        ('seed', 'score', 'scope')
    """
    from scipy import stats

    scopes, damage = network["scope"].values, lost_predictions(network)
    found = np.full((network.sizes["seed"], network.sizes["score"], len(scopes)), np.nan)
    for (seed, metric, scope), _ in np.ndenumerate(found):
        scores = network["scores"].values[seed, metric]
        chosen = np.isfinite(scores)
        if scopes[scope] != NETWORK_SCOPE:
            chosen &= network["layer"].values == scope + 1
        x, y = scores[chosen], damage[seed, chosen]
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[seed, metric, scope] = stats.spearmanr(x, y).statistic  # pyright: ignore[reportAttributeAccessIssue]
    coords = {name: network[name].values for name in ("seed", "score", "scope")}
    return xr.DataArray(found, coords, list(coords))


def mean_and_interval(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Mean over networks, and the ends of its 95 % t-interval.

    Args:
        values: (seed, ...); NaN where a network leaves the value undefined.

    Returns:
        Mean, low and high (...); NaN without any network, and the interval as narrow as the mean with one.

    Example:
        >>> mean, low, high = ja.layer_analysis.mean_and_interval(ja.results.auc(results["2-layer-12-10"].to_dataset()))
        >>> bool((low <= mean).all()), mean.dims
        (True, ('scope', 'ordering', 'fill'))
    """
    values = values.transpose("seed", ...)
    stacked = values.values.reshape(values.sizes["seed"], -1)
    found = np.full((3, stacked.shape[1]), np.nan)
    known = np.isfinite(stacked)
    for of_network in np.unique(known, axis=1).T:  # the columns that the same networks define, together
        columns = np.flatnonzero((known == of_network[:, None]).all(axis=0))
        values_there = stacked[np.ix_(of_network, columns)]
        if of_network.any():
            found[:, columns] = values_there.mean(axis=0)
        if of_network.sum() > 1:
            found[1:, columns] = confidence_interval(values_there)
    template = values.isel(seed=0, drop=True)
    mean, low, high = (template.copy(data=row.reshape(template.shape)) for row in found)
    return mean, low, high
