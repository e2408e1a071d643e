"""Datasets: every way in, and every way it can go wrong."""

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import struct
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from helpers import raises_input_error

import jaxablate as ja
from jaxablate import datasets
from jaxablate.datasets import _tfds
from jaxablate.datasets._idx import FILES

CLASSES = 3


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def arrays(num_train: int = 60, num_test: int = 9) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    result = {}
    for split, size in (("train", num_train), ("test", num_test)):
        result[f"{split}_images"] = random.integers(0, 256, (size, 4, 5)).astype(np.uint8)
        result[f"{split}_labels"] = (np.arange(size) % CLASSES).astype(np.uint8)
    return result


def write_folder(folder, zipped: bool = True, **changed):
    folder.mkdir(exist_ok=True)
    for key, array in {**arrays(), **changed}.items():
        data = array if isinstance(array, bytes) else idx(array)
        path = folder / (FILES[key] + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


def same_examples(split, images, labels) -> bool:
    """Return True if a split holds exactly these examples, in any order."""

    def keys(xs, ys):
        return sorted(np.asarray(x, np.float32).tobytes() + bytes([int(y)]) for x, y in zip(xs, ys, strict=True))

    return keys(split.images, split.labels) == keys(images.astype(np.float32) / np.float32(255), labels)


def joined(first, second):
    return datasets.Split(np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels]))


def test_mnist5k_is_split_within_every_class(mnist5k):
    for split, size in ((mnist5k.train, 350), (mnist5k.validation, 50), (mnist5k.test, 100)):
        assert split.images.shape == (10 * size, 28, 28)
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert (split.images.min(), split.images.max()) == (0, 1)
        assert np.bincount(split.labels).tolist() == [size] * 10
        assert len(set(split.labels[:30].tolist())) > 3, "shuffled"
    images = np.concatenate([mnist5k.train.images, mnist5k.validation.images, mnist5k.test.images])
    assert len({image.tobytes() for image in images}) == 5000, "no image twice"
    assert mnist5k.num_classes == 10
    assert mnist5k.source.name == "mnist5k"
    assert len(next(iter(mnist5k.source.sha256.values()))) == 64


def test_the_seed_decides_the_split(mnist5k):
    again, reseeded = ja.load_dataset("mnist5k", seed=2045), ja.load_dataset("mnist5k", seed=1)
    np.testing.assert_array_equal(again.train.images, mnist5k.train.images)
    assert not np.array_equal(reseeded.train.images, mnist5k.train.images)


def test_the_validation_split_is_a_seeded_permutation(tmp_path):
    folder = write_folder(tmp_path / "data")
    first, again, reseeded = (ja.load_dataset(folder, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    assert not np.array_equal(first.validation.images, reseeded.validation.images)
    tail = arrays()["train_images"][-10:] / np.float32(255)
    assert not np.array_equal(first.validation.images, tail), "not merely the last examples"


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder(tmp_path, zipped):
    raw = arrays()
    data = ja.load_dataset(write_folder(tmp_path / "mine", zipped), seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 10, 9)
    assert same_examples(joined(data.train, data.validation), raw["train_images"], raw["train_labels"])
    np.testing.assert_array_equal(data.test.images, raw["test_images"] / np.float32(255))
    np.testing.assert_array_equal(data.test.labels, raw["test_labels"])
    assert data.num_classes == CLASSES
    assert data.source.name == "mine"
    for name, digest in data.source.sha256.items():
        assert digest == hashlib.sha256((tmp_path / "mine" / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("floating", [True, False])
def test_npz(tmp_path, floating):
    raw = arrays()
    stored = {k: v / np.float32(255) if floating and k.endswith("images") else v for k, v in raw.items()}
    np.savez(tmp_path / "mine.npz", **stored)
    data = ja.load_dataset(tmp_path / "mine.npz")
    assert same_examples(joined(data.train, data.validation), raw["train_images"], raw["train_labels"])
    assert data.source.name == "mine"
    np.savez(
        tmp_path / "own.npz", **stored, validation_images=stored["test_images"], validation_labels=raw["test_labels"]
    )
    loaded = ja.load_dataset(str(tmp_path / "own.npz"))
    np.testing.assert_array_equal(loaded.validation.images, loaded.test.images)
    assert len(loaded.train) == 60


def test_arrays_in_memory_are_those_of_a_file(tmp_path):
    raw = arrays()
    np.savez(tmp_path / "mine.npz", **raw)
    file = ja.load_dataset(tmp_path / "mine.npz", seed=3)
    pairs = [(raw[f"{name}_images"], raw[f"{name}_labels"].tolist()) for name in ("train", "test")]
    data = ja.Dataset.from_arrays(*pairs[0], test=pairs[1], seed=3, name="mine")
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(data, split).images, getattr(file, split).images)
        np.testing.assert_array_equal(getattr(data, split).labels, getattr(file, split).labels)
    assert (data.num_classes, data.source.name, data.source.origin) == (
        CLASSES,
        "mine",
        "in memory, validation split taken from train by seed 3, uint8 images divided by 255",
    )
    given = ja.Dataset.from_arrays(*pairs[0], test=pairs[1], validation=pairs[1])
    assert given.source.sha256["validation_images"] != data.source.sha256["validation_images"]
    assert given.source.sha256["test_labels"] == data.source.sha256["test_labels"]
    np.testing.assert_array_equal(given.validation.images, given.test.images)
    images = np.random.default_rng(0).random((60, 7), np.float32)
    copied = ja.Dataset.from_arrays(images, np.arange(60) % 3)
    assert [len(split) for split in (copied.train, copied.validation, copied.test)] == [40, 8, 12]
    everything = joined(joined(copied.train, copied.validation), copied.test).images
    assert sorted(everything.tolist()) == sorted(images.tolist())
    pair = images, np.arange(60) % 3
    copied = ja.Dataset.from_arrays(*pair, test=pair, validation=pair)
    images[:] = 0
    assert copied.train.images.all()


def test_bad_arrays_in_memory():
    images, labels = arrays()["train_images"], arrays()["train_labels"]
    make = ja.Dataset.from_arrays
    with raises_input_error("arrays train: expected one label for each image, got 60 images and labels of shape .59"):
        make(images, labels[1:])
    with raises_input_error("arrays train images: expected floating numbers scaled .* got whole numbers 0..255"):
        make(images.astype(float), labels)
    with raises_input_error("arrays: expected images of one size, got"):
        make(images, labels, test=(images[:, 1:], labels))
    with raises_input_error(r"test: expected a pair \(images, labels\), got ndarray"):
        make(images, labels, test=images)
    with raises_input_error("arrays train images: expected an array, got list .*inhomogeneous"):
        make([[1.0], [1.0, 2.0]], [0, 1])
    with raises_input_error("training split: 4 examples are too few to split one in 5 off for test; give at least 5"):
        make(images[:4], labels[:4])
    with raises_input_error("training split: 5 examples are too few to split one in 6 off for validation"):
        make(images[:5], labels[:5], test=(images, labels))


def test_mnist_comes_verified_from_a_local_folder(mnist):
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (50_000, 10_000, 10_000)
    assert mnist.train.images.dtype == np.float32
    assert np.bincount(np.concatenate([mnist.train.labels, mnist.validation.labels]))[:3].tolist() == [5923, 6742, 5958]
    assert "verified" in mnist.source.origin
    assert mnist.source.sha256["t10k-labels-idx1-ubyte.gz"].startswith("f7ae60f92e00ec6d")


def test_siblings_of_mnist_are_told_apart_by_checksum(mnist_dir):
    assert datasets.availability("mnist", mnist_dir) == f"in {mnist_dir}"
    assert datasets.availability("kmnist", mnist_dir) == f"not in {mnist_dir}"
    with raises_input_error("kmnist: expected files with the checksums that TFDS knows, got others in"):
        ja.load_dataset("kmnist", data_dir=mnist_dir)


def test_a_subfolder_named_like_the_dataset_goes_first(tmp_path, monkeypatch):
    write_folder(tmp_path / "kmnist")
    assert _tfds.local_folder("kmnist", tmp_path) == tmp_path / "kmnist"
    assert _tfds.local_folder("mnist", tmp_path) is None
    write_folder(tmp_path)
    assert _tfds.local_folder("kmnist", tmp_path) == tmp_path / "kmnist"
    monkeypatch.setenv("JAXABLATE_DATA_DIR", str(tmp_path))
    assert _tfds.local_folder("mnist", None) == tmp_path
    assert _tfds.local_folder("mnist", tmp_path / "other") is None
    (tmp_path / "kmnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert _tfds.local_folder("kmnist", None) == tmp_path


def test_a_folder_of_datasets(tmp_path, mnist_dir, mnist):
    (tmp_path / "mnist").symlink_to(mnist_dir, target_is_directory=True)
    data = ja.load_dataset("mnist", data_dir=tmp_path)
    assert data.source.sha256 == mnist.source.sha256
    assert data.source.origin.startswith("canonical files in the folder mnist,")
    assert datasets.availability("mnist", tmp_path) == f"in {tmp_path / 'mnist'}"
    (tmp_path / "kmnist").mkdir()
    (tmp_path / "kmnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with raises_input_error(
        f"kmnist: expected the four gzipped IDX files in folder {tmp_path}/kmnist or {tmp_path}, missing "
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz; a folder of other"
    ):
        ja.load_dataset("kmnist", data_dir=tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch, no_data_dir):
    """A server on this machine that TFDS takes for the home of MNIST, with its checksums, and an empty cache."""
    served = write_folder(tmp_path / "served", train_images=np.zeros((60, 4, 5)), train_labels=np.arange(60) % 10)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_address[1]}/"
    builder = tfds.builder_cls("mnist")
    infos = {}
    for path in served.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = tfds.core.utils.Size(path.stat().st_size)
        infos[url + path.name] = tfds.core.download.checksums.UrlInfo(size=size, checksum=digest, filename=path.name)
    monkeypatch.setattr(builder, "URL", url)
    monkeypatch.setattr(builder, "url_infos", infos)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "cache"))
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_tfds_downloads_then_caches(server):
    assert datasets.availability("mnist") == "reachable"
    data = ja.load_dataset("auto")
    assert data.source.name == "mnist"
    assert "downloaded by TFDS from http://127.0.0.1" in data.source.origin
    server.shutdown()
    assert datasets.availability("mnist") == "cached"
    again = ja.load_dataset("mnist")
    assert again.source.origin.startswith("cache of TFDS,")
    np.testing.assert_array_equal(again.train.labels, data.train.labels)


def test_a_damaged_download_is_refused(server, tmp_path):
    (tmp_path / "served" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(9))))
    with raises_input_error("expected files with the checksums that TFDS knows, got others in the download"):
        ja.load_dataset("mnist")


def damage_cache(tmp_path):
    """Other bytes in one of the cached files, and in TFDS's note on it."""
    (path,) = (tmp_path / "cache").rglob("*t10k-labels*gz")
    path.write_bytes(gzip.compress(idx(np.arange(9))))
    (note,) = (tmp_path / "cache").rglob("*t10k-labels*.INFO")
    note.write_text("{half a no")
    return path


def test_a_damaged_cache_is_fetched_again(server, tmp_path):
    whole = ja.load_dataset("mnist")
    damage_cache(tmp_path)
    assert datasets.availability("mnist") == "reachable"
    again = ja.load_dataset("mnist")
    assert "downloaded by TFDS" in again.source.origin
    assert again.source.sha256 == whole.source.sha256
    assert ja.load_dataset("mnist").source.origin.startswith("cache of TFDS,")


def test_a_damaged_cache_is_refused_without_a_server(server, tmp_path):
    ja.load_dataset("mnist")
    path = damage_cache(tmp_path)
    server.shutdown()
    server.server_close()
    assert datasets.availability("mnist") == "not reachable"
    for name in ("mnist", "auto"):
        with raises_input_error(f"{path}: expected mnist's file with the SHA-256 .* download it again, or remove it"):
            ja.load_dataset(name)
    path.unlink()
    with raises_input_error("mnist is neither cached nor reachable"):
        ja.load_dataset("mnist")


def test_a_cache_of_an_older_tfds_is_verified(server, tmp_path):
    """It lies one folder higher."""
    ja.load_dataset("mnist")
    path = damage_cache(tmp_path)
    for file in path.parent.iterdir():
        if file.is_file():
            file.rename(path.parents[1] / file.name)
    with raises_input_error(f"{path.parents[1] / path.name}: expected mnist's file with SHA-256 .*; remove it"):
        ja.load_dataset("mnist")


@pytest.fixture
def offline(tmp_path, monkeypatch, no_data_dir):
    """Neither a cache nor a server: the address refuses connections."""
    builder = tfds.builder_cls("mnist")
    url = "http://127.0.0.1:9/"
    infos = {url + key.rpartition("/")[2]: info for key, info in builder.url_infos.items()}
    monkeypatch.setattr(builder, "URL", url)
    monkeypatch.setattr(builder, "url_infos", infos)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "cache"))


def test_without_a_network_mnist_fails_soon_and_says_what_to_do(offline):
    start = time.monotonic()
    with raises_input_error("mnist is neither cached nor reachable: connect to the internet, or give a folder"):
        ja.load_dataset("mnist")
    assert time.monotonic() - start < 15  # the promise to users, not a measurement


def test_the_promise_of_15_seconds_covers_the_probe():
    assert 2 * _tfds.PROBE_SECONDS <= 12  # the rest is for importing TFDS


def test_a_silent_server_is_given_up(offline, monkeypatch):
    answer = threading.Event()

    def silent(*_, **__):
        answer.wait()
        raise TimeoutError

    monkeypatch.setattr(_tfds.urllib.request, "urlopen", silent)
    monkeypatch.setattr(_tfds, "PROBE_SECONDS", 0.1)
    with raises_input_error("neither cached nor reachable"):
        ja.load_dataset("mnist")
    answer.set()


def test_auto_without_a_network_is_the_embedded_set(offline, mnist5k):
    data = ja.load_dataset("auto")
    assert data.source.name == "mnist5k"
    np.testing.assert_array_equal(data.test.labels, mnist5k.test.labels)


def test_auto_with_a_faulty_folder_does_not_fall_back(tmp_path):
    with raises_input_error("expected the four gzipped IDX files in folder .*, missing train-images"):
        ja.load_dataset("auto", data_dir=tmp_path)
    with raises_input_error("mnist: expected a folder with its four files, got .*nowhere, which is none"):
        ja.load_dataset("auto", data_dir=tmp_path / "nowhere")
    assert datasets.availability("kmnist", tmp_path) == f"not in {tmp_path}"


def test_a_folder_that_cannot_be_read_does_not_fall_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "mnist")

    def denied(*_, **__):
        raise PermissionError("permission denied")

    monkeypatch.setattr(tfds.core.download.DownloadManager, "download", denied)
    with raises_input_error("mnist: reading .*mnist failed .permission denied.; try again"):
        ja.load_dataset("auto", data_dir=tmp_path)


def test_unknown_names_and_paths(tmp_path):
    with raises_input_error(
        "dataset: unknown 'cifar'; choose auto, mnist, fashion_mnist, kmnist, mnist5k, an existing folder"
    ):
        ja.load_dataset("cifar")
    with raises_input_error("dataset: unknown"):
        ja.load_dataset(tmp_path / "missing.npz")


def test_damaged_idx_folders(tmp_path):
    folder = write_folder(tmp_path / "data")

    def broken(**changed):
        shutil.rmtree(folder)
        return write_folder(folder, **changed)

    os.remove(folder / "t10k-labels-idx1-ubyte.gz")
    with raises_input_error("expected the four IDX files .* missing t10k-labels-idx1-ubyte$"):
        ja.load_dataset(folder)
    path = broken() / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with raises_input_error("train-images-idx3-ubyte.gz: expected a whole gzip file, got a damaged one"):
        ja.load_dataset(folder)
    path.write_bytes(b"no gzip at all")
    with raises_input_error("expected a whole gzip file"):
        ja.load_dataset(folder)
    with raises_input_error("expected IDX magic number 0x00000803, got 0x00000801"):
        ja.load_dataset(broken(train_images=idx(arrays()["train_images"], 0x801)))
    with raises_input_error("train: expected one label for each image, got 60 images and labels of shape"):
        ja.load_dataset(broken(train_labels=np.zeros(59)))
    with raises_input_error(r"data: expected images of one size, got \[\(4, 5\), \(5, 4\)\]"):
        ja.load_dataset(broken(test_images=np.zeros((9, 5, 4))))
    with raises_input_error("test labels: expected values in 0..2, got 0..3"):
        ja.load_dataset(broken(test_labels=np.arange(9) % 4))
    with raises_input_error("expected 1200 bytes after the header, got 1199"):
        ja.load_dataset(broken(train_images=idx(arrays()["train_images"])[:-1]))
    with raises_input_error("expected 1200 bytes after the header, got more"):
        ja.load_dataset(broken(train_images=idx(arrays()["train_images"]) + b"x"))
    with raises_input_error("expected at most 4294967296 bytes, its header declares"):
        ja.load_dataset(broken(train_images=struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 9)))
    with raises_input_error("expected an IDX header, got 3 bytes"):
        ja.load_dataset(broken(test_labels=b"abc"))
    with raises_input_error("expected a non-empty array"):
        ja.load_dataset(broken(test_images=np.zeros((0, 4, 5)), test_labels=np.zeros(0)))


def test_features_of_any_shape_and_range(tmp_path):
    """Features that are no image: floating numbers are not changed."""
    random = np.random.default_rng(0)
    features = {f"{split}_images": random.normal(size=(60, 7)) * 300 for split in ("train", "test")}
    np.savez(tmp_path / "features.npz", **{**arrays(), **features, "test_labels": arrays()["train_labels"]})
    data = ja.load_dataset(tmp_path / "features.npz")
    np.testing.assert_array_equal(data.test.images, features["test_images"].astype(np.float32))
    assert data.train.images.shape == (50, 7)


def test_damaged_npz(tmp_path):
    path = tmp_path / "mine.npz"

    def store(**changed):
        kept = {key: value for key, value in {**arrays(), **changed}.items() if value is not None}
        np.savez(path, **kept)
        return path

    with raises_input_error("expected the arrays .*, missing test_labels; it has"):
        ja.load_dataset(store(test_labels=None))
    with raises_input_error("missing validation_labels"):
        ja.load_dataset(store(validation_images=np.zeros((3, 4, 5), np.uint8)))
    bad = arrays()["train_images"] / 255
    bad[0, 0, 0] = np.nan
    with raises_input_error("mine.npz train images: expected finite numbers, got 1 NaN"):
        ja.load_dataset(store(train_images=bad))
    with raises_input_error("expected floating numbers scaled as the network takes them, got whole numbers 0..255"):
        ja.load_dataset(store(train_images=arrays()["train_images"].astype(float)))
    with raises_input_error("uint8 in 0..255 or floating numbers, got dtype int64"):
        ja.load_dataset(store(train_images=arrays()["train_images"].astype(np.int64)))
    with raises_input_error("train labels: expected values in 0..2, got -1..2"):
        ja.load_dataset(store(train_labels=np.arange(60) % 4 - 1))
    with raises_input_error("train labels: expected 0 to classes - 1, got 1099511627778; number the classes from 0"):
        ja.load_dataset(store(train_labels=np.arange(60) % 3 + 2**40))
    with raises_input_error("train labels: expected integers"):
        ja.load_dataset(store(train_labels=np.zeros(60)))
    with raises_input_error("expected a non-empty array"):
        ja.load_dataset(store(train_images=np.zeros(60, np.uint8)))
    with raises_input_error("mine.npz: train_labels.npy: expected an array of plain numbers, got dtype object"):
        ja.load_dataset(store(train_labels=np.array([object()] * 60)))
    path.write_bytes(b"PK not a zip")
    with raises_input_error("expected an .npz archive of plain arrays"):
        ja.load_dataset(path)


def test_a_dataset_prints_in_a_line(mnist5k):
    assert repr(mnist5k) == (
        "Dataset('mnist5k': train 3,500, validation 500, test 1,000 examples of shape (28, 28), 10 classes)"
    )
    assert repr(mnist5k.test) == "Split(1,000 examples of shape (28, 28))"


def test_arrays_in_place_of_a_dataset(mnist5k):
    """One sentence, which names the way for arrays and never holds their content."""
    arrays = mnist5k.test.images, mnist5k.test.labels
    model = ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
    calls = {
        "score": lambda: ja.study.score_neurons(model, arrays),
        "prune": lambda: ja.study.prune_by_score(model, arrays),
        "train": lambda: ja.train(arrays),
        "sensitivity": lambda: ja.study.quantizer_sensitivity(model, arrays, ("mean", "positive")),
        "redundancy": lambda: ja.study.linear_redundancy(model, arrays),
        "study": lambda: ja.run_study(ja.StudyConfig(networks=()), {"net": model}, data=arrays),
    }
    for call in calls.values():
        with raises_input_error("data: expected a Dataset, such as ja.Dataset.from_arrays.* got tuple$"):
            call()
    for name in (arrays[0], {"train": arrays}, None, 3):
        with raises_input_error(f"dataset: expected a name or a path, got {type(name).__name__}; .{{,60}}$"):
            ja.load_dataset(name)
        with raises_input_error(f"dataset: expected a name or a path, got {type(name).__name__}; run_study takes"):
            ja.StudyConfig(dataset=name)


def test_a_nan_has_no_code():
    activations = np.array([[0.5, np.nan], [1.0, 2.0], [np.inf, -np.inf]], np.float32)
    for quantizer in (ja.quantizers.threshold(0.5), ja.quantizers.positive(), ja.quantizers.levels([0.0, 1.0])):
        with raises_input_error("activations: 1 of 6 are NaN, which has no code; check the weights and the images"):
            quantizer(activations)
    assert ja.quantizers.positive()(activations[1:]).tolist() == [[1, 1], [1, 0]]


def test_two_files_of_one_name_must_agree(tmp_path):
    random = np.random.default_rng(0)
    for key, name in FILES.items():
        array = random.integers(0, 256, (30, 4, 4)) if key.endswith("images") else np.arange(30) % 3
        (tmp_path / name).write_bytes(idx(array.astype(np.uint8)))
    expected = ja.load_dataset(str(tmp_path))
    name = FILES["test_labels"]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(whole))
    np.testing.assert_array_equal(ja.load_dataset(str(tmp_path)).test.labels, expected.test.labels)
    for packed in (gzip.compress(whole[:-1] + b"\x01"), gzip.compress(whole + b"\x00"), gzip.compress(whole)[:-9], b""):
        (tmp_path / f"{name}.gz").write_bytes(packed)
        with raises_input_error(f"{name} and {name}.gz hold different data; remove the one that is not meant"):
            ja.load_dataset(str(tmp_path))
