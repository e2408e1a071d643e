"""Write docs/findings.md and its pictures from saved results, never by hand.

`python scripts/findings.py RESULTS [--again OTHER] [--scores RUN] [--out docs]`: RESULTS come from `jaxablate reproduce
--protocol each`, OTHER from a run with other seeds, to see whether the numbers come out again; RUN is the folder where
`scripts/scores.py` has studied quantizers and pairs.
"""

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import stats

import jaxablate as ja
from jaxablate._files import atomic_path
from jaxablate.claims import CLAIMS, FAILS, HOLDS, POINTS, UNDECIDED, Effect, Verdict
from jaxablate.figures import draw_sensitivity, save_finding_figures
from jaxablate.layer_analysis import lost_predictions
from jaxablate.protocols import DEPARTURES, SETS

SHOWN = SETS["both"]
BELIEVE = {
    "C1": "Putting the mean in place of an ablated neuron keeps more accuracy than putting zero.",
    "C2": "Random ablation costs more than the better direction of every score, and less than the worse one.",
    "C3": "In layers before the last, neurons with little information or selectivity can go first.",
    "C4": "In the last hidden layer, neurons with much information or selectivity can go first.",
    "C5": "In a network of three hidden layers, the second one suffers most from ablation.",
    "C6": "The last hidden layer suffers least from ablation.",
    "C7": "Over the whole network, removing low entropy or low mutual information first is ruinous, low KL is not.",
    "C8": "Entropy and mutual information grow from layer to layer.",
    "C9a": "KL selectivity falls from layer to layer.",
    "C9b": "KL selectivity grows from layer to layer.",
    "C10": "Removing random neurons of the whole network costs less than 2 points on average over the steps.",
}
"""What each claim says to a reader; the verdicts decide whether to believe it."""
METHOD = """A claim holds where every comparison behind it does (in brackets: how many), does not hold where one is
refuted, and is undecided otherwise. A comparison is a difference of AUC (mean accuracy over all steps but the intact
network's, in accuracy points) or of mean scores (nats), paired within each network. It is decided by a two-sided t-test
at 5 %, corrected by Holm's method over all comparisons of a protocol; the intervals are 95 % t-intervals of the mean
over networks and not corrected, so that one that leaves out 0 may still belong to an undecided comparison.
`jaxablate reproduce` writes bootstrap intervals and the value of every network beside them. The paper gives no numbers
for falling strongly, staying flat and costing little: here more than 3, less than 1 and less than 2 points on average
over the steps.

The published protocol does what the code behind the published figures does, in the six points below; a seventh,
accuracy averaged over batches of which the last is smaller, is left out. Under it, means of scores leave out the
neurons whose score is NaN, and "mutual information" is H(T) + H(T|Y)."""
CLOSE = 0.25
"""Accuracy points within which an undecided effect, interval and all, is said to make no difference."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/findings.md from saved results.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--again", type=Path, help="results of a run with other seeds")
    parser.add_argument("--scores", type=Path, help="the folder that scripts/scores.py has written into")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        results = checked(arguments.results)
        again = checked(arguments.again) if arguments.again else None
        print(write_findings(results, again, arguments.scores, arguments.out))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def checked(path: Path) -> xr.DataTree:
    """Results of both protocols with all scores and several networks, or a sentence that says what is missing."""
    results = ja.results.load_results(path)
    protocols, config = ja.results.protocols_of(results), json.loads(results.attrs["config"])
    all_scores = set(config["metrics"]) == set(ja.metrics.METRICS)
    if not set(SHOWN) <= set(protocols) or len(config["seeds"]) < 2 or not all_scores:
        raise ja.InputError(
            f"results file {path}: expected the protocols paper and published, all scores and at least two seeds, got "
            f"{', '.join(protocols)}, {', '.join(config['metrics'])} and {len(config['seeds'])}; `jaxablate reproduce "
            "--seeds 20 --protocol each` writes them"
        )
    return results


def write_findings(results: xr.DataTree, again: xr.DataTree | None, scores: Path | None, folder: Path) -> Path:
    """The page; its pictures go into `findings` beside it."""
    verdicts = ja.judge_claims(results)
    for file in save_finding_figures(results, verdicts, folder / "findings"):
        if file.suffix == ".pdf":
            file.unlink()
    parts = [
        "# Which of the paper's claims hold",
        "Written by `scripts/findings.py` from saved results; every number and verdict below is computed.",
        provenance(results, verdicts),
        "## Verdicts",
        verdict_table(verdicts),
        METHOD,
        "![Every comparison with its interval](findings/claims.png)",
        "## What to believe now",
        beliefs(verdicts),
        "## Where the published protocol says otherwise, and why",
        reasons(verdicts),
        "## What stands behind the whole-network rankings",
        layer_analysis(results),
    ]
    if scores is not None:
        names = list(ja.results.select_protocol(results, "paper").children)
        parts += ["## Does the result depend on the quantizer?", quantizers(scores, names, folder / "findings")]
        parts += [
            "## Do neurons that share information stand in for each other?",
            pairs(scores, names, folder / "findings"),
        ]
    if again is not None:
        parts += ["## The same again, with other networks", replication(verdicts, ja.judge_claims(again), again)]
    parts += ["## Every comparison", effect_table(verdicts)]
    path = folder / "findings.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return path


def seeds_of(results: xr.DataTree) -> str:
    seeds = json.loads(results.attrs["config"])["seeds"]
    return f"{seeds[0]} to {seeds[-1]}"


def provenance(results: xr.DataTree, verdicts: list[Verdict]) -> str:
    attrs = results.attrs
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(attrs["versions"]).items())
    files = "; ".join(f"`{name}` {digest[:16]}..." for name, digest in json.loads(attrs["dataset_sha256"]).items())
    count, steps = verdicts[0].num_networks, json.loads(attrs["config"])["steps"]
    return (
        f"**Data:** {attrs['dataset']} (SHA-256: {files}). **Networks:** {count} of each kind, seeds "
        f"{seeds_of(results)}, {steps} neurons ablated one after another. **Run on** {attrs['device']}, "
        f"{attrs['created'][:10]}; {versions}."
    )


def find(verdicts: list[Verdict]) -> dict[tuple[str, str, str], Verdict]:
    return {(v.claim, v.network, v.protocol): v for v in verdicts}


def verdict_table(verdicts: list[Verdict]) -> str:
    found = find(verdicts)
    networks = list(dict.fromkeys(v.network for v in verdicts))
    lines = [
        "| claim | network | under the paper's formulas | under the published protocol |",
        "| --- | --- | --- | --- |",
    ]
    for claim, (text, _) in CLAIMS.items():
        for network in networks:
            if (claim, network, SHOWN[0]) in found:
                cells = []
                for protocol in SHOWN:
                    verdict = found[claim, network, protocol]
                    holding = sum(effect.verdict == HOLDS for effect in verdict.effects)
                    cells.append(f"{verdict.verdict} ({holding} of {len(verdict.effects)})")
                name = f"**{claim}** {text}" if network == networks[0] or claim == "C5" else ""
                lines.append(f"| {name} | {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beliefs(verdicts: list[Verdict]) -> str:
    """For each claim: believe it or not, under the paper's own formulas, and its weakest comparison."""
    words = {HOLDS: "Yes", FAILS: "No", UNDECIDED: "Open"}
    lines = []
    for claim, text in BELIEVE.items():
        judged = [v for v in verdicts if v.claim == claim and v.protocol == "paper"]
        if not judged:
            continue
        said = {v.verdict for v in judged}
        head = words[said.pop()] if len(said) == 1 else ", ".join(f"{v.network}: {words[v.verdict]}" for v in judged)
        effects = [(v.network, effect) for v in judged for effect in v.effects]
        counts = {verdict: sum(effect.verdict == verdict for _, effect in effects) for verdict in words}
        small = sum(
            effect.verdict == UNDECIDED and effect.unit == POINTS and max(-effect.low, effect.high) < CLOSE
            for _, effect in effects
        )
        network, least = min(effects, key=lambda pair: pair[1].mean)
        undecided = f"{counts[UNDECIDED]} undecided"
        if small:
            undecided += f" ({small} of them within {CLOSE} points of no difference, interval and all)"
        lines.append(
            f"- **{claim}. {text}** {head}. Of {len(effects)} comparisons {counts[HOLDS]} hold, {counts[FAILS]} are "
            f"refuted, {undecided}; the weakest: {network}, {least.label}, {number(least)}."
        )
    return "\n".join(lines)


def number(effect: Effect) -> str:
    unit = {"accuracy points": "points", "nat": "nats"}[effect.unit]
    return f"{effect.mean:+.2f} {unit} [{effect.low:+.2f}, {effect.high:+.2f}]"


def reasons(verdicts: list[Verdict]) -> str:
    """Which departure carries each comparison that the two protocols judge differently."""
    flips = ja.claims.explain_changes(verdicts)
    if not flips:
        return "The two protocols agree on every claim."
    claims = [claim for claim in CLAIMS if any(flip.claim == claim for flip in flips)]
    lines = [
        f"The two protocols judge {len(claims)} claims differently for at least one kind of network "
        f"({', '.join(claims)}), through {len(flips)} comparisons.",
    ]
    names = [name for name in SETS["each"][1:-1] if name in flips[0].means]
    if names:
        lines[0] += (
            " Each departure of the published code was turned on alone, on the same networks. The one that comes "
            "nearest to the published effect carries it, if it goes at least half the way. NaN scores act through "
            "their ranking, so these two were also turned on together."
        )
        lines += [
            "",
            "| departure | what the published code does | comparisons that it carries |",
            "| --- | --- | --- |",
        ]
        for name in names:
            meaning = DEPARTURES.get(name, "these two together").replace("|", "\\|")
            lines.append(f"| `{name}` | {meaning} | {sum(flip.cause == name for flip in flips)} |")
    if any(flip.cause for flip in flips):
        lines += [
            "",
            "![Mean effect under each departure alone; in brackets the one that carries it](findings/departures.png)",
        ]
    lines += [
        "",
        "| comparison judged differently | paper | published | paired difference | carried by | of the way |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for flip in flips:
        own, theirs = (f"{flip.means[name]:+.2f}, {flip.verdicts[name]}" for name in SHOWN)
        difference, low, high = flip.difference
        carrier = f"`{flip.cause}`" if flip.cause else "none alone" if flip.differs else "no difference shown"
        share = "" if flip.share is None else f"{flip.share:.0%}"
        lines.append(
            f"| {flip.claim}, {flip.network}: {flip.label} | {own} | {theirs} | "
            f"{difference:+.2f} [{low:+.2f}, {high:+.2f}] | {carrier} | {share} |"
        )
    return "\n".join(lines)


def layer_analysis(results: xr.DataTree) -> str:
    """Where whole-network rankings take their neurons from, and what scores say of the damage of one neuron."""
    lines = [
        "A whole-network ranking, low values first, ablates what the score ranks lowest, wherever that is. Under the "
        "paper's formulas those are mostly neurons that never change their code; where NaN ranks as the largest value, "
        "these go last, and neurons at work go in their place.",
        "",
    ]
    for name in ja.results.select_protocol(results, "paper").children:
        for protocol in SHOWN:
            network = ja.results.select_protocol(results, protocol)[name].to_dataset()
            last = ja.layer_analysis.layer_shares(network).isel(rank=-1)
            silent = (network["joint_counts"].sum("class") == 0).any("code")
            parts = []
            for metric in map(str, network["score"].values):
                share = 100 * float(last.sel(ordering=f"{metric}_low", layer=1).mean())
                chosen = network["ablated"].sel(scope="network", ordering=f"{metric}_low").values
                unused = 100 * np.take_along_axis(silent.values, chosen, axis=1).mean()
                parts.append(f"{metric.replace('_', ' ')} {share:.0f} % and {unused:.0f} %")
            lines.append(
                f"- **{name}, {protocol}.** Of the first {int(last['rank'])} neurons, the share that lies in layer 1 "
                f"and the share that never changes its code: {'; '.join(parts)}."
            )
        lines += ["", f"  ![Share of each layer among the ablated neurons](findings/layer_shares_{name}.png)", ""]
    lines += [
        "Ablating one neuron alone, bias balanced, changes little, so that the test set's own noise weakens every "
        "correlation of a score with that damage: a value near 0 says little where the damage is a few images.",
        "",
    ]
    for name, node in ja.results.select_protocol(results, "paper").children.items():
        network = node.to_dataset()
        damage = np.abs(lost_predictions(network))
        layers = network["layer"].values
        typical = [f"layer {layer} {np.median(damage[:, layers == layer]):.0f}" for layer in np.unique(layers)]
        correlations = ja.layer_analysis.damage_correlations(network).sel(scope="network")
        correlation, low, high = ja.layer_analysis.mean_and_interval(correlations)
        across = [
            f"{str(metric).replace('_', ' ')} {float(correlation.sel(score=metric)):+.2f} "
            f"[{float(low.sel(score=metric)):+.2f}, {float(high.sel(score=metric)):+.2f}]"
            for metric in network["score"].values
        ]
        lines.append(
            f"- **{name}.** Median absolute change of correct predictions, of {network.attrs['num_test_examples']}: "
            f"{', '.join(typical)}. Spearman correlation of score and damage across layers: {', '.join(across)}."
        )
    lines += ["", "![Correlation of every score with the damage of ablating a neuron alone](findings/correlations.png)"]
    return "\n".join(lines)


def opened(path: Path) -> xr.Dataset:
    if not path.is_file():
        raise ja.InputError(f"{path}: expected the file that `python scripts/scores.py` writes, got none")
    return xr.load_dataset(path, engine="h5netcdf")


def quantizers(run: Path, names: list[str], pictures: Path) -> str:
    """Whether the direction that costs less is the same under every quantizer."""
    counts = dict.fromkeys(("kept", "open", "reversed"), 0)
    rows, shown = [], []
    sweeps = {name: opened(run / f"sensitivity_{name}.nc") for name in names}
    for name, found in sweeps.items():
        with atomic_path(pictures / f"quantizers_{name}.png") as temporary:
            draw_sensitivity(found, title=f"Does the result depend on the quantizer? {name} network").savefig(temporary)
        shown.append(f"![Ranks and curves under each quantizer, {name}](findings/quantizers_{name}.png)")
        gap = (found["auc"].sel(direction="low") - found["auc"].sel(direction="high")).rename(network="seed")
        ranks = found["rank_correlation"].rename(network="seed")
        for scope, metric in itertools.product(found["scope"].values, found["score"].values):
            one = {"scope": scope, "score": metric}
            # codes of equal frequency have the same entropy in every neuron: nothing to rank by
            comparable = [
                i for i, q in enumerate(found["quantizer"].values) if metric != "entropy" or "quantile" not in str(q)
            ]
            mean, low, high = (of.values for of in ja.layer_analysis.mean_and_interval(gap.sel(one)[:, comparable]))
            sign = np.sign(mean) * ((low > 0) | (high < 0))
            if sign[0] == 0:
                said = "none to keep"
            else:
                said = "reversed" if (sign == -sign[0]).any() else "kept" if (sign == sign[0]).all() else "open"
                counts[said] += 1
            others = mean[1:]
            lowest = float(ranks.sel(one)[:, comparable].mean("seed").min())
            shown_by_first = f"{mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}]"
            rows.append(
                f"| {name} | {scope} | {str(metric).replace('_', ' ')} | {shown_by_first} | {others.min():+.2f} to "
                f"{others.max():+.2f} | {said} | {lowest:+.2f} |"
            )
    first = sweeps[names[0]]
    labels = ", ".join(map(str, first["quantizer"].values[1:]))
    text = (
        f"The neurons of {first.sizes['network']} networks of each kind were ranked and ablated (bias balanced) under "
        f"{first.sizes['quantizer']} quantizers: does the neuron fire, which is what the claims above rest on, and "
        f"{labels}. The table has the AUC with low values first less that with high values first, in accuracy points, "
        f"mean and 95 % interval over the networks. Of the {sum(counts.values())} differences that the first quantizer "
        f"shows (its interval leaves out 0), {counts['kept']} are there under every other one, {counts['open']} are "
        f"not shown by all, and {counts['reversed']} are reversed by at least one. Entropy is left out where codes are "
        "equally frequent by construction. The last column is the lowest mean rank correlation of the scores with "
        "those of the first quantizer."
    )
    head = [
        "| network | scope | score | does it fire? | other quantizers | direction | lowest rank correlation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n\n".join([text, *shown, "\n".join([*head, *rows])])


def pairs(run: Path, names: list[str], pictures: Path) -> str:
    """Spearman's correlation of what pairs share with the super-additivity of their damage."""
    tests = {
        (name, fill): opened(run / f"pairs_{fill}_{name}.nc") for name in names for fill in ("mean", "zero")
    }  # fmt: skip
    rows, smallest, shown = [], [], []
    for name in names:
        with atomic_path(pictures / f"pairs_{name}.png") as temporary:
            shutil.copyfile(run / f"pairs_{name}.png", temporary)
        shown.append(f"![What pairs of the last layer tell of the class, {name}](findings/pairs_{name}.png)")
        for fill in ("mean", "zero"):
            found = tests[name, fill]
            mean, low, high = ja.layer_analysis.mean_and_interval(found["correlation"].rename(network="seed"))
            significant = (found["p_value"] < 0.05).sum("network")
            for scope in found["scope"].values:
                cells = [
                    f"{float(mean.sel(of)):+.2f} [{float(low.sel(of)):+.2f}, {float(high.sel(of)):+.2f}] "
                    f"({int(significant.sel(of))} of {found.sizes['network']})"
                    for of in ({"scope": scope, "quantity": quantity} for quantity in found["quantity"].values)
                ]
                rows.append(f"| {name} | {scope} | {fill} | {' | '.join(cells)} |")
            smallest.append((fill, float(mean.sel(quantity="co_information").min())))
    weakest = {fill: min(value for of, value in smallest if of == fill) for fill in ("mean", "zero")}
    text = (
        "The paper infers redundancy from curves. Here it is measured: of every pair of neurons of a layer, what the "
        "two codes tell of the class (redundancy and synergy of the minimum-MI decomposition, and co-information, "
        "their difference), beside the super-additivity of the damage, that is by how much more the loss rises without "
        f"both than without each, added up (loss on {tests[names[0], 'mean'].attrs['num_test_examples']} test images). "
        "The table has Spearman's correlation of the two over the pairs of a layer, mean and 95 % interval over "
        "networks, and in brackets in how many of them a Mantel test finds p < 0.05. The weakest mean correlation with "
        f"co-information is {weakest['mean']:+.2f} where the mean stands in for ablated neurons, "
        f"{weakest['zero']:+.2f} where zero does."
    )
    head = [
        "| network | layer | fill | redundancy | synergy | co-information |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n\n".join([text, "\n".join([*head, *rows]), *shown])


def replication(verdicts: list[Verdict], others: list[Verdict], again: xr.DataTree) -> str:
    """How far another run's means lie within this run's intervals, and whether the verdicts are the same."""
    second = {(v.protocol, v.network, v.claim): v for v in others}
    pairs = [(v, second[key]) for v in verdicts if (key := (v.protocol, v.network, v.claim)) in second]
    effects = [both for one, other in pairs for both in zip(one.effects, other.effects, strict=True)]
    inside = sum(one.low <= other.mean <= one.high for one, other in effects)
    apart = sum(one.low > other.high or one.high < other.low for one, other in effects)
    opposed = sum({one.verdict, other.verdict} == {HOLDS, FAILS} for one, other in effects)
    changed = [
        f"{one.claim} {one.network} under {one.protocol} ({one.verdict}, then {other.verdict})"
        for one, other in pairs
        if one.verdict != other.verdict
    ]
    # both means vary: their difference over its standard error follows Student's t (by the first run's spread)
    n, m = verdicts[0].num_networks, others[0].num_networks
    expected = 2 * stats.t.cdf(stats.t.ppf(0.975, n - 1) / (1 + n / m) ** 0.5, n - 1) - 1
    return (
        f"A second run on {others[0].num_networks} networks of each kind, seeds {seeds_of(again)}. Of {len(effects)} "
        f"mean effects {inside} ({inside / len(effects):.0%}) lie inside the first run's 95 % interval; since both "
        f"means vary, {expected:.0%} are to be expected. {apart} pairs of intervals do not overlap; {opposed} "
        f"comparisons are decided the other way. Of {len(pairs)} verdicts {len(pairs) - len(changed)} are the same"
        + (f"; different: {'; '.join(changed)}." if changed else ".")
    )


def effect_table(verdicts: list[Verdict]) -> str:
    found = find(verdicts)
    lines = ["| claim | network | comparison | paper | published |", "| --- | --- | --- | --- | --- |"]
    for (claim, network, protocol), verdict in found.items():
        if protocol == SHOWN[0]:
            for own, theirs in zip(verdict.effects, found[claim, network, SHOWN[1]].effects, strict=True):
                cells = " | ".join(f"{number(effect)}, {effect.verdict}" for effect in (own, theirs))
                lines.append(f"| {claim} | {network} | {own.label} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
