"""Define the paper's claims as comparisons.

Input: the results of one architecture.
Output: comparisons [seed], positive if they support the claim.

AUC is the mean accuracy over all steps but the first, where nothing is ablated. LVF and HVF order neurons by low and by
high values first.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from jaxablate.claims._statistics import Comparison
from jaxablate.results import NETWORK_SCOPE, RANDOM, auc, balanced_fill
from jaxablate.results._summaries import ordering_places

POINTS, NATS = "accuracy points", "nat"
STRONG, LITTLE, FLAT = 3.0, 2.0, 1.0
"""Bounds on the mean loss of accuracy, in points: a strong fall loses more than STRONG, a random order that "costs
little" less than LITTLE, a flat curve less than FLAT.

The paper gives no numbers. Its figures 21 and 22 lose 5 to 9 (strong), 1 to 2 (little) and nearly 0 (flat)."""

MI, KL, ENTROPY = "mutual_information", "kl_selectivity", "entropy"
SHORT = {MI: "MI", KL: "KL", ENTROPY: "entropy", RANDOM: "random"}


class _NetworkResults:
    """Compute the AUCs and mean scores of the networks of one architecture; every method returns one value per seed."""

    def __init__(self, network: xr.Dataset):
        self.areas = auc(network).transpose("seed", "ordering", ...)
        self.network = network
        self.layers = [str(scope) for scope in network["scope"].values if scope != NETWORK_SCOPE]
        self.scores = [str(name) for name in network["score"].values]
        self.balanced = balanced_fill(network)
        # step 0 ablates nothing, so every scope, ordering and fill has the same accuracy there
        self.intact = 100 * network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values

    def available(self, *names: str) -> list[str]:
        """Return the given scores that the results contain."""
        return [name for name in names if name in self.scores]

    def area(self, scope: str, ranking: str, direction: str = "low", fill: str | None = None) -> np.ndarray:
        """Return the AUC [seed] of a scope and an order; for random orders their mean."""
        areas = self.areas.sel(scope=scope, fill=fill or self.balanced)
        return areas.isel(ordering=ordering_places(self.network, ranking, direction)).mean("ordering").values

    def summary_areas(self, scope: str) -> dict[str, np.ndarray]:
        """Return the AUC [seed] of random orders, and the mean AUC of all rankings."""
        ranked = [self.area(scope, name, direction) for name in self.scores for direction in ("low", "high")]
        return {"random": self.area(scope, RANDOM), "all rankings": np.mean(ranked, axis=0)}

    def mean_score(self, name: str, layer: int) -> np.ndarray:
        """Return the mean score [seed] of a layer's neurons; neurons with an undefined score are left out."""
        scores = self.network["scores"].sel(score=name).values[:, self.network["layer"].values == layer]
        defined = np.isfinite(scores)
        # The mean over defined neurons, written without a division by zero: np.nanmean would warn for a layer without a
        # defined score.
        total = np.where(defined, scores, 0).sum(axis=1, dtype=np.float64)
        return np.where(defined.any(axis=1), total / np.maximum(defined.sum(axis=1), 1), np.nan)

    def cost(self, ranking: str) -> np.ndarray:
        """Return the mean loss of accuracy [seed], in points, over a whole-network order with low values first."""
        return self.intact - self.area(NETWORK_SCOPE, ranking)


# Each claim is a generator of comparisons of one network, positive where the network supports the claim. AUC is the
# mean accuracy over the steps in percent, so that a difference of two AUCs is in accuracy points. All comparisons are
# paired: both curves come from the same trained network.
def _balancing_flattens(results: _NetworkResults) -> Iterator[Comparison]:
    for layer, ranking in itertools.product(results.layers, (RANDOM, *results.available(MI))):
        difference = results.area(layer, ranking) - results.area(layer, ranking, fill="zero")
        name = SHORT[ranking] + ("" if ranking == RANDOM else "-LVF")
        yield Comparison(f"{layer}, {name}: balanced over zeros", POINTS, difference)


def _random_lies_between(results: _NetworkResults) -> Iterator[Comparison]:
    for layer, score in itertools.product(results.layers, results.scores):
        # The better direction is chosen by the mean over networks, not in each network: the larger of two noisy numbers
        # would lie above random by chance.
        directions = (results.area(layer, score, direction) for direction in ("low", "high"))
        worse, better = sorted(directions, key=np.mean)
        name, random = SHORT.get(score, score), results.area(layer, RANDOM)
        yield Comparison(f"{layer}, {name}: better direction over random", POINTS, better - random)
        yield Comparison(f"{layer}, {name}: random over worse direction", POINTS, random - worse)


def _low_first_is_better_in_shallow_layers(results: _NetworkResults) -> Iterator[Comparison]:
    for layer, score in itertools.product(results.layers[:-1], results.available(MI, KL)):
        difference = results.area(layer, score, "low") - results.area(layer, score, "high")
        yield Comparison(f"{layer}, {SHORT[score]}: LVF over HVF", POINTS, difference)


def _high_first_is_better_in_the_last_layer(results: _NetworkResults) -> Iterator[Comparison]:
    for score in results.available(MI, KL):
        difference = results.area(results.layers[-1], score, "high") - results.area(results.layers[-1], score, "low")
        yield Comparison(f"{results.layers[-1]}, {SHORT[score]}: HVF over LVF", POINTS, difference)


def _second_of_three_layers_is_most_sensitive(results: _NetworkResults) -> Iterator[Comparison]:
    if len(results.layers) == 3:
        areas = [results.summary_areas(layer) for layer in results.layers]
        for i, kind in itertools.product((0, 2), areas[0]):
            yield Comparison(f"{kind}: {results.layers[i]} over layer2", POINTS, areas[i][kind] - areas[1][kind])


def _last_layer_costs_least(results: _NetworkResults) -> Iterator[Comparison]:
    last = results.summary_areas(results.layers[-1])
    for layer in results.layers[:-1]:
        for kind, area in results.summary_areas(layer).items():
            yield Comparison(f"{kind}: {results.layers[-1]} over {layer}", POINTS, last[kind] - area)


def _only_kl_stays_flat(results: _NetworkResults) -> Iterator[Comparison]:
    for score in results.available(ENTROPY, MI):
        yield Comparison(f"{SHORT[score]}-LVF: loss beyond {STRONG:g} points", POINTS, results.cost(score) - STRONG)
    for score in results.available(KL):
        yield Comparison(f"{SHORT[score]}-LVF: loss short of {FLAT:g} point", POINTS, FLAT - results.cost(score))


def _deeper_scores_higher(*names: str, sign: int = 1) -> Callable[[_NetworkResults], Iterator[Comparison]]:
    def compare(results: _NetworkResults) -> Iterator[Comparison]:
        for score, layer in itertools.product(results.available(*names), range(1, len(results.layers))):
            difference = sign * (results.mean_score(score, layer + 1) - results.mean_score(score, layer))
            places = (layer + 1, layer) if sign > 0 else (layer, layer + 1)
            label = f"mean {SHORT[score]}: layer{places[0]} over layer{places[1]}"
            yield Comparison(label, NATS, difference)

    return compare


def _random_costs_little(results: _NetworkResults) -> Iterator[Comparison]:
    yield Comparison(f"random: loss short of {LITTLE:g} points", POINTS, LITTLE - results.cost(RANDOM))


CLAIMS: dict[str, tuple[str, Callable[[_NetworkResults], Iterator[Comparison]]]] = {
    "C1": ("bias balancing flattens the curves", _balancing_flattens),
    "C2": ("random is a moderate choice, between low and high values first", _random_lies_between),
    "C3": ("shallow layers: low values first is better, for MI and KL", _low_first_is_better_in_shallow_layers),
    "C4": ("last hidden layer: high values first is better, for MI and KL", _high_first_is_better_in_the_last_layer),
    "C5": ("of three layers the second is the most sensitive", _second_of_three_layers_is_most_sensitive),
    "C6": ("the last layer is the most redundant", _last_layer_costs_least),
    "C7": ("whole network: entropy and MI low first fall strongly, KL stays flat", _only_kl_stays_flat),
    "C8": ("entropy and MI are lower in shallow layers", _deeper_scores_higher(ENTROPY, MI)),
    "C9a": ("KL selectivity is higher in shallow layers", _deeper_scores_higher(KL, sign=-1)),
    "C9b": ("KL selectivity is higher in deeper layers", _deeper_scores_higher(KL)),
    "C10": ("random pruning of the whole network costs little", _random_costs_little),
}
"""The claims by number: the text and the function that yields the comparisons. The paper states both C9a and C9b."""


def comparisons_of(network: xr.Dataset) -> dict[str, list[Comparison]]:
    """Return the comparisons of every claim that the results of one architecture can decide, by claim."""
    results = _NetworkResults(network)
    comparisons = {claim: list(compare(results)) for claim, (_, compare) in CLAIMS.items()}
    return {claim: compared for claim, compared in comparisons.items() if compared}
