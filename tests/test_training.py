"""Training against a NumPy loop of the same recipe, seeds alone and in company, and its errors."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error, weights64

import jaxablate as ja
from jaxablate import training
from jaxablate.datasets import Dataset, Source, Split

ROUNDING = 2e-5  # float32 against float64 over a few dozen steps of Adam


def toy(num_examples: int = 70, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    images = random.random((num_examples, 3, 2)).astype(np.float32)
    labels = (images.sum(axis=(1, 2)) > 3).astype(np.int32) + (images[:, 0, 0] > 0.5)
    split = Split(images, labels.astype(np.int32))
    held_out = Split(images[::-2] ** 2, labels[::-2].astype(np.int32))
    return Dataset(split, held_out, held_out, 3, Source("toy", "made in the test", {}))


def numpy_adam_with_coupled_l2(model, batches, learning_rate, l2):
    """The recipe in float64: the L2 term joins the gradient, then Adam as published, step by step."""
    parameters = [array for pair in weights64(model) for array in pair]
    first, second = [np.zeros_like(p) for p in parameters], [np.zeros_like(p) for p in parameters]
    losses = []
    for step, (x, y) in enumerate(batches, 1):
        w1, b1, w2, b2 = parameters
        h = 1 / (1 + np.exp(-(x @ w1 + b1)))
        z = h @ w2 + b2
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(y)), y]).mean())
        dz = (p - np.eye(p.shape[1])[y]) / len(y)
        dh = dz @ w2.T * h * (1 - h)
        gradients = [x.T @ dh, dh.sum(axis=0), h.T @ dz, dz.sum(axis=0)]
        for i, gradient in enumerate(gradients):
            gradient = gradient + l2 * parameters[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            moved = first[i] / (1 - 0.9**step) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
            parameters[i] = parameters[i] - learning_rate * moved
    return parameters, losses


def test_training_equals_numpy_step_by_step():
    data, epochs, batch = toy(), 3, 16
    model, history = ja.train(data, (5,), seed=3, epochs=epochs, batch_size=batch, learning_rate=0.02, l2=0.05)
    rngs = nnx.Rngs(3)
    start = ja.MLP(6, (5,), 3, rngs=rngs)
    key = rngs.shuffle()
    pixels = data.train.images.reshape(70, 6).astype(np.float64)
    batches = []
    for epoch in range(1, epochs + 1):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), 70))
        batches += [(pixels[i], data.train.labels[i]) for i in np.split(order[:64], 4)]  # 6 examples are dropped
    expected, losses = numpy_adam_with_coupled_l2(start, batches, 0.02, 0.05)
    for got, want in zip((array for pair in weights64(model) for array in pair), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=ROUNDING)
    np.testing.assert_allclose(history.loss, np.reshape(losses, (epochs, 4)).mean(axis=1), atol=ROUNDING)


def test_history_measures_validation_after_the_epoch():
    data = toy()
    model, history = ja.train(data, (5,), epochs=2, batch_size=16)
    accuracy = (np.asarray(model(data.validation.images)).argmax(axis=1) == data.validation.labels).mean()
    on_train = (np.asarray(model(data.train.images)).argmax(axis=1) == data.train.labels).mean()
    assert abs(accuracy - on_train) > 0.01
    assert history.validation_accuracy[-1] == pytest.approx(accuracy, abs=1e-6)
    assert history.loss.shape == history.accuracy.shape == history.validation_loss.shape == (2,)


@pytest.mark.parametrize("parallel", ["threads", "vmap"])
def test_a_seed_is_the_same_alone_and_in_company(parallel):
    data = toy(200)
    seeds = (4, 0, 9)
    together = ja.training.train_many(data, (6, 5), seeds, epochs=4, batch_size=16, parallel=parallel)
    for seed, (model, history) in zip(seeds, together, strict=True):
        alone, history_alone = ja.train(data, (6, 5), seed, epochs=4, batch_size=16)
        for got, want in zip(weights64(model), weights64(alone), strict=True):
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, atol=ROUNDING)
        np.testing.assert_allclose(history.loss, history_alone.loss, atol=ROUNDING)
    assert not np.allclose(together[0][1].loss, together[1][1].loss, atol=1e-3)


def test_progress_is_told_after_every_epoch():
    progress = []
    _, history = ja.train(toy(), (4,), epochs=3, batch_size=8, on_epoch=lambda *told_now: progress.append(told_now))
    assert [(epoch, epochs) for epoch, epochs, _, _ in progress] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose([loss for _, _, loss, _ in progress], history.loss)
    np.testing.assert_allclose([accuracy for _, _, _, accuracy in progress], history.accuracy)


def test_progress_of_many_counts_all_their_epochs():
    progress = []
    ja.training.train_many(
        toy(), (4,), (1, 2, 3), epochs=2, batch_size=8, on_epoch=lambda *now: progress.append(now[:2])
    )
    assert progress == [(done, 6) for done in range(1, 7)]


def test_an_interrupt_stops_training_soon():
    """The error of one epoch's callback ends every network within an epoch, here of very many."""
    progress = []

    def interrupt(*now):
        progress.append(now)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ja.training.train_many(toy(), (4,), range(8), epochs=10**6, batch_size=8, on_epoch=interrupt)
    assert len(progress) <= 8


def test_the_program_is_compiled_once():
    training._epoch.clear_cache()
    for seed in range(3):
        ja.train(toy(seed=seed), (4,), seed, epochs=2, batch_size=8)
    assert training._epoch._cache_size() == 1


def test_epochs_keep_the_steps_of_the_paper():
    assert ja.training.default_epochs(50_000) * (50_000 // 32) == 15_620
    assert abs(ja.training.default_epochs(3_500) * (3_500 // 32) - 15_620) < 3_500 // 32
    assert ja.training.default_epochs(10**7) == 1


def test_bad_input():
    with raises_input_error("batch_size: expected 1 to 70, the size of the training split, got 71"):
        ja.train(toy(), (4,), batch_size=71)
    with raises_input_error("epochs: 0 is below 1; choose at least 1"):
        ja.train(toy(), (4,), epochs=0)
    with raises_input_error("activation: unknown 'swish'"):
        ja.train(toy(), (4,), activation="swish")
    with raises_input_error("seeds: the list is empty; give at least one seed"):
        ja.training.train_many(toy(), (4,), ())
    with raises_input_error("training of seed 0 diverged in epoch 1: the loss is not finite"):
        ja.train(toy(), (4,), activation="relu", learning_rate=1e30, epochs=5, batch_size=8)


def test_seeds_of_any_integer_type():
    """NumPy's integers are integers; what is not one gets a sentence."""
    data = toy()
    numbers = [history.loss for _, history in training.train_many(data, (4,), np.arange(2), epochs=1)]
    np.testing.assert_array_equal(
        numbers, [history.loss for _, history in training.train_many(data, (4,), (0, 1), epochs=1)]
    )
    with raises_input_error("seed: expected an integer, got 1.5"):
        training.train_many(data, (4,), [0, 1.5], epochs=1)
