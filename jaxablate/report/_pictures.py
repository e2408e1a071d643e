"""Draw the incoming weights of neurons as small PNG pictures for a page."""

import base64
import io
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from PIL import Image

from jaxablate._checks import InputError
from jaxablate.models import MLP, AnyModel, load_model
from jaxablate.results import conditions_of, protocols_of, select_protocol
from jaxablate.results._labels import is_passed


def networks_beside(results: xr.DataTree, folder: str | Path) -> tuple[dict[str, MLP], list[str]]:
    """Load the networks of the first seed from the folder of a run.

    Args:
        results: results of the run.
        folder: folder of the run, with the networks in `networks`.

    Returns:
        The networks by the name of their node, and a sentence for each file that could not be used. None for a grid of
        conditions, whose page has no pictures of weights.

    Example:
        >>> from jaxablate.report import networks_beside
        >>> networks_beside(results, tmp_path)
        ({}, [])
    """
    networks, notes = {}, []
    if conditions_of(results):
        return networks, notes
    data = json.loads(results.attrs["dataset_sha256"])
    for name, node in select_protocol(results, protocols_of(results)[0]).children.items():
        if is_passed(node.to_dataset()):  # a run keeps only the networks that it trained
            continue
        seed = int(node.to_dataset()["seed"][0])
        path = Path(folder) / "networks" / f"{name}_seed{seed}.safetensors"
        if not path.exists():
            continue
        try:
            saved = load_model(path)
            training = json.loads(saved.metadata.get("training", "{}"))
        except (InputError, ValueError) as error:
            notes.append(f"{path.name}: {error}")
            continue
        hidden = json.loads(node.attrs["hidden"])
        # a folder may hold networks of an earlier run: data, seed and widths must be the results'
        if (training.get("data"), training.get("seed"), list(saved.model.hidden)) == (data, seed, hidden):
            networks[name] = saved.model
        else:
            notes.append(f"{path.name} belongs to another run than the results")
    return networks, notes


def weights_of(model: AnyModel) -> list[np.ndarray] | None:
    """Return the weights of neurons on the image, [neuron, row, column] for each layer of an MLP of square images.

    Returns None for other networks. After the first layer, the weights are products of the layers' weights, as if the
    layers between were linear.
    """
    if not isinstance(model, MLP):
        return None
    # after the first layer a neuron's weights on the image are a product of matrices, which leaves out activations
    total, layers = None, []
    for stage in model.stages[:-1]:
        kernel = np.array(stage.weights[0], np.float64)
        total = kernel if total is None else total @ kernel
        side = math.isqrt(len(total))
        if side * side != len(total):
            return None
        layers.append(total.T.reshape(-1, side, side))
    return layers


def picture(weights: np.ndarray) -> str:
    """Return a PNG of weights [row, column] as a data URI: white at 0, orange below, violet above."""
    # the palette's middle is white, so each picture is scaled to be symmetric around 0
    limit = np.abs(weights).max() or 1.0
    return data_uri(matplotlib.colormaps["PuOr"](0.5 + weights / (2 * limit), bytes=True)[..., :3])


def data_uri(pixels: np.ndarray) -> str:
    """Return a PNG of pixels, uint8 [row, column] or [row, column, RGB], as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
