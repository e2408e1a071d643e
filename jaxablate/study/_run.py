"""Run a study: every stage, for every network.

Input: a `StudyConfig`, and networks if they are already trained.
Output: an `xarray.DataTree` of labelled results.
"""

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
from jax.sharding import Mesh

from jaxablate._checks import as_path, require, require_name, require_type
from jaxablate._precision import random_settings
from jaxablate._progress import BARS, OnProgress, Progress, progress_reporter
from jaxablate._rundir import CheckpointStore, digest, format_differences, lock_folders, open_run
from jaxablate._typing import Images
from jaxablate.datasets import AUTO, Dataset
from jaxablate.datasets._types import check_dataset
from jaxablate.devices import Stop, allgather_text, broadcast_text, make_mesh, mesh_for, num_cores, run_all
from jaxablate.models import AnyModel
from jaxablate.models._model import record_sites, state_digest, trace_model
from jaxablate.results import study_results
from jaxablate.results._labels import stated_settings
from jaxablate.study._ablate import ablate_networks
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._grid import run_conditions
from jaxablate.study._networks import load_data, trained_networks
from jaxablate.training import History

Networks = Sequence[tuple[AnyModel, History | None]]
"""The networks of one architecture, one for each seed, each with its training history if that is known."""


def run_study(
    config: StudyConfig,
    models: Mapping[str, AnyModel | Sequence[AnyModel]] | None = None,
    *,
    data: Dataset | None = None,
    run_dir: str | Path | None = None,
    force: bool = False,
    network_dir: str | Path | None = None,
    on_progress: Progress = BARS,
    mesh: Mesh | int | None = None,
) -> xr.DataTree:
    """Run the whole experiment: train, score, rank and ablate every network, under every condition of the config.

    Args:
        config: the settings.
        models: your own networks by name, to score, rank and ablate; nothing is trained then. A value is a module with
            sites, or a sequence of modules of one architecture, one for each seed of the config.
        data: dataset in memory, for example from `ja.Dataset.from_arrays`; None loads the dataset of the config. With
            `data`, leave `dataset` in the config at its default; `data_dir` and `split_seed` do not change the data.
            The checksums of the arrays identify the run.
        run_dir: folder of the run; None saves nothing. Each trained network, the scores of each network and the curves
            of each scope are saved as soon as they are finished. If the run is interrupted, the same call resumes it,
            and the results are identical. A folder holds one run, of one config.
        force: if `run_dir` holds another run, discard its scores and curves and start over. Networks that were trained
            there with the same settings and data are reused.
        network_dir: folder of the trained networks; networks that were trained there with the same settings and data
            are reused. None uses `networks` in `run_dir`, if there is a `run_dir`.
        on_progress: "bars" shows progress bars with the remaining time on a terminal or in a notebook, and nothing
            elsewhere; None shows nothing. A function is called as the work progresses with (what, done, total, note):
            the name of the stage, its finished and total units of work, and a note.
        mesh: devices that share the curves, from `ja.devices.make_mesh`, or their number. The counts are the same as on
            one device.

    Returns:
        An `xarray.DataTree` with one node for each network: `results["3-layer"]`, or `results["published/3-layer"]`
        under another protocol than the paper's. `select_protocol` selects all networks of a protocol. A node holds

        - the training history (seed, epoch); for your own models instead `model_sha256` (seed), a checksum of the
          arrays of each network: parameters, running statistics and constants; not of its code,
        - `scores` (seed, score, neuron),
        - `ablated` (seed, scope, ordering, rank),
        - `correct` and `accuracy` (seed, scope, ordering, fill, step); the coordinate `num_ablated` (scope, step) is
          the number of ablated neurons,
        - `class_accuracy` (seed, scope, ordering, fill, step, class): accuracy within each class, if the config has
          `by_class`; NaN for a class without test examples,
        - `single_correct` and `single_damage` (seed, neuron): correct predictions and rise of the loss in nats if only
          that neuron is ablated,
        - `single_class_drop` (seed, neuron, class): fall of the accuracy within a class if only that neuron is ablated,
          a fraction; NaN for a class without test examples.

        Coordinates give the site, the layer and both ids of each neuron; the provenance is in `attrs`.

        If the config varies settings, the tree has one node for each condition. Such a node is a tree as above, and
        `ja.results.conditions_of` returns the varied settings of each condition. Conditions share compiled programs,
        and networks if their settings of training are equal. In `run_dir`, the folder `conditions` has a folder for
        each condition.

    Raises:
        InputError: for a dataset that cannot be loaded, both `data` and a dataset in the config, models that cannot be
            ablated, another number of models than seeds, or a folder that cannot be written. Also for a folder where
            another run is working, or where a run was started with another config, data, version or backend. Also for
            a varied setting that has no effect on `models` or `data`.

    Example:
        >>> config = ja.StudyConfig(dataset="mnist5k", networks=((8,),), epochs=1, num_random_orders=2, steps=4)
        >>> dict(ja.run_study(config)["1-layer-8"]["accuracy"].sizes)
        {'seed': 1, 'scope': 2, 'ordering': 8, 'fill': 2, 'step': 5}
    """
    require_type("config", config, StudyConfig, "a StudyConfig")
    require(
        on_progress is None or on_progress == BARS or callable(on_progress),
        f'on_progress: expected "bars", None or a function, got {type(on_progress).__name__}',
    )
    run_dir, network_dir = (
        None if folder is None else as_path(name, folder)
        for name, folder in (("run_dir", run_dir), ("network_dir", network_dir))
    )
    if data is not None:
        require(
            config.dataset == AUTO,
            f"data: the config also names the dataset {config.dataset!r}; leave one of the two out",
        )
        data = check_dataset(data)
    folders = {"run_dir": run_dir, "network_dir": network_dir, "force": force}
    with progress_reporter(on_progress) as report:
        if config.vary:
            results = run_conditions(config, models, data, run_condition, **folders, report=report, mesh=mesh)
        else:
            results = run_condition(config, models, data, **folders, report=report, mesh=mesh)
    if data is not None:  # then `dataset`, `data_dir` and `split_seed` of the config say nothing about them
        results.attrs["data_passed"] = 1
    return results


def run_condition(
    config: StudyConfig,
    models: Mapping[str, AnyModel | Sequence[AnyModel]] | None,
    data: Dataset | None,
    *,
    run_dir: Path | None,
    network_dir: Path | None,
    force: bool,
    report: OnProgress,
    mesh: Mesh | int | None,
) -> xr.DataTree:
    """Run the study of a config without varied settings, on `data` or on the config's dataset."""
    start = time.monotonic()
    with lock_folders(run_dir, network_dir, report):
        report("data", 0, 1, str(config.dataset if data is None else data.source.name))
        if data is None:
            data = load_data(config)
        report("data", 1, 1, f"{data.source.name}: {data.source.origin}")
        if mesh is None and jax.process_count() > 1:
            mesh = jax.device_count()
        if isinstance(mesh, int | np.integer):
            mesh = make_mesh(int(mesh))
            mesh = None if mesh.size == 1 else mesh  # one device is faster without a mesh
        devices = mesh_for(mesh)
        # The user's models are checked before `_identity` evaluates them.
        networks = None if models is None else _checked_models(models, config)
        store = CheckpointStore()
        # Without a folder and with one process nobody compares the identity, and computing it runs the user's models.
        identity = {}
        if run_dir is not None or jax.process_count() > 1:
            # Through JSON and back, so that tuples equal the lists that a run file holds.
            identity = json.loads(json.dumps(_identity(config, data, networks)))
            folders = {"run_dir": run_dir is not None, "network_dir": network_dir is not None}
            _require_same({**identity, **folders, "mesh": None if devices is None else dict(devices.shape)})
        if run_dir is not None:
            folder = run_dir
            run_digest = broadcast_text(lambda: open_run(folder, identity, force=force))
            store = CheckpointStore(folder / "units", run_digest, lambda note: report("resume", 0, 1, note))
            network_dir = folder / "networks" if network_dir is None else network_dir
        if networks is None:
            networks = _train(config, data, network_dir, report, devices)
        by_network = {
            name: ablate_networks(config, name, data, of_name, store, report, devices)
            for name, of_name in networks.items()
        }
    by_protocol = {
        protocol: {name: datasets[protocol] for name, datasets in by_network.items()} for protocol in config.protocols
    }
    settings = stated_settings(_settings(config), is_trained=models is None)
    return study_results(by_protocol, settings, data.source, time.monotonic() - start)


def _settings(config: StudyConfig) -> dict[str, Any]:
    """Return the settings of a study by name, without `vary`, which is empty in the study of one condition."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "vary"}


def _identity(config: StudyConfig, data: Dataset, networks: Mapping[str, Networks] | None) -> dict[str, Any]:
    """Return everything that the results of a run depend on, by name."""
    settings = _settings(config)
    del settings["dataset"], settings["data_dir"]  # the checksum of the data says more than their path
    examples = data.test.images[:8]  # few, since sums over many examples round differently with the number of cores
    models = {
        name: [_model_digest(model, examples) for model, _ in of_name] for name, of_name in (networks or {}).items()
    }
    versions = {name: version(name) for name in ("jaxablate", "jax", "jaxlib", "flax", "optax", "numpy")}
    versions |= random_settings()
    return {
        **settings,
        "data": [data.source.name, data.source.sha256],
        "models": models,
        "versions": versions,
        "backend": jax.default_backend(),
    }


def _require_same(identity: dict[str, Any]) -> None:
    """Raise in all processes unless all have the same identity.

    Raises:
        InputError: the message names the first process that differs, and its differences.
    """
    first, *rest = map(json.loads, allgather_text(lambda: json.dumps(identity)))
    for process, settings in enumerate(rest, 1):
        differences = format_differences(first, settings, ("in process 0", f"in process {process}"))
        require(
            not differences,
            f"process {process}: settings, data or versions differ from process 0 ({differences}); start all processes "
            "with the same command",
        )


def _model_digest(model: AnyModel, images: Images) -> str:
    """Return a digest of a network's state and of its outputs, at the sites and at the end.

    The state alone would miss a change of the code; the outputs alone would miss weights that these images do not use.
    """
    network, state, images = trace_model(model, images)
    logits, outputs = record_sites(network, state, images)
    arrays = {str(i): np.asarray(array) for i, array in enumerate([logits, *outputs])}
    return digest({**arrays, "state": np.array(state_digest(state))})


def _train(
    config: StudyConfig, data: Dataset, folder: Path | None, report: OnProgress, mesh: Mesh | None
) -> dict[str, Networks]:
    """Train the networks of a config, or load them from the folder; return them by name."""
    require(len(config.networks) > 0, "networks: no architecture to train; name one, or pass your own models")

    def train(hidden: Sequence[int], stop: Stop) -> Networks:
        def report_unless_stopped(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            report(what, done, total, note)

        return trained_networks(config, hidden, data, folder, report_unless_stopped, mesh)

    # The small steps of one network do not fill a CPU, so several architectures are trained side by side there. Each
    # has its own programs and copy of the images, hence at most one for each core. Several processes exchange networks
    # and therefore need the same order of work.
    threads = num_cores() if jax.default_backend() == "cpu" and jax.process_count() == 1 else 1
    trained = run_all(train, config.networks, threads=threads)
    return {network_name(hidden): networks for hidden, networks in zip(config.networks, trained, strict=True)}


def _checked_models(models: Mapping[str, AnyModel | Sequence[AnyModel]], config: StudyConfig) -> dict[str, Networks]:
    """Return the user's models as networks without a history, by name.

    Raises:
        InputError: for a name that no node of the results can have, or another number of models than seeds.
    """
    require(
        isinstance(models, Mapping),
        f"models: expected a mapping from names to models, such as {{'mine': model}}, got {type(models).__name__}",
    )
    require(len(models) > 0, "models: the mapping is empty; pass at least one model")
    networks = {}
    for name, of_name in models.items():
        require_name("models", name)
        require(name not in config.protocols, f"models: {name!r} is the name of a protocol; choose another name")
        require_type("models", of_name, AnyModel | Sequence, "a network or a sequence of networks for each name")
        sequence = [of_name] if isinstance(of_name, AnyModel) else list(of_name)
        require(
            len(sequence) == len(config.seeds),
            f"models: expected {len(config.seeds)} models for {name!r}, one for each of the seeds {config.seeds}, got "
            f"{len(sequence)}",
        )
        networks[name] = [(model, None) for model in sequence]
    return networks
