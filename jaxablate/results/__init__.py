"""Label, save, load, merge, summarize and compare the results of studies.

Input: the arrays of a study, or files.
Output: an `xarray.DataTree` with one node for each network, at the root for the paper's protocol and under the name of
the protocol otherwise; and the summaries that figures and tables show. No other package builds datasets.
"""

from jaxablate.results._compare import compare, compare_conditions
from jaxablate.results._files import TABLE_SUFFIXES, check_table_path, load_results, save_results, save_table
from jaxablate.results._labels import (
    NETWORK_SCOPE,
    RANDOM,
    Ordering,
    compensation_results,
    conditions_of,
    grid_results,
    network_results,
    neuron_scores,
    protocols_of,
    redundancy_results,
    select_protocol,
    sensitivity_results,
    study_results,
)
from jaxablate.results._merge import merge_results
from jaxablate.results._summaries import (
    Curve,
    SummaryRow,
    auc,
    balanced_fill,
    curve,
    keep_only,
    summarize,
)
from jaxablate.results._tidy import tidy

__all__ = [
    "NETWORK_SCOPE",
    "RANDOM",
    "TABLE_SUFFIXES",
    "Curve",
    "Ordering",
    "SummaryRow",
    "auc",
    "balanced_fill",
    "check_table_path",
    "compare",
    "compare_conditions",
    "compensation_results",
    "conditions_of",
    "curve",
    "grid_results",
    "keep_only",
    "load_results",
    "merge_results",
    "network_results",
    "neuron_scores",
    "protocols_of",
    "redundancy_results",
    "save_results",
    "save_table",
    "select_protocol",
    "sensitivity_results",
    "study_results",
    "summarize",
    "tidy",
]
