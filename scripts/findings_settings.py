"""Write the part of docs/findings.md about other settings, and its pictures, from what `scripts/measure_settings.py`
saved. Every number is computed; only questions and rules are typed.
"""

import io
import itertools
import json
import lzma
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETUP
from measure_settings import file_name

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    HOLDS_IN_PART,
    NO_DIFFERENCE,
    REVERSED,
    REVERSED_IN_PART,
    UNDECIDED,
    NetworkSummary,
    Verdict,
)
from jaxablate.claims._definitions import MI, SHORT
from jaxablate.figures._draw import COLORS, INK, SOFT, styled
from jaxablate.figures._findings import VERDICT_LOOKS
from jaxablate.histograms import constant_codes
from jaxablate.layer_analysis import spearman
from jaxablate.metrics import METRICS
from jaxablate.results import RANDOM, balanced_fill, select_protocol
from jaxablate.results._files import read_tree
from jaxablate.results._summaries import ordering_places
from jaxablate.statistics import Estimate, estimate, holm

LEARNED = 50  # test accuracy in percent
PAPER, CONTROL = "paper", "constant_last"
FIRST, LAST, WHOLE = "first layer", "last layer", "whole network"
AGAINST = (FAILS, REVERSED, REVERSED_IN_PART)
BASELINE = "contribution_sd"
CODED = ("activation", "quantile:2", "quantile:4", "quantile:8", "quantile:16", "quantile:32")
FINER = CODED[1:]


@dataclass(frozen=True)
class Kind:
    """The networks of one architecture in one setting.

    Attributes:
        setting: name of the setting, such as "l2 0.0".
        changes: the values of the settings that differ from the paper's.
        depth: number of hidden layers.
        network: results under the paper's formulas.
        control: results with neurons of constant code ablated last.
        verdicts: verdict on each claim, by its number.
        controlled: the same without the neurons of constant code.
    """

    setting: str
    changes: Mapping[str, Any]
    depth: int
    network: xr.Dataset
    control: xr.Dataset
    verdicts: Mapping[str, Verdict]
    controlled: Mapping[str, Verdict]

    @property
    def label(self) -> str:
        """Setting and depth."""
        return f"{self.title}, {self.depth} layer{'s' * (self.depth > 1)}"

    @property
    def title(self) -> str:
        """Setting in words."""
        return self.setting.replace("_", " ").replace("l2 ", "L2 ")

    @property
    def accuracy(self) -> float:
        """Mean test accuracy of the intact networks, in percent."""
        return float(100 * self.network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).mean())

    @property
    def has_learned(self) -> bool:
        """False for networks near chance, whose accuracy no ablation can lower."""
        return self.accuracy > LEARNED

    @property
    def is_sigmoid(self) -> bool:
        """True for sigmoid units, as in the paper."""
        return self.changes.get("activation", "sigmoid") == "sigmoid"

    @property
    def is_drawn(self) -> bool:
        """True for a combination that was drawn at random, False for the paper's setting and one changed point."""
        return self.setting.startswith("sample")

    @property
    def is_paper(self) -> bool:
        """True in the paper's setting."""
        return not self.changes


def read_kinds(folder: Path, names: Sequence[str]) -> list[Kind]:
    """Read the settings of these names that are measured.

    Raises:
        InputError: if the first of them is not there.
    """
    kinds = []
    for name in names:
        file = folder / f"setting_{file_name(name)}.xz"
        if not file.is_file():
            if kinds:
                continue
            raise ja.InputError(f"{file}: no such file; `python scripts/measure_settings.py RUN` writes it")
        results = unpacked_results(file.read_bytes())
        changes = json.loads(results.attrs["changes"])
        by_formulas, control = (select_protocol(results, protocol) for protocol in (PAPER, CONTROL))
        without = xr.map_over_datasets(score_only_changing, control)
        all_verdicts = [ja.judge_claims(tree) for tree in (by_formulas, without)]
        for network, node in by_formulas.children.items():
            dataset = node.to_dataset()
            kinds.append(
                Kind(
                    name,
                    changes,
                    int(dataset["layer"].max()),
                    dataset,
                    control[network].to_dataset(),
                    *({v.claim: v for v in verdicts if v.network == network} for verdicts in all_verdicts),
                )
            )
    return kinds


def constant_neurons(network: xr.Dataset) -> np.ndarray:
    """Return which neurons never change their code on the validation split, bool [seed, neuron]."""
    return np.stack([constant_codes(counts) for counts in network["joint_counts"].values])


def score_only_changing(network: xr.Dataset) -> xr.Dataset:
    """Return results without the scores of neurons whose code never changes, which leaves them out of correlations."""
    if "scores" not in network:
        return network
    kept = xr.DataArray(~constant_neurons(network), dims=("seed", "neuron"))
    return network.assign(scores=network["scores"].where(kept))


def unpacked_results(content: bytes) -> xr.DataTree:
    """Return the results in a compressed file, with their accuracies."""
    return xr.map_over_datasets(add_accuracy, unpacked(content))


def unpacked(content: bytes) -> xr.DataTree:
    """Return the groups of a compressed netCDF file."""
    with h5py.File(io.BytesIO(lzma.decompress(content)), "r") as file:
        return read_tree(file)


def add_accuracy(network: xr.Dataset) -> xr.Dataset:
    """Return results with the accuracies that were left out of the files, since counts determine them."""
    if "correct" not in network:
        return network
    correct = network["correct"]
    return network.assign(accuracy=(correct / network.attrs["num_test_examples"]).where(correct >= 0))


def places(summary: NetworkSummary) -> dict[str, str]:
    """Return the scopes that are compared over settings; the only layer of a network is its last one."""
    first = {FIRST: summary.layers[0]} if len(summary.layers) > 1 else {}
    return {**first, LAST: summary.layers[-1], WHOLE: "network"}


# Each question is a function from the networks of a setting to effects [seed] by name. A positive effect is the answer
# yes. The twenty networks of the paper's setting lack linear compensation and finer codes, and these effects.
def changing_area(
    control: xr.Dataset, scope: str, ranking: str, direction: str = "low", fill: str | None = None
) -> np.ndarray:
    """Return the AUC [seed] in percent, over 40% of the neurons whose code changes, or as many as are ablated.

    Args:
        control: results in which neurons of constant code are ablated after all others.
        scope: a layer, or the network.
        ranking: a score, or random orders.
        direction: "low" or "high" values first.
        fill: name of the fill; None is bias balancing.
    """
    orders = ordering_places(control, ranking, direction)
    accuracy = 100 * control["accuracy"].sel(scope=scope, fill=fill or balanced_fill(control)).isel(ordering=orders)
    accuracy = accuracy.transpose("seed", "step", ...).values
    steps = control["step"].values
    is_inside = [scope == "network" or scope == f"layer{layer}" for layer in control["layer"].values]
    areas = []
    for seed, constant in enumerate(constant_neurons(control)):
        num_changing = int((~constant)[is_inside].sum())
        chosen = (steps >= 1) & (steps <= max(1, 2 * num_changing // 5))
        areas.append(accuracy[seed, chosen].mean())
    return np.array(areas)


def low_costs_less(kind: Kind) -> dict[str, np.ndarray]:
    """Compare low values of the paper's scores, and high values of MI, with random orders."""
    scopes = places(NetworkSummary(kind.control))
    random = {scope: changing_area(kind.control, scope, RANDOM) for scope in scopes.values()}
    effects = {
        f"{SHORT[score]}, {place}": changing_area(kind.control, scope, score) - random[scope]
        for score, (place, scope) in itertools.product(METRICS, scopes.items())
    }
    whole = NetworkSummary(kind.network)
    for place, scope in scopes.items():
        effects[f"random over high MI, {place}"] = random[scope] - changing_area(kind.control, scope, MI, "high")
    for place, scope in scopes.items():
        effects[f"MI, {place}, all neurons"] = whole.area(scope, MI) - whole.area(scope, RANDOM)
    return effects


def information_beats_baseline(kind: Kind) -> dict[str, np.ndarray]:
    """Compare the paper's scores, and random orders, with the score that uses no labels; low values first."""
    effects, scopes = {}, places(NetworkSummary(kind.control))
    for fill, scores, ending in ((None, tuple(METRICS), ""), ("zero", (MI,), ", zeros")):
        for score, (place, scope) in itertools.product(scores, scopes.items()):
            first, second = (changing_area(kind.control, scope, ranking, fill=fill) for ranking in (score, BASELINE))
            effects[f"{SHORT[score]}, {place}{ending}"] = first - second
    for place, scope in scopes.items():
        first, second = (changing_area(kind.control, scope, ranking) for ranking in (BASELINE, RANDOM))
        effects[f"baseline over random, {place}"] = first - second
    return effects


def linear_areas(kind: Kind, scope: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC of the same few random orders under linear compensation and balanced, in percent, each [seed]."""
    linear = kind.network["linear_correct"].sel(scope=scope).isel(step=slice(1, None))
    random = np.flatnonzero(kind.network["ranking"].values == RANDOM)[: linear.sizes["random_order"]]
    balanced = kind.network["correct"].sel(scope=scope, fill=balanced_fill(kind.network))
    balanced = balanced.isel(ordering=random, step=slice(1, None))
    percent = 100 / kind.network.attrs["num_test_examples"]
    return (percent * linear.mean(("random_order", "step"))).values, (
        percent * balanced.mean(("ordering", "step"))
    ).values


def last_layer_costs_less(kind: Kind) -> dict[str, np.ndarray]:
    summary = NetworkSummary(kind.network)
    if len(summary.layers) < 2:
        return {}
    first, last = summary.layers[0], summary.layers[-1]
    effects = {
        name: summary.area(last, RANDOM, fill=fill) - summary.area(first, RANDOM, fill=fill)
        for name, fill in (("zeros", "zero"), ("balanced", summary.balanced))
    }
    if "linear_correct" in kind.network:
        effects["linear compensation"] = linear_areas(kind, last)[0] - linear_areas(kind, first)[0]
    return effects


def fills_help(kind: Kind) -> dict[str, np.ndarray]:
    summary = NetworkSummary(kind.network)
    effects = {
        f"balanced over zeros, {place}": summary.area(scope, RANDOM) - summary.area(scope, RANDOM, fill="zero")
        for place, scope in places(summary).items()
    }
    for place, scope in places(summary).items() if "linear_correct" in kind.network else ():
        linear, balanced = linear_areas(kind, scope)
        effects[f"linear over balanced, {place}"] = linear - balanced
    return effects


def codes_predict_damage(kind: Kind) -> dict[str, np.ndarray]:
    if "code_correlations" not in kind.network:
        return {}
    correlations = kind.network["code_correlations"]
    sites = {**({FIRST: 0} if kind.depth > 1 else {}), LAST: kind.depth - 1}
    effects = {}
    for place, site in sites.items():
        by_quantizer = {name: correlations.isel(site=site).sel(quantizer=name).values for name in CODED}
        effects[f"one bit, {place}"] = by_quantizer["activation"]
        effects[f"one bit, {place}, changing codes"] = changing_correlations(kind.network, site + 1)
        effects[f"8 codes, {place}"] = by_quantizer["quantile:8"]
        for name in FINER:
            number = name.removeprefix("quantile:")
            effects[f"{number} codes over one bit, {place}"] = by_quantizer[name] - by_quantizer["activation"]
    return effects


def changing_correlations(network: xr.Dataset, layer: int) -> np.ndarray:
    """Correlate one-bit information with damage over a layer's neurons whose code changes: [seed]."""
    information, damage = network["scores"].sel(score=MI).values, network["single_damage"].values
    chosen = network["layer"].values == layer
    return spearman(np.where(chosen & ~constant_neurons(network), information, np.nan), damage)


@dataclass(frozen=True)
class Question:
    """A question, how it is measured, the unit of its effects, and the function that computes them."""

    stem: str
    text: str
    picture: str  # what minus what
    method: str
    unit: str
    effects: Any


QUESTIONS = (
    Question(
        "random",
        "Do neurons with little information cost less than random ones, and neurons with much more?",
        "A score, low values first, minus random orders; or random orders minus MI, high values first. Without neurons "
        "of constant code, except in the last row",
        "AUC of a score with low values first minus AUC of random orders, and AUC of random orders minus that of MI "
        "with high values first, bias balanced. In all, neurons whose code "
        "never changes come after all others, and the AUC covers only the first 40% of the neurons whose code changes "
        "(in the whole network, as many as were ablated). This measure was chosen after a first one, over as many "
        "steps as 40% of all neurons, had ablated up to all neurons whose code changes. The only layer of a network "
        "counts as its last one.",
        "accuracy points",
        low_costs_less,
    ),
    Question(
        "baseline",
        "Does information find safer neurons than a score without labels?",
        "A score minus contribution_sd, both low values first; or contribution_sd minus random orders. Without neurons "
        "of constant code",
        "AUC of a score minus AUC of the baseline `contribution_sd`, both with low values first, measured as in the "
        "first question; for MI also with zeros as the fill, and the baseline minus random orders. The baseline is the "
        "standard deviation of a neuron's activation times the norm of its outgoing weights. It uses no labels, but "
        "real-valued activations and weights: it is how far the next layer's inputs move, on average, if the mean "
        "replaces the neuron. A difference from MI may come from the labels, the one bit or the weights; it does not "
        "show that information is useless.",
        "accuracy points",
        information_beats_baseline,
    ),
    Question(
        "depth",
        "Does random ablation of the last layer cost less than of the first?",
        "Random orders in the last layer minus random orders in the first, under each fill",
        "AUC of random orders in the last hidden layer minus AUC in the first one, under three fills; linear "
        "compensation on three of the five orders. Networks of one hidden layer have no part. This is a cost, and no "
        "measure of redundancy.",
        "accuracy points",
        last_layer_costs_less,
    ),
    Question(
        "fills",
        "Does bias balancing help, and what does linear compensation add?",
        "The same random orders under one fill minus another",
        "Differences between the AUCs of the same random orders under two fills: five orders for zeros, three of them "
        "for linear compensation.",
        "accuracy points",
        fills_help,
    ),
    Question(
        "codes",
        "Does one bit of a neuron predict its damage, and do finer codes predict it better?",
        "Rank correlation of mutual information and damage of single neurons; or with finer codes minus with one bit",
        "Spearman's correlation over the neurons of a layer between mutual information and the rise of the loss if "
        "only that neuron is ablated (bias balanced): with the one bit of the paper, also over the neurons whose bit "
        "changes, and with eight equally frequent codes; then the correlation with 2 to 32 equally frequent codes "
        "minus that with the one bit. Neurons with constant activations on the validation split have no part; neurons "
        "of constant code have one, where nothing else is said.",
        "correlation",
        codes_predict_damage,
    ),
)


Effects = dict[str, dict[str, dict[int, Estimate]]]
"""Estimates by the stem of a question, the name of an effect and the place of a kind."""


def measure_effects(kinds: Sequence[Kind]) -> Effects:
    """Return the estimates of every effect of every question."""
    effects: Effects = {question.stem: {} for question in QUESTIONS}
    for question, (i, kind) in itertools.product(QUESTIONS, enumerate(kinds)):
        for name, values in question.effects(kind).items():
            effects[question.stem].setdefault(name, {})[i] = estimate(values)
    return effects


def direction(estimated: Estimate) -> int:
    """Return 1 or -1 if the 95% interval lies above or below 0, else 0."""
    low, high = estimated.interval()
    return int(low > 0) - int(high < 0)


def count_row(
    name: str,
    estimates: Mapping[int, Estimate],
    kinds: Sequence[Kind],
    twenty: Mapping[int, Estimate],
    family: Mapping[int, Estimate] | None = None,
) -> str:
    """Return a row of a table: in how many kinds the interval excludes 0, the range of means, the paper's setting.

    Args:
        name: name of the effect.
        estimates: its estimate in each kind.
        kinds: all kinds.
        twenty: its estimates in the twenty networks of the paper's setting; empty if they lack it.
        family: as in `_numbers`.
    """
    means = np.array([float(estimated.mean) for estimated in estimates.values()])
    digits = 2
    few = [estimates[i] for i, kind in enumerate(kinds) if kind.is_paper and i in estimates]
    ours = [interval(estimated) for estimated in twenty.values()] or [f"{interval(estimated)}*" for estimated in few]
    return (
        f"| {name} | {_numbers(estimates, 1, family)} | {_numbers(estimates, -1, family)} | "
        f"{_number(estimates, 0)} | {np.nanmedian(means):+.{digits}f} "
        f"({np.nanmin(means):+.{digits}f} to {np.nanmax(means):+.{digits}f}) | {', '.join(ours)} |"
    )


def interval(estimated: Estimate, digits: int = 2) -> str:
    """Return a mean with its 95% interval."""
    low, high = estimated.interval()
    return f"{float(estimated.mean):+.{digits}f} [{float(low):+.{digits}f}, {float(high):+.{digits}f}]"


def split(by_name: Mapping[str, dict[int, Estimate]], kinds: Sequence[Kind]) -> dict[str, tuple[dict, dict]]:
    """Return the estimates of each row, and those over which their correction goes.

    Some effects have further rows: sigmoid units alone, the other activation functions, and kinds drawn at random.
    """
    rows = {}
    for name, estimates in by_name.items():
        rows[name] = estimates, estimates
        if name in (f"MI, {FIRST}", f"MI, {LAST}", f"MI, {WHOLE}"):
            titles = f"{name}, sigmoid", f"{name}, other activations", f"{name}, drawn at random"
            drawn = {i: each for i, each in estimates.items() if kinds[i].is_drawn}
            parts = zip(titles, (*by_activation(estimates, kinds), drawn), strict=True)
            rows |= {title: (chosen, estimates) for title, chosen in parts if chosen}
    return rows


def by_activation(estimates: Mapping[int, Estimate], kinds: Sequence[Kind]) -> list[dict[int, Estimate]]:
    """Return the estimates of the kinds with sigmoid units, and those of the others."""
    return [
        {i: each for i, each in estimates.items() if kinds[i].is_sigmoid == is_sigmoid} for is_sigmoid in (True, False)
    ]


HEAD = [
    "| effect | above 0 | below 0 | contains 0 | median (range) of means | paper's setting, 2 and 3 layers |",
    "| --- | --- | --- | --- | --- | --- |",
]


def settings_section(
    measured: Sequence[Kind], effects: Effects, twenty: Effects, planned: Sequence[str], pictures: Path
) -> str:
    """Return the text, and draw its pictures into a folder.

    Args:
        measured: all kinds that are measured.
        effects: effects of those that have learned.
        twenty: effects of the twenty networks in the paper's setting.
        planned: names of the settings of the design.
        pictures: the folder.
    """
    kinds = [kind for kind in measured if kind.has_learned]
    num_networks = sum(kind.network.sizes["seed"] for kind in measured)
    names = dict.fromkeys(kind.setting for kind in measured)
    at_chance = [f"{kind.label} ({kind.accuracy:.1f}%)" for kind in measured if not kind.has_learned]
    num_sampled = len({kind.setting for kind in measured if kind.is_drawn})
    missing = [name for name in planned if name not in names]
    parts = [
        f"Each of {len(names)} settings has {measured[0].network.sizes['seed']} networks of each kind, {num_networks} "
        f"in all ({len(measured)} kinds: a setting with a number of layers). {len(names) - num_sampled} settings are "
        f"the paper's and changes of one point; {num_sampled} are drawn at random from all combinations of the values "
        "of data, activation, weight decay, width, depth, epochs and split. "
        + (f"Not measured yet: {', '.join(missing)}. " if missing else "")
        + "`scripts/measure_settings.py` has the values of each point and draws the combinations with Python's "
        "`random.Random(0)`. In each scope as many neurons are ablated, one after another, as 40% of the narrowest "
        "layer: 20% or 13% of a network of 2 or 3 layers. There are five random orders for each network and scope, of "
        "which linear compensation repeats three; networks of one seed and equal widths have the same orders in all "
        "settings. The setting named paper repeats the first five of the twenty networks above, with fewer orders. "
        "All results are by the paper's formulas.",
        settings_table(measured),
        "Networks that have not learned are left out of all that follows: ablation cannot lower an accuracy at chance. "
        f"These are the kinds with less than {LEARNED}% test accuracy: {'; '.join(at_chance) or 'none'}. This rule was "
        "made after these accuracies were seen.",
        "### The verdict on each claim in each setting",
        matrix_text(kinds),
        "![Verdict on every claim in every setting](findings/settings_claims.png)",
        "Five networks stand behind each mark. A claim that is not about a kind of network has none there. The table "
        "above has the values of the samples.",
        READING,
    ]
    _save(draw_matrix(kinds), pictures / "settings_claims.png")
    for question in QUESTIONS:
        by_name = effects[question.stem]
        parts += [
            f"### {question.text}",
            f"{question.method} Unit: {question.unit}.",
            "\n".join(
                [
                    *HEAD,
                    *(
                        count_row(name, estimates, kinds, twenty[question.stem].get(name, {}), family)
                        for name, (estimates, family) in split(by_name, kinds).items()
                    ),
                ]
            ),
            f"![{question.picture}: every setting with its interval](findings/settings_{question.stem}.png)",
        ]
        _save(draw_curves(question, by_name, kinds), pictures / f"settings_{question.stem}.png")
    parts += ["### How many neurons have a constant code under less weight decay?", decay_text(kinds)]
    return "\n\n".join(parts)


def settings_summary(kinds: Sequence[Kind], effects: Effects) -> str:
    """Say in a few sentences whether little information marks neurons that can be spared; README.md quotes them."""
    random, baseline = effects["random"], effects["baseline"][f"MI, {FIRST}"]
    low, high = random[f"MI, {FIRST}"], random[f"random over high MI, {FIRST}"]
    sigmoid, rest = by_activation(low, kinds)
    return (
        f"In {len(high)} kinds of networks (a setting and a number of layers; five networks each), the first layer was "
        "ablated without neurons that never turn on or off. Neurons with the most mutual information (MI) with the "
        f"class cost more accuracy than random ones in {_numbers(high, 1)} kinds (95% intervals; in brackets: Holm's "
        "correction). Those with the least MI cost less in "
        f"{_numbers(rest, 1, low)} of {len(rest)} with ReLU, tanh or GELU, but in {_numbers(sigmoid, 1, low)} of "
        f"{len(sigmoid)} with the paper's sigmoid units, and more in {_numbers(sigmoid, -1, low)}. Neurons with the "
        "lowest standard deviation times norm of outgoing weights, without labels, cost less than the least MI in "
        f"{_numbers(baseline, -1)}."
    )


def settings_abstract(measured: Sequence[Kind], effects: Effects, twenty: Effects) -> str:
    """Sum up in how many kinds the interval of the main effects lies above and below 0."""
    kinds = [kind for kind in measured if kind.has_learned]
    random, baseline, codes, fills = (effects[stem] for stem in ("random", "baseline", "codes", "fills"))
    num_settings, num_left_out = len({kind.setting for kind in measured}), len(measured) - len(kinds)
    high, low = (twenty["random"][f"{name}, {FIRST}"] for name in ("random over high MI", "MI"))
    without = twenty["baseline"][f"MI, {FIRST}"]
    balanced, linear = fills[f"balanced over zeros, {WHOLE}"], fills[f"linear over balanced, {WHOLE}"]

    def row(place: str) -> str:
        most, least = random[f"random over high MI, {place}"], random[f"MI, {place}"]
        without_labels = baseline[f"baseline over random, {place}"]
        compared = [(most, most), *((part, least) for part in by_activation(least, kinds)), (without_labels,) * 2]
        cells = [f"{_numbers(part, 1, family)} / {_both(part, -1, family)}" for part, family in compared]
        return f"| {place} | {' | '.join(cells)} |"

    def damage(place: str) -> str:
        one_bit, changing, eight = (
            codes[name] for name in (f"one bit, {place}", f"one bit, {place}, changing codes", f"8 codes, {place}")
        )
        return (
            f"in the {place} {_median(one_bit)} ({_both(one_bit, 1)} kinds above 0, {_numbers(one_bit, -1)} below), "
            f"among neurons whose code changes {_median(changing)} ({_numbers(changing, 1)} above, "
            f"{_numbers(changing, -1)} below), and with eight equally frequent codes {_median(eight)} "
            f"({_numbers(eight, 1)} above, {_numbers(eight, -1)} below)"
        )

    return "\n".join(
        [
            f"**Other settings.** There are {num_settings}, with five networks of each kind (a setting and a number of "
            f"layers); {num_left_out} kinds are left out because their networks stayed near chance, which leaves "
            f"{len(kinds)}. A kind counts if the 95% interval of a comparison excludes 0. In brackets: how many of "
            "them remain after Holm's correction over all kinds of the comparison. The kinds share data, seeds and "
            "orders, so no count is a test. The table counts the kinds in which an order costs more or less accuracy "
            "than random orders, without the neurons whose code never changes:",
            "",
            "| ablated | most MI first: more / less | least MI first, sigmoid: less / more | least MI first, others: "
            "less / more | score without labels, lowest first: less / more |",
            "| --- " * 5 + "|",
            *(row(place) for place in (FIRST, LAST, WHOLE)),
            "",
            f"- {settings_summary(kinds, effects)}",
            "- In the paper's setting (twenty networks; 2 layers, then 3), the first layer has on average over the "
            f"steps, in points of accuracy: random orders over the most MI first {_listed(high)}; least MI first over "
            f"random orders {_listed(low)}; least MI first over the score without labels {_listed(without)}. That "
            "score reads real values and weights, so labels are not the only difference.",
            "- With all neurons of the first layer, as in the paper, the least MI costs less than random in "
            f"{_both(random[f'MI, {FIRST}, all neurons'], 1)} kinds and more in "
            f"{_numbers(random[f'MI, {FIRST}, all neurons'], -1)}; neurons whose code never changes come first.",
            "- Rank correlation of one-bit MI with the damage of a single neuron, median over kinds: "
            f"{damage(FIRST)}; {damage(LAST)}.",
            "- Fills: over random orders of the whole network, bias balancing is better than zeros in "
            f"{_both(balanced, 1)} kinds (median {_median(balanced)} points) and worse in {_numbers(balanced, -1)}, "
            f"and linear compensation better than bias balancing in {_both(linear, 1)} (median {_median(linear)} "
            f"points) and worse in {_numbers(linear, -1)}.",
        ]
    )


def _listed(estimates: Mapping[int, Estimate]) -> str:
    return " and ".join(map(interval, estimates.values()))


def verdict_counts(verdicts: Iterable[Mapping[str, Verdict]], number: str) -> str:
    """Return in how many kinds a claim holds (in part), is open, and does not hold, such as "14 (3) / 25 / 2"."""
    judged = [by_number[number].verdict for by_number in verdicts if number in by_number]
    holds, in_part, still_open, fails = (
        sum(verdict in group for verdict in judged)
        for group in ((HOLDS, HOLDS_IN_PART), (HOLDS_IN_PART,), (NO_DIFFERENCE, UNDECIDED), AGAINST)
    )
    return f"{holds} ({in_part}) / {still_open} / {fails}"


def _both(estimates: Mapping[int, Estimate], sign: int, family: Mapping[int, Estimate] | None = None) -> str:
    """Return the numbers of `_numbers` and that of the kinds, as "6 (2) of 39"."""
    return f"{_numbers(estimates, sign, family)} of {len(estimates)}"


def _numbers(estimates: Mapping[int, Estimate], sign: int, family: Mapping[int, Estimate] | None = None) -> str:
    """Return in how many kinds the interval excludes 0 on one side, in brackets after Holm's correction: "6 (2)".

    Args:
        estimates: by kind.
        sign: the side, 1 or -1.
        family: the kinds over which the correction goes; None for the kinds of the estimates.
    """
    survive = _survive(family or estimates)
    return f"{_number(estimates, sign)} ({sum(survive[i] == sign for i in estimates)})"


def _number(estimates: Mapping[int, Estimate], sign: int) -> int:
    """Return how many intervals lie on one side of 0, or contain it for the sign 0."""
    return [direction(estimated) for estimated in estimates.values()].count(sign)


def _survive(estimates: Mapping[int, Estimate]) -> dict[int, int]:
    """Return by kind 1 or -1 for a mean above or below 0 with p < 0.05 after Holm's correction, else 0."""
    p_values = np.array([float(estimated.p_value) for estimated in estimates.values()])
    means = np.array([float(estimated.mean) for estimated in estimates.values()])
    signs = np.where(holm(np.where(np.isfinite(p_values), p_values, 1.0)) < 0.05, np.sign(means), 0)
    return dict(zip(estimates, signs, strict=True))


def _median(estimates: Mapping[int, Estimate]) -> str:
    """Return the median over kinds of the mean over networks."""
    return f"{np.nanmedian([float(estimate.mean) for estimate in estimates.values()]):+.2f}"


READING = (
    "In the tables that follow, a kind counts as *above 0* or *below 0* if the 95% t-interval of its mean over "
    "networks does; in brackets, how many do after Holm's correction over all kinds of the comparison (a row for some "
    "of them shares the correction). Without any effect, "
    "about 2.5% of the intervals would lie on each side. The kinds share data, seeds and orders and are not "
    "independent. The last column has the mean of the twenty networks of each kind of the paper and its 95% interval; "
    "an asterisk marks five networks."
)


def settings_table(kinds: Sequence[Kind]) -> str:
    """Return a table of the settings: what they change, the accuracy, and the neurons whose code never changes."""
    lines = [
        "| setting | layers | test accuracy, % | constant code, first layer, % | constant code, last layer, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in kinds:
        changed = kind.title
        if kind.is_drawn:
            values = dict(kind.changes)
            values["networks"] = "+".join("x".join(map(str, hidden)) for hidden in values["networks"])
            changed += f" ({', '.join(f'{name} {value}' for name, value in values.items())})".replace("_", " ")
        constant = constant_fractions(kind)
        lines.append(
            f"| {changed} | {kind.depth} | {kind.accuracy:.2f} | {100 * constant[0].mean():.0f} | "
            f"{100 * constant[-1].mean():.0f} |"
        )
    return "\n".join(lines)


def constant_by_layer(kind: Kind) -> list[np.ndarray]:
    """Return for each layer which of its neurons never change their code on the validation split, [seed, neuron]."""
    constant, layers = constant_neurons(kind.network), kind.network["layer"].values
    return [constant[:, layers == layer] for layer in np.unique(layers)]


def constant_fractions(kind: Kind) -> list[np.ndarray]:
    """Return the fraction [seed] of neurons whose code never changes on the validation split, by layer."""
    return [constant.mean(axis=1) for constant in constant_by_layer(kind)]


def matrix_text(kinds: Sequence[Kind]) -> str:
    """Count the verdicts on each claim over all kinds."""
    near, drawn = ([kind for kind in kinds if kind.is_drawn == is_drawn] for is_drawn in (False, True))
    groups = {
        "all kinds": [kind.verdicts for kind in kinds],
        "one point changed at most": [kind.verdicts for kind in near],
        "drawn at random": [kind.verdicts for kind in drawn],
        "all, without constant codes": [kind.controlled for kind in kinds],
    }
    lines = [f"| claim | kinds | {' | '.join(groups)} |", "| --- " * (2 + len(groups)) + "|"]
    for number, claim in CLAIMS.items():
        num_kinds = sum(number in kind.verdicts for kind in kinds)
        counts = [verdict_counts(verdicts, number) for verdicts in groups.values()]
        lines.append(f"| {number}. {claim.text} | {num_kinds} | {' | '.join(counts)} |")
    whole = sum(ablates_all_changing(kind) for kind in kinds)
    return "\n\n".join(
        [
            "The rules are as above. Cells count the kinds in which the claim holds (in brackets: "
            "of these only in part) / is open (no difference or undecided) / does not hold or is reversed. Five "
            "networks decide less than twenty, so more is *undecided*, which is no evidence against a claim. The first "
            "three columns of counts have all neurons. In the last, neurons whose code never changes are ablated after "
            "all others and have no score, as in the control above; the AUC still has as many steps, which in "
            f"{whole} kinds ablate, in at least one network, every neuron of a layer whose code changes.",
            "\n".join(lines),
        ]
    )


def ablates_all_changing(kind: Kind) -> bool:
    """Return True if a layer of a network has no more neurons whose code changes than there are steps."""
    steps = int(kind.control["step"].max())
    return any((~constant).sum(axis=1).min() <= steps for constant in constant_by_layer(kind))


def decay_text(kinds: Sequence[Kind]) -> str:
    """Compare the paper's networks under the three coefficients of weight decay."""
    compared = sorted(
        (kind for kind in kinds if set(kind.changes) <= {"l2"}),
        key=lambda kind: (kind.depth, kind.changes.get("l2", 1e-3)),
    )
    lines = ["| layers | l2 | constant code, %, layer by layer |", "| --- " * 3 + "|"]
    for kind in compared:
        texts = []
        for fractions in constant_fractions(kind):
            estimated = estimate(100 * fractions)
            low, high = np.clip(estimated.interval(), 0, 100)
            texts.append(f"{estimated.mean:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {kind.depth} | {kind.changes.get('l2', 1e-3):g} | {', '.join(texts)} |")
    return "On MNIST, with sigmoid units, after 10 epochs (intervals are cut at 0 and 100%):\n\n" + "\n".join(lines)


@styled
def draw_matrix(kinds: Sequence[Kind]) -> Figure:
    """Draw the verdict on every claim in every setting: a row for each kind, a column for each claim."""
    height = 0.24 * len(kinds)
    width, labels, top, bottom = 9.5, 3.0, 0.55, 0.75  # inches
    figure = Figure(figsize=(width, height + top + bottom))
    total = height + top + bottom
    axes = figure.add_axes((labels / width, bottom / total, (width - labels - 0.1) / width, height / total))
    for y, kind in enumerate(kinds):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#f2f2f2", linewidth=0)
        for x, number in enumerate(CLAIMS):
            if number in kind.verdicts:
                color, marker, fill = VERDICT_LOOKS[kind.verdicts[number].verdict]
                axes.plot(x, y, marker=marker, color=color, fillstyle=fill, markersize=7, markerfacecoloralt="white")
    axes.set_xlim(-0.6, len(CLAIMS) - 0.4)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xticks(range(len(CLAIMS)), list(CLAIMS))
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(kinds)), [kind.label for kind in kinds])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for name, (color, marker, fill) in VERDICT_LOOKS.items():
        if any(verdict.verdict == name for kind in kinds for verdict in kind.verdicts.values()):
            axes.plot([], [], marker=marker, color=color, fillstyle=fill, markerfacecoloralt="white", linestyle="",
                      label=name)  # fmt: skip
    figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=4, fontsize="small", frameon=False)
    return figure


@styled
def draw_curves(question: Question, effects: Mapping[str, Mapping[int, Estimate]], kinds: Sequence[Kind]) -> Figure:
    """Draw each effect over all settings, sorted by its mean: a specification curve."""
    columns = 3 if len(effects) % 3 == 0 else 2
    rows = -(-len(effects) // columns)
    figure = Figure(figsize=(9.5, 2.1 * rows + 0.75), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, estimates) in zip(grid.flat, effects.items(), strict=True):
        ordered = sorted(estimates, key=lambda i: float(estimates[i].mean))
        axes.axhline(0, color=INK, linewidth=0.8)
        for x, i in enumerate(ordered):
            low, high = (float(end) for end in estimates[i].interval())
            color = {1: COLORS[1], 0: "#777777", -1: COLORS[2]}[direction(estimates[i])]
            marker, size = ("D", 5) if kinds[i].is_paper else ("o", 2.6) if kinds[i].is_sigmoid else ("^", 4)
            axes.plot([x, x], [low, high], color=color, linewidth=1)
            axes.plot([x], [float(estimates[i].mean)], marker, color=color, markersize=size)
        # an interval that reaches far beyond all means is cut, and marked by an arrowhead
        ends = np.array([estimated.interval() for estimated in estimates.values()])
        means = [float(estimated.mean) for estimated in estimates.values()]
        edges = 0.0, np.nanmin(means), np.nanmax(means), *np.nanquantile(ends, (0.03, 0.97))
        pad = 0.06 * (max(edges) - min(edges)) or 0.1
        bottom, top = min(edges) - pad, max(edges) + pad
        axes.set_ylim(bottom, top)
        for x, i in enumerate(ordered):
            low, high = (float(end) for end in estimates[i].interval())
            for y, marker, is_cut in ((bottom, CARETDOWN, low < bottom), (top, CARETUP, high > top)):
                if not is_cut:
                    continue
                axes.plot([x], [y], marker=marker, color=INK, markersize=4, clip_on=False)
        axes.set_title(name, fontsize="medium", loc="left")
        axes.set_xticks([])
    for axes in grid[:, 0]:
        axes.set_ylabel(question.unit)
    note = (
        f"{question.picture}. A line for each setting and number of layers, sorted: the mean of five networks and its "
        "95% t-interval. Blue: above 0. Orange: below 0. Grey: contains 0. Diamonds: the paper's setting. Circles: "
        "sigmoid units. Triangles: ReLU, tanh and GELU. Arrowheads at the frame: the interval is cut there."
    )
    figure.supxlabel(textwrap.fill(note, 120), fontsize="small", color=SOFT, x=0.01, ha="left")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
