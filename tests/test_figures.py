"""Figures: the paper's catalogue, and that what is drawn is what the results hold."""

import dataclasses
import itertools

import numpy as np
import pytest
import xarray as xr
from helpers import raises_input_error
from matplotlib.image import imread

import jaxablate as ja
from jaxablate.claims import CLAIMS, VerdictChange
from jaxablate.figures import EXTRAS, FIGURES, _findings, draw_figure, save_figure, save_figures, save_finding_figures


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both networks of the paper, barely trained."""
    config = ja.StudyConfig(dataset="mnist5k", epochs=1, num_random_orders=3, steps=5)
    return ja.run_study(config)


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


def test_order_figures_draw_the_curves(results):
    node = results["2-layer"].to_dataset()
    lines = lines_of(draw_figure(results, 12))
    assert set(lines) == {"random (mean of 3)", "Entropy", "Mutual information", "KL selectivity"}
    accuracy = node["accuracy"].sel(scope="layer2", fill="mean").isel(seed=0)
    np.testing.assert_allclose(lines["KL selectivity"], accuracy.sel(ordering="kl_selectivity_high"))
    np.testing.assert_allclose(lines["random (mean of 3)"], accuracy[-3:].mean("ordering"))
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
    accuracy = results["2-layer"]["accuracy"].sel(scope="layer2", fill="mean").isel(seed=0)[-3:]
    low, high = np.quantile(accuracy, (0.1, 0.9), axis=0)
    points = band.get_paths()[0].vertices
    for step in range(6):
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


def test_the_forest_shows_every_effect_and_verdict(small_results):
    verdicts = ja.judge_claims(small_results)
    # verdicts that differ between protocols and networks, as these small ones hardly do
    words = itertools.cycle(("holds", "undecided", "does not hold", "holds", "does not hold"))
    verdicts = [dataclasses.replace(verdict, verdict=next(words)) for verdict in verdicts]
    figure = _findings.forest(verdicts, "caption")
    for axes, protocol, unit in zip(
        figure.axes, ("paper", "published") * 2, ("accuracy points",) * 2 + ("nat",) * 2, strict=True
    ):
        effects = [e for v in verdicts if v.protocol == protocol for e in v.effects if e.unit == unit]
        bars = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
        dots = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        known = [effect for effect in effects if effect.num_networks > 1]
        assert {(effect.low, effect.high) for effect in known} <= bars
        assert set(dots) >= {effect.mean for effect in known}
        assert len(dots) == len(effects)
        assert known
        words = [text.get_text() for text in axes.texts if text.get_text() in ("holds", "does not hold", "undecided")]
        of_panel = [v for v in verdicts if v.protocol == protocol and v.effects[0].unit == unit]
        assert words == [v.verdict for v in sorted(of_panel, key=lambda v: list(CLAIMS).index(v.claim))]
    networks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert networks[:4] == ["2-layer-12-10", "3-layer-10-8-9"] * 2
    assert any(text.startswith("C10. random pruning") for text in texts_of(figure))
    assert "caption" in [text.get_text() for text in figure.texts]


def test_the_departures_show_every_mean():
    means = {"paper": 1.25, "mi_sign": -2.0, "fresh_subsets": 1.0, "published": -3.0}
    verdicts = dict.fromkeys(means, "holds")
    flip = VerdictChange("net", "C3", "label", "accuracy points", means, verdicts, (-4.0, -5.0, -3.0), "mi_sign", 0.8)
    figure = _findings.departures([flip], "caption")
    assert texts_of(figure) == ["+1.2", "[-2.0]", "+1.0", "-3.0"]
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["paper", "mi_sign", "fresh_subsets", "published"]


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


def test_scores_that_are_undefined_are_left_out(results):
    node = results["3-layer"].to_dataset().copy(deep=True)
    node["scores"].values[:, 1, node["layer"].values == 2] = np.nan
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "3-layer": node})
    dots = draw_figure(tree, 4).axes[0].collections
    assert len(dots) == 2 + 1 + 2, "two violins, their quartiles, two clouds of neurons"
    node["scores"].values[:, 1] = np.nan
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "3-layer": node})
    assert texts_of(draw_figure(tree, 4)) == ["undefined for every neuron"]


@pytest.mark.slow
def test_finding_figures_are_saved(small_results, tmp_path):
    files = save_finding_figures(small_results, ja.judge_claims(small_results), tmp_path)
    names = ["claims", "correlations", "layer_shares_2-layer-12-10", "layer_shares_3-layer-10-8-9"]
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
