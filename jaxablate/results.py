"""Results: arrays of a study come in, a labelled and documented `xarray.DataTree` goes out, to a file and back.

One node for each network. This is the only module that knows xarray; it also computes the summaries that figures
and tables show, so that those only draw.
"""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import InputError, require, require_known
from jaxablate._files import atomic_path
from jaxablate.datasets import Source
from jaxablate.models import layer_of_neuron

FORMAT = "jaxablate results 1"
RANDOM = "random"
NETWORK_SCOPE = "network"
BAND = (0.1, 0.9)  # quantiles over seeds and random orders

_VARIABLES = {
    "train_loss": (("seed", "epoch"), "training loss", "nat"),
    "train_accuracy": (("seed", "epoch"), "training accuracy", "1"),
    "validation_loss": (("seed", "epoch"), "validation loss", "nat"),
    "validation_accuracy": (("seed", "epoch"), "validation accuracy", "1"),
    "joint_counts": (("seed", "neuron", "class", "code"), "validation examples for each class and code", "1"),
    "mean_activation": (("seed", "neuron"), "mean activation on the validation split", "1"),
    "scores": (("seed", "metric", "neuron"), "score", "nat"),
    "ablated": (("seed", "scope", "ordering", "rank"), "neuron ablated at this rank", "1"),
    "correct": (("seed", "scope", "ordering", "fill", "step"), "correct test predictions", "1"),
    "accuracy": (("seed", "scope", "ordering", "fill", "step"), "test accuracy", "1"),
}
_COORDINATES = {
    "seed": "seed of initial weights, example order and random ablation orders",
    "epoch": "epoch",
    "metric": "metric",
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
    hidden: Sequence[int],
    activation: str,
    seeds: Sequence[int],
    metrics: Sequence[str],
    orderings: Sequence[Ordering],
    fills: Sequence[str],
    num_test_examples: int,
) -> xr.Dataset:
    """Label the arrays of one network.

    Args:
        variables: arrays by name, with the dimensions of `_VARIABLES`; `accuracy` follows from `correct`.
        hidden: neurons of each hidden layer.
        activation: of the hidden layers.
        seeds: one for each network trained.
        metrics: names of the scores.
        orderings: in the order of the array.
        fills: in the order of the array.
        num_test_examples: by which `correct` is divided.

    Returns:
        A dataset with long names and units; units "1" mark a count or a fraction.
    """
    variables = {**variables, "accuracy": variables["correct"] / num_test_examples}
    sizes = {}
    for name, (dims, _, _) in _VARIABLES.items():
        sizes.update(zip(dims, variables[name].shape, strict=True))
    coordinates = {
        "seed": np.asarray(seeds, np.int64),
        "epoch": np.arange(1, sizes["epoch"] + 1),
        "metric": list(metrics),
        "neuron": np.arange(sizes["neuron"]),
        "class": np.arange(sizes["class"]),
        "code": np.arange(sizes["code"]),
        "scope": [f"layer{i}" for i in range(1, len(hidden) + 1)] + [NETWORK_SCOPE],
        "ordering": [ordering.label for ordering in orderings],
        "fill": list(fills),
        "step": np.arange(sizes["step"]),
        "rank": np.arange(1, sizes["rank"] + 1),
    }
    return xr.Dataset(
        {
            name: (dims, variables[name], {"long_name": long_name, "units": units})
            for name, (dims, long_name, units) in _VARIABLES.items()
        },
        coords={
            **{name: (name, values, {"long_name": _COORDINATES[name]}) for name, values in coordinates.items()},
            "layer": ("neuron", layer_of_neuron(tuple(hidden)), {"long_name": "hidden layer"}),
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
            "hidden": json.dumps([int(n) for n in hidden]),
            "activation": activation,
            "num_test_examples": num_test_examples,
        },
    )


def study_results(networks: Mapping[str, xr.Dataset], config: Mapping, source: Source) -> xr.DataTree:
    """Join the networks of a study under one root that says where everything came from."""
    packages = ("jaxablate", "jax", "jaxlib", "flax", "optax", "numpy", "xarray")
    device = jax.devices()[0]
    attrs = {
        "format": FORMAT,
        "title": "Information-ordered cumulative ablation",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": json.dumps(config, sort_keys=True),
        "dataset": source.name,
        "dataset_origin": source.origin,
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
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **networks})


def save_results(results: xr.DataTree, path: str | Path) -> None:
    """Write results as netCDF, atomically.

    Args:
        results: from `run_study`.
        path: the file.

    Raises:
        InputError: if the folder cannot be written.

    Example:
        >>> ja.save_results(results, tmp_path / "results.nc")
    """
    try:
        with atomic_path(path) as temporary:
            results.to_netcdf(temporary, engine="h5netcdf")
    except OSError as error:
        raise InputError(f"results file {path}: expected a place that can be written, got '{error}'") from None


def load_results(path: str | Path) -> xr.DataTree:
    """Read what `save_results` wrote.

    Args:
        path: the file.

    Returns:
        The results, in memory.

    Raises:
        InputError: for a file that is not there or that `save_results` did not write.

    Example:
        >>> ja.load_results(tmp_path / "results.nc").attrs["dataset"]
        'mnist5k'
    """
    path = Path(path)
    require(path.is_file(), f"results file {path}: expected a file, got none; `jaxablate reproduce` writes one")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            results = tree.load()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"results file {path}: expected netCDF, got an unreadable file ({error})") from None
    found = results.attrs.get("format")
    require(found == FORMAT, f"results file {path}: expected format {FORMAT!r}, got {found!r}")
    absent = [name for name in ("dataset", "dataset_origin", "versions", "config") if name not in results.attrs]
    require(not absent, f"results file {path}: expected the attributes {', '.join(absent)}; the file is damaged")
    for name, node in results.children.items():
        _require_whole(path, name, node.to_dataset())
    return results


def _require_whole(path: Path, name: str, network: xr.Dataset) -> None:
    """Raise unless a network's node has all that `network_results` puts there."""
    for variable, (dims, _, _) in _VARIABLES.items():
        require(
            variable in network and network[variable].dims == dims and network[variable].size > 0,
            f"results file {path}: expected {variable} over {', '.join(dims)} in {name}; the file is damaged",
        )
    require(
        {*_COORDINATES, "layer", "ranking", "direction"} <= set(network.coords)
        and set(network["fill"].values) == {"zero", "mean"},
        f"results file {path}: expected the labels that jaxablate writes in {name}; the file is damaged",
    )


@dataclass(frozen=True)
class Curve:
    """Accuracy against ablated neurons: the mean over seeds (and random orders) and a band, each [step].

    `low` and `high` are the 10 % and 90 % quantiles over the `num_curves` curves.
    """

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_curves: int


def curve(network: xr.Dataset, *, scope: str, ranking: str, direction: str, fill: str) -> Curve:
    """Summarise the accuracy curves of one network, scope, ordering and fill.

    Args:
        network: a node of the results, `results["3-layer"].to_dataset()`.
        scope: `layer1`, ... or `network`.
        ranking: a metric, or `random` (all its repetitions together; the direction is then ignored).
        direction: "low" or "high".
        fill: "zero" or "mean".

    Returns:
        A `Curve` over the steps.

    Raises:
        InputError: for a scope, ranking, direction or fill that the results do not have.

    Example:
        >>> network = results["2-layer-12-10"].to_dataset()
        >>> ja.curve(network, scope="layer1", ranking="random", direction="low", fill="mean").num_curves
        6
    """
    for kind, value, known in (
        ("scope", scope, network["scope"].values),
        ("ranking", ranking, np.unique(network["ranking"].values)),
        ("fill", fill, network["fill"].values),
        ("direction", "low" if ranking == RANDOM else direction, ("low", "high")),
    ):
        require_known(kind, value, map(str, known))
    chosen = network["ranking"] == ranking
    if ranking != RANDOM:
        chosen &= network["direction"] == direction
    accuracy = network["accuracy"].sel(scope=scope, fill=fill).isel(ordering=np.flatnonzero(chosen))
    values = accuracy.transpose("seed", "ordering", "step").values.reshape(-1, accuracy.sizes["step"])
    low, high = np.quantile(values, BAND, axis=0)
    return Curve(network["step"].values, values.mean(axis=0), low, high, len(values))


@dataclass(frozen=True)
class SummaryRow:
    """Mean accuracy of one network, scope, ordering and fill at chosen numbers of ablated neurons."""

    network: str
    scope: str
    ranking: str
    direction: str
    fill: str
    accuracy: dict[int, float]


def summarize(results: xr.DataTree, steps: Sequence[int] = (0, 40, 80)) -> list[SummaryRow]:
    """Mean accuracy per network, scope, ordering and fill.

    Args:
        results: from `run_study` or `load_results`.
        steps: numbers of ablated neurons; those beyond the last step become the last.

    Returns:
        One row for each network, scope, ordering (the random ones together) and fill.

    Example:
        >>> sorted(ja.summarize(results)[0].accuracy)[0]
        0
    """
    require(all(step >= 0 for step in steps), f"steps: expected numbers of at least 0, got {tuple(steps)}")
    rows = []
    for name, node in results.children.items():
        network = node.to_dataset()
        last = int(network["step"][-1])
        wanted = sorted({min(step, last) for step in steps})
        kinds = dict.fromkeys(
            (str(r), "" if r == RANDOM else str(d))
            for r, d in zip(network["ranking"].values, network["direction"].values, strict=True)
        )
        for scope in network["scope"].values:
            for ranking, direction in kinds:
                for fill in network["fill"].values:
                    mean = curve(network, scope=scope, ranking=ranking, direction=direction, fill=fill).mean
                    accuracy = {step: float(mean[step]) for step in wanted}
                    rows.append(SummaryRow(name, str(scope), ranking, direction, str(fill), accuracy))
    return rows
