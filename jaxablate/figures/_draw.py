"""Draw the charts of the paper's figures; the choice of curves, names and colours is in `charts`."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxablate._checks import require_type
from jaxablate.charts import FIGURES, FigureSpec, LineChart, ViolinChart, figure_chart, origin, published_chart
from jaxablate.results._labels import is_passed, require_results

styled = matplotlib.style.context(Path(__file__).with_name("jaxablate.mplstyle"), after_reset=True)
"""Decorator of functions that draw or save a figure in the package's style, whatever the user's matplotlibrc says."""

# by the numbers and names of `charts`
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = {
    "": "-",
    "dashed": (0, (5, 1.5)),
    "dotted": (0, (1, 1)),
    "dashdot": (0, (3, 1, 1, 1)),
    "sparse": (0, (1, 3)),
}
INK, SOFT = "#333333", "#555555"
CAPTION_WIDTH = 21.5  # characters of a caption in an inch, with some room, in files of 150 dots per inch
LINE_HEIGHT = 0.05  # height of a line of text, as a fraction of the axes


class NotebookFigure(Figure):
    """A figure that a notebook displays if it is the last value of a cell, without pyplot."""

    @styled
    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


@styled
def draw(results: xr.DataTree, spec: FigureSpec) -> Figure:
    """Draw one figure of the paper."""
    network, chart = results[spec.network].to_dataset(), figure_chart(results, spec)
    figure, notes = NotebookFigure(), []
    axes = figure.add_subplot()
    if isinstance(chart, ViolinChart):
        draw_violins(axes, chart)
        if any(violin.note for violin in chart.violins):
            # the names of the violins have a second line, which is long
            figure.subplots_adjust(bottom=0.19)
            axes.tick_params(axis="x", labelsize="small")
    else:
        draw_lines(axes, chart)
        if spec.kind != "training":
            axes.set_xlim(0, chart.x[-1])
            notes = [f"{network.attrs['num_test_examples']:,} test images"]
            notes += [f"band: {line.band}" for line in chart.lines[:1] if line.band]
        _name_curves(axes)
    # a number of the paper's figures says nothing about a network that only has the name of the paper's network
    number = "" if spec.number is None or is_passed(network) else f"Figure {spec.number}. "
    axes.set_title(f"{number}{chart.title}\n{chart.subtitle}; data: {results.attrs['dataset']}")
    add_caption(figure, origin(results, network, *notes))
    return figure


@styled
def draw_published(results: xr.DataTree, number: int, published: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the curves of a published figure over ours.

    Args:
        results: results of one protocol, for example `select_protocol(results, "published")`, of two networks or more.
        number: 6 to 22, as in the paper.
        published: accuracies in percent at 1, 2, ... ablated neurons by the name of the curve, as in
            `charts.compare_published`.

    Returns:
        A matplotlib figure: the published curves are solid, the means of our networks dashed, and the bands are 95%
        prediction intervals of one new network at each step.

    Raises:
        InputError: for an unknown number or name, a single network, or more values than the results have steps.
    """
    require_results(results)
    require_type("published", published, Mapping, "values by curve")
    chart = published_chart(results, number, published)
    network = results[FIGURES[number].network].to_dataset()
    figure = NotebookFigure()
    axes = figure.add_subplot()
    draw_lines(axes, chart)
    axes.set_xlim(0, chart.x[-1])
    _name_curves(axes)
    axes.set_title(f"Figure {number}. {chart.title}\n{chart.subtitle}")
    add_caption(figure, origin(results, network, f"band: {chart.lines[0].band}"))
    return figure


def add_caption(figure: Figure, text: str, y: float = 0.012) -> None:
    """Write small text at the bottom of a figure; a text that is too wide takes a second line below the charts."""
    lines = textwrap.wrap(text, int(CAPTION_WIDTH * figure.get_figwidth()))
    if len(lines) > 1:
        room = 0.16 * (len(lines) - 1) / figure.get_figheight()
        figure.subplots_adjust(bottom=figure.subplotpars.bottom + room)
    figure.text(0.01, y, "\n".join(lines), fontsize="x-small", color=SOFT)


def draw_lines(axes: Axes, chart: LineChart) -> None:
    """Draw curves with their bands, or the curve of every network where the chart has them."""
    for line in chart.lines:
        look = {"color": COLORS[line.color], "linestyle": DASHES[line.dash]}
        if line.networks is not None:
            # many curves of one colour are thin, and only the last one has a label, which names them all
            look["linewidth"] = 1.5 if len(line.networks) < 4 else 0.8
            axes.plot(chart.x, line.networks.T, **look)[-1].set_label(line.name)
            continue
        if line.marker:  # which distinguishes the curves in grey
            look |= {"marker": line.marker, "markersize": 3, "markevery": 0.1}
        axes.plot(chart.x, line.values, label=line.name or None, **look)
        if line.band:
            axes.fill_between(chart.x, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(f"{chart.y_label} (%)" if chart.percent else chart.y_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    if chart.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}"))


def draw_violins(axes: Axes, chart: ViolinChart) -> None:
    """Draw distributions with their quartiles and a dot for each value."""
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    names = [f"{violin.name}\n{violin.note}".rstrip() for violin in chart.violins]
    axes.set_xticks(range(1, len(chart.violins) + 1), names)
    axes.set_xlim(0.5, len(chart.violins) + 0.5)
    if chart.bound is not None:
        value, name = chart.bound
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=DASHES["dashed"])
        axes.annotate(
            name, (0.995, value), xycoords=axes.get_yaxis_transform(), xytext=(0, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize="small",
        )  # fmt: skip
    # a protocol may leave scores undefined, and matplotlib draws no violin without values
    defined = [(x, violin) for x, violin in enumerate(chart.violins, start=1) if len(violin.values)]
    if not defined:
        axes.text(0.5, 0.5, "undefined for every neuron", transform=axes.transAxes, ha="center")
        return
    parts = axes.violinplot(
        [violin.values for _, violin in defined],
        positions=[x for x, _ in defined],
        showextrema=False,
        quantiles=[[0.25, 0.5, 0.75]] * len(defined),
    )
    parts["cquantiles"].set(color=INK, linewidth=1)
    # every neuron is a dot at a random distance from the middle, which is the same in every run
    random = np.random.default_rng(0)
    for body, (x, violin) in zip(parts["bodies"], defined, strict=True):  # pyright: ignore[reportArgumentType]
        body.set(facecolor=COLORS[violin.color], edgecolor=INK, alpha=0.6)
        near, size = x + random.uniform(-0.04, 0.04, len(violin.values)), len(violin.values)
        axes.scatter(near, violin.values, s=2, color=INK, alpha=min(0.4, 100 / size), linewidth=0)


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
    # ends that are closer than a third of a line are too close to tell which name belongs to which curve
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
