"""Bound the numbers that a graph computes, whatever its images and parameters are.

Input: a graph. Output: True if all of its outputs lie between 0 and 1, as after a sigmoid.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxablate.models._graph import JOINS, LAYOUT, Graph, called_jaxpr, shape_of

Range = tuple[float, float]
"""The least and the largest number of a value."""

_ANY: Range = (-np.inf, np.inf)
# Increasing or decreasing in each operand: the extremes are at the ends of the operands' ranges.
_MONOTONE: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "max": np.maximum,
    "min": np.minimum, "clamp": lambda low, x, high: np.clip(x, low, high), "exp": np.exp, "exp2": np.exp2,
    "logistic": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "sqrt": np.sqrt, "log": np.log, "log1p": np.log1p,
}  # fmt: skip


def outputs_lie_between_0_and_1(graph: Graph) -> bool:
    """Return True if the outputs are one array whose numbers are in 0..1 for all images and parameters."""
    if len(graph.outputs) != 1:
        return False
    ranges: dict[Any, Range] = {}
    _add_ranges(graph.equations, ranges)
    low, high = _range_of(graph.outputs[0], ranges)
    return low >= 0 and high <= 1


def _range_of(atom: Any, ranges: dict[Any, Range]) -> Range:
    """Return the range of a value; any number for inputs and for constants that are arrays."""
    if not isinstance(atom, Literal):
        return ranges.get(atom, _ANY)
    return (float(atom.val), float(atom.val)) if np.isrealobj(atom.val) else _ANY


def _add_ranges(equations: Sequence[JaxprEqn], ranges: dict[Any, Range]) -> None:
    """Add the ranges of the equations' results to `ranges`."""
    for eqn in equations:
        operands = [_range_of(atom, ranges) for atom in eqn.invars]
        inner = called_jaxpr(eqn)
        if inner is not None:
            jaxpr, _ = inner
            ranges.update(zip(jaxpr.invars, operands, strict=True))
            _add_ranges(jaxpr.eqns, ranges)
            results = [_range_of(atom, ranges) for atom in jaxpr.outvars]
        else:
            results = [_range(eqn, operands)] * len(eqn.outvars)
        ranges.update(zip(eqn.outvars, results, strict=True))


def _range(eqn: JaxprEqn, operands: Sequence[Range]) -> Range:
    """Return the range of an operation's result."""
    name = eqn.primitive.name
    if name in JOINS or name == "pad":
        return _union(operands)
    if name == "select_n":
        return _union(operands[1:])
    if name in LAYOUT or name in ("reduce_max", "reduce_min"):
        return operands[0]
    if name == "reduce_sum":
        number = float(np.prod([shape_of(eqn.invars[0])[axis] for axis in eqn.params["axes"]]))
        return _at_ends(np.multiply, [operands[0], (number, number)])
    if name == "div" and operands[1][0] < 0 < operands[1][1]:
        return _ANY
    return _at_ends(_MONOTONE[name], operands) if name in _MONOTONE else _ANY


def _union(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _at_ends(function: Callable, operands: Sequence[Range]) -> Range:
    """Return the extremes of a function at the ends of its operands' ranges; any number if one is undefined."""
    with np.errstate(all="ignore"):
        values = function(*np.array(list(itertools.product(*operands))).T)
    return _ANY if np.isnan(values).any() else (float(values.min()), float(values.max()))
