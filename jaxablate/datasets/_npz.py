"""Read datasets from NumPy archives with train_images, train_labels, test_images, test_labels, or other usual names."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxablate._checks import NUMBER_CLASSES, InputError, require
from jaxablate._files import MAX_BYTES, require_file, shown_path
from jaxablate.datasets._types import Dataset, Source, dataset_of_arrays, sha256_of

NAMINGS = {
    "train_images, train_labels, ...": ("{}_images", "{}_labels"),
    "x_train, y_train, ...": ("x_{}", "y_{}"),
    "X_train, y_train, ...": ("X_{}", "y_{}"),
}
"""Names of images and of labels; the braces stand for a split."""
SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val", "valid")}
PAIRS = ("X", "y"), ("x", "y"), ("images", "labels"), ("data", "target")
"""Names of images and labels that are not split yet."""
ACCEPTED = f"{'; or '.join(NAMINGS)} (train and test, optionally validation); or one pair " + ", ".join(
    f"({images}, {labels})" for images, labels in PAIRS
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy writes these; Python unpacks other methods without a bound
HEADER = 2**16  # NumPy accepts headers of up to 10,000 bytes
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_npz(path: Path, seed: int) -> Dataset:
    """Read an `.npz` archive; without validation arrays, one sixth of the training examples serves as validation.

    A single pair of images and labels is split into all three splits. The origin of the source names what was assumed.

    Images are [example, ...], uint8 in 0..255 or floating. Classes are 0 to the largest training label. Nothing is
    unpacked to disk and no pickle is read. Memory is bounded by the size of the entries, 4 GiB at most.

    Raises:
        InputError: for a missing array, several namings, or an array of another kind than expected.
    """
    require_file("NumPy archive", path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays, assumed = _read_arrays(path, archive, seed)
    except InputError:
        raise
    except Exception as error:  # a hostile file makes zipfile and NumPy raise anything
        raise InputError(f"{path}: expected an .npz archive of plain arrays, got an unreadable one ({error})") from None
    notes = f" ({'; '.join(assumed)})" if assumed else ""
    source = Source(path.stem, f"NumPy archive {shown_path(path)}{notes}", {path.name: sha256_of(path)})
    return dataset_of_arrays(path.name, arrays, source, seed)


def _read_arrays(path: Path, archive: zipfile.ZipFile, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read the arrays of the splits that the archive has, by the names that `dataset_of_arrays` takes.

    Returns:
        The arrays, and what was assumed, in words.

    Raises:
        InputError: for missing or repeated arrays, or for more than `MAX_BYTES` in total.
    """
    entries = archive.infolist()
    present = [entry.filename.removesuffix(".npy") for entry in entries]
    names = _choose_names(path, present)
    doubled = [name for name in names.values() if present.count(name) > 1]
    require(not doubled, f"{path}: expected each array once, got {', '.join(doubled)} several times; save it again")
    chosen = {key: entries[present.index(name)] for key, name in names.items()}
    assumed = [f"{name} as {key.replace('_', ' ')}" for key, name in names.items() if name != key]
    if "test_images" not in names:
        pair = f"images {names['train_images']} and labels {names['train_labels']}"
        assumed = [f"{pair}, split at random into three splits by seed {seed}"]
    elif "validation_images" not in names:
        assumed.append(f"validation split taken from train by seed {seed}")
    unused = [name for name in present if name not in names.values()]
    if unused:
        assumed.append(f"not read: {_join(unused)}")
    # The sizes come from the directory of the archive; nothing is unpacked yet. Python's zipfile gives no more bytes of
    # an entry than the directory declares.
    size = sum(entry.file_size for entry in chosen.values())
    require(size <= MAX_BYTES, f"{path}: expected arrays of at most {MAX_BYTES} bytes together, got {size}")
    return {key: _read_array(path, archive, entry) for key, entry in chosen.items()}, assumed


def _choose_names(path: Path, present: Sequence[str]) -> dict[str, str]:
    """Return for each array of `dataset_of_arrays` its name in the archive.

    Raises:
        InputError: if the names fit no naming, or several, or if an array is missing.
    """
    namings = {
        title: [
            (f"{split}_{kind}", name.format(word))
            for split, words in SPLITS.items()
            for word in words
            for kind, name in zip(("images", "labels"), pair, strict=True)
        ]
        for title, pair in NAMINGS.items()
    }
    namings |= {f"{a}, {b}": [("train_images", a), ("train_labels", b)] for a, b in PAIRS}
    matches = {title: [item for item in items if item[1] in present] for title, items in namings.items()}
    # "y_train" alone fits two namings, so the images decide. Labels without images are then left over.
    chosen = [title for title, items in matches.items() if any(key.endswith("images") for key, _ in items)]
    has = f"it has {_join(present)}"
    require(len(chosen) > 0, f"{path}: expected the arrays {ACCEPTED}; {has}")
    known = {name for items in matches.values() for _, name in items}
    names = dict(matches[chosen[0]])
    rest = sorted(known - set(names.values()))
    require(
        len(chosen) == 1 and not rest,
        f"{path}: expected one naming of arrays, got {' and '.join(names.values())} as well as "
        f"{' and '.join(rest)}; leave out what is not to be read",
    )
    splits = {key.partition("_")[0] for key in names} | ({"train", "test"} if chosen[0] in NAMINGS else set())
    needed = [f"{split}_{kind}" for split in SPLITS if split in splits for kind in ("images", "labels")]
    missing = [dict(namings[chosen[0]][::-1])[key] for key in needed if key not in names]
    require(
        not missing,
        f"{path}: expected the arrays {ACCEPTED}, missing {_join(missing)}; {has}",
    )
    return {key: names[key] for key in needed}


def _join(names: Sequence[str]) -> str:
    """Return names as text, at most eight of them."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(name[:40] for name in names[:8]) + more


def _read_array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read the array of one entry, after its header was found to declare exactly the bytes of the entry.

    Raises:
        InputError: for an entry that is not an array of plain numbers as NumPy writes it.
    """
    what = f"{path}: {entry.filename}"
    require(entry.compress_type in METHODS, f"{what}: expected it stored or deflated, got method {entry.compress_type}")
    # Only the header is read at first. NumPy would allocate what a header declares before it notices that the data are
    # missing. So a small file could claim all memory.
    with archive.open(entry) as file:
        head = io.BytesIO(file.read(HEADER))
    version = np.lib.format.read_magic(head)
    require(version in HEADER_READERS, f"{what}: expected an array of plain numbers, got format {version}")
    shape, _, dtype = HEADER_READERS[version](head)
    require(
        dtype.kind in "biuf",
        f"{what}: expected an array of plain numbers, got dtype {dtype}; save numbers: labels.astype(int) "
        f"reads digits, and {NUMBER_CLASSES}",
    )
    declared = math.prod(shape) * dtype.itemsize
    require(
        all(0 <= length <= MAX_BYTES for length in shape) and head.tell() + declared == entry.file_size,
        f"{what}: expected an array of {entry.file_size - head.tell()} bytes, its header declares shape {shape} of "
        f"{dtype}; save it again",
    )
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
