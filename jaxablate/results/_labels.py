"""Label the arrays of a study as an `xarray.DataTree` that documents itself.

Input: NumPy arrays by name.
Output: datasets with dimensions, long names, units and provenance.
"""

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import InputError, require, require_known, require_type
from jaxablate._files import as_utf8, shown_path
from jaxablate._precision import matmul_precision, random_settings
from jaxablate.datasets import Source
from jaxablate.models import layer_of_neuron
from jaxablate.orders import DIRECTIONS
from jaxablate.protocols import PAPER

FORMAT = "jaxablate results 4"
RANDOM = "random"
NETWORK_SCOPE = "network"

NO_NEURON = -1
"""Entry of `ablated` for a random curve that draws a fresh subset at every step, and after a scope's last neuron."""

NOT_EVALUATED = -1
"""Entry of `correct` after the last step of a scope with fewer neurons than the largest; its accuracy is NaN."""

# name: (dimensions, long name, unit); the unit "1" marks counts and fractions. Results are one dataset for each network
# and protocol. `neuron` is the id in the whole network, `neuron_in_site` the id within the site. `scope` is the ablated
# site or "network"; `ordering` is a score with a direction or a random order. `rank` counts the neurons of an order
# from 1; `step` counts from 0, the intact network. `num_ablated` (scope, step) is the number of ablated neurons.
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
        "neuron ablated at this rank, by its id in the whole network (-1: a fresh random subset, or after the last)",
        "1",
    ),
    "single_correct": (("seed", "neuron"), "correct test predictions with only this neuron ablated, balanced", "1"),
    "single_damage": (("seed", "neuron"), "rise of the test loss with only this neuron ablated, balanced", "nat"),
    "single_class_drop": (
        ("seed", "neuron", "class"),
        "fall of the test accuracy within a class with only this neuron ablated, balanced",
        "1",
    ),
    "correct": (
        ("seed", "scope", "ordering", "fill", "step"),
        "correct test predictions (-1: after the last neuron)",
        "1",
    ),
    "accuracy": (("seed", "scope", "ordering", "fill", "step"), "test accuracy", "1"),
    "class_accuracy": (
        ("seed", "scope", "ordering", "fill", "step", "class"),
        "test accuracy within a class (NaN: no test example, or after the last neuron)",
        "1",
    ),
}
MODEL_SHA256 = "SHA-256 of the state of the network: parameters, running statistics and constants"
HISTORY = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
"""Variables of the training history; networks that were passed to a study lack them."""
TRAINING_SETTINGS = (
    *("networks", "activation", "epochs", "batch_size", "learning_rate", "l2"),
    *("dropout", "batch_norm", "label_noise"),
)
"""Settings of a study that only describe how it trains networks."""
OPTIONAL = ("single_class_drop", "class_accuracy")
"""Variables that earlier results lack, or a study without `by_class`."""
COORDINATES = {
    "seed": "seed of initial weights, example order and random ablation orders",
    "epoch": "epoch",
    "score": "score",
    "neuron": "hidden neuron, by its id in the whole network",
    "class": "class",
    "code": "code of the quantized activation",
    "scope": "ablated layer, or the whole network",
    "ordering": "order of ablation",
    "fill": "value of an ablated neuron",
    "step": "step of the ablation",
    "rank": "rank in the order of ablation",
}
PASSED_SEED = "seed of random ablation orders, fills and scores"
"""Long name of the coordinate `seed` of networks that were passed to a study: the seed did not train them."""


@dataclass(frozen=True)
class Ordering:
    """Name one way to order neurons.

    Attributes:
        ranking: the score that ranks the neurons, or "random".
        direction: "low" or "high" values first; for a random ordering the number of the repetition, from "0".
    """

    ranking: str
    direction: str

    @property
    def label(self) -> str:
        """Return the name in the results, such as `entropy_low` or `random_0`."""
        return f"{self.ranking}_{self.direction}"


@dataclass(frozen=True)
class PassedNetworks:
    """Describe the networks of one architecture that were passed to a study.

    Attributes:
        kind: the class of the module or the name of the function, in words.
        num_parameters: number of parameters of each network.
        sha256: a checksum of the state of each network, in hexadecimal digits.
    """

    kind: str
    num_parameters: int
    sha256: Sequence[str]


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
    ablated_numbers: Sequence[np.ndarray] | None = None,
    passed: PassedNetworks | None = None,
) -> xr.Dataset:
    """Label the arrays of the networks of one architecture.

    Args:
        variables: arrays by name, with the dimensions of `VARIABLES`; `accuracy` is computed from `correct`. The
            training history may be absent.
        protocol: name of the protocol that scored, ranked and ablated the networks.
        first_step: number of ablated neurons where the protocol's curves begin.
        sites: neurons of each hidden layer or other site, by name, in network order.
        activation: name of the activation function of the hidden layers.
        seeds: one for each network.
        scores: names of the scores.
        orderings: orderings in the order of the array.
        fills: names of the fills in the order of the array.
        num_test_examples: number of test examples, the divisor of `correct`.
        ablated_numbers: for each scope, the number of ablated neurons at each step [step]; None if every step of every
            scope ablates one neuron.
        passed: description of networks that were passed to the study; None for networks that the study trained.

    Returns:
        A dataset with long names and units; units "1" mark a count or a fraction. A neuron has the coordinates `neuron`
        (id in the whole network), `neuron_in_site` (id within its site), `site` and `layer`; the entries of `ablated`
        have `ablated_in_site` and `ablated_layer`.
    """
    correct = variables["correct"]
    variables = {**variables, "accuracy": _fractions(correct, num_test_examples)}
    # Networks that were passed to a study have no history, so the dimension `epoch` may be missing.
    sizes, long_names = {}, COORDINATES if passed is None else {**COORDINATES, "seed": PASSED_SEED}
    for name, array in variables.items():
        # The arrays give the sizes of the dimensions. xarray raises if two arrays disagree about one.
        sizes.update(zip(VARIABLES[name][0], array.shape, strict=True))
    numbers = np.tile(np.arange(sizes["step"]), (sizes["scope"], 1))
    for i, of_scope in enumerate(ablated_numbers or ()):
        numbers[i] = np.pad(of_scope, (0, sizes["step"] - len(of_scope)), constant_values=NOT_EVALUATED)
    coordinates = {
        "seed": np.asarray(seeds, np.int64),
        **({"epoch": np.arange(1, sizes["epoch"] + 1)} if "epoch" in sizes else {}),
        "score": list(scores),
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
            name: _labelled(dims, variables[name], long_name, units)
            for name, (dims, long_name, units) in VARIABLES.items()
            if name in variables
        }
        | ({} if passed is None else {"model_sha256": _labelled("seed", list(passed.sha256), MODEL_SHA256)}),
        coords={
            **{name: _labelled(name, values, long_names[name]) for name, values in coordinates.items()},
            **_neuron_coordinates(sites),
            **_ablated_coordinates(variables["ablated"], sites),
            "num_ablated": _labelled(("scope", "step"), numbers, "ablated neurons (-1: after the last step)"),
            "ranking": _labelled("ordering", [o.ranking for o in orderings], "score that ranks the neurons, or random"),
            "direction": _labelled(
                "ordering",
                [o.direction for o in orderings],
                "low or high values first, or number of the random repetition",
            ),
        },
        attrs={
            "protocol": protocol,
            "first_step": first_step,
            # Attributes of netCDF are numbers, texts or flat arrays. Everything nested is stored as JSON.
            "hidden": json.dumps([int(width) for width in sites.values()]),
            "activation": activation,
            "num_test_examples": num_test_examples,
            **({} if passed is None else {"model": passed.kind, "num_parameters": passed.num_parameters}),
        },
    )


def is_passed(network: xr.Dataset) -> bool:
    """Return True if a network was passed to the study, and False if the study trained it."""
    return not {*HISTORY} & {*network.data_vars}


def stated_settings(config: Mapping[str, Any], *, is_trained: bool) -> dict[str, Any]:
    """Return the settings of a study that are true of its networks.

    Args:
        config: settings by name.
        is_trained: False if all networks were passed to the study, so that the settings of training had no effect.
    """
    return {name: value for name, value in config.items() if is_trained or name not in TRAINING_SETTINGS}


def neuron_numbers(network: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Return the number of ablated neurons at each step of each scope, with the dimensions (scope, step).

    An argument of one scope gives (step). After the last step of a scope the number is -1. In curves from `keep_only`
    it is the number of kept neurons.
    """
    # In earlier results every step ablates one neuron.
    return network[next(name for name in ("num_kept", "num_ablated", "step") if name in network.coords)]


def _labelled(dims: str | tuple[str, ...], values: Any, long_name: str, units: str | None = None) -> tuple:
    """Return values as xarray takes them, with their long name and unit as attributes."""
    return dims, values, {"long_name": long_name} if units is None else {"long_name": long_name, "units": units}


def _neuron_coordinates(sites: Mapping[str, int]) -> dict[str, tuple]:
    """Return the coordinates of the dimension `neuron`: both ids, site and layer."""
    widths = list(sites.values())
    within = np.concatenate([np.arange(width) for width in widths])
    return {
        "neuron": _labelled("neuron", np.arange(sum(widths)), COORDINATES["neuron"]),
        "neuron_in_site": _labelled("neuron", within, "hidden neuron, by its id within the site"),
        "site": _labelled("neuron", np.repeat(list(sites), widths), "layer or site of the neuron"),
        "layer": _labelled("neuron", layer_of_neuron(widths), "number of the hidden layer, from 1"),
    }


def _ablated_coordinates(ablated: np.ndarray, sites: Mapping[str, int]) -> dict[str, tuple]:
    """Return the layer and the id within it for each network-wide id in `ablated`; entries without a neuron get 0 and
    `NO_NEURON`."""
    neurons = _neuron_coordinates(sites)
    # id -1 indexes the last entry, so one more entry at the end serves the curves without an order
    within = np.append(neurons["neuron_in_site"][1], NO_NEURON).astype(np.int32)
    layer = np.append(neurons["layer"][1], 0).astype(np.int32)
    dims = VARIABLES["ablated"][0]
    return {
        "ablated_in_site": _labelled(dims, within[ablated], "neuron ablated, by its id within the layer or site"),
        "ablated_layer": _labelled(dims, layer[ablated], "layer of the neuron ablated, from 1"),
    }


def neuron_scores(
    values: np.ndarray, mean: np.ndarray, *, scores: Sequence[str], sites: Mapping[str, int], source: Source
) -> xr.Dataset:
    """Label the scores of one network.

    Args:
        values: scores [score, neuron].
        mean: mean activations [neuron].
        scores: names of the scores.
        sites: neurons of each site, by name, in network order.
        source: where the data came from.

    Returns:
        `scores` (score, neuron) and `mean_activation` (neuron). A neuron has the coordinates `neuron` (id in the whole
        network), `neuron_in_site` (id within its site), `site` and `layer`.
    """
    return xr.Dataset(
        {
            "scores": _labelled(("score", "neuron"), values, *VARIABLES["scores"][1:]),
            "mean_activation": _labelled("neuron", mean, *VARIABLES["mean_activation"][1:]),
        },
        coords={"score": _labelled("score", list(scores), COORDINATES["score"]), **_neuron_coordinates(sites)},
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
    """Label the results of `quantizer_sensitivity`.

    Args:
        rank_correlation: correlations [network, scope, score, quantizer] with the scores under the first quantizer.
        areas: areas under the curves [network, scope, score, quantizer, direction].
        scopes: names of the scopes.
        scores: names of the scores.
        quantizers: number of codes of each quantizer, by name; the first one is the reference.
        attrs: further attributes.
        source: where the data came from.

    Returns:
        A dataset with the variables `rank_correlation` and `auc`.
    """
    dims = ("network", "scope", "score", "quantizer")
    correlation = f"Spearman correlation with the scores under {next(iter(quantizers))}"
    return xr.Dataset(
        {
            "rank_correlation": _labelled(dims, rank_correlation, correlation, "1"),
            "auc": _labelled((*dims, "direction"), areas, "mean accuracy over the steps", "%"),
        },
        coords={
            "network": _labelled("network", np.arange(len(areas)), "network"),
            "scope": _labelled("scope", list(scopes), COORDINATES["scope"]),
            "score": _labelled("score", list(scores), COORDINATES["score"]),
            "quantizer": _labelled("quantizer", list(quantizers), "quantizer of the activations"),
            "num_codes": _labelled("quantizer", list(quantizers.values()), "number of codes"),
            "direction": _labelled("direction", list(DIRECTIONS), "low or high values first"),
        },
        attrs={**attrs, **_provenance(source)},
    )


def redundancy_results(
    tests: np.ndarray,
    curvature_correlations: np.ndarray,
    *,
    scopes: Sequence[str],
    quantities: Sequence[str],
    attrs: Mapping[str, str | int],
    source: Source,
) -> xr.Dataset:
    """Label the results of `redundancy_test`.

    Args:
        tests: numbers [network, scope, quantity, 2, 2]: correlation and p-value, first without, then with the control.
        curvature_correlations: correlations [network, scope] of curvature and super-additivity.
        scopes: names of the layers or sites.
        quantities: names of the quantities of pairs.
        attrs: further attributes.
        source: where the data came from.

    Returns:
        A dataset with the variables `correlation`, `p_value`, `partial_correlation`, `partial_p_value` and
        `curvature_correlation`.
    """
    dims = ("network", "scope", "quantity")
    name, given = "Spearman correlation with the super-additivity of pair damage", "given the curvature of the loss"
    test = "p-value of the Mantel test"
    return xr.Dataset(
        {
            "correlation": _labelled(dims, tests[..., 0, 0], name, "1"),
            "p_value": _labelled(dims, tests[..., 0, 1], test, "1"),
            "partial_correlation": _labelled(dims, tests[..., 1, 0], f"{name}, {given}", "1"),
            "partial_p_value": _labelled(dims, tests[..., 1, 1], f"{test}, {given}", "1"),
            "curvature_correlation": _labelled(dims[:2], curvature_correlations, f"{name}: curvature of the loss", "1"),
        },
        coords={
            "network": _labelled("network", np.arange(len(tests)), "network"),
            "scope": _labelled("scope", list(scopes), "layer"),
            "quantity": _labelled("quantity", list(quantities), "information of a pair of neurons about the class"),
        },
        attrs={**attrs, **_provenance(source)},
    )


def compensation_results(
    accuracy: np.ndarray,
    needed: np.ndarray,
    r_squared: np.ndarray,
    effective_rank: np.ndarray,
    *,
    coordinates: Mapping[str, Sequence | np.ndarray],
    sites: Mapping[str, int],
    attrs: Mapping[str, Any],
    source: Source,
) -> xr.Dataset:
    """Label the results of `linear_redundancy`.

    Args:
        accuracy: fractions [network, scope, ordering, fill + 1, step], the last of readouts.
        needed: numbers of neurons [network, scope, ordering, fill + 1].
        r_squared: fractions [network, neuron].
        effective_rank: numbers of components [network, scope].
        coordinates: names of the "ordering" and "fill", and numbers of ablated neurons of each "step".
        sites: number of neurons of each layer or site.
        attrs: further attributes.
        source: where the data came from.

    Returns:
        A dataset with `accuracy`, `needed`, `readout_accuracy`, `readout_needed`, `r_squared` and `effective_rank`.
    """
    dims = ("network", "scope", "ordering")
    return xr.Dataset(
        {
            "accuracy": _labelled((*dims, "fill", "step"), accuracy[:, :, :, :-1], "test accuracy", "1"),
            "needed": _labelled((*dims, "fill"), needed[..., :-1], "neurons that the layer needs", "1"),
            "readout_accuracy": _labelled((*dims, "step"), accuracy[:, :, :, -1], "test accuracy of a readout", "1"),
            "readout_needed": _labelled(dims, needed[..., -1], "neurons that a readout needs", "1"),
            "r_squared": _labelled(("network", "neuron"), r_squared, "R^2 given the layer's other neurons", "1"),
            "effective_rank": _labelled(dims[:2], effective_rank, "components with 99% of the variance", "1"),
        },
        coords={
            "network": _labelled("network", np.arange(len(accuracy)), "network"),
            "scope": _labelled("scope", list(sites), "layer"),
            **{name: _labelled(name, list(values), COORDINATES[name]) for name, values in coordinates.items()},
            "ordering": _labelled("ordering", coordinates["ordering"], "score with low values first, or random order"),
            **_neuron_coordinates(sites),
        },
        attrs={**attrs, **_provenance(source)},
    )


def study_results(
    networks: Mapping[str, Mapping[str, xr.Dataset]], config: Mapping, source: Source, seconds: float
) -> xr.DataTree:
    """Join the networks of a study under one root with the provenance.

    Args:
        networks: datasets from `network_results`, by protocol and network name.
        config: settings of the study.
        source: where the data came from.
        seconds: duration of the study.

    Returns:
        A tree. The networks of the paper's protocol are at the root, all others under the name of their protocol.
    """
    is_trained = not all(is_passed(network) for by_name in networks.values() for network in by_name.values())
    attrs = {
        "format": FORMAT,
        "title": "Information-ordered cumulative ablation",
        "config": json.dumps(_shown_settings(config), sort_keys=True),
        "seconds": seconds,
        **_provenance(source, is_trained=is_trained),
    }
    # The paper's networks are at the root: results of the default protocol need no prefix.
    nodes = {
        name if protocol == PAPER.name else f"{protocol}/{name}": network
        for protocol, by_name in networks.items()
        for name, network in by_name.items()
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes})


def grid_results(studies: Mapping[str, xr.DataTree], config: Mapping[str, Any], seconds: float) -> xr.DataTree:
    """Join the studies of several conditions under one root.

    Args:
        studies: results of the study of each condition, by the condition's name.
        config: settings of the grid, with the values of each varied setting under "vary", in the order of the product.
        seconds: duration of the whole grid.

    Returns:
        A tree with one node for each condition: the tree of its study. The attribute `conditions` of the root holds the
        varied settings of each condition, as JSON. Different datasets, origins and devices are joined by " | ".
    """
    attrs: list[dict[str, Any]] = [
        {str(name): value for name, value in tree.attrs.items()} for tree in studies.values()
    ]
    # `StudyConfig.conditions` names the combinations of the same product, in the same order.
    values = itertools.product(*config["vary"].values())
    conditions = {
        name: _shown_settings(dict(zip(config["vary"], combination, strict=True)))
        for name, combination in zip(studies, values, strict=True)
    }
    joined = {
        name: " | ".join(dict.fromkeys(study[name] for study in attrs))
        for name in ("dataset", "dataset_origin", "device")
    }
    checksums: dict[str, Any] = {}
    for study in attrs:
        files, name = json.loads(study["dataset_sha256"]), study["dataset"]
        # files of one name in several folders are several datasets
        for number in itertools.count(1):
            key = name if number == 1 else f"{name} ({number})"
            if checksums.setdefault(key, files) == files:
                break
    root = {
        **attrs[0],
        **joined,
        "config": json.dumps(_shown_settings(config), sort_keys=True),
        "conditions": json.dumps(conditions),
        "created": max(study["created"] for study in attrs),
        "dataset_sha256": json.dumps(checksums),
        "seconds": seconds,
    }
    # The studies keep their attributes, so each child passes for the results of one study.
    return xr.DataTree(xr.Dataset(attrs=root), children=dict(studies))


def require_results(results: object, argument: str = "results", *, whole: bool = False) -> None:
    """Raise `InputError` unless a value is a tree of results; a `whole` tree also has the settings of its study."""
    require_type(argument, results, xr.DataTree, "results from ja.run_study or ja.results.load_results")
    assert isinstance(results, xr.DataTree)
    require(
        not whole or "config" in results.attrs,
        f"{argument}: expected results from ja.run_study or ja.results.load_results, got a tree without settings",
    )
    if whole:
        for node in results.subtree:
            require(
                has_true_accuracy(node.to_dataset()),
                f"{argument}: the accuracy of {node.name} is not the fraction of correct predictions; take the results "
                "that run_study or load_results returned, and change a copy",
            )


def has_true_accuracy(network: xr.Dataset) -> bool:
    """Return True if the accuracies of a network follow from its numbers of correct predictions, or it has none."""
    if not {"accuracy", "correct"} <= set(network.data_vars):
        return True
    correct = network["correct"]
    fractions = _fractions(correct.values, network.attrs["num_test_examples"])
    return np.allclose(network["accuracy"].transpose(*correct.dims), fractions, atol=1e-6, equal_nan=True)


def _fractions(correct: np.ndarray, num_examples: int | np.integer) -> np.ndarray:
    """Return counts of correct predictions as fractions, NaN for what was not evaluated."""
    return np.where(correct == NOT_EVALUATED, np.nan, correct / num_examples)


def require_network_results(network: object) -> None:
    """Raise `InputError` unless a value has the results of one network."""
    is_network = isinstance(network, xr.Dataset) and "ordering" in network.dims
    if not is_network:
        raise InputError(
            f"network: expected the results of one network, results['NAME'].to_dataset(), got {type(network).__name__}"
        )


def conditions_of(results: xr.DataTree) -> dict[str, dict[str, Any]]:
    """Return the varied settings of each condition of a grid; {} for the results of one study.

    Args:
        results: from `run_study` or `load_results`.

    Returns:
        For each condition, by its name, the values of the varied settings. `results[name]` are the results of one
        condition: pass them to any function that takes the results of a study.

    Example:
        >>> ja.results.conditions_of(results)
        {}
    """
    require_results(results)
    return json.loads(results.attrs.get("conditions", "{}"))


def studies_of(results: xr.DataTree) -> dict[str, xr.DataTree]:
    """Return the results of every condition by its name; the results of one study have the name ""."""
    return {name: results.children[name] for name in conditions_of(results)} or {"": results}


def require_one_study(results: xr.DataTree) -> None:
    """Raise `InputError` for the results of a grid, which hold several studies."""
    require(
        not conditions_of(results),
        f"results: they hold {len(results.children)} conditions; pass the results of one, such as "
        f"results[{next(iter(results.children), '')!r}]",
    )


def all_protocols(results: xr.DataTree) -> list[str]:
    """Return the protocols of one study, or of all conditions of a grid, each once."""
    return list(dict.fromkeys(name for study in studies_of(results).values() for name in protocols_of(study)))


def _shown_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the folders of this machine: of an absolute path the name only."""

    def shown(name: str, value: Any) -> Any:
        if name == "vary":
            return {setting: [shown(setting, each) for each in values] for setting, values in value.items()}
        is_path = name in ("dataset", "data_dir") and isinstance(value, str | Path)
        return shown_path(value) if is_path else value

    return {name: shown(name, value) for name, value in config.items()}


def _provenance(source: Source, *, is_trained: bool = False) -> dict[str, str]:
    """Return the attributes that say where results come from: data, versions, device, time.

    Optax, which only trains networks, has a version only if the study trained one.
    """
    # The packages that compute and hold the results; all others only draw or print.
    packages = ("jaxablate", "jax", "jaxlib", "flax", *(("optax",) if is_trained else ()), "numpy", "xarray")
    # Recorded, but not compared when runs are merged: the same counts come from every device, except for near ties.
    device = jax.devices()[0]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # file names may hold bytes that are not UTF-8, and netCDF stores UTF-8 only
        "dataset": as_utf8(source.name),
        "dataset_origin": as_utf8(source.origin),
        "dataset_sha256": json.dumps(source.sha256),
        "versions": json.dumps(
            {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
                **random_settings(),
            }
        ),
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
        "matmul_precision": matmul_precision(),
    }


def protocols_of(results: xr.DataTree) -> list[str]:
    """Return the names of the protocols in the results, the paper's first.

    Args:
        results: from `run_study` or `load_results`.

    Returns:
        Names of protocols, as in `get_protocol`.

    Raises:
        InputError: for the results of a grid; pass the results of one of its conditions.

    Example:
        >>> ja.results.protocols_of(results)
        ['paper', 'published']
    """
    require_results(results)
    require_one_study(results)
    # a node with children is a protocol; a node without is a network of the paper's protocol
    protocols = [name for name, node in results.children.items() if node.children]
    return [PAPER.name] * (len(protocols) < len(results.children)) + protocols


def select_protocol(results: xr.DataTree, protocol: str) -> xr.DataTree:
    """Return the results of one protocol, in the form of a study that ran under this protocol only.

    Args:
        results: from `run_study` or `load_results`.
        protocol: one of `protocols_of(results)`.

    Returns:
        A tree with one node for each network and the attributes of `results`.

    Raises:
        InputError: for a protocol that is not in the results, or the results of a grid.

    Example:
        >>> ja.results.select_protocol(results, "published")["2-layer-12-10"].attrs["protocol"]
        'published'
    """
    require_results(results)
    require_known("protocol", protocol, protocols_of(results))
    root = results if protocol == PAPER.name else results[protocol]
    networks = {name: node.to_dataset() for name, node in root.children.items() if not node.children}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), **networks})
