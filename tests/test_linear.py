"""Linear compensation: both engines against a float64 ridge regression that is solved at every step."""

import itertools
import lzma
from pathlib import Path

import jax
import jax.numpy as jnp
import measure_redundancy
import numpy as np
import pytest
import redundancy
import xarray as xr
from flax import nnx
from helpers import ACTIVATIONS, TIE, first_quick, raises_input_error, weights64
from networks import KINDS, SITES, in_evaluation, sites_in_order
from sklearn.linear_model import LinearRegression, Ridge

import jaxablate as ja
from jaxablate.fills import LinearFill
from jaxablate.linear_compensation import (
    effective_rank,
    elimination_ranks,
    order_basis,
    predictors,
    r_squared,
    regularize,
    removal_basis,
    unique_variances,
)

IMAGES = 120


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:IMAGES], mnist5k.test.labels[:IMAGES]


@pytest.fixture(scope="module")
def fit_images(mnist5k):
    return mnist5k.validation.images[:400]


@pytest.fixture(scope="module")
def model(small_model):
    return small_model


@pytest.fixture(scope="module")
def fill(model, fit_images):
    return ja.compute_fill(model, "linear", fit_images)


def prediction64(fill, site: int, first: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [unit] and weights [unit, unit] that predict the ablated units, from one ridge regression."""
    covariance, size = fill.covariances[site], len(keep)
    weights = np.zeros((size, size))
    if keep.any() and not keep.all():
        inner = covariance[np.ix_(keep, keep)] + fill.ridge * np.trace(covariance) / size * np.eye(keep.sum())
        weights[np.ix_(keep, ~keep)] = np.linalg.solve(inner, covariance[np.ix_(keep, ~keep)])
    return fill.means[first : first + size], weights


def logits64(model, fill, keep, images) -> np.ndarray:
    h, start = np.asarray(images, np.float64).reshape(len(images), -1), 0
    *hidden, (kernel, bias) = weights64(model)
    for site, (w, b) in enumerate(hidden):
        h = ACTIVATIONS[model.activation](h @ w + b)
        kept = keep[start : start + h.shape[1]]
        mean, weights = prediction64(fill, site, start, kept)
        h, start = np.where(kept, h, mean + (h - mean) @ weights), start + h.shape[1]
    return h @ kernel + bias


class PredictedSite(ja.Site):
    """A site whose ablated units are predicted from its kept ones."""

    def __call__(self, outputs):
        keep, mean, weights = (variable[...] for variable in (self.keep, self.mean, self.weights))
        return jnp.where(keep, outputs, mean + (outputs - mean) @ weights).astype(outputs.dtype)


@nnx.jit
def forward(model, images):
    return model(images)


def logits_of(model, kind: str, fill, keep, images) -> np.ndarray:
    """The logits of a network that is no MLP, its prediction at each site set by hand."""
    model, first = in_evaluation(model), 0
    for i, site in enumerate(sites_in_order(model, kind)):
        size = SITES[kind][site.name]
        kept = keep[first : first + size]
        mean, weights = prediction64(fill, i, first, kept)
        site.__class__ = PredictedSite
        arrays = jnp.asarray(kept), jnp.asarray(mean, jnp.float32), jnp.asarray(weights, jnp.float32)
        site.keep, site.mean, site.weights = (nnx.Variable(array) for array in arrays)
        first += size
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(model, jnp.asarray(images)))


def assert_counts(counts, logits_of_mask, masks, labels) -> None:
    for count, keep in zip(np.asarray(counts).tolist(), masks, strict=True):
        logits = logits_of_mask(keep)
        second, first = np.sort(logits, axis=1)[:, -2:].T
        correct = int((logits.argmax(axis=1) == labels).sum())
        assert abs(count - correct) <= int((first - second < TIE * np.abs(logits).max()).sum()), (count, correct)


def masks_along(order: np.ndarray, num_neurons: int, step: int = 1) -> np.ndarray:
    keep = np.ones((len(order) // step + 1, num_neurons), bool)
    for k in range(len(keep)):
        keep[k, order[: k * step]] = False
    return keep


@pytest.mark.parametrize("engine", ["vmap", "incremental"])
@pytest.mark.parametrize("activation", first_quick(["sigmoid", "relu"]))
def test_every_step_equals_a_float64_regression(mnist5k, examples, fit_images, engine, activation):
    model = ja.train(mnist5k, (10, 8, 9), epochs=2, activation=activation)[0]
    fill = ja.compute_fill(model, "linear", fit_images)
    orders = np.stack([np.random.default_rng(i).permutation(27) for i in range(3)])
    counts = ja.cumulative_ablation(model, orders, *examples, fill, steps=27, engine=engine)
    for order, curve in zip(orders, counts, strict=True):
        assert_counts(curve, lambda keep: logits64(model, fill, keep, examples[0]), masks_along(order, 27), examples[1])


def test_steps_of_several_neurons_and_networks(mnist5k, model, examples, fit_images, fill):
    second = ja.train(mnist5k, (10, 8, 9), seed=1, epochs=2)[0]
    fills = [fill, ja.compute_fill(second, "linear", fit_images)]
    both = LinearFill(
        np.stack([f.means for f in fills]),
        tuple(map(np.stack, zip(*(f.covariances for f in fills), strict=True))),
        fill.ridge,
    )
    orders = np.stack([[np.random.default_rng(10 * n + i).permutation(27) for i in range(2)] for n in range(2)])
    steps = (3, 4, 9, 10, 27)
    counts = ja.cumulative_ablation([model, second], orders, *examples, both, steps=steps, engine="incremental")
    for m, f, of_network, curves in zip((model, second), fills, orders, counts, strict=True):
        for order, curve in zip(of_network, curves, strict=True):
            masks = masks_along(order, 27)[[0, *steps]]
            assert_counts(curve, lambda keep, m=m, f=f: logits64(m, f, keep, examples[0]), masks, examples[1])
    masks = np.random.default_rng(0).random((2, 5, 27)) < 0.5
    for m, f, keep, of_network in zip(
        (model, second), fills, masks, ja.evaluate_masks([model, second], masks, *examples, both), strict=True
    ):
        assert_counts(of_network, lambda k, m=m, f=f: logits64(m, f, k, examples[0]), keep, examples[1])


@pytest.mark.parametrize("kind", first_quick(["residual", "cnn_chain", "chain", "tokens"]))
def test_networks_that_are_no_mlp(kind, examples, fit_images):
    model = KINDS[kind]()
    fill, size = ja.compute_fill(model, "linear", fit_images), sum(SITES[kind].values())
    order = np.random.default_rng(0).permutation(size)
    masks = masks_along(order, size)
    for engine in ("vmap", "incremental"):
        counts = ja.cumulative_ablation(model, order[None], *examples, fill, steps=size, engine=engine)[0]
        assert_counts(counts, lambda keep: logits_of(model, kind, fill, keep, examples[0]), masks, examples[1])


@pytest.mark.slow
def test_single_neurons_pairs_and_greedy_removal(model, examples, fill):
    def reference(keep):
        return logits64(model, fill, keep, examples[0])

    singles = ja.single_ablation(model, *examples, fill)
    assert_counts(singles, reference, ~np.eye(27, dtype=bool), examples[1])
    pairs = np.asarray(ja.ablation.pair_ablation(model, *examples, fill, site="layer2"))
    np.testing.assert_array_equal(np.diag(pairs), singles[10:18])
    first, second = np.triu_indices(8, 1)
    keep = np.ones((len(first), 27), bool)
    keep[np.arange(len(first)), 10 + first] = keep[np.arange(len(first)), 10 + second] = False
    assert_counts(pairs[first, second], reference, keep, examples[1])
    greedy = ja.ablation.greedy_order(model, *examples, fill, outcome="loss", steps=20)
    order = np.asarray(greedy.order)
    assert len({*np.digitize(order, [10, 18])}) == 3  # all sites lose neurons
    masks = masks_along(order, 27)
    losses = ja.evaluate_masks(model, masks, *examples, fill, outcomes="loss")
    np.testing.assert_allclose(greedy.outcome, losses, rtol=1e-5)
    assert_counts(ja.evaluate_masks(model, masks, *examples, fill), reference, masks, examples[1])


def plain(params, images):
    """784-12-10 with weights [output, input], as PyTorch stores them."""
    h = jax.nn.relu(images.reshape(len(images), -1) @ params["hidden"].T + params["shift"])
    return h @ params["head"].T + params["bias"]


def test_more_orders_than_bases_at_a_time(model, examples, fill):
    orders = np.stack([np.random.default_rng(i).permutation(8) for i in range(70)])
    first, second = (
        ja.cumulative_ablation(model, orders, *examples, fill, site="layer2", steps=8, engine=engine, outcomes="loss")
        for engine in ("vmap", "incremental")
    )
    np.testing.assert_allclose(second, first, rtol=1e-5)
    assert len(np.unique(np.asarray(first).round(6), axis=0)) == 70


def test_batches_do_not_change_the_fill(model, fit_images, fill, monkeypatch):
    monkeypatch.setattr(ja.activations, "BATCH_SIZE", 150)
    batched = ja.compute_fill(model, "linear", fit_images)
    np.testing.assert_allclose(batched.means, fill.means, rtol=1e-7)
    for covariance, expected in zip(batched.covariances, fill.covariances, strict=True):
        np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-9)


def test_huge_outputs_leave_no_trace(fit_images, examples):
    """A pixel that is black in all fitted images makes one unit huge; when this unit is gone, its rounding is too."""
    random = np.random.default_rng(0)
    shapes = {"hidden": (12, 784), "shift": (12,), "head": (10, 12), "bias": (10,)}
    params = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    params["hidden"][:, 0] = np.eye(12, dtype=np.float32)[0]
    images = examples[0][:1].copy()
    images[:, 0, 0] = 1e6
    function = ja.from_function(plain, params, fit_images[:2])
    fill = ja.compute_fill(function, "linear", fit_images)
    outcomes = {str(c): lambda outputs, labels, c=c: outputs[:, c] for c in range(10)}
    order, values = np.arange(12), {name: array.astype(np.float64) for name, array in params.items()}
    curves = ja.cumulative_ablation(
        function, order[None], images, examples[1][:1], fill, steps=12, engine="incremental", outcomes=outcomes
    )
    h = np.maximum(images.reshape(1, -1) @ values["hidden"].T + values["shift"], 0)
    for step, keep in enumerate(masks_along(order, 12)[1:], start=1):
        mean, weights = prediction64(fill, 0, 0, keep)
        centred = np.where(keep, h - mean, 0)
        logits = np.where(keep, h, mean + centred @ weights) @ values["head"].T + values["bias"]
        seen = np.array([float(curves[str(c)][0, step]) for c in range(10)])
        np.testing.assert_allclose(seen, logits[0], atol=1e-5 * np.abs(logits).max())


def test_nothing_ablated_is_intact_and_everything_is_the_means(model, examples, fit_images, fill):
    keep = np.stack([np.ones(27, bool), np.zeros(27, bool)])
    linear = ja.evaluate_masks(model, keep, *examples, fill, outcomes="loss")
    means = ja.evaluate_masks(model, keep, *examples, ja.mean_activations(model, fit_images), outcomes="loss")
    np.testing.assert_allclose(linear, means, rtol=1e-6)


def random_covariance(size: int, seed: int = 0, rank: int | None = None) -> np.ndarray:
    h = np.random.default_rng(seed).normal(size=(rank or 3 * size, size))
    return h.T @ h / len(h)


def test_bases_equal_direct_solves():
    covariance, ridge, order = random_covariance(9), 1e-6, np.random.default_rng(1).permutation(9)
    basis = order_basis(covariance, ridge, order[:7])
    for k in range(8):
        keep = ~np.isin(np.arange(9), order[:k])
        operator = np.eye(9) - (basis.columns * ~keep) @ basis.residuals
        direct = np.diag(keep.astype(float)) + predictors(covariance, ridge, keep[None])[0].T
        np.testing.assert_allclose(operator, direct, atol=1e-6)  # predictors are float32
    keep = np.isin(np.arange(9), order[3:])
    basis = removal_basis(covariance, ridge, keep)
    for unit in order[3:]:
        fewer = keep & (np.arange(9) != unit)
        operator = basis.columns - np.outer(basis.columns[:, unit], basis.residuals[unit])
        direct = np.diag(fewer.astype(float)) + predictors(covariance, ridge, fewer[None])[0].T
        np.testing.assert_allclose(operator, direct, atol=1e-6)


def test_duplicated_neurons_cost_as_much_as_the_ridge():
    covariance = random_covariance(6)
    doubled = np.block([[covariance, covariance[:, :1]], [covariance[:1], covariance[:1, :1]]])
    for ridge in (1e-3, 1e-6):
        weights = predictors(doubled, ridge, np.array([[True] * 6 + [False]]))[0]
        missing = 1 - weights[0, 6]
        assert 0 < missing < 20 * ridge
    assert unique_variances(doubled, 1e-6)[[0, 6]].max() < 1e-5
    assert r_squared(doubled, 1e-6, np.zeros(7), doubled, np.zeros(7))[[0, 6]].min() > 1 - 1e-5


def test_constant_and_rank_deficient_neurons():
    covariance = np.zeros((8, 8))
    covariance[:5, :5] = random_covariance(5, rank=2)
    keep = np.array([[True, True, True, False, False, True, False, False], [False] * 8])
    weights = predictors(covariance, 1e-6, keep)
    assert np.isfinite(weights).all()
    assert not weights[0, :, 5:].any()  # constant units keep their means
    assert not weights[1].any()
    assert not predictors(np.zeros((8, 8)), 1e-6, keep).any()
    assert np.isfinite(order_basis(covariance, 1e-6, np.arange(8)).residuals).all()
    assert np.isnan(r_squared(covariance, 1e-6, np.zeros(8), covariance, np.zeros(8))[5:]).all()
    assert effective_rank(covariance, 1.0) == 2
    assert effective_rank(np.zeros((3, 3))) == 0


def test_predictions_do_not_depend_on_the_order_of_units():
    covariance, order = random_covariance(7), np.random.default_rng(2).permutation(7)
    keep = np.array([True, False, True, True, False, True, False])
    direct = predictors(covariance, 1e-6, keep[None])[0]
    permuted = predictors(covariance[np.ix_(order, order)], 1e-6, keep[order][None])[0]
    np.testing.assert_allclose(permuted, direct[np.ix_(order, order)], atol=1e-6)


def test_moments_and_measures_equal_scikit_learn(model, fit_images, fill, mnist5k):
    layers = [np.asarray(h, np.float64) for h in ja.record_activations(model, fit_images)]
    test_layers = [np.asarray(h, np.float64) for h in ja.record_activations(model, mnist5k.test.images)]
    test_fill = ja.compute_fill(model, "linear", mnist5k.test.images)
    np.testing.assert_allclose(fill.means, np.concatenate([h.mean(axis=0) for h in layers]), rtol=1e-12)
    start = 0
    for h, other, covariance, test in zip(layers, test_layers, fill.covariances, test_fill.covariances, strict=True):
        np.testing.assert_allclose(covariance, np.cov(h.T, bias=True), rtol=1e-9, atol=1e-14)
        part = slice(start, start + h.shape[1])
        alpha = len(h) * fill.ridge * np.trace(covariance) / len(covariance)
        fits = r_squared(covariance, fill.ridge, fill.means[part], test, test_fill.means[part])
        for j in range(h.shape[1]):
            rest = np.arange(h.shape[1]) != j
            ridge = Ridge(alpha=alpha, tol=1e-12).fit(h[:, rest], h[:, j])
            assert fits[j] == pytest.approx(ridge.score(other[:, rest], other[:, j]), abs=1e-8)
            plain = LinearRegression().fit(h[:, rest], h[:, j])
            residual = ((h[:, j] - plain.predict(h[:, rest])) ** 2).mean()
            assert unique_variances(covariance, 1e-12)[j] == pytest.approx(residual, rel=1e-3, abs=1e-9)
        start = part.stop


def test_elimination_equals_a_search_that_refits_every_set():
    covariance, ridge = random_covariance(7, seed=3), 1e-9
    weights = np.random.default_rng(4).normal(size=(7, 5))

    def error(keep: np.ndarray) -> float:
        """Squared error of the next linear map's result if only these units are kept."""
        gaps = (np.eye(7) - np.diag(keep.astype(float)) - predictors(covariance, ridge, keep[None])[0]) @ weights
        return float(np.trace(gaps.T @ covariance @ gaps))

    keep, order = np.ones(7, bool), []
    for _ in range(7):
        choices = {unit: error(keep & (np.arange(7) != unit)) for unit in np.flatnonzero(keep)}
        order.append(min(choices, key=choices.__getitem__))
        keep[order[-1]] = False
    assert np.argsort(elimination_ranks(covariance, ridge, weights)).tolist() == order


def test_scores_of_unique_variance(model, mnist5k, fill, fit_images):
    data = mnist5k.validation
    evidence = ja.scores.Evidence(model, fit_images, data.labels[: len(fit_images)], 10)
    unique = ja.scores.compute_score("unique_variance", evidence)
    saliency = ja.scores.compute_score("brain_surgeon", evidence)
    ranks = np.split(ja.scores.compute_score("elimination_rank", evidence), [10, 18])
    kernels = [kernel for kernel, _ in weights64(model)[1:]]
    parts = slice(0, 10), slice(10, 18), slice(18, 27)
    for part, rank, kernel, covariance in zip(parts, ranks, kernels, fill.covariances, strict=True):
        inner = regularize(covariance, fill.ridge)
        expected = 1 / np.diag(np.linalg.inv(inner)) - (inner - covariance)[0, 0]
        np.testing.assert_allclose(unique[part], expected, rtol=1e-6)
        np.testing.assert_allclose(saliency[part], expected * (kernel**2).sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(rank, elimination_ranks(covariance, fill.ridge, kernel))


def test_sequential_statistics_are_those_of_the_ablated_network(model, fit_images, fill):
    keep = np.random.default_rng(5).random((1, 27)) < 0.6
    sequential = ja.compute_fill(model, "linear", fit_images, keep=keep)
    h, start = np.asarray(fit_images, np.float64).reshape(len(fit_images), -1), 0
    for site, (kernel, bias) in enumerate(weights64(model)[:-1]):
        h = ACTIVATIONS[model.activation](h @ kernel + bias)
        part = slice(start, start + h.shape[1])
        np.testing.assert_allclose(sequential.means[part], h.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(sequential.covariances[site], np.cov(h.T, bias=True), atol=1e-6)
        kept = keep[0, part]
        mean, weights = prediction64(sequential, site, start, kept)
        h, start = np.where(kept, h, mean + (h - mean) @ weights), part.stop
    assert np.abs(sequential.covariances[1] - fill.covariances[1]).max() > 1e-4


def test_few_examples_and_bad_input(model, mnist5k, fit_images, examples, fill):
    with pytest.warns(ja._checks.JaxablateWarning, match="95 examples are fewer than 10 for each of the 10 neurons"):
        ja.compute_fill(model, "linear", fit_images[:95])
    with raises_input_error("takes one mask"):
        ja.compute_fill(model, "linear", fit_images, keep=np.ones((2, 27), bool))
    for ridge in (0.0, 1e-20, -1.0, np.nan, "a"):
        with raises_input_error("ridge: expected a number from 1e-12, got"):
            ja.compute_fill(model, "linear", fit_images, ridge=ridge)
    shapes = "fill: expected covariances of shapes .* compute the fill for this model"
    skew = fill.covariances[0] + np.triu(np.ones((10, 10)), 1)
    for bad, message in (
        (LinearFill(fill.means, fill.covariances[:2], 1e-6), shapes),
        (LinearFill(fill.means, (*fill.covariances[:2], fill.covariances[0]), 1e-6), shapes),
        (LinearFill(fill.means[1:], fill.covariances, 1e-6), shapes),
        (LinearFill(fill.means, fill.covariances, -1.0), "ridge: expected a number from 1e-12, got -1.0"),
        (LinearFill(fill.means * np.nan, fill.covariances, 1e-6), "fill means: .* finite"),
        (LinearFill(fill.means, (-fill.covariances[0], *fill.covariances[1:]), 1e-6), "expected a covariance"),
        (LinearFill(fill.means, (skew, *fill.covariances[1:]), 1e-6), "fill of site 'layer1': expected a covariance"),
    ):
        with raises_input_error(message):
            ja.evaluate_masks(model, np.ones((1, 27), bool), *examples, bad)
        with raises_input_error(message):
            ja.prune(model, np.arange(27) > 0, bad)
    with raises_input_error("neurons_per_step: 9 are more than the 8 neurons of the smallest layer"):
        ja.study.linear_redundancy(model, mnist5k, neurons_per_step=9)
    with raises_input_error("share: 2 is not a fraction"):
        ja.study.linear_redundancy(model, None, share=2)


@pytest.mark.slow
def test_redundancy_of_layers(model, mnist5k):
    results = ja.study.linear_redundancy(model, mnist5k, scores=("entropy",), share=0.9)
    assert results["accuracy"].sizes == {"network": 1, "scope": 3, "ordering": 2, "fill": 3, "step": 11}
    scored = ja.study.score_neurons(model, mnist5k, scores=("entropy",))["scores"].values[0]
    train, test = (ja.record_activations(model, split.images) for split in (mnist5k.train, mnist5k.test))
    intact, fit = float(results["accuracy"][0, 0, 0, 0, 0]), mnist5k.validation.images
    for j, (first, last) in enumerate(itertools.pairwise((0, 10, 18, 27))):
        row = results.isel(network=0, scope=j, ordering=0)
        curves = row["accuracy"]
        order = np.asarray(ja.ablation_order(scored[first:last], direction="low"))
        for name, fill in {"zero": None, "linear": ja.compute_fill(model, "linear", fit)}.items():
            counts = ja.cumulative_ablation(
                model, order[None] + first, mnist5k.test.images, mnist5k.test.labels, fill, steps=last - first
            )[0]
            shares = curves.sel(fill=name).values
            np.testing.assert_array_equal(shares[: last - first + 1], np.asarray(counts) / len(mnist5k.test))
            assert np.isnan(shares[last - first + 1 :]).all()
            below = np.flatnonzero(shares < 0.9 * intact)
            needed = results["needed"].isel(network=0, scope=j, ordering=0).sel(fill=name)
            assert int(needed) == (last - first) - below[0] + 1
        h, other = (np.asarray(layers[j], np.float64) for layers in (train, test))
        for step in (0, 3, last - first - 1):
            kept = order[step:]
            alpha = len(h) * 1e-6 * h.var(axis=0).mean()
            readout = Ridge(alpha=alpha, tol=1e-12).fit(h[:, kept], np.eye(10)[mnist5k.train.labels])
            correct = (readout.predict(other[:, kept]).argmax(axis=1) == mnist5k.test.labels).mean()
            assert float(row["readout_accuracy"].sel(step=step)) == pytest.approx(correct, abs=2e-3)


@pytest.mark.slow
def test_redundancy_in_larger_steps(model, mnist5k):
    fine, coarse = (
        ja.study.linear_redundancy(model, mnist5k, scores=(), share=0.9, neurons_per_step=n) for n in (1, 3)
    )
    for name in ("accuracy", "readout_accuracy"):
        for scope, size in (("layer1", 10), ("layer2", 8), ("layer3", 9)):
            steps = np.arange(0, size + 1, 3)
            rows = [results[name].sel(scope=scope, step=steps).values for results in (fine, coarse)]
            np.testing.assert_array_equal(*rows)
    gap = coarse["needed"] - fine["needed"]
    assert ((gap >= 0) & (gap < 3)).all()


@pytest.mark.slow
def test_studies_take_the_fill(mnist5k, small_config, model):
    config = ja.StudyConfig(
        dataset="mnist5k", networks=(), steps=4, num_random_orders=2, scores=("entropy",), extra_fills=("linear",)
    )
    network = ja.run_study(config, {"mine": model})["mine"].to_dataset()
    fill = ja.compute_fill(model, "linear", mnist5k.validation.images)
    orders = network["ablated"].isel(seed=0).sel(scope="network").values
    counts = ja.cumulative_ablation(model, orders, mnist5k.test.images, mnist5k.test.labels, fill, steps=4)
    np.testing.assert_array_equal(network["correct"].isel(seed=0).sel(scope="network", fill="linear"), counts)


@pytest.mark.slow
def test_pruned_networks_have_the_outputs_of_the_compensated_mask(model, fit_images, examples, fill):
    random = np.random.default_rng(0)
    shapes = {"hidden": (12, 784), "shift": (12,), "head": (10, 12), "bias": (10,)}
    params = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    function, residual = ja.from_function(plain, params, fit_images[:2]), KINDS["residual"]()
    outcomes = {str(c): lambda outputs, labels, c=c: outputs[:, c] for c in range(10)}
    for network, size in ((model, 27), (function, 12), (residual, 14)):
        linear = fill if network is model else ja.compute_fill(network, "linear", fit_images)
        keep = np.arange(size) % 3 > 0
        small = ja.prune(network, keep, linear, images=examples[0])
        seen = []
        for net, mask, values in ((network, keep, linear), (small, np.ones(keep.sum(), bool), None)):
            by_image = [
                ja.evaluate_masks(net, mask[None], image[None], examples[1][:1], values, outcomes=outcomes)
                for image in examples[0][:4]
            ]
            seen.append(np.array([[float(image[str(c)][0]) for c in range(10)] for image in by_image]))
        assert np.abs(seen[0] - seen[1]).max() < 1e-5 * np.abs(seen[0]).max()
    cnn = KINDS["cnn_chain"]()
    with raises_input_error("site 'conv1': a linear fill cannot be folded into conv_general_dilated"):
        ja.prune(cnn, np.arange(15) > 0, ja.compute_fill(cnn, "linear", fit_images), images=examples[0])


@pytest.mark.slow
def test_pruning_by_score_shows_masked_and_folded_accuracy(model, mnist5k):
    rows = ja.study.prune_by_score(model, mnist5k, keep_fraction=0.5, fill="linear").rows
    assert rows[1].accuracy == pytest.approx(rows[2].accuracy, abs=1e-3)
    assert rows[1].hidden == rows[0].hidden != rows[2].hidden


def test_the_page_follows_from_the_committed_measurements(tmp_path, monkeypatch):
    docs = Path(__file__).parents[1] / "docs"
    monkeypatch.setattr("sys.argv", ["redundancy.py", str(docs / "findings" / "data"), "--out", str(tmp_path)])
    redundancy.main()
    assert (tmp_path / "redundancy.md").read_text() == (docs / "redundancy.md").read_text()
    assert (tmp_path / "findings" / "redundancy.png").stat().st_size > 10_000


@pytest.mark.slow
def test_measurements_resume_and_are_joined(tmp_path, monkeypatch):
    for name, value in {"PAPER": ("mnist5k", "sigmoid"), "OTHERS": [], "NETWORKS": ((6, 5),)}.items():
        monkeypatch.setattr(measure_redundancy, name, value)
    arguments = [str(tmp_path / "run"), "--seeds", "2", "--fewer-seeds", "0", "--epochs", "1", "--data"]
    monkeypatch.setattr("sys.argv", ["measure_redundancy.py", *arguments, str(tmp_path / "data")])
    measure_redundancy.main()
    (first, second) = sorted((tmp_path / "run").glob("mnist5k_*.nc"))
    second.unlink()
    before = first.stat().st_mtime_ns
    measure_redundancy.main()
    assert first.stat().st_mtime_ns == before
    packed = (tmp_path / "data" / "redundancy_mnist5k_sigmoid_2-layer-6-5.nc.xz").read_bytes()
    (tmp_path / "table.nc").write_bytes(lzma.decompress(packed))
    table = xr.load_dataset(tmp_path / "table.nc", engine="h5netcdf")
    assert table["network"].values.tolist() == [0, 1]
    model = ja.train(ja.load_dataset("mnist5k"), (6, 5), 1, epochs=1)[0]
    alone = ja.study.linear_redundancy(model, ja.load_dataset("mnist5k"), neurons_per_step=5)
    np.testing.assert_array_equal(table["accuracy"].sel(network=1), alone["accuracy"][0])
