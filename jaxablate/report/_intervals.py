"""Place means and intervals on one axis, as the macro `intervals` draws them.

Input: means and ends of intervals.
Output: rows of texts and positions.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

ENDS = ("difference", "low", "high")
WIDTH, MARGIN = 200, 6
"""Width of the picture of an interval, and the margin at each end, in the units of the SVG."""


def interval_text(mean: float, low: float, high: float) -> str:
    """Return a mean and its interval as text; without the interval if its ends are NaN."""
    return f"{mean:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low == low else "")


class IntervalAxis:
    """Give the positions of means and intervals on an axis that shows all of them and 0, the line of no difference."""

    def __init__(self, data: xr.Dataset):
        # a single network has no interval: its ends are NaN, and only its mean counts
        finite = np.concatenate([np.ravel(data[name]) for name in ENDS])
        finite = finite[np.isfinite(finite)]
        self.lowest, highest = min(finite.min(initial=0.0), 0.0), max(finite.max(initial=0.0), 0.0)
        # the smallest range keeps the scale finite if all differences are 0
        self.scale = (WIDTH - 2 * MARGIN) / max(highest - self.lowest, 1e-9)

    def place(self, value: float) -> float | None:
        """Return the position of a value; None for NaN."""
        return round(MARGIN + (value - self.lowest) * self.scale, 1) if value == value else None

    def rows(self, cells: Iterable[tuple[str, xr.Dataset]]) -> list[dict[str, Any]]:
        """Return the name, text and positions of each mean and its interval; a mean that is NaN has no row."""
        rows = []
        for name, cell in cells:
            mean, low, high = (float(cell[end]) for end in ENDS)
            if mean == mean:
                ends = {"zero": 0.0, "mean": mean, "low": low, "high": high}
                places = {end: self.place(value) for end, value in ends.items()}
                rows.append({"name": name, "text": interval_text(mean, low, high), **places})
        return rows
