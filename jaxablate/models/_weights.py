"""Find the parameters around each site: the linear maps before and after it, and all that belong to one unit.

Input: a graph or a `ModelSpec`, and a site.
Output: the linear maps that read a site, the unit of each parameter's numbers, the norm of each unit's weights.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from jaxablate._checks import InputError, require
from jaxablate.models._analysis import Flow, SiteSpec, describe_values, location, result_axes
from jaxablate.models._graph import LINEAR_MAPS, Graph, evaluate, needed, operation_name, read, shape_of, variables
from jaxablate.models._model import TRACED, ModelSpec, State
from jaxablate.models._units import (
    COPIES,
    RESHAPES,
    Ids,
    MixedError,
    placed,
    pull,
    pull_through,
    push,
    site_ids,
    unit_ids,
)


class Reader(NamedTuple):
    """A linear map that reads a site through operations that keep its units apart.

    Attributes:
        equation: the linear map.
        side: which of its two operands comes from the site.
        axes: contracted axes of that operand, or the axis of channels of a convolution.
        weight_axes: the same axes of the weight.
        rows: int [unit, row], the places along the (flattened) axes that belong to each unit.
    """

    equation: JaxprEqn
    side: int
    axes: tuple[int, ...]
    weight_axes: tuple[int, ...]
    rows: np.ndarray

    @property
    def operand(self) -> Any:
        """Return the operand that comes from the site."""
        return self.equation.invars[self.side]

    @property
    def weight(self) -> Any:
        """Return the other operand."""
        return self.equation.invars[1 - self.side]

    @property
    def result(self) -> Var:
        """Return the result of the linear map."""
        return self.equation.outvars[0]

    @property
    def is_product(self) -> bool:
        """Return True for a matrix product, False for a convolution."""
        return self.equation.primitive.name == "dot_general"


def find_readers(graph: Graph, site: SiteSpec, flows: dict[Any, Flow | None]) -> list[Reader]:
    """Return the linear maps that read a site through operations that keep its units apart."""
    ids, readers = unit_ids(graph, site, flows), []
    for eqn in graph.equations:
        if eqn.primitive.name not in LINEAR_MAPS:
            continue
        data = [side for side, atom in enumerate(eqn.invars) if flows.get(atom) is not None]
        operand: Any = eqn.invars[data[0]] if len(data) == 1 else None
        axes = _contracted_axes(eqn, data[0]) if operand in ids else None
        rows = None if axes is None else _rows_of_units(ids[operand], axes[0], site.size)
        if axes is not None and rows is not None:
            readers.append(Reader(eqn, data[0], *axes, rows))
    return readers


def _contracted_axes(eqn: JaxprEqn, side: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the contracted axes of the operand and of the weight; None for a map that cannot be cut into units."""
    if eqn.primitive.name == "conv_general_dilated":
        numbers, params = eqn.params["dimension_numbers"], eqn.params
        if side == 1 or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return None
        return (numbers.lhs_spec[1],), (numbers.rhs_spec[1],)
    contracted, batch = eqn.params["dimension_numbers"]
    return None if batch[0] or not contracted[0] else (tuple(contracted[side]), tuple(contracted[1 - side]))


def _rows_of_units(ids: np.ndarray, axes: tuple[int, ...], num_units: int) -> np.ndarray | None:
    """Return int [unit, row], the places along (flattened) axes that belong to each unit.

    Args:
        ids: the unit to which each number of a linear map's operand belongs, -1 for none.
        axes: the contracted axes.
        num_units: number of units.

    Returns:
        None if a place belongs to different units for different examples or positions, or units have different
        numbers of places.
    """
    flat = np.moveaxis(ids, axes, range(len(axes))).reshape(math.prod(ids.shape[axis] for axis in axes), -1)
    # at the padding of a convolution a place has no unit, and its number is 0 whatever is ablated
    units = flat.max(axis=1)
    if not ((flat == units[:, None]) | (flat == -1)).all():
        return None
    rows = [np.flatnonzero(units == unit) for unit in range(num_units)]
    return np.stack(rows) if len({len(row) for row in rows}) == 1 and len(rows[0]) else None


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

    def refuse(eqn: JaxprEqn, var: Var | None) -> None:
        reason = "also reads a value from before the site"
        if var is None:
            reason = "cannot be cut into units"
        elif flows.get(var) is None:
            reason = "also reads a parameter of its units"
        elif var in after and eqn.primitive.name in LINEAR_MAPS:
            reason = "reads it in groups or batches, or multiplies it by another value"
        elif var in after:
            reason = "also reads it and is no linear map"
        raise InputError(f"site {site.name!r}: {operation_name(eqn)}{location(eqn)} {reason}; {remedy}")

    remedy = "mask its neurons, do not prune them"
    ids = unit_ids(graph, site, flows)
    after = set(ids)
    for reader in readers:
        ids[reader.weight] = _weight_ids(reader)
    passed = {(reader.result, atom) for reader in readers for atom in (reader.operand, reader.weight)}
    pull_through(graph.equations, ids, passed, refuse)
    require(graph.inputs[-1] not in ids, f"site {site.name!r}: it is computed without a linear map; {remedy}")
    outputs = ids.keys() & {*variables(graph.outputs)}
    require(not outputs, f"site {site.name!r}: it is a part of the outputs; {remedy}")
    return ids


def _weight_ids(reader: Reader) -> np.ndarray:
    """Return the unit of each number of a reader's weight."""
    shape = shape_of(reader.weight)
    sizes = [shape[axis] for axis in reader.weight_axes]
    units = np.full(math.prod(sizes), -1, np.int32)
    units[reader.rows] = np.arange(len(reader.rows), dtype=np.int32)[:, None]
    return placed(units.reshape(sizes), reader.weight_axes, shape)


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
    # If anything else read the value, a change of the parameter would change that too.
    while sum(atom in variables(eqn.invars) for eqn in graph.equations) == 1 and atom not in graph.outputs:
        producer = graph.producers.get(atom)
        if producer is None:
            return graph.inputs.index(atom), numbers
        eqn = graph.equations[producer]
        pulled = pull(eqn, [numbers]) if eqn.primitive.name in RESHAPES | COPIES else None
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
    numbers = placed(numbers, [places[axis] for axis in axes], shape_of(var))
    while True:
        users = [eqn for eqn in graph.equations if var in variables(eqn.invars)]
        if len(users) != 1 or var in graph.outputs:
            return None
        eqn = users[0]
        name, result = eqn.primitive.name, eqn.outvars[0]
        if name in ("add", "add_any", "sub"):
            side = next(i for i, atom in enumerate(eqn.invars) if atom is var)
            operand, sign = eqn.invars[1 - side], -1 if name == "sub" else 1
            # In p - z the linear map itself changes its sign, which the returned sign cannot express.
            if shape_of(result) != numbers.shape or (sign, side) == (-1, 1):
                return None
            pulled = pull(eqn, [numbers])
            units = None if pulled is None else pulled[1 - side]
            if not isinstance(operand, Literal) and flows[operand] is None and units is not None:
                leaf = find_leaf(graph, operand, units)
                if leaf is not None:
                    return sign, *leaf
            # Something else was added, for example a residual stream. A bias may still follow at the same places.
            moved = numbers
        else:
            moved = push(eqn, [numbers])[0] if name in RESHAPES | COPIES else None
        if moved is None:
            return None
        var, numbers = result, moved


def site_weights(spec: ModelSpec, state: State, *, incoming: bool) -> list[jax.Array]:
    """Return for each site the weights [unit, weight] into or out of each unit.

    Raises:
        InputError: for a site without a linear map before it (incoming) or after it that keeps its units apart.
    """
    graph = spec.graph(TRACED[0])
    flows, weights = describe_values(graph), []
    for name, site in zip(spec.sites, spec.site_specs, strict=True):
        parts = _incoming(graph, site, flows) if incoming else _outgoing(graph, site, flows)
        place = "before" if incoming else "after"
        require(len(parts) > 0, f"weight norms: expected a linear map {place} site {name!r} that keeps its units apart")
        by_unit = []
        for weight, axes, rows in parts:
            by_unit.append(rows_first(read_weight(graph, state, weight), axes)[rows].reshape(len(rows), -1))
        weights.append(jnp.concatenate(by_unit, axis=1))
    return weights


def read_weight(graph: Graph, state: State, weight: Any) -> jax.Array:
    """Return the value of a weight of a linear map, which no image changes."""
    env = dict(zip(graph.inputs, state, strict=False))  # without the images
    return read(evaluate(needed(graph.equations, [weight]), env), weight)


def rows_first(array: Any, axes: tuple[int, ...]) -> Any:
    """Return an array as [row, ...], with these axes flattened into rows and all others flattened too."""
    return jnp.moveaxis(array, axes, range(len(axes))).reshape(math.prod(array.shape[a] for a in axes), -1)


def _outgoing(graph: Graph, site: SiteSpec, flows: dict) -> list[tuple[Any, tuple[int, ...], np.ndarray]]:
    """Return the weights of the linear maps that read a site, the axes of their inputs, and the rows of each unit."""
    return [(reader.weight, reader.weight_axes, reader.rows) for reader in find_readers(graph, site, flows)]


def _incoming(graph: Graph, site: SiteSpec, flows: dict) -> list[tuple[Any, tuple[int, ...], np.ndarray]]:
    """Return the weight of the linear map that makes a site, the axes of its outputs, and the rows of each unit.

    A normalisation may lie in between. It mixes units and still gives each unit a place of its own.
    """

    def refuse(_: JaxprEqn, var: Var | None) -> None:
        # Nothing is removed here, so it does not matter what else reads the values.
        if var is None:
            raise MixedError

    ids = site_ids(graph, site)
    try:
        pull_through(graph.equations, ids, set(), refuse)
    except MixedError:
        return []
    makers = [(eqn, side) for eqn in graph.equations if eqn.primitive.name in LINEAR_MAPS and eqn.outvars[0] in ids
              for side, atom in enumerate(eqn.invars) if flows[atom] is None and atom in ids]  # fmt: skip
    if len(makers) != 1 or graph.inputs[-1] in ids:
        return []
    ((eqn, side),) = makers
    axes = tuple(result_axes(eqn, side))
    rows = _rows_of_units(ids[eqn.invars[side]], axes, site.size)
    return [] if rows is None else [(eqn.invars[side], axes, rows)]
