"""Decide what each chart shows; `figures` and `report` draw the same charts.

Input: results of a study, and verdicts on claims.
Output: dataclasses of NumPy arrays and texts. A colour is a number from 0 to 6 and a dash a name, for which each
renderer has its own palette.
Memory: one chart at a time.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate.claims import CLAIMS, SHORT, Verdict
from jaxablate.layer_analysis import damage_correlations, layer_shares, mean_and_interval
from jaxablate.metrics import METRICS
from jaxablate.orders import DIRECTIONS
from jaxablate.results import NETWORK_SCOPE, RANDOM, balanced_fill, curve
from jaxablate.results._summaries import INTERVAL

__all__ = [
    "EXTRAS",
    "FIGURES",
    "INTERVAL",
    "METRIC_NAMES",
    "CorrelationChart",
    "FigureSpec",
    "Line",
    "LineChart",
    "Violin",
    "ViolinChart",
    "balancing_chart",
    "claim_table",
    "correlation_chart",
    "figure_chart",
    "layers_of",
    "names_of",
    "order_chart",
    "origin",
    "place_name",
    "score_chart",
    "score_colors",
    "score_name",
    "share_charts",
    "short_name",
    "training_chart",
]

METRIC_NAMES = {
    "entropy": "Entropy",
    "mutual_information": "Mutual information",
    "kl_selectivity": "KL selectivity",
}

# Colour 0 is the ink. Colours 1 to 6 have Okabe and Ito's hues, which colour-blind readers tell apart; the report has
# shades of them for a light and a dark page. Dashes tell curves apart in grey. A score of the paper has the same colour
# in every chart, and random orders have the ink. The other scores take turns with the colours that no score has. The
# first layers avoid the colours of mutual information and KL selectivity, so that the reader does not take a layer for
# a score.
SCORE_LOOKS = {"mutual_information": (1, "dashed"), "kl_selectivity": (2, "dashdot"), "entropy": (3, "dotted")}
FREE_COLORS = (4, 5, 6)
LAYER_COLORS = (6, 5, 3, 4, 1, 2)
DASHES = ("", "dashed", "dotted", "dashdot", "sparse")
Look = tuple[str, int, str]  # the first three fields of a line: name, colour, dash
Labels = tuple[str, str, str, str]  # the first four fields of a chart: title, subtitle, labels of x and y


@dataclass(frozen=True)
class FigureSpec:
    """Specification of a figure.

    Attributes:
        number: number in the paper; None for an extra figure.
        network: node of the results.
        kind: `training` (subject: accuracy or cost), `scores` (subject: a score), `balancing` (random and mutual
            information, each with both fills) or `orders` (random and every score, bias balanced).
        subject: see `kind`.
        scope: ablated layer or network, for `balancing` and `orders`.
        direction: values first, for `balancing` and `orders`.
    """

    number: int | None
    network: str
    kind: str
    subject: str = ""
    scope: str = ""
    direction: str = "low"

    @property
    def stem(self) -> str:
        """The file name without its suffix, such as `fig06_2layer_bias_balancing_layer1`."""
        parts = {
            "training": f"training_{self.subject}",
            "scores": self.subject,
            "balancing": f"bias_balancing_{self.scope}",
            "orders": f"{self.scope}_{self.direction}_first",
        }
        prefix = "extra" if self.number is None else f"fig{self.number:02d}"
        return f"{prefix}_{self.network.replace('-', '')}_{parts[self.kind]}"


def _descriptions(network: str, first: int | None) -> list[FigureSpec]:
    """Specify training curves and score distributions; in the paper, figures 1 to 5 show the 3-layer network."""
    kinds = [("training", "accuracy"), ("training", "cost"), *(("scores", metric) for metric in METRIC_NAMES)]
    return [
        FigureSpec(None if first is None else first + i, network, kind, subject)
        for i, (kind, subject) in enumerate(kinds)
    ]


def _sweeps(network: str, depth: int, balancing: int, high: int, low: int, whole: int) -> list[FigureSpec]:
    """Specify the ablation figures of one network, from the first number of each group."""
    # the paper counts through the layers of one kind before it goes on to the next kind
    groups = (("balancing", "low", balancing), ("orders", "high", high), ("orders", "low", low))
    return [
        *(
            FigureSpec(first + i, network, kind, scope=f"layer{i + 1}", direction=direction)
            for kind, direction, first in groups
            for i in range(depth)
        ),
        FigureSpec(whole, network, "orders", scope=NETWORK_SCOPE),
    ]


_NUMBERED = [
    *_descriptions("3-layer", 1),
    *_sweeps("2-layer", 2, balancing=6, high=11, low=13, whole=21),
    *_sweeps("3-layer", 3, balancing=8, high=15, low=18, whole=22),
]
FIGURES = {spec.number: spec for spec in sorted(_NUMBERED, key=lambda spec: spec.number or 0)}
"""The 22 figures of the paper by number."""

EXTRAS = _descriptions("2-layer", None)
"""Training curves and score distributions of the 2-layer network, which the paper leaves out."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: label of the curve.
        color: number of the colour.
        dash: "" for a solid line, or a name in `DASHES`.
        values: one value for each x.
        low, high: edges of the band, one value for each x.
        band: meaning of the band; empty if there is none to draw.
        marker: symbol on the line, for renderers that can draw it; empty for none.
        networks: values of each network [network, x], if the single networks are of interest.
    """

    name: str
    color: int
    dash: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band: str
    marker: str = ""
    networks: np.ndarray | None = None


@dataclass(frozen=True)
class LineChart:
    """A chart of curves over whole numbers; `percent` marks values in 0..1 that are shown in percent."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    x: np.ndarray
    lines: Sequence[Line]
    percent: bool = False


@dataclass(frozen=True)
class Violin:
    """The distribution of the values of a group; `values` holds the defined ones, perhaps none."""

    name: str
    color: int
    values: np.ndarray


@dataclass(frozen=True)
class ViolinChart:
    """A chart of distributions."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    violins: Sequence[Violin]


@dataclass(frozen=True)
class CorrelationChart:
    """The correlation of scores with the damage of single neurons.

    Attributes:
        title: name of the network.
        scores: names of the scores.
        colors: colour of each score.
        places: names of the scopes.
        mean, low, high: mean over the networks and its 95% t-interval [score, place], cut to -1..1.
        is_cut: True if an interval was longer.
        num_networks: number of networks.
    """

    title: str
    scores: Sequence[str]
    colors: Sequence[int]
    places: Sequence[str]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_cut: bool
    num_networks: int


def score_name(score: str) -> str:
    """Return a score in words."""
    return METRIC_NAMES.get(score, score.replace("_", " "))


def short_name(score: str) -> str:
    """Return the short name of a score, or `random`."""
    return SHORT.get(score, score_name(score))


def score_colors(scores: Iterable[str]) -> dict[str, int]:
    """Return the colour of each score."""
    free = itertools.cycle(FREE_COLORS)
    return {score: SCORE_LOOKS[score][0] if score in SCORE_LOOKS else next(free) for score in scores}


def place_name(scope: str, whole: str = "whole network") -> str:
    """Return the name of an ablated layer or site; `whole` is the name of the whole network."""
    return whole if scope == NETWORK_SCOPE else re.sub(r"^layer(\d+)$", r"layer \1", scope)


def layers_of(network: xr.Dataset) -> list[str]:
    """Return the scopes that are a layer or site."""
    return [scope for scope in names_of(network, "scope") if scope != NETWORK_SCOPE]


def names_of(network: xr.Dataset, coordinate: str) -> list[str]:
    """Return the values of a coordinate as texts."""
    return [str(name) for name in network[coordinate].values]


def origin(results: xr.DataTree, network: xr.Dataset, *notes: str) -> str:
    """Return where the numbers of a figure come from, for its last line."""
    seeds, protocol = network.sizes["seed"], network.attrs["protocol"]
    parts = [f"{seeds} network{'s' if seeds > 1 else ''} on {results.attrs['dataset']}", *notes]
    parts += [f"protocol: {protocol}"] * (protocol != "paper")
    return ", ".join([*parts, f"jaxablate {json.loads(results.attrs['versions'])['jaxablate']}"])


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
    paper = _paper(kind="training", network=name, subject=subject)
    labels, x = (f"{name} network", f"training {quantity}", "Epoch", y_label), network["epoch"].values
    return _line_chart(network, labels, paper, x, lines, percent=subject == "accuracy")


def score_chart(name: str, network: xr.Dataset, score: str) -> ViolinChart:
    """Return the chart of a score's values in each layer, of all networks; undefined values are left out."""
    values = network["scores"].sel(score=score).values  # [seed, neuron]
    violins = []
    for i, scope in enumerate(layers_of(network)):
        group = values[:, network["layer"].values == i + 1].ravel()
        violins.append(Violin(place_name(scope), _layer_color(i), group[np.isfinite(group)]))
    unit = f" ({network['scores'].attrs['units']}s)" if score in METRICS else ""  # other scores have different units
    labels = (f"{name} network", score_name(score), "Hidden layer (lines: quartiles)", f"{score_name(score)}{unit}")
    return ViolinChart(*labels, _paper(kind="scores", network=name, subject=score), violins)


def balancing_chart(name: str, network: xr.Dataset, scope: str, fills: Sequence[str] = ()) -> LineChart:
    """Return the chart of random orders and of low mutual information first, under several fills or all.

    Without mutual information, the first score replaces it.
    """
    scores, balanced = names_of(network, "score"), balanced_fill(network)
    score = "mutual_information" if "mutual_information" in scores else scores[0]
    # bias balancing comes first and has the solid line
    fills = fills or [balanced, *(fill for fill in names_of(network, "fill") if fill != balanced)]
    orders = (
        (RANDOM, _random_name(network), 0, ""),
        (score, f"{short_name(score)}, low first", score_colors(scores)[score], "o"),
    )
    lines = []
    # the colour says the order and the dash says the fill, so that pairs of one colour show the effect of balancing
    for (ranking, words, color, marker), (i, fill) in itertools.product(orders, enumerate(fills)):
        fill_name = {"zero": "zeros", balanced: "bias balanced"}.get(fill, fill.replace("_", " "))
        look = (f"{words}; {fill_name}", color, DASHES[i % len(DASHES)])
        lines.append(_curve_line(network, scope, (ranking, "low"), fill, look, marker))
    return _curve_chart(name, network, scope, "with and without bias balancing", lines, "balancing")


def order_chart(
    name: str, network: xr.Dataset, scope: str, *, directions: Sequence[str] = DIRECTIONS, scores: Sequence[str] = ()
) -> LineChart:
    """Return the chart of random orders and of orders by some scores or all, in one direction or both.

    Neurons are bias balanced.
    """
    colors, fill = score_colors(names_of(network, "score")), balanced_fill(network)
    lines = [_curve_line(network, scope, (RANDOM, ""), fill, (_random_name(network), 0, ""))]
    for (i, direction), score in itertools.product(enumerate(directions), scores or colors):
        # In one direction the dash tells the scores apart. In two it tells the directions apart, since the colour
        # already says the score.
        label, dash = f"{short_name(score)}, {direction} first", DASHES[i]
        if len(directions) == 1:
            label, dash = score_name(score), SCORE_LOOKS.get(score, (0, ""))[1]
        lines.append(_curve_line(network, scope, (score, direction), fill, (label, colors[score], dash)))
    subtitle = f"{' and '.join(directions)} values first, bias balanced"
    return _curve_chart(name, network, scope, subtitle, lines, "orders")


def share_charts(name: str, network: xr.Dataset) -> list[LineChart]:
    """Return a chart for each score: shares of the layers in a whole-network order, low values first."""
    # mean, low and high by ordering, rank and layer: the share of a layer among the first neurons of an order
    summary, charts = mean_and_interval(layer_shares(network)), []
    for score in names_of(network, "score"):
        lines = []
        for i, scope in enumerate(layers_of(network)):
            parts = [part.sel(ordering=f"{score}_low", layer=i + 1) for part in summary]
            lines.append(_mean_line(network, (place_name(scope), _layer_color(i), DASHES[i % len(DASHES)]), parts))
        labels = (f"{name} network", f"{score_name(score)}, low first", "Ablated neurons", "Share of the layer")
        caption = "Share of each layer among the neurons ablated so far."
        charts.append(_line_chart(network, labels, caption, summary[0]["rank"].values, lines))
    return charts


def correlation_chart(name: str, network: xr.Dataset) -> CorrelationChart:
    """Return the correlations of each score with the damage of single neurons, in each layer and across layers."""
    summary = mean_and_interval(damage_correlations(network).transpose(..., "score", "scope"))
    mean, low, high = (part.values for part in summary)
    scores = names_of(network, "score")
    return CorrelationChart(
        f"{name} network",
        [score_name(score) for score in scores],
        list(score_colors(scores).values()),
        [place_name(scope, "across layers") for scope in names_of(network, "scope")],
        mean,
        low.clip(min=-1),  # a t-interval may leave the range of a correlation
        high.clip(max=1),
        bool((low < -1).any() or (high > 1).any()),
        network.sizes["seed"],
    )


def claim_table(verdicts: Iterable[Verdict]) -> dict[str, dict[str, dict[str, Verdict]]]:
    """Return the verdicts by claim (number and text), network and protocol, in the paper's order of claims."""
    table: dict[str, dict[str, dict[str, Verdict]]] = {}
    numbers = list(CLAIMS)  # your own claims follow
    for verdict in sorted(verdicts, key=lambda verdict: (*numbers, verdict.claim).index(verdict.claim)):
        by_network = table.setdefault(f"{verdict.claim}. {verdict.text}", {})
        by_network.setdefault(verdict.network, {})[verdict.protocol] = verdict
    return table


def _layer_color(i: int) -> int:
    return LAYER_COLORS[i % len(LAYER_COLORS)]


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
    labels = (f"{name} network, {place_name(scope)}", subtitle, "Ablated neurons", "Test accuracy")
    first = int(network.attrs["first_step"])
    steps = network["step"].values[first : first + len(lines[0].values)]
    return _line_chart(network, labels, _paper(kind=kind, network=name, scope=scope), steps, lines)


def _line_chart(
    network: xr.Dataset, labels: Labels, words: str, x: np.ndarray, lines: Sequence[Line], percent: bool = True
) -> LineChart:
    """Return a chart with a caption that adds the number of networks and the meaning of the bands."""
    seeds, band = network.sizes["seed"], lines[0].band  # random orders come first, and have a band if any curve has
    mean = f"Mean of {seeds} networks" if seeds > 1 else "One network"
    caption = f"{words} {mean}{f'; band: {band}' if band else ''}.".strip()
    return LineChart(*labels, caption, x, lines, percent)


def _paper(**attributes: str) -> str:
    """Name the paper's figures whose specification has these attributes."""
    numbers = [
        str(number)
        for number, spec in FIGURES.items()
        if all(getattr(spec, name) == value for name, value in attributes.items())
    ]
    return f"The paper's figure{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}." if numbers else ""
