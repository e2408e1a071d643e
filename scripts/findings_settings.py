"""Write the part of docs/findings.md about other settings, and its pictures, from what `scripts/measure_settings.py`
saved. Every number is computed; only questions and rules are typed.
"""

import itertools
import json
import lzma
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
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
from jaxablate.claims._definitions import SHORT
from jaxablate.figures._draw import COLORS, INK, SOFT, styled
from jaxablate.figures._findings import VERDICT_LOOKS
from jaxablate.histograms import constant_codes
from jaxablate.metrics import METRICS
from jaxablate.results import RANDOM, balanced_fill, select_protocol
from jaxablate.statistics import Estimate, estimate, holm

LEARNED = 50  # test accuracy in percent
PAPER, CONTROL = "paper", "constant_last"
FIRST, LAST, WHOLE = "first layer", "last layer", "whole network"
FOR, AGAINST = (HOLDS, HOLDS_IN_PART), (FAILS, REVERSED, REVERSED_IN_PART)
FINE = "quantile:8"


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
    """

    setting: str
    changes: Mapping[str, Any]
    depth: int
    network: xr.Dataset
    control: xr.Dataset
    verdicts: Mapping[str, Verdict]

    @property
    def label(self) -> str:
        """Setting and depth."""
        return f"{self.setting}, {self.depth} layer{'s' * (self.depth > 1)}"

    @property
    def accuracy(self) -> float:
        """Mean test accuracy of the intact networks, in percent."""
        return float(100 * self.network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).mean())

    @property
    def has_learned(self) -> bool:
        """False for networks near chance, whose accuracy no ablation can lower."""
        return self.accuracy > LEARNED

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
        by_formulas = select_protocol(results, PAPER)
        verdicts = ja.judge_claims(by_formulas)
        for network, node in by_formulas.children.items():
            dataset = node.to_dataset()
            kinds.append(
                Kind(
                    name,
                    json.loads(results.attrs["changes"]),
                    int(dataset["layer"].max()),
                    dataset,
                    select_protocol(results, CONTROL)[network].to_dataset(),
                    {verdict.claim: verdict for verdict in verdicts if verdict.network == network},
                )
            )
    return kinds


def unpacked_results(content: bytes) -> xr.DataTree:
    """Return the results in a compressed file, with their accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.nc"
        path.write_bytes(lzma.decompress(content))
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return xr.map_over_datasets(add_accuracy, tree.load())


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
# yes.
def low_costs_less(kind: Kind, than: str) -> dict[str, np.ndarray]:
    """Compare the paper's scores with a ranking, both with low values first; constant codes come last."""
    summary = NetworkSummary(kind.control)
    return {
        f"{SHORT[score]}, {place}": summary.area(scope, score) - summary.area(scope, than)
        for score, (place, scope) in itertools.product(METRICS, places(summary).items())
    }


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
    return {**effects, "linear compensation": linear_areas(kind, last)[0] - linear_areas(kind, first)[0]}


def fills_help(kind: Kind) -> dict[str, np.ndarray]:
    summary = NetworkSummary(kind.network)
    effects = {
        f"balanced over zeros, {place}": summary.area(scope, RANDOM) - summary.area(scope, RANDOM, fill="zero")
        for place, scope in places(summary).items()
    }
    for place, scope in places(summary).items():
        linear, balanced = linear_areas(kind, scope)
        effects[f"linear over balanced, {place}"] = linear - balanced
    return effects


def codes_predict_damage(kind: Kind) -> dict[str, np.ndarray]:
    correlations = kind.network["code_correlations"]
    sites = {**({FIRST: 0} if kind.depth > 1 else {}), LAST: kind.depth - 1}
    effects = {}
    for place, site in sites.items():
        one_bit, finer = (correlations.isel(site=site).sel(quantizer=name).values for name in ("activation", FINE))
        effects[f"one bit, {place}"] = one_bit
        effects[f"8 codes over one bit, {place}"] = finer - one_bit
    return effects


@dataclass(frozen=True)
class Question:
    """A question, how it is measured, the unit of its effects, and the function that computes them."""

    stem: str
    text: str
    method: str
    unit: str
    effects: Any


DEAD_LAST = (
    "AUC of a score with low values first minus AUC of random orders, bias balanced. Neurons whose code never changes "
    "are ablated after all others in both, so that they decide nothing."
)
QUESTIONS = (
    Question(
        "random",
        "Do neurons with little information cost less than random ones?",
        DEAD_LAST,
        "accuracy points",
        partial(low_costs_less, than=RANDOM),
    ),
    Question(
        "baseline",
        "Does information find safer neurons than a score without information?",
        "AUC of a score minus AUC of `contribution_sd` (the standard deviation of a neuron's activation times the norm "
        "of its outgoing weights), both with low values first, bias balanced, without neurons of constant code as in "
        "the first question.",
        "accuracy points",
        partial(low_costs_less, than="contribution_sd"),
    ),
    Question(
        "depth",
        "Is the last layer more redundant than the first?",
        "AUC of random orders in the last hidden layer minus AUC in the first one, under three fills; linear "
        "compensation on three of the five orders. Networks of one hidden layer have no part.",
        "accuracy points",
        last_layer_costs_less,
    ),
    Question(
        "fills",
        "Does bias balancing help, and what does linear compensation add?",
        "Differences between the AUCs of the same random orders under two fills: five orders for zeros, three of them "
        "for linear compensation.",
        "accuracy points",
        fills_help,
    ),
    Question(
        "codes",
        "Does one bit of a neuron predict its damage, and do finer codes predict it better?",
        "Spearman's correlation over the neurons of a layer between mutual information and the rise of the loss if "
        "only that neuron is ablated (bias balanced); then the correlation with eight equally frequent codes minus "
        "that with the one bit of the paper. Neurons with constant activations on the validation split have no part.",
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


def count_row(name: str, estimates: Mapping[int, Estimate], kinds: Sequence[Kind], digits: int = 2) -> str:
    """Return a row of a table: in how many kinds the interval excludes 0, the range of means, the paper's networks."""
    chosen = list(estimates.values())
    directions = np.array([direction(estimated) for estimated in chosen])
    means = np.array([float(estimated.mean) for estimated in chosen])
    p_values = np.array([float(estimated.p_value) for estimated in chosen])
    survives = holm(np.where(np.isfinite(p_values), p_values, 1.0)) < 0.05
    ours = [
        f"{float(estimates[i].mean):+.{digits}f}" for i, kind in enumerate(kinds) if kind.is_paper and i in estimates
    ]
    return (
        f"| {name} | {(directions > 0).sum()} ({(survives & (means > 0)).sum()}) | {(directions < 0).sum()} "
        f"({(survives & (means < 0)).sum()}) | {(directions == 0).sum()} | {np.nanmedian(means):+.{digits}f} "
        f"({np.nanmin(means):+.{digits}f} to {np.nanmax(means):+.{digits}f}) | {', '.join(ours)} |"
    )


HEAD = [
    "| effect | above 0 | below 0 | contains 0 | median (range) of means | the paper's networks |",
    "| --- | --- | --- | --- | --- | --- |",
]


def settings_section(measured: Sequence[Kind], effects: Effects, num_planned: int, pictures: Path) -> str:
    """Return the text, and draw its pictures into a folder.

    Args:
        measured: all kinds that are measured.
        effects: effects of those that have learned.
        num_planned: number of settings in the design.
        pictures: the folder.
    """
    kinds = [kind for kind in measured if kind.has_learned]
    num_networks = sum(kind.network.sizes["seed"] for kind in measured)
    names = dict.fromkeys(kind.setting for kind in measured)
    at_chance = [f"{kind.label} ({kind.accuracy:.1f}%)" for kind in measured if not kind.has_learned]
    num_sampled = sum(name.startswith("sample") for name in names)
    missing = num_planned - len(names)
    parts = [
        f"Each of {len(names)} settings has {measured[0].network.sizes['seed']} networks of each kind, {num_networks} "
        f"in all ({len(measured)} kinds: a setting with a number of layers). {len(names) - num_sampled} settings are "
        f"the paper's and changes of one point; {num_sampled} are drawn at random from all combinations of the values "
        "of data, activation, weight decay, width, depth, epochs and split. "
        + (f"{missing} further settings of this design are not measured yet. " if missing else "")
        + "The first 40% of the neurons of the narrowest layer are ablated, as in the paper. All results are by the "
        "paper's formulas.",
        settings_table(measured),
        "Networks that have not learned are left out of all that follows: ablation cannot lower an accuracy at chance. "
        f"These are the kinds with less than {LEARNED}% test accuracy: {'; '.join(at_chance) or 'none'}. This rule was "
        "made after these accuracies were seen.",
        "### Which claims survive which settings?",
        matrix_text(kinds),
        "![Verdict on every claim in every setting](findings/settings_claims.png)",
        READING,
    ]
    _save(draw_matrix(kinds), pictures / "settings_claims.png")
    for question in QUESTIONS:
        by_name = effects[question.stem]
        parts += [
            f"### {question.text}",
            f"{question.method} Unit: {question.unit}.",
            "\n".join([*HEAD, *(count_row(name, estimates, kinds) for name, estimates in by_name.items())]),
            f"![Every setting's effect with its interval](findings/settings_{question.stem}.png)",
        ]
        _save(draw_curves(question, by_name, kinds), pictures / f"settings_{question.stem}.png")
    parts += ["### What does weight decay do to neurons whose code never changes?", decay_text(kinds)]
    return "\n\n".join(parts)


def settings_summary(kinds: Sequence[Kind], effects: Effects) -> str:
    """Say in two sentences whether little information marks neurons that can be spared; README.md quotes them."""
    random, baseline = ([effects[stem][f"MI, {place}"] for place in (FIRST, LAST)] for stem in ("random", "baseline"))
    return (
        f"In {len({kind.setting for kind in kinds})} settings ({len(kinds)} kinds of networks), neurons whose outputs "
        "have little mutual information with the class cost less accuracy than random ones in "
        f"{_count(random[0], 1)} kinds in the first layer (median: {_median(random[0])} points) and in "
        f"{_count(random[1], 1)} in the last one ({_median(random[1])}), without the neurons whose code never changes. "
        "A score without information, the standard deviation of the output times the norm of the outgoing weights, "
        f"finds neurons that cost less than those of mutual information in {_count(baseline[0], -1)} "
        f"({_median(baseline[0], -1)} points) and {_count(baseline[1], -1)} kinds ({_median(baseline[1], -1)})."
    )


def settings_abstract(kinds: Sequence[Kind], effects: Effects) -> str:
    """Sum up in how many kinds the interval of the main effects lies above and below 0."""

    unrefuted, never = survivors(kinds)
    random, baseline, codes, fills = (effects[stem] for stem in ("random", "baseline", "codes", "fills"))
    finer, balanced, linear = (
        f"8 codes over one bit, {LAST}", f"balanced over zeros, {WHOLE}", f"linear over balanced, {WHOLE}",
    )  # fmt: skip
    return (
        f"{settings_summary(kinds, effects)} The opposite is found in "
        f"{_count(random[f'MI, {FIRST}'], -1)} and {_count(random[f'MI, {LAST}'], -1)} kinds for the first comparison, "
        f"and in {_count(baseline[f'MI, {FIRST}'], 1)} and {_count(baseline[f'MI, {LAST}'], 1)} for the second one. "
        f"In the last layer the correlation of one-bit mutual information with the damage of a single neuron has a "
        f"median of {_median(codes[f'one bit, {LAST}'])} over kinds; eight codes raise it in {_count(codes[finer], 1)} "
        f"and lower it in {_count(codes[finer], -1)}. Over random orders of the whole network, bias balancing is "
        f"better than zeros in {_count(fills[balanced], 1)} kinds ({_median(fills[balanced])} points), and linear "
        f"compensation better than bias balancing in {_count(fills[linear], 1)} ({_median(fills[linear])} points). "
        f"Of the claims, {_listed(unrefuted)} hold in some kinds and fail in none, though they are undecided in "
        f"others; {_listed(never)} are shown to hold in none. A kind counts if the 95% interval of its five networks "
        "excludes 0; the counts are not corrected for their number, and no count is a test."
    )


def _count(estimates: Mapping[int, Estimate], sign: int) -> str:
    """Return in how many kinds the interval lies on one side of 0, as "6 of 16"."""
    return f"{[direction(estimate) for estimate in estimates.values()].count(sign)} of {len(estimates)}"


def _median(estimates: Mapping[int, Estimate], sign: int = 1) -> str:
    """Return the median over kinds of the mean over networks."""
    return f"{sign * np.median([float(estimate.mean) for estimate in estimates.values()]):+.2f}"


def survivors(kinds: Sequence[Kind]) -> tuple[list[str], list[str]]:
    """Return the claims that hold in some kinds and fail in none, and the claims that hold in none."""
    judged = {number: [kind.verdicts[number].verdict for kind in kinds if number in kind.verdicts] for number in CLAIMS}
    holding = [number for number, verdicts in judged.items() if any(verdict in FOR for verdict in verdicts)]
    unrefuted = [number for number in holding if not any(verdict in AGAINST for verdict in judged[number])]
    return unrefuted, [number for number in judged if number not in holding]


READING = (
    "In the tables that follow, a kind counts as *above 0* or *below 0* if the 95% t-interval of its mean over "
    "networks does; in brackets, how many do after Holm's correction over all kinds in the row. If there were no "
    "effect, about 5% of intervals would exclude 0."
)


def settings_table(kinds: Sequence[Kind]) -> str:
    """Return a table of the settings: what they change, the accuracy, and the neurons whose code never changes."""
    lines = [
        "| setting | layers | test accuracy, % | constant code, first layer, % | constant code, last layer, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in kinds:
        changed = kind.setting
        if changed.startswith("sample"):
            values = dict(kind.changes)
            values["networks"] = "+".join("x".join(map(str, hidden)) for hidden in values["networks"])
            changed += f" ({', '.join(f'{name} {value}' for name, value in values.items())})"
        constant = constant_fractions(kind)
        lines.append(
            f"| {changed.replace('_', ' ')} | {kind.depth} | {kind.accuracy:.2f} | {100 * constant[0]:.0f} | "
            f"{100 * constant[-1]:.0f} |"
        )
    return "\n".join(lines)


def constant_fractions(kind: Kind) -> list[float]:
    """Return the fraction of neurons whose code never changes on the validation split, by layer."""
    constant = np.stack([constant_codes(counts) for counts in kind.network["joint_counts"].values])
    layers = kind.network["layer"].values
    return [float(constant[:, layers == layer].mean()) for layer in np.unique(layers)]


def matrix_text(kinds: Sequence[Kind]) -> str:
    """Count the verdicts on each claim over all kinds."""
    lines = ["| claim | kinds | holds or holds in part | no difference | undecided | does not hold or reversed |"]
    lines.append("| --- " * 6 + "|")
    for number, claim in CLAIMS.items():
        judged = [kind.verdicts[number].verdict for kind in kinds if number in kind.verdicts]
        counts = [
            sum(verdict in group for verdict in judged) for group in (FOR, (NO_DIFFERENCE,), (UNDECIDED,), AGAINST)
        ]
        lines.append(f"| {number}. {claim.text} | {len(judged)} | {' | '.join(map(str, counts))} |")
    unrefuted, never = survivors(kinds)
    return "\n\n".join(
        [
            "The rules are those of the verdicts above. Five networks decide less than twenty, so more is *undecided*. "
            f"{_listed(unrefuted)} hold in some kinds, at least in part, and fail or are reversed in none; "
            f"{_listed(never)} are shown to hold in none.",
            "\n".join(lines),
        ]
    )


def _listed(claims: Sequence[str]) -> str:
    return ", ".join(claims) or "no claims"


def decay_text(kinds: Sequence[Kind]) -> str:
    """Compare the paper's networks under the three coefficients of weight decay."""
    compared = sorted(
        (kind for kind in kinds if set(kind.changes) <= {"l2"}),
        key=lambda kind: (kind.depth, kind.changes.get("l2", 1e-3)),
    )
    lines = ["| layers | l2 | constant code, %, layer by layer | claims that do not hold, or are reversed |"]
    lines.append("| --- " * 4 + "|")
    for kind in compared:
        fractions = ", ".join(f"{100 * fraction:.0f}" for fraction in constant_fractions(kind))
        fails = [number for number, verdict in kind.verdicts.items() if verdict.verdict in AGAINST]
        lines.append(f"| {kind.depth} | {kind.changes.get('l2', 1e-3):g} | {fractions} | {_listed(fails)} |")
    return "\n".join(lines)


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
            marker, size = ("D", 5) if kinds[i].is_paper else ("o", 2.6)
            axes.plot([x, x], [low, high], color=color, linewidth=1)
            axes.plot([x], [float(estimates[i].mean)], marker, color=color, markersize=size)
        # an interval that reaches far beyond all means is cut
        ends = np.array([estimated.interval() for estimated in estimates.values()])
        means = [float(estimated.mean) for estimated in estimates.values()]
        edges = 0.0, np.nanmin(means), np.nanmax(means), *np.nanquantile(ends, (0.03, 0.97))
        pad = 0.06 * (max(edges) - min(edges)) or 0.1
        axes.set_ylim(min(edges) - pad, max(edges) + pad)
        axes.set_title(name, fontsize="medium", loc="left")
        axes.set_xticks([])
    for axes in grid[:, 0]:
        axes.set_ylabel(question.unit)
    note = (
        "A line for each setting and number of layers, sorted: the mean of five networks and its 95% t-interval. Blue: "
        "above 0. Orange: below 0. Grey: contains 0. Diamonds: the paper's setting."
    )
    figure.supxlabel(textwrap.fill(note, 120), fontsize="small", color=SOFT, x=0.01, ha="left")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
