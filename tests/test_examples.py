"""The worked examples of docs/examples run, and what they draw is what a naive loop over the model finds."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import set_mask

import jaxablate as ja

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def load(name, monkeypatch):
    """An example as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def spy(module, name, monkeypatch):
    """The arguments and results of every call of a module's function from now on."""
    calls, function = [], getattr(module, name)

    def recorded(*args, **kwargs):
        calls.append((args, function(*args, **kwargs)))
        return calls[-1][1]

    monkeypatch.setattr(module, name, recorded)
    return calls


def run(module, small_data, tmp_path, epochs=2):
    """Run an example as its command line does, and look at the figure's file."""
    out = tmp_path / "new" / "figure.png"
    module.main(dataset=str(small_data), epochs=epochs, out=out)
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert 10_000 < out.stat().st_size < 200_000


def naive_logits(model, split, sizes, keep, fill):
    """Logits of a copy of the model whose sites are set one by one."""
    copy, ends = nnx.clone(model), np.cumsum(list(sizes.values()))[:-1]
    sites = {module.name: module for _, module in nnx.iter_modules(copy) if isinstance(module, ja.Site)}
    assert set(sites) == set(sizes)
    if isinstance(fill, ja.fills.PerExampleFill):
        fills = [table[fill.rows(jnp.asarray(split.labels))] for table in fill.tables]
    else:
        fills = np.split(np.asarray(fill), ends)
    for name, kept, of_site in zip(sizes, np.split(keep, ends), fills, strict=True):
        set_mask(sites[name], kept, of_site)
    with jax.default_matmul_precision("highest"):
        return np.asarray(copy(split.images))


def without(sizes, neurons):
    """The mask [neuron] that ablates these."""
    keep = np.ones(sum(sizes.values()), bool)
    keep[neurons] = False
    return keep


def num_correct(logits, split):
    return int((logits.argmax(axis=1) == split.labels).sum())


def mean_loss(logits, split):
    log_p = np.asarray(jax.nn.log_softmax(logits))
    return -log_p[np.arange(len(split)), split.labels].mean()


def check_accuracies(model, split, sizes, orders, fill, accuracies, neurons_per_step=1):
    """Step 0 is the intact model, and a few further steps are what a naive loop counts."""
    intact = num_correct(np.asarray(model(split.images)), split)
    assert accuracies[:, 0] * len(split) == pytest.approx(intact, abs=1e-6)
    steps = accuracies.shape[1] - 1
    for step in (1, steps // 2, steps):
        keep = without(sizes, orders[-1, : step * neurons_per_step])
        counted = num_correct(naive_logits(model, split, sizes, keep, fill), split)
        assert accuracies[-1, step] * len(split) == pytest.approx(counted, abs=1e-6)


@pytest.mark.slow
def test_cnn_channels(small_data, tmp_path, monkeypatch):
    module = load("cnn_channels", monkeypatch)
    monkeypatch.setattr(module, "NUM_RANDOM", 2)
    ablated, scored = spy(module, "ablate", monkeypatch), spy(module, "score_units", monkeypatch)
    run(module, small_data, tmp_path)
    assert len(ablated) == 2 * 2 * 3  # fills, convolutions, kinds of order
    for (model, split, orders, fill), accuracies in ablated:
        assert {tuple(sorted(order)) for order in orders.tolist()} in ({tuple(range(16))}, {tuple(range(16, 48))})
        check_accuracies(model, split, {"conv1": 16, "conv2": 32, "dense": 64}, orders, fill, accuracies)
    ((model, split), scores) = scored[0]
    channel = np.asarray(ja.record_activations(model, split.images)[1])[:, 3]
    joint = np.zeros((10, 2))
    np.add.at(joint, (split.labels, (channel >= channel.mean()).astype(int)), 1 / len(split))
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    assert scores[16 + 3] == pytest.approx((joint[some] * np.log(joint[some] / independent[some])).sum(), abs=1e-5)


@pytest.mark.slow
def test_residual_mlp(small_data, tmp_path, monkeypatch):
    module = load("residual_mlp", monkeypatch)
    for name, value in {"NUM_RANDOM": 2, "HIDDEN": 10}.items():
        monkeypatch.setattr(module, name, value)
    names = ("single_damage", "make_orders", "ablate")
    damaged, ordered, ablated = (spy(module, name, monkeypatch) for name in names)
    run(module, small_data, tmp_path)
    sizes = {f"block{i + 1}": module.HIDDEN for i in range(module.BLOCKS)}

    ((model, split, fill), damage) = damaged[0]
    before = np.asarray(model(split.images))
    for neuron in (0, 15, 29):
        after = naive_logits(model, split, sizes, without(sizes, [neuron]), fill)
        assert damage["correct"][neuron] == num_correct(before, split) - num_correct(after, split)
        assert damage["loss"][neuron] == pytest.approx(mean_loss(after, split) - mean_loss(before, split), abs=1e-5)

    ((model, _, split, fill, _), orders) = ordered[0]
    first = [mean_loss(naive_logits(model, split, sizes, without(sizes, [n]), fill), split) for n in range(10)]
    assert first[orders["greedy"][0, 0]] == pytest.approx(min(first), abs=1e-6)
    for of_kind in orders.values():
        assert (np.sort(of_kind, axis=1) == np.arange(10)).all()
    for (model, split, orders, fill), accuracies in ablated:
        check_accuracies(model, split, sizes, orders, fill, accuracies)


@pytest.mark.slow
def test_transformer_block(small_data, tmp_path, monkeypatch):
    module = load("transformer_block", monkeypatch)
    for name, value in {"NUM_ORDERS": 2, "FITTING_STEPS": 10, "STEPS": 4}.items():
        monkeypatch.setattr(module, name, value)
    ablated, filled = spy(module, "ablate", monkeypatch), spy(module, "compute_fills", monkeypatch)
    run(module, small_data, tmp_path)
    fills, sizes = filled[0][1], {"mlp": module.HIDDEN}
    assert list(fills) == list(module.LOOKS)
    assert len(ablated) == len(fills)
    for (model, split, orders, fill), outcomes in ablated:
        check_accuracies(model, split, sizes, orders, fill, outcomes["accuracy"], module.HIDDEN // module.STEPS)
        assert np.abs(outcomes["divergence"][:, 0]).max() < 1e-6
        before, after = (
            np.asarray(model(split.images)),
            naive_logits(model, split, sizes, without(sizes, orders[0]), fill),
        )
        log_p, log_q = np.asarray(jax.nn.log_softmax(before)), np.asarray(jax.nn.log_softmax(after))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
        assert outcomes["divergence"][0, -1] == pytest.approx(divergence, rel=1e-3, abs=1e-5)
