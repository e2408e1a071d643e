"""A user's networks: in a study, and from files on the command line."""

import csv
import hashlib
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import raises_input_error
from networks import KINDS, masked_logits
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate.charts import balancing_chart, order_chart, score_chart
from jaxablate.figures import drawable


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
    return result.stdout if "--json" in arguments else result.output


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


TRAINING = ("networks", "activation", "epochs", "batch_size", "learning_rate", "l2", "dropout", "batch_norm")


def linear_relu(params, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ params["first"]) @ params["last"]


@pytest.mark.slow
def test_results_state_only_what_is_true_of_networks_that_were_passed(small_model, mnist5k):
    """The defaults of training in the config were not used, and the seeds have trained nothing."""
    config = ja.StudyConfig(dataset="mnist5k", seeds=(4, 5), scores=("entropy",), num_random_orders=1, steps=1)
    changed = nnx.clone(small_model)
    kernel = changed.stages[1].linear.kernel
    kernel[...] = kernel[...].at[2, 3].add(1e-6)
    results = ja.run_study(config, {"mine": [small_model, changed]})
    settings, network = json.loads(results.attrs["config"]), results["mine"].to_dataset()
    assert not {*TRAINING, "label_noise"} & {*settings}
    assert settings["seeds"] == [4, 5]
    assert "optax" not in json.loads(results.attrs["versions"])
    assert network["seed"].attrs["long_name"] == "seed of random ablation orders, fills and scores"
    assert network.attrs["model"] == "NNX module MLP"
    assert network.attrs["activation"] == "sigmoid"
    assert network.attrs["num_parameters"] == 785 * 10 + 11 * 8 + 9 * 9 + 10 * 10
    first, second = network["model_sha256"].values
    assert len(first) == 64
    assert first != second
    again = ja.run_study(replace(config, seeds=(6,)), {"another": small_model})["another"].to_dataset()
    assert again["model_sha256"].values.tolist() == [first], "neither the name nor the seed changes the network"
    differences = ja.claims.departures_from_paper(results)
    assert differences == ["networks: 10 + 8 + 9", "training: not by the study"]


@pytest.mark.slow
def test_the_kind_of_a_network_is_stated(mnist5k):
    params = {"first": np.eye(784, 6, dtype=np.float32), "last": np.eye(6, 10, dtype=np.float32)}
    function = ja.from_function(linear_relu, params, mnist5k.test.images[:1])
    models = {"function": function, "chain": KINDS["chain"]()}
    models["module"] = ja.from_module(models["chain"], mnist5k.test.images[:1])
    models["norm"] = ja.MLP(784, (6,), 10, activation="relu", batch_norm=True, rngs=nnx.Rngs(0))
    config = ja.StudyConfig(dataset="mnist5k", scores=("entropy",), quantizer="mean", num_random_orders=1, steps=1)
    results = ja.run_study(config, models)
    assert {name: node.attrs["model"] for name, node in results.children.items()} == {
        "function": "function linear_relu", "chain": "NNX module Sequential", "module": "NNX module Sequential",
        "norm": "NNX module MLP with batch norm",
    }  # fmt: skip
    assert results["function"].attrs["num_parameters"] == 784 * 6 + 6 * 10
    assert "activation: not known, relu" in ja.claims.departures_from_paper(results)


def facts_of(path) -> dict:
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_file_and_what_was_assumed_are_stated(files, small_model, mnist5k, tmp_path):
    data = ["--dataset", files / "data.npz", "--score", "entropy", "--json"]
    own, torch, outputs = files / "own.safetensors", files / "torch.safetensors", tmp_path / "outputs.npz"
    np.savez(outputs, inputs=mnist5k.test.images[:5], outputs=np.asarray(small_model(mnist5k.test.images[:5])))
    expected = facts_of(own) | {
        "format": "network of jaxablate", "activation": "sigmoid, named in the file", "layers": "named in the file",
        "reference": "not checked, since --reference was not given",
    }  # fmt: skip
    assert json.loads(run("score", own, *data, "--out", tmp_path / "scores.nc"))["file"] == expected
    with xr.open_dataset(tmp_path / "scores.nc", engine="h5netcdf") as scores:
        assert json.loads(scores.attrs["file"]) == expected
        assert "optax" not in json.loads(scores.attrs["versions"])
    options = ["--activation", "sigmoid", "--reference", outputs]
    assert json.loads(run("score", torch, *data, *options, "--out", tmp_path / "scores.nc"))["file"] == facts_of(
        torch
    ) | {
        "format": "PyTorch state dict", "activation": "sigmoid, from --activation; the file does not name it",
        "layers": "0, 2, 4, 6, by shapes and the numbers in the names",
        "images": "assumed that the network takes examples as the dataset has them, with numbers from 0 to 1",
        "reference": f"reproduced, from outputs.npz (SHA-256 {facts_of(outputs)['sha256']})",
    }  # fmt: skip
    printed = run("prune", own, *data[:2], "--score", "entropy", "--out", tmp_path / "small.safetensors", "--json")
    assert json.loads(printed)["file"] == expected
    metadata = ja.load_model(tmp_path / "small.safetensors").metadata
    assert metadata["pruned_from_sha256"] == expected["sha256"]


def test_the_order_of_colours_is_stated(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"a.weight": (4, 48), "a.bias": (4,), "b.weight": (2, 4), "b.bias": (2,)}
    save_file({k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}, tmp_path / "net.safetensors")
    images = random.random((40, 4, 4, 3)).astype(np.float32)
    arrays = {f"{split}_images": images for split in ("train", "validation", "test")}
    np.savez(tmp_path / "data.npz", **arrays, **{name[:-6] + "labels": np.arange(40) % 2 for name in arrays})
    options = ["--activation", "relu", "--layers", "a,b", "--score", "entropy", "--out", tmp_path / "scores.csv"]
    line = ["score", tmp_path / "net.safetensors", "--dataset", tmp_path / "data.npz", *options, "--json"]
    facts = json.loads(run(*line))["file"]
    assert "and flattens images channel by channel, as PyTorch does" in facts["images"]
    assert facts["layers"] == "a, b, from --layers"


@pytest.mark.slow
def test_results_with_damaged_facts_are_refused(study_of_file, tmp_path):
    for attributes in (
        {"files": "[]"}, {"files": '{"own": {"name": "own", "bytes": "1", "sha256": ""}}'}, {"files": "{"},
        {"command": 1},
    ):  # fmt: skip
        damaged = study_of_file.copy()
        damaged.attrs |= attributes
        ja.results.save_results(damaged, tmp_path / "damaged.nc")
        with raises_input_error(f"missing or invalid attributes {next(iter(attributes))}"):
            ja.results.load_results(tmp_path / "damaged.nc")
    for name, value in {"model": 1, "num_parameters": "many"}.items():
        damaged = study_of_file.copy(deep=True)
        damaged["own"].attrs[name] = value
        ja.results.save_results(damaged, tmp_path / "damaged.nc")
        with raises_input_error("own .paper. lacks labels that jaxablate writes"):
            ja.results.load_results(tmp_path / "damaged.nc")


@pytest.fixture(scope="module")
def study_of_file(files):
    """The results of `jaxablate ablate`, from their file."""
    options = ["--score", "entropy", "--random-orders", 1, "--no-cache", "--steps", 2]
    out = files / "study.nc"
    run("ablate", files / "own.safetensors", "--dataset", files / "data.npz", "--out", out, *options)
    return ja.results.load_results(out)


def test_merged_results_keep_the_files_of_their_runs(study_of_file):
    """Several runs have no common command; their files and commands stay in the list of the runs."""
    runs = {}
    for seed in (1, 0):
        tree = runs[f"run{seed}"] = study_of_file.copy(deep=True)
        tree["own"] = xr.DataTree(tree["own"].to_dataset().assign_coords(seed=[seed]))
        tree["own"]["model_sha256"][:] = f"checksum {seed}"
        tree.attrs["config"] = json.dumps({**json.loads(tree.attrs["config"]), "seeds": [seed]})
    merged = ja.results.merge_results(runs)
    assert merged["own"]["model_sha256"].values.tolist() == ["checksum 0", "checksum 1"]
    assert not {"command", "files"} & {*merged.attrs}
    for entry in json.loads(merged.attrs["merged_from"]):
        assert entry["command"] == study_of_file.attrs["command"]
        assert json.loads(entry["files"])["own"]["name"] == "own.safetensors"


@pytest.mark.slow
def test_a_network_with_the_name_of_the_papers_has_no_figures_of_the_paper(mnist5k):
    """Its training is not known, and a number of a figure would claim that it is the paper's network."""
    config = ja.StudyConfig(dataset="mnist5k", num_random_orders=1, steps=2)
    model = ja.MLP(784, (4, 3), 10, rngs=nnx.Rngs(0))
    results = ja.run_study(config, {"2-layer": model})
    kinds = {spec.kind for spec in drawable(results)}
    assert kinds == {"scores", "balancing", "orders"}
    network = results["2-layer"].to_dataset()
    for chart in (order_chart("2-layer", network, "network"), balancing_chart("2-layer", network, "layer1")):
        assert chart.caption.startswith("One network")
    assert score_chart("2-layer", network, "entropy").caption == ""
    figure = ja.figures.draw_figure(results, 6)
    assert figure.axes[0].get_title(loc="left").startswith("2-layer network")
    with raises_input_error("training of the 3-layer network, which the study did not train"):
        ja.figures.draw_figure(xr.DataTree(results.to_dataset(), children={"3-layer": results["2-layer"]}), 1)
