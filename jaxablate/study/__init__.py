"""Run whole experiments: load, train, score, order, ablate and label.

Input: a `StudyConfig`, or networks and a dataset.
Output: labelled results.
"""

from jaxablate._progress import OnProgress
from jaxablate.study._compensation import linear_redundancy
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._prune import PrunedRow, PruningComparison, prune_by_score
from jaxablate.study._redundancy import redundancy_test
from jaxablate.study._run import run_study
from jaxablate.study._scores import score_neurons
from jaxablate.study._sensitivity import QuantizerComparison, compare_quantizers, quantizer_sensitivity

__all__ = [
    "OnProgress",
    "PrunedRow",
    "PruningComparison",
    "QuantizerComparison",
    "StudyConfig",
    "compare_quantizers",
    "linear_redundancy",
    "network_name",
    "prune_by_score",
    "quantizer_sensitivity",
    "redundancy_test",
    "run_study",
    "score_neurons",
]
