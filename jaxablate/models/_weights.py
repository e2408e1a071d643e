"""Find the weights of the linear maps before and after each site.

Input: a `ModelSpec` and its state.
Output: for each site, the weights into or out of each unit.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Var

from jaxablate._checks import require
from jaxablate.models._analysis import Flow, SiteSpec, describe_values, result_axes, unit_ids
from jaxablate.models._graph import LINEAR_MAPS, Graph, evaluate, needed, read, shape_of
from jaxablate.models._model import TRACED, ModelSpec, State


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


def weight_norms(spec: ModelSpec, state: State, *, incoming: bool) -> list[np.ndarray]:
    """Return for each site the Euclidean norm [unit] of the weights into or out of each unit.

    Raises:
        InputError: for a site without a linear map before it (incoming) or after it that keeps its units apart.
    """
    graph = spec.graph(TRACED[0])
    env = dict(zip(graph.inputs, state, strict=False))  # without the images: weights do not depend on them
    flows, norms = describe_values(graph), []
    for name, site in zip(spec.sites, spec.site_specs, strict=True):
        parts = _incoming(graph, spec.graph(TRACED[1]), site, flows) if incoming else _outgoing(graph, site, flows)
        place = "before" if incoming else "after"
        require(len(parts) > 0, f"weight norms: expected a linear map {place} site {name!r} that keeps its units apart")
        squares = 0
        for weight, axes, rows in parts:
            value = read(evaluate(needed(graph.equations, [weight]), dict(env)), weight)
            squares += (rows_first(value, axes)[rows] ** 2).sum(axis=(1, 2))
        norms.append(np.asarray(jnp.sqrt(squares)))
    return norms


def rows_first(array: Any, axes: tuple[int, ...]) -> Any:
    """Return an array as [row, ...], with these axes flattened into rows and all others flattened too."""
    return jnp.moveaxis(array, axes, range(len(axes))).reshape(math.prod(array.shape[a] for a in axes), -1)


def _outgoing(graph: Graph, site: SiteSpec, flows: dict) -> list[tuple[Any, tuple[int, ...], np.ndarray]]:
    """Return the weights of the linear maps that read a site, the axes of their inputs, and the rows of each unit."""
    return [(reader.weight, reader.weight_axes, reader.rows) for reader in find_readers(graph, site, flows)]


def _incoming(graph: Graph, other: Graph, site: SiteSpec, flows: dict) -> list[tuple[Any, tuple[int, ...], np.ndarray]]:
    """Return the weight of the last linear map that makes a site, the axes of its outputs, and the row of each unit."""
    var = graph.values[site.ordinal]
    for eqn in reversed(graph.equations[: graph.producers.get(var, 0)]):
        if eqn.primitive.name not in LINEAR_MAPS:
            continue
        weights = [side for side, atom in enumerate(eqn.invars) if flows[atom] is None]
        if len(weights) != 1:
            continue
        result, side = eqn.outvars[0], weights[0]
        shape, unit_axes = shape_of(result), flows[result].axes
        axes = tuple(axis for axis, place in result_axes(eqn, side).items() if place in unit_axes)
        sizes = math.prod(shape[a] for a in unit_axes), math.prod(shape_of(eqn.invars[side])[a] for a in axes)
        if not axes or sizes[0] != sizes[1]:
            continue
        ordinal = graph.values.index(result)
        sizes = enumerate(zip(shape, shape_of(other.values[ordinal]), strict=True))
        differ = [axis for axis, (size, other_size) in sizes if size != other_size]
        if len(differ) != 1 or differ[0] in unit_axes:
            continue
        maker = replace(site, ordinal=ordinal, shape=shape, unit_axes=unit_axes, example_axis=differ[0])
        # a normalisation mixes units and still gives each unit a place of its own
        ids = unit_ids(graph, maker, flows, through_normalisation=True).get(var)
        if ids is not None:
            units = np.asarray(site.canonical(ids)).reshape(-1, site.size)
            if (units == units[0]).all():
                return [(eqn.invars[side], axes, units[0][:, None])]
    return []
