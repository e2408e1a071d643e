"""Find the examples with the highest activations of neurons, and draw them if they are images.

Input: networks and a dataset.
Output: for each neuron of a page's table, a picture as a data URI or the numbers of the rows.
Memory: the activations of at most `MAX_EXAMPLES` examples.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_type
from jaxablate.ablation import evaluate_masks
from jaxablate.activations import record_activations
from jaxablate.datasets import AUTO, KNOWN, Dataset, load_dataset
from jaxablate.models import AnyModel
from jaxablate.models._model import state_digest, trace_model
from jaxablate.report._pictures import data_uri
from jaxablate.results import protocols_of, select_protocol

MAX_EXAMPLES = 10_000
NUM_EXAMPLES = 5


class Examples:
    """The test examples with the highest activations of every neuron of a network.

    Attributes:
        images: test images [example, ...].
        labels: classes [example].
        highest: numbers of the examples [neuron, `NUM_EXAMPLES` or fewer], the highest activation first.
    """

    def __init__(self, model: AnyModel, data: Dataset):
        # One pass over the examples serves all neurons of the page. A stable sort keeps the first of equal activations,
        # so that the page is the same in every run.
        self.images, self.labels = data.test.images[:MAX_EXAMPLES], data.test.labels[:MAX_EXAMPLES]
        activations = np.concatenate([np.asarray(site) for site in record_activations(model, self.images)], axis=1)
        self.highest = np.argsort(-activations, axis=0, kind="stable")[:NUM_EXAMPLES].T

    def of_neuron(self, neuron: int) -> dict[str, str]:
        """Return a picture of a neuron's examples, "" for rows of a table, and a text with their classes."""
        chosen = self.highest[neuron]
        classes = " ".join(str(label) for label in self.labels[chosen])
        images = np.asarray(self.images[chosen], np.float64)
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        if images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3):
            low, high = images.min(), images.max()
            strip = np.concatenate(list((images - low) / ((high - low) or 1)), axis=1)
            return {"picture": data_uri((255 * strip).astype(np.uint8)), "text": f"classes {classes}"}
        rows = ", ".join(str(row) for row in chosen)
        return {"picture": "", "text": f"rows {rows}; classes {classes}"}


def load_data_of(results: xr.DataTree, data_dir: str | Path | None = None) -> Dataset:
    """Load the dataset of results.

    Args:
        results: results of one study.
        data_dir: folder of the data, as in `ja.load_dataset`, or the folder with an `.npz` file or a folder of your
            own; None for the folder in the settings of the study.

    Returns:
        The dataset.

    Raises:
        InputError: for data that are not available, or that differ from the data of the results.

    Example:
        >>> from jaxablate.report import load_data_of
        >>> load_data_of(results).source.name
        'mnist5k'
    """
    config = json.loads(results.attrs["config"])
    name, folder = config["dataset"], config.get("data_dir") if data_dir is None else data_dir
    if name not in (AUTO, *KNOWN):  # a file or a folder of the user; results keep its name, not its folder
        name = Path(data_dir or "") / name
        require(name.exists(), f"data_dir: {name.name} is not in folder {name.parent}; give the folder that holds it")
    data = load_dataset(name, seed=config["split_seed"], data_dir=folder)
    _require_same(results, data)
    return data


def _require_same(results: xr.DataTree, data: Dataset) -> None:
    require(
        data.source.sha256 == json.loads(results.attrs["dataset_sha256"]),
        f"data: the checksums differ from {results.attrs['dataset']} in the results; pass the same data",
    )


def check_data(results: xr.DataTree, networks: Mapping[str, AnyModel], data: Dataset) -> dict[str, Examples]:
    """Return the examples of each network.

    Raises:
        InputError: for data without networks, or data that differ from the data of the results.
    """
    require_type("data", data, Dataset, "a dataset from ja.load_dataset or ja.Dataset.from_arrays")
    require(len(networks) > 0, "data: without networks there are no activations; pass networks, or leave data out")
    _require_same(results, data)
    nodes = select_protocol(results, protocols_of(results)[0])
    for name, model in networks.items():
        _require_network_of(nodes[name].to_dataset(), name, model, data)
    return {name: Examples(model, data) for name, model in networks.items()}


def _require_network_of(network: xr.Dataset, name: str, model: AnyModel, data: Dataset) -> None:
    """Raise unless a model is the first network of a kind: same arrays, and same number of correct predictions."""
    remedy = "pass the network of the results"
    is_same = "model_sha256" in network
    if is_same:
        _, state, _ = trace_model(model, data.test.images[:1])
        expected, checksum = str(network["model_sha256"].values[0]), state_digest(state)
        require(checksum == expected, f"networks: the checksum of {name} differs from that in the results; {remedy}")
    expected, size = intact_correct(network)[0], len(data.test)
    neurons = np.ones((1, network.sizes["neuron"]), bool)
    correct = int(evaluate_masks(model, neurons, data.test.images, data.test.labels)[0])
    require(
        abs(correct - expected) <= max(1, size // 1000),  # another machine may round differently
        f"networks: {name} has {correct} of {size} correct predictions, and {expected} in the results; "
        + ("its arrays are the same, so pass the data of the results, and the same function" if is_same else remedy),
    )


def intact_correct(network: xr.Dataset) -> list[int]:
    """Return the number of correct test predictions of each intact network of a kind."""
    correct = network["correct"].isel(step=0, ordering=0, fill=0, scope=0)
    return [int(count) for count in correct.transpose("seed", ...).values]
