"""Slow, independent sources for every number: float64 NumPy, one neuron, mask and example at a time."""

import contextlib
import itertools
import math
import os
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
from fuzz import bounded

import jaxablate as ja

OPTIMIZED = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
"""Environment of child processes that compute much or whose memory is measured: the compiler uses all its passes."""
SHORT = ["--epochs", "1", "--steps", "4", "--random-orders", "2"]
REPRODUCE = ["reproduce", *SHORT, "--dataset"]
TIE = 1e-5  # examples whose two largest float64 logits are closer may be counted either way


def first_quick(values, quick: int = 1) -> list:
    """The values of a parametrised test; all after the first are slow, since they check the same in other places."""
    params = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*param, marks=[pytest.mark.slow] * (i >= quick)) for i, param in enumerate(params)]


def pairwise(**factors):
    """Parametrise a test so that any two values of two factors meet in a case; the full product has far more."""
    product = list(itertools.product(*factors.values()))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in product}
    missing, cases = set().union(*pairs.values()), []
    while missing:
        cases.append(max(product, key=lambda case: len(pairs[case] & missing)))
        missing -= pairs[cases[-1]]
    return pytest.mark.parametrize(tuple(factors), cases)


def call(*arguments):
    """Run a command in this process."""
    from typer.testing import CliRunner  # here, since child processes import this file

    import jaxablate.cli

    return CliRunner().invoke(jaxablate.cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


@contextlib.contextmanager
def raises_input_error(match: str):
    """The block must raise an InputError whose one line matches; shapes go unchecked, as in normal use."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ja.InputError, match=match) as caught:
            yield caught
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def refused(match: str):
    """The block must raise an InputError, of one line that can be printed, and take little memory."""
    with raises_input_error(match) as caught, bounded():
        yield
    assert str(caught.value).isprintable()


@contextlib.contextmanager
def without_pdf():
    """Write PDF files without their content, whose fonts take most of the time of a figure."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # here as well

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasPdf, "print_pdf", lambda self, file, **_: file.write(b"%PDF"))
        yield


def with_less_training(data: ja.Dataset) -> ja.Dataset:
    """The dataset with so few training examples that an epoch takes a moment."""
    return replace(data, train=replace(data.train, images=data.train.images[:3500], labels=data.train.labels[:3500]))


def scores_of(counts: np.ndarray) -> dict[str, list[float]]:
    """Entropy, mutual information and KL selectivity by the formulas of the paper, in loops."""
    scores = {"entropy": [], "mutual_information": [], "kl_selectivity": []}
    for table in counts.tolist():
        total = sum(map(sum, table))
        p_class = [sum(row) / total for row in table]
        p_code = [sum(column) / total for column in zip(*table, strict=True)]
        entropy = -sum(p * math.log(p) for p in p_code if p > 0)
        conditional = 0.0
        divergences = []
        for row, of_class in zip(table, p_class, strict=True):
            if of_class == 0:
                continue
            given = [n / sum(row) for n in row]
            conditional -= of_class * sum(p * math.log(p) for p in given if p > 0)
            divergences.append(sum(p * math.log(p / q) for p, q in zip(given, p_code, strict=True) if p > 0))
        scores["entropy"].append(entropy)
        scores["mutual_information"].append(entropy - conditional)
        scores["kl_selectivity"].append(max(divergences))
    return scores


ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
}


def weights64(model) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(np.asarray(array, np.float64) for array in stage.weights) for stage in model.stages]


def first_outputs64(model, images) -> np.ndarray:
    """The outputs of the first hidden layer in float64, before any neuron is masked: the same under all masks."""
    kernel, bias = weights64(model)[0]
    return ACTIVATIONS[model.activation](np.asarray(images, np.float64).reshape(len(images), -1) @ kernel + bias)


def logits64(model, images, keep=None, fill=None, scale=None, first_outputs=None) -> np.ndarray:
    """The logits of a network in float64, neurons masked as in the formula m h + (1 - m) (s h + f)."""
    num_neurons = sum(model.hidden)
    keep = np.ones(num_neurons) if keep is None else np.asarray(keep, np.float64)
    fill = np.zeros(num_neurons) if fill is None else np.asarray(fill, np.float64)
    scale = np.zeros(num_neurons) if scale is None else np.asarray(scale, np.float64)
    outputs, start = first_outputs64(model, images) if first_outputs is None else first_outputs, 0
    for (kernel, bias), width in zip(weights64(model)[1:], model.hidden, strict=True):
        m, f, s = (values[start : start + width] for values in (keep, fill, scale))
        outputs, start = (m * outputs + (1 - m) * (s * outputs + f)) @ kernel + bias, start + width
        if start < num_neurons:
            outputs = ACTIVATIONS[model.activation](outputs)
    return outputs


def assert_counts(counts, model, masks, images, labels, fill=None, scale=None) -> None:
    """Each count equals that of the float64 forward pass, but for examples that are nearly a tie."""
    counts = np.asarray(counts)
    assert counts.dtype == np.int32
    assert counts.shape == (len(masks),)
    first_outputs = first_outputs64(model, images)
    for count, keep in zip(counts.tolist(), masks, strict=True):
        logits = logits64(model, images, keep, fill, scale, first_outputs)
        correct = int((logits.argmax(axis=1) == labels).sum())
        second, first = np.sort(logits, axis=1)[:, -2:].T
        assert abs(count - correct) <= int((first - second < TIE).sum()), (count, correct)


def random_masks(seed: int, num_masks: int, num_neurons: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((num_masks, num_neurons)) < random.random((num_masks, 1))


def informed_codes(
    seed: int, codes: int, classes: int, examples: int, neurons: int = 9
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of neurons that know something of unevenly many classes; one is constant, the last a duplicate."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.integers(0, classes, examples), random.integers(0, classes, examples))
    means = random.random((classes, neurons)) * codes
    neuron_codes = np.clip(random.normal(means[labels], 0.3 * codes), 0, codes - 1).astype(np.int32)
    neuron_codes[:, neurons // 2], neuron_codes[:, -1] = codes - 1, neuron_codes[:, 0]
    return neuron_codes, labels
