"""Arrange the results of a grid for its page; `compare_conditions` computes the numbers.

Input: results of a grid.
Output: a dictionary of the values in the template `grid.html`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from jaxablate.charts import INTERVAL, comparison_name, names_of, order_chart
from jaxablate.protocols import shown_protocols
from jaxablate.report._intervals import IntervalAxis
from jaxablate.report._sections import duration, provenance_of
from jaxablate.results import NETWORK_SCOPE, compare_conditions, conditions_of, protocols_of, select_protocol
from jaxablate.results._labels import all_protocols, studies_of


def grid_page(results: xr.DataTree) -> dict[str, Any]:
    """Return the values in the template `grid.html`, by name."""
    conditions, studies = conditions_of(results), studies_of(results)
    protocols = shown_protocols(all_protocols(results))
    compared = {protocol: compare_conditions(results, protocol) for protocol in protocols}
    settings, provenance = list(next(iter(conditions.values()))), provenance_of(results)
    # protocols of one condition share its networks
    num_networks = {
        (condition, network): node.sizes["seed"]
        for condition, study in studies.items()
        for network, node in select_protocol(study, protocols_of(study)[0]).children.items()
    }
    return {
        "conditions": conditions,
        "settings": ", ".join(name.replace("_", " ") for name in settings),
        "cards": [
            ("Data", results.attrs["dataset"], results.attrs["dataset_origin"]),
            ("Conditions", str(len(conditions)), "every combination of the settings " + ", ".join(settings)),
            (
                "Networks",
                str(sum(num_networks.values()) // (len(conditions) if provenance["is_passed"] else 1)),
                f"{max(num_networks.values())} of each kind, the same in each condition; not trained by this study"
                if provenance["is_passed"]
                else f"{max(num_networks.values())} of each kind in each condition",
            ),
            ("Time", duration(float(results.attrs["seconds"])), f"to compute it on {results.attrs['device']}"),
        ],
        "interval_words": INTERVAL,
        "rows": _rows(conditions, compared),
        "blocks": [
            _comparisons(data, network, protocol if len(protocols) > 1 else "", is_passed=provenance["is_passed"])
            for protocol, data in compared.items()
            for network in names_of(data, "network")
        ],
        "curves": _curves(studies, protocols),
        "provenance": provenance,
    }


def _rows(conditions: Iterable[str], compared: Mapping[str, xr.Dataset]) -> list[dict[str, str]]:
    """Return the rows of the table of conditions and networks; of several protocols, a row is of the first."""
    rows = []
    for condition in conditions:
        with_condition = [data for data in compared.values() if condition in data["condition"].values]
        if not with_condition:
            continue
        # All protocols of a condition have the same networks, so the accuracies agree.
        data = with_condition[0]
        for network in names_of(data, "network"):
            cell = data.sel(condition=condition, network=network)
            mean, low, high = (float(cell[name]) for name in ("accuracy", "accuracy_low", "accuracy_high"))
            if mean == mean:  # a condition may lack a network
                interval = f" [{low:.2f}, {high:.2f}]" if low == low else ""
                constant = f"{float(cell['constant']):.1f}"
                rows.append(
                    {
                        "condition": condition,
                        "network": network,
                        "accuracy": f"{mean:.2f}{interval}",
                        "constant": constant,
                    }
                )
    return rows


def _comparisons(data: xr.Dataset, network: str, protocol: str, *, is_passed: bool) -> dict[str, Any]:
    """Return the intervals of a network for every comparison and condition, on one axis."""
    chosen = data.sel(network=network).dropna("condition", subset=["accuracy"])
    axis = IntervalAxis(chosen)
    comparisons = {}
    for comparison in names_of(chosen, "comparison"):
        conditions = names_of(chosen, "condition")
        cells = [(name, chosen.sel(condition=name, comparison=comparison)) for name in conditions]
        comparisons[comparison_name(comparison)] = axis.rows(cells)
    # only `jaxablate reproduce` writes the table, and it trains its networks
    protocol_name = data.attrs["protocol"]
    table = f"compare_conditions(results, {protocol_name!r})" if is_passed else f"comparisons_{protocol_name}.csv"
    return {
        "title": f"{network} network" + (f", protocol {protocol}" if protocol else ""),
        "see": "Difference of the areas under the curves of the whole network in accuracy points, bias balanced: mean "
        f"over networks and {INTERVAL}. Right of the line, the first order costs less accuracy than the second, or "
        "bias balancing costs less than zeros. All intervals of a network have one scale. An area averages over all "
        "steps of its condition, so conditions with different numbers of steps cannot be compared. The p-values are in "
        f"{table}; they are not corrected over conditions.",
        "comparisons": comparisons,
    }


def _curves(studies: Mapping[str, xr.DataTree], protocols: Sequence[str]) -> list[list[Any]]:
    """Return the curves of the whole network in every condition, for each protocol."""
    return [
        [
            dataclasses.replace(chart, title=f"{condition}: {chart.title}")
            for condition, study in studies.items()
            if protocol in protocols_of(study)
            for name, node in select_protocol(study, protocol).children.items()
            for chart in [order_chart(name, node.to_dataset(), NETWORK_SCOPE)]
        ]
        for protocol in protocols
    ]
