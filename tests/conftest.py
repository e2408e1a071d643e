"""Fixtures; and the run-time check of every annotated shape and dtype in the package."""

import os
from pathlib import Path

import jaxtyping
import pytest

with jaxtyping.install_import_hook("jaxablate", "beartype.beartype"):
    import jaxablate as ja
    import jaxablate.cli
    import jaxablate.figures


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Forget them after each file: those of all tests would take more memory mappings (some six each) than Linux gives
    a process (65 530), and then it crashes."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the four canonical files of MNIST, where the machine has one."""
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
def small_results(small_config):
    return ja.run_study(small_config)


@pytest.fixture(scope="session")
def small_model(mnist5k):
    """A trained network of three hidden layers with different widths."""
    return ja.train(mnist5k, (10, 8, 9), epochs=8)[0]
