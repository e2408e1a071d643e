"""The README's examples run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxablate as ja

README = Path(__file__).parents[1] / "README.md"
OWN, SCORES, LIBRARY = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_library_example_runs(monkeypatch, capsys):
    train = ja.train
    monkeypatch.setattr(ja, "train", lambda *args, **kwargs: train(*args, epochs=2, **kwargs))  # it is slow otherwise
    names: dict = {}
    exec(LIBRARY, names)
    assert names["correct"].shape == (1, 81)
    assert names["correct"].dtype == np.int32
    assert "[[0." in capsys.readouterr().out


def test_the_example_of_an_own_model_runs():
    assert len([line for line in OWN.splitlines() if line]) <= 15
    names: dict = {}
    exec(OWN, names)
    assert names["curves"]["confusion"].shape == (10, 65, 10, 10)
    kept = int((names["damage"] > names["damage"].mean()).sum())
    assert 0 < kept < 64
    assert ja.record_activations(names["small"], names["test"][0][:5])[0].shape == (5, kept)


def test_the_example_of_scores_runs():
    names: dict = {}
    exec(OWN, names)
    exec(SCORES, names)
    assert names["null"].p_value.shape == (64,)
    assert names["pairs"].joint.shape == (64, 64)
    assert names["found"]["auc"].shape == (1, 2, 2, 3, 2)


@pytest.mark.parametrize("command", re.findall(r"^jaxablate (\w+)", README.read_text(), re.MULTILINE))
def test_the_commands_exist(command):
    from jaxablate.cli import app

    assert command in {registered.callback.__name__ for registered in app.registered_commands}
