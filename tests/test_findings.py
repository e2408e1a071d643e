"""The findings: the committed page follows from committed results, of supported versions."""

import dataclasses
import filecmp
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import findings_claims
import findings_questions
import findings_settings
import measure_settings
import numpy as np
import pytest
from helpers import OPTIMIZED
from packaging.requirements import Requirement
from scipy import stats

import jaxablate as ja
from jaxablate.claims import Effect, Verdict, VerdictChange
from jaxablate.statistics import estimate

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "findings" / "data"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OPTIMIZED}, check=False)


# Rendering takes a third of the time, and no test compares the pictures' bytes.
WITHOUT_RENDERING = """
import pathlib, runpy, sys
from matplotlib.figure import Figure
Figure.savefig = lambda figure, file, **_: hasattr(file, "write") or pathlib.Path(file).touch()
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_committed_findings_follow_from_the_committed_results(tmp_path):
    command = [sys.executable, "-c", WITHOUT_RENDERING, ROOT / "scripts" / "findings.py", DATA, "--out", tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OPTIMIZED}, check=False)
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
    assert sum(file.stat().st_size for file in files) < 20_000_000


def test_the_readme_quotes_the_findings():
    page = (ROOT / "docs" / "findings.md").read_text()
    summary = re.search(r"In \d+ kinds of networks \(a setting .*? cost less than the least MI in [^.]*\.", page)
    assert summary
    assert summary[0] in " ".join((ROOT / "README.md").read_text().split()), f"the README should say: {summary[0]}"


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
    assert findings_claims.in_either_direction(verdict) == expected


@pytest.mark.parametrize(
    ("by_network", "expected"),
    [
        ({"mi_sign": (-3.0, -3.1, -2.9), "nan_scores": (1.0, 1.1, 0.9)}, "mi_sign"),
        ({"mi_sign": (-3.0, -1.0, -5.0), "nan_scores": (2.9, 3.0, 2.8)}, ""),
    ],
)
def test_the_largest_contribution_is_clear_only_by_its_interval(by_network, expected):
    effect = c2_effect("x", 0.0, "holds", 1.0, 1.0)
    shapley = {name: sum(values) / 3 for name, values in by_network.items()}
    change = VerdictChange(
        "net", "C2", "x", "accuracy points", effect, effect, (0.0, 0.0, 0.0), shapley, shapley, by_network
    )
    assert findings_questions.clearly_largest(change) == expected


def test_every_setting_is_a_study():
    settings = measure_settings.settings()
    assert len(settings) >= 20
    assert len({json.dumps(changes, sort_keys=True) for changes in settings.values()}) == len(settings)
    for changes in settings.values():
        ja.StudyConfig(**{**measure_settings.PAPER, **changes}, steps=40, seeds=range(5))
    assert settings["paper"] == {}
    assert settings["depth 4"] == {"networks": ((200, 200, 200, 200),)}


@pytest.mark.slow
def test_settings_are_measured_and_described(small_data, tmp_path, monkeypatch):
    """One small setting: its numbers equal the study's, and the page has its text and pictures."""
    small = {"small": {"dataset": str(small_data), "networks": ((12, 10),), "epochs": 60}}
    monkeypatch.setattr(measure_settings, "settings", lambda: small)
    measure_settings.measure("small", small["small"], tmp_path, None, 5)
    before = (tmp_path / "small.nc").read_bytes()
    measure_settings.measure("small", small["small"], tmp_path, None, 5)  # is there, and stays
    assert (tmp_path / "small.nc").read_bytes() == before
    measure_settings.compress(tmp_path, tmp_path)
    (kind,) = findings_settings.read_kinds(tmp_path, list(small))
    assert (kind.depth, kind.label, kind.network.sizes["step"]) == (2, "small, 2 layers", 5)
    intact = kind.network["correct"].isel(step=0, ordering=0, fill=0, scope=0) / 200
    np.testing.assert_array_equal(kind.network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0), intact)
    one_bit = kind.network["code_correlations"].sel(quantizer="activation")
    assert np.isfinite(one_bit).sum() >= 8  # without a value where all neurons have the same information
    information = kind.network["scores"].sel(score="mutual_information")
    for seed, layer in np.argwhere(np.isfinite(one_bit.values)):
        chosen = kind.network["layer"].values == layer + 1
        pair = information[seed, chosen], kind.network["single_damage"][seed, chosen]
        assert float(one_bit[seed, layer]) == pytest.approx(stats.spearmanr(*pair).statistic)
    effects = findings_settings.measure_effects([kind])
    at_chance = kind.network.assign(accuracy=kind.network["accuracy"] / 9)
    failed = dataclasses.replace(kind, setting="failed", network=at_chance)
    # as the twenty networks of the paper, which lack linear compensation and finer codes
    fewer = dataclasses.replace(kind, network=kind.network.drop_vars(["linear_correct", "code_correlations"]))
    twenty = findings_settings.measure_effects([fewer])
    text = findings_settings.settings_section([kind, failed], effects, twenty, ["small", "failed", "other"], tmp_path)
    assert f"| {findings_settings.interval(effects['depth']['balanced'][0])} |\n" in text
    assert not twenty["codes"]
    assert "linear compensation" not in twenty["depth"]
    one_constant = kind.control.copy(deep=True)
    counts = one_constant["joint_counts"].transpose("seed", "neuron", "code", ...)
    counts.values[1, 3, 0], counts.values[1, 3, 1] = counts.values[1, 3].sum(axis=0), 0
    scores = findings_settings.score_only_changing(one_constant)["scores"].transpose("seed", "neuron", "score")
    np.testing.assert_array_equal(np.argwhere(np.isnan(scores.values).all(axis=2)), [[1, 3]])
    assert f"less than 50% test accuracy: failed, 2 layers ({100 / 9 * intact.mean():.1f}%)." in text
    assert re.search(r"\| failed \| 2 \| ", text)
    assert re.search(r"\| C1\. .* \| 1 \| ", text), "one kind is judged"
    for question in findings_settings.QUESTIONS:
        assert f"### {question.text}" in text
        assert (tmp_path / f"settings_{question.stem}.png").stat().st_size > 10_000
    area = findings_settings.NetworkSummary(kind.network).area
    expected = estimate(area("layer2", "random") - area("layer1", "random"))
    assert effects["depth"]["balanced"][0].mean == expected.mean
    linear, balanced = findings_settings.linear_areas(kind, "layer1")
    assert (linear > balanced).any()
    random = kind.network["accuracy"].sel(scope="layer1", fill="mean", ordering=["random_0", "random_1", "random_2"])
    np.testing.assert_allclose(balanced, 100 * random.isel(step=slice(1, None)).mean(("ordering", "step")))
    seed0 = ja.load_model(tmp_path / "small" / "networks" / "2-layer-12-10_seed0.safetensors").model
    data = ja.load_dataset(small_data)
    fill = ja.compute_fill(seed0, "linear", data.validation.images, data.validation.labels)
    orders = kind.network["ablated"].isel(seed=0).sel(scope="layer1", ordering=["random_0", "random_1", "random_2"])
    counts = ja.cumulative_ablation(seed0, orders.values, data.test.images, data.test.labels, fill, steps=4)
    assert linear[0] == pytest.approx(float(np.asarray(counts)[:, 1:].mean()) / 2)
    assert "5 networks of each kind, 10 in all" in text


def test_counts_of_settings():
    above, below, mixed = (estimate(np.array(values)) for values in ((1.0, 1.1, 1.2), (-1.0, -1.1, -1.2), (-1.0, 1, 0)))
    assert [findings_settings.direction(estimated) for estimated in (above, below, mixed)] == [1, -1, 0]
    estimates = {0: above, 1: above, 2: below, 3: mixed}
    row = findings_settings.count_row("effect", estimates, [], {0: below})
    assert row == "| effect | 2 (2) | 1 (1) | 1 | +0.55 (-1.10 to +1.10) | -1.10 [-1.35, -0.85] |"
    # the correction goes over the whole family, also for a part of it
    p_value = float(above.p_value)
    few, many = {0: above}, {i: above if i == 0 else mixed for i in range(int(0.05 / p_value) + 2)}
    assert findings_settings.count_row("part", few, [], {}).startswith("| part | 1 (1) |")
    assert findings_settings.count_row("part", few, [], {}, many).startswith("| part | 1 (0) |")


def test_the_variances_of_orders_and_of_networks_are_those_of_the_samples():
    generator = np.random.default_rng(0)
    networks, orders = generator.normal(size=(400, 1, 1)), generator.normal(size=(400, 5, 3))
    of_orders, of_networks = findings_claims.variances(2 * networks + 3 * orders)
    assert of_orders[0] == pytest.approx(9, rel=0.05)
    assert of_networks[0] == pytest.approx(4, rel=0.2)
    of_orders, of_networks = findings_claims.variances(2 * networks)
    assert (of_orders[0], of_networks[0]) == pytest.approx((0, 4 * networks.var(ddof=1)))


def test_the_jackknife_covers_a_difference_of_variances():
    generator = np.random.default_rng(0)
    covered, above = [], []
    for _ in range(400):
        networks, zeros, balanced = (generator.normal(size=(20, k, 1)) for k in (1, 10, 10))
        parts = [findings_claims.variances(networks + scale * orders) for scale, orders in ((3, zeros), (1, balanced))]
        mean, low, high = findings_claims.jackknife((parts[0] - parts[1])[1])
        assert low < mean < high
        covered.append(low < 0 < high)
        above.append(low > 0)
        total = [sum(part) for part in parts]
        ratio, low, high = findings_claims.of_ratio(total[1] / total[0])
        assert ratio == pytest.approx((total[1][0] / total[0][0]) ** 0.5)
        covered.append(low < (2 / 10) ** 0.5 < high)
    assert 0.92 < np.mean(covered) < 0.98
    assert np.mean(above) < 0.05


def test_a_setting_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ja.InputError, match=r"setting_depth_1.nc.xz: no such file; `python scripts/measure_set"):
        findings_settings.read_kinds(tmp_path, ["depth 1"])
