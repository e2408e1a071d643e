"""Scores of every kind against independent computations, and as orders of a study."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import logits64, raises_input_error, scores_of, weights64
from networks import KINDS, cnn_chain, in_evaluation
from scipy import stats

import jaxablate as ja
from jaxablate.scores import SCORES, Evidence, compute_score


@pytest.fixture(scope="module")
def split(mnist5k):
    return mnist5k.validation


@pytest.fixture(scope="module")
def evidence(small_model, split):
    return Evidence(small_model, split.images, split.labels, 10, ja.quantizers.threshold(0.5))


@pytest.fixture(scope="module")
def activations(small_model, split):
    return np.concatenate([np.asarray(a, np.float64) for a in ja.record_activations(small_model, split.images)], axis=1)


def log_likelihood(logits, labels) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))


def test_scores_of_the_code(evidence, activations, split):
    counts = np.zeros((27, 10, 2), int)
    for neuron, (row, label) in itertools.product(range(27), zip(activations >= 0.5, split.labels, strict=True)):
        counts[neuron, label, int(row[neuron])] += 1
    expected = scores_of(counts)
    expected["conditional_entropy"] = np.subtract(expected["entropy"], expected["mutual_information"])
    for name, values in expected.items():
        np.testing.assert_allclose(compute_score(name, evidence), values, atol=1e-6)


def test_the_bit_at_the_mean(small_model, split, activations):
    counts = Evidence(small_model, split.images, split.labels, 10).counts
    above = activations >= activations.mean(axis=0)
    np.testing.assert_array_equal(np.asarray(counts)[:, :, 1].sum(axis=1), above.sum(axis=0))


def test_scores_of_the_activation(evidence, activations, split):
    for neuron in range(27):
        values = activations[:, neuron]
        means = sorted(values[split.labels == c].mean() for c in range(10))
        rest = sum(means[:-1]) / 9
        assert compute_score("class_selectivity", evidence)[neuron] == pytest.approx(
            (means[-1] - rest) / (means[-1] + rest), abs=1e-6
        )
        assert compute_score("mean_activation", evidence)[neuron] == pytest.approx(values.mean(), abs=1e-6)
        assert compute_score("activation_variance", evidence)[neuron] == pytest.approx(values.var(), abs=1e-6)
    relu = KINDS["chain"]()
    fractions = compute_score("zero_fraction", Evidence(relu, split.images, split.labels, 10))
    outputs = np.concatenate(ja.record_activations(relu, split.images), axis=1)
    np.testing.assert_allclose(fractions, (outputs == 0).mean(axis=0))
    assert fractions.max() > 0.1


def test_the_share_of_zeros_of_a_channel_is_over_its_map(split):
    """A channel is seldom silent at every place: averaged first, nearly all channels would tie at 0."""
    model = cnn_chain()
    outputs, expected = jnp.asarray(split.images[:70]), []
    for layer in in_evaluation(model).layers:
        outputs = layer(outputs)
        if isinstance(layer, ja.Site):
            expected += list(np.asarray(outputs <= 0).reshape(-1, outputs.shape[-1]).mean(axis=0))
    fractions = compute_score("zero_fraction", Evidence(model, split.images[:70], split.labels[:70], 10))
    np.testing.assert_allclose(fractions, expected, atol=1e-3)
    assert len(np.unique(fractions[:9])) > 5


def test_a_silent_neuron_has_no_selectivity(small_model, split):
    silent = Evidence(small_model, split.images, split.labels, 10)
    silent.__dict__["class_means"] = np.zeros((10, 27))
    np.testing.assert_array_equal(compute_score("class_selectivity", silent), np.zeros(27))


@pytest.mark.slow
def test_norms_of_weights(evidence, small_model, split):
    weights = weights64(small_model)
    incoming = [np.sqrt((kernel**2).sum(axis=0)) for kernel, _ in weights[:-1]]
    outgoing = [np.sqrt((kernel**2).sum(axis=1)) for kernel, _ in weights[1:]]
    np.testing.assert_allclose(compute_score("incoming_norm", evidence), np.concatenate(incoming), rtol=1e-6)
    np.testing.assert_allclose(compute_score("outgoing_norm", evidence), np.concatenate(outgoing), rtol=1e-6)
    model = cnn_chain()
    of_cnn = Evidence(model, split.images, split.labels, 10)
    first, second, dense, last = (np.asarray(model.layers[i].kernel[...]) for i in (1, 6, 10, 13))
    flattened = dense.reshape(4, 4, 4, 6)  # height, width, channel, out
    expected = [first[..., c] for c in range(5)] + [second[..., c] for c in range(4)] + [dense[:, i] for i in range(6)]
    np.testing.assert_allclose(compute_score("incoming_norm", of_cnn), [np.linalg.norm(w) for w in expected], rtol=1e-6)
    expected = [second[:, :, c] for c in range(5)] + [flattened[:, :, c] for c in range(4)] + list(last)
    np.testing.assert_allclose(compute_score("outgoing_norm", of_cnn), [np.linalg.norm(w) for w in expected], rtol=1e-6)
    tokens = KINDS["tokens"]()
    of_tokens = Evidence(tokens, split.images, split.labels, 10)
    for name, kernel, axis in (("incoming_norm", tokens.up.kernel, 0), ("outgoing_norm", tokens.down.kernel, 1)):
        np.testing.assert_allclose(compute_score(name, of_tokens), np.linalg.norm(kernel[...], axis=axis), rtol=1e-6)
    pixels = ja.from_function(
        lambda w, x: jax.nn.relu(x.reshape(len(x), -1)) @ w,
        np.ones((784, 10), np.float32),
        split.images[:2],
        sites="input",
    )
    with raises_input_error("weight norms: expected a linear map before site 'input' that keeps its units apart"):
        compute_score("incoming_norm", Evidence(pixels, split.images, split.labels, 10))


def test_taylor_by_hand(evidence, small_model, activations, split):
    logits = logits64(small_model, split.images)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = probabilities / probabilities.sum(axis=1, keepdims=True) - np.eye(10)[split.labels]
    expected = []
    for (kernel, _), outputs in zip(
        weights64(small_model)[:0:-1], np.split(activations, [10, 18], 1)[::-1], strict=True
    ):
        gradient = gradient @ kernel.T
        expected = [*np.abs(outputs * gradient).mean(axis=0), *expected]
        gradient *= outputs * (1 - outputs)
    np.testing.assert_allclose(compute_score("taylor", evidence), expected, rtol=0, atol=1e-6)


def test_taylor_of_channels_by_the_layers_themselves(split):
    """A map is summed over its positions before the absolute value."""
    model = cnn_chain()
    layers = in_evaluation(model).layers
    images, labels = jnp.asarray(split.images[:70]), split.labels[:70]

    def loss(outputs):
        for layer in layers[5:]:
            outputs = layer(outputs)
        return -jax.nn.log_softmax(outputs)[np.arange(70), labels].sum()

    outputs = images
    with jax.default_matmul_precision("highest"):
        for layer in layers[:5]:
            outputs = layer(outputs)
        products = np.asarray(outputs * jax.grad(loss)(outputs)).sum(axis=(1, 2))
    scores = compute_score("taylor", Evidence(model, images, labels, 10))
    np.testing.assert_allclose(scores[:5], np.abs(products).mean(axis=0), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def worth(small_model, activations, split):
    """The mean log-likelihood in float64 with these neurons kept, and the means of all others in their place."""
    mean = activations.mean(axis=0)
    return lambda keep: log_likelihood(logits64(small_model, split.images, keep, mean), split.labels).mean()


def test_damage_alone(evidence, worth):
    expected = [worth(np.ones(27)) - worth(np.arange(27) != neuron) for neuron in range(27)]
    np.testing.assert_allclose(compute_score("single_damage", evidence), expected, rtol=0, atol=1e-6)


def test_shapley_values_by_the_same_orders(evidence, worth):
    orders = np.asarray(ja.random_orders(27, 20, key=jax.random.key(0)))
    expected = np.zeros(27)
    for order in orders:
        along = [worth(~np.isin(np.arange(27), order[:step])) for step in range(28)]
        expected[order] += -np.diff(along) / 20
    np.testing.assert_allclose(compute_score("shapley", evidence), expected, rtol=0, atol=1e-6)


def test_the_shapley_score_is_what_the_loss_would_rise_by(evidence, small_model, activations, split):
    """Over all neurons the values add up to the rise of the loss without any, their means in place."""
    values, errors = evidence.shapley.values, evidence.shapley.standard_errors
    mean = activations.mean(axis=0)
    logits = [logits64(small_model, split.images, np.full(27, keep), mean) for keep in (1, 0)]
    intact, without = (-log_likelihood(outputs, split.labels).mean() for outputs in logits)
    np.testing.assert_array_equal(compute_score("shapley", evidence), values)
    assert values.sum() == pytest.approx(without - intact, abs=1e-5)
    assert without - intact > 0.3
    assert ((errors > 0) & (errors < 0.2)).all()


@pytest.mark.parametrize("outcome", ["correct", "loss"])
def test_shapley_values_against_all_subsets(outcome, small_model, split):
    """The eight neurons of a layer: the exact values by their definition, within four standard errors; they add up."""
    images, labels, fill = split.images[:80], split.labels[:80], np.full(27, 0.4, np.float32)
    worth = {}
    for subset in itertools.chain.from_iterable(itertools.combinations(range(8), size) for size in range(9)):
        keep = np.ones(27, bool)
        keep[10:18] = np.isin(np.arange(8), subset)
        logits = logits64(small_model, images, keep, fill)
        right = (logits.argmax(axis=1) == labels).mean()
        worth[frozenset(subset)] = right if outcome == "correct" else log_likelihood(logits, labels).mean()
    exact = np.zeros(8)
    for unit, subset in itertools.product(range(8), worth):
        if unit not in subset:
            share = math.factorial(len(subset)) * math.factorial(7 - len(subset)) / math.factorial(8)
            exact[unit] += share * (worth[subset | {unit}] - worth[subset])
    shapley = ja.ablation.shapley_values(
        small_model, images, labels, fill, site="layer2", outcome=outcome, num_permutations=200, key=jax.random.key(3)
    )
    values, errors = shapley.values, shapley.standard_errors
    assert (np.abs(values - exact) <= 4 * errors + 1e-6).all()
    assert values.sum() == pytest.approx(worth[frozenset(range(8))] - worth[frozenset()], abs=1e-5)
    assert np.abs(exact).max() > 3 * errors.max() > 0


def test_shapley_errors_are_those_of_a_mean_over_permutations(small_model, split):
    images, labels, fill = split.images[:80], split.labels[:80], np.full(27, 0.4, np.float32)
    key, lost = jax.random.key(4), np.empty((3, 8))
    for of_order, order in zip(lost, np.asarray(ja.random_orders(8, 3, key=key)), strict=True):
        keep, worth = np.ones(27), []
        for neuron in (None, *order):
            if neuron is not None:
                keep[10 + neuron] = 0
            worth.append(log_likelihood(logits64(small_model, images, keep, fill), labels).mean())
        of_order[order] = -np.diff(worth)
    shapley = ja.ablation.shapley_values(
        small_model, images, labels, fill, site="layer2", outcome="loss", num_permutations=3, key=key
    )
    values, errors = shapley.values, shapley.standard_errors
    np.testing.assert_allclose(values, lost.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(errors, stats.sem(lost, axis=0), atol=1e-6)


def test_another_quantizer_has_its_own_counts(small_model, split):
    first = Evidence(small_model, split.images, split.labels, 10, ja.quantizers.threshold(0.5))
    before = np.asarray(first.counts)
    first.class_means  # noqa: B018 (kept from now on)
    recoded = first.with_quantizer(ja.quantizers.quantile(4))
    assert "class_means" in vars(recoded)
    assert np.asarray(recoded.counts).shape == (27, 10, 4)
    fresh = Evidence(small_model, split.images, split.labels, 10, ja.quantizers.quantile(4))
    np.testing.assert_array_equal(recoded.counts, fresh.counts)
    np.testing.assert_array_equal(first.counts, before)


def test_selectivity_is_among_the_classes_that_are_there(small_model, split):
    chosen = np.isin(split.labels, (2, 5, 6))
    images, labels = split.images[chosen], split.labels[chosen]
    outputs = np.concatenate([np.asarray(a, np.float64) for a in ja.record_activations(small_model, images)], axis=1)
    means = np.sort([outputs[labels == c].mean(axis=0) for c in (2, 5, 6)], axis=0)
    rest = means[:2].mean(axis=0)
    selectivity = compute_score("class_selectivity", Evidence(small_model, images, labels, 10))
    np.testing.assert_allclose(selectivity, (means[2] - rest) / (means[2] + rest), atol=1e-6)


def test_a_score_of_ones_own_orders_a_study(small_model, mnist5k, monkeypatch):
    monkeypatch.setitem(SCORES, "largest", lambda evidence: evidence.activations.max(axis=0))
    config = ja.StudyConfig(
        dataset="mnist5k", networks=(), scores=("taylor", "largest"), normalization="z", num_random_orders=1, steps=5
    )
    node = ja.run_study(config, {"mine": small_model})["mine"].to_dataset()
    largest = np.concatenate(
        [np.asarray(a).max(axis=0) for a in ja.record_activations(small_model, mnist5k.validation.images)]
    )
    np.testing.assert_allclose(node["scores"].sel(seed=0, score="largest"), largest, atol=1e-6)
    layers = np.repeat([0, 1, 2], [10, 8, 9])
    z = np.concatenate(
        [(layer - layer.mean()) / layer.std() for layer in np.split(node["scores"].values[0, 1], [10, 18])]
    )
    ablated = node["ablated"].sel(seed=0, ordering="largest_low")
    assert ablated.sel(scope="network").values.tolist() == np.argsort(z, kind="stable")[:5].tolist()
    of_layer2 = np.argsort(largest[layers == 1], kind="stable")[:5] + 10
    assert ablated.sel(scope="layer2").values.tolist() == of_layer2.tolist()


def test_normalization_per_layer():
    scores, layers = np.array([3.0, 1.0, 1.0, -8.0, 4.0, 0.0]), np.array([1, 1, 1, 2, 2, 3])
    normalize = ja.orders.normalize_per_layer
    np.testing.assert_allclose(normalize(scores, layers, "rank"), [5 / 6, 1 / 3, 1 / 3, 0.25, 0.75, 0.5])
    np.testing.assert_allclose(normalize(scores, layers, "share"), [1, 1 / 3, 1 / 3, -1, 0.5, 0])
    root = math.sqrt(2)
    np.testing.assert_allclose(normalize(scores, layers, "z"), [root, -1 / root, -1 / root, -1, 1, 0])
    np.testing.assert_array_equal(normalize(scores, layers, "none"), scores)
    np.testing.assert_array_equal(normalize(np.full(7, 0.1), np.zeros(7, int), "z"), np.zeros(7))  # of mean 0.1 + 1e-17
    with raises_input_error("normalization: unknown 'minmax'; choose one of none, rank, z, share"):
        normalize(scores, layers, "minmax")
    with raises_input_error(r"layers: expected one for each of 6 neurons, got \(5,\)"):
        normalize(scores, layers[1:], "rank")
    with raises_input_error("scores: expected finite numbers"):
        normalize(np.full(6, np.nan), layers, "rank")


def test_bad_input(evidence, small_model, split, monkeypatch):
    with raises_input_error("score: unknown 'x'; choose one of entropy, mutual_information"):
        compute_score("x", evidence)
    with raises_input_error("score: unknown 'x'; choose one of entropy"):
        ja.StudyConfig(scores=("x",))
    with raises_input_error("normalization: 'rank' needs the paper's protocol alone, not paper, published; choose"):
        ja.StudyConfig(normalization="rank", protocols=("paper", "published"))
    monkeypatch.setitem(SCORES, "short", lambda values: values.activations.mean(axis=1))
    with raises_input_error(r"score 'short': expected shape \(27,\) = \[neuron\], got \(500,\)"):
        compute_score("short", evidence)
    monkeypatch.setitem(SCORES, "nan", lambda item: np.full(27, np.nan))
    with raises_input_error("score 'nan': expected finite numbers"):
        compute_score("nan", evidence)
    with raises_input_error(r"labels: expected shape \(500\)"):
        Evidence(small_model, split.images, split.labels[:9], 10)
    with raises_input_error("labels: expected values in 0..9, got 11..11"):
        Evidence(small_model, split.images[:9], np.full(9, 11), 10)
    with raises_input_error("labels: expected values in 0..9, got 11..11"):
        compute_score("taylor", Evidence(small_model, split.images[:9], np.full(9, 11), 12))
    with raises_input_error("quantizer: expected a quantizer from ja.quantizers .* got 'quantile:4'"):
        Evidence(small_model, split.images, split.labels, 10, "quantile:4")
    with raises_input_error("class_selectivity: expected examples of two classes or more, got 1"):
        compute_score("class_selectivity", Evidence(small_model, split.images[:9], np.full(9, 3), 10))
    images = np.array(split.images[:9])
    images[2, 3, 4] = np.nan
    with raises_input_error("activations: expected finite numbers, got 27 NaN or infinite of 243"):
        compute_score("entropy", Evidence(small_model, images, split.labels[:9], 10))
    with raises_input_error("num_permutations: expected at least 2, got 1"):
        ja.ablation.shapley_values(small_model, split.images, split.labels, key=jax.random.key(0), num_permutations=1)
