"""Interrupted runs go on and end the same; one run at a time in a folder, and of one config."""

import contextlib
import dataclasses
import importlib.util
import inspect
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from helpers import raises_input_error
from safetensors import safe_open
from typer.testing import CliRunner

import jaxablate as ja
import jaxablate.cli
from jaxablate import _rundir
from jaxablate._files import atomic_path, remove_unfinished
from jaxablate.study import _ablate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(small_config):
    """The settings of other tests, so that their compiled programs are used."""
    return dataclasses.replace(small_config, epochs=1, extra_fills=("resample",))


@pytest.fixture(scope="module")
def undisturbed(config):
    return ja.run_study(config)


def same(results: xr.DataTree, reference: xr.DataTree, rounding: float = 0) -> bool:
    """All arrays and labels; the root says when a run was made.

    On another number of devices a loss is summed in another order, so that its rises differ by `rounding`.
    """
    for (path, first), second in zip(results.subtree_with_keys, reference.subtree, strict=True):
        first, second = first.to_dataset(), second.to_dataset()
        if rounding and "single_damage" in first:
            if not np.allclose(first.single_damage, second.single_damage, rtol=0, atol=rounding):
                return False
            first, second = (dataset.drop_vars("single_damage") for dataset in (first, second))
        if path != "." and not first.identical(second):
            return False
    return True


def headers(folder: Path) -> dict[str, dict[str, str]]:
    """Return the headers of network files, with the checksum of their arrays."""
    headers = {}
    for path in (folder / "networks").iterdir():
        with safe_open(path, framework="numpy") as file:
            headers[path.name] = file.metadata()
    return headers


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_a_run_goes_on_after_every_unit(config, tmp_path, monkeypatch):
    """Interrupted as soon as one more unit is kept, until none is missing; nothing is computed twice."""
    config, evaluated = dataclasses.replace(config, networks=((12, 10),)), []
    for name in ("cumulative_ablation", "single_ablation", "evaluate_masks"):
        original = getattr(_ablate, name)

        def counted(model, second, *rest, function=original, what=name, **options):
            evaluated.append((what, np.asarray(second).tobytes()))
            return function(model, second, *rest, **options)

        monkeypatch.setattr(_ablate, name, counted)
    in_one_go = ja.run_study(config)
    expected = sorted(evaluated)
    evaluated.clear()
    get, interruptions, results = _rundir.CheckpointStore.get, 0, None

    def get_and_stop(self, name, *rest):
        new = not list(self.folder.glob(f"{name}*"))
        arrays = get(self, name, *rest)
        if new:
            raise Interrupted
        return arrays

    monkeypatch.setattr(_rundir.CheckpointStore, "get", get_and_stop)
    while results is None:
        try:
            results = ja.run_study(config, run_dir=tmp_path)
        except Interrupted:
            interruptions += 1
    # for each network its scores, the curves of each scope, and neurons alone
    assert interruptions == 2 * (1 + 3 + 1)
    assert same(results, in_one_go)
    assert sorted(evaluated) == expected
    assert len(list((tmp_path / "networks").iterdir())) == 2
    assert not (tmp_path / "run.owner").exists()


@pytest.mark.slow
def test_networks_are_kept_as_soon_as_they_are_trained(config, undisturbed, tmp_path):
    def stop_late(what, done, total, note):
        if what.startswith("train") and done == total:
            raise Interrupted

    small = dataclasses.replace(config, networks=((12, 10),), seeds=tuple(range(4)), protocols=("paper",))
    with pytest.raises(Interrupted):
        ja.run_study(small, run_dir=tmp_path, on_progress=stop_late)
    kept = headers(tmp_path)
    assert 1 <= len(kept) < 4
    ja.run_study(small, run_dir=tmp_path)
    everything = headers(tmp_path)
    assert len(everything) == 4
    assert everything == {**everything, **kept}
    again = ja.run_study(small, run_dir=tmp_path / "again")
    assert everything == headers(tmp_path / "again")
    first = again["2-layer-12-10"].to_dataset().sel(seed=[0, 3])
    alone = undisturbed["2-layer-12-10"].to_dataset()
    xr.testing.assert_identical(first["correct"], alone["correct"])


@pytest.mark.slow
def test_a_damaged_unit_is_computed_anew(config, undisturbed, tmp_path):
    ja.run_study(config, run_dir=tmp_path)
    units = sorted((tmp_path / "units").iterdir())
    assert len(units) == 22
    for unit, damage in zip(units[:3], ("flip", "cut", "other"), strict=True):
        content = bytearray(unit.read_bytes())
        if damage == "flip":
            content[-1] ^= 1
        unit.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
        if damage == "other":
            unit.write_bytes(units[3].read_bytes())  # whole, of this run, of another name
    notes = []
    results = ja.run_study(config, run_dir=tmp_path, on_progress=lambda *progress: notes.append(progress))
    assert same(results, undisturbed)
    resume_notes = [note for what, *_, note in notes if what == "resume"]
    assert sorted(resume_notes) == [
        f"{unit.name} is damaged, or belongs to another run or network; it is computed again" for unit in units[:3]
    ]


@pytest.mark.slow
def test_another_config_is_refused_or_begins_afresh(config, tmp_path):
    config = dataclasses.replace(config, networks=((12, 10),), seeds=(0,), protocols=("paper",))
    undisturbed = ja.run_study(config, run_dir=tmp_path)
    changed_config = dataclasses.replace(config, steps=2, scores=("entropy",))
    with raises_input_error(
        r"another run was started there \(scores: \['entropy', 'mutual_information', 'kl_selectivity'\] in the folder, "
        r"\['entropy'\] in this run; steps: 6 in the folder, 2 in this run\); choose another folder, or start over"
    ):
        ja.run_study(changed_config, run_dir=tmp_path)
    assert same(ja.run_study(config, run_dir=tmp_path), undisturbed)
    assert same(ja.run_study(changed_config, run_dir=tmp_path, force=True), ja.run_study(changed_config))
    with raises_input_error("steps: 2 in the folder, 6 in this run"):
        ja.run_study(config, run_dir=tmp_path)
    (tmp_path / "run.json").write_text("[")
    with raises_input_error(r"another run was started there \(its run.json cannot be read\); choose"):
        ja.run_study(changed_config, run_dir=tmp_path)


@pytest.mark.slow
def test_other_models_of_the_same_weights_are_another_run(tmp_path):
    config = ja.StudyConfig(dataset="mnist5k", networks=(), quantizer="mean", steps=2, num_random_orders=1)
    weights = nnx.Linear(784, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 10, rngs=nnx.Rngs(1))

    def network(activation):
        return nnx.Sequential(lambda x: x.reshape(len(x), -1), weights[0], activation, ja.Site("hidden"), weights[1])

    first = ja.run_study(config, {"mine": network(jax.nn.tanh)}, run_dir=tmp_path)
    assert same(ja.run_study(config, {"mine": network(jax.nn.tanh)}, run_dir=tmp_path), first)
    with raises_input_error("another run was started there .models: .* in the folder, .* in this run"):
        ja.run_study(config, {"mine": network(jax.nn.sigmoid)}, run_dir=tmp_path)
    images = ja.load_dataset("mnist5k").test.images.reshape(1000, -1)
    late = np.flatnonzero((images != 0).any(axis=0) & (images[:100] == 0).all(axis=0))[0]
    weights[0].kernel[...] = weights[0].kernel[...].at[late].set(9.0)  # the first images do not show it
    with raises_input_error("another run was started there .models: .* in the folder, .* in this run"):
        ja.run_study(config, {"mine": network(jax.nn.tanh)}, run_dir=tmp_path)


@pytest.mark.slow
def test_what_is_computed_from_another_network_is_not_used(config, tmp_path):
    small = dataclasses.replace(config, networks=((12, 10),), seeds=(0,))
    ja.run_study(small, run_dir=tmp_path)
    path = tmp_path / "networks" / "2-layer-12-10_seed0.safetensors"
    saved = ja.load_model(path)
    saved.model.stages[0].linear.kernel[...] *= 2  # as a device that rounds otherwise might have trained it
    ja.save_model(saved.model, path, saved.metadata, **saved.arrays)
    fresh = ja.run_study(small, network_dir=tmp_path / "networks")
    assert same(ja.run_study(small, run_dir=tmp_path), fresh)


@pytest.mark.slow
def test_a_score_of_ones_own_may_change(config, tmp_path, monkeypatch):
    for sign in (1, -1):
        monkeypatch.setitem(ja.scores.SCORES, "mine", lambda evidence, sign=sign: sign * evidence.class_means[0])
        small = dataclasses.replace(config, networks=((12, 10),), seeds=(0,), scores=("mine",), protocols=("paper",))
        results = ja.run_study(small, run_dir=tmp_path / "run")
        assert same(results, ja.run_study(small, network_dir=tmp_path / "run" / "networks"))


HOLD = """
import sys, time
from jaxablate._rundir import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_has_one_run_at_a_time(config, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with raises_input_error(f"another run is working there, process {holder.pid} on .* since 20"):
            ja.run_study(config, run_dir=tmp_path)
        asked = ["reproduce", "--dataset", "mnist5k", "--out", str(tmp_path)]
        result = CliRunner().invoke(jaxablate.cli.app, asked)
        assert result.exit_code == 1
        assert f"working there, process {holder.pid} on" in " ".join(result.output.split())
        holder.send_signal(signal.SIGKILL)
    name = ".jaxablate-results.nc-abcd_123"
    leftovers = [tmp_path / place / name for place in ("", "units", "networks", "figures/findings")]
    foreign = [
        tmp_path / ".jaxablate-notes-abcd_123",
        tmp_path / ".results.nc-abcd_123",
        tmp_path / "another run" / name,
    ]
    for folder in leftovers + foreign:
        folder.mkdir(parents=True)
        (folder / ("mine.txt" if "notes" in folder.name else "results.nc")).write_text("x")
    (tmp_path / ".backup-20240101").mkdir()
    notes = []
    small = dataclasses.replace(config, networks=((12, 10),), seeds=(0,))
    ja.run_study(small, run_dir=tmp_path, on_progress=lambda *progress: notes.append(progress[-1]))
    assert notes[0].startswith(f"process {holder.pid} on ")
    assert notes[0].endswith("ended before it was done; its finished work is reused")
    assert not any(folder.exists() for folder in leftovers)
    assert all(list(folder.iterdir()) for folder in foreign)
    assert (tmp_path / ".backup-20240101").exists()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from jaxablate.cli import main
main()
"""


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on(small_data, tmp_path):
    """A file that cannot grow stands for a disk that is full."""
    options = ["--epochs", "1", "--steps", "4", "--random-orders", "2", "--no-cache"]
    arguments = ["reproduce", "--dataset", small_data, *options]
    full = [sys.executable, "-c", LIMITED, "200000", *arguments, "--out", tmp_path]
    process = subprocess.run(full, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, timeout=300)
    assert process.returncode == 1, process.stdout
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 200_000]
    assert not [path for path in tmp_path.rglob(".*")]
    config = ja.StudyConfig(dataset=small_data, epochs=1, steps=4, num_random_orders=2)  # what the command runs
    assert same(ja.run_study(config, run_dir=tmp_path), ja.run_study(config))


FULL_FOR_FIGURES = """
import resource, signal, sys
from matplotlib.figure import Figure
from jaxablate import InputError, figures
figure = Figure((0.5, 0.5))
figure.gca().set_title("many letters of a font " * 3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in range(10_000, 1000, -1500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        figures._write(figure, figures.Path(sys.argv[1]), "f")
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_before_a_figure_is_whole(tmp_path):
    process = subprocess.run([sys.executable, "-c", FULL_FOR_FIGURES, tmp_path], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    assert any(f"file {tmp_path / 'f.pdf'}: cannot be written" in line for line in lines)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a file that Python closes
def test_a_signal_at_any_line_leaves_no_private_folder(tmp_path):
    """Signals raise between any two lines, also while the folder is made or removed; the exit removes it then."""
    write_file = inspect.unwrap(atomic_path)  # without the checks of types, whose frames have the same name

    def write(stop: int) -> bool:
        lines = itertools.count()

        def trace(frame, event, arg):
            if frame.f_code is not write_file.__code__:
                return None
            if event == "line" and next(lines) == stop:
                raise SystemExit(143)
            return trace

        sys.settrace(trace)
        try:
            with contextlib.contextmanager(write_file)(tmp_path / "file") as temporary:
                temporary.write_text("new")
        except SystemExit:
            return False
        finally:
            sys.settrace(None)
        return True

    stays = 0
    for stop in itertools.count():
        finished = write(stop)
        stays += bool(list(tmp_path.glob(".*")))
        remove_unfinished()
        assert not list(tmp_path.glob(".*"))
        if finished:
            break
    assert stop > 10
    assert stays, "no line is in the making or removal of the folder"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *arguments, original=original, name=name: (done.append(name), original(*arguments))
        )
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert done == ["fsync", "replace"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_grid", "signals"), [(False, (signal.SIGTERM, signal.SIGKILL)), (True, (signal.SIGINT, signal.SIGKILL))]
)
def test_a_killed_run_ends_the_same(is_grid, signals, small_data, tmp_path):
    """By each signal; `python scripts/kill_test.py` does many."""
    spec = importlib.util.spec_from_file_location("kill_test", ROOT / "scripts" / "kill_test.py")
    assert spec is not None
    assert spec.loader is not None
    kill_test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill_test)
    kill_test.COMMAND[kill_test.COMMAND.index("mnist5k")] = small_data
    kill_test.COMMAND[kill_test.COMMAND.index("--seeds") + 1] = "1"
    kill_test.COMMAND[1:3] = [Path(__file__).parent / "without_pictures.py"]
    kill_test.COMMAND[-1:-1] = [*(kill_test.GRID if is_grid else ()), "--set", "networks=12x10"]
    assert kill_test.test(tmp_path, len(signals), random.Random(1), signals) == 0
