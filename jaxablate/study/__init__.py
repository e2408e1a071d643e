"""The study: a `StudyConfig` comes in, the labelled results of the whole experiment go out.

The one place where the stages meet: load, train, record, score, order, ablate, label.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import xarray as xr
from flax import nnx

from jaxablate._checks import require, require_name
from jaxablate._files import require_writable
from jaxablate._parallel import Stop, run_all
from jaxablate.datasets import Dataset, load_dataset
from jaxablate.models import MLP, Model
from jaxablate.results import study_results
from jaxablate.study._ablate import ablate_networks
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._networks import OnProgress, trained_networks
from jaxablate.study._prune import prune_by_score
from jaxablate.study._scores import score_neurons
from jaxablate.training import History

__all__ = ["OnProgress", "StudyConfig", "network_name", "prune_by_score", "run_study", "score_neurons"]


def run_study(
    config: StudyConfig,
    models: Mapping[str, Model | Sequence[Model]] | None = None,
    *,
    network_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> xr.DataTree:
    """Run the whole experiment: train, score, rank and ablate every network.

    Args:
        config: what to run.
        models: networks of your own to score, rank and ablate, by a name; nothing is trained then. Any module with
            sites, or several of one architecture, one for each of the config's seeds.
        network_dir: a folder for the trained networks; those found there with the same training settings and data
            are used again. None keeps nothing.
        on_progress: called with (what, done, total, note) as the work goes on.

    Returns:
        An `xarray.DataTree` with one node for each network (`results["3-layer"]`; under another protocol than the
        paper's `results["published/3-layer"]`, which `select_protocol` gets for all networks). A node holds the
        training history (seed, epoch; not for your own models), `scores` (seed, metric, neuron) with the coordinate
        `layer`, `ablated` (seed, scope, ordering, rank), `correct` and `accuracy` (seed, scope, ordering, fill, step),
        and `correct_alone` (seed, neuron), where that neuron alone is ablated; provenance is in `attrs`.

    Raises:
        InputError: for a dataset that cannot be loaded, a folder that cannot be written, or models that cannot be
            ablated or are not one for each seed.

    Example:
        >>> config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, random_orders=2, steps=4)
        >>> dict(ja.run_study(config)["1-layer-8"]["accuracy"].sizes)
        {'seed': 1, 'scope': 2, 'ordering': 8, 'fill': 2, 'step': 5}
    """
    report = on_progress or (lambda what, done, total, note: None)
    folder = None if network_dir is None else Path(network_dir)
    if folder:
        require_writable(folder)
    report("data", 0, 1, str(config.dataset))
    data = load_dataset(config.dataset, seed=config.split_seed, data_dir=config.data_dir)
    report("data", 1, 1, f"{data.source.name}: {data.source.origin}")

    if models is not None:
        require(
            isinstance(models, Mapping),
            f"models: expected them by name, such as {{'mine': model}}, got {type(models).__name__}",
        )
        given = {name: _one_for_each_seed(name, of_name, config) for name, of_name in models.items()}
        require(len(given) > 0, "models: expected at least one, got none")
        networks = {name: ablate_networks(config, name, data, of_name, report) for name, of_name in given.items()}
        return _joined(config, networks, data)
    require(len(config.networks) > 0, "networks: expected at least one, or models of your own, got none")

    def train(hidden: Sequence[int], stop: Stop) -> list[tuple[MLP, History]]:
        def report_unless_stopped(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            report(what, done, total, note)

        return trained_networks(config, hidden, data, folder, report_unless_stopped)

    # one network's small steps do not fill a CPU, so there the kinds are trained side by side
    threads = len(config.networks) if jax.default_backend() == "cpu" else 1
    trained = run_all(train, config.networks, threads=threads)
    networks = {
        network_name(hidden): ablate_networks(config, network_name(hidden), data, found, report)
        for hidden, found in zip(config.networks, trained, strict=True)
    }
    return _joined(config, networks, data)


def _one_for_each_seed(
    name: str, models: Model | Sequence[Model], config: StudyConfig
) -> list[tuple[Model, History | None]]:
    """The models of a name as a list, without histories.

    Raises:
        InputError: for a name that no node of the results can have, or another number of models than seeds.
    """
    require_name("models", name)
    require(name not in config.protocols, f"models: expected other names than those of protocols, got {name!r}")
    found = [models] if isinstance(models, nnx.Module) else list(models)
    require(
        len(found) == len(config.seeds),
        f"models {name!r}: expected {len(config.seeds)}, one for each of the seeds {config.seeds}, got {len(found)}",
    )
    return [(model, None) for model in found]


def _joined(config: StudyConfig, networks: Mapping[str, Mapping[str, xr.Dataset]], data: Dataset) -> xr.DataTree:
    """The results of all networks, which are by name and protocol, under one root."""
    by_protocol = {
        protocol: {name: found[protocol] for name, found in networks.items()} for protocol in config.protocols
    }
    return study_results(by_protocol, dataclasses.asdict(config), data.source)
