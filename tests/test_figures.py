"""Figures: the paper's catalogue, and that what is drawn is what the results hold."""

import dataclasses
import io
import itertools

import matplotlib
import numpy as np
import pytest
import xarray as xr
from helpers import raises_input_error
from matplotlib.figure import Figure
from matplotlib.image import imread

import jaxablate as ja
from jaxablate.charts import compare_published, deciding_effect, order_chart, share_charts, training_chart
from jaxablate.claims import CLAIMS, Effect, Verdict, VerdictChange
from jaxablate.figures import (
    EXTRAS,
    FIGURES,
    _findings,
    draw_figure,
    draw_published,
    save_figure,
    save_figures,
    save_finding_figures,
)
from jaxablate.figures._draw import add_caption, styled


@pytest.fixture(scope="module")
def results(reproduced):
    """Both networks of the paper, barely trained."""
    return ja.results.load_results(reproduced[0] / "results.nc")


def test_the_catalogue_is_the_paper():
    assert list(FIGURES) == list(range(1, 23))
    stems = {number: spec.stem for number, spec in FIGURES.items()}
    assert stems[1] == "fig01_3layer_training_accuracy"
    assert stems[2] == "fig02_3layer_training_cost"
    assert stems[4] == "fig04_3layer_mutual_information"
    assert stems[6] == "fig06_2layer_bias_balancing_layer1"
    assert stems[10] == "fig10_3layer_bias_balancing_layer3"
    assert stems[12] == "fig12_2layer_layer2_high_first"
    assert stems[13] == "fig13_2layer_layer1_low_first"
    assert stems[17] == "fig17_3layer_layer3_high_first"
    assert stems[20] == "fig20_3layer_layer3_low_first"
    assert stems[21] == "fig21_2layer_network_low_first"
    assert stems[22] == "fig22_3layer_network_low_first"
    assert EXTRAS[0].stem == "extra_2layer_training_accuracy"
    assert len({spec.stem for spec in (*FIGURES.values(), *EXTRAS)}) == 27


def lines_of(figure) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}


@pytest.mark.slow
def test_a_style_of_the_user_changes_no_picture(results):
    def picture() -> bytes:
        file = io.BytesIO()
        draw_figure(results, 6).savefig(file, format="png", dpi=40)
        return file.getvalue()

    plain = picture()
    hostile = {
        "axes.prop_cycle": matplotlib.cycler("color", ["r"]),
        "font.size": 60,
        "lines.linewidth": 9,
        "axes.grid": True,
    }
    with matplotlib.rc_context({**hostile, "text.usetex": True, "figure.constrained_layout.use": True}):
        figure = draw_figure(results, 6)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue() == plain


def test_order_figures_draw_the_curves(results):
    node = results["2-layer"].to_dataset()
    lines = lines_of(draw_figure(results, 12))
    assert set(lines) == {"random (mean of 2)", "Entropy", "Mutual information", "KL selectivity"}
    accuracy = node["accuracy"].sel(scope="layer2", fill="mean").isel(seed=0)
    np.testing.assert_allclose(lines["KL selectivity"], accuracy.sel(ordering="kl_selectivity_high"))
    np.testing.assert_allclose(lines["random (mean of 2)"], accuracy[-2:].mean("ordering"))
    low = lines_of(draw_figure(results, 21))
    whole = node["accuracy"].sel(scope="network", fill="mean", ordering="entropy_low").isel(seed=0)
    np.testing.assert_allclose(low["Entropy"], whole)


@pytest.mark.parametrize(
    ("ends", "at_curves"),
    [
        ((0.9, 0.8, 0.7, 0.5), True),
        ((0.9, 0.89, 0.7, 0.5), True),  # moved a little
        ((0.9, 0.899, 0.7, 0.5), False),  # too near to tell which is which
        ((0.9, 0.89, 0.88, 0.87), False),  # moved too far
    ],
)
def test_names_are_at_the_curves_if_they_fit(small_results, ends, at_curves):
    results = small_results.copy(deep=True)
    results["2-layer"] = results["2-layer-12-10"]
    network = results["2-layer"].to_dataset().copy(deep=True)
    rankings = ["random", "mutual_information", "kl_selectivity", "entropy"]
    for ranking, end in zip(rankings, ends, strict=True):
        of_ranking = np.flatnonzero(network["ranking"] == ranking)
        network["accuracy"][:, :, of_ranking] = 0.5
        network["accuracy"][:, :, of_ranking, :, -1] = end
    results["2-layer"] = xr.DataTree(network)
    axes = draw_figure(results, 12).axes[0]
    assert (axes.get_legend() is None) == at_curves
    names = {text.get_text().split("\n")[0]: text for text in axes.texts}
    assert set(names) == ({"random", "Mutual information", "KL selectivity", "Entropy"} if at_curves else set())
    low, high = axes.get_ylim()
    for text, end in zip(sorted(names.values(), key=lambda text: -text.xy[1]), ends, strict=at_curves):
        assert text.xy[1] == pytest.approx((end - low) / (high - low), abs=0.05)


def test_balancing_figures_draw_both_fills(results):
    lines = lines_of(draw_figure(results, 9))
    accuracy = results["3-layer"]["accuracy"].sel(scope="layer2", ordering="mutual_information_low").isel(seed=0)
    np.testing.assert_allclose(lines["MI, low first; bias balanced"], accuracy.sel(fill="mean"))
    np.testing.assert_allclose(lines["MI, low first; zeros"], accuracy.sel(fill="zero"))
    assert len(lines) == 4


def test_training_figures_draw_the_history(results):
    node = results["3-layer"]
    np.testing.assert_allclose(lines_of(draw_figure(results, 1))["training accuracy"], node["train_accuracy"][0])
    np.testing.assert_allclose(lines_of(draw_figure(results, 2))["training loss"], node["train_loss"][0])


def test_epochs_are_whole(results):
    figure = draw_figure(results, 1)
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticks()
    assert (ticks == ticks.round()).all()


@pytest.mark.parametrize(("number", "score"), [(3, "entropy"), (4, "mutual_information"), (5, "kl_selectivity")])
def test_violins_show_every_neuron_of_their_score(results, number, score):
    axes = draw_figure(results, number).axes[0]
    points = np.concatenate([c.get_offsets()[:, 1] for c in axes.collections if len(c.get_offsets()) == 200])
    np.testing.assert_allclose(points, results["3-layer"]["scores"].sel(score=score).values.ravel(), rtol=1e-6)


def test_the_band_spans_the_random_curves(results):
    (band,) = draw_figure(results, 12).axes[0].collections
    accuracy = results["2-layer"]["accuracy"].sel(scope="layer2", fill="mean").isel(seed=0)[-2:]
    low, high = np.quantile(accuracy, (0.1, 0.9), axis=0)
    points = band.get_paths()[0].vertices
    for step in range(5):
        heights = points[points[:, 0] == step, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low[step], high[step]))


def test_the_band_of_several_networks_is_the_interval_of_their_mean(results):
    """Two networks: t(0.975, 1) = 12.7062 times half their difference."""
    node = results["2-layer"].to_dataset()
    second_network = node.assign(accuracy=node["accuracy"] - 0.01).assign_coords(seed=[1])
    two = xr.concat(
        [node, second_network], "seed", data_vars="all", coords="minimal", compat="override", join="override"
    )
    both = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "2-layer": two})
    figure = draw_figure(both, 12)
    for band, ranking in zip(figure.axes[0].collections, ("random", "mutual_information"), strict=False):
        points = band.get_paths()[0].vertices
        heights = points[points[:, 0] == 3, 1]
        assert heights.max() - heights.min() == pytest.approx(2 * 12.7062047 * 0.005), ranking
    assert "band: 95% t-interval of the mean," in figure.texts[0].get_text()


def test_every_figure_says_its_data(results):
    for number, spec in FIGURES.items():
        figure = draw_figure(results, number)
        title = figure.axes[0].get_title(loc="left")
        assert title.startswith(f"Figure {number}. {spec.network} network")
        assert "data: mnist5k" in title
        assert figure.axes[0].get_ylabel()


@pytest.mark.slow
def test_all_figures_are_saved(results, tmp_path):
    progress = []
    files = save_figures(results, tmp_path / "figures", on_progress=lambda *now: progress.append(now))
    assert len(files) == 2 * 27 + 1
    assert progress[-1][:3] == ("draw", 27, 27)
    assert sorted(files) == sorted((tmp_path / "figures").iterdir())
    for file in files:
        if file.suffix == ".pdf":
            assert file.read_bytes().startswith(b"%PDF")
        else:
            assert imread(file).std() > 0.02, "not blank"


def test_figures_of_other_networks(small_results, results, tmp_path):
    with raises_input_error("figures: expected a 2-layer or 3-layer network, got"):
        save_figures(small_results, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with raises_input_error(r"figure 11: expected results with a 2-layer network, got \['2-layer-12-10'"):
        draw_figure(small_results, 11)
    with raises_input_error("figure: expected a number in 1..22, got 23"):
        draw_figure(results, 23)
    (tmp_path / "file").write_text("")
    with raises_input_error("output folder .* cannot be written"):
        save_figure(results, 1, tmp_path / "file")


@pytest.mark.slow
def test_figures_without_a_metric(tmp_path):
    config = ja.StudyConfig(dataset="mnist5k", epochs=1, num_random_orders=1, steps=2, networks=((200, 200),))
    results = ja.run_study(dataclasses.replace(config, scores=("entropy", "mutual_information")))
    names = {file.stem for file in save_figures(results, tmp_path)}
    assert "fig06_2layer_bias_balancing_layer1" in names
    assert "fig11_2layer_layer1_high_first" not in names
    with raises_input_error(r"figure 11: expected results with the scores \['kl_selectivity'\]"):
        draw_figure(results, 11)


def texts_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


WORDS = (
    "holds", "holds in part", "no difference", "reversed", "reversed in part", "does not hold", "undecided",
    "not judged",
)  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(small_results):
    """Verdicts of every kind, which these small results do not have; effects have verdicts that agree with them."""
    words = itertools.cycle(WORDS)
    verdicts = []
    for verdict in ja.judge_claims(small_results):
        word = next(words)
        effect = {"holds in part": "no difference", "reversed in part": "reversed", "not judged": "undecided"}
        effects = tuple(dataclasses.replace(e, verdict=effect.get(word, word)) for e in verdict.effects)
        reason = "2 networks; five or more are needed" if word == "not judged" else ""
        verdicts.append(dataclasses.replace(verdict, verdict=word, effects=effects, reason=reason))
    return verdicts


def test_the_table_of_claims_shows_every_verdict_and_what_decides_it(verdicts):
    elsewhere = texts_of(_findings.claims(verdicts, "caption", ["dataset: cancer"]))
    assert "Comparisons outside of the paper's setting" in elsewhere
    assert "claim" not in " ".join(elsewhere)
    texts = texts_of(_findings.claims(verdicts, "caption"))
    joined = " ".join(texts)
    assert all(f"{number}. {claim.text.split()[0]}" in joined for number, claim in CLAIMS.items())
    # "reversed in part" takes two lines
    words = [word for word in texts if word in WORDS]
    shown = ["reversed in" if v.verdict == "reversed in part" else v.verdict for v in verdicts]
    assert sorted([*words, *(text for text in texts if text == "reversed in")]) == sorted(shown)
    assert texts.count("2 networks") == shown.count("not judged")
    for verdict in verdicts:
        effect = deciding_effect(verdict)
        if effect is None:
            assert verdict.verdict == "not judged"
        elif effect.unit == "accuracy points" and abs(effect.measured) < 10:
            assert f"{effect.measured:+.2f} \u00b1 {effect.high - effect.mean:.2f}" in texts
            if effect.threshold is not None:
                assert f"needs {'>' if effect.slope < 0 else '<'} {effect.threshold:g}" in texts
    assert texts.count("paper") == texts.count("published") == 2
    assert texts.count("2-layer-12-10 network") == 1


@pytest.mark.parametrize(
    ("word", "effects", "decisive"),
    [
        ("holds", {"holds": (3.0, 1.0)}, 1.0),
        ("holds in part", {"holds": (0.1, 1.0), "no difference": (0.2, 0.3)}, 0.2),
        ("does not hold", {"does not hold": (-1.0, -2.0), "undecided": (-9.0,)}, -2.0),
        ("reversed in part", {"reversed": (-1.0, -2.0), "undecided": (-9.0,)}, -2.0),
        ("undecided", {"undecided": (0.5,), "holds": (0.4,)}, 0.5),
    ],
)
def test_the_smallest_effect_with_the_verdict_decides(word, effects, decisive):
    effects = [Effect("label", "accuracy points", (), 9, mean, verdict=v) for v in effects for mean in effects[v]]
    verdict = Verdict("paper", "net", "C1", "text", word, 9, tuple(effects))
    assert deciding_effect(verdict).mean == decisive
    assert deciding_effect(dataclasses.replace(verdict, verdict="not judged", effects=())) is None


@pytest.mark.parametrize("protocols", [("paper", "published"), ("published",)])
def test_the_comparisons_of_a_claim_are_drawn_and_named(verdicts, protocols):
    chosen = [v for v in verdicts if v.claim == "C2" and v.protocol in protocols]
    chosen[0] = dataclasses.replace(chosen[0], verdict="not judged")
    figure = _findings.comparisons(chosen, "caption")
    for axes, network in zip(figure.axes, ("2-layer-12-10", "3-layer-10-8-9"), strict=True):
        of_network = [verdict for verdict in chosen if verdict.network == network]
        effects = [effect for verdict in of_network for effect in verdict.effects]
        bars = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
        dots = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        assert {(effect.low, effect.high) for effect in effects} <= bars
        assert {effect.mean for effect in effects} <= set(dots)
        assert [label.get_text() for label in axes.get_yticklabels()] == [e.label for e in of_network[0].effects]
        words = [text.get_text() for text in axes.texts if "[" not in text.get_text()]
        judged = [[e.verdict if v.verdict != "not judged" else "" for e in v.effects] for v in of_network]
        assert words == [word for row in zip(*judged, strict=True) for word in row]
        assert all(f"{v.protocol}: {v.verdict}" in axes.get_title(loc="left") for v in of_network)
        assert axes.get_xscale() == "linear"
        assert axes.get_xlabel() == "points; right of 0: as claimed"
        margin = axes.patches[0].get_x(), axes.patches[0].get_x() + axes.patches[0].get_width()
        assert margin == (-0.25, 0.25)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [*protocols, "margin \u00b10.25 points: no difference if\nthe 90% interval lies inside"]


def test_a_caption_that_is_too_wide_takes_a_second_line():
    figure = Figure(figsize=(5.2, 4), dpi=150)
    words = (
        "20 networks on mnist, band: 95% prediction interval of one new network, cut at 0 and 100%, jaxablate 0.1.0 "
        * 2
    )
    bottom = figure.subplotpars.bottom
    styled(add_caption)(figure, "short")
    assert figure.subplotpars.bottom == bottom
    styled(add_caption)(figure, words)
    text = figure.texts[-1]
    assert text.get_text().split() == words.split()
    assert text.get_window_extent().x1 < figure.bbox.x1
    assert figure.subplotpars.bottom > bottom


def test_an_interval_that_reaches_far_does_not_squash_the_others():
    ends = {"near": (0.5, 0.2, 0.8), "nearer": (0.4, 0.2, 0.6), "far": (3.0, -94.0, 100.0)}
    effects = [Effect(label, "accuracy points", (), 9, *end, verdict="holds") for label, end in ends.items()]
    figure = _findings.comparisons([Verdict("paper", "net", "C1", "text", "undecided", 9, tuple(effects))], "")
    low, high = figure.axes[0].get_xlim()
    assert -10 < low < -0.25
    assert 0.8 < high < 10
    assert "+3 [-94, 100]" in texts_of(figure)


def test_undefined_effects_are_named():
    effect = Effect("label", "nat", (), 0, float("nan"))
    figure = _findings.comparisons([Verdict("paper", "net", "C8", "text", "undecided", 9, (effect,))], "")
    assert texts_of(figure) == ["undefined"]


def test_the_departures_sum_to_the_published_effect():
    def effect(mean):
        return Effect("layer1: balanced over zeros", "accuracy points", (), 9, mean)

    alone = {"mi_sign": -2.0, "fresh_subsets": 1.0, "nan_logs": 0.0}
    shapley = {"mi_sign": -3.5, "fresh_subsets": 0.004, "nan_logs": 13.25}
    change = VerdictChange(
        "net", "C3", "layer1: balanced over zeros", "accuracy points", effect(1.25), effect(11.004), (9.754, 9.0, 10.0),
        alone, shapley,
    )  # fmt: skip
    texts = texts_of(_findings.departures([change], "caption"))
    row = texts.index("C3, layer1: balanced over zeros (points)")
    assert texts[row + 1 : row + 7] == ["+1.25", "-3.50", "0", "+13.2", "+11.0", "+10.8"]
    assert texts[1:7] == ["paper", "mi\nsign", "fresh\nsubsets", "nan\nlogs", "published", "only\ntogether"]
    by_network = {"mi_sign": (-3.4, -3.6), "fresh_subsets": (1.0, -0.992), "nan_logs": (13.2, 13.3)}
    figure = _findings.departures([dataclasses.replace(change, shapley_by_network=by_network)], "")
    looks = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert (looks["-3.50"], looks["0"], looks["+13.2"]) == ("black", _findings.GREY, "black")
    assert len(figure.axes[0].patches) == 2, "a value whose interval contains 0 has no colour"
    additive = dataclasses.replace(change, alone={"mi_sign": 9.6, "fresh_subsets": 0.0, "nan_logs": 0.0})
    assert "+0.15" not in texts_of(_findings.departures([additive], "")), "smaller than the margin"


def test_the_mechanism_is_drawn_from_the_results(small_results):
    name = "3-layer-10-8-9"
    network = small_results[name].to_dataset()
    figure = _findings.shares(small_results, name, ["paper"], "caption")
    mean, _, _ = ja.layer_analysis.mean_and_interval(ja.layer_analysis.layer_shares(network))
    for axes, metric in zip(figure.axes, ja.metrics.METRICS, strict=True):
        for line, layer in zip(axes.lines, (1, 2, 3), strict=True):
            np.testing.assert_allclose(line.get_ydata(), mean.sel(ordering=f"{metric}_low", layer=layer))
    figure = _findings.correlations(small_results, [name], ["paper"], "caption")
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    summary = ja.layer_analysis.mean_and_interval(ja.layer_analysis.damage_correlations(network))
    expected, low, high = (part.transpose("scope", "score").values.ravel() for part in summary)
    np.testing.assert_allclose(dots, expected)
    bars = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 2][: len(low)]
    np.testing.assert_allclose(np.ravel(bars), np.stack([low.clip(-1), high.clip(max=1)], 1).ravel())


def test_random_curves_of_fresh_subsets_begin_at_one_neuron(small_results, results):
    node = small_results["published/2-layer-12-10"].to_dataset()
    assert node.attrs["first_step"] == 1
    assert small_results["2-layer-12-10"].attrs["first_step"] == 0
    published = xr.DataTree.from_dict({"/": xr.Dataset(attrs=small_results.attrs), "2-layer": node})
    (line, *_) = draw_figure(published, 11).axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    (line, *_) = draw_figure(results, 11).axes[0].lines
    assert line.get_xdata()[0] == 0


def test_bands_end_at_0_and_100_percent(small_results):
    network = small_results["3-layer-10-8-9"].to_dataset()
    accuracy = network["accuracy"].copy(deep=True)
    accuracy[0], accuracy[1] = 0.25, 0.75
    chart = order_chart("net", network.assign(accuracy=accuracy), "layer1")
    for line in chart.lines:
        assert (set(line.low), set(line.high)) == ({0.0}, {1.0})
        assert set(line.values) == {0.5}
    assert "band: 95% t-interval of the mean, cut at 0 and 100%." in chart.caption
    assert all(line.low.min() >= 0 and line.high.max() <= 1 for line in share_charts("net", network)[0].lines)
    losses = network["train_loss"].copy(deep=True)
    losses[0], losses[1] = 0.5, 1.5
    loss = training_chart("net", network.assign(train_loss=losses), "cost")
    assert loss.lines[0].low.max() < 0, "a loss is no fraction"
    assert "cut" not in loss.caption


def test_the_published_figure_4_says_what_it_shows(small_results):
    node = small_results["published/3-layer-10-8-9"].to_dataset()
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=small_results.attrs), "3-layer": node})
    axes = draw_figure(tree, 4).axes[0]
    assert axes.get_ylabel() == "H(T) + H(T|Y) (nats)"
    assert "ln 2: largest entropy of one bit" in [text.get_text() for text in axes.texts]
    assert [line.get_ydata()[0] for line in axes.lines] == [pytest.approx(0.6931471806)]
    assert draw_figure(tree, 3).axes[0].get_ylabel() == "Entropy (nats)"
    tree["3-layer"] = small_results["3-layer-10-8-9"]
    axes = draw_figure(tree, 4).axes[0]
    assert axes.get_ylabel() == "Mutual information (nats)"
    assert not axes.lines


@pytest.mark.slow
def test_curves_of_small_scopes_are_drawn_to_their_end():
    config = ja.StudyConfig(dataset="mnist5k", networks=((9, 4),), epochs=1, num_random_orders=2, steps="all")
    results = ja.run_study(config)
    results["2-layer"] = results["2-layer-9-4"]
    for number, steps in ((13, 9), (14, 4), (21, 13)):
        axes = draw_figure(results, number).axes[0]
        assert axes.get_xlim() == (0, steps)
        for line in axes.lines:
            assert line.get_xdata().tolist() == list(range(steps + 1))
            assert np.isfinite(line.get_ydata()).all()


@pytest.fixture
def as_published(small_results):
    """The published protocol's small results under the name of the paper's network."""
    node = small_results["published/2-layer-12-10"].to_dataset()
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=small_results.attrs), "2-layer": node})


def test_published_curves_lie_over_the_prediction_of_a_new_network(as_published):
    """Two networks: t(0.975, 1) = 12.7062, the standard deviation is |a - b| / sqrt(2), and sqrt(1 + 1/2)."""
    network = as_published["2-layer"].to_dataset()
    published = {"random, zeros": [94.0, 93.0, 50.0], "MI low first, balanced": [94.0, 92.0, 30.0]}
    random, ranked = compare_published(as_published, 7, published)
    accuracy = network["accuracy"].sel(scope="layer2").isel(step=slice(1, 4))
    ours = accuracy.sel(ordering="mutual_information_low", fill="scaled").transpose("seed", "step").values
    np.testing.assert_allclose(ranked.mean, ours.mean(axis=0))
    half = 12.7062047 * abs(ours[0] - ours[1]) / np.sqrt(2) * np.sqrt(1.5)
    np.testing.assert_allclose(ranked.high - ranked.mean, half, rtol=1e-6)
    np.testing.assert_allclose(ranked.mean - ranked.low, half, rtol=1e-6)
    assert ranked.area.published == pytest.approx(72)
    assert ranked.area.mean == pytest.approx(100 * ours.mean())
    areas = 100 * ours.mean(axis=1)
    assert ranked.area.high - ranked.area.mean == pytest.approx(
        12.7062047 * abs(areas[0] - areas[1]) / np.sqrt(2) * np.sqrt(1.5)
    )
    assert (ranked.end.published, ranked.end.mean) == (pytest.approx(30), pytest.approx(100 * ranked.mean[2]))
    inside = dataclasses.replace(ranked.end, published=ranked.end.low)
    assert inside.is_inside
    assert not dataclasses.replace(inside, published=inside.low - 0.1).is_inside
    # a published random curve is one draw, so one random order of each network predicts it
    one_draw = accuracy.sel(fill="zero", ordering="random_0")
    np.testing.assert_allclose(random.mean, one_draw.mean("seed"))
    axes = draw_published(as_published, 7, published).axes[0]
    named = {line.get_label(): line for line in axes.lines if line.get_label() in published}
    for name, values in published.items():
        np.testing.assert_allclose(named[name].get_ydata(), np.array(values) / 100)
        assert named[name].get_xdata().tolist() == [1, 2, 3]
    assert len(axes.lines) == 4
    assert len(axes.collections) == 2, "a band for each curve of ours, none for the published ones"


def test_published_curves_of_orders_have_the_direction_of_their_figure(as_published):
    names = ("random", "mutual information", "KL selectivity", "entropy")
    published = {name: [90.0, 80.0] for name in names}
    high, low = ({c.name: c.mean for c in compare_published(as_published, n, published)} for n in (11, 13))
    accuracy = as_published["2-layer"]["accuracy"].sel(scope="layer1", fill="scaled").isel(step=slice(1, 3))
    for score, name in zip(("mutual_information", "kl_selectivity", "entropy"), names[1:], strict=True):
        for means, direction in ((high, "high"), (low, "low")):
            expected = accuracy.sel(ordering=f"{score}_{direction}").mean("seed")
            np.testing.assert_allclose(means[name], expected)


@pytest.mark.parametrize(
    ("number", "published", "message"),
    [
        (5, {"random": [90.0]}, "figure: expected a number in 6..22, got 5"),
        (11, {"median": [90.0]}, "published: unknown 'median'|published: expected one of"),
        (11, {}, "published: expected curves of one length, got no curve"),
        (11, {"random": [90.0], "entropy": [90.0, 80.0]}, r"published: expected curves of one length, got \[1, 2\]"),
        (11, {"random": [90.0] * 7}, "published: expected 1 to 6 values of 'random'"),
        (15, {"random": [90.0]}, "figure 15: expected results with a 3-layer network"),
    ],
)
def test_bad_published_curves_are_refused(as_published, number, published, message):
    with raises_input_error(message):
        compare_published(as_published, number, published)


def test_one_network_predicts_nothing(results):
    with raises_input_error("results: one network has no prediction interval; train two or more"):
        compare_published(results, 11, {"random": [90.0]})


def test_scores_that_are_undefined_are_left_out(results):
    node = results["3-layer"].to_dataset().copy(deep=True)
    node["scores"].values[:, 1, node["layer"].values == 2] = np.nan
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "3-layer": node})
    axes = draw_figure(tree, 4).axes[0]
    assert len(axes.collections) == 2 + 1 + 2, "two violins, their quartiles, two clouds of neurons"
    names = [label.get_text() for label in axes.get_xticklabels()]
    silent = int((node["scores"].values[0, 0, node["layer"].values == 3] == 0).sum())  # the entropy of a constant code
    assert names == ["layer 1", "layer 2\n200 of 200 undefined", f"layer 3\n{silent} of 200 constant"]
    node["scores"].values[:, 1] = np.nan
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "3-layer": node})
    assert texts_of(draw_figure(tree, 4)) == ["undefined for every neuron"]


@pytest.mark.slow
def test_finding_figures_are_saved(small_results, tmp_path):
    files = save_finding_figures(small_results, ja.judge_claims(small_results), tmp_path)
    names = ["claims", "correlations", "layer_shares_2-layer-12-10", "layer_shares_3-layer-10-8-9"]
    names += [f"claim_{number}" for number in CLAIMS]
    assert sorted(file.name for file in files) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")
    )
    for file in files:
        assert file.stat().st_size > 5000


def test_findings_are_drawn_for_any_score(small_results):
    network = small_results["3-layer-10-8-9"].to_dataset()
    names = {name: name.replace("entropy", "incoming_norm") for name in network["ordering"].values.tolist()}
    network = network.assign_coords(
        score=["incoming_norm", *network["score"].values[1:]],
        ordering=[names[name] for name in network["ordering"].values],
    )
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=small_results.attrs), "net": network})
    titles = [axes.get_title(loc="left") for axes in _findings.shares(tree, "net", ["paper"], "").axes]
    assert titles[0] == "incoming norm, low first; paper"
    legend = _findings.correlations(tree, ["net"], ["paper"], "").axes[0].get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "incoming norm; paper"
