"""The study: a `StudyConfig` comes in, the labelled results of the whole experiment go out.

The one place where the stages meet: load, train, record, score, order, ablate, label.
"""

import dataclasses
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxablate._checks import InputError, require, require_known
from jaxablate._files import require_writable
from jaxablate._parallel import Stop, run_all
from jaxablate._typing import Counts, Fill
from jaxablate.ablation import cumulative_ablation
from jaxablate.activations import mean_activations, record_activations
from jaxablate.datasets import Dataset, load_dataset
from jaxablate.histograms import joint_histogram
from jaxablate.metrics import METRICS, get_metric
from jaxablate.models import ACTIVATIONS, MLP, load_model, save_model, site_bounds
from jaxablate.orders import DIRECTIONS, ablation_order, random_orders
from jaxablate.quantizers import default_quantizer
from jaxablate.results import RANDOM, Ordering, network_results, study_results
from jaxablate.training import History, default_epochs, train_many

FILLS = ("zero", "mean")

OnProgress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a note."""


@dataclass(frozen=True)
class StudyConfig:
    """What to run; the defaults are the paper's experiment.

    Attributes:
        dataset: as in `load_dataset`.
        data_dir: as in `load_dataset`.
        split_seed: of the training / validation split.
        networks: hidden layers of each network.
        activation: of the hidden layers.
        seeds: one network of each kind is trained for each.
        epochs: None keeps the number of optimiser steps near the paper's.
        batch_size: examples of one optimiser step.
        learning_rate: of Adam.
        l2: coefficient of the weights in the gradient.
        metrics: scores that rank neurons.
        random_orders: random permutations for each network, seed and scope.
        steps: neurons ablated, one after another.

    Raises:
        InputError: for an unknown activation or metric, more steps than the smallest layer has neurons, or a
            setting out of range or of another kind.

    Example:
        >>> ja.StudyConfig(dataset="mnist5k", seeds=(0, 1)).steps
        80
    """

    dataset: str | Path = "auto"
    data_dir: str | Path | None = None
    split_seed: int = 2045
    networks: Sequence[Sequence[int]] = ((200, 200), (200, 200, 200))
    activation: str = "sigmoid"
    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    l2: float = 1e-3
    metrics: Sequence[str] = tuple(METRICS)
    random_orders: int = 10
    steps: int = 80

    def __post_init__(self):
        for name in ("seeds", "metrics", "networks"):
            value = getattr(self, name)
            require(
                isinstance(value, Iterable) and not isinstance(value, str),
                f"{name}: expected a sequence, got {value!r}",
            )
        require(
            all(isinstance(hidden, Iterable) for hidden in self.networks),
            f"networks: expected the hidden layers of each network, such as ((200, 200),), got {self.networks!r}",
        )
        plain = {
            "dataset": str(self.dataset),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "networks": tuple(tuple(int(width) for width in hidden) for hidden in self.networks),
            "seeds": tuple(int(seed) for seed in self.seeds),
            "metrics": tuple(self.metrics),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the documented way to fill a frozen dataclass
        self._check()

    def _check(self) -> None:
        require_known("activation", self.activation, ACTIVATIONS)
        for metric in self.metrics:
            require_known("metric", metric, METRICS)
        for name in ("networks", "seeds", "metrics"):
            values = getattr(self, name)
            require(len(values) > 0, f"{name}: expected at least one, got none")
            require(len(set(values)) == len(values), f"{name}: expected different ones, got {values}")
        require(
            all(len(hidden) > 0 and min(hidden) >= 1 for hidden in self.networks),
            f"networks: expected hidden layers of at least one neuron each, got {self.networks}",
        )
        require(
            all(0 <= seed < 2**32 for seed in self.seeds), f"seeds: expected numbers in 0..2^32-1, got {self.seeds}"
        )
        for name in ("random_orders", "batch_size", "epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: expected at least 1, got {value}")
        require(self.learning_rate > 0, f"learning_rate: expected a number above 0, got {self.learning_rate}")
        require(self.l2 >= 0, f"l2: expected a number of at least 0, got {self.l2}")
        largest = min(min(hidden) for hidden in self.networks)
        require(
            1 <= self.steps <= largest,
            f"steps: expected 1 to {largest}, the neurons of the smallest layer, got {self.steps}; "
            f"{largest} is the largest possible",
        )

    @property
    def orderings(self) -> tuple[Ordering, ...]:
        """Every ordering evaluated: each metric low and high values first, then the random ones."""
        ranked = [Ordering(metric, direction) for metric in self.metrics for direction in DIRECTIONS]
        return (*ranked, *(Ordering(RANDOM, str(i)) for i in range(self.random_orders)))


def network_name(hidden: Sequence[int]) -> str:
    """The name of a network in the results: `2-layer` for (200, 200), `2-layer-100-50` for (100, 50).

    Args:
        hidden: neurons of each hidden layer.

    Returns:
        The name of the node.

    Example:
        >>> ja.network_name((200, 200, 200))
        '3-layer'
    """
    depth = f"{len(hidden)}-layer"
    return depth if set(hidden) == {200} else "-".join([depth, *map(str, hidden)])


def run_study(
    config: StudyConfig, *, network_dir: str | Path | None = None, on_progress: OnProgress | None = None
) -> xr.DataTree:
    """Run the whole experiment: train, score, rank and ablate every network.

    Args:
        config: what to run.
        network_dir: a folder for the trained networks; those found there with the same training settings and data
            are used again. None keeps nothing.
        on_progress: called with (what, done, total, note) as the work goes on.

    Returns:
        An `xarray.DataTree` with one node for each network (`results["3-layer"]`), which holds the training history
        (seed, epoch), `scores` (seed, metric, neuron) with the coordinate `layer`, `ablated` (seed, scope, ordering,
        rank), and `correct` and `accuracy` (seed, scope, ordering, fill, step); provenance is in `attrs`.

    Raises:
        InputError: for a dataset that cannot be loaded, or a folder that cannot be written.

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

    def train(hidden: Sequence[int], stop: Stop) -> list[tuple[MLP, History]]:
        def report_unless_stopped(what: str, done: int, total: int, note: str) -> None:
            stop.check()
            report(what, done, total, note)

        return _trained(config, hidden, data, folder, report_unless_stopped)

    # one network's small steps do not fill a CPU, so there the kinds are trained side by side
    threads = len(config.networks) if jax.default_backend() == "cpu" else 1
    trained = run_all(train, config.networks, threads=threads)
    networks = {
        network_name(hidden): _analyse(config, hidden, data, models, report)
        for hidden, models in zip(config.networks, trained, strict=True)
    }
    return study_results(networks, dataclasses.asdict(config), data.source)


def _trained(
    config: StudyConfig, hidden: Sequence[int], data: Dataset, folder: Path | None, report: OnProgress
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
    if missing:
        new = train_many(
            data,
            hidden,
            missing,
            on_epoch=lambda done, total, loss, accuracy: report(
                what, done, total, f"loss {loss:.3f}, accuracy {accuracy:.1%}"
            ),
            **settings,
        )
        for seed, (model, history) in zip(missing, new, strict=True):
            found[seed] = model, history
            if folder:
                save_model(model, paths[seed], {"training": texts[seed]}, **vars(history))
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


def _analyse(
    config: StudyConfig,
    hidden: Sequence[int],
    data: Dataset,
    trained: list[tuple[MLP, History]],
    report: OnProgress,
) -> xr.Dataset:
    """Score, rank and ablate the networks of one kind."""
    what = f"ablate {network_name(hidden)}"
    images, labels = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)
    total = len(trained) * (len(hidden) + 1) * len(FILLS)
    per_seed = []
    for index, (seed, (model, history)) in enumerate(zip(config.seeds, trained, strict=True)):
        counts, fill, scores = _score(config, model, data)
        orders = _orders(config, hidden, seed, scores)
        correct = []
        for scope_orders in orders:
            for name in FILLS:
                done = index * total // len(trained) + len(correct)
                report(what, done, total, f"seed {seed}")
                correct.append(
                    cumulative_ablation(
                        model,
                        scope_orders,
                        images,
                        labels,
                        fill if name == "mean" else None,
                        steps=config.steps,
                    )
                )
        shape = (len(orders), len(FILLS), len(config.orderings), config.steps + 1)
        per_seed.append(
            {
                "train_loss": history.loss,
                "train_accuracy": history.accuracy,
                "validation_loss": history.validation_loss,
                "validation_accuracy": history.validation_accuracy,
                "joint_counts": np.asarray(counts),
                "mean_activation": np.asarray(fill),
                "scores": scores,
                "ablated": np.stack([scope_orders[:, : config.steps] for scope_orders in orders]),
                "correct": np.stack(correct).reshape(shape).swapaxes(1, 2),
            }
        )
    report(what, total, total, "")
    return network_results(
        {name: np.stack([arrays[name] for arrays in per_seed]) for name in per_seed[0]},
        hidden=hidden,
        activation=config.activation,
        seeds=config.seeds,
        metrics=config.metrics,
        orderings=config.orderings,
        fills=FILLS,
        num_test_examples=len(data.test),
    )


def _score(config: StudyConfig, model: MLP, data: Dataset) -> tuple[Counts, Fill, np.ndarray]:
    """Joint counts [neuron, class, code], mean activations [neuron] and scores [metric, neuron] of a network."""
    quantize = default_quantizer(config.activation)
    activations = record_activations(model, data.validation.images)
    codes = jnp.concatenate([quantize(layer) for layer in activations], axis=1)
    counts = joint_histogram(codes, data.validation.labels, num_codes=2, num_classes=data.num_classes)
    scores = np.stack([np.asarray(get_metric(metric)(counts)) for metric in config.metrics])
    return counts, mean_activations(model, data.validation.images), scores


def _orders(config: StudyConfig, hidden: Sequence[int], seed: int, scores: np.ndarray) -> list[np.ndarray]:
    """For each layer and then for the whole network: int32 [ordering, rank] of network-wide neuron ids."""
    name = network_name(hidden)
    bounds = site_bounds(hidden)
    scopes = [*itertools.pairwise(bounds), (0, bounds[-1])]
    orders = []
    for i, (start, stop) in enumerate(scopes):
        ranked = [
            ablation_order(score[start:stop], direction=direction) for score in scores for direction in DIRECTIONS
        ]
        # a stream of its own for each network and scope, apart from those of initial weights and example order
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), i)
        shuffled = random_orders(key, int(stop - start), config.random_orders)
        orders.append(np.concatenate([np.stack(ranked), shuffled]).astype(np.int32) + np.int32(start))
    return orders
