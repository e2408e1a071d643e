"""Tensors by name from the file of a PyTorch state dict, of which no code is run."""

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate._checks import InputError, require
from jaxablate._files import MAX_BYTES, require_file

Tensors = dict[str, np.ndarray]
LARGEST_TUPLE = 100
"""Objects in a tuple of a state dict's pickle, those in tuples inside it too; PyTorch's are of about 25."""


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file by name, those of safetensors in the order of the names.

    Raises:
        InputError: for a file that cannot be read, or must not be.
    """
    require_file("PyTorch file", path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    require(
        path.suffix in (".pt", ".pth"),
        f"PyTorch file {path}: expected .safetensors, .pt or .pth, got {path.suffix!r}; other pickles are not read, "
        "save model.state_dict() by torch.save as .pt or by safetensors.torch.save_file",
    )
    return _read_pt(path)


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys(), key=_natural)
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: a dtype that NumPy lacks
        raise InputError(
            f"PyTorch file {path}: expected safetensors, got an unreadable file ({error}); save it again"
        ) from None


def _natural(name: str) -> list[str | tuple[int, str]]:
    """A name as words and numbers in turn, so that "layers.10" comes after "layers.2"; of any length."""
    parts = re.split(r"0*(\d+)", name)
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def _read_pt(path: Path) -> Tensors:
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise InputError(
            f"PyTorch file {path}: expected PyTorch to read {path.suffix}, got none; install torch, or save the state "
            "dict by safetensors.torch.save_file"
        ) from None
    try:
        _require_harmless(path)
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # a file that was not meant as one may raise anything
        pickled = "GLOBAL" in str(error)
        found = "pickled objects, which are not read since they may run code" if pickled else "what PyTorch cannot read"
        raise InputError(
            f"PyTorch file {path}: expected a state dict, got {found}; save it by torch.save(model.state_dict(), path)"
        ) from None
    require(
        isinstance(loaded, Mapping)
        and all(isinstance(name, str) and isinstance(of, torch.Tensor) for name, of in loaded.items()),
        f"PyTorch file {path}: expected a state dict, which maps names to tensors, got {_told(loaded)}; save "
        "model.state_dict() by itself",
    )
    for name, of in loaded.items():
        plain = of.layout is torch.strided and of.device.type == "cpu" and not (of.is_quantized or of.is_nested)
        # a view may repeat a few stored numbers without an end
        require(
            plain and of.numel() * of.element_size() <= of.untyped_storage().nbytes(),
            f"PyTorch file {path}: expected plain tensors with all their numbers stored, got another for {name!r}; "
            "save tensor.detach().cpu().contiguous() by its name",
        )
    size = sum(of.numel() * max(4, of.element_size()) for of in loaded.values())
    require(size <= MAX_BYTES, f"PyTorch file {path}: expected tensors of at most {MAX_BYTES} bytes, got {size}")
    tensors = {name: tensor.detach() for name, tensor in loaded.items()}
    # NumPy has no bfloat16
    return {name: (of.float() if of.is_floating_point() else of).numpy() for name, of in tensors.items()}


def _told(loaded: object) -> str:
    """What a file has instead of tensors by name."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    names = (repr(name) if isinstance(name, str) else f"a {type(name).__name__}" for name in loaded)
    return ", ".join(f"{name} ({type(of).__name__})" for name, of in zip(names, loaded.values(), strict=True))


def _require_harmless(path: Path) -> None:
    """Raise unless the pickles of a file can be read in the memory and the time that its size suggests.

    Raises:
        InputError: for more than `MAX_BYTES` unpacked, or tuples in tuples without an end.
        Exception: for a file that is none of PyTorch's.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            for _ in range(5):  # of the format before PyTorch 1.6: two numbers, the machine, the state dict, its keys
                _require_small_tuples(path, file)
            return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        require(size <= MAX_BYTES, f"PyTorch file {path}: expected at most {MAX_BYTES} bytes unpacked, got {size}")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    _require_small_tuples(path, file)


def _require_small_tuples(path: Path, file: Any) -> None:
    """Follow one pickle, without making anything, and raise for a tuple of more than `LARGEST_TUPLE` objects.

    Python hashes a tuple by all that is in it, and PyTorch hashes what a pickle has for names: a million tuples in each
    other overflow the stack, and sixty, each of which holds the last one twice, take for ever.
    """
    sizes: list[int] = []  # of what the unpickler would have on its stack
    marks, memo = [], {}
    for opcode, argument, _ in pickletools.genops(file):
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            marks.append(len(sizes))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = sizes[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            sizes.append(memo[argument])
        else:
            start = marks.pop() if pickletools.markobject in before else len(sizes)
            if pickletools.markobject in before:
                start -= before.index(pickletools.markobject)
            else:
                start -= len(before)
            size = 1 + sum(sizes[start:]) if "TUPLE" in name else 1
            require(size <= LARGEST_TUPLE, f"PyTorch file {path}: expected a state dict, got tuples in tuples")
            del sizes[start:]
            sizes += [size] * len(opcode.stack_after)
