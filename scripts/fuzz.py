"""Fuzz the readers of files: damaged and hostile bytes must give a valid result or an `InputError`.

`python scripts/fuzz.py [--minutes 10] [--readers idx npz ...] [--out FOLDER]`

Each reader runs in a separate process and may take `MEMORY` bytes and `SECONDS` seconds for one file. A file is a
finding if it raises anything but an `InputError`, exceeds a bound or ends the process. Findings are kept in the folder.
The tests include a short run of the same code.
"""

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

import jaxablate as ja
from jaxablate.datasets import Source
from jaxablate.results import Ordering, network_results, study_results
from jaxablate.results._labels import VARIABLES

SLOW = [HealthCheck.too_slow, HealthCheck.large_base_example]
MEMORY = 2**28
SECONDS = 20
KINDS = ("flip", "flip", "byte", "number", "digits", "token", "word", "cut", "drop", "copy")
NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    *(b"F64", b"F32", b"F16", b"BF16", b"F8_E4M3", b"I64", b"U8", b"BOOL", b"C64"),
    *(b"<f8", b"<f4", b"<f2", b">f4", b"|u1", b"|b1", b"<c8", b"|O", b"<U9", b"|V8", b"<M8[s]", b"True"),
    *(b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b"()", b'""', b"../", b"\0", b"\x1b[2J", b"\n", b"\xff"),
    *(b"PK\x01\x02", b"PK\x05\x06", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"FRHP"),
)


@dataclass(frozen=True)
class Reader:
    """Hold what the fuzzer needs for one reader.

    Attributes:
        files: valid files to start from.
        name: file name under which a file is read.
        read: reads a file and checks the result.
        inside: changes the content of a container and packs it again; None for plain files.
    """

    files: Sequence[bytes]
    name: str
    read: Callable[[Path], None]
    inside: Callable[[st.DrawFn, bytes], bytes] | None = None


def change(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the bytes after a few random edits."""
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        offset = draw(st.one_of(st.integers(0, min(size, 600)), st.integers(0, size)))
        kind = draw(st.sampled_from(KINDS))
        if kind == "flip" and offset < size:
            data = data[:offset] + bytes([data[offset] ^ 1 << draw(st.integers(0, 7))]) + data[offset + 1 :]
        elif kind == "byte":
            data = data[:offset] + bytes([draw(st.integers(0, 255))]) + data[offset + 1 :]
        elif kind == "number":
            width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            data = data[:offset] + number.to_bytes(width, order) + data[offset + width :]
        elif kind == "digits" and (runs := list(re.finditer(rb"\d+", data[:4096]))):
            run = draw(st.sampled_from(runs))
            sign = draw(st.sampled_from((b"", b"", b"-")))
            data = data[: run.start()] + sign + str(draw(st.sampled_from(NUMBERS))).encode() + data[run.end() :]
        elif kind == "token" and (tokens := list(re.finditer(rb"[\[(][\d, ]*[\])]|[\w.<|]+", data[:4096]))):
            target, source = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
            data = data[: target.start()] + source[0] + data[target.end() :]
        elif kind == "word":
            word = draw(st.sampled_from(WORDS))
            data = data[:offset] + word + data[offset + draw(st.sampled_from((0, len(word)))) :]
        elif kind == "cut":
            data = data[:offset]
        elif kind == "drop":
            data = data[:offset] + data[offset + draw(st.integers(1, 64)) :]
        elif kind == "copy":
            target = draw(st.integers(0, size))
            data = data[:target] + data[offset : offset + draw(st.integers(1, 200))] + data[target:]
    return data


@st.composite
def damaged(draw: st.DrawFn, reader: Reader) -> bytes:
    """Draw a file of a reader, changed as a whole or inside its container."""
    data = draw(st.sampled_from(reader.files))
    if reader.inside is not None and draw(st.booleans()):
        return reader.inside(draw, data)
    return change(draw, data)


def inside_gzip(draw: st.DrawFn, data: bytes) -> bytes:
    """Change the content of a gzip file and compress it again, sometimes in two members."""
    data = change(draw, gzip.decompress(data))
    offset = draw(st.integers(0, len(data)))
    return gzip.compress(data[:offset]) + gzip.compress(data[offset:]) if draw(st.booleans()) else gzip.compress(data)


def inside_zip(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, rename or double one entry of a zip file and pack all entries again with valid checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw(st.integers(0, len(entries) - 1))
    name, content = entries[place]
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from((*archive.namelist(), "../" + name, "x\x1b[2J")))
    entries[draw(st.sampled_from((place, 0)))] = name, change(draw, content)
    packed, method = io.BytesIO(), draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return packed.getvalue()


def inside_safetensors(draw: st.DrawFn, data: bytes) -> bytes:
    """Change the header of a safetensors file and write the matching length."""
    size = struct.unpack("<Q", data[:8])[0]
    header = change(draw, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def tiny_arrays() -> dict[str, np.ndarray]:
    """Make twelve training and six test images of three classes."""
    random = np.random.default_rng(0)
    return {
        f"{split}_{part}": array
        for split, size in (("train", 12), ("test", 6))
        for part, array in (
            ("images", random.integers(0, 256, (size, 3, 2)).astype(np.uint8)),
            ("labels", (np.arange(size) % 3).astype(np.uint8)),
        )
    }


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file of an uint8 array."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    """Return the bytes of an .npz archive of arrays."""
    packed = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(packed, **arrays)  # pyright: ignore[reportArgumentType]
    return packed.getvalue()


def tiny_results():
    """Make the results of a study of one network with three neurons, under both protocols."""
    names = ("seed", "epoch", "neuron", "class", "code", "score", "scope", "ordering", "rank", "fill", "step")
    sizes = dict(zip(names, (1, 2, 3, 2, 2, 1, 2, 3, 2, 2, 3), strict=True))
    counts = ("ablated", "correct", "single_correct", "joint_counts")
    variables = {
        name: np.ones([sizes[dim] for dim in dims], np.int32 if name in counts else np.float32)
        for name, (dims, _, _) in VARIABLES.items()
        if name != "accuracy"
    }
    orderings = [Ordering("entropy", "low"), Ordering("entropy", "high"), Ordering("random", "0")]
    node = network_results(
        variables, protocol="paper", first_step=0, sites={"layer1": 3}, activation="relu", seeds=[0],
        scores=["entropy"], orderings=orderings, fills=["zero", "mean"], num_test_examples=9,
    )  # fmt: skip
    return study_results({"paper": {"net": node}, "published": {"net": node}}, {}, Source("tiny", "made up", {}), 0.0)


def check_dataset(data: ja.Dataset) -> None:
    """Raise unless a dataset is what `load_dataset` promises."""
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == np.float32
        assert np.isfinite(split.images).all()
        assert split.labels.dtype == np.int32
        assert split.labels.shape == split.images.shape[:1]
        assert split.labels.min() >= 0
        assert split.labels.max() < data.num_classes


def check_network(model: nnx.Module) -> None:
    """Raise unless a network is an MLP of finite weights that fit."""
    assert isinstance(model, ja.MLP)
    size = model.stages[0].linear.in_features
    for stage in model.stages:
        kernel, bias = map(np.asarray, stage.weights)
        assert kernel.shape == (size, len(bias))
        assert kernel.dtype == bias.dtype == np.float32
        assert np.isfinite(kernel).all()
        assert np.isfinite(bias).all()
        size = len(bias)


def readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name; companion files of a dataset are written to the folder."""
    arrays = tiny_arrays()
    names = {"train": "train", "test": "t10k"}
    for key, array in arrays.items():
        split, part = key.split("_")
        (folder / f"{names[split]}-{part}-idx{array.ndim}-ubyte").write_bytes(idx(array))
    images = idx(arrays["train_images"])
    floats = {
        key: array / np.float32(255) if key.endswith("images") else array.astype(">i8") for key, array in arrays.items()
    }
    more = {"validation_images": arrays["test_images"], "validation_labels": arrays["test_labels"]}

    network_file = folder / "seed.safetensors"
    model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
    ja.save_model(model, network_file, {"note": "x"}, loss=np.arange(3.0))
    with safe_open(network_file, framework="numpy") as file:
        older = {name: text for name, text in (file.metadata() or {}).items() if name != "sha256"}
    state = {}
    for i, stage in enumerate(model.stages):
        kernel, bias = map(np.asarray, stage.weights)
        state[f"{i}.weight"], state[f"{i}.bias"] = np.ascontiguousarray(kernel.T), bias
    results = folder / "seed.nc"
    ja.results.save_results(tiny_results(), results)

    def read_dataset(path: Path) -> None:
        check_dataset(ja.load_dataset(path.parent if path.suffix != ".npz" else path))

    def read_network(path: Path) -> None:
        check_network(ja.load_model(path).model)

    def read_pytorch(path: Path) -> None:
        check_network(ja.models.load_pytorch(path, activation="relu"))

    def read_results(path: Path) -> None:
        ja.results.summarize(ja.results.load_results(path))

    by_name = {
        "idx": Reader([images], "train-images-idx3-ubyte", read_dataset),
        "idx.gz": Reader([gzip.compress(images)], "train-images-idx3-ubyte.gz", read_dataset, inside_gzip),
        "npz": Reader(
            [npz(False, **arrays), npz(True, **arrays, **more), npz(False, **floats)], "x.npz", read_dataset, inside_zip
        ),
        "network": Reader(
            [network_file.read_bytes(), save(load(network_file.read_bytes()), older)],
            "x.safetensors",
            read_network,
            inside_safetensors,
        ),
        "pytorch": Reader([save(state)], "x.safetensors", read_pytorch, inside_safetensors),
        "netcdf": Reader([results.read_bytes()], "x.nc", read_results),
    }
    with contextlib.suppress(ImportError):
        import torch  # pyright: ignore[reportMissingImports] (optional)

        packed = io.BytesIO()
        torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, packed)
        by_name["pt"] = Reader([packed.getvalue()], "x.pt", read_pytorch, inside_zip)
    return by_name


def process_bytes(what: str) -> int:
    """Return a size of this process in bytes as Linux reports it: VmHWM, VmRSS or VmSize."""
    line = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line
    return 1024 * int(line[1])


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit a block to `MEMORY` bytes in use and four times as many reserved, on Linux.

    Raises:
        AssertionError, MemoryError: if the block takes or reserves more.
    """
    if not Path("/proc/self/clear_refs").exists():
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = process_bytes("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (process_bytes("VmSize") + 4 * MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    taken = process_bytes("VmHWM") - before
    assert taken <= MEMORY, f"took {taken} bytes"


def accepted(read: Callable[[Path], object], path: Path) -> bool:
    """Return True if a file is read and False if it is refused by an `InputError`.

    Raises:
        AssertionError: if reading takes too much memory, or the message is not one short printable line.
        Exception: any other exception of the reader, which is a finding.
    """
    with bounded():
        try:
            read(path)
        except ja.InputError as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) <= 400, message
            return False
    return True


def examples(reader: Reader, number: int, count: int) -> Iterator[bytes]:
    """Yield damaged files; the same number gives the same files."""
    files: list[bytes] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=SLOW)
    @given(damaged(reader))
    def collect(data: bytes) -> None:
        files.append(data)

    collect()
    yield from files


def work(name: str, number: int, end: float, kept: Path) -> None:
    """Fuzz one reader until the end time; print the counts of every hundred files as a line of JSON."""
    faulthandler.enable()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as scratch:
        reader = readers(Path(scratch))[name]
        path = Path(scratch) / reader.name
        path.write_bytes(reader.files[0])
        assert accepted(reader.read, path), "the valid file was refused"
        while time.time() < end:
            counts = {"read": 0, "refused": 0, "findings": {}}
            for data in examples(reader, number, 100):
                path.write_bytes(data)
                (kept / f"{name}.last").write_bytes(data)
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                try:
                    counts["read" if accepted(reader.read, path) else "refused"] += 1
                except Exception as error:  # any exception but InputError is a finding
                    frame, place = error.__traceback__, ""
                    while frame is not None:
                        if "jaxablate" in frame.tb_frame.f_code.co_filename:
                            place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
                        frame = frame.tb_next
                    counts["findings"][f"{type(error).__name__} at {place}"] = str(error)[:200]
                    (kept / f"{name}-{type(error).__name__}-{place.replace(':', '-')}").write_bytes(data)
                faulthandler.cancel_dump_traceback_later()
            print(json.dumps(counts), flush=True)
            number += 1
        (kept / f"{name}.last").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files.")
    parser.add_argument(
        "--minutes", type=float, default=10, help="minutes for all readers together; default: %(default)s"
    )
    parser.add_argument("--readers", nargs="*", help="names of readers; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damaged files; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"), help="folder for findings; default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        work(arguments.worker, arguments.seed, time.time() + 60 * arguments.minutes, arguments.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        names = arguments.readers or list(readers(Path(scratch)))
    bad = False
    for name in names:
        start, tries = time.time(), 0
        end = start + 60 * arguments.minutes / len(names)
        totals, findings = {"read": 0, "refused": 0}, {}
        while time.time() < end:
            options = {"worker": name, "minutes": (end - time.time()) / 60, "out": arguments.out}
            options["seed"] = arguments.seed + 10**6 * tries
            command = [sys.executable, __file__, *(f"--{option}={value}" for option, value in options.items())]
            process = subprocess.run(command, capture_output=True, text=True)
            for line in process.stdout.splitlines():
                batch = json.loads(line)
                findings |= batch["findings"]
                for key in totals:
                    totals[key] += batch[key]
            if process.returncode:
                findings[f"ended with {process.returncode}"] = process.stderr[-1500:]
                last = arguments.out / f"{name}.last"
                if last.exists():
                    last.rename(arguments.out / f"{name}-ended-{tries}")
            tries += 1
        counts = f"{sum(totals.values())} files in {time.time() - start:.0f} s, {totals}, {len(findings)} findings"
        print(f"{name}: {counts}", flush=True)
        for finding, message in findings.items():
            print(f"  {finding}: {message}", flush=True)
        bad |= bool(findings)
    sys.exit(bad)


if __name__ == "__main__":
    main()
