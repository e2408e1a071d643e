"""Follow the units of a site through a graph: to the values computed from them, and back to their parameters.

Input: a graph, a site.
Output: ids of values: the unit to which each number belongs, -1 for none.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from jaxablate.models._analysis import Flow, SiteSpec, result_axes
from jaxablate.models._graph import (
    ELEMENTWISE,
    JOINS,
    LINEAR_MAPS,
    REDUCTIONS,
    WINDOWS,
    Graph,
    called_jaxpr,
    shape_of,
    variables,
)

COPIES = {
    "convert_element_type", "copy", "copy_p", "device_put", "name", "reduce_precision", "sharding_constraint",
    "stop_gradient",
}  # fmt: skip
RESHAPES = {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose"}
_MOVES = RESHAPES | JOINS | {"pad", "rev", "slice", "split", "tile", "unstack"}

Ids = dict[Any, np.ndarray]
"""For each value, int of its shape: the unit of each number, -1 for none."""


def site_ids(graph: Graph, site: SiteSpec) -> Ids:
    """Return the ids of the site alone."""
    var = graph.values[site.ordinal]
    shape = jax.eval_shape(site.canonical, jax.ShapeDtypeStruct(shape_of(var), jnp.int32)).shape
    return {var: np.asarray(site.native(np.broadcast_to(np.arange(site.size, dtype=np.int32), shape)))}


def unit_ids(graph: Graph, site: SiteSpec, flows: dict[Var, Flow | None]) -> Ids:
    """Return the ids of the site and of all values computed from it that keep its units apart.

    Args:
        graph: the graph for any number of examples.
        site: the site.
        flows: from `describe_values`.

    Returns:
        Ids of the site and of values computed from it, and from parameters, by operations that do not mix units.
    """
    with jax.ensure_compile_time_eval():  # the engines call this while JAX traces them
        ids = site_ids(graph, site)
        _push_through(graph.equations, ids, flows)
    return ids


def _push_through(equations: Sequence[JaxprEqn], ids: Ids, flows: dict) -> None:
    """Add the ids of results to `ids`; `flows` tells which values depend on parameters alone (None).

    A result that depends on the images and gets no ids, because it mixes units, is recorded in `flows`.
    """
    for eqn in equations:
        data = [atom for atom in variables(eqn.invars) if atom in ids]
        # An operand that depends on the images but has no ids holds mixed units, or values that bypass the site.
        mixed = [atom for atom in variables(eqn.invars) if atom not in ids and flows.get(atom) is not None]
        if data or mixed:
            for var in eqn.outvars:
                flows.setdefault(var, True)
        if data and not mixed:
            operands = [None if isinstance(atom, Literal) else ids.get(atom) for atom in eqn.invars]
            pairs = zip(eqn.outvars, push(eqn, operands), strict=True)
            ids.update({var: units for var, units in pairs if units is not None})


def push(eqn: JaxprEqn, operands: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """Return the ids of an equation's results, from the ids of its operands; None if it may mix units."""
    name, params = eqn.primitive.name, eqn.params
    first = next(units for units in operands if units is not None)
    unknown: list[np.ndarray | None] = [None] * len(eqn.outvars)
    inner = called_jaxpr(eqn)
    if inner is not None:
        jaxpr = inner[0]
        ids: Ids = {var: units for var, units in zip(jaxpr.invars, operands, strict=True) if units is not None}
        _push_through(jaxpr.eqns, ids, dict.fromkeys(ids, True))
        return [None if isinstance(atom, Literal) else ids.get(atom) for atom in jaxpr.outvars]
    if name in REDUCTIONS:
        lowest, highest = first.min(axis=params["axes"]), first.max(axis=params["axes"])
        return [lowest] if np.array_equal(lowest, highest) else unknown
    if name in WINDOWS and "window_dimensions" in params:
        return [_across_windows(eqn, first, shape_of(eqn.outvars[0]))]
    sources = _sources(eqn)
    if sources is None:
        return unknown
    pairs = zip(eqn.invars, operands, strict=True)
    known = np.concatenate([np.full(math.prod(shape_of(a)), -1) if ids is None else ids.ravel() for a, ids in pairs])
    results = [[known[numbers] for numbers in arrays] for arrays in sources]
    # Each number of a result is computed from one number of every operand. The result keeps units apart if these
    # numbers belong to one unit or to none (-1).
    units = [functools.reduce(np.maximum, candidates) for candidates in results]
    apart = all(((c == u) | (c < 0)).all() for u, candidates in zip(units, results, strict=True) for c in candidates)
    return [*units] if apart else unknown


def _sources(eqn: JaxprEqn) -> list[list[np.ndarray]] | None:
    """Return the numbers of an equation's operands from which the numbers of its results are computed.

    The numbers of all operands are counted together.

    Returns:
        For each result, int arrays of its shape: one for each operand of an elementwise operation, and one for an
        operation that moves numbers. None for any other operation.
    """
    bounds = np.cumsum([0, *(math.prod(shape_of(atom)) for atom in eqn.invars)])
    numbers = [np.arange(a, b, dtype=np.int32).reshape(shape_of(atom))
               for a, b, atom in zip(bounds[:-1], bounds[1:], eqn.invars, strict=True)]  # fmt: skip
    if eqn.primitive.name in ELEMENTWISE | COPIES:
        return [[np.broadcast_to(array, shape_of(eqn.outvars[0])) for array in numbers]]
    if eqn.primitive.name not in _MOVES:
        return None
    # The operation itself moves the numbers of the places, so no operation needs a rule of its own.
    moved = eqn.primitive.bind(*map(jnp.asarray, numbers), **eqn.params)
    return [[np.asarray(array)] for array in (moved if eqn.primitive.multiple_results else [moved])]


def _across_windows(eqn: JaxprEqn, ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the ids on the other side of a pooling, of this shape; None if they differ along a pooled axis."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    pooled = [w > 1 or n != m for w, n, m in zip(eqn.params["window_dimensions"], before, after, strict=True)]
    first = ids[tuple(slice(0, 1) if along else slice(None) for along in pooled)]
    return np.broadcast_to(first, shape) if (first == ids).all() else None


def placed(array: np.ndarray, axes: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return an array broadcast to a shape; `axes` are the places of its axes in this shape."""
    ascending = array.transpose(np.argsort(axes))
    return np.broadcast_to(np.expand_dims(ascending, [a for a in range(len(shape)) if a not in axes]), shape)


def pull_through(
    equations: Sequence[JaxprEqn],
    ids: Ids,
    passed: set[tuple[Var, Var]],
    refuse: Callable[[JaxprEqn, Var | None], None],
) -> None:
    """Add the ids of operands to `ids`, from the ids of results, and check that no other equation reads the operands.

    Args:
        equations: the equations of a graph or of a called function.
        ids: the units of values, changed in place.
        passed: pairs (result, operand) of equations that may read the operand, changed in place.
        refuse: called with an equation that is not `passed` and the value with ids that it reads, or with None if an
            equation may mix units; it may raise.
    """
    for eqn in reversed(equations):
        if not any(var in ids for var in eqn.outvars):
            continue
        results = [ids.get(var, np.full(shape_of(var), -1)) for var in eqn.outvars]
        pulled = pull(eqn, results)
        if pulled is None:
            refuse(eqn, None)
            continue
        for atom, units in zip(eqn.invars, pulled, strict=True):
            if units is None or isinstance(atom, Literal):
                continue
            known = ids.get(atom, units)
            if ((known != units) & (known >= 0) & (units >= 0)).any():
                refuse(eqn, None)
            ids[atom] = np.maximum(known, units)
            passed.add((eqn.outvars[0], atom))
    for eqn in equations:
        for var in variables(eqn.invars):
            if var in ids and (eqn.outvars[0], var) not in passed:
                refuse(eqn, var)


class MixedError(Exception):
    """Report that an operation mixes units."""


def pull(eqn: JaxprEqn, results: list[np.ndarray]) -> list[np.ndarray | None] | None:
    """Return the ids of an equation's operands, from the ids of its results.

    Returns:
        For each operand, int of its shape, or None if its numbers serve all units. None for an operation that may mix
        units.
    """
    name, params, units = eqn.primitive.name, eqn.params, results[0]
    shapes = [shape_of(atom) for atom in eqn.invars]
    inner = called_jaxpr(eqn)
    if inner is not None:
        return _pull_call(inner[0], results)
    if name in LINEAR_MAPS:
        return _pull_product(eqn, units)
    if name in REDUCTIONS:
        return [np.broadcast_to(np.expand_dims(units, tuple(map(int, params["axes"]))), shapes[0])]
    if name in WINDOWS and "window_dimensions" in params:
        across = _across_windows(eqn, units, shapes[0])
        return None if across is None else [across, *[None] * (len(shapes) - 1)]
    sources = _sources(eqn)
    if sources is None:
        return None
    bounds = np.cumsum([0, *map(math.prod, shapes)])
    # For each number of the operands, the range of units that it serves. It may be one unit (lowest = highest) or none
    # (lowest stays the largest integer). An operand whose numbers all serve the same range belongs to no unit, for
    # example a scalar.
    lowest, highest = np.full(bounds[-1], np.iinfo(np.int32).max), np.full(bounds[-1], -1)
    for of_result, arrays in zip(results, sources, strict=True):
        for numbers in arrays:
            np.minimum.at(lowest, numbers[of_result >= 0], of_result[of_result >= 0])
            np.maximum.at(highest, numbers[of_result >= 0], of_result[of_result >= 0])
    pulled: list[np.ndarray | None] = []
    for shape, low, high in zip(shapes, *(np.split(a, bounds[1:-1]) for a in (lowest, highest)), strict=True):
        if (low >= high).all():
            pulled.append(high.reshape(shape) if (high >= 0).any() else None)
        elif (low == low[0]).all() and (high == high[0]).all():
            pulled.append(None)
        else:
            return None
    return pulled


def _pull_call(jaxpr: Jaxpr, results: list[np.ndarray]) -> list[np.ndarray | None] | None:
    """Return the units of the operands of a called function; None if the function may mix units."""

    def refuse(*_: object) -> None:
        raise MixedError

    atoms = zip(jaxpr.outvars, results, strict=True)
    ids = {atom: units for atom, units in atoms if not isinstance(atom, Literal)}
    try:
        pull_through(jaxpr.eqns, ids, set(), refuse)
    except MixedError:
        return None
    return [ids.get(var) for var in jaxpr.invars]


def _pull_product(eqn: JaxprEqn, units: np.ndarray) -> list[np.ndarray | None] | None:
    """Return the units of the operands of a product: of the weight, if its output axes are the axes of the units."""
    if eqn.params.get("feature_group_count", 1) != 1 or eqn.params.get("batch_group_count", 1) != 1:
        return None
    pulled: list[np.ndarray | None] = []
    for side, atom in enumerate(eqn.invars):
        places = result_axes(eqn, side)
        first = units[tuple(slice(None) if a in places.values() else slice(0, 1) for a in range(units.ndim))]
        if (first != units).any():
            pulled.append(None)
            continue
        axes = sorted(places, key=places.__getitem__)
        squeezed = first.reshape([first.shape[places[axis]] for axis in axes])
        pulled.append(placed(squeezed, axes, shape_of(atom)))
    return None if all(array is None for array in pulled) else pulled
