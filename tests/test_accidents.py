"""Numbers do not depend on accidents: engine, chunks, cores, order of curves, company of other networks, threads."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import TIE, first_outputs64, logits64, pairwise

import jaxablate as ja
from jaxablate.ablation import _execute

STEPS = 12


@pytest.fixture(scope="module")
def models(small_model, mnist5k):
    return [small_model, ja.train(mnist5k, (10, 8, 9), epochs=2, seed=1)[0]]


@pytest.fixture(scope="module")
def curves(models, mnist5k):
    """Orders, fills, test examples that no step brings near a tie in any network, and their counts by float64."""
    orders = np.asarray(ja.orders.random_orders(27, 4, key=jax.random.key(3)))
    fills = [np.asarray(ja.mean_activations(model, mnist5k.validation.images)) for model in models]
    images, labels = mnist5k.test.images, np.asarray(mnist5k.test.labels)
    masks = np.asarray(ja.orders.masks_of_orders(orders, 27, STEPS))
    logits = np.stack(
        [
            [logits64(model, images, keep, fill, first_outputs=first) for keep in masks]
            for model, fill in zip(models, fills, strict=True)
            for first in [first_outputs64(model, images)]
        ]
    )
    best = np.sort(logits, axis=-1)
    clear = (best[..., -1] - best[..., -2] > TIE).all(axis=(0, 1))
    counts = (logits.argmax(axis=-1) == labels)[..., clear].sum(axis=-1)
    return orders, fills, images[clear], labels[clear], counts.reshape(2, 4, STEPS + 1)


@pytest.mark.slow
@pairwise(engine=("vmap", "incremental"), memory_limit=(None, 60_000), cores=(1, 3), way=("as given", "reversed"))
def test_counts(engine, memory_limit, cores, way, models, curves, monkeypatch):
    monkeypatch.setattr(_execute, "num_cores", lambda: cores)
    orders, fills, images, labels, counts = curves
    turn = slice(None) if way == "as given" else slice(None, None, -1)
    options = {"steps": STEPS, "engine": engine, "memory_limit": memory_limit}
    together = ja.cumulative_ablation(models, np.stack([orders[turn]] * 2), images, labels, np.stack(fills), **options)
    np.testing.assert_array_equal(np.asarray(together)[:, turn], counts)
    alone = [
        ja.cumulative_ablation(model, order[None], images, labels, fill, **options)
        for model, fill in zip(models, fills, strict=True)
        for order in orders[turn][:2]
    ]
    np.testing.assert_array_equal(np.reshape(alone, (2, 2, -1)), counts[:, turn][:, :2])


ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
THREADS = {
    "one thread, one core": {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"},
    "default": {},
}
PROGRAM = """
import os, sys
if "one core" in sys.argv[3]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
import jaxablate as ja
model, data = ja.load_model(sys.argv[1]).model, ja.load_dataset("mnist5k")
config = ja.StudyConfig(dataset="mnist5k", networks=(), steps=6, num_random_orders=2, scores=tuple(ja.scores.SCORES))
found = ja.run_study(config, {"mine": model})["mine"].to_dataset()
names = ("scores", "correct", "single_correct", "joint_counts", "ablated")
np.savez(sys.argv[2], **{name: found[name].values for name in names})
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen by Linux's means")
def test_threads(small_model, tmp_path):
    ja.save_model(small_model, tmp_path / "model.safetensors")
    curves = []
    for name, environment in THREADS.items():
        out = tmp_path / f"{name}.npz"
        command = [sys.executable, "-c", PROGRAM, tmp_path / "model.safetensors", out, name]
        process = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
        )
        assert process.returncode == 0, process.stderr[-2000:]
        curves.append(np.load(out))
    for curve in curves[1:]:
        np.testing.assert_allclose(curve["scores"], curves[0]["scores"], rtol=1e-5, atol=1e-6)
        for name in ("correct", "single_correct", "joint_counts", "ablated"):
            np.testing.assert_array_equal(curve[name], curves[0][name], err_msg=name)
