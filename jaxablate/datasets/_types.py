"""The types of a dataset, and the checks that raw arrays pass on their way into it."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate._checks import (
    JaxablateWarning,
    check_labels,
    describe_value,
    finite_float32,
    host_array,
    is_floating,
    require,
    require_count,
    require_same_features,
    require_same_index,
)
from jaxablate._rundir import digest
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

    def __repr__(self) -> str:
        """Return the number and the shape of the examples; the arrays would fill the screen."""
        return f"Split({len(self):,} examples of shape {np.shape(self.images)[1:]})"


@dataclass(frozen=True)
class Source:
    """Origin of a dataset: its name, a sentence on its origin, and the SHA-256 of every file by name."""

    name: str
    origin: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """A training, a validation and a test split, the number of classes, and the source.

    `ja.load_dataset` reads a dataset from files; `from_arrays` makes a dataset from arrays in memory.

    Example:
        >>> random = np.random.default_rng(0)
        >>> images, labels = random.random((90, 12), np.float32), random.integers(0, 3, 90)
        >>> data = ja.Dataset.from_arrays(images, labels, name="noise")
        >>> len(data.train), len(data.validation), len(data.test), data.num_classes
        (60, 12, 18, 3)
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    source: Source

    def __repr__(self) -> str:
        """Return the name and the sizes; the arrays would fill the screen."""
        splits = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("train", "validation", "test"))
        shape = np.shape(self.train.images)[1:]
        return f"Dataset({self.source.name!r}: {splits} examples of shape {shape}, {self.num_classes} classes)"

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        test: tuple[Any, Any] | None = None,
        validation: tuple[Any, Any] | None = None,
        name: str = "arrays",
        seed: int = 2045,
    ) -> "Dataset":
        """Make a dataset from arrays in memory, with the same checks as for an `.npz` file.

        Args:
            images: [example, ...], images of the training split. uint8 images are divided by 255; floating-point images
                are not changed.
            labels: integers [example] from 0. The number of classes is the largest label + 1.
            test: images and labels of the test split. None splits off a random fifth of the examples.
            validation: images and labels of the validation split. None splits off a random sixth of the examples that
                remain after the test split.
            name: name of the dataset in results.
            seed: seed of the permutations that split off examples.

        Returns:
            A `Dataset` of copies of the arrays, with the SHA-256 of every array of every split.

        Raises:
            InputError: for arrays of another shape, dtype or range than expected, images of several sizes, or too few
                examples to split. Labels of another form (one-hot, texts, floating numbers) are not converted: the
                message has the expression that converts them.

        Warns:
            JaxablateWarning: if a split has no example of some class, as with labels from 1; or if floating-point
                training images of 64 numbers or more reach from 0 or more to 128..255, as pixels that are not scaled.

        Example:
            >>> images, labels = np.zeros((6, 28, 28), np.uint8), np.arange(6)
            >>> len(ja.Dataset.from_arrays(images, labels, test=(images, labels)).validation)
            1
        """
        require(isinstance(name, str) and name != "", f"name: expected a text, got {describe_value(name)}")
        seed = require_count("seed", seed, 0)
        arrays = {"train_images": images, "train_labels": labels}
        for split, pair in (("test", test), ("validation", validation)):
            if pair is not None:
                require(
                    isinstance(pair, tuple | list) and len(pair) == 2,
                    f"{split}: expected a pair (images, labels), got {type(pair).__name__}",
                )
                arrays[f"{split}_images"], arrays[f"{split}_labels"] = pair
        for split in ("train", "test", "validation"):
            require_same_index(f"{name} {split} labels", arrays.get(f"{split}_images"), arrays.get(f"{split}_labels"))
            require_same_features(f"{name} {split} images", arrays.get(f"{split}_images"), images)
        # A copy: a later change of the user's array must not change data whose checksum is known.
        copies = {key: host_array(f"{name} {key.replace('_', ' ')}", array).copy() for key, array in arrays.items()}
        origin = "in memory"
        if test is None:
            origin += f", split at random by seed {seed}"
        elif validation is None:
            origin += f", validation split taken from train by seed {seed}"
        data = dataset_of_arrays(name, copies, Source(name, origin, {}), seed)
        warn_of_content(data)
        return _with_checksums(data)


def _arrays_of(data: Dataset) -> dict[str, np.ndarray]:
    """Return the arrays of a dataset, by the names that `dataset_of_arrays` takes."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        f"{name}_{kind}": np.asarray(getattr(split, kind))
        for name, split in splits.items()
        for kind in ("images", "labels")
    }


def _with_checksums(data: Dataset) -> Dataset:
    """Return the dataset with the checksums of its arrays, by name, instead of the checksums of its files."""
    checksums = {name: digest({name: array}) for name, array in _arrays_of(data).items()}
    return replace(data, source=replace(data.source, sha256=checksums))


def require_dataset(data: object) -> None:
    """Raise `InputError` unless the data are a `Dataset`."""
    require(
        isinstance(data, Dataset),
        f"data: expected a Dataset, such as ja.Dataset.from_arrays(images, labels), got {type(data).__name__}",
    )


def check_dataset(data: Dataset) -> Dataset:
    """Return a dataset after the same checks as for a file, with the checksums of its arrays.

    Raises:
        InputError: for an object that is no `Dataset`, or arrays of another shape, dtype or range than expected.
    """
    require_dataset(data)
    # Users can make a dataset by hand or replace its arrays, so the source says nothing certain about the content.
    return _with_checksums(dataset_of_arrays(data.source.name, _arrays_of(data), data.source, 0, data.num_classes))


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
    labels = check_labels(labels, num_classes=num_classes, argument=f"{what} labels")
    require(
        len(labels) == len(images),
        f"{what}: expected one label for each image, got {len(images)} images and labels of shape {labels.shape}",
    )
    if images.dtype == np.uint8:
        require(
            bool(images.max() != 1),
            f"{what} images: expected bytes in 0..255, which are divided by 255, got uint8 in 0..{images.max()}; pass "
            "images.astype(np.float32) if the network takes 0 and 1",
        )
        images = images.astype(np.float32) / np.float32(255)
    else:
        require(
            is_floating(images.dtype),
            f"{what} images: expected uint8 in 0..255 or floating numbers, got dtype {images.dtype}; "
            + _dtype_remedy(images),
        )
        images = finite_float32(f"{what} images", images)
        # Pixels saved as whole floating numbers up to 255 are a common mistake. A network takes them without an
        # error, 255 times too large, and every score follows from that.
        looks_like_bytes = (
            images.ndim > 2 and images.min() >= 0 and 128 <= images.max() <= 255 and (images == images.round()).all()
        )
        require(
            not looks_like_bytes,
            f"{what} images: expected floating numbers scaled as the network takes them, got whole numbers "
            f"{images.min():g}..{images.max():g}; store bytes as uint8, which are divided by 255",
        )
    return Split(images, labels.astype(np.int32))


def _dtype_remedy(images: np.ndarray) -> str:
    """Return how images of another dtype become images that a network takes."""
    if images.dtype.kind in "ui" and images.min() >= 0 and images.max() <= 255:
        return "pixels are .astype(np.uint8), features .astype(np.float32)"
    if images.dtype.kind in "uib":
        return "pass them as .astype(np.float32), scaled as the network takes them"
    return "pass numbers"


# Bounds the arrays with an axis of classes (counts, logits, confusion): a single wrong label such as 2^31 would
# otherwise ask for terabytes.
MAX_CLASSES = 100_000
MAX_RATIO = 50
"""Ratio of the largest magnitudes of two splits from which they have different scales, such as 0..1 and 0..255."""
SMALLEST_IMAGE = 64
"""Fewer numbers of an example are features; such a table may have ages and counts in 0..255."""
EXPECTED_NEGATIVE = 50
"""Number of negative values to expect in a split from which it has another scale if it has none."""


def count_classes(what: str, labels: np.ndarray) -> int:
    """Return the largest label + 1.

    Raises:
        InputError: for labels that are not integers, or more than `MAX_CLASSES`.
    """
    check_labels(labels, argument=f"{what} labels")
    largest = int(labels.max(initial=0))
    require(
        largest < MAX_CLASSES, f"{what} labels: expected 0 to classes - 1, got {largest}; number the classes from 0"
    )
    return largest + 1


SPLITS = ("train", "validation", "test")


def dataset_of_arrays(
    what: str, arrays: Mapping[str, np.ndarray], source: Source, seed: int, num_classes: int | None = None
) -> Dataset:
    """Check raw arrays and join them to a dataset.

    Args:
        what: names the source in messages.
        arrays: `train_images` and `train_labels`. Without `test_images` and `test_labels`, a fifth of the training
            examples becomes the test split. Without `validation_images` and `validation_labels`, a sixth of the
            training examples that remain becomes the validation split (MNIST: 50,000 + 10,000).
        source: where the arrays come from.
        seed: seed of the permutations that split off examples.
        num_classes: number of classes; None uses the largest training label + 1.

    Raises:
        InputError: for arrays of another shape, dtype or range than expected, or images of several sizes.
    """
    # The training labels decide: a network cannot learn a class that only the test split has.
    if num_classes is None:
        num_classes = count_classes(f"{what} train", arrays["train_labels"])
    dtypes = {name: arrays[f"{name}_images"].dtype for name in SPLITS if f"{name}_images" in arrays}
    splits = {
        name: make_split(f"{what} {name}", arrays[f"{name}_images"], arrays[f"{name}_labels"], num_classes)
        for name in dtypes
    }
    require(
        len({dtype == np.uint8 for dtype in dtypes.values()}) == 1,
        f"{what}: expected images of one kind, got {', '.join(f'{name} {dtype}' for name, dtype in dtypes.items())}; "
        "uint8 images are divided by 255 and others are not, so give all splits the same",
    )
    if "test" not in splits:
        splits["train"], splits["test"] = _split_off("test", 5, splits["train"], seed)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _split_off("validation", 6, splits["train"], seed)
    sizes = {split.images.shape[1:] for split in splits.values()}
    require(len(sizes) == 1, f"{source.name}: expected images of one size, got {sorted(sizes)}")
    difference = difference_of_scales({name: split.images for name, split in splits.items()})
    require(not difference, f"{what}: expected images of one scale, {difference}; scale all splits alike")
    if any(dtype == np.uint8 for dtype in dtypes.values()):
        source = replace(source, origin=f"{source.origin}, uint8 images divided by 255")
    return Dataset(**splits, num_classes=num_classes, source=source)


def difference_of_scales(images: Mapping[str, Images]) -> str:
    """Say how the scales of arrays of images by name differ, for example 0..1 and 0..255; "" if they do not."""
    ends = {name: (float(array.min()), float(array.max())) for name, array in images.items()}
    ranges = {name: max(-lowest, highest) for name, (lowest, highest) in ends.items()}
    if max(ranges.values()) > MAX_RATIO * min(ranges.values()) > 0:
        texts = ", ".join(f"{name} {largest:g}" for name, largest in ranges.items())
        return f"got largest magnitudes that differ {MAX_RATIO}-fold or more ({texts})"
    signs = {lowest < 0 for lowest, _ in ends.values()}
    if len(signs) == 2:  # most images have no negative value, and need no count
        negative = {name: float((array < 0).mean()) for name, array in images.items()}
        signed = max(negative, key=lambda name: negative[name])
        for name, array in images.items():
            if negative[name] == 0 and negative[signed] * array.size >= EXPECTED_NEGATIVE:
                return f"but {100 * negative[signed]:.1f}% of the values of {signed} are negative and none of {name}"
    return ""


def warn_of_content(data: Dataset) -> None:
    """Warn of what is probably a mistake: pixels in 0..255, and classes without an example in a split."""
    low, high = float(data.train.images.min()), float(data.train.images.max())
    is_image = data.train.images[0].size >= SMALLEST_IMAGE
    if is_image and low >= 0 and 128 <= high <= 255:  # whole numbers with two axes or more are refused before
        warnings.warn(
            f"{data.source.name}: the training examples reach from {low:g} to {high:g} and are not scaled; if they are "
            "pixels of 0 to 255 and the network takes 0 to 1, divide them by 255",
            JaxablateWarning,
            stacklevel=3,
        )
    _warn_of_absent_classes(data)


def _warn_of_absent_classes(data: Dataset) -> None:
    """Warn if a split has no example of some class: labels from 1, or a mark such as 255, would add classes."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    absent = {name: np.setdiff1d(np.arange(data.num_classes), split.labels).tolist() for name, split in splits.items()}
    everywhere = set(absent["train"]).intersection(absent["validation"], absent["test"])
    parts = [f"no split has an example of {_name_classes(sorted(everywhere))}"] if everywhere else []
    for name, classes in absent.items():
        if more := [label for label in classes if label not in everywhere]:
            parts.append(f"{name} has no example of {_name_classes(more)}")
    if parts:
        # Few examples may lack a class by chance; a class that no split has comes from the numbers of the labels.
        remedy = "; shuffle the examples before you split them, or give more" if absent["train"] else ""
        remedy = "; number the classes from 0 without gaps" if everywhere else remedy
        warnings.warn(
            f"{data.source.name}: of the {data.num_classes} classes, {', '.join(parts)}{remedy}",
            JaxablateWarning,
            stacklevel=4,
        )


def _name_classes(classes: list[int]) -> str:
    """Return the classes as text, at most five of them by number."""
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return f"class{'' if len(classes) == 1 else 'es'} {', '.join(map(str, classes[:5]))}{more}"


def _split_off(name: str, part: int, split: Split, seed: int) -> tuple[Split, Split]:
    """Split off one in `part` training examples by a seeded permutation, for example one in 6 for validation."""
    require(
        len(split) >= part,
        f"training split: {len(split)} examples are too few to split one in {part} off for {name}; give at least "
        f"{part}, or arrays of the {name} split",
    )
    # The examples may be sorted by class, so the new split is drawn at random and not cut off the end.
    order = np.random.default_rng(seed).permutation(len(split))
    cut = len(split) - len(split) // part
    kept, new = order[:cut], order[cut:]
    return Split(split.images[kept], split.labels[kept]), Split(split.images[new], split.labels[new])
