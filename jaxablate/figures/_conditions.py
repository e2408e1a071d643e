"""Draw the comparisons of every condition of a grid."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxablate.charts import INTERVAL, comparison_name, names_of
from jaxablate.figures._draw import COLORS, INK, NotebookFigure, add_caption, styled
from jaxablate.results import compare_conditions
from jaxablate.results._labels import require_results

MARKERS = "osD^vP*X"
ROW = 0.24
"""Height in inches of a condition's interval for one network."""


@styled
def draw_conditions(results: xr.DataTree, protocol: str = "paper") -> Figure:
    """Draw the comparisons of every condition of a grid as intervals.

    A comparison is a difference of areas under the curves of the whole network. Right of 0, the first order costs less
    accuracy than the second, or bias balancing costs less than zeros.

    Args:
        results: results of a grid, from `run_study` or `load_results`.
        protocol: the protocol whose results are drawn.

    Returns:
        A Matplotlib figure: conditions in rows, comparisons in columns, networks by colour and marker. The numbers come
        from `ja.results.compare_conditions`.

    Raises:
        InputError: for a protocol that is not in the results.
    """
    require_results(results)
    data = compare_conditions(results, protocol)
    conditions, networks, comparisons = (names_of(data, name) for name in ("condition", "network", "comparison"))
    # All lengths are in inches: a grid may have two conditions or hundreds, and a row must keep its height.
    name_width = 0.3 + 0.075 * max(map(len, conditions))
    width, height = name_width + 1.75 * len(comparisons), 1.3 + ROW * (len(networks) + 0.5) * len(conditions)
    figure = NotebookFigure(figsize=(width, height))
    axes = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=name_width / width, right=1 - 0.1 / width, top=1 - 0.65 / height, bottom=0.65 / height, wspace=0.08
    )
    middles = np.arange(len(conditions)) * (len(networks) + 0.5)
    for column, comparison in zip(axes, comparisons, strict=True):
        for i, network in enumerate(networks):
            chosen = data.sel(network=network, comparison=comparison)
            _draw_intervals(column, chosen, middles + i - (len(networks) - 1) / 2, i, network)
        column.axvline(0, color=INK, linewidth=0.8)
        column.set_title(comparison_name(comparison).replace(" \u2212 ", "\n\u2212 "), fontsize="medium")
        column.tick_params(axis="y", length=0)
        column.grid(False, axis="y")
        column.tick_params(axis="x", labelsize="small")
        for middle in (middles[:-1] + middles[1:]) / 2:
            column.axhline(middle, color="#dddddd", linewidth=0.6)
    axes[0].set_yticks(middles, conditions)
    # The axis points down, so the first condition is at the top.
    axes[0].set_ylim(middles[-1] + (len(networks) + 0.5) / 2, -(len(networks) + 0.5) / 2)
    label = "difference of the areas under the curves of the whole network, accuracy points"
    figure.supxlabel(label, fontsize="medium", y=0.3 / height)
    if len(networks) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", frameon=False, fontsize="small")
    number = int(data["num_networks"].max())
    add_caption(
        figure, f"{number} networks of each kind and condition; bars: {INTERVAL}; data: {results.attrs['dataset']}"
    )
    return figure


def _draw_intervals(axes: Axes, chosen: xr.Dataset, heights: np.ndarray, i: int, network: str) -> None:
    """Draw the intervals of one network and comparison, one condition at each height; a dot if it has no interval."""
    mean = chosen["difference"].values
    # A single network has no interval: a bar of length 0 leaves the marker alone.
    reach = np.nan_to_num(np.stack([mean - chosen["low"].values, chosen["high"].values - mean]))
    axes.errorbar(
        mean,
        heights,
        xerr=reach,
        fmt=MARKERS[i % len(MARKERS)],
        color=COLORS[1 + i % (len(COLORS) - 1)],
        markersize=4,
        linewidth=1.2,
        label=network,
    )
