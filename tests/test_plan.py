"""Plans: work counted by hand, by XLA and by laws; bad settings refused. No time is asserted."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error
from typer.testing import CliRunner

import jaxablate as ja
from jaxablate.cli import app
from jaxablate.study import Rates, Sizes, load_config, plan_study

SIZES = Sizes(train=640, validation=100, test=1000, features=7, classes=3)
CONFIG = ja.StudyConfig(
    networks=((5, 4),), steps=2, epochs=3, batch_size=32, metrics=("entropy",), random_orders=3, seeds=(0, 1)
)
RATES = Rates({(7, 5): 1.0, (5, 4): 10.0, (4, 3): 100.0}, 1000.0, {(5, 4): 1e4})
"""Seconds of which each digit says how often it was taken."""


def stages(plan):
    return {stage.name: stage for stage in plan.stages}


def test_work_and_time_by_hand(monkeypatch):
    monkeypatch.setattr("jaxablate.study._plan.num_cores", lambda: 2)
    plan = plan_study(CONFIG, SIZES, rates=RATES)
    found = stages(plan)
    forward = 2 * (7 * 5 + 5 * 4 + 4 * 3)
    training = found["training"]
    assert training.work == "2 x 60 steps of 32 examples"
    assert training.flops == 2 * (60 * 32 * (3 * forward - 2 * 7 * 5) + 3 * 100 * forward)
    assert training.seconds == pytest.approx(2 * (60 * 1e4 + 3 * 100 * 1111))
    assert found["scores"].flops == 2 * 2 * 100 * forward
    # two fills, each with the entropy both ways and three random orders; each of two steps updates the product behind
    # the layer, and computes what comes after it
    layer1 = found["curves of layer1"]
    assert layer1.work == "10 curves"
    assert layer1.flops == 2 * 1000 * (2 * forward + 10 * 2 * (5 * 4 + 4 * 3) + 20 * 2 * 4 * 3)
    assert layer1.seconds == pytest.approx(2 * 1000 * (2 * 1111 + 10 * 1110 + 20 * 1100))
    layer2 = found["curves of layer2"]
    assert layer2.seconds == pytest.approx(2 * 1000 * (2 * 1111 + 10 * 1100 + 20 * 1000))
    network = found["curves of network"]
    assert network.seconds == pytest.approx(2 * 1000 * (2 * 1111 + 10 * 1110 + 20 * (5 * 1100 + 4 * 1000) / 9))
    assert found["neurons alone"].seconds == pytest.approx(2 * 1000 * (1111 + 5 * 1100 + 4 * 1000))
    assert plan.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))
    assert plan.memory == max(stage.memory for stage in plan.stages)
    assert plan.layout == (1, 1)


def test_products_are_those_that_xla_counts():
    model = ja.MLP(7, (5, 4), 3, rngs=nnx.Rngs(0))
    compiled = jax.jit(lambda x: model(x)).lower(np.zeros((100, 7), np.float32)).compile()
    counted = compiled.cost_analysis()["flops"]
    forward = stages(plan_study(CONFIG, SIZES, rates=RATES))["scores"].flops / (2 * 2)
    assert forward <= counted <= 1.5 * forward  # which counts biases and activation functions too


def test_curves_are_counted_as_the_study_computes_them(monkeypatch, mnist5k):
    """With every order another one: what the engine is given, protocol by protocol."""
    given = []

    def count(model, orders, *others, **named):
        given.append(len(orders))
        return ja.cumulative_ablation(model, orders, *others, **named)

    monkeypatch.setattr("jaxablate.study._ablate.cumulative_ablation", count)
    monkeypatch.setattr("jaxablate.study.load_dataset", lambda *_, **__: mnist5k)
    config = replace(CONFIG, protocols=("paper", "mi_sign", "fresh_subsets", "published"), more_fills=("median",))
    ja.run_study(config, {"mine": [ja.MLP(784, (5, 4), 10, rngs=nnx.Rngs(seed)) for seed in (0, 1)]})
    planned = stages(plan_study(config, SIZES, rates=RATES))["curves of layer1"].work
    # of a protocol that shares its random orders with another one, the plan counts them once
    shared = 3 * config.random_orders
    assert planned == f"{sum(given) // (2 * 3) - shared} curves, 8 of subsets"


def test_more_seeds_and_machines():
    one = plan_study(CONFIG, SIZES, rates=RATES)
    two = plan_study(replace(CONFIG, seeds=(0, 1, 2, 3)), SIZES, rates=RATES)
    for few, many in zip(one.stages, two.stages, strict=True):
        assert many.flops == 2 * few.flops
        assert many.bytes == 2 * few.bytes
        if few.name != "training":
            assert many.seconds == pytest.approx(2 * few.seconds)
    shared = plan_study(CONFIG, SIZES, rates=RATES, num_processes=4)
    assert shared.layout == (4, 1)
    assert stages(shared)["curves of layer1"].seconds == pytest.approx(stages(one)["curves of layer1"].seconds / 4)
    few = plan_study(CONFIG, SIZES._replace(test=600), rates=RATES, num_processes=4)
    assert few.layout == (2, 2)
    assert stages(few)["curves of layer1"].seconds * 4 == pytest.approx(
        600 / 1000 * stages(one)["curves of layer1"].seconds
    )
    wide = plan_study(
        CONFIG, SIZES._replace(features=10**6), rates=replace(RATES, links={**RATES.links, (10**6, 5): 1.0})
    )
    assert wide.memory > one.memory + 4 * 10**6 * (640 + 100 + 1000)


def test_elsewhere_every_mask_is_computed_anew(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    found = stages(plan_study(CONFIG, SIZES, rates=RATES, devices=2))
    assert found["curves of layer1"].seconds == pytest.approx(2 * 500 * (2 * 1111 + 10 * 1110 + 20 * 1110))
    assert found["training"].seconds == pytest.approx(60 * 1e4 + 3 * 100 * 1111)  # a seed on each device


def test_rates_are_of_this_machine():
    rates = ja.study.measure_rates(7, 3, ((5, 4), (4,)), together=2)
    assert rates.links.keys() == {(7, 5), (5, 4), (4, 3), (7, 4)}
    assert rates.steps.keys() == {(5, 4), (4,)}
    everything = [*rates.links.values(), rates.readout, *rates.steps.values(), rates.operations]
    assert np.isfinite(everything).all()
    assert min(everything) > 0


def test_products_of_the_same_widths_are_timed_with_their_activation(monkeypatch):
    activated = {}

    def noted(function, width, operations, kernel):
        if isinstance(function, partial):
            activated[kernel.shape] = function.args[0]
        return 1.0

    monkeypatch.setattr("jaxablate.study._rates._seconds_per_example", noted)
    ja.study.measure_rates(5, 2, ((5, 5), (4, 3)), activation="tanh")
    assert {shape for shape, of in activated.items() if of is None} == {(5, 4)}
    assert activated.keys() == {(5, 5), (5, 2), (5, 4), (4, 3), (3, 2)}


def test_the_memory_of_a_container_is_what_there_is(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("jaxablate.study._plan.CONTAINER", limit)
    whole = plan_study(CONFIG, SIZES, rates=RATES).available
    for text, expected in (("max\n", whole), (f"{2**30}\n", 2**30)):
        limit.write_text(text)
        assert plan_study(CONFIG, SIZES, rates=RATES).available == expected


def test_a_plan_of_a_config_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"networks": [[5, 4]], "steps": 2, "epochs": 1}))
    options = ["--sizes", "640,100,1000,7,3", "--seeds", "3", "--devices", "1", "--json"]
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "config.json"), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["layout"] == {"data": 1, "study": 1}
    assert [stage["work"] for stage in found["stages"][:2]] == ["3 x 20 steps of 32 examples", "9 neurons"]
    shown = (
        CliRunner().invoke(app, ["plan", str(tmp_path / "config.json"), *options[:-1]], env={"COLUMNS": "80"}).stdout
    )
    assert "640 training" in shown
    assert f"{found['flops'] / 1e12:.3g} TFLOP" in " ".join(shown.split())


def test_the_folder_of_a_run_is_a_config(tmp_path):
    config = ja.StudyConfig(
        dataset="mnist5k", networks=((6,),), epochs=1, steps=3, random_orders=2, metrics=("entropy",), seeds=(4,)
    )
    ja.run_study(config, run_dir=tmp_path)
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected JSON, got something else"),
        ("[1]", "expected settings by name, got list"),
        ('{"step": 1, "seed": 2}', "expected settings of a StudyConfig, got also seed, step"),
        ('{"steps": "80"}', "expected a whole number for steps, got '80'"),
        ('{"seeds": 3}', "expected a list for seeds, got 3"),
        ('{"networks": [["a"]]}', "expected settings as StudyConfig takes them, got"),
        ('{"steps": 81, "networks": [[80]]}', "steps: expected 1 to 80"),
        ('{"format": "jaxablate run 1"}', "expected the settings of a run, got none of its data"),
        ("[" * 100_000, "expected JSON, got something else"),
        (" " * (10**6 + 1), "expected at most 1000000 bytes of settings, got more"),
    ],
)
def test_what_is_no_config_is_refused(text, told, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with raises_input_error(told):
        load_config(tmp_path / "config.json")


@pytest.mark.parametrize("sizes", ["1,2,3", "1,2,3,4,x", "1,2,3,4,0", "1,2,3,4,-5"])
def test_sizes_are_five_numbers(sizes):
    result = CliRunner().invoke(app, ["plan", "--sizes", sizes])
    assert result.exit_code == 1
    assert "--sizes: expected train,validation,test,features,classes, such as" in " ".join(result.stderr.split())


def test_bad_plans_are_refused():
    with raises_input_error("networks: expected at least one to train, got none"):
        plan_study(replace(CONFIG, networks=()), SIZES)
    with raises_input_error("sizes: expected 5, of train, validation, test, features, classes, got 2"):
        plan_study(CONFIG, (1, 2))
    with raises_input_error("sizes, test: expected at least 1, got 0"):
        plan_study(CONFIG, SIZES._replace(test=0))
    with raises_input_error("batch_size: expected 1 to 31, the size of the training split, got 32"):
        plan_study(CONFIG, SIZES._replace(train=31), rates=RATES)
    with raises_input_error("devices: expected at least 1, got 0"):
        plan_study(CONFIG, SIZES, devices=0)
