"""Curves of studies: steps of several neurons, accuracy within classes, and keeping instead of ablating."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import raises_input_error

import jaxablate as ja
from jaxablate.charts import class_chart, keep_chart
from jaxablate.report import write_report

pytestmark = pytest.mark.slow

CONFIG = ja.StudyConfig(
    networks=(), protocols=("paper", "published"), seeds=(0, 1), num_random_orders=2, steps="all", by_class=True
)


@pytest.fixture(scope="module")
def models(mnist5k):
    return {"net": [model for model, _ in ja.training.train_many(mnist5k, (12, 9), CONFIG.seeds, epochs=3)]}


@pytest.fixture(scope="module")
def data(mnist5k):
    """No test example of class 9."""
    chosen = np.flatnonzero(mnist5k.test.labels < 9)[:300]
    test = dataclasses.replace(mnist5k.test, images=mnist5k.test.images[chosen], labels=mnist5k.test.labels[chosen])
    return dataclasses.replace(mnist5k, test=test)


@pytest.fixture(scope="module")
def one_by_one(models, data):
    return ja.run_study(CONFIG, models, data=data)


@pytest.fixture(scope="module")
def in_parts(models, data):
    return ja.run_study(dataclasses.replace(CONFIG, steps="16%"), models, data=data)


NUMBERS = {"layer1": [0, 2, 4, 6, 8, 10, 12], "layer2": [0, 1, 3, 4, 6, 7, 9], "network": [0, 3, 7, 10, 13, 17, 20, 21]}


def test_a_percentage_takes_its_points_from_the_whole_curve(one_by_one, in_parts):
    for path in ("net", "published/net"):
        whole, parts = one_by_one[path].to_dataset(), in_parts[path].to_dataset()
        for scope, numbers in NUMBERS.items():
            curves = parts.sel(scope=scope).isel(step=slice(len(numbers)))
            assert curves["num_ablated"].values.tolist() == numbers
            for name in ("correct", "accuracy", "class_accuracy"):
                np.testing.assert_array_equal(curves[name], whole[name].sel(scope=scope, step=numbers))
        assert (parts["correct"].sel(scope="layer1")[..., 7:] == -1).all()
        assert parts["class_accuracy"].sel(scope="layer1")[..., 7:, :].isnull().all()
        np.testing.assert_array_equal(parts["ablated"], whole["ablated"])
    assert np.ptp(in_parts["net"]["correct"].sel(scope="network").values) > 20


@pytest.mark.parametrize(
    ("steps", "size", "numbers"),
    [
        ("0.5%", 1000, range(0, 1001, 5)),
        ("0.5%", 200, range(201)),
        ("0.5%", 40, range(41)),
        ("30%", 10, (0, 3, 6, 9, 10)),
        ("100%", 7, (0, 7)),
        ("40%", 3, (0, 1, 2, 3)),
        (3, 10, (0, 1, 2, 3)),
        ("all", 4, range(5)),
    ],
)
def test_numbers_of_ablated_neurons(steps, size, numbers):
    assert ja.StudyConfig(networks=(), steps=steps).ablated_numbers(size).tolist() == list(numbers)


def test_accuracy_within_classes(one_by_one, data, models):
    network = one_by_one["net"].to_dataset()
    totals = np.bincount(data.test.labels, minlength=10)
    assert totals[9] == 0
    accuracy = network["class_accuracy"]
    assert accuracy.isel({"class": 9}).isnull().all()
    counted = (accuracy * totals).sum("class").where(network["correct"] >= 0)
    np.testing.assert_allclose(counted, network["correct"].where(network["correct"] >= 0), atol=1e-3)
    place = {"seed": 1, "scope": "network", "ordering": "entropy_low", "fill": "mean"}
    neurons = network["ablated"].sel(seed=1, scope="network", ordering="entropy_low").values[:8]
    keep = ~np.isin(np.arange(21), neurons)
    confusion = ja.evaluate_masks(
        models["net"][1],
        keep[None],
        data.test.images,
        data.test.labels,
        network["mean_activation"].sel(seed=1).values.astype(np.float32),
        outcomes="confusion",
    )[0]
    expected = np.diag(confusion)[:9] / totals[:9]
    np.testing.assert_allclose(accuracy.sel(place).sel(step=8)[:9], expected, atol=1e-6)
    assert (
        "class_accuracy"
        not in ja.run_study(
            dataclasses.replace(CONFIG, by_class=False, steps=2, protocols=("paper",)), models, data=data
        )["net"]
    )


def test_kept_neurons(one_by_one, in_parts, data, models):
    network = one_by_one["net"].to_dataset()
    kept = ja.results.keep_only(network)
    assert kept["num_kept"].sel(scope="layer2").values.tolist() == [*range(10), *[-1] * 12]
    scores = network["scores"].sel(seed=0, score="kl_selectivity").values
    fill = network["mean_activation"].sel(seed=0).values.astype(np.float32)
    for number in (0, 1, 5, 12):
        keep = np.ones(21, bool)
        keep[:12] = False
        keep[np.argsort(-scores[:12], kind="stable")[:number]] = True
        correct = ja.evaluate_masks(models["net"][0], keep[None], data.test.images, data.test.labels, fill)[0]
        place = {"seed": 0, "scope": "layer1", "ordering": "kl_selectivity_high", "fill": "mean"}
        assert kept["accuracy"].sel(place).sel(step=number) * 300 == pytest.approx(int(correct))
    parts = ja.results.keep_only(in_parts["net"].to_dataset())
    assert parts["num_kept"].sel(scope="network").values.tolist() == [0, 1, 4, 8, 11, 14, 18, 21]
    summary = ja.results.curve(parts, scope="network", ranking="entropy", direction="high", fill="mean")
    assert summary.step.tolist() == [0, 1, 4, 8, 11, 14, 18, 21]
    np.testing.assert_array_equal(
        summary.mean,
        ja.results.curve(
            in_parts["net"].to_dataset(), scope="network", ranking="entropy", direction="low", fill="mean"
        ).mean[::-1],
    )
    with raises_input_error(r"network: keep_only needs curves to the last neuron of every scope, \[12, 9, 21\], got"):
        ja.results.keep_only(network.isel(step=slice(0, 9)))


def test_tables_and_summaries_name_the_ablated_neurons(in_parts):
    table = ja.results.tidy(in_parts["net"])
    assert sorted(table[table.scope == "network"]["step"].unique()) == NUMBERS["network"]
    layer2 = table[(table.scope == "layer2") & (table.ranking != "random")]
    # The first step in layer 2 ablates one neuron, the others one or two.
    assert set(layer2[layer2["ablated"].notna()]["step"]) == {1}
    assert table[table.scope == "layer1"]["ablated"].isna().all()
    rows = ja.results.summarize(in_parts, steps=(0, 5, 80))
    assert {row.scope: tuple(row.accuracy) for row in rows} == {
        "layer1": (0, 4),
        "layer2": (0, 4),
        "network": (0, 3, 21),
    }


def test_comparisons_count_ablated_neurons(in_parts, one_by_one, models, data):
    reference = in_parts["net"].to_dataset()
    below = ja.compare(in_parts["net"], in_parts["published/net"], by="first_step_below:40")
    first = {}
    for path in ("net", "published/net"):
        curves = in_parts[path]["accuracy"].sel(scope="network", ordering="entropy_low", fill="zero").values
        steps = [np.flatnonzero(100 * (curve[0] - curve) >= 40 - 1e-9) for curve in curves]
        first[path] = [NUMBERS["network"][hits[0]] if len(hits) else 22 for hits in steps]
    place = {"scope": "network", "ordering": "entropy_low", "fill": "zero"}
    expected = np.mean(first["net"]) - np.mean(first["published/net"])
    assert below["difference"].sel(place) == pytest.approx(expected)
    assert max(first["net"]) > len(NUMBERS["network"])  # a number of neurons, not of a step
    normalized = ja.compare(in_parts["net"], in_parts["published/net"], by="normalized_auc")
    assert np.isfinite(normalized["difference"].sel(scope="layer1", fill="zero")).all()
    with raises_input_error("second: its steps are 'all', and the first has '16%'; run both studies with the same"):
        ja.compare(in_parts, one_by_one)
    assert reference.sizes["step"] == 8


def test_charts_and_report(in_parts, one_by_one, tmp_path):
    network = in_parts["net"].to_dataset()
    chart = keep_chart("net", network, "network")
    assert chart.x.tolist() == [0, 1, 4, 8, 11, 14, 18, 21]
    assert chart.x_label == "Kept neurons"
    assert [line.name for line in chart.lines[1:]] == ["Entropy", "Mutual information", "KL selectivity"]
    chart = class_chart("net", network, "layer2")
    assert chart.x.tolist() == NUMBERS["layer2"]
    named = [int(line.name.removeprefix("class ")) for line in chart.lines[1:]]
    curves = network["class_accuracy"].sel(scope="layer2", fill="mean", ordering="mutual_information_high")[:, :7]
    mean = curves.mean("seed").transpose("class", "step").values.astype(float)
    losses = mean[:, 0] - mean.mean(axis=1)
    assert named == sorted(np.argsort(-losses[:9], kind="stable")[:6].tolist())
    np.testing.assert_allclose(chart.lines[1].values, mean[named[0]], atol=1e-6)
    page = write_report(one_by_one, tmp_path / "report.html").read_text()
    questions = ("How few neurons suffice?", "Does ablation hit all classes alike?")
    assert all(question in page for question in questions)
    settings = json.loads(one_by_one.attrs["config"]) | {"steps": 21}
    plain = one_by_one.copy(deep=True)
    plain.attrs["config"] = json.dumps(settings)
    for path in ("net", "published/net"):
        plain[path] = plain[path].to_dataset().drop_vars("class_accuracy")
    page = write_report(plain, tmp_path / "plain.html").read_text()
    assert not any(question in page for question in questions)


def test_saved_and_loaded(in_parts, tmp_path):
    path = tmp_path / "results.nc"
    ja.results.save_results(in_parts, path)
    loaded = ja.results.load_results(path)
    assert loaded["net"].to_dataset().equals(in_parts["net"].to_dataset())
    assert "num_ablated" in loaded["net"].coords
