"""The paper's claims as comparisons: a network's results come in, effects [seed] go out, positive where they support
the claim.

AUC is the mean accuracy over all steps but the intact network's. LVF and HVF: low, high values first.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from jaxablate.claims._statistics import Comparison
from jaxablate.results import NETWORK_SCOPE, RANDOM, auc, balanced_fill

POINTS, NATS = "accuracy points", "nat"
STRONG, LITTLE, FLAT = 3.0, 2.0, 1.0
"""Mean loss of accuracy, in points: a strong fall is more, a little cost and a flat curve are less. Ours: the paper
gives no numbers; its figures 21 and 22 lose 5 to 9 (strong), 1 to 2 (little) and near 0 (flat)."""

MI, KL, ENTROPY = "mutual_information", "kl_selectivity", "entropy"
SHORT = {MI: "MI", KL: "KL", ENTROPY: "entropy", RANDOM: "random"}


class _Network:
    """The areas under the curves and mean scores of a network's results."""

    def __init__(self, network: xr.Dataset):
        self.areas = auc(network).transpose("seed", "ordering", ...)
        self.network = network
        self.layers = [str(scope) for scope in network["scope"].values if scope != NETWORK_SCOPE]
        self.metrics = [str(metric) for metric in network["score"].values]
        self.balanced = balanced_fill(network)
        intact = network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0)
        self.intact = 100 * intact.values

    def has(self, *metrics: str) -> list[str]:
        """Those of the metrics that were scored."""
        return [metric for metric in metrics if metric in self.metrics]

    def area(self, scope: str, ranking: str, direction: str = "low", fill: str | None = None) -> np.ndarray:
        """AUC [seed], over the random orders if they are asked for."""
        chosen = self.network["ranking"].values == ranking
        if ranking != RANDOM:
            chosen &= self.network["direction"].values == direction
        areas = self.areas.sel(scope=scope, fill=fill or self.balanced)
        return areas.isel(ordering=np.flatnonzero(chosen)).mean("ordering").values

    def ways(self, scope: str) -> dict[str, np.ndarray]:
        """AUC [seed] of random ablation, and on average over all rankings."""
        ranked = [self.area(scope, metric, direction) for metric in self.metrics for direction in ("low", "high")]
        return {"random": self.area(scope, RANDOM), "all rankings": np.mean(ranked, axis=0)}

    def mean_score(self, metric: str, layer: int) -> np.ndarray:
        """Mean score [seed] of a layer's neurons, of those that have one."""
        scores = self.network["scores"].sel(score=metric).values[:, self.network["layer"].values == layer]
        known = np.isfinite(scores)
        total = np.where(known, scores, 0).sum(axis=1, dtype=np.float64)
        return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)

    def cost(self, ranking: str) -> np.ndarray:
        """Mean loss of accuracy [seed] over the steps of a whole-network order, low values first, in points."""
        return self.intact - self.area(NETWORK_SCOPE, ranking)


def _balancing_flattens(n: _Network) -> Iterator[Comparison]:
    for layer, ranking in itertools.product(n.layers, (RANDOM, *n.has(MI))):
        difference = n.area(layer, ranking) - n.area(layer, ranking, fill="zero")
        name = SHORT[ranking] + ("" if ranking == RANDOM else "-LVF")
        yield Comparison(f"{layer}, {name}: balanced over zeros", POINTS, difference)


def _random_lies_between(n: _Network) -> Iterator[Comparison]:
    for layer, metric in itertools.product(n.layers, n.metrics):
        # which direction is the better one is asked of all networks together, not of each: the larger of two noisy
        # numbers would lie above random by chance
        worse, better = sorted((n.area(layer, metric, way) for way in ("low", "high")), key=np.mean)
        name, random = SHORT.get(metric, metric), n.area(layer, RANDOM)
        yield Comparison(f"{layer}, {name}: better direction over random", POINTS, better - random)
        yield Comparison(f"{layer}, {name}: random over worse direction", POINTS, random - worse)


def _low_first_is_better_in_shallow_layers(n: _Network) -> Iterator[Comparison]:
    for layer, metric in itertools.product(n.layers[:-1], n.has(MI, KL)):
        difference = n.area(layer, metric, "low") - n.area(layer, metric, "high")
        yield Comparison(f"{layer}, {SHORT[metric]}: LVF over HVF", POINTS, difference)


def _high_first_is_better_in_the_last_layer(n: _Network) -> Iterator[Comparison]:
    for metric in n.has(MI, KL):
        difference = n.area(n.layers[-1], metric, "high") - n.area(n.layers[-1], metric, "low")
        yield Comparison(f"{n.layers[-1]}, {SHORT[metric]}: HVF over LVF", POINTS, difference)


def _second_of_three_layers_is_most_sensitive(n: _Network) -> Iterator[Comparison]:
    if len(n.layers) == 3:
        ways = [n.ways(layer) for layer in n.layers]
        for other, way in itertools.product((0, 2), ways[0]):
            yield Comparison(f"{way}: {n.layers[other]} over layer2", POINTS, ways[other][way] - ways[1][way])


def _last_layer_costs_least(n: _Network) -> Iterator[Comparison]:
    last = n.ways(n.layers[-1])
    for layer in n.layers[:-1]:
        for way, area in n.ways(layer).items():
            yield Comparison(f"{way}: {n.layers[-1]} over {layer}", POINTS, last[way] - area)


def _only_kl_stays_flat(n: _Network) -> Iterator[Comparison]:
    for metric in n.has(ENTROPY, MI):
        yield Comparison(f"{SHORT[metric]}-LVF: loss beyond {STRONG:g} points", POINTS, n.cost(metric) - STRONG)
    for metric in n.has(KL):
        yield Comparison(f"{SHORT[metric]}-LVF: loss short of {FLAT:g} point", POINTS, FLAT - n.cost(metric))


def _deeper_scores_higher(*metrics: str, sign: int = 1) -> Callable[[_Network], Iterator[Comparison]]:
    def compare(n: _Network) -> Iterator[Comparison]:
        for metric, layer in itertools.product(n.has(*metrics), range(1, len(n.layers))):
            difference = sign * (n.mean_score(metric, layer + 1) - n.mean_score(metric, layer))
            places = (layer + 1, layer) if sign > 0 else (layer, layer + 1)
            label = f"mean {SHORT[metric]}: layer{places[0]} over layer{places[1]}"
            yield Comparison(label, NATS, difference)

    return compare


def _random_costs_little(n: _Network) -> Iterator[Comparison]:
    yield Comparison(f"random: loss short of {LITTLE:g} points", POINTS, LITTLE - n.cost(RANDOM))


CLAIMS: dict[str, tuple[str, Callable[[_Network], Iterator[Comparison]]]] = {
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
"""The claims by number: in words, and the comparisons that decide them. The paper says both C9a and C9b."""


def comparisons_of(network: xr.Dataset) -> dict[str, list[Comparison]]:
    """The comparisons of every claim that the network can speak to."""
    of_network = _Network(network)
    found = {claim: list(compare(of_network)) for claim, (_, compare) in CLAIMS.items()}
    return {claim: comparisons for claim, comparisons in found.items() if comparisons}
