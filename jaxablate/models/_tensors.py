"""Read the tensors of a PyTorch state dict from its file, without running any code that the file may hold.

Input: a `.safetensors`, `.pt`, `.pth` or `.ckpt` file of at most 4 GiB, unpacked too; or a state dict in memory.
Output: NumPy arrays by tensor name, in the order of the file (`.pt`) or of the names (`.safetensors`).
"""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from jaxablate._checks import InputError, JaxablateWarning, require
from jaxablate._files import MAX_BYTES, load_tensors, require_file

Tensors = dict[str, np.ndarray]
MAX_PICKLE_BYTES = 2**16
"""Size of the pickle in a `.pt` file, which lists the tensors: enough for about 600 of them, at 100 bytes each."""


class AssumptionWarning(JaxablateWarning):
    """A file or data leave something open; the message says what was assumed."""


def read_tensors(path: Path, state_key: str | None = None) -> Tensors:
    """Return the tensors of a state dict by name.

    Args:
        path: the file.
        state_key: key of the state dict in a checkpoint that has several, or None.

    Raises:
        InputError: for a file that cannot be read or that may do harm.
    """
    require_file("PyTorch file", path)
    part = re.search(r"-0*(\d+)-of-0*(\d+)$", path.stem)
    if part is not None and part[2] != "1":
        raise InputError(
            f"PyTorch file {path}: its name says that it is part {part[1]} of {part[2]}; join the tensors of all parts "
            "in one state dict, and pass it or save it as one file"
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        require(state_key is None, f"state_key: {path} has tensors alone, and no keys above them; leave it out")
        return _read_safetensors(path)
    require(
        suffix in (".pt", ".pth", ".ckpt"),
        f"PyTorch file {path}: expected .safetensors, .pt, .pth or .ckpt, got {path.suffix!r}; rename it to .pt if "
        "torch.save wrote it, else save model.state_dict() by torch.save or by safetensors.torch.save_file",
    )
    return _read_pt(path, state_key)


def find_state_dict(what: str, loaded: object, state_key: str | None) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint: the only mapping from names to tensors, or that of a key.

    Args:
        what: names the source in messages.
        loaded: a state dict, or a mapping that has state dicts among its values.
        state_key: key of the state dict, or None. A key that is no text, such as 0, is meant by its text too.

    Raises:
        InputError: if there is no state dict, if there are several and no key, or if the key is not among them.
    """
    if _is_state_dict(loaded):
        require(state_key is None, f"state_key: the {what} is a state dict itself; leave it out")
        return loaded
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    candidates = {key: value for key, value in entries if _is_state_dict(value)}
    # A checkpoint may keep the network in another form, for example with entries that are no tensors, next to a state
    # dict of something else.
    unread = [repr(key) for key, value in entries if key not in candidates and _has_weights(value)]
    require(
        state_key is not None or not (candidates and unread),
        f"state_key: the {what} has weights in {', '.join(unread)} too, which are no state dicts; choose one of "
        f"{', '.join(map(repr, candidates))} with state_key (--state-key), or save model.state_dict() by itself",
    )
    require(
        len(candidates) > 0,
        f"{what}: expected a state dict, which maps names to tensors, got {_describe(loaded)}; leave out the "
        "entries that are no tensors, or save model.state_dict() by itself",
    )
    if state_key is not None and state_key not in candidates:
        state_key = {str(key): key for key in candidates}.get(str(state_key), state_key)
    require(
        state_key in candidates if state_key is not None else len(candidates) == 1,
        f"state_key: the {what} has the state dicts {', '.join(map(repr, candidates))}, got {state_key!r}; choose one "
        "with state_key (--state-key)",
    )
    if state_key is not None:
        return candidates[state_key]
    ((key, state),) = candidates.items()
    # Numbers and texts, such as an epoch, and the states of optimizers leave nothing open. Anything else may hold the
    # network in a form that is not read here.
    rest = [name for name, value in entries if name != key and not _is_no_network(value)]
    if rest:
        warnings.warn(
            f"{what}: read the network from {key!r}, not from {', '.join(map(repr, rest))}; state_key (--state-key) "
            "names the entry",
            AssumptionWarning,
            stacklevel=4,
        )
    return state


def _is_state_dict(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return True for a mapping from names to tensors or arrays."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and _is_tensor(tensor) for name, tensor in value.items())
    )


def _has_weights(value: object) -> bool:
    """Return True for a container with a tensor whose name ends with "weight", at any depth.

    The states of optimizers have tensors too, but by numbers, not names.
    """
    if isinstance(value, Mapping):
        named = any(str(name).endswith("weight") and _is_tensor(tensor) for name, tensor in value.items())
        return named or any(map(_has_weights, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_weights, value))


def _is_no_network(value: object) -> bool:
    """Return True for numbers, texts, a single tensor, and the states of optimizers and schedulers."""
    if _is_tensor(value):
        return True
    if isinstance(value, Mapping):
        if "param_groups" in value:
            return True
        value = list(value.values())
    if isinstance(value, list | tuple):
        return not any(map(_is_tensor, value)) and all(map(_is_no_network, value))
    return value is None or isinstance(value, str | bytes | int | float)


def _is_tensor(value: object) -> bool:
    """Return True for a tensor or an array, also for a tensor of PyTorch without values, which has no shape."""
    return _is_uninitialized(value) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def _is_uninitialized(value: object) -> bool:
    return type(value).__name__ in ("UninitializedParameter", "UninitializedBuffer")


def require_plain(what: str, name: str, tensor: Any) -> Any:
    """Return a tensor that is an array, or that has all its numbers stored; raise for others."""
    require(
        not _is_uninitialized(tensor),
        f"{what}: {name} has no values yet; run the network once, which initialises it, and take its state dict again",
    )
    if not hasattr(tensor, "detach"):
        return tensor
    kind = str(tensor.layout)
    plain = kind == "torch.strided" and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    # A view can repeat a few stored numbers without limit, so its size says nothing about the size of the file.
    require(
        plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes(),
        f"{what}: expected plain tensors with all their numbers stored, got another for {name!r}; "
        "save tensor.detach().cpu().contiguous() by its name",
    )
    return tensor


def detached(values: Any) -> Any:
    """Return a tensor of PyTorch as a NumPy array, and other values as they are; bfloat16 becomes float32."""
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def to_numpy(tensor: Any) -> np.ndarray:
    """Return a tensor of PyTorch, or an array, as a NumPy array; bfloat16 becomes float32."""
    return np.asarray(detached(tensor))


FOREIGN = ("mlx", "flax", "jax", "tf", "tensorflow", "keras")  # formats in the metadata of other frameworks' files


def _read_safetensors(path: Path) -> Tensors:
    try:
        metadata, tensors = load_tensors(path)
        require(
            metadata.get("format") not in FOREIGN,
            f"PyTorch file {path}: its metadata say that {metadata.get('format')} wrote it, which stores weights in "
            "another layout; save PyTorch's state dict, or write the network in JAX and pass it to ja.from_function",
        )
        # safetensors.torch.save_model stores a shared tensor once, and maps its other names to it in the metadata
        tensors |= {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
        return {name: tensors[name] for name in sorted(tensors, key=_natural)}
    except OSError as error:
        remedy = "convert its tensors to float32 and save it again" if "float8" in str(error) else "save it again"
        raise InputError(
            f"PyTorch file {path}: expected safetensors, got an unreadable file ({error}); {remedy}"
        ) from None


def _natural(name: str) -> list[str | tuple[int, str]]:
    """Return a sort key that compares numbers within names by value, so that "layers.10" comes after "layers.2".

    A number is compared by its length and then its digits: Python refuses to convert more than 4,300 digits.
    """
    parts = re.split(r"0*(\d+)", name)
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def _read_pt(path: Path, state_key: str | None) -> Tensors:
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise InputError(
            f"PyTorch file {path}: {path.suffix} needs PyTorch, which is not installed; install torch, or save the "
            "state dict by safetensors.torch.save_file"
        ) from None
    try:
        _require_harmless(path)
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, which raises too
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything
        pickled = "GLOBAL" in str(error)
        contents = "pickled objects, which are not read since they may run code" if pickled else "unreadable data"
        remedy = "save it by torch.save(model.state_dict(), path)"
        if "TorchScript" in str(error):
            contents = "a TorchScript program"
        if "Uninitialized" in str(error):
            contents, remedy = (
                "parameters without values",
                "run the network once, which initialises it, and save it again",
            )
        raise InputError(f"PyTorch file {path}: expected a state dict, got {contents}; {remedy}") from None
    loaded = find_state_dict(f"PyTorch file {path}", loaded, state_key)
    for name, tensor in loaded.items():
        require_plain(f"PyTorch file {path}", name, tensor)
    size = sum(tensor.numel() * max(4, tensor.element_size()) for tensor in loaded.values())
    require(size <= MAX_BYTES, f"PyTorch file {path}: the tensors take {size} bytes; keep them within {MAX_BYTES}")
    return {name: to_numpy(tensor) for name, tensor in loaded.items()}


def _describe(loaded: object) -> str:
    """Return the contents of a file that is not a state dict, for a message."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    names = (repr(name) if isinstance(name, str) else f"a {type(name).__name__}" for name in loaded)
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in zip(names, loaded.values(), strict=True))


# torch.load(weights_only=True) runs no code, but two kinds of file still break the process. PyTorch hashes whatever a
# pickle uses as a key, and Python hashes a tuple by recursion over its contents. So a deep tuple overflows the C stack
# (64 bytes a level), and a tuple that repeats a tuple that repeats a tuple ... takes 2^depth steps. A pickle nests at
# most one level a byte, so MAX_PICKLE_BYTES keeps the recursion within half of the usual 8 MiB stack. The pickle of a
# state dict never fetches a tuple from the memo, and without such a fetch the work is linear in the size of the pickle.
def _require_harmless(path: Path) -> None:
    """Raise unless PyTorch can read a file in memory and time that its size suggests.

    Raises:
        InputError: for a file that is no zip archive, that unpacks to more than `MAX_BYTES`, or whose pickle is too
            large or repeats a tuple.
        Exception: for a damaged archive or pickle.
    """
    with open(path, "rb") as file:
        require(
            file.read(4) == b"PK\3\4",
            f"PyTorch file {path}: expected a zip archive, as torch.save writes it since PyTorch 1.6, got another "
            "file; save it again by torch.save(model.state_dict(), path)",
        )
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        require(size <= MAX_BYTES, f"PyTorch file {path}: it unpacks to {size} bytes; keep it within {MAX_BYTES}")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    _require_small_pickle(path, file.read(MAX_PICKLE_BYTES + 1))


def _require_small_pickle(path: Path, pickled: bytes) -> None:
    require(
        len(pickled) <= MAX_PICKLE_BYTES,
        f"PyTorch file {path}: its pickle takes more than {MAX_PICKLE_BYTES} bytes; save large state dicts by "
        "safetensors.torch.save_file",
    )
    tuples, maker = set(), ""  # memo ids of tuples; the opcode that made the object on top of the stack
    for opcode, memo_id, _ in pickletools.genops(pickled):
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            if "TUPLE" in maker:
                tuples.add(memo_id)
            continue
        repeated = opcode.name in ("BINGET", "LONG_BINGET") and memo_id in tuples
        require(not repeated, f"PyTorch file {path}: expected a state dict, got a pickle that repeats a tuple")
        maker = opcode.name
