"""Plots of anybody's results and arrays: each shows the numbers that it was given."""

import matplotlib
import numpy as np
import pytest
from flax import nnx
from helpers import raises_input_error
from matplotlib import pyplot
from matplotlib.colors import to_hex
from scipy import stats

import jaxablate as ja
from jaxablate.charts import score_colors
from jaxablate.charts._study import _name_coinciding, score_violins
from jaxablate.charts._types import Line
from jaxablate.figures import (
    draw_figure,
    plot_comparison,
    plot_curves,
    plot_damage,
    plot_pairs,
    plot_redundancy,
    plot_scores,
)
from jaxablate.statistics import estimate, paired_difference

NAME = "2-layer-12-10"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def curves_of(ax) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}


def bands_of(ax) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the low and the high edge of every band, each [step]."""
    edges = []
    for band in ax.collections:
        points = band.get_paths()[0].vertices
        xs = sorted(set(points[:, 0]))
        ys = [points[points[:, 0] == x, 1] for x in xs]
        edges.append((np.array([y.min() for y in ys]), np.array([y.max() for y in ys])))
    return edges


@pytest.mark.parametrize("form", ["node", "dataset", "only network"])
def test_curves_of_results_are_the_mean_and_interval_over_networks(small_results, form):
    results = {
        "node": small_results[NAME],
        "dataset": small_results[NAME].to_dataset(),
        "only network": small_results.filter(lambda node: node.name not in ("3-layer-10-8-9", "published")),
    }[form]
    ax = plot_curves(results, scope="layer1", fill="zero", scores=["entropy"], directions=["high"])
    network = small_results[NAME].to_dataset()
    curves = curves_of(ax)
    assert len(curves) == 2
    for name, ranking in (("random (mean of 6)", "random"), ("Entropy", "entropy")):
        summary = ja.results.curve(network, scope="layer1", ranking=ranking, direction="high", fill="zero")
        np.testing.assert_array_equal(curves[name], summary.mean)
    low, high = bands_of(ax)[1]
    np.testing.assert_allclose(low, summary.low.clip(0))
    np.testing.assert_allclose(high, summary.high.clip(max=1))
    assert "zeros" in ax.get_title(loc="left")
    assert ("12" in ax.get_title(loc="left")) == (form != "dataset"), "a dataset has no name"
    assert "95% t-interval of the mean" in ax.figure.get_supxlabel()


def test_curves_of_arrays_have_bands_over_orders_or_networks():
    random = np.random.default_rng(0)
    step_counts, orders, networks = (random.integers(0, 50, shape) for shape in ((5,), (7, 5), (3, 4, 5)))
    ax = plot_curves({"mine": step_counts, "random orders": orders, "three networks": networks}, num_examples=50)
    curves = curves_of(ax)
    np.testing.assert_allclose(curves["mine"], step_counts / 50)
    np.testing.assert_allclose(curves["random orders"], orders.mean(axis=0) / 50)
    np.testing.assert_allclose(curves["three networks"], networks.mean(axis=(0, 1)) / 50)
    assert [to_hex(line.get_color()) for line in ax.lines] == ["#0072b2", "#000000", "#d55e00"]
    (low, high), (low3, high3) = bands_of(ax)
    np.testing.assert_allclose(low, np.quantile(orders / 50, 0.1, axis=0))
    np.testing.assert_allclose(high, np.quantile(orders / 50, 0.9, axis=0))
    means = networks.mean(axis=1) / 50
    half = stats.t.ppf(0.975, 2) * means.std(axis=0, ddof=1) / 3**0.5
    np.testing.assert_allclose((low3, high3), (means.mean(axis=0) - half, means.mean(axis=0) + half))
    assert ax.get_ylabel() == "Accuracy (%)"
    assert ax.figure.get_supxlabel() == ("Bands: 10% to 90% of 7 random curves; 95% t-interval of the mean.")


def test_curves_of_the_library_need_no_conversion(small_model, mnist5k):
    images, labels = mnist5k.test.images[:50], mnist5k.test.labels[:50]
    orders = np.stack([np.random.default_rng(seed).permutation(22)[:6] for seed in range(3)])
    outcomes = ja.cumulative_ablation(
        small_model, orders, images, labels, steps=(2, 5), outcomes=("correct", "loss", "confusion")
    )
    ax = plot_curves({"random": outcomes}, outcome="loss", num_ablated=[0, 2, 5])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.asarray(outcomes["loss"]).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 2, 5])
    assert ax.get_ylabel() == "Loss (nats)"
    ax = plot_curves(outcomes["correct"])
    assert ax.get_ylabel() == "Correct predictions"
    assert ax.get_legend() is None, "a single array has no name"


def test_a_curve_of_results_is_an_accuracy(small_results):
    network = small_results[NAME].to_dataset()
    summary = ja.results.curve(network, scope="layer2", ranking="random", direction="", fill="mean")
    ax = plot_curves([("random", summary)])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), summary.mean)
    assert ax.get_ylabel() == "Accuracy (%)"


COUNTS = np.array([9, 8, 4])


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ("counts", {}, "curves: expected results, an array"),
        ([], {}, "curves: expected results, an array"),
        ([COUNTS], {}, "curves: expected results, an array"),
        ({"correct": COUNTS, "loss": COUNTS}, {}, "outcomes of one ablation; pass them under a name"),
        ([("a", COUNTS), ("a", COUNTS)], {}, "occurs twice"),
        ({"a": COUNTS, "b": COUNTS[:2]}, {}, "'b' has 2 steps, and 'a' has 3"),
        ({"a": COUNTS[:1]}, {}, "curve 'a': expected .step., .order, step."),
        ({"a": np.zeros((2, 2, 2, 2))}, {}, "got shape"),
        ({"a": COUNTS}, {"num_examples": 8}, "8 do not fit values up to 9"),
        ({"a": COUNTS}, {"num_examples": 0}, "num_examples"),
        ({"a": COUNTS}, {"num_examples": 9, "outcome": "loss"}, "num_examples"),
        ({"a": COUNTS}, {"num_ablated": [1, 2]}, "expected 3 increasing numbers"),
        ({"a": COUNTS}, {"num_ablated": [0, 2, 2]}, "expected 3 increasing numbers"),
        ({"a": {"correct": COUNTS}}, {"outcome": "loss"}, "outcome: unknown 'loss'"),
        ({"a": COUNTS}, {"ax": 3}, "ax: expected Matplotlib axes"),
    ],
)
def test_bad_arrays_are_refused(curves, options, message):
    with raises_input_error(message):
        plot_curves(curves, **options)
    assert pyplot.get_fignums() == [], "no empty figure is left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "layer3"}, "scope: unknown 'layer3'"),
        ({"fill": "maen"}, "fill: unknown 'maen'"),
        ({"scores": ["taylor"]}, "scores: unknown 'taylor'"),
        ({"directions": ["low", "up"]}, "directions: unknown 'up'"),
        ({"directions": []}, "directions: expected low, high or both"),
    ],
)
def test_unknown_names_are_refused(small_results, options, message):
    with raises_input_error(message):
        plot_curves(small_results[NAME], **options)


def test_several_networks_need_a_choice(small_results):
    with raises_input_error(r"they hold the networks 2-layer-12-10, .*; pass one, such as results\['2-layer-12-10'\]"):
        plot_curves(small_results)


def test_axes_of_the_user_keep_their_style_and_title(small_results):
    figure, (left, right) = pyplot.subplots(1, 2)
    left.set_title("mine")
    before = dict(matplotlib.rcParams)
    assert plot_curves(small_results[NAME], ax=left) is left
    assert plot_scores(small_results[NAME], ax=right) is right
    assert left.get_title() == "mine"
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [figure.number]
    assert "95% t-interval" in left.get_legend().get_title().get_text(), "the band is named in the legend"


def test_notebooks_display_plots_and_figures(small_results):
    plot_curves(small_results[NAME])
    assert len(pyplot.get_fignums()) == 1, "a figure of pyplot is displayed at the end of a cell"
    as_paper = ja.StudyConfig(dataset="mnist5k", networks=((200, 200),), epochs=1, num_random_orders=1, steps=2)
    figure = draw_figure(ja.run_study(as_paper), 13)
    assert figure._repr_png_().startswith(b"\x89PNG"), "and a figure of its own as the last value of a cell"


def test_up_to_six_scores_have_different_colours():
    four = ["single_damage", "taylor", "class_selectivity", "activation_variance"]
    for scores in (["entropy", "kl_selectivity", *four[:3]], [*four, "a", "b"], ["mutual_information", *four]):
        colors = score_colors(scores)
        assert len(set(colors.values())) == len(scores)
        assert 0 not in colors.values(), "random orders have the ink"


def test_a_curve_that_hides_another_names_it():
    def line(name, values):
        return Line(name, 1, "", np.array(values), np.array(values), np.array(values), "")

    named = _name_coinciding(
        [line("a", [1, np.nan]), line("b", [1, 2]), line("c", [1, np.nan]), line("d", [1, np.nan])]
    )
    assert [each.name for each in named] == ["a", "b", "c (= a)", "d (= a)"]


def test_violins_count_neurons_without_information():
    values = np.array([[0.0, 1, 2, 3], [0, 0, 2, np.nan]])
    constant = values == 0
    first, second = score_violins(values, {"layer 1": np.array([0, 1]), "layer 2": np.array([2, 3])}, constant)
    assert (first.note, second.note) == ("1.5 of 2 constant", "0.5 of 2 undefined")
    np.testing.assert_array_equal(first.values, [0, 1, 0, 0])
    np.testing.assert_array_equal(second.values, [2, 3, 2])


def test_scores_and_damage_of_results(small_results):
    network = small_results[NAME].to_dataset()
    ax = plot_damage(network, score="kl_selectivity")
    correlations = []
    for layer, points in zip((1, 2), ax.collections, strict=True):
        chosen = network["layer"].values == layer
        scores = network["scores"].sel(score="kl_selectivity").values[:, chosen]
        damage = network["single_damage"].values[:, chosen]
        np.testing.assert_array_equal(points.get_offsets(), np.stack([scores.ravel(), damage.ravel()], axis=1))
        each = [stats.spearmanr(a, b).statistic for a, b in zip(scores, damage, strict=True)]
        correlations.append((np.mean(each), *estimate(np.array(each)).interval()))
        mean, low, high = correlations[-1]
        interval = f"{max(low, -1):+.2f}, {min(high, 1):+.2f}"
        assert points.get_label() == f"layer {layer}: rank correlation {mean:+.2f} [{interval}]"
    assert [text.get_text() for text in plot_scores(network).get_xticklabels()] == ["layer 1", "layer 2"]
    with raises_input_error("score: unknown 'taylor'"):
        plot_scores(network, score="taylor")


def test_scores_and_damage_of_arrays():
    random = np.random.default_rng(1)
    scores, damage = random.normal(size=(2, 9)), random.normal(size=(2, 9))
    scores[0, 0] = np.nan
    ax = plot_damage(scores, damage, score="mine", sites={"a": np.arange(4), "b": np.arange(4, 9)})
    each = [
        stats.spearmanr(x, y).statistic for x, y in ((scores[0, 1:4], damage[0, 1:4]), (scores[1, :4], damage[1, :4]))
    ]
    assert ax.collections[0].get_label() == f"a: rank correlation {np.mean(each):+.2f}"
    assert ax.get_xlabel() == "mine"
    ax = plot_scores(scores, score="mine")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["all neurons\n0.5 of 9 undefined"]
    for arguments, message in (
        ((scores,), "damage: expected an array like the scores"),
        ((scores, damage[0]), "expected the shape of the scores"),
        ((scores[None], damage), "scores: expected .neuron."),
    ):
        with raises_input_error(message):
            plot_damage(*arguments)
    with raises_input_error("sites: expected ids of neurons in 0..8 for 'b'"):
        plot_scores(scores, sites={"b": np.arange(4, 10)})


def bars_of(ax) -> list[np.ndarray]:
    """Return mean, low and high of every row [row, 3], for each group."""
    groups = []
    for container in ax.containers:
        means = np.asarray(container.lines[0].get_xdata())
        ends = np.array([segment[:, 0] for segment in container.lines[2][0].get_segments()])
        groups.append(np.column_stack([means, ends]))
    return groups


def test_comparisons_are_drawn_with_their_intervals(small_results):
    comparison = ja.compare(small_results[NAME], small_results["3-layer-10-8-9"])
    ax = plot_comparison(comparison, fill="zero")
    table = comparison.to_dataset().sel(scope="network", fill="zero")
    (bars,) = bars_of(ax)
    np.testing.assert_allclose(bars, np.column_stack([table[name].values for name in ("difference", "low", "high")]))
    assert ax.get_ylim() == (len(bars) - 0.5, -0.5), "the first row is at the top"
    conditions = ja.results.compare_conditions(small_results)
    ax = plot_comparison(conditions)
    bars = bars_of(ax)
    assert len(bars) == 2
    np.testing.assert_allclose(bars[1][:, 0], conditions["difference"].values[0, 1])
    assert ax.get_yticklabels()[0].get_text() == "entropy low \N{MINUS SIGN} random"


def test_estimates_are_drawn_with_their_intervals():
    first, second = np.array([1.0, 2, 4]), np.array([0.5, 1, 1])
    effect = paired_difference(first, second)
    ax = plot_comparison([("first against second", effect), ("again", effect)])
    np.testing.assert_allclose(bars_of(ax)[0], np.tile([effect.mean, *effect.interval()], (2, 1)))
    for bad in ([("a", 3)], [], paired_difference(np.ones((3, 2)), np.zeros((3, 2)))):
        with raises_input_error("comparison: expected"):
            plot_comparison(bad)


def test_pairs_are_drawn_as_a_map():
    codes = np.random.default_rng(0).integers(0, 2, (40, 4))
    labels = codes[:, 0] ^ codes[:, 1]
    pairs = ja.interactions.pair_information(codes, labels, num_codes=2, num_classes=2)
    ax = plot_pairs(pairs, quantity="synergy")
    order = np.argsort(-np.asarray(pairs.single), kind="stable")
    drawn = np.asarray(ax.images[0].get_array())
    expected = np.asarray(pairs.synergy)[np.ix_(order, order)]
    off_diagonal = ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal(drawn[off_diagonal], expected[off_diagonal])
    assert np.ma.getmaskarray(ax.images[0].get_array()).diagonal().all() or np.isnan(drawn.diagonal()).all()
    for options, message in (
        ({"quantity": "unique"}, "quantity: unknown"),
        ({"arranged": "size"}, "arranged: unknown"),
    ):
        with raises_input_error(message):
            plot_pairs(pairs, **options)


def test_redundancy_is_drawn_for_one_layer(mnist5k):
    models = [ja.MLP(784, (5, 4), 10, rngs=nnx.Rngs(seed)) for seed in range(2)]
    redundancy = ja.study.linear_redundancy(models, mnist5k, scores=("entropy",), num_random_orders=2)
    ax = plot_redundancy(redundancy, scope="layer2")
    curves = curves_of(ax)
    random = redundancy.sel(scope="layer2", ordering=["random 0", "random 1"], step=slice(0, 4))
    for name, array in (
        ("fill: linear", random["accuracy"].sel(fill="linear")),
        ("readout of the kept neurons", random["readout_accuracy"]),
    ):
        np.testing.assert_allclose(curves[name], array.mean(("network", "ordering")))
    assert list(curves) == ["fill: zero", "fill: mean", "fill: linear", "readout of the kept neurons"]
    single = plot_redundancy(redundancy, scope="layer1", ordering="random 1")
    drawn = redundancy["accuracy"].sel(scope="layer1", ordering="random 1", fill="zero").mean("network")
    np.testing.assert_allclose(curves_of(single)["fill: zero"], drawn)
    for options, message in (
        ({}, "scope: choose one of layer1, layer2"),
        ({"scope": "layer3"}, "scope: unknown"),
        ({"scope": "layer1", "ordering": "taylor"}, "ordering: unknown 'taylor'"),
    ):
        with raises_input_error(message):
            plot_redundancy(redundancy, **options)
    with raises_input_error("redundancy: expected results from ja.study.linear_redundancy"):
        plot_redundancy(redundancy.drop_vars("readout_accuracy"))


def test_values_of_cells_are_short(small_results, mnist5k):
    """As the last value of a notebook's cell."""
    network = small_results[NAME].to_dataset()
    summary = ja.results.curve(network, scope="layer1", ranking="random", direction="", fill="mean")
    _, history = ja.train(mnist5k, (3,), epochs=1)
    for value in (summary, history, mnist5k, paired_difference(np.ones(3), np.zeros(3))):
        assert len(repr(value)) < 500
        assert type(value).__name__ in repr(value)
