"""Run a study under every condition of a config that varies settings.

Input: a `StudyConfig` with `vary`.
Output: an `xarray.DataTree` with the study of each condition.
Memory: one dataset at a time, and the results of all conditions.
"""

import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from jaxablate._checks import InputError, require
from jaxablate._progress import OnProgress
from jaxablate._rundir import lock_folders, open_run
from jaxablate.datasets import Dataset
from jaxablate.devices import Stop, broadcast_text, num_cores, run_all
from jaxablate.models import AnyModel
from jaxablate.results import grid_results
from jaxablate.results._labels import stated_settings
from jaxablate.study._config import TRAINING, StudyConfig
from jaxablate.study._networks import (
    BATCHED,
    load_data,
    num_epochs,
    train_in_one_batch,
    trained_networks,
)

CONDITIONS = "conditions"
"""Folder of the conditions in the folder of a run."""

DATA = ("dataset", "data_dir", "split_seed")
"""Settings on which the data depend."""


# Conditions with the same data run one after another, so that only one dataset is in memory. Their networks are trained
# first, since the small steps of one network fill no device: on a CPU in parallel, on other devices in batches of
# conditions of equal shapes. Compiled programs depend on shapes, not on the values of settings such as L2, so such
# conditions share them. The studies then run one after another and load their networks from the folder.
# Conditions with equal settings of training share networks, which are in the folder of the first such condition.
# Conditions that differ only in the number of epochs are trained once: the shorter ones are checkpoints of the longest.
def run_conditions(
    config: StudyConfig,
    models: Mapping[str, AnyModel | Sequence[AnyModel]] | None,
    data: Dataset | None,
    run_condition: Callable[..., xr.DataTree],
    *,
    run_dir: Path | None,
    network_dir: Path | None,
    force: bool,
    report: OnProgress,
    **options: Any,
) -> xr.DataTree:
    """Run the study of every condition of a config.

    Args:
        config: the settings, with at least one setting in `vary`.
        models, data, run_dir, network_dir, force: as in `run_study`; `data` is already checked.
        run_condition: runs the study of one condition.
        report: called as `on_progress` of `run_study`.
        options: further arguments of `run_condition`.

    Returns:
        A tree with one node for each condition, from `grid_results`.

    Raises:
        InputError: as in `run_study`; also for a varied setting that has no effect on your own models or data.
    """
    start, conditions = time.monotonic(), config.conditions()
    fixed = [*(TRAINING if models is not None else ()), *(DATA if data is not None else ())]
    unused = [name for name in config.vary if name in fixed]
    require(not unused, f"vary: {', '.join(unused)} changes neither your own networks nor your own data; leave it out")
    firsts: dict[str, str] = {}  # the first condition with each combination of settings of data and training
    # An owner follows from the config alone, so a repeated command looks for networks in the same folders.
    owners = {
        name: firsts.setdefault(repr([getattr(condition, setting) for setting in (*DATA, *TRAINING)]), name)
        for name, condition in conditions.items()
    }
    groups: dict[tuple[str | Path | None, ...], list[str]] = {}
    for name, condition in conditions.items():
        groups.setdefault(tuple(getattr(condition, setting) for setting in DATA), []).append(name)
    trees: dict[str, xr.DataTree] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folders(run_dir, network_dir, report))
        # A dataset that cannot be loaded is reported before any work on the others. The first one is loaded last.
        by_dataset: dict[str | Path, StudyConfig] = {}
        for condition in conditions.values():
            by_dataset.setdefault(condition.dataset, condition)
        shared = data
        for condition in reversed(by_dataset.values()) if data is None else ():
            shared = load_data(condition)
        if run_dir is not None:
            # Without name and path of the data: each condition compares the checksums of its data in its own folder.
            identity = json.loads(json.dumps({**dataclasses.asdict(config), "dataset": None, "data_dir": None}))
            broadcast_text(lambda: open_run(run_dir, identity, force=force))
        if network_dir is None:
            temporary = run_dir is None and models is None
            network_dir = Path(stack.enter_context(tempfile.TemporaryDirectory())) if temporary else run_dir
        for i, names in enumerate(groups.values()):
            if data is None and i > 0:
                shared = load_data(conditions[names[0]])
            assert shared is not None
            folders = {
                name: None if network_dir is None else network_dir / CONDITIONS / owners[name] / "networks"
                for name in names
            }
            # Not with several processes, which exchange networks and so need the same order of work.
            if models is None and jax.process_count() == 1:
                trained = {name: conditions[name] for name in names if owners[name] == name}
                train = _train_side_by_side if jax.default_backend() == "cpu" else _train_in_batches
                train(trained, shared, folders, report)
            for name in names:
                report("conditions", len(trees), len(conditions), name)
                trees[name] = run_condition(
                    conditions[name],
                    models,
                    shared,
                    run_dir=None if run_dir is None else run_dir / CONDITIONS / name,
                    network_dir=folders[name],
                    force=force,
                    report=report,
                    **options,
                )
        report("conditions", len(conditions), len(conditions), "")
    settings = stated_settings(dataclasses.asdict(config), is_trained=models is None)
    return grid_results({name: trees[name] for name in conditions}, settings, time.monotonic() - start)


def _train_in_batches(
    conditions: Mapping[str, StudyConfig], data: Dataset, folders: Mapping[str, Path | None], report: OnProgress
) -> None:
    """Train conditions that differ only in settings of `BATCHED` in one batch; for the arguments see below."""
    batches: dict[str, list[str]] = {}
    for name, condition in conditions.items():
        settings = [getattr(condition, setting) for setting in TRAINING if setting not in BATCHED]
        batches.setdefault(repr(settings), []).append(name)
    for names in batches.values():
        # A condition alone trains its seeds in one batch by itself.
        for hidden in conditions[names[0]].networks if len(names) > 1 else ():
            batch = {name: conditions[name] for name in names}
            train_in_one_batch(batch, hidden, data, {n: f for n, f in folders.items() if f is not None}, report)


def _train_side_by_side(
    conditions: Mapping[str, StudyConfig], data: Dataset, folders: Mapping[str, Path | None], report: OnProgress
) -> None:
    """Train the networks of several conditions in parallel, and save them in their folders.

    Each task trains one architecture of one condition; at most one task runs on each core. Of conditions that differ
    only in the number of epochs, the longest is trained, and the networks of the others are its checkpoints.

    Args:
        conditions: settings of each condition, by its name.
        data: the dataset.
        folders: folder of the networks of each condition.
        report: called as `on_progress` of `run_study`, with numbers of trained networks.

    Raises:
        InputError: if training diverges; the message names the condition.
    """
    # as numbers, since checkpoints need their order
    epochs = {name: num_epochs(condition, data) for name, condition in conditions.items()}
    trainings: dict[str, list[str]] = {}  # conditions that differ only in the number of epochs, the longest first
    for name in sorted(conditions, key=epochs.__getitem__, reverse=True):
        settings = [getattr(conditions[name], setting) for setting in TRAINING if setting != "epochs"]
        trainings.setdefault(repr(settings), []).append(name)
    # If a killed run leaves a folder without its checkpoints, the condition's own study trains them.
    tasks = [
        (longest, hidden, {epochs[name]: folder for name in shorter if (folder := folders[name])})
        for longest, *shorter in trainings.values()
        for hidden in conditions[longest].networks
    ]
    fractions, lock = [0.0] * len(tasks), threading.Lock()
    num_seeds = len(next(iter(conditions.values())).seeds)

    def train(task: int, stop: Stop) -> None:
        name, hidden, checkpoints = tasks[task]

        def report_sum(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            with lock:
                fractions[task] = done / total
                # The tolerance absorbs rounding: a sum just below a whole number counts as that number.
                trained = int(num_seeds * sum(fractions) + 1e-6)
                report("train", trained, num_seeds * len(tasks), f"{name}: {note}")

        try:
            trained_networks(conditions[name], hidden, data, folders[name], report_sum, checkpoints=checkpoints)
        except InputError as error:
            raise InputError(f"condition {name}: {error}") from None
        report_sum("train", 1, 1, "")

    run_all(train, range(len(tasks)), threads=num_cores())
