"""Claims: every effect by hand, the statistics on synthetic results with known effects, flips, files."""

import csv
import json

import numpy as np
import pytest
from helpers import raises_input_error
from scipy import stats

import jaxablate as ja
from jaxablate.claims import FAILS, HOLDS, UNDECIDED, Effect, Verdict
from jaxablate.claims._statistics import Comparison, estimate, holm
from jaxablate.datasets import Source
from jaxablate.protocols import DEPARTURES
from jaxablate.results import Ordering, network_results, study_results

METRICS = ("entropy", "mutual_information", "kl_selectivity")
SOURCE = Source("synthetic", "made up", {})


def synthetic(
    areas: dict[tuple[str, str, str], list[float]], layers: int, intact: float = 94.0, seeds: int = 1, scores=None
):
    """One network whose curves are flat at the given accuracy (percent, for each seed) by scope, ordering and fill."""
    orderings = [
        *(Ordering(m, d) for m in METRICS for d in ("low", "high")),
        Ordering("random", "0"),
        Ordering("random", "1"),
    ]
    scopes = [*(f"layer{i + 1}" for i in range(layers)), "network"]
    correct = np.full((seeds, len(scopes), len(orderings), 2, 5), 94_000)
    for s, scope in enumerate(scopes):
        for o, ordering in enumerate(orderings):
            for f, fill in enumerate(("zero", "mean")):
                value = areas.get((scope, ordering.label, fill), areas.get((scope, ordering.ranking, fill)))
                if value is not None:
                    correct[:, s, o, f, 1:] = 1000 * np.reshape(value, (-1, 1))
    neurons = 2 * layers
    scores = np.zeros((seeds, 3, neurons)) if scores is None else scores
    arrays = {
        **{
            name: np.zeros((seeds, 1))
            for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        },
        "joint_counts": np.ones((seeds, neurons, 2, 2), int),
        "mean_activation": np.zeros((seeds, neurons)),
        "scores": scores,
        "ablated": np.zeros((seeds, len(scopes), len(orderings), 4), int),
        "single_correct": np.zeros((seeds, neurons), int),
        "correct": correct.round().astype(int),
    }
    return network_results(
        arrays,
        protocol="paper",
        first_step=0,
        sites={f"layer{i}": 2 for i in range(1, layers + 1)},
        activation="sigmoid",
        seeds=range(seeds),
        scores=METRICS,
        orderings=orderings,
        fills=("zero", "mean"),
        num_test_examples=100_000,
    )


def effects_of(network) -> dict[str, dict[str, float]]:
    verdicts = ja.judge_claims(study_results({"paper": {"net": network}}, {}, SOURCE, 0.0))
    return {v.claim: {effect.label: round(effect.mean, 6) for effect in v.effects} for v in verdicts}


def test_every_effect_by_hand():
    """A 3-layer network whose areas are all different, so that no mix-up goes unseen."""
    areas = {}
    for i in (1, 2, 3):
        scope = f"layer{i}"
        areas |= {(scope, "random", "mean"): 90 - i, (scope, "random", "zero"): 80 - 2 * i}
        for j, metric in enumerate(METRICS):
            areas |= {
                (scope, f"{metric}_low", "mean"): 92 - i - 0.3 * j,
                (scope, f"{metric}_high", "mean"): 85 + 2 * i - 0.1 * j,
                (scope, f"{metric}_low", "zero"): 70 + i + j,
            }
    areas |= {("network", f"{m}_low", "mean"): value for m, value in zip(METRICS, (89.5, 91.5, 93.4), strict=True)}
    areas |= {("network", "random", "mean"): 93.0}
    scores = np.array(
        [[[0.1, 0.3, 0.4, 0.6, 0.5, 0.9], [0.0, np.nan, 0.2, 0.4, 0.6, 0.6], [2.0, 1.0, 1.2, 0.8, 0.9, 0.5]]]
    )
    got = effects_of(synthetic(areas, 3, scores=scores))
    assert list(got) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9a", "C9b", "C10"]
    assert got["C1"] == {
        "layer1, random: balanced over zeros": 89 - 78,
        "layer1, MI-LVF: balanced over zeros": pytest.approx(90.7 - 72),
        "layer2, random: balanced over zeros": 88 - 76,
        "layer2, MI-LVF: balanced over zeros": pytest.approx(89.7 - 73),
        "layer3, random: balanced over zeros": 87 - 74,
        "layer3, MI-LVF: balanced over zeros": pytest.approx(88.7 - 74),
    }
    # layer 1: LVF 91, 90.7, 90.4, random 89, HVF 87, 86.9, 86.8; layer 2: 90.., 88, 89..; layer 3: 89.., 87, 91..
    assert got["C2"] == pytest.approx(
        {
            "layer1, entropy: better direction over random": 2.0,
            "layer1, entropy: random over worse direction": 2.0,
            "layer1, MI: better direction over random": 1.7,
            "layer1, MI: random over worse direction": 2.1,
            "layer1, KL: better direction over random": 1.4,
            "layer1, KL: random over worse direction": 2.2,
            "layer2, entropy: better direction over random": 2.0,
            "layer2, entropy: random over worse direction": -1.0,
            "layer2, MI: better direction over random": 1.7,
            "layer2, MI: random over worse direction": -0.9,
            "layer2, KL: better direction over random": 1.4,
            "layer2, KL: random over worse direction": -0.8,
            "layer3, entropy: better direction over random": 4.0,
            "layer3, entropy: random over worse direction": -2.0,
            "layer3, MI: better direction over random": 3.9,
            "layer3, MI: random over worse direction": -1.7,
            "layer3, KL: better direction over random": 3.8,
            "layer3, KL: random over worse direction": -1.4,
        }
    )
    assert got["C3"] == pytest.approx(
        {
            "layer1, MI: LVF over HVF": 90.7 - 86.9,
            "layer1, KL: LVF over HVF": 90.4 - 86.8,
            "layer2, MI: LVF over HVF": 89.7 - 88.9,
            "layer2, KL: LVF over HVF": 89.4 - 88.8,
        }
    )
    assert got["C4"] == pytest.approx(
        {"layer3, MI: HVF over LVF": 90.9 - 88.7, "layer3, KL: HVF over LVF": 90.8 - 88.4}
    )
    ranked = [
        np.mean([92 - i - 0.3 * j for j in range(3)] + [85 + 2 * i - 0.1 * j for j in range(3)]) for i in (1, 2, 3)
    ]
    assert got["C5"] == pytest.approx(
        {
            "random: layer1 over layer2": 1,
            "all rankings: layer1 over layer2": ranked[0] - ranked[1],
            "random: layer3 over layer2": -1,
            "all rankings: layer3 over layer2": ranked[2] - ranked[1],
        }
    )
    assert got["C6"] == pytest.approx(
        {
            "random: layer3 over layer1": -2,
            "all rankings: layer3 over layer1": ranked[2] - ranked[0],
            "random: layer3 over layer2": -1,
            "all rankings: layer3 over layer2": ranked[2] - ranked[1],
        }
    )
    assert got["C7"] == pytest.approx(
        {
            "entropy-LVF: loss beyond 3 points": 4.5 - 3,
            "MI-LVF: loss beyond 3 points": 2.5 - 3,
            "KL-LVF: loss short of 1 point": 1 - 0.6,
        }
    )
    assert got["C8"] == pytest.approx(
        {
            "mean entropy: layer2 over layer1": 0.5 - 0.2,
            "mean entropy: layer3 over layer2": 0.7 - 0.5,
            "mean MI: layer2 over layer1": 0.3 - 0.0,  # a score that is not defined is left out
            "mean MI: layer3 over layer2": 0.6 - 0.3,
        }
    )
    assert got["C9a"] == pytest.approx({"mean KL: layer1 over layer2": 0.5, "mean KL: layer2 over layer3": 0.3})
    assert got["C9b"] == pytest.approx({"mean KL: layer2 over layer1": -0.5, "mean KL: layer3 over layer2": -0.3})
    assert got["C10"] == pytest.approx({"random: loss short of 2 points": 1.0})


def test_the_better_direction_is_that_of_all_networks():
    """LVF is better on average, though not in the second network."""
    areas = {
        ("layer1", "entropy_low", "mean"): [92, 88],
        ("layer1", "entropy_high", "mean"): [86, 89],
        ("layer1", "random", "mean"): [90, 90],
    }
    results = study_results({"paper": {"net": synthetic(areas, 1, seeds=2)}}, {}, SOURCE, 0.0)
    effects = {effect.label: effect for verdict in ja.judge_claims(results) for effect in verdict.effects}
    assert effects["layer1, entropy: better direction over random"].values == pytest.approx((2, -2))
    assert effects["layer1, entropy: random over worse direction"].values == pytest.approx((4, 1))


def test_networks_of_other_depths():
    assert "C5" not in effects_of(synthetic({}, 2))
    assert list(effects_of(synthetic({}, 1))) == ["C1", "C2", "C4", "C7", "C10"]
    assert all("layer4" in label for label in effects_of(synthetic({}, 4))["C4"])


def test_pairing_within_networks():
    """A difference of exactly 1 point in every network holds, however much the networks differ."""
    random = np.random.default_rng(3)
    base = random.uniform(60, 90, 12)
    noise = random.normal(0, 0.2, 12)
    areas = {("layer1", "random", "mean"): base, ("layer1", "random", "zero"): base - 1 - noise}
    results = study_results({"paper": {"net": synthetic(areas, 1, seeds=12)}}, {}, SOURCE, 0.0)
    verdict = ja.judge_claims(results)[0]
    effect = verdict.effects[0]
    assert verdict.num_networks == effect.num_networks == 12
    difference = np.round((base - (base - 1 - noise)), 3)
    np.testing.assert_allclose(effect.mean, difference.mean(), atol=2e-3)
    expected = stats.ttest_1samp(difference, 0)
    np.testing.assert_allclose([effect.low, effect.high], expected.confidence_interval(), atol=5e-3)
    assert effect.p == pytest.approx(expected.pvalue, rel=0.1)
    assert effect.verdict == HOLDS
    assert abs(effect.bootstrap_low - effect.low) < 0.06
    assert abs(effect.bootstrap_high - effect.high) < 0.06
    assert verdict.verdict == UNDECIDED, "the other comparison is 0 in every network"


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])), [0.03, 0.06, np.nan, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_the_family_is_all_comparisons_of_a_protocol(small_results):
    verdicts = ja.judge_claims(small_results)
    for protocol in ("paper", "published"):
        effects = [effect for v in verdicts if v.protocol == protocol for effect in v.effects]
        assert len({v.network for v in verdicts}) == 2
        expected = holm(np.array([effect.p for effect in effects]))
        np.testing.assert_allclose([effect.p_holm for effect in effects], expected)


def test_bootstrap_intervals_are_percentiles_of_resampled_means():
    values = np.random.default_rng(5).exponential(size=15)
    (effect,) = estimate(comparisons(values[None]))
    random = np.random.default_rng(99)
    means = random.choice(values, (40_000, 15)).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    assert effect.bootstrap_low == pytest.approx(low, abs=0.02)
    assert effect.bootstrap_high == pytest.approx(high, abs=0.02)


def comparisons(values: np.ndarray) -> list[Comparison]:
    return [Comparison(str(i), "accuracy points", row) for i, row in enumerate(values)]


@pytest.mark.slow
def test_false_positive_rate_and_power():
    """Families of 20 tests on 10 networks: one true effect of 1.5 standard deviations, 19 null effects."""
    random = np.random.default_rng(1)
    families, tests, networks, size = 250, 20, 10, 1.5
    false, true, covered = 0, 0, 0
    for _ in range(families):
        values = random.normal(size=(tests, networks))
        values[0] += size
        first, *remaining = estimate(comparisons(values))
        true += first.verdict == HOLDS
        false += any(effect.verdict != UNDECIDED for effect in remaining)
        covered += sum(effect.low <= 0 <= effect.high for effect in remaining)
    # three standard errors above the 5 % that Holm's method promises
    assert false / families < 0.05 + 3 * (0.05 * 0.95 / families) ** 0.5
    coverage = covered / (families * (tests - 1))
    assert abs(coverage - 0.95) < 3 * (0.05 * 0.95 / (families * (tests - 1))) ** 0.5
    # Holm rejects wherever Bonferroni does, and nowhere where an uncorrected test does not
    powers = [
        1 - stats.nct.cdf(stats.t.ppf(1 - level / 2, networks - 1), networks - 1, size * networks**0.5)
        for level in (0.05 / tests, 0.05)
    ]
    assert powers[0] - 0.1 < true / families < powers[1] + 0.03
    assert powers[0] > 0.5


def test_verdicts_follow_sign_and_evidence():
    random = np.random.default_rng(0)
    noise = random.normal(size=(3, 20))
    noise -= noise.mean(axis=1, keepdims=True)
    up, down, neither = estimate(comparisons(noise + np.array([[2], [-2], [0.05]])))
    assert (up.verdict, down.verdict, neither.verdict) == (HOLDS, FAILS, UNDECIDED)
    assert up.low > 0 > down.high


def test_too_few_networks_decide_nothing():
    single, none, agreeing_two, agreeing_many, zero = estimate(
        comparisons(np.array([[5.0], [np.nan]]))
        + comparisons(np.array([[5.0, 5.0]]))
        + comparisons(np.array([[5.0] * 12, [0.0] * 12]))
    )
    assert (single.mean, single.verdict, single.num_networks) == (5.0, UNDECIDED, 1)
    assert (none.num_networks, none.verdict) == (0, UNDECIDED)
    assert np.isnan([single.low, single.high, single.bootstrap_low, single.p, single.p_holm, none.mean, none.low]).all()
    assert (agreeing_two.verdict, agreeing_two.low, agreeing_two.high) == (UNDECIDED, 5, 5)
    assert agreeing_many.verdict == HOLDS
    assert agreeing_many.p == 2**-11
    assert (zero.verdict, zero.p) == (UNDECIDED, 1.0)


def test_claims_join_their_effects(monkeypatch):
    for effects, verdict in (
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, UNDECIDED), UNDECIDED),
        ((HOLDS, FAILS), FAILS),
        ((UNDECIDED, FAILS), FAILS),
        ((UNDECIDED,), UNDECIDED),
    ):
        assert ja.claims._judge._combine(effects) == verdict


def test_files_hold_everything_and_are_the_same_again(small_results, tmp_path):
    verdicts = ja.judge_claims(small_results)
    files = ja.claims.save_claims(verdicts, small_results, tmp_path / "a")
    again = ja.claims.save_claims(ja.judge_claims(small_results), small_results, tmp_path / "b")
    assert [file.name for file in files] == ["claims.json", "claims.csv"]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    document = json.loads(files[0].read_text())
    assert document["dataset"] == "mnist5k"
    assert document["config"]["seeds"] == [0, 3]
    assert len(document["verdicts"]) == len(verdicts) == 2 * (10 + 11)
    assert {verdict["protocol"] for verdict in document["verdicts"]} == {"paper", "published"}
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert len(rows) == sum(len(verdict.effects) for verdict in verdicts)
    row, effect = rows[0], verdicts[0].effects[0]
    assert (row["claim"], row["label"], row["claim_verdict"]) == ("C1", effect.label, verdicts[0].verdict)
    assert float(row["mean"]) == effect.mean
    assert [float(value) for value in row["values"].split()] == list(effect.values)
    assert document["verdicts"][0]["effects"][0]["values"] == list(effect.values)
    assert effect.mean == pytest.approx(sum(effect.values) / 2)
    undefined = [Verdict("paper", "net", "C1", "text", UNDECIDED, 1, (Effect("x", "nat", (0.5,), 1, 0.5),))]
    files = ja.claims.save_claims(undefined, small_results, tmp_path / "c")
    assert json.loads(files[0].read_text())["verdicts"][0]["effects"][0]["low"] is None
    assert next(csv.DictReader(files[1].read_text().splitlines()))["low"] == ""
    (tmp_path / "file").write_text("")
    with raises_input_error("output folder .* cannot be written"):
        ja.claims.save_claims(verdicts, small_results, tmp_path / "file")


def effect(mean: float, verdict: str, label: str = "x", spread: float = 0.1) -> Effect:
    values = (mean - spread, mean + spread, mean)
    return Effect(label, "accuracy points", values, 3, mean, verdict=verdict)


def test_flips_name_the_departure_that_carries_them():
    def judged(protocol, verdict, *effects, claim="C3"):
        return Verdict(protocol, "net", claim, "text", verdict, 20, effects)

    verdicts = [
        judged("paper", HOLDS, effect(4.0, HOLDS), effect(1.0, HOLDS, "same")),
        judged("mi_sign", FAILS, effect(-5.0, FAILS), effect(1.0, HOLDS, "same")),
        judged("fresh_subsets", HOLDS, effect(3.0, HOLDS), effect(1.0, HOLDS, "same")),
        judged("published", FAILS, effect(-6.0, FAILS), effect(1.1, HOLDS, "same")),
        judged("paper", HOLDS, effect(1.0, HOLDS), claim="C4"),
        judged("published", HOLDS, effect(9.0, HOLDS), claim="C4"),
    ]
    (flip,) = ja.claims.explain_changes(verdicts)
    assert (flip.claim, flip.label, flip.cause) == ("C3", "x", "mi_sign")
    assert flip.explained == pytest.approx(9 / 10)
    assert flip.means == {"paper": 4.0, "mi_sign": -5.0, "fresh_subsets": 3.0, "published": -6.0}
    assert flip.difference == pytest.approx((-10, -10, -10))
    halfway = [v for v in verdicts if v.protocol != "mi_sign"]
    assert ja.claims.explain_changes(halfway)[0].cause is None, "fresh_subsets goes a tenth of the way"
    all_departures = judged("+".join(DEPARTURES), FAILS, effect(-6.0, FAILS), effect(1.1, HOLDS, "same"))
    assert ja.claims.explain_changes([*verdicts, all_departures])[0].cause == "mi_sign", (
        "all six together explain nothing"
    )
    (unexplained,) = ja.claims.explain_changes([v for v in verdicts if v.protocol in ("paper", "published")])
    assert (unexplained.cause, unexplained.explained) == (None, None)
    assert ja.claims.explain_changes([v for v in verdicts if v.protocol == "paper"]) == []


def test_effects_that_do_not_differ_have_no_carrier():
    """A verdict may change because an interval grows; the paired difference -3 [-11.6, 5.6] leaves 0 inside."""
    verdicts = [
        Verdict("paper", "net", "C3", "text", HOLDS, 3, (effect(4.0, HOLDS),)),
        Verdict("mi_sign", "net", "C3", "text", HOLDS, 3, (effect(2.0, HOLDS),)),
        Verdict("published", "net", "C3", "text", UNDECIDED, 3, (effect(1.0, UNDECIDED, spread=3.6),)),
    ]
    (flip,) = ja.claims.explain_changes(verdicts)
    assert (flip.cause, flip.explained, flip.differs) == (None, None, False)


def test_equal_effects_may_be_judged_differently():
    """Equal numbers are judged differently in a larger family of tests."""
    verdicts = [
        Verdict("paper", "net", "C9a", "text", HOLDS, 3, (effect(4.0, HOLDS),)),
        Verdict("mi_sign", "net", "C9a", "text", HOLDS, 3, (effect(4.0, HOLDS),)),
        Verdict("published", "net", "C9a", "text", UNDECIDED, 3, (effect(4.0, UNDECIDED),)),
    ]
    (flip,) = ja.claims.explain_changes(verdicts)
    assert (flip.cause, flip.difference) == (None, (0, 0, 0))
