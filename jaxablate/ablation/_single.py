"""Ablate single neurons and pairs of neurons, and remove neurons greedily, the least harmful one at each step.

Input: a model, images, labels, a fill.
Output: correct predictions or other outcomes for each neuron, pair or step.
Memory: activations within `memory_limit`.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import require, require_integer, require_known, short_repr
from jaxablate._typing import Images, Order, Targets
from jaxablate.ablation import _incremental, _vmap
from jaxablate.ablation._arguments import format_result, make_site_problem
from jaxablate.ablation._execute import AblationProblem
from jaxablate.ablation._outcomes import CORRECT, Outcomes
from jaxablate.fills import AnyFill
from jaxablate.models._model import AnyModel

MASKS_MULTIPLE = 32  # a program is compiled for each number of masks, so this number is padded to a multiple of 32
HARM = {CORRECT: -1, "loss": 1, "divergence": 1}  # sign of an outcome that is larger for more harm


def single_ablation(
    model: AnyModel,
    images: Images,
    labels: Targets,
    fill: AnyFill | None = None,
    *,
    site: str | None = None,
    outcomes: Outcomes = CORRECT,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Ablate each neuron alone and count the correct predictions without it.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images, labels, fill, outcomes, memory_limit, mesh: as in `evaluate_masks`.
        site: name of the site whose neurons are ablated (the layers of an `MLP` are "layer1", "layer2", ...); None for
            the neurons of all sites.

    Returns:
        int32 [neuron], in network order: correct predictions with that neuron ablated. Other outcomes as in
        `evaluate_masks`, with [neuron] in place of [mask]. A neuron's damage is the difference from the
        intact network's outcome.

    Raises:
        InputError: for an unknown site, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.single_ablation(model, np.ones((5, 4), np.float32), np.zeros(5, np.int32)).shape
        (5,)
    """
    problem, neurons = make_site_problem(model, site, images, labels, fill, outcomes, memory_limit, mesh)
    return format_result(_measure_sets(problem, neurons[:, None]), problem, outcomes, ("neuron",))


def pair_ablation(
    model: AnyModel,
    images: Images,
    labels: Targets,
    fill: AnyFill | None = None,
    *,
    site: str,
    outcomes: Outcomes = CORRECT,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Ablate each pair of neurons of a site and count the correct predictions without both.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images, labels, fill, outcomes, memory_limit, mesh: as in `evaluate_masks`.
        site: name of the site; the layers of an `MLP` are "layer1", "layer2", ...

    Returns:
        int32 [neuron, neuron], symmetric, over the neurons of the site: correct predictions with both neurons ablated;
        on the diagonal with that neuron alone. Other outcomes as in `evaluate_masks`, with [neuron, neuron] in place of
        [mask].

    Raises:
        InputError: for an unknown site, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int32)
        >>> ja.ablation.pair_ablation(model, images, labels, site="layer1").shape
        (3, 3)
    """
    problem, neurons = make_site_problem(model, site, images, labels, fill, outcomes, memory_limit, mesh)
    first, second = np.triu_indices(len(neurons), k=1)
    singles = _measure_sets(problem, neurons[:, None])
    pairs = _measure_sets(problem, np.stack([neurons[first], neurons[second]], axis=1)) if len(first) else {}
    sums = {}
    for name, diagonal in singles.items():
        matrix = np.zeros((len(neurons), len(neurons), *diagonal.shape[1:]), diagonal.dtype)
        matrix[np.diag_indices(len(neurons))] = diagonal
        if pairs:
            matrix[first, second] = matrix[second, first] = pairs[name]
        sums[name] = matrix
    return format_result(sums, problem, outcomes, ("neuron", "neuron"))


@dataclass(frozen=True)
class GreedyOrder:
    """Result of `greedy_order`.

    Attributes:
        order: int32 [rank], neuron ids in the order of their removal. Ids count within the site if one was given, else
            over the whole network.
        outcome: [rank + 1], the outcome with 0, 1, 2, ... neurons removed; int32 for "correct", float32 in nats for
            "loss" and "divergence".
    """

    order: Order
    outcome: jax.Array

    __repr__ = short_repr


def greedy_order(
    model: AnyModel,
    images: Images,
    labels: Targets,
    fill: AnyFill | None = None,
    *,
    site: str | None = None,
    outcome: str = CORRECT,
    steps: int | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> GreedyOrder:
    """Remove at each step the neuron whose removal does least harm, in addition to the neurons removed before.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images, labels, fill, memory_limit, mesh: as in `evaluate_masks`. The order is fitted to these examples; judge
            it on other examples.
        site: name of the site whose neurons are removed; None for the whole network.
        outcome: the outcome that measures harm: "correct" (fewer correct predictions), "loss" or "divergence" (a larger
            value). If two neurons do equal harm, the one with the lower id is removed.
        steps: number of neurons to remove; None for all.

    Returns:
        A `GreedyOrder` with `order` and `outcome`.

    Raises:
        InputError: for an unknown site or outcome, more steps than neurons, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int32)
        >>> greedy = ja.ablation.greedy_order(model, images, labels, site="layer2")
        >>> sorted(greedy.order.tolist()), greedy.outcome.shape
        ([0, 1], (3,))
    """
    require_known("outcome", outcome, HARM)
    problem, neurons = make_site_problem(model, site, images, labels, fill, outcome, memory_limit, mesh)
    remaining = neurons.tolist()
    steps = len(remaining) if steps is None else require_integer("steps", steps)
    require(
        1 <= steps <= len(remaining),
        f"steps: {steps} is not within 1..{len(remaining)}, the number of neurons; choose at most {len(remaining)}",
    )
    keep = np.ones(problem.network.num_neurons, bool)
    intact = _vmap.measure_masks(problem, keep[None, None])
    order, sums_by_step = [], [{name: values[0, 0] for name, values in intact.items()}]
    for _ in range(steps):
        sums = _measure_sets(problem, np.array(remaining)[:, None], keep)
        # argmin takes the first of equal values, and `remaining` is in ascending order: the lower id wins a tie.
        least_harmful = int(np.argmin(HARM[outcome] * sums[outcome]))
        sums_by_step.append({name: values[least_harmful] for name, values in sums.items()})
        order.append(remaining.pop(least_harmful))
        keep[order[-1]] = False
    sums = {name: np.stack([step_sums[name] for step_sums in sums_by_step]) for name in sums_by_step[0]}
    result: Any = format_result(sums, problem, outcome, ("step",))
    return GreedyOrder(jnp.array(order, jnp.int32) - int(neurons[0]), result)


# Single neurons and pairs are orders of one step. The sets of one site share the forward pass up to that site, and the
# results of the linear maps after it. If no linear map is updated, each set is a full mask (`_vmap`). A program is
# compiled for each number of sets. Greedy removal needs n, n - 1, ..., 1 sets, so the number is padded.
def _measure_sets(problem: AblationProblem, sets: np.ndarray, keep: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Evaluate each set of neurons, ablated in addition to the neurons that `keep` already removes.

    Args:
        problem: the problem of one network.
        sets: network-wide ids [set, member]; the members of a set belong to one site.
        keep: bool [neuron]; None keeps all neurons.

    Returns:
        Sums of the outcomes over the examples [set, ...].
    """
    network = problem.network
    keep = np.ones(network.num_neurons, bool) if keep is None else keep
    sites = network.site_of(sets[:, 0])
    parts = []
    for site, members in itertools.groupby(range(len(sets)), key=lambda i: sites[i]):
        site_sets = sets[list(members)]
        if not _incremental.has_updates(network, (int(site),), problem.linear is not None):
            num_masks = MASKS_MULTIPLE * -(-len(site_sets) // MASKS_MULTIPLE)
            masks = np.tile(keep, (1, num_masks, 1))
            np.put_along_axis(masks[0], np.resize(site_sets, (num_masks, site_sets.shape[1])), False, axis=1)
            sums = _vmap.measure_masks(problem, masks)
            parts.append({name: values[0, : len(site_sets)] for name, values in sums.items()})
        elif problem.linear is not None and site_sets.shape[1] > 1:
            # A basis serves all sets of one more unit. So sets are grouped by their first member, which goes first.
            for first, members in itertools.groupby(site_sets.tolist(), key=lambda units: units[0]):
                without_first = keep & (np.arange(network.num_neurons) != first)
                parts.append(_measure_sets(problem, np.array([units[1:] for units in members]), without_first))
        else:
            # The engine compiles for the padded number of sets and evaluates only those that exist.
            padded = np.resize(site_sets, (max(len(site_sets), network.sizes[site]), site_sets.shape[1]))
            sums = _incremental.measure_steps(problem, padded[None, :, None], np.array([len(site_sets)]), keep)
            parts.append({name: values[0, : len(site_sets), 0] for name, values in sums.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
