"""Make tidy tables of results: one row for each observation, one column for each label and value.

Input: results, or a node of them.
Output: a `pandas.DataFrame`.
Memory: about 50 bytes for each row of curves, and at most `MAX_ROWS` rows.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.results._labels import NO_NEURON, NOT_EVALUATED, conditions_of, neuron_numbers

TABLES = ("curves", "neurons")
MAX_ROWS = 20_000_000
"""Largest number of rows of a table."""

CURVE_DIMS = ("seed", "scope", "ordering", "fill", "step")
NEURON_DIMS = ("seed", "neuron")
ABLATED = ("ablated", "ablated_in_site", "ablated_layer")


def tidy(results: xr.DataTree, table: str = "curves") -> pd.DataFrame:
    """Return the curves or the neurons of a study, or of a grid of studies, as a tidy table.

    Args:
        results: from `run_study` or `load_results`, or a node of such results, for example `results["3-layer"]`.
        table: "curves" or "neurons".

    Returns:
        A data frame. Its columns have the names that the results use; texts are categoricals. Steps after the last
        neuron of a scope have no row. Both tables begin with

        - for a grid or one of its conditions: `condition`, and one column for each setting that varies. Any other tree
          with nodes above the networks that are not protocols has their names as `condition`.
        - `protocol`, `network`, `seed`.

        "curves" has one row for each point of each curve, and the columns

        - `scope`, `ranking`, `direction`, `fill`, `step` (number of ablated neurons),
        - `ablated`, `ablated_in_site`, `ablated_layer`: the neuron ablated at this step, by its id in the network and
          in its site, and its layer from 1. Missing at step 0, for steps of several neurons, and for orderings that
          draw a new subset at each step.
        - `correct`: number of correct test predictions; `accuracy`: test accuracy, a fraction.

        "neurons" has one row for each neuron, and the columns

        - `site` (name), `layer` (from 1), `neuron` and `neuron_in_site` (ids in the network and in the site),
        - `mean_activation` (in the unit of activations), `single_correct` (number of test predictions) and
          `single_damage` (in nats), as in `run_study`; `max_class_drop`: the largest entry of `single_class_drop`, NaN
          in results without it,
        - one column for each score, in nats for entropies and information. A score with the name of another column
          becomes `score_NAME`. Networks without the score have NaN.

    Raises:
        InputError: for an unknown table, an argument that is not results of a study, or more than 20 million rows.

    Example:
        >>> curves = ja.results.tidy(results)
        >>> layer1 = curves[(curves.scope == "layer1") & (curves.fill == "mean") & (curves.step == 6)]
        >>> layer1.groupby(["network", "ranking"], observed=True)["accuracy"].mean().shape
        (8,)
        >>> neurons = ja.results.tidy(results["2-layer-12-10"], "neurons")
        >>> neurons[["entropy", "single_damage"]].corr("spearman").shape
        (2, 2)
    """
    require_known("table", table, TABLES)
    is_tree = isinstance(results, xr.DataTree)  # a `Dataset` has forgotten the name of its network
    nodes = [node for node in results.subtree if "correct" in node.data_vars] if is_tree else []
    require(
        len(nodes) > 0,
        f"results: expected results of a study or a node of them, such as results['3-layer'], got "
        f"{type(results).__name__} without networks",
    )
    networks = [_Rows(node.to_dataset(), CURVE_DIMS if table == "curves" else NEURON_DIMS) for node in nodes]
    # The rows are counted before anything is built: a study can have billions of combinations.
    num_rows = sum(network.count for network in networks)
    require(
        num_rows <= MAX_ROWS,
        f"results: {num_rows:,} rows are more than {MAX_ROWS:,}; select one network, such as results['3-layer'], or "
        "fewer points, such as results.isel(step=slice(0, None, 10))",
    )
    columns = _leading_columns(nodes, [network.count for network in networks])
    (_add_curves if table == "curves" else _add_neurons)(columns, networks)
    return pd.DataFrame(columns, copy=False)


class _Rows:
    """The rows of one network's table, read column by column with `values`.

    Attributes:
        network: the dataset, with every dimension of the table.
        count: number of rows.
    """

    def __init__(self, network: xr.Dataset, dims: Sequence[str]):
        # `results.sel(fill="zero")` leaves a scalar label; it becomes a dimension of length 1 again
        scalars = [dim for dim in dims if dim not in network.dims]
        self.network = network.expand_dims(scalars) if scalars else network
        self._sizes = {dim: self.network.sizes[dim] for dim in dims}
        # scopes with fewer steps than the longest are padded; the padding gets no rows
        counts = self.network["correct"].variable if dims == CURVE_DIMS else xr.Variable((), 0)
        self._mask = counts.set_dims(self._sizes).transpose(*dims).values != NOT_EVALUATED
        self.count = int(self._mask.sum())

    def values(self, variable: xr.DataArray | xr.Variable) -> np.ndarray:
        """Return a variable's entry for each row [row]."""
        # `set_dims` repeats nothing in memory; only the entries of the rows are copied
        variable = variable.variable if isinstance(variable, xr.DataArray) else variable
        return variable.set_dims(self._sizes).transpose(*self._sizes).values[self._mask]


def _column(networks: Sequence[_Rows], variables: Iterable[xr.DataArray | xr.Variable]) -> np.ndarray:
    """Return a column [row] from one variable for each network."""
    return np.concatenate([rows.values(variable) for rows, variable in zip(networks, variables, strict=True)])


def _numbers(networks: Sequence[_Rows], name: str) -> np.ndarray:
    """Return the column of a variable of numbers."""
    return _column(networks, (rows.network[name] for rows in networks))


def _texts(networks: Sequence[_Rows], name: str) -> pd.Categorical:
    """Return the column of a label as categories in the order of their first appearance."""
    # a label can be a scalar, for example the ranking after `results.sel(ordering="entropy_low")`
    labels = dict.fromkeys(label for rows in networks for label in np.ravel(rows.network[name]).tolist())
    code_of = {label: code for code, label in enumerate(labels)}

    def codes(variable: xr.DataArray) -> xr.Variable:
        values = np.array([code_of[label] for label in np.ravel(variable).tolist()], np.int32)
        return xr.Variable(variable.dims, values.reshape(variable.shape))

    return pd.Categorical.from_codes(_column(networks, (codes(rows.network[name]) for rows in networks)), list(labels))


def _leading_columns(nodes: Sequence[xr.DataTree], counts: Sequence[int]) -> dict[str, Any]:
    """Return the columns that follow from a network's path in the tree: condition, settings, protocol, network."""
    conditions = conditions_of(nodes[0].root)
    protocols = [str(node.attrs["protocol"]) for node in nodes]
    # a node that was cut out of its tree has a name and no path
    paths = [[part for part in node.path.split("/") if part] or [str(node.name or "")] for node in nodes]
    # A path is [condition /] [protocol /] network; without the protocol, the condition remains.
    above = [[part for part in path[:-1] if part != protocol] for path, protocol in zip(paths, protocols, strict=True)]
    columns: dict[str, Any] = {}
    if any(above):
        names = ["/".join(parts) for parts in above]
        columns["condition"] = _repeat_texts(names, counts)
        settings = [conditions.get(name, {}) for name in names]
        for setting in dict.fromkeys(itertools.chain.from_iterable(settings)):
            columns[setting] = _setting_column([values.get(setting) for values in settings], counts)
    columns["protocol"] = _repeat_texts(protocols, counts)
    columns["network"] = _repeat_texts([path[-1] for path in paths], counts)
    return columns


def _setting_column(values: Sequence[Any], counts: Sequence[int]) -> Any:
    """Return the column of a setting: numbers if all values are numbers or None, otherwise categories of texts."""
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return np.repeat(np.array([np.nan if value is None else value for value in values]), counts)
    return _repeat_texts([value if isinstance(value, str) else json.dumps(value) for value in values], counts)


def _repeat_texts(texts: Iterable[str], counts: Sequence[int]) -> pd.Categorical:
    """Return a column with each text as often as its count says."""
    texts = list(texts)
    labels = list(dict.fromkeys(texts))
    return pd.Categorical.from_codes(np.repeat([labels.index(text) for text in texts], counts), labels)


def _add_curves(columns: dict[str, Any], networks: Sequence[_Rows]) -> None:
    """Add the columns of "curves" to the leading ones."""
    columns["seed"] = _numbers(networks, "seed")
    for name in ("scope", "ranking", "direction", "fill"):
        columns[name] = _texts(networks, name)
    columns["step"] = _column(networks, (neuron_numbers(rows.network) for rows in networks))
    is_missing = _column(networks, (_at_step(rows.network, "ablated") for rows in networks)) == NO_NEURON
    for name in ABLATED:
        ids = _column(networks, (_at_step(rows.network, name) for rows in networks))
        # Each column owns its mask: a change of one column must not reach the next.
        columns[name] = pd.arrays.IntegerArray(ids, is_missing.copy())
    for name in ("correct", "accuracy"):
        columns[name] = _numbers(networks, name)


def _at_step(network: xr.Dataset, name: str) -> xr.DataArray:
    """Return the neuron that each step ablates: the neuron at the rank with the step's number; none at step 0."""
    by_rank = network[name].reset_coords(drop=True).rename(rank="step")
    # xarray annotates `fill_value` for its default alone
    at_step = by_rank.reindex(step=network["step"].values, fill_value=NO_NEURON)  # pyright: ignore[reportArgumentType]
    # As long as a step's number is the number of ablated neurons, each step has ablated one.
    return at_step.where(neuron_numbers(network).reset_coords(drop=True) == network["step"], NO_NEURON)


def _add_neurons(columns: dict[str, Any], networks: Sequence[_Rows]) -> None:
    """Add the columns of "neurons" to the leading ones."""
    columns["seed"] = _numbers(networks, "seed")
    columns["site"] = _texts(networks, "site")
    for name in ("layer", "neuron", "neuron_in_site", "mean_activation", "single_correct", "single_damage"):
        columns[name] = _numbers(networks, name)
    columns["max_class_drop"] = _column(networks, (_max_class_drop(rows.network) for rows in networks))
    for score in dict.fromkeys(name for rows in networks for name in np.ravel(rows.network["score"]).tolist()):
        name = score
        # A user's score may have any name, for example `layer` or even `score_layer`.
        while name in columns:
            name = f"score_{name}"
        columns[name] = _column(networks, (_score(rows.network, score) for rows in networks))


def _max_class_drop(network: xr.Dataset) -> xr.DataArray:
    """Return the largest fall of the accuracy within a class for each neuron (seed, neuron)."""
    if "single_class_drop" not in network:  # earlier results
        return xr.full_like(network["single_damage"], np.nan)
    drops = network["single_class_drop"]
    return drops.max("class") if "class" in drops.dims else drops


def _score(network: xr.Dataset, score: str) -> xr.DataArray:
    """Return a score of a network (seed, neuron); NaN if the network lacks it."""
    values = network["scores"] if "score" in network.dims else network["scores"].expand_dims("score")
    return values.reindex(score=[score]).isel(score=0, drop=True)
