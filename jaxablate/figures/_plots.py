"""Plot results or arrays of any network on Matplotlib axes, one call each.

Input: results of a study, arrays of the library's functions, or estimates.
Output: Matplotlib axes, which notebooks display.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxablate._checks import InputError, require, require_known
from jaxablate.charts import (
    IntervalChart,
    LineChart,
    ScatterChart,
    ViolinChart,
    comparison_chart,
    curves_chart,
    damage_chart,
    main_score,
    names_of,
    order_chart,
    points_chart,
    redundancy_chart,
    score_chart,
    values_chart,
)
from jaxablate.figures._draw import CAPTION_WIDTH, COLORS, INK, SOFT, draw_lines, draw_violins, styled
from jaxablate.figures._interactions import ARRANGED, QUANTITIES, draw_map, order_of
from jaxablate.interactions import PairInformation
from jaxablate.orders import DIRECTIONS
from jaxablate.results import NETWORK_SCOPE, protocols_of, select_protocol

MARKERS = "osD^vP"
MAX_LABELS = 5
"""Largest number of names in a legend on the axes; a longer legend of a new figure is to the right of them."""


def plot_curves(
    curves: Any,
    *,
    scope: str = NETWORK_SCOPE,
    fill: str | None = None,
    scores: Sequence[str] | None = None,
    directions: Sequence[str] = DIRECTIONS,
    outcome: str = "correct",
    num_examples: int | None = None,
    num_ablated: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot accuracy, or another outcome, against the number of ablated neurons.

    Args:
        curves: results of a study with one network, a node such as `results["3-layer"]` or its dataset. Or an array of
            `ja.cumulative_ablation`: [step], [order, step] or [network, order, step]. Or arrays by name, as a mapping
            or as pairs of a name and an array. In place of an array, a `ja.results.Curve` or a mapping from outcomes to
            arrays, as `ja.cumulative_ablation` returns it for several outcomes.
        scope: for results, name of a layer or site, or "network".
        fill: for results, name of a fill; None for bias balancing.
        scores: for results, names of scores; None for all.
        directions: for results, "low" or "high" values first, or both.
        outcome: for arrays, name of the outcome: the name of the y axis, and the key in a mapping.
        num_examples: for arrays of "correct", the number of examples; the y axis then shows accuracy in percent.
        num_ablated: for arrays, numbers of ablated neurons [step], from 0 on; None if each step ablates one neuron.
        ax: where to draw; None for a new figure.

    Returns:
        The axes. Lines are means over networks and orders. A band is the 95% t-interval of the mean over networks, or
        for one network the 10% to 90% quantiles over its orders; the legend names it. A curve whose name begins with
        "random" is black.

    Raises:
        InputError: for results of several networks, names that are not in the results, or arrays that do not fit.

    Example:
        >>> from jaxablate.figures import plot_curves
        >>> ax = plot_curves({"low entropy first": np.array([9, 8, 4]), "random": np.array([[9, 7, 5], [9, 6, 2]])})
        >>> ax.get_ylabel()
        'Correct predictions'
    """
    if isinstance(curves, xr.DataTree | xr.Dataset):
        name, network = _one_network(curves)
        known = names_of(network, "score")
        for score in scores or ():
            require_known("scores", score, known)
        for direction in directions:
            require_known("directions", direction, DIRECTIONS)
        require(len(directions) > 0, "directions: expected low, high or both, got none")
        chart = order_chart(name, network, scope, directions=directions, scores=scores or (), fill=fill)
    else:
        chart = curves_chart(curves, outcome=outcome, num_examples=num_examples, num_ablated=num_ablated)
    return _plot(chart, ax)


def plot_scores(
    scores: Any, *, score: str | None = None, sites: Mapping[str, Any] | None = None, ax: Axes | None = None
) -> Axes:
    """Plot the distribution of a score in each layer or site.

    Args:
        scores: results of a study with one network, a node of them or its dataset; or scores [neuron] or [network,
            neuron].
        score: for results, name of the score; None for mutual information or the first score. For arrays, the name of
            the y axis.
        sites: for arrays, ids of the neurons of each site by name, as from `ja.models.site_neurons`.
        ax: where to draw; None for a new figure.

    Returns:
        The axes, with a violin for each site, lines at the quartiles and a dot for each neuron. Names of sites count
        the neurons whose score is undefined or, for results, whose code is constant.

    Raises:
        InputError: for results of several networks, a score that is not in the results, or arrays that do not fit.

    Example:
        >>> from jaxablate.figures import plot_scores
        >>> plot_scores(results["2-layer-12-10"], score="entropy").get_ylabel()
        'Entropy (nats)'
    """
    if isinstance(scores, xr.DataTree | xr.Dataset):
        name, network = _one_network(scores)
        return _plot(score_chart(name, network, _known_score(network, score)), ax)
    return _plot(values_chart(scores, score or "Score", sites), ax)


def plot_damage(
    scores: Any,
    damage: Any = None,
    *,
    score: str | None = None,
    sites: Mapping[str, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the damage of ablating each neuron alone against its score.

    Args:
        scores: results of a study with one network, a node of them or its dataset; or scores [neuron] or [network,
            neuron].
        damage: for arrays, the damage of the same shape, for example the rise of the loss from `ja.single_ablation`.
        score, sites, ax: as in `plot_scores`.

    Returns:
        The axes, with a point for each neuron. The legend has Spearman's correlation within each site.

    Raises:
        InputError: as in `plot_scores`, or for scores without damage.

    Example:
        >>> from jaxablate.figures import plot_damage
        >>> plot_damage(results["2-layer-12-10"], score="entropy").get_xlabel()
        'Entropy (nats)'
    """
    if isinstance(scores, xr.DataTree | xr.Dataset):
        require(damage is None, "damage: results have the damage of every neuron; leave it out")
        name, network = _one_network(scores)
        return _plot(damage_chart(name, network, _known_score(network, score)), ax)
    require(damage is not None, "damage: expected an array like the scores, got None; ja.single_ablation computes it")
    return _plot(points_chart(scores, damage, score or "Score", sites), ax)


def plot_pairs(
    pairs: PairInformation,
    *,
    quantity: str = "co_information",
    arranged: str = "information",
    ax: Axes | None = None,
) -> Axes:
    """Plot the information of all pairs of neurons about the class as a heat map.

    Args:
        pairs: from `ja.interactions.pair_information`.
        quantity: "redundancy", "synergy" or "co_information".
        arranged: order of the neurons: "information" puts the most informative first; "clusters" puts neurons next to
            each other whose co-information is large.
        ax: where to draw; None for a new figure.

    Returns:
        The axes, with a colour bar in nats. The diagonal is blank.

    Raises:
        InputError: for an unknown quantity or order.

    Example:
        >>> from jaxablate.figures import plot_pairs
        >>> codes, labels = np.array([[0, 1], [1, 1], [1, 0], [0, 0]]), np.array([0, 1, 1, 0])
        >>> pairs = ja.interactions.pair_information(codes, labels, num_codes=2, num_classes=2)
        >>> plot_pairs(pairs, quantity="synergy").get_xlabel()
        'Position of neuron j'
    """
    order = order_of(pairs, arranged)
    require_known("quantity", quantity, QUANTITIES)

    def draw(axes: Axes) -> None:
        image = draw_map(axes, pairs, quantity, order)
        axes.figure.colorbar(image, ax=axes, label="nats")
        if ax is None:
            _add_caption(axes, f"Neurons {ARRANGED[arranged]}; diagonal left out.")

    return _on_axes(draw, ax)


def plot_comparison(
    comparison: Any, *, scope: str = NETWORK_SCOPE, fill: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot differences between runs, networks or orders with their 95% intervals.

    Args:
        comparison: from `ja.compare` or `ja.results.compare_conditions`; or pairs of a name and an estimate of one
            number, as from `ja.statistics.paired_difference`.
        scope: for `ja.compare`, name of a layer or site, or "network".
        fill: for `ja.compare`, name of a fill; None for the first one other than "zero".
        ax: where to draw; None for a new figure.

    Returns:
        The axes, with a row for each ordering, comparison or estimate, and a colour for each network and condition.

    Raises:
        InputError: for names that are not in the comparison, or more than six networks and conditions.

    Example:
        >>> from jaxablate.figures import plot_comparison
        >>> comparison = ja.compare(results["2-layer-12-10"], results["3-layer-10-8-9"])
        >>> plot_comparison(comparison).get_xlabel()
        'First minus second: area under the curve (points)'
    """
    return _plot(comparison_chart(comparison, scope, fill), ax)


def plot_redundancy(
    redundancy: xr.Dataset, *, scope: str | None = None, ordering: str = "random", ax: Axes | None = None
) -> Axes:
    """Plot the accuracy while a layer is ablated to its end under zeros, means and linear compensation.

    Args:
        redundancy: from `ja.study.linear_redundancy`.
        scope: name of the layer or site; None for the only one.
        ordering: name of an ordering, or "random" for all random orders.
        ax: where to draw; None for a new figure.

    Returns:
        The axes; bands as in `plot_curves`.

    Raises:
        InputError: for a scope or ordering that is not in the results, or several scopes without a choice.

    Example:
        >>> from jaxablate.figures import plot_redundancy
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> redundancy = ja.study.linear_redundancy(model, data, scores=())
        >>> plot_redundancy(redundancy).get_xlabel()
        'Ablated neurons'
    """
    if not isinstance(redundancy, xr.Dataset) or "readout_accuracy" not in redundancy:
        raise InputError(
            f"redundancy: expected results from ja.study.linear_redundancy, got {type(redundancy).__name__}"
        )
    scopes = names_of(redundancy, "scope")
    require(scope is not None or len(scopes) == 1, f"scope: choose one of {', '.join(scopes)}")
    require_known("scope", scope or scopes[0], scopes)
    return _plot(redundancy_chart(redundancy, scope or scopes[0], ordering), ax)


def _one_network(results: xr.DataTree | xr.Dataset) -> tuple[str, xr.Dataset]:
    """Return the name and the results of one network; "" for a dataset, which has no name."""
    if isinstance(results, xr.DataTree) and "accuracy" in results.data_vars:
        return results.name or "", results.to_dataset()
    if isinstance(results, xr.DataTree):
        networks = select_protocol(results, protocols_of(results)[0]).children
        require(
            len(networks) == 1,
            f"results: they hold the networks {', '.join(networks)}; pass one, such as "
            f"results[{next(iter(networks), '')!r}]",
        )
        return next((name, node.to_dataset()) for name, node in networks.items())
    if "ordering" not in results.dims or "accuracy" not in results:
        raise InputError("results: expected the results of one network, such as results['3-layer'], got other data")
    return "", results


def _known_score(network: xr.Dataset, score: str | None) -> str:
    if score is None:
        return main_score(network)
    require_known("score", score, names_of(network, "score"))
    return score


def _plot(chart: LineChart | ViolinChart | ScatterChart | IntervalChart, ax: Axes | None) -> Axes:
    """Draw a chart on given axes, or on a new figure with a title."""

    def draw(axes: Axes) -> None:
        if isinstance(chart, LineChart):
            draw_lines(axes, chart)
            axes.set_xlim(chart.x[0], chart.x[-1])
        elif isinstance(chart, ViolinChart):
            draw_violins(axes, chart)
        elif isinstance(chart, ScatterChart):
            _draw_points(axes, chart)
        else:
            _draw_intervals(axes, chart)
        _add_legend(axes, chart.caption, is_new=ax is None)
        if ax is None:
            lines = (chart.title, "" if isinstance(chart, IntervalChart) else chart.subtitle)
            axes.set_title("\n".join(filter(None, lines)))

    return _on_axes(draw, ax)


def _on_axes(draw: Callable[[Axes], None], ax: Axes | None) -> Axes:
    """Draw on given axes in the user's style, or on a new figure in the package's style; return the axes."""
    if ax is not None:
        if not isinstance(ax, Axes):
            raise InputError(f"ax: expected Matplotlib axes or None, got {type(ax).__name__}")
        draw(ax)
        return ax
    return _on_new_figure(draw)


@styled
def _on_new_figure(draw: Callable[[Axes], None]) -> Axes:
    # All layout is computed here, inside the style, since the caller draws and saves outside of it.
    # Figures of pyplot are what notebooks display at the end of a cell and what plt.show() opens.
    from matplotlib import pyplot

    axes = pyplot.figure(figsize=(6.4, 4.0), layout="constrained").add_subplot()
    draw(axes)
    return axes


def _add_legend(axes: Axes, caption: str, *, is_new: bool) -> None:
    """Add a legend; write the caption at the bottom of a new figure, else above the names or below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    place, title = {}, caption.replace("; ", ";\n").replace(". ", ".\n")
    if is_new:
        _add_caption(axes, caption)
        title = ""
        if len(labels) > MAX_LABELS:
            place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    elif not labels:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{caption}".rstrip())
    if labels:
        axes.legend(handles, labels, fontsize="small", title=title, title_fontsize="small", alignment="left", **place)


def _add_caption(axes: Axes, caption: str) -> None:
    """Write a caption at the bottom of a new figure, which makes room for it."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    wrapped = textwrap.fill(caption, int(CAPTION_WIDTH * figure.get_figwidth()))
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize="x-small", color=SOFT)


def _draw_points(axes: Axes, chart: ScatterChart) -> None:
    number = max(len(group.x) for group in chart.groups)
    for i, group in enumerate(chart.groups):
        axes.scatter(
            group.x, group.y, s=14, alpha=min(0.8, (200 / number) ** 0.5), color=COLORS[group.color], linewidth=0,
            marker=MARKERS[i % len(MARKERS)], label=group.name,
        )  # fmt: skip
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)


def _draw_intervals(axes: Axes, chart: IntervalChart) -> None:
    """Draw estimates in rows from the top, the groups of a row below each other."""
    for i, group in enumerate(chart.groups):
        heights = np.arange(len(chart.rows)) + (i + 0.5) / len(chart.groups) * 0.6 - 0.3
        # an estimate of a single network has no interval: a bar of length 0 leaves the marker alone
        reach = np.nan_to_num(np.stack([group.mean - group.low, group.high - group.mean]))
        axes.errorbar(
            group.mean, heights, xerr=reach, fmt=MARKERS[i % len(MARKERS)], color=COLORS[group.color], markersize=4,
            linewidth=1.2, label=group.name or None,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    axes.set_xlabel(chart.x_label)
