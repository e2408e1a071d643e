"""Quantizers, histograms, metrics and orders against loops, scikit-learn and their laws."""

import math

import jax
import numpy as np
import pytest
import xarray as xr
from helpers import raises_input_error, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mutual_info_score

import jaxablate as ja


def random_counts(seed: int, neurons: int = 40, classes: int = 10, codes: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 1500, (neurons, classes, codes)).astype(np.int32)
    counts[0, :, 1:] = 0  # a neuron that never fires
    counts[1, :, :-1] = 0  # one that always does
    counts[2, 3] = 0  # an absent class
    counts[3, 4, 0] = 0  # an empty cell
    counts[4] = [7, 5] + [0] * (codes - 2)  # a neuron that knows nothing of the class
    return counts


@pytest.mark.parametrize("codes", [2, 3, 8])
@pytest.mark.parametrize("name", sorted(ja.metrics.METRICS))
def test_metrics_equal_the_loop(name, codes):
    counts = random_counts(codes, codes=codes)
    got = ja.metrics.METRICS[name](counts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, scores_of(counts)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("codes", [2, 3, 4, 7])
def test_even_codes_reach_the_bound_and_not_more(codes):
    counts = np.stack([np.full((codes, codes), 50), 50 * np.eye(codes, dtype=int)]).astype(np.int32)
    for scores in (ja.entropy(counts), ja.mutual_information(counts)[1:]):
        exact = np.asarray(scores, np.float64)
        assert (exact <= math.log(codes)).all()
        np.testing.assert_allclose(exact, math.log(codes), atol=3e-7)


def test_constant_and_ignorant_neurons_score_zero():
    counts = random_counts(0)
    for metric in ja.metrics.METRICS.values():
        assert metric(counts)[:2].tolist() == [0, 0]
    assert ja.mutual_information(counts)[4] == pytest.approx(0, abs=1e-6)


def test_mutual_information_equals_scikit_learn():
    random = np.random.default_rng(5)
    labels = random.integers(0, 10, 3000)
    codes = (random.random((3000, 30)) < random.random(30) * (labels[:, None] + 1) / 10).astype(np.int32)
    counts = ja.joint_histogram(codes, labels, num_codes=2, num_classes=10)
    expected = [mutual_info_score(labels, column) for column in codes.T]
    np.testing.assert_allclose(ja.mutual_information(counts), expected, rtol=0, atol=1e-6)


shapes = st.tuples(st.sampled_from([1, 4]), st.sampled_from([1, 2, 6]), st.sampled_from([1, 2, 5]))  # each is compiled
tables = hnp.arrays(np.int32, shapes, elements=st.integers(0, 60_000))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_laws_of_the_metrics(counts, random):
    counts[:, 0, 0] += 1
    metrics = ja.metrics.METRICS.values()
    entropy, information, selectivity = (np.asarray(metric(counts), np.float64) for metric in metrics)
    rounding = 1e-6
    assert (entropy >= 0).all()
    assert (entropy <= math.log(counts.shape[2])).all()
    assert (information <= math.log(counts.shape[2])).all()
    assert (information >= 0).all()
    assert (information <= entropy + rounding).all()
    assert (information <= np.asarray(ja.entropy(counts.swapaxes(1, 2))) + rounding).all()
    assert (information <= selectivity + rounding).all()
    classes = random.sample(range(counts.shape[1]), counts.shape[1])
    neurons = random.sample(range(len(counts)), len(counts))
    for metric, scores in zip(ja.metrics.METRICS.values(), (entropy, information, selectivity), strict=True):
        np.testing.assert_allclose(metric(counts[:, classes]), scores, rtol=0, atol=rounding)
        np.testing.assert_array_equal(metric(counts[neurons]), scores[neurons].astype(np.float32))


@pytest.mark.parametrize("num_codes", [2, 3])
def test_histogram_equals_the_loop_and_adds_over_batches(num_codes):
    random = np.random.default_rng(1)
    codes, labels = random.integers(0, num_codes, (500, 7)), random.integers(0, 4, 500)
    expected = np.zeros((7, 4, num_codes), int)
    for row, label in zip(codes, labels, strict=True):
        for neuron, code in enumerate(row):
            expected[neuron, label, code] += 1
    counts = ja.joint_histogram(codes, labels, num_codes=num_codes, num_classes=4)
    np.testing.assert_array_equal(counts, expected)
    parts = [
        ja.joint_histogram(codes[i], labels[i], num_codes=num_codes, num_classes=4) for i in np.split(np.arange(500), 4)
    ]
    np.testing.assert_array_equal(np.sum(parts, axis=0), expected)


def test_quantizers():
    values = np.array([[-0.1, 0.0, 0.4999, 0.5, 0.7]], np.float32)
    assert ja.quantizers.threshold(0.5)(values).tolist() == [[0, 0, 0, 1, 1]]
    assert ja.quantizers.threshold(0.5, strict=True)(values).tolist() == [[0, 0, 0, 0, 1]]
    assert ja.quantizers.default_quantizer("sigmoid")(values).tolist() == [[0, 0, 0, 1, 1]]
    assert ja.quantizers.default_quantizer("relu")(values).tolist() == [[0, 0, 1, 1, 1]]
    assert ja.quantizers.default_quantizer("tanh")(values).tolist() == [[0, 1, 1, 1, 1]]
    assert ja.quantizers.threshold(0.5)(values).dtype == np.int32


def test_orders_are_stable_both_ways():
    scores = np.array([2.0, 1.0, 2.0, 1.0, 3.0], np.float32)
    assert ja.ablation_order(scores, direction="low").tolist() == [1, 3, 0, 2, 4]
    assert ja.ablation_order(scores, direction="high").tolist() == [4, 0, 2, 1, 3]
    assert ja.ablation_order(np.zeros(5, np.float32), direction="high").tolist() == [0, 1, 2, 3, 4]
    for counts in (np.array([0, 255, 3, 255], np.uint8), np.array([-128, 127, 3, 127], np.int8)):
        assert ja.ablation_order(counts, direction="high").tolist() == [1, 3, 2, 0]
        assert ja.ablation_order(counts, direction="low").tolist() == [0, 2, 1, 3]


def test_orders_within_a_site():
    values, sites = np.array([5.0, 1.0, 2.0, 9.0, 0.0]), ["first", "first", "second", "second", "second"]
    scores = xr.DataArray(values, dims="neuron", coords={"site": ("neuron", sites)})
    assert ja.ablation_order(scores, direction="low", site="second").tolist() == [2, 0, 1]
    assert ja.ablation_order(scores, direction="high", site="first").tolist() == [0, 1]
    assert ja.ablation_order(scores, direction="low").tolist() == [4, 1, 2, 0, 3]
    with raises_input_error("site: unknown 'third'; choose one of first, second"):
        ja.ablation_order(scores, direction="low", site="third")
    for unlabelled in (values, scores.drop_vars("site"), scores.drop_vars("site").assign_coords(site="second")):
        with raises_input_error("scores: expected a labelled array with the coordinate 'site' along its axis, got"):
            ja.ablation_order(unlabelled, direction="low", site="second")
    assert ja.orders.check_orders(np.array([[2, 0]]), 3, 2, site="second", first_id=2).tolist() == [[2, 0]]
    with raises_input_error(
        "orders: neuron 4 is not in site 'second', whose 3 neurons are 0..2 within the site, 2..4 in the whole network"
    ):
        ja.orders.check_orders(np.array([[2, 4]]), 3, 2, site="second", first_id=2)


def test_random_orders_are_independent_uniform_permutations():
    orders = np.asarray(ja.random_orders(6, 3000, key=jax.random.key(0)))
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    frequency = np.stack([(orders == neuron).mean(axis=0) for neuron in range(6)])
    assert np.abs(frequency - 1 / 6).max() < 0.035  # five standard deviations of 3000 draws
    np.testing.assert_array_equal(orders, ja.random_orders(6, 3000, key=jax.random.key(0)))


def test_masks_are_nested():
    order = np.array([[3, 0, 4, 1], [1, 2, 3, 4]])
    masks = ja.orders.masks_of_orders(order, 5, 3).reshape(2, 4, 5)
    for ranks, steps in zip(order, masks, strict=True):
        for step, keep in enumerate(steps):
            assert set(np.flatnonzero(~keep)) == set(ranks[:step])


def test_bad_input():
    counts = random_counts(0)
    with raises_input_error("counts: expected integers"):
        ja.entropy(counts / 2)
    with raises_input_error(r"counts: expected shape \[neuron, class, code\], got \(10, 2\)"):
        ja.entropy(counts[0])
    with raises_input_error("at least one example for every neuron"):
        ja.mutual_information(np.zeros((2, 3, 2), np.int32))
    with raises_input_error("metric: unknown 'gini'; choose one of entropy, mutual_information, kl_selectivity"):
        ja.metrics.get_metric("gini")
    with raises_input_error("activation: unknown 'swish'"):
        ja.quantizers.default_quantizer("swish")
    with raises_input_error(r"codes: expected values in 0..1, got 0..2"):
        ja.joint_histogram(np.array([[0], [2]]), np.array([0, 0]), num_codes=2, num_classes=1)
    with raises_input_error("num_codes: expected an integer, got 2.5"):
        ja.joint_histogram(np.zeros((2, 1), int), np.zeros(2, int), num_codes=2.5, num_classes=1)
    with raises_input_error("num_classes: expected at least 1, got 0"):
        ja.joint_histogram(np.zeros((2, 1), int), np.zeros(2, int), num_codes=2, num_classes=0)
    with raises_input_error(r"labels: expected values in 0..2, got 0..3"):
        ja.joint_histogram(np.zeros((2, 1), int), np.array([0, 3]), num_codes=2, num_classes=3)
    with raises_input_error(r"labels: expected shape \(2\)"):
        ja.joint_histogram(np.zeros((2, 1), int), np.array([0]), num_codes=2, num_classes=3)
    with raises_input_error("scores: expected finite numbers, got 1 NaN"):
        ja.ablation_order(np.array([0.0, np.nan]), direction="low")
    with raises_input_error("direction: unknown 'up'; choose one of low, high"):
        ja.ablation_order(np.zeros(2), direction="up")
    with raises_input_error("orders: neuron 1 is twice in one order; name each neuron once"):
        ja.orders.masks_of_orders(np.array([[1, 0, 1]]), 3, 2)
    with raises_input_error(
        "orders: neuron 3 is not in the network, whose 3 neurons are 0..2; ids within a site need site="
    ):
        ja.orders.masks_of_orders(np.array([[3, 0, 1]]), 3, 2)
    with raises_input_error("steps: 4 is not within 0..3, the number of neurons in each order; choose at most 3"):
        ja.orders.masks_of_orders(np.array([[2, 0, 1]]), 3, 4)
