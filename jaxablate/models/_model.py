"""Turn a function or a Flax NNX module into a model with sites, and evaluate it with sites masked.

Input: a function of (params, images) or a module, its parameters, and images [example, ...].
Output: a `ModelSpec` (the graph and its sites, hashable), recorded outputs of sites, and outputs under masks.
"""

import fnmatch
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from jax.extend.core import Literal

from jaxablate._checks import InputError, as_array, describe_value, host_array, require, require_known, traced
from jaxablate._precision import matmul_precision
from jaxablate._rundir import digest
from jaxablate._typing import Images
from jaxablate.devices import is_partly_remote, to_device
from jaxablate.models._analysis import (
    SiteFinder,
    SiteSpec,
    location,
    require_deterministic,
    require_visible,
)
from jaxablate.models._graph import Graph, evaluate, fingerprint, operation_name, read, replaced, shape_of, trace
from jaxablate.models._mlp import MLP, in_evaluation_mode, is_mlp, require_fitting, require_image_shape
from jaxablate.models._ranges import outputs_lie_between_0_and_1
from jaxablate.models._sites import Prediction, apply_masks
from jaxablate.models._tensors import detached

OUTPUTS = ("logits", "probabilities")
LARGE = 1e6  # larger than the values that networks compare with
TRACED = 2, 5  # numbers of examples; two, so that the axis of examples shows, and none is 1, which would broadcast
Choice = str | Sequence[str] | Callable[[SiteSpec], bool] | None
State = list[jax.Array]
SiteMask = tuple[jax.Array, jax.Array | Prediction, jax.Array | None]
"""A mask at one site: keep bool [unit], fill and scale as in `apply_masks`."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelSpec:
    """Describe a model without its parameters: the static argument for which programs are compiled.

    Models with the same operations, shapes and sites have equal specs and share compiled programs.

    Attributes:
        site_specs: the sites, in the order in which the model computes them (network order).
        found: all sites that can be chosen.
        result: tree of shapes of the model's outputs for 2 examples.
        kind: what the outputs are, "logits" or "probabilities".
        in_unit_interval: True if the outputs lie between 0 and 1 for all images and parameters.
        image: shape and dtype of one image, without the axis of examples.
        constants: values of arrays that the function captures.
        digest: digest of the operations, shapes and sites; specs with equal digests are equal.
    """

    site_specs: tuple[SiteSpec, ...]
    found: tuple[SiteSpec, ...]
    result: Any
    kind: str
    in_unit_interval: bool
    image: jax.ShapeDtypeStruct
    constants: tuple[jax.Array, ...]
    digest: str
    _trace: Callable[[int], Graph]
    _graphs: dict[tuple[int, Any], Graph]
    _checks: set[str] = field(default_factory=set)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def are_probabilities(self) -> bool:
        """Return True if the outputs of the first images that were checked are positive and sum to 1."""
        return "probabilities" in self._checks

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the sites in network order."""
        return tuple(site.name for site in self.site_specs)

    @property
    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return for each site shape and dtype of its outputs [..., unit] in one example."""
        return tuple(site.output for site in self.site_specs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of units of each site."""
        return tuple(site.size for site in self.site_specs)

    @property
    def num_neurons(self) -> int:
        """Return the number of units of all sites."""
        return sum(self.sizes)

    @property
    def offsets(self) -> np.ndarray:
        """Return int [site + 1]: site i has the network-wide ids offsets[i] to offsets[i + 1] - 1."""
        return site_offsets(self.sizes)

    @property
    def num_classes(self) -> int:
        """Return the number of classes.

        Raises:
            InputError: if the outputs are not [example, class].
        """
        result = self.result
        require(
            isinstance(result, jax.ShapeDtypeStruct) and result.ndim == 2,
            f"model: expected logits [example, class], got {_describe_result(result)}; pass "
            "outcomes={'name': function}, a function of (outputs, labels)",
        )
        return result.shape[1]

    def site_of(self, neurons: np.ndarray) -> np.ndarray:
        """Return the index of the site of each neuron, given by its network-wide id."""
        return np.searchsorted(self.offsets[1:], neurons, side="right")

    def graph(self, num_examples: int) -> Graph:
        """Return the graph for a number of examples.

        Raises:
            InputError: if the operations depend on the number of examples.
        """
        # Operations that were traced under one mesh of devices cannot be evaluated under another.
        key = num_examples, jax.sharding.get_abstract_mesh()
        if key not in self._graphs:
            reference = next(iter(self._graphs.values()))
            self._graphs[key] = _same_operations(self._trace(num_examples), reference)
        return self._graphs[key]


def site_offsets(sizes: Sequence[int]) -> np.ndarray:
    """Return int [site + 1]: site i has the network-wide ids offsets[i] to offsets[i + 1] - 1."""
    return np.cumsum((0, *sizes))


def stack_states(states: Sequence[Any]) -> Any:
    """Stack the states of networks of one architecture along a new leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)


@dataclass(frozen=True)
class ModuleCall:
    """The function of an NNX module: equal for modules of one architecture, unless their code was changed meanwhile.

    Notebooks change the code of classes that have instances, for example by `%autoreload`.
    """

    graphdef: nnx.GraphDef
    structure: Any
    edition: frozenset[tuple[type, int, CodeType | None, int]]

    def params(self, leaves: State) -> nnx.Module:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.structure, leaves))

    def __call__(self, leaves: State, images: Images) -> Any:
        return self.params(leaves)(images)


@dataclass(frozen=True, eq=False)
class FunctionCall:
    """A function of (params, images) as a function of (leaves, images); `static` has the leaves that are no arrays."""

    apply: Callable[[Any, Any], Any]
    structure: Any
    static: tuple[Any, ...]

    def params(self, leaves: State) -> Any:
        arrays = iter(leaves)
        full = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.structure, full)

    def __call__(self, leaves: State, images: Images) -> Any:
        return self.apply(self.params(leaves), images)


_ARRAY = object()  # marks the places of arrays among the leaves


class SiteTable(tuple[SiteSpec, ...]):
    """The sites of a model; printed as a table. A star marks sites whose units can be ablated: the chosen ones."""

    chosen: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("", "name", "kind", "shape", "made by", "read by", "where")]
        for site in self:
            star, shape = "*" if site.name in self.chosen else "", "x".join(map(str, site.output.shape))
            readers = ", ".join(dict.fromkeys(site.read_by))
            rows.append((star, site.name, site.kind, shape, site.made_by, readers, site.where.removeprefix(" at ")))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A function with sites, made by `from_function` or `from_module`. Functions of this library take it as `model`.

    Attributes:
        function: function of (leaves, images).
        state: the leaves of the parameters that are arrays.
        names: the path of each leaf.
        image: shape and dtype of one image, without the axis of examples.
        choice: the argument `sites`.
        kind: the argument `outputs`.
    """

    function: ModuleCall | FunctionCall
    state: State
    names: tuple[str, ...]
    image: jax.ShapeDtypeStruct
    choice: Choice
    kind: str

    def __repr__(self) -> str:
        """Return the sites and the shape of an image; the parameters would fill the screen."""
        sizes = [f"{name} ({size})" for name, size in zip(self.spec.sites, self.spec.sizes, strict=True)]
        more = f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""
        image = f"{self.image.dtype} {self.image.shape}"
        return f"Model(sites {', '.join(sizes[:8])}{more}; images {image})"

    @property
    def params(self) -> Any:
        """Return the parameters in the tree that `from_function` took, or the module that `from_module` took."""
        return self.function.params(self.state)

    @property
    def spec(self) -> ModelSpec:
        """Return the graph and its sites."""
        return _cached_spec(self)

    @property
    def sites(self) -> SiteTable:
        """Return all sites that were found, also those that are not chosen."""
        table = SiteTable(self.spec.found)
        table.chosen = self.spec.sites
        return table

    def __call__(self, images: Images) -> Any:
        """Return the outputs of the function."""
        return self.function(self.state, images)


AnyModel = Model | nnx.Module
"""A model, or a Flax NNX module, which is wrapped as by `from_module`."""


def no_network(value: Any) -> str:
    """Return what was passed in place of a network, and what to do."""
    remedy = "ja.from_pytorch reads networks of PyTorch, and ja.from_function networks of Linen, Equinox and Haiku"
    if isinstance(value, list | tuple) and all(isinstance(each, AnyModel) for each in value):
        remedy = "pass one at a time"
    elif isinstance(value, str | os.PathLike):
        remedy = "pass ja.load_model(path).model, or what ja.models.load_pytorch returns"
    elif isinstance(getattr(value, "model", None), AnyModel):  # what ja.load_model returns
        remedy = "pass its attribute .model"
    return f"{type(value).__name__}; {remedy}"


def from_function(
    apply: Callable[[Any, Any], Any], params: Any, images: Images, *, sites: Choice = None, outputs: str = "logits"
) -> Model:
    """Make a model of any JAX function; nothing in the function has to be prepared.

    The function is traced, and its sites are found in the operations: the values that linear maps read, for example
    the results of activation functions. Values marked with `ja.tag` are sites too.

    Args:
        apply: pure function `apply(params, images)`; its outputs have the axis of examples first. It must treat
            examples independently and draw no random numbers. Logits [example, class] are the usual outputs.
        params: tree of parameters. Leaves that are not arrays stay constants.
        images: [example, ...], one example or more as the function takes them.
        sites: the sites whose units can be ablated: names or patterns ("block*"), one or several, or a function of a
            `SiteSpec` that returns a bool. None chooses the tagged values, or all sites of kind "units" if there is no
            tag.
        outputs: "logits", also for log-probabilities, or "probabilities": the loss and the divergence then take the
            logarithm. Any other outputs need `outcomes={"name": function}`.

    Returns:
        The model. `print(model.sites)` shows all sites that were found.

    Raises:
        InputError: if the function cannot be ablated; the message says why, with file and line.

    Example:
        >>> params = {"hidden": np.ones((4, 3), np.float32), "head": np.ones((3, 2), np.float32)}
        >>> apply = lambda params, x: jax.nn.relu(x @ params["hidden"]) @ params["head"]
        >>> model = ja.from_function(apply, params, np.zeros((2, 4), np.float32))
        >>> [(site.name, site.kind, site.made_by) for site in model.sites if site.name in model.spec.sites]
        [('hidden', 'units', 'relu')]
    """
    require(callable(apply), f"apply: expected a function of (params, images), got {type(apply).__name__}")
    require_known("outputs", outputs, OUTPUTS)
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [(path, detached(leaf)) for path, leaf in paths]  # tensors of PyTorch share their memory
    paths = [(path, host_array("params", x) if isinstance(x, np.ndarray) else x) for path, x in paths]
    for path, leaf in paths:
        require(
            not isinstance(leaf, np.ndarray) or leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number),
            f"params: expected arrays of numbers, got dtype {getattr(leaf, 'dtype', None)} for "
            f"{jax.tree_util.keystr(path)}",
        )
    arrays = [(path, leaf) for path, leaf in paths if isinstance(leaf, jax.Array | np.ndarray)]
    static = tuple(_ARRAY if isinstance(leaf, jax.Array | np.ndarray) else leaf for _, leaf in paths)
    function = FunctionCall(apply, structure, static)
    # Copies: a JAX array may share the memory of a NumPy array, which the user may train further in place.
    leaves = [to_device(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf for _, leaf in arrays]
    return _checked(function, leaves, _names(arrays), images, sites, outputs)


def _names(paths: Iterable[tuple[Any, Any]]) -> tuple[str, ...]:
    """Return the path of each leaf as text."""
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)


def from_module(model: nnx.Module, images: Images, *, sites: Choice = None, outputs: str = "logits") -> Model:
    """Make a model of a Flax NNX module in evaluation mode; the module itself does not change.

    Functions that take a model wrap a module by themselves, as this function does without options. Modules of one
    architecture are traced once. Edits of their classes are noticed; as in `jax.jit`, other values that their code
    reads, such as global variables, are read only while it is traced.

    Args:
        model: a module that maps images to outputs.
        images, sites, outputs: as in `from_function`.

    Returns:
        The model.

    Raises:
        InputError: as in `from_function`.

    Example:
        >>> module = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> ja.from_module(module, np.zeros((1, 4), np.float32)).spec.sites
        ('layers/0',)
    """
    require_known("outputs", outputs, OUTPUTS)
    return _checked(*_split_module(model), images, sites, outputs)


def _split_module(model: nnx.Module) -> tuple[ModuleCall, State, tuple[str, ...]]:
    """Return the function, the leaves and their paths of a module in evaluation mode."""
    remedy = "; ja.from_function(model.apply, variables, images) takes modules of Flax Linen" * hasattr(model, "apply")
    require(isinstance(model, nnx.Module), f"model: expected a Flax NNX module, got {type(model).__name__}{remedy}")
    graphdef, state = nnx.split(in_evaluation_mode(model))
    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    # The graph of a module is cached, and classes may be edited in place: `%autoreload` replaces the code of functions,
    # a notebook's cell replaces the attributes of a class. Both give another key.
    classes = {base for _, module in nnx.iter_modules(model) for base in type(module).__mro__}
    classes = {base for base in classes if not base.__module__.startswith("flax.")}  # saves time, and nobody edits them
    parts = frozenset((base, *item) for base in classes for value in vars(base).values() for item in _edition(value))
    return ModuleCall(graphdef, structure, parts), [leaf for _, leaf in paths], _names(paths)


def _edition(value: Any) -> list[tuple[int, CodeType | None, int]]:
    """Return what changes if a class's attribute is edited: identity, code, defaults, also of what it wraps."""
    parts = []
    while value is not None and len(parts) < 9:  # decorators nest, and an object may claim to wrap itself
        code, defaults = getattr(value, "__code__", None), getattr(value, "__defaults__", None)
        parts.append((id(value), code if isinstance(code, CodeType) else None, id(defaults)))
        wrapped = (getattr(value, name, None) for name in ("__wrapped__", "__func__", "fget"))
        value = next((part for part in wrapped if part is not None), None)
    return parts


def _checked(
    function: ModuleCall | FunctionCall,
    state: State,
    names: tuple[str, ...],
    images: Images,
    sites: Choice,
    outputs: str,
) -> Model:
    choice: Choice = sites
    if sites is not None and not callable(sites) and not isinstance(sites, str):
        require(
            isinstance(sites, Sequence) and all(isinstance(name, str) for name in sites),
            f"sites: expected names, a function or None, got {describe_value(sites)}",
        )
        choice = tuple(sites)
    images = _as_images(images)
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    model = Model(function, state, names, image, choice, outputs)
    _require_independent(model, images)
    return model


def model_kind(model: AnyModel) -> str:
    """Return the kind of a model in words: the class of a module, or the name of a function."""
    if isinstance(model, Model) and isinstance(model.function, FunctionCall):
        apply = model.function.apply
        return f"function {getattr(apply, '__name__', type(apply).__name__)}"
    module = model.params if isinstance(model, Model) else model
    norm = " with batch norm" if is_mlp(module) and module.batch_norm else ""
    return f"NNX module {type(module).__name__}{norm}"


def trace_model(model: AnyModel, images: Images) -> tuple[ModelSpec, State, jax.Array]:
    """Return the spec of a model or module, its state, and the images as an array.

    Args:
        model: a `Model`, or a module, which is traced in evaluation mode and does not change.
        images: [example, ...], floating; signed integers if the model takes them.

    Raises:
        InputError: for images that the model does not take, or a model that cannot be ablated; the message says why.
    """
    require(
        isinstance(model, Model | nnx.Module),
        f"model: expected a Flax NNX module or a model, got {type(model).__name__}; ja.from_function makes a model of "
        "any function",
    )
    images = _as_images(images)
    if isinstance(model, Model):
        require(
            images.shape[1:] == model.image.shape and images.dtype == model.image.dtype,
            f"images: expected {model.image.dtype} images of shape {model.image.shape} as the model was made for, got "
            f"{images.dtype} {images.shape[1:]}; make a model for these images",
        )
    else:
        # uint8 pixels would be taken as 0..255 and saturate the network. Signed integers can be tokens of a model's
        # own embedding.
        if isinstance(model, MLP):
            require_fitting(model, images)
        require_image_shape(model, images.shape)
        kinds = (jnp.floating,) if isinstance(model, MLP) else (jnp.floating, jnp.signedinteger)
        require(
            any(jnp.issubdtype(images.dtype, kind) for kind in kinds),
            f"images: expected floating pixels in [0, 1], got dtype {images.dtype}; divide uint8 pixels by 255",
        )
        image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
        wrapped = Model(*_split_module(model), image, None, "logits")
        if not is_mlp(model):
            _require_independent(wrapped, images)
        model = wrapped
    leaves = [*model.state, *model.spec.constants]
    require(
        not any(leaf.is_deleted() for leaf in leaves if isinstance(leaf, jax.Array) and not traced(leaf)),
        "model: its parameters are gone, since a jitted function took them over (donate_argnums); make the model from "
        "copies, jax.tree.map(jnp.copy, params)",
    )
    return model.spec, leaves, images


def state_digest(state: object) -> str:
    """Return a digest of the state of a network."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(state)]
    plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return digest({str(i): np.asarray(leaf) for i, leaf in enumerate(plain)})


def _as_images(images: Images) -> jax.Array:
    require(
        not is_partly_remote(images),
        "images: other processes hold a part of the examples; pass the mesh to a function that takes one, or only the "
        "images of this process",
    )
    array = as_array("images", images)
    require(array.ndim >= 2 and len(array) > 0, f"images: expected [example, ...], got shape {array.shape}")
    try:
        images = to_device(array)
    except (TypeError, ValueError):
        raise InputError(f"images: expected numbers [example, ...], got {describe_value(array)}") from None
    return images


# Tracing runs the user's Python code, which is slow and may be called for every batch, so its results are cached. The
# cache is bounded because a function keeps its captured arrays alive.
def _cached_spec(model: Model) -> ModelSpec:
    leaves = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in model.state)
    key = model.function, leaves, model.names, model.image, model.choice, model.kind, matmul_precision()
    try:
        hash(key)
    except TypeError:  # a module with attributes that cannot be hashed
        return _make_spec.__wrapped__(*key)
    return _make_spec(*key)


@functools.lru_cache(maxsize=64)
def _make_spec(
    function: Callable,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    names: tuple[str, ...],
    image: jax.ShapeDtypeStruct,
    choice: Choice,
    kind: str,
    precision: str,
) -> ModelSpec:
    """Trace a function and find its sites."""

    def traced(num_examples: int) -> tuple[Graph, list, Any]:
        try:
            # the precision of products becomes part of the graph
            with jax.default_matmul_precision(precision):
                return trace(function, list(leaves), image, num_examples)
        except InputError:
            raise
        except Exception as error:  # the user's own code may raise anything
            reason = str(error).strip().split("\n")[0]
            remedy = "pass a model and images that go together, for any number of images"
            if isinstance(error, TraceContextError):
                remedy = "put its modules into evaluation mode by .eval(), or pass the module itself"
            elif isinstance(error, jax.errors.TracerArrayConversionError):
                remedy = "let it compute by jax.numpy what NumPy computes from its inputs"
            elif "PRNG" in reason:
                remedy = "call it as for evaluation: no dropout"
            raise InputError(
                f"model: for {num_examples} images of shape {image.shape} it raises {type(error).__name__}: {reason}; "
                f"{remedy}"
            ) from error

    (graph, constants, result), (other, others, other_result) = map(traced, TRACED)
    _require_examples_first(result, other_result)
    _same_operations(other, graph)
    require(
        all(map(np.array_equal, map(np.asarray, constants), map(np.asarray, others))),
        "model: it captures an array whose values depend on the number of examples; compute it from the images",
    )
    require_deterministic(graph)
    finder = SiteFinder(graph, other, [*names, *(f"constant{i}" for i in range(len(constants))), "input"])
    all_sites = finder.find()
    if choice is None and not any(site.kind == "tag" for site in all_sites):
        require_visible(graph, finder.flows)
    sites = _chosen(all_sites, choice)
    places = [replace(site, where="") for site in sites]
    digest = f"{fingerprint(graph)} {places} {kind} {jax.tree.structure(result)} {image}"
    return ModelSpec(
        tuple(sites),
        tuple(all_sites),
        result,
        kind,
        outputs_lie_between_0_and_1(graph),
        image,
        tuple(map(jnp.array, constants)),  # copies, as of the parameters
        digest,
        lambda num_examples: traced(num_examples)[0],
        {(g.num_examples, jax.sharding.get_abstract_mesh()): g for g in (graph, other)},
    )


def _require_examples_first(result: Any, other: Any) -> None:
    leaves, others = jax.tree.leaves(result), jax.tree.leaves(other)
    require(len(leaves) > 0, "model: it returns no array; return logits [example, class]")
    for leaf, again in zip(leaves, others, strict=True):
        require(
            leaf.ndim > 0 and (len(leaf), len(again)) == tuple(TRACED) and leaf.shape[1:] == again.shape[1:],
            f"model: expected outputs [example, ...], got shape {leaf.shape} for {TRACED[0]} examples and "
            f"{again.shape} for {TRACED[1]}; keep examples apart along the first axis (a fixed size in a reshape?)",
        )
        require(
            jnp.issubdtype(leaf.dtype, jnp.floating),
            f"model: expected floating outputs, got {leaf.dtype}; return logits, not classes",
        )


def _describe_result(result: Any) -> str:
    leaves = jax.tree.leaves(result)
    shapes = ", ".join(f"[{', '.join(['example', *map(str, leaf.shape[1:])])}]" for leaf in leaves)
    return shapes if len(leaves) == 1 else f"{len(leaves)} outputs {shapes}"


def _same_operations(graph: Graph, reference: Graph) -> Graph:
    """Return the graph; raise unless it has the operations of the reference, which has another number of examples."""
    names, expected = ([operation_name(eqn) for eqn in g.equations] for g in (graph, reference))
    first = next((i for i, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), 0)
    require(
        names == expected,
        f"model: for {graph.num_examples} examples it computes other operations than for {reference.num_examples} "
        f"({len(names)} and {len(expected)} operations, the first difference at operation {first}); make it "
        "independent of the number of examples",
    )
    shapes, expected_shapes = ([shape_of(var) for var in g.inputs[:-1]] for g in (graph, reference))
    require(
        shapes == expected_shapes,
        "model: it captures an array whose shape depends on the number of examples; compute it from the images, for "
        "example by jnp.arange",
    )
    for eqn, expected_eqn in zip(graph.equations, reference.equations, strict=True):
        if _real_numbers(eqn) != _real_numbers(expected_eqn):
            raise InputError(
                f"model: a number{location(eqn)} depends on the number of examples, or has changed since the model was "
                "made; switch batch statistics off (evaluation mode), and keep examples apart"
            )
    return graph


def _real_numbers(eqn: Any) -> str:
    """Return the floating-point literals of an equation; integers may be sizes."""
    literals = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
    return str([float(value) for value in literals if np.issubdtype(np.asarray(value).dtype, np.floating)])


def _chosen(found: Sequence[SiteSpec], choice: Choice) -> list[SiteSpec]:
    """Return the chosen sites in network order.

    Raises:
        InputError: if no site is chosen, or a name or pattern matches none.
    """
    names = ", ".join(f"{site.name!r} ({site.kind})" for site in found) or "none"
    if choice is None:
        tags = [site for site in found if site.kind == "tag"]
        sites = tags or [site for site in found if site.kind == "units"]
    elif callable(choice):
        sites = [site for site in found if choice(site)]
    else:
        patterns = (choice,) if isinstance(choice, str) else choice
        for pattern in patterns:
            require(
                any(fnmatch.fnmatchcase(site.name, pattern) for site in found),
                f"sites: no site matches {pattern!r}; found {names}",
            )
        sites = [site for site in found if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in patterns)]
    require(
        len(sites) > 0,
        f"model: it has no sites of kind 'units' (found {names}); choose others with sites=, or mark a value with "
        "ja.tag(value, name)",
    )
    return sites


def require_held(network: ModelSpec, fills: Iterable[Any], is_linear: bool) -> None:
    """Raise unless sites of integers or booleans can hold their fills, which would be rounded silently.

    Args:
        network: the network.
        fills: numbers [..., unit] of each site, or its scale.
        is_linear: True for predictions, which are no integers.

    Raises:
        InputError: naming the site.
    """
    for name, site, fill in zip(network.sites, network.site_specs, fills, strict=True):
        if jnp.issubdtype(site.dtype, np.inexact):
            continue
        fill = np.asarray(fill)
        with np.errstate(invalid="ignore"):
            is_held = not is_linear and np.array_equal(fill.astype(site.dtype), fill)
        require(
            is_held,
            f"fill: site {name!r} has the dtype {np.dtype(site.dtype)}, which cannot hold these numbers; convert the "
            "value to float32 in the network and mark that with ja.tag, choose other sites with sites=, or pass a fill "
            "that the dtype holds, such as 0",
        )


def _require_independent(model: Model, images: jax.Array) -> None:
    """Raise if the outputs of an example depend on another one, as with batch statistics, or on its place."""
    spec = model.spec
    if "independent" in spec._checks:
        return
    pair = np.resize(np.asarray(images[:2]), (2, *images.shape[1:]))
    state = [*model.state, *spec.constants]
    # NaN spreads wherever numbers go, but no further than a comparison, which large numbers change
    probes = [(place, changed) for place in (0, 1) for changed in _with_other(pair, place)]
    with jax.debug_nans(False), jax.debug_infs(False):  # the changed examples hold such numbers on purpose
        first, *changed, repeated_first, repeated_second = (
            jax.tree.map(np.asarray, _outputs_and_sites(spec, state, jnp.asarray(two)))
            for two in (pair, *(changed for _, changed in probes), pair[[0, 0]], pair[[1, 1]])
        )
    names = "its outputs", *(f"the outputs of site {name!r}" for name in spec.sites)
    for repeated in (repeated_first, repeated_second):
        for what, values in zip(names, repeated, strict=True):
            require(
                all(_are_equal(*leaf) for leaf in jax.tree.leaves(values)),
                f"model: {what} for an example depend on its place among the examples, as with one row of a table for "
                "each; chunks would change them; pass such a table as part of the images",
            )
    for (place, _), second in zip(probes, changed, strict=True):
        for what, a, b in zip(names, first, second, strict=True):
            rows = [(x[1 - place], y[1 - place]) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
            require(
                all(np.array_equal(x, y, equal_nan=True) for x, y in rows),
                f"model: {what} for one example depend on another example; switch batch statistics off (evaluation "
                "mode), and keep examples apart",
            )
    outputs = first[0]
    if isinstance(outputs, np.ndarray) and outputs.ndim == 2 and outputs.shape[1] > 1:
        sums = outputs.astype(np.float64).sum(axis=1)
        are_probabilities = bool((outputs >= 0).all() and (np.abs(sums - 1) < 1e-3).all())
        if are_probabilities:
            spec._checks.add("probabilities")
        require(
            are_probabilities or spec.kind != "probabilities",
            "outputs: expected probabilities, which are positive and sum to 1, got other outputs; leave out "
            "outputs='probabilities' for logits and log-probabilities",
        )
    spec._checks.add("independent")


def _are_equal(first: Any, second: Any) -> bool:
    """Return True if two arrays or numbers are equal up to rounding."""
    first, second = (np.asarray(each, np.result_type(each, np.float64)) for each in (first, second))
    size = np.abs(first[np.isfinite(first)]).max(initial=0)
    return np.allclose(first, second, rtol=1e-3, atol=1e-5 * size, equal_nan=True)


def _with_other(pair: np.ndarray, place: int) -> list[np.ndarray]:
    """Return copies of two images, one replaced by NaN and by large numbers, or by other integers."""
    differ = (pair[0] != pair[1]).any()
    is_float = jnp.issubdtype(pair.dtype, jnp.floating)
    values = (np.nan, LARGE, -LARGE) if is_float else (pair[1 - place] if differ else 0 if pair.any() else 1,)
    copies = [pair.copy() for _ in values]
    for changed, value in zip(copies, values, strict=True):
        changed[place] = value
    return copies


@partial(jax.jit, static_argnums=0)
def _outputs_and_sites(spec: ModelSpec, state: State, images: jax.Array) -> list:
    outputs, sites = record_sites(spec, state, images)
    return [outputs, *sites]


def site_neurons(model: AnyModel, images: Images) -> dict[str, np.ndarray]:
    """Return the network-wide ids of the neurons of each site, as masks, fills and orders count them.

    Args:
        model: a Flax NNX module (for example a `ja.MLP`) or a `ja.models.Model`.
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


def bind_inputs(spec: ModelSpec, state: State, images: jax.Array) -> tuple[Graph, dict]:
    """Return the graph for these images, and the values of its inputs."""
    graph = spec.graph(len(images))
    return graph, dict(zip(graph.inputs, (*state, images), strict=True))


def read_outputs(spec: ModelSpec, graph: Graph, env: Mapping) -> Any:
    """Return the outputs of the model, as its function returns them."""
    return jax.tree.unflatten(jax.tree.structure(spec.result), [read(env, atom) for atom in graph.outputs])


def record_sites(
    spec: ModelSpec, state: State, images: jax.Array, masks: Mapping[int, SiteMask] | None = None
) -> tuple[Any, list[jax.Array]]:
    """Return the outputs of the model, and those [example, ..., unit] of each site in network order.

    Sites with masks, by the index of the site, are recorded masked.
    """
    graph, env = bind_inputs(spec, state, images)
    replace = replacements(spec, graph, masks or {})
    env = evaluate(graph.equations, replaced(env, replace), replace)
    sites = [site.canonical(env[graph.values[site.ordinal]]) for site in spec.site_specs]
    return read_outputs(spec, graph, env), sites


def replacements(spec: ModelSpec, graph: Graph, masks: Mapping[int, SiteMask]) -> dict[Any, Callable]:
    """Return for each masked site the function that masks its value, by the variable of the graph."""
    specs = {index: spec.site_specs[index] for index in masks}
    return {graph.values[site.ordinal]: partial(_masked_value, site, masks[index]) for index, site in specs.items()}


def _masked_value(site: SiteSpec, mask: SiteMask, value: jax.Array) -> jax.Array:
    """Return the value of a site under a mask."""
    return site.native(apply_masks(site.canonical(value), *mask))


def start_forward(
    spec: ModelSpec, state: State, images: jax.Array, sites: Iterable[int]
) -> Callable[[Mapping[int, SiteMask]], Any]:
    """Compute the part of the forward pass that no mask at these sites changes, and return a function for the rest.

    Args:
        spec, state: the model.
        images: [example, ...].
        sites: indices of the sites that may be masked.

    Returns:
        A function from masks, by the index of the site, to the outputs under these masks.
    """
    graph, env = bind_inputs(spec, state, images)
    touched = [graph.values[spec.site_specs[index].ordinal] for index in sorted(sites)]
    first, rest = graph.split(touched)
    evaluate(first, env)

    def finish(masks: Mapping[int, SiteMask]) -> Any:
        replace = replacements(spec, graph, masks)
        return read_outputs(spec, graph, evaluate(rest, replaced(env, replace), replace))

    return finish


# The engines choose how many masks and examples to evaluate at a time from this number. It is read off the graph, so it
# holds for any model, but it ignores what XLA fuses or keeps alive together: an estimate, not a bound.
@functools.lru_cache(maxsize=256)
def peak_activation_bytes(spec: ModelSpec, sites: tuple[int, ...]) -> int:
    """Return the size in bytes of the largest value for one example that masks at these sites change."""
    graph = spec.graph(TRACED[0])
    touched = [graph.values[spec.site_specs[index].ordinal] for index in sites]
    stage = graph.stages(touched)
    avals: list[Any] = [var.aval for var, depth in stage.items() if depth]
    return max(1, *(aval.size * aval.dtype.itemsize // TRACED[0] for aval in avals))
