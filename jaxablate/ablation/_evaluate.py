"""Ablate by any masks, or cumulatively along orders, with the engine that suits the model.

Input: a model or several of one architecture, masks or orders, images, labels, a fill.
Output: for each mask or step, the exact number of correct predictions, or other outcomes.
Memory: activations within `memory_limit`, and one bool for each mask and neuron.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from jaxablate._checks import describe_value, host_array, require, require_count, require_in_order, require_known
from jaxablate._typing import AnyArray, Images, Orders, Steps, Targets
from jaxablate.ablation import _certified, _incremental, _vmap
from jaxablate.ablation._arguments import format_result, make_problem, require_leading, site_range
from jaxablate.ablation._execute import AblationProblem
from jaxablate.ablation._outcomes import CORRECT, Outcomes
from jaxablate.fills import AnyFill
from jaxablate.models._model import AnyModel
from jaxablate.orders import check_orders, masks_of_orders

ENGINES = ("auto", "vmap", "incremental", "certified")
# A program is compiled for each number of orders, so this number is padded to a multiple of 32.
ORDERS_MULTIPLE = 32
CERTIFIED_EXAMPLES = 2000  # fewest examples for which "auto" takes the certified engine


def evaluate_masks(
    model: AnyModel | Sequence[AnyModel],
    keep: Bool[AnyArray, "*network mask unit"],  # all neurons, or the units of one site
    images: Images,
    labels: Targets,
    fill: AnyFill | None = None,
    *,
    site: str | None = None,
    outcomes: Outcomes = CORRECT,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Count a network's correct predictions under each of many masks.

    A neuron's output h becomes m h + (1 - m) f. If the mask keeps the neuron, m is 1 and h stays. If the mask ablates
    it, m is 0 and the output is the fill f.

    Args:
        model: a model from `ja.from_function` or `ja.from_module`, or a Flax NNX module such as an `MLP`, which is
            evaluated in evaluation mode. A sequence of models of one architecture (for example one for each seed) gives
            `keep`, `fill` and the result a leading axis [network].
        keep: bool [mask, neuron], True = kept; over all sites, in the order in which the model applies them (network
            order), or over `site` alone.
        images: [example, ...], as the model takes them.
        labels: integers [example] in 0..classes-1; any numbers [example, ...] if all outcomes are functions.
        fill: the outputs of ablated neurons: None for zeros, float [neuron], or an `AffineFill`, `LinearFill` or
            `PerExampleFill` of `ja.fills`, always over the whole network. `ja.mean_activations` gives means (bias
            balancing in the paper), and `ja.compute_fill` other fills.
        site: name of a site; masks then cover its neurons only, and all other neurons are kept. None stands for the
            whole network.
        outcomes: "correct", "class_correct", "confusion", "loss" or "divergence"; or several names, which are computed
            in one pass. A mapping may also hold functions of (outputs, labels) by name. Each returns one number for
            each example: integers and Booleans are summed, floating numbers averaged.
        memory_limit: largest number of bytes of activations at a time; None for 1 GiB.
        mesh: devices that share the examples, from `ja.devices.make_mesh`. With None, images that are already sharded
            stay on their mesh, and other images are evaluated on one device.

    Returns:
        An array for the name of one outcome, a dictionary of arrays for several names or a mapping.
        "correct": int32 [mask], the number of examples whose largest logit (the first, if tied) is that of the label.
        "class_correct": int32 [mask, class]. "confusion": int32 [mask, label, predicted].
        "loss": float32 [mask], the mean cross-entropy in nats.
        "divergence": float32 [mask], the mean of D_KL(p || q) in nats, where p and q are the output distributions of
        the intact and of the ablated network.

    Raises:
        InputError: for a mask or fill of another width, a fill or logits that are not finite, an unknown site, labels
            out of range, models of different architectures, or a module that cannot be ablated.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.evaluate_masks(model, np.array([[True] * 3, [False] * 3]), images, labels).shape
        (2,)
    """
    problem, leading = make_problem(model, images, labels, fill, outcomes, memory_limit, mesh)
    network = problem.network
    first, last = site_range(network, site)
    require_in_order("keep", keep)
    site_keep = host_array("keep", keep)
    require(site_keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {site_keep.dtype}")
    axis = "neuron" if site is None else f"neuron of site {site!r}"
    require_leading("keep", site_keep, leading, (None, last - first), f"mask, {axis}")
    require(site_keep.size > 0, "keep: there is no mask; give at least one")
    # The engines know network-wide masks only; a mask of one site keeps all other neurons.
    keep = np.ones((*site_keep.shape[:-1], network.num_neurons), bool)
    keep[..., first:last] = site_keep
    sums = _vmap.measure_masks(problem, keep.reshape(len(problem.states), *keep.shape[-2:]))
    sums = {name: values.reshape(*leading, *values.shape[1:]) for name, values in sums.items()}
    return format_result(sums, problem, outcomes, ("network", "mask")[-len(leading) - 1 :])


def cumulative_ablation(
    model: AnyModel | Sequence[AnyModel],
    orders: Orders,
    images: Images,
    labels: Targets,
    fill: AnyFill | None = None,
    *,
    site: str | None = None,
    outcomes: Outcomes = CORRECT,
    steps: int | Sequence[int] | Steps = 80,
    engine: str = "auto",
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Count correct predictions while the neurons of each order are ablated one after another.

    Args:
        model: a model or several, as in `evaluate_masks`. With several, `orders`, `fill` and the result have a leading
            axis [network].
        orders: integers [order, rank], the neuron ids, each at most once in an order. Ids count over the whole network
            in network order, or within `site`.
        images, labels, fill, outcomes, memory_limit, mesh: as in `evaluate_masks`.
        site: name of a site within which the ids count; None if they count over the whole network.
        steps: number of steps of one neuron each; or the total of ablated neurons at each step, in increasing order.
            For wide layers, range(10, 1001, 10) ablates ten neurons in each of 100 steps.
        engine: "vmap" evaluates every step in full; "incremental" updates the step before; "certified" also does
            this, for predictions of multilayer perceptrons of sigmoid, tanh or ReLU units, and evaluates the later
            layers only for examples that may change their class. "auto" chooses among them on a CPU by the model and
            the number of examples, and takes "vmap" on other devices. All give the same counts, unless two logits
            differ by no more than a rounding error. In "incremental" and "certified" this error is relative to the
            outputs that were subtracted: if those that are kept are 1e5 times smaller, only "vmap" is exact.

    Returns:
        int32 [order, steps + 1]: at step k the first k neurons of the order are ablated, or the first steps[k - 1] if
        `steps` is a sequence; at step 0 none. Other outcomes as in `evaluate_masks`, with [order, steps + 1] in place
        of [mask].

    Raises:
        InputError: for more ablated neurons than ranks, steps that do not increase, a repeated or unknown neuron, an
            unknown engine, "certified" for an ablation that it cannot follow, or as in `evaluate_masks`.

    Source: paper, section 4.

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 2, 2), np.float32), np.zeros(5, np.int32)
        >>> ja.cumulative_ablation(model, np.array([[2, 0, 1]]), images, labels, steps=3).shape
        (1, 4)
    """
    require_known("engine", engine, ENGINES)
    numbers = _ablated_numbers(steps)
    problem, leading = make_problem(model, images, labels, fill, outcomes, memory_limit, mesh)
    network = problem.network
    first, last = site_range(network, site)
    require_in_order("orders", orders)
    orders, num_ranks = host_array("orders", orders), int(numbers[-1])
    require_leading("orders", orders, leading, (None, None), "order, rank")
    require(orders.size > 0, f"orders: shape {orders.shape} holds no neuron; give at least one")
    require(
        num_ranks <= orders.shape[-1],
        f"steps: {num_ranks} neurons to ablate are more than the {orders.shape[-1]} of an order; choose at most "
        f"{orders.shape[-1]}",
    )
    num_networks, num_orders = len(problem.states), orders.shape[-2]
    flat = orders.reshape(-1, orders.shape[-1])
    flat = check_orders(flat, last - first, num_ranks, site=site, first_id=first)[:, :num_ranks] + first
    orders, num_distinct, positions = _unique_orders(flat.reshape(num_networks, num_orders, num_ranks))
    engine = _choose_engine(engine, problem, orders, numbers)
    if engine == "certified":
        sums = _certified.measure_orders(problem, orders, num_distinct)
    elif engine == "incremental":
        sums = _incremental.measure_steps(problem, _split_steps(orders, numbers, network.num_neurons), num_distinct)
    else:
        orders = orders[:, : num_distinct.max()]
        # Every rank of an order gives a mask; the steps take some of them.
        keep = np.asarray(masks_of_orders(orders.reshape(-1, num_ranks), network.num_neurons, num_ranks))
        keep = keep.reshape(*orders.shape[:2], num_ranks + 1, -1)[:, :, np.append(0, numbers)]
        sums = _vmap.measure_masks(problem, keep.reshape(num_networks, -1, network.num_neurons))
        shape = (num_networks, orders.shape[1], len(numbers) + 1)
        sums = {name: values.reshape(*shape, *values.shape[2:]) for name, values in sums.items()}
    # Back from distinct orders to the given ones: repeated orders share a curve.
    index = np.arange(num_networks)[:, None], positions
    sums = {name: values[index].reshape(*leading, num_orders, *values.shape[2:]) for name, values in sums.items()}
    return format_result(sums, problem, outcomes, ("network", "order", "step")[-len(leading) - 2 :])


def _ablated_numbers(steps: int | Sequence[int] | Steps) -> np.ndarray:
    """Return the number of ablated neurons at each step but the first, int [step].

    Raises:
        InputError: unless `steps` is a number of at least 1, or such numbers in increasing order.
    """
    if np.ndim(steps) == 0:
        return np.arange(1, require_count("steps", steps) + 1)
    numbers = [require_count("steps", number) for number in host_array("steps", steps).tolist()]  # pyright: ignore[reportAttributeAccessIssue]
    require(
        len(numbers) > 0 and all(a < b for a, b in itertools.pairwise(numbers)),
        f"steps: expected a number, or numbers of ablated neurons in increasing order, got {describe_value(steps)}",
    )
    return np.array(numbers)


def _split_steps(orders: np.ndarray, numbers: np.ndarray, padding: int) -> np.ndarray:
    """Return orders [network, order, rank] as the neurons of each step [network, order, step, neuron].

    Args:
        orders: network-wide ids.
        numbers: number of ablated neurons after each step, the last one equal to the number of ranks.
        padding: the id that fills steps of fewer neurons than the largest.
    """
    starts = np.append(0, numbers[:-1])
    ranks = starts[:, None] + np.arange((numbers - starts).max())
    padded = np.append(orders, np.full((*orders.shape[:2], 1), padding, orders.dtype), axis=-1)
    return padded[..., np.where(ranks < numbers[:, None], ranks, orders.shape[-1])]


def _choose_engine(engine: str, problem: AblationProblem, orders: np.ndarray, numbers: np.ndarray) -> str:
    """Return the engine to use, "vmap", "incremental" or "certified".

    Raises:
        InputError: if the certified engine is requested and does not apply.
    """
    sites = _incremental.ablated_sites(problem.network, orders)
    # the numbers of ablated neurons are 1, 2, 3, ...: each step ablates one neuron
    can_certify = int(numbers[-1]) == len(numbers) and _certified.can_certify(problem, sites)
    require(
        engine != "certified" or can_certify,
        "engine: 'certified' does not support this activation function, site, fill, outcome, weight or steps (see "
        "docs/howto/ablation.md); choose 'incremental'",
    )
    if engine != "auto":
        return engine
    if jax.default_backend() != "cpu":
        return "vmap"
    # "certified" takes longer to compile, which pays only with many examples.
    if can_certify and problem.num_examples >= CERTIFIED_EXAMPLES:
        return "certified"
    return "incremental" if _incremental.has_updates(problem.network, sites, problem.linear is not None) else "vmap"


def _unique_orders(orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct orders of each network, padded, and where each given order is among them.

    Neurons that never change their code have tied scores, so different scores often rank them alike. Orders that agree
    at all ranks need only one curve.

    Args:
        orders: integers [network, order, rank].

    Returns:
        distinct: [network, padded order, rank], the distinct orders first.
        num_distinct: [network], the number of distinct orders.
        positions: [network, order], the index of each given order among the distinct orders.
    """
    # [distinct order, rank] and [order] for each network; networks may differ in the number of distinct orders.
    unique = [np.unique(network_orders, axis=0, return_inverse=True) for network_orders in orders]
    # The engine compiles for the padded number of orders; its loop ends after the distinct ones, so padding is free.
    num_padded = ORDERS_MULTIPLE * -(-orders.shape[1] // ORDERS_MULTIPLE)
    distinct = np.stack([np.resize(rows, (num_padded, orders.shape[2])) for rows, _ in unique])
    num_distinct = np.array([len(rows) for rows, _ in unique], np.int32)
    return distinct, num_distinct, np.stack([positions.ravel() for _, positions in unique])
