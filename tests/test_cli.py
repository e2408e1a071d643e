"""The command line and the scripts, run as a user runs them."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from flax import nnx
from helpers import REPRODUCE, SHORT, call, first_quick, without_pdf
from rich.console import Console
from scipy import stats
from test_datasets import arrays, idx, write_folder
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate.cli import _console, _tables

ROOT = Path(__file__).parents[1]
WITHOUT_PICTURES = (Path(__file__).parent / "without_pictures.py",)


def run(*arguments, program=("-m", "jaxablate"), **environment):
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


@pytest.mark.slow
def test_reproduce_in_a_process_of_its_own(reproduced, tmp_path):
    """As a user runs it: whole PDF files, and the results of the same command in this process."""
    process = run(*REPRODUCE, "mnist5k", "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "out" / "figures").glob("fig*.pdf"))
    first, second = (ja.results.load_results(folder / "results.nc") for folder in (reproduced[0], tmp_path / "out"))
    for name in ("2-layer", "3-layer"):
        xr.testing.assert_equal(first[name].to_dataset()["correct"], second[name].to_dataset()["correct"])


def test_reproduce_leaves_everything(reproduced):
    out, process = reproduced
    assert process.exit_code == 0, process.stderr
    results = ja.results.load_results(out / "results.nc")
    assert list(results.children) == ["2-layer", "3-layer"]
    assert len(list((out / "figures").glob("fig*.png"))) == 22
    assert len(list((out / "figures").glob("fig*.pdf"))) == 22
    assert (out / "figures" / "contact_sheet.png").exists()
    assert {path.name for path in (out / "networks").iterdir()} == {
        "2-layer_seed0.safetensors",
        "3-layer_seed0.safetensors",
    }
    assert not [path for path in out.rglob(".*")], "no temporary file is left"
    page = (out / "report.html").read_text()
    assert page.count('width="56" height="56"') == (2 + 3) * 6, "the networks are found"
    assert page.count('<img class="examples"') == (2 + 3) * 6
    for name in ("2-layer", "3-layer"):
        intact = 100 * float(results[name]["accuracy"][0, 0, 0, 0, 0])
        assert f"{name} ({intact:.2f})" in process.stdout
    assert len([line for line in process.stdout.splitlines() if line.startswith("│")]) == 2 * 3
    assert f"jaxablate table {out} --out curves.csv" in process.stdout
    assert "Dataset: mnist5k (" in process.stdout


@pytest.fixture(scope="module")
def judged(small_data, tmp_path_factory):
    """Five networks of each kind under both protocols, as a run and its results."""
    out = tmp_path_factory.mktemp("claims") / "out"
    options = ["--seeds", 5, "--first-seed", 5, "--protocol", "both", "--out", out]
    command = [*REPRODUCE, small_data, *options]
    with without_pdf():
        return out, command, call(*command)


@pytest.mark.slow
def test_several_networks_are_judged(judged):
    out, _, process = judged
    assert process.exit_code == 0, process.output
    results = ja.results.load_results(out / "results.nc")
    assert ja.results.protocols_of(results) == ["paper", "published"]
    assert results["3-layer"]["seed"].values.tolist() == [5, 6, 7, 8, 9]
    verdicts = ja.judge_claims(results)
    saved = json.loads((out / "claims.json").read_text())
    assert (saved["paper_setting"], saved["differences"]) == (False, ["dataset: small", "epochs: 1"])
    assert [v["verdict"] for v in saved["verdicts"]] == [v.verdict for v in verdicts]
    assert (out / "claims.csv").exists()
    assert len(list((out / "figures").glob("fig*.png"))) == 22
    assert len(list((out / "figures" / "published").glob("fig*.png"))) == 22
    figure = "fig13_2layer_layer1_low_first.png"
    pictures = [(out / "figures" / folder / figure).read_bytes() for folder in ("", "published")]
    assert pictures[0] != pictures[1]
    findings = {path.name for path in (out / "figures" / "findings").glob("*.png")}
    assert {
        "claims.png",
        "claim_C1.png",
        "correlations.png",
        "layer_shares_2-layer.png",
        "layer_shares_3-layer.png",
    } <= findings
    text = process.stdout
    assert "paper's claims" not in text
    table = text[text.index("Not the paper's setting (dataset: small; epochs: 1)") :]
    assert table.index("C1 ") < table.index("C2 ") < table.index("C9 ") < table.index("C10")
    rows = [line for line in table.splitlines() if "-layer │" in line]
    published = [v for v in verdicts if v.protocol == "published"]
    for row, verdict in zip(rows, sorted(published, key=lambda v: list(ja.claims.CLAIMS).index(v.claim)), strict=True):
        assert verdict.network in row
        assert row.split("│")[5].split()[0] == verdict.verdict.split()[0]
    assert process.stdout.count("protocol published") == 1
    assert process.stdout.count("protocol paper") == 1


@pytest.mark.slow
def test_the_same_command_gives_the_same_claims(judged):
    out, command, _ = judged
    before = (out / "claims.json").read_bytes()
    (out / "claims.json").unlink()
    process = run(*command, program=WITHOUT_PICTURES)
    assert process.returncode == 0, process.stderr
    assert (out / "claims.json").read_bytes() == before


def test_one_network_is_not_judged(reproduced):
    out, process = reproduced
    assert "are not judged on one network of each kind: --seeds 10 does that" in process.stdout
    assert not (out / "claims.json").exists()


def test_without_a_terminal_every_step_is_told_once_and_at_once(capsys, monkeypatch):
    monkeypatch.setattr(_console.console, "quiet", False)
    bars = _console.Bars()
    with bars.progress:
        bars("train", 1, 2, "loss 2")
        assert capsys.readouterr().out == ""
        bars("train", 2, 2, "loss 1")
        assert "2/2" in capsys.readouterr().out
        bars.EVERY = 0
        bars("ablate", 1, 3, "")
        assert "left" in capsys.readouterr().out
        bars("train", 2, 2, "loss 1")
    assert capsys.readouterr().out == ""


def test_a_deleted_working_folder_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = call("datasets")
    assert result.exit_code == 1
    assert "error: working folder: it was deleted; change to a folder that exists" in result.stderr


def test_unknown_protocols_are_refused(tmp_path):
    process = run(*REPRODUCE, "mnist5k", "--protocol", "paper,printed", "--out", tmp_path / "out")
    assert process.returncode == 1
    assert "protocol: unknown 'printed'; choose one of paper, published" in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_second_run_reuses_the_networks(reproduced, tmp_path):
    out = shutil.copytree(reproduced[0], tmp_path / "out")
    process = run(*REPRODUCE, "mnist5k", "--out", out)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("reused 1 trained before") == 2


@pytest.mark.slow
def test_kept_programs_are_used_without_a_word(reproduced, small_data, tmp_path):
    network = reproduced[0] / "networks" / "2-layer_seed0.safetensors"
    options = ["--dataset", small_data, "--steps", "3", "--out", tmp_path / "curves.csv"]
    as_of_jax = {"TF_CPP_MIN_LOG_LEVEL": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "kept")}
    for _ in range(2):
        process = run("ablate", network, *options, "--quiet", **as_of_jax)
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert list((tmp_path / "kept").iterdir())


@pytest.mark.slow
def test_the_scripts(reproduced, tmp_path):
    out, _ = reproduced
    script = ROOT / "scripts" / "figure.py"
    process = run(8, "--results", out / "results.nc", "--out", tmp_path, program=[script])
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "fig08_3layer_bias_balancing_layer1.png").exists()
    process = run(80, "--results", out / "results.nc", "--out", tmp_path / "x", program=[script])
    assert process.returncode == 1
    assert process.stderr == "error: figure: expected a number in 1..22, got 80\n"
    assert not (tmp_path / "x").exists()
    process = run("--help", program=[ROOT / "scripts" / "reproduce.py"])
    assert process.returncode == 0
    assert "--random-orders" in process.stdout


@pytest.mark.slow
def test_a_report_of_saved_results_is_the_same(small_data, tmp_path):
    out = tmp_path / "out"
    assert call(*REPRODUCE, small_data, "--set", "networks=12x10", "--out", out).exit_code == 0
    # results keep the name of a file of data, not its folder
    process = run("report", out, "--data-dir", small_data.parent, "--out", tmp_path / "again.html", "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {
        "report": str(tmp_path / "again.html"), "pictures_of": ["2-layer-12-10"], "notes": []
    }  # fmt: skip
    assert (tmp_path / "again.html").read_bytes() == (out / "report.html").read_bytes()
    process = run("report", out, "--data-dir", tmp_path, "--out", tmp_path / "again.html", "--json")
    missing = f"data_dir: small.npz is not in folder {tmp_path}; give the folder that holds it"
    assert json.loads(process.stdout)["notes"] == [missing]
    result = call("report", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "expected a file, got none; `jaxablate reproduce` writes one" in result.stderr


def test_tables_of_a_run(reproduced, tmp_path):
    out, _ = reproduced
    results = ja.results.load_results(out / "results.nc")
    process = call("table", out, "--out", tmp_path / "curves.csv", "--json")
    assert process.exit_code == 0, process.output
    curves = pd.read_csv(tmp_path / "curves.csv", dtype={"ablated": "Int32", "direction": str})
    assert json.loads(process.stdout) == {
        "table": str(tmp_path / "curves.csv"), "rows": len(curves), "columns": list(curves)
    }  # fmt: skip
    expected = ja.results.tidy(results)
    for name in ("network", "scope", "ranking", "direction", "fill", "step", "ablated", "correct", "accuracy"):
        assert curves[name].astype(object).equals(expected[name].astype(object))
    process = call("table", out / "results.nc", "--neurons", "--out", tmp_path / "neurons.csv")
    assert process.exit_code == 0, process.output
    assert "(1,000 rows: protocol, network, seed, site, layer, neuron," in process.stdout
    assert pd.read_csv(tmp_path / "neurons.csv")["entropy"].shape == (1000,)


def test_tables_as_parquet(reproduced, tmp_path):
    pytest.importorskip("pyarrow")
    assert call("table", reproduced[0], "--out", tmp_path / "curves.parquet").exit_code == 0
    expected = ja.results.tidy(ja.results.load_results(reproduced[0] / "results.nc"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "curves.parquet"), expected)


def test_tables_that_cannot_be_written_leave_nothing(reproduced, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, message in (
        ("curves.nc", "unknown suffix; choose a name that ends in .csv or .parquet"),
        ("curves.parquet", "Parquet files need pyarrow; install it (pip install pyarrow), or choose a .csv file"),
    ):
        process = call("table", reproduced[0], "--out", tmp_path / name)
        assert process.exit_code == 1
        assert process.stderr == f"error: table {tmp_path / name}: {message}\n"
    process = call("table", tmp_path, "--out", tmp_path / "curves.csv")
    assert (process.exit_code, process.stderr.count("\n")) == (1, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_note_is_printed_where_little_else_is(reproduced, tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "results.nc").write_bytes((reproduced[0] / "results.nc").read_bytes())
    (tmp_path / "networks" / "2-layer_seed0.safetensors").write_bytes(b"damaged")
    process = run("report", tmp_path, "--quiet")  # here pytest would raise the warning that becomes a note
    assert (process.returncode, process.stdout) == (0, "")
    assert process.stderr.startswith("note: no pictures of weights from 2-layer_seed0.safetensors")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("command", "code"),
    first_quick(
        [
            ("datasets --json > /dev/full", 1),
            ("datasets --json > /dev/null", 0),
            ("datasets > /dev/full", 1),
            ("report nothing.nc --json 2> /dev/full", 1),
            ("--help > /dev/full", 1),
            ("--version > /dev/full 2> /dev/full", 1),
            ("datasets --json | head -1", 0),
        ],
        quick=2,
    ),
)
def test_output_that_cannot_be_written_is_an_error(command, code):
    """Python's own flush at exit must not fail either; PYTHONUNBUFFERED would hide that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = f"{sys.executable} -m jaxablate {command}"
    process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    assert process.returncode == code
    errors = process.stderr.splitlines()
    assert len(errors) == (code == 1 and "2>" not in command)
    assert all(error.startswith("error: ") for error in errors)


@pytest.mark.slow
def test_numbers_are_there_in_a_narrow_terminal(small_results, monkeypatch):
    console = Console(width=60, file=io.StringIO())
    monkeypatch.setattr(_tables, "console", console)
    _tables.print_summary(small_results)
    printed = console.file.getvalue()
    for name in ("2-layer-12-10", "3-layer-10-8-9"):
        rows = _largest(small_results[name].to_dataset())
        for difference, low, high in rows:
            assert f"{difference:+.1f}" in printed
            assert f"{low:+.1f} to {high:+.1f}" in printed


def _largest(network) -> list[tuple[float, float, float]]:
    """Return mean and ends of the interval of the three largest differences, computed from the areas of the curves."""
    rows = []
    for scope in network["scope"].values:
        area = ja.results.auc(network).sel(scope=scope).transpose("seed", "ordering", "fill")
        random = area.isel(ordering=np.flatnonzero(network["ranking"] == "random")).mean("ordering")
        mean = area.sel(fill="mean")
        for score in network["score"].values:
            low, high = (mean.sel(ordering=f"{score}_{way}").values for way in ("low", "high"))
            rows += [low - random.sel(fill="mean").values, high - random.sel(fill="mean").values, low - high]
        rows.append((random.sel(fill="mean") - random.sel(fill="zero")).values)
    rows.sort(key=lambda values: -abs(values.mean()))
    half = [stats.t.ppf(0.975, 1) * values.std(ddof=1) / 2**0.5 for values in rows[:3]]
    return [(v.mean(), v.mean() - h, v.mean() + h) for v, h in zip(rows, half, strict=False)]


@pytest.mark.parametrize("command", ["reproduce", "report", "score", "ablate", "prune", "merge", "table", "datasets"])
def test_help_fits_a_screen(command):
    help_text = CliRunner().invoke(ja.cli.app, [command, "--help"], env={"COLUMNS": "80"}).stdout
    assert len(help_text.splitlines()) <= 40
    assert f"Example: jaxablate {command} " in help_text
    assert all(f"--{option}" in help_text for option in ("quiet", "json", "debug"))


@pytest.mark.slow
def test_quiet_json_and_debug(reproduced, small_data, tmp_path):
    network = reproduced[0] / "networks" / "2-layer_seed0.safetensors"
    options = ["--dataset", small_data, "--out"]
    assert call("score", network, *options, tmp_path / "scores.csv", "--quiet").stdout == ""
    assert (tmp_path / "scores.csv").exists()
    scores = json.loads(run("score", network, *options, tmp_path / "scores.csv", "--json").stdout)
    table = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert scores["scores"] == str(tmp_path / "scores.csv")
    entropy = scores["mean_score"]["layer1"]["entropy"]
    chosen = (table["score"] == "entropy") & (table["layer"] == 1)
    assert entropy == pytest.approx(table["scores"][chosen].mean(), abs=1e-6)
    ablation = ["--steps", "3", "--random-orders", "2", "--json", "--report", tmp_path / "report.html"]
    output = json.loads(call("ablate", network, *options, tmp_path / "curves.csv", *ablation).stdout)
    assert output["report"] == str(tmp_path / "report.html")
    assert {row["fill"] for row in output["accuracy"]} == {"zero", "mean"}
    assert '<img src="data:image/png' in (tmp_path / "report.html").read_text()
    pruned = json.loads(call("prune", network, *options, tmp_path / "small.safetensors", "--json").stdout)
    assert len(pruned["networks"]) >= 2
    assert json.loads(call("datasets", "--json").stdout)["mnist5k"]["what"]
    process = run("score", tmp_path / "none", *options, tmp_path / "x.csv", "--json", "--debug")
    assert (process.returncode, process.stdout) == (1, "")
    assert "Traceback" in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: network file")
    assert call("score", network, *options, tmp_path / "x.csv", "--nonsense").exit_code == 2
    result = call("score", network, *options, tmp_path / "x.csv", "--score", "nonsense", "--quiet")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_completion():
    shell = {"_JAXABLATE_COMPLETE": "complete_bash", "COMP_WORDS": "jaxablate re", "COMP_CWORD": "1"}
    process = run("-c", "from jaxablate.cli import app; app(prog_name='jaxablate')", program=(), **shell)
    assert process.stdout.split() == ["reproduce", "report"]


def test_a_terminal_of_unknown_width():
    """Some shells set COLUMNS=0, and Rich would then print nothing."""
    process = run("report", "nowhere.nc", COLUMNS="0")
    assert process.returncode == 1
    assert "nowhere.nc" in process.stderr


def test_version_and_datasets(tmp_path):
    assert run("--version").stdout == f"jaxablate {ja.__version__}\n"
    process = run("datasets", "--data-dir", tmp_path, COLUMNS="300")
    assert process.returncode == 0
    for word in ("mnist5k", "fashion_mnist", "kmnist", "embedded", f"not in {tmp_path}"):
        assert word in process.stdout


@pytest.mark.slow
def test_auto_without_a_network_says_so(tmp_path):
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = {**nowhere, "TFDS_DATA_DIR": str(tmp_path / "cache"), "JAXABLATE_DATA_DIR": ""}
    command = ["reproduce", *SHORT, "--set", "networks=10x8", "--out", tmp_path / "out"]
    process = run(*command, program=WITHOUT_PICTURES, **environment)
    assert process.returncode == 0, process.stderr
    assert "Dataset: mnist5k" in process.stdout
    assert "note: dataset: full MNIST is neither cached nor reachable" in process.stderr
    assert ja.results.load_results(tmp_path / "out" / "results.nc").attrs["dataset"] == "mnist5k"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar"], "dataset: unknown 'cifar'; choose auto, mnist,"),
        (
            ["--dataset", "mnist", "--data-dir", "."],
            "mnist: expected the four gzipped IDX files in folder mnist or ., missing",
        ),
        (["--activation", "swish"], "activation: unknown 'swish'; choose one of sigmoid, relu, tanh, gelu"),
        (
            ["--steps", "201"],
            "steps: 201 is out of range; choose 1 to 200, the number of neurons of the smallest layer",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, arguments, message):
    result = call("reproduce", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def damaged_folder(path: Path, damage: str) -> Path:
    """A folder of IDX files, or an archive, with one thing wrong."""
    if damage == "key":
        np.savez(path / "data.npz", **{k: v for k, v in arrays().items() if k != "test_labels"})
        return path / "data.npz"
    if damage == "nan":
        np.savez(path / "data.npz", **{**arrays(), "test_images": np.full((9, 4, 5), np.nan)})
        return path / "data.npz"
    changed = {
        "magic": {"train_images": idx(arrays()["train_images"], 0x801)},
        "count": {"train_labels": np.zeros(59)},
        "labels": {"test_labels": np.arange(9)},
    }
    folder = write_folder(path / "data", **changed.get(damage, {}))
    if damage == "gzip":
        file = folder / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:80])
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gzip", "expected a whole gzip file, got a damaged one"),
        ("magic", "expected IDX magic number 0x00000803, got 0x00000801"),
        ("count", "expected one label for each image, got 60 images"),
        ("labels", "expected values in 0..2, got 0..8"),
        ("key", "missing test_labels"),
        ("nan", "expected finite numbers, got 180 NaN"),
    ],
)
def test_damaged_data_is_one_sentence_and_leaves_nothing(tmp_path, damage, message):
    out = tmp_path / "out"
    data = damaged_folder(tmp_path, damage)
    result = CliRunner().invoke(jaxablate.cli.app, ["reproduce", "--dataset", str(data), "--out", str(out)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_a_wrong_checksum_is_one_sentence_and_leaves_nothing(tmp_path, mnist_dir):
    arguments = ["reproduce", "--dataset", "kmnist", "--data-dir", str(mnist_dir), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(jaxablate.cli.app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: kmnist: expected files with the checksums that TFDS knows")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_steps_from_the_command_line(tmp_path):
    ja.save_model(ja.MLP(784, (6, 3), 10, rngs=nnx.Rngs(0)), tmp_path / "network.safetensors")
    command = ["ablate", "network.safetensors", "--dataset", "mnist5k", "--random-orders", "2", "--quiet", "--no-cache"]
    for steps, length in (([], 3), (["--steps", "2"], 2), (["--steps", "all"], 9), (["--steps", "50%"], 2)):
        arguments = [command[0], str(tmp_path / command[1]), *command[2:], *steps, "--out", str(tmp_path / "curves.nc")]
        result = CliRunner().invoke(jaxablate.cli.app, arguments)
        assert result.exit_code == 0, result.output
        accuracy = ja.results.load_results(tmp_path / "curves.nc")["network"]["accuracy"]
        assert accuracy["step"].values.tolist() == list(range(length + 1))
        reached = accuracy.notnull().all(("seed", "ordering", "fill")).sum("step").values - 1
        assert reached.tolist() == [min(length, width) for width in (6, 3, 9)]


@pytest.mark.parametrize("steps", ["0", "-1", "2.5", "each"])
def test_steps_that_are_no_number(tmp_path, steps):
    result = CliRunner().invoke(jaxablate.cli.app, ["reproduce", "--steps", steps, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"got {steps}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    process = run(*REPRODUCE, "mnist5k", "--out", tmp_path / "file")
    assert process.returncode == 1
    assert process.stderr.startswith("error: output folder")
    assert process.stderr.count("\n") == 1
    assert "choose another folder" in process.stderr
    assert (tmp_path / "file").read_text() == "mine"


PROGRAM = """
import pathlib, sys, warnings
import jax, jax.numpy as jnp
from jaxablate.cli._console import keep_compiled_programs

keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
for damage in (None, -1, None):
    for entry in folder.glob("*-cache"):
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= damage is not None
        entry.write_bytes(content[:damage])
    jax.clear_caches()
    print(damage, float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8)))))
warnings.warn("shown")
"""


def test_damaged_compiled_programs_are_compiled_anew(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    process = run(program=["-c", PROGRAM], **environment)
    assert process.returncode == 0, process.stderr
    first, second, last = re.split(r"\S+ 512\.0\n", process.stdout)[:-1]
    assert first == last == ""
    assert "Compiled again, since its cached program is damaged: jit__lambda" in second
    assert "Error reading" not in process.stderr
    assert "UserWarning: shown" in process.stderr


TALKATIVE = "from jaxablate.cli import _console, main; _console.Bars.EVERY = 0; main()"  # a line for every report


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_training(small_data, tmp_path, how):
    arguments = ["reproduce", "--dataset", small_data, "--epochs", "100000", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", TALKATIVE, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any(re.match(r"train .* [1-9]\d*/\d+ ", line) for line in process.stdout)
        process.send_signal(how)
        process.communicate(timeout=60)
    assert process.returncode == 128 + how


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_half_file(small_data, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jaxablate", *REPRODUCE, small_data, "--out", out]
    for how in (signal.SIGTERM, signal.SIGINT):  # the second run finds the curves of the first, and draws again
        shutil.rmtree(out / "figures", ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(out.glob("figures/*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        assert process.wait() == 128 + how
        files = [path for path in out.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in out.rglob(".*")]
        for path in files:
            data = path.read_bytes()
            if path.suffix == ".pdf":
                assert data.rstrip().endswith(b"%%EOF")
            if path.suffix == ".png":
                assert data.endswith(b"IEND\xaeB`\x82")
        ja.results.load_results(out / "results.nc")


def test_brackets_in_paths_are_no_markup(small_data, tmp_path):
    folder = tmp_path / "run[red]" / "a[" / "b]"
    folder.mkdir(parents=True)
    ja.save_model(ja.MLP(784, (4,), 10, rngs=nnx.Rngs(0)), folder / "net.safetensors")
    options = [str(folder / "net.safetensors"), "--dataset", str(small_data), "--out", str(folder / "scores.csv")]
    result = CliRunner().invoke(ja.cli.app, ["score", *options, "--score", "incoming_norm"])
    assert result.exit_code == 0, result.output
    assert f"Scores: {folder / 'scores.csv'}\n" in result.output
