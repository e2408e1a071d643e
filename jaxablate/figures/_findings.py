"""Draw the figures of the findings from verdicts, verdict changes and summaries."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxablate.charts import claim_table, correlation_chart, deciding_effect, share_charts
from jaxablate.claims import (
    FAILS,
    HOLDS,
    HOLDS_IN_PART,
    MARGINS,
    NATS,
    NO_DIFFERENCE,
    NOT_JUDGED,
    POINTS,
    REVERSED,
    REVERSED_IN_PART,
    UNDECIDED,
    Effect,
    Verdict,
    VerdictChange,
)
from jaxablate.figures._draw import COLORS, INK, SOFT, NotebookFigure, add_caption, draw_lines, styled
from jaxablate.protocols import SETS
from jaxablate.results import select_protocol

COMPARED = SETS["both"]
GREY = "#777777"
VERDICT_LOOKS = {
    HOLDS: (COLORS[1], "o", "full"),
    HOLDS_IN_PART: (COLORS[1], "o", "left"),
    NO_DIFFERENCE: (GREY, "s", "none"),
    FAILS: (COLORS[2], "X", "full"),
    REVERSED: (COLORS[2], "<", "full"),
    REVERSED_IN_PART: (COLORS[2], "<", "none"),
    UNDECIDED: (GREY, "$?$", "full"),
    NOT_JUDGED: (GREY, "_", "full"),
}
"""Colour, marker and fill of each verdict: blue for the claim, orange against it; shapes say the same in grey."""
PROTOCOL_LOOKS = ((COLORS[1], "o"), (COLORS[2], "D"))
PAGE = 7.33
"""Width of a table in inches, 1,100 pixels. On a telephone of 390 points, 12-point text is 9 points high there."""
LINE = 0.23  # inches of height for a line of such text
FAR = 8  # an interval that reaches this many times further than the median one is cut


def unit_name(unit: str) -> str:
    """Return a unit of effects in a short word."""
    return {POINTS: "points", NATS: "nats"}.get(unit, unit)


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with axes over all of it, whose coordinates are inches from the upper left corner."""
    figure = NotebookFigure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _write(axes: Axes, x: Any, y: float, text: str, **look: Any) -> None:
    """Write text at a place of a page, by default in the size of the tables."""
    axes.text(x, y, text, **{"fontsize": 12.5, "color": INK, "va": "center"} | look)


@styled
def claims(verdicts: Sequence[Verdict], caption: str, differences: Sequence[str] = ()) -> Figure:
    """Draw a table of claims by network and protocol; each cell has the verdict and the effect that decides it.

    Args:
        verdicts: from `judge_claims`.
        caption: text on the origin of the results, the end of the note.
        differences: differences from the paper's setting, from `departures_from_paper`.

    Returns:
        A Matplotlib figure. With differences, its title and note do not speak of the paper's claims.
    """
    table = claim_table(verdict for verdict in verdicts if verdict.protocol in COMPARED)
    columns = sorted(
        {(verdict.network, verdict.protocol) for verdict in verdicts if verdict.protocol in COMPARED},
        key=lambda column: (column[0], COMPARED.index(column[1])),
    )
    width = max(PAGE, 1.8 * len(columns))
    column_width = width / len(columns)
    title = "Do the claims of the paper hold?"
    claim, claimed = ("statement", "stated") if differences else ("claim", "claimed")
    if differences:
        title = "Comparisons outside of the paper's setting"
        caption = f"Not the paper's setting: {'; '.join(differences)}. {caption}"
    note = (
        f"The number is the comparison that decides: of those with this verdict the least in favour of the {claim}, as "
        f"mean \u00b1 half of the 95% t-interval over networks. Above 0 is as {claimed}, unless a bound is given. "
        f"paper: the formulas of the paper; published: the code behind its figures. {caption}"
    )
    note_lines = textwrap.wrap(note, int(13 * width))
    # positions are inches from the upper left corner; the height depends on the number of lines
    rows, y = [], 1.15
    for text, networks in table.items():
        lines = textwrap.wrap(text, int(8.5 * width))
        cells = [networks.get(network, {}).get(protocol) for network, protocol in columns]
        texts = [_cell_lines(verdict) for verdict in cells]
        height = LINE * (len(lines) + max(map(len, texts))) + 0.17
        rows.append((y, lines, list(zip(cells, texts, strict=True)), height))
        y += height
    total = y + 0.2 * len(note_lines) + 0.2
    figure, axes = _page(width, total)
    _write(axes, 0.1, 0.25, title, fontsize=15, fontweight="bold")
    for i, (network, protocol) in enumerate(columns):
        if i == 0 or columns[i - 1][0] != network:
            _write(axes, i * column_width + 0.1, 0.65, f"{network} network", fontweight="bold")
        _write(axes, i * column_width + 0.1, 0.93, protocol, color=SOFT)
    for y, heading, cells, height in rows:
        axes.axhline(y, color="#bbbbbb", linewidth=0.8)
        for i, line in enumerate(heading):
            _write(axes, 0.1, y + (i + 0.65) * LINE, line, fontweight="bold")
        unit = next((verdict.effects[0].unit for verdict, _ in cells if verdict and verdict.effects), "")
        _write(axes, width - 0.1, y + 0.65 * LINE, unit_name(unit), fontsize=11, color=SOFT, ha="right")
        top, bottom = y + LINE * len(heading) + 0.06, y + height - 0.05
        for i, (verdict, lines) in enumerate(cells):
            x = i * column_width
            if verdict is None:
                continue
            color, marker, fill = VERDICT_LOOKS[verdict.verdict]
            box = (x + 0.05, top), column_width - 0.1, bottom - top
            axes.add_patch(Rectangle(*box, facecolor=color, alpha=0.13, linewidth=0))
            axes.plot(
                x + 0.19, top + 0.55 * LINE, marker=marker, color=color, fillstyle=fill, markersize=9,
                markerfacecoloralt="white",
            )  # fmt: skip
            for j, line in enumerate(lines):
                _write(axes, x + 0.34, top + (j + 0.55) * LINE, line)
    bottom = total - 0.2 * len(note_lines) - 0.2
    for i, line in enumerate(note_lines):
        _write(axes, 0.1, bottom + 0.15 + 0.2 * i, line, fontsize=10, color=SOFT)
    return figure


def _cell_lines(verdict: Verdict | None) -> list[str]:
    """Return the lines of a cell: the verdict, and the effect that decides it or the reason why it is not judged."""
    if verdict is None:
        return []
    lines, effect = textwrap.wrap(verdict.verdict, 14), deciding_effect(verdict)
    if effect is None:
        return lines + textwrap.wrap(verdict.reason.split(";")[0], 16)
    digits = _digits(effect.measured, effect.unit)
    lines.append(f"{effect.measured:+.{digits}f} \u00b1 {effect.high - effect.mean:.{digits}f}")
    if effect.threshold is not None:
        lines.append(f"needs {'>' if effect.slope < 0 else '<'} {effect.threshold:g}")
    return lines


def _digits(value: float, unit: str) -> int:
    """Return the number of digits after the decimal point, so that an effect of the size of the margin is seen."""
    return (3 if unit == NATS else 2) - (abs(value) >= 10)


@styled
def comparisons(verdicts: Sequence[Verdict], caption: str, differences: Sequence[str] = ()) -> Figure:
    """Draw the comparisons of one claim: a panel for each network and unit, a row for each comparison.

    Args:
        verdicts: the verdicts on the claim, with effects.
        caption: last line of the figure.
        differences: differences from the paper's setting, from `departures_from_paper`.

    Returns:
        A matplotlib figure. Intervals that reach far beyond all others are cut; an arrow marks the cut.
    """
    protocols = [name for name in COMPARED if any(verdict.protocol == name for verdict in verdicts)]
    panels: dict[tuple[str, str], dict[str, dict[str, Effect]]] = {}
    for verdict in verdicts:
        for effect in verdict.effects:
            if verdict.verdict == NOT_JUDGED:
                effect = replace(effect, verdict="")
            rows = panels.setdefault((verdict.network, effect.unit), {})
            rows.setdefault(effect.label, {})[verdict.protocol] = effect
    limits = {unit: _limits(verdicts, unit) for _, unit in panels}
    # inches; the longest label sets the width
    left = 0.065 * max(len(label) for rows in panels.values() for label in rows) + 0.25
    width = left + 4.1
    title = textwrap.wrap(f"{verdicts[0].claim}. {verdicts[0].text}", int(9.5 * width))
    heights = [(0.165 * len(protocols) + 0.05) * len(rows) for rows in panels.values()]
    top, gap = 0.2 * len(title) + 0.85, 0.85  # inches; two lines of legend
    total = top + sum(heights) + gap * len(panels) - 0.1
    figure = NotebookFigure(figsize=(width, total))
    figure.text(0.1 / width, 1 - 0.1 / total, "\n".join(title), fontsize=10.5, fontweight="bold", va="top")
    looks = dict(zip(protocols, PROTOCOL_LOOKS, strict=False))
    for ((network, unit), rows), height in zip(panels.items(), heights, strict=True):
        axes = figure.add_axes((left / width, 1 - (top + height) / total, 2.9 / width, height / total))
        _draw_comparisons(axes, rows, looks, limits[unit])
        words = [f"{v.protocol}: {v.verdict}" for v in verdicts if v.network == network]
        axes.set_title(f"{network} network; {', '.join(words)}", x=-left / 2.9 + 0.03)
        axes.set_xlabel(f"{unit_name(unit)}; right of 0: as {'stated' if differences else 'claimed'}")
        top += height + gap
    first = figure.axes[0]
    for protocol, (color, marker) in looks.items():
        first.plot([], [], marker, linestyle="-", color=color, markersize=5, label=protocol)
    for unit in limits:
        if margin := MARGINS.get(unit):
            text = f"margin \u00b1{margin:g} {unit_name(unit)}: no difference if\nthe 90% interval lies inside"
            first.fill_between([], [], color="#dddddd", label=text)
    figure.legend(
        *first.get_legend_handles_labels(), loc="upper left", ncols=2, fontsize="small",
        bbox_to_anchor=(0.02 / width, 1 - (0.2 * len(title) + 0.08) / total),
    )  # fmt: skip
    add_caption(figure, caption, 0.05 / total)
    return figure


def _limits(verdicts: Sequence[Verdict], unit: str) -> tuple[float, float]:
    """Return the ends of the axis of a unit: around 0, the margin and all intervals but those that reach too far."""
    effects = [effect for verdict in verdicts for effect in verdict.effects if effect.unit == unit]
    ends = np.array([(effect.mean, effect.low, effect.high) for effect in effects])
    ends = np.where(np.isfinite(ends), ends, np.nan_to_num(ends[:, :1]))  # without an interval, the mean
    reach = np.abs(ends).max(axis=1)
    margin = MARGINS.get(unit, 0.0)
    near = ends.clip(-FAR * np.median(reach), FAR * np.median(reach)).ravel()
    low, high = min(-margin, *near), max(margin, *near)
    pad = 0.04 * (high - low) or 0.1
    return low - pad, high + pad


def _draw_comparisons(
    axes: Axes, rows: dict[str, dict[str, Effect]], looks: dict[str, tuple[str, str]], limits: tuple[float, float]
) -> None:
    """Draw the effects of each row by protocol, with the verdicts at the right edge."""
    low, high = limits
    unit = next(iter(next(iter(rows.values())).values())).unit
    margin = MARGINS.get(unit, 0.0)
    axes.axvspan(-margin, margin, color="#dddddd", linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, by_protocol in enumerate(rows.values()):
        if y > 0:
            axes.axhline(y - 0.5, color="#e5e5e5", linewidth=0.6)
        for i, (protocol, (color, marker)) in enumerate(looks.items()):
            if protocol not in by_protocol:
                continue
            effect, level = by_protocol[protocol], y + 0.4 * (i - (len(looks) - 1) / 2)
            axes.text(
                1.02, level, effect.verdict if effect.mean == effect.mean else "undefined", color=color,
                transform=axes.get_yaxis_transform(), fontsize="small", va="center",
            )  # fmt: skip
            axes.plot([effect.low, effect.high], [level, level], color=color, linewidth=1.4)
            axes.plot([effect.mean], [level], marker, color=color, markersize=4.5)
            # arrows at the edges, where a part of the interval is not seen
            for edge, arrow, is_cut in ((low, "<", effect.low < low), (high, ">", effect.high > high)):
                if is_cut:
                    axes.plot([edge], [level], arrow, color=color, markersize=5, clip_on=False)
                    text = f"{effect.mean:+.3g} [{effect.low:.3g}, {effect.high:.3g}]"
                    inside = (edge + 0.03 * (high - low) * (1 if edge == low else -1), level - 0.02)
                    side = "left" if edge == low else "right"
                    axes.text(*inside, text, fontsize="x-small", color=color, ha=side, va="bottom")
    axes.set_xlim(limits)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)


@styled
def departures(changes: Sequence[VerdictChange], caption: str) -> Figure:
    """Draw a table of changed effects: under `paper`, the contribution of each departure, and under `published`.

    Args:
        changes: of one network.
        caption: below the table.
    """
    names = list(changes[0].shapley)
    title = f"{changes[0].network}: which departure of the published code changes a verdict?"
    heads = [COMPARED[0], *(name.replace("_", "\n") for name in names), COMPARED[1], "only\ntogether"]
    note = (
        "Mean effects under the paper's formulas and under the published code. Between them: the contribution of each "
        "departure, averaged over all orders of turning the departures on (Shapley value); they sum to the "
        "difference. Purple: it raises the effect. Orange: it lowers it. Grey: the 95% t-interval of the value "
        "contains 0. Only together: the part of the difference that "
        f"no departure makes alone, where it is larger than the margin of the unit. {caption}"
    )
    note_lines = textwrap.wrap(note, int(13 * PAGE))
    labels = [
        textwrap.wrap(f"{change.claim}, {change.label} ({unit_name(change.unit)})", int(10.5 * PAGE))
        for change in changes
    ]
    heights = [LINE * (len(label) + 1) + 0.16 for label in labels]
    y = 1.3
    total = y + sum(heights) + 0.2 * len(note_lines) + 0.25
    figure, axes = _page(PAGE, total)
    column_width = (PAGE - 0.1) / len(heads)
    middles = 0.05 + column_width * (np.arange(len(heads)) + 0.5)
    _write(axes, 0.1, 0.25, title, fontsize=13, fontweight="bold")
    for middle, head in zip(middles, heads, strict=True):
        _write(axes, middle, y - 0.1, head, fontsize=10, ha="center", va="bottom", linespacing=1.0)
    colors = matplotlib.colormaps["PuOr"]
    for change, label, height in zip(changes, labels, heights, strict=True):
        axes.axhline(y, color="#bbbbbb", linewidth=0.8)
        _write(axes, 0.1, y + 0.07, "\n".join(label), fontsize=11, va="top")
        parts = list(change.shapley.values())
        limit = max(map(abs, parts)) or 1.0  # colours compare the departures of one row, whatever its unit
        is_large = abs(change.interaction) > MARGINS.get(change.unit, 0.0)
        values = [change.paper.mean, *parts, change.published.mean, change.interaction if is_large else math.nan]
        unclear = {i for i, name in enumerate(names, start=1) if _may_be_zero(change, name)}
        for j, (middle, value) in enumerate(zip(middles, values, strict=True)):
            level = y + height - 0.07 - 0.55 * LINE
            is_part = 0 < j <= len(parts)
            if is_part and j not in unclear:
                box = (middle - column_width / 2 + 0.02, level - 0.55 * LINE), column_width - 0.04, 1.1 * LINE
                axes.add_patch(Rectangle(*box, facecolor=colors(0.5 + 0.25 * value / limit), linewidth=0))
            text = "" if math.isnan(value) else f"{value:+.{_digits(value, change.unit)}f}"
            if float(text or "nan") == 0:
                text = "0"
            weight = "normal" if is_part else "bold"
            color = GREY if j in unclear else "black"
            _write(axes, middle, level, text, fontsize=11.5, ha="center", color=color, fontweight=weight)
        y += height
    for i, line in enumerate(note_lines):
        _write(axes, 0.1, y + 0.15 + 0.2 * i, line, fontsize=10, color=SOFT)
    return figure


def _may_be_zero(change: VerdictChange, departure: str) -> bool:
    """Return True if the interval of a departure's Shapley value contains 0; False without an interval."""
    if departure not in change.shapley_by_network:
        return False
    low, high = change.shapley_interval(departure)
    return low <= 0 <= high


@styled
def shares(results: xr.DataTree, name: str, protocols: Sequence[str], caption: str) -> Figure:
    """Draw the share of each layer among the neurons that a whole-network ranking ablates, low values first."""
    rows = [share_charts(name, select_protocol(results, protocol)[name].to_dataset()) for protocol in protocols]
    height = 2.6 * len(rows) + 0.5
    figure = NotebookFigure(figsize=(3 * len(rows[0]), height))
    grid = figure.subplots(len(rows), len(rows[0]), sharex=True, sharey=True, squeeze=False)
    for axes_of_row, charts, protocol in zip(grid, rows, protocols, strict=True):
        for axes, chart in zip(axes_of_row, charts, strict=True):
            draw_lines(axes, chart)
            axes.set_title(f"{chart.subtitle}; {protocol}")
            axes.set_ylim(-0.02, 1.02)
            axes.label_outer()
    grid[0, 0].legend(loc="center right")  # most curves run along 0 or 100%
    bottom = 0.55 / height  # the labels need the same room in inches for one row and for two
    figure.subplots_adjust(0.07, bottom, 0.99, 1 - 0.6 * bottom, hspace=0.22, wspace=0.06)
    add_caption(figure, f"{name} network; {caption}", 0.008)
    return figure


@styled
def correlations(results: xr.DataTree, names: Sequence[str], protocols: Sequence[str], caption: str) -> Figure:
    """Draw the correlation of each score with the damage of ablating a single neuron."""
    if "published" in protocols:
        caption += "; under the published protocol, damage is that of multiplying the activation by the firing rate"
    figure = NotebookFigure(figsize=(9, 3.6))
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
