"""Draw the figures of the findings from verdicts, verdict changes and summaries; no statistics."""

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxablate.claims import CLAIMS, FAILS, HOLDS, POINTS, UNDECIDED, Verdict, VerdictChange
from jaxablate.figures._catalogue import METRIC_NAMES
from jaxablate.figures._draw import LAYER_COLORS, LINE_STYLES, score_color
from jaxablate.layer_analysis import damage_correlations, layer_shares, mean_and_interval
from jaxablate.protocols import SETS
from jaxablate.results import NETWORK_SCOPE, select_protocol

COMPARED = SETS["both"]
VERDICT_LOOKS = {HOLDS: ("#0072B2", "o"), FAILS: ("#D55E00", "x"), UNDECIDED: ("#888888", ".")}
LINE = 0.075  # inches of height for one effect


def forest(verdicts: Sequence[Verdict], caption: str) -> Figure:
    """Draw every effect with its interval, grouped by claim and network, with a column for each protocol."""
    protocols = [name for name in COMPARED if any(verdict.protocol == name for verdict in verdicts)]
    by_place: dict[tuple[str, str], list[Verdict]] = {}  # the protocols' verdicts, by claim and network
    for verdict in sorted(verdicts, key=lambda verdict: list(CLAIMS).index(verdict.claim)):
        if verdict.protocol in protocols:
            by_place.setdefault((verdict.claim, verdict.network), []).append(verdict)
    panels: dict[str, list[list[Verdict]]] = {}
    for row in by_place.values():
        panels.setdefault(row[0].effects[0].unit, []).append(row)
    heights = [sum(_height(row) for row in rows) for rows in panels.values()]
    total, top, margin, width = sum(heights) + 2.0, 0.8, 0.31, 0.26
    figure = Figure(figsize=(10.5, total))
    for (unit, rows), height in zip(panels.items(), heights, strict=True):
        for column, protocol in enumerate(protocols):
            box = (margin + column * (width + 0.085), 1 - (top + height) / total, width, height / total)
            axes = figure.add_axes(box)
            _forest_panel(axes, rows, column, unit)
            if top < 1:
                axes.set_title(f"protocol: {protocol}")
        top += height + 0.55
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=name)
        for name, (color, marker) in VERDICT_LOOKS.items()
    ]
    figure.legend(handles=handles, loc="upper left", ncols=3, bbox_to_anchor=(0.0, 1 - 0.05 / total))
    figure.text(0.01, 0.06 / total, caption, fontsize="x-small", color="#555555")
    return figure


def _height(row: list[Verdict]) -> float:
    return LINE * max(len(row[0].effects), 3) + 0.1


def _forest_panel(axes: Axes, rows: list[list[Verdict]], column: int, unit: str) -> None:
    """Draw the effects of one protocol and unit; the first column names claims and networks."""
    y, ticks, claim = 0.0, [], ""
    row_transform = axes.get_yaxis_transform()  # x in axes, y in data coordinates
    for row in rows:
        verdict, height = row[column], _height(row)
        new = verdict.claim != claim
        axes.axhline(y, color="#999999" if new else "#dddddd", linewidth=0.6)
        if new and column == 0:
            text = textwrap.fill(f"{verdict.claim}. {verdict.text}", 33)
            axes.text(-1.17, y + 0.03, text, transform=row_transform, fontsize="small", va="top")
        for i, effect in enumerate(verdict.effects):
            level, (color, marker) = y + (i + 0.5) * height / len(verdict.effects), VERDICT_LOOKS[effect.verdict]
            axes.plot([effect.low, effect.high], [level, level], color=color, linewidth=1)
            axes.plot([effect.mean], [level], marker, color=color, markersize=3)
        color, _ = VERDICT_LOOKS[verdict.verdict]
        axes.text(
            1.02, y + height / 2, verdict.verdict, color=color, transform=row_transform, fontsize="small", va="center"
        )
        ticks.append(y + height / 2)
        y, claim = y + height, verdict.claim
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_ylim(y, 0)
    axes.grid(visible=False)
    effects = [effect for row in rows for verdict in row for effect in verdict.effects]
    bounds = np.abs([(effect.mean, effect.low, effect.high) for effect in effects])
    limit = 1.3 * np.max(bounds, initial=0.1, where=np.isfinite(bounds))
    if unit == POINTS:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks([-10, -1, 0, 1, 10], ["-10", "-1", "0", "1", "10"])
        limit = max(limit, 13)
    axes.set_xlim(-limit, limit)
    axes.set_xlabel(f"effect, {unit} (right of 0: as claimed)")
    axes.set_yticks(ticks, [row[0].network for row in rows] if column == 0 else [""] * len(rows), fontsize="small")
    axes.tick_params(axis="y", length=0)


def departures(changes: Sequence[VerdictChange], caption: str) -> Figure:
    """Draw the effects on which the two protocols disagree, under each departure alone."""
    columns = [name for name in changes[0].means if name not in COMPARED]
    columns = [COMPARED[0], *columns, COMPARED[1]]
    values = np.array([[change.means.get(name, np.nan) for name in columns] for change in changes])
    total = 0.2 * len(changes) + 1.5
    figure = Figure(figsize=(10.5, total))
    axes = figure.add_axes((0.37, 0.3 / total, 0.56, 0.2 * len(changes) / total))
    limit = np.nanmax(np.abs(values))
    axes.imshow(
        values, aspect="auto", cmap="PuOr", norm=SymLogNorm(1, vmin=-limit, vmax=limit, base=10), interpolation="none"
    )  # fmt: skip
    for row, change in enumerate(changes):
        for column, name in enumerate(columns):
            value = values[row, column]
            dark = abs(value) > limit / 4
            weight = "bold" if name == change.cause else "normal"
            text = f"{value:+.2f}" if abs(value) < 1 else f"{value:+.1f}"
            text = f"[{text}]" if name == change.cause else text
            axes.text(
                column, row, text, ha="center", va="center", fontsize=6.5, fontweight=weight,
                color="white" if dark else "black",
            )  # fmt: skip
    names = [f"{change.claim}, {change.network}: {change.label}" for change in changes]
    axes.set_yticks(range(len(changes)), names, fontsize="small")
    axes.set_xticks(range(len(columns)), [name.replace("+", " +\n") for name in columns], rotation=35, ha="left")
    axes.tick_params(length=0, labeltop=True, labelbottom=False, top=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.text(0.01, 0.06 / total, caption, fontsize="x-small", color="#555555")
    return figure


def shares(results: xr.DataTree, name: str, protocols: Sequence[str], caption: str) -> Figure:
    """Draw the share of each layer among the neurons that a whole-network ranking ablates, low values first."""
    metrics = select_protocol(results, protocols[0])[name].to_dataset()["score"].values.tolist()
    figure = Figure(figsize=(3 * len(metrics), 2.6 * len(protocols) + 0.5))
    grid = figure.subplots(len(protocols), len(metrics), sharex=True, sharey=True, squeeze=False)
    for row, protocol in zip(grid, protocols, strict=True):
        network = select_protocol(results, protocol)[name].to_dataset()
        mean, low, high = mean_and_interval(layer_shares(network))
        for axes, metric in zip(row, metrics, strict=True):
            for i, (layer, color) in enumerate(zip(mean["layer"].values, LAYER_COLORS, strict=False)):
                chosen, style = {"ordering": f"{metric}_low", "layer": layer}, LINE_STYLES[i % len(LINE_STYLES)]
                axes.plot(mean["rank"], mean.sel(chosen), color=color, linestyle=style, label=f"layer {layer}")
                axes.fill_between(mean["rank"], low.sel(chosen), high.sel(chosen), color=color, alpha=0.25, linewidth=0)
            axes.set_title(f"{METRIC_NAMES[metric]}; {protocol}")
            axes.set_ylim(-0.02, 1.02)
    for axes in grid[-1]:
        axes.set_xlabel("Ablated neurons")
    for axes in grid[:, 0]:
        axes.set_ylabel("Share of the layer")
    grid[0, 0].legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")
    bottom = 0.55 / (2.6 * len(protocols) + 0.5)
    figure.subplots_adjust(0.07, bottom, 0.99, 1 - 0.6 * bottom, hspace=0.22, wspace=0.06)
    figure.text(0.01, 0.008, f"{name} network, low values first; {caption}", fontsize="x-small", color="#555555")
    return figure


def correlations(results: xr.DataTree, names: Sequence[str], protocols: Sequence[str], caption: str) -> Figure:
    """Draw the correlation of each score with the damage of ablating a single neuron."""
    figure = Figure(figsize=(9, 3.6))
    grid = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        scopes = list(map(str, select_protocol(results, protocols[0])[name].to_dataset()["scope"].values))
        for protocol, filled in zip(protocols, (True, False), strict=False):
            network = select_protocol(results, protocol)[name].to_dataset()
            mean, low, high = mean_and_interval(damage_correlations(network))
            low, high = low.clip(min=-1), high.clip(max=1)  # the range of a correlation
            for i, scope in enumerate(scopes):
                for j, metric in enumerate(map(str, mean["score"].values)):
                    color = score_color(metric, j)
                    y, marker = 4 * i + j + (0 if filled else 0.35), "os^"[j % 3]
                    cell = {"scope": scope, "score": metric}
                    axes.plot([low.sel(cell), high.sel(cell)], [y, y], color=color, linewidth=1.2)
                    face = color if filled else "white"
                    label = f"{METRIC_NAMES[metric]}; {protocol}" if i == 0 else None
                    axes.plot(
                        mean.sel(cell), y, marker, color=color, markerfacecolor=face, markersize=4, label=label
                    )  # fmt: skip
        ticks = [4 * i + 1.2 for i in range(len(scopes))]
        labels = ["across layers" if scope == NETWORK_SCOPE else scope.replace("layer", "layer ") for scope in scopes]
        axes.set_yticks(ticks, labels)
        axes.invert_yaxis()
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.set_title(f"{name} network")
        axes.set_xlabel("Spearman correlation of score and damage")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
    figure.subplots_adjust(0.115, 0.2, 0.78, 0.92, wspace=0.4)
    grid[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize="x-small")
    figure.text(0.01, 0.012, caption, fontsize="x-small", color="#555555")
    return figure
