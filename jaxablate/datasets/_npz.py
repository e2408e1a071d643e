"""NumPy archives: train_images, train_labels, test_images, test_labels, optionally validation_*."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxablate._checks import require
from jaxablate.datasets._types import (
    Dataset,
    InputError,
    Source,
    count_classes,
    make_dataset,
    make_split,
    sha256_of,
    split_off_validation,
)

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONAL = ("validation_images", "validation_labels")


def load_npz(path: Path, seed: int) -> Dataset:
    """Read an `.npz` archive; without validation arrays a sixth of the training examples serves for it.

    Images are [example, ...], uint8 in 0..255 or floating; classes are 0 to the largest training label.

    Raises:
        InputError: for a missing array, or one that is not what it should be.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in (*REQUIRED, *OPTIONAL) if key in archive.files}
            present = archive.files
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: expected an .npz archive of plain arrays, got an unreadable one ({error})") from None
    wanted = REQUIRED + (OPTIONAL if any(key in present for key in OPTIONAL) else ())
    missing = [key for key in wanted if key not in present]
    require(
        not missing,
        f"{path}: expected the arrays {', '.join(wanted)}, missing {', '.join(missing)}; it has {present}",
    )
    num_classes = count_classes(f"{path.name} train", arrays["train_labels"])

    def split(which: str):
        images, labels = arrays[f"{which}_images"], arrays[f"{which}_labels"]
        return make_split(f"{path.name} {which}", images, labels, num_classes)

    if wanted == REQUIRED:
        train, validation = split_off_validation(split("train"), seed)
    else:
        train, validation = split("train"), split("validation")
    source = Source(path.stem, f"NumPy archive {path}", {path.name: sha256_of(path)})
    return make_dataset(train, validation, split("test"), num_classes, source)
