"""The findings: the committed page follows from committed results, of supported versions."""

import filecmp
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import findings
import pytest
from helpers import OPTIMIZED
from packaging.requirements import Requirement

from jaxablate.claims import Effect, Verdict, VerdictChange

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "findings" / "data"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OPTIMIZED}, check=False)


@pytest.mark.slow
def test_the_committed_findings_follow_from_the_committed_results(tmp_path):
    process = run("findings.py", DATA, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    for name in ("findings.md", "published_figures.md", "findings/claims.json"):
        assert filecmp.cmp(tmp_path / name, ROOT / "docs" / name, shallow=False), (
            f"{name} differs: run the script again"
        )
    pictures = []
    for name in ("findings.md", "published_figures.md"):
        pictures += re.findall(r"\]\((findings/[^)]+\.png)\)", (tmp_path / name).read_text())
    assert len(pictures) > 30
    for picture in pictures:
        assert (tmp_path / picture).is_file()
        assert (ROOT / "docs" / picture).is_file()
    files = [*DATA.iterdir(), ROOT / "docs" / "findings" / "claims.json"]
    assert sum(file.stat().st_size for file in files) < 10_000_000


def test_findings_without_measurements_end_in_one_sentence(tmp_path):
    process = run("findings.py", tmp_path, "--out", tmp_path / "docs")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "no such file; `python scripts/measure.py RUN` writes it" in process.stderr
    assert not (tmp_path / "docs").exists()


def committed_versions() -> dict[str, dict[str, str]]:
    """Return the versions of packages that each committed result was computed with."""
    files = [ROOT / "docs" / "findings" / "claims.json", *sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    return {file.name: json.loads(file.read_text())["versions"] for file in files}


@pytest.mark.parametrize(("name", "versions"), committed_versions().items())
def test_committed_results_come_from_supported_versions(name, versions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {(r := Requirement(text)).name: r for text in project["dependencies"]}
    for package in ("jax", "jaxlib"):
        assert versions[package] in required[package].specifier, (
            f"{name}: {package} {versions[package]} is not supported"
        )


def c2_effect(label: str, mean: float, verdict: str, p: float, p_holm: float) -> Effect:
    return Effect(label, "accuracy points", (), 20, mean, p=p, p_holm=p_holm, verdict=verdict)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1.0, "holds", 0.01, 0.02), (1.0, "holds", 0.01, 0.02), "holds"),
        ((-1.0, "reversed", 0.01, 0.02), (-1.0, "reversed", 0.01, 0.02), "holds"),
        ((-1.0, "does not hold", 0.01, 0.02), (-0.1, "no difference", 0.04, 0.08), "holds in part"),
        ((-1.0, "does not hold", 0.01, 0.02), (-1.0, "undecided", 0.06, 0.12), "undecided"),
        ((-1.0, "does not hold", 0.01, 0.02), (1.0, "holds", 0.01, 0.02), "does not hold"),
    ],
)
def test_random_may_lie_between_in_either_direction(first, second, expected):
    effects = c2_effect("layer1, MI: LVF over random", *first), c2_effect("layer1, MI: random over HVF", *second)
    verdict = Verdict("paper", "net", "C2", "text", "undecided", 20, effects)
    assert findings.in_either_direction(verdict) == expected


@pytest.mark.parametrize(
    ("by_network", "expected"),
    [
        ({"mi_sign": (-3.0, -3.1, -2.9), "nan_logs": (1.0, 1.1, 0.9)}, ("mi_sign",)),
        ({"mi_sign": (-3.0, -1.0, -5.0), "nan_logs": (2.9, 3.0, 2.8)}, ()),
        (
            {"nan_logs": (2.0, 1.0, 3.0), "nan_largest": (2.0, 1.0, 3.0), "mi_sign": (0.1, 0.1, 0.1)},
            ("nan_logs", "nan_largest"),
        ),
    ],
)
def test_the_largest_contribution_is_clear_only_by_its_interval(by_network, expected):
    effect = c2_effect("x", 0.0, "holds", 1.0, 1.0)
    shapley = {name: sum(values) / 3 for name, values in by_network.items()}
    change = VerdictChange(
        "net", "C2", "x", "accuracy points", effect, effect, (0.0, 0.0, 0.0), shapley, shapley, by_network
    )
    assert findings.clearly_largest(change) == expected
