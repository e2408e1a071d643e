"""The folder of a run: one owner at a time, and each finished unit of work in a file of its own, so that the same run
goes on where it was interrupted."""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxablate._checks import InputError
from jaxablate._files import LEFTOVER, PRIVATE, atomic_path, save_tensors
from jaxablate._processes import Arrays, broadcast_from_primary

FORMAT = "jaxablate run 1"
RUN, OWNER = "run.json", "run.owner"
LONGEST = 150
"""Characters of a unit's file name; more are replaced by a checksum, since a file system takes 255."""


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[str | None]:
    """Keep other runs out of a folder; what a killed run has half written there is removed.

    The operating system drops the lock when its owner ends, however that happens. The same thread may lock again. A
    folder that was made for the lock and has nothing in it at the end goes with it.

    Yields:
        Who owned the folder and ended without giving it back, in words, or None.

    Raises:
        InputError: if another run is at work there; the message names it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    owner, path = folder / OWNER, folder / "run.lock"
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(errors="replace") if owner.is_file() else "a process that has not said which"
        raise InputError(
            f"output folder {folder}: expected no other run at work there, got {who}; wait for it, end it, or choose "
            "another folder"
        ) from None
    outermost = lock.lock_counter == 1
    try:
        killed = owner.read_text(errors="replace") if outermost and owner.is_file() else None
        if outermost:
            _remove_leftovers(folder)
            since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            owner.write_text(f"process {os.getpid()} on {platform.node()} since {since}")
        yield killed
    finally:
        if outermost:
            owner.unlink(missing_ok=True)
            if new and list(folder.iterdir()) == [path]:
                path.unlink()
                for made in new:
                    made.rmdir()
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove the private folders of `atomic_path` that a killed process has left where runs write; other folders below
    may be those of another run."""
    places = ("", "units/", "networks/", "figures/**/")
    for path in [path for place in places for path in folder.glob(f"{place}{PRIVATE}*")]:
        found = re.fullmatch(LEFTOVER, path.name)
        if found and path.is_dir() and not path.is_symlink() and {of.name for of in path.iterdir()} <= {found[1]}:
            shutil.rmtree(path)


@dataclass(frozen=True)
class CheckpointStore:
    """Units of work by name: kept in a folder, or computed each time where there is none.

    Attributes:
        folder: where they are kept, or None.
        run: what they belong to, as from `begin`.
        on_note: told of a file that cannot be used, in words.
    """

    folder: Path | None = None
    run: str = ""
    on_note: Callable[[str], None] = lambda note: None

    def get(self, name: str, basis: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a unit: read where a run that was interrupted has left them, computed and kept otherwise. All
        processes compute, since devices of all may take part; what process 0 has then, they all get.

        Args:
            name: of the unit.
            basis: a digest of what it is computed from beside the run's identity; of another basis it is computed anew.
            compute: computes it.
        """
        if self.folder is None:
            computed = compute()
            return broadcast_from_primary(lambda: computed)
        stem = quote(name, safe=" +")
        if len(stem) > LONGEST:
            stem = f"{stem[:LONGEST]} {hashlib.sha256(name.encode()).hexdigest()[:16]}"
        path = self.folder / f"{stem}.safetensors"
        metadata = {"run": self.run, "unit": name, "basis": basis}
        found = broadcast_from_primary(lambda: self._read(path, metadata) or {})
        if found:
            return found
        computed = {of: np.ascontiguousarray(array) for of, array in compute().items()}

        def kept() -> Arrays:
            save_tensors(path, computed, {**metadata, "sha256": digest(computed)})
            return computed

        return broadcast_from_primary(kept)

    def _read(self, path: Path, wanted: dict[str, str]) -> Arrays | None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                if file.metadata() == {**wanted, "sha256": digest(found)}:
                    return found
        except (SafetensorError, OSError, TypeError, AttributeError):  # the last two: a dtype that NumPy lacks
            pass
        self.on_note(f"{path.name} is damaged, of another run or of another network: computed anew")
        return None


def open_run(folder: Path, identity: Mapping[str, Any], *, force: bool) -> str:
    """Begin a run in a folder that is locked, or go on with it; return its fingerprint.

    Args:
        folder: of the run.
        identity: what results depend on, as JSON can hold it.
        force: drop what another run has left there.

    Raises:
        InputError: if another run was begun there, unless `force`; the message names the differences.
    """
    path, now = folder / RUN, json.loads(json.dumps({"format": FORMAT, **identity}))
    there = _identity_in(path)
    if there is not None and there != now:
        if not force:
            differences = differences_of(there, now) if there else f"its {RUN} cannot be read"
            raise InputError(
                f"output folder {folder}: expected the run that was begun there, got another ({differences}); choose "
                "another folder, or force this one (force=True, --force) to begin afresh"
            )
        shutil.rmtree(folder / "units", ignore_errors=True)
    if there != now:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    return hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()


def differences_of(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two runs differ in, in words."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names)


def _identity_in(path: Path) -> dict[str, Any] | None:
    """What `begin` has written; {} for a file that it has not."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays by name, with their dtypes and shapes, in hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
