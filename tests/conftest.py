"""Fixtures, the compilation cache of the session, and the run-time check of annotated shapes and dtypes."""

import importlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import types
from pathlib import Path

import filelock
import numpy as np
import pytest

import jaxablate as ja

# Compiled programs are shared by all test files, workers and child processes: they inherit these variables. The first
# process to set the folder removes it.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxablate-tests-")
# Compiling takes most of the tests' time, so XLA leaves out its expensive passes and takes its older code generator,
# which needs a third of the time. `.ci/run` runs the tests of the engines a second time without these settings, as a
# user's programs are compiled. A later jaxlib does not know the flag and would end the process.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # jaxlib 0.10 on a CPU prints a page for each program it reads


def pytest_configure(config):
    """Import the package with checks of its types, unless this process only hands tests to its workers.

    The slow tests call the same functions as the others. They run without these checks, which take a fifth of the time.
    """
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        return
    if config.getoption("markexpr") == "slow":
        return
    import jaxtyping

    with jaxtyping.install_import_hook("jaxablate", "beartype.beartype"):
        for name in ("cli", "figures", "report"):
            importlib.import_module(f"jaxablate.{name}")
        for name in ja.__all__:  # the package imports lazily, and the hook must cover every module
            getattr(ja, name)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Drop compiled programs before they take all memory mappings of the process; files share most of them."""
    from jaxablate import devices

    yield
    devices.make_room_for_programs()


def pytest_unconfigure():
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fail a skipped test of full MNIST if the data folder is given."""
    report = yield
    if report.skipped and "mnist_dir" in item.fixturenames and os.environ.get("JAXABLATE_DATA_DIR"):
        report.outcome = "failed"
        report.longrepr = f"skipped although JAXABLATE_DATA_DIR is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """Return the folder with the four canonical files of MNIST; skip the test without JAXABLATE_DATA_DIR."""
    folder = os.environ.get("JAXABLATE_DATA_DIR")
    if not folder:
        pytest.skip("JAXABLATE_DATA_DIR is not set: no full MNIST to test on")
    return Path(folder)


@pytest.fixture(scope="session")
def mnist(mnist_dir):
    return ja.load_dataset("mnist", data_dir=mnist_dir)


@pytest.fixture
def no_data_dir(monkeypatch):
    monkeypatch.delenv("JAXABLATE_DATA_DIR", raising=False)


@pytest.fixture(scope="session")
def mnist5k():
    return ja.load_dataset("mnist5k")


@pytest.fixture(scope="session")
def small_data(mnist5k, tmp_path_factory) -> Path:
    """Return a file with few of the embedded images, on which the paper's networks take a moment."""
    arrays = {}
    for split, size in {"train": 600, "validation": 200, "test": 200}.items():
        arrays[f"{split}_images"] = getattr(mnist5k, split).images[:size]
        arrays[f"{split}_labels"] = getattr(mnist5k, split).labels[:size]
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def small_config():
    return ja.StudyConfig(
        dataset="mnist5k",
        networks=((12, 10), (10, 8, 9)),
        epochs=8,
        seeds=(0, 3),
        num_random_orders=3,
        steps=6,
        protocols=("paper", "published"),
    )


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return a function that returns a folder which one worker fills and all workers read."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the workers' folders are side by side

    def folder_filled_by(fill):
        folder = base / fill.__name__
        folder.mkdir(exist_ok=True)
        with filelock.FileLock(folder / "lock"):
            if not (folder / "filled").exists():
                fill(folder)
                (folder / "filled").touch()
        return folder

    return folder_filled_by


@pytest.fixture(scope="session")
def small_results(once, small_config):
    """Return results of small networks, trained a little."""

    def small_results(folder):
        ja.results.save_results(ja.run_study(small_config), folder / "results.nc")

    return ja.results.load_results(once(small_results) / "results.nc")


@pytest.fixture(scope="session")
def reproduced(once):
    """Return the folder and the outcome of `jaxablate reproduce` on the paper's networks, barely trained."""

    def reproduced(folder):
        from helpers import REPRODUCE, call, without_pdf  # here: it imports modules before their types are checked

        with without_pdf():
            run = call(*REPRODUCE, "mnist5k", "--out", folder / "out")
        outcome = {"exit_code": run.exit_code, "stdout": run.stdout, "stderr": run.stderr}
        (folder / "outcome.json").write_text(json.dumps(outcome))

    folder = once(reproduced)
    return folder / "out", types.SimpleNamespace(**json.loads((folder / "outcome.json").read_text()))


@pytest.fixture(scope="session")
def small_model(mnist5k):
    """Return a trained network of three hidden layers with different widths."""
    return ja.train(mnist5k, (10, 8, 9), epochs=8)[0]


@pytest.fixture
def torch():
    """Return PyTorch; its networks have the same random weights in every run of a test."""
    module = pytest.importorskip("torch", reason="needs PyTorch (the extra bench)")
    module.manual_seed(0)
    return module
