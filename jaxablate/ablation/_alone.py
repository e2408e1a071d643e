"""Neurons ablated alone, in pairs, and one by one where they do least harm."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import require, require_integer, require_known
from jaxablate._typing import Fill, Images, Labels
from jaxablate.ablation import _incremental, _sets, _vmap
from jaxablate.ablation._arguments import format_result, make_single_problem
from jaxablate.ablation._execute import AblationProblem
from jaxablate.ablation._outcomes import CORRECT
from jaxablate.models import Model, PerExampleFill
from jaxablate.models._network import ModelSpec

ROOM = 32  # masks are made up to a multiple of this, so that few programs are compiled
HARM = {CORRECT: -1, "loss": 1, "divergence": 1}  # whether more of a measure is better or worse


def single_ablation(
    model: Model,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    scale: Fill | None = None,
    site: str | None = None,
    outcomes: str | Iterable[str] = CORRECT,
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> Any:
    """Ablate each neuron alone: what the network gets right without it.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        images, labels, fill, scale, measures, memory_limit, precision, mesh: as in `evaluate_masks`.
        site: whose neurons to ablate, by name; the layers of an `MLP` are "layer1", "layer2", ... None for all sites.

    Returns:
        int32 [neuron], over all sites in network order, or over the neurons of the one: correct predictions with that
        neuron ablated. Other measures as in `evaluate_masks`, with [neuron] in place of [mask]. Damage is the intact
        network's measure less this.

    Raises:
        InputError: for an unknown site, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.single_ablation(model, np.ones((5, 4), np.float32), np.zeros(5, np.int32)).shape
        (5,)
    """
    outcomes = outcomes if isinstance(outcomes, str) else tuple(outcomes)
    problem = make_single_problem(model, images, labels, fill, scale, outcomes, memory_limit, precision, mesh)
    sums = _measure_sets(problem, neurons_of(problem.network, site)[:, None])
    return format_result(sums, problem, outcomes, ("neuron",))


def pair_ablation(
    model: Model,
    site: str,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    outcomes: str | Iterable[str] = CORRECT,
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> Any:
    """Ablate each pair of neurons of a site: what the network gets right without the two.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        site: its name; the layers of an `MLP` are "layer1", "layer2", ...
        images, labels, fill, measures, memory_limit, precision, mesh: as in `evaluate_masks`.

    Returns:
        int32 [neuron, neuron], symmetric, over the neurons of the site: correct predictions with these two ablated, on
        the diagonal with this one alone. Other measures as in `evaluate_masks`, with [neuron, neuron] in place of
        [mask].

    Raises:
        InputError: for an unknown site, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.ablation.pair_ablation(model, "layer1", np.ones((5, 4), np.float32), np.zeros(5, np.int32)).shape
        (3, 3)
    """
    outcomes = outcomes if isinstance(outcomes, str) else tuple(outcomes)
    problem = make_single_problem(model, images, labels, fill, None, outcomes, memory_limit, precision, mesh)
    neurons = neurons_of(problem.network, site)
    first, second = np.triu_indices(len(neurons), k=1)
    alone = _measure_sets(problem, neurons[:, None])
    pairs = _measure_sets(problem, np.stack([neurons[first], neurons[second]], axis=1)) if len(first) else {}
    sums = {}
    for name, diagonal in alone.items():
        matrix = np.zeros((len(neurons), len(neurons), *diagonal.shape[1:]), diagonal.dtype)
        matrix[np.diag_indices(len(neurons))] = diagonal
        if pairs:
            matrix[first, second] = matrix[second, first] = pairs[name]
        sums[name] = matrix
    return format_result(sums, problem, outcomes, ("neuron", "neuron"))


def greedy_order(
    model: Model,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    site: str | None = None,
    steps: int | None = None,
    by: str = CORRECT,
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> tuple[Any, Any]:
    """Remove at each step the neuron that does the least harm given those removed before it.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        images, labels, fill, memory_limit, precision, mesh: as in `evaluate_masks`. The order is fitted to these
            examples; judge it on others.
        site: to take neurons from, by name; None for the whole network.
        steps: how many neurons to remove; None for all.
        by: what harm is measured by: "correct" (fewer correct predictions), "loss" or "divergence" (more). Ties go to
            the lower index.

    Returns:
        The order, int32 [rank] of network-wide ids, and the measure along it [rank + 1] from the intact network on.

    Raises:
        InputError: for an unknown site or measure, more steps than neurons, or as in `evaluate_masks`.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int32)
        >>> order, correct = ja.ablation.greedy_order(model, images, labels, site="layer2")
        >>> sorted(order.tolist()), correct.shape
        ([3, 4], (3,))
    """
    require_known("measure of harm", by, HARM)
    problem = make_single_problem(model, images, labels, fill, None, by, memory_limit, precision, mesh)
    left = neurons_of(problem.network, site).tolist()
    steps = len(left) if steps is None else require_integer("steps", steps)
    require(1 <= steps <= len(left), f"steps: expected 1 to {len(left)}, the neurons of the scope, got {steps}")
    keep = np.ones(problem.network.num_neurons, bool)
    intact = _vmap.measure_masks(problem, keep[None, None])
    order, along = [], [{name: of[0, 0] for name, of in intact.items()}]
    for _ in range(steps):
        sums = _measure_sets(problem, np.array(left)[:, None], keep)
        least = int(np.argmin(HARM[by] * sums[by]))
        along.append({name: of[least] for name, of in sums.items()})
        order.append(left.pop(least))
        keep[order[-1]] = False
    sums = {name: np.stack([of[name] for of in along]) for name in along[0]}
    return jnp.array(order, jnp.int32), format_result(sums, problem, by, ("step",))


def neurons_of(network: ModelSpec, site: str | None) -> np.ndarray:
    """The ids of the neurons of a site, or of the whole network."""
    if site is None:
        return np.arange(network.num_neurons)
    require_known("site", site, network.sites)
    return np.arange(*network.offsets[network.sites.index(site) :][:2])


def _measure_sets(problem: AblationProblem, sets: np.ndarray, keep: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Sums of the outcomes [set, ...] with each set of neurons [set, member] ablated, beside those that `keep`
    [neuron] leaves out; the members of a set are of one site."""
    network = problem.network
    keep = np.ones(network.num_neurons, bool) if keep is None else keep
    sites = network.site_of(sets[:, 0])
    found = []
    for site, members in itertools.groupby(range(len(sets)), key=lambda i: sites[i]):
        of_site = sets[list(members)]
        if _incremental.incremental_obstacle(network, problem.states[0], (int(site),)):
            room = ROOM * -(-len(of_site) // ROOM)  # greedy removal asks for one set fewer at each step
            masks = np.tile(keep, (1, room, 1))
            np.put_along_axis(masks[0], np.resize(of_site, (room, of_site.shape[1])), False, axis=1)
            sums = {name: of[0, : len(of_site)] for name, of in _vmap.measure_masks(problem, masks).items()}
        else:
            # a program is compiled for a number of sets and takes no time over those beyond the ones that there are
            room = max(len(of_site), network.sizes[site])
            padded = np.resize(of_site, (room, of_site.shape[1]))
            sums = _sets.measure_sets(problem, padded, len(of_site), keep)
            sums = {name: of[: len(of_site)] for name, of in sums.items()}
        found.append(sums)
    return {name: np.concatenate([sums[name] for sums in found]) for name in found[0]}
