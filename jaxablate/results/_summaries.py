"""Summarize results for figures and tables, which only draw and print.

Input: results, or one network of them.
Output: areas, curves with bands, and rows of tables.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_integer, require_known, require_type, short_repr
from jaxablate.results._labels import (
    NO_NEURON,
    RANDOM,
    Ordering,
    neuron_numbers,
    protocols_of,
    require_network_results,
    require_results,
    select_protocol,
)
from jaxablate.statistics import estimate

INTERVAL = "95% t-interval of the mean"  # the words for `Estimate.interval`
ORDERS_BAND = (0.1, 0.9)  # quantiles over random orders, where there is one network only


def balanced_fill(network: xr.Dataset) -> str:
    """Return the name of the fill of bias balancing: "mean", or "scaled" if the protocol scales by the firing rate.

    Example:
        >>> ja.results.balanced_fill(results["2-layer-12-10"].to_dataset())
        'mean'
    """
    require_network_results(network)
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
    require_network_results(network)
    return 100 * network["accuracy"].isel(step=slice(1, None)).mean("step")


def last_steps(network: xr.Dataset, what: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the step that ablates the last neuron of each scope, and the number of neurons of each scope.

    Args:
        network: a node of the results.
        what: what needs complete curves, for the message.

    Raises:
        InputError: unless the curves continue to the last neuron of every scope.
    """
    last = network["accuracy"].notnull().all(("seed", "ordering", "fill")).sum("step") - 1
    layers = network["layer"].values
    widths = [*(int((layers == layer).sum()) for layer in np.unique(layers)), len(layers)]
    ends = neuron_numbers(network).isel(step=last).values.tolist()
    require(
        ends == widths,
        f"{what} needs curves to the last neuron of every scope, {widths}, got {ends}; run the study with steps='all'",
    )
    return last, xr.DataArray(widths, dims="scope")


def keep_only(network: xr.Dataset) -> xr.Dataset:
    """Return the accuracy with only the first neurons of each order kept, from complete ablation curves.

    To ablate all but the last k neurons of "entropy_low" is to keep the k neurons of the highest entropy. So its curve,
    read from the end, is the curve of keeping neurons, and here its name is "entropy_high".

    Args:
        network: a node of the results of a study whose `steps` end with the last neuron ("all" or a percentage).

    Returns:
        `accuracy` (seed, scope, ordering, fill, step), with the coordinate `num_kept` (scope, step): the number of kept
        neurons, 0 at step 0. After the last step of a scope they are NaN and -1. `curve` summarizes it.

    Raises:
        InputError: for curves that end before the last neuron of a scope.

    Example:
        >>> config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, num_random_orders=2, steps="all")
        >>> kept = ja.results.keep_only(ja.run_study(config)["1-layer-8"].to_dataset())
        >>> ja.results.curve(kept, scope="layer1", ranking="entropy", direction="high", fill="mean").step.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    require_network_results(network)
    last, widths = last_steps(network, "network: keep_only")
    accuracy = network["accuracy"].transpose("scope", ..., "step")
    numbers = neuron_numbers(network).broadcast_like(accuracy.isel(seed=0, ordering=0, fill=0)).values
    values, kept = np.full(accuracy.shape, np.nan), np.full(numbers.shape, NO_NEURON)
    for scope, (end, width) in enumerate(zip(last.values + 1, widths.values, strict=True)):
        values[scope, ..., :end] = accuracy.values[scope, ..., :end][..., ::-1]
        kept[scope, :end] = width - numbers[scope, :end][::-1]
    flipped = {"low": "high", "high": "low"}
    is_random = network["ranking"].values == RANDOM
    directions = [d if r else flipped[d] for d, r in zip(network["direction"].values.tolist(), is_random, strict=True)]
    rankings = network["ranking"].values.tolist()
    return (
        accuracy.copy(data=values)
        .transpose(*network["accuracy"].dims)
        .to_dataset()
        .drop_vars("num_ablated", errors="ignore")
        .assign_attrs(network.attrs, first_step=0)
        .assign_coords(
            score=network["score"],
            num_kept=(("scope", "step"), kept, {"long_name": "kept neurons (-1: after the last step)"}),
            ordering=[Ordering(*names).label for names in zip(rankings, directions, strict=True)],
            direction=("ordering", directions),
        )
    )


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

    __repr__ = short_repr


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
    require_type("ranking", ranking, str, "a name")
    require_type("direction", direction, str, "a name")
    require_network_results(network)
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
    return summarize_curves(neuron_numbers(accuracy).values, accuracy.values)


def distinct_orders(network: xr.Dataset) -> list[tuple[str, str]]:
    """Return the ranking and the direction of each ordering; random repetitions are one, without a direction."""
    pairs = zip(network["ranking"].values, network["direction"].values, strict=True)
    return list(dict.fromkeys((str(r), "" if r == RANDOM else str(direction)) for r, direction in pairs))


def ordering_places(network: xr.Dataset, ranking: str, direction: str) -> np.ndarray:
    """Return the places of an ordering along `ordering`; random repetitions count together, whatever the direction."""
    chosen = network["ranking"].values == ranking
    if ranking != RANDOM:
        chosen &= network["direction"].values == direction
    return np.flatnonzero(chosen)


def summarize_curves(step: np.ndarray, values: np.ndarray) -> Curve:
    """Return the summary of values [network, order, step] at numbers of ablated neurons [step]."""
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
        steps: numbers of ablated neurons; a number beyond the last step means the last step. If the results jump over a
            number, since each step ablates several neurons, the rows have the number before it.

    Returns:
        One row for each protocol, network, scope, ordering and fill; the random orders share a row.

    Raises:
        InputError: for a negative number.

    Example:
        >>> sorted(ja.results.summarize(results)[0].accuracy)[0]
        0
    """
    require_results(results)
    require_type("steps", steps, Iterable, "numbers of ablated neurons")
    steps = tuple(require_integer("steps", step) for step in steps)
    require(all(step >= 0 for step in steps), f"steps: {steps[:20]} has negative numbers; choose 0 or more")
    rows = []
    for protocol in protocols_of(results):
        for name, node in select_protocol(results, protocol).children.items():
            network = node.to_dataset()
            last = int(neuron_numbers(network).max())
            # A set, because several numbers beyond the last step become the same one.
            row_steps = sorted({min(step, last) for step in steps})
            for scope, (ranking, direction), fill in itertools.product(
                map(str, network["scope"].values), distinct_orders(network), map(str, network["fill"].values)
            ):
                summary = curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill)
                # Steps of several neurons may jump over a number; the last step before it counts.
                places = np.searchsorted(summary.step, row_steps, side="right") - 1
                chosen = [i for i, step in zip(places, row_steps, strict=True) if step <= summary.step[-1]]
                accuracy = {int(summary.step[i]): float(summary.mean[i]) for i in chosen}
                rows.append(SummaryRow(protocol, name, scope, ranking, direction, fill, accuracy))
    return rows
