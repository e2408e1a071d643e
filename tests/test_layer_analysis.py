"""The mechanism behind whole-network rankings, by hand."""

import numpy as np
import pytest
from helpers import logits64
from scipy import special, stats

import jaxablate as ja


@pytest.fixture(scope="module")
def node(small_results):
    return small_results["3-layer-10-8-9"].to_dataset()


def test_layer_shares_count_neurons(node):
    shares = ja.layer_analysis.layer_shares(node)
    assert shares.dims == ("seed", "ordering", "rank", "layer")
    assert shares.sizes["ordering"] == 9
    for ordering in ("entropy_low", "random_1"):
        order = node["ablated"].sel(scope="network", ordering=ordering).values[1].tolist()
        for rank in range(1, 7):
            expected = [sum(lo <= j < hi for j in order[:rank]) / rank for lo, hi in ((0, 10), (10, 18), (18, 27))]
            got = shares.sel(ordering=ordering, rank=rank).values[1]
            np.testing.assert_allclose(got, expected)


def test_fresh_subsets_have_no_order_to_share_out(small_results):
    published = small_results["published/3-layer-10-8-9"].to_dataset()
    assert set(ja.layer_analysis.layer_shares(published)["ordering"].values) == {
        f"{metric}_{way}" for metric in ja.metrics.METRICS for way in ("low", "high")
    }


def test_single_damage_is_the_rise_of_the_loss(node, small_model, mnist5k):
    images, labels = mnist5k.test.images, mnist5k.test.labels
    fill = np.concatenate(
        [layer.mean(axis=0) for layer in ja.record_activations(small_model, mnist5k.validation.images)]
    )

    def loss(keep: np.ndarray) -> float:
        log_p = special.log_softmax(logits64(small_model, images, keep, fill), axis=1)
        return -log_p[np.arange(len(labels)), labels].mean()

    expected = [loss(np.arange(27) != neuron) - loss(np.ones(27)) for neuron in range(27)]
    np.testing.assert_allclose(node["single_damage"].values[0], expected, rtol=0, atol=2e-6)


def test_correlations_equal_ranked_pearson(node):
    correlations = ja.layer_analysis.damage_correlations(node)
    damage = node["single_damage"].values
    for i, (start, stop) in enumerate(((0, 10), (10, 18), (18, 27), (0, 27))):
        for j, metric in enumerate(ja.metrics.METRICS):
            ranks = [stats.rankdata(a[1, start:stop]) for a in (node["scores"].sel(score=metric).values, damage)]
            assert correlations.values[1, j, i] == pytest.approx(np.corrcoef(*ranks)[0, 1]), (i, metric)


def test_undefined_scores_and_ties(node):
    changed = node.copy(deep=True)
    changed["scores"].values[0, 0, :3] = np.nan
    changed["scores"].values[0, 1, :10] = 0.25
    changed["single_damage"].values[1, 10:18] = 7
    correlations = ja.layer_analysis.damage_correlations(changed)
    damage = node["single_damage"].values[0, 3:10]
    ranks = stats.rankdata(node["scores"].values[0, 0, 3:10]), stats.rankdata(damage)
    assert correlations.values[0, 0, 0] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.isnan(correlations.values[0, 1, 0]), "all scores equal"
    assert np.isnan(correlations.values[1, :, 1]).all(), "all damage equal"
    mean, low, high = ja.layer_analysis.mean_and_interval(correlations)
    assert mean.values[1, 0] == low.values[1, 0] == high.values[1, 0] == correlations.values[1, 1, 0], (
        "one network left"
    )
    assert mean.dims == ("score", "scope")


def test_mean_and_interval_by_hand(node):
    mean, low, high = ja.layer_analysis.mean_and_interval(ja.results.auc(node))
    values = ja.results.auc(node).values
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(high - mean, 12.7062047 * np.abs(values[1] - values[0]) / 2, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(mean - low, high - mean, atol=1e-10)


def test_auc_leaves_the_intact_network_out(node):
    np.testing.assert_allclose(ja.results.auc(node), 100 * node["accuracy"].values[..., 1:].mean(axis=-1))
