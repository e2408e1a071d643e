"""Train the networks of a study, or read them from a folder where an earlier run saved them.

Input: a config and a dataset.
Output: one network and its history for each seed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxablate._checks import InputError, require
from jaxablate._precision import random_settings
from jaxablate._progress import OnProgress
from jaxablate.datasets import Dataset, load_dataset
from jaxablate.devices import Arrays, broadcast_from_primary
from jaxablate.models import MLP, load_model, save_model
from jaxablate.models._mlp import pop_tensors, to_tensors
from jaxablate.study._config import TRAINING, StudyConfig, network_name
from jaxablate.training import DivergedError, History, default_epochs, train_many

TrainedNetwork = tuple[MLP, History]
BATCHED = ("learning_rate", "l2", "label_noise")
"""Settings in which networks of one batch may differ."""
HISTORY_FIELDS = [field.name for field in dataclasses.fields(History)]


def load_data(config: StudyConfig) -> Dataset:
    """Load the dataset of a config."""
    return load_dataset(config.dataset, seed=config.split_seed, data_dir=config.data_dir)


def num_epochs(config: StudyConfig, data: Dataset) -> int:
    """Return the number of epochs of a config; if it is None, it follows from the size of the data."""
    return default_epochs(len(data.train), config.batch_size) if config.epochs is None else config.epochs


def trained_networks(
    config: StudyConfig,
    hidden: Sequence[int],
    data: Dataset,
    folder: Path | None,
    report: OnProgress,
    mesh: Mesh | None = None,
    checkpoints: Mapping[int, Path] | None = None,
) -> list[TrainedNetwork]:
    """Return one network for each seed: from the folder if its settings match, otherwise trained and saved there.

    With several processes on CPUs, each process trains all missing networks, so that the weights are the same to the
    last bit as in one process. The processes share only the curves, for the networks of process 0.

    Args:
        config: the settings.
        hidden: neurons of each hidden layer.
        data: the dataset.
        folder: folder of the trained networks; None saves nothing.
        report: called as the work progresses.
        mesh: devices that train the seeds; a CPU ignores the mesh.
        checkpoints: a folder for each of some smaller numbers of epochs. After that many epochs, the networks are also
            saved in that folder, with the settings of a training of that many epochs.

    Raises:
        InputError: if training diverges; the network from before that epoch is saved in the folder.
    """
    name, settings = network_name(hidden), _settings(config, data)
    paths = {seed: _path(folder, hidden, seed) for seed in config.seeds} if folder else {}
    texts = {seed: _text(config, hidden, data, seed) for seed in config.seeds}
    networks: dict[int, TrainedNetwork] = {}
    notes = []

    def load(seed: int) -> Arrays:
        try:
            return _to_arrays(*_load_matching(paths[seed], texts[seed])) if paths[seed].is_file() else {}
        except InputError as error:
            notes.append(f"trained again: {error}")
            return {}

    for seed in paths:
        if arrays := broadcast_from_primary(lambda seed=seed: load(seed)):
            networks[seed] = _from_arrays(arrays, config, data)
    missing = [seed for seed in config.seeds if seed not in networks]
    if networks:
        notes.append(f"reused {len(networks)} trained before, in {folder}")
    if notes:
        report(f"reuse {name}", len(networks), len(config.seeds), "; ".join(notes))
    if not missing:
        return [networks[seed] for seed in config.seeds]

    # A CPU trains each seed in a program of its own, which rounds the same way whatever the other seeds are. Elsewhere
    # one batched program trains all seeds, and its rounding depends on their number: train all, save the missing.
    on_cpu = jax.default_backend() == "cpu"
    seeds, mesh = (missing, None) if on_cpu else (config.seeds, mesh)

    def save(place: int, model: MLP, history: History) -> None:
        seed, epochs = seeds[place], len(history.loss)
        if checkpoints and epochs < settings["epochs"]:
            text = _text(config, hidden, data, seed, epochs)
            save_model(model, _path(checkpoints[epochs], hidden, seed), {"training": text}, **vars(history))
        elif seed in missing:
            networks[seed] = model, history
            if folder and jax.process_index() == 0:
                save_model(model, paths[seed], {"training": texts[seed]}, **vars(history))

    def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
        report(f"train {name}", done, total, f"training loss {loss:.3f}, accuracy {accuracy:.1%}")

    try:
        epochs = set(checkpoints or ())
        train_many(data, hidden, seeds, on_epoch=on_epoch, on_trained=save, checkpoints=epochs, mesh=mesh, **settings)
    except DivergedError as error:
        if not folder or jax.process_index() > 0:  # only process 0 writes
            raise
        path = folder / f"{name}_seed{error.seed}_epoch{error.epoch - 1}.safetensors"
        save_model(error.model, path, {"training": texts[error.seed]}, **vars(error.history))
        raise InputError(f"{error}; the network before that epoch is in {path}") from None
    if jax.process_count() > 1:  # CPUs of another kind may round differently
        for seed in missing:
            arrays = broadcast_from_primary(lambda seed=seed: _to_arrays(*networks[seed]))
            networks[seed] = _from_arrays(arrays, config, data)
    return [networks[seed] for seed in config.seeds]


def train_in_one_batch(
    conditions: Mapping[str, StudyConfig],
    hidden: Sequence[int],
    data: Dataset,
    folders: Mapping[str, Path],
    report: OnProgress,
    mesh: Mesh | None = None,
) -> None:
    """Train one architecture under several conditions in one batched program, and save the networks that are missing.

    The conditions may differ in the learning rate, l2 and label noise. If any network is missing, all are trained:
    the rounding of a batch depends on its size.

    Args:
        conditions: the settings by name; all other settings of training are equal.
        hidden: neurons of each hidden layer.
        data: the dataset.
        folders: folder of the networks of each condition.
        report: called as the work progresses.
        mesh: devices that train the networks.

    Raises:
        InputError: if training diverges; the message names the condition.
    """
    places = [(name, seed) for name, config in conditions.items() for seed in config.seeds]
    files = [_path(folders[name], hidden, seed) for name, seed in places]
    texts = [_text(conditions[name], hidden, data, seed) for name, seed in places]

    def is_saved(place: int) -> bool:
        try:
            return files[place].is_file() and bool(_load_matching(files[place], texts[place]))
        except InputError:
            return False

    missing = {place for place in range(len(places)) if not is_saved(place)}
    if not missing:
        return

    def save(place: int, model: MLP, history: History) -> None:
        if place in missing:
            save_model(model, files[place], {"training": texts[place]}, **vars(history))

    def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
        report(f"train {network_name(hidden)}", done, total, f"{len(conditions)} conditions, loss {loss:.3f}")

    settings = _settings(next(iter(conditions.values())), data)
    for setting in BATCHED:
        settings[setting] = [getattr(conditions[name], setting) for name, _ in places]
    seeds = [seed for _, seed in places]
    try:
        train_many(data, hidden, seeds, on_epoch=on_epoch, on_trained=save, mesh=mesh, parallel="vmap", **settings)
    except DivergedError as error:
        raise InputError(f"condition {places[error.place][0]}: {error}") from None


def _settings(config: StudyConfig, data: Dataset) -> dict[str, Any]:
    """Return the settings that `train_many` takes, by name."""
    settings = {field: getattr(config, field) for field in TRAINING if field not in ("networks", "seeds")}
    settings["epochs"] = num_epochs(config, data)
    # Files of earlier versions lack these settings. So a setting is recorded only if it differs from the default.
    for field in ("dropout", "batch_norm", "label_noise"):
        if settings[field] == getattr(StudyConfig, field):  # a dataclass keeps its defaults as attributes
            del settings[field]
    return settings


def _text(config: StudyConfig, hidden: Sequence[int], data: Dataset, seed: int, epochs: int | None = None) -> str:
    """Return the settings, seed and data of a network, as its file records them.

    A file is reused only if they are equal, so that a changed setting never meets old weights. Versions are not
    compared here: `open_run` compares them for the whole run.
    """
    identity = {**_settings(config, data), "hidden": hidden, "split_seed": config.split_seed}
    identity |= {"data": data.source.sha256, "seed": seed, **random_settings()}
    return json.dumps(identity if epochs is None else {**identity, "epochs": epochs}, sort_keys=True)


def _path(folder: Path, hidden: Sequence[int], seed: int) -> Path:
    """Return the file of a network in a folder."""
    return folder / f"{network_name(hidden)}_seed{seed}.safetensors"


def _to_arrays(model: MLP, history: History) -> Arrays:
    """Return a network and its history as arrays by name."""
    return {**to_tensors(model), **vars(history)}


def _from_arrays(arrays: Arrays, config: StudyConfig, data: Dataset) -> TrainedNetwork:
    """Invert `_to_arrays`."""
    shape = data.train.images.shape[1:] if data.train.images.ndim > 2 else None
    model = pop_tensors(dict(arrays), activation=config.activation, dropout=config.dropout, image_shape=shape)
    return model, History(**{name: arrays[name] for name in HISTORY_FIELDS})


def _load_matching(path: Path, training: str) -> TrainedNetwork:
    """Load a saved network and its history.

    Raises:
        InputError: if the file was trained with other settings or cannot be used.
    """
    saved = load_model(path)
    require(saved.metadata.get("training") == training, f"{path.name} comes from other settings or data")
    require(set(saved.arrays) == set(HISTORY_FIELDS), f"{path.name} lacks a whole history")
    return saved.model, History(**saved.arrays)
