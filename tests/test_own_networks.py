"""A user's networks: in a study, and from files on the command line."""

import csv

import jax
import numpy as np
import pytest
from helpers import raises_input_error
from networks import KINDS, masked_logits
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli


@pytest.fixture(scope="module")
def study():
    config = ja.StudyConfig(
        dataset="mnist5k", networks=(), seeds=(4, 5), scores=("entropy", "mutual_information"), quantizer="mean",
        num_random_orders=2, steps=3, extra_fills=("median", "resample"),
    )  # fmt: skip
    models = [KINDS["cnn_chain"](seed) for seed in (0, 1)]
    return config, models, ja.run_study(config, {"cnn": models})


@pytest.mark.slow
def test_a_study_of_own_networks(study, mnist5k):
    """Every number of a node by the functions that users call, for the second of two seeds."""
    _, models, results = study
    node = results["cnn"].to_dataset()
    assert node["scope"].values.tolist() == ["conv1", "conv2", "dense", "network"]
    assert node["fill"].values.tolist() == ["zero", "mean", "median", "resample"]
    assert "train_loss" not in node
    assert node["layer"].values.tolist() == [1] * 5 + [2] * 4 + [3] * 6
    model, validation, test = models[1], mnist5k.validation, mnist5k.test
    activations = np.concatenate(ja.record_activations(model, validation.images), axis=1)
    codes = (activations >= activations.mean(axis=0)).astype(int)
    counts = ja.joint_histogram(codes, validation.labels, num_codes=2, num_classes=10)
    scores = np.asarray(ja.mutual_information(counts))
    np.testing.assert_allclose(node["scores"].sel(seed=5, score="mutual_information"), scores, atol=1e-6)
    order = np.asarray(ja.ablation_order(scores[5:9], direction="high")) + 5
    curves = node["correct"].sel(seed=5, scope="conv2", ordering="mutual_information_high")
    for fill in ("zero", "mean", "median", "resample"):
        values = ja.compute_fill(model, fill, validation.images, key=jax.random.key(5))
        counts = ja.cumulative_ablation(model, order[None], test.images, test.labels, values, steps=3)
        np.testing.assert_array_equal(curves.sel(fill=fill), counts[0])
    mean = ja.mean_activations(model, validation.images)
    np.testing.assert_array_equal(
        node["single_correct"].sel(seed=5), ja.single_ablation(model, test.images, test.labels, mean)
    )
    keep = np.ones(15, bool)
    keep[order[:3]] = False
    logits = masked_logits(model, "cnn_chain", keep, np.zeros(15, np.float32), test.images)
    assert int(curves.sel(fill="zero")[3]) == int((logits.argmax(axis=1) == test.labels).sum())


def test_results_of_own_networks_keep(study, tmp_path):
    ja.results.save_results(study[2], tmp_path / "results.nc")
    loaded = ja.results.load_results(tmp_path / "results.nc")
    assert loaded["cnn"].to_dataset().identical(study[2]["cnn"].to_dataset())
    scopes = {row.scope for row in ja.results.summarize(loaded, steps=(0, 3))}
    assert scopes == {"conv1", "conv2", "dense", "network"}
    ja.results.save_table(loaded["cnn"].to_dataset()[["accuracy"]], tmp_path / "curves.csv")
    with open(tmp_path / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 6 * 4 * 4
    assert {row["scope"] for row in rows} == scopes
    with raises_input_error("table .*curves.txt: unknown suffix; choose a name that ends in .csv or .nc"):
        ja.results.save_table(loaded["cnn"].to_dataset(), tmp_path / "curves.txt")


def test_bad_studies(study):
    config, models, _ = study
    with raises_input_error("models: expected 2 models for 'cnn', one for each of the seeds .4, 5., got 1"):
        ja.run_study(config, {"cnn": models[0]})
    for name in ("a/b", "a\\b", "..", ".", "", "c:", "a\0b", "a\nb", "\udcff", "n" * 101, 7):
        with raises_input_error("models: expected a name of up to 100 printable characters other than / .* :, got "):
            ja.run_study(config, {name: models})
    with raises_input_error("models: 'paper' is the name of a protocol; choose another name"):
        ja.run_study(config, {"paper": models})
    with raises_input_error("models: expected a mapping from names to models, such as .'mine': model., got list"):
        ja.run_study(config, models)
    with raises_input_error(
        "quantizer: 'activation' needs an MLP, which knows its activation function, not Sequential; choose"
    ):
        ja.run_study(ja.StudyConfig(dataset="mnist5k", networks=(), steps=2), {"mine": models[0]})
    with raises_input_error(
        "quantizer: 'activation' needs an MLP, which knows its activation function, not Sequential; choose"
    ):
        ja.study.score_neurons(models[0], ja.load_dataset("mnist5k"))
    with raises_input_error("cnn: expected networks of one architecture, got several"):
        ja.run_study(config, {"cnn": [models[0], KINDS["chain"]()]})
    with raises_input_error("steps: 5 is out of range; choose 1 to 4, the number of neurons of the smallest layer"):
        ja.run_study(ja.StudyConfig(dataset="mnist5k", networks=(), steps=5, quantizer="mean"), {"cnn": models[0]})
    with raises_input_error("quantizer: 'mean' needs the paper's protocol alone"):
        ja.StudyConfig(quantizer="mean", protocols=("paper", "published"))
    with raises_input_error("quantizer: unknown 'median'; choose mean, positive, quantile:BINS"):
        ja.StudyConfig(quantizer="median")
    with raises_input_error("extra_fills: unknown 'zero'; choose one of median, class_mean, resample"):
        ja.StudyConfig(extra_fills=("zero",))


def test_scores_without_a_study(small_model, mnist5k, small_config, small_results):
    scores = ja.study.score_neurons(small_model, mnist5k)
    trained_there = ja.train(mnist5k, (10, 8, 9), epochs=8)[0]
    np.testing.assert_allclose(scores["scores"], ja.study.score_neurons(trained_there, mnist5k)["scores"], atol=1e-6)
    of_study = small_results["3-layer-10-8-9"].to_dataset()["scores"].sel(seed=0)
    np.testing.assert_allclose(scores["scores"], of_study, atol=1e-5)
    assert scores["site"].values.tolist() == ["layer1"] * 10 + ["layer2"] * 8 + ["layer3"] * 9


@pytest.fixture(scope="module")
def files(small_model, mnist5k, tmp_path_factory):
    """Our own file, PyTorch's, and an archive of data."""
    folder = tmp_path_factory.mktemp("own")
    ja.save_model(small_model, folder / "own.safetensors")
    tensors = {}
    for i, stage in enumerate(small_model.stages):
        kernel, bias = (np.asarray(array) for array in stage.weights)
        tensors[f"{2 * i}.weight"], tensors[f"{2 * i}.bias"] = np.ascontiguousarray(kernel.T), bias
    save_file(tensors, folder / "torch.safetensors")
    arrays = {
        f"{split}_{part}": getattr(getattr(mnist5k, split), part)
        for split in ("train", "validation", "test")
        for part in ("images", "labels")
    }
    np.savez(folder / "data.npz", **arrays)
    return folder


def run(*arguments) -> str:
    result = CliRunner().invoke(jaxablate.cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["own", "torch"])
def test_score_from_a_file(files, name, small_model, mnist5k):
    options = ["--activation", "sigmoid"] if name == "torch" else []
    out = files / f"{name}.csv"
    printed = run("score", files / f"{name}.safetensors", "--dataset", files / "data.npz", "--out", out, *options)
    assert "layer2" in printed
    scores = ja.study.score_neurons(small_model, mnist5k)
    rows = rows_of(out)
    assert len(rows) == 3 * 27
    for row in rows:
        expected = scores["scores"].sel(score=row["score"], neuron=int(row["neuron"]))
        assert abs(float(row["scores"]) - float(expected)) < 1e-5
        first = {"layer1": 0, "layer2": 10, "layer3": 18}[row["site"]]
        assert int(row["neuron"]) == first + int(row["neuron_in_site"])


def test_ablate_from_a_file(files, small_model, mnist5k):
    out = files / "curves.csv"
    options = ["--score", "kl_selectivity", "--extra-fill", "median", "--random-orders", 2, "--no-cache", "--steps", 4]
    printed = run("ablate", files / "own.safetensors", "--dataset", files / "data.npz", "--out", out, *options)
    assert "KL low" in printed
    rows = [r for r in rows_of(out) if r["ordering"] == "kl_selectivity_low" and r["scope"] == "layer3"]
    scores = ja.study.score_neurons(small_model, mnist5k, scores=("kl_selectivity",))["scores"].values[0, 18:]
    order = np.asarray(ja.ablation_order(scores, direction="low")) + 18
    fill = ja.compute_fill(small_model, "median", mnist5k.validation.images)
    test = mnist5k.test.images, mnist5k.test.labels
    counts = ja.cumulative_ablation(small_model, order[None], *test, fill, steps=4)
    assert [int(r["correct"]) for r in rows if r["fill"] == "median"] == counts[0].tolist()
    whole = files / "curves.nc"
    run("ablate", files / "own.safetensors", "--dataset", files / "data.npz", "--out", whole, *options)
    assert ja.results.load_results(whole)["own"].to_dataset()["fill"].values.tolist() == ["zero", "mean", "median"]


def test_prune_from_a_file(files, small_model, mnist5k):
    out = files / "small.safetensors"
    data = ["--dataset", files / "data.npz"]
    printed = run("prune", files / "own.safetensors", *data, "--keep-fraction", 0.5, "--fine-tune", 1, "--out", out)
    saved = ja.load_model(out)
    assert saved.model.hidden == (5, 4, 4)
    assert saved.metadata["pruned_from"] == "own.safetensors"
    assert "new, epochs: 1" in printed
    comparison = ja.study.prune_by_score(small_model, mnist5k, keep_fraction=0.5)
    rows, small = comparison.rows, comparison.model
    scores = ja.study.score_neurons(small_model, mnist5k, scores=("mutual_information",))["scores"].values[0]
    keep = np.ones(27, bool)
    for start, stop, gone in ((0, 10, 5), (10, 18, 4), (18, 27, 5)):
        keep[np.argsort(scores[start:stop], kind="stable")[:gone] + start] = False
    mean = ja.mean_activations(small_model, mnist5k.validation.images)
    test = mnist5k.test.images, mnist5k.test.labels
    correct = ja.evaluate_masks(small_model, np.stack([np.ones(27, bool), keep]), *test, mean)
    assert [row.name for row in rows] == ["before", "masked", "pruned"]
    assert [round(row.accuracy * len(mnist5k.test)) for row in rows] == [*correct.tolist(), int(correct[1])]
    for row in rows:
        assert f"{100 * row.accuracy:.2f}" in printed
    assert small.hidden == (5, 4, 4)
    comparison = ja.study.prune_by_score(
        small_model, mnist5k, keep_fraction=0.5, scope="network", direction="high", fill="zero"
    )
    assert sum(comparison.rows[2].hidden) == 14


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        ("score", ["own", "--out", "a.txt"], "table a.txt: unknown suffix; choose a name that ends in .csv or .nc"),
        (
            "score",
            ["torch", "--out", "a.csv"],
            "a PyTorch state dict does not name its activation function; give --activation",
        ),
        ("score", ["own", "--out", "a.csv", "--activation", "relu"], "--activation: relu is not the sigmoid of"),
        (
            "score",
            ["torch", "--out", "/dev/null/a.csv"],
            "output folder /dev/null: cannot be written",
        ),
        (
            "ablate",
            ["torch", "--out", "/dev/null/a.nc"],
            "output folder /dev/null: cannot be written",
        ),
        ("score", ["absent", "--out", "a.csv"], "expected a file, got none"),
        ("score", ["own", "--out", "a.csv", "--quantizer", "x"], "quantizer: unknown 'x'"),
        (
            "ablate",
            ["own", "--out", "a.csv", "--steps", "9"],
            "steps: 9 is out of range; choose 1 to 8, the number of neurons of the smallest",
        ),
        ("ablate", ["own", "--out", "a.csv", "--score", "x"], "score: unknown 'x'"),
        ("prune", ["own", "--out", "a.nc"], "--out a.nc: expected .safetensors or .pt, got '.nc'"),
        (
            "prune",
            ["own", "--out", "a.safetensors", "--keep-fraction", "0"],
            "keep_fraction: 0 is not a fraction to keep; choose above 0 and up to 1",
        ),
        ("prune", ["own", "--out", "a.safetensors", "--fill", "resample"], "fill: unknown 'resample'"),
    ],
)
def test_bad_command_lines(files, command, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *arguments_after = arguments
    line = [command, str(files / f"{name}.safetensors"), "--dataset", str(files / "data.npz"), *arguments_after]
    result = CliRunner().invoke(jaxablate.cli.app, line)
    assert result.exit_code == 1
    assert sentence in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
