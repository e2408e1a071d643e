"""Train multilayer perceptrons, one for each seed.

Input: a dataset and seeds.
Output: the networks and their training histories.
Memory: the training and validation images once on each device; for each network its training labels and three times
its weights.
"""

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate._checks import (
    InputError,
    require,
    require_bool,
    require_fraction,
    require_integer,
    require_known,
    require_type,
    short_repr,
)
from jaxablate._precision import matmul_precision
from jaxablate.datasets import Dataset
from jaxablate.datasets._types import require_dataset
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
from jaxablate.models._mlp import in_evaluation_mode, set_image_shape
from jaxablate.models._model import stack_states

__all__ = ["PARALLEL", "DivergedError", "History", "default_epochs", "train", "train_many"]

PAPER_STEPS = 15_620  # 10 epochs of 50,000 examples in batches of 32
PARALLEL = ("auto", "vmap", "threads")

OnEpoch = Callable[[int, int, float, float], None]
"""Called after every epoch with the epochs done, the total of epochs, and the epoch's training loss and accuracy."""

OnTrained = Callable[[int, MLP, "History"], None]
"""Called with the network's place, the network and its history when it is trained, and at its checkpoints."""


@dataclass(frozen=True)
class History:
    """Loss and accuracy of each epoch of training.

    Attributes:
        loss: float32 [epoch], mean cross-entropy in nats of the epoch's batches, each evaluated before its update.
            Like the accuracy, it is measured in training mode (with dropout) and with the noisy labels.
        accuracy: float32 [epoch], fraction of correct predictions in the same batches.
        validation_loss: float32 [epoch], cross-entropy in nats on the validation split after the epoch.
        validation_accuracy: float32 [epoch], fraction of correct predictions on the validation split after the epoch.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray

    __repr__ = short_repr


class DivergedError(InputError):
    """Report that the loss of a network is no longer finite.

    Attributes:
        seed: seed of the network.
        place: index of the network in the seeds of `train_many`.
        epoch: number of the first epoch with a loss that is not finite, from 1.
        model: the network as it was before that epoch.
        history: history of the earlier epochs.
    """

    def __init__(self, seed: int, place: int, epoch: int, model: MLP, history: History):
        super().__init__(
            f"training of seed {seed} diverged in epoch {epoch}: the loss is not finite; lower learning_rate"
        )
        self.seed, self.place, self.epoch, self.model, self.history = seed, place, epoch, model, history


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
    dropout: float = 0.0,
    batch_norm: bool = False,
    label_noise: float = 0.0,
    start: MLP | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[MLP, History]:
    """Train one network by Adam with an L2 penalty in the gradient.

    Args:
        data: dataset, whose training and validation splits are used.
        hidden: number of neurons of each hidden layer.
        seed: seed of the initial weights, the order of the examples, dropout and label noise.
        activation: activation function of the hidden layers, as in `MLP`.
        epochs: number of passes over the training split. Each pass has a new random order and drops the last partial
            batch. None keeps the number of optimizer steps near the paper's 15,620.
        batch_size: number of examples in one step.
        learning_rate: learning rate of Adam.
        l2: l2 times the parameters is added to the gradient before Adam; this is not AdamW's decoupled weight decay.
            The parameters are kernels, biases, and scales and biases of batch norm.
        dropout: probability in [0, 1) with which a step sets an output of a hidden layer to 0, as in `MLP`.
        batch_norm: True puts batch norm before each hidden layer's activation function, as in `MLP`.
        label_noise: fraction in [0, 1] of the training examples whose labels are permuted among them. Some of these
            examples keep their label by chance. Examples and permutation depend on `seed` only, so they are the same in
            all epochs of a network. The validation and test labels are not changed.
        start: a network to continue from, for example a pruned one; None for new weights. With `start`, the arguments
            `hidden`, `activation`, `dropout` and `batch_norm` are ignored, since the network determines them.
        on_epoch: called after every epoch with (epoch, epochs, loss, accuracy).

    Returns:
        The network, in evaluation mode, and its `History`.

    Raises:
        InputError: for a batch larger than the training split, an unknown activation, a setting out of range, or
            batches of one example with batch norm.
        DivergedError: if the loss is not finite; the error has the network before that epoch.

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
        dropout=dropout,
        batch_norm=batch_norm,
        label_noise=label_noise,
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
    learning_rate: float | Sequence[float] = 1e-3,
    l2: float | Sequence[float] = 1e-3,
    dropout: float = 0.0,
    batch_norm: bool = False,
    label_noise: float | Sequence[float] = 0.0,
    starts: Sequence[MLP] | None = None,
    on_epoch: OnEpoch | None = None,
    on_trained: OnTrained | None = None,
    checkpoints: Collection[int] = (),
    parallel: str = "auto",
    mesh: Mesh | None = None,
) -> list[tuple[MLP, History]]:
    """Train one network for each seed, several at once.

    A seed gives the same network, up to rounding, whether it is trained alone or with others.

    Args:
        data, hidden, activation, epochs, batch_size, learning_rate, l2, dropout, batch_norm, label_noise: as in
            `train`. The learning rate, l2 and label_noise may also be sequences with one number for each network.
        seeds: integers, one for each network; networks may share a seed.
        starts: one network for each seed to continue from, all of one architecture; None for new weights.
        on_epoch: called after every epoch as in `train`, from any thread. Both numbers of epochs are totals over all
            networks. If one program trains several networks, the loss and accuracy are means over these networks.
        on_trained: called with (place, network, history) when a network is complete, from any thread; the place of a
            network is its index in `seeds`.
        checkpoints: numbers of epochs after which `on_trained` is also called, with the network and history so far.
            Training for that number of epochs gives the same network.
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
    require_type("seeds", seeds, Iterable, "a sequence of integers")
    seeds = [require_integer("seed", seed) for seed in seeds]
    require(len(seeds) > 0, "seeds: the list is empty; give at least one seed")
    require_dataset(data)
    num_examples = len(data.train)
    require(
        1 <= batch_size <= num_examples,
        f"batch_size: expected 1 to {num_examples}, the size of the training split, got {batch_size}",
    )
    rates, penalties, noises = (
        _one_for_each(name, value, len(seeds))
        for name, value in (("learning_rate", learning_rate), ("l2", l2), ("label_noise", label_noise))
    )
    for rate, penalty, noise in zip(rates, penalties, noises, strict=True):
        require(rate > 0, f"learning_rate: {rate} is not above 0; choose a positive number")
        require(penalty >= 0, f"l2: {penalty} is below 0; choose 0 or more")
        require_fraction("label_noise", noise)
    require_fraction("dropout", dropout, below_one=True)
    require_bool("batch_norm", batch_norm)
    epochs = default_epochs(num_examples, batch_size) if epochs is None else epochs
    epochs = require_integer("epochs", epochs)
    require(epochs >= 1, f"epochs: {epochs} is below 1; choose at least 1")
    make_room_for_programs()
    in_features = int(np.prod(data.train.images.shape[1:]))
    rngs = [nnx.Rngs(seed) for seed in seeds]
    if starts is None:
        kind = {"activation": activation, "dropout": dropout, "batch_norm": batch_norm}
        models = [MLP(in_features, hidden, data.num_classes, **kind, rngs=r) for r in rngs]
        for model in models:
            set_image_shape(model, data.train.images.shape)
    else:
        models = [in_evaluation_mode(start) for start in starts]
        _require_starts(models, len(seeds), in_features, data.num_classes)
    require(
        batch_size > 1 or not models[0].batch_norm,
        "batch_size: batch norm needs the variance over a batch; choose 2 or more",
    )
    graphdef = nnx.graphdef(models[0])
    states = stack_states([nnx.state(model) for model in models])
    clean = np.asarray(data.train.labels)
    labels = [_add_label_noise(clean, noise, seed) for noise, seed in zip(noises, seeds, strict=True)]
    # `nnx.Rngs` draws all keys of a seed from one stream: first the keys of the weights, then the key of the order,
    # then the key of dropout. A new source of randomness must draw after these, or every trained network changes.
    inputs = _Inputs(
        order_key=jnp.stack([r.shuffle() for r in rngs]),
        dropout_key=jnp.stack([r.dropout() for r in rngs]),
        labels=to_device(np.stack(labels)),
        learning_rate=to_device(np.array(rates, np.float32)),
        l2=to_device(np.array(penalties, np.float32)) if any(penalties) else None,
    )
    images, validation_images = (
        to_device(split.images.reshape(len(split), -1)) for split in (data.train, data.validation)
    )
    splits = images, (validation_images, to_device(data.validation.labels))
    if (mesh := mesh_for(mesh)) is not None:
        # Every device trains equally many networks, so some seeds are repeated. The results of the repeats are dropped.
        repeated = np.arange(-(-len(seeds) // mesh.size) * mesh.size) % len(seeds)
        by_network = NamedSharding(mesh, P(DATA))
        states, inputs = put_global(by_network, jax.tree.map(lambda leaf: leaf[repeated], (states, inputs)))
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
        group_states, group_inputs = jax.tree.map(lambda leaf: leaf[group], (states, inputs))

        def results(states: nnx.State, records: np.ndarray) -> list[tuple[MLP, History]]:
            """Return networks and histories from states [network, ...] and records [epoch, network, 4]."""
            states_of = [jax.tree.map(lambda leaf, i=i: to_device(leaf[i]), states) for i in range(len(seeds[group]))]
            return [(nnx.merge(graphdef, state), History(*records[:, i].T)) for i, state in enumerate(states_of)]

        def report_trained(networks: list[tuple[MLP, History]]) -> None:
            if on_trained is not None:
                for place, (model, history) in zip(range(len(seeds))[group], networks, strict=True):
                    on_trained(place, model, history)

        def on_checkpoint(states: nnx.State, records: list[np.ndarray]) -> None:
            # Order and dropout of an epoch depend on its number and not on the total. So the first n epochs are the
            # training of n epochs.
            if len(records) in checkpoints:
                report_trained(results(to_host(states), np.stack(records)))

        trained, records = _train_together(
            graphdef,
            batch_size,
            epochs,
            splits,
            group_states,
            group_inputs,
            len(seeds[group]),
            report,
            on_checkpoint,
            stop,
        )
        trained = to_host(trained)
        # [network]. Only the last epoch can hold a value that is not finite, since training stops there.
        diverged = ~np.isfinite(records).all(axis=(0, 2))
        if diverged.any():
            i = int(diverged.argmax())
            place = range(len(seeds))[group][i]
            raise DivergedError(seeds[place], place, len(records), *results(trained, records[:-1])[i])
        networks = results(trained, records)
        report_trained(networks)
        return networks

    return list(itertools.chain.from_iterable(run_all(train_group, groups, threads=num_cores())))


def _one_for_each(name: str, value: Any, number: int) -> list[Any]:
    """Return one number for each network from one number, or from a sequence of them."""
    values = [value] * number if np.ndim(value) == 0 else list(value)
    require(len(values) == number, f"{name}: expected one number, or one for each of {number} seeds, got {len(values)}")
    return values


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


class _Inputs(NamedTuple):
    """The inputs of training that differ between networks, each stacked along a leading axis.

    Attributes:
        order_key: random key [network], from which each epoch draws its order.
        dropout_key: random key [network], from which each step draws its dropout.
        labels: int32 [network, example] of the training split, with each network's label noise.
        learning_rate: float32 [network].
        l2: float32 [network]; None for no penalty, which compiles another program, since adding 0 could round
            differently.
    """

    order_key: jax.Array
    dropout_key: jax.Array
    labels: jax.Array
    learning_rate: jax.Array
    l2: jax.Array | None


def _add_label_noise(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a copy of labels [example] in which the labels of a random share of the examples are permuted."""
    # The streams of nnx.Rngs(seed) fold in counts from 0 and never reach this number. So the noise depends on the seed
    # alone, and a network that continues from another one gets the same noise.
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
    choice_key, permutation_key = jax.random.split(key)
    # The labels are permuted, not drawn, so the noise changes no count of a class. The examples are the first of one
    # permutation: with the same seed, a larger share contains the examples of a smaller one.
    chosen = np.asarray(jax.random.permutation(choice_key, len(labels)))[: round(share * len(labels))]
    noisy = np.array(labels)
    noisy[chosen] = labels[np.asarray(jax.random.permutation(permutation_key, chosen))]
    return noisy


def _train_together(
    graphdef: nnx.GraphDef,
    batch_size: int,
    epochs: int,
    splits,
    states,
    inputs: _Inputs,
    num_seeds: int,
    report: Callable[[int, float, float], None],
    on_checkpoint: Callable[[nnx.State, list[np.ndarray]], None],
    stop: Stop,
) -> tuple[nnx.State, np.ndarray]:
    """Train networks whose states are stacked along a leading axis.

    Training stops at the first loss that is not finite; the returned states are then those from before that epoch.

    Args:
        graphdef, batch_size, splits, states, inputs: as in `_epoch`.
        epochs: number of epochs.
        num_seeds: number of leading networks that are reported; the rest are repeats that fill the devices.
        report: called after each epoch with the number of networks, and their mean loss and accuracy.
        on_checkpoint: called after each epoch, except the last, with the states and the list of records so far.
        stop: ends the training early if another thread has failed.

    Returns:
        The final states [network, ...], and the records [epoch, network, 4] as `_epoch` returns them.
    """
    opt_states, records = _initial_opt_states(states), []
    for epoch in range(1, epochs + 1):
        stop.check()
        before = to_host(states)  # a copy, because the epoch overwrites the donated states
        states, opt_states, record = _epoch(graphdef, batch_size, splits, states, opt_states, inputs, epoch)
        records.append(to_host(record))
        if not np.isfinite(records[-1]).all():
            states = before
            break
        loss, accuracy = records[-1][:num_seeds, :2].mean(axis=0)
        report(num_seeds, float(loss), float(accuracy))
        if epoch < epochs:
            on_checkpoint(states, records)
    return states, np.stack(records)


def _optimizer(learning_rate: float | jax.Array, l2: float | jax.Array) -> optax.GradientTransformation:
    # As in PyTorch's Adam(weight_decay=l2), l2 * w is added to the gradient before the moments are updated, so Adam
    # scales the penalty like the gradient. AdamW would subtract it from the weights, without that scale.
    return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate))


@jax.jit
def _initial_opt_states(states):
    """Return the optimizer's initial states [network, ...]; one program instead of one for each array."""
    # The initial states do not depend on the coefficients.
    return jax.vmap(_optimizer(0.0, 0.0).init)(nnx.filter_state(states, nnx.Param))


def _loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy in nats and the fraction of correct predictions."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits.argmax(axis=-1) == labels).mean()


# One program is one epoch of all networks of a group. It is a lax.scan over the batches. The images [example, pixel]
# stay on the device for the whole training: a step gathers its batch by index, and nothing goes through the host. The
# number of the epoch and the coefficients of the optimizer are traced, so one compilation serves all their values.
#
# The states and the optimizer's moments [network, ...] are donated: XLA writes the new values over the old. A network
# therefore needs three times its weights (weights and two moments), not six times.
#
# A state holds the parameters and the running statistics of batch norm. The optimizer updates the parameters; the
# forward pass in training mode updates the statistics. The module is in training mode only inside a step.
#
# The order of the examples depends on the network's own key and the epoch only, never on the group. A batch axis over
# networks changes no operation of a network, only the order in which its matrix products add up. So a seed gives the
# same network alone, in a group or on a mesh, up to rounding.
@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4), compiler_options=COMPILER_OPTIONS)
def _epoch(graphdef: nnx.GraphDef, batch_size: int, splits, states, opt_states, inputs: _Inputs, epoch):
    """Train each network of a group for one epoch.

    Args:
        graphdef: graph of the networks, in evaluation mode.
        batch_size: number of examples in one step.
        splits: images [example, pixel] of the training split, and images and labels [example] of the validation split.
        states, opt_states: states and optimizer states of the networks, [network, ...]; donated.
        inputs: labels, keys and coefficients of the networks, [network, ...].
        epoch: number of the epoch, from 1.

    Returns:
        The new states and opt_states, and [network, 4]: training loss and accuracy, validation loss and accuracy.
    """
    images, (validation_images, validation_labels) = splits
    num_steps = len(images) // batch_size

    def train_network(state, opt_state, inputs: _Inputs):
        optimizer = _optimizer(inputs.learning_rate, 0.0 if inputs.l2 is None else inputs.l2)
        order = jax.random.permutation(jax.random.fold_in(inputs.order_key, epoch), len(images))
        batches = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        keys = jax.random.split(jax.random.fold_in(inputs.dropout_key, epoch), num_steps)

        def step(carry, batch_and_key):
            (params, statistics, opt_state), (batch, key) = carry, batch_and_key

            def objective(params):
                # a copy, because a differentiated function must not update variables from outside of it
                model = nnx.merge(graphdef, params, statistics, copy=True)
                model.train()
                options = {"rngs": nnx.Rngs(key)} if model.dropout else {}
                loss, accuracy = _loss(model(images[batch], **options), inputs.labels[batch])
                return loss, (accuracy, nnx.state(model, nnx.BatchStat))

            (loss, (accuracy, statistics)), gradient = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), statistics, opt_state), jnp.stack([loss, accuracy])

        params, statistics = nnx.split_state(state, nnx.Param, nnx.BatchStat)
        (params, statistics, opt_state), records = jax.lax.scan(step, (params, statistics, opt_state), (batches, keys))
        # `graphdef` is in evaluation mode: no dropout, and batch norm uses its running statistics.
        model = nnx.merge(graphdef, params, statistics)
        validated = jnp.stack(_loss(model(validation_images), validation_labels))
        return nnx.state(model), opt_state, jnp.concatenate([records.mean(axis=0), validated])

    with jax.default_matmul_precision(matmul_precision()):
        if len(inputs.learning_rate) > 1:
            return jax.vmap(train_network)(states, opt_states, inputs)
        # Without the batch axis of one network, XLA calls the CPU's fast matrix product.
        single = train_network(*jax.tree.map(lambda leaf: leaf[0], (states, opt_states, inputs)))
        return jax.tree.map(lambda leaf: leaf[None], single)
