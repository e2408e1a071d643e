"""The file of a network: safetensors, with what the weights do not say in its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxablate._checks import InputError, require
from jaxablate._files import require_file, save_tensors
from jaxablate._rundir import digest
from jaxablate.models._mlp import MLP, from_arrays

FORMAT = "jaxablate network 1"


def save_model(model: MLP, path: str | Path, metadata: Mapping[str, str] | None = None, **arrays: np.ndarray) -> None:
    """Write a network as safetensors, atomically.

    Args:
        model: the network; kernels [in, out] and biases [out] go in as `stages.0.kernel`, ...
        path: the file.
        metadata: strings to keep in the header, beside the network's own; what UTF-8 lacks is written as escapes.
        arrays: further arrays to keep in the file, such as a training history.

    Raises:
        InputError: for another kind of network, or metadata under the network's own names.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
    """
    require(isinstance(model, MLP), f"model: expected an MLP, whose file says all of it, got {type(model).__name__}")
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for i, stage in enumerate(model.stages):
        kernel, bias = stage.weights
        tensors[f"stages.{i}.kernel"], tensors[f"stages.{i}.bias"] = np.array(kernel), np.array(bias)
    own = {"format": FORMAT, "activation": model.activation, "layer_sizes": _layer_sizes(model)}
    own["sha256"] = digest(tensors)
    taken = sorted({*own} & {*(metadata or {})})
    require(not taken, f"metadata: expected other names than {', '.join(own)}, got {', '.join(taken)}")
    header = {**own, **(metadata or {})}
    header = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in header.items()}
    save_tensors(path, tensors, header)


def load_model(path: str | Path) -> tuple[MLP, dict[str, str], dict[str, np.ndarray]]:
    """Read what `save_model` wrote.

    Args:
        path: the file, of at most 4 GiB; its arrays take as much memory again.

    Returns:
        The network, its metadata, and the further arrays of the file.

    Raises:
        InputError: for a file that `save_model` did not write, or that has been damaged since: a SHA-256 of the arrays
            is kept in it.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
        >>> model, metadata, arrays = ja.load_model(tmp_path / "model.safetensors")
        >>> model.hidden, metadata
        ((3,), {'seed': '0'})
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    require_file("network file", path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: a dtype that NumPy lacks
        raise InputError(
            f"network file {path}: expected safetensors, got an unreadable file ({error}); write it again or remove it"
        ) from None
    found = metadata.pop("format", None)
    require(found == FORMAT, f"network file {path}: expected format {FORMAT!r}, as save_model writes it, got {found!r}")
    told = metadata.pop("sha256", digest(tensors))  # older files lack it
    require(
        told == digest(tensors),
        f"network file {path}: expected arrays of the checksum it names, got damaged ones; write it again or remove it",
    )
    num_stages = sum(name.startswith("stages.") and name.endswith(".kernel") for name in tensors)
    try:
        kernels = [tensors.pop(f"stages.{i}.kernel") for i in range(num_stages)]
        biases = [tensors.pop(f"stages.{i}.bias") for i in range(num_stages)]
        model = from_arrays(kernels, biases, activation=metadata.pop("activation"))
    except (KeyError, InputError) as error:
        raise InputError(f"network file {path}: expected the weights of a whole network, but {error}") from None
    sizes = _layer_sizes(model)
    told = metadata.pop("layer_sizes", sizes)  # older files lack it
    require(told == sizes, f"network file {path}: expected layer sizes {told} as it says, got weights of {sizes}")
    return model, metadata, tensors


def is_saved_model(path: str | Path) -> bool:
    """Whether `save_model` wrote a file, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _layer_sizes(model: MLP) -> str:
    """Inputs, neurons of each hidden layer and classes, as a JSON list."""
    return json.dumps([model.stages[0].linear.in_features, *(stage.linear.out_features for stage in model.stages)])
