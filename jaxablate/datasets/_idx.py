"""Read IDX files, the format of MNIST: a magic number, dimensions, bytes; gzipped or not."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from jaxablate._checks import InputError, require
from jaxablate._files import MAX_BYTES, require_file
from jaxablate.datasets._types import Dataset, Source, dataset_of_arrays, sha256_of

IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
CHUNK = 2**20


def read_idx(path: str | Path, magic: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; gzipped if its name ends in `.gz`.
        magic: the magic number of the file, `IMAGES_MAGIC` or `LABELS_MAGIC`.

    Returns:
        uint8 array with the dimensions of the file's header. Memory is bounded by the content of the file, by the size
        that its header declares, and by 4 GiB.

    Raises:
        InputError: for another magic number, a header with impossible sizes, or a damaged, short or overlong file.
    """
    path = Path(path)
    require_file("IDX file", path)
    num_dims = magic & 0xFF
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * num_dims)
            require(
                len(header) == 4 + 4 * num_dims,
                f"{path}: expected an IDX header, got {len(header)} bytes; fetch it again",
            )
            # IDX numbers are big-endian. The last byte of the magic number is the number of dimensions.
            file_magic, *dims = struct.unpack(f">{1 + num_dims}I", header)
            require(
                file_magic == magic,
                f"{path}: expected IDX magic number {magic:#010x}, got {file_magic:#010x}; it is another kind of file",
            )
            size = math.prod(dims)
            require(size <= MAX_BYTES, f"{path}: expected at most {MAX_BYTES} bytes, its header declares {size}")
            data = bytearray()  # grows with the file's content, so that a false header allocates nothing
            # At most one byte more than declared is read: enough to tell that a file is too long, however large it
            # would unpack.
            while chunk := file.read(min(CHUNK, size + 1 - len(data))):
                data += chunk
    except (EOFError, OSError, zlib.error) as error:
        kind = "gzip file" if path.suffix == ".gz" else "file"
        raise InputError(f"{path}: expected a whole {kind}, got a damaged one ({error}); fetch it again") from None
    require(
        len(data) == size,
        f"{path}: expected {size} bytes after the header, got {'more' if len(data) > size else len(data)}; fetch it "
        "again",
    )
    require(size > 0, f"{path}: expected a non-empty array, its header declares {dims}")
    return np.frombuffer(data, np.uint8).reshape(dims)


def dataset_from_idx(paths: dict[str, Path], name: str, origin: str, seed: int, num_classes: int | None) -> Dataset:
    """Build a dataset from four IDX files.

    Args:
        paths: the four files under the keys of `FILES`.
        name: name of the dataset.
        origin: a sentence on the origin of the files.
        seed: seed of the permutation that splits off the validation split.
        num_classes: number of classes; None uses the largest training label + 1.

    Raises:
        InputError: for a damaged file or a label out of range.
    """
    arrays = {
        key: read_idx(path, IMAGES_MAGIC if key.endswith("images") else LABELS_MAGIC) for key, path in paths.items()
    }
    sha256 = {path.name: sha256_of(path) for path in paths.values()}
    return dataset_of_arrays(name, arrays, Source(name, origin, sha256), seed, num_classes)


def _hold_the_same(packed: Path, plain: Path) -> bool:
    """Return True if a gzip file unpacks to another file; a damaged one does not."""
    try:
        with gzip.open(packed) as first, open(plain, "rb") as second:
            while (part := second.read(CHUNK)) == first.read(CHUNK):
                if not part:
                    return True
    except (EOFError, OSError, zlib.error):
        pass
    return False


def load_idx_folder(folder: Path, seed: int) -> Dataset:
    """Read a folder that holds the four canonical files, each gzipped or not.

    Raises:
        InputError: for missing files, named in the message, or a damaged one.
    """
    paths = {}
    for key, name in FILES.items():
        # A folder may mix both kinds; of two equal files the gzipped one is read, as it was published.
        candidates = [path for path in (folder / f"{name}.gz", folder / name) if os.path.exists(path)]
        require(
            len(candidates) < 2 or _hold_the_same(*candidates),
            f"folder {folder}: {name} and {name}.gz hold different data; remove the one that is not meant",
        )
        paths[key] = candidates[0] if candidates else None
    missing = [FILES[key] for key, path in paths.items() if path is None]
    require(
        not missing,
        f"folder {folder}: expected the four IDX files (each with or without .gz), missing {', '.join(missing)}",
    )
    return dataset_from_idx(paths, folder.resolve().name, f"IDX files in {folder}", seed, None)
