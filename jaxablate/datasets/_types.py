"""The types of a dataset, and the checks that raw arrays pass on their way into it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxablate._checks import InputError, finite_float32, require, require_integers, require_labels
from jaxablate._typing import Images, Labels


@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
        images: float32 [example, ...]; for MNIST [example, height, width] in [0, 1].
        labels: int32 [example].
    """

    images: Images
    labels: Labels

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """Origin of a dataset: its name, a sentence on its origin, and the SHA-256 of every file by name."""

    name: str
    origin: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """A training, a validation and a test split, the number of classes, and the source."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    source: Source


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_split(what: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> Split:
    """Check raw arrays and return them as a `Split`.

    Args:
        what: names the split and its source in messages.
        images: [example, ...]; uint8 images are divided by 255, floating ones are not changed.
        labels: integers [example] in 0..num_classes-1.
        num_classes: number of classes.

    Raises:
        InputError: for another shape, dtype, range or number of labels.
    """
    require(
        images.ndim >= 2 and images.size > 0,
        f"{what} images: expected a non-empty array [example, ...], such as [example, height, width], got shape "
        f"{images.shape}",
    )
    require(
        labels.ndim == 1 and len(labels) == len(images),
        f"{what}: expected one label for each image, got {len(images)} images and labels of shape {labels.shape}",
    )
    try:
        # The shared check does not know which split and file the labels are from, so its message gets a prefix.
        require_labels(labels, len(images), num_classes)
    except InputError as error:
        raise InputError(f"{what} {error}") from None
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    else:
        require(
            np.issubdtype(images.dtype, np.floating),
            f"{what} images: expected uint8 in 0..255 or floating numbers, got dtype {images.dtype}",
        )
        images = finite_float32(f"{what} images", images)
        # Pixels saved as whole floating numbers up to 255 are a common mistake. A network takes them without an
        # error, 255 times too large, and every score follows from that.
        looks_like_bytes = images.min() >= 0 and 128 <= images.max() <= 255 and (images == images.round()).all()
        require(
            not looks_like_bytes,
            f"{what} images: expected floating numbers scaled as the network takes them, got whole numbers "
            f"{images.min():g}..{images.max():g}; store bytes as uint8, which are divided by 255",
        )
    return Split(images, labels.astype(np.int32))


# Bounds the arrays with an axis of classes (counts, logits, confusion): a single wrong label such as 2^31 would
# otherwise ask for terabytes.
MAX_CLASSES = 100_000


def count_classes(what: str, labels: np.ndarray) -> int:
    """Return the largest label + 1.

    Raises:
        InputError: for labels that are not integers, or more than `MAX_CLASSES`.
    """
    require_integers(f"{what} labels", labels)
    largest = int(labels.max(initial=0))
    require(
        largest < MAX_CLASSES, f"{what} labels: expected 0 to classes - 1, got {largest}; number the classes from 0"
    )
    return largest + 1


def dataset_of_arrays(
    what: str, arrays: Mapping[str, np.ndarray], source: Source, seed: int, num_classes: int | None = None
) -> Dataset:
    """Check raw arrays and join them to a dataset.

    Args:
        what: names the source in messages.
        arrays: `train_images`, `train_labels`, `test_images`, `test_labels`; also `validation_images` and
            `validation_labels`, otherwise one sixth of the training examples is split off for validation.
        source: where the arrays come from.
        seed: seed of the permutation that splits off the validation split.
        num_classes: number of classes; None uses the largest training label + 1.

    Raises:
        InputError: for arrays of another shape, dtype or range than expected, or images of several sizes.
    """
    if num_classes is None:
        num_classes = count_classes(f"{what} train", arrays["train_labels"])
    splits = {
        name: make_split(f"{what} {name}", arrays[f"{name}_images"], arrays[f"{name}_labels"], num_classes)
        for name in ("train", "validation", "test")
        if f"{name}_images" in arrays
    }
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_off_validation(splits["train"], seed)
    sizes = {split.images.shape[1:] for split in splits.values()}
    require(len(sizes) == 1, f"{source.name}: expected images of one size, got {sorted(sizes)}")
    return Dataset(**splits, num_classes=num_classes, source=source)


def split_off_validation(split: Split, seed: int) -> tuple[Split, Split]:
    """Split one sixth of the training examples off for validation by a seeded permutation (MNIST: 50,000 + 10,000)."""
    require(
        len(split) >= 6,
        f"training split: {len(split)} examples are too few to split one sixth off for validation; give at least 6, or "
        "an .npz file with its own validation split",
    )
    # The files may be sorted by class, so the validation split is drawn at random and not cut off the end.
    order = np.random.default_rng(seed).permutation(len(split))
    cut = len(split) - len(split) // 6
    train, validation = order[:cut], order[cut:]
    return Split(split.images[train], split.labels[train]), Split(split.images[validation], split.labels[validation])
