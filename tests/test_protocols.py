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
from jaxablate.protocols import CONTROLS, DEPARTURES, PAPER, SETS, _published, protocol_names
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


@pytest.mark.parametrize("name", ["", "Paper", "published+paper", "mi_sign+", "nan", "departures"])
def test_unknown_protocols_are_named(name):
    with raises_input_error("protocol: unknown .*choose one of paper, published, mi_sign"):
        ja.protocols.get_protocol(name)
    with raises_input_error("protocol: unknown"):
        ja.StudyConfig(protocols=(name,))


def test_every_departure_changes_one_piece():
    pieces = ("quantizer", "score", "rank", "balance", "fill_name", "fresh_subsets", "constant_last")
    changed = {
        name: [piece for piece in pieces if getattr(ja.protocols.get_protocol(name), piece) != getattr(PAPER, piece)]
        for name in (*DEPARTURES, *CONTROLS)
    }
    assert changed == {
        "mi_sign": ["score"],
        "nan_logs": ["score", "rank"],
        "nan_largest": ["rank"],
        "firing_rate_scaling": ["balance", "fill_name"],
        "strict_threshold": ["quantizer"],
        "fresh_subsets": ["fresh_subsets"],
        "constant_last": ["constant_last"],
        "reversed_ties": ["rank"],
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


@pytest.mark.slow
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
    assert protocol_names("controls") == (
        *("paper", "constant_last", "reversed_ties"),
        *("published", "published+constant_last", "published+reversed_ties"),
    )
    departures = protocol_names("departures")
    assert len(departures) == len(set(departures)) == 2 * 3 * 2 * 2 + 2
    assert departures[0] == "paper"
    assert departures[-2:] == ("strict_threshold", "published")
    # every combination of the other departures, but for NaN as the largest value without a NaN
    others = [name for name in DEPARTURES if name != "strict_threshold"]
    combinations = [set(c) for size in range(6) for c in itertools.combinations(others, size)]
    expected = [c for c in combinations if "nan_largest" not in c or "nan_logs" in c]
    assert sorted(map(sorted, expected)) == sorted(sorted(set(name.split("+")) - {"paper"}) for name in departures[:-2])
    assert protocol_names("departures,controls")[: len(departures)] == departures
    with raises_input_error("protocol: expected a name, got 1"):
        ja.protocols.get_protocol(1)
    with raises_input_error("protocols: expected names, got None"):
        ja.StudyConfig(protocols=(None,))


@pytest.mark.slow
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


CONSTANT = (2, 7, 12, 16, 21)  # neurons of the 12-10 network below


@pytest.fixture(scope="module")
def with_constant(mnist5k):
    """A trained 12-10 network of which five neurons never change their code: two always fire, three never do."""
    model, _ = ja.train(mnist5k, (12, 10), 1, epochs=6)
    biases = [np.array(weights[1]) for weights in (stage.weights for stage in model.stages[:2])]
    biases[0][[2, 7]], biases[1][[0, 4, 9]] = 40, -40
    for stage, bias in zip(model.stages, biases, strict=False):
        stage.linear.bias[...] = bias
    return model


@pytest.fixture(scope="module")
def controls(with_constant):
    """The results of all controls to the end of each scope, and the subsets that were drawn: [step, neuron] sizes."""
    config = dataclasses.replace(CONFIG, networks=(), steps="all", protocols=SETS["controls"])
    original, drawn = _published.fresh_subsets, {}

    def draw(*arguments, key):
        masks = original(*arguments, key=key)
        np.testing.assert_array_equal(drawn.setdefault(masks.shape[1:], masks), masks)
        return masks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_published, "fresh_subsets", draw)
        return ja.run_study(config, {"net": with_constant}), drawn


BOUNDS = {"layer1": (0, 12), "layer2": (12, 22), "network": (0, 22)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS["controls"])
def test_the_orders_of_the_controls_by_hand(controls, name):
    node = ja.results.select_protocol(controls[0], name)["net"].to_dataset().isel(seed=0)
    paper = ja.results.select_protocol(controls[0], "paper")["net"].to_dataset().isel(seed=0)
    counts = node["joint_counts"].values
    assert [j for j in range(22) if (counts[j].sum(axis=0) == 0).any()] == list(CONSTANT)
    tie = -1 if "reversed_ties" in name else 1
    last = set(CONSTANT) if "constant_last" in name else set()
    for scope, (start, stop) in BOUNDS.items():
        neurons, ablated = range(start, stop), node["ablated"].sel(scope=scope)
        assert (ablated[:, stop - start :] == -1).all()
        for metric, (direction, sign) in itertools.product(
            ("entropy", "mutual_information", "kl_selectivity"), (("low", 1), ("high", -1))
        ):
            scores = [math.inf if math.isnan(x) else x for x in node["scores"].sel(score=metric).values.tolist()]
            order = sorted(neurons, key=lambda j, s=scores, sign=sign: (j in last, sign * s[j], tie * j))
            assert ablated.sel(ordering=f"{metric}_{direction}").values[: stop - start].tolist() == order, metric
        for ordering in ("random_0", "random_1"):
            found = ablated.sel(ordering=ordering).values[: stop - start].tolist()
            if "published" in name:
                assert set(found) == {-1}
                continue
            shuffled = paper["ablated"].sel(scope=scope, ordering=ordering).values[: stop - start].tolist()
            assert sorted(shuffled) == list(neurons)
            assert found == sorted(shuffled, key=lambda j: j in last)


@pytest.mark.slow
def test_the_tied_neurons_of_a_layer_are_the_first_in_published_high_first(controls):
    """Under the published protocol the order of ties decides which neurons go first."""
    first = {}
    for name in ("published", "published+reversed_ties"):
        node = ja.results.select_protocol(controls[0], name)["net"].to_dataset().isel(seed=0)
        scores = node["scores"].sel(score="mutual_information").values[:12]
        undefined = np.flatnonzero(np.isnan(scores)).tolist()
        first[name] = node["ablated"].sel(scope="layer1", ordering="mutual_information_high").values[: len(undefined)]
        assert sorted(first[name]) == undefined
    assert first["published"].tolist() == first["published+reversed_ties"].tolist()[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS["controls"])
def test_curves_run_to_the_end_of_each_scope(controls, name, with_constant, mnist5k):
    results, drawn = controls
    node = ja.results.select_protocol(results, name)["net"].to_dataset().isel(seed=0)
    test, counts, mean = mnist5k.test, node["joint_counts"].values, node["mean_activation"].values
    assert node["step"].values.tolist() == list(range(23))
    rate = counts[:, :, 1].sum(axis=1) / counts.sum(axis=(1, 2))
    balance = {"scale": rate} if "published" in name else {"fill": mean}
    last = list(CONSTANT) if "constant_last" in name else []
    for scope, (start, stop) in BOUNDS.items():
        correct = node["correct"].sel(scope=scope)
        num = stop - start
        assert (correct[..., num + 1 :] == -1).all()
        assert np.isnan(node["accuracy"].sel(scope=scope).values[..., num + 1 :]).all()
        np.testing.assert_array_equal(node["accuracy"].sel(scope=scope)[..., : num + 1], correct[..., : num + 1] / 1000)
        for o, ordering in enumerate(node["ordering"].values):
            order = node["ablated"].sel(scope=scope, ordering=ordering).values[:num]
            if "published" in name and ordering.startswith("random"):
                free = [j for j in range(start, stop) if j not in last]
                keep = np.ones((num + 1, 22), bool)
                keep[:, free] = drawn[num + 1, len(free)][int(ordering[-1])]
                # after the last neuron that may be drawn, the subset stays the same
                ablated = [min(k, len(free)) for k in range(num + 1)]
            else:
                keep = np.array([[j not in order[:k] for j in range(22)] for k in range(num + 1)])
                ablated = list(range(num + 1))
            assert (~keep).sum(axis=1).tolist() == ablated
            for fill, options in enumerate(({}, balance)):
                assert_counts(correct[o, fill, : num + 1], with_constant, keep, test.images, test.labels, **options)
