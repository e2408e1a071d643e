"""Any masks, and cumulative orders, by the engine that fits."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import require, require_integer, require_known
from jaxablate._typing import Fill, Images, Labels, Masks, Orders
from jaxablate.ablation import _incremental, _vmap
from jaxablate.ablation._arguments import format_result, make_problem, require_leading
from jaxablate.ablation._execute import AblationProblem
from jaxablate.ablation._outcomes import CORRECT
from jaxablate.models import Model, PerExampleFill
from jaxablate.orders import check_orders, masks_of_orders

ENGINES = ("auto", "vmap", "incremental")
ROOM = 32  # orders are made up to a multiple of this, so that few programs are compiled


def evaluate_masks(
    model: Model | Sequence[Model],
    keep: Masks,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    scale: Fill | None = None,
    outcomes: str | Iterable[str] = CORRECT,
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> Any:
    """Count the correct predictions of a network under each of many masks.

    A masked neuron's output h becomes m h + (1 - m) f: its own value where it is kept, the fill where it is ablated
    (with a scale, s h + f).

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode; or several of one architecture
            (one for each seed, say): then `keep`, `fill` and the result have a leading axis for the networks.
        keep: bool [mask, neuron] over the neurons of all sites in network order, True = kept.
        images: [example, ...], what the network takes.
        labels: integers [example] in 0..classes-1.
        fill: float [neuron], the value of an ablated neuron; None for zeros, `mean_activations` for bias balancing,
            `compute_fill` for others.
        scale: float [neuron]; an ablated neuron puts out scale * h + fill in place of its h. None for fill alone.
        measures: what to measure, by name: "correct", "class_correct", "confusion", "loss" or "divergence"; or several,
            measured in one pass.
        memory_limit: bytes of activations held at a time; None for 1 GiB.
        precision: of matrix products: "highest" is full float32 everywhere; "TF32_TF32_F32_X3" and "tensorfloat32" are
            faster on some GPUs, and do nothing on CPU. Only "highest" keeps the counts exact.
        mesh: devices to share the examples, from `ja.devices.make_mesh`; None for the mesh of `images` if they are
            sharded already, else for one device.

    Returns:
        int32 [mask]: for how many examples the largest logit (the first, if tied) is the label's. With another measure
        what `OUTCOMES` says of it: int32 [mask, class] for class_correct, int32 [mask, label, predicted] for confusion,
        float32 [mask] in nats for loss (mean cross-entropy) and divergence (mean D_KL of the intact network's output
        distribution from the ablated one's). With several, a dictionary of them by name.

    Raises:
        InputError: for a mask or fill of another width, a fill that is not finite, labels out of range, networks of
            different architectures, a module that cannot be ablated, or logits that are not finite.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.evaluate_masks(model, np.array([[True] * 3, [False] * 3]), images, labels).shape
        (2,)
    """
    outcomes = outcomes if isinstance(outcomes, str) else tuple(outcomes)
    problem, leading = make_problem(model, images, labels, fill, scale, outcomes, memory_limit, precision, mesh)
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    require_leading("keep", keep, leading, (None, problem.network.num_neurons), "mask, neuron")
    require(keep.size > 0, "keep: expected at least one mask, got none")
    sums = _vmap.measure_masks(problem, keep.reshape(len(problem.states), *keep.shape[-2:]))
    sums = {name: of.reshape(*leading, *of.shape[1:]) for name, of in sums.items()}
    return format_result(sums, problem, outcomes, ("network", "mask")[-len(leading) - 1 :])


def cumulative_ablation(
    model: Model | Sequence[Model],
    orders: Orders,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    scale: Fill | None = None,
    steps: int = 80,
    neurons_per_step: int = 1,
    outcomes: str | Iterable[str] = CORRECT,
    engine: str = "auto",
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> Any:
    """Count the correct predictions while the neurons of each order are ablated one after another.

    Args:
        model: the network or several, as in `evaluate_masks`; with several `orders`, `fill` and the result have a
            leading axis for the networks.
        orders: integers [order, rank] of network-wide neuron ids, each at most once in an order.
        images, labels, fill, scale, measures, memory_limit, precision, mesh: as in `evaluate_masks`.
        steps: how many steps to go.
        neurons_per_step: how many neurons go at each step; all steps together at most the ranks of an order.
        engine: "vmap", "incremental" (for chains, where a linear map follows each site that the orders touch), or
            "auto", which takes incremental on CPU where it applies and vmap elsewhere. Same counts.

    Returns:
        int32 [order, steps + 1]; step k has the first k * neurons_per_step neurons of the order ablated, step 0 is the
        intact network. Other measures as in `evaluate_masks`, with [order, steps + 1] in place of [mask].

    Raises:
        InputError: for more steps than ranks, a repeated or unknown neuron, an engine that does not apply, or as in
            `evaluate_masks`.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.cumulative_ablation(model, np.array([[2, 0, 1]]), images, labels, steps=3).shape
        (1, 4)
    """
    outcomes = outcomes if isinstance(outcomes, str) else tuple(outcomes)
    require_known("engine", engine, ENGINES)
    steps = require_integer("steps", steps)
    neurons_per_step = require_integer("neurons_per_step", neurons_per_step)
    require(steps >= 1, f"steps: expected at least 1, got {steps}")
    require(neurons_per_step >= 1, f"neurons_per_step: expected at least 1, got {neurons_per_step}")
    problem, leading = make_problem(model, images, labels, fill, scale, outcomes, memory_limit, precision, mesh)
    orders, ranks = np.asarray(orders), steps * neurons_per_step
    require_leading("orders", orders, leading, (None, None), "order, rank")
    require(orders.size > 0, f"orders: expected at least one neuron, got shape {orders.shape}")
    require(
        ranks <= orders.shape[-1],
        f"steps: expected at most the {orders.shape[-1]} neurons of the scope, got {ranks} ({steps} steps of "
        f"{neurons_per_step}); {orders.shape[-1] // neurons_per_step} steps is the largest possible",
    )
    num_networks, num_orders = len(problem.states), orders.shape[-2]
    orders = check_orders(orders.reshape(-1, orders.shape[-1]), problem.network.num_neurons, ranks)[:, :ranks]
    orders, numbers, duplicate_of = _distinct(orders.reshape(num_networks, num_orders, ranks))
    if _chosen(engine, problem, orders) == "incremental":
        sums = _incremental.measure_steps(problem, orders, numbers, neurons_per_step=neurons_per_step)
    else:
        orders = orders[:, : numbers.max()]
        keep = np.asarray(masks_of_orders(orders.reshape(-1, ranks), problem.network.num_neurons, ranks))
        keep = keep.reshape(*orders.shape[:2], ranks + 1, -1)[:, :, ::neurons_per_step]
        sums = _vmap.measure_masks(problem, keep.reshape(num_networks, -1, problem.network.num_neurons))
        shape = (num_networks, orders.shape[1], steps + 1)
        sums = {name: of.reshape(*shape, *of.shape[2:]) for name, of in sums.items()}
    every = np.arange(num_networks)[:, None], duplicate_of
    sums = {name: of[every].reshape(*leading, num_orders, *of.shape[2:]) for name, of in sums.items()}
    return format_result(sums, problem, outcomes, ("network", "order", "step")[-len(leading) - 2 :])


def _chosen(engine: str, problem: AblationProblem, orders: np.ndarray) -> str:
    """The engine to take.

    Raises:
        InputError: if the incremental engine is asked for and does not apply.
    """
    if engine == "vmap" or (engine == "auto" and jax.default_backend() != "cpu"):
        return "vmap"
    lacking = _incremental.incremental_obstacle(
        problem.network, problem.states[0], _incremental.ablated_sites(problem.network, orders)
    )
    require(
        not (lacking and engine == "incremental"), f"engine 'incremental': expected {lacking}; take 'auto' or 'vmap'"
    )
    return "vmap" if lacking else "incremental"


def _distinct(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct orders of each network in front [network, order, rank], how many they are [network], and where each
    order is among them [network, order].

    Scores of silent neurons tie, so that orders often agree as far as they are followed.
    """
    found = [np.unique(of_network, axis=0, return_inverse=True) for of_network in orders]
    # a program is compiled for a number of orders and takes no time over those beyond the distinct ones
    room = ROOM * -(-orders.shape[1] // ROOM)
    in_front = np.stack([np.resize(distinct, (room, orders.shape[2])) for distinct, _ in found])
    numbers = np.array([len(distinct) for distinct, _ in found], np.int32)
    return in_front, numbers, np.stack([duplicate_of.ravel() for _, duplicate_of in found])
