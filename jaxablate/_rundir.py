"""Manage the folder of a run: one owner at a time, and a file for each finished unit of work.

Input: the settings of a run and functions that compute its units.
Output: the arrays of the units, read from the folder if an interrupted run saved them there.
"""

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
from jaxablate._files import LEFTOVER, PRIVATE, atomic_path, load_tensors, require_writable, save_tensors
from jaxablate.devices import Arrays, broadcast_from_primary, broadcast_text

FORMAT = "jaxablate run 1"
RUN_FILE, OWNER_FILE = "run.json", "run.owner"
MAX_STEM = 150
"""Longest stem of a unit's file name; longer names end in a checksum, since file systems allow 255 bytes."""


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[str | None]:
    """Lock a folder against other runs and remove the partial files of a killed run.

    The operating system releases the lock when its owner ends, even if the owner is killed. The same thread may lock a
    folder again. If the lock created the folder and the folder is empty at the end, the folder is removed.

    Yields:
        A description of the previous owner, if that owner ended without releasing the folder; otherwise None.

    Raises:
        InputError: if another run holds the lock; the message names that run.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    owner, path = folder / OWNER_FILE, folder / "run.lock"
    # A lock of the operating system, not a file that marks an owner: a killed process cannot leave it behind. The file
    # of the owner only serves messages, and shows the next run that its predecessor was killed.
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = owner.read_text(errors="replace") if owner.is_file() else "an unknown process"
        raise InputError(
            f"output folder {folder}: another run is working there, {holder}; wait for it, stop it, or choose another "
            "folder"
        ) from None
    outermost = lock.lock_counter == 1
    try:
        # the file of the owner is only left over if the owner was killed
        killed = owner.read_text(errors="replace") if outermost and owner.is_file() else None
        if outermost:
            _remove_leftovers(folder)
            since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            owner.write_text(f"process {os.getpid()} on {platform.node()} since {since}")
        yield killed
    finally:
        if outermost:
            owner.unlink(missing_ok=True)
            if created and list(folder.iterdir()) == [path]:
                path.unlink()
                for empty in created:
                    empty.rmdir()
        lock.release()


@contextlib.contextmanager
def lock_folders(
    run_dir: Path | None, network_dir: Path | None, report: Callable[[str, int, int, str], None]
) -> Iterator[None]:
    """Check that two folders can be written, and lock the folder of the run until the context ends.

    If an earlier run in this folder was killed, it is reported. Process 0 alone locks and writes folders. An error in
    process 0 is raised in all processes, so that no process waits for one that has stopped.

    Args:
        run_dir: folder of the run, or None.
        network_dir: folder of the trained networks, or None.
        report: called with (what, done, total, note), as `on_progress` of `run_study`.

    Raises:
        InputError: for a folder that cannot be written, or a folder in which another run is working.
    """
    with contextlib.ExitStack() as locks:

        def lock() -> str:
            for folder in (run_dir, network_dir):
                if folder is not None:
                    require_writable(folder)
            return (locks.enter_context(lock_folder(run_dir)) if run_dir is not None else None) or ""

        if killed := broadcast_text(lock):
            report("resume", 0, 1, f"{killed} ended before it was done; its finished work is reused")
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove the private folders of `atomic_path` that a killed process left in the places where a run writes."""
    # subfolders may belong to other runs, so only the folders of this run are searched
    places = ("", "units/", "networks/", "figures/**/")
    for path in [path for place in places for path in folder.glob(f"{place}{PRIVATE}*")]:
        match = re.fullmatch(LEFTOVER, path.name)
        if match and path.is_dir() and not path.is_symlink() and {file.name for file in path.iterdir()} <= {match[1]}:
            shutil.rmtree(path)


@dataclass(frozen=True)
class CheckpointStore:
    """Store the arrays of finished units of work by name; without a folder nothing is stored.

    Attributes:
        folder: folder of the files, or None.
        run: digest of the run that the units belong to, from `open_run`.
        on_note: called with a sentence about each file that cannot be used.
    """

    folder: Path | None = None
    run: str = ""
    on_note: Callable[[str], None] = lambda note: None

    def get(self, name: str, inputs_digest: str, compute: Callable[[], Arrays]) -> Arrays:
        """Load a unit's arrays if an earlier run saved them; otherwise compute and save them.

        If there are several processes, all of them compute, since the devices of all may be needed; all of them return
        the arrays of process 0.

        Args:
            name: name of the unit.
            inputs_digest: digest of the unit's inputs in addition to the run's settings; if it differs from the saved
                one, the unit is computed again.
            compute: function that computes the arrays.
        """
        # Every unit is a file that appears atomically when it is complete. Its metadata names the run, the unit and the
        # inputs, and its checksum covers the arrays; a file that differs in any of these is computed again.
        if self.folder is None:
            computed = compute()
            return broadcast_from_primary(lambda: computed)
        stem = quote(name, safe=" +")
        if len(stem) > MAX_STEM:
            stem = f"{stem[:MAX_STEM]} {hashlib.sha256(name.encode()).hexdigest()[:16]}"
        path = self.folder / f"{stem}.safetensors"
        metadata = {"run": self.run, "unit": name, "inputs": inputs_digest}
        if saved := broadcast_from_primary(lambda: self._load(path, metadata) or {}):
            return saved
        computed = {key: np.ascontiguousarray(array) for key, array in compute().items()}

        def save() -> Arrays:
            save_tensors(path, computed, {**metadata, "sha256": digest(computed)})
            return computed

        return broadcast_from_primary(save)

    def _load(self, path: Path, metadata: dict[str, str]) -> Arrays | None:
        """Return the arrays of a file if its metadata and checksum match; otherwise None."""
        if not path.is_file():
            return None
        try:
            saved, arrays = load_tensors(path)
            if saved == {**metadata, "sha256": digest(arrays)}:
                return arrays
        except OSError:
            pass
        self.on_note(f"{path.name} is damaged, or belongs to another run or network; it is computed again")
        return None


def open_run(folder: Path, identity: Mapping[str, Any], *, force: bool) -> str:
    """Start a run in a locked folder, or resume the run that was started there.

    Args:
        folder: folder of the run.
        identity: everything that the results depend on, by name, as JSON values.
        force: discard the units of another run.

    Returns:
        A digest of the identity.

    Raises:
        InputError: if another run was started there, unless `force`; the message names the differences.
    """
    path, current = folder / RUN_FILE, json.loads(json.dumps({"format": FORMAT, **identity}))
    saved = _saved_identity(path)
    # Only units are discarded. Networks stay, since each file records its own settings and data, and is trained again
    # if they differ.
    if saved is not None and saved != current:
        if not force:
            names = "in the folder", "in this run"
            differences = format_differences(saved, current, names) if saved else f"its {RUN_FILE} cannot be read"
            raise InputError(
                f"output folder {folder}: another run was started there ({differences}); choose another folder, or "
                "start over there (force=True, --force)"
            )
        shutil.rmtree(folder / "units", ignore_errors=True)
    if saved != current:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n")
    return hashlib.sha256(json.dumps(current, sort_keys=True).encode()).hexdigest()


def format_differences(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Return the settings in which two runs differ, as text; `names` say where each run is.

    Example:
        >>> format_differences({"steps": 3}, {"steps": 2}, ("in a", "in b"))
        'steps: 3 in a, 2 in b'
    """
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return "; ".join(f"{key}: {first.get(key)} {names[0]}, {second.get(key)} {names[1]}" for key in keys)


def _saved_identity(path: Path) -> dict[str, Any] | None:
    """Return the identity that `open_run` wrote; None without a file, {} for a file that cannot be read."""
    if not path.is_file():
        return None
    try:
        identity = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return identity if isinstance(identity, dict) else {}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of arrays by name, including dtypes and shapes, in hexadecimal digits."""
    sha = hashlib.sha256()
    # Dtype and shape are part of the digest: equal bytes can be different arrays.
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
