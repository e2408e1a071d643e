"""Files: what may be read; and atomic writing, so that a file is either the whole new one or not there at all."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxablate._checks import InputError, require

MAX_BYTES = 2**32
"""The most that a file to read may hold, unpacked: 4 GiB."""


def require_file(what: str, path: str | Path, otherwise: str = "") -> None:
    """Raise unless there is a file of at most `MAX_BYTES` that can be opened; a pipe or a device is none, since it may
    never end.

    Args:
        what: names the file in messages.
        path: the file.
        otherwise: said where there is none.

    Raises:
        InputError: saying what is there instead.
    """
    require(os.path.exists(path), f"{what} {path}: expected a file, got none{otherwise}")
    kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
    require(os.path.isfile(path), f"{what} {path}: expected a file, got {kind}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{what} {path}: expected a file that can be read, got '{error.strerror}'") from None
    require(size <= MAX_BYTES, f"{what} {path}: expected at most {MAX_BYTES} bytes, got {size}")


PRIVATE = ".jaxablate-"
LEFTOVER = re.escape(PRIVATE) + r"(.+)-[a-z0-9_]{8}"
"""The name of the folder that `atomic_path` makes for a file, which stays behind when the process is killed."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there when the block ends without an error.

    Raises:
        InputError: if it cannot be written, for want of room, say.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp makes a private name, and a folder lets writers that insist on a file's suffix have theirs
        folder = Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{path.name}-", dir=path.parent))
        temporary = folder / path.name
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            folder.rmdir()
    except OSError as error:
        raise InputError(f"file {path}: expected a place with room that can be written, got '{error}'") from None


def save_tensors(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays as safetensors, atomically.

    Raises:
        InputError: if they cannot be written, for want of room, say.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(arrays), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(error) from None


def require_writable(folder: str | Path) -> None:
    """Prove that a folder can be written, or made where it does not exist yet; nothing is left behind.

    Raises:
        InputError: if it cannot.
    """
    path = Path(folder).absolute()
    require(
        path.exists() or not path.is_symlink(),
        f"output folder {folder}: expected a folder or a new name, got a link to nothing; choose another one",
    )
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {folder}: expected a folder that can be written, got '{error.strerror}' for {existing}; "
            "choose another one"
        ) from None
