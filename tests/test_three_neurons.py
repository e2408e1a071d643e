"""A network of three neurons whose every number is worked out here, through the whole chain.

Images are two pixels (a, b), the label is a XOR b:
    h1 = relu(a + b), h2 = relu(a + b - 1), h3 = relu(h1 - 2 h2), logits (0.5, h3): class 1 where h3 > 0.5.

    image   label   h1  h2  h3
    (0, 0)    0      0   0   0
    (1, 0)    1      1   0   1
    (0, 1)    1      1   0   1
    (1, 1)    0      2   1   0
    mean             1 1/4 1/2
"""

from math import log

import numpy as np
import pytest

import jaxablate as ja

IMAGES = np.array([[[0, 0]], [[1, 0]], [[0, 1]], [[1, 1]]], np.float32)
LABELS = np.array([0, 1, 1, 0], np.int32)


@pytest.fixture(scope="module")
def model():
    kernels = [np.array([[1, 1], [1, 1]]), np.array([[1], [-2]]), np.array([[0, 1]])]
    biases = [np.array([0, -1]), np.array([0]), np.array([0.5, 0])]
    return ja.models.from_arrays(kernels, biases, activation="relu")


@pytest.fixture(scope="module")
def counts(model):
    quantize = ja.quantizers.default_quantizer("relu")
    codes = np.concatenate([quantize(layer) for layer in ja.record_activations(model, IMAGES)], axis=1)
    return ja.joint_histogram(codes, LABELS, num_codes=2, num_classes=2)


def test_activations_and_their_means(model):
    first, second = ja.record_activations(model, IMAGES)
    assert first.tolist() == [[0, 0], [1, 0], [1, 0], [2, 1]]
    assert second.tolist() == [[0], [1], [1], [0]]
    assert ja.mean_activations(model, IMAGES).tolist() == [1, 0.25, 0.5]


def test_counts(counts):
    # rows are classes, columns "silent" and "fires"
    assert counts.tolist() == [[[1, 1], [0, 2]], [[1, 1], [2, 0]], [[2, 0], [0, 2]]]


def test_scores(counts):
    h = -0.25 * log(0.25) - 0.75 * log(0.75)  # neurons 1 and 2 fire for three images of four, or for one
    np.testing.assert_allclose(ja.entropy(counts), [h, h, log(2)], atol=1e-6)
    # in class 1 they are certain, in class 0 they toss a coin; neuron 3 is the class
    np.testing.assert_allclose(ja.mutual_information(counts), [h - log(2) / 2, h - log(2) / 2, log(2)], atol=1e-6)
    # class 1 is the most surprising: log(1 / 0.75) for a code that occurs in three images of four
    np.testing.assert_allclose(ja.kl_selectivity(counts), [log(4 / 3), log(4 / 3), log(2)], atol=1e-6)


def test_orders(counts):
    for metric in ja.metrics.METRICS.values():
        assert ja.ablation_order(metric(counts), direction="low").tolist() == [0, 1, 2]
        assert ja.ablation_order(metric(counts), direction="high").tolist() == [2, 0, 1]


ORDERS = np.array([[0, 1, 2], [2, 0, 1], [1, 0, 2]], np.int32)


def test_cumulative_ablation_with_zeros(model):
    # without h1, h3 = relu(-2 h2) = 0: all class 0, two right; without h3 the same
    # without h2, h3 = h1 = 0, 1, 1, 2: the last image goes wrong
    counts = ja.cumulative_ablation(model, ORDERS, IMAGES, LABELS, steps=3)
    assert counts.tolist() == [[4, 2, 2, 2], [4, 2, 2, 2], [4, 3, 2, 2]]


def test_cumulative_ablation_with_means(model):
    # h1 = 1: h3 = relu(1 - 2 h2) = 1, 1, 1, 0, the first image goes wrong; then h2 = 1/4: h3 = 1/2, a tie: class 0
    # h3 = 1/2: a tie everywhere
    # h2 = 1/4: h3 = relu(h1 - 1/2) = 0, 1/2, 1/2, 3/2: only the first image is right
    fill = ja.mean_activations(model, IMAGES)
    counts = ja.cumulative_ablation(model, ORDERS, IMAGES, LABELS, fill, steps=3)
    assert counts.tolist() == [[4, 3, 2, 2], [4, 2, 2, 2], [4, 1, 2, 2]]


def test_masks(model):
    keep = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]], bool)
    assert ja.evaluate_masks(model, keep, IMAGES, LABELS).tolist() == [4, 3, 2, 2]
