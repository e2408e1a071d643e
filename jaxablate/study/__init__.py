"""The study: a `StudyConfig` comes in, the labelled results of the whole experiment go out.

The one place where the stages meet: load, train, record, score, order, ablate, label.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from flax import nnx
from jax.sharding import Mesh

from jaxablate._checks import require, require_name
from jaxablate._files import require_writable
from jaxablate._mesh import choose_mesh, mesh_for
from jaxablate._parallel import Stop, num_cores, run_all
from jaxablate._processes import broadcast_text
from jaxablate._rundir import CheckpointStore, differences_of, digest, lock_folder, open_run
from jaxablate._typing import Images
from jaxablate.datasets import Dataset, load_dataset
from jaxablate.models import Model
from jaxablate.models._network import record, trace_model
from jaxablate.results import study_results
from jaxablate.study._ablate import ablate_networks, digest_of
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._networks import OnProgress, trained_networks
from jaxablate.study._prune import PrunedRow, PruningComparison, prune_by_score
from jaxablate.study._redundancy import redundancy_test
from jaxablate.study._scores import score_neurons
from jaxablate.study._sensitivity import quantizer_sensitivity
from jaxablate.training import History

Networks = Sequence[tuple[Model, History | None]]
"""The networks of one kind, one for each seed, and how they were trained if that is known."""

__all__ = [
    "OnProgress",
    "PrunedRow",
    "PruningComparison",
    "StudyConfig",
    "network_name",
    "prune_by_score",
    "quantizer_sensitivity",
    "redundancy_test",
    "run_study",
    "score_neurons",
]


def run_study(
    config: StudyConfig,
    models: Mapping[str, Model | Sequence[Model]] | None = None,
    *,
    run_dir: str | Path | None = None,
    force: bool = False,
    network_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
    mesh: Mesh | int | None = None,
) -> xr.DataTree:
    """Run the whole experiment: train, score, rank and ablate every network.

    Args:
        config: what to run.
        models: networks of your own to score, rank and ablate, by a name; nothing is trained then. Any module with
            sites, or several of one architecture, one for each of the config's seeds.
        run_dir: a folder where each trained network, the scores of a network and the curves of a scope are kept as
            soon as they are done; when the run is interrupted, however that happens, the same call goes on from there
            and ends with the same results. One run at a time, of one config; None keeps nothing.
        force: where another run was begun in `run_dir`, drop what it has left and begin afresh; networks that were
            trained there with the same settings and data are used again.
        network_dir: a folder for the trained networks; those found there with the same training settings and data
            are used again. None takes `networks` in `run_dir`, if there is one.
        on_progress: called with (what, done, total, note) as the work goes on.
        mesh: devices to share the work, from `ja.meshes.make_mesh`, or how many: then they are laid out as fits the
            sizes. The counts are the same as on one.

    Returns:
        An `xarray.DataTree` with one node for each network (`results["3-layer"]`; under another protocol than the
        paper's `results["published/3-layer"]`, which `select_protocol` gets for all networks). A node holds the
        training history (seed, epoch; not for your own models), `scores` (seed, metric, neuron) with the coordinate
        `layer`, `ablated` (seed, scope, ordering, rank), `correct` and `accuracy` (seed, scope, ordering, fill, step),
        and `single_correct` (seed, neuron), where that neuron alone is ablated; provenance is in `attrs`.

    Raises:
        InputError: for a dataset that cannot be loaded, a folder that cannot be written, where another run is at work
            or was begun with another config, data, version or backend, or for models that cannot be ablated or are
            not one for each seed.

    Example:
        >>> config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, num_random_orders=2, steps=4)
        >>> dict(ja.run_study(config)["1-layer-8"]["accuracy"].sizes)
        {'seed': 1, 'scope': 2, 'ordering': 8, 'fill': 2, 'step': 5}
    """
    start = time.monotonic()
    report = on_progress or (lambda what, done, total, note: None)
    with contextlib.ExitStack() as held:

        def lock() -> str:
            for folder in (run_dir, network_dir):
                if folder is not None:
                    require_writable(folder)
            return (held.enter_context(lock_folder(run_dir)) if run_dir is not None else None) or ""

        if killed := broadcast_text(lock):
            report("resume", 0, 1, f"{killed} ended before it was done; what it finished is used")
        report("data", 0, 1, str(config.dataset))
        data = load_dataset(config.dataset, seed=config.split_seed, data_dir=config.data_dir)
        report("data", 1, 1, f"{data.source.name}: {data.source.origin}")
        if mesh is None and jax.process_count() > 1:
            mesh = jax.device_count()
        if isinstance(mesh, int | np.integer):
            mesh = choose_mesh(int(mesh), len(data.test))
            mesh = None if mesh.size == 1 else mesh  # one device shares out nothing, and is the faster for it
        devices = mesh_for(mesh)
        given = None if models is None else _given(models, config)
        units = CheckpointStore()
        identity = {}
        if run_dir is not None or jax.process_count() > 1:
            identity = json.loads(json.dumps(_identity(config, data, given)))
            folders = {"run_dir": run_dir is not None, "network_dir": network_dir is not None}
            _require_same({**identity, **folders, "mesh": None if devices is None else dict(devices.shape)})
        if run_dir is not None:
            folder = Path(run_dir)
            fingerprint = broadcast_text(lambda: open_run(folder, identity, force=force))
            units = CheckpointStore(folder / "units", fingerprint, lambda note: report("resume", 0, 1, note))
            network_dir = folder / "networks" if network_dir is None else network_dir
        if given is None:
            given = _trained(config, data, None if network_dir is None else Path(network_dir), report, devices)
        networks = {name: ablate_networks(config, name, data, of, units, report, devices) for name, of in given.items()}
    by_protocol = {
        protocol: {name: found[protocol] for name, found in networks.items()} for protocol in config.protocols
    }
    return study_results(by_protocol, dataclasses.asdict(config), data.source, time.monotonic() - start)


def _identity(config: StudyConfig, data: Dataset, given: Mapping[str, Networks] | None) -> dict[str, Any]:
    """All that the results of a run depend on, by name."""
    settings = dataclasses.asdict(config)
    del settings["dataset"], settings["data_dir"]  # what the data are says more than where they were found
    examples = data.test.images[:8]  # few: of many, the sums depend on the number of cores
    models = {name: [_what_it_does(model, examples) for model, _ in found] for name, found in (given or {}).items()}
    versions = {name: version(name) for name in ("jaxablate", "jax", "jaxlib", "flax", "optax", "numpy")}
    found = {"data": [data.source.name, data.source.sha256], "models": models, "versions": versions}
    return {**settings, **found, "backend": jax.default_backend()}


def _require_same(identity: dict[str, Any]) -> None:
    """Raise unless all processes are at the same run.

    Raises:
        InputError: in all of them; the message names a process that differs, and the differences.
    """
    first = json.loads(broadcast_text(lambda: json.dumps(identity)))
    for process in range(1, jax.process_count()):
        differences = broadcast_text(lambda: differences_of(first, identity), process)
        require(
            not differences,
            f"process {process}: expected the settings, data and versions of process 0 (there), got {differences}",
        )


def _what_it_does(model: Model, images: Images) -> str:
    """A digest of a network's state and of what it makes of images, at its sites and in the end: of weights that these
    images do not use, and of code that no state shows."""
    network, state, images = trace_model(model, images)
    logits, outputs = record(network, state, images)
    found = {str(i): np.asarray(array) for i, array in enumerate([logits, *outputs])}
    return digest({**found, "state": np.array(digest_of(state))})


def _given(models: Mapping[str, Model | Sequence[Model]], config: StudyConfig) -> dict[str, Networks]:
    require(
        isinstance(models, Mapping),
        f"models: expected them by name, such as {{'mine': model}}, got {type(models).__name__}",
    )
    require(len(models) > 0, "models: expected at least one, got none")
    return {name: _one_for_each_seed(name, of_name, config) for name, of_name in models.items()}


def _trained(
    config: StudyConfig, data: Dataset, folder: Path | None, report: OnProgress, mesh: Mesh | None
) -> dict[str, Networks]:
    """The networks of a config by name, trained or found in the folder."""
    require(len(config.networks) > 0, "networks: expected at least one, or models of your own, got none")

    def train(hidden: Sequence[int], stop: Stop) -> Networks:
        def report_unless_stopped(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            report(what, done, total, note)

        return trained_networks(config, hidden, data, folder, report_unless_stopped, mesh)

    # one network's small steps do not fill a CPU, so there kinds are trained side by side, not all of many, since each
    # has its copy of the images and its programs; several processes have to do things in the same order
    threads = num_cores() if jax.default_backend() == "cpu" and jax.process_count() == 1 else 1
    trained = run_all(train, config.networks, threads=threads)
    return {network_name(hidden): found for hidden, found in zip(config.networks, trained, strict=True)}


def _one_for_each_seed(name: str, models: Model | Sequence[Model], config: StudyConfig) -> Networks:
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
