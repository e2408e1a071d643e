"""Convert charts into the numbers and paths of SVG pictures, which the template lays out.

Input: charts.
Output: dictionaries in the units of an SVG picture of 440 by 280.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.mlab import GaussianKDE
from matplotlib.ticker import MaxNLocator

from jaxablate.charts import LineChart, ScatterChart, ViolinChart

LEFT, RIGHT, TOP, BOTTOM = 72, 432, 12, 236
"""Edges of the axes in a picture of 440 by 280; ticks and labels surround them."""
QUARTILES = (0.25, 0.5, 0.75)


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
        # ticks outside of the axis are dropped; the tolerance keeps 0.3 if the edge is 0.1 + 0.2
        inside = [v for v in values if scale * self.first - 1e-9 <= v <= scale * self.last + 1e-9]
        return [(round(float(self.position(v / scale)), 1), f"{v:.6g}{'%' if self.percent else ''}") for v in inside]


def svg_chart(chart: LineChart | ViolinChart | ScatterChart) -> dict:
    """Return the values that the template reads to draw a chart."""
    if isinstance(chart, ScatterChart):
        return point_chart(chart)
    return violin_chart(chart) if isinstance(chart, ViolinChart) else line_chart(chart)


# The template draws SVG pictures of 440 by 280 units. All positions are computed here, once: `Axis.position` maps data
# to units of the picture, and `_path` joins positions to an SVG path. NaN leaves a gap in a path and an empty value in
# the data that the page reads for its tooltips.
def line_chart(chart: LineChart) -> dict:
    """Return a chart of lines with bands; the page shows their values on demand."""
    # edges of the bands [line, edge, x]; lines without a band have no edges
    bands = [np.stack([line.low, line.high]) if line.band else np.empty((0, len(chart.x))) for line in chart.lines]
    x_axis = Axis(chart.x_label, float(chart.x[0]), float(max(chart.x[-1], chart.x[0] + 1)), LEFT, RIGHT, whole=True)
    known = np.concatenate([*(line.values for line in chart.lines), *(band.ravel() for band in bands)])
    y_axis, x = _y_axis(known, chart.y_label, chart.percent), x_axis.position(chart.x)
    # The area of a share lies on the areas of the shares before it, so the edges are cumulative sums. The values that
    # the reader gets by pointing stay the shares themselves.
    stack = np.cumsum([np.zeros(len(chart.x)), *(line.values for line in chart.lines)], axis=0)
    if chart.stacked:
        y_axis = Axis(chart.y_label, 0.0, 1.0, BOTTOM, TOP, chart.percent)
    scale, digits = (100, 2) if chart.percent else (1, 4)

    def numbers(values: np.ndarray) -> list[float | None]:
        """Round values for display; NaN, which JSON lacks, becomes None."""
        return [round(v, digits) if v == v else None for v in (scale * values).tolist()]

    return {
        "kind": "lines",
        "stacked": chart.stacked,
        "title": f"{chart.title}: {chart.subtitle}",
        "about": chart.caption,
        "banded": any(len(band) for band in bands),
        "x_axis": x_axis,
        "y_axis": y_axis,
        "series": [
            {
                "name": line.name,
                "look": f"color{line.color} {line.dash}".strip(),
                "line": _path(x, y_axis.position(line.values)),
                "band": _band(x, y_axis.position(stack[i : i + 2] if chart.stacked else band)),
            }
            for i, (line, band) in enumerate(zip(chart.lines, bands, strict=True))
        ],
        "data": {
            "x": chart.x.tolist(),
            "at": [round(float(position), 1) for position in x],
            "unit": "%" if chart.percent else "",
            "digits": digits,
            "series": [
                {"y": numbers(line.values), "low": None, "high": None}
                | dict(zip(("low", "high"), map(numbers, band), strict=False))
                for line, band in zip(chart.lines, bands, strict=True)
            ],
        },
    }


def point_chart(chart: ScatterChart) -> dict:
    """Return a chart of points.

    A point is a line of hardly any length, drawn by its round or square end. Without length, a printed page (PDF) would
    have no square ends.
    """
    axes = []
    for label, values, start, end in (
        (chart.x_label, [group.x for group in chart.groups], LEFT, RIGHT),
        (chart.y_label, [group.y for group in chart.groups], BOTTOM, TOP),
    ):
        axis = _y_axis(np.concatenate(values), label, percent=False)
        axes.append(Axis(label, axis.first, axis.last, start, end))
    x_axis, y_axis = axes
    groups = []
    for i, group in enumerate(chart.groups):
        points = zip(x_axis.position(group.x), y_axis.position(group.y), strict=True)
        path = "".join(f"M{x:.1f},{y:.1f}h.1" for x, y in points if np.isfinite([x, y]).all())
        look = f"color{group.color}{' square' if i % 2 else ''}"
        groups.append({"name": group.name, "look": look, "path": path})
    return {
        "kind": "points",
        "title": f"{chart.title}: {chart.subtitle}",
        "about": chart.caption,
        "x_axis": x_axis,
        "y_axis": y_axis,
        "groups": groups,
    }


def violin_chart(chart: ViolinChart) -> dict:
    """Return a chart of the values of each group: mirrored densities with lines at the quartiles."""
    size = len(chart.violins)
    x_axis = Axis(chart.x_label, 0.5, size + 0.5, LEFT, RIGHT)
    bound = [] if chart.bound is None else [chart.bound[0]]
    y_axis = _y_axis(
        np.concatenate([*(violin.values for violin in chart.violins), bound]), chart.y_label, percent=False
    )
    half = min(0.42 * (RIGHT - LEFT) / size, 70)  # of the widest place of a violin, so that neighbours do not touch
    violins = []
    for i, violin in enumerate(chart.violins):
        center, heights, widths = float(x_axis.position(i + 1)), *_density(violin.values)
        # up along the right side, and down along the left
        outline = np.concatenate([center + half * widths, (center - half * widths)[::-1]])
        mirrored = y_axis.position(np.concatenate([heights, heights[::-1]]))
        quartiles = np.quantile(violin.values, QUARTILES) if len(violin.values) else np.empty(0)
        words = (
            f"quartiles {', '.join(f'{q:.4f}' for q in quartiles)}" if len(quartiles) else "undefined for every neuron"
        )
        violins.append(
            {
                "name": violin.name,
                "look": f"color{violin.color}",
                "center": round(center, 1),
                "outline": _path(outline, mirrored),
                "quartiles": [round(float(y_axis.position(q)), 1) for q in quartiles],
                "words": f"{violin.name}: {words}",
                "note": violin.note,
            }
        )
    return {
        "kind": "violins",
        "title": f"{chart.title}: {chart.subtitle}",
        "about": chart.caption,
        "x_axis": x_axis,
        "y_axis": y_axis,
        "bound": None if chart.bound is None else (round(float(y_axis.position(bound[0])), 1), chart.bound[1]),
        "violins": violins,
    }


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return heights, and the density at each height relative to the largest."""
    # a kernel density needs at least two different values; otherwise the violin is a horizontal line, or empty
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return np.repeat(values[:1], 2), np.array([0.0, 1.0][: 2 * len(values[:1])])
    heights = np.linspace(values.min(), values.max(), 80)
    density = GaussianKDE(values)(heights)
    return heights, density / density.max()


def _y_axis(values: np.ndarray, label: str, percent: bool) -> Axis:
    """Return an axis around all finite values."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.01
    # the picture's y grows downwards, so the axis starts at the bottom
    return Axis(label, low - pad, high + pad, BOTTOM, TOP, percent)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Return a path through the finite points; a single point becomes a short line."""
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    dash = "m-4,0h8" if len(points) == 1 else ""
    return f"M{'L'.join(points)}{dash}" if points else ""


def _band(x: np.ndarray, edges: np.ndarray) -> str:
    """Return a path along the high edge and back along the low one, from the positions of the edges [edge, x]."""
    if not len(edges):
        return ""
    low, high = edges
    path = _path(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
    return f"{path}Z" if path else ""
