"""Training: a dataset and seeds come in, trained networks and their histories go out.

An epoch is one jitted `lax.scan` over the optimiser steps, on data that stay on the device.
Memory: the training images once, and three times the weights for each network.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import InputError, require, require_batch_size, require_integer, require_known
from jaxablate._precision import matmul_precision
from jaxablate.datasets import Dataset
from jaxablate.devices import (
    COMPILER_OPTIONS,
    DATA,
    Stop,
    make_room_for_programs,
    mesh_for,
    num_cores,
    put_global,
    run_all,
    to_host,
)
from jaxablate.models import MLP
from jaxablate.models._network import stack_states

PAPER_STEPS = 15_620  # 10 epochs of 50 000 examples in batches of 32
PARALLEL = ("auto", "vmap", "threads")

OnEpoch = Callable[[int, int, float, float], None]
"""Called after every epoch with epochs done, epochs in all, and the epoch's training loss and accuracy."""

OnTrained = Callable[[int, MLP, "History"], None]
"""Called with the seed, the network and its history as soon as a network is done."""


@dataclass(frozen=True)
class History:
    """What happened in training, each float32 [epoch].

    `loss` (cross-entropy, nats) and `accuracy` (fraction) are means over the batches of the epoch, taken before each
    update; `validation_loss` and `validation_accuracy` are measured after the epoch.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray


class DivergedError(InputError):
    """Training came to a loss that is not finite.

    Attributes:
        seed: of the network.
        epoch: the one that diverged, from 1.
        model: the network as it was before that epoch.
        history: of the epochs before.
    """

    def __init__(self, seed: int, epoch: int, model: MLP, history: History):
        super().__init__(
            f"training of seed {seed} diverged in epoch {epoch}: expected a finite loss; lower learning_rate"
        )
        self.seed, self.epoch, self.model, self.history = seed, epoch, model, history


def train(
    data: Dataset,
    hidden: Sequence[int] = (200, 200),
    seed: int = 0,
    *,
    activation: str = "sigmoid",
    epochs: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    l2: float = 1e-3,
    start: MLP | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[MLP, History]:
    """Train one network by Adam with L2 coupled into the gradient.

    Args:
        data: the training and validation split are used.
        hidden: neurons of each hidden layer.
        seed: of the initial weights and of the order of the examples.
        activation: of the hidden layers: "sigmoid", "relu", "tanh" or "gelu".
        epochs: passes over the training split, reshuffled each time, the last partial batch dropped; None keeps
            the number of optimiser steps near the paper's 15 620.
        batch_size: examples of one step.
        learning_rate: of Adam.
        l2: coefficient of the weights that is added to the gradient, before Adam (not decoupled weight decay).
        start: a network to train on (one that was pruned, say) in place of a new one; `hidden` and `activation` are
            then its own.
        on_epoch: called after every epoch with (epoch, epochs, loss, accuracy).

    Returns:
        The network and its `History`.

    Raises:
        InputError: for a batch larger than the training split, or an unknown activation; as a `DivergedError`, which
            has the last good state, for a loss that is not finite.

    Source: paper, section 4.

    Example:
        >>> model, history = ja.train(ja.load_dataset("mnist5k"), (8,), epochs=1)
        >>> history.loss.shape
        (1,)
    """
    return train_many(
        data,
        hidden,
        (seed,),
        activation=activation,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        l2=l2,
        starts=None if start is None else [start],
        on_epoch=on_epoch,
    )[0]


def default_epochs(num_examples: int, batch_size: int = 32) -> int:
    """The number of epochs that keeps the optimiser steps near the paper's 15 620.

    Args:
        num_examples: of the training split.
        batch_size: examples of one step.

    Returns:
        The number of epochs, at least 1.

    Example:
        >>> ja.training.default_epochs(50_000), ja.training.default_epochs(3_500)
        (10, 143)
    """
    return max(1, round(PAPER_STEPS / max(1, num_examples // batch_size)))


def train_many(
    data: Dataset,
    hidden: Sequence[int] = (200, 200),
    seeds: Iterable[SupportsIndex] = (0,),
    *,
    activation: str = "sigmoid",
    epochs: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    l2: float = 1e-3,
    starts: Sequence[MLP] | None = None,
    on_epoch: OnEpoch | None = None,
    on_trained: OnTrained | None = None,
    parallel: str = "auto",
    mesh: Mesh | None = None,
) -> list[tuple[MLP, History]]:
    """Train one network for each seed, several at once; arguments and errors as in `train`.

    A seed gives the same network alone or in company, up to rounding.

    Args:
        data, hidden, activation, epochs, batch_size, learning_rate, l2: as in `train`.
        seeds: one network each.
        starts: for each seed a network to train on in place of a new one, all of one architecture.
        on_epoch: called after every epoch of a network (or of all that one program trains, with the mean of loss and
            accuracy); epochs done and in all are those of all networks.
        on_trained: called with (seed, network, history) as soon as a network is done, from any thread.
        parallel: "vmap" trains all seeds in one batched program, "threads" one seed on each core, "auto" takes
            threads on CPU and vmap elsewhere.
        mesh: devices to share the seeds, from `ja.devices.make_mesh`, all of them; the seeds are then trained in one
            batched program.

    Returns:
        For each seed the network and its `History`.

    Example:
        >>> len(ja.training.train_many(ja.load_dataset("mnist5k"), (8,), seeds=(0, 1), epochs=1))
        2
    """
    require_known("way to train in parallel", parallel, PARALLEL)
    seeds = [require_integer("seed", seed) for seed in seeds]
    require(len(seeds) > 0, "seeds: expected at least one, got none")
    num_examples = len(data.train)
    require_batch_size(batch_size, num_examples)
    require(learning_rate > 0, f"learning_rate: expected a number above 0, got {learning_rate}")
    require(l2 >= 0, f"l2: expected a number of at least 0, got {l2}")
    epochs = default_epochs(num_examples, batch_size) if epochs is None else epochs
    require(epochs >= 1, f"epochs: expected at least 1, got {epochs}")
    make_room_for_programs()
    in_features = int(np.prod(data.train.images.shape[1:]))
    rngs = [nnx.Rngs(seed) for seed in seeds]
    if starts is None:
        models = [MLP(in_features, hidden, data.num_classes, activation=activation, rngs=r) for r in rngs]
    else:
        models = _checked_starts(starts, len(seeds), in_features, data.num_classes)
    graphdef = nnx.graphdef(models[0])
    params = stack_states([nnx.state(model) for model in models])
    keys = jnp.stack([r.shuffle() for r in rngs])
    splits = [
        (jnp.asarray(split.images.reshape(len(split), -1)), jnp.asarray(split.labels))
        for split in (data.train, data.validation)
    ]
    shared = (graphdef, _Recipe(batch_size, learning_rate, l2), epochs, splits)
    if (mesh := mesh_for(mesh)) is not None:
        turns = np.arange(-(-len(seeds) // mesh.size) * mesh.size) % len(seeds)  # as many for each device
        across = NamedSharding(mesh, P(DATA))
        params, keys = put_global(across, jax.tree.map(lambda leaf: leaf[turns], (params, keys)))
        shared = (*shared[:3], put_global(NamedSharding(mesh, P()), splits))
        parallel = "vmap"
    told = _Told(on_epoch, epochs * len(seeds))
    if parallel == "threads" or (parallel == "auto" and jax.default_backend() == "cpu"):
        groups = [slice(i, i + 1) for i in range(len(seeds))]
    else:
        groups = [slice(None)]

    def run(group: slice, stop: Stop) -> list[tuple[MLP, History]]:
        chosen = jax.tree.map(lambda leaf: leaf[group], params)
        trained, records = _train_together(*shared, chosen, keys[group], len(seeds[group]), told, stop)
        trained = to_host(trained)  # from whichever devices
        bad = ~np.isfinite(records).all(axis=(0, 2))

        def result(i: int, records: np.ndarray) -> tuple[MLP, History]:
            return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), trained)), History(*records.T)

        if bad.any():
            i = int(bad.argmax())
            raise DivergedError(seeds[group][i], len(records), *result(i, records[:-1, i]))
        found = [result(i, records[:, i]) for i in range(len(seeds[group]))]
        if on_trained is not None:
            for seed, of_seed in zip(seeds[group], found, strict=True):
                on_trained(seed, *of_seed)
        return found

    return [of_seed for found in run_all(run, groups, threads=num_cores()) for of_seed in found]


def _checked_starts(starts: Sequence[MLP], number: int, in_features: int, num_classes: int) -> Sequence[MLP]:
    """The networks to train on.

    Raises:
        InputError: for another number of them, networks of different architectures, or ones that do not fit the data.
    """
    require(len(starts) == number, f"starts: expected {number}, one network for each seed, got {len(starts)}")
    first = starts[0].stages[0].linear.in_features, starts[0].stages[-1].linear.out_features
    require(
        first == (in_features, num_classes),
        f"start: expected a network of {in_features} pixels and {num_classes} classes, got {first[0]} and {first[1]}",
    )
    require(
        all(nnx.graphdef(start) == nnx.graphdef(starts[0]) for start in starts),
        "starts: expected networks of one architecture, got several",
    )
    return starts


class _Told:
    """Tells the progress of networks that are trained side by side, in epochs of all of them."""

    def __init__(self, on_epoch: OnEpoch | None, total: int):
        self.on_epoch, self.total, self.done, self.lock = on_epoch, total, 0, threading.Lock()

    def epochs(self, number: int, loss: float, accuracy: float) -> None:
        """So many more epochs are done, with this loss and accuracy."""
        if self.on_epoch is not None:
            with self.lock:
                self.done += number
                self.on_epoch(self.done, self.total, loss, accuracy)


def _train_together(
    graphdef: nnx.GraphDef, recipe: "_Recipe", epochs: int, splits, params, keys, number: int, told: _Told, stop: Stop
) -> tuple[nnx.State, np.ndarray]:
    """Train networks stacked on a leading axis: their final states, and their records [epoch, network, 4]. Where a
    record is not finite, it is the last, and the states are those before its epoch. Told is of the first `number`."""
    opt_state, records = jax.vmap(recipe.optimizer().init)(params), []
    for epoch in range(1, epochs + 1):
        stop.check()
        before = to_host(params)  # the epoch takes the memory of the others
        params, opt_state, record = _epoch(graphdef, recipe, splits, params, opt_state, keys, epoch)
        records.append(to_host(record))
        if not np.isfinite(records[-1]).all():
            params = before
            break
        loss, accuracy = records[-1][:number, :2].mean(axis=0)
        told.epochs(number, float(loss), float(accuracy))
    return params, np.stack(records)


@dataclass(frozen=True)
class _Recipe:
    """Hashable settings, since optax's own objects compare by identity and would compile anew."""

    batch_size: int
    learning_rate: float
    l2: float

    def optimizer(self) -> optax.GradientTransformation:
        # the L2 term goes through Adam, which is not AdamW's decoupled decay
        return optax.chain(optax.add_decayed_weights(self.l2), optax.adam(self.learning_rate))


def _loss(graphdef: nnx.GraphDef, params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = nnx.merge(graphdef, params)(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits.argmax(axis=-1) == labels).mean()


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4), compiler_options=COMPILER_OPTIONS)
def _epoch(graphdef: nnx.GraphDef, recipe: _Recipe, splits, params, opt_state, keys, number):
    """One epoch of every network in the group: new states, and [network, (loss, accuracy, validation's two)]."""
    (images, labels), validation = splits
    num_steps = len(labels) // recipe.batch_size

    def network(params, opt_state, key):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(labels))
        batches = order[: num_steps * recipe.batch_size].reshape(num_steps, recipe.batch_size)

        def step(carry, batch):
            params, opt_state = carry
            objective = jax.value_and_grad(partial(_loss, graphdef), has_aux=True)
            (loss, accuracy), gradient = objective(params, images[batch], labels[batch])
            updates, opt_state = recipe.optimizer().update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), jnp.stack([loss, accuracy])

        (params, opt_state), record = jax.lax.scan(step, (params, opt_state), batches)
        measured = jnp.stack(_loss(graphdef, params, *validation))
        return params, opt_state, jnp.concatenate([record.mean(axis=0), measured])

    with jax.default_matmul_precision(matmul_precision()):
        if keys.shape[0] > 1:
            return jax.vmap(network)(params, opt_state, keys)
        # a batch axis of one would keep the CPU from its fast matrix product
        one = network(*jax.tree.map(lambda leaf: leaf[0], (params, opt_state, keys)))
        return jax.tree.map(lambda leaf: leaf[None], one)
