"""Merged runs equal one run of all seeds, and what cannot be merged is refused in one sentence."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from helpers import raises_input_error, without_pdf
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate import cli, figures, report

SMALL = ["--set", "networks=200x200+10x8x9"]
COMMAND = ["reproduce", "--epochs", "1", "--steps", "4", "--random-orders", "2", "--no-cache", *SMALL, "--dataset"]


def nothing(*_, **__) -> None:
    pass


def call(*arguments) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == result.stderr.count("\n") == 1
    return result.stderr


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((figures, "save_figures"), (figures, "save_finding_figures"), (report, "write_report")):
            patch.setattr(module, name, nothing)
        yield


@pytest.fixture(scope="module")
def runs(small_data, tmp_path_factory) -> Path:
    """Two runs of one seed each, without their pictures."""
    folder = tmp_path_factory.mktemp("runs")
    with without_pictures():
        call(*COMMAND, small_data, "--first-seed", 0, "--out", folder / "a")
        call(*COMMAND, small_data, "--first-seed", 1, "--out", folder / "b")
    return folder


@pytest.mark.slow
def test_merged_runs_equal_one_run_of_all_seeds(small_data, runs, tmp_path):
    with without_pictures():
        call(*COMMAND, small_data, "--seeds", 2, "--out", runs / "both")
    out = tmp_path / "new" / "merged"
    with without_pdf():
        values = json.loads(call("merge", runs / "b", runs / "a", "--out", out, "--json"))
    assert values["report"] == str(out / "report.html")
    both, merged = (ja.results.load_results(folder / "results.nc") for folder in (runs / "both", out))
    assert list(merged.children) == list(both.children) == ["2-layer", "3-layer-10-8-9"]
    for name in both.children:
        xr.testing.assert_identical(merged[name].to_dataset(), both[name].to_dataset())
    for name in ("claims.json", "claims.csv"):
        assert (out / name).read_bytes() == (runs / "both" / name).read_bytes()
    networks = sorted(path.name for path in (out / "networks").iterdir())
    assert networks == sorted(path.name for path in (runs / "both" / "networks").iterdir())
    for network in networks:
        run = "b" if "_seed1" in network else "a"
        assert (out / "networks" / network).read_bytes() == (runs / run / "networks" / network).read_bytes()
    differing = {key for key in both.attrs if merged.attrs[key] != both.attrs[key]}
    assert differing <= {"created", "seconds"}
    assert [run["seeds"] for run in json.loads(merged.attrs["merged_from"])] == [[1], [0]]
    assert len(list((out / "figures").glob("fig*.png"))) == 7  # those of the paper's 2-layer network
    assert (out / "figures" / "findings" / "claims.png").exists()
    assert '<img src="data:image/png' in (out / "report.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert "it already holds files" in refusal("merge", runs / "a", runs / "b", "--out", out)


@pytest.mark.slow
def test_runs_that_cannot_be_merged_are_refused(runs, tmp_path):
    a, b, out = runs / "a", runs / "b", tmp_path / "out"
    assert "1 is not enough to merge" in refusal("merge", a, "--out", out)
    assert "a folder is named twice" in refusal("merge", a, a, "--out", out)
    assert f"run {tmp_path / 'x'}: there is no such folder" in refusal("merge", a, tmp_path / "x", "--out", out)
    copy = tmp_path / "copy"
    shutil.copytree(a, copy)
    assert f"run {copy}: it has seed 0, as {a} has" in refusal("merge", a, b, copy, "--out", out)
    (copy / "run.owner").write_text("process 1")
    assert f"run {copy}: it is not finished" in refusal("merge", b, copy, "--out", out)
    (copy / "run.owner").unlink()
    (copy / "results.nc").unlink()
    assert f"run {copy}: it is not finished" in refusal("merge", b, copy, "--out", out)
    assert f"output folder {b}: it already holds files" in refusal("merge", a, b, "--out", b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.slow
def test_a_merge_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ja.InputError("the disk is full")

    drawn = []

    def draw(_, folder, **__):
        drawn.append(folder / "figure.png")
        folder.mkdir(parents=True)
        drawn[-1].write_bytes(b"")

    monkeypatch.setattr(figures, "save_figures", draw)
    monkeypatch.setattr(figures, "save_finding_figures", nothing)
    monkeypatch.setattr(report, "write_report", fail)
    assert "the disk is full" in refusal("merge", runs / "a", runs / "b", "--out", tmp_path / "out")
    assert drawn
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_differences_are_named(runs):
    trees = {name: ja.results.load_results(runs / name / "results.nc") for name in "ab"}

    def change(**changed) -> dict[str, xr.DataTree]:
        changed_tree = trees["b"].copy()
        changed_tree.attrs.update(
            {name: json.dumps({**json.loads(changed_tree.attrs[name]), **value}) for name, value in changed.items()}
        )
        return {"a": trees["a"], "b": changed_tree}

    with raises_input_error(r"run b: its settings differ \(epochs: 1 in a, 2 in b\); merge runs of the same settings"):
        ja.results.merge_results(change(config={"epochs": 2}))
    with raises_input_error(r"run b: its settings differ \(data: .* in a, .*'test': 'x'.* in b\)"):
        ja.results.merge_results(change(dataset_sha256={"test": "x"}))
    moved = ja.results.merge_results(change(config={"data_dir": "/another"}, versions={"numpy": "another"}))
    assert json.loads(moved.attrs["versions"])["numpy"].endswith(" | another")
    assert json.loads(moved.attrs["merged_from"])[1]["versions"]["numpy"] == "another"
