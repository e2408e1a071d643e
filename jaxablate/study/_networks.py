"""The networks of a study: trained, or read from a folder where an earlier run has left them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import InputError, require
from jaxablate._parallel import num_cores
from jaxablate._processes import Arrays, broadcast_from_primary, broadcast_text, is_primary_process
from jaxablate.datasets import Dataset
from jaxablate.models import MLP, from_arrays, load_model, save_model
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.training import DivergedError, History, OnTrained, default_epochs, train_many

Trained = tuple[MLP, History]

OnProgress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a note."""


def trained_networks(
    config: StudyConfig,
    hidden: Sequence[int],
    data: Dataset,
    folder: Path | None,
    report: OnProgress,
    mesh: Mesh | None = None,
) -> list[tuple[MLP, History]]:
    """One network for each seed, read from the folder where it fits, trained (and saved there) otherwise."""
    name = network_name(hidden)
    what = f"train {name}"
    settings = {
        "activation": config.activation,
        "epochs": default_epochs(len(data.train), config.batch_size) if config.epochs is None else config.epochs,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "l2": config.l2,
    }
    identity = {**settings, "hidden": hidden, "split_seed": config.split_seed, "data": data.source.sha256}
    found: dict[int, Trained] = {}
    paths = {seed: folder / f"{name}_seed{seed}.safetensors" for seed in config.seeds} if folder else {}
    texts = {seed: json.dumps({**identity, "seed": seed}, sort_keys=True) for seed in config.seeds}
    notes = []

    def stored(seed: int) -> Arrays:
        try:
            return _arrays_of(*_reusable(paths[seed], texts[seed])) if paths[seed].is_file() else {}
        except InputError as error:
            notes.append(f"trained anew: {error}")
            return {}

    for seed in paths:
        if arrays := broadcast_from_primary(partial(stored, seed)):
            found[seed] = _trained_of(arrays, config.activation)
    missing = [seed for seed in config.seeds if seed not in found]
    if found:
        notes.append(f"reused {len(found)} trained before, in {folder}")
    if notes:
        report(f"reuse {name}", len(found), len(config.seeds), "; ".join(notes))

    def keep(seed: int, model: MLP, history: History) -> None:
        if seed in missing:
            found[seed] = model, history
            if folder and is_primary_process():
                save_model(model, paths[seed], {"training": texts[seed]}, **vars(history))

    def train(seeds: Sequence[int], keep: OnTrained, mesh: Mesh | None) -> None:
        def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
            report(what, done, total, f"loss {loss:.3f}, accuracy {accuracy:.1%}")

        train_many(data, hidden, seeds, on_epoch=on_epoch, on_trained=keep, mesh=mesh, **settings)

    try:
        if missing and jax.default_backend() != "cpu":
            # in one batched program the others round differently without those found: train all, keep the missing
            train(config.seeds, keep, mesh)
        elif jax.process_count() > 1:
            _train_in_turn(missing, lambda seeds, keep: train(seeds, keep, None), keep, config.activation)
        elif missing:
            train(missing, keep, None)  # not on a mesh: as alone, to the last bit
    except DivergedError as error:
        if not folder or not is_primary_process():  # the folder is that of process 0
            raise
        path = folder / f"{name}_seed{error.seed}_epoch{error.epoch - 1}.safetensors"
        save_model(error.model, path, {"training": texts[error.seed]}, **vars(error.history))
        raise InputError(f"{error}; the network before that epoch is in {path}") from None
    return [found[seed] for seed in config.seeds]


def _train_in_turn(
    seeds: Sequence[int],
    train: Callable[[Sequence[int], OnTrained], None],
    keep: OnTrained,
    activation: str,
) -> None:
    """Each process trains some of the networks, as many at a time as it has cores; all get and keep all of them.

    Raises:
        DivergedError: in all of them, when they have kept what the others have trained.
    """
    number, own = jax.process_count(), jax.process_index()
    at_a_time = number * int(broadcast_text(lambda: str(num_cores())))
    for i in range(0, len(seeds), at_a_time):
        together = seeds[i : i + at_a_time]
        trained: dict[int, Trained] = {}
        diverged: DivergedError | None = None
        failed: Exception | None = None
        if together[own::number]:
            try:
                train(together[own::number], lambda seed, *of, trained=trained: trained.update({seed: of}))
            except DivergedError as error:
                diverged = error
            except Exception as error:
                failed = error

        def arrays(seed: int, trained=trained, failed=failed) -> Arrays:
            if failed is not None:
                raise failed
            return _arrays_of(*trained[seed]) if seed in trained else {}

        def last_good(diverged=diverged) -> Arrays:
            if diverged is None:
                return {}
            where = {"where": np.array([diverged.seed, diverged.epoch])}
            return where | _arrays_of(diverged.model, diverged.history)

        for place, seed in enumerate(together):
            if found := broadcast_from_primary(partial(arrays, seed), place % number):
                keep(seed, *_trained_of(found, activation))
        for process in range(number):
            if found := broadcast_from_primary(last_good, process):
                seed, epoch = found.pop("where").tolist()
                raise DivergedError(seed, epoch, *_trained_of(found, activation))


def _arrays_of(model: MLP, history: History) -> Arrays:
    """A network and its history as arrays by name."""
    weights = (np.asarray(array) for stage in model.stages for array in stage.weights)
    return {**{str(i): array for i, array in enumerate(weights)}, **vars(history)}


def _trained_of(arrays: Arrays, activation: str) -> Trained:
    """What `_arrays_of` made arrays of."""
    names = [field.name for field in dataclasses.fields(History)]
    weights = [arrays[str(i)] for i in range(len(arrays) - len(names))]
    model = from_arrays(weights[::2], weights[1::2], activation=activation)
    return model, History(**{name: arrays[name] for name in names})


def _reusable(path: Path, training: str) -> tuple[MLP, History]:
    """The network and history of a file, if they were trained just so.

    Raises:
        InputError: saying why the file is of no use.
    """
    saved = load_model(path)
    require(saved.metadata.get("training") == training, f"{path.name} comes from other settings or data")
    names = {field.name for field in dataclasses.fields(History)}
    require(set(saved.arrays) == names, f"{path.name} lacks a whole history")
    return saved.model, History(**saved.arrays)
