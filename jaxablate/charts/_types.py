"""Describe charts: curves, distributions, points and intervals, without a renderer.

Input: NumPy arrays and texts.
Output: dataclasses. A colour is a number from 0 to 6 and a dash a name; each renderer has its own palette.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: label of the curve; empty for a curve that is not named.
        color: number of the colour.
        dash: "" for a solid line, or a name in `DASHES`.
        values: one value for each x.
        low, high: edges of the band, one value for each x.
        band: meaning of the band; empty if there is none to draw.
        marker: symbol on the line, for renderers that can draw it; empty for none.
        networks: values of each network [network, x], if the single networks are of interest.
    """

    name: str
    color: int
    dash: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band: str
    marker: str = ""
    networks: np.ndarray | None = None


@dataclass(frozen=True)
class LineChart:
    """A chart of curves over whole numbers.

    `percent` marks values in 0..1 that are shown in percent. `stacked` marks shares whose sum is 1, so that a renderer
    can stack their areas.
    """

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    x: np.ndarray
    lines: Sequence[Line]
    percent: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Violin:
    """The distribution of the values of a group.

    Attributes:
        name: name of the group.
        color: number of the colour.
        values: the defined values, perhaps none.
        note: number of neurons of a network without a value, a mean over networks; empty if there is none.
    """

    name: str
    color: int
    values: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class ViolinChart:
    """A chart of distributions; `bound` is a value with a name, drawn as a horizontal line."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    violins: Sequence[Violin]
    bound: tuple[float, str] | None = None


@dataclass(frozen=True)
class CorrelationChart:
    """The correlation of scores with the damage of single neurons.

    Attributes:
        title: name of the network.
        scores: names of the scores.
        colors: colour of each score.
        places: names of the scopes.
        mean, low, high: mean over the networks and its 95% t-interval [score, place], cut to -1..1.
        is_cut: True if an interval was longer.
        num_networks: number of networks.
    """

    title: str
    scores: Sequence[str]
    colors: Sequence[int]
    places: Sequence[str]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_cut: bool
    num_networks: int


@dataclass(frozen=True)
class Points:
    """The points of a group: one value of x and of y for each point."""

    name: str
    color: int
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class ScatterChart:
    """A chart of points."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    caption: str
    groups: Sequence[Points]


@dataclass(frozen=True)
class Intervals:
    """Estimates of a group with their intervals; every array is [row], and NaN is left out."""

    name: str
    color: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class IntervalChart:
    """A chart of estimates in rows, around a line at 0."""

    title: str
    x_label: str
    caption: str
    rows: Sequence[str]
    groups: Sequence[Intervals]
