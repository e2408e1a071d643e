"""NumPy archives: train_images, train_labels, test_images, test_labels, optionally validation_*."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from jaxablate._checks import require
from jaxablate._files import MAX_BYTES, require_file
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
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's; of the others Python unpacks without a bound
HEADER = 2**16  # NumPy takes headers of up to 10 000 bytes
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_npz(path: Path, seed: int) -> Dataset:
    """Read an `.npz` archive; without validation arrays a sixth of the training examples serves for it.

    Images are [example, ...], uint8 in 0..255 or floating; classes are 0 to the largest training label. Nothing is
    unpacked to disk, no pickle is read, and no more memory is taken than the entries have bytes: 4 GiB at most.

    Raises:
        InputError: for a missing array, or one that is not what it should be.
    """
    require_file("NumPy archive", path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_arrays(path, archive)
    except InputError:
        raise
    except Exception as error:  # a file made to mislead makes zipfile and NumPy raise anything
        raise InputError(f"{path}: expected an .npz archive of plain arrays, got an unreadable one ({error})") from None
    wanted = tuple(arrays)
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


def _read_arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The arrays of an archive by name, those for validation if it has one of them.

    Raises:
        InputError: for missing or doubled arrays, or together more than `MAX_BYTES`.
    """
    entries = archive.infolist()
    present = [entry.filename.removesuffix(".npy") for entry in entries]
    wanted = REQUIRED + (OPTIONAL if any(key in present for key in OPTIONAL) else ())
    missing = [key for key in wanted if key not in present]
    require(
        not missing,
        f"{path}: expected the arrays {', '.join(wanted)}, missing {', '.join(missing)}; it has {', '.join(present)}",
    )
    doubled = [key for key in wanted if present.count(key) > 1]
    require(not doubled, f"{path}: expected each array once, got {', '.join(doubled)} several times; save it anew")
    chosen = {key: entries[present.index(key)] for key in wanted}
    size = sum(entry.file_size for entry in chosen.values())
    require(size <= MAX_BYTES, f"{path}: expected arrays of at most {MAX_BYTES} bytes together, got {size}")
    return {key: _read_array(path, archive, entry) for key, entry in chosen.items()}


def _read_array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """The array of one entry, made only once its header has been seen to declare no more than the entry has.

    Raises:
        InputError: for an entry that NumPy does not write of plain numbers.
    """
    what = f"{path}: {entry.filename}"
    require(entry.compress_type in METHODS, f"{what}: expected it stored or deflated, got method {entry.compress_type}")
    with archive.open(entry) as file:
        head = io.BytesIO(file.read(HEADER))
    version = np.lib.format.read_magic(head)
    require(version in HEADER_READERS, f"{what}: expected an array of plain numbers, got format {version}")
    shape, _, dtype = HEADER_READERS[version](head)
    require(dtype.kind in "biuf", f"{what}: expected an array of plain numbers, got dtype {dtype}; others are not read")
    declared = math.prod(shape) * dtype.itemsize
    require(
        all(0 <= length <= MAX_BYTES for length in shape) and head.tell() + declared == entry.file_size,
        f"{what}: expected an array of {entry.file_size - head.tell()} bytes, its header declares shape {shape} of "
        f"{dtype}; save it anew",
    )
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
