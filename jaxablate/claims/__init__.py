"""Judge the paper's claims.

Input: results of many networks.
Output: effects with intervals, and verdicts.
"""

from jaxablate.claims._definitions import CLAIMS, POINTS, SHORT
from jaxablate.claims._judge import Verdict, VerdictChange, explain_changes, judge_claims, save_claims
from jaxablate.claims._statistics import FAILS, HOLDS, UNDECIDED, Effect

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
