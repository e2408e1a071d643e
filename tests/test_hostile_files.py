"""Hostile files: whatever comes in, one sentence comes out, nothing is run, and little memory is taken."""

import faulthandler
import gzip
import io
import os
import struct
import sys
import warnings
import zipfile
import zlib

import fuzz
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from helpers import first_quick, refused
from test_datasets import arrays, idx, write_folder
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate._files
import jaxablate.cli

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

GB = 2**30


@pytest.fixture(autouse=True)
def watchdog():
    """A reader that hangs ends the tests, and says where."""
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def zeros(size: int, head: bytes, wbits: int) -> bytes:
    """Bytes and then as many zeros, compressed: the same block again and again, and no end."""
    packer, block = zlib.compressobj(9, wbits=wbits), bytes(2**20)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    start += packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + again * (size // len(block) - 1)


IMAGES = idx(arrays()["train_images"])
IDX = {
    "more than the file has": (
        struct.pack(">4I", 0x803, 2**31, 1, 1) + bytes(84),
        "expected 2147483648 bytes .* got 84",
    ),
    "more than is allowed": (
        struct.pack(">4I", 0x803, 2**20, 2**12, 2),
        "at most 4294967296 bytes, its header declares",
    ),
    "nothing of great size": (struct.pack(">4I", 0x803, 0, 2**32 - 1, 2**32 - 1), "expected a non-empty array"),
    "another dtype": (struct.pack(">4I", 0xD03, 60, 4, 5) + bytes(4800), "magic number 0x00000803, got 0x00000d03"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("what", IDX)
def test_idx(tmp_path, what, zipped):
    data, match = IDX[what]
    folder = write_folder(tmp_path / "data", zipped, train_images=data)
    with refused(match):
        ja.load_dataset(folder)


GZIP = {
    "bomb": (zeros(GB, IMAGES, 31), "expected 1200 bytes after the header, got more"),
    "bomb before the header ends": (zeros(GB, b"", 31), "magic number 0x00000803, got 0x00000000"),
    "bomb in many members": (gzip.compress(IMAGES) + 500 * gzip.compress(bytes(2**20)), "got more"),
    "rubbish behind": (gzip.compress(IMAGES) + b"rubbish", "expected a whole gzip file, got a damaged one"),
    "wrong checksum": (gzip.compress(IMAGES)[:-8] + bytes(8), "expected a whole gzip file, got a damaged one"),
    "half a member": (gzip.compress(IMAGES[:99]) + gzip.compress(IMAGES[99:])[:-30], "got a damaged one"),
    "empty": (b"", "expected an IDX header, got 0 bytes"),
}


@pytest.mark.parametrize("what", GZIP)
def test_gzip(tmp_path, what):
    folder = write_folder(tmp_path / "data")
    data, match = GZIP[what]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(data)
    with refused(match):
        ja.load_dataset(folder)


def test_several_members_of_gzip_are_one_file(tmp_path):
    folder = write_folder(tmp_path / "data")
    whole = ja.load_dataset(folder)
    members = gzip.compress(IMAGES[:99]) + gzip.compress(b"") + gzip.compress(IMAGES[99:])
    (folder / "train-images-idx3-ubyte.gz").write_bytes(members)
    np.testing.assert_array_equal(ja.load_dataset(folder).train.images, whole.train.images)


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(descr="'|u1'", shape="(60, 4, 5)", data=bytes(1200), version=b"\x01\x00") -> bytes:
    """Return an array's file with a given header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def archive(path, method=zipfile.ZIP_STORED, change=None, more=(), **entries):
    """An archive of good entries, but for these (None for no entry), and more; `change` edits the list of contents."""
    contents = {name: npy("'|u1'", str(array.shape), array.tobytes()) for name, array in arrays().items()} | entries
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", method) as packed:
        for name, data in (*contents.items(), *more):
            if data is not None:
                packed.writestr(f"{name}.npy", data)
        if change:
            change({info.filename.removesuffix(".npy"): info for info in packed.filelist})
    return path


def says(**attributes):
    """A change of what an archive's list of contents says of the training images."""
    return {"change": lambda infos: [setattr(infos["train_images"], *item) for item in attributes.items()]}


def with_pickle(tmp_path):
    packed = io.BytesIO()
    np.save(packed, np.array([Runs(tmp_path / "run")] * 60, object))
    return packed.getvalue()


DECLARED = "train_images.npy: expected an array of .* bytes, its header declares shape"
PLAIN = "train_images.npy: expected an array of plain numbers, got "
UNREADABLE = "expected an .npz archive of plain arrays, got an unreadable one"
NPZ = {
    "2^40 items": (npy(shape="(1099511627776,)"), DECLARED),
    "2^126 items": (npy(shape="(9223372036854775807, 9223372036854775807)"), DECLARED),
    "as many as wrap around to 1200": (npy(shape=f"({2**64 + 1200},)"), DECLARED),
    "no items of great size": (npy(shape=f"(0, {2**62}, {2**62})", data=b""), DECLARED),
    "negative": (npy(shape="(-60, -4, 5)"), DECLARED),
    "too few": (npy(data=bytes(1199)), DECLARED),
    "too many": (npy(data=bytes(1201)), DECLARED),
    "header of numbers": (npy(shape="(" + 9 * 10**3 * "9" + ",)"), UNREADABLE),
    "header of brackets": (npy(shape=3000 * "("), UNREADABLE),
    "header of signs": (npy(shape="(" + 9000 * "-" + "1,)"), UNREADABLE),
    "header of zeros": (npy(shape="(60, 4, 5)\0\0\n"), UNREADABLE),
    "structures": (npy("[('a', '|u1'), ('b', '<f4')]", "(240,)"), PLAIN),
    "text": (npy("'<U5'", "(60,)"), PLAIN + "dtype <U5"),
    "raw bytes": (npy("'|V20'", "(60,)"), PLAIN),
    "times": (npy("'<M8[s]'", "(150,)"), PLAIN),
    "complex": (npy("'<c8'", "(150,)"), PLAIN),
    "format 3": (npy(version=b"\3\0"), PLAIN + r"format \(3, 0\)"),
    "format 9": (npy(version=b"\x09\0"), PLAIN + r"format \(9, 0\)"),
    "no array": (b"no array at all", UNREADABLE),
    "overflow of float32": (
        npy("'<f8'", "(60, 1)", struct.pack("<d", 1e300) * 60),
        "finite numbers, got 60 NaN or inf",
    ),
}
ZIP = {
    "missing": ({"train_images": None}, "missing train_images"),
    "elsewhere": ({"train_images": None, "../train_images": npy()}, "missing train_images; it has .* ../train_images"),
    "twice": ({"more": [("train_images", npy())]}, "expected each array once, got train_images several times"),
    "bzip2": ({"method": zipfile.ZIP_BZIP2}, "expected it stored or deflated, got method 12"),
    "lzma": ({"method": zipfile.ZIP_LZMA}, "expected it stored or deflated, got method 14"),
    "unknown method": (says(compress_type=99), "expected it stored or deflated, got method 99"),
    "encrypted": (says(flag_bits=1), UNREADABLE + ".*encrypted"),
    "8 GiB by itself": (says(file_size=8 * GB), "arrays of at most 4294967296 bytes together, got 85"),
    "1 GiB by itself": (says(file_size=GB), DECLARED),
    "wrong checksum": (says(CRC=1), UNREADABLE + ".*CRC"),
    "beyond the file": (says(header_offset=2**31), UNREADABLE),
    "names that rule a terminal": ({"train_images": None, "\x1b[2J\n" * 999: b""}, "missing train_images"),
}


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("what", NPZ)
def test_entries_of_npz(tmp_path, what, deflated):
    entry, match = NPZ[what]
    path = archive(tmp_path / "x.npz", 8 * deflated, train_images=entry)
    with refused(match):
        ja.load_dataset(path)


@pytest.mark.parametrize("what", ZIP)
def test_npz(tmp_path, what):
    arguments, match = ZIP[what]
    path = archive(tmp_path / "x.npz", **arguments)
    with refused(match):
        ja.load_dataset(path)


@pytest.mark.parametrize(
    ("head", "match"),
    [(npy(), DECLARED), (b"\x93NUMPY\2\0" + struct.pack("<I", 2**31), UNREADABLE), (b"", UNREADABLE)],
)
def test_bombs_in_npz(tmp_path, head, match):
    bomb = zeros(GB, head, -15)
    path = archive(tmp_path / "x.npz", train_images=bomb, **says(compress_type=8, file_size=GB + len(head)))
    assert path.stat().st_size < GB / 500
    with refused(match):
        ja.load_dataset(path)


def test_npz_runs_nothing_and_writes_nothing(tmp_path):
    path = archive(tmp_path / "x.npz", train_labels=with_pickle(tmp_path))
    with refused("train_labels.npy: expected an array of plain numbers, got dtype object"):
        ja.load_dataset(path)
    assert len(ja.load_dataset(archive(path, more=[("../../evil", npy()), ("/evil", b"")])).test) == 9
    assert [entry.name for entry in tmp_path.rglob("*")] == ["x.npz"]
    assert not (tmp_path.parents[1] / "evil.npy").exists()


READERS = {
    "load_dataset": (ja.load_dataset, "x.npz"),
    "load_model": (ja.load_model, "x.safetensors"),
    "load_pytorch": (ja.models.load_pytorch, "x.safetensors"),
    "load_pt": (ja.models.load_pytorch, "x.pt"),
    "load_results": (ja.results.load_results, "x.nc"),
    "read_idx": (lambda path: ja.load_dataset(path.parent), "t10k-labels-idx1-ubyte.gz"),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """A reader, and the path of a file that is not there yet."""
    read, name = READERS[request.param]
    (write_folder(tmp_path / "data") / "t10k-labels-idx1-ubyte.gz").unlink()
    return read, tmp_path / "data" / name


def test_pipes_devices_and_folders_are_no_files(reader):
    read, path = reader
    os.mkfifo(path)
    with refused("expected a file, got a pipe or a device"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with refused("expected a file, got a pipe or a device"):
        read(path)
    path.unlink()
    path.mkdir()
    with refused("expected a file, got a folder|expected the four IDX files"):
        read(path)
    path.rmdir()
    path.symlink_to(path)
    with refused("expected a file, got none|missing t10k-labels|dataset: unknown"):
        read(path)
    long = path.with_name(300 * "n" + path.suffix)
    with refused("expected a file, got none|missing t10k-labels|dataset: unknown"):
        read(long)


def test_files_that_may_not_be_read(reader, monkeypatch):
    """Root may read everything, so the refusal is made up."""
    read, path = reader
    path.write_bytes(b"content")

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(jaxablate._files, "open", denied, raising=False)
    with refused("cannot be read .Permission denied."):
        read(path)


def test_files_of_any_size_are_refused_unread(reader):
    read, path = reader
    with open(path, "wb") as file:
        file.truncate(5 * GB)  # takes no place on the disk
    with refused("expected at most 4294967296 bytes, got 5368709120"):
        read(path)


def test_on_the_command_line(tmp_path):
    """One sentence without what rules a terminal, exit code 1, and nothing is left."""
    archive(tmp_path / "x.npz", train_images=None, more=[("\x1b[2J\n", b"")])
    path = tmp_path / "x.safetensors"
    ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    os.mkfifo(tmp_path / "pipe.safetensors")
    out = ["--out", str(tmp_path / "out" / "x.csv")]
    for arguments, sentence in (
        (["reproduce", "--dataset", str(tmp_path / "x.npz"), *out], "missing train_images"),
        (["score", str(path), *out], "the arrays do not match the checksum in its header"),
        (["ablate", str(tmp_path / "pipe.safetensors"), *out], "expected a file, got a pipe or a device"),
        (["score", str(tmp_path / ("n" * 300)), *out], "expected a file, got none"),
    ):
        result = CliRunner().invoke(jaxablate.cli.app, arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr[:-1].isprintable()
        assert sentence in result.stderr
        assert not (tmp_path / "out").exists()


def test_what_the_file_system_says_is_one_line(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("Input/output error: \x1b[2J\n")

    path = tmp_path / "x.safetensors"
    ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), path)
    monkeypatch.setattr(ja, "load_model", fail)
    result = CliRunner().invoke(jaxablate.cli.app, ["score", str(path), "--out", str(tmp_path / "x.csv")])
    assert (result.exit_code, result.stderr) == (1, "error: Input/output error:  [2J \n")


def test_a_file_whose_name_is_no_text(tmp_path):
    """A name is bytes, and what comes from it must fit into netCDF, safetensors and a terminal."""
    path = archive(tmp_path / os.fsdecode(b"a\xff.npz"))
    data = ja.load_dataset(path)
    model = ja.MLP(20, (3,), 3, rngs=nnx.Rngs(0))
    scores = ja.study.score_neurons(model, data, scores=("entropy",))
    ja.results.save_table(scores, tmp_path / "x.nc")
    assert scores.attrs["dataset"] == r"a\udcff"
    ja.save_model(model, tmp_path / "x.safetensors", {"from": path.name})
    assert ja.load_model(tmp_path / "x.safetensors").metadata == {"from": r"a\udcff.npz"}
    network, out = tmp_path / os.fsdecode(b"n\xff.safetensors"), tmp_path / os.fsdecode(b"c\xff.nc")
    ja.save_model(model, network)
    asked = [network, "--dataset", path, "--steps", "1", "--random-orders", "1", "--no-cache", "-q", "--out", out]
    assert CliRunner().invoke(jaxablate.cli.app, ["ablate", *map(str, asked)]).exit_code == 0
    assert ja.results.load_results(out).attrs["command"].endswith(r"--out 'c\udcff.nc'")
    result = CliRunner().invoke(jaxablate.cli.app, ["score", str(path), "--out", str(tmp_path / "x.csv")])
    assert result.exit_code == 1
    assert result.stderr[:-1].isprintable()


@pytest.fixture
def unchecked():
    """Shapes go unchecked, as in normal use."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.filterwarnings("ignore:.* example of class")  # few examples
@pytest.mark.parametrize("name", first_quick(["npz", "idx", "idx.gz", "network", "pytorch", "pt", "netcdf"]))
def test_a_moment_of_fuzzing(tmp_path, name, unchecked):
    """Files are the same every time; scripts/fuzz.py runs for a chosen time."""
    reader = fuzz.readers(tmp_path).get(name)
    if reader is None:
        pytest.skip("PyTorch is not installed")
    path = tmp_path / reader.name
    for data in reader.files:
        path.write_bytes(data)
        assert fuzz.accepted(reader.read, path), "the valid files are read"
    outcomes = set()
    for data in fuzz.examples(reader, 0, 25 if name == "netcdf" else 100):
        path.write_bytes(data)
        outcomes.add(fuzz.accepted(reader.read, path))
    assert False in outcomes
