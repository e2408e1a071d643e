"""Summarize results for figures and tables, which only draw and print.

Input: results, or one network of them.
Output: areas, curves with bands, and rows of tables.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.results._labels import RANDOM, protocols_of, select_protocol
from jaxablate.statistics import estimate

INTERVAL = "95% t-interval of the mean"  # the words for `Estimate.interval`
ORDERS_BAND = (0.1, 0.9)  # quantiles over random orders, where there is one network only


def balanced_fill(network: xr.Dataset) -> str:
    """Return the name of the fill of bias balancing: "mean", or "scaled" if the protocol scales by the firing rate.

    Example:
        >>> ja.results.balanced_fill(results["2-layer-12-10"].to_dataset())
        'mean'
    """
    return next(str(name) for name in network["fill"].values if name != "zero")


def auc(network: xr.Dataset) -> xr.DataArray:
    """Return the area under each curve: the mean accuracy over all steps but the first, in percent.

    At the first step nothing is ablated. A scope with fewer neurons than steps ends with its last neuron.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, scope, ordering, fill) in 0..100; differences are accuracy points.

    Example:
        >>> ja.results.auc(results["2-layer-12-10"].to_dataset()).dims
        ('seed', 'scope', 'ordering', 'fill')
    """
    return 100 * network["accuracy"].isel(step=slice(1, None)).mean("step")


@dataclass(frozen=True)
class Curve:
    """The mean accuracy against the number of ablated neurons; every array is [step].

    Attributes:
        step: number of ablated neurons.
        mean: mean accuracy over networks and random orders, a fraction.
        low, high: band around the mean. With several networks, the 95% t-interval of the mean over networks; with one
            network, the 10% and 90% quantiles over its random curves.
        band: name of the band; empty without a band (one network and one order).
        sd_networks: standard deviation between networks, without the variation between random orders; NaN for one
            network.
        sd_orders: standard deviation between the random orders of a network; NaN for one order.
        num_networks: number of networks, one for each seed.
        num_orders: number of random orders of each network; 1 for a ranking.
    """

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band: str
    sd_networks: np.ndarray
    sd_orders: np.ndarray
    num_networks: int
    num_orders: int


def curve(network: xr.Dataset, *, scope: str, ranking: str, direction: str, fill: str) -> Curve:
    """Summarize the accuracy curves of one network, scope, ordering and fill.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.
        scope: name of a layer or site, for example "layer1", or "network".
        ranking: name of a score, or "random" for all random orders together.
        direction: "low" or "high"; ignored for "random".
        fill: name of a fill, for example "zero" or "mean".

    Returns:
        A `Curve` over the steps.

    Raises:
        InputError: for a scope, ranking, direction or fill that is not in the results.

    Example:
        >>> network = results["2-layer-12-10"].to_dataset()
        >>> ja.results.curve(network, scope="layer1", ranking="random", direction="low", fill="mean").num_orders
        3
    """
    for kind, value, known in (
        ("scope", scope, network["scope"].values),
        ("ranking", ranking, np.unique(network["ranking"].values)),
        ("fill", fill, network["fill"].values),
        ("direction", "low" if ranking == RANDOM else direction, ("low", "high")),
    ):
        require_known(kind, value, map(str, known))
    # [seed, ordering, step]: the chosen orderings are one ranking, or all random repetitions.
    accuracy = (
        network["accuracy"].sel(scope=scope, fill=fill).isel(ordering=ordering_places(network, ranking, direction))
    )
    # a scope with fewer neurons than steps ends with its last neuron
    accuracy = accuracy.dropna("step", how="all").transpose("seed", "ordering", "step")
    return _summary(accuracy["step"].values, accuracy.values)


def ordering_places(network: xr.Dataset, ranking: str, direction: str) -> np.ndarray:
    """Return the places of an ordering along `ordering`; random repetitions count together, whatever the direction."""
    chosen = network["ranking"].values == ranking
    if ranking != RANDOM:
        chosen &= network["direction"].values == direction
    return np.flatnonzero(chosen)


def _summary(step: np.ndarray, values: np.ndarray) -> Curve:
    """Return the summary of accuracies [network, order, step]."""
    num_networks, num_orders, _ = values.shape
    # Networks are the independent samples. Random orders of one network share its weights, so they are averaged first.
    network_means = values.mean(axis=1)
    undefined = np.full(len(step), np.nan)
    order_variance = values.var(axis=1, ddof=1).mean(axis=0) if num_orders > 1 else undefined
    network_variance = undefined
    if num_networks > 1:
        # One-way random effects: the variance between the means of networks has two parts, the variance between
        # networks and the variance between orders divided by their number. The second part is subtracted.
        from_orders = order_variance / num_orders if num_orders > 1 else 0
        network_variance = np.maximum(network_means.var(axis=0, ddof=1) - from_orders, 0)
        low, high = estimate(network_means).interval()
        band = INTERVAL
    else:
        low, high = np.quantile(values[0], ORDERS_BAND, axis=0)
        band = f"{ORDERS_BAND[0]:.0%} to {ORDERS_BAND[1]:.0%} of {num_orders} random curves" if num_orders > 1 else ""
    return Curve(
        step,
        network_means.mean(axis=0),
        low,
        high,
        band,
        sd_networks=network_variance**0.5,
        sd_orders=order_variance**0.5,
        num_networks=num_networks,
        num_orders=num_orders,
    )


@dataclass(frozen=True)
class SummaryRow:
    """The mean accuracy of one network, scope, ordering and fill at some numbers of ablated neurons.

    Attributes:
        protocol, network, scope, fill: names as in the results.
        ranking: name of a score, or "random".
        direction: "low" or "high"; "" for random orders.
        accuracy: mean accuracy (a fraction) by number of ablated neurons, up to the number of neurons of the scope.
    """

    protocol: str
    network: str
    scope: str
    ranking: str
    direction: str
    fill: str
    accuracy: dict[int, float]


def summarize(results: xr.DataTree, steps: Sequence[int] = (0, 40, 80)) -> list[SummaryRow]:
    """Return the mean accuracy per protocol, network, scope, ordering and fill.

    Args:
        results: from `run_study` or `load_results`.
        steps: numbers of ablated neurons; a number beyond the last step means the last step.

    Returns:
        One row for each protocol, network, scope, ordering and fill; the random orders share a row.

    Raises:
        InputError: for a negative number.

    Example:
        >>> sorted(ja.results.summarize(results)[0].accuracy)[0]
        0
    """
    require(all(step >= 0 for step in steps), f"steps: {tuple(steps)} has negative numbers; choose 0 or more")
    rows = []
    for protocol in protocols_of(results):
        for name, node in select_protocol(results, protocol).children.items():
            network = node.to_dataset()
            last = int(network["step"][-1])
            # A set, because several numbers beyond the last step become the same one.
            row_steps = sorted({min(step, last) for step in steps})
            orderings = dict.fromkeys(
                (str(ranking), "" if ranking == RANDOM else str(direction))
                for ranking, direction in zip(network["ranking"].values, network["direction"].values, strict=True)
            )
            for scope, (ranking, direction), fill in itertools.product(
                map(str, network["scope"].values), orderings, map(str, network["fill"].values)
            ):
                mean = curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill).mean
                accuracy = {step: float(mean[step]) for step in row_steps if step < len(mean)}
                rows.append(SummaryRow(protocol, name, scope, ranking, direction, fill, accuracy))
    return rows
