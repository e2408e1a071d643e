"""Write docs/findings.md and its pictures from saved results, never by hand.

`python scripts/findings.py RESULTS [--again OTHER] [--out docs]`: RESULTS come from `jaxablate reproduce --protocol
each`, OTHER from a run with other seeds, to see whether the numbers come out again.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import NormalDist

import xarray as xr

import jaxablate as ja
from jaxablate.claims import CLAIMS, FAILS, HOLDS, UNDECIDED, Effect, Verdict
from jaxablate.figures import save_finding_figures
from jaxablate.protocols import DEPARTURES

SHOWN = ("paper", "published")
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
    "C10": "Removing 80 random neurons of the whole network costs less than 2 points on average over the steps.",
}
"""What each claim says to a reader; the verdicts decide whether to believe it."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/findings.md from saved results.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--again", type=Path, help="results of a run with other seeds")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        results = ja.load_results(arguments.results)
        again = ja.load_results(arguments.again) if arguments.again else None
        print(write_findings(results, again, arguments.out))
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


def write_findings(results: xr.DataTree, again: xr.DataTree | None, folder: Path) -> Path:
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
        "A claim holds where every comparison behind it does (in brackets: how many), does not hold where one is "
        "refuted, and is undecided otherwise. A comparison is a difference of AUC (mean accuracy over steps 1 to the "
        "last, in accuracy points) or of mean scores (nats), paired within each network; it is decided by a two-sided "
        "t-test at 5 %, corrected by Holm's method over all comparisons of a protocol. Intervals are 95 % t-intervals "
        "of the mean over networks; `claims.json` has bootstrap intervals beside them. The paper gives no numbers for "
        "falling strongly, staying flat and costing little: here more than 3, less than 1 and less than 2 points.",
        "![Every comparison with its interval](findings/claims.png)",
        "## What to believe now",
        beliefs(verdicts),
        "## Why the published figures say otherwise",
        reasons(verdicts),
        "## What stands behind the whole-network rankings",
        mechanism(results),
    ]
    if again is not None:
        parts += ["## The same again, with other networks", replication(verdicts, ja.judge_claims(again), again)]
    parts += ["## Every comparison", effect_table(verdicts)]
    path = folder / "findings.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def seeds_of(results: xr.DataTree) -> str:
    seeds = json.loads(results.attrs["config"])["seeds"]
    return f"{seeds[0]} to {seeds[-1]}"


def provenance(results: xr.DataTree, verdicts: list[Verdict]) -> str:
    attrs = results.attrs
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(attrs["versions"]).items())
    files = "; ".join(f"`{name}` {digest[:16]}..." for name, digest in json.loads(attrs["dataset_sha256"]).items())
    count = verdicts[0].num_networks
    return (
        f"**Data:** {attrs['dataset']} (SHA-256: {files}). **Networks:** {count} of each kind, seeds "
        f"{seeds_of(results)}, trained as the paper says. **Run on** {attrs['device']}, {attrs['created'][:10]}; "
        f"{versions}."
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
    """For each claim: believe it or not, under the paper's own formulas, and what speaks most against it."""
    words = {HOLDS: "Yes", FAILS: "No", UNDECIDED: "Open"}
    lines = []
    for claim, text in BELIEVE.items():
        judged = [v for v in verdicts if v.claim == claim and v.protocol == "paper"]
        said = {v.verdict for v in judged}
        head = words[said.pop()] if len(said) == 1 else ", ".join(f"{v.network}: {words[v.verdict]}" for v in judged)
        effects = [(v.network, effect) for v in judged for effect in v.effects]
        holding, refuted = (sum(effect.verdict == verdict for _, effect in effects) for verdict in (HOLDS, FAILS))
        network, least = min(effects, key=lambda pair: pair[1].mean)
        lines.append(
            f"- **{claim}. {text}** {head}. Of {len(effects)} comparisons {holding} hold and {refuted} are refuted; "
            f"the one most against it: {network}, {least.label}, {number(least)}."
        )
    return "\n".join(lines)


def number(effect: Effect) -> str:
    unit = {"accuracy points": "points", "nat": "nats"}[effect.unit]
    return f"{effect.mean:+.2f} {unit} [{effect.low:+.2f}, {effect.high:+.2f}]"


def reasons(verdicts: list[Verdict]) -> str:
    """Which departure carries each comparison that the two protocols judge differently."""
    flips = ja.explain_flips(verdicts)
    claims = list(dict.fromkeys(f"{flip.claim} ({flip.network})" for flip in flips))
    lines = [
        f"The published code departs from the paper's formulas in {len(DEPARTURES)} points. They change the verdict of "
        f"{len(claims)} claims, {', '.join(claims)}, through {len(flips)} comparisons. Each point was turned on alone; "
        "the one that comes nearest to the published effect carries it (none does where the two effects do not differ, "
        "by the interval of their paired difference). NaN scores act through their ranking, so these two were also "
        "turned on together.",
        "",
        "| departure | what the published code does | comparisons that it carries |",
        "| --- | --- | --- |",
    ]
    for name in (*DEPARTURES, "nan_logs+nan_largest"):
        carried = sum(flip.carrier == name for flip in flips)
        meaning = DEPARTURES.get(name, "these two together").replace("|", "\\|")
        lines.append(f"| `{name}` | {meaning} | {carried} |")
    lines += [
        "",
        "![Mean effect under each departure alone; in brackets the one that carries it](findings/departures.png)",
        "",
        "| comparison that flips | paper | published | carried by | of the way |",
        "| --- | --- | --- | --- | --- |",
    ]
    for flip in flips:
        own, theirs = (f"{flip.means[name]:+.2f}, {flip.verdicts[name]}" for name in SHOWN)
        carrier = "they do not differ" if flip.carrier is None else f"`{flip.carrier}`"
        share = "" if flip.share is None else f"{flip.share:.0%}"
        lines.append(f"| {flip.claim}, {flip.network}: {flip.label} | {own} | {theirs} | {carrier} | {share} |")
    return "\n".join(lines)


def mechanism(results: xr.DataTree) -> str:
    lines = []
    for name, node in ja.select_protocol(results, "paper").children.items():
        network = node.to_dataset()
        last = ja.layer_shares(network).isel(rank=-1)
        shares = [
            f"{metric.replace('_', ' ')} {100 * float(last.sel(ordering=f'{metric}_low', layer=1).mean()):.0f} %"
            for metric in network["metric"].values
        ]
        correlation, low, high = ja.mean_and_interval(ja.damage_correlations(network).sel(scope="network"))
        across = [
            f"{str(metric).replace('_', ' ')} {float(correlation.sel(metric=metric)):+.2f} "
            f"[{float(low.sel(metric=metric)):+.2f}, {float(high.sel(metric=metric)):+.2f}]"
            for metric in network["metric"].values
        ]
        lines.append(
            f"- **{name} network.** Of the first {int(last['rank'])} neurons, low values first, layer 1 has: "
            f"{', '.join(shares)}. Spearman correlation with the damage of ablating a neuron alone, across layers: "
            f"{', '.join(across)}."
        )
        lines.append("")
        lines.append(f"  ![Share of each layer among the ablated neurons](findings/layer_shares_{name}.png)")
        lines.append("")
    lines.append(
        "![Correlation of every score with the damage of ablating the neuron alone](findings/correlations.png)"
    )
    return "\n".join(lines)


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
    # both means vary: of normal means of n and m networks, the second is inside with P(|Z| < 1.96 / sqrt(1 + n / m))
    ratio = verdicts[0].num_networks / others[0].num_networks
    expected = 2 * NormalDist().cdf(1.96 / (1 + ratio) ** 0.5) - 1
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
