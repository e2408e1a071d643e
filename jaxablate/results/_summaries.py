"""Summaries: what figures and tables show of the results, so that those only draw and print."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.results._labels import RANDOM, protocols_of, select_protocol

CONFIDENCE = 0.95
ORDERS_BAND = (0.1, 0.9)  # quantiles over random orders, where there is one network only


def confidence_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % t-interval of the mean over the first axis, which has at least two values: low and high."""
    from scipy import stats

    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)
    return np.asarray(values.mean(axis=0) - half), np.asarray(values.mean(axis=0) + half)


def balanced_fill(network: xr.Dataset) -> str:
    """The name of the fill that is not zeros: "mean", or "scaled" where a protocol scales by the firing rate."""
    return next(str(name) for name in network["fill"].values if name != "zero")


def auc(network: xr.Dataset) -> xr.DataArray:
    """The area under each curve: its mean accuracy over all steps but the intact network's, in percent.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.

    Returns:
        float64 (seed, scope, ordering, fill); differences are accuracy points.

    Example:
        >>> ja.results.auc(results["2-layer-12-10"].to_dataset()).dims
        ('seed', 'scope', 'ordering', 'fill')
    """
    return 100 * network["accuracy"].isel(step=slice(1, None)).mean("step")


@dataclass(frozen=True)
class Curve:
    """Accuracy against ablated neurons, each array [step].

    Attributes:
        step: neurons ablated.
        mean: over networks (and random orders).
        low, high: the band: the 95 % t-interval of the mean over networks; with one network, the 10 % and 90 %
            quantiles over its random curves.
        band: what the band is, in words; empty where there is none (one network and one order).
        sd_networks: standard deviation between networks, the share of the random orders taken out; NaN for one network.
        sd_orders: standard deviation between the random orders of a network; NaN for one order.
        num_networks: networks, one for each seed.
        num_orders: random orders of each network, else 1.
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
    """Summarise the accuracy curves of one network, scope, ordering and fill.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.
        scope: `layer1`, ... or `network`.
        ranking: a metric, or `random` (all its repetitions together; the direction is then ignored).
        direction: "low" or "high".
        fill: "zero" or "mean" ("scaled" under a protocol that scales by the firing rate).

    Returns:
        A `Curve` over the steps.

    Raises:
        InputError: for a scope, ranking, direction or fill that the results do not have.

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
    chosen = network["ranking"] == ranking
    if ranking != RANDOM:
        chosen &= network["direction"] == direction
    accuracy = network["accuracy"].sel(scope=scope, fill=fill).isel(ordering=np.flatnonzero(chosen))
    return _summary(network["step"].values, accuracy.transpose("seed", "ordering", "step").values)


def _summary(step: np.ndarray, values: np.ndarray) -> Curve:
    """The summary of accuracies [network, order, step]."""
    num_networks, num_orders, _ = values.shape
    of_network = values.mean(axis=1)
    unknown = np.full(len(step), np.nan)
    of_orders = values.var(axis=1, ddof=1).mean(axis=0) if num_orders > 1 else unknown
    of_networks = unknown
    if num_networks > 1:
        # the mean of an order's accuracies varies too, and that is not the networks' doing
        excess = of_orders / num_orders if num_orders > 1 else 0
        of_networks = np.maximum(of_network.var(axis=0, ddof=1) - excess, 0)
        low, high = confidence_interval(of_network)
        band = "95 % t-interval of the mean"
    else:
        low, high = np.quantile(values[0], ORDERS_BAND, axis=0)
        band = f"{ORDERS_BAND[0]:.0%} to {ORDERS_BAND[1]:.0%} of {num_orders} random curves" if num_orders > 1 else ""
    return Curve(
        step, of_network.mean(axis=0), low, high, band, of_networks**0.5, of_orders**0.5, num_networks, num_orders
    )


@dataclass(frozen=True)
class SummaryRow:
    """Mean accuracy of one network, scope, ordering and fill at chosen numbers of ablated neurons."""

    protocol: str
    network: str
    scope: str
    ranking: str
    direction: str
    fill: str
    accuracy: dict[int, float]


def summarize(results: xr.DataTree, steps: Sequence[int] = (0, 40, 80)) -> list[SummaryRow]:
    """Mean accuracy per protocol, network, scope, ordering and fill.

    Args:
        results: from `run_study` or `load_results`.
        steps: numbers of ablated neurons; those beyond the last step become the last.

    Returns:
        One row for each protocol, network, scope, ordering (the random ones together) and fill.

    Example:
        >>> sorted(ja.results.summarize(results)[0].accuracy)[0]
        0
    """
    require(all(step >= 0 for step in steps), f"steps: expected numbers of at least 0, got {tuple(steps)}")
    rows = []
    for protocol in protocols_of(results):
        for name, node in select_protocol(results, protocol).children.items():
            network = node.to_dataset()
            last = int(network["step"][-1])
            wanted = sorted({min(step, last) for step in steps})
            kinds = dict.fromkeys(
                (str(r), "" if r == RANDOM else str(d))
                for r, d in zip(network["ranking"].values, network["direction"].values, strict=True)
            )
            for scope, (ranking, direction), fill in itertools.product(
                map(str, network["scope"].values), kinds, map(str, network["fill"].values)
            ):
                mean = curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill).mean
                accuracy = {step: float(mean[step]) for step in wanted}
                rows.append(SummaryRow(protocol, name, scope, ranking, direction, fill, accuracy))
    return rows
