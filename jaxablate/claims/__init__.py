"""Judge claims about networks: the paper's, and your own.

Input: results of many networks.
Output: effects with intervals, and verdicts.
"""

from jaxablate.claims._definitions import CLAIMS, SHORT, Claim, NetworkSummary
from jaxablate.claims._judge import (
    HOLDS_IN_PART,
    NOT_JUDGED,
    REVERSED_IN_PART,
    ThresholdRange,
    Verdict,
    VerdictChange,
    explain_changes,
    judge_claims,
    save_claims,
)
from jaxablate.claims._setting import departures_from_paper
from jaxablate.claims._statistics import (
    FAILS,
    FEWEST_NETWORKS,
    HOLDS,
    MARGINS,
    NATS,
    NO_DIFFERENCE,
    POINTS,
    REVERSED,
    UNDECIDED,
    Comparison,
    Effect,
)

__all__ = [
    "CLAIMS",
    "FAILS",
    "FEWEST_NETWORKS",
    "HOLDS",
    "HOLDS_IN_PART",
    "MARGINS",
    "NATS",
    "NOT_JUDGED",
    "NO_DIFFERENCE",
    "POINTS",
    "REVERSED",
    "REVERSED_IN_PART",
    "SHORT",
    "UNDECIDED",
    "Claim",
    "Comparison",
    "Effect",
    "NetworkSummary",
    "ThresholdRange",
    "Verdict",
    "VerdictChange",
    "departures_from_paper",
    "explain_changes",
    "judge_claims",
    "save_claims",
]
