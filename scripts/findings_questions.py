"""Write the parts of docs/findings.md that answer one question each, such as whether the quantizer matters."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from findings_common import PAPER, PUBLISHED, Measurements, Section, digits_of, lost_predictions, words
from findings_settings import constant_neurons, interval, score_only_changing
from measure import COMPARED, FILLS

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.claims import CLAIMS, FAILS, SHORT, NetworkSummary, Verdict, VerdictChange
from jaxablate.claims._judge import PLAYERS
from jaxablate.figures import draw_sensitivity
from jaxablate.metrics import METRICS
from jaxablate.protocols import DEPARTURES
from jaxablate.statistics import Estimate, estimate, paired_difference


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
        "entropy and MI are NaN, which ranks as the largest value, and other neurons are ablated instead.",
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
        f"predictions: the median absolute change is {changed_predictions(measured)}. The table has the paper's "
        "formulas. In the picture the published protocol has its own damage, the rise of the loss if the activation is "
        "multiplied by the neuron's firing rate, and leaves neurons without a score out.",
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
    contrary, finer = [], []
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
            significant = compared.p_holm[1:] < 0.05
            directions = [significant & (sign * mean[1:] > 0) for sign in (1, -1)]
            low_first, high_first = (int(each.sum()) for each in directions)
            rows.append(
                f"| {name} | {compared.scope} | {words(compared.score)} | {mean[0]:+.2f} [{low[0]:+.2f}, "
                f"{high[0]:+.2f}] | {rest.min():+.2f} to {rest.max():+.2f} | {compared.verdict} | "
                f"{low_first} | {high_first} | {len(rest)} |"
            )
            effect = decided.get((name, f"{compared.scope}, {SHORT.get(compared.score)}: HVF over LVF"))
            if effect:
                place = f"{SHORT[compared.score]} in {compared.scope} of the {name} network"
                gaps = mean[1:][directions[1]]
                if high_first:
                    sizes = f"by {-gaps.max():.2f} to {-gaps.min():.2f} points"
                    finer.append(f"{place}, under {high_first} of {len(rest)} ({sizes})")
                if compared.verdict == "no direction":
                    contrary.append(f"{place}, {-effect.mean:+.2f} [{-effect.high:+.2f}, {-effect.low:+.2f}]")
    assert sweep is not None
    labels = ", ".join(map(str, sweep["quantizer"].values[1:]))
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    exceptions = f" The exception: {'; '.join(finer)}." if finer else ""
    last_layer = (
        "C4 claims that high values first is better in the last hidden layer. Of its cases here (MI and KL), "
        f"{len(decided) - len(finer)} of {len(decided)} show this significantly under no other quantizer (corrected "
        f"within a case).{exceptions}"
    )
    text = (
        f"The neurons of {sweep.sizes['network']} networks of each kind were ranked and ablated (bias balanced) under "
        f"{sweep.sizes['quantizer']} quantizers. The first asks if the neuron fires, and the claims above rest on it; "
        f"the others are {labels}. The table shows the AUC with low values first minus the AUC with high values first, "
        "in points. *Reversed*: another quantizer shows the opposite direction (p < 0.05 after Holm's correction over "
        "the other quantizers). *Kept*: all others show the same direction (p < 0.05 each). *No direction*: the first "
        "quantizer shows none (p >= 0.05). *Undecided*: all other cases. "
        f"Of {len(rows)} cases: {summary}. Nothing is corrected across cases. Quantile codes are equally "
        "frequent, so their entropy ranks nothing and is left out. The last columns count the other quantizers "
        "under which low or high values first is significantly better (corrected in the same way), of those that rank. "
        "These networks are fewer than for the claims: with twenty, C4 decides cases that show no direction here "
        f"({'; '.join(contrary) or 'none'}).\n\n{last_layer}"
    )
    head = [
        "| network | scope | score | does it fire? | other quantizers | direction | low first | high first | of |",
        "| --- " * 9 + "|",
    ]
    return Section(
        f"Under {sweep.sizes['quantizer'] - 1} other quantizers (2 to 32 codes), the direction that costs less, low "
        f"or high values first, is, in {len(rows)} cases (a score in a layer or the network): {summary}. *Kept*: "
        f"all others agree; *reversed*: at least one shows the opposite. {last_layer}",
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
    partial: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for name, fill in itertools.product(measured.names, FILLS):
        tests = {compared: measured.table(f"pairs_{compared}_{fill}_{name}.nc") for compared in COMPARED}
        test = tests["all"]
        for scope in map(str, test["scope"].values):
            place = "last" if scope == test["scope"].values[-1] else scope
            for compared, table in tests.items():
                layer = table.sel(scope=scope)
                cells = [interval(estimate(layer["curvature_correlation"].values), digits=4)]
                cells.append(interval(estimate(layer["correlation"].sel(quantity="co_information").values)))
                for quantity in ("co_information", "redundancy", "synergy"):
                    given = estimate(layer["partial_correlation"].sel(quantity=quantity).values)
                    cells.append(interval(given))
                    partial.setdefault((place, compared, quantity), {})[f"{name}, {fill}"] = given
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

    def listed(place: str, compared: str, quantity: str = "co_information") -> str:
        return "; ".join(f"{interval(each)} ({kind})" for kind, each in partial[place, compared, quantity].items())

    def extremes(quantity: str) -> str:
        given = sorted(partial["layer1", "changing", quantity].values(), key=lambda each: float(each.mean))
        return f"{interval(given[0])} to {interval(given[-1])}"

    text = (
        "The paper infers redundancy from curves. Here information is measured for pairs: redundancy is the smaller "
        "of the two neurons' MI with the class, synergy what both codes together have beyond the larger one, and "
        "co-information redundancy minus synergy, which grows with what the two share. The damage of a pair is "
        "super-additive by the rise of the loss without both, minus the two single rises "
        f"({test.attrs['num_test_examples']:,} test images, {num_networks} networks of each kind). Super-additive "
        "damage is no evidence of replacement: in the last hidden layer the changes of the logits add up, and the "
        "damage of a pair exceeds the sum because the loss is curved. The control is this curvature, E[d_i^T (diag p "
        "- p p^T) d_j] with d the change of the logits and p the intact prediction. The table shows Spearman's "
        "correlations with super-additivity over the pairs of a layer, as mean and 95% interval over networks: of "
        "the curvature, of co-information, and of co-information, redundancy and synergy given the curvature. *All* "
        "compares all neurons, *changing* those whose code is not the same for all validation images.\n\nIn the last "
        "hidden layer what the curvature leaves is of third order in the change of the logits, and cannot show "
        "replacement, present or absent. So the last layer is a negative control; its correlations given the "
        f"curvature are {listed('last', 'all')}. In earlier layers they also hold how the later layers combine the "
        f"two changes. Layer 2 of the 3-layer network has {listed('layer2', 'all')}. Layer 1 has "
        f"{listed('layer1', 'all')}. But {constant_pairs(measured, num_networks)} of its pairs contain a neuron "
        "whose code never changes. Such a pair has co-information 0, so the correlation may come from these neurons. "
        f"Without them it is {listed('layer1', 'changing')}.\n\nIn layer 1, without them, redundancy has "
        f"{listed('layer1', 'changing', 'redundancy')}, and synergy {listed('layer1', 'changing', 'synergy')}. "
        "Redundancy depends on the two neurons' own MI alone, so it does not tell sharing from much information, and "
        "sharing lowers synergy at a given MI of the two. So neither shows that shared information predicts the "
        "damage."
    )
    head = [
        "| network | layer | fill | neurons | curvature | co-information | given curvature: co-information | "
        "redundancy | synergy |",
        "| --- " * 9 + "|",
    ]
    return Section(
        "Shared features, the paper's other explanation of C4, concern the last layer, where this page's measure can "
        "neither show nor exclude that neurons replace each other. In first layers co-information (redundancy minus "
        "synergy of two neurons about the class) has a rank correlation with the super-additive part of their "
        f"damage, given the curvature of the loss, of {extremes('co_information')}. Redundancy has "
        f"{extremes('redundancy')} and synergy {extremes('synergy')}, but redundancy depends on the neurons' own MI "
        f"alone, and sharing lowers synergy at a given MI ({num_networks} networks of each kind, two fills; neurons "
        "whose code changes).",
        "\n\n".join([text, "\n".join([*head, *rows]), *figures]),
    )
