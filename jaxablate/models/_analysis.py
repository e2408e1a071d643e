"""Find the sites of a graph: the values whose units can be ablated.

Input: graphs of one function for two numbers of examples, and the names of its parameters.
Output: a `SiteSpec` for each value that a linear map reads, and for each tagged value.
"""

import functools
import re
import site as python_site
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from jaxablate._checks import InputError, require
from jaxablate.models._graph import (
    AFFINE,
    CONTROL_FLOW,
    JOINS,
    LAYOUT,
    LINEAR_MAPS,
    REDUCTIONS,
    WINDOWS,
    Graph,
    all_primitives,
    called_jaxpr,
    inner_jaxprs,
    needed,
    operation_name,
    shape_of,
    variables,
)

TAG = "jaxablate tag"
_TAG_PATTERN = re.compile(TAG + r" axis=(-?[0-9,-]+) reduce=(\w+) (.*)", re.DOTALL)
RANDOM = {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"}
CALLBACKS = {"io_callback", "pure_callback"}


@dataclass(frozen=True)
class SiteSpec:
    """A value of a graph whose units can be ablated.

    Attributes:
        name: name of the tag, or the path of the parameters of the linear map that the value comes from.
        kind: "units" (a nonlinear function of linear maps), "tag", or a kind that is only ablated if it is chosen:
            "stream" (a sum with a linear part, as in a residual network), "normalised" (by its own mean or size),
            "attention" (a product of two values), "sorted" (by size), "linear" (a linear map alone) or "input".
        ordinal: position of the value in `Graph.values`.
        shape: shape of the value for 2 examples.
        dtype: dtype of the value.
        example_axis: axis of the examples.
        unit_axes: axes of the units, for example the last one, or the axes of heads and of their features.
        made_by: operation that computes the value, for example "relu".
        read_by: operations that read the value as a linear map, for example "dot_general".
        where: file and line of the user's code that computes the value; "" if unknown.
        reduce: how scores reduce the positions of a unit in an example to one number, "mean" or "max".
    """

    name: str
    kind: str
    ordinal: int
    shape: tuple[int, ...]
    dtype: Any
    example_axis: int
    unit_axes: tuple[int, ...]
    made_by: str
    read_by: tuple[str, ...]
    where: str
    reduce: str = "mean"

    @property
    def size(self) -> int:
        """Return the number of units."""
        return int(np.prod([self.shape[axis] for axis in self.unit_axes]))

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the site's outputs [..., unit] in one example."""
        return jax.eval_shape(lambda value: self.canonical(value)[0], jax.ShapeDtypeStruct(self.shape, self.dtype))

    @property
    def _order(self) -> tuple[int, ...]:
        positions = [a for a in range(len(self.shape)) if a != self.example_axis and a not in self.unit_axes]
        return (self.example_axis, *positions, *self.unit_axes)

    def canonical(self, value: Any) -> Any:
        """Return the value of any number of examples as [example, ..., unit]."""
        if self._order != tuple(range(len(self._order))):
            value = value.transpose(self._order)
        rows, num_positions = self.shape[self.example_axis] // 2, len(self.shape) - 1 - len(self.unit_axes)
        if rows == 1 and len(self.unit_axes) == 1:
            return value
        rows_axes = (rows,) if rows > 1 else ()
        return value.reshape(value.shape[0] // rows, *rows_axes, *value.shape[1 : 1 + num_positions], self.size)

    def native(self, canonical: Any) -> Any:
        """Return outputs [example, ..., unit] in the shape that the graph uses: the inverse of `canonical`."""
        rows, sizes = self.shape[self.example_axis] // 2, [self.shape[axis] for axis in self._order[1:]]
        if rows > 1 or len(self.unit_axes) > 1:
            canonical = canonical.reshape(canonical.shape[0] * rows, *sizes)
        order = tuple(np.argsort(self._order).tolist())
        return canonical if order == tuple(range(len(order))) else canonical.transpose(order)


# The analysis runs the graph once over descriptions of values instead of values. A value that depends on parameters
# alone has no description (None). Any other value is described by its leaves: the linear maps, products, normalisations
# and inputs from which it is computed, and whether by affine operations alone. A linear map starts a new leaf, since it
# mixes the units before it into new units.
class Leaf(NamedTuple):
    """The source of a value, a kind as in `SiteSpec.kind`, and its equation."""

    kind: str
    equation: int


class Flow(NamedTuple):
    """Description of a value that depends on the images.

    Attributes:
        leaves: pairs of a `Leaf` and True if the value is a nonlinear function of that leaf.
        axes: axes of the units; () if unknown.
        flat: True if the value is the same for all units, for example their mean.
    """

    leaves: frozenset[tuple[Leaf, bool]]
    axes: tuple[int, ...]
    flat: bool = False


def describe_values(graph: Graph) -> dict[Var, Flow | None]:
    """Return the `Flow` of each value; None for values that depend on parameters alone."""
    *params, images = graph.inputs
    flows: dict[Var, Flow | None] = dict.fromkeys(params)
    flows[images] = Flow(frozenset({(Leaf("input", -1), False)}), tuple(range(1, len(shape_of(images)))))
    for index, eqn in enumerate(graph.equations):
        _describe_results(eqn, flows, index)
    return flows


def _describe_results(eqn: JaxprEqn, flows: dict, index: int) -> None:
    """Add the flows of an equation's results to `flows`."""
    operands = [None if isinstance(atom, Literal) else flows[atom] for atom in eqn.invars]
    inner = called_jaxpr(eqn)
    if all(flow is None for flow in operands):
        results: list = [None] * len(eqn.outvars)
    elif inner is not None:
        jaxpr, _ = inner
        inner_flows = dict(zip(jaxpr.invars, operands, strict=True)) | dict.fromkeys(jaxpr.constvars)
        for inner_eqn in jaxpr.eqns:
            _describe_results(inner_eqn, inner_flows, index)
        results = [None if isinstance(atom, Literal) else inner_flows[atom] for atom in jaxpr.outvars]
    else:
        results = [_describe(eqn, operands, index, len(shape_of(var))) for var in eqn.outvars]
    flows.update(zip(eqn.outvars, results, strict=True))


def _describe(eqn: JaxprEqn, operands: list[Flow | None], index: int, ndim: int) -> Flow:
    """Return the flow of a result with `ndim` axes; at least one operand depends on the images."""
    name = eqn.primitive.name
    data = [flow for flow in operands if flow is not None]
    shapes = [shape_of(atom) for atom, flow in zip(eqn.invars, operands, strict=True) if flow is not None]
    if name in LINEAR_MAPS:
        kind = "linear" if len(data) == 1 else "attention"
        return Flow(frozenset({(Leaf(kind, index), False)}), _axes_of_product(eqn, operands))
    leaves = frozenset().union(*(flow.leaves for flow in data))
    # the units of images x are all pixels, those of x + W x only the axes that W adds
    candidates = sorted((flow for flow in data if not flow.flat), key=lambda flow: _kinds(flow) == {"input"})
    axes = candidates[0].axes if candidates else data[0].axes
    flat = all(flow.flat for flow in data)
    if name == "gather" and operands[0] is None:  # a table read at the images' indices
        return Flow(frozenset({(Leaf("input", index), False)}), (ndim - 1,))
    if name in ("sort", "top_k", "approx_top_k"):
        return Flow(frozenset({(Leaf("sorted", index), False)}), axes)
    if name in LAYOUT | JOINS:
        return Flow(leaves, _moved_axes(eqn, axes, shapes[0], shape_of(eqn.outvars[0])), flat)
    if name in REDUCTIONS:
        reduced = tuple(map(int, eqn.params["axes"]))  # Flax passes integers of NumPy
        rest = tuple(a - sum(r < a for r in reduced) for a in axes if a not in reduced)
        return Flow(leaves, rest, flat or bool(axes and not rest))
    if name in WINDOWS:
        return Flow(leaves, axes, flat)
    if not flat and any(flow.flat and flow.leaves for flow in data):
        return Flow(frozenset({(Leaf("normalised", index), False)}), axes)
    if is_affine(eqn, operands):
        return Flow(leaves, axes, flat)
    same_rank = all(len(shape) in (0, ndim) for shape in shapes)
    return Flow(frozenset((leaf, True) for leaf, _ in leaves), axes if same_rank else (ndim - 1,) * (ndim > 0), flat)


def is_affine(eqn: JaxprEqn, operands: Sequence[Any]) -> bool:
    """Return True if a result is an affine function of the operands that depend on the images (not None)."""
    name, data = eqn.primitive.name, [operand is not None for operand in operands]
    if name in ("add", "sub", "neg", "add_any"):
        return True
    if name == "select_n":
        return not data[0]
    if name == "dynamic_update_slice":
        return not any(data[2:])
    if name in ("scatter", "scatter-add", "scatter-sub") or (name == "scatter-mul" and not data[2]):
        return not data[1]
    return (name == "mul" and sum(data) == 1) or (name == "div" and not data[1])


def _axes_of_product(eqn: JaxprEqn, operands: Sequence[Flow | None]) -> tuple[int, ...]:
    """Return the axes of the units in the result of a linear map or of a product of two values.

    The units of a linear map are the axes that its weight adds. A product of two values keeps the units of both.
    """
    if eqn.primitive.name == "conv_general_dilated":
        return tuple(result_axes(eqn, 1).values())
    axes, batch = set(), eqn.params["dimension_numbers"][1]
    for side, flow in enumerate(operands):
        places = result_axes(eqn, side)
        if flow is None:
            axes.update(place for axis, place in places.items() if axis not in batch[side])
        elif None not in operands:
            axes.update(places[axis] for axis in flow.axes if axis in places)
    return tuple(sorted(axes))


def result_axes(eqn: JaxprEqn, side: int) -> dict[int, int]:
    """Return for each axis of an operand of a product that the result keeps, the axis of the result.

    Positions of a convolution are left out, since each of them mixes several positions of the operand.
    """
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return {numbers.rhs_spec[0]: numbers.out_spec[1]} if side == 1 else {numbers.lhs_spec[0]: numbers.out_spec[0]}
    contracted, batch = numbers
    free = [[a for a in range(len(shape_of(atom))) if a not in (*contracted[i], *batch[i])]
            for i, atom in enumerate(eqn.invars)]  # fmt: skip
    start = len(batch[0]) + (len(free[0]) if side == 1 else 0)
    return {int(axis): i for i, axis in enumerate(batch[side])} | {axis: start + i for i, axis in enumerate(free[side])}


def _moved_axes(eqn: JaxprEqn, axes: Sequence[int], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of a result to which an operation that moves numbers takes axes of its operand."""
    name = eqn.primitive.name
    if name == "transpose":
        return tuple(sorted(eqn.params["permutation"].index(a) for a in axes))
    if name == "broadcast_in_dim":
        return tuple(int(eqn.params["broadcast_dimensions"][a]) for a in axes)
    if name in ("reshape", "squeeze", "expand_dims"):
        return tuple(sorted({b for olds, news in _axis_groups(old, new) for b in news if {*olds} & {*axes}}))
    if name == "stack":
        return tuple(a + (a >= eqn.params["axis"]) for a in axes)
    if name == "unstack":
        return tuple(a - (a > eqn.params["axis"]) for a in axes if a != eqn.params["axis"])
    if len(old) == len(new):
        return tuple(axes)
    return (len(new) - 1,) if new else ()


def _axis_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return which axes of a shape become which axes of another: the finest groups of equal size."""
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        olds, news, a, b = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(old):
                olds, a, i = [*olds, i], a * old[i], i + 1
            elif j < len(new):
                news, b, j = [*news, j], b * new[j], j + 1
            else:
                break
        # an axis of size 1 belongs to no group unless both sides have it
        groups.append((olds, [n for n in news if new[n] != 1] or news))
    return groups


class SiteFinder:
    """Find the sites of a graph.

    Args:
        graph: the graph for 2 examples.
        other: the graph for another number of examples; the axis that grows with this number is that of the examples.
        names: the path of each input of the graph.
    """

    def __init__(self, graph: Graph, other: Graph, names: Sequence[str]):
        self.graph, self.other, self.names = graph, other, names
        self.flows = describe_values(graph)
        self.ordinals = {var: i for i, var in enumerate(graph.values)}

    def find(self) -> list[SiteSpec]:
        """Return the sites in order of evaluation.

        Raises:
            InputError: for a tag on which no output depends, or whose axes are no axes of units.
        """
        for match in filter(None, map(_TAG_PATTERN.fullmatch, self.graph.unused_names)):
            raise InputError(f"tag {match[3]!r}: no output depends on the tagged value; use what ja.tag returns")
        readers: dict[Var, list[str]] = {}
        tags: dict[Var, tuple[tuple[int, ...], str, str]] = {}
        for eqn in self.graph.equations:
            if self._is_linear(eqn):
                for source in dict.fromkeys(self.sources(self._data(eqn)[0])):
                    readers.setdefault(source, []).append(eqn.primitive.name)
            match = _TAG_PATTERN.fullmatch(eqn.params["name"]) if eqn.primitive.name == "name" else None
            if match:
                axes = tuple(map(int, match[1].split(",")))
                tags[eqn.outvars[0]] = axes, match[2], match[3]
                readers.setdefault(eqn.outvars[0], [])
        sites = [self._site(var, readers[var], tags.get(var)) for var in sorted(readers, key=self.ordinals.__getitem__)]
        return _with_distinct_names([site for site in sites if site is not None])

    def sources(self, var: Var) -> list[Var]:
        """Return the values from which a linear map's operand comes by moving, pooling and scaling numbers alone."""
        eqn = self._maker(var)
        if eqn is None:
            return [var]
        name, data = eqn.primitive.name, self._data(eqn)
        if name in JOINS:
            return [source for v in dict.fromkeys(data) for source in self.sources(v)]
        flow: Any = self.flows[var]
        before: Any = self.flows[data[0]] if data else None
        is_tag = name == "name" and eqn.params["name"].startswith(TAG)
        moves = name in LAYOUT or name in REDUCTIONS | WINDOWS or (name in AFFINE and len(data) == 1)
        if len(data) != 1 or is_tag or not moves or (flow.flat and not before.flat) or flow.leaves != before.leaves:
            return [var]
        return self.sources(data[0])

    def _site(self, var: Var, readers: Sequence[str], tag: tuple | None) -> SiteSpec | None:
        """Return the site of a value; None if the value has no axis of examples or of units."""
        ordinal, shape = self.ordinals[var], shape_of(var)
        flow: Any = self.flows[var]
        maker = self._maker(var)
        where = "" if maker is None else location(maker)
        differ = [a for a, (n, m) in enumerate(zip(shape, shape_of(self.other.values[ordinal]), strict=True)) if n != m]
        axes, reduce, name = (flow.axes if flow else (), "mean", "") if tag is None else tag
        if tag is not None:
            require(
                flow is not None and len(differ) == 1,
                f"tag {name!r}: expected a value with one axis of examples, got shape {shape} for 2 examples{where}; "
                "tag a value that depends on the images",
            )
            # Counted from the end, axes leave out the examples, which `jax.vmap` may put anywhere.
            rest = [a for a in range(len(shape)) if a != differ[0]]
            places = {**dict(enumerate(range(len(shape)))), **{a - len(rest): b for a, b in enumerate(rest)}}
            bad = [a for a in axes if places.get(a, differ[0]) == differ[0]]
            require(
                not bad,
                f"tag {name!r}: axis {bad and bad[0]} is not an axis of units of shape {shape} for 2 examples{where}; "
                "give axis=, counted from the end without the examples",
            )
            axes = tuple(sorted(places[a] for a in axes))
        elif len(differ) != 1 or shape[differ[0]] % 2:
            return None
        axes = tuple(a for a in axes if a != differ[0]) or tuple(a for a in (len(shape) - 1,) if a != differ[0])
        if not axes:
            return None
        if tag is not None and maker is not None:  # the operation before the tag
            maker = self._maker(maker.invars[0])
        made_by = "input" if maker is None else operation_name(maker)
        assert flow is not None
        kind = "tag" if tag is not None else _kind(flow)
        name = name or self._name(flow)
        aval: Any = var.aval
        spec = name, kind, ordinal, shape, aval.dtype, differ[0], axes, made_by, tuple(readers), where, reduce
        return SiteSpec(*spec)

    def _maker(self, var: Any) -> JaxprEqn | None:
        """Return the equation that computes a value; None for an input."""
        producer = self.graph.producers.get(var)
        return None if producer is None else self.graph.equations[producer]

    def _data(self, eqn: JaxprEqn) -> list[Var]:
        """Return the operands that depend on the images."""
        return [var for var in variables(eqn.invars) if self.flows[var] is not None]

    def _name(self, flow: Flow) -> str:
        """Return the path of the parameters of the last linear map from which a value comes."""
        last = max(leaf.equation for leaf, _ in flow.leaves)
        equations = needed(self.graph.equations, self.graph.equations[last].outvars if last >= 0 else ())
        makers = [eqn for eqn in equations if self._is_linear(eqn)]
        if not makers:
            return next(leaf.kind for leaf, _ in flow.leaves if leaf.equation == last)
        eqn = makers[-1]
        weight = next(var for var in variables(eqn.invars) if self.flows[var] is None)
        path = self._path(weight)
        parts = [part for part in path.split("/") if part] or ["params"]  # one array has no path
        while len(parts) > 1 and parts[-1] in _WEIGHT_NAMES:
            parts.pop()
        return "/".join(parts[1:] if parts[0] == "params" and len(parts) > 1 else parts)

    def _is_linear(self, eqn: JaxprEqn) -> bool:
        """Return True for a product of a value with a weight."""
        return eqn.primitive.name in LINEAR_MAPS and len(self._data(eqn)) == 1

    def _path(self, var: Var) -> str:
        """Return the path of the largest parameter from which a weight is computed."""
        used = {var}.union(*(variables(eqn.invars) for eqn in needed(self.graph.equations, [var])))
        inputs = [i for i, leaf in enumerate(self.graph.inputs) if leaf in used]
        sizes = [np.prod(shape_of(self.graph.inputs[i])) for i in inputs]
        return self.names[inputs[int(np.argmax(sizes))]] if inputs else "constant"


_WEIGHT_NAMES = {"kernel", "weight", "w", "value", "raw_value", "embedding"}


def _kinds(flow: Flow) -> set[str]:
    """Return the kinds of the leaves from which a value is computed."""
    return {leaf.kind for leaf, _ in flow.leaves}


def _kind(flow: Flow) -> str:
    kinds = _kinds(flow)
    if kinds == {"input"}:
        return "input"
    if "sorted" in kinds:
        return "sorted"
    if all(nonlinear for _, nonlinear in flow.leaves):
        return "units"
    return kinds.pop() if len(kinds) == 1 and len(flow.leaves) == 1 else "stream"


def _with_distinct_names(sites: Sequence[SiteSpec]) -> list[SiteSpec]:
    """Return sites with distinct names: repeated ones get ":2", ":3", ..., as in layers that a loop applies."""
    seen: dict[str, int] = {}
    named = []
    for site in sorted(sites, key=lambda site: site.kind not in ("units", "tag")):  # these keep the plain names
        seen[site.name] = seen.get(site.name, 0) + 1
        named.append(site if seen[site.name] == 1 else replace(site, name=f"{site.name}:{seen[site.name]}"))
    return sorted(named, key=lambda site: site.ordinal)


_LIBRARIES = ("jax", "jaxlib", "flax", "equinox", "haiku", "jaxtyping", "beartype", "jaxablate")
_SITE_PACKAGES = [Path(path) for path in python_site.getsitepackages()]
_OWN = Path(__file__).parents[1]
_STDLIB = Path(sysconfig.get_paths()["stdlib"])


def location(eqn: JaxprEqn) -> str:
    """Return " at FILE:LINE" of the user's code that made an equation; "" if it is unknown."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if _is_users(frame.file_name):
            return f" at {Path(frame.file_name).name}:{frame.line_num}"
    return ""


@functools.cache
def _is_users(file_name: str) -> bool:
    """Return True for a file that belongs neither to a library nor to Python."""
    path = Path(file_name)
    in_library = any(path.is_relative_to(folder / name) for folder in _SITE_PACKAGES for name in _LIBRARIES)
    in_stdlib = path.is_relative_to(_STDLIB) and "site-packages" not in path.parts
    return not (in_library or in_stdlib or path.is_relative_to(_OWN) or file_name.startswith("<"))


def require_deterministic(graph: Graph) -> None:
    """Raise for a graph that draws random numbers or calls back into Python."""
    for eqn in graph.equations:
        names = {eqn.primitive.name}.union(*(all_primitives(jaxpr) for jaxpr, _ in inner_jaxprs(eqn)))
        if names & RANDOM:
            raise InputError(
                f"model: it draws random numbers{location(eqn)}; switch dropout off, or pass a model in evaluation mode"
            )
        if names & CALLBACKS:
            raise InputError(
                f"model: it calls back into Python{location(eqn)}, which would run for every mask; use JAX functions"
            )


def require_visible(graph: Graph, flows: dict[Var, Flow | None]) -> None:
    """Raise for a linear map inside a loop or branch, whose sites cannot be seen."""
    for eqn in graph.equations:
        if eqn.primitive.name not in CONTROL_FLOW or not any(flows[var] for var in variables(eqn.invars)):
            continue
        if any(all_primitives(jaxpr) & {*LINEAR_MAPS, "ragged_dot"} for jaxpr, _ in inner_jaxprs(eqn)):
            raise InputError(
                f"model: a linear map is inside a {eqn.primitive.name}{location(eqn)}, where no site can be found; tag "
                "a value outside of it with ja.tag(value, name), or use jax.vmap for loops over examples"
            )
