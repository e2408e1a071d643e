"""Charts: series come in; numbers and paths in the units of an SVG picture go out, which the template lays out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

LEFT, RIGHT, TOP, BOTTOM = 72, 432, 12, 236
"""The box of the axes in a picture of 440 by 280; the rest is for ticks and labels."""
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: in the legend and beside values.
        look: CSS classes, such as `color1 dashed`.
        values: at each x.
        low, high: of the band, or None.
        shown: whether it is shown before the reader asks.
    """

    name: str
    look: str
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    shown: bool = True


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

    def at(self, values: np.ndarray | float | int) -> Any:
        """Positions of values."""
        return self.start + (np.asarray(values) - self.first) / (self.last - self.first) * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels of round numbers."""
        scale = 100 if self.percent else 1
        values = MaxNLocator(
            5, steps=[1, 2, 2.5, 5, 10], integer=self.whole, min_n_ticks=1 if self.whole else 2
        ).tick_values(scale * self.first, scale * self.last)
        inside = [v for v in values if scale * self.first - 1e-9 <= v <= scale * self.last + 1e-9]
        return [(round(float(self.at(v / scale)), 1), f"{v:.6g}{' %' if self.percent else ''}") for v in inside]


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
    """A chart of lines with bands, whose values a reader can ask for.

    Args:
        title, about: above and below it.
        x: of every series; whole numbers.
        series: at least one.
        x_label, y_label: of the axes.
        percent: whether the values are shares, shown in percent; their bands are cut at 0 and 100 %.

    Returns:
        What the template needs.
    """
    x_axis = Axis(x_label, float(x[0]), float(max(x[-1], x[0] + 1)), LEFT, RIGHT, whole=True)
    if percent and any(of is not None and not _are_shares(of) for one in series for of in (one.low, one.high)):
        about = f"{about} Bands are cut at 0 and 100 %."
        series = [replace(one, low=_shares(one.low), high=_shares(one.high)) for one in series]
    known = np.concatenate([of for one in series for of in (one.values, one.low, one.high) if of is not None])
    y_axis = _y_axis(known, y_label, percent)
    scale, digits = (100, 2) if percent else (1, 4)

    def numbers(values: np.ndarray | None) -> list[float | None] | None:
        """Rounded as they are shown; None for NaN, which JSON lacks."""
        return None if values is None else [round(v, digits) if v == v else None for v in (scale * values).tolist()]

    return {
        "kind": "lines",
        "title": title,
        "about": about,
        "banded": any(one.low is not None for one in series),
        "x_axis": x_axis,
        "y_axis": y_axis,
        "series": [
            {
                "name": one.name,
                "look": one.look,
                "shown": one.shown,
                "line": _path(x_axis.at(x), y_axis.at(one.values)),
                "band": _band(x_axis.at(x), y_axis, one),
            }
            for one in series
        ],
        "data": {
            "x": x.tolist(),
            "at": [round(float(at), 1) for at in x_axis.at(x)],
            "unit": " %" if percent else "",
            "digits": digits,
            "series": [
                {"y": numbers(one.values), "low": numbers(one.low), "high": numbers(one.high)} for one in series
            ],
        },
    }


def _are_shares(values: np.ndarray) -> bool:
    return not ((values < 0) | (values > 1)).any()


def _shares(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.clip(values, 0, 1)


def violin_chart(title: str, about: str, groups: dict[str, np.ndarray], *, y_label: str) -> dict:
    """How values are spread in each group: the density, mirrored, with lines at the quartiles."""
    x_axis = Axis("", 0.5, len(groups) + 0.5, LEFT, RIGHT)
    y_axis = _y_axis(np.concatenate(list(groups.values())), y_label, percent=False)
    half = min(0.42 * (RIGHT - LEFT) / len(groups), 70)
    violins = []
    for i, (name, values) in enumerate(groups.items()):
        center, known = float(x_axis.at(i + 1)), values[np.isfinite(values)]
        heights, widths = _density(known)
        outline = np.concatenate([center + half * widths, (center - half * widths)[::-1]])
        quartiles = np.quantile(known, QUARTILES) if len(known) else np.empty(0)
        words = f"quartiles {', '.join(f'{q:.4f}' for q in quartiles)}" if len(known) else "undefined for every neuron"
        violins.append(
            {
                "name": name,
                "look": f"color{i % 6 + 1}",
                "center": round(center, 1),
                "outline": _path(outline, y_axis.at(np.concatenate([heights, heights[::-1]]))) if len(known) else "",
                "quartiles": [round(float(y_axis.at(q)), 1) for q in quartiles],
                "words": f"{name}: {words}",
            }
        )  # fmt: skip
    return {
        "kind": "violins", "title": title, "about": about, "x_axis": x_axis, "y_axis": y_axis, "violins": violins,
    }  # fmt: skip


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights, and the share of the greatest density there."""
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return np.repeat(values[:1], 2), np.array([0.0, 1.0][: 2 * len(values[:1])])
    heights = np.linspace(values.min(), values.max(), 80)
    density = stats.gaussian_kde(values)(heights)
    return heights, density / density.max()


def _y_axis(values: np.ndarray, label: str, percent: bool) -> Axis:
    """An axis around all values that are known."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.01
    return Axis(label, low - pad, high + pad, BOTTOM, TOP, percent)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points that are known; a short one through a point that is alone."""
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    alone = "m-4,0h8" if len(points) == 1 else ""
    return f"M{'L'.join(points)}{alone}" if points else ""


def _band(x: np.ndarray, y_axis: Axis, series: Series) -> str:
    if series.low is None or series.high is None:
        return ""
    y = np.concatenate([y_axis.at(series.high), y_axis.at(series.low)[::-1]])
    path = _path(np.concatenate([x, x[::-1]]), y)
    return f"{path}Z" if path else ""
