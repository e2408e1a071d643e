"""Drawing: a node of the results and a `FigureSpec` come in, a matplotlib figure goes out. No statistics here."""

import json
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxablate.figures._catalogue import METRIC_NAMES, FigureSpec
from jaxablate.results import RANDOM, Curve, balanced_fill, curve

STYLE = Path(__file__).with_name("jaxablate.mplstyle")

# Okabe and Ito's palette, told apart by colour-blind readers; line styles tell the curves apart in grey
LOOKS = {
    RANDOM: {"color": "#000000", "linestyle": "-"},
    "mutual_information": {"color": "#0072B2", "linestyle": (0, (5, 1.5))},
    "kl_selectivity": {"color": "#D55E00", "linestyle": (0, (3, 1, 1, 1))},
    "entropy": {"color": "#009E73", "linestyle": (0, (1, 1))},
}
LINE_HEIGHT = 0.05  # height of a line of text, as a fraction of the axes
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)))
LAYER_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")


def score_color(metric: str, number: int) -> str:
    """Return the colour of a score, which is the same in every figure; scores that the paper lacks take turns."""
    return LOOKS[metric]["color"] if metric in LOOKS else LAYER_COLORS[number % len(LAYER_COLORS)]


def draw(results: xr.DataTree, spec: FigureSpec) -> Figure:
    """Draw one figure; the caller sets the style."""
    network = results[spec.network].to_dataset()
    figure = Figure()
    axes = figure.add_subplot()
    {"training": _training, "scores": _scores, "balancing": _balancing, "orders": _orders}[spec.kind](
        axes, network, spec
    )
    axes.set_title(f"{spec.title}\n{spec.subtitle}; data: {results.attrs['dataset']}")
    figure.text(0.01, 0.012, _provenance(results, network, spec), fontsize="x-small", color="#555555")
    return figure


def _provenance(results: xr.DataTree, network: xr.Dataset, spec: FigureSpec) -> str:
    seeds = network.sizes["seed"]
    version = json.loads(results.attrs["versions"])["jaxablate"]
    parts = [f"{seeds} network{'s' if seeds > 1 else ''} on {results.attrs['dataset']}"]
    if spec.kind in ("balancing", "orders"):
        parts.append(f"{network.attrs['num_test_examples']:,} test images")
        random = curve(network, scope=spec.scope, ranking=RANDOM, direction="low", fill="zero")
        parts += [f"band: {random.band}"] * bool(random.band)
    protocol = network.attrs["protocol"]
    return ", ".join([*parts, *[f"protocol: {protocol}"] * (protocol != "paper"), f"jaxablate {version}"])


def _training(axes: Axes, network: xr.Dataset, spec: FigureSpec) -> None:
    quantity = "accuracy" if spec.subject == "accuracy" else "loss"
    for split, style in (("train", "-"), ("validation", (0, (4, 2)))):
        values = network[f"{split}_{quantity}"]
        color, width = "#0072B2" if split == "train" else "#D55E00", 1.5 if len(values) < 4 else 0.8
        for row in values.values:
            axes.plot(network["epoch"], row, color=color, linestyle=style, linewidth=width)
        axes.lines[-1].set_label(values.attrs["long_name"])
    axes.set_xlabel(network["epoch"].attrs["long_name"].capitalize())
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if quantity == "accuracy":
        _percent_axis(axes, "Accuracy")
    else:
        axes.set_ylabel("Cross-entropy (nats)")
    _name_curves(axes)


def _scores(axes: Axes, network: xr.Dataset, spec: FigureSpec) -> None:
    values = network["scores"].sel(score=spec.subject)
    axes.set_xlabel("Hidden layer (lines: quartiles)")
    axes.set_ylabel(f"{METRIC_NAMES[spec.subject]} ({values.attrs['units']}s)")
    axes.set_xticks(np.unique(network["layer"]))
    layer_of = network["layer"].values
    scores = {layer: values.values[:, layer_of == layer].ravel() for layer in np.unique(layer_of)}
    # a protocol may leave scores undefined
    scores = {layer: group[np.isfinite(group)] for layer, group in scores.items() if np.isfinite(group).any()}
    if not scores:
        axes.text(0.5, 0.5, "undefined for every neuron", transform=axes.transAxes, ha="center")
        return
    layers, groups = list(scores), list(scores.values())
    parts = axes.violinplot(groups, positions=layers, showextrema=False, quantiles=[[0.25, 0.5, 0.75]] * len(layers))
    for body, color in zip(parts["bodies"], np.resize(LAYER_COLORS, len(layers)), strict=True):  # pyright: ignore[reportArgumentType]
        body.set(facecolor=color, edgecolor="#333333", alpha=0.6)
    parts["cquantiles"].set(color="#333333", linewidth=1)
    random = np.random.default_rng(0)
    for layer, group in zip(layers, groups, strict=True):
        near = layer + random.uniform(-0.04, 0.04, len(group))
        axes.scatter(near, group, s=2, color="#333333", alpha=min(0.4, 100 / len(group)), linewidth=0)


def _plot_curve(axes: Axes, network: xr.Dataset, summary: Curve, label: str, **look) -> None:
    part = slice(int(network.attrs["first_step"]), None)
    (line,) = axes.plot(summary.step[part], summary.mean[part], label=label, **look)
    if summary.band:
        axes.fill_between(
            summary.step[part], summary.low[part], summary.high[part], color=line.get_color(), alpha=0.15, linewidth=0
        )


def _curve_axes(axes: Axes, network: xr.Dataset) -> None:
    axes.set_xlabel(network["step"].attrs["long_name"].capitalize())
    _percent_axis(axes, network["accuracy"].attrs["long_name"].capitalize())
    axes.set_xlim(0, int(network["step"][-1]))
    _name_curves(axes)


def _percent_axis(axes: Axes, name: str) -> None:
    axes.set_ylabel(f"{name} (%)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}"))


def _name_curves(axes: Axes) -> None:
    """Write each name at the end of its curve if all names fit there after a small shift, else draw a legend."""
    lines = [line for line in axes.lines if str(line.get_label())[0] != "_"]
    lines.sort(key=lambda line: np.asarray(line.get_ydata())[-1])
    names = [str(line.get_label()).replace("; ", ";\n").replace(" (", "\n(") for line in lines]
    low, high = axes.get_ylim()
    ends = np.array([(np.asarray(line.get_ydata())[-1] - low) / (high - low) for line in lines])
    room = LINE_HEIGHT * np.array([name.count("\n") + 1 for name in names])
    # Heights start at the curves' ends, are raised until no name covers the one below, and are lowered by half of the
    # largest shift. `below` is the least distance of each name's middle from the first name's.
    below = np.concatenate([[0], np.cumsum((room[1:] + room[:-1]) / 2)])
    heights = np.maximum.accumulate(ends - below) + below
    heights -= (heights - ends).max() / 2
    fits = np.diff(ends).min() >= LINE_HEIGHT / 3 and np.abs(heights - ends).max() <= LINE_HEIGHT  # False for NaN
    if not fits:
        axes.legend()
        return
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.subplots_adjust(right=0.76)
    for line, name, height in zip(lines, names, heights, strict=True):
        axes.annotate(
            name, (1, height), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points",
            color=line.get_color(), fontsize="small", va="center", annotation_clip=False,
        )  # fmt: skip


def _random_name(network: xr.Dataset) -> str:
    return f"random (mean of {int((network['ranking'] == RANDOM).sum()) * network.sizes['seed']})"


def _balancing(axes: Axes, network: xr.Dataset, spec: FigureSpec) -> None:
    names = {RANDOM: _random_name(network), "mutual_information": "MI, low values first"}
    for ranking, name in names.items():
        balanced = balanced_fill(network)
        for fill, suffix, linestyle in ((balanced, "bias balanced", "-"), ("zero", "zeros", (0, (4, 2)))):
            summary = curve(network, scope=spec.scope, ranking=ranking, direction=spec.direction, fill=fill)
            marks = (
                {} if ranking == RANDOM else {"marker": "o", "markersize": 3, "markevery": 0.1}
            )  # markers distinguish the curves in greyscale
            look = {"color": LOOKS[ranking]["color"], "linestyle": linestyle, **marks}
            _plot_curve(axes, network, summary, f"{name}; {suffix}", **look)
    _curve_axes(axes, network)


def _orders(axes: Axes, network: xr.Dataset, spec: FigureSpec) -> None:
    for ranking, look in LOOKS.items():
        fill = balanced_fill(network)
        summary = curve(network, scope=spec.scope, ranking=ranking, direction=spec.direction, fill=fill)
        name = _random_name(network) if ranking == RANDOM else METRIC_NAMES[ranking]
        _plot_curve(axes, network, summary, name, **look)
    _curve_axes(axes, network)
