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


def test_every_mesh_gives_the_same_counts():
    dataset = "mnist" if os.environ.get("JAXABLATE_DATA_DIR") else "mnist5k"
    paths = os.pathsep.join([str(HERE.parent / "scripts"), os.environ.get("PYTHONPATH", "")])  # helpers read the fuzz
    process = subprocess.run(
        [sys.executable, HERE / "on_devices.py", dataset], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("the same") == 6


def test_a_study_on_several_devices_is_the_same(tmp_path):
    command = [
        sys.executable,
        HERE / "without_pictures.py",
        "reproduce",
        "--dataset",
        "mnist5k",
        "--epochs",
        "1",
        "--steps",
        "4",
    ]
    for devices in ([], ["--devices", "3"]):
        out = tmp_path / str(len(devices))
        process = subprocess.run(
            [*command, "--random-orders", "2", "--out", out, *devices], capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
    assert same(*(ja.results.load_results(tmp_path / of / "results.nc") for of in ("0", "2")))


def test_what_is_no_mesh_is_refused(small_model, mnist5k):
    there = len(jax.devices())
    with raises_input_error(f"num_devices: expected 1 to {there}, got {there + 1}; a CPU counts as several where "):
        ja.meshes.make_mesh(there + 1)
    with raises_input_error("study: expected a divisor of the 1 devices, got 2"):
        ja.meshes.make_mesh(1, study=2)
    for mesh in (None, "cpu"):
        with raises_input_error("mesh: expected one"):
            ja.meshes.shard_examples(mesh, mnist5k.test.images, mnist5k.test.labels)
    with raises_input_error(r"labels: expected values in 0..2147483647, got 4294967296..4294967305"):
        ja.meshes.shard_examples(
            ja.meshes.make_mesh(1), mnist5k.test.images, mnist5k.test.labels.astype(np.int64) + 2**32
        )
    arguments = small_model, np.ones((1, 27), bool), mnist5k.test.images, mnist5k.test.labels
    for mesh in (Mesh(np.array(jax.devices()[:1]), ("x",)), "cpu"):
        with raises_input_error(
            "mesh: expected one with the axes .'data', 'study'., as ja.meshes.make_mesh makes, got"
        ):
            ja.evaluate_masks(*arguments, mesh=mesh)


@pytest.mark.parametrize("study", [1, 2])
def test_curves_are_dealt_in_turn(study):
    from jaxablate.ablation._execute import places_of, round_robin

    turns, shares = round_robin(7, np.array([5, 1]), study)
    assert sorted(set(turns)) == list(range(7))
    assert shares.tolist() == [[[5], [1]], [[3, 2], [1, 0]]][study - 1]
    for number, of_devices in zip((5, 1), shares, strict=True):
        dealt = zip(turns.reshape(study, -1), of_devices, strict=True)
        assert sorted(curve for of, share in dealt for curve in of[:share]) == list(range(number))
    np.testing.assert_array_equal(turns[places_of(turns, 7)], np.arange(7))
