"""Judge claims by their comparisons, compare the verdicts of protocols, and write them to files.

Input: results.
Output: `Verdict`s, `VerdictChange`s, claims.json and claims.csv.
"""

import csv
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxablate._checks import as_path, require_type
from jaxablate._files import atomic_path, for_json, require_writable
from jaxablate.claims._definitions import CLAIMS, Claim, Comparison, NetworkSummary
from jaxablate.claims._setting import departures_from_paper
from jaxablate.claims._statistics import (
    CORRELATION,
    FAILS,
    FEWEST_NETWORKS,
    HOLDS,
    NO_DIFFERENCE,
    REVERSED,
    UNDECIDED,
    Effect,
    estimate_family,
    family_verdicts,
    judge_family,
    margins_of,
)
from jaxablate.protocols import DEPARTURES, PAPER, PUBLISHED
from jaxablate.results import protocols_of, select_protocol
from jaxablate.results._labels import require_results
from jaxablate.statistics import CONFIDENCE, estimate, paired_difference

HOLDS_IN_PART, REVERSED_IN_PART, NOT_JUDGED = "holds in part", "reversed in part", "not judged"


@dataclass(frozen=True)
class ThresholdRange:
    """The values of a threshold for which a verdict stays the same, if all other thresholds keep their values.

    Attributes:
        threshold: the value that was judged, in the unit of the comparison.
        low, high: the ends of the range; None where it goes on beyond the values tried.
    """

    threshold: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, for one architecture under one protocol.

    Attributes:
        protocol: name of the protocol.
        network: name of the architecture in the results.
        claim: number of the claim, such as "C3".
        text: the claim in words.
        verdict: the first that applies: "not judged"; "does not hold" if one effect does not hold; "reversed" or
            "reversed in part" if all effects or some are reversed; "holds" if all hold; "no difference" if all show
            none; "holds in part" if each holds or shows no difference; otherwise "undecided".
        num_networks: number of independently trained networks.
        effects: the effects that decide the claim; empty if a score is missing.
        reason: why the claim is not judged; "" if it is.
        thresholds: for each threshold of the claim, the range over which the verdict stands.
    """

    protocol: str
    network: str
    claim: str
    text: str
    verdict: str
    num_networks: int
    effects: tuple[Effect, ...]
    reason: str = ""
    thresholds: tuple[ThresholdRange, ...] = ()


def judge_claims(results: xr.DataTree, claims: Iterable[Claim] | None = None) -> list[Verdict]:
    """Judge claims for every network and protocol of the results.

    Each claim is a set of comparisons of AUC, of mean scores or of correlations, paired within each network. Intervals
    are 95% t-intervals of the mean over networks. Verdicts follow from two-sided t-tests at 5% and from a margin below
    which a difference does not count. A comparison fails by its p-value after Holm's correction over the comparisons of
    the claim, in one architecture under one protocol. Nothing is corrected across claims, and nothing else in the
    results changes a verdict.

    Args:
        results: from `run_study` or `load_results`. Five networks or more are needed, and about ten decide small
            effects; with fewer the verdict is "not judged".
        claims: your own claims; None takes the paper's.

    Returns:
        One `Verdict` for each protocol, network and claim that applies to this network. Verdicts on the paper's claims
        say something about the paper only if `ja.claims.departures_from_paper(results)` is empty.

    Source: paper, sections 5 and 6.

    Example:
        >>> verdicts = ja.judge_claims(results)
        >>> verdicts[0].claim, verdicts[0].num_networks, verdicts[0].verdict
        ('C1', 2, 'not judged')
    """
    require_results(results)
    require_type("claims", claims, Iterable | None, "claims from ja.claims.CLAIMS")
    claims = list(CLAIMS.values()) if claims is None else list(claims)
    for claim in claims:
        require_type("claims", claim, Claim, "claims from ja.claims.CLAIMS")
    return [
        verdict
        for protocol in protocols_of(results)
        for name, node in select_protocol(results, protocol).children.items()
        for verdict in _judge_network(protocol, name, node.to_dataset(), claims)
    ]


def _judge_network(protocol: str, name: str, network: xr.Dataset, claims: Sequence[Claim]) -> list[Verdict]:
    """Judge the claims that are about this kind of network."""
    summary, present = NetworkSummary(network), set(map(str, network["score"].values))
    verdicts = []
    for claim in claims:
        blank = Verdict(protocol, name, claim.number, claim.text, NOT_JUDGED, network.sizes["seed"], ())
        if missing := [score for score in claim.scores if score not in present]:
            reason = f"{', '.join(missing).replace('_', ' ')} missing"
            verdicts.append(replace(blank, reason=reason))
            continue
        family = list(claim.compare(summary))
        if not family:
            continue
        effects = judge_family(family)
        fewest = min(effect.num_networks for effect in effects)
        blank = replace(blank, effects=tuple(effects))
        if fewest < FEWEST_NETWORKS:
            count = "1 network" if fewest == 1 else f"{fewest} networks"
            reason = f"{count}; {FEWEST_NETWORKS} or more are needed, about ten to decide small effects"
            undecided = tuple(replace(effect, verdict=UNDECIDED) for effect in effects)
            verdicts.append(replace(blank, reason=reason, effects=undecided))
            continue
        verdict = combine(effect.verdict for effect in effects)
        verdicts.append(replace(blank, verdict=verdict, thresholds=tuple(_threshold_ranges(family, verdict))))
    return verdicts


def require_verdicts(verdicts: object) -> None:
    """Raise `InputError` unless all verdicts are from `judge_claims`."""
    require_type("verdicts", verdicts, Sequence, "verdicts from ja.judge_claims")
    for verdict in verdicts:  # pyright: ignore[reportGeneralTypeIssues] (checked above)
        require_type("verdicts", verdict, Verdict, "verdicts from ja.judge_claims")


def combine(verdicts: Iterable[str]) -> str:
    """Return the verdict on a claim from the verdicts on its effects."""
    distinct = set(verdicts)
    if FAILS in distinct:
        return FAILS
    if REVERSED in distinct:
        return REVERSED if distinct == {REVERSED} else REVERSED_IN_PART
    if len(distinct) == 1:
        return distinct.pop()
    return HOLDS_IN_PART if distinct == {HOLDS, NO_DIFFERENCE} else UNDECIDED


def _threshold_ranges(family: Sequence[Comparison], verdict: str) -> list[ThresholdRange]:
    """Return for each threshold of a claim the range of values over which the verdict stands."""
    estimated, margins, groups = estimate_family(family), margins_of(family), [member.group for member in family]
    ranges = []
    for threshold in dict.fromkeys(member.threshold for member in family if member.threshold is not None):
        slopes = np.array([member.slope * (member.threshold == threshold) for member in family])
        unit = next(member.unit for member in family if member.threshold == threshold)
        step, last = (0.01, 1.0) if unit == CORRELATION else (0.1, 20.0)
        ends: list[float | None] = []
        for values in (np.arange(threshold, -step / 2, -step), np.arange(threshold, last + step / 2, step)):
            # [value, comparison]: another threshold moves the means and nothing else
            moved = replace(estimated, mean=estimated.mean + (values[:, None] - threshold) * slopes)
            standing = [combine(row) == verdict for row in family_verdicts(moved, margins, groups)]
            # None: the verdict stands for every value tried
            stop = standing.index(False) if False in standing else None
            ends.append(None if stop is None else round(float(values[stop - 1]), 6))
        ranges.append(ThresholdRange(threshold, *ends))
    return ranges


def save_claims(verdicts: Sequence[Verdict], results: xr.DataTree, folder: str | Path) -> list[Path]:
    """Write `claims.json` (everything, with provenance) and `claims.csv` (one row for each effect).

    In `claims.json`, `paper_setting` is true if the results have the paper's setting. Only then are the verdicts about
    the paper's claims. Otherwise `differences` lists the texts of `departures_from_paper`. The same results give the
    same files, byte for byte.

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
    require_verdicts(verdicts)
    require_results(results)
    folder = as_path("folder", folder)
    require_writable(folder)
    # No date and no path: the document depends on the results alone.
    differences = departures_from_paper(results)
    document = {
        "format": "jaxablate claims 2",
        "paper_setting": not differences,
        "differences": differences,
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


PLAYERS = {"nan_scores": ("nan_logs", "nan_largest")} | {
    name: (name,) for name in DEPARTURES if not name.startswith("nan_")
}
"""Departures by the names in `VerdictChange`; the two about NaN act only together."""


@dataclass(frozen=True)
class VerdictChange:
    """An effect that the paper's and the published protocol judge differently.

    Attributes:
        network: name of the architecture in the results.
        claim: number of the claim.
        label: the comparison in words.
        unit: unit of the effect.
        paper, published: the effect under the two protocols.
        difference: published minus paper, paired within networks: the mean and the ends of its 95% t-interval.
        alone: for each departure, the change of the mean effect if it alone is turned on. `nan_logs` and `nan_largest`
            count as one, `nan_scores`: without NaN there is none to rank. Empty if the results lack a combination of
            departures.
        shapley: for each departure, its Shapley value: the change that it makes, averaged over the orders in which the
            departures can be turned on. The values sum to the difference. Empty like `alone`.
        shapley_by_network: for each departure, its Shapley value in each network, in the order of the seeds. Empty like
            `alone`.
    """

    network: str
    claim: str
    label: str
    unit: str
    paper: Effect
    published: Effect
    difference: tuple[float, float, float]
    alone: dict[str, float] = field(default_factory=dict)
    shapley: dict[str, float] = field(default_factory=dict)
    shapley_by_network: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def shapley_interval(self, departure: str) -> tuple[float, float]:
        """Return the ends of the 95% t-interval of a departure's Shapley value, over networks.

        Args:
            departure: one of the names in `shapley_by_network`.
        """
        low, high = estimate(np.array(self.shapley_by_network[departure])).interval()
        return float(low), float(high)

    @property
    def differs(self) -> bool:
        """Return True if the interval of the difference excludes 0."""
        _, low, high = self.difference
        return low > 0 or high < 0

    @property
    def interaction(self) -> float:
        """The part of the difference that the departures make only together; NaN without `alone`."""
        return self.difference[0] - sum(self.alone.values()) if self.alone else math.nan


def explain_changes(verdicts: Sequence[Verdict]) -> list[VerdictChange]:
    """Find the effects that the two protocols judge differently, and attribute each change to departures.

    Args:
        verdicts: from `judge_claims`, on results under the protocols "paper" and "published". To attribute changes, the
            results also need the combinations of departures of `jaxablate reproduce --protocol departures`.

    Returns:
        One `VerdictChange` for each effect whose verdict differs between the two protocols.

    Source: Shapley (1953), A value for n-person games.

    Example:
        >>> changes = ja.claims.explain_changes(verdicts)
        >>> {change.claim for change in changes} <= {verdict.claim for verdict in verdicts}
        True
    """
    require_verdicts(verdicts)
    effects: dict[tuple[str, str, str], dict[str, Effect]] = {}
    for verdict in verdicts:
        for effect in verdict.effects if verdict.verdict != NOT_JUDGED else ():
            # A label is unique within its claim and network, so it joins the same comparison under all protocols.
            key = (verdict.network, verdict.claim, effect.label)
            effects.setdefault(key, {})[verdict.protocol] = effect
    changes = []
    for (network, claim, label), by_protocol in effects.items():
        if not {PAPER.name, PUBLISHED} <= set(by_protocol):
            continue
        paper, published = by_protocol[PAPER.name], by_protocol[PUBLISHED]
        if paper.verdict != published.verdict:
            # Both protocols start from the same trained networks, so the difference is paired.
            difference = paired_difference(np.array(published.values), np.array(paper.values))
            low, high = difference.interval()
            alone, shapley = _attribute({name: effect.mean for name, effect in by_protocol.items()})
            # Shapley values are linear, so those of the networks have the mean's value as their mean.
            _, by_network = _attribute({name: np.array(effect.values) for name, effect in by_protocol.items()})
            changes.append(
                VerdictChange(
                    network,
                    claim,
                    label,
                    paper.unit,
                    paper,
                    published,
                    (float(difference.mean), float(low), float(high)),
                    alone,
                    shapley,
                    {name: tuple(map(float, values)) for name, values in by_network.items()},
                )
            )
    return changes


def _attribute(effects: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the change of an effect by each departure alone, and the departures' Shapley values.

    Args:
        effects: effect by protocol, with "paper", "published" and every combination of departures that can differ:
            numbers, or arrays [network].

    Returns:
        Two mappings from departures to changes; both are empty if a combination is missing.
    """
    # The players are all departures but "strict_threshold", whose combinations are not computed: its share is what
    # `published` adds to all other departures.
    strict = "strict_threshold"
    players = [name for name in PLAYERS if name != strict]

    def value(chosen: Iterable[str]) -> Any:
        names = {departure for name in chosen for departure in PLAYERS[name]}
        return effects["+".join(name for name in DEPARTURES if name in names) or PAPER.name]

    try:
        alone = {name: value([name]) - value([]) for name in players} | {strict: effects[strict] - value([])}
        shapley = dict.fromkeys(PLAYERS, 0.0)
        shapley[strict] = effects[PUBLISHED] - value(players)
        for player in players:
            rest = [name for name in players if name != player]
            for size in range(len(players)):
                # the fraction of orders in which exactly these players come before this one
                weight = 1 / (len(players) * math.comb(len(rest), size))
                for before in itertools.combinations(rest, size):
                    shapley[player] = shapley[player] + weight * (value([*before, player]) - value(before))
    except KeyError:  # a combination is missing
        return {}, {}
    return alone, shapley
