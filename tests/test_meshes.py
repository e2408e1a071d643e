"""Several devices: the same counts as on one, and what is no mesh is refused."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import raises_input_error
from jax.sharding import Mesh
from test_resume import same

import jaxablate as ja

HERE = Path(__file__).parent


@pytest.mark.slow
def test_every_mesh_gives_the_same_counts():
    dataset = "mnist" if os.environ.get("JAXABLATE_DATA_DIR") else "mnist5k"
    paths = os.pathsep.join([str(HERE.parent / "scripts"), os.environ.get("PYTHONPATH", "")])  # helpers read the fuzz
    process = subprocess.run(
        [sys.executable, HERE / "on_devices.py", dataset], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("the same") == 3


@pytest.mark.slow
def test_a_study_on_several_devices_is_the_same(small_data, tmp_path):
    command = [sys.executable, HERE / "without_pictures.py", "reproduce", "--dataset", small_data, "--epochs", "1"]
    command += ["--set", "networks=12x10"]
    for devices in ([], ["--devices", "3"]):
        out = tmp_path / str(len(devices))
        process = subprocess.run(
            [*command, "--steps", "4", "--random-orders", "2", "--out", out, *devices], capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
    assert same(*(ja.results.load_results(tmp_path / folder / "results.nc") for folder in ("0", "2")), rounding=2e-6)


def test_what_is_no_mesh_is_refused(small_model, mnist5k):
    there = len(jax.devices())
    with raises_input_error(f"num_devices: {there + 1} is not in 1..{there}, the available devices; to split a CPU "):
        ja.devices.make_mesh(there + 1)
    for mesh in (None, "cpu"):
        with raises_input_error("mesh: expected a mesh"):
            ja.devices.shard_examples(mesh, mnist5k.test.images, mnist5k.test.labels)
    with raises_input_error(r"labels: expected values in 0..2147483647, got 4294967296..4294967305"):
        ja.devices.shard_examples(
            ja.devices.make_mesh(1), mnist5k.test.images, mnist5k.test.labels.astype(np.int64) + 2**32
        )
    arguments = small_model, np.ones((1, 27), bool), mnist5k.test.images, mnist5k.test.labels
    for mesh in (Mesh(np.array(jax.devices()[:1]), ("x",)), "cpu"):
        with raises_input_error(
            "mesh: expected a mesh with the one axis 'data', got .*; make it with ja.devices.make_mesh"
        ):
            ja.evaluate_masks(*arguments, mesh=mesh)
