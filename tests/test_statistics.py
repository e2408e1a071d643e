"""Statistics against SciPy, loops and enumeration; `ja.compare` on made-up results, against the same."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr
from helpers import raises_input_error
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

import jaxablate as ja
from jaxablate.datasets import Source
from jaxablate.results import Ordering, network_results, study_results

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(0.4, 1, (7, 3))
# eighths, so that sums are exact and different values differ by more than rounding
EIGHTHS = st.integers(-400, 400).map(lambda number: number / 8)


def test_a_mean_has_the_t_interval_and_the_t_test():
    estimate = ja.statistics.estimate(VALUES)
    expected = stats.ttest_1samp(VALUES, 0)
    for confidence in (0.9, 0.95):
        ends = expected.confidence_interval(confidence)
        np.testing.assert_allclose(estimate.interval(confidence), (ends.low, ends.high), rtol=1e-12)
    np.testing.assert_allclose(estimate.mean, VALUES.mean(axis=0))
    np.testing.assert_allclose(estimate.p_value, expected.pvalue, rtol=1e-9)
    assert estimate.num_networks.tolist() == [7, 7, 7]
    assert estimate.degrees_of_freedom.tolist() == [6, 6, 6]


def test_paired_and_unpaired_differences():
    second = RANDOM.normal(0, 3, (7, 3))
    paired, expected = ja.statistics.paired_difference(VALUES, second), stats.ttest_rel(VALUES, second)
    np.testing.assert_allclose(paired.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(paired.interval(), expected.confidence_interval(), rtol=1e-9)
    second = second[:4]
    welch = ja.statistics.unpaired_difference(VALUES, second)
    expected = stats.ttest_ind(VALUES, second, equal_var=False)
    np.testing.assert_allclose(welch.p_value, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(welch.interval(), expected.confidence_interval(), rtol=1e-9)
    np.testing.assert_allclose(welch.degrees_of_freedom, expected.df, rtol=1e-12)
    assert welch.num_networks.tolist() == [4, 4, 4]
    for difference in (paired, welch):
        assert all(isinstance(array, np.ndarray) for array in vars(difference).values())
    assert ja.statistics.estimate(VALUES[:, 0]).mean.shape == ()


def test_equivalence_is_two_one_sided_tests():
    estimate = ja.statistics.estimate(VALUES)
    for margin in (0.25, 1.0, 3.0):
        lower = stats.ttest_1samp(VALUES, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(VALUES, margin, alternative="less").pvalue
        p_value = estimate.equivalence_p_value(margin)
        np.testing.assert_allclose(p_value, np.maximum(lower, upper), rtol=1e-9)
        low, high = estimate.interval(0.9)
        np.testing.assert_array_equal(p_value < 0.05, (low > -margin) & (high < margin))


def test_nan_is_left_out_of_each_column():
    values = VALUES.copy()
    values[0, 0] = values[2, 0] = values[3, 1] = np.nan
    estimate = ja.statistics.estimate(values)
    expected = stats.ttest_1samp(values, 0, nan_policy="omit")
    np.testing.assert_allclose(estimate.p_value, expected.pvalue, rtol=1e-9)
    assert estimate.num_networks.tolist() == [5, 6, 7]
    second = RANDOM.normal(0, 1, (7, 3))
    second[1, 0] = np.nan
    paired = ja.statistics.paired_difference(values, second)
    assert paired.num_networks.tolist() == [4, 6, 7]
    np.testing.assert_allclose(paired.p_value, stats.ttest_rel(values, second, nan_policy="omit").pvalue, rtol=1e-9)
    welch = ja.statistics.unpaired_difference(values, second)
    expected = stats.ttest_ind(values, second, equal_var=False, nan_policy="omit")
    np.testing.assert_allclose(welch.p_value, expected.pvalue, rtol=1e-9)
    assert welch.num_networks.tolist() == [5, 6, 7]


@pytest.mark.filterwarnings("error")
def test_equal_values_one_value_and_none():
    columns = np.array([[0.7, 0.0, 3.0, np.nan], [0.7, 0.0, np.nan, np.nan], [0.7, 0.0, np.nan, np.nan]])
    estimate = ja.statistics.estimate(columns)
    assert estimate.num_networks.tolist() == [3, 3, 1, 0]
    np.testing.assert_allclose(estimate.mean, [0.7, 0, 3, np.nan])
    np.testing.assert_array_equal(estimate.standard_error, [0, 0, np.nan, np.nan])
    # three values of one sign: 2 * 0.5^3
    np.testing.assert_array_equal(estimate.p_value, [0.25, 1, np.nan, np.nan])
    np.testing.assert_allclose(estimate.interval(), [[0.7, 0, np.nan, np.nan]] * 2)
    np.testing.assert_array_equal(estimate.equivalence_p_value(0.5), [1, 0, np.nan, np.nan])
    # equal but for the rounding of their differences
    rounded = ja.statistics.paired_difference(np.array([0.3, 1.1, 94.3]), np.array([0.1, 0.9, 94.1]))
    assert rounded.standard_error == 0
    assert rounded.p_value == 0.25
    welch = ja.statistics.unpaired_difference(columns, columns[:2, ::-1])
    assert welch.num_networks.tolist() == [0, 1, 1, 0]
    assert np.isnan(welch.p_value).all()
    welch = ja.statistics.unpaired_difference(np.full(3, 2.0), np.full(4, 1.0))
    assert (float(welch.mean), float(welch.standard_error), float(welch.p_value)) == (1, 0, 0.25)
    assert float(ja.statistics.unpaired_difference(np.full(3, 2.0), np.array([1.0, 2.0])).degrees_of_freedom) == 1
    assert np.isnan(ja.statistics.estimate(np.empty((0, 2))).mean).all()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 9), st.integers(1, 3)), elements=EIGHTHS),
    EIGHTHS,
    st.sampled_from([-4.0, -0.5, 0.5, 2.0]),
    st.randoms(use_true_random=False),
)
def test_invariants_of_estimates(values, shift, factor, random):
    estimate = ja.statistics.estimate(values)
    shuffled = values[random.sample(range(len(values)), len(values))]
    with_nan = np.concatenate([shuffled, np.full((2, values.shape[1]), np.nan)])
    moved = ja.statistics.estimate(factor * with_nan + shift)
    np.testing.assert_allclose(moved.mean, factor * estimate.mean + shift, atol=1e-9)
    np.testing.assert_allclose(moved.standard_error, abs(factor) * estimate.standard_error, atol=1e-9)
    np.testing.assert_array_equal(moved.num_networks, estimate.num_networks)
    for column, p_value in zip(values.T, estimate.p_value, strict=True):
        assert ja.statistics.estimate(column).p_value == pytest.approx(p_value)
    low, high = estimate.interval()
    varied = (estimate.standard_error > 0) & (abs(estimate.p_value - 0.05) > 1e-9)
    np.testing.assert_array_equal((estimate.p_value < 0.05)[varied], ((low > 0) | (high < 0))[varied])
    paired = ja.statistics.paired_difference(values + shift, np.full_like(values, shift))
    np.testing.assert_allclose(paired.interval(), (low, high), atol=1e-9)
    there = ja.statistics.unpaired_difference(values, shuffled[:2] + shift)
    back = ja.statistics.unpaired_difference(shuffled[:2] + shift, values)
    np.testing.assert_allclose(there.mean, -back.mean, atol=1e-12)
    np.testing.assert_allclose(there.p_value, back.p_value, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 6), elements=st.integers(0, 100).map(lambda i: i / 100)))
def test_corrections_by_their_definitions(p_values):
    """Holm is Bonferroni's test of every subset; Benjamini-Hochberg counts the smaller p-values."""
    num = len(p_values)
    subsets = [s for size in range(1, num + 1) for s in itertools.combinations(range(num), size)]
    holm = [max(min(1, len(s) * p_values[list(s)].min()) for s in subsets if i in s) for i in range(num)]
    rate = [min([1] + [num * q / (p_values <= q).sum() for q in p_values if q >= p and q > 0]) for p in p_values]
    rate = [0 if p == 0 else value for p, value in zip(p_values, rate, strict=True)]
    with_nan = np.insert(p_values, num // 2, np.nan)
    for correct, expected in ((ja.statistics.holm, holm), (ja.statistics.false_discovery_rate, rate)):
        np.testing.assert_allclose(correct(p_values), expected, atol=1e-12)
        np.testing.assert_allclose(
            correct(with_nan), np.insert(np.array(expected, float), num // 2, np.nan), atol=1e-12
        )
    assert (ja.statistics.false_discovery_rate(p_values) <= ja.statistics.holm(p_values) + 1e-12).all()


def test_the_sign_flip_test_by_enumeration():
    for values in (VALUES[:, 0], VALUES[:2, 1], np.array([1.0, 1.0, -1.0, 2.0]), np.zeros(3)):
        means = [abs(np.mean(values * signs)) for signs in itertools.product((-1, 1), repeat=len(values))]
        expected = np.mean(np.array(means) >= abs(values.mean()) - 1e-12)
        assert ja.statistics.sign_flip_test(values) == pytest.approx(expected)
    assert ja.statistics.sign_flip_test(np.append(VALUES[:, 0], np.nan)) == ja.statistics.sign_flip_test(VALUES[:, 0])
    assert np.isnan(ja.statistics.sign_flip_test(np.array([1.0, np.nan])))
    many = RANDOM.normal(0.4, 1, 30)
    drawn = ja.statistics.sign_flip_test(many)
    assert drawn == ja.statistics.sign_flip_test(many) != ja.statistics.sign_flip_test(many, seed=1)
    assert drawn == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.03)


CURVES = np.array([[0.9, 0.8, 0.6, 0.1], [0.9, 0.895, 0.7, np.nan], [0.9, 0.91, 0.895, 0.891], [0.9, 0.9, 0.9, 0.89]])


def test_summaries_of_curves():
    np.testing.assert_allclose(ja.statistics.auc(CURVES), [50, 79.75, 269.6 / 3, 269 / 3])
    # (AUC - A_all) / (A_0 - A_all), with the last step of each curve; the third falls by 0.9 points only
    np.testing.assert_allclose(
        ja.statistics.normalized_auc(CURVES), [40 / 80, 9.75 / 20, np.nan, (269 / 3 - 89) / 1], rtol=1e-9
    )
    shared = ja.statistics.normalized_auc(CURVES.reshape(2, 2, 4), np.array([[0.1], [0.5]]))
    np.testing.assert_allclose(shared, [[40 / 80, 69.75 / 80], [(269.6 / 3 - 50) / 40, (269 / 3 - 50) / 40]])
    np.testing.assert_allclose(ja.statistics.normalized_auc(CURVES[0], 0.4), 0.2)
    for points, steps in ((0.5, [1, 1, 2, 3]), (1.0, [1, 2, np.inf, 3]), (10.0, [1, 2, np.inf, np.inf])):
        assert ja.statistics.first_step_below(CURVES, points).tolist() == steps
    assert ja.statistics.first_step_below(CURVES[0], 80.0) == 3


def test_arguments_that_do_not_fit():
    with raises_input_error("values: expected an array .network, ...., got a number"):
        ja.statistics.estimate(np.array(1.0))
    with raises_input_error(r"second: expected shape \(7, 3\) as in the first, got \(6, 3\); .* unpaired_difference"):
        ja.statistics.paired_difference(VALUES, VALUES[1:])
    with raises_input_error(r"second: expected shape \[network, 3\], got \(7, 2\)"):
        ja.statistics.unpaired_difference(VALUES, VALUES[:, 1:])
    with raises_input_error(r"p_values: expected shape \[test\], got \(7, 3\)"):
        ja.statistics.holm(VALUES)
    with raises_input_error("num_resamples: expected at least 1, got 0"):
        ja.statistics.sign_flip_test(VALUES[:, 0], num_resamples=0)
    with raises_input_error("points: 0.0 is not positive; choose above 0"):
        ja.statistics.first_step_below(CURVES, 0.0)
    with raises_input_error(r"accuracy: expected curves .* with at least two steps, got shape \(4, 1\)"):
        ja.statistics.auc(CURVES[:, :1])


WIDTHS = {"layer1": 4, "layer2": 3}
ORDERINGS = (Ordering("entropy", "low"), Ordering("entropy", "high"), *(Ordering("random", str(i)) for i in range(3)))


def network(seed, seeds=range(6), protocol="paper", steps="all", fills=("zero", "mean")) -> xr.Dataset:
    """Networks of 4 and 3 neurons, with accuracies that fall at random."""
    random = np.random.default_rng(seed)
    last = [*WIDTHS.values(), 7] if steps == "all" else steps
    shape = (len(seeds), 3, len(ORDERINGS), len(fills), max(last) + 1)
    correct = 900 + 3 * np.reshape(seeds, (-1, 1, 1, 1, 1)) - random.integers(0, 90, shape).cumsum(axis=-1)
    correct[..., 0] = 900 + 3 * np.reshape(seeds, (-1, 1, 1, 1))
    for scope, number in enumerate(last):
        # with the whole scope at its means, accuracy does not depend on the order
        correct[:, scope, :, 1, number] = correct[:, scope, :1, 1, number]
        correct[:, scope, :, :, number + 1 :] = -1
    arrays = {
        "joint_counts": np.ones((len(seeds), 7, 2, 2), int),
        "mean_activation": np.zeros((len(seeds), 7)),
        "scores": random.random((len(seeds), 1, 7)),
        "ablated": np.zeros((*shape[:3], max(last)), int),
        "single_damage": random.random((len(seeds), 7)),
        "correct": correct,
    }
    return network_results(
        arrays,
        protocol=protocol,
        first_step=0,
        sites=WIDTHS,
        activation="sigmoid",
        seeds=seeds,
        scores=("entropy",),
        orderings=ORDERINGS,
        fills=fills,
        num_test_examples=1000,
    )


def run(networks, *, data="a", split_seed=1) -> xr.DataTree:
    by_protocol = {}
    for path, dataset in networks.items():
        protocol, _, name = path.rpartition("/")
        by_protocol.setdefault(protocol or "paper", {})[name] = dataset
    return study_results(by_protocol, {"split_seed": split_seed}, Source("made up", "here", {"data.npz": data}), 0.0)


def averaged(dataset, measure) -> dict[tuple, list[float]]:
    """A measure of each curve, without padding, by (scope, ordering, fill); for random orders its mean."""
    values: dict[tuple, list] = {}
    for (s, scope), (o, ordering), (f, fill) in itertools.product(
        enumerate(dataset["scope"].values), enumerate(ORDERINGS), enumerate(dataset["fill"].values)
    ):
        curves = 100 * dataset["accuracy"].values[:, s, o, f]
        label = "random" if ordering.ranking == "random" else ordering.label
        values.setdefault((scope, label, fill), []).append([measure(c[~np.isnan(c)].tolist()) for c in curves])
    return {key: np.mean(of_orders, axis=0).tolist() for key, of_orders in values.items()}


def assert_comparison(comparison, first, second, test, **options) -> None:
    """Every number equals that of SciPy's test on the values of the networks by (scope, ordering, fill)."""
    assert comparison["difference"].shape == (3, 3, 2)
    assert comparison["ordering"].values.tolist() == ["entropy_low", "entropy_high", "random"]
    for (scope, ordering, fill), values in first.items():
        values2 = second[scope, ordering, fill]
        cell = comparison.to_dataset().sel(scope=scope, ordering=ordering, fill=fill)
        expected = test(values, values2, **options)
        assert cell["difference"].item() == pytest.approx(np.mean(values) - np.mean(values2))
        assert (cell["low"].item(), cell["high"].item()) == pytest.approx(expected.confidence_interval())
        assert cell["p_value"].item() == pytest.approx(expected.pvalue, rel=1e-6)
        assert cell["num_networks"].item() == min(len(values), len(values2))
    corrected = ja.statistics.holm(comparison["p_value"].values.ravel()).reshape(3, 3, 2)
    np.testing.assert_allclose(comparison["p_holm"], corrected)


def mean_after_first(curve):
    return sum(curve[1:]) / (len(curve) - 1)


def test_networks_of_equal_data_split_and_seeds_are_paired():
    first, second = network(1), network(2)
    comparison = ja.compare(run({"net": first}), run({"net": second.isel(seed=[3, 1, 0, 2, 5, 4])}))
    assert list(comparison.children) == ["net"]
    comparison = comparison["net"]
    assert comparison.attrs == {"by": "auc", "comparison": "paired by seed"}
    assert comparison["difference"].attrs["units"] == "%"
    assert all(variable.attrs["long_name"] for variable in comparison.data_vars.values())
    assert_comparison(
        comparison, averaged(first, mean_after_first), averaged(second, mean_after_first), stats.ttest_rel
    )


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"data": "b"}, "data differ"),
        ({"split_seed": 2}, "split seeds differ"),
        ({"seeds": range(1, 7)}, "seeds differ"),
        ({"seeds": range(4)}, "seeds differ"),
        ({"data": "b", "split_seed": 2, "seeds": range(9)}, "data and the split seeds and the seeds differ"),
    ],
)
def test_other_networks_are_compared_as_groups(changes, differing):
    first, second = network(1), network(2, changes.pop("seeds", range(6)))
    comparison = ja.compare(run({"net": first}), run({"net": second}, **changes))["net"]
    assert comparison.attrs["comparison"] == f"unpaired (Welch): the {differing}"
    areas, areas2 = averaged(first, mean_after_first), averaged(second, mean_after_first)
    assert_comparison(comparison, areas, areas2, stats.ttest_ind, equal_var=False)


def test_networks_are_found_by_name_and_protocol():
    first = run({"a": network(1), "b": network(2), "published/a": network(3, fills=("zero", "scaled"))})
    second = run({"b": network(4), "c": network(5), "published/a": network(6, fills=("zero", "scaled"))})
    comparison = ja.compare(first, second)
    assert [node.path for node in comparison.subtree if node.data_vars] == ["/b", "/published/a"]
    # nothing else in the results changes a number
    alone = ja.compare(run({"b": network(2)}), run({"b": network(4)}))
    assert alone["b"].identical(comparison["b"])
    nodes = ja.compare(first["b"], second["b"])
    assert nodes.to_dataset().identical(alone["b"].to_dataset())
    published = ja.compare(first["a"], first["published/a"])
    assert published["fill"].values.tolist() == ["zero"]
    assert published.attrs["comparison"] == "paired by seed"
    with raises_input_error(r"second: no network \(c\) has the name and protocol of one in the first \(a\); pass two"):
        ja.compare(run({"a": network(1)}), run({"c": network(1)}))
    with raises_input_error("second: no network .*; pass two nodes"):
        ja.compare(first, second["b"])
    with raises_input_error("second: it has no scope, ordering and fill of the first"):
        ja.compare(first["a"], run({"a": network(1).isel(fill=[1]).assign_coords(fill=["median"])})["a"])
    for wrong, kind in (
        (first["a"].to_dataset(), "Dataset"),
        (xr.DataTree(network(1)), "DataTree"),
        (None, "NoneType"),
    ):
        with raises_input_error(f"second: expected results of a study or a node of them, .* got {kind} without"):
            ja.compare(first, wrong)


def test_the_first_step_below_counts_one_more_where_none_is():
    first, second = network(1), network(2)
    first["accuracy"][:2] = first["accuracy"][:2].clip(min=0.89)

    def step(curve):
        return next((k for k in range(1, len(curve)) if curve[0] - curve[k] >= 15 - 1e-9), len(curve))

    steps, steps2 = averaged(first, step), averaged(second, step)
    assert steps["layer1", "random", "mean"][0] == 5, "four neurons, none of them deep enough"
    comparison = ja.compare(run({"net": first}), run({"net": second}), by="first_step_below:15")["net"]
    assert comparison.attrs["by"] == "first_step_below:15"
    assert comparison["difference"].attrs["units"] == "1"
    for (scope, ordering, fill), values in steps.items():
        difference = comparison["difference"].sel(scope=scope, ordering=ordering, fill=fill).item()
        assert difference == pytest.approx(np.mean(values) - np.mean(steps2[scope, ordering, fill]))


def test_only_steps_that_both_have_are_compared():
    for steps in ([3, 3, 3], [2, 3, 8]):
        first, second = network(1), network(2, steps=steps)
        comparison = ja.compare(run({"net": first}), run({"net": second}))["net"]
        common = dict(zip(first["scope"].values, np.minimum([4, 3, 7], steps), strict=True))
        areas, areas2 = (
            {key: [mean_after_first(c[: common[key[0]] + 1]) for c in curves] for key, curves in lists.items()}
            for lists in (averaged(net, np.array) for net in (first, second))
        )
        assert_comparison(comparison, areas, areas2, stats.ttest_rel)
    steps = ja.compare(run({"net": first}), run({"net": second}), by="first_step_below:99")["net"]
    assert (steps["difference"] == 0).all()


def test_normalized_areas_share_the_accuracy_of_the_balanced_scope():
    first, second = network(1), network(2)
    comparison = ja.compare(run({"net": first}), run({"net": second}), by="normalized_auc")["net"]
    normalized = []
    for dataset in (first, second):
        areas, lowest = averaged(dataset, mean_after_first), averaged(dataset, lambda curve: curve[-1])
        intact = averaged(dataset, lambda curve: curve[0])
        normalized.append(
            {
                key: [
                    (area - bottom) / (top - bottom)
                    for area, bottom, top in zip(areas[key], lowest[(*key[:2], "mean")], intact[key], strict=True)
                ]
                for key in areas
            }
        )
    assert_comparison(comparison, *normalized, stats.ttest_rel)
    with raises_input_error(r"by: normalized_auc needs .* \[4, 3, 7\], got \[3, 3, 3\]; run the study with"):
        ja.compare(run({"net": first}), run({"net": network(2, steps=[3] * 3)}), by="normalized_auc")


@pytest.mark.filterwarnings("error")
def test_a_question_of_your_own():
    first, second = network(1), network(2)
    first["single_damage"][0, 0] = np.nan
    first["single_damage"][2, 0], second["single_damage"][2, 0] = np.inf, np.inf

    def damage(dataset):
        return dataset["single_damage"]

    comparison = ja.compare(run({"net": first}), run({"net": second}), by=damage)["net"]
    assert comparison.attrs["by"] == "damage"
    assert comparison["difference"].dims == ("neuron",)
    assert comparison["difference"].attrs["units"] == "nat"
    assert comparison["num_networks"].values.tolist() == [4] + [6] * 6
    values, values2 = (dataset["single_damage"].values[:, 3] for dataset in (first, second))
    assert comparison["p_value"].values[3] == pytest.approx(stats.ttest_rel(values, values2).pvalue)

    question = {"by": lambda net: net["single_damage"][:, 1:].max("neuron")}
    largest = ja.compare(run({"net": first}), run({"net": second}), **question)
    assert largest["net"]["p_holm"].item() == largest["net"]["p_value"].item(), "one question"
    for wrong in (lambda net: net["single_damage"].mean("seed"), lambda net: net["single_damage"][1:], lambda net: 1.0):
        with raises_input_error(r"by: expected a DataArray with the dimension seed \(6\) from the function, got"):
            ja.compare(run({"net": first}), run({"net": second}), by=wrong)
    with raises_input_error("by: the values of the two networks have different dimensions"):
        names = iter(("first", "second"))
        ja.compare(
            run({"net": first}),
            run({"net": second}),
            by=lambda net: net["single_damage"].drop_vars("neuron").rename(neuron=next(names)),
        )


@pytest.mark.parametrize(
    "by", ["area", "auc:1", "first_step_below", "first_step_below:", "first_step_below:0", "first_step_below:nan"]
)
def test_unknown_measures(by):
    results = run({"net": network(1)})
    with raises_input_error("by: unknown '.*'; choose auc, normalized_auc, first_step_below:POINTS .* or a function"):
        ja.compare(results, results, by=by)


def test_one_network_has_a_difference_and_no_interval():
    comparison = ja.compare(run({"net": network(1, [0])}), run({"net": network(2, [0])}))["net"].to_dataset()
    assert np.isfinite(comparison["difference"]).all()
    assert (comparison["num_networks"] == 1).all()
    assert np.isnan(comparison[["low", "high", "p_value", "p_holm"]].to_array()).all()


def test_a_study_is_compared_with_itself(small_results):
    comparison = ja.compare(small_results, small_results)
    assert [node.path for node in comparison.subtree if node.data_vars] == [
        f"/{node.path[1:]}" for node in small_results.subtree if node.data_vars
    ]
    assert json.loads(small_results.attrs["dataset_sha256"])
    for node in comparison.subtree:
        if node.data_vars:
            assert node.attrs["comparison"] == "paired by seed"
            assert (node["difference"] == 0).all()
            assert (node["p_value"] == 1).all()
    nodes = ja.compare(small_results["2-layer-12-10"], small_results["3-layer-10-8-9"])
    assert nodes["scope"].values.tolist() == ["layer1", "layer2", "network"]
