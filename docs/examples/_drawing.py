"""Drawing helpers of the three examples: colours for colour-blind readers, a style, curves with bands."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's palette
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, AMBER, SKY = "#CC79A7", "#E69F00", "#56B4E9"

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.6,
}
styled = matplotlib.rc_context(STYLE)  # decorates the functions that draw


def new_figure(rows: int, columns: int, *, width: float = 4.0, height: float = 3.6, share: bool = False):
    """Return a figure and its panels [row, column] of this size in inches; with `share` all y axes have one range."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share)


def plot_curves(axes: Axes, ablated: np.ndarray, values: np.ndarray, label: str, **look) -> None:
    """Draw the mean of the curves [order, step]; for several curves also a band from minimum to maximum."""
    (line,) = axes.plot(ablated, values.mean(axis=0), label=label, **{"linewidth": 1.5, **look})
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(ablated, low, high, color=line.get_color(), alpha=0.13, linewidth=0)


def in_percent(axes: Axes) -> None:
    """Write the values of the y axis as percentages."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def save(figure: Figure, out: Path) -> None:
    """Write the figure and print its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, pil_kwargs={"optimize": True})
    print(f"figure: {out}")
