"""The networks of a study: trained, or read from a folder where an earlier run has left them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxablate._checks import InputError, require
from jaxablate.datasets import Dataset
from jaxablate.models import MLP, load_model, save_model
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.training import DivergedError, History, default_epochs, train_many

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
    found: dict[int, tuple[MLP, History]] = {}
    paths = {seed: folder / f"{name}_seed{seed}.safetensors" for seed in config.seeds} if folder else {}
    texts = {seed: json.dumps({**identity, "seed": seed}, sort_keys=True) for seed in config.seeds}
    notes = []
    for seed, path in paths.items():
        if path.is_file():
            try:
                found[seed] = _reusable(path, texts[seed])
            except InputError as error:
                notes.append(f"trained anew: {error}")
    missing = [seed for seed in config.seeds if seed not in found]
    if found:
        notes.append(f"reused {len(found)} trained before, in {folder}")
    if notes:
        report(f"reuse {name}", len(found), len(config.seeds), "; ".join(notes))

    def keep(seed: int, model: MLP, history: History) -> None:
        if seed in missing:
            found[seed] = model, history
            if folder:
                save_model(model, paths[seed], {"training": texts[seed]}, **vars(history))

    if missing:
        try:
            train_many(
                data,
                hidden,
                # in one batched program the others round differently without those found: train all, keep the missing
                missing if jax.default_backend() == "cpu" else config.seeds,
                on_epoch=lambda done, total, loss, accuracy: report(
                    what, done, total, f"loss {loss:.3f}, accuracy {accuracy:.1%}"
                ),
                on_trained=keep,
                mesh=None if jax.default_backend() == "cpu" else mesh,  # as alone, to the last bit
                **settings,
            )
        except DivergedError as error:
            if not folder:
                raise
            path = folder / f"{name}_seed{error.seed}_epoch{error.epoch - 1}.safetensors"
            save_model(error.model, path, {"training": texts[error.seed]}, **vars(error.history))
            raise InputError(f"{error}; the network before that epoch is in {path}") from None
    return [found[seed] for seed in config.seeds]


def _reusable(path: Path, training: str) -> tuple[MLP, History]:
    """The network and history of a file, if they were trained just so.

    Raises:
        InputError: saying why the file is of no use.
    """
    model, metadata, arrays = load_model(path)
    require(metadata.get("training") == training, f"{path.name} comes from other settings or data")
    names = {field.name for field in dataclasses.fields(History)}
    require(set(arrays) == names, f"{path.name} lacks a whole history")
    return model, History(**arrays)
