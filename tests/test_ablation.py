"""The sweep against a plain NumPy forward pass, mask by mask, and its laws."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_counts, logits64, random_masks, rejects, weights64

import jaxablate as ja
from jaxablate import ablation


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:203], mnist5k.test.labels[:203]


@pytest.fixture(scope="module")
def fill(small_model, mnist5k):
    return ja.mean_activations(small_model, mnist5k.validation.images)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("first_neuron", [0, 10, 18, 27], ids=["all layers", "from layer 2", "layer 3", "none"])
def test_masks_equal_numpy(small_model, examples, fill, balanced, first_neuron):
    masks = random_masks(first_neuron, 70, 27)
    masks[:, :first_neuron] = True
    counts = ja.evaluate_masks(small_model, masks, *examples, fill if balanced else None)
    assert_counts(counts, small_model, masks, *examples, fill if balanced else None)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_masks_equal_numpy_for_other_activations(examples, activation):
    model = ja.MLP(784, (9, 11), 10, activation=activation, rngs=nnx.Rngs(4))
    masks = random_masks(3, 30, 20)
    fill = np.linspace(-1, 1, 20).astype(np.float32)
    assert_counts(ja.evaluate_masks(model, masks, *examples, fill), model, masks, *examples, fill)


def test_curves_equal_numpy(small_model, examples, fill):
    orders = np.asarray(ja.random_orders(jax.random.key(2), 27, 4))
    counts = np.asarray(ja.cumulative_ablation(small_model, orders, *examples, fill, steps=27))
    assert counts.shape == (4, 28)
    assert_counts(counts.ravel(), small_model, ja.masks_of_orders(orders, 27, 27), *examples, fill)
    intact = int((logits64(small_model, examples[0]).argmax(axis=1) == examples[1]).sum())
    assert (counts[:, 0] == intact).all()
    assert len(set(counts[:, -1].tolist())) == 1, "with nothing left every order ends at the same prediction"


@pytest.mark.parametrize("rows", [1, 7, 203, 50_000])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_chunks_do_not_matter(small_model, examples, fill, monkeypatch, rows, batch):
    masks = random_masks(1, 9, 27)
    expected = ja.evaluate_masks(small_model, masks, *examples, fill)
    monkeypatch.setattr(ablation, "MAX_ROWS", rows * batch)
    monkeypatch.setattr(ablation, "MASKS_PER_BATCH", batch)
    np.testing.assert_array_equal(ja.evaluate_masks(small_model, masks, *examples, fill), expected)


def test_each_mask_alone_equals_all_together(small_model, examples, fill):
    masks = random_masks(8, 6, 27)
    alone = [ja.evaluate_masks(small_model, mask[None], *examples, fill).item() for mask in masks]
    assert ja.evaluate_masks(small_model, masks, *examples, fill).tolist() == alone


def test_examples_add_up(small_model, examples):
    images, labels = examples
    masks = random_masks(9, 5, 27)
    halves = [ja.evaluate_masks(small_model, masks, images[i::2], labels[i::2]) for i in (0, 1)]
    np.testing.assert_array_equal(sum(halves), ja.evaluate_masks(small_model, masks, images, labels))


def test_mean_fill_is_cutting_neurons_and_moving_their_mean_into_the_bias(small_model, examples, fill):
    """Bias balancing as the paper defines it: a smaller network with sum_j w_jk f_j added to the next bias."""
    images, labels = examples
    masks = random_masks(5, 12, 27)
    bounds = np.cumsum((0, *small_model.hidden))
    for mask, count in zip(masks, ja.evaluate_masks(small_model, masks, images, labels, fill).tolist(), strict=True):
        layers = [(kernel, bias) for kernel, bias in weights64(small_model)]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            kept, values = mask[start:stop], np.asarray(fill, np.float64)[start:stop]
            (kernel, bias), (next_kernel, next_bias) = layers[i], layers[i + 1]
            layers[i] = kernel[:, kept], bias[kept]
            layers[i + 1] = next_kernel[kept], next_bias + values[~kept] @ next_kernel[~kept]
        outputs = images.reshape(len(images), -1).astype(np.float64)
        for kernel, bias in layers[:-1]:
            outputs = 1 / (1 + np.exp(-(outputs @ kernel + bias)))
        logits = outputs @ layers[-1][0] + layers[-1][1]
        np.testing.assert_allclose(logits, logits64(small_model, images, mask, fill), atol=1e-12)
        second, first = np.sort(logits, axis=1)[:, -2:].T
        assert abs(count - (logits.argmax(axis=1) == labels).sum()) <= (first - second < 1e-5).sum()


def test_programs_are_compiled_once_per_shape(small_model, examples):
    images, labels = map(jnp.asarray, examples)
    other = ja.MLP(784, (10, 8, 9), 10, rngs=nnx.Rngs(77))
    ablation._count_correct.clear_cache()
    for model in (small_model, other):
        for seed in range(3):
            ja.evaluate_masks(model, random_masks(seed, 11, 27), images, labels)
            ja.evaluate_masks(model, random_masks(seed, 11, 27), images, labels, np.full(27, seed, np.float32))
    assert ablation._count_correct._cache_size() == 1


def test_ten_thousand_masks_on_full_mnist_stay_under_two_gigabytes(mnist_dir):
    code = """
import sys, resource, numpy as np, jaxablate as ja
from flax import nnx
test = ja.load_dataset("mnist", data_dir=sys.argv[1]).test
model = ja.MLP(784, (16, 16, 16), 10, rngs=nnx.Rngs(0))
keep = np.random.default_rng(0).random((10_000, 48)) < 0.5
counts = ja.evaluate_masks(model, keep, test.images, test.labels)
print(counts.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code, mnist_dir], capture_output=True, text=True, check=True)
    masks, megabytes = map(int, run.stdout.split())
    assert masks == 10_000
    assert megabytes < 2000


def test_bad_input(small_model, examples):
    images, labels = examples
    keep = np.ones((2, 27), bool)
    with rejects(r"keep: expected shape \(any, 27\) = \[mask, neuron\], got \(2, 26\)"):
        ja.evaluate_masks(small_model, keep[:, 1:], images, labels)
    with rejects("keep: expected booleans"):
        ja.evaluate_masks(small_model, keep.astype(int), images, labels)
    with rejects("keep: expected at least one mask"):
        ja.evaluate_masks(small_model, keep[:0], images, labels)
    with rejects("fill: expected finite numbers, got 1 NaN"):
        ja.evaluate_masks(small_model, keep, images, labels, np.where(np.arange(27) == 3, np.nan, 0))
    with rejects(r"fill: expected shape \(27\)"):
        ja.evaluate_masks(small_model, keep, images, labels, np.zeros(10))
    with rejects("images: expected at least one example of 784 pixels"):
        ja.evaluate_masks(small_model, keep, images[:, 1:], labels)
    with rejects("labels: expected values in 0..9, got 1..10"):
        ja.evaluate_masks(small_model, keep, images, labels + 1)
    with rejects(r"labels: expected shape \(203\)"):
        ja.evaluate_masks(small_model, keep, images, labels[1:])
    broken = np.array(images)
    broken[7, 0, 0] = np.nan
    with rejects(
        "logits: expected finite numbers, got NaN or infinite ones under 1 of 2 masks, the first being mask 1"
    ):
        everything = np.array([[False] * 10 + [True] * 17, [True] * 27])
        ja.evaluate_masks(small_model, everything, broken, labels)
    order = np.arange(27)[None]
    with rejects("steps: expected at most the 27 neurons of the scope, got 80; 27 is the largest possible"):
        ja.cumulative_ablation(small_model, order, images, labels)
    with rejects("expected each neuron once"):
        ja.cumulative_ablation(small_model, np.array([[1, 1]]), images, labels, steps=1)
    with rejects(r"orders: expected values in 0..26"):
        ja.cumulative_ablation(small_model, order + 1, images, labels, steps=1)
