"""Tidy tables of results: every row against the labelled arrays, conditions, bounds."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import raises_input_error

import jaxablate as ja
from jaxablate.results import _tidy


@pytest.fixture(scope="module")
def curves(small_results):
    return ja.results.tidy(small_results)


@pytest.fixture(scope="module")
def conditioned(small_results):
    """The same networks below two conditions, as a study with axes arranges them."""
    nodes = {node.path: node.to_dataset() for node in small_results.subtree if node.data_vars}
    settings = {
        "l2=0 activation=relu": {"l2": 0, "activation": "relu", "networks": [[12, 10]]},
        "l2=0.1 activation=tanh": {"l2": 0.1, "activation": "tanh", "networks": [[8]]},
    }
    root = xr.Dataset(attrs={**small_results.attrs, "conditions": json.dumps(settings)})
    return xr.DataTree.from_dict(
        {"/": root, **{f"/{name}{path}": ds for name in settings for path, ds in nodes.items()}}
    )


def test_every_point_of_every_curve_has_a_row(small_results, curves):
    datasets = {
        (protocol, name): node.to_dataset()
        for protocol in ja.results.protocols_of(small_results)
        for name, node in ja.results.select_protocol(small_results, protocol).children.items()
    }
    assert len(curves) == sum(int((network["correct"] >= 0).sum()) for network in datasets.values())
    for row in curves.sample(300, random_state=0).itertuples():
        network = datasets[row.protocol, row.network]
        place = {"seed": row.seed, "scope": row.scope, "ordering": f"{row.ranking}_{row.direction}"}
        point = network.sel(place).sel(fill=row.fill, step=row.step)
        assert row.correct == point["correct"]
        assert row.accuracy == point["accuracy"] == row.correct / 1000
        ids = [int(network[name].sel(place).sel(rank=row.step)) if row.step else -1 for name in _tidy.ABLATED]
        ids[2] = -1 if ids[0] == -1 else ids[2]
        assert [-1 if value is pd.NA else value for value in row[9:12]] == ids
    assert (curves["ablated"].isna() == (curves["step"] == 0) | _is_fresh(curves)).all()
    assert {str(curves[name].dtype) for name in curves if curves[name].dtype.kind == "O"} == {"category"}


def _is_fresh(curves):
    """The published protocol draws a fresh random subset at every step."""
    return (curves["protocol"] == "published") & (curves["ranking"] == "random")


def test_scopes_that_end_early_have_fewer_rows(small_results):
    """With all steps, layers of other widths are padded with -1 and NaN."""
    network = small_results["2-layer-12-10"].to_dataset().copy(deep=True)
    network["correct"].loc[{"scope": "layer2", "step": slice(4, None)}] = -1
    network["accuracy"].loc[{"scope": "layer2", "step": slice(4, None)}] = np.nan
    table = ja.results.tidy(xr.DataTree(network, name="2-layer-12-10"))
    assert table.groupby("scope", observed=True)["step"].max().to_dict() == {"layer1": 6, "layer2": 3, "network": 6}
    assert table["accuracy"].notna().all()
    assert set(table["network"]) == {"2-layer-12-10"}


def test_a_selection_of_results_is_a_table_too(small_results, curves):
    node = small_results["published/3-layer-10-8-9"]
    table = ja.results.tidy(node.sel(ordering="entropy_low", fill="zero", seed=3).isel(step=slice(0, None, 3)))
    chosen = curves[
        (curves.protocol == "published") & (curves.network == "3-layer-10-8-9") & (curves.seed == 3)
        & (curves.ranking == "entropy") & (curves.direction == "low") & (curves.fill == "zero") & (curves.step % 3 == 0)
    ]  # fmt: skip
    assert (
        table.drop(columns="network")
        .astype(object)
        .equals(chosen.drop(columns="network").astype(object).reset_index(drop=True))
    )


def test_every_neuron_has_a_row(small_results):
    table = ja.results.tidy(small_results, "neurons")
    assert len(table) == 2 * 2 * (22 + 27)
    row = table[(table.protocol == "paper") & (table.network == "3-layer-10-8-9") & (table.seed == 3)].iloc[12]
    assert row[["site", "layer", "neuron", "neuron_in_site"]].tolist() == ["layer2", 2, 12, 2]
    network = small_results["3-layer-10-8-9"].sel(seed=3, neuron=12)
    for name in ("mean_activation", "single_correct", "single_damage"):
        assert row[name] == network[name]
    assert row["max_class_drop"] == network["single_class_drop"].max()
    for score in ("entropy", "mutual_information", "kl_selectivity"):
        assert row[score] == network["scores"].sel(score=score)


def test_scores_that_networks_lack_or_that_share_a_name(small_results):
    renamed, complete = (small_results[name].to_dataset() for name in ("2-layer-12-10", "3-layer-10-8-9"))
    renamed = renamed.isel(score=[0]).assign_coords(score=["single_damage"])
    table = ja.results.tidy(xr.DataTree.from_dict({"renamed": renamed, "complete": complete}), "neurons")
    first = table["network"] == "renamed"
    assert (table["score_single_damage"].notna() == first).all()
    assert (table["entropy"].isna() == first).all()
    np.testing.assert_array_equal(table.loc[first, "single_damage"], renamed["single_damage"].values.ravel())


@pytest.mark.parametrize("table", _tidy.TABLES)
def test_conditions_are_columns(conditioned, small_results, table):
    rows = ja.results.tidy(conditioned, table)
    assert list(rows)[:6] == ["condition", "l2", "activation", "networks", "protocol", "network"]
    plain = ja.results.tidy(small_results, table)
    for condition, l2, activation, networks in (
        ("l2=0 activation=relu", 0.0, "relu", "[[12, 10]]"), ("l2=0.1 activation=tanh", 0.1, "tanh", "[[8]]")
    ):  # fmt: skip
        chosen = rows[rows["condition"] == condition]
        assert chosen[["l2", "activation", "networks"]].drop_duplicates().values.tolist() == [
            [l2, activation, networks]
        ]
        pd.testing.assert_frame_equal(chosen.iloc[:, 4:].reset_index(drop=True), plain)
    node = ja.results.tidy(conditioned["l2=0.1 activation=tanh/published/2-layer-12-10"], table)
    assert set(node["l2"]) == {0.1}
    assert set(node["protocol"]) == {"published"}
    nameless = conditioned.copy()
    del nameless.attrs["conditions"]
    assert list(ja.results.tidy(nameless, table))[:2] == ["condition", "protocol"]


def test_too_many_rows_are_counted_and_not_built(small_results, monkeypatch):
    monkeypatch.setattr(_tidy, "MAX_ROWS", 3331)
    with raises_input_error(
        r"results: 3,332 rows are more than 3,331; select one network, such as results\['3-layer'\]"
    ):
        ja.results.tidy(small_results)
    monkeypatch.setattr(_tidy, "MAX_ROWS", 3332)
    assert len(ja.results.tidy(small_results)) == 3332


def test_what_is_no_study_is_refused(small_results):
    for wrong in (small_results["2-layer-12-10"].to_dataset(), xr.DataTree()):
        with raises_input_error("results: expected results of a study or a node of them, .* without networks"):
            ja.results.tidy(wrong)
    with raises_input_error("table: unknown 'scores'; choose one of curves, neurons"):
        ja.results.tidy(small_results, "scores")
