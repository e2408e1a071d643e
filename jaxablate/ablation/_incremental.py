"""The engine for cumulative orders: each step updates the result of the step before.

Input: orders of neuron ids [network, order, step, neuron], and an `AblationProblem`.
Output: sums of the outcomes [network, order, step + 1, ...].
Memory: for one chunk of examples, the values that the nested levels below keep.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Var

from jaxablate.ablation._execute import AblationProblem, ChunkRunner, Engine, Shard, split_by_site
from jaxablate.ablation._outcomes import Batch, Named, Sums, measure, zero_sums
from jaxablate.linear_compensation import Basis, order_basis, removal_basis
from jaxablate.models._analysis import SiteSpec, describe_values
from jaxablate.models._graph import LINEAR_MAPS, Graph, evaluate, needed, read, replaced, stage_of
from jaxablate.models._model import (
    TRACED,
    ModelSpec,
    bind_inputs,
    peak_activation_bytes,
    read_outputs,
    replacements,
    stack_states,
)
from jaxablate.models._sites import Prediction, ablated_values
from jaxablate.models._weights import Reader, find_readers, read_weight

# Levels: each ablated site is a level, numbered in network order. The operations of the graph fall into stages:
# stage d depends on the site of level d and on no deeper one. An order over several sites may visit them in any
# sequence, so the loops over levels nest. Level d keeps the values of earlier stages while consecutive steps ablate
# neurons at level d or deeper. Each step at level d evaluates stage d again, and level d + 1 starts with new values.
# Updates: let h [example, unit] be the outputs of a site and z = h W the result of a linear map that reads them. If a
# step ablates neuron j, its output changes from h_j to a_j, and z changes by (a_j - h_j) w_j, with w_j row j of W. So
# level d carries z and updates it; only the operations after z are evaluated again. Between the site and the linear map
# may lie operations P that keep units apart (scaling, pooling, flattening). Then z changes by the rows of W that belong
# to j, times the columns of P(a) - P(h) that belong to j. Everything else in stage d, for example a sum with a residual
# stream, is computed from the masked outputs.
# Invariant: at step k, exactly the neurons of the first k steps are ablated. When the step is measured, z of every
# level equals the linear map of that site's outputs, up to rounding.
# Exactness: each update adds about one float32 rounding error to z. After n steps the error is that of a sum of n
# terms, as in the matrix product itself. Counts can differ from a full forward pass only for near ties. If h_j or a_j
# is large, or its row of W, the update would lose digits of z. So z is computed again from h if the difference, or its
# product with the row, reaches LARGE_OUTPUT or is NaN. If outputs and weights are bounded, only NaN can do harm, and
# the check is left out: if NaN occurs, everything is measured a second time with the check.
# Exact ties: if everything that a part of z adds up is 0, as the outputs of dead ReLU units, that part is exactly 0.
# Without biases all logits are then equal, and a rounding error would choose the class. So each level counts the terms
# of z that are not 0, and sets z to 0 where none is left. If no weight of the networks is 0, every output of a linear
# map has equally many terms, and one number serves all of them. Otherwise each output has a number of its own.
# Limit: the error is relative to the outputs that were subtracted, not to those that remain. If all that remains is
# smaller by 1e5, and is then normalized or compared, the error is no longer small.
# Linear fills: ablating neuron j changes the outputs of its site's ablated units (j included) by -e_j b_j. Here e_j is
# the part of h_j that the remaining units do not predict, and b_j is column j of the order's `Basis.columns`. So z
# changes by -e_j (b_j^T W): an update as above, with -e_j in place of a_j - h_j and columns^T W in place of W. Only
# linear maps that read the site directly are updated in this way; all others get the predicted outputs. When a deeper
# level is entered, z is the result for the means plus the product of the centred kept outputs and the weights that the
# curve carries. Each ablated neuron makes a rank-one change to these weights.

BASES_AT_A_TIME = 32  # largest number of orders whose bases are on the device together
BASIS_BYTES = 2**28  # largest size of these bases; wide layers take fewer orders (but one order may take more)
CHUNK = 500  # examples whose state fits a CPU core's cache
CHUNK_ELSEWHERE = 10_000  # on a GPU, or if only the last site is ablated: its z is small
MODERATE = 10.0  # larger fills, scales and weights may change z by LARGE_OUTPUT although the outputs are bounded
LARGE_OUTPUT = 100.0  # subtracting larger outputs would leave rounding errors near 1e-5, the margin of a tie
BOUNDED = {"logistic", "tanh", "erf", "sin", "cos"}  # operations with results in [-1, 1]


class _Update(NamedTuple):
    """A linear map that reads a site, whose result is updated.

    Attributes:
        reader: the linear map.
        path: operations between the site and its operand, which keep units apart.
    """

    reader: Reader
    path: list[JaxprEqn]

    def is_direct(self, site: SiteSpec) -> bool:
        """Return True if the linear map is a matrix product that reads the site, along its only axis of units."""
        first = min(axis for axis in range(len(site.shape)) if axis not in site.unit_axes)
        plain = site.example_axis == first and site.shape[first] == TRACED[0]
        whole = len(site.unit_axes) == 1 and self.reader.axes == site.unit_axes
        return plain and whole and not self.path and self.reader.is_product


def _take(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Return the places of an array along an axis; a slice for a single place, which is faster than a gather."""
    if len(places) == 1:
        return jax.lax.dynamic_slice_in_dim(array, places[0], 1, axis % array.ndim)
    return jnp.take(array, places, axis, mode="clip")


def _rows_first(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return an operand [row, ...] of a product with its contracted axes flattened in front."""
    array = jnp.moveaxis(array, axes, range(len(axes)))
    return array.reshape(-1, *array.shape[len(axes) :])


def row_size(rows: jax.Array) -> jax.Array:
    """Return the largest magnitude in rows of a weight, at least 1; times a change it bounds the update."""
    return jnp.maximum(1, jnp.abs(rows).max())


def _change(reader: Reader, changes: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the change of the result of a linear map if some rows of its operand change.

    Args:
        reader: the linear map.
        changes: changes of these rows of the operand, [row, ...] for a product, else along the axis of channels.
        kernel: these rows of the weight, [row, ...] for a product, else along its axis of input channels.
    """
    if not reader.is_product:
        return reader.equation.primitive.bind(changes, kernel, **reader.equation.params)
    if len(changes) > 1:
        return _product(reader, changes, kernel)
    left, right = (changes[0], kernel[0]) if reader.side == 0 else (kernel[0], changes[0])
    return left.reshape(*left.shape, *(1,) * right.ndim) * right


def _product(reader: Reader, operand: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the result of a matrix product for this operand and weight, both [row, ...], summed over the rows."""
    operand, weight = jnp.moveaxis(operand, 0, -1), jnp.moveaxis(weight, 0, -1)
    left, right = (operand, weight) if reader.side == 0 else (weight, operand)
    return jnp.tensordot(left, right, axes=(-1, -1))


def _appear(intact: jax.Array, ablated: jax.Array) -> jax.Array:
    """Return 1 where ablation makes a value other than 0, -1 where it makes a value 0, else 0."""
    return (ablated != 0).astype(jnp.int8) - (intact != 0).astype(jnp.int8)


def _used(reader: Reader, weight: jax.Array, is_sparse: bool) -> jax.Array:
    """Return where a weight is not 0, as the weight of `_count`.

    Args:
        reader: the linear map.
        weight: its weight, of a product with its inputs first.
        is_sparse: True for a number of terms for each output of the linear map, False for one that serves all outputs.

    Returns:
        float32 of the weight's shape. If one number serves all: bool [row], or a kernel of one channel.
    """
    used, params = weight != 0, reader.equation.params
    if is_sparse:
        return used.astype(jnp.float32)
    if reader.is_product:
        return used.any(range(1, used.ndim))
    if params["feature_group_count"] == params["batch_group_count"] == 1:
        used = used.any(params["dimension_numbers"].rhs_spec[0], keepdims=True)
    return used.astype(jnp.float32)


def _count(reader: Reader, flags: jax.Array, used: jax.Array) -> jax.Array:
    """Return how many terms each part of the result of a linear map adds up.

    Args:
        reader: the linear map.
        flags: integers in the place of these rows of the operand: 1 for a term, or from `_appear` for changes.
        used: these rows of the weight, from `_used`.
    """
    if used.dtype == bool:
        counted = jnp.where(used.reshape(-1, *(1,) * (flags.ndim - 1)), flags, 0)
        return counted[0].astype(jnp.int32) if len(counted) == 1 else counted.sum(0, dtype=jnp.int32)
    return _change(reader, flags.astype(jnp.float32), used)


def _vanish(reader: Reader, result: jax.Array, count: jax.Array) -> jax.Array:
    """Return the result of a linear map that is 0 where a count from `_count` is 0; 0 times infinity stays NaN."""
    if reader.is_product and reader.side == 0:
        count = count.reshape(*count.shape, *(1,) * (result.ndim - count.ndim))
    return jnp.where((count == 0) & jnp.isfinite(result), 0, result)


def _weight(update: _Update, env: dict[Var, Any]) -> jax.Array:
    """Return the weight of an update, of a product with its inputs first, [row, ...]."""
    weight = read(env, update.reader.weight)
    return _rows_first(weight, update.reader.weight_axes) if update.reader.is_product else weight


class _Level(NamedTuple):
    """An ablated site: its place in the graph.

    Attributes:
        site: index of the site.
        variable: the site's value.
        updates: linear maps whose results are updated.
        rest: the other operations of the stage that are needed, in order.
        is_bounded: True if ablated and other outputs cannot differ by `LARGE_OUTPUT`.
    """

    site: int
    variable: Var
    updates: list[_Update]
    rest: list[JaxprEqn]
    is_bounded: bool


class _Plan(NamedTuple):
    """The stages of a graph: operations that no step changes, then the levels."""

    first: list[JaxprEqn]
    levels: list[_Level]


def ablated_sites(network: ModelSpec, orders: np.ndarray) -> tuple[int, ...]:
    """Return the indices of the sites whose neurons are in the orders."""
    return tuple(np.unique(network.site_of(orders[orders < network.num_neurons])).tolist())


def preferred_chunk(network: ModelSpec, sites: tuple[int, ...]) -> int:
    """Return the number of examples of a chunk: few on a CPU, unless only the last site is ablated."""
    last_only = sites == (len(network.sites) - 1,)
    return CHUNK if jax.default_backend() == "cpu" and not last_only else CHUNK_ELSEWHERE


@functools.lru_cache(maxsize=256)
def has_updates(network: ModelSpec, sites: tuple[int, ...], is_linear: bool = False) -> bool:
    """Return True if the engine gains by updates at one of these sites, or by starting after the first site."""
    plan = _make_plan(network, network.graph(TRACED[0]), sites, (), is_linear)
    return len(sites) > 1 or any(level.updates for level in plan.levels)


def reader_weights(problem: AblationProblem, sites: tuple[int, ...]) -> list[np.ndarray]:
    """Return the weights of the linear maps that read these sites, of each network, as the network computes them."""
    graph = problem.network.graph(TRACED[0])
    atoms = [reader.weight for site in sites for reader in _readers_in(problem.network, graph, site)]
    return [np.asarray(read_weight(graph, state, atom)) for state in problem.states for atom in atoms]


def _is_moderate(problem: AblationProblem, weights: list[np.ndarray]) -> bool:
    """Return True if fills, scales and the weights that read a site are below `MODERATE` in magnitude, none is NaN."""
    arrays = map(np.asarray, jax.tree.leaves((problem.fill, problem.scale, weights)))
    # a linear fill multiplies the weights by columns that may be large
    return problem.linear is None and all(float(np.abs(array).max(initial=0)) < MODERATE for array in arrays)


def _make_plan(
    network: ModelSpec, graph: Graph, sites: tuple[int, ...], removed: tuple[int, ...], is_linear: bool
) -> _Plan:
    """Cut a graph into stages at these sites; neurons of the sites `removed` are ablated from the start."""
    variables_of_sites = [graph.values[network.site_specs[site].ordinal] for site in sites]
    stage = graph.stages(variables_of_sites)
    depth = {eqn.outvars[0]: stage_of(eqn, stage) for eqn in graph.equations}
    masked = {graph.values[network.site_specs[site].ordinal] for site in removed}
    updates = [_find_updates(network, graph, site, stage, depth, masked) for site in sites]
    if is_linear:
        specs = [network.site_specs[site] for site in sites]
        updates = [[u for u in of_site if u.is_direct(spec)] for spec, of_site in zip(specs, updates, strict=True)]
    carried = {update.reader.result for of_site in updates for update in of_site}
    # A carried result is updated, so operations that only it needs are not evaluated again.
    without_carried = [eqn for eqn in graph.equations if not carried.intersection(eqn.outvars)]
    live = {eqn.outvars[0] for eqn in needed(without_carried, [*graph.outputs, *variables_of_sites])}
    levels = []
    for index, (site, var) in enumerate(zip(sites, variables_of_sites, strict=True), start=1):
        rest = [eqn for eqn in without_carried if eqn.outvars[0] in live and depth[eqn.outvars[0]] == index]
        producer = graph.producers.get(var)
        made_by = "" if producer is None else _first_operation(graph, producer)
        plain = all(not update.path for update in updates[index - 1])
        levels.append(_Level(site, var, updates[index - 1], rest, made_by in BOUNDED and plain))
    return _Plan([eqn for eqn in graph.equations if depth[eqn.outvars[0]] == 0], levels)


def _first_operation(graph: Graph, producer: int) -> str:
    """Return the operation that makes a value, before any tag."""
    eqn = graph.equations[producer]
    while eqn.primitive.name == "name" and eqn.invars[0] in graph.producers:
        eqn = graph.equations[graph.producers[eqn.invars[0]]]
    return eqn.primitive.name


@functools.lru_cache(maxsize=1024)
def _readers(network: ModelSpec, site: int) -> list[tuple[int, Reader]]:
    """Return the linear maps that read a site, with the indices of their equations in every graph of the network."""
    graph = network.graph(TRACED[0])
    readers = find_readers(graph, network.site_specs[site], describe_values(graph))
    return [(graph.producers[reader.result], reader) for reader in readers]


def _readers_in(network: ModelSpec, graph: Graph, site: int) -> list[Reader]:
    """Return the linear maps that read a site in this graph of the network."""
    return [reader._replace(equation=graph.equations[index]) for index, reader in _readers(network, site)]


def _find_updates(network: ModelSpec, graph: Graph, site: int, stage: dict, depth: dict, masked: set) -> list[_Update]:
    """Return the float32 linear maps that read a site through operations that depend on no deeper site.

    A linear map whose own result is `masked` is left out: an update of masked units would show.
    """
    level, updates = stage[graph.values[network.site_specs[site].ordinal]], []
    for reader in _readers_in(network, graph, site):
        if reader.result in masked:
            continue
        avals: list[Any] = [atom.aval for atom in (*reader.equation.invars, reader.result)]
        dtypes = {aval.dtype for aval in avals}
        if depth[reader.result] == level and dtypes == {np.dtype(np.float32)}:
            path = [eqn for eqn in needed(graph.equations, [reader.operand]) if depth[eqn.outvars[0]] == level]
            updates.append(_Update(reader, path))
    return updates


def measure_steps(
    problem: AblationProblem,
    orders: np.ndarray,
    num_distinct: np.ndarray,
    keep: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Follow orders and sum the problem's outcomes at every step.

    Args:
        problem: the networks.
        orders: network-wide ids [network, order, step, neuron]. Steps of fewer neurons are padded with an id beyond the
            last neuron.
        num_distinct: number of orders to follow [network]; the remaining ones are padding.
        keep: bool [neuron], True = kept at the start; None keeps all neurons and measures the start as well.

    Returns:
        Sums [network, order, step + 1, ...]. If `keep` is given, [network, order, step, ...], without the start.
    """
    network = problem.network
    sites = ablated_sites(network, orders)
    # One example takes the results and changes of each level, and the activations before and after the levels.
    per_example = (2 * len(sites) + 4) * peak_activation_bytes(network, sites)
    removed = () if keep is None else ablated_sites(network, np.flatnonzero(~keep))
    weights = reader_weights(problem, sites)
    is_moderate, is_sparse = _is_moderate(problem, weights), not all(weight.all() for weight in weights)
    static = network, sites, removed, keep is None, problem.outcomes, problem.precision, is_sparse
    start = np.ones(network.num_neurons, bool) if keep is None else keep
    runner = ChunkRunner(problem, per_example, preferred_chunk(network, sites))
    at_a_time, parts = orders.shape[1], []
    if problem.linear is not None and keep is None:
        # Every order needs a basis for each of its sites. Groups of orders bound their memory; a group repeats the
        # forward pass up to the first site.
        # A basis is two float32 matrices [unit, unit], for each site and network.
        per_order = 8 * sum(network.sizes[site] ** 2 for site in sites) * len(orders)
        at_a_time = min(BASES_AT_A_TIME, max(1, BASIS_BYTES // per_order))
    for first in range(0, orders.shape[1], at_a_time):
        part = slice(first, first + at_a_time)
        number = np.clip(num_distinct - first, 0, at_a_time).astype(np.int32)
        ranks = orders[:, part].reshape(len(orders), len(range(orders.shape[1])[part]), -1)
        bases = _bases(problem, {*sites, *removed}, ranks, number, keep)
        # Unsigned: JAX adds three operations to every index that might be negative.
        of_part = orders[:, part].astype(np.uint32)
        replicated = of_part, number, start, problem.states, problem.fill, problem.scale, bases
        sums, num_nan = runner.run(_engine, (*static, is_moderate), replicated)
        if num_nan.any():  # tanh(NaN) is NaN, and would stay in z after an update
            is_moderate = False
            sums, _ = runner.run(_engine, (*static, is_moderate), replicated)
        parts.append(sums)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _bases(
    problem: AblationProblem, sites: set[int], orders: np.ndarray, num_distinct: np.ndarray, keep: np.ndarray | None
) -> dict[int, Basis]:
    """Return the bases of a linear fill by site; {} for other fills.

    Args:
        problem: the networks and the fill.
        sites: indices of the sites.
        orders: network-wide ids [network, order, rank].
        num_distinct: number of leading orders [network] that need bases; the others repeat the first basis.
        keep: bool [neuron], True = kept at the start; None keeps all.

    Returns:
        float32 arrays. Without `keep`, one basis for each order: [network, order, unit, unit]. With `keep`, one basis
        for all orders, for ablating a single unit in addition to those that `keep` removes: [network, 1, unit, unit].
    """
    fill, bases = problem.linear, {}
    if fill is None:
        return bases
    # A program is compiled for the number of bases, so this number is a power of 2.
    most = min(orders.shape[1], 1 << (int(num_distinct.max(initial=1)) - 1).bit_length())
    for site in sites:
        first, last = problem.network.offsets[site : site + 2]
        by_network = []
        for covariance, network_orders, number in zip(fill.covariances[site], orders, num_distinct, strict=True):
            if keep is None:
                ranks = [order[(order >= first) & (order < last)] - first for order in network_orders[: max(number, 1)]]
                distinct = [order_basis(covariance, fill.ridge, units) for units in ranks]
                by_network.append([*distinct, *distinct[:1] * (most - len(distinct))])
            else:
                by_network.append([removal_basis(covariance, fill.ridge, keep[first:last])])
        bases[site] = Basis(*np.moveaxis(np.array(by_network, np.float32), 2, 0))
    return bases


@Engine
def _engine(static, replicated, shard: Shard):
    """Follow orders on one shard of examples.

    Return sums [network, order, step, ...] and how many curves met NaN in bounded units [network].

    Args:
        static: the network, the ablated sites, the sites with neurons removed at the start, True to measure the start,
            outcomes, precision, True if weights are 0, and True if fill, scale and weights are moderate.
        replicated: orders [network, order, step, neuron], the number of orders to follow [network], the neurons kept at
            the start [neuron], the state of each network, fill, scale, and for a linear fill the bases of each site
            [network, order or 1, unit, unit], else {}.
        shard: the examples.
    """
    network, sites, removed, with_start, outcomes, precision, is_sparse, is_moderate = static
    orders, num_distinct, keep, states, fill, scale, bases = replicated
    num_steps = orders.shape[2] + with_start
    # The level at which each neuron is ablated. The padding of a step, with an id beyond the last neuron, gets a number
    # larger than any level.
    level_of_neuron = np.repeat(np.searchsorted(sites, np.arange(len(network.sites))), network.sizes)
    level_of_neuron = np.append(level_of_neuron, len(sites))

    def measure_network(arguments):
        state, orders, number, fill, scale, bases = arguments

        def add_chunk(totals, images, labels, targets, rows):
            splits = network.offsets[1:-1]
            fills, scales = split_by_site(fill, rows, splits), split_by_site(scale, None, splits)
            graph, env = bind_inputs(network, state, images)
            intact = None
            if any(function == "divergence" for _, function in outcomes):
                intact = read_outputs(network, graph, evaluate(graph.equations, dict(env)))
            plan = _make_plan(network, graph, sites, removed, bool(bases))
            first_bases, constant = jax.tree.map(lambda array: array[0], bases), {}
            for i in set(removed) - set(sites):
                kept = keep[network.offsets[i] : network.offsets[i + 1]]
                constant[i] = kept, site_fill(fills[i], first_bases.get(i), kept, with_start), scales[i]
            replace = replacements(network, graph, constant)
            env = evaluate(plan.first, replaced(env, replace), replace)
            examples = Batch(labels, targets, intact)
            settings = fills, scales, replace, is_moderate, with_start

            def start_curve(bases):
                # computed before the loops, since deeper levels are entered many times
                weights = [[_weight(update, env) for update in level.updates] for level in plan.levels]
                used, carried, pairs = [], [], list(zip(plan.levels, weights, strict=True))
                if bases:
                    changed = [
                        [jnp.tensordot(bases[level.site].columns.T, w, 1) for w in each] for level, each in pairs
                    ]
                    # The kept units start with the weights S^T W, with S as in `Basis`: the identity or the columns.
                    weights, carried = changed, weights if with_start else changed
                else:
                    used = [
                        [_used(u.reader, w, is_sparse) for u, w in zip(level.updates, each, strict=True)]
                        for level, each in pairs
                    ]
                curve = _Curve(network, graph, plan.levels, outcomes, examples, *settings, bases, weights, used)
                progress = _Progress(jnp.uint32(0), start_sums, jnp.asarray(keep), carried, jnp.bool_(False))
                return curve, progress, curve.enter_level(0, env, progress)

            start_sums = {name: jnp.zeros(values.shape[1:], values.dtype) for name, values in totals[0].items()}
            # Orders share the first level's values, unless each order has its own bases.
            shared = None if bases and with_start else start_curve(first_bases)

            def add_curve(i, totals):
                sums, num_nan = totals
                # depths[step]: the first level that loses a neuron at this step; the last entry, -1, ends every loop.
                depths = jnp.append(jnp.asarray(level_of_neuron)[orders[i]].min(axis=1), -1)
                curve, progress, first_level = shared or start_curve(jax.tree.map(lambda array: array[i], bases))
                progress = curve.run_level(orders[i], depths, 0, first_level, progress)
                sums = jax.tree.map(lambda total, new: total.at[i].add(new), sums, progress.sums)
                return sums, num_nan + progress.has_nan

            # The number of orders is an argument, not a constant of the program: networks differ in their distinct
            # orders.
            return jax.lax.fori_loop(0, number, add_curve, totals)

        sums = zero_sums(outcomes, network, shard.targets, (orders.shape[0], num_steps))
        return shard.add_chunks(add_chunk, (sums, jnp.int32(0)))

    with jax.default_matmul_precision(precision):
        return jax.lax.map(measure_network, (stack_states(states), orders, num_distinct, fill, scale, bases))


def site_fill(fill: jax.Array, basis: Basis | None, keep: jax.Array, is_order: bool) -> jax.Array | Prediction:
    """Return the fill of a site under one mask.

    Args:
        fill: values of ablated units [unit] or [example, unit]; with a basis, the means [unit].
        basis: basis of a linear fill, or None for other fills.
        keep: bool [unit], True = kept.
        is_order: True for a basis from `order_basis`, False for a basis from `removal_basis`.

    Returns:
        The fill itself without a basis, otherwise the prediction of the ablated units.
    """
    if basis is None:
        return fill
    # S - columns diag(gone) residuals, as in `Basis`. Its rows for ablated units are their predictions from kept units.
    start = jnp.eye(len(keep)) if is_order else basis.columns
    weights = start - (basis.columns * ~keep) @ basis.residuals
    return Prediction(fill, jnp.where(keep[:, None], weights.T, 0))


class _Progress(NamedTuple):
    """The state of a curve.

    Attributes:
        step: number of steps taken.
        sums: outcomes of the steps measured so far [step, ...].
        keep: bool [neuron], True = kept.
        weights: with a linear fill, for each level and update the weights [unit, ...] of the kept units in the result
            of the linear map, including what the kept units contribute through predictions; else [].
        has_nan: True if an update was NaN, but no update was checked for it.
    """

    step: jax.Array
    sums: Sums
    keep: jax.Array
    weights: list[list[jax.Array]]
    has_nan: jax.Array


class _Entered(NamedTuple):
    """The values of a level that no step at this level changes.

    Attributes:
        env: values of earlier stages, by variable.
        changes: for each update, a function from (units, rows) to the changes of its operand if they are ablated, and
            what `_appear` gives for them. With a linear fill, to the changes alone.
        results: for each update, the result of the linear map when the level is entered.
    """

    env: dict[Var, Any]
    changes: list[Callable]
    results: list[jax.Array]


class _Curve(NamedTuple):
    """The constants of all curves of one chunk of examples."""

    network: ModelSpec
    graph: Graph
    levels: list[_Level]
    outcomes: Named
    examples: Batch
    fills: Sequence
    scales: Sequence
    replace: dict
    is_moderate: bool
    with_start: bool
    bases: dict[int, Basis]
    # for each level and update the weight W, with a linear fill columns^T W
    weights: list[list[jax.Array]]
    # for each level and update its weight for `_count`; [] with a linear fill, whose ablated outputs are hardly ever 0
    used: list[list[jax.Array]]

    def masked(self, level: _Level, env: dict[Var, Any], keep: jax.Array) -> jax.Array:
        """Return the level's site with its ablated neurons filled."""
        first, last = self.network.offsets[level.site : level.site + 2]
        fill = site_fill(self.fills[level.site], self.bases.get(level.site), keep[first:last], self.with_start)
        mask = keep[first:last], fill, self.scales[level.site]
        return replacements(self.network, self.graph, {level.site: mask})[level.variable](env[level.variable])

    def results(self, depth: int, env: dict[Var, Any], progress: _Progress) -> list[jax.Array]:
        """Return the results of the readers at a level, computed from its outputs."""
        if self.bases:
            return self.predicted_results(depth, env, progress)
        level = self.levels[depth]
        env = env | {level.variable: self.masked(level, env, progress.keep)}
        for update in level.updates:
            evaluate([*update.path, update.reader.equation], env, self.replace)
        return [env[update.reader.result] for update in level.updates]

    def enter_level(self, depth: int, env: dict[Var, Any], progress: _Progress) -> _Entered:
        """Compute what no step at this level changes, from the values of earlier stages."""
        level = self.levels[depth]
        spec = self.network.site_specs[level.site]
        outputs = spec.canonical(env[level.variable])
        results = self.results(depth, env, progress)
        if self.bases:
            residuals: Callable = partial(self._residuals, outputs, level.site)
            if depth == 0:  # entered once: one product for all units
                (of_all_units,) = residuals(jnp.arange(spec.size))
                residuals = lambda units, _: [_take(of_all_units, units, 0)]  # noqa: E731
            return _Entered(env, [residuals] * len(level.updates), results)
        ablated = ablated_values(outputs, self.fills[level.site], self.scales[level.site])
        ablated = spec.native(jnp.broadcast_to(ablated, outputs.shape).astype(outputs.dtype))
        changes = []
        for update in level.updates:
            reader = update.reader
            # Deeper levels are entered at every step of a shallower one: they compute only the changes that they need.
            if depth > 0 and update.is_direct(spec):
                changes.append(partial(self._changes_of_units, outputs, level.site))
                continue
            intact, changed = (
                read(evaluate(update.path, env | {level.variable: value}, self.replace), reader.operand)
                for value in (env[level.variable], ablated)
            )
            arrays = [changed - intact, _appear(intact, changed)]
            if reader.is_product:
                arrays = [_rows_first(array, reader.axes) for array in arrays]
            axis = 0 if reader.is_product else reader.axes[0]
            changes.append(lambda _, rows, arrays=arrays, axis=axis: [_take(array, rows, axis) for array in arrays])
        return _Entered(env, changes, results)

    def without(self, weights: list[list[jax.Array]], neurons: jax.Array, is_taken: jax.Array) -> list[list[jax.Array]]:
        """Return `_Progress.weights` after a step; if `is_taken` is False, they do not change.

        At every level, residuals^T (columns^T W) of the step's neurons is subtracted. All levels are needed, since a
        step of several neurons may ablate some at deeper levels than the level at which it starts.
        """
        fewer = []
        for level, kept, changed in zip(self.levels, weights, self.weights, strict=True):
            first, last = self.network.offsets[level.site : level.site + 2]
            is_member = (neurons >= first) & (neurons < last) & is_taken
            units = jnp.where(is_member, neurons - first, last - first)  # beyond the site: no residual
            rows = jnp.take(self.bases[level.site].residuals, units, 0, mode="fill", fill_value=0).T
            pairs = zip(kept, changed, strict=True)
            fewer.append([weight - jnp.tensordot(rows, _take(change, units, 0), 1) for weight, change in pairs])
        return fewer

    def predicted_results(self, depth: int, env: dict[Var, Any], progress: _Progress) -> list[jax.Array]:
        """Return the results of a level's readers under a linear fill, without the predicted outputs themselves.

        With centred outputs c = h - mean, the result is mean W + c times the carried weights, over the kept units.
        """
        level = self.levels[depth]
        first, last = self.network.offsets[level.site : level.site + 2]
        outputs = self.network.site_specs[level.site].canonical(env[level.variable])
        mean = jnp.broadcast_to(self.fills[level.site], (1, *outputs.shape[1:]))
        kept = jnp.where(progress.keep[first:last], outputs - mean, 0)
        kept, mean = jnp.moveaxis(kept, -1, 0), jnp.moveaxis(mean, -1, 0)
        pairs = zip(level.updates, progress.weights[depth], strict=True)
        return [_product(u.reader, kept, w) + _product(u.reader, mean, _weight(u, env)) for u, w in pairs]

    def _residuals(self, outputs: jax.Array, site: int, units: jax.Array, _: Any = None) -> list[jax.Array]:
        """Return -e_j [unit, example, ...] for these units: minus the part that the remaining units do not predict."""
        rows = jnp.take(self.bases[site].residuals, units, 0, mode="clip")
        # the units come first at once: a transposed copy would take as long as the product
        return [jnp.tensordot(-rows, outputs - self.fills[site], (1, -1))]

    def _changes_of_units(self, outputs: jax.Array, site: int, units: jax.Array, _: jax.Array) -> list[jax.Array]:
        """Return the changes [unit, example, ...] of units that are ablated, and what `_appear` gives for them.

        Args:
            outputs: intact outputs of the site [example, ..., unit].
            site: index of the site.
            units: ids within the site.
        """
        intact, fill = _take(outputs, units, -1), _take(self.fills[site], units, -1)
        scale = None if self.scales[site] is None else _take(self.scales[site], units, -1)
        ablated = ablated_values(intact, fill, scale)
        return [jnp.moveaxis(array, -1, 0) for array in (ablated - intact, _appear(intact, ablated))]

    def counts(self, depth: int, env: dict[Var, Any], keep: jax.Array) -> list[jax.Array]:
        """Return the numbers of terms of the results at a level; [] with a linear fill."""
        if not self.used:
            return []
        level, counts = self.levels[depth], []
        env = env | {level.variable: self.masked(level, env, keep)}
        for update, used in zip(level.updates, self.used[depth], strict=True):
            reader, flags = update.reader, read(evaluate(update.path, env, self.replace), update.reader.operand) != 0
            if used.dtype == bool:  # as `_count`, with the rows last, where they mostly are
                flags = jnp.moveaxis(flags, reader.axes, range(-len(reader.axes), 0))
                flags = flags.reshape(*flags.shape[: -len(reader.axes)], -1)
                counts.append((flags & used).sum(-1, dtype=jnp.int32))
            else:
                counts.append(_count(reader, _rows_first(flags, reader.axes) if reader.is_product else flags, used))
        return counts

    def run_level(self, order, depths, depth: int, entered: _Entered, progress: _Progress) -> _Progress:
        """Measure the next step, then follow the order as long as its steps start at level `depth` or deeper.

        Args:
            order: network-wide ids [step, neuron].
            depths: level at which each step starts [step + 1], with -1 at the end.
            depth: this level.
            entered: the level's values, constant during the call.
            progress: the state of the curve.
        """
        level = self.levels[depth]
        first, last = self.network.offsets[level.site : level.site + 2]

        def run_deeper(results, progress):
            env = entered.env | {level.variable: self.masked(level, entered.env, progress.keep)}
            env.update(zip((update.reader.result for update in level.updates), results, strict=True))
            evaluate(level.rest, env, self.replace)
            if depth + 1 < len(self.levels):
                deeper = self.enter_level(depth + 1, env, progress)
                return self.run_level(order, depths, depth + 1, deeper, progress)
            outputs = read_outputs(self.network, self.graph, env)
            new = measure(self.outcomes, self.network.kind, outputs, self.examples)
            place = progress.step - (not self.with_start)
            sums = jax.tree.map(lambda sums, new: sums.at[place].set(new), progress.sums, new)
            return progress._replace(step=progress.step + 1, sums=sums)

        # One pass of the loop ablates the neurons of a step and measures. The first pass only measures the step at
        # which the level was entered, so its neurons change nothing; a branch of its own would double the program.
        def advance(state):
            results, counts, progress, is_entered = state
            neurons = order[progress.step - 1]  # step 0 is the start
            keep = progress.keep.at[neurons].set(progress.keep[neurons] & ~is_entered)
            is_member = (neurons >= first) & (neurons < last) & is_entered
            # A neuron of another level, or padding, gets unit 0 as a placeholder; its change is set to 0 below.
            units = jnp.where(is_member, neurons - first, 0)
            weights = self.without(progress.weights, neurons, is_entered) if self.bases else []
            progress = progress._replace(keep=keep, weights=weights)
            changes, appearing, sizes = [], [], []
            for i, (update, weight) in enumerate(zip(level.updates, self.weights[depth], strict=True)):
                reader = update.reader
                rows = jnp.asarray(reader.rows, jnp.uint32)[units]
                axis, weight_axis = (0, 0) if reader.is_product else (reader.axes[0], reader.weight_axes[0])

                def of_members(array, rows=rows, axis=axis):
                    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
                    return jnp.where(jnp.repeat(is_member, rows.shape[1]).reshape(shape), array, 0)

                change, *flags = map(of_members, entered.changes[i](units, rows.ravel()))
                kernel = _take(weight, rows.ravel(), weight_axis)
                sizes.append(jnp.abs(change).max() * row_size(kernel))
                changes.append(_change(reader, change, kernel))
                if self.used:
                    appearing.append(_count(reader, flags[0], _take(self.used[depth][i], rows.ravel(), weight_axis)))
            updated = [result + change for result, change in zip(results, changes, strict=True)]
            size = jnp.stack(sizes).max() if sizes else jnp.float32(0)
            if level.is_bounded and self.is_moderate:  # the update is small, unless it is NaN
                progress = progress._replace(has_nan=progress.has_nan | jnp.isnan(size))
            elif level.updates:
                again = partial(self.results, depth, entered.env, progress)
                updated = jax.lax.cond(size < LARGE_OUTPUT, lambda: updated, again)
            if counts:
                new_counts = [count + new for count, new in zip(counts, appearing, strict=True)]

                def vanish(updated):
                    pairs = zip(level.updates, updated, new_counts, strict=True)
                    return [_vanish(update.reader, z, count) for update, z, count in pairs]

                # If an activation function follows, this is part of one pass over z with it and the update. Outcomes
                # pass over their logits several times.
                has_next = depth + 1 < len(self.levels) or any(eqn.primitive.name in LINEAR_MAPS for eqn in level.rest)
                if level.is_bounded and has_next:
                    updated = vanish(updated)
                else:  # z that is 0 stays 0, so this is needed once; a loop copies nothing if it does not run
                    pairs = zip(counts, new_counts, strict=True)
                    is_new = jnp.stack([((old != 0) & (new == 0)).any() for old, new in pairs]).any()
                    updated, _ = jax.lax.while_loop(
                        lambda state: state[1], lambda state: (vanish(state[0]), jnp.bool_(False)), (updated, is_new)
                    )
                counts = new_counts
            progress = run_deeper(updated, progress)
            return updated, counts, progress, jnp.bool_(True)

        def goes_on(state):
            *_, progress, is_entered = state
            return ~is_entered | (depths[progress.step - 1] == depth)

        counts = self.counts(depth, entered.env, progress.keep)
        if depth == 0 and not self.with_start:
            start = entered.results, counts, progress._replace(step=progress.step + 1), jnp.bool_(True)
            # a loop of one step would copy the results
            return advance(start)[2] if len(order) == 1 else jax.lax.while_loop(goes_on, advance, start)[2]
        return jax.lax.while_loop(goes_on, advance, (entered.results, counts, progress, jnp.bool_(False)))[2]
