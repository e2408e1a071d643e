"""Networks: shapes, initial values, files."""

import numpy as np
import pytest
from flax import nnx
from helpers import logits64, raises_input_error
from safetensors.numpy import save_file

import jaxablate as ja

PARTS = ("kernel", "bias")


def test_forward_equals_numpy():
    model = ja.MLP(12, (7, 5), 3, rngs=nnx.Rngs(1))
    images = np.random.default_rng(0).random((6, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), logits64(model, images), atol=1e-6)


def test_initial_values_are_uniform_in_fan_in():
    model = ja.MLP(784, (200, 200), 10, rngs=nnx.Rngs(0))
    for stage, fan_in in zip(model.stages, (784, 200, 200), strict=True):
        bound = fan_in**-0.5
        for values in map(np.asarray, stage.weights):
            assert np.abs(values).max() <= bound
        kernel = np.asarray(stage.weights[0])
        assert np.abs(kernel).max() > 0.99 * bound
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert abs(kernel.mean()) < 0.05 * bound


def test_equal_shapes_share_one_graph():
    first, second = (ja.MLP(9, (4,), 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert nnx.graphdef(first) == nnx.graphdef(second)


def test_file_round_trip(tmp_path):
    model = ja.MLP(9, (4, 3), 2, activation="tanh", rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).random((5, 3, 3)).astype(np.float32)
    ja.save_model(model, tmp_path / "deep" / "model.safetensors", {"note": "x"}, loss=np.arange(3.0))
    saved = ja.load_model(tmp_path / "deep" / "model.safetensors")
    np.testing.assert_array_equal(saved.model(images), model(images))
    assert nnx.graphdef(saved.model) == nnx.graphdef(model)
    assert saved.metadata == {"note": "x"}
    assert saved.arrays["loss"].tolist() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


def test_bad_input(tmp_path):
    with raises_input_error("activation: unknown 'swish'; choose one of sigmoid, relu, tanh, gelu"):
        ja.MLP(4, (3,), 2, activation="swish", rngs=nnx.Rngs(0))
    with raises_input_error("hidden: the layer sizes are .4, 2.; give at least one hidden layer"):
        ja.MLP(4, (), 2, rngs=nnx.Rngs(0))
    with raises_input_error(r"stage 1: expected kernel \(3, 2\) and bias \(2,\), got \(4, 2\)"):
        ja.models.from_arrays([np.eye(3), np.ones((4, 2))], [np.zeros(3), np.zeros(2)], activation="relu")
    with raises_input_error("expected a file, got none"):
        ja.load_model(tmp_path / "none.safetensors")
    with raises_input_error("hidden: expected a sequence of layer sizes, got 200"):
        ja.MLP(4, 200, 2, rngs=nnx.Rngs(0))
    with raises_input_error("expected a kernel and a bias for each of two or more stages, got 2 and 1"):
        ja.models.from_arrays([np.eye(3), np.eye(3)], [np.zeros(3)], activation="relu")
    with raises_input_error("stage 0 kernel: expected finite numbers, got 1 NaN"):
        ja.models.from_arrays([np.array([[np.nan]]), np.eye(1)], [np.zeros(1), np.zeros(1)], activation="relu")
    with raises_input_error("images: expected floating pixels .* got dtype uint8; divide uint8 pixels by 255"):
        ja.record_activations(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), np.zeros((5, 2, 2), np.uint8))
    whole = {f"stages.{i}.{part}": np.ones((3, 3) if part == "kernel" else 3) for i in (0, 1) for part in PARTS}
    for missing in ("stages.1.bias", "stages.0.kernel"):
        kept = {name: array for name, array in whole.items() if name != missing}
        save_file(kept, tmp_path / "part.safetensors", {"format": "jaxablate network 1", "activation": "tanh"})
        with raises_input_error("its arrays are not the weights of a whole network"):
            ja.load_model(tmp_path / "part.safetensors")
    (tmp_path / "text.safetensors").write_text("not a network at all")
    with raises_input_error("expected safetensors, got an unreadable file"):
        ja.load_model(tmp_path / "text.safetensors")
