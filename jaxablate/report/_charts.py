"""Convert series into the numbers and paths of SVG charts, which the template lays out.

Input: series of values.
Output: dictionaries in the units of an SVG picture of 440 by 280.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

LEFT, RIGHT, TOP, BOTTOM = 72, 432, 12, 236
"""Edges of the axes in a picture of 440 by 280; ticks and labels surround them."""
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: label in the legend and next to values.
        look: CSS classes, for example `color1 dashed`.
        values: one value for each x.
        low, high: edges of the band, or None.
    """

    name: str
    look: str
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """A linear axis in pixels: ticks as (position, label)."""

    label: str
    first: float
    last: float
    start: int
    end: int
    percent: bool = False
    whole: bool = False

    def position(self, values: np.ndarray | float | int) -> Any:
        """Return the positions of values."""
        return self.start + (np.asarray(values) - self.first) / (self.last - self.first) * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and labels of round numbers."""
        scale = 100 if self.percent else 1
        values = MaxNLocator(
            5, steps=[1, 2, 2.5, 5, 10], integer=self.whole, min_n_ticks=1 if self.whole else 2
        ).tick_values(scale * self.first, scale * self.last)
        inside = [v for v in values if scale * self.first - 1e-9 <= v <= scale * self.last + 1e-9]
        return [(round(float(self.position(v / scale)), 1), f"{v:.6g}{'%' if self.percent else ''}") for v in inside]


# The template draws SVG pictures of 440 by 280 units. All positions are computed here, once: `Axis.position` maps data
# to units of the picture, and `_path` joins positions to an SVG path. NaN leaves a gap in a path and an empty value in
# the data that the page reads for its tooltips.
def line_chart(
    title: str,
    about: str,
    x: np.ndarray,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
) -> dict:
    """Return a chart of lines with bands; the page shows their values on demand.

    Args:
        title, about: texts above and below the chart.
        x: whole numbers that all series share.
        series: at least one.
        x_label, y_label: labels of the axes.
        percent: True for values in [0, 1] that are shown in percent; their bands are cut at 0 and 100%.

    Returns:
        The values that the template reads.
    """
    x_axis = Axis(x_label, float(x[0]), float(max(x[-1], x[0] + 1)), LEFT, RIGHT, whole=True)
    edges = [edge for line in series for edge in (line.low, line.high) if edge is not None]
    if percent and not all(_are_fractions(edge) for edge in edges):
        about = f"{about} Bands are cut at 0 and 100%."
        series = [replace(line, low=_cut(line.low), high=_cut(line.high)) for line in series]
        edges = [edge for line in series for edge in (line.low, line.high) if edge is not None]
    known = np.concatenate([*(line.values for line in series), *edges])
    y_axis = _y_axis(known, y_label, percent)
    scale, digits = (100, 2) if percent else (1, 4)

    def numbers(values: np.ndarray | None) -> list[float | None] | None:
        """Round values for display; NaN, which JSON lacks, becomes None."""
        return None if values is None else [round(v, digits) if v == v else None for v in (scale * values).tolist()]

    return {
        "kind": "lines",
        "title": title,
        "about": about,
        "banded": any(line.low is not None for line in series),
        "x_axis": x_axis,
        "y_axis": y_axis,
        "series": [
            {
                "name": line.name,
                "look": line.look,
                "line": _path(x_axis.position(x), y_axis.position(line.values)),
                "band": _band(x_axis.position(x), y_axis, line),
            }
            for line in series
        ],
        "data": {
            "x": x.tolist(),
            "at": [round(float(position), 1) for position in x_axis.position(x)],
            "unit": "%" if percent else "",
            "digits": digits,
            "series": [
                {"y": numbers(line.values), "low": numbers(line.low), "high": numbers(line.high)} for line in series
            ],
        },
    }


def _are_fractions(values: np.ndarray) -> bool:
    return not ((values < 0) | (values > 1)).any()


def _cut(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.clip(values, 0, 1)


def violin_chart(title: str, about: str, groups: dict[str, np.ndarray], *, y_label: str) -> dict:
    """Return a chart of the values of each group: mirrored densities with lines at the quartiles."""
    x_axis = Axis("", 0.5, len(groups) + 0.5, LEFT, RIGHT)
    y_axis = _y_axis(np.concatenate(list(groups.values())), y_label, percent=False)
    half = min(0.42 * (RIGHT - LEFT) / len(groups), 70)
    violins = []
    for i, (name, values) in enumerate(groups.items()):
        center, known = float(x_axis.position(i + 1)), values[np.isfinite(values)]
        heights, widths = _density(known)
        outline = np.concatenate([center + half * widths, (center - half * widths)[::-1]])
        mirrored = y_axis.position(np.concatenate([heights, heights[::-1]]))
        quartiles = np.quantile(known, QUARTILES) if len(known) else np.empty(0)
        words = f"quartiles {', '.join(f'{q:.4f}' for q in quartiles)}" if len(known) else "undefined for every neuron"
        violins.append(
            {
                "name": name,
                "look": f"color{i % 6 + 1}",
                "center": round(center, 1),
                "outline": _path(outline, mirrored) if len(known) else "",
                "quartiles": [round(float(y_axis.position(q)), 1) for q in quartiles],
                "words": f"{name}: {words}",
            }
        )  # fmt: skip
    return {
        "kind": "violins", "title": title, "about": about, "x_axis": x_axis, "y_axis": y_axis, "violins": violins,
    }  # fmt: skip


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return heights, and the density at each height relative to the largest."""
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return np.repeat(values[:1], 2), np.array([0.0, 1.0][: 2 * len(values[:1])])
    heights = np.linspace(values.min(), values.max(), 80)
    density = stats.gaussian_kde(values)(heights)
    return heights, density / density.max()


def _y_axis(values: np.ndarray, label: str, percent: bool) -> Axis:
    """Return an axis around all finite values."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.01
    return Axis(label, low - pad, high + pad, BOTTOM, TOP, percent)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Return a path through the finite points; a single point becomes a short line."""
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    dash = "m-4,0h8" if len(points) == 1 else ""
    return f"M{'L'.join(points)}{dash}" if points else ""


def _band(x: np.ndarray, y_axis: Axis, series: Series) -> str:
    if series.low is None or series.high is None:
        return ""
    y = np.concatenate([y_axis.position(series.high), y_axis.position(series.low)[::-1]])
    path = _path(np.concatenate([x, x[::-1]]), y)
    return f"{path}Z" if path else ""
