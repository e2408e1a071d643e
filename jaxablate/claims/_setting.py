"""Compare the setting of results with the setting that the paper's claims are about.

Input: results of a study.
Output: the settings that differ, as text.
"""

import json

import xarray as xr

from jaxablate.datasets import EMBEDDED

DATASETS = ("mnist", EMBEDDED)
NETWORKS = ([200, 200], [200, 200, 200])
ACTIVATION = "sigmoid"
SETTINGS = {"l2": 1e-3, "batch_size": 32, "learning_rate": 1e-3, "quantizer": "activation", "normalization": "none"}


def departures_from_paper(results: xr.DataTree) -> list[str]:
    """Return how the setting of a study differs from the paper's setting.

    The paper's setting is MNIST (or its 5,000 embedded images), networks of two or three hidden layers of 200 sigmoid
    neurons, and the default batch size, learning rate, L2 coefficient, quantizer and normalization of `ja.StudyConfig`.
    Only in this setting do verdicts say something about the paper's claims. In any other setting they only compare the
    orders of these networks.

    Args:
        results: results of one study, from `run_study` or `load_results`.

    Returns:
        A text for each setting that differs, such as "dataset: fashion_mnist"; [] in the paper's setting.

    Example:
        >>> ja.claims.departures_from_paper(results)
        ['networks: 12 + 10, 10 + 8 + 9']
    """
    config = json.loads(results.attrs["config"])
    nodes = [node for node in results.subtree if "hidden" in node.attrs]
    hidden = {node.attrs["hidden"]: json.loads(node.attrs["hidden"]) for node in nodes}
    unusual = [" + ".join(map(str, widths)) for widths in hidden.values() if widths not in NETWORKS]
    activations = sorted({str(node.attrs["activation"]) for node in nodes} - {ACTIVATION})
    differences = {
        "dataset": results.attrs["dataset"] if results.attrs["dataset"] not in DATASETS else "",
        "networks": ", ".join(unusual),
        "activation": ", ".join(activations),
        # networks that were trained elsewhere have no history
        "training": "" if all("train_loss" in node.data_vars for node in nodes) else "not by the study",
        **{name: config[name] for name, value in SETTINGS.items() if config.get(name, value) != value},
    }
    return [f"{name}: {value}" for name, value in differences.items() if value != ""]
