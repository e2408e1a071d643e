"""Claims: every effect by hand, verdicts and their error rates on known effects, changes of verdict, files."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from helpers import raises_input_error
from scipy import stats

import jaxablate as ja
from jaxablate.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    HOLDS_IN_PART,
    NO_DIFFERENCE,
    NOT_JUDGED,
    REVERSED,
    REVERSED_IN_PART,
    UNDECIDED,
    Claim,
    Comparison,
    Effect,
    Verdict,
)
from jaxablate.claims._judge import PLAYERS, combine
from jaxablate.claims._statistics import family_verdicts, judge_family
from jaxablate.datasets import Source
from jaxablate.protocols import DEPARTURES, SETS
from jaxablate.results import Ordering, network_results, study_results
from jaxablate.statistics import estimate, holm

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
        "single_damage": np.tile(np.arange(neurons) / 100, (seeds, 1)),
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


def judged(*networks, protocol="paper"):
    names = [f"net{i}" for i in range(len(networks))]
    return ja.judge_claims(study_results({protocol: dict(zip(names, networks, strict=True))}, {}, SOURCE, 0.0))


def effects_of(network) -> dict[str, dict[str, float]]:
    return {v.claim: {effect.label: round(effect.mean, 6) for effect in v.effects} for v in judged(network)}


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
    assert list(got) == list(CLAIMS)
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
            "layer1, entropy: LVF over random": 2.0,
            "layer1, entropy: random over HVF": 2.0,
            "layer1, MI: LVF over random": 1.7,
            "layer1, MI: random over HVF": 2.1,
            "layer1, KL: LVF over random": 1.4,
            "layer1, KL: random over HVF": 2.2,
            "layer2, entropy: LVF over random": 2.0,
            "layer2, entropy: random over HVF": -1.0,
            "layer2, MI: LVF over random": 1.7,
            "layer2, MI: random over HVF": -0.9,
            "layer2, KL: LVF over random": 1.4,
            "layer2, KL: random over HVF": -0.8,
            "layer3, entropy: LVF over random": 2.0,
            "layer3, entropy: random over HVF": -4.0,
            "layer3, MI: LVF over random": 1.7,
            "layer3, MI: random over HVF": -3.9,
            "layer3, KL: LVF over random": 1.4,
            "layer3, KL: random over HVF": -3.8,
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
            "entropy-LVF: loss in points beyond 3": 4.5 - 3,
            "MI-LVF: loss in points beyond 3": 2.5 - 3,
            "KL-LVF: loss in points short of 1": 1 - 0.6,
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
    assert got["C9"] == pytest.approx({"mean KL: layer2 over layer1": -0.5, "mean KL: layer3 over layer2": -0.3})
    assert got["C10"] == pytest.approx({"random: loss in points short of 2": 1.0})
    assert all(np.isnan(value) for value in got["C11"].values()), "the random orders are all equal"
    # the damage grows with the number of the neuron; the NaN of MI is left out
    assert got["C12"] == pytest.approx(
        {
            **{
                f"layer{i}, {m}: correlation beyond 0.5": c - 0.5
                for i, m, c in ((2, "MI", 1.0), (1, "KL", -1.0), (2, "KL", -1.0), (3, "KL", -1.0))
            },
            "layer1, MI: correlation beyond 0.5": np.nan,
            "layer3, MI: correlation beyond 0.5": np.nan,
            "network, MI: correlation beyond 0.5": stats.spearmanr([0.0, 0.2, 0.4, 0.6, 0.6], range(5)).statistic - 0.5,
            "network, KL: correlation beyond 0.5": stats.spearmanr(scores[0, 2], range(6)).statistic - 0.5,
        },
        nan_ok=True,
    )


def test_networks_of_other_depths():
    assert "C5" not in effects_of(synthetic({}, 2))
    assert list(effects_of(synthetic({}, 1))) == ["C1", "C2", "C4", "C7", "C10", "C11", "C12"]
    assert all("layer4" in label for label in effects_of(synthetic({}, 4))["C4"])


def test_pairing_within_networks():
    """A difference of 1 point in every network holds, however much the networks differ."""
    random = np.random.default_rng(3)
    base = random.uniform(60, 90, 12)
    noise = random.normal(0, 0.2, 12)
    areas = {("layer1", "random", "mean"): base, ("layer1", "random", "zero"): base - 1 - noise}
    verdict = judged(synthetic(areas, 1, seeds=12))[0]
    effect, other = verdict.effects
    assert verdict.num_networks == effect.num_networks == 12
    difference = np.round((base - (base - 1 - noise)), 3)
    expected = stats.ttest_1samp(difference, 0)
    np.testing.assert_allclose(effect.mean, difference.mean(), atol=2e-3)
    np.testing.assert_allclose([effect.low, effect.high], expected.confidence_interval(), atol=5e-3)
    assert effect.p == pytest.approx(expected.pvalue, rel=0.1)
    assert (effect.verdict, other.verdict, verdict.verdict) == (HOLDS, NO_DIFFERENCE, HOLDS_IN_PART)


def noisy_results(seed: int, seeds: int = 8, spread: float = 0.8):
    """Two networks with random effects near the borders of the verdicts."""
    random = np.random.default_rng(seed)
    networks = []
    for layers in (2, 3):
        areas = {}
        for scope in [*(f"layer{i + 1}" for i in range(layers)), "network"]:
            for ordering in ("random", *(f"{m}_{d}" for m in METRICS for d in ("low", "high"))):
                for fill in ("zero", "mean"):
                    areas[scope, ordering, fill] = random.normal(90 + random.normal(0, 0.7), spread, seeds)
        scores = random.normal(1, 0.1, (seeds, 3, 2 * layers))
        networks.append(synthetic(areas, layers, seeds=seeds, scores=scores))
    return networks


def simplified(verdicts, network="net0"):
    # repr: NaN equals itself there
    return {v.claim: (v.verdict, v.reason, repr(v.effects)) for v in verdicts if v.network == network}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_what_else_the_results_hold_changes_no_verdict(seed):
    two, three = noisy_results(seed)
    alone = simplified(judged(two))
    assert simplified(judged(two, three)) == alone
    tree = study_results({"paper": {"net0": two}, "published": {"net0": three}}, {}, SOURCE, 0.0)
    verdicts = [v for v in ja.judge_claims(tree) if v.protocol == "paper"]
    assert simplified(verdicts) == alone
    # another score, with its own orders, changes nothing either
    more = two.isel(score=[0, 1, 2, 0], ordering=[*range(8), 0, 1])
    more = more.assign_coords(
        score=[*METRICS, "mine"],
        ranking=("ordering", [*two["ranking"].values, "mine", "mine"]),
        ordering=[*two["ordering"].values, "mine_low", "mine_high"],
    )
    assert simplified(judged(more)) == alone
    # claims that need a missing score are not judged, and all others stay
    fewer = simplified(judged(two.isel(score=[1, 2]).isel(ordering=range(2, 8))))
    for claim, (verdict, reason, effects) in fewer.items():
        if "entropy" in CLAIMS[claim].scores:
            assert (verdict, reason, effects) == (NOT_JUDGED, "entropy missing", "()")
        else:
            assert (verdict, reason, effects) == alone[claim]
    one_claim = ja.judge_claims(study_results({"paper": {"net0": two}}, {}, SOURCE, 0.0), [CLAIMS["C4"]])
    assert simplified(one_claim)["C4"] == alone["C4"]


def test_the_family_is_the_claim(small_results):
    for verdict in ja.judge_claims(small_results):
        expected = holm(np.array([effect.p for effect in verdict.effects]))
        np.testing.assert_allclose([effect.p_holm for effect in verdict.effects], expected)


def comparisons(values: np.ndarray, **arguments) -> list[Comparison]:
    return [Comparison(str(i), "accuracy points", row, **arguments) for i, row in enumerate(values)]


def shifted(*means: float, sd: float = 1.0, networks: int = 20) -> np.ndarray:
    """Rows whose sample means and deviations are exactly these."""
    noise = np.random.default_rng(0).normal(size=(len(means), networks))
    noise -= noise.mean(axis=1, keepdims=True)
    return sd * noise / noise.std(axis=1, ddof=1, keepdims=True) + np.array(means)[:, None]


def test_verdicts_follow_sign_evidence_and_margin():
    values = shifted(2, -2, 0.3, 0.6, -0.6)
    up, down, nothing, some, against = judge_family(comparisons(values))
    assert (up.verdict, down.verdict, nothing.verdict) == (HOLDS, FAILS, UNDECIDED)
    assert up.low > 0 > down.high
    # 0.6 has p = 0.015: enough to hold, but a refutation needs the corrected p, which is 0.045
    assert (some.verdict, against.verdict) == (HOLDS, FAILS)
    assert 0.04 < against.p_holm < 0.05
    weaker = judge_family(comparisons(shifted(-0.55, 0, 0, 0, 0)))[0]
    assert weaker.p < 0.05 < weaker.p_holm
    assert weaker.verdict == UNDECIDED
    # a significant difference within the margin is no difference
    small = judge_family(comparisons(shifted(0.1, -0.1, sd=0.1)))
    assert [effect.verdict for effect in small] == [NO_DIFFERENCE, NO_DIFFERENCE]
    assert small[0].p < 0.001
    (margin,) = judge_family([Comparison("x", "my unit", shifted(0.1, sd=0.1)[0], margin=0.2)])
    (no_margin,) = judge_family([Comparison("x", "my unit", shifted(0.1, sd=0.1)[0])])
    assert (margin.verdict, no_margin.verdict) == (NO_DIFFERENCE, HOLDS)


def test_groups_are_reversed_together():
    both = judge_family(comparisons(shifted(-2, -2), group="pair"))
    assert [effect.verdict for effect in both] == [REVERSED, REVERSED]
    mixed = judge_family(comparisons(shifted(-2, 2), group="pair"))
    assert [effect.verdict for effect in mixed] == [FAILS, HOLDS]
    # random between the two directions, but the other way around in layer 2
    areas = {("layer1", "random", "mean"): 90.0, ("layer2", "random", "mean"): 90.0}
    for metric in METRICS:
        areas |= {("layer1", f"{metric}_low", "mean"): 92.0, ("layer1", f"{metric}_high", "mean"): 88.0}
        areas |= {("layer2", f"{metric}_low", "mean"): 88.0, ("layer2", f"{metric}_high", "mean"): 92.0}
    random = np.random.default_rng(2)
    areas = {key: value + random.normal(0, 0.1, 8) for key, value in areas.items()}
    verdicts = {v.claim: v for v in judged(synthetic(areas, 2, seeds=8))}
    assert verdicts["C2"].verdict == REVERSED_IN_PART
    assert {e.label: e.verdict for e in verdicts["C2"].effects}["layer2, MI: LVF over random"] == REVERSED


def test_claims_join_their_effects():
    for effects, verdict in (
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, UNDECIDED), UNDECIDED),
        ((HOLDS, FAILS), FAILS),
        ((UNDECIDED, FAILS, REVERSED), FAILS),
        ((UNDECIDED,), UNDECIDED),
        ((NO_DIFFERENCE, NO_DIFFERENCE), NO_DIFFERENCE),
        ((NO_DIFFERENCE, HOLDS), HOLDS_IN_PART),
        ((NO_DIFFERENCE, HOLDS, UNDECIDED), UNDECIDED),
        ((REVERSED, REVERSED), REVERSED),
        ((REVERSED, HOLDS, UNDECIDED), REVERSED_IN_PART),
    ):
        assert combine(effects) == verdict


def test_error_rates():
    """Families of 2, 6 and 18 comparisons on 10 networks, correlated as paired curves are, at the worst true effects.

    Specification: a claim wrongly holds in at most 2.5 % of families, wrongly fails in 2.5 %, shows no difference in
    5 %, and holds in part in 7.5 %.
    """
    random = np.random.default_rng(1)
    families, networks, sd = 2000, 10, 0.2

    def rates(effects, correlation):
        shape = networks, families, len(effects)
        noise = correlation**0.5 * random.normal(size=(*shape[:2], 1)) + (1 - correlation) ** 0.5 * random.normal(
            size=shape
        )
        margins, groups = np.full(len(effects), 0.25), [""] * len(effects)
        rows = family_verdicts(estimate(np.array(effects) + sd * noise), margins, groups)
        verdicts = [combine(row) for row in rows]
        # families are judged one at a time as they are here together
        first_family = judge_family(comparisons((effects + sd * noise[:, 0]).T))
        assert [effect.verdict for effect in first_family] == rows[0].tolist()
        return {name: verdicts.count(name) / families for name in (HOLDS, FAILS, NO_DIFFERENCE, HOLDS_IN_PART)}

    def at_most(level):  # three standard errors above the level
        return level + 3 * (level * (1 - level) / families) ** 0.5

    for size, correlation in ((2, 0.0), (6, 0.0), (18, 0.7)):
        # All true effects but one are large, and that one is 0: the claim does not hold.
        assert rates([0.0] + [2.0] * (size - 1), correlation)[HOLDS] <= at_most(0.025)
        # All true effects are 0 or large: nothing is opposed to the claim.
        assert rates([0.0] * size, correlation)[FAILS] <= at_most(0.025)
        # One true effect is at the margin: there is a difference.
        assert rates([0.25] + [0.0] * (size - 1), correlation)[NO_DIFFERENCE] <= at_most(0.05)
        # One true effect is opposed at the margin: the claim holds not even in part.
        assert rates([-0.25] + [2.0] * (size - 1), correlation)[HOLDS_IN_PART] <= at_most(0.075)
    # and the tests have power
    assert rates([0.5] * 6, 0.5)[HOLDS] > 0.9
    assert rates([-0.5] + [0.5] * 5, 0.5)[FAILS] > 0.9


def test_fewer_than_five_networks_are_not_judged():
    for seeds, expected in ((1, NOT_JUDGED), (4, NOT_JUDGED), (5, HOLDS)):
        areas = {("layer1", "random", "zero"): shifted(80, sd=0.5, networks=seeds)[0] if seeds > 1 else [80.0]}
        areas |= {("layer1", "mutual_information_low", "zero"): 81.0}
        verdict = judged(synthetic(areas, 1, seeds=seeds))[0]
        if seeds == 5:
            areas[("layer1", "mutual_information_low", "zero")] = shifted(81, sd=0.5, networks=5)[0]
            verdict = judged(synthetic(areas, 1, seeds=seeds))[0]
        assert verdict.verdict == expected
        if expected == NOT_JUDGED:
            assert verdict.reason.startswith(f"{seeds} network{'s' * (seeds > 1)}; 5 or more are needed")
            assert {effect.verdict for effect in verdict.effects} == {UNDECIDED}
            assert verdict.effects[0].mean == pytest.approx(94 - 80, abs=0.01)
    # a score that is undefined in a network leaves too few
    scores = np.ones((6, 3, 4))
    scores[2:4, 2, :2] = np.nan
    verdict = {v.claim: v for v in judged(synthetic({}, 2, seeds=6, scores=scores))}["C9"]
    assert (verdict.verdict, verdict.reason[:10]) == (NOT_JUDGED, "4 networks")


def test_thresholds_say_over_which_range_a_verdict_stands():
    areas = {
        ("network", f"{m}_low", "mean"): shifted(94 - c, sd=0.1, networks=8)[0]
        for m, c in zip(METRICS, (6, 5, 0.3), strict=True)
    }
    areas |= {("network", "random", "mean"): shifted(92.6, sd=0.1, networks=8)[0]}
    verdicts = {v.claim: v for v in judged(synthetic(areas, 2, seeds=8))}
    strong, flat = verdicts["C7"].thresholds
    assert verdicts["C7"].verdict == HOLDS
    assert (strong.threshold, strong.low) == (3, None), "more than any smaller bound too"
    assert 4.4 < strong.high < 4.9, "MI loses 5, and 0.25 more than the bound are needed"
    assert (flat.threshold, flat.high) == (1, None)
    assert 0.5 <= flat.low < 0.8
    (little,) = verdicts["C10"].thresholds
    assert (verdicts["C10"].verdict, little.threshold, little.high) == (HOLDS, 2, None)
    assert verdicts["C10"].effects[0].measured == pytest.approx(94 - 92.6, abs=1e-3)
    assert verdicts["C7"].effects[1].measured == pytest.approx(5, abs=1e-3)
    assert 1.6 <= little.low < 1.9


def test_variation_between_random_orders():
    """Two random orders; the balanced ones differ half as much: the variance is a quarter."""
    network = synthetic({}, 1, seeds=6)
    correct = network["correct"].copy()
    places = np.flatnonzero(network["ranking"].values == "random")
    for fill, gap in (("zero", 2000), ("mean", 1000)):
        f = list(network["fill"].values).index(fill)
        correct[:, 0, places[1], f, 1:] = correct[:, 0, places[0], f, 1:] - gap
    network["accuracy"] = correct / network.attrs["num_test_examples"]
    verdict = {v.claim: v for v in judged(network)}["C11"]
    assert verdict.effects[0].values == pytest.approx([np.log(4)] * 6)
    assert verdict.verdict == HOLDS


def test_a_claim_of_your_own():
    def compare(summary):
        for layer in summary.layers:
            gap = summary.area(layer, "entropy", "low") - summary.area(layer, "random")
            yield Comparison(f"{layer}: entropy-LVF over random", "accuracy points", gap)

    areas = {("layer1", "entropy_low", "mean"): shifted(94.6, sd=0.3, networks=9)[0]}
    tree = study_results({"paper": {"net": synthetic(areas, 1, seeds=9)}}, {}, SOURCE, 0.0)
    (verdict,) = ja.judge_claims(tree, [Claim("M1", "mine", compare, ("entropy",))])
    assert (verdict.claim, verdict.text, verdict.verdict) == ("M1", "mine", HOLDS)
    assert verdict.effects[0].mean == pytest.approx(0.6, abs=1e-3)


def test_files_hold_everything_and_are_the_same_again(small_results, tmp_path):
    verdicts = ja.judge_claims(small_results)
    files = ja.claims.save_claims(verdicts, small_results, tmp_path / "a")
    again = ja.claims.save_claims(ja.judge_claims(small_results), small_results, tmp_path / "b")
    assert [file.name for file in files] == ["claims.json", "claims.csv"]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    document = json.loads(files[0].read_text())
    assert document["dataset"] == "mnist5k"
    assert document["config"]["seeds"] == [0, 3]
    assert len(document["verdicts"]) == len(verdicts) == 2 * (11 + 12)
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


def test_changes_are_attributed_to_departures():
    """The wrong sign and the scaling each add 1.6 alone and -0.8 together; the subsets add 0.5 to everything."""

    def value(names):
        total = {(): 0.0, ("mi",): 1.6, ("fire",): 1.6, ("fire", "mi"): -0.8}[
            tuple(
                sorted(
                    {"mi_sign": "mi", "firing_rate_scaling": "fire"}[n]
                    for n in names
                    if n in ("mi_sign", "firing_rate_scaling")
                )
            )
        ]
        return total + 0.5 * ("fresh_subsets" in names)

    verdicts = []
    for protocol in SETS["departures"]:
        names = tuple(DEPARTURES) if protocol == "published" else () if protocol == "paper" else protocol.split("+")
        verdict = HOLDS if protocol == "paper" else FAILS
        effects = (effect(value(names), verdict), effect(1.0, HOLDS, "same"))
        verdicts.append(Verdict(protocol, "net", "C4", "text", verdict, 20, effects))
        # a claim that is not judged has no effects that could change
        blank = effect(value(names), verdict)
        verdicts.append(Verdict(protocol, "net", "C3", "text", NOT_JUDGED, 4, (blank,), "4 networks"))
    (change,) = ja.claims.explain_changes(verdicts)
    assert (change.claim, change.label) == ("C4", "x")
    assert (change.paper.mean, change.published.mean) == (0.0, pytest.approx(-0.3))
    assert change.difference == pytest.approx((-0.3, -0.3, -0.3))
    expected = dict.fromkeys(PLAYERS, 0.0) | {"mi_sign": 1.6, "firing_rate_scaling": 1.6, "fresh_subsets": 0.5}
    assert change.alone == pytest.approx(expected)
    assert change.interaction == pytest.approx(-0.3 - 3.7)
    # each is first in half of the orders (+1.6) and second in the other half (-2.4)
    assert change.shapley == pytest.approx({**expected, "mi_sign": -0.4, "firing_rate_scaling": -0.4})
    assert sum(change.shapley.values()) == pytest.approx(change.difference[0])
    # every protocol adds the same number in every network, so the networks' values are equal
    assert change.shapley_by_network["mi_sign"] == pytest.approx((-0.4, -0.4, -0.4))
    assert change.shapley_interval("mi_sign") == pytest.approx((-0.4, -0.4))
    fewer = [v for v in verdicts if v.protocol != "mi_sign+firing_rate_scaling"]
    (unexplained,) = ja.claims.explain_changes(fewer)
    assert (unexplained.alone, unexplained.shapley, unexplained.shapley_by_network) == ({}, {}, {})
    assert np.isnan(unexplained.interaction)
    assert ja.claims.explain_changes([v for v in verdicts if v.protocol == "paper"]) == []


def test_shapley_values_have_intervals_over_networks():
    """The wrong sign acts with the scaling only, by 1, 2 and 6 in the three networks: each departure gets half."""

    verdicts = []
    for protocol in SETS["departures"]:
        names = tuple(DEPARTURES) if protocol == "published" else () if protocol == "paper" else protocol.split("+")
        together, verdict = (
            {"mi_sign", "firing_rate_scaling"} <= set(names),
            FAILS if protocol == "published" else HOLDS,
        )
        values = (1.0, 2.0, 6.0) if together else (0.0, 0.0, 0.0)
        effects = (Effect("x", "accuracy points", values, 3, float(np.mean(values)), verdict=verdict),)
        verdicts.append(Verdict(protocol, "net", "C4", "text", verdict, 3, effects))
    (change,) = ja.claims.explain_changes(verdicts)
    assert change.shapley_by_network["mi_sign"] == pytest.approx((0.5, 1.0, 3.0))
    assert change.shapley["mi_sign"] == pytest.approx(1.5)
    expected = ja.statistics.estimate(np.array([0.5, 1.0, 3.0])).interval()
    assert change.shapley_interval("mi_sign") == pytest.approx(tuple(map(float, expected)))
    assert change.shapley_interval("nan_scores") == pytest.approx((0, 0))


def test_effects_may_be_judged_differently_without_a_difference():
    """A verdict may change because an interval grows; the paired difference -3 [-11.6, 5.6] leaves 0 inside."""
    verdicts = [
        Verdict("paper", "net", "C3", "text", HOLDS, 3, (effect(4.0, HOLDS),)),
        Verdict("published", "net", "C3", "text", UNDECIDED, 3, (effect(1.0, UNDECIDED, spread=3.6),)),
    ]
    (change,) = ja.claims.explain_changes(verdicts)
    assert not change.differs
    assert change.difference[0] == pytest.approx(-3)


PAPER_CONFIG = dataclasses.asdict(ja.StudyConfig())


def in_setting(config=PAPER_CONFIG, dataset="mnist", hidden=([200, 200], [200, 200, 200]), activation="sigmoid"):
    """Results with the attributes of a study in this setting, and without its arrays."""
    root = xr.Dataset(attrs={"config": json.dumps(config), "dataset": dataset})
    node = xr.Dataset({"train_loss": 0.0}, attrs={"activation": activation})
    nodes = {f"published/{i}": node.assign_attrs(hidden=json.dumps(widths)) for i, widths in enumerate(hidden)}
    return xr.DataTree.from_dict({"/": root, **nodes})


def test_the_default_setting_is_that_of_the_paper():
    for dataset in ("mnist", "mnist5k"):
        assert ja.claims.departures_from_paper(in_setting(dataset=dataset)) == []
    assert ja.claims.departures_from_paper(in_setting(hidden=([200, 200],))) == []
    assert ja.claims.departures_from_paper(in_setting(config=PAPER_CONFIG | {"epochs": 10})) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"dataset": "cancer"}, "dataset: cancer"),
        ({"hidden": ([200, 200], [200], [100, 50])}, "networks: 200, 100 + 50"),
        ({"activation": "relu"}, "activation: relu"),
        *(
            ({"config": PAPER_CONFIG | {name: value}}, f"{name}: {value}")
            for name, value in {
                "l2": 0.0, "batch_size": 64, "learning_rate": 0.01, "quantizer": "mean", "normalization": "rank",
                "dropout": 0.5, "batch_norm": True, "label_noise": 0.1, "epochs": 1,
            }.items()
        ),
    ],
)  # fmt: skip
def test_each_departure_from_the_paper_is_named(changed, difference):
    assert ja.claims.departures_from_paper(in_setting(**changed)) == [difference]


def test_networks_from_elsewhere_are_not_the_papers():
    results = in_setting()
    nodes = {node.path: node.to_dataset().drop_vars("train_loss", errors="ignore") for node in results.subtree}
    assert ja.claims.departures_from_paper(xr.DataTree.from_dict(nodes)) == ["training: not by the study"]
