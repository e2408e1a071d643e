"""Decide what each chart shows; `figures` and `report` draw the same charts.

Input: results of a study, and verdicts on claims.
Output: dataclasses of NumPy arrays and texts. A colour is a number from 0 to 6 and a dash a name, for which each
renderer has its own palette.
Memory: one chart at a time.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.claims import (
    CLAIMS,
    HOLDS_IN_PART,
    NO_DIFFERENCE,
    REVERSED,
    REVERSED_IN_PART,
    SHORT,
    Effect,
    Verdict,
)
from jaxablate.layer_analysis import damage_correlations, layer_shares, mean_and_interval
from jaxablate.metrics import METRICS
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import PUBLISHED
from jaxablate.results import NETWORK_SCOPE, RANDOM, balanced_fill, curve, keep_only
from jaxablate.results._labels import is_passed, neuron_numbers
from jaxablate.results._summaries import INTERVAL, ordering_places
from jaxablate.statistics import auc, estimate

__all__ = [
    "EXTRAS",
    "FIGURES",
    "INTERVAL",
    "METRIC_NAMES",
    "CorrelationChart",
    "FigureSpec",
    "Line",
    "LineChart",
    "Prediction",
    "PublishedCurve",
    "Violin",
    "ViolinChart",
    "balancing_chart",
    "claim_table",
    "class_chart",
    "compare_published",
    "correlation_chart",
    "deciding_effect",
    "figure_chart",
    "keep_chart",
    "layers_of",
    "names_of",
    "order_chart",
    "origin",
    "place_name",
    "published_chart",
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
MAX_CLASSES = 6  # of a chart, as many as there are colours
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
        name: label of the curve; empty for a curve that is not named.
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
    """The distribution of the values of a group.

    Attributes:
        name: name of the group.
        color: number of the colour.
        values: the defined values, perhaps none.
        note: number of neurons of a network without a value, a mean over networks; empty if there is none.
    """

    name: str
    color: int
    values: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class ViolinChart:
    """A chart of distributions; `bound` is a value with a name, drawn as a horizontal line."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    violins: Sequence[Violin]
    bound: tuple[float, str] | None = None


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


def order_name(ordering: str) -> str:
    """Return the name of an ordering for readers: "MI low" for "mutual_information_low", "random" for "random"."""
    ranking, _, direction = ordering.rpartition("_")
    return f"{short_name(ranking)} {direction}" if ranking else ordering


def comparison_name(comparison: str) -> str:
    """Return the name of a comparison of `compare_conditions` for readers: two orderings around a minus sign."""
    return " \u2212 ".join(map(order_name, comparison.split(" - ")))


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
    paper = _paper(network, kind="training", network=name, subject=subject)
    labels, x = (f"{name} network", f"training {quantity}", "Epoch", y_label), network["epoch"].values
    return _line_chart(network, labels, paper, x, lines, percent=subject == "accuracy")


def score_chart(name: str, network: xr.Dataset, score: str) -> ViolinChart:
    """Return the chart of a score's values in each layer, of all networks; it counts undefined values."""
    values = network["scores"].sel(score=score).values  # [seed, neuron]
    violins = []
    for i, scope in enumerate(layers_of(network)):
        group = values[:, network["layer"].values == i + 1]
        defined = np.isfinite(group)
        undefined = float((~defined).sum(axis=1).mean())
        note = f"{round(undefined, 1):g} of {group.shape[1]} undefined" if undefined else ""
        violins.append(Violin(place_name(scope), _layer_color(i), group[defined], note))
    subtitle = quantity = score_name(score)
    bound = None
    protocol = network.attrs["protocol"]
    if score == "mutual_information" and (protocol == PUBLISHED or "mi_sign" in protocol.split("+")):
        quantity, bound = "H(T) + H(T|Y)", (math.log(2), "ln 2: largest entropy of one bit")
        subtitle = f"{quantity}, published as mutual information"
    unit = f" ({network['scores'].attrs['units']}s)" if score in METRICS else ""  # other scores have different units
    labels = (f"{name} network", subtitle, "Hidden layer (lines: quartiles)", f"{quantity}{unit}")
    return ViolinChart(*labels, _paper(network, kind="scores", network=name, subject=score), violins, bound)


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
    scores = names_of(network, "score")
    score = "mutual_information" if "mutual_information" in scores else scores[0]
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
    shown = f"the {MAX_CLASSES} of {len(losses)} classes that lose most" if len(losses) > MAX_CLASSES else "each class"
    subtitle = f"{shown}; {short_name(score)} high first, bias balanced"
    return _curve_chart(name, network, scope, subtitle, lines, "")


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


def deciding_effect(verdict: Verdict) -> Effect | None:
    """Return the effect that decides a claim: the smallest one with the verdict of the claim; None if not judged.

    Effects are positive as claimed, so the smallest one is the furthest from what the claim needs. A verdict "in part"
    is decided by the part that does not hold.
    """
    # an effect itself has no verdict "in part"
    kind = {HOLDS_IN_PART: NO_DIFFERENCE, REVERSED_IN_PART: REVERSED}.get(verdict.verdict, verdict.verdict)
    effects = [effect for effect in verdict.effects if effect.verdict == kind]
    return min(effects, key=lambda effect: effect.mean, default=None)


@dataclass(frozen=True)
class Prediction:
    """A published number and the 95% prediction interval of one new network, in percent.

    Attributes:
        published: the number in the paper.
        mean: mean of our networks.
        low, high: ends of the prediction interval.
    """

    published: float
    mean: float
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        """Return True if the published number lies in the interval."""
        return self.low <= self.published <= self.high


@dataclass(frozen=True)
class PublishedCurve:
    """A curve of the paper and the same curve of our networks, at 1, 2, ... ablated neurons; every array is [step].

    Attributes:
        name: name of the curve.
        values: accuracies in the paper, as fractions.
        mean: mean accuracies of our networks, as fractions.
        low, high: 95% prediction interval of one new network at each step.
        area: AUC, the mean accuracy over the steps.
        end: accuracy at the last step.
    """

    name: str
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: Prediction
    end: Prediction


PREDICTION = "95% prediction interval of one new network"
# order (ranking, values that go first), fill (None: bias balancing) and colour of each published curve; a ranking of
# figures 11 to 22 has the direction of its figure
_PUBLISHED_BALANCING = {
    "random, zeros": (RANDOM, "zero", 0),
    "random, balanced": (RANDOM, None, 1),
    "MI low first, zeros": ("mutual_information", "zero", 2),
    "MI low first, balanced": ("mutual_information", None, 3),
}
_PUBLISHED_ORDERS = {
    "random": (RANDOM, None, 0),
    "mutual information": ("mutual_information", None, 1),
    "KL selectivity": ("kl_selectivity", None, 2),
    "entropy": ("entropy", None, 3),
}


def _published_looks(number: int) -> Mapping[str, tuple[str, str | None, int]]:
    """Return the ranking, the fill and the colour of each curve of a published figure."""
    numbers = [number for number, spec in FIGURES.items() if spec.kind in ("balancing", "orders")]
    require(number in numbers, f"figure: expected a number in {numbers[0]}..{numbers[-1]}, got {number}")
    return _PUBLISHED_BALANCING if FIGURES[number].kind == "balancing" else _PUBLISHED_ORDERS


def compare_published(
    results: xr.DataTree, number: int, published: Mapping[str, Sequence[float]]
) -> list[PublishedCurve]:
    """Compare the curves of a published figure with the prediction intervals of one new network.

    The interval is mean +- t * s * sqrt(1 + 1/n) for n networks with standard deviation s, where t is the 97.5%
    quantile of the t-distribution with n - 1 degrees of freedom. It covers the randomness of training and of one random
    order, since a published random curve is one draw; it does not cover another split.

    Args:
        results: results of one protocol, for example `select_protocol(results, "published")`, of two networks or more.
        number: 6 to 22, as in the paper.
        published: accuracies in percent at 1, 2, ... ablated neurons, by the name of the curve. The names are "random",
            "mutual information", "KL selectivity" and "entropy". In figures 6 to 10 they are "random, zeros", "random,
            balanced", "MI low first, zeros" and "MI low first, balanced".

    Returns:
        One `PublishedCurve` for each published curve.

    Raises:
        InputError: for an unknown number or name, a single network, or more values than the results have steps.

    Source: Hahn and Meeker, Statistical Intervals (1991), section 4.
    """
    looks, spec = _published_looks(number), FIGURES[number]
    require(
        spec.network in results.children,
        f"figure {number}: expected results with a {spec.network} network, got {list(results.children)}",
    )
    network = results[spec.network].to_dataset()
    require(network.sizes["seed"] > 1, "results: one network has no prediction interval; train two or more")
    lengths = {len(values) for values in published.values()}
    require(len(lengths) == 1, f"published: expected curves of one length, got {sorted(lengths) or 'no curve'}")
    curves = []
    for name, percents in published.items():
        require_known("published", name, looks)
        ranking, fill, _ = looks[name]
        values = np.asarray(percents, np.float64) / 100
        accuracy = network["accuracy"].sel(scope=spec.scope, fill=fill or balanced_fill(network))
        places = ordering_places(network, ranking, spec.direction)
        # the mean over several random orders of each network would vary less than one published curve
        accuracy = accuracy.isel(ordering=places[0]).dropna("step").transpose("seed", "step")
        require(
            bool((neuron_numbers(accuracy) == accuracy["step"]).all()),
            "results: published curves ablate one neuron at each step; run the study with steps=80",
        )
        num_steps = accuracy.sizes["step"] - 1
        require(
            1 <= len(values) <= num_steps,
            f"published: expected 1 to {num_steps} values of {name!r}, as the results have steps, got {len(values)}",
        )
        ours = accuracy.values[:, : len(values) + 1]
        mean, low, high = _predict(ours[:, 1:])
        area = Prediction(float(100 * values.mean()), *map(float, _predict(auc(ours))))
        end = Prediction(float(100 * values[-1]), *(float(100 * part[-1]) for part in (mean, low, high)))
        curves.append(PublishedCurve(name, values, mean, low, high, area, end))
    return curves


def _predict(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean [...] of values [network, ...], and the ends of the prediction interval of one new network."""
    estimated = estimate(values)
    return (estimated.mean, *estimated.prediction_interval())


def published_chart(results: xr.DataTree, number: int, published: Mapping[str, Sequence[float]]) -> LineChart:
    """Return the chart of a published figure: its curves are solid, and our means are dashed, with their bands.

    Arguments and errors are those of `compare_published`.
    """
    curves, colors = compare_published(results, number, published), _published_looks(number)
    lines = []
    # the published curves come last, so that they are drawn over ours
    for pair in curves:
        lines.append(Line("", colors[pair.name][2], "dashed", pair.mean, pair.low, pair.high, PREDICTION))
    for pair in curves:
        lines.append(Line(pair.name, colors[pair.name][2], "", pair.values, pair.values, pair.values, ""))
    spec = FIGURES[number]
    order = f"{spec.direction} values first" if spec.kind == "orders" else "with, without balancing"
    subtitle = f"{order}; solid: published, dashed: our mean"
    labels = (f"{spec.network} network, {place_name(spec.scope)}", subtitle, "Ablated neurons", "Test accuracy")
    steps = np.arange(1, len(lines[0].values) + 1)
    network = results[spec.network].to_dataset()
    return _line_chart(network, labels, f"The paper's figure {number}.", steps, lines)


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
    is_kept = "num_kept" in network.coords  # from `keep_only`; the paper has no such curves
    x_label = "Kept neurons" if is_kept else "Ablated neurons"
    labels = (f"{name} network, {place_name(scope)}", subtitle, x_label, "Test accuracy")
    first = int(network.attrs["first_step"])
    steps = neuron_numbers(network).sel(scope=scope).values[first : first + len(lines[0].values)]
    paper = "" if is_kept else _paper(network, kind=kind, network=name, scope=scope)
    return _line_chart(network, labels, paper, steps, lines)


def _line_chart(
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
    seeds, band = network.sizes["seed"], lines[0].band  # random orders come first, and have a band if any curve has
    mean = f"Mean of {seeds} networks" if seeds > 1 else "One network"
    caption = f"{words} {mean}{f'; band: {band}' if band else ''}.".strip()
    return LineChart(*labels, caption, x, lines, percent)


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
