"""Train multilayer perceptrons, one for each seed.

Input: a dataset and seeds.
Output: the networks and their training histories.
Memory: the training and validation images once on each device, and three times the weights for each network.
"""

import itertools
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

from jaxablate._checks import InputError, require, require_integer, require_known
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
    to_device,
    to_host,
)
from jaxablate.models import MLP
from jaxablate.models._model import stack_states

__all__ = ["PARALLEL", "DivergedError", "History", "default_epochs", "train", "train_many"]

PAPER_STEPS = 15_620  # 10 epochs of 50,000 examples in batches of 32
PARALLEL = ("auto", "vmap", "threads")

OnEpoch = Callable[[int, int, float, float], None]
"""Called after every epoch with the epochs done, the total of epochs, and the epoch's training loss and accuracy."""

OnTrained = Callable[[int, MLP, "History"], None]
"""Called with the seed, the network and its history when the training of a network is complete."""


@dataclass(frozen=True)
class History:
    """Loss and accuracy of each epoch of training.

    Attributes:
        loss: float32 [epoch], mean cross-entropy in nats of the epoch's batches, each evaluated before its update.
        accuracy: float32 [epoch], fraction of correct predictions in the same batches.
        validation_loss: float32 [epoch], cross-entropy in nats on the validation split after the epoch.
        validation_accuracy: float32 [epoch], fraction of correct predictions on the validation split after the epoch.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray


class DivergedError(InputError):
    """Report that the loss of a network is no longer finite.

    Attributes:
        seed: seed of the network.
        epoch: number of the first epoch with a loss that is not finite, from 1.
        model: the network as it was before that epoch.
        history: history of the earlier epochs.
    """

    def __init__(self, seed: int, epoch: int, model: MLP, history: History):
        super().__init__(
            f"training of seed {seed} diverged in epoch {epoch}: the loss is not finite; lower learning_rate"
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
    """Train one network by Adam with an L2 penalty in the gradient.

    Args:
        data: dataset, whose training and validation splits are used.
        hidden: number of neurons of each hidden layer.
        seed: seed of the initial weights and of the order of the examples.
        activation: activation function of the hidden layers: "sigmoid", "relu", "tanh" or "gelu".
        epochs: number of passes over the training split. Each pass has a new random order and drops the last partial
            batch. None keeps the number of optimizer steps near the paper's 15,620.
        batch_size: number of examples in one step.
        learning_rate: learning rate of Adam.
        l2: l2 times the weights is added to the gradient before Adam; this is not AdamW's decoupled weight decay.
        start: a network to continue from, for example a pruned one; None for new weights. `hidden` and `activation`
            are ignored with it.
        on_epoch: called after every epoch with (epoch, epochs, loss, accuracy).

    Returns:
        The network and its `History`.

    Raises:
        InputError: for a batch larger than the training split, or an unknown activation.
        DivergedError: for a loss that is not finite; the error has the network before that epoch.

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
    """Return the number of epochs that keeps the number of optimizer steps near the paper's 15,620.

    Args:
        num_examples: number of examples in the training split.
        batch_size: number of examples in one step.

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
    """Train one network for each seed, several at once.

    A seed gives the same network, up to rounding, whether it is trained alone or with others.

    Args:
        data, hidden, activation, epochs, batch_size, learning_rate, l2: as in `train`.
        seeds: integers, one for each network.
        starts: one network for each seed to continue from, all of one architecture; None for new weights.
        on_epoch: called after every epoch as in `train`, from any thread. Both numbers of epochs are totals over all
            networks. If one program trains several networks, the loss and accuracy are means over these networks.
        on_trained: called with (seed, network, history) when a network is complete, from any thread.
        parallel: "vmap" trains all seeds in one batched program, "threads" trains one seed on each core, "auto" takes
            threads on CPU and vmap on other devices.
        mesh: devices from `ja.devices.make_mesh`, over which one batched program shards the seeds; None for one device.

    Returns:
        For each seed the network and its `History`.

    Raises:
        InputError: as in `train`, or for starts that do not fit the seeds or the data.
        DivergedError: for the first network whose loss is not finite.

    Example:
        >>> len(ja.training.train_many(ja.load_dataset("mnist5k"), (8,), seeds=(0, 1), epochs=1))
        2
    """
    require_known("parallel", parallel, PARALLEL)
    seeds = [require_integer("seed", seed) for seed in seeds]
    require(len(seeds) > 0, "seeds: the list is empty; give at least one seed")
    num_examples = len(data.train)
    require(
        1 <= batch_size <= num_examples,
        f"batch_size: expected 1 to {num_examples}, the size of the training split, got {batch_size}",
    )
    require(learning_rate > 0, f"learning_rate: {learning_rate} is not above 0; choose a positive number")
    require(l2 >= 0, f"l2: {l2} is below 0; choose 0 or more")
    epochs = default_epochs(num_examples, batch_size) if epochs is None else epochs
    require(epochs >= 1, f"epochs: {epochs} is below 1; choose at least 1")
    make_room_for_programs()
    in_features = int(np.prod(data.train.images.shape[1:]))
    rngs = [nnx.Rngs(seed) for seed in seeds]
    if starts is None:
        models = [MLP(in_features, hidden, data.num_classes, activation=activation, rngs=r) for r in rngs]
    else:
        _require_starts(starts, len(seeds), in_features, data.num_classes)
        models = starts
    graphdef = nnx.graphdef(models[0])
    params = stack_states([nnx.state(model) for model in models])
    keys = jnp.stack([r.shuffle() for r in rngs])  # one key for each seed, from which each epoch draws its order
    splits = [
        (to_device(split.images.reshape(len(split), -1)), to_device(split.labels))
        for split in (data.train, data.validation)
    ]
    recipe = _Recipe(batch_size, learning_rate, l2)
    if (mesh := mesh_for(mesh)) is not None:
        # every device trains equally many networks, so some seeds are repeated; their results are dropped below
        repeated = np.arange(-(-len(seeds) // mesh.size) * mesh.size) % len(seeds)
        by_network = NamedSharding(mesh, P(DATA))
        params, keys = put_global(by_network, jax.tree.map(lambda leaf: leaf[repeated], (params, keys)))
        splits = put_global(NamedSharding(mesh, P()), splits)
        parallel = "vmap"
    done, total, lock = 0, epochs * len(seeds), threading.Lock()

    def report(num_epochs: int, loss: float, accuracy: float) -> None:
        nonlocal done
        with lock:  # threads train their groups at the same time
            done += num_epochs
            if on_epoch is not None:
                on_epoch(done, total, loss, accuracy)

    # On a CPU one program for each seed beats one batched program: products of single matrices are faster there than
    # batched products, and the programs keep all cores busy. Other devices need the batch of networks to be busy.
    if parallel == "threads" or (parallel == "auto" and jax.default_backend() == "cpu"):
        groups = [slice(i, i + 1) for i in range(len(seeds))]
    else:
        groups = [slice(None)]

    def train_group(group: slice, stop: Stop) -> list[tuple[MLP, History]]:
        states = jax.tree.map(lambda leaf: leaf[group], params), keys[group]
        trained, records = _train_together(graphdef, recipe, epochs, splits, *states, len(seeds[group]), report, stop)
        trained = to_host(trained)
        # [network], from records [epoch, network, 4]. Only the last epoch can hold a value that is not finite, since
        # training stops there.
        diverged = ~np.isfinite(records).all(axis=(0, 2))

        def result(i: int, records: np.ndarray) -> tuple[MLP, History]:
            return nnx.merge(graphdef, jax.tree.map(lambda leaf: to_device(leaf[i]), trained)), History(*records.T)

        if diverged.any():
            i = int(diverged.argmax())
            raise DivergedError(seeds[group][i], len(records), *result(i, records[:-1, i]))
        results = [result(i, records[:, i]) for i in range(len(seeds[group]))]
        if on_trained is not None:
            for seed, (model, history) in zip(seeds[group], results, strict=True):
                on_trained(seed, model, history)
        return results

    return list(itertools.chain.from_iterable(run_all(train_group, groups, threads=num_cores())))


def _require_starts(starts: Sequence[MLP], num_seeds: int, in_features: int, num_classes: int) -> None:
    """Raise `InputError` unless there is one network for each seed, all of one architecture that fits the data."""
    require(len(starts) == num_seeds, f"starts: expected {num_seeds}, one network for each seed, got {len(starts)}")
    first = starts[0].stages[0].linear.in_features, starts[0].stages[-1].linear.out_features
    require(
        first == (in_features, num_classes),
        f"start: expected a network of {in_features} pixels and {num_classes} classes, got {first[0]} and {first[1]}",
    )
    require(
        all(nnx.graphdef(start) == nnx.graphdef(starts[0]) for start in starts),
        "starts: expected networks of one architecture, got several",
    )


def _train_together(
    graphdef: nnx.GraphDef,
    recipe: "_Recipe",
    epochs: int,
    splits,
    params,
    keys,
    num_seeds: int,
    report: Callable[[int, float, float], None],
    stop: Stop,
) -> tuple[nnx.State, np.ndarray]:
    """Train networks whose states are stacked along a leading axis.

    Training stops at the first loss that is not finite; the returned states are then those from before that epoch.

    Args:
        graphdef, recipe, splits: as in `_epoch`.
        epochs: number of epochs.
        params, keys: one state and one random key for each network, [network, ...].
        num_seeds: number of leading networks that are reported; the rest are repeats that fill the devices.
        report: called after each epoch with the number of networks, and their mean loss and accuracy.
        stop: ends the training early if another thread has failed.

    Returns:
        The final states [network, ...], and the records [epoch, network, 4] as `_epoch` returns them.
    """
    opt_state, records = _initial_opt_state(recipe, params), []
    for epoch in range(1, epochs + 1):
        stop.check()
        before = to_host(params)  # a copy, because the epoch overwrites the donated params
        params, opt_state, record = _epoch(graphdef, recipe, splits, params, opt_state, keys, epoch)
        records.append(to_host(record))
        if not np.isfinite(records[-1]).all():
            params = before
            break
        loss, accuracy = records[-1][:num_seeds, :2].mean(axis=0)
        report(num_seeds, float(loss), float(accuracy))
    return params, np.stack(records)


@dataclass(frozen=True)
class _Recipe:
    """The settings of the optimizer, hashable and compared by value.

    An optax optimizer compares by identity, so as a static argument it would compile a new program for each training.
    """

    batch_size: int
    learning_rate: float
    l2: float

    def optimizer(self) -> optax.GradientTransformation:
        # As in PyTorch's Adam(weight_decay=l2), l2 * w is added to the gradient before the moments are updated, so Adam
        # scales the penalty like the gradient. AdamW would subtract it from the weights, without that scale.
        return optax.chain(optax.add_decayed_weights(self.l2), optax.adam(self.learning_rate))


@partial(jax.jit, static_argnums=0)
def _initial_opt_state(recipe: _Recipe, params):
    """Return the optimizer's initial state [network, ...]; one program instead of one for each array."""
    return jax.vmap(recipe.optimizer().init)(params)


def _loss(graphdef: nnx.GraphDef, params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy in nats and the fraction of correct predictions."""
    logits = nnx.merge(graphdef, params)(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits.argmax(axis=-1) == labels).mean()


# One program is one epoch of all networks of a group. It is a lax.scan over the batches. The images [example, pixel]
# stay on the device for the whole training: a step gathers its batch by index, and nothing goes through the host. Only
# the number of the epoch changes from call to call, and it is traced, so one compilation serves all epochs.
#
# The states and the optimizer's moments [network, ...] are donated: XLA writes the new values over the old. A network
# therefore needs three times its weights (weights and two moments), not six times.
#
# The order of the examples depends on the network's own key and the epoch only, never on the group. A batch axis over
# networks changes no operation of a network, only the order in which its matrix products add up. So a seed gives the
# same network alone, in a group or on a mesh, up to rounding.
@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4), compiler_options=COMPILER_OPTIONS)
def _epoch(graphdef: nnx.GraphDef, recipe: _Recipe, splits, params, opt_state, keys, epoch):
    """Train each network of a group for one epoch.

    Args:
        graphdef: graph of the networks.
        recipe: settings of the optimizer.
        splits: images [example, pixel] and labels [example] of the training and of the validation split.
        params, opt_state: states and optimizer states of the networks, [network, ...]; donated.
        keys: random keys [network].
        epoch: number of the epoch, from 1.

    Returns:
        The new params and opt_state, and [network, 4]: training loss and accuracy, validation loss and accuracy.
    """
    (images, labels), validation = splits
    num_steps = len(labels) // recipe.batch_size

    def train_network(params, opt_state, key):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(labels))
        batches = order[: num_steps * recipe.batch_size].reshape(num_steps, recipe.batch_size)

        def step(carry, batch):
            params, opt_state = carry
            objective = jax.value_and_grad(partial(_loss, graphdef), has_aux=True)
            (loss, accuracy), gradient = objective(params, images[batch], labels[batch])
            updates, opt_state = recipe.optimizer().update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), jnp.stack([loss, accuracy])

        (params, opt_state), records = jax.lax.scan(step, (params, opt_state), batches)
        validated = jnp.stack(_loss(graphdef, params, *validation))
        return params, opt_state, jnp.concatenate([records.mean(axis=0), validated])

    with jax.default_matmul_precision(matmul_precision()):
        if keys.shape[0] > 1:
            return jax.vmap(train_network)(params, opt_state, keys)
        # Without the batch axis of one network, XLA calls the CPU's fast matrix product.
        single = train_network(*jax.tree.map(lambda leaf: leaf[0], (params, opt_state, keys)))
        return jax.tree.map(lambda leaf: leaf[None], single)
