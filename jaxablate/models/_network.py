"""Describe any network by its sites, and run it from any of its sites to the logits.

Input: a Flax NNX module with sites, its state, and images [example, ...].
Output: a `ModelSpec` (the architecture, hashable), recorded outputs of sites, and logits under masks.
A chain is split at its sites, so it can run from any site. Any other module runs as a whole, with its sites masked.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, require
from jaxablate._typing import Images
from jaxablate.devices import is_partly_remote, to_device
from jaxablate.models._mlp import ACTIVATIONS, ELEMENTWISE, MLP, flatten_images, require_fitting
from jaxablate.models._sites import (
    REDUCTIONS,
    Site,
    SiteVariable,
    apply_masks,
    flatten_layers,
    is_plain_sequential,
    require_distinct,
)

Model = nnx.Module
Layer = Callable[..., Any]


@dataclass(frozen=True)
class ModelSpec:
    """Describe a network without its weights: the static argument for which programs are compiled.

    Networks of one architecture have equal specs and share compiled programs.

    Attributes:
        graphdef: the graph of the model in evaluation mode.
        inputs: shapes and dtypes of the state and of one image.
        sites: names of the sites, in the order in which the model reaches them (network order).
        outputs: for each site, shape and dtype of its outputs [..., neuron] in one example.
        num_classes: number of logits.
    """

    graphdef: nnx.GraphDef
    inputs: "InputSpec"
    sites: tuple[str, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    num_classes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of neurons of each site."""
        return tuple(output.shape[-1] for output in self.outputs)

    @property
    def num_neurons(self) -> int:
        """Return the number of neurons of all sites."""
        return sum(self.sizes)

    @property
    def offsets(self) -> np.ndarray:
        """Return int [site + 1]: site i has the network-wide ids offsets[i] to offsets[i + 1] - 1."""
        return site_offsets(self.sizes)

    def site_of(self, neurons: np.ndarray) -> np.ndarray:
        """Return the index of the site of each neuron, given by its network-wide id."""
        return np.searchsorted(self.offsets[1:], neurons, side="right")


@dataclass(frozen=True)
class InputSpec:
    """Hold the shapes and dtypes of a program's inputs: the state of a model and one image.

    Attributes:
        structure: tree structure of the state.
        leaves: shapes and dtypes of the state's leaves.
        image: shape and dtype of one image, without the axis of examples.
    """

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    image: jax.ShapeDtypeStruct

    @classmethod
    def from_arrays(cls, state: nnx.State, images: jax.Array) -> "InputSpec":
        """Return the spec of a state and of images [example, ...]."""
        leaves, structure = jax.tree.flatten(state)
        image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), image)

    def abstract_arguments(self, num_examples: int) -> tuple[nnx.State, jax.ShapeDtypeStruct]:
        """Return a state and images without values, for tracing with `num_examples` examples."""
        images = jax.ShapeDtypeStruct((num_examples, *self.image.shape), self.image.dtype)
        return jax.tree.unflatten(self.structure, self.leaves), images


def site_offsets(sizes: Sequence[int]) -> np.ndarray:
    """Return int [site + 1]: site i has the network-wide ids offsets[i] to offsets[i + 1] - 1."""
    return np.cumsum((0, *sizes))


def stack_states(states: Sequence[nnx.State]) -> nnx.State:
    """Stack the states of networks of one architecture along a new leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)


def trace_model(model: Model, images: Images) -> tuple[ModelSpec, nnx.State, jax.Array]:
    """Trace a model in evaluation mode and return its spec, its state and the images as an array.

    The model itself does not change.

    Args:
        model: a module that maps images [example, ...] to logits [example, class] and has sites.
        images: [example, ...], floating; signed integers if the model takes them.

    Returns:
        A `ModelSpec`, the state, and the images as an array.

    Raises:
        InputError: for images that the model does not take, or a model that cannot be ablated; the message says why.
    """
    require(isinstance(model, nnx.Module), f"model: expected a Flax NNX module, got {type(model).__name__}")
    require(
        not is_partly_remote(images),
        "images: other processes hold a part of the examples; pass the mesh to a function that takes one, or only the "
        "images of this process",
    )
    try:
        images = to_device(images)
    except (TypeError, ValueError):
        raise InputError(f"images: expected an array [example, ...], got {type(images).__name__}") from None
    require(images.ndim >= 2 and len(images) > 0, f"images: expected [example, ...], got shape {images.shape}")
    # uint8 pixels would be taken as 0..255 and saturate the network. Signed integers can be tokens of a model's own
    # embedding.
    kinds = (jnp.floating,) if is_mlp(model) else (jnp.floating, jnp.signedinteger)
    require(
        any(jnp.issubdtype(images.dtype, kind) for kind in kinds),
        f"images: expected floating pixels in [0, 1], got dtype {images.dtype}; divide uint8 pixels by 255",
    )
    if is_mlp(model):
        require_fitting(model, images)
        graphdef, state = nnx.split(model)
        names = tuple(f"layer{i}" for i in range(1, len(model.hidden) + 1))
        outputs = tuple(jax.ShapeDtypeStruct((width,), jnp.float32) for width in model.hidden)
        num_classes = model.stages[-1].linear.out_features
        return ModelSpec(graphdef, InputSpec.from_arrays(state, images), names, outputs, num_classes), state, images
    # A copy in evaluation mode and without masks, so that equal networks have equal specs whatever was done to them.
    model = nnx.clone(model)
    model.eval()
    for site in find_sites(model):
        site.reset()
    graphdef, state = nnx.split(model)
    try:
        hash(graphdef)
    except TypeError as error:
        raise InputError(
            f"model: its attributes must be hashable ({error}); turn lists into tuples and freeze dataclasses"
        ) from None
    inputs = InputSpec.from_arrays(state, images)
    names, outputs, num_classes, may_change = _trace_sites(graphdef, inputs)
    if may_change:
        # Tracing shows only that a call may assign to the state, so two examples are run to see whether it changes.
        after = _state_after_call(graphdef, state, images[:2])
        same = jax.tree.map(
            lambda a, b: bool((_comparable(a) == _comparable(b)).all()), _leaves_outside_sites(state), after
        )
        require(
            all(jax.tree.leaves(same)),
            "model: a call changes its state (dropout or batch norm in training mode, or a counter); use a model that "
            "eval() makes deterministic",
        )
    return ModelSpec(graphdef, inputs, names, outputs, num_classes), state, images


def is_mlp(model: object) -> TypeGuard[MLP]:
    """Return True if a model is an `MLP` and no subclass has replaced its call."""
    return isinstance(model, MLP) and type(model).__call__ is MLP.__call__


def _leaves_outside_sites(state: nnx.State) -> list[jax.Array]:
    return jax.tree.leaves(nnx.filter_state(state, nnx.Not(SiteVariable)))


def _comparable(array: jax.Array) -> jax.Array:
    """Return the array as numbers that compare with ==: random keys as their data, NaN as 0."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return jnp.nan_to_num(array) if jnp.issubdtype(array.dtype, jnp.inexact) else array


# Jitted with the graph as a static argument, so equal networks share one program.
@partial(jax.jit, static_argnums=0)
def _state_after_call(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> list[jax.Array]:
    """Call the model on images and return the leaves of its state afterwards, without the sites' variables."""
    model = nnx.merge(graphdef, state)
    model(images)
    return _leaves_outside_sites(nnx.state(model))


# Tracing runs the user's Python code, which is slow and may be called for every batch, so its results are cached. The
# cache is bounded because a graph keeps the functions in it alive.
@functools.lru_cache(maxsize=64)
def _trace_sites(
    graphdef: nnx.GraphDef, inputs: InputSpec
) -> tuple[tuple[str, ...], tuple[jax.ShapeDtypeStruct, ...], int, bool]:
    """Return the names of the sites, their outputs in one example, the number of classes, and whether a call may change
    the state.

    The model is traced with two and with three examples, so that an axis that depends on their number is noticed.
    """
    traces = []
    for num_examples in (2, 3):
        names: list[str] = []
        changed: list[bool] = []
        try:
            logits, outputs = jax.eval_shape(
                partial(_record_named_sites, graphdef, names, changed), *inputs.abstract_arguments(num_examples)
            )
        except InputError:
            raise
        except Exception as error:  # the user's own code may raise anything
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"model: model(images) with images of shape {inputs.image.shape} raises {type(error).__name__}: "
                f"{reason}; pass images that the model takes"
            ) from error
        require(
            isinstance(logits, jax.ShapeDtypeStruct)
            and logits.ndim == 2
            and len(logits) == num_examples
            and jnp.issubdtype(logits.dtype, jnp.floating),
            f"model: expected floating logits [example, class], got {getattr(logits, 'shape', type(logits).__name__)} "
            f"{getattr(logits, 'dtype', '')} for {num_examples} examples",
        )
        for name, output in zip(names, outputs, strict=True):
            require(
                output.ndim >= 2 and len(output) == num_examples,
                f"site {name!r}: expected outputs [example, ..., neuron], got shape {output.shape} for {num_examples} "
                "examples",
            )
        in_one_example = tuple(jax.ShapeDtypeStruct(output.shape[1:], output.dtype) for output in outputs)
        traces.append((tuple(names), in_one_example, logits.shape[1], any(changed)))
    require(
        traces[0] == traces[1],
        f"model: its sites or classes depend on the number of examples, with {_describe_trace(*traces[0])} for 2 and "
        f"{_describe_trace(*traces[1])} for 3 examples; keep examples apart along the first axis",
    )
    return traces[0]


def _describe_trace(
    names: tuple[str, ...], outputs: tuple[jax.ShapeDtypeStruct, ...], num_classes: int, _: bool
) -> str:
    shapes = ", ".join(f"{name} {output.shape}" for name, output in zip(names, outputs, strict=True))
    return f"{shapes}, {num_classes} classes"


def site_neurons(model: Model, images: Images) -> dict[str, np.ndarray]:
    """Return the network-wide ids of the neurons of each site, as masks, fills and orders count them.

    Args:
        model: an `MLP`, or any module with sites.
        images: [example, ...], one example or more that the model takes.

    Returns:
        For each site, by name, int [neuron]: the network-wide ids of its neurons. The sites are in network order.

    Raises:
        InputError: for images that the model does not take, or a model that cannot be ablated.

    Example:
        >>> ids = ja.models.site_neurons(ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0)), np.zeros((1, 4), np.float32))
        >>> {name: neurons.tolist() for name, neurons in ids.items()}
        {'layer1': [0, 1, 2], 'layer2': [3, 4]}
    """
    spec, _, _ = trace_model(model, images)
    return dict(zip(spec.sites, np.split(np.arange(spec.num_neurons), spec.offsets[1:-1]), strict=True))


def record_sites(spec: ModelSpec, state: nnx.State, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Return the logits [example, class] and the outputs [example, ..., neuron] of each site in network order."""
    return _record_named_sites(spec.graphdef, [], [], state, images)


def _record_named_sites(
    graphdef: nnx.GraphDef, names: list[str], changed: list[bool], state: nnx.State, images: jax.Array
):
    """Run the model and return what `record_sites` returns.

    While JAX traces the call, the names of the sites are appended to `names` in network order, and True is appended to
    `changed` if the call may change the state: Python values cannot be returned through `jax.eval_shape`.
    """
    model = nnx.merge(graphdef, state)
    segments = split_at_sites(model)
    if is_mlp(model) and segments is not None:  # an MLP holds no Site modules; its sites lie between its segments
        recorded, outputs = [], images
        for segment in segments[:-1]:
            outputs = apply_layers(segment, outputs)
            recorded.append(outputs)
        return apply_layers(segments[-1], outputs), recorded
    sites = find_sites(model)
    require_distinct(sites)
    for site in sites:
        site.recording = True
    before = jax.tree.leaves(nnx.split(model, SiteVariable, ...)[2])
    logits = model(images)
    after = jax.tree.leaves(nnx.split(model, SiteVariable, ...)[2])
    # A lifted transformation (nnx.jit, nnx.remat) returns new arrays even if it leaves the state unchanged, so "new"
    # only means "may have changed"; trace_model then compares the values.
    changed.append(len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=False)))
    for site in sites:
        times = len(site.recorded)
        require(
            times == 1,
            f"site {site.name!r}: the model applies it {times} times in a call; use a new ja.Site for each place"
            if times
            else f"site {site.name!r}: the model does not reach it; remove it or call it",
        )
    sites.sort(key=lambda site: site.call_number)
    names.extend(site.name for site in sites)
    return logits, [site.recorded[0][...] for site in sites]


def find_sites(model: Model) -> list[Site]:
    """Return the sites of a model, in arbitrary order."""
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Site)]


def site_reductions(spec: ModelSpec, state: nnx.State) -> list[Callable]:
    """Return for each site the function that reduces the places of a neuron to one number."""
    by_name = {site.name: REDUCTIONS[site.reduce] for site in find_sites(nnx.merge(spec.graphdef, state))}
    return [by_name.get(name, jnp.mean) for name in spec.sites]


def apply_layers(layers: Iterable[Layer], outputs: Any) -> Any:
    """Apply layers one after another, passing tuples and dictionaries on as `nnx.Sequential` does."""
    for layer in layers:
        if isinstance(outputs, tuple):
            outputs = layer(*outputs)
        else:
            outputs = layer(**outputs) if isinstance(outputs, dict) else layer(outputs)
    return outputs


# A chain with sites 0, 1, ..., n - 1 has n + 1 segments: segment 0 maps the images to the outputs of site 0. Segment i
# maps the outputs of site i - 1 to the outputs of site i. Segment n maps the outputs of the last site to the logits. So
# a forward pass can start at any site, and a mask is applied between two segments.
def split_at_sites(model: Model) -> list[list[Layer]] | None:
    """Return the layers of a chain, split at its sites: one list before each site and one after the last.

    Returns:
        site + 1 lists of layers, without the sites; None for a model that is not a chain.
    """
    if is_mlp(model):
        *hidden, last = model.stages
        activation = ACTIVATIONS[model.activation]
        first, *rest = ([stage.linear, activation] for stage in hidden)
        return [[flatten_images, *first], *rest, [last.linear]]
    if not is_plain_sequential(model):
        return None
    segments = [[]]
    for layer in flatten_layers(model.layers):
        if isinstance(layer, Site):
            segments.append([])
        else:
            segments[-1].append(layer)
    has_nested_sites = len(find_sites(model)) > len(segments) - 1  # a site inside a layer cannot be split at
    return None if has_nested_sites else segments


def ends_bounded(layers: Sequence[Layer]) -> bool:
    """Return True if the last layer is known to output values in [-1, 1]."""
    return bool(layers) and ELEMENTWISE.get(layers[-1], False)


def run_prefix(spec: ModelSpec, state: nnx.State, images: jax.Array, first: int) -> jax.Array:
    """Compute the part of the forward pass that no mask at site `first` or later changes.

    Returns:
        The outputs [example, ..., neuron] of site `first` in a chain; in any other model the images.
    """
    segments = split_at_sites(nnx.merge(spec.graphdef, state))
    if segments is None:
        return images
    return apply_layers((layer for segment in segments[: first + 1] for layer in segment), images)


SiteMask = tuple[jax.Array, jax.Array, jax.Array | None]
"""A mask at one site: keep bool [neuron], fill and scale as in `apply_masks`."""


def run_from_site(
    spec: ModelSpec, state: nnx.State, prefix: jax.Array, first: int, masks: Mapping[int, SiteMask]
) -> jax.Array:
    """Return the logits [example, class] under masks, from the result of `run_prefix` for the same `first`.

    Args:
        spec, state: the network.
        prefix: result of `run_prefix`.
        first: index of the first site that may be masked.
        masks: by the index of the site; a site without a mask passes its outputs on.
    """
    model = nnx.merge(spec.graphdef, state, copy=True)  # a copy, because the masks are stored in the sites
    segments = split_at_sites(model)
    if segments is None:
        by_name = {site.name: site for site in find_sites(model)}
        for index, mask in masks.items():
            by_name[spec.sites[index]].set(*mask)
        return model(prefix)
    return run_segments(segments, prefix, first, masks)


def run_segments(
    segments: list[list[Layer]], outputs: jax.Array, first: int, masks: Mapping[int, SiteMask]
) -> jax.Array:
    """Run the segments after site `first` under masks, and return the outputs of the last segment.

    Args:
        segments: layers between the sites, from `split_at_sites`.
        outputs: outputs of site `first` [example, ..., neuron]; the images if `first` is -1.
        first: index of the site at which to start.
        masks: by the index of the site; a site without a mask passes its outputs on.
    """
    for index, segment in enumerate(segments[first + 1 :], start=first):
        if index in masks:
            outputs = apply_masks(outputs, *masks[index])
        outputs = apply_layers(segment, outputs)
    return outputs


# The engines choose how many masks and examples to evaluate at a time from this number. It is read off the jaxpr, so it
# holds for any model, but it ignores what XLA fuses or keeps alive together: an estimate, not a bound.
@functools.lru_cache(maxsize=256)
def peak_activation_bytes(spec: ModelSpec, first: int) -> int:
    """Return the size in bytes of the largest intermediate array of `run_from_site` for one example."""
    state, images = spec.inputs.abstract_arguments(1)
    prefix = jax.eval_shape(lambda state, images: run_prefix(spec, state, images, first), state, images)

    def masked_logits(state, prefix):
        masks = {i: (jnp.ones(n, bool), jnp.zeros(n), None) for i, n in enumerate(spec.sizes) if i >= first}
        return run_from_site(spec, state, prefix, first, masks)

    return _largest_result(jax.make_jaxpr(masked_logits)(state, prefix).jaxpr)


def _largest_result(jaxpr) -> int:
    """Return the size in bytes of the largest result of any equation, also inside nested jaxprs."""
    largest = 1
    for equation in jaxpr.eqns:
        inner = [p.jaxpr if hasattr(p, "jaxpr") else p for p in equation.params.values()]
        largest = max(
            largest,
            *(var.aval.size * var.aval.dtype.itemsize for var in equation.outvars if hasattr(var.aval, "size")),
            *(_largest_result(p) for p in inner if hasattr(p, "eqns")),
        )
    return largest
