"""Environments and file names that are not ours: each works, or ends in one sentence before the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import raises_input_error
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate.cli import app

ROOT = Path(__file__).parents[1]
HOSTILE_STYLE = """text.usetex: True
axes.prop_cycle: cycler("color", ["r"])
font.size: 60
figure.constrained_layout.use: True
savefig.format: svg
savefig.bbox: tight
lines.linewidth: 9
nonsense.key: 3
"""
# All commands that compute or draw, in one process. The exit codes go to codes.json.
SCRIPT = """
import json, sys
from jaxablate.cli import main
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""
DATA = ["--dataset", "data.npz"]
NETWORK = ["network.safetensors", *DATA]
SHORT = ["--random-orders", "1"]
COMPUTING = [
    [
        "reproduce",
        *DATA,
        "--epochs",
        "1",
        "--set",
        "networks=5x4",
        *SHORT,
        "--steps",
        "2",
        "--no-cache",
        "--out",
        "run",
    ],
    ["score", *NETWORK, "--out", "scores.csv"],
    ["ablate", *NETWORK, *SHORT, "--no-cache", "--out", "curves.nc", "--report", "page.html"],
    ["prune", *NETWORK, "--out", "small.safetensors"],
]
READING = [
    ["report", "run/results.nc", "--out", "again.html"],
    ["table", "run/results.nc", "--out", "curves.csv"],
    ["compare", "run", "run"],
    ["datasets"],
    ["reproduce", "--help"],
]
ENVIRONMENTS = {
    "a notebook's backend, a hostile style": {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "{folder}/matplotlibrc",
    },
    "a plain terminal, nowhere to write": {
        "COLUMNS": "40", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "TERM": "dumb",
        "NO_COLOR": "1", "PYTHONUNBUFFERED": "1",
        "HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache", "MPLCONFIGDIR": "/dev/null/matplotlib",
    },
    "strict Python, settings of JAX": {
        "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "1",
        "JAX_ENABLE_X64": "1", "JAX_DEBUG_NANS": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_RANDOM_SEED_OFFSET": "7", "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_TRANSFER_GUARD": "disallow",
    },
}  # fmt: skip


def write_files(folder: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 60), ("test", 30)):
        arrays[f"{split}_images"] = random.random((number, 3, 4), dtype=np.float32)
        arrays[f"{split}_labels"] = np.arange(number) % 3
    np.savez(folder / "data.npz", **arrays)
    ja.save_model(ja.MLP(12, (5, 4), 3, rngs=nnx.Rngs(0)), folder / "network.safetensors")
    (folder / "matplotlibrc").write_text(HOSTILE_STYLE)


def run_commands(folder: Path, commands: list[list[str]], variables: dict[str, str]) -> tuple[list[int], str]:
    """Return the exit codes of commands that one process runs in this environment, and what it wrote as errors."""
    ours = ("PATH", "HOME", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {name: os.environ[name] for name in ours if name in os.environ}
    added = {name: value.format(folder=folder) for name, value in variables.items()}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder, env={**kept, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), **added},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (folder / "codes.json").exists(), process.stderr[-2000:]
    lines = [line for line in process.stderr.splitlines() if "cpu_aot_loader" not in line]
    return json.loads((folder / "codes.json").read_text()), "\n".join(lines)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write_files(folder)
    codes, _ = run_commands(folder, COMPUTING[2:3], {})
    assert codes == [0]
    return xr.open_datatree(folder / "curves.nc")["network"].to_dataset()[["correct", "ablated"]].load()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_commands_work_in_foreign_environments(name, tmp_path, undisturbed):
    write_files(tmp_path)
    codes, errors = run_commands(tmp_path, COMPUTING + READING, ENVIRONMENTS[name])
    assert codes == [0] * len(codes), errors
    assert "Traceback" not in errors
    with xr.open_datatree(tmp_path / "curves.nc") as results:
        xr.testing.assert_equal(results["network"].to_dataset()[["correct", "ablated"]], undisturbed)


@pytest.mark.slow
def test_a_locale_that_is_not_installed(tmp_path):
    """matplotlib asks for it when it is imported, so only commands that draw need it."""
    write_files(tmp_path)
    (tmp_path / "matplotlibrc").write_text("axes.formatter.use_locale: True")
    commands = [COMPUTING[2][:-2], [*COMPUTING[2][:-4], "--out", "more.nc", "--report", "page.html"]]
    variables = {"LC_ALL": "xx_XX.UTF-8", "MATPLOTLIBRC": "{folder}/matplotlibrc"}
    codes, errors = run_commands(tmp_path, commands, variables)
    assert codes == [0, 1]
    assert "error: locale: matplotlib gets 'unsupported locale setting' from the system; set LC_ALL=C.UTF-8" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "curves.nc").exists()
    assert not (tmp_path / "more.nc").exists()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there(platform, tmp_path):
    write_files(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    codes, errors = run_commands(tmp_path, [*COMPUTING, ["datasets"]], {"JAX_PLATFORMS": platform})
    assert codes == [1, 1, 1, 1, 0]
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 4
    assert all(f"devices: JAX cannot start JAX_PLATFORMS={platform} (" in line for line in lines), lines
    assert "Traceback" not in errors
    files = {path.name for path in tmp_path.iterdir()} - before - {"codes.json", "run"}
    assert not files
    assert not any((tmp_path / "run").glob("*.nc"))


NAMES = {
    "a:b": "a_b",
    "x" * 120: "x" * 90,
    "paper": "network paper",
    "published": "network published",
    "..": "network ..",
    "a\\b": "a_b",
    "tab\tname": "tab_name",
    "new\nline": "new_line",
    "with space": "with space",
    "naïve 网络": "naïve 网络",
    "-dash": "-dash",
    ".hidden": ".hidden",
    "a#b": "a#b",
    "[red]bold": "[red]bold",
    "a'b\"c": "a'b\"c",
    "a%s{0}": "a%s{0}",
    "a[red]b[-b]": "a[red]b[-b]",
    "more.than.one": "more.than.one",
    "2-layer": "2-layer",
}


@pytest.mark.slow
def test_names_of_files(tmp_path, monkeypatch):
    """Every command takes them; the results have a name that they can hold, and it is printed if it differs."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    content = (tmp_path / "network.safetensors").read_bytes()
    for number, (name, expected) in enumerate(NAMES.items()):
        path = f"./{name}.safetensors"
        Path(path).write_bytes(content)
        ablate = ["ablate", path, *DATA, *SHORT, "--steps", "1", "--no-cache", "--out", "curves.nc"]
        # The results have the name, so every name goes to `ablate`; the other commands take turns.
        following = [
            ["score", path, *DATA, "--out", "scores.csv"],
            ["prune", path, *DATA, "--out", "small.safetensors"],
            ["report", "curves.nc", "--out", "again.html"],
        ]
        outputs = []
        for arguments in (ablate, following[number % 3]):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (name, arguments[0], result.output)
            outputs.append(" ".join(result.output.split()))
        with xr.open_datatree("curves.nc") as results:
            assert list(results.children) == [expected]
        said = f"Name of the network in the results: {expected}"
        assert (said in outputs[0]) == (name != expected), outputs[0]


def test_debugging_of_nan():
    """The check that examples are independent puts NaN into one of them on purpose."""
    images = np.random.default_rng(0).random((4, 12), dtype=np.float32)
    with jax.debug_nans(True):
        model = ja.from_module(ja.MLP(12, (5, 4), 3, rngs=nnx.Rngs(0)), images)
        counts = ja.cumulative_ablation(model, np.arange(9)[None], images, np.arange(4) % 3, steps=9)
    assert counts.shape == (1, 10)


def test_settings_of_jax_for_a_block_of_code_reach_every_thread():
    images = np.random.default_rng(0).random((400, 12))
    model, labels = ja.MLP(12, (5, 4), 3, rngs=nnx.Rngs(0)), np.arange(400) % 3
    expected = ja.single_ablation(model, images.astype(np.float32), labels, outcomes="loss")
    with jax.enable_x64(True):
        losses = ja.single_ablation(model, images, labels, outcomes="loss")
    np.testing.assert_allclose(losses, expected, atol=1e-6)


def test_a_home_folder_that_the_shell_has_not_filled_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ja.MLP(12, (5, 4), 3, rngs=nnx.Rngs(0))
    with raises_input_error("output folder ~: '~' does not stand for a home folder here; write the path in full"):
        ja.save_model(model, "~/network.safetensors")
    assert not list(tmp_path.iterdir())
    ja.save_model(model, "~network.safetensors")


def test_links_and_permissions_of_files(tmp_path):
    model, target, link = ja.MLP(12, (5, 4), 3, rngs=nnx.Rngs(0)), tmp_path / "a" / "network", tmp_path / "link"
    target.parent.mkdir()
    target.touch()
    link.symlink_to(target)
    ja.save_model(model, link)
    assert link.is_symlink()
    assert ja.load_model(target).model.hidden == (5, 4)
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode
