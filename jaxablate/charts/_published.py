"""Compare the curves that the paper publishes with the prediction intervals of one new network.

Input: results of a study, and accuracies in percent.
Output: `PublishedCurve`s and charts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.charts._names import place_name
from jaxablate.charts._paper import FIGURES
from jaxablate.charts._study import line_chart
from jaxablate.charts._types import Line, LineChart
from jaxablate.results import RANDOM, balanced_fill
from jaxablate.results._labels import neuron_numbers
from jaxablate.results._summaries import ordering_places
from jaxablate.statistics import auc, estimate


@dataclass(frozen=True)
class Prediction:
    """A published number and the 95% prediction interval of one new network, in percent.

    Attributes:
        published: the number in the paper.
        mean: mean of our networks.
        low, high: ends of the prediction interval.
    """

    published: float
    mean: float
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        """Return True if the published number lies in the interval."""
        return self.low <= self.published <= self.high


@dataclass(frozen=True)
class PublishedCurve:
    """A curve of the paper and the same curve of our networks, at 1, 2, ... ablated neurons; every array is [step].

    Attributes:
        name: name of the curve.
        values: accuracies in the paper, as fractions.
        mean: mean accuracies of our networks, as fractions.
        low, high: 95% prediction interval of one new network at each step.
        area: AUC, the mean accuracy over the steps.
        end: accuracy at the last step.
    """

    name: str
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: Prediction
    end: Prediction


PREDICTION = "95% prediction interval of one new network"


# order (ranking, values that go first), fill (None: bias balancing) and colour of each published curve; a ranking of
# figures 11 to 22 has the direction of its figure
_PUBLISHED_BALANCING = {
    "random, zeros": (RANDOM, "zero", 0),
    "random, balanced": (RANDOM, None, 1),
    "MI low first, zeros": ("mutual_information", "zero", 2),
    "MI low first, balanced": ("mutual_information", None, 3),
}
_PUBLISHED_ORDERS = {
    "random": (RANDOM, None, 0),
    "mutual information": ("mutual_information", None, 1),
    "KL selectivity": ("kl_selectivity", None, 2),
    "entropy": ("entropy", None, 3),
}


def _published_looks(number: int) -> Mapping[str, tuple[str, str | None, int]]:
    """Return the ranking, the fill and the colour of each curve of a published figure."""
    numbers = [number for number, spec in FIGURES.items() if spec.kind in ("balancing", "orders")]
    require(number in numbers, f"figure: expected a number in {numbers[0]}..{numbers[-1]}, got {number}")
    return _PUBLISHED_BALANCING if FIGURES[number].kind == "balancing" else _PUBLISHED_ORDERS


def compare_published(
    results: xr.DataTree, number: int, published: Mapping[str, Sequence[float]]
) -> list[PublishedCurve]:
    """Compare the curves of a published figure with the prediction intervals of one new network.

    The interval is mean +- t * s * sqrt(1 + 1/n) for n networks with standard deviation s, where t is the 97.5%
    quantile of the t-distribution with n - 1 degrees of freedom. It covers the randomness of training and of one random
    order, since a published random curve is one draw; it does not cover another split.

    Args:
        results: results of one protocol, for example `select_protocol(results, "published")`, of two networks or more.
        number: 6 to 22, as in the paper.
        published: accuracies in percent at 1, 2, ... ablated neurons, by the name of the curve. The names are "random",
            "mutual information", "KL selectivity" and "entropy". In figures 6 to 10 they are "random, zeros", "random,
            balanced", "MI low first, zeros" and "MI low first, balanced".

    Returns:
        One `PublishedCurve` for each published curve.

    Raises:
        InputError: for an unknown number or name, a single network, or more values than the results have steps.

    Source: Hahn and Meeker, Statistical Intervals (1991), section 4.
    """
    looks, spec = _published_looks(number), FIGURES[number]
    require(
        spec.network in results.children,
        f"figure {number}: expected results with a {spec.network} network, got {list(results.children)}",
    )
    network = results[spec.network].to_dataset()
    require(network.sizes["seed"] > 1, "results: one network has no prediction interval; train two or more")
    lengths = {len(values) for values in published.values()}
    require(len(lengths) == 1, f"published: expected curves of one length, got {sorted(lengths) or 'no curve'}")
    curves = []
    for name, percents in published.items():
        require_known("published", name, looks)
        ranking, fill, _ = looks[name]
        values = np.asarray(percents, np.float64) / 100
        accuracy = network["accuracy"].sel(scope=spec.scope, fill=fill or balanced_fill(network))
        places = ordering_places(network, ranking, spec.direction)
        # the mean over several random orders of each network would vary less than one published curve
        accuracy = accuracy.isel(ordering=places[0]).dropna("step").transpose("seed", "step")
        require(
            bool((neuron_numbers(accuracy) == accuracy["step"]).all()),
            "results: published curves ablate one neuron at each step; run the study with steps=80",
        )
        num_steps = accuracy.sizes["step"] - 1
        require(
            1 <= len(values) <= num_steps,
            f"published: expected 1 to {num_steps} values of {name!r}, as the results have steps, got {len(values)}",
        )
        ours = accuracy.values[:, : len(values) + 1]
        mean, low, high = _predict(ours[:, 1:])
        area = Prediction(float(100 * values.mean()), *map(float, _predict(auc(ours))))
        end = Prediction(float(100 * values[-1]), *(float(100 * part[-1]) for part in (mean, low, high)))
        curves.append(PublishedCurve(name, values, mean, low, high, area, end))
    return curves


def _predict(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean [...] of values [network, ...], and the ends of the prediction interval of one new network."""
    estimated = estimate(values)
    return (estimated.mean, *estimated.prediction_interval())


def published_chart(results: xr.DataTree, number: int, published: Mapping[str, Sequence[float]]) -> LineChart:
    """Return the chart of a published figure: its curves are solid, and our means are dashed, with their bands.

    Arguments and errors are those of `compare_published`.
    """
    curves, colors = compare_published(results, number, published), _published_looks(number)
    lines = []
    # the published curves come last, so that they are drawn over ours
    for pair in curves:
        lines.append(Line("", colors[pair.name][2], "dashed", pair.mean, pair.low, pair.high, PREDICTION))
    for pair in curves:
        lines.append(Line(pair.name, colors[pair.name][2], "", pair.values, pair.values, pair.values, ""))
    spec = FIGURES[number]
    order = f"{spec.direction} values first" if spec.kind == "orders" else "with, without balancing"
    subtitle = f"{order}; solid: published, dashed: our mean"
    labels = (f"{spec.network} network, {place_name(spec.scope)}", subtitle, "Ablated neurons", "Test accuracy")
    steps = np.arange(1, len(lines[0].values) + 1)
    network = results[spec.network].to_dataset()
    return line_chart(network, labels, f"The paper's figure {number}.", steps, lines)
