"""Compare the setting of results with the setting that the paper's claims are about.

Input: results of a study.
Output: the settings that differ, as text.
"""

import json

import xarray as xr

from jaxablate.datasets import EMBEDDED
from jaxablate.results._labels import is_passed, require_one_study, require_results, stated_settings

EPOCHS = {"mnist": 10, EMBEDDED: 143}
"""The paper's numbers of epochs, by dataset: on the embedded images for as many optimizer steps."""
NETWORKS = ([200, 200], [200, 200, 200])
ACTIVATION = "sigmoid"
SETTINGS = {
    "l2": 1e-3,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "dropout": 0.0,
    "batch_norm": False,
    "label_noise": 0.0,
    "quantizer": "activation",
    "normalization": "none",
}


def departures_from_paper(results: xr.DataTree) -> list[str]:
    """Return how the setting of a study differs from the paper's setting.

    The paper's setting is MNIST (or its 5,000 embedded images), networks of two or three hidden layers of 200 sigmoid
    neurons, and the defaults of `ja.StudyConfig` for training, quantizer and normalization.
    Only in this setting do verdicts say something about the paper's claims. In any other setting they only compare the
    orders of these networks.

    Args:
        results: results of one study, from `run_study` or `load_results`.

    Returns:
        A text for each setting that differs, such as "dataset: fashion_mnist"; [] in the paper's setting.

    Example:
        >>> ja.claims.departures_from_paper(results)
        ['networks: 12 + 10, 10 + 8 + 9', 'epochs: 8']
    """
    require_results(results, whole=True)
    require_one_study(results)
    nodes = [node for node in results.subtree if "hidden" in node.attrs]
    is_trained = not all(is_passed(node.to_dataset()) for node in nodes)
    config = stated_settings(json.loads(results.attrs["config"]), is_trained=is_trained)
    hidden = {node.attrs["hidden"]: json.loads(node.attrs["hidden"]) for node in nodes}
    unusual = [" + ".join(map(str, widths)) for widths in hidden.values() if widths not in NETWORKS]
    # only an MLP names its activation function
    activations = {"not known" if node.attrs["activation"] == "other" else node.attrs["activation"] for node in nodes}
    dataset, epochs = results.attrs["dataset"], config.get("epochs")
    differences = {
        "dataset": dataset if dataset not in EPOCHS else "",
        "networks": ", ".join(unusual),
        "activation": ", ".join(sorted(activations - {ACTIVATION})),
        "training": "not by the study" if any(is_passed(node.to_dataset()) for node in nodes) else "",
        "epochs": "" if epochs in (None, EPOCHS.get(dataset)) else epochs,
        **{name: config[name] for name, value in SETTINGS.items() if config.get(name, value) != value},
    }
    return [f"{name}: {value}" for name, value in differences.items() if value != ""]
