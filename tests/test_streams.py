"""Streams: the same as the whole, a few batches at a time, with errors at their place and nothing left behind."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import raises_input_error

import jaxablate as ja

OUTCOMES = ("correct", "class_correct", "confusion", "loss", "divergence")


def cut(images, labels, size=137):
    """Yield batches in reused arrays; the last batch is smaller."""
    room = np.empty((size, *images.shape[1:]), images.dtype), np.empty(size, labels.dtype)
    for start in range(0, len(labels), size):
        part = images[start : start + size], labels[start : start + size]
        for into, source in zip(room, part, strict=True):
            into[: len(source)] = source
        yield tuple(into[: len(part[1])] for into in room)


@pytest.fixture(scope="module")
def whole(mnist5k):
    return mnist5k.test.images, mnist5k.test.labels


@pytest.mark.slow
def test_streamed_is_whole(small_model, whole):
    fill = np.linspace(0, 1, 27).astype(np.float32)
    masks = np.random.default_rng(0).random((5, 27)) < 0.7
    orders = ja.random_orders(27, 3, key=jax.random.key(0))
    quantizer = ja.quantizers.threshold(0.5)

    def everything(images, labels):
        activations = ja.record_activations(small_model, images)
        codes = quantizer(np.concatenate(activations, axis=1))
        return {
            "masks": ja.evaluate_masks(small_model, masks, images, labels, fill, outcomes=OUTCOMES),
            "curves": ja.cumulative_ablation(small_model, orders, images, labels, fill, steps=7, outcomes=OUTCOMES),
            "alone": ja.single_ablation(small_model, images, labels, fill),
            "histogram": ja.joint_histogram(codes, labels, num_codes=2, num_classes=10),
            "mean": ja.mean_activations(small_model, images),
        }

    results, expected = ja.streams.combine(cut(*whole), everything), everything(*whole)
    assert results.keys() == expected.keys()
    assert np.ptp(np.asarray(expected["curves"]["correct"])) > 0

    def compare(streamed, at_once):
        at_once = np.asarray(at_once)
        assert streamed.shape == at_once.shape
        if np.issubdtype(at_once.dtype, np.integer):
            assert streamed.dtype == np.int64
            np.testing.assert_array_equal(streamed, at_once)
        else:
            assert streamed.dtype == np.float64
            np.testing.assert_allclose(streamed, at_once, rtol=1e-5, atol=1e-6)

    jax.tree.map(compare, results, expected)


def test_a_mesh_shares_the_batches(small_model, whole):
    mesh = ja.devices.make_mesh(1)
    masks = np.random.default_rng(0).random((5, 27)) < 0.7
    counts = ja.streams.combine(cut(*whole), lambda *batch: ja.evaluate_masks(small_model, masks, *batch), mesh=mesh)
    np.testing.assert_array_equal(counts, ja.evaluate_masks(small_model, masks, *whole))


def test_batches_come_in_order_and_only_so_many_ahead():
    read, numbers = [], []

    def source():
        for i in range(9):
            read.append(i)
            yield np.full(3, i), np.zeros(3, int)

    def check(images, labels):
        number = len(numbers)
        numbers.append(number)
        assert isinstance(images, jax.Array)
        assert (np.asarray(images) == number).all()
        deadline = time.monotonic() + 5
        while len(read) < min(number + 3, 9) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(read) == min(number + 3, 9)  # the current batch and two ahead
        return 1

    assert ja.streams.combine(source(), check, prefetch=2) == 9


def test_an_error_comes_at_its_place():
    numbers = []

    def source():
        yield np.zeros(1), np.zeros(1, int)
        yield np.ones(1), np.zeros(1, int)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ja.streams.combine(source(), lambda x, y: numbers.append(int(x[0])) or 1)
    assert numbers == [0, 1]


def test_an_early_end_leaves_no_thread():
    before = threading.active_count()

    def endless():
        while True:
            yield np.zeros(1), np.zeros(1, int)

    def fail(images, labels):
        assert threading.active_count() == before + 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ja.streams.combine(endless(), fail)
    assert threading.active_count() == before


def test_an_iterator_that_hangs_holds_nobody_up():
    over, waited_in_vain = threading.Event(), []

    def source():
        yield np.zeros(1), np.zeros(1, int)
        if not over.wait(timeout=60):
            waited_in_vain.append(True)

    with pytest.raises(ZeroDivisionError):
        ja.streams.combine(source(), lambda x, y: 1 // 0)
    assert not waited_in_vain
    over.set()


@pytest.mark.slow
def test_a_million_wide_examples_in_small():
    """The benchmark that shows how far streams reach; its last batch is smaller."""
    case = json.dumps([9999, [90, 80]])
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.large", "--case", case],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr
    measured = json.loads(process.stdout.splitlines()[-1])
    assert measured["examples"] == [4000, 5999]
    assert measured["check"] == "12 counts of 200 examples as in float64"
    intact, half = np.transpose(measured["accuracy"])
    assert (intact == intact[0]).all()
    assert (half < intact).all()


X, Y = np.zeros((3, 2)), np.zeros(3, int)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches: there is none"),
        ([(X[:0], Y[:0])], r"pairs of images and as many labels, at least one, got shapes \[\(0, 2\), \(0,\)\]"),
        ([(X, Y[:2])], r"pairs of images and as many labels, at least one, got shapes \[\(3, 2\), \(2,\)\]"),
        ([(X, Y, Y)], "expected pairs of images and as many labels"),
        ([(1.0, 2)], "expected pairs of images and as many labels"),
        ([X], "batches: expected tuples, got ndarray"),
        ([{"images": X, "labels": Y}], "batches: expected tuples, got dict"),
        ([(X, Y + 2**32)], "batches: expected values in -2147483648..2147483647, got 4294967296..4294967296"),
        ([(X, np.array(["a", "b", "c"]))], "batches: expected arrays of numbers, got ndarray of another kind"),
        ([([[1.0], [1.0, 2.0]], [0, 1])], "batches: expected arrays of numbers, got list of another kind"),
        (
            [(X, Y), (X[:2], Y[:2])],
            r"function: expected the same of each batch, got float64\[3, 2\] and then float64\[2, 2\]",
        ),
    ],
)
def test_what_cannot_be_added_up_is_refused(batches, message):
    with raises_input_error(message):
        ja.streams.combine(batches, lambda images, labels: images)


def test_means_of_few_bits_are_means():
    mean = ja.streams.combine([(X + 0.5, Y)] * 2, lambda images, labels: images.mean().astype("bfloat16"))
    assert isinstance(mean, np.ndarray)
    assert mean.dtype == np.float64
    assert mean == 0.5
    for value in (True, 1j):
        with raises_input_error("function: expected integers .counts. or floating-point numbers .means., got "):
            ja.streams.combine([(X, Y)], lambda images, labels, value=value: value)


@pytest.mark.parametrize("coded", [False, True], ids=["activations", "codes"])
def test_a_streamed_histogram_is_the_histogram_of_all_examples(coded):
    random = np.random.default_rng(2)
    activations, labels = random.random((500, 7), np.float32), random.integers(0, 4, 500)
    quantizer = ja.quantizers.uniform(5, 0.0, 1.0)
    codes = np.asarray(quantizer(activations))
    cuts = [1, 130, 400]  # the first batch has one example
    batches = zip(np.split(codes if coded else activations, cuts), np.split(labels, cuts), strict=True)

    def count(values, labels):
        return ja.joint_histogram(values if coded else quantizer(values), labels, num_codes=5, num_classes=4)

    counts, expected = ja.streams.combine(batches, count), ja.joint_histogram(codes, labels, num_codes=5, num_classes=4)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    for metric in (*ja.metrics.METRICS.values(), ja.metrics.predicted_bias):  # int64 counts serve as well
        np.testing.assert_array_equal(metric(counts), metric(expected))


def test_streamed_counts_do_not_wrap():
    largest = np.full((1, 1, 2), 2**31 - 1, np.int32)
    counts = ja.streams.combine([(X, Y)] * 3, lambda images, labels: largest)
    assert counts.tolist() == [[[3 * (2**31 - 1)] * 2]]
    with raises_input_error(
        "counts: expected sums that int32 can hold, up to 2147483647, got 12884901882; take a part"
    ):
        ja.entropy(counts)


def test_a_streamed_histogram_says_what_is_wrong():
    def count(codes, labels):
        return ja.joint_histogram(codes, labels, num_codes=2, num_classes=2)

    codes, labels = np.zeros((4, 2), np.int32), np.zeros(4, np.int32)
    with raises_input_error("batches: there is none"):
        ja.streams.combine([], count)
    with raises_input_error(r"got int64\[2, 2, 2\] and then int64\[1, 2, 2\]"):
        ja.streams.combine([(codes, labels), (codes[:, :1], labels)], count)
    with raises_input_error(r"labels: expected values in 0..1, got 0..2"):
        ja.streams.combine([(codes, labels), (codes, np.array([0, 1, 2, 0]))], count)


def test_prefetching_nothing_is_refused():
    with raises_input_error("prefetch: .* 0"):
        ja.streams.combine([], lambda images, labels: 1, prefetch=0)
