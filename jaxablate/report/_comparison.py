"""Arrange the comparison of two results for its page; `compare` computes the numbers.

Input: results of two studies.
Output: a dictionary of the values in the template `comparison.html`.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import xarray as xr

from jaxablate.charts import INTERVAL, names_of, order_chart, order_name, place_name
from jaxablate.charts._own import BY_NAMES
from jaxablate.report._intervals import ENDS, IntervalAxis, interval_text
from jaxablate.report._sections import provenance_of
from jaxablate.results import NETWORK_SCOPE, compare
from jaxablate.results._labels import stated_settings


def comparison_page(first: xr.DataTree, second: xr.DataTree, names: Sequence[str], by: str) -> dict[str, Any]:
    """Return the values in the template `comparison.html`, by name."""
    trees = first, second
    # `compare` pairs the networks, by seed where that is possible. The accuracies go the same way, so that both tables
    # rest on the same pairs.
    compared = _nodes(compare(first, second, by=by))
    accuracies = _nodes(compare(first, second, by=_intact_accuracy))
    origins = [provenance_of(tree) for tree in trees]
    return {
        "names": names,
        "what": BY_NAMES.get(by, by),
        "interval_words": INTERVAL,
        "settings": _settings(trees),
        "rows": [
            {
                "network": path,
                "accuracies": [f"{float(_intact_accuracy(tree[path].to_dataset()).mean()):.2f}" for tree in trees],
                "text": interval_text(*(float(node[name]) for name in ENDS)),
                "pairing": f"{node.attrs['comparison']}, networks: {int(node['num_networks'])}",
            }
            for path, node in accuracies.items()
        ],
        "blocks": [_block(path, node) for path, node in compared.items()],
        "curves": [
            [
                dataclasses.replace(chart, title=f"{name}: {chart.title}")
                for name, tree in zip(names, trees, strict=True)
                for chart in [order_chart(path.rpartition("/")[2], tree[path].to_dataset(), NETWORK_SCOPE)]
            ]
            for path in compared
        ],
        "origins": _side_by_side(
            [
                {
                    **origin["rows"],
                    "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
                    **{f"SHA-256 of {name}": checksum for name, checksum in origin["checksums"].items()},
                }
                for origin in origins
            ]
        ),
    }


def _nodes(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the datasets of a comparison by their paths."""
    return {node.path.strip("/"): node.to_dataset() for node in tree.subtree if node.data_vars}


def _intact_accuracy(network: xr.Dataset) -> xr.DataArray:
    """Return the test accuracy of the intact networks in percent [seed]."""
    return 100 * network["accuracy"].isel(scope=0, ordering=0, fill=0, step=0, drop=True)


def _settings(trees: Sequence[xr.DataTree]) -> list[tuple[str, list[str]]]:
    """Return the settings in which two studies differ, and the values of both."""
    # A path of the data says nothing about their content; the checksums of the origin do.
    configs = [stated_settings(json.loads(tree.attrs["config"]), is_trained=True) for tree in trees]
    texts = [{name: json.dumps(value) for name, value in config.items() if name != "data_dir"} for config in configs]
    return [(name, values) for name, values in _side_by_side(texts) if values[0] != values[1]]


def _side_by_side(tables: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the rows of several tables by name; what a table lacks is empty."""
    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, [str(table.get(name, "")) for table in tables]) for name in names]


def _block(path: str, data: xr.Dataset) -> dict[str, Any]:
    """Return the intervals of a network for every scope and order under bias balancing, on one axis."""
    # Zeros shift the next layer's inputs, which mixes two effects. So the page shows the balanced fill.
    fills, comparisons = names_of(data, "fill"), {}
    fill = next((fill for fill in fills if fill != "zero"), fills[0])
    data = data.sel(fill=fill)
    axis = IntervalAxis(data)
    for scope in names_of(data, "scope"):
        cells = [(order_name(name), data.sel(scope=scope, ordering=name)) for name in names_of(data, "ordering")]
        comparisons[place_name(scope)] = axis.rows(cells)
    return {"title": f"{path} network", "fill": fill.replace("_", " "), "comparisons": comparisons}
