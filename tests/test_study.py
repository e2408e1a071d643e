"""The study and its results: every number again by hand, labels, files, summaries, reuse of networks."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import assert_counts, logits64, raises_input_error, scores_of, weights64, without_pdf

import jaxablate as ja
from jaxablate.cli._console import Bars
from jaxablate.cli._outputs import print_outputs, write_outputs
from jaxablate.report import write_report
from jaxablate.results import _summaries
from jaxablate.results._files import read_tree
from jaxablate.study._networks import load_data, trained_networks


@pytest.fixture(scope="module")
def node(small_results):
    return small_results["3-layer-10-8-9"].to_dataset()


def test_everything_is_labelled(small_results, node):
    assert list(small_results.children) == ["2-layer-12-10", "3-layer-10-8-9", "published"]
    published = ja.results.select_protocol(small_results, "published")
    assert list(published.children) == ["2-layer-12-10", "3-layer-10-8-9"]
    assert published["3-layer-10-8-9"]["ordering"].values.tolist()[-2:] == ["random_0", "random_1"]
    assert node["accuracy"].dims == ("seed", "scope", "ordering", "fill", "step")
    assert node["accuracy"].shape == (2, 4, 9, 2, 7)
    assert node["seed"].values.tolist() == [0, 3]
    assert node["scope"].values.tolist() == ["layer1", "layer2", "layer3", "network"]
    assert node["ordering"].values.tolist() == [
        *("entropy_low", "entropy_high", "mutual_information_low", "mutual_information_high"),
        *("kl_selectivity_low", "kl_selectivity_high", "random_0", "random_1", "random_2"),
    ]
    assert node["fill"].values.tolist() == ["zero", "mean"]
    assert node["step"].values.tolist() == list(range(7))
    assert node["layer"].values.tolist() == [1] * 10 + [2] * 8 + [3] * 9
    assert node["site"].values.tolist() == ["layer1"] * 10 + ["layer2"] * 8 + ["layer3"] * 9
    assert node["neuron_in_site"].values.tolist() == [*range(10), *range(8), *range(9)]
    ablated = node["ablated"].values
    np.testing.assert_array_equal(node["ablated_layer"], node["layer"].values[ablated])
    np.testing.assert_array_equal(node["ablated_in_site"], node["neuron_in_site"].values[ablated])
    fresh = published["3-layer-10-8-9"].to_dataset().sel(ordering="random_0")
    assert set(np.unique(fresh["ablated_layer"])) == {0}
    assert set(np.unique(fresh["ablated_in_site"])) == {-1}
    for name, variable in node.variables.items():
        assert variable.attrs["long_name"], name
    assert node["scores"].attrs["units"] == "nat"
    assert node["accuracy"].attrs["units"] == "1"


def test_provenance(small_results, small_config, mnist5k):
    attrs = small_results.attrs
    assert json.loads(attrs["config"])["steps"] == 6
    assert attrs["dataset"] == "mnist5k"
    assert json.loads(attrs["dataset_sha256"]) == mnist5k.source.sha256
    assert json.loads(attrs["versions"])["jaxablate"] == ja.__version__
    assert attrs["matmul_precision"] == "highest"
    assert "cpu" in attrs["device"] or "gpu" in attrs["device"] or "cuda" in attrs["device"]


def test_every_number_by_hand(small_config, small_results, node, mnist5k):
    """Seed 3 of the 3-layer network again, from training on, with NumPy for scores, orders and the sweep."""
    model, history = ja.train(mnist5k, (10, 8, 9), 3, epochs=8)
    np.testing.assert_allclose(node["train_loss"].sel(seed=3), history.loss, atol=1e-5)
    validation, test = mnist5k.validation, mnist5k.test
    activations = np.concatenate(ja.record_activations(model, validation.images), axis=1)
    counts = np.zeros((27, 10, 2), int)
    for row, label in zip(activations >= 0.5, validation.labels, strict=True):
        counts[np.arange(27), label, row.astype(int)] += 1
    np.testing.assert_array_equal(node["joint_counts"].sel(seed=3), counts)
    fill = activations.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(node["mean_activation"].sel(seed=3), fill, atol=1e-6)
    for metric, expected in scores_of(counts).items():
        scores = node["scores"].sel(seed=3, score=metric)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        for scope, neurons in (("layer2", range(10, 18)), ("network", range(27))):
            for direction, sign in (("low", 1), ("high", -1)):
                got = node["ablated"].sel(seed=3, scope=scope, ordering=f"{metric}_{direction}").values
                assert got.tolist() == sorted(neurons, key=lambda j: sign * scores.values[j])[:6]
    for scope in node["scope"].values:
        for ordering in node["ordering"].values:
            chosen = node.sel(seed=3, scope=scope, ordering=ordering)
            order = chosen["ablated"].values
            keep = np.array([[j not in order[:k] for j in range(27)] for k in range(7)])
            for name, value in (("zero", None), ("mean", fill)):
                assert_counts(chosen["correct"].sel(fill=name), model, keep, test.images, test.labels, value)
    alone = ~np.eye(27, dtype=bool)
    assert_counts(node["single_correct"].sel(seed=3), model, alone, test.images, test.labels, fill)
    drops = node["single_class_drop"].sel(seed=3).values
    totals = np.bincount(test.labels, minlength=10)
    fallen = np.round(drops * totals).astype(int)
    intact = int(node["correct"].sel(seed=3, scope="network", fill="zero")[0, 0])
    np.testing.assert_array_equal(intact - fallen.sum(axis=1), node["single_correct"].sel(seed=3))
    np.testing.assert_allclose(drops, fallen / totals, atol=1e-12)
    predicted, alone_predicted = (logits64(model, test.images, keep, fill).argmax(axis=1) for keep in (None, alone[12]))
    for label in range(10):
        chosen = test.labels == label
        assert fallen[12, label] == (predicted[chosen] == label).sum() - (alone_predicted[chosen] == label).sum()
    np.testing.assert_array_equal(node["accuracy"], node["correct"] / 1000)


@pytest.mark.slow
def test_random_orders_stay_in_their_scope_and_differ(node):
    bounds = {"layer1": (0, 10), "layer2": (10, 18), "layer3": (18, 27), "network": (0, 27)}
    random = node["ablated"].isel(ordering=node["ranking"].values == "random")
    wide = ja.StudyConfig(dataset="mnist5k", networks=((9, 9), (9, 9, 9)), epochs=1, num_random_orders=1, steps=9)
    drawn = [
        tuple(tree["ablated"].sel(ordering="random_0", scope=scope).values[0] % 9)
        for tree in ja.run_study(wide).children.values()
        for scope in tree["scope"].values
        if scope != "network"
    ]
    assert len(set(drawn)) == 5, "every network and layer has orders of its own"
    for scope, (start, stop) in bounds.items():
        ranks = random.sel(scope=scope).values
        assert ((ranks >= start) & (ranks < stop)).all()
        assert len({tuple(order) for order in ranks.reshape(-1, 6).tolist()}) == 6


@pytest.mark.slow
def test_the_study_repeats_itself(small_config, small_results):
    small = dataclasses.replace(small_config, networks=((12, 10),))
    again = ja.run_study(small)
    xr.testing.assert_identical(
        again["2-layer-12-10"].to_dataset()[["correct", "ablated", "scores"]],
        small_results["2-layer-12-10"].to_dataset()[["correct", "ablated", "scores"]],
    )


@pytest.mark.slow
def test_networks_are_reused_where_the_settings_agree(small_config, tmp_path):
    less = {"networks": ((12, 10),), "epochs": 2, "protocols": ("paper",), "scores": ("entropy",)}
    config = dataclasses.replace(small_config, **less, steps=2, num_random_orders=1)
    notes = []

    def report(*message):
        notes.append(message)

    def run(config):
        notes.clear()
        return ja.run_study(config, network_dir=tmp_path, on_progress=report)

    def train(config):
        notes.clear()
        trained_networks(config, (12, 10), load_data(config), tmp_path, report)

    first = run(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "2-layer-12-10_seed0.safetensors",
        "2-layer-12-10_seed3.safetensors",
    ]
    assert not any("reused" in note for *_, note in notes)
    second = run(config)
    assert any("reused 2 trained before" in note for *_, note in notes)
    xr.testing.assert_identical(first["2-layer-12-10"].to_dataset(), second["2-layer-12-10"].to_dataset())
    run(dataclasses.replace(config, seeds=(0, 1)))
    assert any("reused 1 trained before" in note for *_, note in notes)
    run(config)
    for change in (
        {"l2": 0.0},
        {"learning_rate": 0.002},
        {"batch_size": 64},
        {"epochs": 1},
        {"activation": "tanh"},
        {"split_seed": 1},
        {"dropout": 0.1},
        {"batch_norm": True},
        {"label_noise": 0.1},
    ):
        train(dataclasses.replace(config, **change))
        assert not any("reused" in note for *_, note in notes), change
        assert any("comes from other settings or data" in note for *_, note in notes)
        train(config)
    name = tmp_path / "2-layer-12-10_seed0.safetensors"
    name.write_bytes(name.read_bytes()[:1000])
    assert run(config)["2-layer-12-10"].identical(first["2-layer-12-10"])
    assert any("trained again: network file" in note and "reused 1" in note for *_, note in notes)


@pytest.mark.slow
def test_networks_with_dropout_batch_norm_and_label_noise_are_reused(mnist5k, tmp_path):
    plain = ja.StudyConfig(dataset="mnist5k", networks=((6, 5),), epochs=1, steps=2)
    config = dataclasses.replace(plain, dropout=0.1, batch_norm=True, label_noise=0.2)
    notes = []

    def train(config):
        return trained_networks(config, (6, 5), mnist5k, tmp_path, lambda *message: notes.append(message[-1]))[0]

    def metadata():
        return json.loads(ja.load_model(tmp_path / "2-layer-6-5_seed0.safetensors").metadata["training"])

    trained, again = train(config), train(config)
    assert notes[-1].startswith("reused 1 trained before")
    assert nnx.graphdef(again[0]) == nnx.graphdef(trained[0])
    for got, want in zip(*(jax.tree.leaves((nnx.state(model), vars(h))) for model, h in (again, trained)), strict=True):
        np.testing.assert_array_equal(got, want)
    assert {"dropout", "batch_norm", "label_noise"} <= set(metadata())
    train(plain)
    # files of earlier versions name no such settings, and are still reused
    assert set(metadata()) == {
        *("activation", "epochs", "batch_size", "learning_rate", "l2", "hidden", "split_seed", "data", "seed")
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxablate.uncertainty.BiasWarning")  # images of noise
def test_networks_of_other_data_are_not_reused(tmp_path):
    random = np.random.default_rng(0)
    for number in (1, 2):
        arrays = {}
        for split, size in (("train", 60), ("test", 20)):
            arrays[f"{split}_images"] = random.random((size, 3, 3)).astype(np.float32)
            arrays[f"{split}_labels"] = np.arange(size) % 3
        np.savez(tmp_path / "data.npz", **arrays)
        notes = []
        config = ja.StudyConfig(
            dataset=tmp_path / "data.npz",
            networks=[[5]],
            epochs=1,
            batch_size=10,
            steps=2,
            num_random_orders=1,
            seeds=range(2),
        )
        ja.run_study(config, network_dir=tmp_path / "n", on_progress=lambda *message, n=notes: n.append(message[-1]))
        assert any("comes from other settings or data" in note for note in notes) == (number == 2)
        assert not any("reused" in note for note in notes)


def test_file_round_trip(small_results, tmp_path):
    ja.results.save_results(small_results, tmp_path / "results.nc")
    loaded = ja.results.load_results(tmp_path / "results.nc")
    xr.testing.assert_identical(loaded, small_results)
    assert loaded["2-layer-12-10"]["correct"].dtype == np.int32
    assert [path.name for path in tmp_path.iterdir()] == ["results.nc"]


def test_files_are_read_as_xarray_reads_them(small_results, tmp_path):
    values = {
        "numbers": ("x", [1.5, np.nan]), "words": ("x", ["naïve", ""]), "scalar": 3, "is_kept": ("x", [True, False]),
        "empty": ("none", np.zeros(0)), "x": [2, 1],
    }  # fmt: skip
    values["numbers"] += ({"units": "points", "range": [0.0, 2.0], "one": 1.0},)
    nodes = {"/": xr.Dataset(attrs={"what": "any"}), "/z/a": xr.Dataset(values), "/b": xr.Dataset({"y": ("t", [1])})}
    for tree in (small_results, xr.DataTree.from_dict(nodes)):
        tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
        with h5py.File(tmp_path / "tree.nc") as file:
            read = read_tree(file)
        with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as expected:
            xr.testing.assert_identical(read, expected)
            for node, expected_node in zip(read.subtree, expected.subtree, strict=True):
                assert list(node.children) == list(expected_node.children)
                assert list(node.coords) == list(expected_node.coords)
                for name, variable in expected_node.variables.items():
                    assert node[name].dtype == variable.dtype, name


def test_file_round_trip_of_one_layer(tmp_path):
    config = ja.StudyConfig(dataset="mnist5k", networks=((6,),), epochs=1, num_random_orders=1, steps=2)
    results = ja.run_study(config)
    ja.results.save_results(results, tmp_path / "results.nc")
    xr.testing.assert_identical(ja.results.load_results(tmp_path / "results.nc"), results)


def test_an_interrupted_save_leaves_the_old_file(small_results, tmp_path, monkeypatch):
    path = tmp_path / "results.nc"
    path.write_bytes(b"old")

    write = Path.write_bytes

    def interrupted(self, content):
        write(self, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ja.results.save_results(small_results, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_curves_and_summary(small_results, node):
    values = node["accuracy"].sel(scope="layer1", fill="mean").values[:, -3:]  # [network, random order, step]
    curve = ja.results.curve(node, scope="layer1", ranking="random", direction="", fill="mean")
    of_network = values.mean(axis=1)
    np.testing.assert_allclose(curve.mean, of_network.mean(axis=0))
    # with two networks the t-interval's half width is t(0.975, 1) = 12.7062 times half their difference
    half = 12.7062047 * np.abs(of_network[1] - of_network[0]) / 2
    np.testing.assert_allclose(curve.high - curve.mean, half, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(curve.mean - curve.low, half, rtol=1e-6, atol=1e-12)
    assert curve.band == "95% t-interval of the mean"
    assert (curve.num_networks, curve.num_orders) == (2, 3)
    of_orders = values.var(axis=1, ddof=1).mean(axis=0)
    np.testing.assert_allclose(curve.sd_orders**2, of_orders, atol=1e-12)
    np.testing.assert_allclose(
        curve.sd_networks**2, np.maximum(of_network.var(axis=0, ddof=1) - of_orders / 3, 0), atol=1e-12
    )
    rows = ja.results.summarize(small_results, steps=(0, 3, 99))
    assert len(rows) == 2 * (3 + 4) * 7 * 2
    row = next(
        r for r in rows if (r.network, r.scope, r.ranking, r.fill) == ("3-layer-10-8-9", "layer1", "random", "mean")
    )
    assert row.protocol == "paper"
    assert row.accuracy == pytest.approx({step: values[:, :, step].mean() for step in (0, 3, 6)})


def test_one_network_has_the_band_of_its_random_orders(node):
    alone = node.isel(seed=[1])
    values = alone["accuracy"].sel(scope="layer2", fill="zero").values[0, -3:]
    curve = ja.results.curve(alone, scope="layer2", ranking="random", direction="", fill="zero")
    np.testing.assert_allclose([curve.low, curve.high], np.quantile(values, (0.1, 0.9), axis=0))
    assert curve.band == "10% to 90% of 3 random curves"
    assert np.isnan(curve.sd_networks).all()
    ranked = ja.results.curve(alone, scope="layer2", ranking="entropy", direction="low", fill="zero")
    assert ranked.band == ""
    np.testing.assert_array_equal(ranked.mean, alone["accuracy"].sel(scope="layer2", fill="zero").values[0, 0])


def test_variance_components_are_recovered():
    """Accuracies made of a network's and an order's part with known spread."""
    random = np.random.default_rng(0)
    values = 0.7 + random.normal(0, 0.03, (400, 1, 5)) + random.normal(0, 0.05, (400, 8, 5))
    curve = _summaries.summarize_curves(np.arange(5), values)
    np.testing.assert_allclose(curve.sd_networks, 0.03, rtol=0.15)
    np.testing.assert_allclose(curve.sd_orders, 0.05, rtol=0.05)


def test_selecting_a_protocol(small_results, tmp_path):
    assert ja.results.protocols_of(small_results) == ["paper", "published"]
    paper = ja.results.select_protocol(small_results, "paper")
    assert list(paper.children) == ["2-layer-12-10", "3-layer-10-8-9"]
    assert paper.attrs == small_results.attrs
    assert ja.results.protocols_of(paper) == ["paper"]
    with raises_input_error("protocol: unknown 'both'; choose one of paper, published"):
        ja.results.select_protocol(small_results, "both")
    ja.results.save_results(small_results, tmp_path / "results.nc")
    again = ja.results.load_results(tmp_path / "results.nc")
    assert again["published/3-layer-10-8-9"].identical(small_results["published/3-layer-10-8-9"])
    for network in paper.children:  # one training serves both
        paper_node, published_node = paper[network], ja.results.select_protocol(small_results, "published")[network]
        np.testing.assert_array_equal(paper_node["train_loss"], published_node["train_loss"])
        intact = paper_node["correct"].isel(step=0, ordering=0)
        np.testing.assert_array_equal(
            intact.sel(fill="zero"), published_node["correct"].isel(step=0, ordering=0).sel(fill="zero")
        )


def test_bad_input(tmp_path, small_results):
    with raises_input_error("activation: unknown 'swish'"):
        ja.StudyConfig(activation="swish")
    with raises_input_error("score: unknown 'gini'; choose one of entropy"):
        ja.StudyConfig(scores=("entropy", "gini"))
    with raises_input_error("steps: 201 is out of range; choose 1 to 200, the number of neurons of the smallest layer"):
        ja.StudyConfig(steps=201)
    with raises_input_error("seeds: expected different values"):
        ja.StudyConfig(seeds=(1, 1))
    with raises_input_error("networks: no architecture to train"):
        ja.run_study(ja.StudyConfig(networks=(), dataset="mnist5k"))
    with raises_input_error("networks: expected different values"):
        ja.StudyConfig(networks=((200, 200), (200, 200)))
    for name in ("num_random_orders", "epochs", "batch_size"):
        with raises_input_error(f"{name}: expected at least 1, got 0"):
            ja.StudyConfig(**{name: 0})
    with raises_input_error("scores: expected at least one, got none"):
        ja.StudyConfig(scores=())
    with raises_input_error("scores: expected different values"):
        ja.StudyConfig(scores=("entropy", "entropy"))
    with raises_input_error("learning_rate: .* is not positive; choose above 0"):
        ja.StudyConfig(learning_rate=-1)
    with raises_input_error(r"networks: expected the hidden layers of each network, .* got \(20, 20\)"):
        ja.StudyConfig(networks=(20, 20))
    with raises_input_error("networks: a hidden layer in .* has no neuron; give every layer 1 or more"):
        ja.StudyConfig(networks=((0,),))
    with raises_input_error("seeds: .* is out of range; choose 0 to 2.32 - 1"):
        ja.StudyConfig(seeds=(0, 2**32))
    with raises_input_error("seeds: expected a sequence, got 3"):
        ja.StudyConfig(seeds=3)
    with raises_input_error("expected a file, got none"):
        ja.results.load_results(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("not netCDF")
    with raises_input_error("expected netCDF as jaxablate writes it, got an unreadable file"):
        ja.results.load_results(tmp_path / "text.nc")
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with raises_input_error("expected format 'jaxablate results 4', got None"):
        ja.results.load_results(tmp_path / "other.nc")
    node = small_results["2-layer-12-10"].to_dataset()
    for change in ("variable", "attribute", "fill"):
        attributes, network = dict(small_results.attrs), node
        if change == "variable":
            network = node.drop_vars("accuracy")
        elif change == "fill":
            network = node.isel(fill=[0])
        else:
            del attributes["versions"]
        damaged = xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), "2-layer-12-10": network})
        ja.results.save_results(damaged, tmp_path / "damaged.nc")
        with raises_input_error("(lacks|missing) .*; the file is damaged"):
            ja.results.load_results(tmp_path / "damaged.nc")
    with raises_input_error("scope: unknown 'layer9'; choose one of layer1, layer2, network"):
        ja.results.curve(node, scope="layer9", ranking="random", direction="low", fill="mean")
    with raises_input_error("ranking: unknown 'gini'"):
        ja.results.curve(node, scope="layer1", ranking="gini", direction="low", fill="mean")
    with raises_input_error("steps: .* has negative numbers; choose 0 or more"):
        ja.results.summarize(small_results, steps=(-1,))
    (tmp_path / "file").write_text("")
    with raises_input_error("file .* cannot be written"):
        ja.results.save_results(small_results, tmp_path / "file" / "results.nc")
    with raises_input_error("output folder .* cannot be written"):
        ja.run_study(ja.StudyConfig(dataset="mnist5k"), network_dir=tmp_path / "file" / "networks")
    (tmp_path / "link").symlink_to("nothing")
    with raises_input_error("output folder .*link: is a link to nothing"):
        ja.run_study(ja.StudyConfig(dataset="mnist5k"), run_dir=tmp_path / "link")


@pytest.fixture(scope="module")
def complete():
    """Two networks to the end of every scope, under both protocols and with a score of the weights."""
    return ja.run_study(
        ja.StudyConfig(
            dataset="mnist5k",
            networks=((12, 10),),
            epochs=2,
            seeds=(0, 3),
            num_random_orders=2,
            steps="all",
            scores=("entropy", "mutual_information", "kl_selectivity", "contribution_sd"),
            protocols=("paper", "constant_last", "published"),
        )
    )


@pytest.mark.slow
def test_steps_all_ablates_every_neuron_of_every_scope(complete, mnist5k):
    node = complete["2-layer-12-10"].to_dataset()
    assert node["step"].values.tolist() == list(range(23))
    assert node["rank"].values.tolist() == list(range(1, 23))
    model, _ = ja.train(mnist5k, (12, 10), 3, epochs=2)
    test, fill = mnist5k.test, node["mean_activation"].sel(seed=3).values
    for scope, start, stop in (("layer1", 0, 12), ("layer2", 12, 22), ("network", 0, 22)):
        num = stop - start
        chosen = node.sel(seed=3, scope=scope)
        orders = chosen["ablated"].values
        assert (np.sort(orders[:, :num]) == range(start, stop)).all()
        assert (orders[:, num:] == -1).all()
        assert (chosen["correct"].values[..., num + 1 :] == -1).all()
        np.testing.assert_array_equal(np.isnan(chosen["accuracy"]), chosen["correct"] == -1)
        for order, correct in zip(orders, chosen["correct"].values, strict=True):
            keep = np.array([[j not in order[:k] for j in range(22)] for k in range(num + 1)])
            assert_counts(correct[0, : num + 1], model, keep, test.images, test.labels)
            assert_counts(correct[1, : num + 1], model, keep, test.images, test.labels, fill)
        # the area is the mean over the scope's own steps
        np.testing.assert_allclose(
            ja.results.auc(node).sel(seed=3, scope=scope), chosen["correct"].values[..., 1 : num + 1].mean(axis=-1) / 10
        )


@pytest.mark.slow
def test_contribution_sd_and_single_damage_by_hand(complete, mnist5k):
    model, _ = ja.train(mnist5k, (12, 10), 3, epochs=2)
    activations = np.concatenate(ja.record_activations(model, mnist5k.validation.images), axis=1).astype(np.float64)
    outgoing = np.concatenate([np.linalg.norm(kernel, axis=1) for kernel, _ in weights64(model)[1:]])
    node = complete["2-layer-12-10"].to_dataset().sel(seed=3)
    expected = activations.std(axis=0) * outgoing
    np.testing.assert_allclose(node["scores"].sel(score="contribution_sd"), expected, rtol=1e-5)
    order = node["ablated"].sel(scope="network", ordering="contribution_sd_high").values
    assert order.tolist() == np.argsort(-expected, kind="stable").tolist()

    def loss(keep, **ablated):
        logits = logits64(model, mnist5k.test.images, keep, **ablated)
        chosen = logits[np.arange(len(logits)), mnist5k.test.labels]
        return (np.log(np.exp(logits).sum(axis=1)) - chosen).mean()

    rate = (activations > 0.5).mean(axis=0)
    for path, ablated in (
        ("2-layer-12-10", {"fill": activations.mean(axis=0)}),
        ("published/2-layer-12-10", {"scale": rate}),
    ):
        damage = complete[path]["single_damage"].sel(seed=3)
        expected = [loss(np.arange(22) != j, **ablated) - loss(None) for j in range(22)]
        np.testing.assert_allclose(damage, expected, atol=2e-6)
        assert damage.attrs["units"] == "nat"
        assert np.ptp(damage.values) > 1e-4


@pytest.mark.slow
def test_curves_of_different_lengths_are_summarized(complete):
    rows = ja.results.summarize(complete, steps=(0, 11, 80))
    steps = {(row.protocol, row.scope): list(row.accuracy) for row in rows}
    assert set(steps) == {
        (protocol, scope)
        for protocol in ("paper", "constant_last", "published")
        for scope in ("layer1", "layer2", "network")
    }
    assert steps["paper", "layer1"] == [0, 11]
    assert steps["published", "layer2"] == [0]
    assert steps["constant_last", "network"] == [0, 11, 22]
    node = complete["2-layer-12-10"].to_dataset()
    for scope, num in (("layer1", 12), ("layer2", 10), ("network", 22)):
        curve = ja.results.curve(node, scope=scope, ranking="random", direction="", fill="mean")
        assert curve.step.tolist() == list(range(num + 1))
        assert np.isfinite([curve.mean, curve.low, curve.high, curve.sd_orders]).all()


@pytest.mark.slow
def test_complete_curves_are_saved_drawn_and_printed(complete, tmp_path, capsys):
    ja.results.save_results(complete, tmp_path / "results.nc")
    results = ja.results.load_results(tmp_path / "results.nc")
    xr.testing.assert_identical(results, complete)
    normalized = ja.compare(results["2-layer-12-10"], results["constant_last/2-layer-12-10"], by="normalized_auc")
    assert normalized["difference"].shape == (3, 9, 2)
    # figures are of networks with the names of the paper's, and claims of more than one seed
    nodes = {"/": xr.Dataset(attrs=results.attrs)}
    for node in results.subtree:
        if node.data_vars:
            nodes[node.path.replace("2-layer-12-10", "2-layer")] = node.to_dataset().isel(seed=[1])
    results = xr.DataTree.from_dict(nodes)
    with without_pdf():
        assert write_outputs(results, tmp_path, Bars()) == []
    print_outputs(results, tmp_path, [], dataset="mnist5k", seconds=1.0)
    assert f"jaxablate table {tmp_path} --out curves.csv" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_bars_are_shown_on_a_terminal_only(small_model, in_memory, capsys, monkeypatch):
    config = ja.StudyConfig(networks=(), scores=("entropy",), num_random_orders=1, steps=2)

    def printed(**options):
        ja.run_study(config, {"mine": small_model}, data=in_memory, **options)
        streams = capsys.readouterr()
        assert streams.out == ""
        return streams.err

    assert printed() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert printed() == "", "rich alone would take this file for a terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed()).splitlines()
    (row,) = {line for line in lines if line.startswith("ablate mine") and "4/4" in line}
    assert re.search(r"4/4 0:00:0\d", row), "the time that it took"
    assert printed(on_progress=None) == ""
    reports = []
    assert printed(on_progress=lambda *report: reports.append(report)) == ""
    assert ("ablate mine", 4, 4) in {report[:3] for report in reports}
    with raises_input_error('on_progress: expected "bars", None or a function, got str'):
        ja.run_study(config, on_progress="loud")


def test_what_is_printed_to_a_file_stays_there_while_bars_are_shown(small_model, in_memory, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(ja.scores.SCORES, "loud", lambda evidence: print("a line of mine") or evidence.class_means[0])
    config = ja.StudyConfig(networks=(), scores=("loud",), num_random_orders=1, steps=2)
    ja.run_study(config, {"mine": small_model}, data=in_memory)
    streams = capsys.readouterr()
    assert streams.out == "a line of mine\n"
    assert "ablate mine" in streams.err


class Stream:
    """A terminal of another program, in which something fails."""

    encoding = "ascii"

    def __init__(self, fails):
        self.fails, self.texts = fails, []

    def isatty(self):
        if self.fails == "isatty":
            raise OSError
        return True

    def write(self, text):
        if self.fails == "write":
            raise ValueError
        self.texts.append(text.encode("ascii"))

    def flush(self):
        if self.fails == "flush":
            raise AttributeError


@pytest.mark.parametrize("fails", ["isatty", "write", "flush", "nothing"])
def test_a_terminal_that_fails_does_not_end_a_study(small_model, in_memory, monkeypatch, fails):
    stream = Stream(fails)
    monkeypatch.setattr(sys, "stderr", stream)
    config = ja.StudyConfig(networks=(), scores=("entropy",), num_random_orders=1, steps=2)
    results = ja.run_study(config, {"größe": small_model}, data=in_memory)
    assert "größe" in results.children
    assert ("ablate gr??e" in b"".join(stream.texts).decode()) == (fails in ("flush", "nothing"))


def test_steps_that_are_no_number(small_config):
    for steps in ("each", 2.5, None, "0%", "101%", "-5%", "5 %", "1e1%", True):
        with raises_input_error(f"steps: expected a number, 'all' or a percentage such as '0.5%', got {steps!r}"):
            dataclasses.replace(small_config, steps=steps)
    assert len(dataclasses.replace(small_config, networks=((2, 90),), steps="all").ablated_numbers(92)) == 93


@pytest.fixture
def in_memory(mnist5k):
    part = dataclasses.replace(mnist5k.train, images=mnist5k.train.images[:400], labels=mnist5k.train.labels[:400])
    return dataclasses.replace(mnist5k, train=part)


@pytest.mark.slow
def test_a_study_of_data_in_memory(small_config, in_memory, tmp_path):
    """The arrays identify the run, whatever a dataset says about its files."""
    config = dataclasses.replace(small_config, dataset="auto", networks=((12, 10),), epochs=1, protocols=("paper",))
    results = ja.run_study(config, data=in_memory, run_dir=tmp_path)
    assert results.attrs["dataset"] == "mnist5k"
    checksums = json.loads(results.attrs["dataset_sha256"])
    assert set(checksums) == {f"{a}_{b}" for a in ("train", "validation", "test") for b in ("images", "labels")}
    page = write_report(results, tmp_path / "report.html").read_text()
    assert "ja.run_study(config, data=data, run_dir=" in page
    model, _ = ja.train(in_memory, (12, 10), epochs=1, seed=3)
    saved = ja.load_model(tmp_path / "networks" / "2-layer-12-10_seed3.safetensors").model
    np.testing.assert_array_equal(saved.stages[0].weights[0], model.stages[0].weights[0])
    relabelled = dataclasses.replace(in_memory.test, labels=in_memory.test.labels[::-1])
    with raises_input_error("another run was started there .data: .*; choose another folder"):
        ja.run_study(config, data=dataclasses.replace(in_memory, test=relabelled), run_dir=tmp_path)


def test_bad_data_in_memory(small_config, in_memory):
    with raises_input_error("data: the config also names the dataset 'mnist5k'; leave one of the two out"):
        ja.run_study(small_config, data=in_memory)
    config = dataclasses.replace(small_config, dataset="auto")
    with raises_input_error("mnist5k train labels: expected values in 0..8, got 0..9"):
        ja.run_study(config, data=dataclasses.replace(in_memory, num_classes=9))
