"""Pairs of neurons: information, redundancy, synergy, and whether they go with damage."""

import itertools
import math

import jax
import numpy as np
import pytest
from helpers import first_quick, informed_codes, logits64, raises_input_error, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from sklearn.metrics import mutual_info_score

import jaxablate as ja
from jaxablate import interactions
from jaxablate.figures import draw_pair_information
from jaxablate.figures._interactions import _by_clusters
from jaxablate.interactions import loss_curvature, mantel_test, pair_information, super_additivity

LAYERS = [(2, 10, 700), (3, 4, 500), (8, 10, 1500)]  # codes, classes, examples


def informations_of(codes: np.ndarray, labels: np.ndarray, num_codes: int, num_classes: int) -> np.ndarray:
    """I(T_i,T_j;Y) of each pair, its joint codes counted one example at a time, in float64."""
    neurons = codes.shape[1]
    matrix = np.zeros((neurons, neurons))
    for i in range(neurons):
        for j in range(neurons):
            counts = np.zeros((1, num_classes, num_codes**2), int)
            for row, label in zip(codes, labels, strict=True):
                counts[0, label, row[i] * num_codes + row[j]] += 1
            matrix[i, j] = scores_of(counts)["mutual_information"][0]
    return matrix


@pytest.mark.parametrize(("codes", "classes", "examples"), LAYERS)
@pytest.mark.parametrize("at_a_time", [9, 2, 1])  # of nine neurons: one is left over at the end of pairs
def test_all_pairs_equal_the_loop(monkeypatch, codes, classes, examples, at_a_time):
    monkeypatch.setattr(interactions, "CELLS", at_a_time * classes * codes**2 * 9)
    of_layer, labels = informed_codes(0, codes, classes, examples)
    pairs = pair_information(of_layer, labels, num_codes=codes, num_classes=classes)
    joint = informations_of(of_layer, labels, codes, classes)
    alone = np.diagonal(joint)
    low, high = np.minimum.outer(alone, alone), np.maximum.outer(alone, alone)
    expected = {
        "joint": joint,
        "single": alone,
        "redundancy": low,
        "unique": alone[:, None] - low,
        "synergy": joint - high,
        "co_information": alone[:, None] + alone - joint,
    }
    for name, values in expected.items():
        got = np.asarray(getattr(pairs, name))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, values, rtol=0, atol=1e-6, err_msg=name)
    parts = pairs.redundancy + pairs.unique + pairs.unique.T + pairs.synergy
    np.testing.assert_allclose(parts, pairs.joint, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("codes", "classes", "examples"), first_quick(LAYERS))
def test_pairs_equal_scikit_learn(codes, classes, examples):
    of_layer, labels = informed_codes(1, codes, classes, examples, neurons=30)
    pairs = pair_information(of_layer, labels, num_codes=codes, num_classes=classes)
    expected = [
        [mutual_info_score(labels, codes * left_codes + right_codes) for right_codes in of_layer.T]
        for left_codes in of_layer.T
    ]
    np.testing.assert_allclose(pairs.joint, expected, rtol=0, atol=1e-6)
    counts = ja.joint_histogram(of_layer, labels, num_codes=codes, num_classes=classes)
    np.testing.assert_allclose(pairs.single, ja.mutual_information(counts), rtol=0, atol=1e-6)


def test_a_duplicate_is_redundant_and_xor_is_synergy():
    x, z = np.divmod(np.arange(400) % 4, 2)
    codes, labels = np.stack([x, z, x], 1), x ^ z
    pairs = pair_information(codes, labels, num_codes=2, num_classes=2)
    np.testing.assert_allclose(pairs.synergy[0, 1], math.log(2), atol=1e-6)
    np.testing.assert_allclose(pairs.co_information[0, 1], -math.log(2), atol=1e-6)
    assert pairs.redundancy[0, 1] == pairs.synergy[0, 2] == pairs.synergy[0, 0] == 0
    of_layer, labels = informed_codes(4, 8, 10, 900)
    pairs = pair_information(of_layer, labels, num_codes=8, num_classes=10)
    assert pairs.redundancy[0, -1] == pairs.co_information[0, -1] == pairs.joint[0, -1] == pairs.single[0] > 0.1
    assert pairs.synergy[0, -1] == pairs.unique[0, -1] == pairs.unique[-1, 0] == 0
    np.testing.assert_array_equal(np.asarray(pairs.redundancy)[:, 4], 0)  # the constant neuron
    np.testing.assert_allclose(pairs.synergy[:, 4], 0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]), st.sampled_from([1, 2, 7]))
def test_laws_of_pairs(seed, codes, classes):
    random = np.random.default_rng(seed)
    of_layer, labels = informed_codes(seed, codes, classes, 120, neurons=6)
    pairs = pair_information(of_layer, labels, num_codes=codes, num_classes=classes)
    joint, single = np.asarray(pairs.joint), np.asarray(pairs.single)
    np.testing.assert_array_equal(joint, joint.T)
    assert (joint >= np.maximum.outer(single, single)).all()
    assert (np.asarray(pairs.synergy) >= 0).all()
    assert (joint <= stats.entropy(np.bincount(labels)) + 1e-6).all()
    neurons, examples = random.permutation(6), random.permutation(120)
    new_codes, new_classes = random.permutation(codes), random.permutation(classes)
    relabelled = new_codes[of_layer[:, neurons]][examples]
    again = pair_information(relabelled, new_classes[labels][examples], num_codes=codes, num_classes=classes)
    np.testing.assert_allclose(again.joint, joint[np.ix_(neurons, neurons)], rtol=0, atol=1e-6)
    merged = np.where(of_layer == new_codes[0], new_codes[1], of_layer)
    after = pair_information(merged, labels, num_codes=codes, num_classes=classes)
    assert (np.asarray(after.joint) <= joint + 1e-6).all()


numbers = st.sampled_from([2, 3, 5])  # few: each is compiled


@settings(max_examples=25, deadline=None)
@given(
    numbers.flatmap(lambda n: hnp.arrays(np.int32, (40, 4), elements=st.integers(0, n - 1))), st.permutations(range(5))
)
def test_duplicates_are_redundant(drawn, renamed):
    """A neuron, itself again, and under other names for its codes: redundancy and co-information are I(T;Y)."""
    codes, labels = drawn[:, [0, 1, 0, 1, 0]], drawn[:, 3]
    codes[:, 4] = np.array(renamed, np.int32)[codes[:, 0]]
    pairs = pair_information(codes, labels, num_codes=5, num_classes=5)
    information = [mutual_info_score(labels, column) for column in codes.T]
    for i, j in [(0, 0), (0, 2), (1, 3), (0, 4), (4, 2)]:
        for matrix in (pairs.redundancy, pairs.co_information, pairs.joint):
            np.testing.assert_allclose(matrix[i, j], information[i], rtol=0, atol=1e-6)
        for matrix in (pairs.synergy, pairs.unique, pairs.unique.T):
            np.testing.assert_allclose(matrix[i, j], 0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(numbers.flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=3, max_size=3)), st.randoms())
def test_xor_of_an_independent_pair_is_synergy(renamed, random):
    """The sum modulo n of two codes, XOR for n = 2, whatever the names of codes and classes: synergy is H(Y)."""
    names, n = np.array(renamed), len(renamed[0])
    x, z = np.divmod(np.array(random.sample(range(3 * n * n), 3 * n * n)) % n**2, n)
    codes, labels = np.stack([names[0, x], names[1, z]], axis=1), names[2, (x + z) % n]
    pairs = pair_information(codes, labels, num_codes=n, num_classes=n)
    entropy = stats.entropy(np.bincount(labels))
    np.testing.assert_allclose(pairs.joint, entropy * (1 - np.eye(2)), rtol=0, atol=1e-6)
    for matrix, expected in ((pairs.synergy, entropy), (pairs.co_information, -entropy), (pairs.redundancy, 0)):
        np.testing.assert_allclose(matrix[0, 1], expected, rtol=0, atol=1e-6)


def test_absent_classes_and_one_example():
    pairs = pair_information(np.zeros((1, 2), int), np.array([3]), num_codes=2, num_classes=9)
    assert pairs.joint.tolist() == [[0, 0], [0, 0]]
    of_layer, labels = informed_codes(5, 2, 3, 200)
    wide = pair_information(of_layer, 100 * labels, num_codes=2, num_classes=300)
    np.testing.assert_allclose(
        wide.joint, pair_information(of_layer, labels, num_codes=2, num_classes=3).joint, atol=1e-6
    )


@pytest.mark.slow
def test_super_additivity_of_a_network(small_model, mnist5k):
    images, labels = mnist5k.test.images[:200], mnist5k.test.labels[:200]
    measured = np.asarray(ja.ablation.pair_ablation(small_model, images, labels, site="layer2", outcomes="loss"))
    intact = float(ja.evaluate_masks(small_model, np.ones((1, 27), bool), images, labels, outcomes="loss")[0])
    super_additive = super_additivity(measured - intact)

    def loss(*neurons: int) -> float:
        logits = logits64(small_model, images, ~np.isin(np.arange(27), neurons))
        return -special.log_softmax(logits, axis=1)[np.arange(200), labels].mean()

    for i, j in itertools.combinations(range(8), 2):
        expected = loss(10 + i, 10 + j) - loss(10 + i) - loss(10 + j) + loss()
        assert super_additive[i, j] == pytest.approx(expected, abs=1e-6)
    assert (np.diagonal(super_additive) == 0).all()
    np.testing.assert_array_equal(super_additive, super_additive.T)


def test_curvature_by_hand():
    random = np.random.default_rng(8)
    changes, p = random.normal(size=(4, 7, 3)), random.dirichlet(np.ones(3), size=7)
    expected = np.zeros((4, 4))
    for i, j, e in np.ndindex(4, 4, 7):
        hessian = np.diag(p[e]) - np.outer(p[e], p[e])
        expected[i, j] += changes[i, e] @ hessian @ changes[j, e] / 7
    np.testing.assert_allclose(loss_curvature(changes, p), expected, rtol=0, atol=1e-14)
    parts = 3 * loss_curvature(changes[:, :3], p[:3]) + 4 * loss_curvature(changes[:, 3:], p[3:])
    np.testing.assert_allclose(parts / 7, expected, rtol=0, atol=1e-14)
    shifted = loss_curvature(changes + random.normal(size=(4, 7, 1)), p)  # a softmax does not see such a shift
    np.testing.assert_allclose(shifted, expected, rtol=0, atol=1e-14)


def test_small_changes_of_the_last_layer_are_super_additive_by_the_curvature(small_model, mnist5k):
    """Where logits are linear in the activations, no neuron replaces another, and pairs are still super-additive."""
    images, labels = mnist5k.test.images[:100], mnist5k.test.labels[:100]

    def logits(*neurons: int, part: float) -> np.ndarray:
        """The logits after these neurons of the last layer lost a part of their outputs."""
        return logits64(small_model, images, ~np.isin(np.arange(27), neurons), scale=np.full(27, 1 - part))

    def loss(*neurons: int, part: float) -> float:
        return -special.log_softmax(logits(*neurons, part=part), axis=1)[np.arange(100), labels].mean()

    p = special.softmax(logits(part=0), axis=1)
    errors = []
    for part in (0.02, 0.002):
        changes = np.stack([logits(neuron, part=part) - logits(part=part) for neuron in range(18, 27)])
        curvature = loss_curvature(changes, p)
        damage = np.zeros((9, 9))
        for i, j in itertools.combinations_with_replacement(range(9), 2):
            damage[i, j] = damage[j, i] = loss(18 + i, 18 + j, part=part) - loss(part=part)
        off = ~np.eye(9, dtype=bool)
        errors.append(np.abs(super_additivity(damage) - curvature)[off].max() / np.abs(curvature[off]).max())
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]  # the expansion's next term is of third order


def matrices(random: np.random.Generator, neurons: int) -> np.ndarray:
    """Return a symmetric matrix in which neurons, not pairs, explain half, as for damage and information."""
    per_neuron, noise = random.normal(size=neurons), random.normal(size=(neurons, neurons))
    return per_neuron[:, None] + per_neuron + noise + noise.T


def test_mantel_correlation_is_spearmans():
    random = np.random.default_rng(0)
    first, second = matrices(random, 15), np.round(matrices(random, 15))  # with ties
    upper = np.triu_indices(15, k=1)
    test = mantel_test(first, second, num_permutations=9, key=jax.random.key(0))
    assert test.correlation == pytest.approx(stats.spearmanr(first[upper], second[upper]).statistic, abs=1e-12)
    assert test == mantel_test(first, second, num_permutations=9, key=jax.random.key(0))
    assert mantel_test(first, -second, num_permutations=9, key=jax.random.key(0)).correlation == pytest.approx(
        -test.correlation
    )


def test_mantel_p_value_equals_a_loop_over_the_same_permutations():
    random = np.random.default_rng(2)
    first, second = matrices(random, 6), matrices(random, 6)
    upper = np.triu_indices(6, k=1)
    drawn = [np.asarray(jax.random.permutation(key, 6)) for key in jax.random.split(jax.random.key(5), 99)]
    first_ones = [first[np.ix_(order, order)][upper] for order in (np.arange(6), *drawn)]
    correlations = [abs(stats.spearmanr(permuted, second[upper]).statistic) for permuted in first_ones]
    expected = np.mean(np.array(correlations) >= correlations[0] - 1e-9)
    assert mantel_test(first, second, num_permutations=99, key=jax.random.key(5)).p_value == pytest.approx(
        expected, abs=1e-12
    )
    assert 0.05 < expected < 0.95


def test_mantel_p_value_equals_all_permutations():
    """Five neurons have only 120 permutations: the share of them drawn must come near the exact p-value."""
    random = np.random.default_rng(1)
    first, second = matrices(random, 5), matrices(random, 5)
    upper = np.triu_indices(5, k=1)

    def correlation(order: tuple[int, ...]) -> float:
        return stats.spearmanr(first[np.ix_(order, order)][upper], second[upper]).statistic

    observed = abs(correlation(tuple(range(5))))
    exact = np.mean([abs(correlation(order)) >= observed - 1e-9 for order in itertools.permutations(range(5))])
    test = mantel_test(first, second, num_permutations=20_000, key=jax.random.key(2))
    assert test.p_value == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000))


def test_mantel_counts_the_neurons_as_they_are_among_the_permutations():
    first = matrices(np.random.default_rng(5), 12)
    assert mantel_test(first, first, num_permutations=99, key=jax.random.key(0)).p_value == pytest.approx(0.01)


def test_mantel_keeps_its_level_where_the_plain_test_does_not():
    random = np.random.default_rng(3)
    keys = jax.random.split(jax.random.key(3), 200)
    upper, rejected, plainly = np.triu_indices(20, k=1), 0, 0
    for key in keys:
        first, second = matrices(random, 20), matrices(random, 20)
        rejected += mantel_test(first, second, num_permutations=199, key=key).p_value <= 0.05
        plainly += stats.spearmanr(first[upper], second[upper]).pvalue <= 0.05
    assert 1 <= rejected <= 22  # 10 expected; four standard deviations
    assert plainly > 30  # as many as that by believing the pairs independent


def test_partial_mantel_correlation_and_p_value_equal_a_loop():
    random = np.random.default_rng(6)
    first, second, control = (np.round(matrices(random, 7), 1) for _ in range(3))
    first, second = first + control, second + control
    upper = np.triu_indices(7, k=1)

    def partial(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        ab, ac, bc = (np.corrcoef(x, y)[0, 1] for x, y in ((a, b), (a, c), (b, c)))
        return (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))

    ranks = [stats.rankdata(matrix[upper]) for matrix in (first, second, control)]
    slope, intercept = np.polyfit(ranks[2], ranks[0], 1)
    residual = np.zeros((7, 7))
    residual[upper] = ranks[0] - slope * ranks[2] - intercept
    residual += residual.T
    drawn = [np.asarray(jax.random.permutation(key, 7)) for key in jax.random.split(jax.random.key(6), 99)]
    correlations = np.array([partial(residual[np.ix_(order, order)][upper], *ranks[1:]) for order in drawn])
    test = mantel_test(first, second, control=control, num_permutations=99, key=jax.random.key(6))
    assert test.correlation == pytest.approx(partial(*ranks), abs=1e-12)
    expected = (1 + (np.abs(correlations) >= abs(test.correlation)).sum()) / 100
    assert test.p_value == pytest.approx(expected, abs=1e-12)
    assert 0.05 < expected < 0.95


def test_partial_mantel_keeps_its_level_under_a_common_cause():
    random = np.random.default_rng(7)
    rejected, without_control = 0, 0
    for key in jax.random.split(jax.random.key(7), 200):
        control = matrices(random, 20)
        first, second = matrices(random, 20) + control, matrices(random, 20) + control
        rejected += mantel_test(first, second, control=control, num_permutations=199, key=key).p_value <= 0.05
        without_control += mantel_test(first, second, num_permutations=199, key=key).p_value <= 0.05
    assert 1 <= rejected <= 22  # 10 expected; four standard deviations
    assert without_control > 150


def test_partial_mantel_finds_what_the_control_does_not_explain():
    random = np.random.default_rng(9)
    first, control = matrices(random, 25), matrices(random, 25)
    second = first + control + matrices(random, 25)
    test = mantel_test(first, second, control=control, num_permutations=199, key=jax.random.key(9))
    assert test.correlation > 0.5
    assert test.p_value == pytest.approx(0.005)
    for same in (first**3, np.ones((25, 25))):
        test = mantel_test(first, second, control=same, num_permutations=9, key=jax.random.key(0))
        assert math.isnan(test.correlation)
        assert math.isnan(test.p_value)


def test_mantel_finds_a_planted_correlation():
    random = np.random.default_rng(4)
    num_detected = 0
    for key in jax.random.split(jax.random.key(4), 20):
        first = matrices(random, 25)
        test = mantel_test(first, np.exp((first + 1.5 * matrices(random, 25)) / 3), num_permutations=199, key=key)
        num_detected += test.p_value <= 0.05 and test.correlation > 0.2
    assert num_detected >= 18


def test_mantel_without_variation_is_undefined():
    test = mantel_test(
        np.ones((4, 4)), np.arange(4)[:, None] + np.arange(4.0), num_permutations=9, key=jax.random.key(0)
    )
    assert math.isnan(test.correlation)
    assert math.isnan(test.p_value)


@pytest.mark.slow
@pytest.mark.parametrize("arranged", ["information", "clusters"])
@pytest.mark.parametrize("neurons", [2, 12])
def test_figure_shows_the_pairs(arranged, neurons, tmp_path):
    of_layer, labels = informed_codes(6, 2, 5, 300, neurons=neurons)
    pairs = pair_information(of_layer, labels, num_codes=2, num_classes=5)
    figure = draw_pair_information(pairs, arranged=arranged, title="a layer")
    figure.savefig(tmp_path / "pairs.png")
    maps = [axes.images[0] for axes in figure.axes if axes.images]
    order = np.argsort(-np.asarray(pairs.single), kind="stable")
    for drawn, matrix in zip(maps, (pairs.redundancy, pairs.synergy, pairs.co_information), strict=True):
        values = np.asarray(drawn.get_array().filled(np.nan))
        assert np.isnan(np.diagonal(values)).all()
        off = ~np.eye(neurons, dtype=bool)
        if arranged == "information":
            np.testing.assert_array_equal(values[off], np.asarray(matrix)[np.ix_(order, order)][off])
        np.testing.assert_array_equal(np.sort(values[off]), np.sort(np.asarray(matrix)[off]))
    low, high = maps[2].get_clim()
    assert low == -high


def test_clusters_put_duplicates_side_by_side():
    of_layer, labels = informed_codes(7, 2, 5, 300, neurons=12)
    pairs = pair_information(of_layer, labels, num_codes=2, num_classes=5)
    places = np.argsort(_by_clusters(pairs))
    assert abs(places[0] - places[-1]) == 1


def test_bad_input():
    def of(codes, labels, num_codes=2, num_classes=2):
        return lambda: pair_information(np.array(codes), np.array(labels), num_codes=num_codes, num_classes=num_classes)

    key, good = jax.random.key(0), np.zeros((3, 3))
    bad = np.array([[0, 1.0, 2], [1, 0, 3], [5, 3, 0]])
    cases = [
        ("codes: expected integers", of([[0.5]], [0])),
        (r"codes: expected shape \(any, any\) = \[example, neuron\], got \(2,\)", of([0, 1], [0, 1])),
        ("codes: expected values in 0..1, got 0..2", of([[0], [2]], [0, 1])),
        ("num_codes: expected an integer, got 2.0", of([[0], [1]], [0, 1], num_codes=2.0)),
        ("num_classes: expected at least 1, got 0", of([[0], [1]], [0, 1], num_classes=0)),
        ("codes: expected at least one example and neuron", of(np.zeros((0, 3), int), [])),
        ("labels: expected values in 0..1, got 0..2", of([[0], [1]], [0, 2])),
        (r"joint counts: expected fewer than 2\^31 cells", of([[0], [1]], [0, 1], num_codes=40_000)),
        (r"damage: expected shape \[neuron, neuron\], got \(2, 3\)", lambda: super_additivity(np.zeros((2, 3)))),
        ("damage: expected a symmetric matrix, got differences of 3.0", lambda: super_additivity(bad)),
        ("second: expected finite numbers", lambda: mantel_test(good, np.full((3, 3), np.nan), key=key)),
        ("second: expected 3 neurons as in the first, got 4", lambda: mantel_test(good, np.zeros((4, 4)), key=key)),
        (
            "control: expected 3 neurons as in the first, got 2",
            lambda: mantel_test(good, good, control=good[:2, :2], key=key),
        ),
        (r"logit_changes: expected shape \(any, any, any\)", lambda: loss_curvature(good, good)),
        (r"probabilities: expected shape \(2, 3\)", lambda: loss_curvature(np.zeros((4, 2, 3)), good)),
        ("logit_changes: expected finite", lambda: loss_curvature(np.full((4, 3, 3), np.nan), np.full((3, 3), 1 / 3))),
        ("probabilities: expected at least one example", lambda: loss_curvature(np.zeros((4, 0, 3)), good[:0])),
        (
            "probabilities: the rows are not distributions; apply a softmax to the logits",
            lambda: loss_curvature(np.zeros((4, 3, 3)), good),
        ),
        ("first: expected 3 neurons or more, got 2", lambda: mantel_test(good[:2, :2], good[:2, :2], key=key)),
        ("num_permutations: expected at least 1, got 0", lambda: mantel_test(good, good, num_permutations=0, key=key)),
    ]
    for match, call in cases:
        with raises_input_error(match):
            call()
    pairs = pair_information(np.array([[0], [1]]), np.array([0, 1]), num_codes=2, num_classes=2)
    with raises_input_error("arranged: unknown 'size'; choose one of information, clusters"):
        draw_pair_information(pairs, arranged="size")
