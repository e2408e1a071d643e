"""The README's library example runs as it stands."""

import re
from pathlib import Path

import numpy as np

import jaxablate as ja

README = Path(__file__).parents[1] / "README.md"


def test_the_library_example_runs(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    train = ja.train
    monkeypatch.setattr(ja, "train", lambda *args, **kwargs: train(*args, epochs=2, **kwargs))  # it is slow otherwise
    names: dict = {}
    exec(code, names)
    assert names["correct"].shape == (1, 81)
    assert names["correct"].dtype == np.int32
    assert "[[0." in capsys.readouterr().out
