"""Write the parts of docs/findings.md about single claims: verdicts, controls, and every comparison."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from findings_common import BASELINE, PAPER, PUBLISHED, Measurements, digits_of, number, p_text, words
from findings_settings import constant_neurons, interval, score_only_changing
from scipy import stats

import jaxablate as ja
from jaxablate.charts import deciding_effect
from jaxablate.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    HOLDS_IN_PART,
    NO_DIFFERENCE,
    NOT_JUDGED,
    REVERSED,
    SHORT,
    UNDECIDED,
    Effect,
    NetworkSummary,
    Verdict,
)
from jaxablate.claims._judge import combine
from jaxablate.metrics import METRICS
from jaxablate.results import RANDOM, balanced_fill, select_protocol
from jaxablate.statistics import paired_difference

ALL_RANKINGS = "*All rankings* is the mean AUC of six rankings: entropy, MI and KL, each LVF and HVF."
NOTES = {
    "C2": "The paper calls random pruning a moderate choice, read here as: between the two directions. A *reversed* "
    "pair has random in between as well, with high values first as the better direction. *In either direction* is "
    "the verdict on that sentence: each score and layer may have the direction that fits better. In the last hidden "
    "layer C4 states the direction opposite to C2, so C2 and C4 cannot both hold there.",
    "C4": "These are one-bit codes; the section on quantizers has finer ones.",
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
Bounds = tuple[float, float, float]
"""A number and the ends of its interval."""


@dataclass(frozen=True)
class Spread:
    """How much accuracy varies with zeros and with bias balancing, on average over the steps of one layer's curves.

    Attributes:
        place: network, layer and protocol, as cells of a table.
        deviations: root of the mean variance with one random order for each network, zeros and balanced, in points.
        ratio: balanced over zeros, and the ends of its 95% interval.
        orders: fraction of the variance with zeros that lies between the orders of a network.
        networks: variance between networks, apart from their orders, with zeros and balanced, in squared points.
        change: balanced minus zeros of `networks`, and the ends of its 95% interval.
        determined: as `ratio`, for MI-LVF, which is one order for each network.
    """

    place: str
    deviations: tuple[float, float]
    ratio: Bounds
    orders: float
    networks: tuple[float, float]
    change: Bounds
    determined: Bounds


def spreads_between_networks(measured: Measurements) -> list[Spread]:
    """Return the spread of every layer under both protocols."""
    spreads = []
    for name, protocol in itertools.product(measured.names, (PAPER, PUBLISHED)):
        network = measured.network(name, protocol)
        accuracy = 100 * network["accuracy"].isel(step=slice(1, None)).transpose(
            "scope", "seed", "ordering", "step", ...
        )
        is_random = network["ranking"].values == RANDOM
        by_mi = network["ordering"].values == "mutual_information_low"
        for layer in NetworkSummary(network).layers:
            both = [accuracy.sel(scope=layer, fill=fill) for fill in ("zero", balanced_fill(network))]
            orders, networks = np.array(
                [variances(values.isel(ordering=is_random).values) for values in both]
            ).swapaxes(0, 1)
            _, determined = np.array([variances(values.isel(ordering=by_mi).values) for values in both]).swapaxes(0, 1)
            zeros, balanced = orders + networks
            spreads.append(
                Spread(
                    f"{name} | {layer} | {protocol}",
                    (np.sqrt(zeros[0]), np.sqrt(balanced[0])),
                    of_ratio(balanced / zeros),
                    orders[0, 0] / zeros[0],
                    tuple(networks[:, 0]),
                    jackknife(networks[1] - networks[0]),
                    of_ratio(determined[1] / determined[0]),
                )
            )
    return spreads


def variances(values: np.ndarray) -> np.ndarray:
    """Return the variance between the orders of a network, and the variance between networks apart from their orders.

    Args:
        values: [network, order, step]. With one order for each network, all variance is between networks.

    Returns:
        [2, 1 + network]: means over the steps, first of all networks, then without each network in turn.
    """
    size, num_orders, _ = values.shape
    weights = np.concatenate([np.ones((1, size)), 1 - np.eye(size)])
    sizes = weights.sum(axis=1)
    weights /= sizes[:, None]
    of_orders = values.var(axis=1, ddof=1).mean(axis=1) if num_orders > 1 else np.zeros(size)
    means = values.mean(axis=1) - values.mean()
    of_means = (weights @ means**2 - (weights @ means) ** 2).mean(axis=1) * sizes / (sizes - 1)
    return np.stack([weights @ of_orders, of_means - weights @ of_orders / num_orders])


def jackknife(estimates: np.ndarray) -> Bounds:
    """Return an estimate and its 95% t-interval, from the estimates of all networks and without each in turn.

    Source: Tukey, Bias and confidence in not quite large samples, Annals of Mathematical Statistics 29 (1958).
    """
    size = len(estimates) - 1
    half = stats.t.ppf(0.975, size - 1) * np.sqrt((size - 1) * estimates[1:].var())
    return float(estimates[0]), float(estimates[0] - half), float(estimates[0] + half)


def of_ratio(ratios: np.ndarray) -> Bounds:
    """Return the root of a ratio of variances, with the interval of its logarithm."""
    mean, low, high = np.exp(jackknife(np.log(ratios) / 2))
    return float(mean), float(low), float(high)


def spread_summary(spreads: Sequence[Spread]) -> str:
    """Say how far bias balancing reduces the variation between networks."""
    ratios, changes = [spread.ratio for spread in spreads], [spread.change for spread in spreads]
    determined, least = [spread.determined for spread in spreads], min(spread.orders for spread in spreads)
    return (
        "With one random order for each network, the standard deviation of the accuracy at a step falls to "
        f"{min(ratios)[0]:.2f} to {max(ratios)[0]:.2f} of that with zeros ({sum(high < 1 for _, _, high in ratios)} of "
        f"{len(spreads)} 95% intervals lie below 1). But with zeros {100 * least:.0f}% or more of this variance comes "
        "from the choice of the order. The rest, which comes from the network, is estimated as smaller with bias "
        f"balancing in {sum(mean < 0 for mean, _, _ in changes)} and as larger in "
        f"{sum(mean > 0 for mean, _, _ in changes)} of {len(spreads)} cases "
        f"({sum(high < 0 or low > 0 for _, low, high in changes) or 'no'} intervals exclude 0). For MI-LVF, which is "
        "one order for each network, the standard deviation falls in "
        f"{sum(high < 1 for _, _, high in determined)} of {len(spreads)} cases and rises in "
        f"{sum(low > 1 for _, low, _ in determined)} (95%)"
    )


def between_networks(spreads: Sequence[Spread]) -> str:
    """Give the variation between networks, layer by layer."""

    def cell(value: Bounds) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*value)

    return "\n".join(
        [
            f"{spread_summary(spreads)}. In the table, *orders* is the fraction of the variance with zeros that "
            "comes from the choice of the order. *Networks* is the rest of the variance, with zeros, balanced, and "
            "the difference, in squared points; an estimate near 0 may be negative, and the fraction then exceeds "
            "100%. Variances are means over the steps, and intervals are t-intervals by the jackknife over networks.",
            "",
            "| network | layer | protocol | random order: zeros | balanced, points | ratio | orders | "
            "networks: zeros | balanced | difference | MI-LVF: ratio |",
            "| --- " * 11 + "|",
            *(
                f"| {each.place} | {each.deviations[0]:.2f} | {each.deviations[1]:.2f} | {cell(each.ratio)} | "
                f"{100 * each.orders:.0f}% | {each.networks[0]:.2f} | {each.networks[1]:.2f} | {cell(each.change)} | "
                f"{cell(each.determined)} |"
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


def without_constant_codes(measured: Measurements, protocol: str, control: str) -> dict[tuple[str, str], Verdict]:
    """Judge the claims without the neurons whose code never changes: they are ablated last, and have no score."""
    tree = xr.map_over_datasets(score_only_changing, select_protocol(measured.results, control))
    return {(v.network, v.claim): v for v in ja.judge_claims(tree)}


def constant_code_control(measured: Measurements, verdicts: Sequence[Verdict]) -> str:
    """Give the comparisons with and without the neurons whose code never changes, where that matters."""
    lines = [
        "### Neurons whose code never changes",
        "",
        "Such a neuron scores 0 in entropy, mutual information and KL selectivity, and comes first in LVF orders "
        "under the paper's formulas. Under the published protocol entropy and MI are NaN and rank as the largest; KL "
        "is as before. The control ablates these neurons after all others, in random orders too, so that every curve "
        "runs over the rest. Mean scores and correlations leave them out. The first 80 steps then ablate a larger "
        "fraction of layer 1 than of the other layers, which matters for C5 and C6.",
        "",
    ]
    for name in measured.names:
        network = measured.network(name)
        constant = constant_neurons(network)
        layer = network["layer"].values
        totals = {i: constant[:, layer == i].sum(axis=1) for i in np.unique(layer)}
        parts = [f"{t.min()} to {t.max()} of {(layer == i).sum()} in layer {i}" for i, t in totals.items()]
        lines.append(f"- **{name}:** {', '.join(parts)}.")
    lines += ["", without_mi(measured)]
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


def without_mi(measured: Measurements) -> str:
    """Say which neurons have no MI under the published protocol, and what its orders do with them."""
    rows = []
    for name in measured.names:
        constant, fractions = constant_neurons(measured.network(name)), []
        for protocol in (PUBLISHED, f"{PUBLISHED}+constant_last"):
            network = measured.network(name, protocol)
            missing = np.isnan(network["scores"].sel(score="mutual_information").transpose("seed", "neuron").values)
            first = network["ablated"].sel(scope="layer1", ordering="mutual_information_high").values
            fractions.append(f"{100 * np.take_along_axis(missing, first, axis=1).mean():.0f}%")
        layer = network["layer"].values
        counts = [f"{(missing & ~constant)[:, layer == i].sum(axis=1).mean():.0f}" for i in np.unique(layer)]
        with_mi = (~missing)[:, layer == 1].sum(axis=1)
        rows.append(f"| {name} | {'; '.join(counts)} | {with_mi.min()} to {with_mi.max()} | {' | '.join(fractions)} |")
    return "\n".join(
        [
            "Under the published protocol MI is NaN also where a code never changes within one class. NaN ranks by "
            "index, so MI-HVF in layer 1 says nothing of neurons with much MI, and correlations with MI rest on the "
            "neurons that have one:",
            "",
            "| network | more neurons without an MI (mean), by layer | neurons of layer 1 with an MI | first 80 of "
            "MI-HVF in layer 1: without an MI | the same, without constant codes |",
            "| --- " * 5 + "|",
            *rows,
        ]
    )


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
