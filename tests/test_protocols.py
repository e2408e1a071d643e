"""The published protocol against a NumPy transcription of its description, piece by piece and as a whole."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from helpers import assert_counts, raises_input_error

import jaxablate as ja
import jaxablate.study._ablate
from jaxablate.protocols import DEPARTURES, PAPER, _published, protocol_names
from jaxablate.protocols._published import with_departures

ALL = "+".join(DEPARTURES)
CONFIG = ja.StudyConfig(
    dataset="mnist5k", networks=((12, 10),), epochs=6, seeds=(1,), num_random_orders=2, num_random_subsets=3, steps=8
)

# [neuron, class, code]: ordinary; dead; always on; never on for class 0; a class without examples
COUNTS = np.array(
    [
        [[3, 7], [6, 4], [5, 5]],
        [[10, 0], [10, 0], [10, 0]],
        [[0, 10], [0, 10], [0, 10]],
        [[10, 0], [2, 8], [5, 5]],
        [[0, 0], [5, 10], [8, 7]],
    ],
    np.int32,
)


def published_scores(table: np.ndarray) -> tuple[float, float]:
    """Entropy and "mutual information" H(T) + H(T|Y) as described, where 0 log 0 and 0 / 0 are NaN."""

    def plogp(p: float) -> float:
        return math.nan if p == 0 or math.isnan(p) else p * math.log(p)

    total = table.sum()
    entropy = -sum(plogp(table[:, t].sum() / total) for t in range(2))
    conditional = 0.0
    for row in table:
        given = [n / row.sum() if row.sum() else math.nan for n in row]
        conditional -= row.sum() / total * sum(plogp(p) for p in given)
    return entropy, entropy + conditional


def test_published_scores_equal_the_description():
    protocol = ja.protocols.get_protocol("published")
    expected = np.array([published_scores(table) for table in COUNTS])
    entropy, information = (protocol.score(metric, COUNTS) for metric in ("entropy", "mutual_information"))
    np.testing.assert_allclose(entropy, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(information, expected[:, 1], atol=1e-6)
    assert np.isnan(entropy).tolist() == [False, True, True, False, False]
    assert np.isnan(information).tolist() == [False, True, True, True, True]
    assert information[0] > math.log(2), "no mutual information with one bit can be so large"
    np.testing.assert_array_equal(protocol.score("kl_selectivity", COUNTS), ja.kl_selectivity(COUNTS))


def test_each_scoring_departure_alone():
    sign, nan = ja.protocols.get_protocol("mi_sign"), ja.protocols.get_protocol("nan_logs")
    entropy, information = np.asarray(ja.entropy(COUNTS)), np.asarray(ja.mutual_information(COUNTS))
    np.testing.assert_array_equal(sign.score("entropy", COUNTS), entropy)
    np.testing.assert_allclose(sign.score("mutual_information", COUNTS), 2 * entropy - information, atol=1e-6)
    np.testing.assert_array_equal(nan.score("entropy", COUNTS)[[0, 3, 4]], entropy[[0, 3, 4]])
    np.testing.assert_array_equal(nan.score("mutual_information", COUNTS)[0], information[0])
    assert np.isnan(nan.score("mutual_information", COUNTS)[1:]).all()


def test_nan_ranks_last_in_low_first_and_first_in_high_first():
    scores = np.array([0.3, np.nan, 0.1, np.nan, 0.5], np.float32)
    largest, smallest = (ja.protocols.get_protocol(name).rank for name in ("nan_logs+nan_largest", "nan_logs"))
    assert largest(scores, "low").tolist() == [2, 0, 4, 1, 3]
    assert largest(scores, "high").tolist() == [1, 3, 4, 0, 2]
    assert smallest(scores, "low").tolist() == [1, 3, 2, 0, 4]
    assert smallest(scores, "high").tolist() == [4, 0, 2, 1, 3]
    for direction, rank in itertools.product(("low", "high"), (largest, smallest)):
        assert rank(np.full(3, np.nan, np.float32), direction).tolist() == [0, 1, 2], "all NaN: by index"
        np.testing.assert_array_equal(rank(scores[::2], direction), ja.ablation_order(scores[::2], direction=direction))


def test_balancing_scales_by_the_firing_rate():
    protocol = ja.protocols.get_protocol("firing_rate_scaling")
    fill = protocol.balance(COUNTS, np.full(5, 0.4, np.float32))
    assert protocol.fill_name == "scaled"
    assert not fill.offset.any()
    np.testing.assert_allclose(fill.scale, [16 / 30, 0, 1, 13 / 30, 17 / 30], rtol=1e-6)
    assert PAPER.fill_name == "mean"
    assert PAPER.balance(COUNTS, np.full(5, 0.4, np.float32)).tolist() == [np.float32(0.4)] * 5


def test_the_strict_threshold_differs_at_the_threshold_only():
    activations = np.array([[0.49, 0.5, 0.51]], np.float32)
    assert ja.protocols.get_protocol("strict_threshold").quantizer("sigmoid")(activations).tolist() == [[0, 0, 1]]
    assert PAPER.quantizer("sigmoid")(activations).tolist() == [[0, 1, 1]]
    assert ja.protocols.get_protocol("strict_threshold").quantizer("tanh")(activations - 0.5).tolist() == [[0, 0, 1]]
    for activation in ("relu", "gelu"):
        strict = ja.protocols.get_protocol("strict_threshold").quantizer(activation)
        assert strict(activations - 0.5).tolist() == PAPER.quantizer(activation)(activations - 0.5).tolist()


def test_fresh_subsets_are_uniform_independent_and_not_nested():
    draw = ja.protocols.get_protocol("fresh_subsets").fresh_subsets
    assert draw is not None
    masks = draw(9, 400, 6, key=jax.random.key(0))
    assert masks.shape == (400, 7, 9)
    np.testing.assert_array_equal((~masks).sum(axis=2), np.tile(np.arange(7), (400, 1)))
    ablated = (~masks).mean(axis=0)
    np.testing.assert_allclose(ablated, np.arange(7)[:, None] / 9 * np.ones(9), atol=0.11)  # 4.4 standard deviations
    nested = (masks[:, 1:] <= masks[:, :-1]).all(axis=2)
    assert nested[:, 1:].mean() < 0.2
    assert nested[:, 0].all()


@pytest.mark.parametrize("name", ["", "Paper", "published+mi_sign", "mi_sign+", "nan"])
def test_unknown_protocols_are_named(name):
    with raises_input_error("protocol: unknown .*choose one of paper, published, mi_sign"):
        ja.protocols.get_protocol(name)
    with raises_input_error("protocol: unknown"):
        ja.StudyConfig(protocols=(name,))


def test_every_departure_changes_one_piece():
    pieces = ("quantizer", "score", "rank", "balance", "fill_name", "fresh_subsets")
    changed = {
        name: [piece for piece in pieces if getattr(ja.protocols.get_protocol(name), piece) != getattr(PAPER, piece)]
        for name in DEPARTURES
    }
    assert changed == {
        "mi_sign": ["score"],
        "nan_logs": ["score", "rank"],
        "nan_largest": ["rank"],
        "firing_rate_scaling": ["balance", "fill_name"],
        "strict_threshold": ["quantizer"],
        "fresh_subsets": ["fresh_subsets"],
    }


@pytest.fixture(scope="module")
def off_and_on():
    """One network under the paper's protocol, all departures off, the published one, and all six on."""
    config = dataclasses.replace(CONFIG, protocols=("paper", "nan_largest", "published", ALL))
    with pytest.MonkeyPatch.context() as patch:
        known = jaxablate.study._ablate.get_protocol
        patch.setattr(
            jaxablate.study._ablate,
            "get_protocol",
            lambda name: with_departures((), name) if name == "nan_largest" else known(name),
        )
        return ja.run_study(config)


def test_all_departures_off_is_the_paper_and_on_is_published(off_and_on):
    nodes = {
        name: ja.results.select_protocol(off_and_on, name)["2-layer-12-10"].to_dataset()
        for name in ja.results.protocols_of(off_and_on)
    }
    for first, second in (("paper", "nan_largest"), ("published", ALL)):
        assert nodes[first].attrs.pop("protocol") != nodes[second].attrs.pop("protocol")
        assert nodes[first].identical(nodes[second]), (first, second)
    assert not nodes["paper"].equals(nodes["published"])


def test_a_study_uses_the_protocols_own_quantizer(monkeypatch):
    """Real activations hardly ever lie on the threshold, so that the strict one is seen at work by moving it."""
    monkeypatch.setattr(_published, "strict_quantizer", lambda activation: ja.quantizers.threshold(0.9))
    config = ja.StudyConfig(
        dataset="mnist5k",
        networks=((9,),),
        epochs=2,
        num_random_orders=1,
        steps=2,
        protocols=("paper", "strict_threshold"),
    )
    results = ja.run_study(config)
    paper_counts, strict = (
        results[name].to_dataset()["joint_counts"] for name in ("1-layer-9", "strict_threshold/1-layer-9")
    )
    assert (strict.sel(code=1) <= paper_counts.sel(code=1)).all()
    assert (strict.sel(code=1) < paper_counts.sel(code=1)).any()


def test_sets_of_protocols():
    assert protocol_names("both") == ("paper", "published")
    assert protocol_names("mi_sign, both,paper") == ("mi_sign", "paper", "published")
    assert protocol_names("each") == ("paper", *DEPARTURES, "nan_logs+nan_largest", "published")
    with raises_input_error("protocol: expected a name, got 1"):
        ja.protocols.get_protocol(1)
    with raises_input_error("protocol: expected a name, got None"):
        ja.StudyConfig(protocols=(None,))


def test_the_published_sweep_by_hand(off_and_on, mnist5k):
    """Every curve of the published protocol but the random ones again, by NumPy, from the trained network on."""
    node = off_and_on["published/2-layer-12-10"].to_dataset()
    model, _ = ja.train(mnist5k, (12, 10), 1, epochs=6)
    validation, test = mnist5k.validation, mnist5k.test
    activations = np.concatenate(ja.record_activations(model, validation.images), axis=1)
    counts = np.zeros((22, 10, 2), int)
    for row, label in zip(activations > 0.5, validation.labels, strict=True):
        counts[np.arange(22), label, row.astype(int)] += 1
    np.testing.assert_array_equal(node["joint_counts"][0], counts)
    expected = np.array([published_scores(table) for table in counts]).T
    np.testing.assert_allclose(node["scores"][0, :2], expected, atol=1e-6)
    assert np.isnan(expected[1]).any()
    rate = counts[:, :, 1].sum(axis=1) / len(validation)
    assert node["fill"].values.tolist() == ["zero", "scaled"]
    for scope, start, stop in (("layer1", 0, 12), ("layer2", 12, 22), ("network", 0, 22)):
        for metric, direction in itertools.product(("entropy", "mutual_information"), ("low", "high")):
            chosen = node.sel(scope=scope, ordering=f"{metric}_{direction}").isel(seed=0)
            scores = node["scores"].sel(score=metric).values[0].tolist()
            undefined = {"low": lambda s: (math.isnan(s), s), "high": lambda s: (not math.isnan(s), -s)}[direction]
            order = sorted(
                range(start, stop),
                key=lambda j, u=undefined, s=scores: (*u(s[j]), j) if not math.isnan(s[j]) else (u(s[j])[0], 0, j),
            )
            assert chosen["ablated"].values.tolist() == order[:8]
            keep = np.array([[j not in order[:k] for j in range(22)] for k in range(9)])
            for fill, scale in (("zero", None), ("scaled", rate)):
                assert_counts(chosen["correct"].sel(fill=fill), model, keep, test.images, test.labels, None, scale)
    alone = ~np.eye(22, dtype=bool)
    assert_counts(node["single_correct"][0], model, alone, test.images, test.labels, None, rate)


def test_the_published_random_curves_by_hand(off_and_on, mnist5k, monkeypatch):
    """The protocol draws the subsets; the counts belong to these subsets."""
    drawn = []
    original = _published.fresh_subsets
    monkeypatch.setattr(_published, "fresh_subsets", lambda *a, key: drawn.append(original(*a, key=key)) or drawn[-1])
    config = dataclasses.replace(CONFIG, protocols=("fresh_subsets",))
    node = ja.results.select_protocol(ja.run_study(config), "fresh_subsets")["2-layer-12-10"].to_dataset()
    model, _ = ja.train(mnist5k, (12, 10), 1, epochs=6)
    mean = node["mean_activation"].values[0]
    random = node.isel(seed=0, ordering=node["ranking"].values == "random")
    assert (random["ablated"] == -1).all()
    places = [(scope, fill) for scope in ("layer1", "layer2", "network") for fill in ("zero", "mean")]
    for (scope, fill), masks in zip(places, drawn, strict=True):
        start, stop = {"layer1": (0, 12), "layer2": (12, 22), "network": (0, 22)}[scope]
        keep = np.ones((3, 9, 22), bool)
        keep[:, :, start:stop] = masks
        counts = random["correct"].sel(scope=scope, fill=fill).values.reshape(-1)
        test = mnist5k.test
        assert_counts(counts, model, keep.reshape(-1, 22), test.images, test.labels, mean if fill == "mean" else None)
    # layer 1 and the whole network have draws of their own, and the random orders of layer 1 too
    sizes = {masks.shape[2] for masks in drawn}
    assert sizes == {12, 10, 22}
    assert not (drawn[0][:, 5, :10] == drawn[2][:, 5]).all()
    order = off_and_on["2-layer-12-10"]["ablated"].sel(ordering="random_0", scope="layer1").values[0]
    assert set(np.flatnonzero(~drawn[0][0, 6])) != set(order[:6].tolist())
    published = off_and_on["published/2-layer-12-10"].to_dataset()
    zeros = published["correct"].sel(fill="zero").isel(ordering=published["ranking"].values == "random", seed=0)
    np.testing.assert_array_equal(random["correct"].sel(fill="zero"), zeros)
