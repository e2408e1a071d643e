"""Define the paper's claims as comparisons.

Input: the results of one architecture.
Output: comparisons [seed], positive if they support the claim.

AUC is the mean accuracy over all steps but the first, where nothing is ablated. LVF and HVF order neurons by low and by
high values first.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from jaxablate.claims._statistics import CORRELATION, LOG_RATIO, NATS, POINTS, Comparison
from jaxablate.layer_analysis import damage_correlations
from jaxablate.results import NETWORK_SCOPE, RANDOM, auc, balanced_fill
from jaxablate.results._summaries import ordering_places
from jaxablate.statistics import estimate

STRONG, LITTLE, FLAT = 3.0, 2.0, 1.0
"""Bounds on the mean loss of accuracy, in points: a strong fall loses more than STRONG, a random order that "costs
little" less than LITTLE, a flat curve less than FLAT.

The paper gives no numbers. Its figures 21 and 22 lose 5 to 9 (strong), 1 to 2 (little) and nearly 0 (flat)."""
STRONG_CORRELATION = 0.5
"""A rank correlation above this is strong; the paper gives no number."""

MI, KL, ENTROPY = "mutual_information", "kl_selectivity", "entropy"
PAPER_SCORES = (ENTROPY, MI, KL)
SHORT = {MI: "MI", KL: "KL", ENTROPY: "entropy", RANDOM: "random", "contribution_sd": "contribution sd"}


class NetworkSummary:
    """AUCs, mean scores and correlations of the networks of one architecture; every method returns [seed].

    Attributes:
        network: the dataset, a node of the results.
        layers: names of the layers or sites, in network order.
        balanced: name of the fill of bias balancing.

    Example:
        >>> summary = ja.claims.NetworkSummary(results["2-layer-12-10"].to_dataset())
        >>> summary.area("layer1", "entropy", "low").shape
        (2,)
    """

    def __init__(self, network: xr.Dataset):
        self.network = network
        self.layers = [str(scope) for scope in network["scope"].values if scope != NETWORK_SCOPE]
        self.balanced = balanced_fill(network)
        areas = auc(network).transpose("scope", "fill", "seed", "ordering")
        # NumPy arrays [seed, ordering] by scope and fill: claims read thousands of areas, and xarray would take most of
        # their time
        names = itertools.product(areas["scope"].values, areas["fill"].values)
        self._areas = dict(zip(names, areas.values.reshape(-1, *areas.shape[2:]), strict=True))

    def area(self, scope: str, ranking: str, direction: str = "low", fill: str | None = None) -> np.ndarray:
        """Return the AUC of a scope and an order in percent; for random orders their mean, None is bias balancing."""
        areas = self._areas[scope, fill or self.balanced]
        return areas[:, ordering_places(self.network, ranking, direction)].mean(axis=1)

    def loss_of_area(self, ranking: str) -> np.ndarray:
        """Return the mean loss of accuracy, in points, over a whole-network order with low values first."""
        # step 0 ablates nothing, so every scope, ordering and fill has the same accuracy there
        intact = 100 * self.network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values
        return intact - self.area(NETWORK_SCOPE, ranking)

    def mean_score(self, name: str, layer: int) -> np.ndarray:
        """Return the mean score of a layer's neurons, layers from 1; neurons with an undefined score are left out."""
        scores = self.network["scores"].sel(score=name).values[:, self.network["layer"].values == layer]
        return estimate(scores.T).mean

    def damage_correlation(self, score: str, scope: str) -> np.ndarray:
        """Return Spearman's correlation of a score with the rise of the loss if only that neuron is ablated."""
        return self._correlations.sel(score=score, scope=scope).values

    @cached_property
    def _correlations(self) -> xr.DataArray:
        return damage_correlations(self.network)

    def order_variance(self, scope: str, fill: str) -> np.ndarray:
        """Return the variance of accuracy between random orders, in squared points, averaged over the steps."""
        chosen = ordering_places(self.network, RANDOM, "low")
        accuracy = 100 * self.network["accuracy"].sel(scope=scope, fill=fill).isel(ordering=chosen, step=slice(1, None))
        if len(chosen) < 2:
            return np.full(self.network.sizes["seed"], np.nan)
        return accuracy.var("ordering", ddof=1).mean("step").values


@dataclass(frozen=True)
class Claim:
    """A claim about networks, as comparisons that decide it.

    Attributes:
        number: short name, such as "C3".
        text: the claim in words.
        compare: function from a `NetworkSummary` to comparisons, positive where a network supports the claim. Without
            comparisons the claim is not about this kind of network.
        scores: names of the scores that it needs.

    Example:
        >>> def compare(summary):
        ...     for layer in summary.layers:
        ...         gap = summary.area(layer, "entropy", "low") - summary.area(layer, "random")
        ...         yield ja.claims.Comparison(f"{layer}: entropy-LVF over random", "accuracy points", gap)
        >>> mine = ja.claims.Claim("M1", "low entropy is safer to ablate than random", compare, ("entropy",))
        >>> {verdict.claim for verdict in ja.judge_claims(results, [mine])}
        {'M1'}
    """

    number: str
    text: str
    compare: Callable[[NetworkSummary], Iterable[Comparison]]
    scores: tuple[str, ...] = ()


# Each claim is a generator of comparisons of one network, positive where the network supports the claim. AUC is the
# mean accuracy over the steps in percent, so that a difference of two AUCs is in accuracy points. All comparisons are
# paired: both curves come from the same trained network. Claims use the paper's three scores, whatever else is there.
def _balancing_flattens(summary: NetworkSummary) -> Iterator[Comparison]:
    for layer, ranking in itertools.product(summary.layers, (RANDOM, MI)):
        difference = summary.area(layer, ranking) - summary.area(layer, ranking, fill="zero")
        name = SHORT[ranking] + ("" if ranking == RANDOM else "-LVF")
        yield Comparison(f"{layer}, {name}: balanced over zeros", POINTS, difference)


def _random_lies_between(summary: NetworkSummary) -> Iterator[Comparison]:
    for layer, score in itertools.product(summary.layers, PAPER_SCORES):
        low, high = (summary.area(layer, score, direction) for direction in ("low", "high"))
        group, random = f"{layer}, {SHORT[score]}", summary.area(layer, RANDOM)
        yield Comparison(f"{group}: LVF over random", POINTS, low - random, group)
        yield Comparison(f"{group}: random over HVF", POINTS, random - high, group)


def _low_first_is_better_in_shallow_layers(summary: NetworkSummary) -> Iterator[Comparison]:
    for layer, score in itertools.product(summary.layers[:-1], (MI, KL)):
        difference = summary.area(layer, score, "low") - summary.area(layer, score, "high")
        yield Comparison(f"{layer}, {SHORT[score]}: LVF over HVF", POINTS, difference)


def _high_first_is_better_in_the_last_layer(summary: NetworkSummary) -> Iterator[Comparison]:
    last = summary.layers[-1]
    for score in (MI, KL):
        difference = summary.area(last, score, "high") - summary.area(last, score, "low")
        yield Comparison(f"{last}, {SHORT[score]}: HVF over LVF", POINTS, difference)


def _layer_areas(summary: NetworkSummary, layer: str) -> dict[str, np.ndarray]:
    """Return the AUC [seed] of random orders, and the mean AUC of the paper's rankings in both directions."""
    ranked = [summary.area(layer, *order) for order in itertools.product(PAPER_SCORES, ("low", "high"))]
    return {"random": summary.area(layer, RANDOM), "all rankings": np.mean(ranked, axis=0)}


def _second_of_three_layers_is_most_sensitive(summary: NetworkSummary) -> Iterator[Comparison]:
    if len(summary.layers) == 3:
        areas = [_layer_areas(summary, layer) for layer in summary.layers]
        for i, kind in itertools.product((0, 2), areas[0]):
            yield Comparison(f"{kind}: {summary.layers[i]} over layer2", POINTS, areas[i][kind] - areas[1][kind])


def _last_layer_costs_least(summary: NetworkSummary) -> Iterator[Comparison]:
    last = _layer_areas(summary, summary.layers[-1])
    for layer in summary.layers[:-1]:
        for kind, area in _layer_areas(summary, layer).items():
            yield Comparison(f"{kind}: {summary.layers[-1]} over {layer}", POINTS, last[kind] - area)


def _more_than(label: str, unit: str, values: np.ndarray, threshold: float) -> Comparison:
    return Comparison(f"{label} beyond {threshold:g}", unit, values - threshold, threshold=threshold, slope=-1)


def _less_than(label: str, unit: str, values: np.ndarray, threshold: float) -> Comparison:
    return Comparison(f"{label} short of {threshold:g}", unit, threshold - values, threshold=threshold, slope=1)


def _only_kl_stays_flat(summary: NetworkSummary) -> Iterator[Comparison]:
    for score in (ENTROPY, MI):
        yield _more_than(f"{SHORT[score]}-LVF: loss in points", POINTS, summary.loss_of_area(score), STRONG)
    yield _less_than("KL-LVF: loss in points", POINTS, summary.loss_of_area(KL), FLAT)


def _deeper_scores_higher(*scores: str, group: str = "") -> Callable[[NetworkSummary], Iterator[Comparison]]:
    def compare(summary: NetworkSummary) -> Iterator[Comparison]:
        for score, layer in itertools.product(scores, range(1, len(summary.layers))):
            difference = summary.mean_score(score, layer + 1) - summary.mean_score(score, layer)
            yield Comparison(f"mean {SHORT[score]}: layer{layer + 1} over layer{layer}", NATS, difference, group)

    return compare


def _random_costs_little(summary: NetworkSummary) -> Iterator[Comparison]:
    yield _less_than("random: loss in points", POINTS, summary.loss_of_area(RANDOM), LITTLE)


def _balancing_reduces_chance(summary: NetworkSummary) -> Iterator[Comparison]:
    for layer in summary.layers:
        zeros, balanced = (summary.order_variance(layer, fill) for fill in ("zero", summary.balanced))
        defined = (zeros > 0) & (balanced > 0)
        ratio = np.log(np.where(defined, zeros, 1) / np.where(defined, balanced, 1))
        label = f"{layer}, random: variance between orders, zeros over balanced"
        yield Comparison(label, LOG_RATIO, np.where(defined, ratio, np.nan))


def _scores_track_damage(summary: NetworkSummary) -> Iterator[Comparison]:
    for scope, score in itertools.product((*summary.layers, NETWORK_SCOPE), (MI, KL)):
        correlation = summary.damage_correlation(score, scope)
        yield _more_than(f"{scope}, {SHORT[score]}: correlation", CORRELATION, correlation, STRONG_CORRELATION)


CLAIMS: dict[str, Claim] = {
    number: Claim(number, *definition)
    for number, definition in {
        "C1": ("bias balancing flattens the curves", _balancing_flattens, (MI,)),
        "C2": (
            "random lies between low values first (better) and high values first (worse)",
            _random_lies_between,
            PAPER_SCORES,
        ),
        "C3": (
            "shallow layers: low values first is better, for MI and KL",
            _low_first_is_better_in_shallow_layers,
            (MI, KL),
        ),
        "C4": (
            "last hidden layer: high values first is better, for MI and KL",
            _high_first_is_better_in_the_last_layer,
            (MI, KL),
        ),
        "C5": (
            "of three layers the second is the most sensitive",
            _second_of_three_layers_is_most_sensitive,
            PAPER_SCORES,
        ),
        "C6": ("the last layer is the most redundant: its ablation costs least", _last_layer_costs_least, PAPER_SCORES),
        "C7": (
            "whole network: entropy and MI low first fall strongly, KL stays flat",
            _only_kl_stays_flat,
            PAPER_SCORES,
        ),
        "C8": ("entropy and MI are lower in shallow layers", _deeper_scores_higher(ENTROPY, MI), (ENTROPY, MI)),
        "C9": (
            "KL selectivity is higher in deeper layers (section 6; section 5 says the reverse)",
            _deeper_scores_higher(KL, group="all layers"),
            (KL,),
        ),
        "C10": ("random pruning of the whole network costs little", _random_costs_little, ()),
        "C11": (
            "bias balancing reduces the variation between random orders of a network",
            _balancing_reduces_chance,
            (),
        ),
        "C12": ("MI and KL correlate strongly with the damage of a single neuron", _scores_track_damage, (MI, KL)),
    }.items()
}
"""The paper's claims by number."""
