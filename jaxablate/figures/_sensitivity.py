"""Draw how a result depends on the quantizer."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from jaxablate._checks import InputError
from jaxablate.charts import INTERVAL, names_of, place_name, score_colors, score_name
from jaxablate.figures._draw import COLORS, DASHES, INK, SOFT, NotebookFigure, add_caption, styled
from jaxablate.layer_analysis import mean_and_interval

MARKERS = "osD^vP"


@styled
def draw_sensitivity(sensitivity: xr.Dataset, *, title: str = "Does the result depend on the quantizer?") -> Figure:
    """Draw how ranks and curves change with the quantizer and its number of codes.

    Args:
        sensitivity: from `ja.study.quantizer_sensitivity`.
        title: above the panels.

    Returns:
        A matplotlib figure with a column for each scope: above, Spearman's correlation with the scores under the first
        quantizer; below, by how much the AUC is higher with low values first than with high ones, in accuracy points.
        Both are means over the networks, with 95% t-intervals.
    """
    is_sensitivity = isinstance(sensitivity, xr.Dataset) and "quantizer" in sensitivity.coords
    if not is_sensitivity:
        raise InputError(
            f"sensitivity: expected results from ja.study.quantizer_sensitivity, got {type(sensitivity).__name__}"
        )
    gap = sensitivity["auc"].sel(direction="low") - sensitivity["auc"].sel(direction="high")
    rows = {
        "Rank correlation with\nthe first quantizer": sensitivity["rank_correlation"],
        "AUC, low minus high\nvalues first (points)": gap,
    }
    scopes = names_of(sensitivity, "scope")
    width = 2.9 * len(scopes) + 0.6
    figure = NotebookFigure(figsize=(width, 5.6))
    grid = figure.subplots(2, len(scopes), sharex=True, sharey="row", squeeze=False)
    for axes_of_row, (name, values) in zip(grid, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, scope in zip(axes_of_row, scopes, strict=True):
            _panel(axes, values.sel(scope=scope).rename(network="seed"), sensitivity["num_codes"])
    for upper, lower, scope in zip(*grid, scopes, strict=True):
        upper.set_title(place_name(scope))
        lower.axhline(0, color=INK, linewidth=0.8)
        lower.set_xlabel("Number of codes")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.0, 0.945),
        ncols=6,
        fontsize="small",
    )
    figure.text(0.01, 0.965, title, fontsize="large")
    first, networks, attrs = sensitivity["quantizer"].values[0], sensitivity.sizes["network"], sensitivity.attrs
    add_caption(
        figure,
        f"first quantizer (stars): {first}; {attrs['steps']} neurons ablated, fill: {attrs['fill']}; "
        f"{networks} network{'s' if networks > 1 else ''} on {attrs['dataset']}"
        + (f"; bars: {INTERVAL}" if networks > 1 else ""),
    )
    # the labels of the first column need the same room in inches, however wide the figure is
    figure.subplots_adjust(0.95 / width, 0.11, 0.99, 0.8, wspace=0.06, hspace=0.08)
    return figure


def _panel(axes: Axes, values: xr.DataArray, num_codes: xr.DataArray) -> None:
    """Draw values (seed, score, quantizer); a line joins the quantizers of a family, for example quantile."""
    mean, low, high = mean_and_interval(values)
    # the first quantizer is the reference and has a star of its own
    names = [str(name).split(":")[0] for name in values["quantizer"].values[1:]]
    families = {
        family: {"marker": MARKERS[j % len(MARKERS)], "linestyle": list(DASHES.values())[j % len(DASHES)]}
        for j, family in enumerate(dict.fromkeys(names))
    }
    colors = score_colors(map(str, values["score"].values))
    for i, (score, color) in enumerate(colors.items()):
        shift = 1 + 0.09 * (i - (len(colors) - 1) / 2)  # shifted so that scores do not cover each other
        cell, x = {"score": score}, shift * num_codes.values
        bars = [(mean - low).sel(cell), (high - mean).sel(cell)]
        axes.errorbar(
            x[:1], mean.sel(cell)[:1], [bar[:1] for bar in bars], color=COLORS[color], marker="*", markersize=7,
            linestyle="", label=score_name(score),
        )  # fmt: skip
        for family, look in families.items():
            chosen = [k for k, name in enumerate(names, start=1) if name == family]
            axes.errorbar(
                x[chosen], mean.sel(cell)[chosen], [bar[chosen] for bar in bars], color=COLORS[color], markersize=3.5,
                linewidth=1.2, **look,
            )  # fmt: skip
    # the legend names scores by colour and families by marker, so a family has a grey entry without data
    for family, look in families.items():
        axes.errorbar([], [], color=SOFT, markersize=3.5, label=family, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(num_codes.values.tolist())))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
