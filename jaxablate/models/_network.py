"""What the library knows of any network: its sites, in the order in which they are reached, and how to run it on.

A network of any kind is run whole, with its sites masked. A chain is cut at its sites, so that it can be run from
any of them.
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
from jaxablate.devices import is_partly_remote
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
    """What programs are compiled for: the graph of a model in evaluation mode, the shapes of its state and images, the
    names of its sites, what reaches them in one example, and the number of classes."""

    graphdef: nnx.GraphDef
    abstract: "InputSpec"
    sites: tuple[str, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    num_classes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each site."""
        return tuple(output.shape[-1] for output in self.outputs)

    @property
    def num_neurons(self) -> int:
        """Units of all sites."""
        return sum(self.sizes)

    @property
    def bounds(self) -> np.ndarray:
        """Where the units of each site begin and end: int [site + 1], from 0."""
        return site_bounds(self.sizes)

    def site_of(self, neurons: np.ndarray) -> np.ndarray:
        """The site of each neuron, by its number."""
        return np.searchsorted(self.bounds[1:], neurons, side="right")


@dataclass(frozen=True)
class InputSpec:
    """Shapes and dtypes: the leaves of a state and their structure, and an example's image."""

    structure: Any  # the tree of the leaves
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    image: jax.ShapeDtypeStruct

    @classmethod
    def of(cls, state: nnx.State, images: jax.Array) -> "InputSpec":
        """Those of a state and of images [example, ...]."""
        leaves, structure = jax.tree.flatten(state)
        image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), image)

    def arguments(self, num_examples: int) -> tuple[nnx.State, jax.ShapeDtypeStruct]:
        """State and images for tracing."""
        images = jax.ShapeDtypeStruct((num_examples, *self.image.shape), self.image.dtype)
        return jax.tree.unflatten(self.structure, self.leaves), images


def site_bounds(sizes: Sequence[int]) -> np.ndarray:
    """Where the neurons of each site begin and end in network order: int [site + 1], from 0."""
    return np.cumsum((0, *sizes))


def stack_states(states: Sequence[nnx.State]) -> nnx.State:
    """The weights of several networks of one architecture as one, with a leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)


def trace_model(model: Model, images: Images) -> tuple[ModelSpec, nnx.State, jax.Array]:
    """What a network is, its state, and the images as an array; the model itself stays as it is.

    Args:
        model: a module that maps images [example, ...] to logits [example, class] and marks its sites.
        images: [example, ...], floating, or signed integers where the model takes such.

    Returns:
        A `Network`, the state, and the images as an array.

    Raises:
        InputError: for images that the model does not take, or a model that cannot be ablated; the message says why.
    """
    require(isinstance(model, nnx.Module), f"model: expected a Flax NNX module, got {type(model).__name__}")
    require(
        not is_partly_remote(images),
        "images: expected those of this process, got some that others hold; only functions that take a mesh work on "
        "them all",
    )
    try:
        images = jnp.asarray(images)
    except (TypeError, ValueError):
        raise InputError(
            f"images: expected an array [example, ...], got {type(images).__name__} of another kind"
        ) from None
    require(images.ndim >= 2 and len(images) > 0, f"images: expected [example, ...], got shape {images.shape}")
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
        return ModelSpec(graphdef, InputSpec.of(state, images), names, outputs, num_classes), state, images
    model = nnx.clone(model)
    model.eval()
    for site in sites_of(model):
        site.reset()
    graphdef, state = nnx.split(model)
    try:
        hash(graphdef)
    except TypeError as error:
        raise InputError(
            f"model: expected attributes that can be hashed, got {error}; make lists tuples and dataclasses frozen"
        ) from None
    abstract = InputSpec.of(state, images)
    names, outputs, num_classes, may_change = _probed(graphdef, abstract)
    if may_change:
        after = _state_after(graphdef, state, images[:2])
        same = jax.tree.map(lambda a, b: bool((_plain(a) == _plain(b)).all()), _without_sites(state), after)
        require(
            all(jax.tree.leaves(same)),
            "model: expected the same state after a call, got a change (a dropout or batch norm in training mode, or a "
            "counter); ablation needs a model whose eval() makes it deterministic",
        )
    return ModelSpec(graphdef, abstract, names, outputs, num_classes), state, images


def is_mlp(model: object) -> TypeGuard[MLP]:
    """Whether a model is an `MLP` that is called as one."""
    return isinstance(model, MLP) and type(model).__call__ is MLP.__call__


def _without_sites(state: nnx.State) -> list[jax.Array]:
    return jax.tree.leaves(nnx.filter_state(state, nnx.Not(SiteVariable)))


def _plain(array: jax.Array) -> jax.Array:
    """Numbers to compare, also of random keys; NaN equals itself."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return jnp.nan_to_num(array) if jnp.issubdtype(array.dtype, jnp.inexact) else array


@partial(jax.jit, static_argnums=0)
def _state_after(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> list[jax.Array]:
    """The state that a call leaves."""
    model = nnx.merge(graphdef, state)
    model(images)
    return _without_sites(nnx.state(model))


@functools.lru_cache(maxsize=64)
def _probed(
    graphdef: nnx.GraphDef, abstract: InputSpec
) -> tuple[tuple[str, ...], tuple[jax.ShapeDtypeStruct, ...], int, bool]:
    """Names of the sites, what reaches them in one example, the number of classes, and whether a call may change the
    state, from tracing the model with two numbers of examples."""
    found = []
    for num_examples in (2, 3):
        names: list[str] = []
        changed: list[bool] = []
        try:
            logits, outputs = jax.eval_shape(
                partial(_record_named, graphdef, names, changed), *abstract.arguments(num_examples)
            )
        except InputError:
            raise
        except Exception as error:  # whatever a user's own code raises
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"model: expected to map images of shape {abstract.image.shape} to logits when called on them, "
                f"as model(images), got {type(error).__name__}: {reason}"
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
        of_one = tuple(jax.ShapeDtypeStruct(output.shape[1:], output.dtype) for output in outputs)
        found.append((tuple(names), of_one, logits.shape[1], any(changed)))
    require(
        found[0] == found[1],
        f"model: expected sites and classes that do not depend on the number of examples, got "
        f"{_told(*found[0])} for 2 and {_told(*found[1])} for 3",
    )
    return found[0]


def _told(names: tuple[str, ...], outputs: tuple[jax.ShapeDtypeStruct, ...], num_classes: int, _: bool) -> str:
    shapes = ", ".join(f"{name} {output.shape}" for name, output in zip(names, outputs, strict=True))
    return f"{shapes}, {num_classes} classes"


def site_neurons(model: Model, images: Images) -> dict[str, np.ndarray]:
    """Which neurons each site has, in the counting that masks, fills and orders follow.

    Args:
        model: an `MLP`, or any module with sites.
        images: [example, ...], an example or more of what it takes.

    Returns:
        By the name of the site int [neuron]: the network-wide ids of its neurons, in network order.

    Raises:
        InputError: as in `describe`.

    Example:
        >>> ids = ja.models.site_neurons(ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0)), np.zeros((1, 4), np.float32))
        >>> {name: neurons.tolist() for name, neurons in ids.items()}
        {'layer1': [0, 1, 2], 'layer2': [3, 4]}
    """
    network, _, _ = trace_model(model, images)
    return dict(zip(network.sites, np.split(np.arange(network.num_neurons), network.bounds[1:-1]), strict=True))


def record(network: ModelSpec, state: nnx.State, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Logits [example, class], and the outputs [example, ..., unit] of every site in network order."""
    return _record_named(network.graphdef, [], [], state, images)


def _record_named(graphdef: nnx.GraphDef, names: list[str], changed: list[bool], state: nnx.State, images: jax.Array):
    """The same; the names of the sites are put into `names`, whether the call may change the state into `changed`."""
    model = nnx.merge(graphdef, state)
    segments = split_at_sites(model)
    if is_mlp(model) and segments is not None:
        recorded, outputs = [], images
        for segment in segments[:-1]:
            outputs = run(segment, outputs)
            recorded.append(outputs)
        return run(segments[-1], outputs), recorded
    sites = sites_of(model)
    require_distinct(sites)
    for site in sites:
        site.recording = True
    before = jax.tree.leaves(nnx.split(model, SiteVariable, ...)[2])
    logits = model(images)
    after = jax.tree.leaves(nnx.split(model, SiteVariable, ...)[2])
    # what a lifted transformation (nnx.jit, nnx.remat) returns is new even where it is the same
    changed.append(len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=False)))
    for site in sites:
        times = len(site.seen)
        require(
            times == 1,
            f"site {site.name!r}: expected to be applied once, got {times} times; "
            + ("give each place a site of its own" if times else "the model does not reach it"),
        )
    sites.sort(key=lambda site: site.called_as)
    names.extend(site.name for site in sites)
    return logits, [site.seen[0][...] for site in sites]


def sites_of(model: Model) -> list[Site]:
    """The sites of a model, in no order of meaning."""
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Site)]


def reductions_of(network: ModelSpec, state: nnx.State) -> list[Callable]:
    """For each site what makes one number of the places of a unit."""
    by_name = {site.name: REDUCTIONS[site.reduce] for site in sites_of(nnx.merge(network.graphdef, state))}
    return [by_name.get(name, jnp.mean) for name in network.sites]


def run(links: Iterable[Layer], outputs: Any) -> Any:
    """Links one after another, as `nnx.Sequential` calls its layers."""
    for link in links:
        if isinstance(outputs, tuple):
            outputs = link(*outputs)
        else:
            outputs = link(**outputs) if isinstance(outputs, dict) else link(outputs)
    return outputs


def split_at_sites(model: Model) -> list[list[Layer]] | None:
    """The links of a chain, cut at its sites: what leads to each site, and what follows the last; None for others."""
    if is_mlp(model):
        *hidden, last = model.stages
        activation = ACTIVATIONS[model.activation]
        first, *others = ([stage.linear, activation] for stage in hidden)
        return [[flatten_images, *first], *others, [last.linear]]
    if not is_plain_sequential(model):
        return None
    links, segments = list(flatten_layers(model.layers)), [[]]
    for link in links:
        if isinstance(link, Site):
            segments.append([])
        else:
            segments[-1].append(link)
    inside = len(sites_of(model)) > len(segments) - 1  # sites within a link are out of a chain's reach
    return None if inside else segments


def ends_bounded(links: Sequence[Layer]) -> bool:
    """Whether what the links put out lies in [-1, 1], for all that is known of the last."""
    return bool(links) and ELEMENTWISE.get(links[-1], False)


def run_prefix(network: ModelSpec, state: nnx.State, images: jax.Array, first: int) -> jax.Array:
    """What is the same whichever units are ablated from site `first` on: that site's outputs in a chain, else the
    images."""
    segments = split_at_sites(nnx.merge(network.graphdef, state))
    if segments is None:
        return images
    return run((link for segment in segments[: first + 1] for link in segment), images)


Change = tuple[jax.Array, jax.Array, jax.Array | None]
"""What is done at a site: keep [unit], fill and scale as in `intervene`."""


def run_from_site(
    network: ModelSpec, state: nnx.State, entered: jax.Array, first: int, changes: Mapping[int, Change]
) -> jax.Array:
    """Logits [example, class] from what `enter` gave, with the changes at the sites, by their number."""
    model = nnx.merge(network.graphdef, state, copy=True)  # anew, since its sites are set
    segments = split_at_sites(model)
    if segments is None:
        by_name = {site.name: site for site in sites_of(model)}
        for number, change in changes.items():
            by_name[network.sites[number]].set(*change)
        return model(entered)
    return run_segments(segments, entered, first, changes)


def run_segments(
    segments: list[list[Layer]], outputs: jax.Array, first: int, changes: Mapping[int, Change]
) -> jax.Array:
    """Logits of a chain from the outputs of site `first`, with the changes at the sites, by their number."""
    for number, segment in enumerate(segments[first + 1 :], start=first):
        if number in changes:
            outputs = apply_masks(outputs, *changes[number])
        outputs = run(segment, outputs)
    return outputs


@functools.lru_cache(maxsize=256)
def peak_activation_bytes(network: ModelSpec, first: int) -> int:
    """The bytes of the largest intermediate result of `run_on` for one example."""
    state, images = network.abstract.arguments(1)
    entered = jax.eval_shape(lambda state, images: run_prefix(network, state, images, first), state, images)

    def logits_of(state, entered):
        changes = {i: (jnp.ones(n, bool), jnp.zeros(n), None) for i, n in enumerate(network.sizes) if i >= first}
        return run_from_site(network, state, entered, first, changes)

    return _largest(jax.make_jaxpr(logits_of)(state, entered).jaxpr)


def _largest(jaxpr) -> int:
    """The bytes of the largest result of any equation, those inside other equations included."""
    largest = 1
    for equation in jaxpr.eqns:
        inner = [p.jaxpr if hasattr(p, "jaxpr") else p for p in equation.params.values()]
        largest = max(
            largest,
            *(var.aval.size * var.aval.dtype.itemsize for var in equation.outvars if hasattr(var.aval, "size")),
            *(_largest(p) for p in inner if hasattr(p, "eqns")),
        )
    return largest
