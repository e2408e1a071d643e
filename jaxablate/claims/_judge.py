"""Judge claims by their comparisons, compare the verdicts of protocols, and write them to files.

Input: results.
Output: `Verdict`s, `VerdictChange`s, claims.json and claims.csv.
"""

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import xarray as xr

from jaxablate._files import atomic_path, for_json, require_writable
from jaxablate.claims._definitions import CLAIMS, comparisons_of
from jaxablate.claims._statistics import FAILS, HOLDS, UNDECIDED, Effect, estimate, paired_difference
from jaxablate.protocols import SETS
from jaxablate.results import CONFIDENCE, protocols_of, select_protocol


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict on one claim, for one architecture under one protocol.

    Attributes:
        protocol: name of the protocol.
        network: name of the architecture in the results.
        claim: number of the claim, such as "C3".
        text: the claim in words.
        verdict: "holds" if every effect holds, "does not hold" if one effect does not hold, otherwise "undecided".
        num_networks: number of independently trained networks.
        effects: the effects that decide the claim.
    """

    protocol: str
    network: str
    claim: str
    text: str
    verdict: str
    num_networks: int
    effects: tuple[Effect, ...]


def judge_claims(results: xr.DataTree) -> list[Verdict]:
    """Judge the paper's claims for every network and protocol of the results.

    Each claim is a set of comparisons of AUC or of mean scores, paired within each network. AUC is the mean accuracy
    over all steps but the first, where nothing is ablated. Intervals are 95% t-intervals and bootstrap intervals of the
    mean over networks. Verdicts follow from two-sided t-tests at 5%, corrected by Holm's method over all comparisons of
    a protocol.

    Args:
        results: from `run_study` or `load_results`, best with ten or more seeds; with one seed every verdict is
            "undecided".

    Returns:
        One `Verdict` for each protocol, network and claim that has comparisons in this network.

    Source: paper, sections 5 and 6.

    Example:
        >>> verdicts = ja.judge_claims(results)
        >>> verdicts[0].claim, verdicts[0].num_networks
        ('C1', 2)
    """
    verdicts = []
    for protocol in protocols_of(results):
        claims = [
            (name, node.sizes["seed"], claim, comparisons)
            for name, node in select_protocol(results, protocol).children.items()
            for claim, comparisons in comparisons_of(node.to_dataset()).items()
        ]
        # one family of tests for the whole protocol: estimate all, then deal the effects out to the claims
        effects_of_protocol = iter(estimate([comparison for *_, comparisons in claims for comparison in comparisons]))
        for name, num_networks, claim, comparisons in claims:
            effects = tuple(itertools.islice(effects_of_protocol, len(comparisons)))
            verdict = _combine([effect.verdict for effect in effects])
            verdicts.append(Verdict(protocol, name, claim, CLAIMS[claim][0], verdict, num_networks, effects))
    return verdicts


def _combine(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim from the verdicts on its effects."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else UNDECIDED


def save_claims(verdicts: Sequence[Verdict], results: xr.DataTree, folder: str | Path) -> list[Path]:
    """Write `claims.json` (everything, with provenance) and `claims.csv` (one row for each effect).

    The same results give the same files, byte for byte.

    Args:
        verdicts: from `judge_claims`.
        results: the results that were judged.
        folder: folder of the files.

    Returns:
        The paths of the two files.

    Raises:
        InputError: for a folder that cannot be written.

    Example:
        >>> ja.claims.save_claims(ja.judge_claims(results), results, tmp_path)[0].name
        'claims.json'
    """
    require_writable(folder)
    # No date and no path: the document depends on the results alone.
    document = {
        "format": "jaxablate claims 1",
        **{name: results.attrs[name] for name in ("dataset", "device")},
        **{name: json.loads(results.attrs[name]) for name in ("dataset_sha256", "config", "versions")},
        "confidence": CONFIDENCE,
        "verdicts": for_json([asdict(verdict) for verdict in verdicts]),
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
            **for_json(asdict(effect)),
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


@dataclass(frozen=True)
class VerdictChange:
    """Hold an effect that the paper's and the published protocol judge differently.

    Attributes:
        network: name of the architecture in the results.
        claim: number of the claim.
        label: the comparison in words.
        unit: unit of the effect.
        means: mean effect by protocol.
        verdicts: verdict on the effect by protocol.
        difference: published minus paper, paired within networks: the mean and the ends of its 95% t-interval.
        cause: the departure of the published code that explains the change. Turned on alone, its effect is the nearest
            to the published one and covers at least half of the difference. None if no departure does, if none was
            turned on alone, or if the interval of the difference contains 0.
        explained: part of the difference that the cause explains; 1 is all of it. None without a cause.
    """

    network: str
    claim: str
    label: str
    unit: str
    means: dict[str, float]
    verdicts: dict[str, str]
    difference: tuple[float, float, float]
    cause: str | None = None
    explained: float | None = None

    @property
    def differs(self) -> bool:
        """Return True if the two effects differ; otherwise only the evidence for them does."""
        _, low, high = self.difference
        return low > 0 or high < 0


def explain_changes(verdicts: Sequence[Verdict]) -> list[VerdictChange]:
    """Find the effects that the two protocols judge differently, and the departure that causes each change.

    Args:
        verdicts: from `judge_claims`, on results under the protocols "paper" and "published". To find causes, the
            results also need the single departures of `jaxablate reproduce --protocol each`.

    Returns:
        One `VerdictChange` for each effect whose verdict differs, in claims whose verdict differs.

    Example:
        >>> changes = ja.claims.explain_changes(verdicts)
        >>> {change.claim for change in changes} <= {verdict.claim for verdict in verdicts}
        True
    """
    # Two tables by protocol: the effects of each comparison, and the verdict on each claim. A claim can change although
    # only some of its comparisons do; only those explain it.
    effects: dict[tuple[str, str, str], dict[str, Effect]] = {}
    claim_verdicts: dict[tuple[str, str], dict[str, str]] = {}
    for verdict in verdicts:
        claim_verdicts.setdefault((verdict.network, verdict.claim), {})[verdict.protocol] = verdict.verdict
        for effect in verdict.effects:
            # A label is unique within its claim and network, so it joins the same comparison under all protocols.
            key = (verdict.network, verdict.claim, effect.label)
            effects.setdefault(key, {})[verdict.protocol] = effect
    changes = []
    for (network, claim, label), by_protocol in effects.items():
        by_claim = claim_verdicts[network, claim]
        if not {"paper", "published"} <= set(by_protocol) or by_claim["paper"] == by_claim["published"]:
            continue
        paper, published = by_protocol["paper"], by_protocol["published"]
        if paper.verdict != published.verdict:
            means = {name: effect.mean for name, effect in by_protocol.items()}
            named = {name: effect.verdict for name, effect in by_protocol.items()}
            difference = paired_difference(published, paper)
            changes.append(_with_cause(VerdictChange(network, claim, label, paper.unit, means, named, difference)))
    return changes


def _with_cause(change: VerdictChange) -> VerdictChange:
    """Return the change with its cause, if a departure explains at least half of the difference."""
    # A departure explains the part (departure - paper) / (published - paper) of the difference. Parts need not add up
    # to 1, since departures interact.
    explained = {
        name: (change.means[name] - change.means["paper"]) / change.difference[0]
        for name in SETS["each"][1:-1]  # without the two whole protocols at the ends
        if change.differs and name in change.means
    }
    nearest = min(explained, key=lambda name: abs(1 - explained[name]), default=None)
    if nearest is None or explained[nearest] < 0.5:
        return change
    return replace(change, cause=nearest, explained=explained[nearest])
