"""Name scores, orders, fills and scopes for readers, and give scores and layers their colours.

Input: names as in the results of a study.
Output: texts, numbers of colours and names of dashes.
"""

import itertools
import json
import re
from collections.abc import Iterable

import xarray as xr

from jaxablate.claims import SHORT
from jaxablate.results import NETWORK_SCOPE, balanced_fill

METRIC_NAMES = {
    "entropy": "Entropy",
    "mutual_information": "Mutual information",
    "kl_selectivity": "KL selectivity",
}

# Colour 0 is the ink. Colours 1 to 6 have Okabe and Ito's hues, which colour-blind readers tell apart; the report has
# shades of them for a light and a dark page. Dashes tell curves apart in grey. A score of the paper has the same colour
# in every chart, and random orders have the ink. The other scores take turns with the colours that no score has. The
# first layers avoid the colours of mutual information and KL selectivity, so that the reader does not take a layer for
# a score.
SCORE_LOOKS = {"mutual_information": (1, "dashed"), "kl_selectivity": (2, "dashdot"), "entropy": (3, "dotted")}
FREE_COLORS = (4, 5, 6, 1, 2, 3)
LAYER_COLORS = (6, 5, 3, 4, 1, 2)
DASHES = ("", "dashed", "dotted", "dashdot", "sparse")


def score_name(score: str) -> str:
    """Return a score in words."""
    return METRIC_NAMES.get(score, score.replace("_", " "))


def short_name(score: str) -> str:
    """Return the short name of a score, or `random`."""
    return SHORT.get(score, score_name(score))


def order_name(ordering: str) -> str:
    """Return the name of an ordering for readers: "MI low" for "mutual_information_low", "random" for "random"."""
    ranking, _, direction = ordering.rpartition("_")
    return f"{short_name(ranking)} {direction}" if ranking else ordering


def comparison_name(comparison: str) -> str:
    """Return the name of a comparison of `compare_conditions` for readers: two orderings around a minus sign."""
    return " \u2212 ".join(map(order_name, comparison.split(" - ")))


def main_score(network: xr.Dataset) -> str:
    """Return the score of charts that show only one: mutual information, or the first score without it."""
    scores = names_of(network, "score")
    return "mutual_information" if "mutual_information" in scores else scores[0]


def score_colors(scores: Iterable[str]) -> dict[str, int]:
    """Return the colour of each score; up to six scores have different colours."""
    return {score: color for score, (color, _) in score_looks(scores).items()}


def score_looks(scores: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return the colour and the dash of each score in a chart of one direction."""
    scores = list(scores)
    taken = {SCORE_LOOKS[score][0] for score in scores if score in SCORE_LOOKS}
    free = itertools.cycle([color for color in FREE_COLORS if color not in taken])
    dashes = itertools.cycle(DASHES)
    return {score: SCORE_LOOKS.get(score) or (next(free), next(dashes)) for score in scores}


def network_title(name: str) -> str:
    """Return the title of a network's charts; the dataset of a node has no name."""
    return f"{name} network" if name else "Network"


def fill_name(network: xr.Dataset, fill: str) -> str:
    """Return the name of a fill for readers."""
    return {"zero": "zeros", balanced_fill(network): "bias balanced"}.get(fill, fill.replace("_", " "))


def place_name(scope: str, whole: str = "whole network") -> str:
    """Return the name of an ablated layer or site; `whole` is the name of the whole network."""
    return whole if scope == NETWORK_SCOPE else re.sub(r"^layer(\d+)$", r"layer \1", scope)


def layers_of(network: xr.Dataset) -> list[str]:
    """Return the scopes that are a layer or site."""
    return [scope for scope in names_of(network, "scope") if scope != NETWORK_SCOPE]


def names_of(network: xr.Dataset, coordinate: str) -> list[str]:
    """Return the values of a coordinate as texts."""
    return [str(name) for name in network[coordinate].values]


def origin(results: xr.DataTree, network: xr.Dataset, *notes: str) -> str:
    """Return where the numbers of a figure come from, for its last line."""
    seeds, protocol = network.sizes["seed"], network.attrs["protocol"]
    parts = [f"{seeds} network{'s' if seeds > 1 else ''} on {results.attrs['dataset']}", *notes]
    parts += [f"protocol: {protocol}"] * (protocol != "paper")
    return ", ".join([*parts, f"jaxablate {json.loads(results.attrs['versions'])['jaxablate']}"])


def layer_color(i: int) -> int:
    """Return the colour of a layer by its place."""
    return LAYER_COLORS[i % len(LAYER_COLORS)]
