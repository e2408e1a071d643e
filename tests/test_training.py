"""Training against loops of the same recipe, seeds alone and in company, regularization, and errors."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import ACTIVATIONS, assert_counts, raises_input_error, random_masks, weights64

import jaxablate as ja
from jaxablate import training
from jaxablate.datasets import Dataset, Source, Split

ROUNDING = 2e-5  # float32 against float64 over a few dozen steps of Adam
STILL = 1e-30  # a learning rate that changes no weight, so that the records belong to the initial weights


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
        coefficients = {"l2": 0.01 * (seed + 1), "learning_rate": 0.1 * (seed + 1), "label_noise": 0.2 * seed}
        ja.train(toy(seed=seed), (4,), seed, epochs=2, batch_size=8, **coefficients)
    assert training._epoch._cache_size() == 1


def epoch_by_optax(data, model, key, epoch, optimizer, opt_state, batch_size):
    """One epoch of a plain network as one program, with the coefficients as constants of the optimizer."""
    images, labels = jnp.asarray(data.train.images.reshape(len(data.train), -1)), jnp.asarray(data.train.labels)
    graphdef, params = nnx.split(model)

    def loss(params, batch):
        logits = nnx.merge(graphdef, params)(images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def run(params, opt_state):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(labels))
        steps = len(labels) // batch_size
        return jax.lax.scan(step, (params, opt_state), order[: steps * batch_size].reshape(steps, batch_size))[0]

    with jax.default_matmul_precision("highest"):
        params, opt_state = run(params, opt_state)
    return nnx.merge(graphdef, params), opt_state


@pytest.fixture
def optimized():
    """XLA with all its passes, as users have it; only they fuse products and sums, which changes the rounding."""
    jax.config.update("jax_disable_most_optimizations", False)
    training._epoch.clear_cache()
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0")
    training._epoch.clear_cache()


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices order sums as they like")
@pytest.mark.parametrize("l2", [0.01, 0.0])
def test_plain_training_keeps_its_bits(l2, optimized):
    """Traced coefficients, and dropout, batch norm and label noise that are off, change no bit of the weights."""
    data, rngs = toy(400), nnx.Rngs(2)
    model = ja.MLP(6, (20, 16), 3, rngs=rngs)
    key, optimizer = rngs.shuffle(), optax.chain(optax.add_decayed_weights(l2), optax.adam(0.03))
    opt_state = optimizer.init(nnx.state(model))
    for epoch in (1, 2, 3):
        model, opt_state = epoch_by_optax(data, model, key, epoch, optimizer, opt_state, 8)
    trained, _ = ja.train(data, (20, 16), 2, epochs=3, batch_size=8, learning_rate=0.03, l2=l2)
    model.image_shape = trained.image_shape  # `train` records it
    assert nnx.graphdef(trained) == nnx.graphdef(model)
    for got, want in zip(jax.tree.leaves(nnx.state(trained)), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(got, want)


def normalized64(z, mean, var):
    return (z - mean) / np.sqrt(var + 1e-5)


@pytest.mark.parametrize("parallel", ["threads", "vmap"])
def test_batch_norm_trains_like_numpy(parallel):
    """Two steps in float64: statistics of the batch in training, running statistics of momentum 0.99 afterwards."""
    data, seeds = toy(70), (1, 7)
    options = {"epochs": 1, "batch_size": 35, "learning_rate": STILL, "batch_norm": True, "parallel": parallel}
    trained = training.train_many(data, (5,), seeds, **options)
    for seed, (model, history) in zip(seeds, trained, strict=True):
        rngs = nnx.Rngs(seed)
        start = ja.MLP(6, (5,), 3, rngs=rngs)  # without batch norm: the initial weights are the same
        (kernel, bias), (head, offset) = weights64(start)
        order = np.asarray(jax.random.permutation(jax.random.fold_in(rngs.shuffle(), 1), 70))
        mean, var, losses = np.zeros(5), np.ones(5), []

        def loss(z, labels, head=head, offset=offset):
            logits = ACTIVATIONS["sigmoid"](z) @ head + offset
            return (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]).mean()

        for batch in np.split(order, 2):
            z = data.train.images[batch].reshape(35, 6).astype(np.float64) @ kernel + bias
            losses.append(loss(normalized64(z, z.mean(axis=0), z.var(axis=0)), data.train.labels[batch]))
            mean, var = 0.99 * mean + 0.01 * z.mean(axis=0), 0.99 * var + 0.01 * z.var(axis=0)
        norm = model.stages[0].batch_norm
        np.testing.assert_allclose(norm.mean[...], mean, atol=1e-6)
        np.testing.assert_allclose(norm.var[...], var, atol=1e-6)
        assert history.loss[0] == pytest.approx(np.mean(losses), abs=1e-5)
        z = data.validation.images.reshape(-1, 6).astype(np.float64) @ kernel + bias
        evaluated = loss(normalized64(z, mean, var), data.validation.labels)
        assert history.validation_loss[0] == pytest.approx(evaluated, abs=1e-5)
        assert abs(np.mean(losses) - evaluated) > 1e-3


def test_dropout_drops_its_share_and_scales_the_rest():
    plain, model = (ja.MLP(6, (400, 300), 3, dropout=rate, rngs=nnx.Rngs(0)) for rate in (0.0, 0.25))
    images = jnp.asarray(np.random.default_rng(0).random((50, 6)), np.float32)
    np.testing.assert_array_equal(model(images), plain(images))  # in evaluation mode
    hidden = np.asarray(model.stages[0](images))
    model.train()
    dropped = np.asarray(model.stages[0](images, nnx.Rngs(1)))
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20_000))
    np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, hidden / 0.75), rtol=1e-6)
    with raises_input_error("rngs: dropout in training mode draws random numbers; pass rngs=nnx.Rngs.seed., or call"):
        model(images)
    again, _ = ja.train(toy(), epochs=1, start=model)  # a network in training mode
    assert again.dropout == 0.25
    np.testing.assert_array_equal(again(images), again(images))


def test_dropout_is_drawn_again_at_each_step():
    """All examples are equal and no weight changes, so only dropout can change the loss of an epoch."""
    same = Split(np.full((70, 3, 2), 0.5, np.float32), np.zeros(70, np.int32))
    data, options = replace(toy(), train=same), {"epochs": 3, "batch_size": 70, "learning_rate": STILL}
    (_, first), (_, second) = training.train_many(data, (30,), (0, 0), dropout=0.5, parallel="vmap", **options)
    np.testing.assert_array_equal(first.loss, second.loss)  # the seed decides
    assert np.ptp(first.loss) > 1e-3
    np.testing.assert_allclose(first.validation_loss, first.validation_loss[0], rtol=1e-6)
    _, plain = ja.train(data, (30,), **options)
    assert np.ptp(plain.loss) < 1e-5
    np.testing.assert_allclose(plain.validation_loss, first.validation_loss, rtol=1e-6)


def test_label_noise_has_the_exact_share():
    labels, noise = np.arange(50, dtype=np.int32), training._add_label_noise
    noisy = np.stack([noise(labels, 0.3, seed) for seed in range(20)])
    changed = noisy != labels
    assert changed.sum(axis=1).max() == 15  # by chance some of the 15 permuted labels stay
    assert changed.sum(axis=1).min() > 10
    np.testing.assert_array_equal(np.sort(noisy, axis=1), [labels] * 20)
    assert changed.any(axis=0).all()  # every seed has a choice of its own
    assert not (noise(labels, 1.0, 0) == labels)[:10].all()
    np.testing.assert_array_equal(noise(labels, 0.0, 0), labels)


@pytest.mark.parametrize("parallel", ["threads", "vmap"])
def test_label_noise_reaches_the_training_labels_alone(parallel):
    data, seeds = toy(), (0, 3)
    options = {"epochs": 1, "batch_size": 70, "learning_rate": STILL, "parallel": parallel}
    start, _ = ja.train(data, (8,), epochs=60, batch_size=10, learning_rate=0.1)
    noisy = training.train_many(data, seeds=seeds, starts=[start] * 2, label_noise=0.5, **options)
    for seed, (_, history) in zip(seeds, noisy, strict=True):
        answers = np.asarray(start(data.train.images)).argmax(axis=1)
        labels = training._add_label_noise(data.train.labels, 0.5, seed)
        assert history.accuracy[0] == pytest.approx((answers == labels).mean(), abs=1e-6)
        assert history.accuracy[0] < (answers == data.train.labels).mean() - 0.1
        validated = np.asarray(start(data.validation.images)).argmax(axis=1) == data.validation.labels
        assert history.validation_accuracy[0] == pytest.approx(validated.mean(), abs=1e-6)


@pytest.fixture(scope="module")
def normalized_model():
    """A trained network with batch norm and dropout, whose running statistics are far from their initial values."""
    settings = {"epochs": 40, "batch_size": 20, "learning_rate": 0.02, "batch_norm": True, "dropout": 0.2}
    return ja.train(toy(200), (7, 6), 4, activation="relu", **settings)[0]


def raw_weights64(model):
    """Kernel and bias of each stage, batch norm included, from the arrays of its layers in float64."""
    for stage in model.stages:
        kernel, bias = (np.asarray(array[...], np.float64) for array in (stage.linear.kernel, stage.linear.bias))
        if stage.batch_norm is not None:
            norm = stage.batch_norm
            scale, offset, mean, var = (
                np.asarray(array[...], np.float64) for array in (norm.scale, norm.bias, norm.mean, norm.var)
            )
            factor = scale / np.sqrt(var + 1e-5)
            kernel, bias = kernel * factor, (bias - mean) * factor + offset
        yield kernel, bias


@pytest.mark.slow
def test_ablation_of_a_batch_norm_network_equals_numpy(normalized_model):
    model, split = normalized_model, toy(200, seed=9).test
    for got, want in zip(weights64(model), raw_weights64(model), strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    fill = np.asarray(ja.compute_fill(model, "mean", split.images))
    masks = random_masks(0, 40, 13)
    counts = ja.evaluate_masks(model, masks, split.images, split.labels, fill)
    assert_counts(counts, model, masks, split.images, split.labels, fill)
    orders = np.asarray(ja.random_orders(13, 5, key=jax.random.key(0)))
    along = ja.orders.masks_of_orders(orders, 13, 13)
    for engine in ("vmap", "incremental"):
        curves = ja.cumulative_ablation(model, orders, split.images, split.labels, fill, steps=13, engine=engine)
        flat = along.reshape(-1, 13)
        assert_counts(np.asarray(curves).reshape(-1), model, flat, split.images, split.labels, fill)
    assert np.ptp(np.asarray(curves)) > 20


@pytest.mark.slow
def test_a_batch_norm_network_is_pruned(normalized_model):
    model, images = normalized_model, toy(200).test.images
    keep = np.arange(13) % 3 > 0
    for fill in (None, np.linspace(-1, 1, 13), ja.compute_fill(model, "linear", images)):
        small = ja.prune(model, keep, fill, images=images)  # compares the outputs
        assert (small.hidden, small.batch_norm, small.dropout) == ((4, 4), True, 0.2)
    tuned, _ = ja.train(toy(200), start=small, epochs=1)
    assert tuned.stages[0].batch_norm.mean.shape == (4,)


def test_a_batch_norm_network_is_saved(normalized_model, tmp_path):
    path = tmp_path / "model.safetensors"
    ja.save_model(normalized_model, path)
    again = ja.load_model(path)
    assert (again.metadata, again.arrays) == ({}, {})
    assert nnx.graphdef(again.model) == nnx.graphdef(normalized_model)
    states = (jax.tree.leaves(nnx.state(model)) for model in (again.model, normalized_model))
    for got, want in zip(*states, strict=True):
        np.testing.assert_array_equal(got, want)
    arrays = [[np.ones((2, 3)), np.ones((3, 2))], [np.zeros(3), np.zeros(2)]]
    norm = {"scale": np.ones(3), "bias": np.zeros(3), "mean": np.zeros(3), "var": -np.ones(3)}
    with raises_input_error("stage 0 batch norm var: a variance is negative; give 0 or more"):
        ja.models.from_arrays(*arrays, activation="relu", batch_norms=[norm])
    with raises_input_error("batch_norms: expected scale, bias, mean, var for each of 1 hidden layers, got"):
        ja.models.from_arrays(*arrays, activation="relu", batch_norms=[{"scale": np.ones(3)}])


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
    with raises_input_error("dropout: 1 is out of range; choose 0 or more, and less than 1"):
        ja.train(toy(), (4,), dropout=1)
    with raises_input_error("label_noise: 1.5 is out of range; choose 0 to 1"):
        ja.StudyConfig(label_noise=1.5)
    with raises_input_error("batch_norm: expected True or False, got 'no'"):
        ja.train(toy(), (4,), batch_norm="no")
    with raises_input_error("batch_size: batch norm needs the variance over a batch; choose 2 or more"):
        ja.train(toy(), (4,), batch_norm=True, batch_size=1)
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
