"""Quantizers by their settings, in studies and sensitivity sweeps, against codes made by NumPy."""

import csv
import dataclasses
import itertools
import json
import warnings

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import logits64, raises_input_error, scores_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from networks import cnn_chain, in_evaluation
from scipy import special, stats
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate.figures import draw_sensitivity
from jaxablate.study import _redundancy
from jaxablate.uncertainty import BiasWarning

EDGES = {  # from one neuron's activations to the edges between its codes
    "mean": lambda h: [h.mean()],
    "0.25": lambda h: [0.25],
    "quantile:4": lambda h: np.sort(h)[np.arange(1, 4) * len(h) // 4],
    "uniform:8:0:1": lambda h: np.arange(1, 8) / 8,
    "levels:0.2:0.4:0.9": lambda h: [0.2, 0.4, 0.9],
}


@pytest.fixture(scope="module")
def validation(small_model, mnist5k):
    """Activations [example, neuron] and labels."""
    layers = ja.record_activations(small_model, mnist5k.validation.images)
    return np.concatenate([np.asarray(layer) for layer in layers], axis=1), np.asarray(mnist5k.validation.labels)


def counts_by_numpy(setting: str, activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    codes = [np.digitize(h, np.asarray(EDGES[setting](h), np.float32)) for h in activations.T]
    counts = np.zeros((len(codes), 10, max(map(np.max, codes)) + 1), int)
    for neuron, of_neuron in enumerate(codes):
        np.add.at(counts[neuron], (labels, of_neuron), 1)
    return counts


@pytest.mark.parametrize("setting", EDGES)
def test_scores_under_every_setting(setting, small_model, mnist5k, validation):
    scores = ja.study.score_neurons(small_model, mnist5k, quantizer=setting)["scores"]
    for name, values in scores_of(counts_by_numpy(setting, *validation)).items():
        np.testing.assert_allclose(scores.sel(score=name), values, atol=1e-6)


def test_the_positive_bit_and_numbers():
    activations = jnp.array([[-1.0], [0.0], [0.5], [2.0]])
    get = ja.quantizers.get_quantizer
    assert get("positive").fit(activations)(activations).ravel().tolist() == [0, 0, 1, 1]
    assert get(0.5).fit(activations)(activations).ravel().tolist() == [0, 0, 1, 1]
    assert get("-1e0").fit(activations)(activations).ravel().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "setting", ["median", "quantile", "quantile:2.5", "uniform:4", "mean:2", "levels", "levels:a", "0.5:1", "", "True"]
)
def test_unknown_settings(setting):
    with raises_input_error(f"quantizer: unknown '{setting}'; choose mean, positive, quantile:BINS"):
        ja.StudyConfig(quantizer=setting)


def test_numbers_of_numpy_are_settings_too():
    """The results keep the configuration as JSON, which knows Python's numbers only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        config = ja.StudyConfig(quantizer=np.float32(0.25), steps=np.int64(7))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["quantizer"] == 0.25
    assert (config.steps, type(config.steps)) == (7, int)


def test_settings_that_a_quantizer_refuses():
    for setting, message in {
        "quantile:1": "bins: expected at least 2, got 1",
        "uniform:4:1:0": "range: expected low < high, got 1.0 and 0.0",
        "levels:2:1": "edges: expected strictly increasing float32 numbers",
        "nan": "quantizer: expected a finite threshold, got nan",
    }.items():
        with raises_input_error(message):
            ja.StudyConfig(quantizer=setting)


def test_specific_information_of_every_class(validation):
    activations, labels = validation
    counts = counts_by_numpy("quantile:4", activations, labels)
    information = np.asarray(ja.metrics.specific_information(counts.astype(np.int32)))
    of_class = counts / counts.sum(axis=2, keepdims=True)
    code = counts.sum(axis=1, keepdims=True) / len(labels)
    expected = stats.entropy(of_class, np.broadcast_to(code, of_class.shape), axis=2)
    np.testing.assert_allclose(information, expected, atol=1e-6)
    share = np.bincount(labels, minlength=10) / len(labels)
    np.testing.assert_allclose(information @ share, ja.mutual_information(counts.astype(np.int32)), atol=1e-6)
    np.testing.assert_array_equal(information.max(axis=1), ja.kl_selectivity(counts.astype(np.int32)))


def test_scores_by_further_names(small_model, mnist5k, validation):
    names = ("specific_information_3", "entropy_miller_madow", "mutual_information_miller_madow")
    scores = ja.study.score_neurons(small_model, mnist5k, scores=names, quantizer="quantile:4")["scores"].values
    counts = counts_by_numpy("quantile:4", *validation)
    given = counts[:, 3] / counts[:, 3].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores[0], stats.entropy(given.T, counts.sum(axis=1).T), atol=1e-6)
    plugin, n = scores_of(counts), len(validation[1])
    codes, pairs = (counts.sum(axis=1) > 0).sum(axis=1), (counts > 0).sum(axis=(1, 2))
    np.testing.assert_allclose(scores[1], plugin["entropy"] + (codes - 1) / (2 * n), atol=1e-6)
    bias = (pairs - codes - 10 + 1) / (2 * n)
    np.testing.assert_allclose(scores[2], plugin["mutual_information"] - bias, atol=1e-6)
    with raises_input_error("score 'specific_information_10': expected a class in 0..9, got 10"):
        ja.study.score_neurons(small_model, mnist5k, scores="specific_information_10")
    for name in ("specific_information", "specific_information_x", "entropy_"):
        with raises_input_error(f"score: unknown '{name}'; choose one of entropy.* specific_information_CLASS"):
            ja.StudyConfig(scores=(name,))


@pytest.mark.slow
def test_a_study_of_many_codes(small_model, mnist5k, validation):
    config = ja.StudyConfig(
        dataset="mnist5k", networks=(), quantizer="quantile:4", scores=("mutual_information", "conditional_entropy"),
        steps=4, num_random_orders=1,
    )  # fmt: skip
    node = ja.run_study(config, {"mine": small_model})["mine"].to_dataset()
    counts = counts_by_numpy("quantile:4", *validation)
    np.testing.assert_array_equal(node["joint_counts"].isel(seed=0), counts)
    expected = scores_of(counts)
    scores = node["scores"].isel(seed=0)
    np.testing.assert_allclose(scores.sel(score="mutual_information"), expected["mutual_information"], atol=1e-6)
    rest = np.subtract(expected["entropy"], expected["mutual_information"])
    np.testing.assert_allclose(scores.sel(score="conditional_entropy"), rest, atol=1e-6)
    order = node["ablated"].sel(scope="layer1", ordering="conditional_entropy_low").isel(seed=0)
    assert order.values.tolist() == np.argsort(scores.values[1, :10], kind="stable")[:4].tolist()


SETTINGS = ("activation", "quantile:4", "uniform:8:0:1")
METRICS = ("entropy", "mutual_information", "taylor")


@pytest.fixture(scope="module")
def models(small_model, mnist5k):
    return [small_model, ja.train(mnist5k, (10, 8, 9), epochs=2, seed=1)[0]]


@pytest.fixture(scope="module")
def sensitivity(models, mnist5k):
    calls = []
    sensitivity = ja.study.quantizer_sensitivity(
        models, mnist5k, SETTINGS, scores=METRICS, steps=5, on_progress=lambda *call: calls.append(call)
    )
    assert calls[0] == ("quantizers", 0, 8, "network 1 of 2")
    assert calls[-1] == ("quantizers", 8, 8, "")
    return sensitivity


@pytest.mark.slow
def test_sensitivity_equals_a_study_for_each_quantizer(sensitivity, models):
    assert sensitivity["num_codes"].values.tolist() == [2, 4, 8]
    options = {"networks": (), "scores": METRICS, "steps": 5, "num_random_orders": 1, "seeds": (0, 1)}
    nodes = {}
    for setting in SETTINGS:
        config = ja.StudyConfig(dataset="mnist5k", quantizer=setting, **options)
        nodes[setting] = ja.run_study(config, {"mine": models})["mine"].to_dataset()
    for setting, metric, direction in itertools.product(SETTINGS, METRICS, ("low", "high")):
        area = ja.results.auc(nodes[setting]).sel(ordering=f"{metric}_{direction}", fill="mean")
        auc = sensitivity["auc"].sel(quantizer=setting, score=metric, direction=direction)
        if (setting, metric) == ("quantile:4", "entropy"):  # 500 examples in 4 equal parts: nothing to rank by
            assert np.isnan(auc).all()
            continue
        np.testing.assert_allclose(auc.transpose("network", "scope"), area.transpose("seed", "scope"), atol=1e-9)
    for setting, metric, network in itertools.product(SETTINGS, METRICS, (0, 1)):
        scores = [
            nodes[quantizer]["scores"].isel(seed=network).sel(score=metric).values
            for quantizer in (SETTINGS[0], setting)
        ]
        for scope, part in {"layer2": slice(10, 18), "network": slice(None)}.items():
            first, second = (scores_[part] for scores_ in scores)
            auc = sensitivity["rank_correlation"].sel(scope=scope, score=metric, quantizer=setting, network=network)
            if np.ptp(second) == 0:
                assert np.isnan(auc)
            else:
                assert float(auc) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-6)
    assert (sensitivity["rank_correlation"].sel(score="taylor") > 1 - 1e-9).all()
    assert sensitivity["rank_correlation"].sel(score="mutual_information", quantizer="quantile:4").min() < 0.9


def test_ranks_of_equal_scores_are_undefined(small_model, mnist5k):
    sensitivity = ja.study.quantizer_sensitivity(
        small_model, mnist5k, ("activation", "-1", "quantile:4"), scores="entropy", steps=2
    )
    assert np.isnan(sensitivity["rank_correlation"].sel(quantizer="-1")).all()
    assert np.isnan(sensitivity["auc"].sel(quantizer="-1")).all()
    assert np.isfinite(sensitivity["auc"].sel(quantizer="activation")).all()
    assert sensitivity.sizes["network"] == 1
    draw_sensitivity(sensitivity)


def test_ranks_against_equal_scores_are_undefined_too(small_model, mnist5k):
    sensitivity = ja.study.quantizer_sensitivity(small_model, mnist5k, ("-1", "activation"), scores="entropy", steps=2)
    assert np.isnan(sensitivity["rank_correlation"]).all()


@pytest.mark.slow
def test_the_fill_is_the_one_asked_for(small_model, mnist5k):
    config = ja.StudyConfig(dataset="mnist5k", networks=(), scores=("entropy",), steps=5, num_random_orders=1)
    area = ja.results.auc(ja.run_study(config, {"mine": small_model})["mine"].to_dataset()).isel(seed=0)
    for fill in ("zero", "mean"):
        sensitivity = ja.study.quantizer_sensitivity(
            small_model, mnist5k, ("activation", "mean"), scores="entropy", fill=fill, steps=5
        )["auc"].sel(quantizer="activation", direction="low", score="entropy")
        np.testing.assert_allclose(sensitivity.isel(network=0), area.sel(ordering="entropy_low", fill=fill), atol=1e-9)
    by_fill = [
        ja.study.redundancy_test(small_model, mnist5k, fill=fill, num_permutations=1)["correlation"].values
        for fill in ("zero", "mean")
    ]
    assert np.abs(np.subtract(*by_fill)).max() > 0.01


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A dataset whose images say nothing of their labels."""
    path = tmp_path_factory.mktemp("noise") / "noise.npz"
    random = np.random.default_rng(0)
    arrays = {
        f"{split}_{part}": values
        for split in ("train", "validation", "test")
        for part, values in {
            "images": random.random((120, 28, 28), np.float32),
            "labels": np.arange(120, dtype=np.int32) % 10,
        }.items()
    }
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
def test_a_study_warns_of_bias(small_model, noise):
    config = ja.StudyConfig(
        dataset=noise, networks=(), quantizer="quantile:8", scores=("mutual_information",), steps=1, num_random_orders=1
    )
    with pytest.warns(BiasWarning, match="of 27 neurons: expected scores above the bias"):
        ja.run_study(config, {"mine": small_model})


@pytest.mark.slow
def test_the_figure_draws_the_numbers(sensitivity):
    figure = draw_sensitivity(sensitivity, title="a title")
    upper, lower = figure.axes[1], figure.axes[5]
    assert upper.get_title(loc="left") == "layer 2"
    gap = sensitivity["auc"].sel(direction="low") - sensitivity["auc"].sel(direction="high")
    for axes, values in ((upper, sensitivity["rank_correlation"]), (lower, gap)):
        drawn = [bars.lines[0].get_ydata(orig=False) for bars in axes.containers]
        expected = values.sel(scope="layer2").mean("network")
        for i, metric in enumerate(METRICS):
            for j in range(3):  # a star, quantile, uniform
                np.testing.assert_allclose(drawn[3 * i + j], [float(expected.sel(score=metric)[j])])
    FigureCanvasAgg(figure).draw()
    labels = [axes.yaxis.label.get_window_extent() for axes in figure.axes if axes.get_ylabel()]
    assert min(label.x0 for label in labels) > 0  # no label is cut off, minus signs included
    texts = [text.get_text() for text in figure.texts]
    assert "a title" in texts
    assert any("first quantizer (stars): activation; 5 neurons ablated, fill: mean; 2 networks" in t for t in texts)


def judged(
    noise: np.ndarray, *means: float, score: str = "mutual_information", names: tuple[str, ...] = ()
) -> ja.study.QuantizerComparison:
    """Judge differences of AUC: the noise [network, 1 or quantizer] plus a mean for each quantizer."""
    differences = noise + np.array(means)
    auc = np.stack([80 + differences, np.full(differences.shape, 80.0)], axis=-1)[:, None, None]
    dims = ("network", "scope", "score", "quantizer", "direction")
    names = names or ("activation", *(f"uniform:{j}:0:1" for j in range(1, len(means))))
    coords = {"scope": ["layer1"], "score": [score], "quantizer": list(names), "direction": ["low", "high"]}
    (comparison,) = ja.study.compare_quantizers(xr.Dataset({"auc": (dims, auc)}, coords=coords))
    return comparison


def test_quantizers_are_compared_by_corrected_tests():
    noise = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 0.2, -0.2])[:, None]
    comparison = judged(noise, 3, 2, -4)
    assert (comparison.scope, comparison.score, comparison.verdict) == ("layer1", "mutual_information", "reversed")
    assert comparison.reversed_by == ("uniform:2:0:1",)
    np.testing.assert_allclose(comparison.difference.mean, [3, 2, -4])
    p = [stats.ttest_1samp(noise[:, 0] + mean, 0).pvalue for mean in (3, 2, -4)]
    np.testing.assert_allclose(comparison.p_holm, [p[0], p[1], 2 * p[2]])
    assert judged(noise, -3, -2, -4).verdict == "kept"
    assert judged(noise, 3, 0.1, 4).verdict == "undecided"
    assert judged(noise, 0.1, 2, -4).verdict == "no direction"
    assert judged(noise[:4], 3, 2, -4).verdict == "not judged"
    weak = -2.8 * noise.std(ddof=1) / 7**0.5  # p = 0.03: significant alone, but not as one of three
    assert judged(noise, 3, weak).verdict == "reversed"
    assert judged(noise, 3, weak, 0, 0).verdict == "undecided"


def test_equally_frequent_codes_have_no_entropy_to_compare():
    noise, names = np.linspace(-1, 1, 6)[:, None], ("activation", "quantile:4", "uniform:4:0:1")
    assert judged(noise, 3, -3, 3, score="entropy", names=names).verdict == "kept"
    assert judged(noise, 3, -3, 3, names=names).verdict == "reversed"
    assert judged(noise, 3, -3, score="entropy", names=names[:2]).verdict == "not judged"


@pytest.mark.slow
def test_false_reversals_are_rare():
    """Nine quantizers without any direction: one is reversed by chance in 2.5% of the sweeps, uncorrected in 20%."""
    random = np.random.default_rng(0)
    verdicts, uncorrected = [], 0
    for _ in range(1000):
        noise = random.normal(size=(10, 10))
        verdicts.append(judged(noise, 10, *[0] * 9).verdict)
        others = noise[:, 1:]
        uncorrected += (stats.ttest_1samp(others, 0).pvalue[others.mean(axis=0) < 0] < 0.05).any()
    assert verdicts.count("reversed") <= 45  # 25 expected; four standard deviations
    assert uncorrected > 150


def test_sensitivity_says_what_is_wrong(models, mnist5k):
    sweep = ja.study.quantizer_sensitivity
    with raises_input_error("quantizers: activation cannot be compared; name two or more, all different"):
        sweep(models, mnist5k, ("activation",))
    with raises_input_error("quantizers: mean, mean cannot be compared; name two or more, all different"):
        sweep(models, mnist5k, ("mean", "mean"))
    with raises_input_error("quantizers: mean cannot be compared; name two or more, all different"):
        sweep(models, mnist5k, "mean")
    with raises_input_error("scores: expected at least one, got none"):
        sweep(models, mnist5k, scores=())
    with raises_input_error("scores: expected different values, got entropy, entropy"):
        sweep(models, mnist5k, scores=("entropy", "entropy"))
    with raises_input_error("fill: unknown 'resample'; choose one of zero, mean, median, class_mean"):
        sweep(models, mnist5k, fill="resample")
    with raises_input_error("scores: expected at least one, got none"):
        ja.study.score_neurons(models[0], mnist5k, scores=())
    with raises_input_error("steps: 9 is out of range; choose 1 to 8, the number of neurons of the smallest layer"):
        sweep(models, mnist5k, steps=9)
    with raises_input_error("models: the sequence is empty; pass at least one network"):
        sweep([], mnist5k)
    with raises_input_error("score: unknown 'size'"):
        sweep(models, mnist5k, scores=("size",))
    cnn = in_evaluation(cnn_chain())
    with raises_input_error("models: the architectures differ; pass networks of one architecture"):
        sweep([models[0], cnn], mnist5k)
    with raises_input_error(
        "quantizer: 'activation' needs an MLP, .* activation function, not Sequential; choose 'mean'"
    ):
        sweep(cnn, mnist5k)


def test_the_command_line_tells_of_bias_in_a_sentence(small_model, noise, tmp_path):
    ja.save_model(small_model, tmp_path / "net.safetensors")
    asked = ["score", tmp_path / "net.safetensors", "--dataset", noise, "--quantizer", "quantile:8"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as for a user
        result = CliRunner().invoke(jaxablate.cli.app, [*map(str, asked), "--out", str(tmp_path / "scores.csv")])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "note: mutual information of " in output
    assert "expected scores above the bias of the plug-in estimate, got lower ones" in output
    with open(tmp_path / "scores.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * 27


@pytest.mark.slow
def test_redundancy_equals_its_parts(models, mnist5k):
    calls = []
    tests = ja.study.redundancy_test(
        models,
        mnist5k,
        quantizer="quantile:4",
        fill="zero",
        num_permutations=99,
        on_progress=lambda *call: calls.append(call),
    )
    assert tests.attrs["quantizer"] == "quantile:4"
    assert [call[:3] for call in calls] == [("pairs", done, 6) for done in range(7)]
    model, images, labels = models[1], np.asarray(mnist5k.test.images), np.asarray(mnist5k.test.labels)
    layers = ja.record_activations(model, mnist5k.validation.images)
    codes = np.asarray(ja.quantizers.quantile(4).fit(layers[1])(layers[1]))
    pairs = ja.interactions.pair_information(codes, mnist5k.validation.labels, num_codes=4, num_classes=10)

    def logits_without(*neurons) -> np.ndarray:
        keep = np.ones(27)
        keep[[10 + neuron for neuron in neurons]] = 0
        return logits64(model, images, keep, np.zeros(27))

    def loss(*neurons) -> float:
        logits = logits_without(*neurons)
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))

    first, second = np.triu_indices(8, k=1)
    alone, intact = [loss(i) for i in range(8)], loss()
    together = [loss(i, j) - alone[i] - alone[j] + intact for i, j in zip(first, second, strict=True)]
    p = special.softmax(logits_without(), axis=1)
    changes = [logits_without(i) - logits_without() for i in range(8)]
    curvature = [
        np.mean([d @ (np.diag(q) - np.outer(q, q)) @ e for d, e, q in zip(changes[i], changes[j], p, strict=True)])
        for i, j in zip(first, second, strict=True)
    ]
    here = tests.sel(network=1, scope="layer2")
    of_curvature = stats.spearmanr(curvature, together).statistic
    assert float(here["curvature_correlation"]) == pytest.approx(of_curvature, abs=1e-3)
    for name in ("redundancy", "synergy", "co_information"):
        quantity = np.asarray(getattr(pairs, name))[first, second]
        expected, shared = (stats.spearmanr(quantity, values).statistic for values in (together, curvature))
        partial = (expected - shared * of_curvature) / np.sqrt((1 - shared**2) * (1 - of_curvature**2))
        assert float(here["correlation"].sel(quantity=name)) == pytest.approx(expected, abs=1e-3)
        assert float(here["partial_correlation"].sel(quantity=name)) == pytest.approx(partial, abs=5e-3)
    for name in ("p_value", "partial_p_value"):
        assert ((tests[name] >= 0.01) & (tests[name] <= 1)).all()


def test_neurons_of_constant_code_are_left_out(small_model, mnist5k):
    model = nnx.clone(small_model)
    model.stages[0].linear.bias[...] = model.stages[0].linear.bias[...].at[:3].set(-99.0)
    codes = np.asarray(ja.record_activations(model, mnist5k.validation.images)[0]) >= 0.5
    changing = [neuron for neuron in range(3, 10) if 0 < codes[:, neuron].sum() < len(codes)]
    images, labels = mnist5k.test.images, mnist5k.test.labels
    fill = ja.compute_fill(model, "mean", mnist5k.validation.images)
    loss = np.asarray(
        ja.ablation.pair_ablation(model, images, labels, fill, site="layer1", outcomes="loss"), np.float64
    )
    pairs = ja.interactions.pair_information(
        codes.astype(np.int32), mnist5k.validation.labels, num_codes=2, num_classes=10
    )
    compared = list(itertools.combinations(changing, 2))
    together = [loss[i, j] - loss[i, i] - loss[j, j] for i, j in compared]  # but for a constant
    expected = stats.spearmanr([pairs.co_information[pair] for pair in compared], together).statistic
    tests = [
        ja.study.redundancy_test(model, mnist5k, only_changing=only, num_permutations=1).sel(scope="layer1")
        for only in (True, False)
    ]
    correlation, of_all = (float(test["correlation"].sel(quantity="co_information").item()) for test in tests)
    assert correlation == pytest.approx(expected, abs=1e-3)
    assert abs(correlation - of_all) > 0.01
    model.stages[0].linear.bias[...] = model.stages[0].linear.bias[...].at[:8].set(-99.0)
    with raises_input_error("only_changing: only 2 neurons of layer1 change their code, and 3 are needed"):
        ja.study.redundancy_test(model, mnist5k, only_changing=True)


@pytest.mark.parametrize("kind", ["mean", "class_mean"])
def test_curvature_of_the_last_layer_by_hand(kind, small_model, mnist5k, monkeypatch):
    """Its logits are linear in the activations: ablating neuron i adds (fill - h_i) times its weights."""
    monkeypatch.setattr(_redundancy, "BATCH_SIZE", 300)  # the last of four batches is smaller
    examples, validation = mnist5k.test, mnist5k.validation
    fill = ja.compute_fill(small_model, kind, validation.images, validation.labels)
    values = np.asarray(fill.tables[2])[examples.labels] if kind == "class_mean" else np.asarray(fill)[18:]
    outputs = np.asarray(ja.record_activations(small_model, examples.images)[2], np.float64)
    weights = np.asarray(small_model.stages[-1].weights[0], np.float64)
    changes = (values - outputs).T[:, :, None] * weights[:, None]
    p = special.softmax(logits64(small_model, examples.images), axis=1)
    expected = np.einsum("iec,ec,jec->ij", changes, p, changes) - np.einsum("iec,ec,jed,ed->ij", changes, p, changes, p)
    curvature = _redundancy._site_curvature(small_model, examples, fill, 2)
    np.testing.assert_allclose(curvature, expected / len(examples), rtol=1e-4, atol=1e-8)


def test_redundancy_says_what_is_wrong(models, mnist5k):
    with raises_input_error("models: the sequence is empty; pass at least one network"):
        ja.study.redundancy_test([], mnist5k)
    with raises_input_error("fill: unknown 'resample'; choose one of zero, mean, median, class_mean"):
        ja.study.redundancy_test(models, mnist5k, fill="resample")
    with raises_input_error("permutations: expected at least 1, got 0"):
        ja.study.redundancy_test(models, mnist5k, num_permutations=0)
    with raises_input_error("models: the architectures differ; pass networks of one architecture"):
        ja.study.redundancy_test([models[0], in_evaluation(cnn_chain())], mnist5k)
    with raises_input_error("first: expected 3 neurons or more, got 2"):
        ja.study.redundancy_test(ja.train(mnist5k, (2,), epochs=1)[0], mnist5k)
