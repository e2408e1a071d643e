"""Arrange verdicts on claims as a table.

Input: verdicts.
Output: dictionaries, and the effect that decides a verdict.
"""

from collections.abc import Iterable

from jaxablate.claims import CLAIMS, HOLDS_IN_PART, NO_DIFFERENCE, REVERSED, REVERSED_IN_PART, Effect, Verdict


def claim_table(verdicts: Iterable[Verdict]) -> dict[str, dict[str, dict[str, Verdict]]]:
    """Return the verdicts by claim (number and text), network and protocol, in the paper's order of claims."""
    table: dict[str, dict[str, dict[str, Verdict]]] = {}
    numbers = list(CLAIMS)  # your own claims follow
    for verdict in sorted(verdicts, key=lambda verdict: (*numbers, verdict.claim).index(verdict.claim)):
        by_network = table.setdefault(f"{verdict.claim}. {verdict.text}", {})
        by_network.setdefault(verdict.network, {})[verdict.protocol] = verdict
    return table


def deciding_effect(verdict: Verdict) -> Effect | None:
    """Return the effect that decides a claim: the smallest one with the verdict of the claim; None if not judged.

    Effects are positive as claimed, so the smallest one is the furthest from what the claim needs. A verdict "in part"
    is decided by the part that does not hold.
    """
    # an effect itself has no verdict "in part"
    kind = {HOLDS_IN_PART: NO_DIFFERENCE, REVERSED_IN_PART: REVERSED}.get(verdict.verdict, verdict.verdict)
    effects = [effect for effect in verdict.effects if effect.verdict == kind]
    return min(effects, key=lambda effect: effect.mean, default=None)
