"""Studies of several conditions: settings, runs, results, pages and commands."""

import json
import shutil
from dataclasses import asdict, replace

import h5py
import jax
import jaxtyping
import numpy as np
import pytest
from helpers import raises_input_error, without_pdf
from safetensors.numpy import load_file
from scipy import stats
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate.figures import draw_conditions, save_conditions
from jaxablate.report import write_report
from jaxablate.study import _networks

NETWORK = "2-layer-8-7"


def call(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(jaxablate.cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def config(small_data):
    """Return two settings of training by two that training does not depend on."""
    return ja.StudyConfig(
        dataset=small_data,
        networks=((8, 7),),
        epochs=2,
        seeds=(0, 1),
        num_random_orders=2,
        steps=4,
        vary={"l2": (0, 0.1), "quantizer": ("activation", "mean")},
    )


@pytest.fixture(scope="module")
def grid(config, tmp_path_factory):
    """Return a folder and the results in it."""
    folder = tmp_path_factory.mktemp("grid") / "grid"
    return folder, ja.run_study(config, run_dir=folder)


def network_of(results, condition):
    return results[condition][NETWORK].to_dataset()


def test_conditions_are_every_combination():
    vary = {
        "networks": (((100,), (200, 200)), ((50, 50),)),
        "dataset": ("data/cancer.npz", "mnist"),
        "scores": (["entropy"],),
        "l2": np.array([0, 1e-5]),
    }
    config = ja.StudyConfig(steps=5, vary=vary)
    conditions = config.conditions()
    assert len(conditions) == 8
    name = "networks=100+200x200, dataset=cancer, scores=entropy, l2=1e-05"
    values = {"networks": ((100,), (200, 200)), "dataset": "data/cancer.npz", "scores": ("entropy",), "l2": 1e-5}
    assert list(conditions)[1] == name
    assert conditions[name] == replace(config, vary={}, **values)
    assert config == ja.StudyConfig(**json.loads(json.dumps(asdict(config))))
    assert ja.StudyConfig(steps=5).conditions() == {"": ja.StudyConfig(steps=5)}


def test_settings_need_to_go_together_in_the_conditions_only():
    config = ja.StudyConfig(networks=((8,),), vary={"steps": (3, 5)})  # the default of 80 steps is too many
    assert [condition.steps for condition in config.conditions().values()] == [3, 5]
    vary = {"protocols": (("paper",),), "quantizer": ("mean",)}
    assert len(ja.StudyConfig(protocols=("paper", "published"), vary=vary).conditions()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vary": {"l3": (1,)}}, "unknown 'l3'; did you mean l2"),
        ({"vary": {"seeds": ((1,),)}}, "seeds cannot vary"),
        ({"vary": {"l2": 1e-3}}, "expected a sequence of values for l2"),
        ({"vary": {"activation": "relu"}}, "expected a sequence of values for activation"),
        ({"vary": {"l2": ()}}, "expected at least one"),
        ({"vary": {"l2": (0, 0.0)}}, "expected different values"),
        ({"vary": {"l2": (0, -1)}}, "condition l2=-1: l2: -1.0 is negative"),
        ({"vary": {"l2": (1e-3, 1e-3 + 1e-12)}}, "two conditions are named 'l2=0.001'"),
        ({"vary": {"steps": (5, 500)}}, "condition steps=500: steps: 500 is out of range"),
        ({"vary": {"epochs": range(1, 50), "batch_size": range(1, 50)}}, "2401 conditions are more than 1000"),
        ({"vary": {"dataset": ("x" * 101,)}}, "expected a name of up to 100"),
        ({"vary": 3}, "expected a mapping"),
        ({"vary": {"l2": (True,)}}, "condition l2=True: l2: expected a number"),
        ({"vary": {"dataset": ("a/Data", "b/data")}}, "two conditions are named 'dataset=data'"),
        ({"vary": {"l2": (0,)}, "steps": 500}, "condition l2=0: steps: 500 is out of range"),
        ({"steps": True}, "steps: expected a number, 'all' or a percentage such as '0.5%', got True"),
        ({"l2": "much"}, "l2: expected a number, got 'much'"),
        ({"l2": float("nan")}, "l2: expected a number, got nan"),
        ({"batch_size": True}, "batch_size: expected an integer, got True"),
        ({"epochs": 2.5}, "epochs: expected an integer, got 2.5"),
        ({"seeds": ("a",)}, "seeds: expected an integer, got 'a'"),
        ({"networks": ((2.5,),)}, "networks: expected an integer, got 2.5"),
        ({"scores": (3,)}, "scores: expected names, got 3"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with raises_input_error(message):
        ja.StudyConfig(**settings)


def test_a_condition_is_the_study_alone(config, grid):
    _, results = grid
    conditions = config.conditions()
    assert list(results.children) == list(conditions)
    assert ja.results.conditions_of(results) == {
        name: {"l2": condition.l2, "quantizer": condition.quantizer} for name, condition in conditions.items()
    }
    name = "l2=0.1, quantizer=mean"
    alone = ja.run_study(conditions[name])
    assert alone[NETWORK].to_dataset().identical(network_of(results, name))
    assert not network_of(results, "l2=0, quantizer=mean")["correct"].equals(network_of(results, name)["correct"])
    assert json.loads(results[name].attrs["config"]) == json.loads(alone.attrs["config"])
    with raises_input_error("they hold 4 conditions; pass the results of one"):
        ja.judge_claims(results)


def test_conditions_share_networks_and_resume(config, grid, tmp_path):
    folder, results = grid
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    trained = {path.parent.parent.name for path in again.rglob("*.safetensors") if path.parent.name == "networks"}
    assert trained == {"l2=0, quantizer=activation", "l2=0.1, quantizer=activation"}
    # what a killed run left: one condition without its last unit, one not begun, one network not trained
    next((again / "conditions" / "l2=0, quantizer=mean" / "units").glob("*singles*")).unlink()
    shutil.rmtree(again / "conditions" / "l2=0.1, quantizer=mean")
    next((again / "conditions" / "l2=0.1, quantizer=activation" / "networks").iterdir()).unlink()
    reports = []
    resumed = ja.run_study(config, run_dir=again, on_progress=lambda *report: reports.append(report))
    for name in results.children:
        assert network_of(resumed, name).identical(network_of(results, name))
    totals = {what: (done, total) for what, done, total, _ in reports}
    assert totals["train"] == (4, 4)
    assert totals["conditions"] == (4, 4)
    smaller = replace(config, vary={"l2": (0,)})
    with raises_input_error("another run was started there"):
        ja.run_study(smaller, run_dir=again)
    fewer = ja.run_study(smaller, run_dir=again, force=True)
    assert list(fewer.children) == ["l2=0"]


@pytest.mark.slow
def test_epochs_are_checkpoints_of_one_training(config):
    config = replace(config, vary={"epochs": (1, 3, 2), "l2": (0, 0.1)})
    reports = []
    results = ja.run_study(config, on_progress=lambda *report: reports.append(report))
    assert {total for what, _, total, _ in reports if what == "train"} == {4}  # two values of L2, two seeds
    reused = [note for what, _, _, note in reports if what == "reuse 2-layer-8-7"]
    assert len(reused) == 6
    for name in ("epochs=1, l2=0.1", "epochs=2, l2=0", "epochs=3, l2=0"):
        alone = ja.run_study(config.conditions()[name])
        assert alone[NETWORK].to_dataset().identical(network_of(results, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mutual information of")  # strong penalties leave neurons without information
def test_conditions_in_one_batch(config, tmp_path, monkeypatch):
    """As on a GPU: conditions of equal shapes train together, and their networks equal those of conditions alone."""
    vary = {"l2": (0.0, 0.1), "label_noise": (0.0, 0.5), "learning_rate": (1e-3, 3e-3)}
    config = replace(config, vary=vary, seeds=(0, 3), networks=((8, 7),))
    expected = ja.run_study(config)
    batches = []
    train_many = _networks.train_many

    def recorded(data, hidden, seeds, **options):
        batches.append(len(seeds))
        return train_many(data, hidden, seeds, **options)

    monkeypatch.setattr(_networks, "train_many", recorded)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    results = ja.run_study(config, run_dir=tmp_path / "grid")
    assert batches == [16]
    saved = {path: load_file(path) for path in (tmp_path / "grid").rglob("networks/*.safetensors")}
    assert len(saved) == 16
    for condition in config.conditions():
        ours, alone = network_of(results, condition), network_of(expected, condition)
        for name in ("train_loss", "validation_loss", "mean_activation"):
            np.testing.assert_allclose(ours[name], alone[name], atol=1e-4, err_msg=condition)
        assert np.abs(ours["correct"] - alone["correct"]).max() <= 3
    # If one file is lost, the same batch is trained again, and only that file is written.
    times = {path: path.stat().st_mtime_ns for path in saved}
    lost = next(iter(saved))
    lost.unlink()
    ja.run_study(config, run_dir=tmp_path / "grid")
    assert batches == [16, 16]
    assert {path for path in saved if path.stat().st_mtime_ns != times[path]} == {lost}
    for name, tensor in load_file(lost).items():
        np.testing.assert_array_equal(tensor, saved[lost][name])
    with raises_input_error("condition l2=0, label_noise=0, learning_rate=3e[+]38: training of seed"):
        ja.run_study(replace(config, vary={**vary, "learning_rate": (1e-3, 3e38)}))


def test_your_own_networks_vary_in_what_is_not_trained(small_data, tmp_path):
    data = ja.load_dataset(small_data)
    model = ja.train(data, (8, 7), epochs=1)[0]
    config = ja.StudyConfig(networks=(), steps=3, num_random_orders=1, vary={"normalization": ("none", "z")})
    results = ja.run_study(config, {"mine": model}, data=data)
    none, z = (results[f"normalization={name}"]["mine"].to_dataset() for name in ("none", "z"))
    assert none["scores"].equals(z["scores"])
    assert not none["ablated"].equals(z["ablated"])
    page = write_report(results, tmp_path / "grid.html").read_text()
    assert "run_study(config, networks, data=data, run_dir" in page
    with raises_input_error("vary: l2 changes neither"):
        ja.run_study(replace(config, vary={"l2": (0, 1)}), {"mine": model}, data=data)


def test_comparisons_by_hand(grid):
    _, results = grid
    compared = ja.results.compare_conditions(results)
    assert list(compared["condition"].values) == list(results.children)
    network = network_of(results, "l2=0, quantizer=mean")
    cell = compared.sel(condition="l2=0, quantizer=mean", network=NETWORK)
    areas = 100 * network["accuracy"].sel(scope="network").isel(step=slice(1, None)).mean("step")
    random = areas.isel(ordering=network["ranking"].values == "random").mean("ordering")
    for comparison, values in {
        "kl_selectivity_high - random": areas.sel(ordering="kl_selectivity_high", fill="mean")
        - random.sel(fill="mean"),
        "entropy_low - entropy_high": areas.sel(ordering="entropy_low", fill="mean")
        - areas.sel(ordering="entropy_high", fill="mean"),
        "mean - zero": random.sel(fill="mean") - random.sel(fill="zero"),
    }.items():
        values = values.values.astype(np.float64)
        effect = cell.sel(comparison=comparison)
        half = stats.t.ppf(0.975, 1) * values.std(ddof=1) / 2**0.5
        low, high = values.mean() - half, values.mean() + half
        np.testing.assert_allclose(
            [effect["difference"], effect["low"], effect["high"]], [values.mean(), low, high], atol=1e-9
        )
    p_values = cell["p_holm"].values
    assert ((p_values >= 0) & (p_values <= 1)).all()
    assert float(cell["accuracy"]) == pytest.approx(
        100 * float(network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).mean())
    )
    counts = network["joint_counts"].sum("class").values
    assert float(cell["constant"]) == pytest.approx(100 * ((counts > 0).sum(axis=-1) == 1).mean())


@pytest.mark.slow
def test_conditions_of_different_networks(config):
    config = replace(config, seeds=(0,), vary={"networks": (((8,),), ((8,), (8, 7))), "scores": (("entropy",),)})
    results = ja.run_study(config)
    compared = ja.results.compare_conditions(results)
    assert dict(compared.sizes) == {"condition": 2, "network": 2, "comparison": 4}
    missing = compared["accuracy"].isnull()
    assert missing.values.tolist() == [[False, True], [False, False]]
    assert draw_conditions(results).axes


@pytest.mark.slow
def test_conditions_of_different_protocols(config, tmp_path):
    vary = {"protocols": (("published",), ("paper", "published"), ("paper",))}
    results = ja.run_study(replace(config, seeds=(0,), vary=vary))
    one, both, another = results.children
    compared = {name: ja.results.compare_conditions(results, name) for name in ("paper", "published")}
    assert list(compared["paper"]["condition"].values) == [both, another]
    assert list(compared["published"]["condition"].values) == [one, both]
    with raises_input_error("protocol: unknown 'both'"):
        ja.results.compare_conditions(results, "both")
    text = write_report(results, tmp_path / "grid.html").read_text().replace("\u200b", "")
    assert text.count(f">{both}<") == 1 + 2 * 10  # a row of accuracies, and one of each comparison and protocol
    assert text.count(f">{one}<") == text.count(f">{another}<") == 1 + 10
    with without_pdf():
        files = save_conditions(results, tmp_path)
    assert {file.stem for file in files} == {"conditions", "conditions_published"}
    assert len(ja.results.tidy(results)["condition"].unique()) == 3


def test_datasets_of_one_name_keep_their_checksums(config, small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    arrays = dict(np.load(small_data))
    np.savez("small.npz", **arrays)
    np.savez("data/small.npz", **arrays | {"train_images": arrays["train_images"][::-1]})
    vary = {"dataset": ("small.npz", "data/small.npz")}
    results = ja.run_study(replace(config, seeds=(0,), vary=vary))
    checksums = json.loads(results.attrs["dataset_sha256"])
    assert list(checksums.values()) == [
        json.loads(study.attrs["dataset_sha256"]) for study in results.children.values()
    ]
    assert len({json.dumps(files) for files in checksums.values()}) == 2


@pytest.mark.parametrize("name", [3, ""])
def test_the_name_of_a_dataset_is_text(name):
    with raises_input_error("name: expected a text"):
        ja.Dataset.from_arrays(np.zeros((60, 4), np.float32), np.arange(60), name=name)


def test_a_missing_dataset_is_reported_before_any_work(config, small_data, tmp_path):
    reports = []
    config = replace(config, vary={"dataset": (small_data, "nowhere.npz")})
    with raises_input_error("unknown 'nowhere.npz'"):
        ja.run_study(config, run_dir=tmp_path / "out", on_progress=lambda *report: reports.append(report))
    assert not reports
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_saved_grids_load_again_and_merge(config, grid, tmp_path):
    _, results = grid
    ja.results.save_results(results, tmp_path / "grid.nc")
    loaded = ja.results.load_results(tmp_path / "grid.nc")
    assert loaded.identical(results)
    ja.results.save_results(results["l2=0, quantizer=mean"], tmp_path / "one.nc")
    study = ja.results.load_results(tmp_path / "one.nc")
    assert study[NETWORK].to_dataset().identical(network_of(results, "l2=0, quantizer=mean"))
    comparison = ja.compare(results["l2=0, quantizer=mean"], results["l2=0.1, quantizer=mean"])
    assert comparison.attrs == {}
    assert comparison[NETWORK].attrs["comparison"] == "paired by seed"
    runs = {str(seed): ja.run_study(replace(config, seeds=(seed,))) for seed in config.seeds}
    merged = ja.results.merge_results(runs)
    for name in results.children:
        np.testing.assert_array_equal(network_of(merged, name)["correct"], network_of(results, name)["correct"])
    assert json.loads(merged.attrs["config"])["seeds"] == [0, 1]
    assert [run["seeds"] for run in json.loads(merged.attrs["merged_from"])] == [[0], [1]]
    assert [run["seconds"] for run in json.loads(merged.attrs["merged_from"])] == [
        run.attrs["seconds"] for run in runs.values()
    ]
    with raises_input_error("its conditions differ"):
        ja.results.merge_results({"0": runs["0"]["l2=0, quantizer=mean"], "1": runs["1"]})
    runs["1"] = runs["1"].copy()
    runs["1"].attrs["conditions"] = "{}"
    with raises_input_error("its conditions differ"):
        ja.results.merge_results(runs)


def test_tidy_tables_have_the_settings(grid):
    _, results = grid
    curves = ja.results.tidy(results)
    assert list(curves.columns[:5]) == ["condition", "l2", "quantizer", "protocol", "network"]
    chosen = curves[(curves["l2"] == 0.1) & (curves["quantizer"] == "mean")]
    alone = ja.results.tidy(results["l2=0.1, quantizer=mean"])
    assert len(chosen) == len(alone) == len(curves) / 4
    assert chosen["correct"].tolist() == alone["correct"].tolist()
    assert set(chosen["condition"]) == {"l2=0.1, quantizer=mean"}


def test_a_damaged_grid_is_refused(grid, tmp_path):
    _, results = grid
    ja.results.save_results(results, tmp_path / "damaged.nc")
    for conditions in ('{"another": {}}', "3", '{"l2=0, quantizer=mean": 3}'):
        with h5py.File(tmp_path / "damaged.nc", "r+") as file:
            file.attrs["conditions"] = conditions
        with raises_input_error("the file is damaged"):
            ja.results.load_results(tmp_path / "damaged.nc")


def test_the_page_of_a_grid(grid, tmp_path):
    _, results = grid
    text = write_report(results, tmp_path / "grid.html").read_text().replace("\u200b", "")
    for name in results.children:
        assert text.count(f">{name}<") == 1 + 10  # a row of accuracies, and one of each comparison
    value = float(ja.results.compare_conditions(results)["difference"][0, 0, 0])
    assert f">{value:+.2f} [" in text
    assert "paper's claims" not in text


@pytest.mark.slow
def test_a_grid_from_the_command_line(config, grid, small_data, tmp_path):
    _, results = grid
    out = tmp_path / "out"
    settings = tmp_path / "settings.toml"
    settings.write_text("networks = [[8, 7]]\nepochs = 9\n[vary]\nl2 = [0, 0.1]\n")
    options = ["--config", settings, "--dataset", small_data, "--seeds", 2, "--set", "epochs=2", "--random-orders", 2]
    options += ["--steps", 4, "--vary", "quantizer=activation,mean", "--out", out]
    printed = call("reproduce", *options, "--print-config")
    assert ja.StudyConfig(**json.loads(printed.stdout)) == config
    assert not out.exists()
    with without_pdf():
        result = call("reproduce", *options, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    loaded = ja.results.load_results(out / "results.nc")
    for name in results.children:
        assert network_of(loaded, name).identical(network_of(results, name))
        alone = ja.results.load_results(out / "conditions" / name / "results.nc")
        assert alone[NETWORK].to_dataset().identical(network_of(results, name))
    files = {"report.html", "comparisons_paper.csv", "figures/conditions.png", "figures/conditions.pdf"}
    assert all((out / file).is_file() for file in files)
    expected = ja.results.compare_conditions(results).to_dataframe().reset_index()
    assert [row["difference"] for row in values["conditions"]] == expected["difference"].tolist()
    assert {row["protocol"] for row in values["conditions"]} == {"paper"}
    page = (out / "report.html").read_bytes()
    with without_pdf():
        again = call("reproduce", *options)
    assert again.exit_code == 0
    printed = "".join(line.split("│")[1] for line in again.stdout.splitlines() if "│" in line).replace(" ", "")
    for name in results.children:
        assert name.replace(" ", "") in printed
    assert f"Comparisons: {out / 'comparisons_paper.csv'}" in again.stdout
    assert (out / "report.html").read_bytes() != page  # which says how long it took
    runs = [out / "conditions" / f"l2={l2}, quantizer=mean" for l2 in ("0", "0.1")]
    assert call("report", runs[0]).exit_code == 0
    compared = call("compare", *runs, "--out", tmp_path / "table.csv")
    assert compared.exit_code == 0, compared.output
    assert "paired by seed, 2 networks" in " ".join(compared.stdout.split())
    assert (tmp_path / "table.csv").read_text().count("\n") == 1 + 3 * 7 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "l2"], "expected NAME=VALUE such as l2=1e-4, got 'l2'"),
        (["--set", "l3=1"], "unknown 'l3'; did you mean l2"),
        (["--set", "l2=1", "--set", "l2=2"], "l2 is there twice"),
        (["--set", "vary=l2"], "vary is an option of its own"),
        (["--set", "epochs=1", "--epochs", 2], "epochs has another option"),
        (["--activation", "relu", "--vary", "activation=tanh,gelu"], "activation has one value in this command too"),
        (["--set", "networks=10xa"], "networks: expected an integer, got 'a'"),
        (["--vary", "l2=0,x"], "condition l2=x: l2: expected a number, got 'x'"),
        (["--config", "none.json"], "expected a file, got none"),
        (["--config", "list.json"], "expected settings by name, got list"),
        (["--config", "half.json"], "it cannot be read as JSON"),
        (["--config", "vary.json"], "expected values by setting"),
        (["--config", "text.txt"], "unknown suffix"),
    ],
)
def test_settings_that_cannot_be_read(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"list": "[1]", "half": "{", "vary": '{"vary": 3}'}.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "text.txt").write_text("l2 = 0")
    jaxtyping.config.update("jaxtyping_disable", True)  # as in normal use
    try:
        result = call("reproduce", *options, "--out", "out")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_line_counts_more_than_the_file(tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text('{"vary": {"l2": [0, 1], "dropout": [0, 0.5], "activation": ["relu"]}}')
    result = call("reproduce", "--config", settings, "--set", "l2=.5", "--vary", "dropout=.1,1e-1", "--print-config")
    assert "expected different values, got 0.1, 0.1" in result.stderr
    result = call("reproduce", "--config", settings, "--set", "l2=.5", "--vary", "dropout=.1,0", "--print-config")
    values = json.loads(result.stdout)
    assert values["l2"] == 0.5
    assert values["vary"] == {"dropout": [0.1, 0], "activation": ["relu"]}
    result = call("reproduce", "--vary", "normalization=none,z", "--vary", "epochs=none,1", "--print-config")
    assert json.loads(result.stdout)["vary"] == {"normalization": ["none", "z"], "epochs": [None, 1]}


@pytest.mark.slow
def test_grids_are_merged_and_replaced_from_the_command_line(small_data, tmp_path):
    options = ["--dataset", small_data, "--epochs", 1, "--random-orders", 1, "--steps", 2, "--set", "networks=8x7"]
    vary = ["--vary", "scores=entropy,mutual_information"]
    first, second, merged = (tmp_path / name for name in ("first", "second", "merged"))
    with without_pdf():
        for seed, out in enumerate((first, second)):
            result = call("reproduce", *options, *vary, "--first-seed", seed, "--out", out)
            assert result.exit_code == 0, result.output
            assert "nan" not in result.stdout  # each condition lacks the other's score
        result = call("merge", first, second, "--out", merged)
        assert result.exit_code == 0, result.output
        networks = sorted(path.name for path in merged.glob("conditions/*/networks/*"))
        assert networks == [f"{NETWORK}_seed{seed}.safetensors" for seed in (0, 1)]
        (merged / "report.html").unlink()
        assert call("report", merged).exit_code == 0
        assert (merged / "report.html").is_file()
        result = call("compare", first, first, "--json")
        assert json.loads(result.stdout)["differences"][0]["difference"] == 0
        hostile = tmp_path / "a[" / "b]"  # "[/b]" closes a style of the console
        shutil.copytree(second, hostile)
        result = call("compare", hostile, second)
        assert result.exit_code == 0, result.output
        assert "nan" not in result.stdout  # one network has no interval
        # another run in place of a grid, of networks that the paper's figures do not show
        result = call("reproduce", *options, "--seeds", 2, "--out", first, "--force")
    assert result.exit_code == 0, result.output
    assert (first / "report.html").is_file()
    assert (first / "claims.json").is_file()
    assert not list(first.glob("comparisons*")) + list(first.glob("figures/conditions*"))
