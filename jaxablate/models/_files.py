"""The file of a network: safetensors, with the settings that the weights do not show in its metadata.

Input: an `MLP` or an `nnx.Sequential` of known layers, strings of metadata and further arrays.
Output: one file with the tensors `stages.0.kernel` [in, out], `stages.0.bias` [out], ... and the further arrays; with
batch norm also `stages.0.batch_norm.scale`, `.bias`, `.mean` and `.var` [out]. For an `nnx.Sequential` the tensors are
`layers.0.kernel`, ..., and the metadata describe its layers.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxablate._checks import InputError, as_path, describe_value, require
from jaxablate._files import as_utf8, load_tensors, require_file, save_tensors
from jaxablate._rundir import digest
from jaxablate.models._chain import chain_tensors, describe_chain, is_chain, layers_of, pop_chain
from jaxablate.models._mlp import MLP, is_mlp, pop_tensors, set_image_shape, to_tensors

FORMAT = "jaxablate network 1"


@dataclass(frozen=True)
class SavedModel:
    """The contents of a file that `save_model` wrote.

    Attributes:
        model: the network, an `MLP` or an `nnx.Sequential`.
        metadata: strings that were saved with the network.
        arrays: further arrays that were saved with the network, for example its training history.
    """

    model: Any
    metadata: dict[str, str]
    arrays: dict[str, np.ndarray]


def save_model(
    model: MLP | nnx.Sequential, path: str | Path, metadata: Mapping[str, str] | None = None, **arrays: np.ndarray
) -> None:
    """Write a network as safetensors; the file appears whole or not at all.

    Args:
        model: an `MLP`, or an `nnx.Sequential` of the layers that `ja.models.from_pytorch` reads, `nnx.Dropout` and
            `ja.Site`.
        path: the file.
        metadata: strings to keep in the header. Characters that UTF-8 cannot encode are written as escapes.
        arrays: further arrays to keep in the file, for example a training history.

    Raises:
        InputError: for another model, a layer that cannot be written down, or metadata under a name that the format
            reserves.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
    """
    require(
        is_mlp(model) or is_chain(model),
        f"model: expected an MLP or an nnx.Sequential, without a __call__ of its own, got {type(model).__name__}; save "
        "other models yourself",
    )
    layers = layers_of(model)
    description = describe_chain(layers)
    path = as_path("network file", path)
    is_text = isinstance(metadata, Mapping | None) and all(
        isinstance(x, str) for x in itertools.chain(*(metadata or {}).items())
    )
    require(is_text, f"metadata: expected texts by name, got {describe_value(metadata)}")
    # safetensors writes the memory of an array as it lies, so a transposed view would be stored in the wrong order.
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    reserved = {"format": FORMAT}
    if is_mlp(model):
        tensors |= to_tensors(model)
        reserved |= {"activation": model.activation, "layer_sizes": _layer_sizes(model)}
        if model.dropout:
            reserved["dropout"] = repr(model.dropout)
    else:
        tensors |= chain_tensors(layers)
        reserved["layers"] = json.dumps(description)
    if (shape := getattr(model, "image_shape", None)) is not None:
        reserved["image_shape"] = json.dumps(shape)
    reserved["sha256"] = digest(tensors)
    taken = sorted({*reserved, "activation", "layer_sizes", "dropout", "image_shape", "layers"} & {*(metadata or {})})
    require(
        not taken, f"metadata: the format reserves {', '.join(taken)}; choose other names than {', '.join(reserved)}"
    )
    header = {**reserved, **(metadata or {})}
    header = {name: as_utf8(text) for name, text in header.items()}
    save_tensors(path, tensors, header)


def load_model(path: str | Path) -> SavedModel:
    """Read a file that `save_model` wrote.

    Args:
        path: the file, of at most 4 GiB; reading it takes as much memory again.

    Returns:
        A `SavedModel`: the network, its metadata, and the further arrays of the file.

    Raises:
        InputError: for a file that `save_model` did not write, or that was damaged later: its arrays must match the
            SHA-256 in its header.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
        >>> saved = ja.load_model(tmp_path / "model.safetensors")
        >>> saved.model.hidden, saved.metadata
        ((3,), {'seed': '0'})
    """
    path = as_path("network file", path)
    require_file("network file", path)
    try:
        metadata, tensors = load_tensors(path)
    except OSError as error:
        raise InputError(
            f"network file {path}: expected safetensors, got an unreadable file ({error}); write it again or remove it"
        ) from None
    file_format = metadata.pop("format", None)
    require(
        file_format == FORMAT,
        f"network file {path}: expected format {FORMAT!r}, as save_model writes it, got {file_format!r}",
    )
    # files of early versions have neither a checksum nor layer sizes
    checksum = metadata.pop("sha256", digest(tensors))
    require(
        checksum == digest(tensors),
        f"network file {path}: the arrays do not match the checksum in its header; write it again or remove it",
    )
    image_shape = json.loads(metadata.pop("image_shape", "[]"))
    if "layers" in metadata:
        try:
            chain = pop_chain(tensors, json.loads(metadata.pop("layers")))
        except (KeyError, ValueError, TypeError) as error:  # InputError is a ValueError
            raise _incomplete(path, error) from None
        set_image_shape(chain, (1, *image_shape), flat=True)
        return SavedModel(chain, metadata, tensors)
    try:
        model = pop_tensors(
            tensors,
            activation=metadata.pop("activation"),
            dropout=float(metadata.pop("dropout", 0)),
            image_shape=image_shape,
        )
    except (KeyError, ValueError) as error:  # InputError is a ValueError
        raise _incomplete(path, error) from None
    sizes = _layer_sizes(model)
    stated_sizes = metadata.pop("layer_sizes", sizes)
    require(
        stated_sizes == sizes,
        f"network file {path}: expected layer sizes {stated_sizes} as in its header, got weights of {sizes}",
    )
    return SavedModel(model, metadata, tensors)


def _incomplete(path: Path, error: Exception) -> InputError:
    return InputError(
        f"network file {path}: its arrays are not the weights of a whole network ({error}); write it again"
    )


def is_saved_model(path: str | Path) -> bool:
    """Return True if the header of the file says that `save_model` wrote it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _layer_sizes(model: MLP) -> str:
    """Return the number of inputs, of neurons in each hidden layer, and of classes, as a JSON list."""
    return json.dumps([model.stages[0].linear.in_features, *(stage.linear.out_features for stage in model.stages)])
