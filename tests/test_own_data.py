"""Data as people have them: each form gives the right value or one sentence, the same in every function."""

import warnings
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from flax import nnx
from helpers import assert_counts, raises_input_error
from PIL import Image
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
import jaxablate.figures
import jaxablate.report
from jaxablate._checks import InputError, JaxablateWarning, describe_value
from jaxablate.datasets._types import check_dataset

try:
    import torch
except ImportError:
    torch = None

NEEDS_TORCH = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3
ORDERS = np.array([[3, 1, 0, 4, 2], [0, 1, 2, 3, 4]])
CODES = np.stack([LABELS > 0, LABELS > 1], axis=1).astype(int)


@pytest.fixture(autouse=True)
def unchecked():
    """Shapes and types go unchecked, as in normal use."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model():
    return ja.MLP(4, (3, 2), 3, activation="relu", rngs=nnx.Rngs(0))


# Archives


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


def split(first: str, second: str, *splits: str) -> dict[str, np.ndarray]:
    """Arrays of training, test and further splits; the names have braces in place of the split."""
    named = {}
    for i, name in enumerate(("train", "test", *splits)):
        named |= {first.format(name): IMAGES / (1 + i), second.format(name): np.roll(LABELS, i)}
    return named


NAMES = [
    ("train_images", split("{}_images", "{}_labels"), "validation split taken from train by seed 2045"),
    ("val_images", split("{}_images", "{}_labels", "val"), "val_images as validation images; val_labels as validat"),
    ("valid_images", split("{}_images", "{}_labels", "valid"), "valid_images as validation images"),
    ("Keras", split("x_{}", "y_{}"), "x_train as train images; y_train as train labels; x_test as .*; validation"),
    ("Keras, val", split("x_{}", "y_{}", "val"), "x_val as validation images; y_val as validation labels"),
    ("scikit-learn", split("X_{}", "y_{}"), "X_train as train images"),
    ("more", {**split("x_{}", "y_{}"), "ids": LABELS}, "; not read: ids"),
]


@pytest.mark.parametrize(("arrays", "origin"), [case[1:] for case in NAMES], ids=[case[0] for case in NAMES])
def test_usual_names_of_splits(tmp_path, arrays, origin):
    data = ja.load_dataset(archive(tmp_path, **arrays))
    pairs = [(IMAGES / i, np.roll(LABELS, i - 1)) for i in (2, 3)]
    has_validation = "as validation" in origin
    same = ja.Dataset.from_arrays(IMAGES, LABELS, test=pairs[0], validation=pairs[1] if has_validation else None)
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(data, name).images, getattr(same, name).images)
        np.testing.assert_array_equal(getattr(data, name).labels, getattr(same, name).labels)
    with raises_input_error(origin):  # `match` for the sentence
        raise InputError(data.source.origin)


@pytest.mark.parametrize("names", [("X", "y"), ("x", "y"), ("images", "labels"), ("data", "target")])
def test_a_single_pair_is_split(tmp_path, names):
    data = ja.load_dataset(archive(tmp_path, **dict(zip(names, (IMAGES, LABELS), strict=True))))
    same = ja.Dataset.from_arrays(IMAGES, LABELS)
    assert [len(data.train), len(data.validation), len(data.test)] == [40, 8, 12]
    np.testing.assert_array_equal(data.test.images, same.test.images)
    assert data.source.origin.endswith(
        f"(images {names[0]} and labels {names[1]}, split at random into three splits by seed 2045)"
    )


PAIR = {"X": IMAGES, "y": LABELS}
OPEN = {
    "two namings": (split("x_{}", "y_{}") | split("{}_images", "{}_labels"), "expected one naming of arrays, got"),
    "pair and splits": (PAIR | split("X_{}", "y_{}"), "expected one naming of arrays, got X_train and .* as well as X"),
    "x and X": ({**PAIR, "x": IMAGES}, "expected one naming of arrays, got X and y as well as x; leave out"),
    "val twice": (split("x_{}", "y_{}", "val", "validation"), "as well as x_validation and y_validation"),
    "other labels": ({"train_images": IMAGES, "y_train": LABELS}, "got train_images as well as y_train"),
    "no test": ({"x_train": IMAGES, "y_train": LABELS}, "missing x_test, y_test; it has x_train, y_train$"),
    "no labels": ({"X": IMAGES}, r"or one pair \(X, y\), .* missing y; it has X$"),
    "val images": ({**split("x_{}", "y_{}"), "x_val": IMAGES}, "missing y_val"),
    "other names": ({"a": IMAGES}, "expected the arrays train_images, train_labels, ...; or x_train, y_train.* has a$"),
    "many": ({f"a{i}": LABELS for i in range(300)}, "it has a0, a1, a2, a3, a4, a5, a6, a7 and 292 more$"),
}


@pytest.mark.parametrize("what", OPEN)
def test_names_that_leave_something_open(tmp_path, what):
    arrays, match = OPEN[what]
    with raises_input_error(match) as caught:
        ja.load_dataset(archive(tmp_path, **arrays))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # as by PYTHONWARNINGS=ignore, usual in scripts of jobs
def test_a_command_prints_what_was_assumed(tmp_path, model):
    network, data = tmp_path / "network.safetensors", archive(tmp_path, X=IMAGES, y=LABELS + 1)
    four = ja.MLP(4, (3, 2), 4, activation="relu", rngs=nnx.Rngs(0))
    ja.save_model(four, network)
    options = [str(network), "--dataset", str(data), "--score", "mean_activation", "--out", str(tmp_path / "out.csv")]
    result = CliRunner().invoke(jaxablate.cli.app, ["score", *options])
    assert result.exit_code == 0, result.output
    assert "(images X and labels y, split at random into three splits by seed 2045)" in " ".join(result.output.split())
    assert result.output.count("no split has an example of class 0; number the classes from 0") == 1


# Labels

CONVERT = r"; np.asarray\(labels, int\) converts them"
UNIQUE = r"; np.unique\(all_labels, return_inverse=True\)\[1\] numbers the classes, for all splits together"
BAD_LABELS = {
    "one-hot": (np.eye(3)[LABELS], r"\(one-hot labels\); np.argmax\(labels, axis=1\) converts them"),
    "one-hot integers": (np.eye(3, dtype=int)[LABELS], r"\(one-hot labels\); np.argmax\(labels, axis=1\)"),
    "several labels": (
        np.ones((60, 3), int),
        r"\[example\], got \(60, 3\); if an example can have several classes, pass outcomes",
    ),
    "[N, 1]": (LABELS[:, None], r"got \(60, 1\); np.ravel\(labels\) drops the second axis"),
    "table": (pd.DataFrame({"y": LABELS}), r"got \(60, 1\); np.ravel\(labels\)"),
    "texts": (np.array(["a", "b", "c"])[LABELS], "expected integers, got dtype <U1" + UNIQUE),
    "texts in pandas": (pd.Series(["a", "b", "c"] * 20), "expected integers, got dtype object" + UNIQUE),
    "categories": (pd.Series(["a", "b", "c"] * 20, dtype="category"), "got dtype object" + UNIQUE),
    "dates": (LABELS.astype("datetime64[D]"), "expected integers, got dtype datetime64.D." + UNIQUE),
    "whole numbers": (LABELS.astype(float), "expected integers, got dtype float64" + CONVERT),
    "booleans": (LABELS > 1, "expected integers, got dtype bool" + CONVERT),
    "objects": (LABELS.astype(object), "expected integers, got dtype object" + CONVERT),
    "fractions": (LABELS + 0.5, "expected integers, got dtype float64 with fractions; number the classes from 0"),
    "NaN": (np.where(LABELS > 1, np.nan, LABELS), "float64 with 20 NaN or infinite; drop the examples without a class"),
    "missing in pandas": (pd.Series([0, 1, None] * 20, dtype="Int64"), "20 NaN or infinite|without a mask"),
    "negative": (LABELS - 1, "got -1..1; drop the examples without a class"),
    "unknown": (np.where(LABELS > 1, -1, 2), "got -1..2; drop the examples without a class"),
    "all unknown": (np.full(60, -1), "-1..-1; drop the examples without a class|holds no example"),
    "signs": (np.where(LABELS > 1, 1, -1), r"got -1..1; \(labels > 0\).astype\(int\) numbers the two classes"),
    "numbers as texts": (LABELS.astype(str), r"got dtype <U\d+; labels.astype\(int\) reads the numbers"),
    "masked": (np.ma.masked_equal(LABELS, 2), "expected an array without a mask, got a masked array; drop the masked"),
    "sparse": (scipy.sparse.csr_matrix(np.eye(3)[LABELS]), "an array, got csr_matrix; .toarray.. makes an array of it"),
    "ragged": ([[1], [1, 2]], "expected an array, got list .*inhomogeneous"),
    "nothing": (None, "expected an array, got NoneType$"),
    "mapping": ({"a": 1}, "expected an array, got dict$"),
    "text": ("labels", r"\[example\], got \(\)$"),
}
if torch is not None:
    BAD_LABELS["gradient"] = torch.tensor(LABELS * 1.0, requires_grad=True), r"got Tensor \(.*tensor.detach\(\).numpy"
TAKES_LABELS = {
    "dataset": lambda model, labels: ja.Dataset.from_arrays(IMAGES, labels),
    "cumulative": lambda model, labels: ja.cumulative_ablation(model, ORDERS, IMAGES, labels, steps=2),
    "masks": lambda model, labels: ja.evaluate_masks(model, np.ones((1, 5), bool), IMAGES, labels),
    "single": lambda model, labels: ja.single_ablation(model, IMAGES, labels),
    "histogram": lambda model, labels: ja.joint_histogram(CODES, labels, num_codes=2, num_classes=3),
    "pairs": lambda model, labels: ja.interactions.pair_information(CODES, labels, num_codes=2, num_classes=3),
    "evidence": lambda model, labels: ja.scores.Evidence(model, IMAGES, labels, 3),
    "optimal": lambda model, labels: ja.compute_fill(
        model, "optimal", IMAGES, labels, keep=np.ones((1, 5), bool), key=jax.random.key(0)
    ),
    "shards": lambda model, labels: ja.devices.shard_examples(ja.devices.make_mesh(1), IMAGES, labels),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_are_no_classes(model, what):
    labels, match = BAD_LABELS[what]
    for name, call in TAKES_LABELS.items():
        if (name == "optimal" and what == "nothing") or (
            name == "shards" and what in ("negative", "signs", "unknown", "all unknown")
        ):
            continue  # they have sentences of their own
        with raises_input_error(f"labels: .*{match}") as caught:
            call(model, labels)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("what", ["one-hot", "texts", "whole numbers", "[N, 1]", "booleans", "objects"])
def test_the_expression_in_the_message_mends_the_labels(what):
    labels, _ = BAD_LABELS[what]
    with raises_input_error("; (.*) (converts them|numbers the classes|drops the second axis)") as caught:
        ja.Dataset.from_arrays(IMAGES, labels)
    expression = str(caught.value).rpartition("; ")[2].partition(") ")[0] + ")"
    if what == "texts":
        expression = str(caught.value).rpartition("; ")[2].partition(" numbers")[0]
    mended = eval(expression, {"np": np, "labels": labels, "all_labels": labels})
    np.testing.assert_array_equal(mended, LABELS > 1 if what == "booleans" else LABELS)


def test_texts_of_digits_are_read_as_numbers():
    texts = (LABELS + 9).astype(str)  # "10" comes before "9" in an alphabet
    for labels in (texts, texts.astype(object), texts.astype(bytes)):
        with raises_input_error(r"; labels.astype\(int\) reads the numbers"):
            ja.Dataset.from_arrays(IMAGES, labels)
    with raises_input_error("for a trained network, number them in the order of its outputs"):
        ja.Dataset.from_arrays(IMAGES, np.array(["cat", "dog", "bird"])[LABELS])


def test_labels_from_1(model):
    for name, call in TAKES_LABELS.items():
        if name not in ("dataset", "shards"):
            with raises_input_error("labels: expected values in 0..2, got 1..3; number the classes from 0, by labels"):
                call(model, LABELS + 1)
    with pytest.warns(JaxablateWarning, match="^mine: of the 4 classes, no split has an example of class 0; number"):
        assert ja.Dataset.from_arrays(IMAGES, LABELS + 1, name="mine").num_classes == 4


def test_a_mark_such_as_255(model):
    marked = np.where(LABELS == 2, 255, LABELS).astype(np.uint8)
    with raises_input_error("labels: expected values in 0..2, got 0..255; drop the examples without a class"):
        ja.single_ablation(model, IMAGES, marked)
    with pytest.warns(JaxablateWarning, match="of the 256 classes, no split .* 2, 3, 4, 5, 6 and 248 more; number"):
        ja.Dataset.from_arrays(IMAGES, marked)


def test_a_class_that_a_split_lacks_is_named_once(tmp_path):
    some = LABELS < 2
    lacking = {"test": (IMAGES[some], LABELS[some]), "name": "mine"}
    with pytest.warns(JaxablateWarning, match="^mine: of the 3 classes, test has no example of class 2$") as caught:
        data = ja.Dataset.from_arrays(IMAGES, LABELS, **lacking)
    assert len(caught) == 1
    check_dataset(data)  # as run_study does: it says nothing again
    with pytest.warns(JaxablateWarning, match="^mine: of the 3 classes, test has no example of class 2$"):
        ja.load_dataset(archive(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[some], y_test=LABELS[some]))


GOOD = {
    "list": lambda array: array.tolist(),
    "pandas": lambda array: pd.Series(array) if array.ndim == 1 else pd.DataFrame(array),
    "JAX": jnp.asarray,
    "mask of nothing": np.ma.masked_invalid,
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "Fortran order": np.asfortranarray,
    "every second": lambda array: np.repeat(array, 2, axis=0)[::2],
}
if torch is not None:
    GOOD["PyTorch"] = torch.tensor


@pytest.mark.parametrize("kind", GOOD)
def test_containers_give_the_same_numbers(model, kind):
    make = GOOD[kind]
    orders, fill = make(ORDERS), make(np.linspace(0, 1, 5).astype(np.float32))
    expected = ja.cumulative_ablation(model, ORDERS, IMAGES, LABELS, np.linspace(0, 1, 5), steps=5)
    counts = ja.cumulative_ablation(model, orders, make(IMAGES), make(LABELS), fill, steps=5)
    np.testing.assert_array_equal(counts, expected)
    masks = ja.orders.masks_of_orders(ORDERS[:1], 5, 5)
    assert_counts(counts[0], model, masks, IMAGES, LABELS, np.linspace(0, 1, 5))
    with warnings.catch_warnings(action="error"):
        data = ja.Dataset.from_arrays(make(IMAGES), make(LABELS))
    np.testing.assert_array_equal(data.train.images, ja.Dataset.from_arrays(IMAGES, LABELS).train.images)
    np.testing.assert_array_equal(
        ja.ablation_order(make(IMAGES[0]), direction="low"), np.argsort(IMAGES[0], kind="stable")
    )
    histogram = ja.joint_histogram(make(CODES), make(LABELS), num_codes=2, num_classes=3)
    table = [[[(CODES[c == LABELS, n] == t).sum() for t in (0, 1)] for c in range(3)] for n in (0, 1)]
    np.testing.assert_array_equal(histogram, table)


def test_memory_mapped_arrays(tmp_path, model):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    images, labels = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
    assert isinstance(images, np.memmap)
    expected = ja.single_ablation(model, IMAGES, LABELS, outcomes="loss")
    np.testing.assert_array_equal(ja.single_ablation(model, images, labels, outcomes="loss"), expected)
    assert type(ja.Dataset.from_arrays(images, labels).train.images) is np.ndarray


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64])
def test_labels_of_every_integer_type(model, dtype):
    labels = LABELS.astype(dtype)
    np.testing.assert_array_equal(ja.single_ablation(model, IMAGES, labels), ja.single_ablation(model, IMAGES, LABELS))
    assert ja.Dataset.from_arrays(IMAGES, labels).train.labels.dtype == np.int32


# Images

TAKES_IMAGES = {
    "dataset": lambda model, images: ja.Dataset.from_arrays(images, LABELS),
    "cumulative": lambda model, images: ja.cumulative_ablation(model, ORDERS, images, LABELS, steps=2),
    "record": ja.record_activations,
    "mean": ja.mean_activations,
    "fill": lambda model, images: ja.compute_fill(model, "median", images),
    "module": ja.from_module,
}
BAD_IMAGES = {
    "texts": (IMAGES.astype(str), "<U32"),
    "dates": (np.zeros((60, 4), "datetime64[D]"), "datetime64"),
    "objects": (IMAGES.astype(object), "dtype object"),
    "mixed table": (pd.DataFrame({"a": [1.0] * 60, "b": ["b"] * 60}), "dtype object"),
    "sparse": (scipy.sparse.csr_matrix(IMAGES), "expected an array, got csr_matrix; .toarray.. makes an array of it"),
    "masked": (np.ma.masked_less(IMAGES, 0.1), "expected an array without a mask"),
    "ragged": ([[1.0], [1.0, 2.0]], "expected an array, got list .*inhomogeneous"),
    "empty": (IMAGES[:0], r"got shape \(0, 4\)"),
    "nothing": (None, "expected an array, got NoneType"),
    "mapping": ({"a": IMAGES}, "expected an array, got dict"),
}
if torch is not None:
    BAD_IMAGES["gradient"] = torch.tensor(IMAGES, requires_grad=True), r"got Tensor \(.*tensor.detach\(\).numpy\(\)"
    BAD_IMAGES["bfloat16 tensor"] = torch.tensor(IMAGES).bfloat16(), r"got Tensor \(.*BFloat16"


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_images_that_are_no_numbers(model, what):
    images, match = BAD_IMAGES[what]
    for call in TAKES_IMAGES.values():
        with raises_input_error(f"images: .*{match}") as caught:
            call(model, images)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_floating_images_of_every_size(model, dtype):
    images = IMAGES.astype(dtype)
    data = ja.Dataset.from_arrays(images, LABELS, test=(images, LABELS))
    np.testing.assert_array_equal(data.test.images, images.astype(np.float32))
    kernel, bias = map(np.asarray, model.stages[0].weights)
    first = np.maximum(images.astype(np.float64) @ kernel.astype(np.float64) + bias, 0)
    tolerance = 1e-2 if dtype == ml_dtypes.bfloat16 else 2e-3 if dtype == np.float16 else 1e-5
    np.testing.assert_allclose(ja.record_activations(model, images)[0], first, atol=tolerance)


def test_pixels_are_divided_only_where_stated(model):
    pixels = (IMAGES * 255).astype(np.uint8)
    data = ja.Dataset.from_arrays(pixels, LABELS, test=(pixels, LABELS))
    np.testing.assert_array_equal(data.test.images, pixels.astype(np.float32) / np.float32(255))
    with raises_input_error("images: expected floating pixels in .*, got dtype uint8; divide uint8 pixels by 255"):
        ja.record_activations(model, pixels)
    with raises_input_error("got dtype int64; pixels are .astype.np.uint8., features .astype.np.float32."):
        ja.Dataset.from_arrays(pixels.astype(np.int64), LABELS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite(model, bad):
    images = np.where(IMAGES > 0.9, np.float32(bad), IMAGES)
    with raises_input_error("train images: expected finite numbers"):
        ja.Dataset.from_arrays(images, LABELS)
    with raises_input_error("mean activations: expected finite numbers, got .*; check the weights and the images"):
        ja.mean_activations(model, images)
    for kind in ("mean", "median", "class_mean", "resample", "optimal", "linear"):
        warning = pytest.warns(JaxablateWarning, match="fewer than 10") if kind == "linear" else nullcontext()
        with (
            warning,
            raises_input_error("activations.*: expected finite numbers, got .*; check the weights and"),
        ):
            ja.compute_fill(model, kind, images[:20], LABELS[:20], keep=np.ones((1, 5), bool), key=jax.random.key(0))
    with raises_input_error("activations: expected finite numbers"):
        ja.scores.compute_score("mean_activation", ja.scores.Evidence(model, images, LABELS, 3))


BAD_FILLS = {
    "name": ("mean", "fill: expected numbers .neuron., got 'mean'; ja.compute_fill makes them"),
    "texts": (np.array(["1"] * 5), "fill: expected an array of numbers, got dtype <U1"),
    "dates": (np.zeros(5, "datetime64[D]"), "fill: expected an array of numbers, got dtype datetime64"),
    "complex": (np.ones(5, complex), "fill: expected an array of numbers, got dtype complex128"),
    "masked": (np.ma.masked_equal(np.arange(5.0), 2), "fill: expected an array without a mask"),
    "NaN": (np.full(5, np.nan), "fill: expected finite numbers, got 5 NaN or infinite of 5"),
    "number": (0.5, r"fill: expected shape \(5\) = .neuron., got \(\)"),
}


@pytest.mark.parametrize("what", BAD_FILLS)
def test_fills_that_are_no_numbers(model, what):
    fill, match = BAD_FILLS[what]
    with raises_input_error(match):
        ja.single_ablation(model, IMAGES, LABELS, fill)


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        (np.array([0.1, np.nan]), "scores: expected finite numbers"),
        (np.array([1, 2], object), "scores: expected an array of numbers, got dtype object"),
        (np.array(["a", "b"]), "scores: expected an array of numbers, got dtype <U1"),
        (np.ma.masked_equal([1, 2], 2), "scores: expected an array without a mask"),
        (None, "scores: expected an array, got NoneType"),
    ],
)
def test_scores_that_are_no_numbers(scores, match):
    with raises_input_error(match):
        ja.ablation_order(scores, direction="low")
    with raises_input_error(match):
        ja.orders.normalize_per_layer(scores, np.zeros(2, int), "rank")


# Networks


class Vmapped(nnx.Module):
    """A network whose layers take one example; `nnx.vmap` applies them to all."""

    def __init__(self, rngs):
        self.hidden, self.site, self.head = nnx.Linear(4, 3, rngs=rngs), ja.Site("h"), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, images):
        return nnx.vmap(lambda net, x: net.head(net.site(nnx.relu(net.hidden(x)))), in_axes=(None, 0))(self, images)


def test_a_site_inside_nnx_vmap():
    net = Vmapped(nnx.Rngs(0))
    first, second = (
        [np.asarray(a[...], np.float64) for a in (layer.kernel, layer.bias)] for layer in (net.hidden, net.head)
    )
    hidden = np.maximum(IMAGES @ first[0] + first[1], 0)
    expected = [((hidden * (np.arange(3) != i)) @ second[0] + second[1]).argmax(axis=1) == LABELS for i in range(3)]
    np.testing.assert_array_equal(ja.single_ablation(net, IMAGES, LABELS), np.sum(expected, axis=1))


def test_one_output_is_one_class():
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu, nnx.Linear(3, 1, rngs=rngs))
    binary = LABELS % 2
    remedy = r"one output is one class: make two logits of the output z, .*, or pass outcomes="
    with raises_input_error(r"labels: expected values in 0..0, got 0..1; " + remedy):
        ja.single_ablation(net, IMAGES, binary)
    with raises_input_error("labels: the data have 2 classes, and the network has 1; " + remedy):
        ja.study.score_neurons(net, ja.Dataset.from_arrays(IMAGES, binary), quantizer="mean")
    two = ja.from_module(nnx.Sequential(net, lambda z: jnp.concatenate([0 * z, z], axis=1)), IMAGES)
    right = ja.single_ablation(net, IMAGES, binary, outcomes={"right": lambda z, y: (z[:, 0] > 0) == y})["right"]
    np.testing.assert_array_equal(ja.single_ablation(two, IMAGES, binary), right)


def test_text_labels_for_an_outcome_of_the_user(model):
    with raises_input_error("labels: expected an array of numbers, got dtype <U1"):
        ja.single_ablation(model, IMAGES, np.array(["a"] * 60), outcomes={"first": lambda z, y: z[:, 0]})


# Other objects in place of an argument


@pytest.fixture(scope="module")
def calls(model):
    """Functions of one argument, by the name of the argument in messages."""
    data = ja.Dataset.from_arrays(IMAGES, LABELS)
    counted = {"num_codes": 2, "num_classes": 3}
    return {
        "model": [
            lambda x: ja.single_ablation(x, IMAGES, LABELS),
            lambda x: ja.record_activations(x, IMAGES),
            lambda x: ja.study.score_neurons(x, data),
            lambda x: ja.prune(x, np.ones(5, bool), images=IMAGES),
            ja.pruning.count_parameters,
        ],
        "models": [lambda x: ja.study.linear_redundancy(x, data)],
        "key": [
            lambda x: ja.random_orders(5, 2, key=x),
            lambda x: ja.ablation.shapley_values(model, IMAGES, LABELS, key=x),
            lambda x: ja.uncertainty.shuffle_null(CODES, LABELS, **counted, key=x),
            lambda x: ja.uncertainty.bootstrap(CODES, LABELS, **counted, key=x),
            lambda x: ja.interactions.mantel_test(np.eye(5), np.eye(5), key=x),
        ],
        "results": [
            ja.judge_claims,
            ja.claims.departures_from_paper,
            ja.results.conditions_of,
            ja.results.protocols_of,
            ja.results.tidy,
            ja.results.summarize,
            ja.results.compare_conditions,
            lambda x: ja.results.save_results(x, "results.nc"),
            lambda x: ja.claims.save_claims([], x, "folder"),
            lambda x: jaxablate.figures.draw_figure(x, 1),
            lambda x: jaxablate.figures.save_figures(x, "folder"),
            lambda x: jaxablate.report.write_report(x, "report.html"),
        ],
        "first": [lambda x: ja.compare(x, xr.DataTree())],
        "network": [ja.results.auc, ja.results.keep_only, ja.layer_analysis.layer_shares],
        "config": [lambda x: ja.run_study(x, data=data)],
        "scores": [lambda x: ja.study.score_neurons(model, data, scores=x, quantizer="mean")],
        "evidence": [lambda x: ja.scores.compute_score("entropy", x), ja.scores.class_selectivity],
        "score": [ja.scores.get_score],
        "counts": [ja.entropy, ja.mutual_information, ja.histograms.constant_codes],
        "batches": [lambda x: ja.streams.combine(x, lambda images, labels: labels)],
        "hidden": [lambda x: ja.MLP(4, x, 3, rngs=nnx.Rngs(0)), ja.models.layer_of_neuron, ja.study.network_name],
        "rngs": [lambda x: ja.MLP(4, (3,), 3, rngs=x)],
        "activation": [ja.models.get_activation, ja.quantizers.default_quantizer],
        "network file": [lambda x: ja.load_model(x) if not isinstance(x, str) else ja.load_model(3)],
        "covariance": [
            lambda x: ja.linear_compensation.unique_variances(x, 1e-6),
            ja.linear_compensation.effective_rank,
        ],
        "pairs": [jaxablate.figures.draw_pair_information],
        "quantizer": [lambda x: ja.StudyConfig(quantizer=x), lambda x: ja.scores.Evidence(model, IMAGES, LABELS, 3, x)],
        "seeds": [lambda x: ja.StudyConfig(seeds=x)],
    }


ARGUMENTS = [
    "model", "models", "key", "results", "first", "network", "config", "scores", "evidence", "score", "counts",
    "batches", "hidden", "rngs", "activation", "network file", "covariance", "pairs", "quantizer", "seeds",
]  # fmt: skip
OTHERS = {
    "None": None,
    "mapping": {"a": 1},
    "array": np.arange(2000) / 7,
    "text": "abc",
    "tuple": (1.5, 2.5),
    "arrays": [np.arange(50) / 7] * 30,
    "object": object(),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_other_objects_in_place_of_an_argument(calls, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in OTHERS.items():
        for call in calls[argument]:
            with raises_input_error(f"^[^:]*{argument.removesuffix('s')}") as caught:
                call(value)
            message = str(caught.value)
            assert len(message) < 400, (name, message)
            assert "0.14" not in message, (name, message)
            assert " at 0x" not in message, (name, message)
    assert not list(tmp_path.iterdir())


def test_a_message_describes_a_value():
    assert describe_value("my_array") == "'my_array'"
    assert len(describe_value("a" * 999)) == 85
    assert describe_value(np.zeros((2, 3))) == "ndarray of dtype float64 and shape (2, 3)"
    assert describe_value(jnp.zeros(2)) == "Array of dtype float32 and shape (2,)"
    assert describe_value([np.zeros(2)]) == "list of length 1"
    assert describe_value(list(range(999))) == "list of length 999"
    assert describe_value(object()) == "object"
    assert describe_value(jax.random.key(0)) == "Array"


def test_no_message_is_long():
    with raises_input_error("^score: unknown 'a.* choose one of entropy") as caught:
        ja.scores.get_score("a" * 10**6)
    assert len(str(caught.value)) <= 400
    assert len(str(InputError("b" * 10**6))) == 400


def test_objects_print_in_a_line(model):
    many = np.zeros(500)
    objects = [
        ja.from_module(model, IMAGES),
        ja.fills.AffineFill(many, many),
        ja.compute_fill(model, "linear", IMAGES),
        ja.compute_fill(model, "resample", IMAGES, key=jax.random.key(0)),
        ja.scores.Evidence(model, IMAGES, LABELS, 3),
        ja.interactions.pair_information(CODES, LABELS, num_codes=2, num_classes=3),
        ja.statistics.estimate(np.zeros((3, 500))),
        ja.ablation.ShapleyValues(many, many),
        ja.quantizers.mean().fit(IMAGES),
    ]
    for thing in objects:
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 300
    assert repr(objects[0]) == "Model(sites layer1 (3), layer2 (2); images float32 (4,))"
    assert repr(objects[1]).startswith("AffineFill(scale=ndarray of dtype float64 and shape (500,), offset=")


def test_images_of_several_kinds_or_scales_are_refused():
    """A network would see one split 255 times as large as another."""
    floats, numbers = IMAGES.astype(np.float32), (255 * IMAGES).astype(np.uint8)
    for train, test, message in (
        (floats, numbers, "images of one kind, got train float32, test uint8; .* give all splits the same"),
        (floats, 255 * floats + 0.5, "images of one scale, got largest magnitudes that differ 50-fold or more"),
        ((floats > 0.5).astype(np.uint8),) * 2 + ("bytes in 0..255, .* got uint8 in 0..1; pass images.astype",),
        ((numbers * 256.0).astype(np.uint16),) * 2 + ("got dtype uint16; pass them as .astype.np.float32.",),
        ((floats > 0.5,) * 2) + ("got dtype bool; pass them as .astype.np.float32.",),
        (numbers.astype(int),) * 2 + ("got dtype int64; pixels are .astype.np.uint8.",),
    ):
        with raises_input_error(message):
            ja.Dataset.from_arrays(train, LABELS, test=(test, LABELS))
    assert (
        ja.Dataset.from_arrays(numbers, LABELS).source.origin
        == "in memory, split at random by seed 2045, uint8 images divided by 255"
    )
    assert ja.Dataset.from_arrays(floats, LABELS).source.origin == "in memory, split at random by seed 2045"


def test_whole_numbers_in_tables_stay_as_they_are():
    """Ages and counts are no pixels."""
    table = np.random.default_rng(0).integers(0, 202, (60, 4)).astype(np.float32)
    data = ja.Dataset.from_arrays(table, LABELS, test=(table[:9], LABELS[:9]))
    np.testing.assert_array_equal(data.test.images, table[:9])


def test_pixels_that_are_not_scaled_are_named():
    """Flattened, as `fetch_openml` gives them, or with fractions after a change of their size."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.float32)
    pixels[:, 0, 0] = 255
    for images in (pixels.reshape(60, 64), pixels - np.float32(0.25) * (pixels > 0)):
        with pytest.warns(JaxablateWarning, match=r"reach from 0 to 25[45].* not scaled; .* divide them by 255"):
            data = ja.Dataset.from_arrays(images, LABELS, test=(images, LABELS))
        np.testing.assert_array_equal(data.test.images, images)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_numbers_that_jax_does_not_take(model, dtype):
    """FITS and netCDF 3 have their bytes in another order."""
    labels, expected = LABELS.astype(">i4"), ja.single_ablation(model, IMAGES, LABELS)
    np.testing.assert_array_equal(ja.single_ablation(model, IMAGES.astype(dtype), labels), expected)
    kernel = np.random.default_rng(0).normal(size=(IMAGES[0].size, 3)).astype(np.float32)

    def apply(kernel, images):
        return jax.nn.relu(images.reshape(len(images), -1) @ kernel) @ np.eye(3, dtype=np.float32)

    ours, theirs = (ja.from_function(apply, kernel.astype(kind), IMAGES) for kind in (np.float32, ">f4"))
    np.testing.assert_array_equal(ja.single_ablation(theirs, IMAGES, labels), ja.single_ablation(ours, IMAGES, LABELS))
    with raises_input_error("params: expected arrays of numbers, got dtype object for \\['w'\\]"):
        ja.from_function(lambda params, images: apply(params["w"], images), {"w": kernel.astype(object)}, IMAGES)


def test_nullable_numbers_of_pandas(model):
    frame = pd.DataFrame(IMAGES.reshape(len(IMAGES), -1)).convert_dtypes()
    expected = ja.single_ablation(model, IMAGES.reshape(len(IMAGES), -1), LABELS)
    np.testing.assert_array_equal(ja.single_ablation(model, frame, LABELS), expected)
    frame.iloc[3, 1] = pd.NA
    with raises_input_error("images: expected"):
        ja.single_ablation(model, frame, LABELS)


def test_a_dataset_of_xarray_is_no_array(model):
    table = xr.Dataset({"images": (("example", "feature"), IMAGES.reshape(len(IMAGES), -1))})
    for call in (lambda: ja.single_ablation(model, table, LABELS), lambda: ja.Dataset.from_arrays(table, LABELS)):
        with raises_input_error("images: expected an array, got Dataset"):
            call()


def test_what_stands_for_a_network_is_named(model, tmp_path):
    ja.save_model(model, tmp_path / "net.safetensors")
    with raises_input_error(r"expected one network, got SavedModel; pass its attribute \.model"):
        ja.single_ablation(ja.load_model(tmp_path / "net.safetensors"), IMAGES, LABELS)
    with raises_input_error(r"got str; pass ja\.load_model\(path\)\.model, or what ja.models.load_pytorch returns"):
        ja.single_ablation(str(tmp_path / "net.safetensors"), IMAGES, LABELS)


def test_equal_networks_are_no_networks_of_several_seeds(model):
    data = ja.Dataset.from_arrays(IMAGES, LABELS, test=(IMAGES, LABELS), validation=(IMAGES, LABELS))
    config = ja.StudyConfig(seeds=(0, 1), num_random_orders=1, steps=1)
    with raises_input_error("models: some networks of 'mine' are equal, so an interval over them says nothing"):
        ja.run_study(config, {"mine": [model, model]}, data=data)


def test_xarray_in_another_order_is_refused():
    """xarray aligns by name; an array of numbers has no names."""
    random = np.random.default_rng(0)
    train = xr.DataArray(random.random((30, 4, 4), np.float32), dims=("t", "lat", "lon"), coords={"lat": [3, 2, 1, 0]})
    labels = np.arange(30) % 3
    with raises_input_error(
        "test images: their coordinate 'lat' has other values, or another order, than in the training"
    ):
        ja.Dataset.from_arrays(train, labels, test=(train.sortby("lat"), labels))
    with raises_input_error(
        r"test images: their dimensions \('lon', 'lat'\) differ from \('lat', 'lon'\) of the training"
    ):
        ja.Dataset.from_arrays(train, labels, test=(train.transpose("t", "lon", "lat"), labels))
    for test in (train, train.to_numpy(), train.drop_vars("lat")):
        assert len(ja.Dataset.from_arrays(train, labels, test=(test, labels)).test) == 30
    model = ja.MLP(16, (5, 4), 3, rngs=nnx.Rngs(0))
    data = ja.Dataset.from_arrays(train, labels, test=(train, labels))
    scores = ja.study.score_neurons(model, data, scores="mean_activation")["scores"][0]
    images = train.to_numpy()
    for values in (scores.sortby(scores), scores[scores > scores.median()], scores[::-1]):
        for call in (
            lambda values=values: ja.ablation_order(values, direction="low"),
            lambda values=values: ja.evaluate_masks(model, (values > 0.5).expand_dims("mask"), images, labels),
            lambda values=values: ja.prune(model, values > 0.5),
        ):
            with raises_input_error("its xarray coordinate 'neuron' does not count up in steps of 1"):
                call()
    order = ja.ablation_order(scores, direction="low")
    np.testing.assert_array_equal(order, np.argsort(scores.to_numpy(), kind="stable"))
    second = scores.isel(neuron=scores["site"].values == "layer2")
    order = ja.ablation_order(scores, direction="low", site="layer2")
    np.testing.assert_array_equal(ja.ablation_order(second, direction="low"), order)


def test_rows_of_pandas_that_do_not_belong_together():
    """pandas aligns rows by their index; a shuffled table and labels in the old order have different ones."""
    images = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    labels = pd.Series(np.arange(60) % 3)
    shuffled = images.sample(frac=1, random_state=0)
    with raises_input_error("train labels: their index differs from that of the images"):
        ja.Dataset.from_arrays(shuffled, labels)
    data = ja.Dataset.from_arrays(shuffled, labels.loc[shuffled.index])
    assert data.num_classes == 3
    assert ja.Dataset.from_arrays(shuffled, labels.to_numpy()).num_classes == 3, "an array has no index"
    with raises_input_error("test images: their columns differ from the columns of the training images"):
        ja.Dataset.from_arrays(images, labels, test=(images[[3, 2, 1, 0]], labels))
    assert len(ja.Dataset.from_arrays(images, labels, test=(images, labels)).test) == 60
    model = ja.MLP(4, (5,), 3, rngs=nnx.Rngs(0))
    scores = pd.Series([0.3, 0.1, 0.5, 0.2, 0.4]).sort_values()
    for call in (
        lambda: ja.ablation_order(scores, direction="low"),
        lambda: ja.evaluate_masks(model, np.ones((1, 5), bool), images, labels, scores),
        lambda: ja.prune(model, scores > 0.2),
        lambda: ja.orders.normalize_per_layer(scores, np.ones(5, int), "rank"),
    ):
        with raises_input_error("its pandas index is not 0, 1, 2, .*; bring them into the order of the neurons"):
            call()
    moved = pd.DataFrame(np.eye(5, dtype=bool))[[3, 1, 4, 0, 2]]
    for call in (
        lambda: ja.evaluate_masks(model, moved, images, labels),
        lambda: ja.evaluate_masks([model] * 5, np.ones((5, 1, 5), bool), images, labels, moved.astype(float)),
        lambda: ja.cumulative_ablation(model, pd.DataFrame([range(5)])[moved.columns], images, labels, steps=5),
    ):
        with raises_input_error("its pandas columns are not 0, 1, 2, .*; bring them into the order of the neurons"):
            call()
    assert ja.ablation_order(scores.sort_index().to_numpy(), direction="low").tolist() == [1, 3, 0, 4, 2]
    for call in (
        lambda: ja.evaluate_masks(model, np.ones((1, 5), bool), shuffled, labels),
        lambda: ja.compute_fill(model, "class_mean", shuffled, labels),
        lambda: ja.joint_histogram((shuffled > 0).astype(int), labels, num_codes=2, num_classes=3),
        lambda: ja.devices.shard_examples(ja.devices.make_mesh(1), shuffled, labels),
    ):
        with raises_input_error("labels: their index differs"):
            call()


def test_examples_of_xarray_that_do_not_belong_together():
    random = np.random.default_rng(0)
    images = xr.DataArray(random.random((30, 4), np.float32), {"sample": np.arange(30)}, ("sample", "feature"))
    labels = xr.DataArray(np.arange(30) % 3, {"sample": np.arange(30)}, "sample")
    model = ja.MLP(4, (5,), 3, rngs=nnx.Rngs(0))
    expected = ja.single_ablation(model, images.values, labels.values, outcomes="loss")
    np.testing.assert_array_equal(ja.single_ablation(model, images, labels, outcomes="loss"), expected)
    with raises_input_error("train labels: their index differs from that of the images"):
        ja.Dataset.from_arrays(images, labels[::-1])
    square = images[:4]
    with raises_input_error("labels: their dimension 'sample' is not the first of the images; pass images.transpose"):
        ja.single_ablation(model, square.T, labels[:4])


def test_images_with_a_palette_are_refused():
    grey = [Image.fromarray(image) for image in np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)]
    assert ja.Dataset.from_arrays(grey, np.arange(60) % 3).train.images.max() > 0.9
    with raises_input_error("images with a palette hold numbers of colors; convert each by .convert"):
        ja.Dataset.from_arrays([image.convert("P") for image in grey], np.arange(60) % 3)


@pytest.mark.parametrize("by_class", [False, True])
def test_a_network_with_more_outputs_than_the_data_has_classes(by_class):
    random = np.random.default_rng(0)
    data = ja.Dataset.from_arrays(random.random((90, 6), np.float32), np.arange(90) % 3)
    config = ja.StudyConfig(
        networks=(), scores=("entropy",), quantizer="mean", steps=2, num_random_orders=1, by_class=by_class
    )
    node = ja.run_study(config, {"mine": ja.MLP(6, (5, 4), 7, rngs=nnx.Rngs(0))}, data=data)["mine"]
    labels = node.to_dataset()["class"].values.tolist()
    assert node["single_class_drop"].dims == ("seed", "neuron", "class")
    assert labels == [0, 1, 2]
    if by_class:
        expected = node["correct"] / len(data.test)
        shares = np.bincount(data.test.labels) / len(data.test)
        np.testing.assert_allclose((node["class_accuracy"] * shares).sum("class"), expected, atol=1e-6)


def test_splits_that_are_standardized_differently_are_refused():
    raw = np.random.default_rng(0).integers(0, 17, (90, 6)).astype(np.float32)
    labels, standardized = np.arange(90) % 3, (raw - raw.mean(0)) / raw.std(0)
    with raises_input_error(
        r"of one scale, but \d+\.\d% of the values of .* are negative and none of test; scale all splits"
    ):
        ja.Dataset.from_arrays(standardized, labels, test=(raw, labels))
    assert len(ja.Dataset.from_arrays(standardized, labels, test=(standardized, labels)).test) == 90
