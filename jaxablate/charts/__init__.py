"""Decide what each chart shows; `figures` and `report` draw the same charts.

Input: results of a study, verdicts on claims, or arrays.
Output: dataclasses of NumPy arrays and texts. A colour is a number from 0 to 6 and a dash a name, for which each
renderer has its own palette.
Memory: one chart at a time.
"""

from jaxablate.charts._claims import claim_table, deciding_effect
from jaxablate.charts._names import (
    METRIC_NAMES,
    comparison_name,
    fill_name,
    layers_of,
    main_score,
    names_of,
    order_name,
    origin,
    place_name,
    score_colors,
    score_name,
    short_name,
)
from jaxablate.charts._own import comparison_chart, curves_chart, points_chart, redundancy_chart, values_chart
from jaxablate.charts._paper import EXTRAS, FIGURES, FigureSpec
from jaxablate.charts._published import Prediction, PublishedCurve, compare_published, published_chart
from jaxablate.charts._study import (
    MAX_SCORES,
    balancing_chart,
    class_chart,
    correlation_chart,
    damage_chart,
    figure_chart,
    keep_chart,
    order_chart,
    order_charts,
    score_chart,
    share_charts,
    training_chart,
)
from jaxablate.charts._types import (
    CorrelationChart,
    IntervalChart,
    Intervals,
    Line,
    LineChart,
    Points,
    ScatterChart,
    Violin,
    ViolinChart,
)
from jaxablate.results._summaries import INTERVAL

__all__ = [
    "EXTRAS",
    "FIGURES",
    "INTERVAL",
    "MAX_SCORES",
    "METRIC_NAMES",
    "CorrelationChart",
    "FigureSpec",
    "IntervalChart",
    "Intervals",
    "Line",
    "LineChart",
    "Points",
    "Prediction",
    "PublishedCurve",
    "ScatterChart",
    "Violin",
    "ViolinChart",
    "balancing_chart",
    "claim_table",
    "class_chart",
    "compare_published",
    "comparison_chart",
    "comparison_name",
    "correlation_chart",
    "curves_chart",
    "damage_chart",
    "deciding_effect",
    "figure_chart",
    "fill_name",
    "keep_chart",
    "layers_of",
    "main_score",
    "names_of",
    "order_chart",
    "order_charts",
    "order_name",
    "origin",
    "place_name",
    "points_chart",
    "published_chart",
    "redundancy_chart",
    "score_chart",
    "score_colors",
    "score_name",
    "share_charts",
    "short_name",
    "training_chart",
    "values_chart",
]
