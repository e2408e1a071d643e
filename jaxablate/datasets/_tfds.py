"""Load MNIST, Fashion-MNIST and KMNIST through TensorFlow Datasets (TFDS): its URLs, checksums and cache.

TensorFlow itself is not needed: TFDS downloads and verifies the IDX files, and `_idx` parses them.
"""

import os
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

from jaxablate._checks import InputError, require
from jaxablate._files import shown_path
from jaxablate.datasets._idx import FILES, dataset_from_idx
from jaxablate.datasets._types import Dataset, sha256_of

NAMES = ("mnist", "fashion_mnist", "kmnist")
DATA_DIR_VARIABLE = "JAXABLATE_DATA_DIR"
_IMPORT = threading.Lock()  # TFDS imports lazily; imports by two threads at once can wait for each other forever
PROBE_SECONDS = 5.0  # for one request; with the look-up of the name at most twice as long


class DatasetUnavailableError(InputError):
    """The files are not available and no server answers."""


def local_folders(name: str, data_dir: str | Path | None) -> list[Path]:
    """Return the user's folders that may hold the files of a dataset; [] if the user gave no folder.

    The user gives a folder by `data_dir`, else by the environment variable. Its subfolder with the name of the dataset
    comes first, because the three datasets have the same file names.
    """
    given = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return [Path(given) / name, Path(given)] if given else []


def _missing(folder: Path) -> list[str]:
    """Return the names of the canonical files that a folder lacks."""
    return [f"{file}.gz" for file in FILES.values() if not os.path.isfile(folder / f"{file}.gz")]


def local_folder(name: str, data_dir: str | Path | None) -> Path | None:
    """Return the first of the user's folders that has all files of a dataset, or None."""
    return next((folder for folder in local_folders(name, data_dir) if not _missing(folder)), None)


def _reachable(url: str) -> bool:
    """Return True if a server answers for the URL; TFDS itself would retry for minutes."""
    answers = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
                answers.append(True)
        except (OSError, ValueError):  # URLError and timeouts are OSErrors
            answers.append(False)

    # a thread, because no timeout covers the look-up of the name
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(2 * PROBE_SECONDS)
    return answers == [True]


class _Registry:
    """The four URLs of a dataset in TFDS, their checksums, and the state of TFDS's cache."""

    def __init__(self, name: str):
        with _IMPORT:
            self._read(name)

    def _read(self, name: str) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import constants
        from tensorflow_datasets.core.download.resource import get_dl_fname, get_info_path, is_locally_cached

        tfds.disable_progress_bar()
        builder: Any = tfds.builder_cls(name)
        self.url_infos: Any = builder.url_infos
        self.urls = {key: f"{builder.URL}{file}.gz" for key, file in FILES.items()}
        self.downloads = Path(os.path.expanduser(constants.DATA_DIR)) / "downloads"
        is_cached: Any = is_locally_cached
        info_path: Any = get_info_path
        self.absent, self.damaged = [], []
        # TFDS trusts the file names of its cache; here the checksums decide.
        for url in self.urls.values():
            checksum = self.url_infos[url].checksum
            file = self.downloads / name / get_dl_fname(url, checksum)
            if file.is_file() and sha256_of(file) != checksum:
                self.damaged.append(file)
            elif is_cached(file):
                continue
            # TFDS keeps a record of each file. Both are removed before a download, so no record of a damaged one stays.
            self.absent += [file, info_path(file)]
        self.cached = not self.absent


def availability(name: str, data_dir: str | Path | None = None) -> str:
    """Return where `load_dataset(name)` would read the files: a folder, the cache, a server, or nowhere."""
    # The folder counts as complete only if its files have the right checksums, because `load_tfds` refuses all others.
    folders, registry = local_folders(name, data_dir), _Registry(name)
    if folders:
        folder = local_folder(name, data_dir) or folders[-1]
        files = {folder / f"{FILES[key]}.gz": url for key, url in registry.urls.items()}
        readable = all(os.path.isfile(path) and os.access(path, os.R_OK) for path in files)
        complete = readable and all(sha256_of(p) == registry.url_infos[url].checksum for p, url in files.items())
        return f"{'in' if complete else 'not in'} {folder}"
    if registry.cached:
        return "cached"
    return "reachable" if _reachable(registry.urls["test_labels"]) else "not reachable"


def load_tfds(name: str, seed: int, data_dir: str | Path | None) -> Dataset:
    """Load one of `NAMES` from `data_dir`, the cache or its server, and verify its checksums.

    Raises:
        DatasetUnavailableError: if the files are not available and no server answers.
        InputError: for a folder without the four files, or a file with another checksum. If a server answers, a damaged
            file in the cache is downloaded again.
    """
    from tensorflow_datasets.core import download
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    folders, folder = local_folders(name, data_dir), local_folder(name, data_dir)
    registry = _Registry(name)
    if folders:
        named, given = folders
        require(os.path.isdir(given), f"{name}: expected a folder with its four files, got {given}, which is none")
        require(
            folder is not None,
            f"{name}: expected the four gzipped IDX files in folder {named} or {given}, missing "
            f"{', '.join(min(map(_missing, folders), key=len))}; a folder of other IDX files is read when given as the "
            "dataset itself",
        )
        origin = f"canonical files in the folder {shown_path(str(folder))}, checksums verified by TFDS"
    elif registry.cached:
        origin = "cache of TFDS"
    elif _reachable(registry.urls["test_labels"]):
        origin = f"downloaded by TFDS from {os.path.dirname(registry.urls['test_labels'])}"
    elif registry.damaged:
        raise InputError(
            f"{registry.damaged[0]}: expected {name}'s file with the SHA-256 that TFDS knows, got a damaged one and no "
            "answer from its server; connect to the internet to download it again, or remove it"
        )
    else:
        raise DatasetUnavailableError(
            f"{name} is neither cached nor reachable: connect to the internet, or give a folder with the four "
            f"files ({', '.join(f'{file}.gz' for file in FILES.values())}) as data_dir, --data-dir or "
            f"{DATA_DIR_VARIABLE}, or use mnist5k, which is always available"
        )
    with tempfile.TemporaryDirectory() as scratch:  # with a folder of the user's, the cache is not touched
        try:
            for file in () if folder else registry.absent:
                file.unlink(missing_ok=True)
            manager: Any = download.DownloadManager(
                download_dir=scratch if folder else registry.downloads,
                manual_dir=folder,
                url_infos=registry.url_infos,
                dataset_name=name,
                force_checksums_validation=True,
            )
            paths = {key: Path(path) for key, path in manager.download(registry.urls).items()}
        except NonMatchingChecksumError:
            raise InputError(
                f"{name}: expected files with the checksums that TFDS knows, got others in "
                f"{folder or 'the download'}; they are damaged or belong to another dataset"
            ) from None
        except (download.DownloadError, OSError) as error:
            doing = f"reading {folder}" if folder else "the download"
            raise InputError(f"{name}: {doing} failed ({' '.join(str(error).split())}); try again") from None
    for key, path in paths.items():  # TFDS also trusts the names in caches of its older versions
        want, got = registry.url_infos[registry.urls[key]].checksum, sha256_of(path)
        require(want == got, f"{path}: expected {name}'s file with SHA-256 {want}, got {got}; remove it and try again")
    return dataset_from_idx(paths, name, origin, seed, num_classes=10)
