"""Quantizers, estimators, shuffles and bootstraps against scikit-learn, SciPy and their laws."""

import math
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import raises_input_error
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mutual_info_score

import jaxablate as ja
from jaxablate import quantizers
from jaxablate.uncertainty import BiasWarning, bootstrap, shuffle_null, warn_of_bias

ROUNDING = 1e-6
MILLER_MADOW = partial(ja.mutual_information, estimator="miller_madow")


def coded(seed: int, examples: int, neurons: int, num_codes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes that depend on the class, more so for later neurons; the first is constant."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, examples)
    level = labels[:, None] * np.linspace(0, 0.6, neurons) * num_codes / classes
    codes = (level + random.random((examples, neurons)) * num_codes * 0.5).astype(np.int32).clip(0, num_codes - 1)
    codes[:, 0] = num_codes - 1
    return codes, labels


def miller_madow64(table: np.ndarray) -> tuple[float, float]:
    """Entropy and mutual information of one neuron as sums of SciPy's entropies and the supports, in float64."""

    def corrected(counts: np.ndarray) -> float:
        return scipy.stats.entropy(counts.ravel()) + ((counts > 0).sum() - 1) / (2 * table.sum())

    code, of_class = corrected(table.sum(axis=0)), corrected(table.sum(axis=1))
    return code, code + of_class - corrected(table)


# --- quantizers ---


def test_positive_and_uniform():
    values = np.array([[-1.0, -1e-30, 0.0, 1e-30, 0.25, 0.5, 1.0, 1.5, np.inf, -np.inf]], np.float32)
    assert quantizers.positive()(values).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1, 0]]
    assert quantizers.uniform(4, 0.0, 1.0)(values).tolist() == [[0, 0, 0, 0, 1, 2, 3, 3, 3, 0]]
    assert [q.num_codes for q in (quantizers.positive(), quantizers.uniform(7, -1.0, 1.0), quantizers.quantile(5))] == [
        2,
        7,
        5,
    ]
    assert quantizers.default_quantizer("relu") is quantizers.default_quantizer("relu")
    assert quantizers.positive().fit(values).num_codes == 2


@pytest.mark.parametrize("bins", [2, 5, 32, 100])
def test_uniform_equals_numpy(bins):
    random = np.random.default_rng(bins)
    low, high = np.float32(-1.5), np.float32(2.5)
    quantizer = quantizers.uniform(bins, float(low), float(high))
    edges = np.asarray(quantizer.edges)
    values = np.concatenate([random.uniform(-1.5, 2.5, 700).astype(np.float32), edges, [low, high]])[:, None]
    codes = np.asarray(quantizer(values))
    assert codes.dtype == np.int32
    expected, _ = np.histogram(values, np.concatenate([[low], edges, [high]]))
    np.testing.assert_array_equal(np.bincount(codes[:, 0], minlength=bins), expected)
    np.testing.assert_allclose(edges, np.linspace(-1.5, 2.5, bins + 1)[1:-1], atol=1e-6)


def test_levels_of_ones_own_for_all_neurons_or_each():
    values = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], np.float32)
    assert quantizers.levels([1.0, 2.0])(values).tolist() == [[0, 0], [1, 1], [2, 2]]
    each = quantizers.levels(np.array([[0.0, 1.5], [1.5, 7.0]]))
    assert each.num_codes == 3
    assert each(values).tolist() == [[1, 0], [1, 0], [2, 1]]
    per_neuron = quantizers.threshold(jnp.array([0.5, 1.5]))
    assert jax.jit(lambda h: per_neuron(h))(values).tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("bins", [2, 3, 8, 32])
def test_quantile_codes_are_equally_frequent_and_apply_to_another_split(bins):
    random = np.random.default_rng(bins)
    first, second = random.normal(size=(2, 1001, 5)).astype(np.float32) * np.arange(1, 6, dtype=np.float32)
    quantizer = quantizers.quantile(bins).fit(first)
    assert quantizer.num_codes == bins
    for neuron, codes in enumerate(np.asarray(quantizer(first)).T):
        frequency = np.bincount(codes, minlength=bins)
        assert frequency.max() - frequency.min() <= 1
        lowest = [first[codes == code, neuron].min() for code in range(1, bins)]
        np.testing.assert_array_equal(quantizer.edges[:, neuron], lowest)
        expected = np.searchsorted(lowest, second[:, neuron], side="right")
        np.testing.assert_array_equal(quantizer(second)[:, neuron], expected)


def test_quantile_codes_of_ties_and_constants():
    columns = {
        "constant": [7.0] * 8,
        "silent but once": [0.0] * 7 + [1.0],
        "saturated but once": [0.0] + [1.0] * 7,
        "tie in the middle": [0, 0, 0, 1, 1, 1, 1, 2],
        "two as near": [0, 1, 1, 2, 2, 2, 2, 3],
        "nearly constant": (1 + np.arange(8) * 1e-6).tolist(),
    }
    fitted = np.array(list(columns.values()), np.float32).T[::-1]  # the order of examples does not matter
    expected = {
        "constant": [3] * 8,  # one code, the last
        "silent but once": [0] * 7 + [3],  # equal edges leave codes between them empty
        "saturated but once": [0] + [3] * 7,
        "tie in the middle": [0, 0, 0, 2, 2, 2, 2, 3],  # cuts at 2, 4, 6 move to 3, 3, 7
        "two as near": [0, 1, 1, 2, 2, 2, 2, 3],  # cuts at 2, 4, 6 move to 1 rather than 3, to 3 and to 7
        "nearly constant": [0, 0, 1, 1, 2, 2, 3, 3],
    }
    codes = np.asarray(quantizers.quantile(4).fit(fitted)(fitted))[::-1].T
    assert dict(zip(columns, codes.tolist(), strict=True)) == expected
    constant = quantizers.quantile(4).fit(fitted[:, :1])
    assert constant(np.array([[6.9], [7.1]], np.float32)).ravel().tolist() == [0, 3]


def test_the_mean_bit_has_its_edge_on_the_mean():
    """A float32 sum over many examples drifts: an edge above a constant neuron, codes of near ones at random."""
    random = np.random.default_rng(0)
    for scale in (1e-7, 1e-3, 1.0):
        values = (0.7 + scale * random.standard_normal((50_000, 3))).astype(np.float32)
        values[:, 0] = 0.1
        edges = np.asarray(quantizers.mean().fit(jnp.asarray(values)).edges)
        np.testing.assert_array_equal(edges[0], values.astype(np.float64).mean(axis=0).astype(np.float32))
        assert (quantizers.mean().fit(values)(values)[:, 0] == 1).all()


whole = hnp.arrays(np.float32, st.tuples(st.integers(4, 40), st.integers(1, 3)), elements=st.integers(-9, 9))
MONOTONE = {
    "affine": lambda h: 4 * h - 3,
    "cube": lambda h: h**3,
    "exponential": lambda h: np.exp(h / 2),
    "kink": lambda h: np.where(h > 2, 100 * h, h),
}


@settings(max_examples=60, deadline=None)
@given(whole, st.integers(2, 4), st.sampled_from(sorted(MONOTONE)), st.randoms(use_true_random=False))
def test_monotone_maps_leave_quantile_coded_information_unchanged(fitted, bins, name, random):
    unseen = np.array([random.choices(range(-12, 13), k=fitted.shape[1]) for _ in range(20)], np.float32)
    labels = np.array(random.choices(range(3), k=20))
    information = []
    for function in (lambda h: h, MONOTONE[name]):
        quantizer = quantizers.quantile(bins).fit(function(fitted).astype(np.float32))
        counts = ja.joint_histogram(
            quantizer(function(unseen).astype(np.float32)), labels, num_codes=bins, num_classes=3
        )
        information.append(ja.mutual_information(counts))
    np.testing.assert_array_equal(*information)


def test_quantizers_say_what_is_wrong():
    with raises_input_error("mean: the quantizer has no edges yet; call .fit"):
        quantizers.mean()(np.zeros((2, 2), np.float32))
    with raises_input_error("activations: expected finite numbers, got 1 NaN"):
        quantizers.mean().fit(np.array([[np.nan], [1.0]], np.float32))
    with raises_input_error("activations: expected at least one example"):
        quantizers.mean().fit(np.zeros((0, 2), np.float32))
    fitted = quantizers.quantile(2).fit(np.arange(6, dtype=np.float32).reshape(2, 3))
    for shape in ((4, 1), (4, 5), (4,)):
        with raises_input_error(r"activations: expected \[example, neuron\] of the 3 neurons that the quantizer has"):
            fitted(np.zeros(shape, np.float32))
    with raises_input_error(r"activations: .* of the 1 neurons"):
        quantizers.mean().fit(np.zeros((4, 1), np.float32))(np.zeros((4, 2), np.float32))
    with raises_input_error("value: expected finite numbers, got 1 NaN"):
        quantizers.threshold(math.nan)
    with raises_input_error(r"value: expected a number or one for each neuron, got shape \(2, 3\)"):
        quantizers.threshold(np.zeros((2, 3)))
    with raises_input_error("value: expected numbers, got 'high'"):
        quantizers.threshold("high")
    with raises_input_error(r"edges: expected numbers, got \[\[1\], \[2, 3\]\]"):
        quantizers.levels([[1], [2, 3]])
    with raises_input_error(r"range: expected numbers, got \['a', 1\]"):
        quantizers.uniform(4, "a", 1)
    with raises_input_error("quantile: the quantizer has no edges yet; call .fit"):
        quantizers.quantile(3)(np.zeros((2, 2), np.float32))
    with raises_input_error("expected at least 4 examples for 4 quantile codes, got 3; take fewer codes"):
        quantizers.quantile(4).fit(np.zeros((3, 2), np.float32))
    with raises_input_error("activations: expected finite numbers, got 1 NaN"):
        quantizers.quantile(2).fit(np.array([[np.nan], [1.0]], np.float32))
    with raises_input_error(r"activations: expected shape \[example, neuron\], got \(3,\)"):
        quantizers.quantile(2).fit(np.zeros(3, np.float32))
    with raises_input_error("bins: expected at least 2, got 1"):
        quantizers.uniform(1, 0, 1)
    with raises_input_error("bins: expected an integer, got 2.5"):
        quantizers.quantile(2.5)
    with raises_input_error("range: expected low < high, got 1 and 1"):
        quantizers.uniform(2, 1, 1)
    with raises_input_error("range: expected low < high, got 0 and nan"):
        quantizers.uniform(2, 0, math.nan)
    with raises_input_error("edges: expected strictly increasing float32 numbers, got 1.0 after 1.0"):
        quantizers.uniform(2**10, 1, 1 + 1e-6)
    with raises_input_error("edges: expected strictly increasing float32 numbers, got 2.0 after 3.0"):
        quantizers.levels(np.array([[1.0, 3.0], [2.0, 2.0]]))
    with raises_input_error(r"edges: expected shape \[edge\] or \[edge, neuron\] with at least one edge, got \(0,\)"):
        quantizers.levels([])
    with raises_input_error("edges: expected finite numbers, got 1 NaN"):
        quantizers.levels([0.0, math.inf])


# --- counts ---


def test_counts_that_int32_cannot_hold_are_refused():
    codes, labels = np.broadcast_to(np.int8(0), (2**31, 1)), np.broadcast_to(np.int8(0), (2**31,))
    with raises_input_error("examples: expected at most 2147483647, which int32 can count, got 2147483648"):
        ja.joint_histogram(codes, labels, num_codes=2, num_classes=1)
    full = np.full((1, 1, 2), 2**30, np.int32)
    for metric in (*ja.metrics.METRICS.values(), ja.metrics.predicted_bias):
        with raises_input_error("expected sums that int32 can hold, up to 2147483647, got 2147483648"):
            metric(full)
    full[0, 0, 0] -= 1
    assert ja.entropy(full)[0] == pytest.approx(math.log(2))


# --- estimators ---


@pytest.mark.parametrize("num_codes", [2, 8, 32])
def test_estimators_equal_scikit_learn_and_scipy(num_codes):
    codes, labels = coded(num_codes, 2000, 20, num_codes, 10)
    counts = ja.joint_histogram(codes, labels, num_codes=num_codes, num_classes=11)  # an absent class
    tables = np.asarray(counts, np.float64)
    close = partial(np.testing.assert_allclose, rtol=0, atol=ROUNDING)
    close(ja.mutual_information(counts), [mutual_info_score(labels, column) for column in codes.T])
    close(ja.entropy(counts), scipy.stats.entropy(tables.sum(axis=1), axis=1))
    divergence = [[scipy.stats.entropy(row, t.sum(axis=0)) for row in t if row.any()] for t in tables]
    close(ja.kl_selectivity(counts), np.max(divergence, axis=1))
    entropies, information = zip(*map(miller_madow64, tables), strict=True)
    close(ja.entropy(counts, estimator="miller_madow"), entropies)
    close(MILLER_MADOW(counts), information)
    plugin = [mutual_info_score(labels, column) for column in codes.T]
    close(ja.metrics.predicted_bias(counts), np.subtract(plugin, information))


def test_the_plugin_is_the_default_bit_for_bit():
    counts = ja.joint_histogram(*coded(0, 300, 9, 4, 3), num_codes=4, num_classes=3)
    for metric in (ja.entropy, ja.mutual_information):
        np.testing.assert_array_equal(metric(counts), metric(counts, estimator="plugin"))
        np.testing.assert_array_equal(metric(counts), jax.jit(metric)(counts))
        assert metric(counts, estimator="miller_madow").dtype == np.float32
        with raises_input_error("estimator: unknown 'jackknife'; choose one of plugin, miller_madow"):
            metric(counts, estimator="jackknife")
    assert (np.asarray(MILLER_MADOW(np.full((1, 4, 2), 5, np.int32))) < 0).all()


@pytest.mark.parametrize(("num_codes", "bits"), [(2, 0.00065), (8, 0.0046), (32, 0.0209), (100, 0.0657)])
def test_the_known_bias_of_a_neuron_that_knows_nothing(num_codes, bits):
    random = np.random.default_rng(num_codes)
    labels = np.arange(10_000) % 10
    codes = random.integers(0, num_codes, (10_000, 400))
    counts = ja.joint_histogram(codes, labels, num_codes=num_codes, num_classes=10)
    mean = np.mean(np.asarray(ja.mutual_information(counts))) / math.log(2)
    assert mean == pytest.approx(bits, rel=0.05)
    assert np.mean(ja.metrics.predicted_bias(counts)) / math.log(2) == pytest.approx(bits, rel=0.05)
    remaining_bias = np.mean(np.asarray(MILLER_MADOW(counts))) / math.log(2)
    assert abs(remaining_bias) < 0.05 * bits
    with pytest.warns(BiasWarning, match=r"^mutual information of \d+ of 400 neurons: .* take fewer codes"):
        biased = warn_of_bias(counts)
    np.testing.assert_array_equal(biased, np.asarray(MILLER_MADOW(counts)) < 0)
    assert 0.3 < biased.mean() < 0.8


def test_no_warning_where_scores_are_above_the_bias():
    codes, labels = coded(0, 1000, 20, 4, 10)
    counts = ja.joint_histogram(codes[:, [0, *range(10, 20)]], labels, num_codes=4, num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_bias(counts).any()  # not of the constant neuron either: it has neither score nor bias


shapes = st.sampled_from([(1, 1, 2), (3, 4, 2), (2, 6, 5)])  # few: each is compiled
tables = shapes.flatmap(lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(0, 60_000)))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_laws_of_the_estimators(counts, random):
    counts[:, 0, 0] += 1
    information = np.asarray(ja.mutual_information(counts), np.float64)
    of_class = np.asarray(ja.entropy(counts.swapaxes(1, 2)))
    assert (information >= 0).all()
    assert (information <= np.minimum(ja.entropy(counts), of_class) + ROUNDING).all()
    assert (information <= np.asarray(ja.kl_selectivity(counts)) + ROUNDING).all()
    share = counts.sum(axis=2) / counts.sum(axis=(1, 2))[:, None]
    for table, p, got in zip(counts, share, information, strict=True):
        code = table.sum(axis=0) / table.sum()
        terms = [scipy.stats.entropy(row, code) if row.any() else 0.0 for row in table]
        assert got == pytest.approx(np.dot(p, terms), abs=ROUNDING)
    first, second = random.sample(range(counts.shape[2]), 2)
    merged = counts.copy()
    merged[:, :, first] += merged[:, :, second]
    assert (np.asarray(ja.mutual_information(np.delete(merged, second, axis=2))) <= information + ROUNDING).all()
    neurons, classes, codes = (np.array(random.sample(range(n), n)) for n in counts.shape)
    relabelled = counts[neurons][:, classes][:, :, codes]
    for metric in (*ja.metrics.METRICS.values(), partial(ja.entropy, estimator="miller_madow"), MILLER_MADOW):
        before, after = np.asarray(metric(counts)), np.asarray(metric(relabelled))
        np.testing.assert_allclose(after, before[neurons], rtol=0, atol=ROUNDING)


# --- shuffles and bootstraps ---


def test_the_shuffle_null_equals_loops_over_the_same_shuffles():
    codes, labels = coded(1, 30, 6, 3, 4)
    key, number = jax.random.key(5), 40
    null = shuffle_null(codes, labels, num_codes=3, num_classes=4, num_shuffles=number, key=key)
    observed = np.array([mutual_info_score(labels, column) for column in codes.T])
    np.testing.assert_allclose(null.score, observed, atol=ROUNDING)
    shuffles = [np.asarray(jax.random.permutation(k, labels)) for k in jax.random.split(key, number + 1)[1:]]
    scores = np.array([[mutual_info_score(shuffled, column) for column in codes.T] for shuffled in shuffles])
    np.testing.assert_allclose(null.mean, scores.mean(axis=0), atol=ROUNDING)
    expected = (1 + (scores >= observed - 1e-9).sum(axis=0)) / (1 + number)
    np.testing.assert_allclose(null.p_value, expected, rtol=1e-12)
    assert null.p_value[0] == 1
    assert null.fraction_not_significant(0.2) == (expected > 0.2).mean()
    again = shuffle_null(codes, labels, num_codes=3, num_classes=4, num_shuffles=number, key=key)
    np.testing.assert_array_equal(null.p_value, again.p_value)
    different = shuffle_null(codes, labels, num_codes=3, num_classes=4, num_shuffles=number, key=jax.random.key(6))
    assert (null.mean != different.mean).any()


@pytest.mark.parametrize("seed", range(3))
def test_shuffles_as_good_as_the_labels_count_whatever_their_rounding(seed):
    """With classes of one size, tables that differ by the order of their rows have the same information."""
    labels, codes = np.arange(30) % 5, np.random.default_rng(seed).integers(0, 3, (30, 8))
    key, number = jax.random.key(seed), 100
    null = shuffle_null(codes, labels, num_codes=3, num_classes=5, num_shuffles=number, key=key)
    shuffles = [np.asarray(jax.random.permutation(k, labels)) for k in jax.random.split(key, number + 1)[1:]]
    scores = np.array([[mutual_info_score(shuffled, column) for column in codes.T] for shuffled in shuffles])
    observed = np.array([mutual_info_score(labels, column) for column in codes.T])
    assert (np.abs(scores - observed) < 1e-9).sum() > 10
    np.testing.assert_allclose(null.p_value, (1 + (scores >= observed - 1e-9).sum(axis=0)) / (1 + number), rtol=1e-12)
    at_one = float(null.p_value.min())
    assert null.fraction_not_significant(at_one) == (null.p_value > at_one).mean()


@pytest.mark.slow
def test_p_values_equal_scipy_where_all_permutations_can_be_had():
    codes, labels = coded(3, 6, 5, 2, 3)

    def score(shuffled):
        return mutual_info_score(labels, shuffled)

    null = shuffle_null(codes, labels, num_codes=2, num_classes=3, num_shuffles=4000, key=jax.random.key(0))
    for column, p_value in zip(codes.T, null.p_value, strict=True):
        exact = scipy.stats.permutation_test(
            (column,), score, permutation_type="pairings", alternative="greater", n_resamples=np.inf
        )
        assert p_value == pytest.approx(exact.pvalue, abs=0.04)  # five standard deviations


def test_the_null_of_neurons_that_know_nothing():
    random = np.random.default_rng(0)
    labels, codes = random.integers(0, 10, 2000), random.integers(0, 8, (2000, 200))
    null = shuffle_null(codes, labels, num_codes=8, num_classes=10, num_shuffles=99, key=jax.random.key(0))
    assert 0.88 <= null.fraction_not_significant(0.05) <= 1
    assert scipy.stats.kstest(null.p_value, "uniform").pvalue > 1e-4
    counts = ja.joint_histogram(codes, labels, num_codes=8, num_classes=10)
    np.testing.assert_allclose(null.mean, ja.metrics.predicted_bias(counts), rtol=0.1)
    corrected = shuffle_null(
        codes, labels, num_codes=8, num_classes=10, metric=MILLER_MADOW, num_shuffles=99, key=jax.random.key(0)
    )
    assert np.abs(corrected.mean).max() < 0.1 * null.mean.min()
    informed = shuffle_null(
        *coded(2, 2000, 9, 8, 10), num_codes=8, num_classes=10, num_shuffles=99, key=jax.random.key(0)
    )
    assert informed.p_value[4:].tolist() == [0.01] * 5


def test_the_bootstrap_equals_loops_over_the_same_examples():
    codes, labels = coded(1, 50, 5, 3, 4)
    key, number = jax.random.key(2), 30
    interval = bootstrap(codes, labels, num_codes=3, num_classes=4, level=0.8, num_resamples=number, key=key)
    draws = [np.asarray(jax.random.randint(k, (50,), 0, 50)) for k in jax.random.split(key, number)]
    scores = [[mutual_info_score(labels[drawn], column[drawn]) for column in codes.T] for drawn in draws]
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(scores, [0.1, 0.9], axis=0), atol=ROUNDING)
    assert interval.low[0] == interval.high[0] == 0


@pytest.mark.slow
def test_bootstrap_intervals_equal_those_of_scipy():
    codes, labels = coded(7, 400, 4, 2, 10)
    interval = bootstrap(
        codes, labels, num_codes=2, num_classes=10, metric=ja.entropy, num_resamples=3000, key=jax.random.key(0)
    )

    def entropy(column):
        return scipy.stats.entropy(np.bincount(column))

    for neuron, column in list(enumerate(codes.T))[1:]:
        expected = scipy.stats.bootstrap(
            (column,), entropy, vectorized=False, method="percentile", n_resamples=3000, rng=np.random.default_rng(0)
        ).confidence_interval
        width = expected.high - expected.low
        np.testing.assert_allclose([interval.low[neuron], interval.high[neuron]], expected, atol=0.1 * width)


def test_uncertainty_says_what_is_wrong():
    codes, labels, key = np.zeros((4, 2), np.int32), np.zeros(4, np.int32), jax.random.key(0)

    def share_of_entropy(counts):  # 0 / 0 for a neuron that never changes its code
        return ja.mutual_information(counts) / ja.entropy(counts)

    null, interval = partial(shuffle_null, key=key), partial(bootstrap, key=key)
    for draw in (partial(null, num_shuffles=9), partial(interval, num_resamples=10)):
        with raises_input_error("scores of the metric: expected finite numbers, got 20 NaN or infinite of 20"):
            draw(codes, labels, num_codes=2, num_classes=2, metric=share_of_entropy)
        with raises_input_error(r"codes: expected at least one example and neuron, got shape \(0, 2\)"):
            draw(codes[:0], labels[:0], num_codes=2, num_classes=2)
        with raises_input_error(r"codes: expected at least one example and neuron, got shape \(4, 0\)"):
            draw(codes[:, :0], labels, num_codes=2, num_classes=2)
        with raises_input_error("num_codes: expected an integer, got 2.0"):
            draw(codes, labels, num_codes=2.0, num_classes=2)
    with raises_input_error("num_shuffles: expected at least 1, got 0"):
        null(codes, labels, num_codes=2, num_classes=2, num_shuffles=0)
    with raises_input_error("num_resamples: expected an integer, got 1.5"):
        interval(codes, labels, num_codes=2, num_classes=2, num_resamples=1.5)
    with raises_input_error("level: expected a number between 0 and 1, got 95"):
        interval(codes, labels, num_codes=2, num_classes=2, level=95)
    with raises_input_error(r"codes: expected values in 0..1, got 2..2"):
        null(codes + 2, labels, num_codes=2, num_classes=2)
    with raises_input_error(r"labels: expected shape \(4\)"):
        interval(codes, labels[:3], num_codes=2, num_classes=2)
    with raises_input_error("level: expected a number between 0 and 1, got 0"):
        null(codes, labels, num_codes=2, num_classes=2, num_shuffles=9).fraction_not_significant(0)


def counts_without_information(examples: int, num_codes: int, sets: int) -> np.ndarray:
    """Counts [set, class, code] of uniform codes that do not depend on ten classes of equal size."""
    random = np.random.default_rng(0)
    return random.multinomial(examples // 10, np.full(num_codes, 1 / num_codes), size=(sets, 10)).astype(np.int32)


def test_kl_selectivity_has_several_times_the_bias_of_information():
    counts = counts_without_information(10_000, 2, 4000)
    metrics = ja.mutual_information, ja.kl_selectivity
    information, selectivity = (np.mean(np.asarray(metric(counts))) for metric in metrics)
    assert information == pytest.approx(0.00045, rel=0.05)
    assert selectivity / information == pytest.approx(3.7, abs=0.2)


def test_the_first_order_bias_fails_for_few_examples():
    counts = counts_without_information(500, 32, 500)
    assert np.mean(np.asarray(ja.mutual_information(counts))) == pytest.approx(0.329, abs=0.005)
    assert np.mean(np.asarray(ja.metrics.predicted_bias(counts))) == pytest.approx(0.214, abs=0.005)
    assert (counts > 0).sum(axis=(1, 2)).mean() == pytest.approx(255, abs=2)


def test_specific_surprise_reaches_the_surprise_of_its_class():
    """One bit that fires for the rarest class only: more than the entropy of the bit, and than any code's log 2."""
    counts = np.array([[[0, 10], [30, 0], [60, 0]]], np.int32)
    assert float(ja.kl_selectivity(counts)[0]) == pytest.approx(math.log(10), abs=1e-6)
    assert float(ja.entropy(counts)[0]) < math.log(2)
