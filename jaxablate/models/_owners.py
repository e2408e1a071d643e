"""Find the parameters of each unit of a site: the numbers that go when the unit is removed.

Input: a graph, a site, and the linear maps that read it.
Output: for each parameter of these units, the unit to which each of its numbers belongs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from jaxablate._checks import InputError
from jaxablate.models._analysis import Flow, SiteSpec, location, moved_ids, result_axes, unit_ids
from jaxablate.models._graph import (
    ELEMENTWISE,
    LINEAR_MAPS,
    REDUCTIONS,
    WINDOWS,
    Graph,
    called_jaxpr,
    operation_name,
    shape_of,
    variables,
)
from jaxablate.models._weights import Reader

COPIES = {"convert_element_type", "copy", "copy_p", "name", "reduce_precision", "stop_gradient"}
RESHAPES = {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose"}
MOVES = RESHAPES | {"concatenate", "pad", "rev", "slice", "split"}

Ids = dict[Var, np.ndarray]
Refuse = Callable[[JaxprEqn, str], None]


# Every value around a site gets ids: the unit to which each of its numbers belongs, -1 for none.
#   maker (linear map) -> bias, norm, activation -> site -> pooling, norm, flattening -> reader (linear map)
# Values after the site get their ids forwards, from `unit_ids`. All operands of these values and of the site get their
# ids backwards. The walk back ends at the inputs of the graph: a linear map passes the ids on to its weight alone,
# since its other operand has no axis of units. At a reader the rows of the weight have ids, but the result has none.
# Units can be removed if nothing else reads a value with ids: every equation with such an operand must be a reader, or
# have passed ids to this operand. This finds skips around the site, normalisations over units, weights used twice.
def find_owners(graph: Graph, site: SiteSpec, flows: dict[Var, Flow | None], readers: Sequence[Reader]) -> Ids:
    """Return the units of all values around a site whose shape depends on the number of its units.

    Args:
        graph: the graph for any number of examples.
        site: the site.
        flows: from `describe_values`.
        readers: the linear maps that read the site.

    Returns:
        For each value, int of its shape: the unit of each number, -1 for none. Parameters are among the values.

    Raises:
        InputError: if units cannot be removed, because another operation reads such a value.
    """

    def refuse(eqn: JaxprEqn, reason: str) -> None:
        raise InputError(
            f"site {site.name!r}: {operation_name(eqn)}{location(eqn)} {reason}; mask its neurons, do not prune them"
        )

    def refuse_reader(eqn: JaxprEqn, var: Var) -> None:
        if flows.get(var) is None:
            refuse(eqn, "also reads a parameter of its units")
        if eqn.primitive.name in LINEAR_MAPS and var in after:
            refuse(eqn, "reads it in groups or batches, or multiplies it by another value")
        refuse(eqn, "also reads it and is no linear map" if var in after else "also reads a value from before the site")

    ids = unit_ids(graph, site, flows)
    after = set(ids)
    for reader in readers:
        ids[reader.weight] = _weight_ids(reader)
    passed = {(reader.result, atom) for reader in readers for atom in (reader.operand, reader.weight)}
    _pull_through(graph.equations, ids, passed, refuse, refuse_reader)
    for var in (graph.inputs[-1], *graph.outputs):
        if not isinstance(var, Literal) and var in ids:
            place = (
                "computed from the images without a linear map" if var is graph.inputs[-1] else "a part of the outputs"
            )
            raise InputError(f"site {site.name!r}: it is {place}; mask its neurons, do not prune them")
    return ids


def _weight_ids(reader: Reader) -> np.ndarray:
    """Return the unit of each number of a reader's weight."""
    shape = shape_of(reader.weight)
    sizes = [shape[axis] for axis in reader.weight_axes]
    units = np.full(math.prod(sizes), -1, np.int32)
    units[reader.rows] = np.arange(len(reader.rows), dtype=np.int32)[:, None]
    return _placed(units.reshape(sizes), reader.weight_axes, shape)


def _placed(array: np.ndarray, axes: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return an array broadcast to a shape; `axes` are the places of its axes in this shape."""
    ascending = array.transpose(np.argsort(axes))
    return np.broadcast_to(np.expand_dims(ascending, [a for a in range(len(shape)) if a not in axes]), shape)


def _pull_through(
    equations: Sequence[JaxprEqn], ids: Ids, passed: set[tuple[Var, Var]], refuse: Refuse, refuse_reader: Callable
) -> None:
    """Add the units of operands to `ids`, from the units of results; raise if another equation reads them too.

    Args:
        equations: the equations of a graph or of a called function.
        ids: the units of values, changed in place.
        passed: pairs (result, operand) of equations that may read the operand, changed in place.
        refuse: raises for an equation that cannot be cut into units.
        refuse_reader: raises for an equation that reads a value with units and is not `passed`.
    """
    for eqn in reversed(equations):
        if not any(var in ids for var in eqn.outvars):
            continue
        results = [ids.get(var, np.full(shape_of(var), -1)) for var in eqn.outvars]
        pulled = _pull(eqn, results)
        if pulled is None:
            refuse(eqn, "cannot be cut into units")
            continue
        for atom, units in zip(eqn.invars, pulled, strict=True):
            if units is None or isinstance(atom, Literal):
                continue
            known = ids.get(atom, units)
            if ((known != units) & (known >= 0) & (units >= 0)).any():
                refuse(eqn, "reads the numbers of its units in another order")
            ids[atom] = np.maximum(known, units)
            passed.add((eqn.outvars[0], atom))
    for eqn in equations:
        for var in variables(eqn.invars):
            if var in ids and (eqn.outvars[0], var) not in passed:
                refuse_reader(eqn, var)


class _MixedError(Exception):
    """Report that a called function mixes units."""


def _pull(eqn: JaxprEqn, results: list[np.ndarray]) -> list[np.ndarray | None] | None:
    """Return the units of an equation's operands, from those of its results.

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
        windowed = [
            window > 1 or n != m
            for window, n, m in zip(params["window_dimensions"], units.shape, shapes[0], strict=True)
        ]
        first = units[tuple(slice(0, 1) if wide else slice(None) for wide in windowed)]
        apart = (first == units).all()
        return [np.broadcast_to(first, shapes[0]), *[None] * (len(shapes) - 1)] if apart else None
    # All other operations are followed by the numbers of their operands' entries.
    bounds = np.cumsum([0, *map(math.prod, shapes)])
    numbers = [start + np.arange(math.prod(shape)).reshape(shape) for start, shape in zip(bounds, shapes, strict=False)]
    if name in ELEMENTWISE | COPIES:
        moved, results = [np.broadcast_to(array, units.shape) for array in numbers], results * len(numbers)
    elif name in MOVES:
        moved = eqn.primitive.bind(*(jnp.asarray(array, jnp.int32) for array in numbers), **params)
        moved = moved if eqn.primitive.multiple_results else [moved]
    else:
        return None
    flat = np.concatenate([units.ravel() for units in results])
    entries = np.concatenate([np.ravel(array) for array in moved])[flat >= 0]
    lowest, highest = np.full(bounds[-1], np.iinfo(np.int32).max), np.full(bounds[-1], -1)
    np.minimum.at(lowest, entries, flat[flat >= 0])
    np.maximum.at(highest, entries, flat[flat >= 0])
    pulled: list[np.ndarray | None] = []
    for shape, low, high in zip(shapes, *(np.split(a, bounds[1:-1]) for a in (lowest, highest)), strict=True):
        if (low >= high).all():
            pulled.append(high.reshape(shape) if (high >= 0).any() else None)
        elif (low == low[0]).all() and (high == high[0]).all():
            pulled.append(None)
        else:
            return None
    return pulled


def _pull_call(jaxpr, results: list[np.ndarray]) -> list[np.ndarray | None] | None:
    """Return the units of the operands of a called function; None if the function may mix units."""

    def refuse(*_: object) -> None:
        raise _MixedError

    atoms = zip(jaxpr.outvars, results, strict=True)
    ids = {atom: units for atom, units in atoms if not isinstance(atom, Literal)}
    try:
        _pull_through(jaxpr.eqns, ids, set(), refuse, refuse)
    except _MixedError:
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
        pulled.append(_placed(squeezed, axes, shape_of(atom)))
    return None if all(array is None for array in pulled) else pulled


def find_leaf(graph: Graph, var: Var, numbers: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Return the input of the graph that a value is, moved or copied, and the number of each entry of this input.

    Args:
        graph: the graph.
        var: a value that depends on parameters alone.
        numbers: int of the value's shape, a number for each entry.

    Returns:
        The position in `graph.inputs` and int of the input's shape. None if the value is computed, or used elsewhere.
    """
    atom: Any = var
    while sum(atom in variables(eqn.invars) for eqn in graph.equations) == 1 and atom not in graph.outputs:
        producer = graph.producers.get(atom)
        if producer is None:
            return graph.inputs.index(atom), numbers
        eqn = graph.equations[producer]
        pulled = _pull(eqn, [numbers]) if eqn.primitive.name in RESHAPES | COPIES else None
        if pulled is None or pulled[0] is None:
            return None
        atom, numbers = eqn.invars[0], pulled[0]
    return None


def find_addend(graph: Graph, flows: dict[Var, Flow | None], reader: Reader) -> tuple[int, int, np.ndarray] | None:
    """Return the parameter that is added to the result of a linear map, for example its bias.

    Returns:
        The sign, 1 if the parameter is added and -1 if it is subtracted, as the mean of a batch norm. Then the position
        in `graph.inputs`, and int of the parameter's shape: the output of the linear map to which each number is added.
        None if there is no such parameter.
    """
    places = result_axes(reader.equation, 1 - reader.side)
    axes = sorted(places)
    sizes = [shape_of(reader.weight)[axis] for axis in axes]
    var, numbers = reader.result, np.arange(math.prod(sizes)).reshape(sizes)
    numbers = _placed(numbers, [places[axis] for axis in axes], shape_of(var))
    while True:
        users = [eqn for eqn in graph.equations if var in variables(eqn.invars)]
        if len(users) != 1 or var in graph.outputs:
            return None
        eqn = users[0]
        name, result = eqn.primitive.name, eqn.outvars[0]
        if name in ("add", "add_any", "sub"):
            side = next(i for i, atom in enumerate(eqn.invars) if atom is var)
            operand, sign = eqn.invars[1 - side], -1 if name == "sub" else 1
            if shape_of(result) != numbers.shape or (sign, side) == (-1, 1):
                return None
            pulled = _pull(eqn, [numbers])
            units = None if pulled is None else pulled[1 - side]
            if not isinstance(operand, Literal) and flows[operand] is None and units is not None:
                leaf = find_leaf(graph, operand, units)
                if leaf is not None:
                    return sign, *leaf
            moved = numbers
        else:
            moved = moved_ids(eqn, [numbers]) if name in RESHAPES | COPIES else None
        if moved is None:
            return None
        var, numbers = result, moved
