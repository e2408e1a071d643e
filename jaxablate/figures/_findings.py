"""Draw the figures of the findings from verdicts, verdict changes and summaries."""

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxablate.charts import claim_table, correlation_chart, share_charts
from jaxablate.claims import FAILS, HOLDS, POINTS, UNDECIDED, Verdict, VerdictChange
from jaxablate.figures._draw import COLORS, INK, add_caption, draw_lines, styled
from jaxablate.protocols import SETS
from jaxablate.results import select_protocol

COMPARED = SETS["both"]
VERDICT_LOOKS = {HOLDS: (COLORS[1], "o"), FAILS: (COLORS[2], "x"), UNDECIDED: ("#888888", ".")}
LINE = 0.075  # inches of height for one effect


@styled
def forest(verdicts: Sequence[Verdict], caption: str) -> Figure:
    """Draw every effect with its interval, grouped by claim and network, with a column for each protocol."""
    protocols = [name for name in COMPARED if any(verdict.protocol == name for verdict in verdicts)]
    # effects of different units need different axes: a panel of rows (claim, network's verdicts by protocol) for each
    panels: dict[str, list[tuple[str, list[Verdict]]]] = {}
    for claim, networks in claim_table(verdict for verdict in verdicts if verdict.protocol in protocols).items():
        for by_protocol in networks.values():
            row = list(by_protocol.values())
            panels.setdefault(row[0].effects[0].unit, []).append((claim, row))
    # All lengths are inches from the top, since the height depends on the number of effects. Boxes of axes are (left,
    # bottom, width, height) as fractions of the figure, from the bottom.
    heights = [sum(_height(row) for _, row in rows) for rows in panels.values()]
    total, top, margin, width = sum(heights) + 2.0, 0.8, 0.31, 0.26
    figure = Figure(figsize=(10.5, total))
    for (unit, rows), height in zip(panels.items(), heights, strict=True):
        for column, protocol in enumerate(protocols):
            box = (margin + column * (width + 0.085), 1 - (top + height) / total, width, height / total)
            axes = figure.add_axes(box)
            _forest_panel(axes, rows, column, unit)
            if top < 1:  # the uppermost panel
                axes.set_title(f"protocol: {protocol}")
        top += height + 0.55
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=name)
        for name, (color, marker) in VERDICT_LOOKS.items()
    ]
    figure.legend(handles=handles, loc="upper left", ncols=3, bbox_to_anchor=(0.0, 1 - 0.05 / total))
    add_caption(figure, caption, 0.06 / total)
    return figure


def _height(row: list[Verdict]) -> float:
    """Return the height of a row in inches; a claim's text needs the room of three effects."""
    return LINE * max(len(row[0].effects), 3) + 0.1


def _forest_panel(axes: Axes, rows: list[tuple[str, list[Verdict]]], column: int, unit: str) -> None:
    """Draw the effects of one protocol and unit; the first column names claims and networks."""
    y, ticks, last_claim = 0.0, [], ""
    # Data coordinates of y are inches from the panel's top. Texts at the sides have x in axes coordinates: below 0 is
    # left of the axes, above 1 is right.
    row_transform = axes.get_yaxis_transform()
    for claim, row in rows:
        verdict, height = row[column], _height(row)
        axes.axhline(y, color="#999999" if claim != last_claim else "#dddddd", linewidth=0.6)
        if claim != last_claim and column == 0:
            text = textwrap.fill(claim, 33)
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
        y, last_claim = y + height, claim
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(y, 0)
    axes.grid(visible=False)
    # The axis is symmetric, and the same for all protocols, so that the columns can be compared by eye. Points have a
    # logarithmic scale outside of -1..1: most effects are near 0, and a few are ten times larger.
    effects = [effect for _, row in rows for verdict in row for effect in verdict.effects]
    bounds = np.abs([(effect.mean, effect.low, effect.high) for effect in effects])
    limit = 1.3 * np.max(bounds, initial=0.1, where=np.isfinite(bounds))
    if unit == POINTS:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks([-10, -1, 0, 1, 10], ["-10", "-1", "0", "1", "10"])
        limit = max(limit, 13)
    axes.set_xlim(-limit, limit)
    axes.set_xlabel(f"effect, {unit} (right of 0: as claimed)")
    names = [row[0].network if column == 0 else "" for _, row in rows]
    axes.set_yticks(ticks, names, fontsize="small")
    axes.tick_params(axis="y", length=0)


@styled
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
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:+.2f}" if abs(value) < 1 else f"{value:+.1f}"
        is_cause = columns[column] == changes[row].cause  # which is bold and in brackets
        axes.text(
            column, row, f"[{text}]" if is_cause else text, ha="center", va="center", fontsize=6.5,
            fontweight="bold" if is_cause else "normal", color="white" if abs(value) > limit / 4 else "black",
        )  # fmt: skip
    names = [f"{change.claim}, {change.network}: {change.label}" for change in changes]
    axes.set_yticks(range(len(changes)), names, fontsize="small")
    axes.set_xticks(range(len(columns)), [name.replace("+", " +\n") for name in columns], rotation=35, ha="left")
    axes.tick_params(length=0, labeltop=True, labelbottom=False, top=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    add_caption(figure, caption, 0.06 / total)
    return figure


@styled
def shares(results: xr.DataTree, name: str, protocols: Sequence[str], caption: str) -> Figure:
    """Draw the share of each layer among the neurons that a whole-network ranking ablates, low values first."""
    rows = [share_charts(name, select_protocol(results, protocol)[name].to_dataset()) for protocol in protocols]
    height = 2.6 * len(rows) + 0.5
    figure = Figure(figsize=(3 * len(rows[0]), height))
    grid = figure.subplots(len(rows), len(rows[0]), sharex=True, sharey=True, squeeze=False)
    for axes_of_row, charts, protocol in zip(grid, rows, protocols, strict=True):
        for axes, chart in zip(axes_of_row, charts, strict=True):
            draw_lines(axes, chart)
            axes.set_title(f"{chart.subtitle}; {protocol}")
            axes.set_ylim(-0.02, 1.02)
            axes.label_outer()
    grid[0, 0].legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")
    bottom = 0.55 / height  # the labels need the same room in inches for one row and for two
    figure.subplots_adjust(0.07, bottom, 0.99, 1 - 0.6 * bottom, hspace=0.22, wspace=0.06)
    add_caption(figure, f"{name} network; {caption}", 0.008)
    return figure


@styled
def correlations(results: xr.DataTree, names: Sequence[str], protocols: Sequence[str], caption: str) -> Figure:
    """Draw the correlation of each score with the damage of ablating a single neuron."""
    figure = Figure(figsize=(9, 3.6))
    grid = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        nodes = [select_protocol(results, protocol)[name].to_dataset() for protocol in protocols]
        charts = [correlation_chart(name, node) for node in nodes]
        for i, (chart, protocol) in enumerate(zip(charts, protocols, strict=True)):
            for place, score in np.ndindex(len(chart.places), len(chart.scores)):
                # a block of rows for each place, with room below it; the second protocol is slightly lower and hollow
                y, color = (len(chart.scores) + 1) * place + score + 0.35 * i, COLORS[chart.colors[score]]
                axes.plot([chart.low[score, place], chart.high[score, place]], [y, y], color=color, linewidth=1.2)
                axes.plot(
                    chart.mean[score, place], y, "os^"[score % 3], color=color, markersize=4,
                    markerfacecolor=color if i == 0 else "white",
                    label=f"{chart.scores[score]}; {protocol}" if place == 0 else None,
                )  # fmt: skip
        places, rows = charts[0].places, len(charts[0].scores) + 1
        axes.set_yticks([rows * place + 0.4 * (rows - 1) for place in range(len(places))], places)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_title(charts[0].title)
        axes.set_xlabel("Spearman correlation of score and damage")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
    figure.subplots_adjust(0.115, 0.2, 0.78, 0.92, wspace=0.4)
    grid[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize="x-small")
    add_caption(figure, caption)
    return figure
