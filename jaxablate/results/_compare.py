"""Compare the networks of two runs, two kinds of networks, or the orders in every condition of a grid.

Input: results, or nodes of results.
Output: differences with intervals and p-values, as an `xarray.DataTree` or an `xarray.Dataset`.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from jaxablate._checks import InputError, describe_value, require, require_known
from jaxablate.histograms import constant_codes
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import PAPER
from jaxablate.results._labels import (
    NETWORK_SCOPE,
    RANDOM,
    all_protocols,
    neuron_numbers,
    protocols_of,
    require_results,
    select_protocol,
    studies_of,
)
from jaxablate.results._summaries import auc as network_auc
from jaxablate.results._summaries import balanced_fill, last_steps
from jaxablate.statistics import (
    auc,
    estimate,
    first_step_below,
    holm,
    normalized_auc,
    paired_difference,
    unpaired_difference,
)

Measure = Callable[[xr.Dataset], xr.DataArray]


def compare(first: xr.DataTree, second: xr.DataTree, *, by: str | Measure = "auc") -> xr.DataTree:
    """Compare independently trained networks of two results: first minus second.

    The networks are paired by seed if both results come from the same data, the same split and the same seeds, since a
    seed sets the initial weights and the order of the examples. Otherwise two groups of unrelated networks are
    compared (Welch). The attribute `comparison` of the result says which, and why. For your own models, the seeds
    are only labels: give related models the same seed.

    Args:
        first, second: results from `run_study` or `load_results`; every network with the same name and protocol in both
            is compared. Or two nodes, such as `results["2-layer"]` and `results["3-layer"]`.
        by: the compared quantity, measured for each network. Its values for random orders are averaged.

            - "auc": area under the curve in percent, over the steps that both have.
            - "normalized_auc": as in `ja.statistics.normalized_auc`, over all steps of each scope; needs
              `steps="all"`. A_all is the accuracy with the whole scope bias balanced, also for the fill "zero".
            - "first_step_below:5": number of ablated neurons at which accuracy first lies 5 points below the intact
              network, or another number of points. A curve that never falls that low within the K steps that both have
              counts as K + 1, so the true difference can be larger.
            - a function from the dataset of a network to an `xarray.DataArray` with the dimension `seed`, for your own
              question. NaN and infinite values are left out.

    Returns:
        A tree with the compared networks, under the same paths as in the arguments; for two nodes, at the root. Each
        dataset has, over the scopes, orderings and fills that both networks have:

        - `difference`: mean of first minus mean of second.
        - `low`, `high`: ends of its 95% t-interval; NaN for fewer than two networks.
        - `p_value`: p-value of the two-sided t-test that the difference is 0.
        - `p_holm`: `p_value`, corrected by Holm's method over all comparisons of the dataset. To ask one question, pass
          a function that measures nothing else.
        - `num_networks`: number of pairs, or of networks in the smaller of two unpaired groups.

    Raises:
        InputError: for arguments that are not results, have no network in common or nothing in common to compare; for
            different `steps` if one is a percentage; for an unknown `by`; or for curves that end before the last
            neuron if `by` is "normalized_auc".

    Example:
        >>> comparison = ja.compare(results["2-layer-12-10"], results["3-layer-10-8-9"])
        >>> comparison.attrs["comparison"], comparison["difference"].dims
        ('paired by seed', ('scope', 'ordering', 'fill'))
        >>> both = results["2-layer-12-10"], results["published/2-layer-12-10"]
        >>> ja.compare(*both, by=lambda network: network["single_damage"].mean("neuron"))["num_networks"].item()
        2
    """
    points = _points(by)
    sources = [_attrs_of_run(name, tree) for name, tree in (("first", first), ("second", second))]
    configs = [json.loads(attrs["config"]) for attrs in sources]
    # what two runs must share, in addition to the seeds, for their networks to be paired
    runs = [
        {"data": json.loads(attrs["dataset_sha256"]), "split seeds": config.get("split_seed")}
        for attrs, config in zip(sources, configs, strict=True)
    ]
    steps = [config.get("steps") for config in configs]
    require(
        steps[0] == steps[1] or not any("%" in str(setting) for setting in steps),
        f"second: its steps are {steps[1]!r}, and the first has {steps[0]!r}; run both studies with the same steps",
    )
    # Paths are relative to the arguments: two nodes of different names both have the path "." and are compared.
    networks, networks2 = (
        {node.relative_to(tree): node.to_dataset() for node in tree.subtree if "accuracy" in node.data_vars}
        for tree in (first, second)
    )
    common = [path for path in networks if path in networks2]
    require(
        len(common) > 0,
        f"second: no network ({', '.join(networks2)}) has the name and protocol of one in the first "
        f"({', '.join(networks)}); pass two nodes, such as results['2-layer'] and results['3-layer']",
    )
    differing = [name for name in runs[0] if runs[0][name] != runs[1][name]]
    return xr.DataTree.from_dict(
        {path: _compare(networks[path], networks2[path], differing, by, points) for path in common}
    )


def _points(by: object) -> float:
    """Return the points of "first_step_below:POINTS", and NaN for every other valid `by`.

    Raises:
        InputError: for an unknown `by`.
    """
    if callable(by) or (isinstance(by, str) and by in ("auc", "normalized_auc")):
        return float("nan")
    name, _, text = by.partition(":") if isinstance(by, str) else ("", "", "")
    try:
        points = float(text)
    except ValueError:
        # out of range, so the check below reports the text
        points = 0.0
    require(
        name == "first_step_below" and 0 < points < 100,
        f"by: unknown {describe_value(by)}; choose auc, normalized_auc, first_step_below:POINTS (above 0) or a "
        "function",
    )
    return points


def _attrs_of_run(argument: str, tree: xr.DataTree) -> dict[str, Any]:
    """Return the attributes of the run that a tree belongs to.

    Raises:
        InputError: unless the tree belongs to the results of a study.
    """
    # A node has no attributes of the run; the nearest node above that has them belongs to the study.
    nodes = [tree, *tree.parents] if isinstance(tree, xr.DataTree) else []
    attrs = next((node.attrs for node in nodes if {"dataset_sha256", "config"} <= set(node.attrs)), {})
    require(
        bool(attrs),
        f"{argument}: expected results of a study or a node of them, such as results['3-layer'], got "
        f"{type(tree).__name__} without checksums and settings",
    )
    return {str(name): value for name, value in attrs.items()}


def _compare(
    first: xr.Dataset, second: xr.Dataset, differing: list[str], by: str | Measure, points: float
) -> xr.Dataset:
    """Return the comparison of two networks; `differing` names what differs between their runs."""
    if set(first["seed"].values) != set(second["seed"].values):
        differing = [*differing, "seeds"]
    # (scope, step): the steps that both networks have; an operation on two arrays keeps their common coordinates
    shared = _steps(first) & _steps(second)
    measured = [_values(network, by, points, shared) for network in (first, second)]
    try:
        values, values2 = xr.align(*measured, join="inner", exclude="seed")
        values2 = values2.transpose(*values.dims)
    except ValueError as error:
        raise InputError(f"by: the values of the two networks have different dimensions ({error})") from None
    require(values.size > 0, "second: it has no scope, ordering and fill of the first; compare other networks")
    if differing:
        estimated = unpaired_difference(values.values, values2.values)
    else:
        # Both have the same seeds, but perhaps in another order.
        estimated = paired_difference(values.values, values2.sel(seed=values["seed"]).values)
    low, high = estimated.interval()
    p_value = np.asarray(estimated.p_value)
    units = values.attrs.get("units", "1")
    variables = {
        "difference": (estimated.mean, "mean of the first minus mean of the second", units),
        "low": (low, "lower end of the 95% t-interval of the difference", units),
        "high": (high, "upper end of the 95% t-interval of the difference", units),
        "p_value": (p_value, "p-value of the two-sided t-test that the difference is 0", "1"),
        "p_holm": (holm(p_value.ravel()).reshape(p_value.shape), "p-value corrected by Holm's method", "1"),
        "num_networks": (estimated.num_networks, "number of pairs, or of networks in the smaller group", "1"),
    }
    dims = values.dims[1:]
    return xr.Dataset(
        {
            name: (dims, array, {"long_name": long_name, "units": units})
            for name, (array, long_name, units) in variables.items()
        },
        coords={name: values[name] for name in dims if name in values.coords},
        attrs={
            "by": by if isinstance(by, str) else getattr(by, "__name__", repr(by)),
            "comparison": f"unpaired (Welch): the {' and the '.join(differing)} differ"
            if differing
            else "paired by seed",
        },
    )


def _steps(network: xr.Dataset) -> xr.DataArray:
    """Return True for the steps of each scope, bool (scope, step); False after its last step."""
    return network["accuracy"].notnull().all(("seed", "ordering", "fill"))


def _values(network: xr.Dataset, by: str | Measure, points: float, shared: xr.DataArray) -> xr.DataArray:
    """Return the values (seed, ...) that are compared, with random orders averaged.

    Raises:
        InputError: if a function does not return an array with the dimension `seed`, or if "normalized_auc" gets
            curves that end before the last neuron.
    """
    curves = network["accuracy"].transpose(..., "step")
    values = curves.isel(step=0, drop=True)
    if callable(by):
        values = by(network)
        require(
            isinstance(values, xr.DataArray) and values.sizes.get("seed") == network.sizes["seed"],
            f"by: expected a DataArray with the dimension seed ({network.sizes['seed']}) from the function, got "
            f"{type(values).__name__} {dict(getattr(values, 'sizes', {}))}",
        )
        values = values.astype(np.float64).assign_coords(seed=network["seed"])
    elif by == "normalized_auc":
        values = values.copy(data=normalized_auc(curves.values, _all_ablated(network, curves)))
    else:
        # `where` keeps the scopes and steps of `shared`
        curves = curves.where(shared).transpose(..., "step")
        values = curves.isel(step=0, drop=True)
        if by == "auc":
            values = values.copy(data=auc(curves.values)).assign_attrs(units="%")
        else:
            steps = first_step_below(curves.values, points)
            last = np.isfinite(curves.values).sum(axis=-1) - 1
            # As numbers of ablated neurons: K + 1 after the K of the last step.
            numbers = neuron_numbers(network).where(shared)
            place = values.copy(data=np.where(np.isfinite(steps), steps, last).astype(int))
            values = values.copy(data=numbers.isel(step=place).transpose(*place.dims).values + np.isinf(steps))
    return _average_random(network, values).transpose("seed", ...)


def _all_ablated(network: xr.Dataset, curves: xr.DataArray) -> np.ndarray:
    """Return the accuracy with a whole scope ablated and bias balanced, as fractions that broadcast to the curves.

    Raises:
        InputError: unless the curves continue to the last neuron of every scope.
    """
    last, _ = last_steps(network, "by: normalized_auc")
    balanced = curves.sel(fill=[balanced_fill(network)])
    # a scope's last step ablates all its neurons, so that it does not depend on the ordering
    return balanced.isel(step=last).transpose(*curves.dims[:-1]).values


def _average_random(network: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Return the values with the mean over all random orderings as one ordering, "random"."""
    if "ordering" not in values.dims:
        return values
    # Random orders repeat one treatment. As several orderings they would enter Holm's correction as several tests.
    random = network["ordering"].values[network["ranking"].values == RANDOM]
    values = values.drop_vars(("ranking", "direction"), errors="ignore")
    names = [RANDOM if name in random else str(name) for name in values["ordering"].values]
    # groups are sorted by name, so the order of the results is restored
    return values.assign_coords(ordering=names).groupby("ordering").mean().sel(ordering=list(dict.fromkeys(names)))


def compare_conditions(results: xr.DataTree, protocol: str = PAPER.name) -> xr.Dataset:
    """Compare the orders of ablation within each network, in every condition of a grid.

    The compared quantity is the area under the curve of the whole network in percent, with bias balancing. It averages
    over all steps of a condition, so conditions with different numbers of steps cannot be compared. Differences are
    paired: each is taken within a network, with its random orders averaged.

    Args:
        results: results of a grid, from `run_study` or `load_results`. Results of one study count as a grid of one
            condition with the name "".
        protocol: the protocol whose results are compared.

    Returns:
        A dataset over condition, network and comparison, without the conditions that lack the protocol. A comparison is
        a difference of two areas:

        - "entropy_low - random", and the same for every other score and direction. It is positive if the order costs
          less accuracy than random orders.
        - "entropy_low - entropy_high", and the same for every other score: low values first minus high values first.
        - "mean - zero" ("scaled - zero" if the protocol scales by the firing rate): random orders with bias balancing
          minus random orders with zeros.

        The variables are

        - `difference`, `low`, `high` (condition, network, comparison): mean over networks in accuracy points, and the
          ends of its 95% t-interval. `low` and `high` are NaN for fewer than two networks.
        - `p_holm` (condition, network, comparison): p-value of the two-sided t-test that the difference is 0, corrected
          by Holm's method over the comparisons of one network in one condition, and not over conditions.
        - `accuracy`, `accuracy_low`, `accuracy_high` (condition, network): test accuracy of the intact network in
          percent, mean over networks and ends of the 95% t-interval.
        - `constant` (condition, network): percentage of neurons whose code is the same for all validation examples,
          mean over networks.
        - `num_networks` (condition, network): number of networks, one for each seed.

        A condition that lacks a network or a score has NaN there.

    Raises:
        InputError: for a protocol that is not in the results.

    Example:
        >>> ja.results.compare_conditions(results)["difference"].dims
        ('condition', 'network', 'comparison')
    """
    require_results(results)
    require_known("protocol", protocol, all_protocols(results))
    rows = [
        compare_orders(node.to_dataset()).assign_coords(condition=condition, network=name)
        for condition, study in studies_of(results).items()
        if protocol in protocols_of(study)
        for name, node in select_protocol(study, protocol).children.items()
    ]
    # An outer join fills NaN in for networks and scores that a condition lacks.
    joined = xr.merge([row.expand_dims(("condition", "network")) for row in rows], join="outer", compat="no_conflicts")
    # merging has sorted the coordinates; their order in the results is restored
    order = {
        name: dict.fromkeys(str(label) for row in rows for label in np.atleast_1d(row[name])) for name in joined.dims
    }
    return joined.sel({name: list(labels) for name, labels in order.items()}).assign_attrs(protocol=protocol)


def compare_orders(network: xr.Dataset, scope: str = NETWORK_SCOPE) -> xr.Dataset:
    """Return the comparisons of one network in one condition and scope, as in `compare_conditions`."""
    balanced = balanced_fill(network)
    areas = _average_random(network, network_auc(network).sel(scope=scope))
    areas = areas.transpose("seed", "fill", "ordering")
    rankings = dict.fromkeys(str(ranking) for ranking in network["ranking"].values if ranking != RANDOM)
    low, high = ([f"{ranking}_{direction}" for ranking in rankings] for direction in DIRECTIONS)
    directions = list(zip(low, high, strict=True))
    pairs = [(name, RANDOM) for both in directions for name in both] + directions
    first, second = (areas.sel(fill=balanced, ordering=list(names)) for names in zip(*pairs, strict=True))
    random = areas.sel(ordering=RANDOM)
    balancing = (random.sel(fill=balanced) - random.sel(fill="zero")).values[:, None]
    effect = estimate(np.concatenate([first.values - second.values, balancing], axis=1))
    ends = effect.interval()
    # At step 0 nothing is ablated, so any scope, ordering and fill gives the accuracy of the intact network.
    intact = estimate(100 * network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values)
    counts = network["joint_counts"].transpose("seed", "neuron", "class", "code").values
    constant = np.stack([constant_codes(of_seed) for of_seed in counts])
    return xr.Dataset(
        {
            "difference": ("comparison", effect.mean, {"long_name": "difference of areas", "units": "points"}),
            "low": ("comparison", ends[0], {"long_name": "lower end of the 95% interval", "units": "points"}),
            "high": ("comparison", ends[1], {"long_name": "upper end of the 95% interval", "units": "points"}),
            "p_holm": ("comparison", holm(effect.p_value), {"long_name": "corrected p-value", "units": "1"}),
            "accuracy": ((), intact.mean, {"long_name": "test accuracy of the intact network", "units": "%"}),
            "accuracy_low": ((), intact.interval()[0], {"long_name": "lower end of the 95% interval", "units": "%"}),
            "accuracy_high": ((), intact.interval()[1], {"long_name": "upper end of the 95% interval", "units": "%"}),
            "constant": ((), 100 * constant.mean(), {"long_name": "neurons with a constant code", "units": "%"}),
            "num_networks": ((), intact.num_networks, {"long_name": "number of networks", "units": "1"}),
        },
        coords={"comparison": [*map(" - ".join, pairs), f"{balanced} - zero"]},
    )
