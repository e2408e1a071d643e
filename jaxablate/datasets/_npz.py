"""Read datasets from NumPy archives with train_images, train_labels, test_images, test_labels."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from jaxablate._checks import require
from jaxablate._files import MAX_BYTES, require_file
from jaxablate.datasets._types import Dataset, InputError, Source, dataset_of_arrays, sha256_of

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONAL = ("validation_images", "validation_labels")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy writes these; Python unpacks other methods without a bound
HEADER = 2**16  # NumPy accepts headers of up to 10,000 bytes
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_npz(path: Path, seed: int) -> Dataset:
    """Read an `.npz` archive; without validation arrays, one sixth of the training examples serves as validation.

    Images are [example, ...], uint8 in 0..255 or floating. Classes are 0 to the largest training label. Nothing is
    unpacked to disk and no pickle is read. Memory is bounded by the size of the entries, 4 GiB at most.

    Raises:
        InputError: for a missing array, or an array of another kind than expected.
    """
    require_file("NumPy archive", path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_arrays(path, archive)
    except InputError:
        raise
    except Exception as error:  # a hostile file makes zipfile and NumPy raise anything
        raise InputError(f"{path}: expected an .npz archive of plain arrays, got an unreadable one ({error})") from None
    source = Source(path.stem, f"NumPy archive {path}", {path.name: sha256_of(path)})
    return dataset_of_arrays(path.name, arrays, source, seed)


def _read_arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Read the required arrays, and the validation arrays if the archive has one of them.

    Raises:
        InputError: for missing or repeated arrays, or for more than `MAX_BYTES` in total.
    """
    entries = archive.infolist()
    present = [entry.filename.removesuffix(".npy") for entry in entries]
    names = REQUIRED + (OPTIONAL if any(key in present for key in OPTIONAL) else ())
    missing = [key for key in names if key not in present]
    require(
        not missing,
        f"{path}: expected the arrays {', '.join(names)}, missing {', '.join(missing)}; it has {', '.join(present)}",
    )
    doubled = [key for key in names if present.count(key) > 1]
    require(not doubled, f"{path}: expected each array once, got {', '.join(doubled)} several times; save it again")
    chosen = {key: entries[present.index(key)] for key in names}
    # The sizes come from the directory of the archive; nothing is unpacked yet. Python's zipfile gives no more bytes of
    # an entry than the directory declares.
    size = sum(entry.file_size for entry in chosen.values())
    require(size <= MAX_BYTES, f"{path}: expected arrays of at most {MAX_BYTES} bytes together, got {size}")
    return {key: _read_array(path, archive, entry) for key, entry in chosen.items()}


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
    require(dtype.kind in "biuf", f"{what}: expected an array of plain numbers, got dtype {dtype}; others are not read")
    declared = math.prod(shape) * dtype.itemsize
    require(
        all(0 <= length <= MAX_BYTES for length in shape) and head.tell() + declared == entry.file_size,
        f"{what}: expected an array of {entry.file_size - head.tell()} bytes, its header declares shape {shape} of "
        f"{dtype}; save it again",
    )
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
