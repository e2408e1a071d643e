"""Results: arrays of a study come in, a labelled and documented `xarray.DataTree` goes out, to a file and back.

One node for each network and protocol. Its networks stand at the root under the paper's protocol. This is the
only package that builds datasets; it also computes the summaries that figures and tables show.
"""

from jaxablate.results._files import check_table_path, load_results, save_results, save_table
from jaxablate.results._labels import (
    NETWORK_SCOPE,
    RANDOM,
    Ordering,
    network_results,
    neuron_scores,
    protocols_of,
    redundancy_results,
    select_protocol,
    sensitivity_results,
    study_results,
)
from jaxablate.results._summaries import (
    CONFIDENCE,
    Curve,
    SummaryRow,
    auc,
    balanced_fill,
    confidence_interval,
    curve,
    summarize,
)

__all__ = [
    "CONFIDENCE",
    "NETWORK_SCOPE",
    "RANDOM",
    "Curve",
    "Ordering",
    "SummaryRow",
    "auc",
    "balanced_fill",
    "check_table_path",
    "confidence_interval",
    "curve",
    "load_results",
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
]
