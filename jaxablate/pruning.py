"""Prune a network: remove neurons for good, with the same outputs as the masked network.

Input: a model, a mask, a fill.
Output: a smaller network of the same kind.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import (
    InputError,
    host_array,
    host_numbers,
    require,
    require_finite,
    require_in_order,
    require_shape,
    require_type,
)
from jaxablate._precision import matmul_precision
from jaxablate._typing import Fill, Images, Mask
from jaxablate.fills import LinearFill
from jaxablate.linear_compensation import check_linear_fill, predictors
from jaxablate.models import AnyModel, Model, SiteSpec, from_function, from_module
from jaxablate.models._analysis import describe_values, location, result_axes
from jaxablate.models._graph import evaluate, needed, operation_name, read, shape_of, variables
from jaxablate.models._mlp import is_mlp, pop_tensors, to_tensors, zeros_for
from jaxablate.models._model import TRACED, ModelSpec, ModuleCall, require_held, start_forward, trace_model
from jaxablate.models._sites import Prediction
from jaxablate.models._weights import Reader, find_addend, find_leaf, find_owners, find_readers, rows_first

Module = TypeVar("Module", bound=nnx.Module)

TOLERANCE = 1e-4  # relative to the largest output; float32 sums in another order differ by less
LOW_PRECISION = 0.03  # for networks with outputs or parameters of 16 bits


@overload
def prune(
    model: Model, keep: Mask, fill: Fill | LinearFill | None = None, *, images: Images, apply: Callable | None = None
) -> Model: ...
@overload
def prune(
    model: Module, keep: Mask, fill: Fill | LinearFill | None = None, *, images: Images | None = None
) -> Module: ...
def prune(
    model: Any,
    keep: Mask,
    fill: Fill | LinearFill | None = None,
    *,
    images: Images | None = None,
    apply: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Remove neurons for good and return a smaller network with the outputs of the masked network.

    A removed unit takes its incoming and outgoing weights with it. The contribution of its fill to the next linear map
    is added to that map's bias. With a linear fill, what the kept units predict is added to that map's weights too.

    Only linear maps may read a pruned site: directly, or through operations that keep its units apart, such as pooling,
    flattening or batch norm in evaluation mode. Anything else may follow these linear maps, for example a residual add.

    Args:
        model: a Flax NNX module, or a `ja.models.Model`.
        keep: bool [neuron] over all sites in network order, True = kept; at least one at each site.
        fill: float [neuron], the outputs of removed neurons; None for zeros. A fill other than zero needs a bias that
            is added to the next linear map, and cannot be folded into a bias before a convolution with padding. A
            `ja.fills.LinearFill` needs matrix products that read the pruned sites directly.
        images: [example, ...], at least one example: the outputs of both networks are compared on it. Not needed for an
            `MLP`.
        apply: for a model of `ja.from_function` whose function fixes the number of units itself, as Linen and Haiku
            modules do: a function for the smaller parameters.

    Returns:
        A network of the same kind in evaluation mode. For a `ja.models.Model`, `params` has its smaller parameters.
        `ja.pruning.count_parameters` and `ja.pruning.count_flops` compare the two networks.

    Raises:
        InputError: for a mask or fill of another width, a site that would lose all its neurons, or a network in which
            neurons cannot be removed; the message says why, with file and line.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.prune(model, np.array([True, False, True, True, True])).hidden
        (2, 2)
    """
    require_in_order("keep", keep)
    require_in_order("fill", fill)
    keep = host_array("keep", keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    compared = images is not None
    if images is None and is_mlp(model):  # cutting an MLP is plain algebra; zeros serve to trace it
        images = zeros_for(model)
    require(images is not None, "images: expected an example of what the model takes, got none")
    assert images is not None
    spec, state, images = trace_model(model, images)
    require_shape("keep", keep, (spec.num_neurons,), "neuron")
    sites = dict(zip(spec.sites, spec.sizes, strict=True))
    linear = check_linear_fill(fill, sites, ()) if isinstance(fill, LinearFill) else None
    constant = fill if linear is None else linear.means[0]
    require(
        constant is None or isinstance(constant, np.ndarray | jax.Array | list | tuple),
        f"fill: expected numbers [neuron], the same for every example, or a linear fill, got {type(fill).__name__}",
    )
    values = host_numbers("fill", np.zeros(spec.num_neurons) if constant is None else constant).astype(np.float32)
    require_shape("fill", values, (spec.num_neurons,), "neuron")
    require_finite("fill", values)
    keeps, fills = (np.split(array, spec.offsets[1:-1]) for array in (keep, values))
    require_held(spec, fills, linear is not None)
    for site, kept in zip(spec.sites, keeps, strict=True):
        require(bool(kept.any()), f"keep: no neuron of site {site!r} is kept; keep one or more of each site")
    site_fills: list[Any] = fills
    if linear is not None:
        rows = zip(fills, linear.covariances, keeps, strict=True)
        site_fills = [Prediction(mean, predictors(c[0], linear.ridge, kept[None])[0]) for mean, c, kept in rows]
    original = model if isinstance(model, Model) else from_module(model, images)
    small = _pruned(original, keeps, site_fills, images, apply)
    if compared:
        masks = {i: (kept, site_fills[i], None) for i, kept in enumerate(keeps)}
        small_spec, small_state, _ = trace_model(small, images)
        outputs = _outputs(small_spec, small_state, images, {})
        _require_equal_outputs(_outputs(spec, state, images, masks), outputs, state)
    return small if isinstance(model, Model) else small.params


@partial(jax.jit, static_argnums=0)
def _outputs(spec: ModelSpec, state: Sequence[jax.Array], images: jax.Array, masks: Any) -> Any:
    """Return the outputs of a network under masks, compiled as one program."""
    with jax.default_matmul_precision(matmul_precision()):
        return start_forward(spec, list(state), images, masks)(masks)


def count_parameters(model: AnyModel) -> int:
    """Count the trainable numbers of a model.

    Args:
        model: an NNX module, or a `ja.models.Model`.

    Returns:
        The total size of all `nnx.Param`. For a model of a function: of all floating parameters that it reads, without
        the running statistics of Linen (`batch_stats`).

    Example:
        >>> ja.pruning.count_parameters(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)))
        23
    """
    require_type("model", model, AnyModel, "a network")
    module = model.params if isinstance(model, Model) and isinstance(model.function, ModuleCall) else model
    if isinstance(module, nnx.Module):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    graph = module.spec.graph(2)
    used = set(variables(graph.outputs)).union(*(variables(eqn.invars) for eqn in graph.equations))
    return sum(
        leaf.size
        for name, leaf, var in zip(module.names, module.state, graph.inputs, strict=False)
        if var in used and "batch_stats" not in name.split("/") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )


def count_flops(model: AnyModel, images: Images) -> int:
    """Count the floating-point operations for one example, as XLA reports them.

    Args:
        model: a network with sites, in evaluation mode.
        images: [example, ...], at least one example, as the model takes them.

    Returns:
        Multiplications and additions count one each; the body of a loop counts once.

    Example:
        >>> ja.pruning.count_flops(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), np.zeros((1, 4), np.float32)) >= 2 * 18
        True
    """
    network, state, images = trace_model(model, images)
    # Lowered, not compiled: the analysis counts the operations that the model asks for, before XLA fuses any.
    program = jax.jit(lambda state, images: start_forward(network, state, images, ())({})).lower(state, images[:1])
    analysis = program.cost_analysis()
    assert analysis is not None
    return int(analysis["flops"])


def _pruned(
    model: Model, keeps: Sequence[np.ndarray], fills: Sequence[Any], images: jax.Array, apply: Callable | None
) -> Model:
    """Return the smaller model, from the mask and fill of each site, float [unit] or a `Prediction`."""
    options: Any = {"sites": model.choice, "outputs": model.kind}
    is_module, added = isinstance(model.function, ModuleCall), set()
    require(apply is None or not is_module, "apply: expected None for a Flax NNX module, which needs no function")
    pairs = zip(keeps, fills, strict=True)
    # Only a fill other than 0 needs a bias to join. `_repaired` removes the new biases that stay 0.
    if is_module and any(isinstance(fill, Prediction) or fill[~kept].any() for kept, fill in pairs):
        module, added = _with_biases(model.params)
        model = from_module(module, images, **options)
    with jax.default_matmul_precision(matmul_precision()):
        spec, state, _ = trace_model(model, images)
        cuts = _Cuts(spec, state, model.names)
        for site, kept, fill in zip(spec.site_specs, keeps, fills, strict=True):
            if not kept.all():
                cuts.remove(site, kept, fill)
        params = model.function.params(cuts.leaves(model.state))
    try:
        if isinstance(model.function, ModuleCall):
            return from_module(_repaired(params, added), images, **options)
        return from_function(apply or model.function.apply, params, images, **options)
    except InputError as error:
        raise InputError(
            f"model: it does not take the smaller parameters ({error.__cause__ or error}); compute sizes from the "
            "inputs, or pass apply=, a function for these parameters"
        ) from error


def _fold(weight: np.ndarray, rows: np.ndarray, kept: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Return the addition [output] to the bias of a linear map that replaces its removed inputs.

    Args:
        weight: [row, place, output]; a convolution adds up its places, a matrix product has one.
        rows: int [unit, row], the rows of each unit.
        kept: bool [unit].
        fill: float [row], the inputs if all units have their fill.
    """
    # W h + b with constant h_j for the removed j: sum_j fill_j W_j joins the bias, and the rows of W go.
    removed = rows[~kept].ravel()
    return fill[removed] @ weight[removed].sum(axis=1)


class _Cuts:
    """Collect the changes of a model's parameters: additions to biases, and the places that are removed."""

    def __init__(self, spec: ModelSpec, state: Sequence[jax.Array], names: Sequence[str]):
        self.graph, self.names = spec.graph(TRACED[0]), names
        self.flows = describe_values(self.graph)
        images = jnp.zeros((TRACED[0], *spec.image.shape), spec.image.dtype)
        self.env = dict(zip(self.graph.inputs, (*state, images), strict=True))
        self.additions: dict[int, Any] = {}  # by the position of the parameter
        self.kept: dict[tuple[int, int], Any] = {}  # bool [place], by the position of the parameter and its axis
        self.owners: dict[Any, dict] = {}  # by the variable of the site

    def remove(self, site: SiteSpec, kept: np.ndarray, fill: np.ndarray | Prediction) -> None:
        """Remove the units of one site; their fill joins the biases and weights of the linear maps that read it."""
        graph, var = self.graph, self.graph.values[site.ordinal]
        readers = find_readers(graph, site, self.flows)
        owners = find_owners(graph, site, self.flows, readers)
        for site_var, site_owners in self.owners.items():
            require(
                var not in site_owners and site_var not in owners,
                f"site {site.name!r}: it has the same units as an earlier site; prune one of them",
            )
        self.owners[var] = owners
        if isinstance(fill, Prediction):
            for reader in readers:
                self._add_predictions(reader, site, np.asarray(fill.weights))
            # mean + (h - mean) A is the constant mean - mean A, and h A
            fill = np.asarray(fill.mean - fill.mean @ fill.weights)
        for reader in readers:
            self._add_fill(reader, site, kept, fill)
        for index, leaf in enumerate(graph.inputs):
            if leaf in owners:
                self._cut(index, (owners[leaf] < 0) | kept[owners[leaf]], site)

    def _add_fill(self, reader: Reader, site: SiteSpec, kept: np.ndarray, fill: np.ndarray) -> None:
        """Add the contribution of the fill of removed units to the bias of a linear map that reads their site."""

        def filled(value: jax.Array) -> jax.Array:
            return site.native(jnp.broadcast_to(fill, site.canonical(value).shape)).astype(value.dtype)

        graph, removed = self.graph, reader.rows[~kept].ravel()
        equations = needed(graph.equations, [reader.operand, reader.weight])
        env = evaluate(equations, dict(self.env), {graph.values[site.ordinal]: filled})
        inputs = np.asarray(rows_first(env[reader.operand], reader.axes))
        if not inputs[removed].any():
            return
        params = reader.equation.params
        # At the border a convolution reads padding, which is 0 and not the fill. So no single bias serves all
        # positions.
        padded = not reader.is_product and (np.any(params["padding"]) or {*params["lhs_dilation"]} != {1})
        require(
            not padded,
            f"site {site.name!r}: a fill other than 0 cannot be folded into the bias of a convolution with padding; "
            "prune with zeros or use padding 'VALID'",
        )
        require(
            np.allclose(inputs[removed], inputs[removed, :1], rtol=1e-5, atol=1e-6),
            f"site {site.name!r}: a fill other than 0 cannot be folded into a bias, because "
            f"{operation_name(reader.equation)}{location(reader.equation)} reads different numbers at different "
            "positions; prune with zeros, or mask the neurons",
        )
        addend = find_addend(graph, self.flows, reader)
        if addend is None or addend[1] >= len(self.names):
            raise InputError(
                f"site {site.name!r}: no bias is added to the result of {operation_name(reader.equation)}"
                f"{location(reader.equation)}, which reads it; add a bias, or prune with zeros"
            )
        sign, index, outputs = addend
        weight = np.asarray(env[reader.weight], jnp.promote_types(env[reader.weight].dtype, jnp.float32))
        addition = _fold(_rows_places_outputs(reader, weight), reader.rows, kept, inputs[:, 0])
        self.additions[index] = self.additions.get(index, 0) + sign * addition[outputs]

    def _add_predictions(self, reader: Reader, site: SiteSpec, prediction: np.ndarray) -> None:
        """Add to the weight W of a linear map what kept units contribute to ablated ones: W + A W."""
        direct = reader.operand is self.graph.values[site.ordinal] and reader.is_product and reader.rows.shape[1] == 1
        places = np.arange(math.prod(shape_of(reader.weight))).reshape(shape_of(reader.weight))
        leaf = find_leaf(self.graph, reader.weight, places) if direct else None
        if leaf is None or leaf[0] >= len(self.names):
            raise InputError(
                f"site {site.name!r}: a linear fill cannot be folded into {operation_name(reader.equation)}"
                f"{location(reader.equation)}, which is no product of the site's outputs with a parameter that is used "
                "once; prune with means, or mask the neurons"
            )
        index, numbers = leaf  # the parameter may hold the weight with its axes moved
        weight = read(evaluate(needed(self.graph.equations, [reader.weight]), dict(self.env)), reader.weight)
        by_unit = np.asarray(rows_first(places, reader.weight_axes))[reader.rows[:, 0]]
        addition = np.zeros(places.size)
        addition[by_unit] = prediction.astype(np.float64) @ np.asarray(weight, np.float64).ravel()[by_unit]
        self.additions[index] = addition[numbers]

    def _cut(self, index: int, kept: np.ndarray, site: SiteSpec) -> None:
        """Keep the numbers of a parameter for which `kept` is True; they must be whole slices of an axis."""
        require(
            index < len(self.names),
            f"site {site.name!r}: the model captures an array with a number for each unit; pass it in params",
        )
        for axis in range(kept.ndim):
            places = kept.any(axis=tuple(a for a in range(kept.ndim) if a != axis))
            if (kept == np.expand_dims(places, [a for a in range(kept.ndim) if a != axis])).all():
                # Several sites can have units along one axis, for example if their outputs are concatenated.
                self.kept[index, axis] = places & self.kept.get((index, axis), True)
                return
        raise InputError(
            f"site {site.name!r}: its removed units are no whole slices of parameter {self.names[index]!r}; remove all "
            "units of a head together"
        )

    def leaves(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the smaller parameters."""
        # Additions first: they have the shapes of the uncut parameters.
        small = list(leaves)
        for index, addition in self.additions.items():
            small[index] = jnp.asarray((np.asarray(small[index]) + addition).astype(small[index].dtype))
        for (index, axis), kept in self.kept.items():
            small[index] = jnp.asarray(np.compress(kept, np.asarray(small[index]), axis=axis))
        return small


def _rows_places_outputs(reader: Reader, weight: np.ndarray) -> np.ndarray:
    """Return a weight as [row, place, output]."""
    outputs = sorted(result_axes(reader.equation, 1 - reader.side))
    places = [axis for axis in range(weight.ndim) if axis not in (*reader.weight_axes, *outputs)]
    sizes = [math.prod(weight.shape[axis] for axis in axes) for axes in (reader.weight_axes, places, outputs)]
    return weight.transpose(*reader.weight_axes, *places, *outputs).reshape(sizes)


def _with_biases(model: nnx.Module) -> tuple[nnx.Module, set]:
    """Return a copy in which each linear map and convolution has a bias, and the paths of layers with a new one."""
    model, added = nnx.clone(model), set()
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Linear | nnx.Conv) and layer.bias is None:
            layer.bias, layer.use_bias = nnx.Param(jnp.zeros(layer.kernel.shape[-1], layer.kernel.dtype)), True
            added.add(path)
    return model, added


def _repaired(model: nnx.Module, added: set) -> nnx.Module:
    """Return a module that was cut with the sizes in its attributes corrected, without biases that it does not need."""
    if is_mlp(model):
        settings = {name: getattr(model, name) for name in ("activation", "dropout", "image_shape")}
        return pop_tensors(to_tensors(model), **settings)
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Linear | nnx.Conv):
            layer.in_features, layer.out_features = layer.kernel.shape[-2:]
            if path in added and layer.bias is not None and not layer.bias[...].any():
                layer.bias, layer.use_bias = None, False
        if isinstance(layer, nnx.Conv):
            # The kernel of a grouped convolution has the input channels of one group.
            layer.in_features *= layer.feature_group_count
            layer.kernel_shape = layer.kernel.shape
        if isinstance(layer, nnx.BatchNorm) and layer.mean is not None:
            layer.num_features = layer.mean.size
    return model


def _require_equal_outputs(expected: Any, outputs: Any, state: Sequence[jax.Array]) -> None:
    """Raise unless the outputs of the pruned network equal the outputs of the masked network up to rounding."""
    for masked, small in zip(jax.tree.leaves(expected), jax.tree.leaves(outputs), strict=True):
        kinds = {leaf.dtype for leaf in (masked, *state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        tolerance = LOW_PRECISION if min(kind.itemsize for kind in kinds) < 4 else TOLERANCE
        masked, small = np.asarray(masked, np.float32), np.asarray(small, np.float32)
        difference, size = float(np.abs(masked - small).max()), float(np.abs(masked).max())
        require(
            difference <= tolerance * size,
            f"model: outputs of the pruned network differ by {difference:g} from the masked network's (up to "
            f"{size:g}); a number in the model depends on the number of units, so mask its neurons",
        )
