"""Make the charts of a study.

Input: results of a study.
Output: charts.
Memory: one chart at a time.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from jaxablate.charts._names import (
    DASHES,
    SCORE_LOOKS,
    fill_name,
    layer_color,
    layers_of,
    main_score,
    names_of,
    network_title,
    place_name,
    score_colors,
    score_looks,
    score_name,
    short_name,
)
from jaxablate.charts._paper import FIGURES, FigureSpec
from jaxablate.charts._types import CorrelationChart, Line, LineChart, Points, ScatterChart, Violin, ViolinChart
from jaxablate.histograms import constant_codes
from jaxablate.layer_analysis import damage_correlations, layer_shares, mean_and_interval
from jaxablate.metrics import METRICS
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import PUBLISHED
from jaxablate.results import RANDOM, balanced_fill, curve, keep_only
from jaxablate.results._labels import is_passed, neuron_numbers
from jaxablate.results._summaries import INTERVAL

Look = tuple[str, int, str]  # the first three fields of a line: name, colour, dash
Labels = tuple[str, str, str, str]  # the first four fields of a chart: title, subtitle, labels of x and y
MAX_SCORES = 3  # of a chart of low and high values first
MAX_CLASSES = 6  # of a chart, as many as there are colours


def figure_chart(results: xr.DataTree, spec: FigureSpec) -> LineChart | ViolinChart:
    """Return the chart of a figure of the paper, which has the paper's scores and fills only."""
    name, network = spec.network, results[spec.network].to_dataset()
    if spec.kind == "training":
        return training_chart(name, network, spec.subject)
    if spec.kind == "scores":
        return score_chart(name, network, spec.subject)
    if spec.kind == "balancing":
        return balancing_chart(name, network, spec.scope, fills=(balanced_fill(network), "zero"))
    return order_chart(name, network, spec.scope, directions=(spec.direction,), scores=list(SCORE_LOOKS))


def training_chart(name: str, network: xr.Dataset, subject: str) -> LineChart:
    """Return the chart of `accuracy` or `cost` during training."""
    quantity, y_label = {"accuracy": ("accuracy", "Accuracy"), "cost": ("loss", "Cross-entropy (nats)")}[subject]
    lines = []
    for split, color, dash in (("train", 1, ""), ("validation", 2, "dashed")):
        values = network[f"{split}_{quantity}"]
        look = (values.attrs["long_name"], color, dash)
        lines.append(_mean_line(network, look, mean_and_interval(values), values.values))
    paper = _paper(network, kind="training", network=name, subject=subject)
    labels, x = (network_title(name), f"training {quantity}", "Epoch", y_label), network["epoch"].values
    return line_chart(network, labels, paper, x, lines, percent=subject == "accuracy")


def score_chart(name: str, network: xr.Dataset, score: str) -> ViolinChart:
    """Return the chart of a score's values in each layer, of all networks; it counts undefined values."""
    counts = network["joint_counts"].transpose("seed", "neuron", "class", "code").values
    constant = np.stack([constant_codes(of_seed) for of_seed in counts])
    sites = {place_name(scope): network["layer"].values == i + 1 for i, scope in enumerate(layers_of(network))}
    violins = score_violins(network["scores"].sel(score=score).values, sites, constant)
    subtitle = quantity = score_name(score)
    bound = None
    protocol = network.attrs["protocol"]
    if score == "mutual_information" and (protocol == PUBLISHED or "mi_sign" in protocol.split("+")):
        quantity, bound = "H(T) + H(T|Y)", (math.log(2), "ln 2: largest entropy of one bit")
        subtitle = f"{quantity}, published as mutual information"
    unit = f" ({network['scores'].attrs['units']}s)" if score in METRICS else ""  # other scores have different units
    labels = (network_title(name), subtitle, "Hidden layer (lines: quartiles)", f"{quantity}{unit}")
    return ViolinChart(*labels, _paper(network, kind="scores", network=name, subject=score), violins, bound)


def score_violins(
    values: np.ndarray, sites: Mapping[str, np.ndarray], constant: np.ndarray | None = None
) -> list[Violin]:
    """Return the violins of a score in each site; a note counts the neurons that are undefined or constant.

    Args:
        values: scores [network, neuron].
        sites: ids or a mask of the neurons of each site, by name.
        constant: bool [network, neuron], True for a neuron with a constant code; None if that is unknown.
    """
    violins = []
    for i, (name, neurons) in enumerate(sites.items()):
        group = values[:, neurons]
        defined = np.isfinite(group)
        counted = [("undefined", ~defined)]
        if constant is not None:
            counted.append(("constant", constant[:, neurons]))
        numbers = [(round(float(mask.sum(axis=1).mean()), 1), word) for word, mask in counted]
        note = next((f"{number:g} of {group.shape[1]} {word}" for number, word in numbers if number), "")
        violins.append(Violin(name, layer_color(i), group[defined], note))
    return violins


def damage_chart(name: str, network: xr.Dataset, score: str, seeds: slice = slice(None)) -> ScatterChart:
    """Return the chart of the damage of ablating a single neuron against its score, for every neuron of some networks.

    Names of layers have Spearman's correlation within a layer, the mean over all networks.
    """
    # The correlation is computed within each network and then averaged. Over the pooled neurons of several networks it
    # would also measure how the networks differ.
    correlations = mean_and_interval(damage_correlations(network).sel(score=score))
    values, damage = network["scores"].sel(score=score).values[seeds], network["single_damage"].values[seeds]
    groups = []
    for i, scope in enumerate(layers_of(network)):
        chosen = network["layer"].values == i + 1
        correlation = _correlation_text(*(float(part.sel(scope=scope)) for part in correlations))
        label = f"{place_name(scope)}: {correlation}"
        groups.append(Points(label, layer_color(i), values[:, chosen].ravel(), damage[:, chosen].ravel()))
    number = network.sizes["seed"]
    interval = f", mean over {number} networks with {INTERVAL}" if number > 1 else ""
    drawn = f"; {len(values)} of {number} networks drawn" if len(values) < number else ""
    caption = f"Rank correlation: Spearman's, within the layer{interval}{drawn}."
    unit = f" ({network['scores'].attrs['units']}s)" if score in METRICS else ""
    labels = (f"{score_name(score)}{unit}", "Damage alone (nats)")
    return ScatterChart(
        network_title(name), f"{score_name(score)} and the damage of each neuron alone", *labels, caption, groups
    )


def _correlation_text(mean: float, low: float, high: float) -> str:
    """Return a correlation and its interval in words."""
    if np.isnan(mean):
        return "rank correlation undefined"
    return f"rank correlation {mean:+.2f}" + (f" [{max(low, -1):+.2f}, {min(high, 1):+.2f}]" if low < high else "")


def balancing_chart(name: str, network: xr.Dataset, scope: str, fills: Sequence[str] = ()) -> LineChart:
    """Return the chart of random orders and of low mutual information first, under several fills or all.

    Without mutual information, the first score replaces it.
    """
    balanced, score = balanced_fill(network), main_score(network)
    # bias balancing comes first and has the solid line
    fills = fills or [balanced, *(fill for fill in names_of(network, "fill") if fill != balanced)]
    orders = (
        (RANDOM, _random_name(network), 0, ""),
        (score, f"{short_name(score)}, low first", score_colors(names_of(network, "score"))[score], "o"),
    )
    lines = []
    # the colour says the order and the dash says the fill, so that pairs of one colour show the effect of balancing
    for (ranking, words, color, marker), (i, fill) in itertools.product(orders, enumerate(fills)):
        look = (f"{words}; {fill_name(network, fill)}", color, DASHES[i % len(DASHES)])
        lines.append(_curve_line(network, scope, (ranking, "low"), fill, look, marker))
    return _curve_chart(name, network, scope, "with and without bias balancing", lines, "balancing")


def order_chart(
    name: str,
    network: xr.Dataset,
    scope: str,
    *,
    directions: Sequence[str] = DIRECTIONS,
    scores: Sequence[str] = (),
    fill: str | None = None,
) -> LineChart:
    """Return the chart of random orders and of orders by some scores or all, in one direction or both.

    Neurons are bias balanced, or have another fill.
    """
    looks, fill = score_looks(names_of(network, "score")), fill or balanced_fill(network)
    lines = [_curve_line(network, scope, (RANDOM, ""), fill, (_random_name(network), 0, ""))]
    for (i, direction), score in itertools.product(enumerate(directions), scores or looks):
        # In one direction the dash tells the scores apart. In two it tells the directions apart, since the colour
        # already says the score.
        color, dash = looks[score]
        label = score_name(score)
        if len(directions) > 1:
            label, dash = f"{short_name(score)}, {direction} first", DASHES[i]
        lines.append(_curve_line(network, scope, (score, direction), fill, (label, color, dash)))
    subtitle = f"{' and '.join(directions)} values first, {fill_name(network, fill)}"
    return _curve_chart(name, network, scope, subtitle, lines, "orders")


def order_charts(name: str, network: xr.Dataset, scope: str) -> list[LineChart]:
    """Return one chart of low and high values first; two charts if more scores would crowd one."""
    directions = (DIRECTIONS,) if network.sizes["score"] <= MAX_SCORES else tuple((each,) for each in DIRECTIONS)
    return [order_chart(name, network, scope, directions=chosen) for chosen in directions]


def keep_chart(name: str, network: xr.Dataset, scope: str) -> LineChart:
    """Return the chart of keeping only the highest values of each score, or neurons in random order.

    Ablated neurons are bias balanced.

    Raises:
        InputError: for curves that end before the last neuron of a scope.
    """
    chart = order_chart(name, keep_only(network), scope, directions=("high",))
    return replace(chart, subtitle="only high values kept, the others bias balanced")


def class_chart(name: str, network: xr.Dataset, scope: str) -> LineChart:
    """Return the chart of the accuracy within the six classes that lose most, with high values of a score first.

    The score is mutual information, or the first one. Neurons are bias balanced.
    """
    score = main_score(network)
    chosen = {"scope": scope, "fill": balanced_fill(network), "ordering": f"{score}_high"}
    line = _curve_line(network, scope, (score, "high"), chosen["fill"], ("all classes", 0, ""))
    curves = (
        network["class_accuracy"].sel(chosen).isel(step=slice(0, len(line.values))).transpose("seed", "class", "step")
    )
    mean, low, high = mean_and_interval(curves.astype(np.float64))
    losses = (mean.isel(step=0) - mean.mean("step")).values  # NaN, for a class without test examples, comes last
    classes = np.sort(np.argsort(-losses, kind="stable")[: min(MAX_CLASSES, int(np.isfinite(losses).sum()))])
    lines = [line]
    for i, label in enumerate(classes):
        parts = [part.isel({"class": label}) for part in (mean, low, high)]
        lines.append(
            _mean_line(network, (f"class {mean['class'].values[label]}", i + 1, DASHES[i % len(DASHES)]), parts)
        )
    many = len(losses) > MAX_CLASSES
    classes_text = f"the {MAX_CLASSES} of {len(losses)} classes that lose most" if many else "each class"
    subtitle = f"{classes_text}; {short_name(score)} high first, bias balanced"
    return _curve_chart(name, network, scope, subtitle, lines, "")


def share_charts(name: str, network: xr.Dataset) -> list[LineChart]:
    """Return a chart for each score: shares of the layers in a whole-network order, low values first."""
    # mean, low and high by ordering, rank and layer: the share of a layer among the first neurons of an order
    summary, charts = mean_and_interval(layer_shares(network)), []
    for score in names_of(network, "score"):
        lines = []
        for i, scope in enumerate(layers_of(network)):
            parts = [part.sel(ordering=f"{score}_low", layer=i + 1) for part in summary]
            lines.append(_mean_line(network, (place_name(scope), layer_color(i), DASHES[i % len(DASHES)]), parts))
        labels = (
            network_title(name),
            f"{score_name(score)}, low first",
            "Ablated neurons",
            "Share of the ablated neurons",
        )
        seeds = network.sizes["seed"]
        caption = "Share of each layer among the neurons ablated so far" + f", mean of {seeds} networks" * (seeds > 1)
        chart = line_chart(network, labels, "", summary[0]["rank"].values, lines)
        charts.append(replace(chart, caption=f"{caption}.", stacked=True))
    return charts


def correlation_chart(name: str, network: xr.Dataset) -> CorrelationChart:
    """Return the correlations of each score with the damage of single neurons, in each layer and across layers."""
    summary = mean_and_interval(damage_correlations(network).transpose(..., "score", "scope"))
    mean, low, high = (part.values for part in summary)
    scores = names_of(network, "score")
    return CorrelationChart(
        network_title(name),
        [score_name(score) for score in scores],
        list(score_colors(scores).values()),
        [place_name(scope, "across layers") for scope in names_of(network, "scope")],
        mean,
        low.clip(min=-1),  # a t-interval may leave the range of a correlation
        high.clip(max=1),
        bool((low < -1).any() or (high > 1).any()),
        network.sizes["seed"],
    )


def _random_name(network: xr.Dataset) -> str:
    return f"random (mean of {int((network['ranking'] == RANDOM).sum()) * network.sizes['seed']})"


def _mean_line(
    network: xr.Dataset, look: Look, summary: Iterable[xr.DataArray], networks: np.ndarray | None = None
) -> Line:
    """Return the line of a mean over networks and its interval, which one network does not have."""
    mean, low, high = (part.values for part in summary)
    band = INTERVAL if network.sizes["seed"] > 1 else ""
    return Line(*look, mean, low, high, band, networks=networks)


def _curve_line(
    network: xr.Dataset, scope: str, order: tuple[str, str], fill: str, look: Look, marker: str = ""
) -> Line:
    """Return the line of the accuracy curve of an order (ranking, direction) from the protocol's first step on."""
    summary = curve(network, scope=scope, ranking=order[0], direction=order[1], fill=fill)
    # a protocol with a fresh random subset for each step has no curve at step 0
    mean, low, high = (part[int(network.attrs["first_step"]) :] for part in (summary.mean, summary.low, summary.high))
    return Line(*look, mean, low, high, summary.band, marker)


def _curve_chart(
    name: str, network: xr.Dataset, scope: str, subtitle: str, lines: Sequence[Line], kind: str
) -> LineChart:
    is_kept = "num_kept" in network.coords  # from `keep_only`; the paper has no such curves
    x_label = "Kept neurons" if is_kept else "Ablated neurons"
    labels = (f"{network_title(name)}, {place_name(scope)}", subtitle, x_label, "Test accuracy")
    first = int(network.attrs["first_step"])
    steps = neuron_numbers(network).sel(scope=scope).values[first : first + len(lines[0].values)]
    paper = "" if is_kept else _paper(network, kind=kind, network=name, scope=scope)
    return line_chart(network, labels, paper, steps, lines)


def line_chart(
    network: xr.Dataset, labels: Labels, words: str, x: np.ndarray, lines: Sequence[Line], percent: bool = True
) -> LineChart:
    """Return a chart with a caption that adds the number of networks and the meaning of the bands.

    Bands of values in percent are cut at 0 and 100%, and their meaning then says so.
    """
    if percent and any(line.band and (np.nanmin(line.low) < 0 or np.nanmax(line.high) > 1) for line in lines):
        lines = [
            replace(line, low=line.low.clip(0), high=line.high.clip(max=1), band=line.band + ", cut at 0 and 100%")
            if line.band
            else line
            for line in lines
        ]
    lines = _name_coinciding(lines)
    seeds, band = network.sizes["seed"], lines[0].band  # random orders come first, and have a band if any curve has
    mean = f"Mean of {seeds} networks" if seeds > 1 else "One network"
    caption = f"{words} {mean}{f'; band: {band}' if band else ''}.".strip()
    return LineChart(*labels, caption, x, lines, percent)


def _name_coinciding(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, where a line that hides an equal one before it names that line."""
    # Two scores may give the same order. The reader would look for the first curve under the second one.
    named: list[Line] = []
    for line in lines:
        equal = next((n for n in named if n.name and np.array_equal(n.values, line.values, equal_nan=True)), None)
        named.append(line if equal is None or not line.name else replace(line, name=f"{line.name} (= {equal.name})"))
    return named


def _paper(dataset: xr.Dataset, /, **attributes: str | int) -> str:
    """Name the paper's figures whose specification has these attributes; none for a network passed to the study."""
    if is_passed(dataset):  # it may only share the name of the paper's network
        return ""
    numbers = [
        str(number)
        for number, spec in FIGURES.items()
        if all(getattr(spec, name) == value for name, value in attributes.items())
    ]
    return f"The paper's figure{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}." if numbers else ""
