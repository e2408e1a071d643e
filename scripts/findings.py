"""Write docs/findings.md, docs/published_figures.md, their pictures and claims.json from saved results, never by hand.

`python scripts/findings.py [DATA] [--out docs]`: DATA is the folder that `scripts/measure.py` filled, by default
docs/findings/data. The same data give the same text and claims, byte for byte.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from findings_settings import (
    FIRST,
    LAST,
    WHOLE,
    Effects,
    Kind,
    constant_neurons,
    interval,
    measure_effects,
    read_kinds,
    score_only_changing,
    settings_abstract,
    settings_section,
    unpacked,
    unpacked_results,
    verdict_counts,
)
from measure import COMPARED, FILLS
from measure_settings import settings
from scipy import stats

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.charts import FIGURES, Prediction, PublishedCurve, compare_published, deciding_effect
from jaxablate.claims import (
    CLAIMS,
    FAILS,
    FEWEST_NETWORKS,
    HOLDS,
    HOLDS_IN_PART,
    NATS,
    NO_DIFFERENCE,
    NOT_JUDGED,
    REVERSED,
    SHORT,
    UNDECIDED,
    Effect,
    NetworkSummary,
    Verdict,
    VerdictChange,
)
from jaxablate.claims._judge import PLAYERS, combine
from jaxablate.figures import draw_published, draw_sensitivity, save_finding_figures
from jaxablate.metrics import METRICS
from jaxablate.protocols import DEPARTURES, SETS
from jaxablate.results import RANDOM, balanced_fill, protocols_of, select_protocol
from jaxablate.statistics import Estimate, estimate, paired_difference
from jaxablate.training import default_epochs

PAPER, PUBLISHED = SETS["both"]
BASELINE = "contribution_sd"
PUBLISHED_CURVES = Path(__file__).parents[1] / "docs" / "findings" / "published_curves.json"
READING_ERROR = 0.3
"""Largest error of a curve that was read off a picture, in points."""
SAME_CURVE = 0.05
"""Two published curves with a smaller mean distance, in points, are the same curve; all other pairs are further apart
than 0.1."""
UNITS = {"accuracy points": "points", "nat": "nats", "correlation": "", "log ratio": ""}
METHOD = """**How to read this page.** A comparison is a difference within each network: of AUC (the mean accuracy over
all steps except the intact network's, in accuracy points), of mean scores (nats) or of log variances
(natural logarithm), or by how much a rank correlation or a loss exceeds a threshold. A positive number
supports the claim. Brackets hold 95% t-intervals of the mean over networks. They cover the randomness of
training; they do not cover another split, another test set or another architecture, and they are not
corrected for their number. LVF ablates neurons with low values of a score first, HVF neurons with high
values first; "A over B" is A minus B. "Balanced" means bias balancing: ablated neurons output their mean on
the validation split. Linear compensation: they output what the other neurons of their layer predict by
linear regression on that split. "Zeros" means that ablated neurons output 0.

Under the *published protocol* the same words stand for what the code behind the published figures computes:
"balanced" multiplies the activation by the neuron's firing rate, "MI" is H(T) + H(T|Y), and "random" is a
new subset of neurons at every step. Neurons whose score is NaN rank as the largest: last in LVF, first in
HVF. Means of scores and correlations omit them. KL selectivity is the same under both, so C9 is one test
with two marks in the picture. A seventh point is in no protocol: that code averages accuracy over batches
of unequal size.

A comparison shows *no difference* if its 90% interval lies within a margin (0.25 points, 0.02 nats, 0.05 of
a correlation, 0.1 of a log ratio): at the 5% level the mean difference is smaller than that, whatever its
p-value against 0. Otherwise it *holds* for a positive mean with p < 0.05, and *does not hold* for a
negative mean with p < 0.05 after Holm's correction over the comparisons of its claim, in its kind of
network, under its protocol. Such a mean may be smaller than the margin. If all networks have the same value,
it decides without a test. A claim holds if all its comparisons hold, which needs no correction; the
counts of single comparisons that hold are therefore uncorrected. A claim does not hold if one comparison
does not. It *holds in part* if each comparison holds or shows no difference. Only C2 and C9 can be
*reversed*: all comparisons of a group are significantly negative. Nothing is corrected across claims.

The paper gives no numbers for falling strongly, staying flat, costing little and correlating strongly. Here
they mean more than 3, less than 1 and less than 2 points on average over the steps, and a rank correlation
above 0.5. The bounds in points were chosen after looking at the published figures 21 and 22. For each
threshold the page says over which range the verdict stands, among values from 0 to 20 points or 0 to 1,
with the other thresholds of the claim kept. [The theory page](theory.md#statistics) has the rules in full."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/findings.md from saved results.")
    parser.add_argument("data", type=Path, nargs="?", default=Path("docs/findings/data"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="output folder; default: %(default)s")
    arguments = parser.parse_args()
    try:
        print(write_findings(Measurements(arguments.data), arguments.out))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


class Measurements:
    """The files that `scripts/measure.py` wrote."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = unpacked_results(self._read("results.nc.xz"))
        if not set(SETS["departures"]) | set(SETS["controls"]) <= set(protocols_of(self.results)):
            raise ja.InputError(f"{folder}: results lack protocols; `python scripts/measure.py RUN` writes all")
        self.names = list(select_protocol(self.results, PAPER).children)
        num_seeds = len(json.loads(self.results.attrs["config"])["seeds"])
        if num_seeds < FEWEST_NETWORKS:
            raise ja.InputError(f"{folder}: expected five networks or more of each kind, got {num_seeds}")

    def network(self, name: str, protocol: str = PAPER) -> xr.Dataset:
        """Return the results of one kind of network under a protocol."""
        return select_protocol(self.results, protocol)[name].to_dataset()

    def table(self, name: str) -> xr.Dataset:
        """Return another dataset of the folder, in memory."""
        return unpacked(self._read(f"{name}.xz")).to_dataset()

    def _read(self, name: str) -> bytes:
        file = self.folder / name
        if not file.is_file():
            raise ja.InputError(f"{file}: no such file; `python scripts/measure.py RUN` writes it")
        return file.read_bytes()


def write_findings(measured: Measurements, folder: Path) -> Path:
    """Write the pages, claims.json, and the pictures into the subfolder `findings`; return the path of the page."""
    results, pictures = measured.results, folder / "findings"
    verdicts = ja.judge_claims(results)
    committed = [verdict for verdict in verdicts if verdict.protocol in SETS["controls"]]
    for file in (
        *ja.claims.save_claims(committed, results, pictures),
        *save_finding_figures(results, verdicts, pictures),
    ):
        if file.suffix in (".pdf", ".csv"):
            file.unlink()
    published = json.loads(PUBLISHED_CURVES.read_text())
    write_published_page(measured, published, folder)
    names = list(settings())
    measured_kinds = read_kinds(measured.folder, names)
    kinds = [kind for kind in measured_kinds if kind.has_learned]
    effects, twenty = measure_effects(kinds), measure_effects(paper_kinds(measured))
    spreads = spreads_between_networks(measured)
    causes = {
        "Where the published protocol differs, and why": reasons(verdicts),
        "Does the published protocol reproduce the published figures?": reproduction(measured, published),
        "Is overfitting the cause?": overfitting(measured),
        "Does the result depend on the quantizer?": quantizers(measured, pictures, verdicts),
        "Can neurons that share information replace each other?": pairs(measured, pictures),
    }
    parts = [
        "# Which of the paper's claims hold",
        "Written by `scripts/findings.py` from saved results: every result and verdict is computed. Only questions, "
        "rules, and what the paper and its pictures say, are typed.",
        "## Abstract",
        abstract(measured, verdicts, measured_kinds, effects, twenty, spreads),
        "**Causes.**\n\n" + "\n".join(f"- {section.summary}" for section in causes.values()),
        "![Verdict on every claim, for each kind of network and protocol](findings/claims.png)",
        "## Methods",
        provenance(measured),
        METHOD,
        "## Verdicts, claim by claim",
        claim_sections(verdicts, spreads),
        "## Controls",
        constant_code_control(measured, verdicts),
        baseline_control(measured),
        tie_control(measured, verdicts),
        "## Other settings",
        settings_section(measured_kinds, effects, twenty, names, pictures),
        "## Which neurons whole-network rankings ablate",
        whole_network(measured),
        "## Do scores track the damage of a single neuron?",
        damage(measured),
        *itertools.chain.from_iterable((f"## {title}", section.text) for title, section in causes.items()),
        "## Limits",
        limits(kinds, effects),
        "## What would change these conclusions",
        CHANGES,
        "## Every comparison",
        effect_table(verdicts),
    ]
    path = folder / "findings.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return path


class Section(NamedTuple):
    """A section of the page, and the sentence of the abstract about it."""

    summary: str
    text: str


def paper_kinds(measured: Measurements) -> list[Kind]:
    """Return the twenty networks of each kind of the paper like the kinds of the other settings."""
    networks = [(measured.network(name), measured.network(name, "constant_last")) for name in measured.names]
    return [Kind("paper", {}, int(network["layer"].max()), network, control, {}, {}) for network, control in networks]


def abstract(
    measured: Measurements,
    verdicts: Sequence[Verdict],
    kinds: Sequence[Kind],
    effects: Effects,
    twenty: Effects,
    spreads: Sequence["Spread"],
) -> str:
    """Sum up the verdicts of the paper's setting, and what other settings change."""
    config = json.loads(measured.results.attrs["config"])
    either = ", ".join(
        f"{in_either_direction(verdict)} ({verdict.network}, {'formulas' if verdict.protocol == PAPER else 'code'})"
        for verdict in verdicts
        if verdict.claim == "C2" and verdict.protocol in (PAPER, PUBLISHED)
    )
    return "\n\n".join(
        [
            '*Using information theoretic metrics to study the importance of individual neurons in DNNs* ("the paper") '
            "ranks the hidden neurons of trained MLPs by information, ablates them one after another, and reads "
            f"importance and redundancy off the accuracy. Here {len(CLAIMS)} claims are tested on "
            f"{len(config['seeds'])} networks of each of its two kinds (2 and 3 layers of "
            f"{config['networks'][0][0]} {config['activation']} units), by its formulas and by what its "
            "code computes instead. The last two columns count the kinds of networks of all settings below, by the "
            "formulas, with all neurons and without those whose code never changes. Brackets: of the kinds before "
            "them, those in which the claim holds in part. Open: no difference, or undecided. A reversed claim does "
            "not hold. The columns share networks or data and are not independent.",
            "Four claims go beyond the paper's words. It says that random pruning is moderate, and C2 adds the "
            f"direction (in either direction C2: {either}). It says that entropy and MI fall strongly, and C7 adds "
            "that KL does not. It says that bias balancing reduces the variation between training results, and C11 "
            f"takes random orders of one network; between networks, {spread_summary(spreads)}. It calls MI and KL "
            "strongly correlated with the results of classification, without a measure, and C12 takes the rank "
            "correlation with the damage of a single neuron, above 0.5 in every layer and in the network.",
            claims_table(measured, verdicts, [kind for kind in kinds if kind.has_learned]),
            settings_abstract(kinds, effects, twenty),
        ]
    )


def claims_table(measured: Measurements, verdicts: Sequence[Verdict], kinds: Sequence[Kind]) -> str:
    """Return a table of the claims in words: the verdict on each network of the paper, and counts over all kinds."""
    judged = {(verdict.protocol, verdict.network, verdict.claim): verdict.verdict for verdict in verdicts}
    columns = list(itertools.product((PAPER, PUBLISHED), measured.names))
    titles = [f"{name}, {'formulas' if protocol == PAPER else 'code'}" for protocol, name in columns]
    titles += ["all kinds: holds (in part) / open / does not", "the same without constant codes"]
    counted = [kind.verdicts for kind in kinds], [kind.controlled for kind in kinds]
    rows = [f"| claim | {' | '.join(titles)} |", "| --- |" + " --- |" * len(titles)]
    for number, claim in CLAIMS.items():
        cells = [judged.get((*column, number), "-") for column in columns]
        cells += [verdict_counts(verdicts, number) for verdicts in counted]
        rows.append(f"| {number}. {claim.text} | {' | '.join(cells)} |")
    return "\n".join(rows)


def limits(kinds: Sequence[Kind], effects: Effects) -> str:
    """Return the limits of the study."""
    widths = [
        f"{np.median([np.ptp(each.interval()) / 2 for each in effects['random'][f'MI, {place}'].values()]):.2f} in the "
        f"{place}"
        for place in (FIRST, LAST, WHOLE)
    ]
    usual = ja.StudyConfig.split_seed
    splits = [name for name, changes in settings().items() if changes.get("split_seed", usual) != usual]
    near = [kind for kind in kinds if not kind.is_drawn]
    return LIMITS + (
        f"\n- {len(splits)} settings have another split. {len(near)} of {len(kinds)} kinds differ from the paper's "
        "in at most one point, and totals weigh them accordingly.\n"
        "- Curves end at 40% of the narrowest layer or earlier. [Later in a layer](redundancy.md) zeros can keep more "
        "accuracy than means.\n"
        "- In other settings five networks stand behind each interval, which reaches 2.8 standard errors to each side. "
        f"For low MI over random its half width has a median of {', '.join(widths)}: smaller differences are mostly "
        "not shown."
    )


LIMITS = """- The networks are MLPs on two datasets of small grey images. Nothing here is about convolutions, attention
  or other data.
- An interval covers the randomness of training. All networks of a dataset share one test set, and the networks of a
  setting share one split.
- The settings are a stated design of this page, not a sample of what people train. Some are drawn at random, from the
  values of that design alone. The design was made with the first results in sight, and the split by activation, the
  range of the AUC without constant codes and the rule for networks near chance after more of them.
- Settings share data, seeds and orders, so their effects are not independent; a count of settings is no test, and
  nothing is corrected across the rows of a table.
- Verdicts use margins and thresholds that the paper does not give. The bounds of C7 and C10 were read off the paper's
  figures for sigmoid units on MNIST, and are applied to every setting and depth.
- In the whole network fewer neurons are ablated than in a layer, in proportion: 20% of networks with 2 layers of equal
  widths, 13% with 3 and 8% with 5. The only layer of a network counts as its last one and as the whole network.
- Other settings are measured by the paper's formulas alone.
- A score is measured on the validation split with the paper's one bit for each neuron, unless stated."""
CHANGES = """- *A claim that does not hold here*: twenty networks of the same recipe whose intervals for every
  comparison that does not hold lie on the other side of 0.
- *A claim that fails in no setting*: one setting with five networks or more in which one of its comparisons has a
  negative mean with p < 0.05 after Holm's correction over these comparisons and over the kinds of networks.
- *That a score without labels finds safer neurons*: a code or estimator of information whose orders cost less than the
  orders by `contribution_sd`, without the neurons of constant code.
- *That shared information is not shown to predict replacement*: a pair measure that predicts super-additive damage in
  first layers given the curvature of the loss, without neurons of constant code: with a rank correlation whose interval
  lies above 0.1, in both kinds of networks and under both fills."""


def provenance(measured: Measurements) -> str:
    attrs = measured.results.attrs
    config = json.loads(attrs["config"])
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(attrs["versions"]).items())
    files = "; ".join(f"`{name}` {digest[:16]}..." for name, digest in json.loads(attrs["dataset_sha256"]).items())
    epochs = config["epochs"] or default_epochs(50_000, config["batch_size"])
    seeds, device = config["seeds"], attrs["device"].replace("cpu: cpu", "CPU")
    accuracies = []
    for name in measured.names:
        intact = estimate(100 * measured.network(name)["accuracy"].values[:, 0, 0, 0, 0])  # no neuron ablated
        low, high = intact.interval()
        accuracies.append(f"{intact.mean:.2f}% [{low:.2f}, {high:.2f}] ({name})")
    return (
        f"**Data:** {attrs['dataset']} (SHA-256: {files}). **Networks:** {len(seeds)} of each kind, seeds {seeds[0]} "
        f"to {seeds[-1]}, trained by Adam (learning rate {config['learning_rate']:g}, batches of "
        f"{config['batch_size']}, {epochs} epochs, L2 {config['l2']:g} added to the gradient); 10,000 of the "
        f"60,000 training images are the validation split (seed {config['split_seed']}), which gives scores and fills, "
        f"and the 10,000 test images give accuracy. Intact networks reach {' and '.join(accuracies)}. "
        f"{config['steps']} neurons are ablated one after another, in the order of each score and in "
        f"{config['num_random_orders']} random orders (under the published protocol, two random curves). A neuron's "
        "one-bit code says whether "
        "its activation reaches 0.5 (tanh: 0; ReLU and GELU: exceeds 0). With T the code and Y the class, entropy is "
        "H(T), mutual information (MI) is H(T) - H(T|Y), and KL selectivity (KL) is the largest divergence of "
        f"p(t|y) from p(t) over the classes y, in nats ([formulas](theory.md#scores)). **Run on** {device}, "
        f"{attrs['created'][:10]}; {versions}."
    )


def digits_of(unit: str) -> int:
    """Return the number of digits after the decimal point that shows an effect of the size of the margin."""
    return 3 if unit == NATS else 2


def number(effect: Effect) -> str:
    unit, digits = UNITS.get(effect.unit, effect.unit), digits_of(effect.unit)
    ratio = f", {np.exp(effect.mean):.1f} times" if effect.unit == "log ratio" else ""
    return f"{effect.mean:+.{digits}f}{unit and ' '}{unit} [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]{ratio}"


def words(score: str) -> str:
    return score.replace("_", " ")


ALL_RANKINGS = "*All rankings* is the mean AUC of six rankings: entropy, MI and KL, each LVF and HVF."
NOTES = {
    "C2": "The paper says only that random lies between the two directions. A *reversed* pair has random in between as "
    "well, with high values first as the better direction. *In either direction* is the verdict on that sentence: each "
    "score and layer may have the direction that fits better. In the last hidden layer C4 states the direction "
    "opposite to C2, so C2 and C4 cannot both hold there.",
    "C5": ALL_RANKINGS,
    "C6": ALL_RANKINGS
    + " This compares the cost of the first steps, not redundancy; the section on pairs looks for redundancy.",
    "C9": "Section 5 of the paper states the reverse. *Reversed* would support it.",
    "C11": "The paper speaks of different training results. This claim compares random orders within each network; "
    "under the published protocol, random curves. ",
    "C12": "The paper calls both scores reasonable indicators for pruning and strongly correlated with the results of "
    "classification, and says that the correlation depends on the layer; it gives no measure. C3 and C4 judge pruning. "
    "Here a neuron's damage is the rise of the test loss if it alone is ablated: one meaning of importance.",
}
"""Return what a claim's comparisons do not say."""


@dataclass(frozen=True)
class Spread:
    """How much accuracy varies between networks that are ablated in random orders, with zeros and with bias balancing.

    Attributes:
        place: network, layer and protocol, as cells of a table.
        deviations: standard deviation at a step with one order for each network, with zeros and balanced, in points.
        ratio: balanced over zeros.
        low: lower end of its 95% interval.
        high: upper end.
        of_means: the same ratio for the AUC of the mean over all orders, and the ends of its interval.
    """

    place: str
    deviations: tuple[float, float]
    ratio: float
    low: float
    high: float
    of_means: tuple[float, float, float]


def spreads_between_networks(measured: Measurements) -> list[Spread]:
    """Return the spread of every layer under both protocols."""
    spreads = []
    for name, protocol in itertools.product(measured.names, (PAPER, PUBLISHED)):
        network = measured.network(name, protocol)
        random = 100 * network["accuracy"].isel(ordering=network["ranking"].values == RANDOM, step=slice(1, None))
        for layer in NetworkSummary(network).layers:
            zeros, balanced = (
                random.sel(scope=layer, fill=fill).transpose("seed", "ordering", "step").values
                for fill in ("zero", balanced_fill(network))
            )
            deviations, ratio, low, high = ratio_at_a_step(zeros, balanced)
            of_means = ratio_of_deviations(zeros.mean(axis=(1, 2)), balanced.mean(axis=(1, 2)))[:3]
            spreads.append(Spread(f"{name} | {layer} | {protocol}", deviations, ratio, low, high, of_means))
    return spreads


def ratio_at_a_step(first: np.ndarray, second: np.ndarray) -> tuple[tuple[float, float], float, float, float]:
    """Compare how much values of two conditions vary between networks at a step, with one order for each network.

    Args:
        first, second: values [network, order, step]; each order is a sample of one order for each network, and the
            variances are averaged over orders and steps.

    Returns:
        Both standard deviations, their ratio (second over first), and the ends of its 95% bootstrap interval.
    """
    size = len(first)
    counts = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), 2000)  # networks drawn again
    counts = np.concatenate([np.ones((1, size), int), counts])
    variances = []
    for values in (first, second):
        flat = values.reshape(size, -1) - values.mean()
        means = counts @ flat / size
        variances.append(((counts @ flat**2 / size - means**2) * size / (size - 1)).mean(axis=1))
    ratios = np.sqrt(variances[1] / variances[0])
    low, high = np.quantile(ratios[1:], (0.025, 0.975))
    return (np.sqrt(variances[0][0]), np.sqrt(variances[1][0])), float(ratios[0]), float(low), float(high)


def ratio_of_deviations(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float, float]:
    """Compare the standard deviations of paired values by Pitman and Morgan's test.

    Source: Pitman, A note on normal correlation, Biometrika 31 (1939).

    Returns:
        The second deviation over the first, the ends of its 95% interval, and the p-value of a ratio of 1.
    """
    # the variances are equal if and only if sum and difference are uncorrelated
    equal = stats.pearsonr(first + second, first - second)
    degrees = len(first) - 2
    correlation = float(stats.pearsonr(first, second).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    width = 1 + 2 * (1 - correlation**2) * stats.t.ppf(0.975, degrees) ** 2 / degrees
    ratio, factor = second.std(ddof=1) / first.std(ddof=1), np.sqrt(width + np.sqrt(width**2 - 1))
    return ratio, ratio / factor, ratio * factor, float(equal.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def spread_summary(spreads: Sequence[Spread]) -> str:
    """Say how far bias balancing reduces the variation between networks."""
    low, high = min(spread.ratio for spread in spreads), max(spread.ratio for spread in spreads)
    return (
        "with one order each, the standard deviation of the accuracy at a step falls to "
        f"{low:.2f} to {high:.2f} of that with zeros ({sum(spread.high < 1 for spread in spreads)} of {len(spreads)} "
        "95% intervals lie below 1)"
    )


def between_networks(spreads: Sequence[Spread]) -> str:
    """Give the variation between networks, layer by layer."""
    below = sum(spread.of_means[2] < 1 for spread in spreads)
    above = sum(spread.of_means[1] > 1 for spread in spreads)
    return "\n".join(
        [
            f"Between networks, {spread_summary(spreads)}. The intervals are of a bootstrap over networks. For the AUC "
            f"of the mean over all orders, which leaves less to reduce, {below} of {len(spreads)} intervals (Pitman "
            f"and Morgan) lie below 1 and {above} above.",
            "",
            "| network | layer | protocol | at a step: zeros | balanced, points | ratio | ratio for mean orders |",
            "| --- " * 7 + "|",
            *(
                f"| {each.place} | {each.deviations[0]:.2f} | {each.deviations[1]:.2f} | {each.ratio:.2f} "
                f"[{each.low:.2f}, {each.high:.2f}] | {each.of_means[0]:.2f} [{each.of_means[1]:.2f}, "
                f"{each.of_means[2]:.2f}] |"
                for each in spreads
            ),
        ]
    )


def claim_sections(verdicts: Sequence[Verdict], spreads: Sequence[Spread]) -> str:
    """Return a section for each claim: verdicts, deciding comparisons, thresholds, and its picture."""
    sections = []
    for number_, claim in CLAIMS.items():
        lines = [f"### {number_}. {claim.text}", ""]
        if note := NOTES.get(number_):
            lines += [note + (between_networks(spreads) if number_ == "C11" else ""), ""]
        for verdict in verdicts:
            if verdict.claim == number_ and verdict.protocol in (PAPER, PUBLISHED):
                lines.append(f"- **{verdict.network}, {verdict.protocol}: {verdict.verdict}.** {_why(verdict)}")
        lines += ["", f"![Comparisons of {number_}](findings/claim_{number_}.png)"]
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _why(verdict: Verdict) -> str:
    """Say which comparisons a verdict rests on."""
    if verdict.verdict == NOT_JUDGED:
        return f"Reason: {verdict.reason}."
    counts = {name: sum(effect.verdict == name for effect in verdict.effects) for name in _ORDER}
    decisive = deciding_effect(verdict)
    text = f"In either direction: {in_either_direction(verdict)}. " if verdict.claim == "C2" else ""
    text += f"Comparisons: {', '.join(f'{name} {count}' for name, count in counts.items() if count)}."
    if decisive is not None:
        text += (
            f" Least favourable with *{decisive.verdict}*: {decisive.label}, {number(decisive)}, {p_text(decisive.p)}"
        )
        text += f" (corrected: {p_text(decisive.p_holm)})." if decisive.mean < 0 else "."
        if decisive.threshold is not None:
            text += f" Measured: {decisive.measured:+.{digits_of(decisive.unit)}f}."
    for stands in verdict.thresholds:
        ends = [f"from {stands.low}"] * (stands.low is not None) + [f"to {stands.high}"] * (stands.high is not None)
        text += f" Threshold {stands.threshold:g}: the verdict stands {' '.join(ends) or 'at every value tried'}."
    return text


def in_either_direction(verdict: Verdict) -> str:
    """Return the verdict on C2 if each score and layer may have the direction that fits better."""

    def opposite(effect: Effect) -> str:
        if effect.verdict == NO_DIFFERENCE:
            return NO_DIFFERENCE
        if effect.mean < 0:
            return HOLDS if effect.p < 0.05 else UNDECIDED
        return FAILS if effect.p_holm < 0.05 else UNDECIDED

    best_first = (HOLDS, HOLDS_IN_PART, NO_DIFFERENCE, UNDECIDED, FAILS, REVERSED)
    chosen = []
    for _, group in itertools.groupby(verdict.effects, lambda effect: effect.label.split(":")[0]):
        effects = list(group)
        directions = [effect.verdict for effect in effects], [opposite(effect) for effect in effects]
        chosen += min(directions, key=lambda verdicts: best_first.index(combine(verdicts)))
    return combine(chosen)


_ORDER = (HOLDS, NO_DIFFERENCE, UNDECIDED, REVERSED, FAILS)


def p_text(p: float) -> str:
    return "p undefined" if np.isnan(p) else "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def lost_predictions(network: xr.Dataset) -> xr.DataArray:
    """Return the number of correct predictions lost if only one neuron is ablated (seed, neuron)."""
    # step 0 ablates nothing, so every scope, ordering and fill has the same count there
    return network["correct"].isel(step=0, ordering=0, fill=0, scope=0) - network["single_correct"]


def without_constant_codes(measured: Measurements, protocol: str, control: str) -> dict[tuple[str, str], Verdict]:
    """Judge the claims without the neurons whose code never changes: they are ablated last, and have no score."""
    tree = xr.map_over_datasets(score_only_changing, select_protocol(measured.results, control))
    return {(v.network, v.claim): v for v in ja.judge_claims(tree)}


def constant_code_control(measured: Measurements, verdicts: Sequence[Verdict]) -> str:
    """Give the comparisons with and without the neurons whose code never changes, where that matters."""
    lines = [
        "### Neurons whose code never changes",
        "",
        "Such a neuron scores 0 in entropy, mutual information and KL selectivity, and comes first in LVF orders under "
        "the paper's formulas. Under the published protocol entropy and MI are NaN and come last; KL is as before. The "
        "control ablates these neurons after all others, in random orders too, so that every curve runs over the rest. "
        "Mean scores and correlations leave them out. The first 80 steps then ablate a larger fraction of layer 1 than "
        "of the other layers, which matters for C5 and C6.",
        "",
    ]
    for name in measured.names:
        network = measured.network(name)
        constant = constant_neurons(network)
        layer = network["layer"].values
        totals = {i: constant[:, layer == i].sum(axis=1) for i in np.unique(layer)}
        parts = [f"{t.min()} to {t.max()} of {(layer == i).sum()} in layer {i}" for i, t in totals.items()]
        lines.append(f"- **{name}:** {', '.join(parts)}.")
    table = ["| claim | network | comparison | protocol | all neurons | without them |", "| --- " * 6 + "|"]
    changed, single, replaced = [], {}, []
    for protocol, control in ((PAPER, "constant_last"), (PUBLISHED, f"{PUBLISHED}+constant_last")):
        controlled = without_constant_codes(measured, protocol, control)
        for verdict in verdicts:
            if verdict.protocol != protocol:
                continue
            match = controlled[verdict.network, verdict.claim]
            if match.verdict != verdict.verdict:
                place = f"{verdict.claim} {verdict.network} under {protocol}"
                changed.append(f"{place} ({verdict.verdict}; without them {match.verdict})")
            effects = {effect.label: effect for effect in match.effects}
            compared = [
                (effect, effects[effect.label])
                for effect in verdict.effects
                if "layer1" in effect.label or not any(f"layer{i}" in effect.label for i in (2, 3))
            ]
            table += [
                f"| {verdict.claim} | {verdict.network} | {effect.label} | {protocol} | {number(effect)}, "
                f"{effect.verdict} | {number(without)}, {without.verdict} |"
                for effect, without in compared
            ]
            differing = [(effect, without) for effect, without in compared if effect.verdict != without.verdict]
            if differing and match.verdict == verdict.verdict:
                single.setdefault(f"{verdict.claim} under {protocol}", []).append(
                    f"{len(differing)} of {len(compared)} in the {verdict.network} network"
                )
                if len(differing) == len(verdict.effects):
                    changes = ", ".join(f"{e.label}: {e.verdict} to {w.verdict}" for e, w in differing)
                    replaced.append(f"{verdict.claim} under {protocol} ({changes})")
    counts = "; ".join(f"{place} ({', '.join(parts)})" for place, parts in single.items())
    lines += [
        "",
        f"Verdicts that differ without them: {'; '.join(changed)}.",
        "",
        f"Single comparisons of the table also change where the verdict stays: {counts}. All comparisons change, so "
        f"that the same verdict has another reason, in {'; '.join(dict.fromkeys(replaced)) or 'no claim'}.",
        "",
        *table,
    ]
    return "\n".join(lines)


def baseline_control(measured: Measurements) -> str:
    """Compare the paper's scores with a score that needs no information theory."""
    lines = [
        "### A trivial baseline",
        "",
        f"`{BASELINE}` is the standard deviation of a neuron's activation times the norm of its outgoing weights. It "
        "needs no labels and no codes. The table shows the AUC of the paper's score minus the AUC of the baseline, in "
        "points, with bias balancing, under the paper's formulas. LVF: positive means that the paper's score finds "
        "neurons that are safer to ablate. HVF: negative means that it finds neurons that are more damaging. "
        "The intervals are not corrected for their number.",
    ]
    rows, shares = [], []
    for name in measured.names:
        summary, control = (NetworkSummary(measured.network(name, p)) for p in (PAPER, "constant_last"))
        constant = constant_neurons(summary.network)
        for score in (*METRICS, BASELINE):
            chosen = summary.network["ablated"].sel(scope="layer1", ordering=f"{score}_low").values
            shares.append(100 * np.take_along_axis(constant, chosen, axis=1).mean())
        for scope, score in itertools.product((*summary.layers, "network"), METRICS):
            cells = [
                interval(paired_difference(orders.area(scope, score, way), orders.area(scope, BASELINE, way)))
                for orders, way in ((summary, "low"), (control, "low"), (summary, "high"))
            ]
            rows.append(f"| {name} | {scope} | {words(score)} | {' | '.join(cells)} |")
    num_first = measured.network(measured.names[0]).sizes["rank"]
    lines += [
        "",
        "A difference near 0 for LVF in layer 1 or the network is no tie of the scores, since both orders begin with "
        f"nearly the same neurons: in layer 1, {min(shares):.0f}% to {max(shares):.0f}% of the first {num_first} of "
        "each order have a code that never changes. Without these neurons (see above) the baseline finds safer ones "
        "in layer 1 and in the network.",
        "",
        "| network | scope | score | LVF | LVF without constant codes | HVF |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join(lines)


def tie_control(measured: Measurements, verdicts: Sequence[Verdict]) -> str:
    """Report how far the order of neurons with equal scores moves the curves."""
    controls = {PAPER: "reversed_ties", PUBLISHED: f"{PUBLISHED}+reversed_ties"}
    by_key = {(v.protocol, v.network, v.claim): v.verdict for v in verdicts}
    changed = [v for v in verdicts if v.protocol in controls
               and by_key[controls[v.protocol], v.network, v.claim] != v.verdict]  # fmt: skip
    lines = [
        "### The order of ties",
        "",
        "Neurons with equal scores are ranked by ascending index. The control ranks them by descending index; "
        f"{len(changed) or 'no'} verdict on a claim changes. The "
        "table shows the ranking of each protocol whose AUC moves most (mean over networks, in points, and its "
        "interval, which does not account for this choice), and the largest number of tied neurons. Under the "
        "published protocol these are neurons whose score is NaN.",
        "",
        "| network | protocol | ranking | change of AUC | largest tie |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (protocol, control) in itertools.product(measured.names, controls.items()):
        first, second = (NetworkSummary(measured.network(name, p)) for p in (protocol, control))
        changes = {
            (scope, score, way): paired_difference(second.area(scope, score, way), first.area(scope, score, way))
            for scope in (*first.layers, "network")
            for score in METRICS
            for way in ("low", "high")
        }
        (scope, score, way), change = max(changes.items(), key=lambda item: abs(float(item[1].mean)))
        inside = np.full(first.network.sizes["neuron"], True)
        if scope != "network":
            inside = first.network["layer"].values == first.layers.index(scope) + 1
        scores = first.network["scores"].sel(score=score).values[:, inside]
        largest = max(int(np.unique(row, return_counts=True, equal_nan=True)[1].max()) for row in scores)
        ranking = f"{scope}, {SHORT[score]}-{'LVF' if way == 'low' else 'HVF'}"
        lines.append(f"| {name} | {protocol} | {ranking} | {interval(change)} | {largest} |")
    return "\n".join(lines)


def reasons(verdicts: Sequence[Verdict]) -> Section:
    """Attribute the comparisons on which the two protocols disagree to departures of the code."""
    changes = ja.claims.explain_changes(verdicts)
    if not changes:
        return Section(*("The two protocols agree on every claim.",) * 2)
    claims = [claim for claim in CLAIMS if any(change.claim == claim for change in changes)]
    total = sum(len(verdict.effects) for verdict in verdicts if verdict.protocol == PAPER)
    # two claims can share a comparison
    distinct = list({(change.network, change.label, change.difference): change for change in changes}.values())
    differing = [change for change in distinct if change.differs]
    p_values = [
        float(paired_difference(*map(np.array, (c.published.values, c.paper.values))).p_value) for c in distinct
    ]
    corrected = sum(ja.statistics.holm(np.array(p_values)) < 0.05)
    pictures = [
        f"![{network}: effect under the formulas, the Shapley value of each departure, and effect under the published "
        f"protocol](findings/departures_{network}.png)"
        for network in dict.fromkeys(change.network for change in changes)
    ]
    lines = [
        f"The two protocols judge {len(changes)} of {total} comparisons differently ({len(distinct)} distinct ones; "
        f"two claims share {len(changes) - len(distinct)}), in {len(claims)} claims ({', '.join(claims)}). In "
        f"{len(differing)} of the {len(distinct)} the effects themselves differ (the interval of the paired "
        f"difference excludes 0; {corrected} after Holm's correction); in the others no difference is shown. These "
        "comparisons were chosen for their different verdicts, so their differences are biased away from 0. Every "
        "combination of five departures was run on the same networks; `strict_threshold` was run alone and on top of "
        "all others, so its value is `published` minus the other five together. *Alone* is the change of the effect "
        "if only this departure is turned on. The *Shapley value* is its change averaged over all orders of turning "
        "the departures on; the values sum to the difference. `nan_logs` and `nan_largest` count as one, `nan_scores`: "
        "NaN must rank somewhere. The "
        "interaction is the part that departures make only together.",
        "",
        *pictures,
        "",
        "| departure | what the published code does | comparisons where its Shapley value is clearly the largest |",
        "| --- | --- | --- |",
    ]
    largest = [clearly_largest(change) for change in differing]
    causes = []
    for name, departures in PLAYERS.items():
        meaning, count = "; ".join(DEPARTURES[departure] for departure in departures), largest.count(name)
        if count:
            causes.append(f"in {count}: {meaning}")
        lines.append(f"| `{name}` | {meaning.replace('|', chr(92) + '|')} | {count} of {len(differing)} |")
    lines += [
        "",
        "*Clearly*: the interval of the difference to the second largest value, paired within networks, excludes 0. "
        f"It does not account for the choice of the two from the same data. {largest.count('')} are unclear.",
        "",
        "| comparison | paper | published | paired difference | alone: Shapley value (largest two) | interaction |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for change in changes:
        digits = digits_of(change.unit)
        parts = "; ".join(
            f"`{name}` {change.alone[name]:+.{digits}f}: "
            f"{interval(estimate(np.array(change.shapley_by_network[name])), digits)}"
            for name in by_size(change)[:2]
        )
        difference, low, high = (f"{part:+.{digits}f}" for part in change.difference)
        lines.append(
            f"| {change.claim}, {change.network}: {change.label} | {change.paper.mean:+.{digits}f}, "
            f"{change.paper.verdict} | {change.published.mean:+.{digits}f}, {change.published.verdict} | "
            f"{difference} [{low}, {high}] | {parts} | {change.interaction:+.{digits}f} |"
        )
    strict = max(abs(change.alone["strict_threshold"]) for change in changes)
    lines += ["", f"`strict_threshold` alone changes each of these effects by at most {strict:.4f}."]
    label = "layer3, MI: HVF over LVF"
    means = {
        verdict.protocol: effect.mean
        for verdict in verdicts
        for effect in verdict.effects
        if (verdict.claim, verdict.network, effect.label) == ("C4", "3-layer", label)
    }
    protocols = ("paper", "mi_sign", "firing_rate_scaling", "mi_sign+firing_rate_scaling", "published")
    lines += [
        "",
        "Departures interact also where both protocols judge alike. For example, C4 of the 3-layer network "
        f"({label}): {', '.join(f'`{name}` {means[name]:+.2f}' for name in protocols)} points.",
    ]
    return Section(
        f"The quantities of the code change the verdict of {len(changes)} of {total} comparisons ({len(distinct)} "
        f"distinct ones). Of the {len(differing)} whose effects differ, one departure from the formulas is clearly the "
        f"largest cause {', '.join(causes)}.",
        "\n".join(lines),
    )


def by_size(change: VerdictChange) -> list[str]:
    """Return the departures, those with the largest Shapley values of either sign first."""
    return sorted(change.shapley, key=lambda name: -abs(change.shapley[name]))


def clearly_largest(change: VerdictChange) -> str:
    """Return the departure with clearly the largest Shapley value, "" if there is none."""
    names = by_size(change)[:2]
    sizes = [np.sign(change.shapley[name]) * np.array(change.shapley_by_network[name]) for name in names]
    low, _ = paired_difference(*sizes).interval()
    return names[0] if low > 0 else ""


def published_curves(published: dict[str, dict[str, list[float]]], figure: int) -> dict[str, list[float]]:
    return published[f"fig{figure:02}"]


def reproduction(measured: Measurements, published: dict[str, dict[str, list[float]]]) -> Section:
    """Compare the published figures with the prediction interval of a new network under the published protocol."""
    compared = {protocol: compared_figures(measured, published, protocol) for protocol in (PUBLISHED, PAPER)}
    rows = []
    for figure, curves in compared[PUBLISHED].items():
        cells, spec = [], FIGURES[figure]
        for curve in curves:
            outside = [
                f"{kind} {prediction.published:.1f}, predicted {prediction.low:.1f} to {min(prediction.high, 100):.1f}"
                for kind, prediction in {"AUC": curve.area, "end": curve.end}.items()
                if not prediction.is_inside
            ]
            if outside:
                cells.append(f"{curve.name} ({'; '.join(outside)})")
        inside = sum(curve.area.is_inside for curve in curves)
        rows.append(f"| {figure} | {spec.network}, {spec.scope} | {inside} of {len(curves)} | {'; '.join(cells)} |")
    counts, inside_of = {}, {}
    for protocol, figures in compared.items():
        curves = distinct_curves(figures)
        effects = published_effects(measured, published, protocol)
        compared_values = [c.area for c in curves], [c.end for c in curves], [*effects.values()]
        areas, ends, gaps = (sum(prediction.is_inside for prediction in values) for values in compared_values)
        distances = [np.median([abs(p.published - p.mean) for p in values]) for values in compared_values]
        inside_of[protocol] = f"{areas} (median distance {distances[0]:.1f} points)"
        width = np.median([curve.area.high - curve.area.low for curve in curves])
        counts[protocol] = (
            f"{areas} of {len(curves)} AUCs, {ends} of {len(curves)} end points and {gaps} of {len(effects)} "
            f"differences of two AUCs lie inside (median width for an AUC {width:.1f} points); their median distances "
            f"from our mean are {distances[0]:.1f}, {distances[1]:.1f} and {distances[2]:.1f} points"
        )
    effects = published_effects(measured, published, PUBLISHED)
    outside = [
        f"{label} ({effect.published:+.1f}; predicted {effect.low:+.1f} to {effect.high:+.1f})"
        for label, effect in effects.items()
        if not effect.is_inside
    ]
    c4 = {
        label: effect.published
        for label, effect in effects.items()
        if "last hidden layer" in label and "entropy" not in label
    }
    clear = {label: gap for label, gap in c4.items() if abs(gap) > 2 * READING_ERROR}
    support = sum(gap > 0 for gap in c4.values()), sum(gap > 0 for gap in clear.values())
    cases = "; ".join(f"{label} {gap:+.1f}" for label, gap in c4.items())
    in_two_layers = sum("2-layer" in label for label, effect in effects.items() if not effect.is_inside)
    scores = [measured.network(name, PUBLISHED)["scores"].sel(score="mutual_information") for name in measured.names]
    ranges = [f"{float(mi.min()):.2f} and {float(mi.max()):.2f}" for mi in scores]
    summary = (
        f"Of {len(distinct_curves(compared[PUBLISHED]))} published curves, {inside_of[PUBLISHED]} have a mean accuracy "
        "that a network trained here would give (95% prediction interval) by the quantities of the code, and "
        f"{inside_of[PAPER]} by the formulas."
    )
    text = "\n".join(
        [
            "The curves of figures 6 to 22 were read off the published pictures (to about 0.1 to 0.3 points) and "
            f"compared with the 95% prediction interval of one new network; a random curve has one random order, a "
            "difference of curves the mean of all. Under the "
            f"published protocol {counts[PUBLISHED]}; under the paper's formulas {counts[PAPER]}. Curves of a network "
            f"that differ by less than {SAME_CURVE} points on average count once. If the published networks were "
            "trained as these were, 95% are expected, but the curves of a network are not independent, and the "
            "intervals are wide: coverage alone would favour the protocol with the wider intervals, so the distances "
            "are given as well. "
            "[The pictures](published_figures.md) show all 17 figures.",
            "",
            "Differences of two curves say more, since a network's general level cancels. Outside under the published "
            f"protocol: {'; '.join(outside) or 'none'}. {'All' if in_two_layers == len(outside) else in_two_layers} "
            "are in the 2-layer network; differences that share a curve are not independent. A difference of HVF and "
            "LVF takes its curves from two figures and assumes that they show one network.",
            "",
            "The paper claims that high values first is better in the last hidden layer (C4). Its own figures have "
            f"the sign of the claim in {support[0]} of {len(c4)} cases ({cases} points). Only {len(clear)} differ "
            f"from 0 by more than {2 * READING_ERROR:g} points, the largest reading error of a difference, and "
            f"{support[1]} of these supports the claim. One network stands behind each figure, so these numbers have "
            "no interval.",
            "",
            "Figure 4 shows mutual information of up to 1.1 nats and more. A one-bit code cannot carry more than ln 2 "
            "= 0.69 nats. H(T) + H(T|Y), which the published protocol computes in its place, lies between "
            f"{ranges[-1]} nats in the {measured.names[-1]} networks and between {ranges[0]} in the others, where it "
            "is defined.",
            "",
            "| figure | shows | AUCs inside | outside |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )
    return Section(summary, text)


def compared_figures(
    measured: Measurements, published: dict[str, dict[str, list[float]]], protocol: str
) -> dict[int, list[PublishedCurve]]:
    """Return the curves of each published figure with the predictions of a protocol."""
    results = select_protocol(measured.results, protocol)
    return {n: compare_published(results, n, published_curves(published, n)) for n in range(6, 23)}


def distinct_curves(figures: dict[int, list[PublishedCurve]]) -> list[PublishedCurve]:
    """Return each published curve once, also if several figures show it."""
    seen: dict[str, list[PublishedCurve]] = {}
    for figure, curves in figures.items():
        earlier = seen.setdefault(FIGURES[figure].network, [])
        earlier += [
            curve
            for curve in curves
            if not any(100 * np.abs(curve.values - e.values).mean() < SAME_CURVE for e in earlier)
        ]
    return [curve for curves in seen.values() for curve in curves]


def published_effects(
    measured: Measurements, published: dict[str, dict[str, list[float]]], protocol: str
) -> dict[str, Prediction]:
    """Return differences of AUC, in points, that the paper's text speaks of."""
    results = select_protocol(measured.results, protocol)
    names = {"mutual_information": "mutual information", "kl_selectivity": "KL selectivity", "entropy": "entropy"}
    pairs_of_figures = {("2-layer", 1): (11, 13), ("2-layer", 2): (12, 14), ("3-layer", 1): (15, 18),
                        ("3-layer", 2): (16, 19), ("3-layer", 3): (17, 20)}  # fmt: skip
    effects = {}

    def add(label: str, in_paper: float, ours: np.ndarray) -> None:
        estimated = estimate(ours)
        effects[label] = Prediction(in_paper, *map(float, (estimated.mean, *estimated.prediction_interval())))

    def area(figure: int, curve: str) -> float:
        return float(np.mean(published_curves(published, figure)[curve]))

    for (name, layer), (high_first, low_first) in pairs_of_figures.items():
        summary = NetworkSummary(results[name].to_dataset())
        scope = f"layer{layer}"
        last = " (last hidden layer)" if scope == summary.layers[-1] else ""
        for score, curve in names.items():
            gap = summary.area(scope, score, "high") - summary.area(scope, score, "low")
            in_paper = area(high_first, curve) - area(low_first, curve)
            add(f"{name} {scope}{last}, {SHORT[score]}: HVF minus LVF", in_paper, gap)
    for figure, (name, scope) in {6: ("2-layer", "layer1"), 7: ("2-layer", "layer2"), 8: ("3-layer", "layer1"),
                                  9: ("3-layer", "layer2"), 10: ("3-layer", "layer3")}.items():  # fmt: skip
        summary = NetworkSummary(results[name].to_dataset())
        for ranking, label in (("random", "random"), ("mutual_information", "MI low first")):
            gap = summary.area(scope, ranking) - summary.area(scope, ranking, fill="zero")
            in_paper = area(figure, f"{label}, balanced") - area(figure, f"{label}, zeros")
            add(f"{name} {scope}, {label}: balanced minus zeros", in_paper, gap)
    for figure, name in ((21, "2-layer"), (22, "3-layer")):
        summary = NetworkSummary(results[name].to_dataset())
        for score, curve in names.items():
            gap = summary.area("network", score) - summary.area("network", "random")
            add(f"{name} network, {SHORT[score]}-LVF minus random", area(figure, curve) - area(figure, "random"), gap)
    return effects


def skewness_at_the_end(results: xr.DataTree) -> float:
    """Return the median skewness over networks of the accuracy at the last step, over scopes, orders and fills."""
    skewness = [
        stats.skew(node["accuracy"].isel(step=-1).transpose("seed", ...).values) for node in results.children.values()
    ]
    return float(np.median(np.concatenate([values.ravel() for values in skewness])))


def write_published_page(measured: Measurements, published: dict[str, dict[str, list[float]]], folder: Path) -> None:
    """Write the page with the 17 published figures over the curves of these networks."""
    results = select_protocol(measured.results, PUBLISHED)
    lines = [
        "# The published figures and the published protocol",
        "",
        "Written by `scripts/findings.py`. Lines: the curves of the paper's figures 6 to 22, read off the published "
        "pictures. Bands: 95% prediction interval of one new network under the published protocol, for each step and "
        "not for a whole curve. They assume a normal distribution and are cut at 0 and 100%. The accuracies are "
        "skewed: over all curves, their skewness at the last step has a median of "
        f"{skewness_at_the_end(results):+.1f}. Where curves cover each other, the published values were interpolated. "
        "[The findings](findings.md) count AUCs, end points and differences that lie inside.",
        "",
    ]
    for figure in range(6, 23):
        file = folder / "findings" / f"published_fig{figure:02}.png"
        with atomic_path(file) as temporary:
            drawn = draw_published(results, figure, published_curves(published, figure))
            drawn.savefig(temporary, format="png", dpi=150)
        lines += [f"![Figure {figure} over the prediction interval](findings/{file.name})", ""]
    with atomic_path(folder / "published_figures.md") as temporary:
        temporary.write_text("\n".join(lines))


def overfitting(measured: Measurements) -> Section:
    """Compare the advantage of high values first on training and on test examples."""
    lines = [
        "The paper has two explanations why high values first is better in the last hidden layer: shared features (see "
        "the section on pairs), and overfitting. Neurons with high KL may focus on noise of the training examples, so "
        "that their removal would cost less on new examples. Then the advantage of HVF over LVF would be larger on the "
        "test split than on training examples. The table shows both advantages (difference of AUC in points, bias "
        "balanced, paper's formulas) and their difference; overfitting as the cause needs it to be positive.",
        "",
        "| network | layer | score | training examples | test examples | test minus training |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    differences, better = [], 0
    for name in measured.names:
        training = measured.table(f"training_{name}.nc")["accuracy"]
        areas = xr.apply_ufunc(ja.statistics.auc, training, input_core_dims=[["step"]])
        summary = NetworkSummary(measured.network(name))
        for scope, score in itertools.product(summary.layers, ("mutual_information", "kl_selectivity")):
            gaps = [areas.sel(scope=scope, ordering=f"{score}_{way}").values for way in ("high", "low")]
            seen, new = gaps[0] - gaps[1], summary.area(scope, score, "high") - summary.area(scope, score, "low")
            difference = paired_difference(new, seen)
            if scope == summary.layers[-1]:
                differences.append(difference)
                better += bool(np.mean(new) > 0)
            cells = [interval(estimate(seen)), interval(estimate(new)), interval(difference)]
            lines.append(f"| {name} | {scope} | {SHORT[score]} | {' | '.join(cells)} |")
    corrected = ja.statistics.holm(np.array([float(d.p_value) for d in differences]))
    positive, after = (
        sum(float(d.mean) > 0 and p < 0.05 for d, p in zip(differences, p_values, strict=True))
        for p_values in ([float(d.p_value) for d in differences], corrected)
    )
    count = training_count(measured)
    lines += [
        "",
        f"In the last hidden layer {positive} of {len(differences)} differences are positive with p < 0.05 ({after} "
        f"after Holm's correction), but small: the largest is {max(float(d.mean) for d in differences):+.2f} points, "
        "and differences below 0.25 points are within the margin of this page. HVF has the higher AUC on the test "
        f"split in {better} of {len(differences)} cases, so there is {'some' if better else 'no'} advantage to explain "
        "under the paper's formulas. The paper saw the advantage in curves of the published code, where this was not "
        f"tested. Training curves use {count:,} training examples.",
    ]
    return Section(
        "Overfitting, one of the paper's explanations of C4: the advantage of high over low values first would be "
        f"larger on test than on training examples. By the formulas it is so in {positive} ({after}) of "
        f"{len(differences)} cases, by at most {interval(max(differences, key=lambda d: float(d.mean)))} points; but "
        f"high values first is better in {better} of them. By the code this was not tested.",
        "\n".join(lines),
    )


def training_count(measured: Measurements) -> int:
    return int(measured.table(f"training_{measured.names[0]}.nc").attrs["num_examples"])


def whole_network(measured: Measurements) -> str:
    """Describe which neurons whole-network rankings ablate."""
    lines = [
        "A whole-network ranking, low values first, ablates the neurons with the lowest scores in any layer. Under the "
        "paper's formulas most of them are neurons whose code never changes. Under the published protocol their "
        "entropy and MI are NaN, which ranks as the largest value, and active neurons are ablated instead.",
        "",
    ]
    for name in measured.names:
        for protocol in (PAPER, PUBLISHED):
            network = measured.network(name, protocol)
            last = ja.layer_analysis.layer_shares(network).isel(rank=-1)
            constant = constant_neurons(network)
            parts = []
            for metric in METRICS:
                share = 100 * float(last.sel(ordering=f"{metric}_low", layer=1).mean())
                chosen = network["ablated"].sel(scope="network", ordering=f"{metric}_low").values
                unused = 100 * np.take_along_axis(constant, chosen, axis=1).mean()
                parts.append(f"{words(metric)} {share:.0f}% and {unused:.0f}%")
            lines.append(
                f"- **{name}, {protocol}.** Fraction of the first {int(last['rank'])} neurons that are in layer 1, and "
                f"fraction whose code never changes: {'; '.join(parts)}."
            )
        lines += ["", f"  ![Share of each layer among the ablated neurons](findings/layer_shares_{name}.png)", ""]
    return "\n".join(lines).rstrip()


def changed_predictions(measured: Measurements) -> str:
    """Say how many predictions a neuron changes, for each layer."""
    parts = []
    for name in measured.names:
        network = measured.network(name)
        lost = lost_predictions(network)
        layers = network["layer"].values
        medians = [f"{np.median(np.abs(lost.values[:, layers == layer])):g}" for layer in np.unique(layers)]
        parts.append(f"{', '.join(medians)} in the layers of the {name} network")
    return f"{' and '.join(parts)}, of {measured.network(measured.names[0]).attrs['num_test_examples']:,}"


def damage(measured: Measurements) -> str:
    """Report how scores correlate with the damage of ablating only that neuron."""
    lines = [
        "The damage of a neuron is the rise of the test loss if it alone is replaced by its mean. Spearman's "
        "correlation of score and damage, as mean and 95% interval over networks: with the rise of the loss, with it "
        "over the neurons whose code changes, and with the number of lost predictions. One neuron changes few "
        f"predictions: the median absolute change is {changed_predictions(measured)}.",
    ]
    rows, in_first_layer = [], []
    for name in measured.names:
        network = measured.network(name)
        lost = lost_predictions(network)
        variants = (network, score_only_changing(network), network.assign(single_damage=lost))
        correlations = [ja.layer_analysis.damage_correlations(variant) for variant in variants]
        for scope, score in itertools.product(map(str, network["scope"].values), map(str, network["score"].values)):
            estimates = [estimate(variant.sel(scope=scope, score=score).values) for variant in correlations]
            rows.append(f"| {name} | {scope} | {words(score)} | {' | '.join(map(interval, estimates))} |")
            if scope == "layer1" and score in METRICS:
                in_first_layer.append([float(estimated.mean) for estimated in estimates])
    with_all, without, _ = zip(*in_first_layer, strict=True)
    lines += [
        "",
        "In layer 1 the correlation of the paper's scores is much smaller without the neurons whose code never "
        "changes: it "
        f"is {min(with_all):+.2f} to {max(with_all):+.2f} with these neurons and {min(without):+.2f} to "
        f"{max(without):+.2f} without them.",
        "",
        "| network | scope | score | rise of the loss | without constant codes | lost predictions |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "![Correlation of every score with the damage of ablating a single neuron](findings/correlations.png)",
    ]
    return "\n".join(lines)


def quantizers(measured: Measurements, pictures: Path, verdicts: Sequence[Verdict]) -> Section:
    """Compare the direction of ablation that costs less between quantizers."""
    counts: dict[str, int] = {}
    rows, figures, sweep = [], [], None
    decided = {(v.network, effect.label): effect for v in verdicts if (v.protocol, v.claim) == (PAPER, "C4")
               for effect in v.effects if effect.verdict == FAILS}  # fmt: skip
    contrary = []
    for name in measured.names:
        sweep = measured.table(f"sensitivity_{name}.nc")
        ranks = (sweep["score"] != "entropy") | ~sweep["quantizer"].str.startswith("quantile")
        drawn = sweep.assign({key: sweep[key].where(ranks) for key in ("rank_correlation", "auc")})
        with atomic_path(pictures / f"quantizers_{name}.png") as temporary:
            draw_sensitivity(drawn, title=f"Does the result depend on the quantizer? {name} network").savefig(
                temporary, format="png"
            )
        figures.append(f"![Ranks and curves under each quantizer, {name}](findings/quantizers_{name}.png)")
        for compared in ja.study.compare_quantizers(sweep):
            counts[compared.verdict] = counts.get(compared.verdict, 0) + 1
            mean = np.asarray(compared.difference.mean)
            low, high = compared.difference.interval()
            rest = mean[1:][np.isfinite(mean[1:])]
            rows.append(
                f"| {name} | {compared.scope} | {words(compared.score)} | {mean[0]:+.2f} [{low[0]:+.2f}, "
                f"{high[0]:+.2f}] | {rest.min():+.2f} to {rest.max():+.2f} | {compared.verdict} | "
                f"{', '.join(compared.reversed_by)} |"
            )
            effect = decided.get((name, f"{compared.scope}, {SHORT.get(compared.score)}: HVF over LVF"))
            if effect and compared.verdict == "no direction":
                contrary.append(f"{compared.scope} of the {name} network, {-effect.mean:+.2f}")
    assert sweep is not None
    labels = ", ".join(map(str, sweep["quantizer"].values[1:]))
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    text = (
        f"The neurons of {sweep.sizes['network']} networks of each kind were ranked and ablated (bias balanced) under "
        f"{sweep.sizes['quantizer']} quantizers. The first asks if the neuron fires, and the claims above rest on it; "
        f"the others are {labels}. The table shows the AUC with low values first minus the AUC with high values first, "
        "in points. *Reversed*: another quantizer shows the opposite direction (p < 0.05 after Holm's correction over "
        "the other quantizers). *Kept*: all others show the same direction (p < 0.05 each). *No direction*: the first "
        "quantizer shows none (p >= 0.05). *Undecided*: all other cases. "
        f"Of {len(rows)} cases: {summary}. Nothing is corrected across cases. Quantile codes are equally "
        "frequent, so their entropy ranks nothing and is left out. These networks are fewer than for the claims: C4 "
        f"decides cases that show no direction here ({'; '.join(contrary) or 'none'})."
    )
    head = [
        "| network | scope | score | does it fire? | other quantizers | direction | reversed by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return Section(
        f"Under {sweep.sizes['quantizer'] - 1} other quantizers (2 to 32 codes), the direction that costs less, low or "
        f"high values first, is, in {len(rows)} cases: {summary}.",
        "\n\n".join([text, *figures, "\n".join([*head, *rows])]),
    )


def constant_pairs(measured: Measurements, num_networks: int) -> str:
    """Give the fraction of the pairs of layer 1 that contain a neuron whose code never changes, by kind of network."""
    parts = []
    for name in measured.names:
        network = measured.network(name)
        in_layer = network["layer"].values == 1
        changing = (~constant_neurons(network)[:num_networks, in_layer]).sum(axis=1)
        size = in_layer.sum()
        fractions = 100 * (1 - changing * (changing - 1) / (size * (size - 1)))
        parts.append(f"{fractions.min():.0f}% to {fractions.max():.0f}% ({name})")
    return " and ".join(parts)


def pairs(measured: Measurements, pictures: Path) -> Section:
    """Report how the information that pairs share correlates with the super-additivity of their damage."""
    rows, figures, test = [], [], None
    partial: dict[tuple[str, str], dict[str, Estimate]] = {}
    for name, fill in itertools.product(measured.names, FILLS):
        tests = {compared: measured.table(f"pairs_{compared}_{fill}_{name}.nc") for compared in COMPARED}
        test = tests["all"]
        for scope in map(str, test["scope"].values):
            place = "last" if scope == test["scope"].values[-1] else scope
            for compared, table in tests.items():
                layer = table.sel(scope=scope)
                cells = [interval(estimate(layer["curvature_correlation"].values), digits=4)]
                co = layer.sel(quantity="co_information")
                estimates = [estimate(co[kind].values) for kind in ("correlation", "partial_correlation")]
                cells += map(interval, estimates)
                partial.setdefault((place, compared), {})[f"{name}, {fill}"] = estimates[1]
                rows.append(f"| {name} | {scope} | {fill} | {compared} | {' | '.join(cells)} |")
    for name in measured.names:
        with atomic_path(pictures / f"pairs_{name}.png") as temporary:
            shutil.copyfile(measured.folder / f"pairs_{name}.png", temporary)
        figures.append(
            f"![Information of pairs of the last layer about the class, network of seed 0, {name}]"
            f"(findings/pairs_{name}.png)"
        )
    assert test is not None
    num_networks = test.sizes["network"]

    def listed(place: str, compared: str) -> str:
        return "; ".join(f"{interval(each)} ({kind})" for kind, each in partial[place, compared].items())

    text = (
        "The paper infers redundancy from curves. Here shared information is measured for pairs. Co-information is "
        "the information about the class that the codes of a pair share, minus what only both together have. The "
        "damage of a pair is super-additive by the rise of the loss without both, minus the two single rises "
        f"({test.attrs['num_test_examples']:,} test images, {num_networks} networks of each kind). Super-additive "
        "damage is no evidence of replacement: in the last hidden layer the changes of the logits add up, and the "
        "damage of a pair exceeds the sum because the loss is curved. The control is this curvature, E[d_i^T (diag p "
        "- p p^T) d_j] with d the change of the logits and p the intact prediction. The table shows Spearman's "
        "correlations with super-additivity over the pairs of a layer, as mean and 95% interval over networks: of the "
        "curvature, of co-information, and of co-information given the curvature. *All* compares all neurons, "
        "*changing* those whose code is not the same for all validation images.\n\n"
        "In the last hidden layer what the curvature leaves is of third order in the change of the logits, and cannot "
        "show replacement, present or absent. So the last layer is a negative control; its correlations given the "
        f"curvature are {listed('last', 'all')}. In earlier layers they also hold how the later layers combine the two "
        f"changes. Layer 2 of the 3-layer network has {listed('layer2', 'all')}. Layer 1 has "
        f"{listed('layer1', 'all')}. But {constant_pairs(measured, num_networks)} of its pairs contain a neuron whose "
        "code never changes. Such a pair has co-information 0, so the correlation may come from these neurons. "
        f"Without them it is {listed('layer1', 'changing')}."
    )
    largest = max(partial["layer1", "changing"].values(), key=lambda each: float(each.mean))
    head = [
        "| network | layer | fill | neurons | curvature | co-information | co-information given curvature |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return Section(
        "Shared features, its other explanation, concern the last layer, where this page's measure can neither show "
        "nor exclude that neurons replace each other. In first layers the information about the class that two neurons "
        "share has a rank correlation of at most "
        f"{interval(largest)} with the super-additive part of their damage, given the curvature of the loss "
        f"({num_networks} networks of each kind; neurons whose code changes).",
        "\n\n".join([text, "\n".join([*head, *rows]), *figures]),
    )


def effect_table(verdicts: Iterable[Verdict]) -> str:
    """Return the effects of both protocols, a row for each comparison."""
    by_key = {(v.protocol, v.network, v.claim): v for v in verdicts}
    lines = ["| claim | network | comparison | paper | published |", "| --- | --- | --- | --- | --- |"]
    for claim in CLAIMS:
        for (protocol, network, number_), verdict in by_key.items():
            if protocol == PAPER and number_ == claim:
                published = {e.label: e for e in by_key[PUBLISHED, network, claim].effects}
                for effect in verdict.effects:
                    cells = [f"{number(e)}, {e.verdict}, {p_text(e.p)} ({p_text(e.p_holm)})"
                             for e in (effect, published[effect.label])]  # fmt: skip
                    lines.append(f"| {claim} | {network} | {effect.label} | {' | '.join(cells)} |")
    effects = [
        effect for (protocol, _, _), v in by_key.items() if protocol in (PAPER, PUBLISHED) for effect in v.effects
    ]
    flips = [ja.statistics.sign_flip_test(np.array(effect.values)) < 0.05 for effect in effects]
    agreeing = sum(flip == (effect.p < 0.05) for flip, effect in zip(flips, effects, strict=True))
    lines += [
        "",
        "In brackets after p: p after Holm's correction over the comparisons of the claim. A sign-flip test, which "
        f"does not assume a normal distribution, agrees with the t-test at 5% in {agreeing} of {len(effects)} "
        "comparisons.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
