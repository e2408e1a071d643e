"""Draw how a result depends on the quantizer, from a sensitivity dataset."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from jaxablate.figures._catalogue import METRIC_NAMES
from jaxablate.figures._draw import score_color
from jaxablate.layer_analysis import mean_and_interval
from jaxablate.results import NETWORK_SCOPE

FAMILY_LINES = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = "osD^vP"


def sensitivity_figure(sensitivity: xr.Dataset, title: str) -> Figure:
    """Draw rank correlations with the first quantizer (above) and differences of AUC (below) by number of codes."""
    gap = sensitivity["auc"].sel(direction="low") - sensitivity["auc"].sel(direction="high")
    rows = {
        "Rank correlation with\nthe first quantizer": sensitivity["rank_correlation"],
        "AUC, low minus high\nvalues first (points)": gap,
    }
    scopes = [str(scope) for scope in sensitivity["scope"].values]
    figure = Figure(figsize=(2.9 * len(scopes) + 0.6, 5.6))
    grid = figure.subplots(2, len(scopes), sharex=True, sharey="row", squeeze=False)
    for axes_of_row, (name, values) in zip(grid, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, scope in zip(axes_of_row, scopes, strict=True):
            _panel(axes, values.sel(scope=scope).rename(network="seed"), sensitivity["num_codes"])
    for axes, scope in zip(grid[0], scopes, strict=True):
        axes.set_title("whole network" if scope == NETWORK_SCOPE else scope.replace("layer", "layer "))
    for axes in grid[1]:
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_xlabel("Number of codes")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, 0.945), ncols=6, fontsize="small")
    figure.text(0.01, 0.965, title, fontsize="large")
    first, networks, attrs = sensitivity["quantizer"].values[0], sensitivity.sizes["network"], sensitivity.attrs
    caption = (
        f"first quantizer (stars): {first}; {attrs['steps']} neurons ablated, fill: {attrs['fill']}; "
        f"{networks} network{'s' if networks > 1 else ''} on {attrs['dataset']}"
        + ("; bars: 95% t-interval of the mean" if networks > 1 else "")
    )
    figure.text(0.01, 0.012, caption, fontsize="x-small", color="#555555")
    figure.subplots_adjust(0.95 / (2.9 * len(scopes) + 0.6), 0.11, 0.99, 0.8, wspace=0.06, hspace=0.08)
    return figure


def _panel(axes: Axes, values: xr.DataArray, num_codes: xr.DataArray) -> None:
    """Draw values (seed, score, quantizer); a line joins the quantizers of a family, for example quantile."""
    mean, low, high = mean_and_interval(values)
    names = [str(name) for name in values["quantizer"].values]
    families = [name.split(":")[0] for name in names[1:]]
    metrics = [str(metric) for metric in values["score"].values]
    for i, metric in enumerate(metrics):
        color = score_color(metric, i)
        shift = 1 + 0.05 * (i - (len(metrics) - 1) / 2)  # shifted so that scores do not cover each other
        cell = {"score": metric}
        bars = [(mean - low).sel(cell), (high - mean).sel(cell)]
        x = shift * num_codes.values
        axes.errorbar(
            x[:1], mean.sel(cell)[:1], [bar[:1] for bar in bars], color=color, marker="*", markersize=9, linestyle="",
            label=METRIC_NAMES.get(metric, metric.replace("_", " ")),
        )  # fmt: skip
        for j, family in enumerate(dict.fromkeys(families)):
            chosen = [k for k, name in enumerate(families, start=1) if name == family]
            axes.errorbar(
                x[chosen], mean.sel(cell)[chosen], [bar[chosen] for bar in bars], color=color, markersize=3.5,
                marker=MARKERS[j % len(MARKERS)], linestyle=FAMILY_LINES[j % len(FAMILY_LINES)], linewidth=1.2,
            )  # fmt: skip
    for j, family in enumerate(dict.fromkeys(families)):
        axes.errorbar(
            [], [], color="#555555", marker=MARKERS[j % len(MARKERS)], markersize=3.5, label=family,
            linestyle=FAMILY_LINES[j % len(FAMILY_LINES)],
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(num_codes.values.tolist())))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
