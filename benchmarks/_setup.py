"""Data and networks of the benchmarks."""

import functools
import os
from pathlib import Path

import numpy as np

import jaxablate as ja

NETWORKS = {"2-layer": (200, 200), "3-layer": (200, 200, 200)}
CACHE = Path(__file__).parents[1] / "data"  # ignored by git


@functools.cache
def dataset() -> ja.Dataset:
    """Load full MNIST if it is available, otherwise the 5,000 embedded images; every report names the dataset."""
    return ja.load_dataset("auto", data_dir=os.environ.get("JAXABLATE_DATA_DIR"))


@functools.cache
def trained(name: str) -> tuple[ja.MLP, np.ndarray]:
    """Return a trained network of the paper and its mean activations; the network is cached in an ignored folder."""
    data = dataset()
    path = CACHE / f"{name}_{data.source.name}.safetensors"
    if not path.is_file():
        ja.save_model(ja.train(data, NETWORKS[name])[0], path)
    model = ja.load_model(path).model
    return model, np.asarray(ja.mean_activations(model, data.validation.images))


def scopes_of(name: str) -> dict[str, tuple[int, int]]:
    """Return the first neuron of each scope and one past its last."""
    bounds = np.cumsum((0, *NETWORKS[name]))
    layers = {f"layer{i + 1}": (int(bounds[i]), int(bounds[i + 1])) for i in range(len(bounds) - 1)}
    return {**layers, "network": (0, int(bounds[-1]))}


def assert_same_counts(counts: np.ndarray, expected: np.ndarray, model: ja.MLP, keep, fill, images, labels) -> str:
    """Raise unless counts are equal up to near ties, examples whose two largest float64 logits lie within 1e-5.

    Returns a sentence for the table: how many counts are equal, and how many differ by a near tie.
    """
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
