"""Reading files with bounds and writing them atomically: a file is either completely the new one or absent.

Input: paths that a user names, and arrays.
Output: files; mistakes in a path become an `InputError`.
"""

import atexit
import contextlib
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate._checks import InputError, require

MAX_BYTES = 2**32
"""Largest size of a file to read, unpacked: 4 GiB."""


def require_file(what: str, path: str | Path, remedy: str = "") -> None:
    """Raise unless the path is a readable file of at most `MAX_BYTES`.

    Pipes and devices are refused, since they may never end.

    Args:
        what: kind of file, for messages.
        path: the file.
        remedy: end of the message if there is no file.

    Raises:
        InputError: with the reason.
    """
    # The checks follow one another from the path to the content: each message then names the first thing that is wrong.
    # The file is opened once, because only the attempt shows whether the system permits it.
    require(os.path.exists(path), f"{what} {path}: expected a file, got none{remedy}")
    kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
    require(os.path.isfile(path), f"{what} {path}: expected a file, got {kind}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror}); check its permissions") from None
    require(size <= MAX_BYTES, f"{what} {path}: expected at most {MAX_BYTES} bytes, got {size}")


def for_json(value: Any) -> Any:
    """Return the value with texts for paths and names, and None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {str(name): for_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


PRIVATE = ".jaxablate-"
unfinished: set[Path] = set()
"""Folders that `atomic_path` has made and not yet removed."""
LEFTOVER = re.escape(PRIVATE) + r"(.+)-[a-z0-9_]{8}"
"""Pattern of the folder that `atomic_path` makes for a file; the folder remains if the process is killed."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block ends without an error.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full.
    """
    # The temporary file has its own folder, so that the file keeps its suffix, on which some writers insist. The folder
    # is next to the target, because a rename is atomic only within one file system. fsync comes before the rename;
    # otherwise a power cut may leave the new name with no content. A signal may raise anywhere, also while the folder
    # is made or removed: `unfinished` has it by then, and it is removed at the exit.
    _require_expanded(Path(path).parent)
    # a link stays, and the file that it names is replaced
    path, target = Path(path), Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent / f"{PRIVATE}{path.name}-{secrets.token_hex(4)}"
        temporary = folder / path.name
        unfinished.add(folder)
        folder.mkdir(mode=0o700)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
            folder.rmdir()
            unfinished.discard(folder)
    except OSError as error:
        raise InputError(
            f"file {path}: cannot be written ({error}); choose a place with room and write permission"
        ) from None


@atexit.register
def remove_unfinished() -> None:
    """Remove the folders of `unfinished`."""
    while unfinished:
        shutil.rmtree(unfinished.pop(), ignore_errors=True)


def save_tensors(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays as a safetensors file, atomically.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would write a file that only its owner may read
        try:
            save_file(dict(arrays), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            # safetensors has its own error for a full disk; `atomic_path` turns every OSError into one sentence.
            raise OSError(error) from None
        temporary.chmod(mode)


def load_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read a safetensors file and return its metadata and its arrays by name.

    Raises:
        OSError: if the file cannot be read, is damaged, or has a dtype that NumPy lacks.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: a dtype that NumPy lacks
        raise OSError(error) from None


def shown_path(path: str | Path) -> str:
    """Return a path for results, which others may read: a relative path, or only the name of an absolute one."""
    path = Path(path)
    return path.name if path.is_absolute() else str(path)


def as_utf8(text: str) -> str:
    """Return a text that a file can hold: bytes of a file's name that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _require_expanded(folder: str | Path) -> None:
    """Raise for a folder that starts with `~`, which the shell has not replaced by the home folder."""
    require(
        not str(folder).startswith("~"),
        f"output folder {folder}: '~' does not stand for a home folder here; write the path in full",
    )


def require_writable(folder: str | Path) -> None:
    """Raise unless the folder can be written, or made if it does not exist; creates nothing that remains.

    Raises:
        InputError: with the reason.
    """
    _require_expanded(folder)
    path = Path(folder).absolute()
    require(
        path.exists() or not path.is_symlink(), f"output folder {folder}: is a link to nothing; choose another folder"
    )
    # A test by writing: permission bits say nothing about a read-only file system or a full quota. The parent answers
    # for a folder that does not exist yet.
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {folder}: cannot be written ({error.strerror}: {existing}); choose another folder"
        ) from None
