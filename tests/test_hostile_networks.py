"""Hostile files of networks and results: one sentence, nothing is run, no other file is read, little memory."""

import functools
import json
import math
import os
import pickle
import struct
import zipfile

import fuzz
import h5py
import numpy as np
import pytest
import xarray as xr
from helpers import refused

import jaxablate as ja
from jaxablate import models
from jaxablate._rundir import CheckpointStore, lock_folder, open_run
from jaxablate.study._config import StudyConfig
from jaxablate.study._networks import trained_networks

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

META = {"__metadata__": {"format": "jaxablate network 1", "activation": "relu"}}


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """Return a file with a given header, JSON or bytes, and a given length of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def network(kernel, bias, dtype="F32", shape=(2, 2), widths=(2,), item=4, offsets=None, value=bytes(4)) -> bytes:
    """Two linear maps under these names, with what else is to be wrong."""
    header, offset = dict(META), 0
    for i in (0, 1):
        for name, shape_ in ((kernel, shape), (bias, widths)):
            size = math.prod(shape_) * item
            header[name.format(i)] = {
                "dtype": dtype,
                "shape": shape_,
                "data_offsets": offsets or (offset, offset + size),
            }
            offset += size
    return safetensors(header, value * (offset // len(value)) if 0 < offset < 2**20 else b"")


UNREADABLE = "expected safetensors, got an unreadable file"
SAFETENSORS = {
    "empty": (b"", UNREADABLE),
    "longer than everything": (safetensors({}, size=2**64 - 1), UNREADABLE),
    "longer than the file": (safetensors({}, size=2**26), UNREADABLE),
    "100 MB of blanks": (safetensors(b"{" + 10**8 * b" " + b"}"), UNREADABLE),
    "no JSON": (safetensors(b"{" + 99 * b"\xff"), UNREADABLE),
    "deep": (safetensors(10**6 * b"["), UNREADABLE),
    "a list": (safetensors([1, 2]), UNREADABLE),
    "metadata of numbers": (safetensors({"__metadata__": {"format": 1}}), UNREADABLE),
    "nothing": (safetensors({}), "expected format|two or more stages, got 0 and 0"),
    "names that rule a terminal": (safetensors({"\x1b[2J\n": 1}), UNREADABLE),
    "overlapping": ({"offsets": (0, 16)}, UNREADABLE),
    "beyond the file": ({"offsets": (2**40, 2**40 + 16)}, UNREADABLE),
    "backwards": ({"offsets": (16, 0)}, UNREADABLE),
    "negative": ({"shape": (-2, -2)}, UNREADABLE),
    "2^80 items": ({"shape": (2**40, 2**40)}, UNREADABLE),
    "unknown dtype": ({"dtype": "F31"}, UNREADABLE),
    "dtype that NumPy lacks": ({"dtype": "F8_E4M3", "item": 1, "value": b"1"}, UNREADABLE),
    "NaN": ({"value": struct.pack("<f", np.nan)}, "expected finite numbers"),
    "too large for float32": (
        {"dtype": "F64", "item": 8, "value": struct.pack("<d", 1e300)},
        "expected finite numbers",
    ),
    "complex": ({"dtype": "C64", "item": 8}, "expected real numbers|expected floating numbers"),
    "scalars": ({"shape": (), "widths": ()}, r"expected kernels \[in, out\], got shapes \(\), \(\)|expected a weight"),
    "blocks": ({"shape": (2, 2, 2)}, r"expected kernels \[in, out\]|expected a weight"),
    "nothing of great size": ({"shape": (2**60, 0), "widths": (0,)}, r"expected kernel|expected numbers, got"),
}
load_pytorch = functools.partial(models.load_pytorch, activation="relu")
NAMES = {
    "load_model": (ja.load_model, "stages.{}.kernel", "stages.{}.bias"),
    "load_pytorch": (load_pytorch, "{}.weight", "{}.bias"),
}


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("what", SAFETENSORS)
def test_safetensors(tmp_path, what, reader):
    read, *names = NAMES[reader]
    content, match = SAFETENSORS[what]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else network(*names, **content))
    with refused(match):
        read(path)
    path.write_bytes(network(*names))
    read(path)


def test_names_of_many_digits(tmp_path):
    """Python turns no more than 4300 digits into a number."""
    names = [f"{number}.weight" for number in ("1" + 5000 * "0", "9", 4999 * "0" + "10")]
    header = {name: {"dtype": "F32", "shape": (1, 1), "data_offsets": (0, 4)} for name in names}
    for place, name in enumerate(header):
        header[name]["data_offsets"] = (4 * place, 4 * place + 4)
    (tmp_path / "x.safetensors").write_bytes(safetensors(header, struct.pack("<3f", 3, 1, 2)))
    model = load_pytorch(tmp_path / "x.safetensors")
    assert [float(stage.linear.kernel[0, 0]) for stage in model.stages] == [1, 2, 3]


def test_a_damaged_network_is_trained_anew(tmp_path, mnist5k):
    """Any flipped bit is noticed, in weights and in the history."""
    config = StudyConfig(dataset="mnist5k", networks=((3,),), epochs=1, steps=2)

    def networks():
        notes = []
        (trained,) = trained_networks(
            config, (3,), mnist5k, tmp_path, lambda *message: notes.append(" ".join(map(str, message)))
        )
        return trained[0], "\n".join(notes)

    model, _ = networks()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in (struct.unpack("<Q", whole[:8])[0] + 8, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with refused("the arrays do not match the checksum in its header; write it again or remove it"):
            ja.load_model(path)
        again, notes = networks()
        assert "trained again: network file" in notes
        assert "reused 1 trained before" in networks()[1]
        np.testing.assert_array_equal(*(np.asarray(network.stages[0].linear.kernel[...]) for network in (model, again)))


NO_ARCHIVE = "expected a zip archive, as torch.save writes it since PyTorch 1.6, got another file; save it again by "


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pt_runs_nothing(torch, tmp_path):
    path = tmp_path / "x.pt"
    for content in ({"0.weight": Runs(tmp_path / "run")}, Runs(tmp_path / "run")):
        for packed in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=packed)
            with refused("got pickled objects, which are not read since they may run code" if packed else NO_ARCHIVE):
                load_pytorch(path)
        path.write_bytes(pickle.dumps(content))
        with refused(NO_ARCHIVE):
            load_pytorch(path)
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_of_pt(torch, tmp_path):
    ones, path = torch.ones(2, 2), tmp_path / "x.pt"
    for tensor in (
        torch.ones(1).expand(2**20, 2**20),
        torch.ones(3).as_strided((2**30, 3), (0, 1)),
        ones.to_sparse(),
        ones.to("meta"),
    ):
        torch.save({"0.weight": tensor, "1.weight": ones}, path)
        with refused("expected plain tensors with all their numbers stored, got another for '0.weight'|cannot read"):
            load_pytorch(path)
    many = torch.ones(2**20, dtype=torch.float16)
    torch.save({f"{i}.weight": many for i in range(2000)}, path)
    assert path.stat().st_size < 2**23
    with refused("the tensors take 8388608000 bytes; keep them within 4294967296"):
        load_pytorch(path)
    torch.save({0: ones, (1, (2, 3)): ones}, path)
    with refused(r"which maps names to tensors, got a int \(Tensor\), a tuple \(Tensor\)"):
        load_pytorch(path)
    torch.save({"0.weight": ones.to(torch.complex64), "1.weight": ones}, path)
    with refused("expected floating numbers, got dtype complex64"):
        load_pytorch(path)
    torch.save({"0.weight": ones.double() * 1e300, "1.weight": ones}, path)
    with refused("expected finite numbers, got 4 NaN or infinite"):
        load_pytorch(path)


def test_archives_of_pt(torch, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("x/data/9", b"")
        packed.filelist[-1].file_size = 2**33
    with refused("it unpacks to 8589[0-9]+ bytes; keep it within 4294967296"):
        load_pytorch(path)
    for content in (whole[:-30], whole[:100], b"PK\x03\x04" + 99 * b"x", pickle.dumps(1), b""):
        path.write_bytes(content)
        with refused("expected a state dict, got unreadable data" if content[:2] == b"PK" else NO_ARCHIVE):
            load_pytorch(path)


DEEP = b")" + 10**6 * b"\x85"  # ((((...),),),)
LARGEST = b")" + (2**16 - 10) * b"\x85"  # as deep as a pickle may be
WIDE = b")" + b"".join(b"q%ch%c\x86" % (place, place) for place in range(60))  # a pair, of a pair twice, and so on
TWICE = b")" + b"".join(b"q%cq%ch%c\x86" % (place, place + 60, place + 60) for place in range(60))
LARGE = "its pickle takes more than 65536 bytes; save large state dicts by safetensors"
REPEATED = "expected a state dict, got a pickle that repeats a tuple"
KEYS = {
    "deep": (DEEP, LARGE),
    "deep in a tuple": (b"(" + DEEP + b"t", LARGE),
    "as deep as may be": (LARGEST, r"expected a state dict, which maps names to tensors, got a tuple \(int\)"),
    "wide": (WIDE, REPEATED),
    "wide, kept twice": (TWICE, REPEATED),
}


@pytest.mark.parametrize("what", KEYS)
def test_tuples_in_tuples_of_pt(torch, tmp_path, what):
    """Python would overflow the stack, or take forever, to hash a key that PyTorch expects to be a name."""
    key, match = KEYS[what]
    path, content = tmp_path / "x.pt", b"\x80\x02}" + key + b"K\x01s."
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in (("x/data.pkl", content), ("x/byteorder", b"little"), ("x/version", b"3\n")):
            packed.writestr(name, data)
    with refused(match):
        load_pytorch(path)
    before = [pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*before, content, pickle.dumps([], 2)]))
    with refused(NO_ARCHIVE):
        load_pytorch(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A file of results."""
    path = tmp_path_factory.mktemp("results") / "x.nc"
    ja.results.save_results(fuzz.tiny_results(), path)
    ja.results.load_results(path)
    return path.read_bytes()


def test_files_that_are_no_results(tmp_path, whole):
    path = tmp_path / "x.nc"
    for content in (b"", b"text", b"CDF\1" + bytes(99), whole[: len(whole) // 2], whole[:100], b"PK\3\4" + bytes(99)):
        path.write_bytes(content)
        with refused("expected netCDF as jaxablate writes it, got an unreadable file"):
            ja.results.load_results(path)
    with h5py.File(path, "w") as file:
        file["images"] = np.ones(3)
    with refused("expected format 'jaxablate results 4', got None"):
        ja.results.load_results(path)


def link_into_itself(file):
    for name in ("one", "two"):
        file[f"net/{name}"] = file["/"]


def virtual(file):
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,))
    file["net"].create_virtual_dataset("x", layout)


def large_chunks(file):
    """Each of less than 4 GiB, which is the most that HDF5 takes."""
    for name in ("x", "y"):
        file["net"].create_dataset(name, (1,), "f8", chunks=(2**28,), maxshape=(None,))


def rename(name):
    return lambda file: file.move("net", name)


NO_ARRAY = "is no array in the file itself"
LARGE = "it declares more than 4294967296 bytes of arrays"
NAME = "expected a name of up to 100 printable characters other than /"
HDF5 = {
    "another program": (lambda file: file.attrs.__delitem__("format"), "expected format '.*', got None"),
    "format of numbers": (lambda file: file.attrs.__setitem__("format", [1, 2]), "expected format '.*', got array"),
    "8 TiB of nothing": (lambda file: file["net"].create_dataset("x", (2**40,), "f8", chunks=(2**20,)), LARGE),
    "large chunks": (large_chunks, LARGE),
    "long texts": (lambda file: file["net"].create_dataset("x", (2**20,), "S10000", chunks=(1,)), LARGE),
    "itself": (link_into_itself, "'(one|two)' is there twice"),
    "twice": (lambda file: file.__setitem__("net/x", file["net/scores"]), "'(x|scores)' is there twice"),
    "link to a file": (
        lambda file: file.__setitem__("net/x", h5py.ExternalLink("/etc/passwd", "/")), "'x' " + NO_ARRAY
    ),
    "soft link": (lambda file: file.__setitem__("net/x", h5py.SoftLink("/net/scores")), "'x' " + NO_ARRAY),
    "virtual": (virtual, "'x' " + NO_ARRAY),
    "raw file": (
        lambda file: file["net"].create_dataset("x", (9,), "u1", external=[("/etc/passwd", 0, 9)]), "'x' " + NO_ARRAY
    ),
    "deep": (lambda file: file.create_group("a/b/c"), "'c' " + NO_ARRAY),
    "a type": (lambda file: file.__setitem__("net/x", np.dtype("f8")), "'x' " + NO_ARRAY),
    "name of a folder": (rename(".."), "unreadable file|" + NAME),
    "name for Windows": (rename("..\\x"), NAME),
    "name that rules a terminal": (rename("\x1b[2J"), NAME),
    "long name": (rename(300 * "n"), NAME),
}  # fmt: skip


@pytest.mark.parametrize("what", HDF5)
def test_structure_of_results(tmp_path, whole, what):
    change, match = HDF5[what]
    path = tmp_path / "x.nc"
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        change(file)
    with refused(match):
        ja.results.load_results(path)


DAMAGED = "; the file is damaged"
WRONG = {
    "missing": (
        lambda net: net.drop_vars("scores"),
        "net .paper. lacks numbers scores over seed, score, neuron" + DAMAGED,
    ),
    "other axes": (
        lambda net: net.assign(scores=net["scores"].transpose()),
        "net .paper. lacks numbers scores over .*" + DAMAGED,
    ),
    "words": (
        lambda net: net.assign(correct=net["correct"].astype(str)),
        "net .paper. lacks numbers correct over .*" + DAMAGED,
    ),
    "no labels": (lambda net: net.drop_vars("ranking"), "net .paper. lacks labels that jaxablate writes" + DAMAGED),
    "numbers for labels": (lambda net: net.assign_coords(score=[1]), "net .paper. lacks labels that jaxablate writes"),
    "a word for a number": (
        lambda net: net.assign_attrs(first_step="none"),
        "net .paper. lacks labels that jaxablate writes",
    ),
    "other layers": (lambda net: net.assign_attrs(hidden="[1]"), "net .paper. lacks labels that jaxablate writes"),
    "no ids within sites": (
        lambda net: net.drop_vars("neuron_in_site"),
        "net .paper. lacks labels that jaxablate writes",
    ),
    "words for ids": (
        lambda net: net.assign_coords(ablated_layer=net["ablated_layer"].astype(str)),
        "net .paper. lacks labels that jaxablate writes",
    ),
    "half of the layers": (
        lambda net: net.assign_attrs(hidden="[1, "),
        "net .paper. lacks labels that jaxablate writes",
    ),
    "no number": (
        lambda net: net.assign_attrs(num_test_examples=[1, 2]),
        "net .paper. lacks labels that jaxablate writes",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_contents_of_results(tmp_path, what):
    change, match = WRONG[what]
    tree = fuzz.tiny_results()
    changed = {"/": tree.to_dataset(), "/net": change(tree["net"].to_dataset())}
    ja.results.save_results(xr.DataTree.from_dict(changed), tmp_path / "x.nc")
    with refused(match):
        ja.results.load_results(tmp_path / "x.nc")


def test_attributes_of_results(tmp_path, whole):
    path = tmp_path / "x.nc"
    path.write_bytes(whole)
    no_text, no_json = (3, [1.0, 2.0]), ("{half", "[]", 10**5 * "[")
    texts = {name: no_text for name in ("dataset", "dataset_origin", "device", "created", "matmul_precision")}
    texts["seconds"] = ("long", [1.0, 2.0])
    for name, values in {**texts, **dict.fromkeys(("versions", "config", "dataset_sha256"), no_text + no_json)}.items():
        with h5py.File(path, "r") as file:
            good = file.attrs[name]
        for value in (*values, good):
            with h5py.File(path, "r+") as file:
                file.attrs[name] = value
            if value is not good:
                with refused(f"missing or invalid attributes {name}; the file is damaged"):
                    ja.results.load_results(path)
    ja.results.load_results(path)


def test_names_of_units_stay_in_their_folder(tmp_path):
    units = CheckpointStore(tmp_path / "units", "run")
    names = ("..", "../x", "/etc/x", "a\0b\n", 300 * "ü", 300 * "n", 299 * "n" + "m")
    for number, name in enumerate(names):
        units.get(name, "", lambda number=number: {"x": np.array(number)})
    for number, name in enumerate(names):
        assert units.get(name, "", lambda: {})["x"] == number
    assert len(list((tmp_path / "units").iterdir())) == len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["units"]


def test_the_files_of_a_run(tmp_path):
    notes = []
    units = CheckpointStore(tmp_path / "units", "run", notes.append)
    units.get("one", "", lambda: {"x": np.zeros(2)})
    for content in (b"", b"text", network("{}.kernel", "{}.bias", dtype="F8_E4M3", item=1, value=b"1")):
        (tmp_path / "units" / "one.safetensors").write_bytes(content)
        assert units.get("one", "", lambda: {"x": np.ones(2)})["x"].tolist() == [1, 1]
        assert notes.pop() == "one.safetensors is damaged, or belongs to another run or network; it is computed again"
    for content in (b"{half", b"\xff", 10**5 * b"[", b"[]"):
        (tmp_path / "run.json").write_bytes(content)
        with refused("another run was started there .its run.json cannot be read"):
            open_run(tmp_path, {"seed": 1}, force=False)
    (tmp_path / "run.json").unlink()
    os.mkfifo(tmp_path / "run.json")
    assert open_run(tmp_path, {"seed": 1}, force=False) == open_run(tmp_path, {"seed": 1}, force=False)
    (tmp_path / "run.owner").write_bytes(b"\xff\x1b")
    with lock_folder(tmp_path) as killed:
        assert killed == "\ufffd\x1b"
