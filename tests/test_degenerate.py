"""Degenerate science: what has nothing to tell is scored 0 and ablated all the same, or refused in a sentence."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error

import jaxablate as ja
from jaxablate import training
from jaxablate._checks import JaxablateWarning
from jaxablate.scores import SCORES
from jaxablate.training import DivergedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::jaxablate.uncertainty.BiasWarning"),  # noise, few examples
    pytest.mark.filterwarnings("ignore:.*has no example of class"),
]


@pytest.fixture
def archive(tmp_path):
    """Makes an archive of 9-pixel images of noise; images and labels of a split may be given by a function."""

    def make(images=None, labels=None, **sizes):
        random, arrays = np.random.default_rng(0), {}
        for split, size in {"train": 60, "validation": 30, "test": 30, **sizes}.items():
            arrays[f"{split}_images"] = images(size) if images else random.random((size, 3, 3)).astype(np.float32)
            arrays[f"{split}_labels"] = np.asarray(labels(split, size) if labels else np.arange(size) % 3, np.int32)
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return make


def study(path, models=None, **settings):
    defaults = {"networks": ((4, 3),), "epochs": 1, "batch_size": 5, "steps": 2, "num_random_orders": 1}
    config = ja.StudyConfig(dataset=path, **{**defaults, **settings, **({"networks": ()} if models else {})})
    (node,) = ja.run_study(config, models).children.values()
    return node.to_dataset().isel(seed=0)


def network(*changes):
    """Nine inputs, two hidden layers of relu; changes are (stage, kernel, bias) to fill it with."""
    model = ja.MLP(9, (4, 3), 3, activation="relu", rngs=nnx.Rngs(0))
    for stage, kernel, bias in changes:
        linear = model.stages[stage].linear
        linear.kernel[...] = jnp.full_like(linear.kernel[...], kernel)
        linear.bias[...] = jnp.full_like(linear.bias[...], bias)
    return model


DEAD, ALL_DEAD = [(0, 0.0, -1.0)], [(0, 0.0, -1.0), (1, 0.0, -1.0)]


@pytest.mark.slow
def test_one_class_tells_nothing(archive):
    with pytest.warns(JaxablateWarning, match="validation labels: all are 0, so no neuron carries information"):
        results = study(archive(labels=lambda split, size: np.zeros(size)))
    assert (results["scores"].sel(score=["mutual_information", "kl_selectivity"]) == 0).all()
    assert (results["accuracy"] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_one_example(archive, split):
    warning = pytest.warns(JaxablateWarning, match="all are 0") if split == "validation" else nullcontext()
    with warning:
        results = study(archive(**{split: 1}))
    assert np.isfinite(results["scores"]).all()
    if split == "validation":
        assert (results["scores"] == 0).all()
    else:
        assert set(np.unique(results["correct"])) <= {0, 1}


@pytest.mark.slow
def test_constant_inputs_tell_nothing(archive):
    results = study(archive(images=lambda size: np.zeros((size, 3, 3), np.float32)))
    assert (results["scores"] == 0).all()
    np.testing.assert_allclose(results["accuracy"].isel(step=0), 1 / 3)


@pytest.mark.slow
def test_labels_never_seen_in_validation(archive):
    seen = lambda split, size: np.arange(size) % (2 if split == "validation" else 3)  # noqa: E731
    results = study(archive(labels=seen))
    assert np.isfinite(results["scores"]).all()
    assert (results["joint_counts"].isel({"class": 2}) == 0).all()
    with raises_input_error("test labels: expected values in 0..1, got 0..2"):
        study(archive(labels=lambda split, size: np.arange(size) % (3 if split == "test" else 2)))


@pytest.mark.parametrize("dead", [DEAD, ALL_DEAD])
def test_dead_layers(archive, dead):
    names = ("entropy", "mutual_information", "kl_selectivity", "class_selectivity", "activation_variance", "taylor")
    results = study(archive(), {"dead": network(*dead)}, scores=names)
    silent = slice(0, 4) if dead is DEAD else slice(0, 7)
    assert (results["scores"].isel(neuron=silent) == 0).all()
    assert (results["correct"].sel(fill="zero", scope="layer1") == results["correct"][0, 0, 0, 0]).all()


@pytest.mark.filterwarnings("ignore:linear fill")  # of few examples
@pytest.mark.parametrize("score", SCORES)
def test_every_score_of_a_dead_network(archive, score):
    data = ja.load_dataset(archive())
    scores = ja.study.score_neurons(network(*ALL_DEAD), data, scores=score)["scores"]
    assert np.isfinite(scores).all()


def test_duplicate_neurons_score_the_same(archive):
    model = network()
    for weights in (model.stages[0].linear.kernel, model.stages[0].linear.bias):
        weights[...] = jnp.broadcast_to(weights[...][..., :1], weights.shape)
    results = study(archive(), {"twins": model}, scores=("mutual_information", "taylor", "outgoing_norm"))
    assert np.ptp(results["scores"].sel(score="mutual_information").values[:4]) == 0
    assert results["ablated"].sel(scope="layer1", ordering="mutual_information_low").values.tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(archive, value):
    data = ja.load_dataset(archive())
    broken, last = network((0, value, 0.0)), network((2, value, 0.0))
    for model in (broken, last):
        with raises_input_error("activations: expected finite numbers|outputs: NaN or infinite numbers under"):
            study(archive(), {"broken": model})
        with raises_input_error("outputs: NaN or infinite numbers under .* check the weights and the images"):
            ja.single_ablation(model, data.test.images, data.test.labels)
    with raises_input_error("activations: expected finite numbers, got .* check the weights and the images"):
        ja.study.score_neurons(broken, data)
    with raises_input_error("expected finite numbers, got"):
        ja.study.prune_by_score(broken, data)


def test_a_diverged_training_keeps_its_last_good_state(archive, tmp_path, monkeypatch):
    path, settings, epoch = archive(), {"activation": "relu", "batch_size": 5}, training._epoch
    data = ja.load_dataset(path)

    def diverging(graphdef, recipe, splits, params, opt_state, keys, number):
        params, opt_state, record = epoch(graphdef, recipe, splits, params, opt_state, keys, number)
        if number < 3:
            return params, opt_state, record
        return jax.tree.map(lambda leaf: leaf * np.nan, params), opt_state, record * np.nan

    good, history = ja.train(data, (8, 8), seed=7, epochs=2, **settings)
    monkeypatch.setattr(training, "_epoch", diverging)
    with pytest.raises(DivergedError, match="training of seed 7 diverged in epoch 3: the loss is not finite") as caught:
        ja.train(data, (8, 8), seed=7, epochs=9, **settings)
    error = caught.value
    assert (error.seed, error.epoch) == (7, 3)
    np.testing.assert_array_equal(error.history.loss, history.loss)
    np.testing.assert_array_equal(error.model(data.test.images), good(data.test.images))
    config = ja.StudyConfig(dataset=path, networks=((8, 8),), epochs=9, seeds=(7,), steps=2, **settings)
    with raises_input_error(
        "seed 7 diverged in epoch 3: .*; the network before that epoch is in .*_epoch2.safetensors"
    ):
        ja.run_study(config, run_dir=tmp_path / "run")
    kept = tmp_path / "run" / "networks" / "2-layer-8-8_seed7_epoch2.safetensors"
    np.testing.assert_array_equal(ja.load_model(kept).model(data.test.images), good(data.test.images))
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(1, 1), (10_000,)])
def test_layers_of_one_neuron_and_of_ten_thousand(archive, hidden):
    results = study(archive(), networks=(hidden,), steps=1)
    assert results.sizes["neuron"] == sum(hidden)
    first = results["ablated"].sel(scope="layer1", ordering="entropy_low").values[0]
    single_step = results["correct"].sel(scope="layer1", ordering="entropy_low", fill="mean", step=1)
    assert int(single_step) == int(results["single_correct"].sel(neuron=first))
