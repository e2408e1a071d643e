"""Claims: results of many networks come in; effects with intervals, and verdicts on the paper's claims, go out."""

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import xarray as xr

from jaxablate._files import atomic_path, require_writable
from jaxablate.claims._definitions import CLAIMS, POINTS, SHORT, comparisons_of
from jaxablate.claims._statistics import FAILS, HOLDS, UNDECIDED, Effect, estimate, paired_difference
from jaxablate.protocols import SETS
from jaxablate.results import CONFIDENCE, protocols_of, select_protocol

__all__ = [
    "CLAIMS",
    "FAILS",
    "HOLDS",
    "POINTS",
    "SHORT",
    "UNDECIDED",
    "Effect",
    "Verdict",
    "VerdictChange",
    "explain_changes",
    "judge_claims",
    "save_claims",
]


@dataclass(frozen=True)
class Verdict:
    """A claim for one kind of network under one protocol.

    Attributes:
        protocol, network, claim: what is judged.
        text: the claim in words.
        verdict: "holds" if every effect does, "does not hold" if one does not, else "undecided".
        num_networks: independently trained networks that it rests on.
        effects: the comparisons that decide it.
    """

    protocol: str
    network: str
    claim: str
    text: str
    verdict: str
    num_networks: int
    effects: tuple[Effect, ...]


def judge_claims(results: xr.DataTree) -> list[Verdict]:
    """Decide the paper's claims for every network and protocol of the results.

    Each claim is a set of comparisons of AUC (mean accuracy over all steps but the intact network's) or of mean scores,
    paired within each network. Intervals are 95 % t-intervals of the mean over networks (and bootstrap intervals);
    verdicts follow from two-sided t-tests at 5 %, corrected by Holm's method over all comparisons of a protocol.

    Args:
        results: from `run_study` or `load_results`, best with ten or more seeds; with one, all is undecided.

    Returns:
        One `Verdict` for each protocol, network and claim that the network can speak to.

    Source: paper, sections 5 and 6.

    Example:
        >>> verdicts = ja.judge_claims(results)
        >>> verdicts[0].claim, verdicts[0].num_networks
        ('C1', 2)
    """
    verdicts = []
    for protocol in protocols_of(results):
        found = [
            (name, node.sizes["seed"], claim, comparisons)
            for name, node in select_protocol(results, protocol).children.items()
            for claim, comparisons in comparisons_of(node.to_dataset()).items()
        ]
        effects_of_all = iter(estimate([comparison for *_, comparisons in found for comparison in comparisons]))
        for name, num_networks, claim, comparisons in found:
            effects = tuple(itertools.islice(effects_of_all, len(comparisons)))
            verdict = _joined([effect.verdict for effect in effects])
            verdicts.append(Verdict(protocol, name, claim, CLAIMS[claim][0], verdict, num_networks, effects))
    return verdicts


def _joined(verdicts: Sequence[str]) -> str:
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else UNDECIDED


def save_claims(verdicts: Sequence[Verdict], results: xr.DataTree, folder: str | Path) -> list[Path]:
    """Write `claims.json` (everything, with provenance) and `claims.csv` (one row for each effect).

    The same results give the same files, byte for byte.

    Args:
        verdicts: from `judge_claims`.
        results: what they were judged on.
        folder: where the files go.

    Returns:
        The two files.

    Raises:
        InputError: for a folder that cannot be written.

    Example:
        >>> ja.claims.save_claims(ja.judge_claims(results), results, tmp_path)[0].name
        'claims.json'
    """
    require_writable(folder)
    document = {
        "format": "jaxablate claims 1",
        **{name: results.attrs[name] for name in ("dataset", "device")},
        **{name: json.loads(results.attrs[name]) for name in ("dataset_sha256", "config", "versions")},
        "confidence": CONFIDENCE,
        "verdicts": [{**asdict(v), "effects": [_row(effect) for effect in v.effects]} for v in verdicts],
    }
    files = [Path(folder) / "claims.json", Path(folder) / "claims.csv"]
    with atomic_path(files[0]) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    rows = [
        {
            "protocol": verdict.protocol,
            "network": verdict.network,
            "claim": verdict.claim,
            "text": verdict.text,
            "claim_verdict": verdict.verdict,
            **_row(effect),
        }
        for verdict in verdicts
        for effect in verdict.effects
    ]
    for row in rows:
        row["values"] = " ".join("" if value is None else repr(value) for value in row["values"])
    with atomic_path(files[1]) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    return files


def _row(effect: Effect) -> dict:
    """The effect with None, which JSON and CSV know, for what is not defined."""

    def plain(value):
        return None if value != value else value

    row = {name: plain(value) for name, value in asdict(effect).items()}
    return {**row, "values": [plain(value) for value in effect.values]}


@dataclass(frozen=True)
class VerdictChange:
    """An effect that the paper's and the published protocol judge differently.

    Attributes:
        network, claim, label, unit: which effect.
        means: the mean effect by protocol.
        verdicts: the effect's verdict by protocol.
        difference: published less paper, paired within networks: mean and the ends of its 95 % t-interval.
        carrier: the departure, turned on alone, whose effect comes nearest to the published one, if it goes at least
            half the way; None if none does, if none was turned on, or if the difference's interval holds 0.
        share: how much of the way from the paper's effect to the published one the carrier goes; 1 is all of it.
    """

    network: str
    claim: str
    label: str
    unit: str
    means: dict[str, float]
    verdicts: dict[str, str]
    difference: tuple[float, float, float]
    cause: str | None = None
    share: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the two effects differ, rather than only the evidence for them."""
        _, low, high = self.difference
        return low > 0 or high < 0


def explain_changes(verdicts: Sequence[Verdict]) -> list[VerdictChange]:
    """For every claim that the two protocols judge differently: the effects behind it, under each single departure.

    Args:
        verdicts: from `judge_claims`, on results under "paper", "published" and, to explain them, the departures of
            `jaxablate reproduce --protocol each`.

    Returns:
        One `Flip` for each effect whose verdict differs, in claims whose verdict differs.

    Example:
        >>> all(flip.claim in {v.claim for v in verdicts} for flip in ja.claims.explain_flips(verdicts))
        True
    """
    effects: dict[tuple[str, str, str], dict[str, Effect]] = {}
    of_claim: dict[tuple[str, str], dict[str, str]] = {}
    for verdict in verdicts:
        of_claim.setdefault((verdict.network, verdict.claim), {})[verdict.protocol] = verdict.verdict
        for effect in verdict.effects:
            key = (verdict.network, verdict.claim, effect.label)
            effects.setdefault(key, {})[verdict.protocol] = effect
    flips = []
    for (network, claim, label), by_protocol in effects.items():
        judged = of_claim[network, claim]
        if not {"paper", "published"} <= set(by_protocol) or judged["paper"] == judged["published"]:
            continue
        own, theirs = by_protocol["paper"], by_protocol["published"]
        if own.verdict != theirs.verdict:
            means = {name: effect.mean for name, effect in by_protocol.items()}
            named = {name: effect.verdict for name, effect in by_protocol.items()}
            flip = VerdictChange(network, claim, label, own.unit, means, named, paired_difference(theirs, own))
            flips.append(_carried(flip))
    return flips


def _carried(flip: VerdictChange) -> VerdictChange:
    """The flip with its carrier, if there is one."""
    shares = {
        name: (flip.means[name] - flip.means["paper"]) / flip.difference[0]
        for name in SETS["each"][1:-1]
        if flip.differs and name in flip.means
    }
    nearest = min(shares, key=lambda name: abs(1 - shares[name]), default=None)
    if nearest is None or shares[nearest] < 0.5:
        return flip
    return replace(flip, cause=nearest, share=shares[nearest])
