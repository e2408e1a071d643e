"""Summarize a study in sentences, each from computed numbers.

Input: results of a study.
Output: texts for the top of its page.
"""

import numpy as np
import xarray as xr

from jaxablate.charts import names_of, order_name
from jaxablate.results import NETWORK_SCOPE, RANDOM, balanced_fill, compare_conditions, select_protocol
from jaxablate.results._labels import is_passed, neuron_numbers
from jaxablate.results._summaries import ordering_places
from jaxablate.statistics import first_step_below

LEVEL = 0.05
POINTS = 1.0
"""Fall of accuracy, in points, up to which neurons count as removable."""


# The sentences follow from numbers alone, by the same rules for every study. Only differences with a corrected p-value
# below 0.05 are named as such. One network has no interval: the sentence then has the scatter of the random orders too,
# and concludes nothing for further networks.
def summarize_study(results: xr.DataTree, protocol: str) -> list[str]:
    """Return three sentences for each network: its accuracy, the orders, and how many neurons it can lose."""
    comparisons = compare_conditions(results, protocol)
    texts = []
    for name, node in select_protocol(results, protocol).children.items():
        network = node.to_dataset()
        compared = comparisons.sel(condition="", network=name)
        sentences = [_accuracy(name, network), _orders(network, compared), _removable(network)]
        texts.append(" ".join(sentences))
    return texts


def data_note(results: xr.DataTree) -> str:
    """Return how the data differ from the paper's, or "" if they do not."""
    networks = [node.to_dataset() for node in results.subtree if "hidden" in node.attrs]
    if results.attrs["dataset"] != "mnist5k" or all(map(is_passed, networks)):
        return ""
    return (
        "The data are the 5,000 images of MNIST that come with the installation, less than a tenth of the paper's "
        "data. These are not the paper's numbers: full MNIST (--data-dir, or the cache of TFDS) gives those."
    )


def _accuracy(name: str, network: xr.Dataset) -> str:
    """Return the sentence on the accuracy of the intact network."""
    intact = 100 * network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values
    tests = f"{network.attrs['num_test_examples']:,} test examples"
    if len(intact) == 1:
        return f"The {name} network classifies {intact[0]:.1f}% of {tests} correctly."
    extent = f"from {intact.min():.1f}% to {intact.max():.1f}%"
    return f"{len(intact)} {name} networks classify {intact.mean():.1f}% of {tests} correctly, {extent}."


def _orders(network: xr.Dataset, compared: xr.Dataset) -> str:
    """Return the sentence on the orders that keep the most and the least accuracy, relative to random orders."""
    names = [name for name in names_of(compared, "comparison") if name.endswith(f" - {RANDOM}")]
    chosen = compared.sel(comparison=names)
    difference = chosen["difference"].values
    if np.isnan(difference).all():
        return "The orders of neurons cannot be compared."
    where = "Over the whole network, bias balanced and averaged over the steps,"
    if np.isnan(chosen["p_holm"].values).all():
        best, worst = int(np.nanargmax(difference)), int(np.nanargmin(difference))
        spread = _spread_of_random(network)
        scatter = "" if np.isnan(spread) else f"single random orders scatter by {spread:.1f} (standard deviation), and "
        return (
            f"{where} {_first(names[best])} differs from random orders by {difference[best]:+.1f} points and "
            f"{_first(names[worst])} by {difference[worst]:+.1f}; {scatter}one network has no interval."
        )
    is_clear = chosen["p_holm"].values < LEVEL
    ends = {
        "keeps the most accuracy": (np.nanargmax, difference > 0),
        "keeps the least": (np.nanargmin, difference < 0),
    }
    parts = []
    for words, (choose, has_sign) in ends.items():
        eligible = is_clear & has_sign
        if eligible.any():
            i = int(choose(np.where(eligible, difference, np.nan)))
            interval = f"{chosen['low'].values[i]:+.1f} to {chosen['high'].values[i]:+.1f}"
            parts.append(f"{_first(names[i])} {words} ({difference[i]:+.1f} points from random orders, {interval})")
    if not parts:
        largest = int(np.nanargmax(np.abs(difference)))
        return (
            f"{where} no order differs significantly from random orders; the largest difference is "
            f"{difference[largest]:+.1f} points, for {_first(names[largest])}."
        )
    return f"{where} {' and '.join(parts)}."


def _first(comparison: str) -> str:
    """Return the order of a comparison with random orders, in words."""
    return f"{order_name(comparison.removesuffix(f' - {RANDOM}'))} first"


def _random_curves(network: xr.Dataset) -> xr.DataArray:
    """Return the accuracy of random orders of the whole network, bias balanced (seed, ordering, step)."""
    curves = network["accuracy"].sel(scope=NETWORK_SCOPE, fill=balanced_fill(network))
    curves = curves.isel(ordering=ordering_places(network, RANDOM, ""))
    return curves.dropna("step", how="all").transpose("seed", "ordering", "step")


def _spread_of_random(network: xr.Dataset) -> float:
    """Return the standard deviation of the areas of one network's random orders, in points."""
    areas = 100 * _random_curves(network).values[0, :, 1:].mean(axis=-1)
    return float(areas.std(ddof=1)) if len(areas) > 1 else float("nan")


def _removable(network: xr.Dataset) -> str:
    """Return the sentence on how many neurons random orders can lose."""
    curves = _random_curves(network)
    numbers = neuron_numbers(curves).values
    total, last = network.sizes["neuron"], int(numbers[-1])
    steps = first_step_below(curves.values, POINTS)  # [network, order]
    # A curve that never falls that low ablates all neurons of its steps, or more.
    places = np.where(np.isinf(steps), len(numbers), steps).astype(int) - 1
    lost = numbers[np.maximum(places, 0)]
    median = np.sort(places.ravel())[(places.size - 1) // 2]
    at_least = "at least " if median == len(numbers) - 1 else ""
    details = f"median of {lost.size} curves, from {lost.min()} to {lost.max()}" if lost.size > 1 else "one curve"
    if never := int(np.isinf(steps).sum()):
        details += f"; {never} never fell that low in the {last} neurons that were ablated"
    return (
        f"In random order, {at_least}{numbers[max(median, 0)]} of {total} neurons can be ablated before accuracy falls "
        f"{POINTS:g} point below that of the intact network ({details})."
    )
