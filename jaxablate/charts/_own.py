"""Make charts of arrays, comparisons and linear redundancy, for networks with or without a study.

Input: arrays, estimates, or the datasets of `compare`, `compare_conditions` and `linear_redundancy`.
Output: charts.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxablate._checks import InputError, describe_value, host_numbers, require, require_count, require_known
from jaxablate.charts._names import DASHES, comparison_name, names_of, order_name, place_name
from jaxablate.charts._study import score_violins
from jaxablate.charts._types import (
    IntervalChart,
    Intervals,
    Line,
    LineChart,
    Points,
    ScatterChart,
    ViolinChart,
)
from jaxablate.layer_analysis import spearman
from jaxablate.results import RANDOM, Curve
from jaxablate.results._summaries import INTERVAL, summarize_curves
from jaxablate.statistics import Estimate

Y_LABELS = {"correct": "Correct predictions", "loss": "Loss (nats)", "divergence": "Divergence (nats)"}
"""Names of the outcomes of `cumulative_ablation` that are one number at each step."""
NUM_COLORS = 6
BY_NAMES = {"auc": "area under the curve", "normalized_auc": "normalized area under the curve"}


def curves_chart(curves: Any, *, outcome: str, num_examples: int | None, num_ablated: Any) -> LineChart:
    """Return the chart of arrays; arguments and errors as in `figures.plot_curves`."""
    # Arrays of the library do not say how many examples they count, nor how many neurons a step ablates. The caller
    # says it, and what does not fit is refused: a curve above 100% or with a wrong axis would look like a result.
    summaries: dict[str, Curve] = {}
    pairs = _named(curves)
    for name, values in pairs:
        require(name not in summaries, f"curves: the name {name!r} occurs twice; give each curve a name of its own")
        summaries[name] = values if isinstance(values, Curve) else _summary(name, values, outcome, num_ablated)
    x = next(iter(summaries.values())).step
    for name, summary in summaries.items():
        require(
            np.array_equal(summary.step, x),
            f"curves: {name!r} has {len(summary.step)} steps, and {next(iter(summaries))!r} has {len(x)}; give all "
            "curves the same numbers of ablated neurons",
        )
    is_accuracy = num_examples is not None or all(isinstance(values, Curve) for _, values in pairs)
    scale = 1 if num_examples is None else require_count("num_examples", num_examples)
    if num_examples is not None:
        largest = max(float(np.nanmax(summary.mean)) for summary in summaries.values())
        require(
            outcome == "correct" and largest <= scale,
            f"num_examples: {scale} do not fit values up to {largest:g}; give the number of examples of the counts",
        )
    lines, places = [], itertools.count()
    for name, summary in summaries.items():
        # random orders have the ink, as in the charts of a study
        place = -1 if name.startswith(RANDOM) and not any(line.color == 0 for line in lines) else next(places)
        color, dash = 1 + place % NUM_COLORS if place >= 0 else 0, DASHES[max(place, 0) // NUM_COLORS % len(DASHES)]
        mean, low, high = (part / scale for part in (summary.mean, summary.low, summary.high))
        lines.append(Line(name, color, dash, mean, low, high, summary.band))
    bands = dict.fromkeys(line.band for line in lines if line.band)
    caption = f"Bands: {'; '.join(bands)}." if bands else ""
    y_label = "Accuracy" if is_accuracy else Y_LABELS.get(outcome, outcome)
    return LineChart("", "", "Ablated neurons", y_label, caption, x, lines, percent=is_accuracy)


def _named(curves: Any) -> list[tuple[str, Any]]:
    """Return pairs of a name and an array, from an array, a mapping or pairs; a single array has no name."""
    if isinstance(curves, Curve) or hasattr(curves, "shape"):
        return [("", curves)]
    if isinstance(curves, Mapping):
        require(
            not set(curves) <= {*Y_LABELS, "class_correct", "confusion"} or not curves,
            f"curves: {', '.join(map(str, curves))} are outcomes of one ablation; pass them under a name, such as "
            "{'random': outcomes}",
        )
        curves = list(curves.items())
    is_named = isinstance(curves, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) for pair in curves
    )
    require(
        is_named and len(curves) > 0,
        "curves: expected results, an array, or arrays by name such as {'random': counts}, got "
        f"{describe_value(curves)}",
    )
    return [(name, values) for name, values in curves]


def _summary(name: str, values: Any, outcome: str, num_ablated: Any) -> Curve:
    """Return the summary of values [step], [order, step] or [network, order, step], or of one of several outcomes."""
    if isinstance(values, Mapping):
        require_known("outcome", outcome, values)
        values = values[outcome]
    array = host_numbers(f"curve {name!r}", values).astype(np.float64)
    require(
        1 <= array.ndim <= 3 and array.shape[-1] > 1,
        f"curve {name!r}: expected [step], [order, step] or [network, order, step], got shape {array.shape}",
    )
    steps = np.arange(array.shape[-1])
    if num_ablated is not None:
        steps = host_numbers("num_ablated", num_ablated)
        require(
            steps.shape == array.shape[-1:] and bool((np.diff(steps) > 0).all()),
            f"num_ablated: expected {array.shape[-1]} increasing numbers, one for each step of {name!r} from 0 on, got "
            f"shape {steps.shape}",
        )
    return summarize_curves(steps, array.reshape((1,) * (3 - array.ndim) + array.shape))


def values_chart(values: Any, name: str, sites: Mapping[str, Any] | None) -> ViolinChart:
    """Return the chart of the distribution of scores [neuron] or [network, neuron] in each site."""
    scores = _by_network("scores", values)
    violins = score_violins(scores, _sites_of(sites, scores.shape[1]))
    return ViolinChart("", "", "Lines: quartiles", name, "", violins)


def points_chart(scores: Any, damage: Any, name: str, sites: Mapping[str, Any] | None) -> ScatterChart:
    """Return the chart of damage against scores, both [neuron] or [network, neuron]."""
    scores, damage = _by_network("scores", scores), _by_network("damage", damage)
    require(
        scores.shape == damage.shape,
        f"damage: expected the shape of the scores, {scores.shape}, got {damage.shape}",
    )
    groups = []
    for i, (site, neurons) in enumerate(_sites_of(sites, scores.shape[1]).items()):
        x, y = scores[:, neurons], damage[:, neurons]
        each = spearman(np.where(np.isfinite(x) & np.isfinite(y), x, np.nan), y)
        known = each[~np.isnan(each)]
        words = f"rank correlation {known.mean():+.2f}" if known.size else "rank correlation undefined"
        groups.append(Points(f"{site}: {words}", 1 + i % NUM_COLORS, x.ravel(), y.ravel()))
    over = f", mean over {len(scores)} networks" if len(scores) > 1 else ""
    return ScatterChart("", "", name, "Damage", f"Rank correlation: Spearman's{over}.", groups)


def _by_network(argument: str, values: Any) -> np.ndarray:
    """Return values [network, neuron] from [neuron] or [network, neuron], float64."""
    array = host_numbers(argument, values).astype(np.float64)
    require(
        array.ndim in (1, 2) and array.size > 0,
        f"{argument}: expected [neuron] or [network, neuron], got shape {array.shape}",
    )
    return np.atleast_2d(array)


def _sites_of(sites: Mapping[str, Any] | None, num_neurons: int) -> dict[str, np.ndarray]:
    """Return the ids of the neurons of each site; without sites, all neurons."""
    if sites is None:
        return {"all neurons": np.arange(num_neurons)}
    ids = {str(name): np.asarray(neurons) for name, neurons in sites.items()}
    for name, neurons in ids.items():
        is_ids = neurons.ndim == 1 and np.issubdtype(neurons.dtype, np.integer) and neurons.size > 0
        require(
            is_ids and bool(neurons.min() >= 0 and neurons.max() < num_neurons),
            f"sites: expected ids of neurons in 0..{num_neurons - 1} for {name!r}, as from ja.models.site_neurons, got "
            f"{describe_value(sites[name])}",
        )
    return ids


def comparison_chart(comparison: Any, scope: str, fill: str | None) -> IntervalChart:
    """Return the chart of differences with intervals; arguments and errors as in `figures.plot_comparison`."""
    # Three kinds of input become rows and groups: the tree of `compare` (networks are the groups), the dataset of
    # `compare_conditions` (networks under conditions are the groups), and named estimates (one group).
    if isinstance(comparison, xr.DataTree):
        tables = {
            "" if node is comparison else node.relative_to(comparison): node.to_dataset()
            for node in comparison.subtree
            if "difference" in node.data_vars
        }
    elif isinstance(comparison, xr.Dataset):
        tables = {"": comparison} if "difference" in comparison else {}
    else:
        return _estimates_chart(comparison)
    require(
        len(tables) > 0,
        "comparison: expected the result of ja.compare or ja.results.compare_conditions, or pairs of a name and an "
        "estimate, got results without differences",
    )
    first = next(iter(tables.values()))
    if "condition" in first.dims:
        tables = {
            ", ".join(filter(None, (condition, network))): first.sel(condition=condition, network=network)
            for condition, network in itertools.product(names_of(first, "condition"), names_of(first, "network"))
        }
        rows, names, x_label = "comparison", comparison_name, "Difference of areas under the curves (accuracy points)"
        title = "Orders of ablation, whole network"
    else:
        tables, title = _select(tables, scope, fill)
        first = next(iter(tables.values()))
        rows = str(next(iter(first["difference"].dims), "value"))
        by, unit = first.attrs.get("by", "difference"), first["difference"].attrs.get("units", "1")
        x_label = f"First minus second: {BY_NAMES.get(by, by)}" + {"1": "", "%": " (points)"}.get(unit, f" ({unit})")
        names = order_name if rows == "ordering" else str
    require(
        len(tables) <= NUM_COLORS,
        f"comparison: {len(tables)} networks and conditions do not fit one chart; draw up to {NUM_COLORS}, or call "
        "draw_conditions",
    )
    labels = [""] if rows == "value" else names_of(first, rows)
    groups = []
    for i, (name, table) in enumerate(tables.items()):
        mean, low, high = (np.atleast_1d(table[part].values) for part in ("difference", "low", "high"))
        groups.append(Intervals(name if len(tables) > 1 else "", 1 + i, mean, low, high))
    if len(tables) == 1:  # the title names a single network, so that no legend covers an interval
        title = ", ".join(filter(None, (title, *tables)))
    return IntervalChart(title, x_label, f"Bars: {INTERVAL}.", [names(label) for label in labels], groups)


def _select(tables: Mapping[str, xr.Dataset], scope: str, fill: str | None) -> tuple[dict[str, xr.Dataset], str]:
    """Return the comparisons of one scope and fill, and a title that names them."""
    chosen, words = {}, []
    for name, table in tables.items():
        selection = {}
        if "scope" in table.dims:
            require_known("scope", scope, names_of(table, "scope"))
            selection["scope"] = scope
        if "fill" in table.dims:
            fills = names_of(table, "fill")
            selection["fill"] = fill or next((f for f in fills if f != "zero"), fills[0])
            require_known("fill", selection["fill"], fills)
        chosen[name] = table.sel(selection)
        dims = chosen[name]["difference"].dims
        require(len(dims) <= 1, f"comparison: expected one value for each ordering, got {', '.join(map(str, dims))}")
        words = [place_name(selection["scope"])] * ("scope" in selection)
        words += [f"fill: {selection['fill']}"] * ("fill" in selection)
    return chosen, ", ".join(words)


def _estimates_chart(pairs: Any) -> IntervalChart:
    """Return the chart of named estimates of single numbers."""
    names, estimates = [], []
    for pair in pairs if isinstance(pairs, Sequence) else [pairs]:
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], Estimate)
        if not is_pair or np.ndim(pair[1].mean) > 0:
            raise InputError(
                "comparison: expected the result of ja.compare or ja.results.compare_conditions, or pairs of a name "
                f"and an estimate of one number, got {describe_value(pair)}"
            )
        names.append(str(pair[0]))
        estimates.append((pair[1].mean, *pair[1].interval()))
    require(len(names) > 0, "comparison: expected pairs of a name and an estimate, got none")
    return IntervalChart("", "Difference", f"Bars: {INTERVAL}.", names, [Intervals("", 1, *np.array(estimates).T)])


def redundancy_chart(redundancy: xr.Dataset, scope: str, ordering: str) -> LineChart:
    """Return the chart of one layer under each fill and a readout, mean over networks and orders.

    Arguments and errors as in `figures.plot_redundancy`.
    """
    orderings = names_of(redundancy, "ordering")
    chosen = [name for name in orderings if name == ordering or (ordering == RANDOM and name.startswith(f"{RANDOM} "))]
    known = dict.fromkeys(name.split(" ")[0] if name.startswith(f"{RANDOM} ") else name for name in orderings)
    require_known("ordering", ordering, [*known, *orderings])
    dims, x = ("network", "ordering", "step"), redundancy["step"].values
    curves = redundancy["accuracy"].sel(scope=scope, ordering=chosen)
    arrays = {f"fill: {fill}": curves.sel(fill=fill) for fill in names_of(redundancy, "fill")}
    arrays["readout of the kept neurons"] = redundancy["readout_accuracy"].sel(scope=scope, ordering=chosen)
    lines = []
    for i, (name, array) in enumerate(arrays.items()):
        values = array.transpose(*dims).values
        last = int(np.isfinite(values).all(axis=(0, 1)).sum())  # a smaller layer ends before the largest
        summary = summarize_curves(x[:last], values[..., :last])
        lines.append(Line(name, i, DASHES[i], summary.mean, summary.low, summary.high, summary.band))
        x = x[:last]
    number = redundancy.sizes["network"]
    caption = f"Mean of {number} networks." if number > 1 else "One network."
    caption += f" Bands: {lines[0].band}." if lines[0].band else ""
    order = f"{ordering} order" if ordering.startswith(RANDOM) else f"{ordering}, low first"
    return LineChart(place_name(scope), order, "Ablated neurons", "Test accuracy", caption, x, lines, percent=True)
