"""Write docs/findings.md and its pictures from saved results, never by hand.

`python scripts/findings.py RESULTS [--again REPLICATION] [--scores RUN] [--out docs]`: RESULTS come from
`jaxablate reproduce --protocol each`. REPLICATION comes from a run with other seeds and shows how far the numbers
replicate. RUN is the folder in which `scripts/scores.py` studied quantizers and pairs.
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

COMPARED = SETS["both"]
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
"""Each claim in a reader's words; the verdicts decide whether to believe it."""
METHOD = """A claim holds if every comparison behind it holds (in brackets: how many do). It does not hold if one
comparison is refuted; otherwise it is undecided. A comparison is a difference of AUC (the mean accuracy
over all steps except the intact network's, in accuracy points) or of mean scores (nats), paired within
each network. A two-sided t-test at 5% decides it, corrected by Holm's method over all comparisons of a
protocol. The intervals are 95% t-intervals of the mean over networks. They are not corrected: an
interval that excludes 0 may belong to an undecided comparison. `jaxablate reproduce` also writes
bootstrap intervals and the value of every network. The paper gives no numbers for falling strongly,
staying flat and costing little. Here these mean more than 3, less than 1 and less than 2 points on
average over the steps.

The names of comparisons use these words. "A over B" is A minus B, and a positive number supports the claim. LVF
ablates neurons with low values of a score first, and HVF neurons with high values first. The better direction is
the one of LVF and HVF with the larger mean AUC. "Balanced" means bias balancing, and "zeros" that ablated neurons
output 0.

The published protocol computes what the code behind the published figures computes, in the six points below. A
seventh point is left out: that code averages accuracy over batches, and the last batch is smaller. Under the
published protocol, means of scores omit neurons whose score is NaN, and "mutual information" is H(T) + H(T|Y)."""
CLOSE = 0.25
"""If the whole interval of an undecided effect lies within this many accuracy points, the page says so."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/findings.md from saved results.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--again", type=Path, help="results of a run with other seeds")
    parser.add_argument("--scores", type=Path, help="folder written by scripts/scores.py")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="output folder; default: %(default)s")
    arguments = parser.parse_args()
    try:
        results = load_checked(arguments.results)
        again = load_checked(arguments.again) if arguments.again else None
        print(write_findings(results, again, arguments.scores, arguments.out))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def load_checked(path: Path) -> xr.DataTree:
    """Load results of both protocols with all scores and several networks; raise `InputError` for anything less."""
    results = ja.results.load_results(path)
    protocols, config = ja.results.protocols_of(results), json.loads(results.attrs["config"])
    all_scores = set(config["scores"]) == set(ja.metrics.METRICS)
    if not set(COMPARED) <= set(protocols) or len(config["seeds"]) < 2 or not all_scores:
        raise ja.InputError(
            f"results file {path}: expected the protocols paper and published, all scores and at least two seeds, got "
            f"{', '.join(protocols)}, {', '.join(config['scores'])} and {len(config['seeds'])}; `jaxablate reproduce "
            "--seeds 20 --protocol each` writes them"
        )
    return results


def write_findings(results: xr.DataTree, again: xr.DataTree | None, scores: Path | None, folder: Path) -> Path:
    """Write the page, and its pictures into the subfolder `findings`; return the path of the page."""
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
        "## What to believe",
        beliefs(verdicts),
        "## Where the published protocol differs, and why",
        reasons(verdicts),
        "## Which neurons whole-network rankings ablate",
        layer_analysis(results),
    ]
    if scores is not None:
        names = list(ja.results.select_protocol(results, "paper").children)
        parts += ["## Does the result depend on the quantizer?", quantizers(scores, names, folder / "findings")]
        parts += [
            "## Can neurons that share information replace each other?",
            pairs(scores, names, folder / "findings"),
        ]
    if again is not None:
        parts += ["## Replication with other networks", replication(verdicts, ja.judge_claims(again), again)]
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
    by_key = find(verdicts)
    networks = list(dict.fromkeys(v.network for v in verdicts))
    lines = [
        "| claim | network | under the paper's formulas | under the published protocol |",
        "| --- | --- | --- | --- |",
    ]
    for claim, (text, _) in CLAIMS.items():
        for network in networks:
            if (claim, network, COMPARED[0]) in by_key:
                cells = []
                for protocol in COMPARED:
                    verdict = by_key[claim, network, protocol]
                    holding = sum(effect.verdict == HOLDS for effect in verdict.effects)
                    cells.append(f"{verdict.verdict} ({holding} of {len(verdict.effects)})")
                name = f"**{claim}** {text}" if network == networks[0] or claim == "C5" else ""
                lines.append(f"| {name} | {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beliefs(verdicts: list[Verdict]) -> str:
    """State for each claim whether to believe it under the paper's formulas, and its weakest comparison."""
    words = {HOLDS: "Yes", FAILS: "No", UNDECIDED: "Open"}
    lines = []
    for claim, text in BELIEVE.items():
        judged = [v for v in verdicts if v.claim == claim and v.protocol == "paper"]
        if not judged:
            continue
        distinct = {v.verdict for v in judged}
        head = (
            words[distinct.pop()]
            if len(distinct) == 1
            else ", ".join(f"{v.network}: {words[v.verdict]}" for v in judged)
        )
        effects = [(v.network, effect) for v in judged for effect in v.effects]
        counts = {verdict: sum(effect.verdict == verdict for _, effect in effects) for verdict in words}
        small = sum(
            effect.verdict == UNDECIDED and effect.unit == POINTS and max(-effect.low, effect.high) < CLOSE
            for _, effect in effects
        )
        network, least = min(effects, key=lambda pair: pair[1].mean)
        undecided = f"{counts[UNDECIDED]} undecided"
        if small:
            undecided += f" ({small} of them with the whole interval within {CLOSE} points of 0)"
        lines.append(
            f"- **{claim}. {text}** {head}. Of {len(effects)} comparisons {counts[HOLDS]} hold, {counts[FAILS]} are "
            f"refuted, {undecided}; the weakest: {network}, {least.label}, {number(least)}."
        )
    return "\n".join(lines)


def number(effect: Effect) -> str:
    unit = {"accuracy points": "points", "nat": "nats"}[effect.unit]
    return f"{effect.mean:+.2f} {unit} [{effect.low:+.2f}, {effect.high:+.2f}]"


def reasons(verdicts: list[Verdict]) -> str:
    """Name the departure that explains each comparison on which the two protocols disagree."""
    changes = ja.claims.explain_changes(verdicts)
    if not changes:
        return "The two protocols agree on every claim."
    claims = [claim for claim in CLAIMS if any(change.claim == claim for change in changes)]
    lines = [
        f"The two protocols disagree on {len(claims)} claims for at least one kind of network "
        f"({', '.join(claims)}), in {len(changes)} comparisons.",
    ]
    names = [name for name in SETS["each"][1:-1] if name in changes[0].means]
    if names:
        lines[0] += (
            " Each departure of the published code was turned on alone, on the same networks. The departure whose "
            "effect lies nearest to the published effect explains the comparison, if it covers at least half of the "
            "difference. NaN scores act through their ranking, so these two departures were also turned on together."
        )
        lines += [
            "",
            "| departure | what the published code does | comparisons that it explains |",
            "| --- | --- | --- |",
        ]
        for name in names:
            meaning = DEPARTURES.get(name, "both departures together").replace("|", "\\|")
            lines.append(f"| `{name}` | {meaning} | {sum(change.cause == name for change in changes)} |")
    if any(change.cause for change in changes):
        lines += [
            "",
            "![Mean effect under each departure alone; in brackets the departure that explains the "
            "comparison](findings/departures.png)",
        ]
    lines += [
        "",
        "| comparison | paper | published | paired difference | explained by | share of the difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for change in changes:
        paper, published = (f"{change.means[name]:+.2f}, {change.verdicts[name]}" for name in COMPARED)
        difference, low, high = change.difference
        cause = f"`{change.cause}`" if change.cause else "none alone" if change.differs else "no difference shown"
        share = "" if change.explained is None else f"{change.explained:.0%}"
        lines.append(
            f"| {change.claim}, {change.network}: {change.label} | {paper} | {published} | "
            f"{difference:+.2f} [{low:+.2f}, {high:+.2f}] | {cause} | {share} |"
        )
    return "\n".join(lines)


def layer_analysis(results: xr.DataTree) -> str:
    """Describe which neurons whole-network rankings ablate, and how scores correlate with single-neuron damage."""
    lines = [
        "A whole-network ranking, low values first, ablates the neurons with the lowest scores in any layer. Under the "
        "paper's formulas most of them are neurons whose code never changes. If NaN ranks as the largest value, these "
        "neurons come last, and active neurons are ablated instead.",
        "",
    ]
    for name in ja.results.select_protocol(results, "paper").children:
        for protocol in COMPARED:
            network = ja.results.select_protocol(results, protocol)[name].to_dataset()
            last = ja.layer_analysis.layer_shares(network).isel(rank=-1)
            silent = (network["joint_counts"].sum("class") == 0).any("code")
            parts = []
            for metric in map(str, network["score"].values):
                share = 100 * float(last.sel(ordering=f"{metric}_low", layer=1).mean())
                chosen = network["ablated"].sel(scope="network", ordering=f"{metric}_low").values
                unused = 100 * np.take_along_axis(silent.values, chosen, axis=1).mean()
                parts.append(f"{metric.replace('_', ' ')} {share:.0f}% and {unused:.0f}%")
            lines.append(
                f"- **{name}, {protocol}.** Fraction of the first {int(last['rank'])} neurons that are in layer 1, and "
                f"fraction whose code never changes: {'; '.join(parts)}."
            )
        lines += ["", f"  ![Share of each layer among the ablated neurons](findings/layer_shares_{name}.png)", ""]
    lines += [
        "If one neuron is replaced by its mean, few predictions change. The noise of the test set then weakens every "
        "correlation of a score with this damage. If the damage is a few images, a correlation near 0 proves little.",
        "",
    ]
    for name, node in ja.results.select_protocol(results, "paper").children.items():
        network = node.to_dataset()
        damage = np.abs(lost_predictions(network))
        layers = network["layer"].values
        typical = [f"{np.median(damage[:, layers == layer]):.0f} in layer {layer}" for layer in np.unique(layers)]
        correlations = ja.layer_analysis.damage_correlations(network).sel(scope="network")
        correlation, low, high = ja.layer_analysis.mean_and_interval(correlations)
        across = [
            f"{str(metric).replace('_', ' ')} {float(correlation.sel(score=metric)):+.2f} "
            f"[{float(low.sel(score=metric)):+.2f}, {float(high.sel(score=metric)):+.2f}]"
            for metric in network["score"].values
        ]
        lines.append(
            f"- **{name}.** Median absolute change of the number of correct predictions: {', '.join(typical)}, out of "
            f"{network.attrs['num_test_examples']} predictions. Spearman correlation of score and damage across "
            f"layers: {', '.join(across)}."
        )
    lines += [
        "",
        "![Correlation of every score with the damage of ablating a single neuron](findings/correlations.png)",
    ]
    return "\n".join(lines)


def open_dataset(path: Path) -> xr.Dataset:
    if not path.is_file():
        raise ja.InputError(f"{path}: expected the file that `python scripts/scores.py` writes, got none")
    return xr.load_dataset(path, engine="h5netcdf")


def quantizers(run: Path, names: list[str], pictures: Path) -> str:
    """Compare the direction of ablation that costs less between quantizers."""
    counts = dict.fromkeys(("kept", "open", "reversed"), 0)
    rows, figures = [], []
    sweeps = {name: open_dataset(run / f"sensitivity_{name}.nc") for name in names}
    for name, sweep in sweeps.items():
        with atomic_path(pictures / f"quantizers_{name}.png") as temporary:
            draw_sensitivity(sweep, title=f"Does the result depend on the quantizer? {name} network").savefig(temporary)
        figures.append(f"![Ranks and curves under each quantizer, {name}](findings/quantizers_{name}.png)")
        gap = (sweep["auc"].sel(direction="low") - sweep["auc"].sel(direction="high")).rename(network="seed")
        ranks = sweep["rank_correlation"].rename(network="seed")
        for scope, metric in itertools.product(sweep["scope"].values, sweep["score"].values):
            place = {"scope": scope, "score": metric}
            # equally frequent codes have the same entropy in every neuron, which ranks nothing
            comparable = [
                i for i, q in enumerate(sweep["quantizer"].values) if metric != "entropy" or "quantile" not in str(q)
            ]
            interval = ja.layer_analysis.mean_and_interval(gap.sel(place)[:, comparable])
            mean, low, high = (part.values for part in interval)
            sign = np.sign(mean) * ((low > 0) | (high < 0))
            if sign[0] == 0:
                direction = "none to keep"
            else:
                direction = "reversed" if (sign == -sign[0]).any() else "kept" if (sign == sign[0]).all() else "open"
                counts[direction] += 1
            rest = mean[1:]
            lowest = float(ranks.sel(place)[:, comparable].mean("seed").min())
            shown_by_first = f"{mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}]"
            rows.append(
                f"| {name} | {scope} | {str(metric).replace('_', ' ')} | {shown_by_first} | {rest.min():+.2f} to "
                f"{rest.max():+.2f} | {direction} | {lowest:+.2f} |"
            )
    first = sweeps[names[0]]
    labels = ", ".join(map(str, first["quantizer"].values[1:]))
    text = (
        f"The neurons of {first.sizes['network']} networks of each kind were ranked and ablated (bias balanced) under "
        f"{first.sizes['quantizer']} quantizers. The first asks if the neuron fires, and the claims "
        "above rest on it; the "
        f"others are {labels}. The table shows the AUC with low values first minus the AUC with high values first, in "
        "accuracy points, as mean and 95% interval over the networks. The first quantizer shows "
        f"{sum(counts.values())} "
        f"differences (the interval excludes 0). Of these, {counts['kept']} keep their direction under every other "
        f"quantizer, {counts['open']} are not shown by all, and {counts['reversed']} are reversed by at least one. "
        "Entropy is left out if codes are equally frequent by construction. The last column is the lowest mean rank "
        "correlation with the scores of the first quantizer."
    )
    head = [
        "| network | scope | score | does it fire? | other quantizers | direction | lowest rank correlation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n\n".join([text, *figures, "\n".join([*head, *rows])])


def pairs(run: Path, names: list[str], pictures: Path) -> str:
    """Report Spearman's correlation of the information that pairs share with the super-additivity of their damage."""
    tests = {
        (name, fill): open_dataset(run / f"pairs_{fill}_{name}.nc") for name in names for fill in ("mean", "zero")
    }  # fmt: skip
    rows, smallest, figures = [], [], []
    for name in names:
        with atomic_path(pictures / f"pairs_{name}.png") as temporary:
            shutil.copyfile(run / f"pairs_{name}.png", temporary)
        figures.append(f"![Information of pairs of the last layer about the class, {name}](findings/pairs_{name}.png)")
        for fill in ("mean", "zero"):
            test = tests[name, fill]
            mean, low, high = ja.layer_analysis.mean_and_interval(test["correlation"].rename(network="seed"))
            significant = (test["p_value"] < 0.05).sum("network")
            for scope in test["scope"].values:
                cells = [
                    f"{float(mean.sel(cell)):+.2f} [{float(low.sel(cell)):+.2f}, {float(high.sel(cell)):+.2f}] "
                    f"({int(significant.sel(cell))} of {test.sizes['network']})"
                    for cell in ({"scope": scope, "quantity": quantity} for quantity in test["quantity"].values)
                ]
                rows.append(f"| {name} | {scope} | {fill} | {' | '.join(cells)} |")
            smallest.append((fill, float(mean.sel(quantity="co_information").min())))
    weakest = {fill: min(value for fill_name, value in smallest if fill_name == fill) for fill in ("mean", "zero")}
    text = (
        "The paper infers redundancy from curves. Here it is measured. The information that the two "
        "codes of a pair carry "
        "about the class is split into redundancy and synergy of the minimum-MI decomposition, and "
        "co-information, their "
        "difference. The damage of a pair is super-additive if the loss without both neurons rises "
        "by more than the two "
        "single rises together (loss on "
        f"{tests[names[0], 'mean'].attrs['num_test_examples']} test images). The table shows Spearman's correlation of "
        "shared information and super-additivity over the pairs of a layer, as mean and 95% interval over networks. In "
        "brackets: in how many networks a Mantel test gives p < 0.05. The lowest mean correlation "
        "with co-information is "
        f"{weakest['mean']:+.2f} if ablated neurons output their mean and {weakest['zero']:+.2f} if they output zero."
    )
    head = [
        "| network | layer | fill | redundancy | synergy | co-information |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n\n".join([text, "\n".join([*head, *rows]), *figures])


def replication(verdicts: list[Verdict], replicated: list[Verdict], again: xr.DataTree) -> str:
    """Compare the verdicts with a second run's verdicts, and its means with this run's intervals."""
    second = {(v.protocol, v.network, v.claim): v for v in replicated}
    pairs = [(v, second[key]) for v in verdicts if (key := (v.protocol, v.network, v.claim)) in second]
    effects = [pair for old, new in pairs for pair in zip(old.effects, new.effects, strict=True)]
    inside = sum(old.low <= new.mean <= old.high for old, new in effects)
    apart = sum(old.low > new.high or old.high < new.low for old, new in effects)
    opposed = sum({old.verdict, new.verdict} == {HOLDS, FAILS} for old, new in effects)
    changed = [
        f"{old.claim} {old.network} under {old.protocol} ({old.verdict}, then {new.verdict})"
        for old, new in pairs
        if old.verdict != new.verdict
    ]
    # both means vary: their difference over its standard error follows Student's t (by the first run's spread)
    n, m = verdicts[0].num_networks, replicated[0].num_networks
    expected = 2 * stats.t.cdf(stats.t.ppf(0.975, n - 1) / (1 + n / m) ** 0.5, n - 1) - 1
    return (
        f"A second run on {replicated[0].num_networks} networks of each kind, seeds "
        f"{seeds_of(again)}. Of {len(effects)} "
        f"mean effects {inside} ({inside / len(effects):.0%}) lie inside the first run's 95% interval; because both "
        f"means vary, {expected:.0%} are expected. {apart} pairs of intervals do not overlap; {opposed} "
        f"comparisons are decided the other way. Of {len(pairs)} verdicts {len(pairs) - len(changed)} are the same"
        + (f"; different: {'; '.join(changed)}." if changed else ".")
    )


def effect_table(verdicts: list[Verdict]) -> str:
    by_key = find(verdicts)
    lines = ["| claim | network | comparison | paper | published |", "| --- | --- | --- | --- | --- |"]
    for (claim, network, protocol), verdict in by_key.items():
        if protocol == COMPARED[0]:
            for paper, published in zip(verdict.effects, by_key[claim, network, COMPARED[1]].effects, strict=True):
                cells = " | ".join(f"{number(effect)}, {effect.verdict}" for effect in (paper, published))
                lines.append(f"| {claim} | {network} | {paper.label} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
