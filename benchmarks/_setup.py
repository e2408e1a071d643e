"""The data and networks that the benchmarks run on."""

import functools
import os
from pathlib import Path

import numpy as np

import jaxablate as ja

NETWORKS = {"2-layer": (200, 200), "3-layer": (200, 200, 200)}
CACHE = Path(__file__).parents[1] / "data"  # ignored by git


@functools.cache
def dataset() -> ja.Dataset:
    """Full MNIST where it is at hand, else the embedded set; every report names it."""
    return ja.load_dataset("auto", data_dir=os.environ.get("JAXABLATE_DATA_DIR"))


@functools.cache
def trained(name: str) -> tuple[ja.MLP, np.ndarray]:
    """A trained network of the paper (kept in an ignored folder) and its mean activations."""
    data = dataset()
    path = CACHE / f"{name}_{data.source.name}.safetensors"
    if not path.is_file():
        ja.save_model(ja.train(data, NETWORKS[name])[0], path)
    model = ja.load_model(path)[0]
    return model, np.asarray(ja.mean_activations(model, data.validation.images))


def scopes_of(name: str) -> dict[str, tuple[int, int]]:
    """The neurons of each scope, first and one past the last."""
    bounds = np.cumsum((0, *NETWORKS[name]))
    layers = {f"layer{i + 1}": (int(bounds[i]), int(bounds[i + 1])) for i in range(len(bounds) - 1)}
    return {**layers, "network": (0, int(bounds[-1]))}


def assert_same_counts(counts: np.ndarray, expected: np.ndarray, model: ja.MLP, keep, fill, images, labels) -> str:
    """Equal, or different only by examples whose two largest float64 logits are within 1e-5; says which."""
    differing = np.flatnonzero(np.asarray(counts) != np.asarray(expected))
    weights = [tuple(np.asarray(array, np.float64) for array in stage.weights) for stage in model.stages]
    splits = np.cumsum(model.hidden)[:-1]
    for index in differing:
        outputs = np.asarray(images, np.float64).reshape(len(images), -1)
        parts = zip(weights[:-1], np.split(keep[index], splits), np.split(fill, splits), strict=True)
        for (kernel, bias), m, f in parts:
            outputs = np.where(m, 1 / (1 + np.exp(-(outputs @ kernel + bias))), f)
        second, first = np.sort(outputs @ weights[-1][0] + weights[-1][1], axis=1)[:, -2:].T
        allowed = int((first - second < 1e-5).sum())
        difference = abs(int(counts[index]) - int(expected[index]))
        if difference > allowed:
            raise AssertionError(f"mask {index}: counts differ by {difference}, near ties explain {allowed}")
    return f"{len(counts)} counts equal" + (f" ({len(differing)} within a near tie)" if len(differing) else "")
