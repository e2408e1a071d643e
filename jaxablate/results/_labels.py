"""Labels: arrays of a study come in, an `xarray.DataTree` that documents them goes out."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import require_known
from jaxablate.datasets import Source
from jaxablate.models import layer_of_neuron
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import PAPER

FORMAT = "jaxablate results 2"
RANDOM = "random"
NETWORK_SCOPE = "network"

VARIABLES = {
    "train_loss": (("seed", "epoch"), "training loss", "nat"),
    "train_accuracy": (("seed", "epoch"), "training accuracy", "1"),
    "validation_loss": (("seed", "epoch"), "validation loss", "nat"),
    "validation_accuracy": (("seed", "epoch"), "validation accuracy", "1"),
    "joint_counts": (("seed", "neuron", "class", "code"), "validation examples for each class and code", "1"),
    "mean_activation": (("seed", "neuron"), "mean activation on the validation split", "1"),
    "scores": (("seed", "score", "neuron"), "score", "nat"),
    "ablated": (
        ("seed", "scope", "ordering", "rank"),
        "neuron ablated at this rank (-1: random, a fresh subset at every step)",
        "1",
    ),
    "single_correct": (("seed", "neuron"), "correct test predictions with this neuron alone ablated, balanced", "1"),
    "correct": (("seed", "scope", "ordering", "fill", "step"), "correct test predictions", "1"),
    "accuracy": (("seed", "scope", "ordering", "fill", "step"), "test accuracy", "1"),
}
HISTORY = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
"""Variables that networks lack that were trained elsewhere."""
COORDINATES = {
    "seed": "seed of initial weights, example order and random ablation orders",
    "epoch": "epoch",
    "score": "score",
    "neuron": "hidden neuron, counted through the network",
    "class": "class",
    "code": "code of the quantized activation",
    "scope": "ablated layer, or the whole network",
    "ordering": "order of ablation",
    "fill": "value of an ablated neuron",
    "step": "ablated neurons",
    "rank": "rank in the order of ablation",
}


@dataclass(frozen=True)
class Ordering:
    """One way to order neurons: by a metric, low or high values first, or at random (a numbered repetition)."""

    ranking: str
    direction: str

    @property
    def label(self) -> str:
        """The name in the results, such as `entropy_low` or `random_0`."""
        return f"{self.ranking}_{self.direction}"


def network_results(
    variables: Mapping[str, np.ndarray],
    *,
    protocol: str,
    first_step: int,
    sites: Mapping[str, int],
    activation: str,
    seeds: Sequence[int],
    scores: Sequence[str],
    orderings: Sequence[Ordering],
    fills: Sequence[str],
    num_test_examples: int,
) -> xr.Dataset:
    """Label the arrays of one network.

    Args:
        variables: arrays by name, with the dimensions of `VARIABLES`; `accuracy` follows from `correct`. The history of
            training may be absent.
        protocol: under which the networks were scored, ranked and ablated.
        first_step: where the protocol's curves begin.
        sites: neurons of each hidden layer or other site, by name, in network order.
        activation: of the hidden layers.
        seeds: one for each network.
        scores: names of the scores.
        orderings: in the order of the array.
        fills: in the order of the array.
        num_test_examples: by which `correct` is divided.

    Returns:
        A dataset with long names and units; units "1" mark a count or a fraction.
    """
    variables = {**variables, "accuracy": variables["correct"] / num_test_examples}
    sizes = {}
    for name, array in variables.items():
        sizes.update(zip(VARIABLES[name][0], array.shape, strict=True))
    coordinates = {
        "seed": np.asarray(seeds, np.int64),
        **({"epoch": np.arange(1, sizes["epoch"] + 1)} if "epoch" in sizes else {}),
        "score": list(scores),
        "neuron": np.arange(sizes["neuron"]),
        "class": np.arange(sizes["class"]),
        "code": np.arange(sizes["code"]),
        "scope": [*sites, NETWORK_SCOPE],
        "ordering": [ordering.label for ordering in orderings],
        "fill": list(fills),
        "step": np.arange(sizes["step"]),
        "rank": np.arange(1, sizes["rank"] + 1),
    }
    return xr.Dataset(
        {
            name: (dims, variables[name], {"long_name": long_name, "units": units})
            for name, (dims, long_name, units) in VARIABLES.items()
            if name in variables
        },
        coords={
            **{name: (name, values, {"long_name": COORDINATES[name]}) for name, values in coordinates.items()},
            "layer": ("neuron", layer_of_neuron(tuple(sites.values())), {"long_name": "hidden layer"}),
            "ranking": (
                "ordering",
                [o.ranking for o in orderings],
                {"long_name": "score that ranks, or random"},
            ),
            "direction": (
                "ordering",
                [o.direction for o in orderings],
                {"long_name": "values first, or repetition"},
            ),
        },
        attrs={
            "protocol": protocol,
            "first_step": first_step,
            "hidden": json.dumps([int(n) for n in sites.values()]),
            "activation": activation,
            "num_test_examples": num_test_examples,
        },
    )


def neuron_scores(
    values: np.ndarray, mean: np.ndarray, *, scores: Sequence[str], sites: Mapping[str, int], source: Source
) -> xr.Dataset:
    """Label scores [score, neuron] and mean activations [neuron] of one network."""
    widths = list(sites.values())
    _, scores_name, scores_unit = VARIABLES["scores"]
    _, mean_name, mean_unit = VARIABLES["mean_activation"]
    return xr.Dataset(
        {
            "scores": (("score", "neuron"), values, {"long_name": scores_name, "units": scores_unit}),
            "mean_activation": ("neuron", mean, {"long_name": mean_name, "units": mean_unit}),
        },
        coords={
            "score": ("score", list(scores), {"long_name": COORDINATES["score"]}),
            "neuron": ("neuron", np.arange(len(mean)), {"long_name": COORDINATES["neuron"]}),
            "layer": ("neuron", layer_of_neuron(widths), {"long_name": "hidden layer"}),
            "site": ("neuron", np.repeat(list(sites), widths), {"long_name": "site"}),
        },
        attrs=_provenance(source),
    )


def sensitivity_results(
    rank_correlation: np.ndarray,
    areas: np.ndarray,
    *,
    scopes: Sequence[str],
    scores: Sequence[str],
    quantizers: Mapping[str, int],
    attrs: Mapping[str, str | int],
    source: Source,
) -> xr.Dataset:
    """Label correlations [network, scope, score, quantizer] and areas [..., direction]; `quantizers` with their
    numbers of codes, of which the first is the one that the others are compared with."""
    dims = ("network", "scope", "score", "quantizer")
    correlation = f"Spearman correlation with the scores under {next(iter(quantizers))}"
    return xr.Dataset(
        {
            "rank_correlation": (dims, rank_correlation, {"long_name": correlation, "units": "1"}),
            "auc": ((*dims, "direction"), areas, {"long_name": "mean accuracy over the steps", "units": "%"}),
        },
        coords={
            "network": ("network", np.arange(len(areas)), {"long_name": "network"}),
            "scope": ("scope", list(scopes), {"long_name": COORDINATES["scope"]}),
            "score": ("score", list(scores), {"long_name": COORDINATES["score"]}),
            "quantizer": ("quantizer", list(quantizers), {"long_name": "what codes the activations"}),
            "num_codes": ("quantizer", list(quantizers.values()), {"long_name": "number of codes"}),
            "direction": ("direction", list(DIRECTIONS), {"long_name": "values first"}),
        },
        attrs={**attrs, **_provenance(source)},
    )


def redundancy_results(
    tests: np.ndarray,
    *,
    scopes: Sequence[str],
    quantities: Sequence[str],
    attrs: Mapping[str, str | int],
    source: Source,
) -> xr.Dataset:
    """Label tests [network, scope, quantity, (correlation, p-value)]."""
    dims = ("network", "scope", "quantity")
    name = "Spearman correlation with the super-additivity of pair damage"
    return xr.Dataset(
        {
            "correlation": (dims, tests[..., 0], {"long_name": name, "units": "1"}),
            "p_value": (dims, tests[..., 1], {"long_name": "p-value of the Mantel test", "units": "1"}),
        },
        coords={
            "network": ("network", np.arange(len(tests)), {"long_name": "network"}),
            "scope": ("scope", list(scopes), {"long_name": "layer"}),
            "quantity": ("quantity", list(quantities), {"long_name": "what pairs tell of the class"}),
        },
        attrs={**attrs, **_provenance(source)},
    )


def study_results(
    networks: Mapping[str, Mapping[str, xr.Dataset]], config: Mapping, source: Source, seconds: float
) -> xr.DataTree:
    """Join the networks of a study, by protocol and name, under one root that says where everything came from, and how
    long it took."""
    attrs = {
        "format": FORMAT,
        "title": "Information-ordered cumulative ablation",
        "config": json.dumps(config, sort_keys=True),
        "seconds": seconds,
        **_provenance(source),
    }
    nodes = {
        name if protocol == PAPER.name else f"{protocol}/{name}": network
        for protocol, of_protocol in networks.items()
        for name, network in of_protocol.items()
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes})


def _provenance(source: Source) -> dict[str, str]:
    """Where results come from: data, versions, device, time."""
    packages = ("jaxablate", "jax", "jaxlib", "flax", "optax", "numpy", "xarray")
    device = jax.devices()[0]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # the name of a file need not be UTF-8, which netCDF is
        "dataset": source.name.encode("utf-8", "backslashreplace").decode(),
        "dataset_origin": source.origin.encode("utf-8", "backslashreplace").decode(),
        "dataset_sha256": json.dumps(source.sha256),
        "versions": json.dumps(
            {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
            }
        ),
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
        "matmul_precision": "highest",
    }


def protocols_of(results: xr.DataTree) -> list[str]:
    """The protocols that the results hold, the paper's first.

    Args:
        results: from `run_study` or `load_results`.

    Returns:
        Names, as in `get_protocol`.

    Example:
        >>> ja.results.protocols_of(results)
        ['paper', 'published']
    """
    others = [name for name, node in results.children.items() if node.children]
    return [PAPER.name] * (len(others) < len(results.children)) + others


def select_protocol(results: xr.DataTree, protocol: str) -> xr.DataTree:
    """The networks of one protocol, as if the study had run under no other.

    Args:
        results: from `run_study` or `load_results`.
        protocol: one of `protocols_of(results)`.

    Returns:
        A tree with one node for each network and the attributes of `results`.

    Raises:
        InputError: for a protocol that the results do not hold.

    Example:
        >>> ja.results.select_protocol(results, "published")["2-layer-12-10"].attrs["protocol"]
        'published'
    """
    require_known("protocol", protocol, protocols_of(results))
    root = results if protocol == PAPER.name else results[protocol]
    networks = {name: node.to_dataset() for name, node in root.children.items() if not node.children}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), **networks})
