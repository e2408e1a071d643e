"""Convert between PyTorch modules in memory and networks of Flax.

Input: a `torch.nn.Module`, or an `MLP` or an `nnx.Sequential`; images.
Output: the network in the other framework, with equal outputs on these images.
"""

import contextlib
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, finite_float32, require
from jaxablate._files import atomic_path, save_tensors
from jaxablate._typing import Images
from jaxablate.models._chain import Layer, build_chain, describe_chain, is_chain, layers_of
from jaxablate.models._mlp import MLP, in_evaluation_mode, is_mlp, set_image_shape, zeros_for
from jaxablate.models._pytorch import (
    CHANNELS,
    PARTS,
    WEIGHTS,
    feature_orders,
    group_modules,
    mlp_of_modules,
    require_channels_last,
    require_close,
    set_weights,
)
from jaxablate.models._tensors import AssumptionWarning, detached, to_numpy

WITH_WEIGHTS = ("linear", "conv", "batch_norm")
RESHAPES = {"flatten", "view", "reshape", "contiguous", "unsqueeze", "squeeze"}  # methods and functions


def import_torch(what: str) -> Any:
    """Import PyTorch; raise `InputError` that starts with a text, such as "to_pytorch needs", if it is missing."""
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
        import torch.fx.passes.shape_prop  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"{what} PyTorch, which is not installed; install torch") from None
    return torch


# `torch.fx` traces the module to a graph of calls. If each call takes the result of the one before, they are the layers
# of a chain. Calls of functions (F.max_pool2d) become modules with the same arguments (nn.MaxPool2d), so that one table
# serves both. What a reshape does follows from the shapes before and after it, for the images that were given.
def from_pytorch(module: Any, images: Images) -> MLP | nnx.Sequential:
    """Convert a PyTorch module in memory, whose layers are a chain, to a network of Flax.

    The layers may be linear maps, 2-D convolutions, batch norms, dropout, pooling, flattening and the activation
    functions in `ja.models.ACTIVATIONS`, as modules or as functions in `forward`. Parametrized weights, such as weight
    norms and pruning masks, are computed. A layer that is applied twice becomes two layers.

    Args:
        module: a `torch.nn.Module` that takes images; it is not changed.
        images: [example, ...], at least one example, as the network of Flax takes them. With four axes they are
            [example, height, width, channel], and the module gets them as [example, channel, height, width].

    Returns:
        The network in evaluation mode, with float32 weights: an `MLP` if the layers are linear maps with one activation
        function, without batch norm; otherwise an `nnx.Sequential`. Its outputs for the images, and for random images,
        equal the module's, up to 1e-4 of their range. What only training uses is not kept: there is no dropout, and the
        running statistics of a batch norm that averages over all batches (`momentum=None`) get the momentum 0.1.

    Warns:
        AssumptionWarning: if layers share parameters.

    Raises:
        InputError: for an object that is no module, images that it does not take, layers that are no chain or are not
            among the ones above, hooks, subclasses of layers, weights of half precision, or other outputs. PyTorch must
            be installed.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 5), torch.nn.ReLU(),
        ...                           torch.nn.Linear(5, 10))
        >>> model = ja.from_pytorch(net, np.zeros((2, 28, 28), np.float32))
        >>> model.hidden, model.activation
        ((5,), 'relu')
    """
    torch = import_torch("from_pytorch needs")
    require(
        isinstance(module, torch.nn.Module),
        f"module: expected a torch.nn.Module, got {type(module).__name__}; load_pytorch takes files and state dicts",
    )
    images = _check_images(images)
    what = f"PyTorch module {type(module).__name__}"
    _require_plain_module(torch, what, module)
    first = next(module.parameters(), None)

    def inputs_of(images: np.ndarray) -> Any:
        inputs = _for_pytorch(torch, images)
        return inputs if first is None else inputs.to(first.device, first.dtype)

    with _in_evaluation(module), torch.no_grad():
        inputs = inputs_of(images)
        try:
            expected = module(inputs)  # computes weights that hooks parametrize
        except Exception as error:  # the user's own code may raise anything
            raise InputError(
                f"images: {what} gets {tuple(inputs.shape)} and raises {_reason(error)}; pass images that the module "
                "takes, with the channels last"
            ) from error
        require(
            isinstance(expected, torch.Tensor),
            f"{what}: expected one tensor as its output, got {type(expected).__name__}",
        )
        if images.ndim == 4:
            _require_one_layout(torch, what, module, images, inputs, expected)
        description, tensors = _read_chain(torch, what, module, inputs)
        require(len(tensors) > 0, f"{what}: none of its layers has weights; pass a network of linear maps")
        modules = group_modules(what, tensors)
        hidden = [layer["name"] for layer in description if layer["type"] == "activation"]
        types = [layer["type"] for layer in description]
        start = ["flatten"] * (images.ndim > 2)
        alternating = start + ["linear", "activation"] * len(hidden) + ["linear"]
        if types == alternating and len(set(hidden)) == 1:
            network: MLP | nnx.Sequential = mlp_of_modules(what, modules, hidden[0], images.shape)
        else:
            network, _ = set_weights(what, modules, build_chain(description), images.shape, list(modules))
            set_image_shape(network, images.shape, flat=True)
        _require_equal(what, lambda images: to_numpy(module(inputs_of(images))), network, images)
    return network


def to_pytorch(model: MLP | nnx.Sequential, images: Images | None = None) -> Any:
    """Convert a network to a `torch.nn.Sequential`, for example after pruning.

    Args:
        model: an `MLP`, or an `nnx.Sequential` of the layers that `from_pytorch` reads, `nnx.Dropout` and `ja.Site`.
        images: [example, ...], at least one example, as the model takes them. With four axes they are [example, height,
            width, channel], and the module takes them as [example, channel, height, width]; weights that read flattened
            features are reordered. Not needed for an `MLP`, whose module then flattens its inputs as the model does.

    Returns:
        The module in evaluation mode, on the CPU. Its outputs for the images, and for random images, equal the model's.

    Raises:
        InputError: for a network of another kind, a layer that has no counterpart, missing images, or other outputs.
            PyTorch must be installed.

    Example:
        >>> import torch
        >>> net = ja.to_pytorch(ja.MLP(784, (5,), 10, activation="relu", rngs=nnx.Rngs(0)))
        >>> [type(layer).__name__ for layer in net]
        ['Flatten', 'Linear', 'ReLU', 'Linear']
    """
    torch = import_torch("to_pytorch needs")
    require(
        is_mlp(model) or is_chain(model),
        f"model: expected an MLP or an nnx.Sequential, got {type(model).__name__}; no other network can be converted",
    )
    if images is None and is_mlp(model):
        images = zeros_for(model)
    require(images is not None, "images: expected an example of what the model takes, got none")
    assert images is not None
    images = _check_images(images)
    network = in_evaluation_mode(model)
    layers = layers_of(network)
    tensors = iter(pytorch_tensors(network, images))
    modules, outputs = [], jnp.asarray(images[:1])
    for index, (layer, described) in enumerate(zip(layers, describe_chain(layers, images.shape), strict=True)):
        num_axes = {"linear": 4, "batch_norm": 3}.get(described["type"])
        require(
            outputs.ndim != num_axes,
            f"layer {index} ({described['type']}): it takes the last axis of {outputs.shape}, where PyTorch takes "
            "another; write the network in PyTorch",
        )
        with torch.device("cpu"):  # whatever the user's default device is
            modules += _make_modules(torch, index, described, outputs.shape)
            if described["type"] in WITH_WEIGHTS:
                state = {part: torch.tensor(array) for part, array in next(tensors).items()}
                modules[-1].load_state_dict({**modules[-1].state_dict(), **state})
        outputs = layer(outputs)
    net = torch.nn.Sequential(*modules).eval().float()  # the user may have set another default dtype
    with torch.no_grad():
        _require_equal("network", lambda images: to_numpy(net(_for_pytorch(torch, images))), network, images)
    return net


def pytorch_tensors(model: MLP | nnx.Sequential, images: Images) -> list[dict[str, np.ndarray]]:
    """Return the weights of each layer that has any, by PyTorch's names and in PyTorch's layout.

    Args:
        model: as in `to_pytorch`.
        images: [example, ...]; only the shape matters.
    """
    layers = layers_of(model)
    orders = feature_orders(nnx.Sequential(*layers), images.shape)
    tensors = []
    for index, layer in enumerate(layers):
        kind = next((kind for kind in WEIGHTS if isinstance(layer, kind)), None)
        if kind is None:
            continue
        arrays = {}
        for part, name in WEIGHTS[kind].items():
            if (variable := getattr(layer, name)) is None:
                continue
            array = np.asarray(variable[...], np.float32)
            if array.ndim > 1:
                array = array.transpose(-1, -2, *range(array.ndim - 2))
            if index in orders and (kind is not nnx.Linear or part == "weight"):
                ours, array = array, np.empty_like(array)
                array[..., orders[index]] = ours
            arrays[part] = np.ascontiguousarray(array)
        tensors.append(arrays)
    return tensors


def save_state_dict(
    model: MLP | nnx.Sequential,
    path: Path,
    images: Images,
    names: Mapping[str, Collection[str]] | None,
    metadata: dict[str, str],
) -> None:
    """Write the weights of a network as a PyTorch state dict; the file appears whole or not at all.

    Args:
        model: as in `to_pytorch`.
        path: a `.pt` file, or a `.safetensors` file, whose header gets the metadata.
        images: [example, ...], as in `to_pytorch`.
        names: names of the modules with weights, in order, and of the parts that each has; None for the names in
            `to_pytorch`. A part that a module lacks, such as a bias, is written only if it is not 0 everywhere.
        metadata: strings.
    """
    if names is None:
        tensors = {name: to_numpy(tensor) for name, tensor in to_pytorch(model, images).state_dict().items()}
    else:
        modules = zip(names.items(), pytorch_tensors(model, images), strict=True)
        tensors = {
            ".".join(filter(None, (name, part))): array  # parameters of the network itself have no prefix
            for (name, parts), arrays in modules
            for part, array in arrays.items()
            if part in parts or part != "bias" or array.any()
        }
    if path.suffix == ".safetensors":
        save_tensors(path, tensors, metadata)
        return
    torch = import_torch(f"{path}: needs")
    with atomic_path(path) as unfinished:
        torch.save({name: torch.tensor(array, device="cpu") for name, array in tensors.items()}, unfinished)


def _check_images(images: Any) -> np.ndarray:
    """Return images as float32, at least one example, with the channels last if they have four axes."""
    images = finite_float32("images", detached(images))
    require(
        images.ndim >= 2 and images.size > 0,
        f"images: expected [example, ...] with at least one example, got shape {images.shape}",
    )
    if images.ndim == 4:
        require_channels_last(images.shape)
    return images


def _require_one_layout(torch: Any, what: str, module: Any, images: np.ndarray, inputs: Any, expected: Any) -> None:
    """Raise if a module takes images of uncommon channels also with the channels first, and gives other outputs."""
    _, first, second, last = images.shape
    if (last in CHANNELS and first not in CHANNELS) or first == second != last:
        return
    try:
        outputs = module(torch.tensor(images).to(inputs.device, inputs.dtype))
    except Exception:  # the user's own code may raise anything
        return
    require(
        torch.allclose(outputs, expected),
        f"images: shape {images.shape} may have the channels last or first, since the {what} takes both; pass images "
        "[example, feature], flattened in the order of the module's features, also to the functions that evaluate the "
        "network",
    )


def _reason(error: Exception) -> str:
    """Return the type of an error and the first line of its text, which may be empty."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]


def _require_plain_module(torch: Any, what: str, module: Any) -> None:
    """Raise unless only the layers of a module, in float32 or float64, determine its outputs."""
    nn, utils = torch.nn, torch.nn.utils
    averaged = torch.optim.swa_utils.AveragedModel
    wrapped = [("module", nn.DataParallel), ("module", averaged), ("_orig_mod", torch._dynamo.OptimizedModule)]
    for name, kind in wrapped:
        require(not isinstance(module, kind), f"module: {what} wraps another module; pass its attribute {name!r}")
    require(not isinstance(module, torch.jit.ScriptModule), f"module: {what} is scripted; pass the module before that")
    parametrizing = (
        utils.weight_norm.__globals__["WeightNorm"],
        utils.spectral_norm.__globals__["SpectralNorm"],
        importlib.import_module("torch.nn.utils.prune").BasePruningMethod,
    )
    for name, tensor in module.named_parameters():
        require(
            not (nn.parameter.is_lazy(tensor) or tensor.is_meta),
            f"{what}: {name} has no values yet; initialise the module first",
        )
        require(
            tensor.dtype in (torch.float32, torch.float64),
            f"{what}: expected parameters of float32 or float64, got {tensor.dtype} for {name}; call module.float()",
        )
    for name, part in module.named_modules():
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        require(
            "forward" not in vars(part) and all(isinstance(hook, parametrizing) for hook in hooks),
            f"{what}: {name or 'the module itself'} has a hook or a forward of its own, which its layers do not show",
        )


def _for_pytorch(torch: Any, images: np.ndarray) -> Any:
    """Return images as a tensor, [example, channel, height, width] if they have four axes."""
    return torch.tensor(images.transpose(0, 3, 1, 2).copy() if images.ndim == 4 else images, device="cpu")


def _require_equal(
    what: str, run_pytorch: Callable[[np.ndarray], np.ndarray], network: Any, images: np.ndarray
) -> None:
    """Raise `InputError` unless a network of Flax has the outputs of PyTorch.

    Compared are the images and random numbers, since images of one kind, such as zeros, would not show everything.
    """
    random = np.random.default_rng(0).normal(size=(16, *images.shape[1:])).astype(np.float32)
    first = images if len(images) > 1 else np.concatenate([images, random])  # outputs of one example have no range
    for inputs in (first, random, 10 * random):
        try:
            expected = run_pytorch(inputs)
        except Exception as error:  # the user's own code may raise anything
            raise InputError(
                f"{what} takes {images.shape}, and raises {_reason(error)} for {inputs.shape}; let it take any number "
                "of examples, for example by x.flatten(1) instead of x.view(8, -1)"
            ) from error
        with jax.default_matmul_precision("highest"):
            outputs = np.asarray(network(jnp.asarray(inputs)))
        require(
            outputs.ndim == expected.ndim == 2 and outputs.shape == expected.shape,
            f"{what}: expected outputs [example, class], got shape {expected.shape}",
        )
        spread = float(np.ptp(expected, axis=0).max(initial=0))
        remedy = "PyTorch computes something that the layers do not show"
        require_close(f"{what}: the converted network", outputs, expected, spread, remedy)


@contextlib.contextmanager
def _in_evaluation(module: Any) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each part gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:  # not by `eval`, since frozen layers may have a `train` that does nothing
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _read_chain(torch: Any, what: str, module: Any, inputs: Any) -> tuple[list[Layer], dict[str, np.ndarray]]:
    """Return the layers of a module, and the tensors of those with weights, named after their places.

    Args:
        torch: the package.
        what: names the module in messages.
        module: the module.
        inputs: its inputs.
    """
    nn = torch.nn

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            # a subclass of a layer may compute something else, so `torch.fx` looks into it
            return _layer_type(nn, m) in _layer_types(nn) or super().is_leaf_module(m, module_qualified_name)

    class Values(torch.fx.passes.shape_prop.ShapeProp):
        def run_node(self, n: Any) -> Any:
            n.meta["value"] = result = super().run_node(n)
            return result

    # Arguments of forward beyond the images keep their defaults: without them, tracing would follow another branch.
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    try:
        root = nn.Sequential(module) if _layer_type(nn, module) in _layer_types(nn) else module
        graph = torch.fx.GraphModule(root, Tracer().trace(root, defaults if root is module else {}))
        Values(graph).propagate(inputs)
    except Exception as error:  # the user's own code may raise anything
        raise InputError(
            f"{what}: torch.fx cannot trace it ({_reason(error)}); write the network as an nnx.Sequential and read its "
            "weights by load_pytorch"
        ) from error
    value, description, tensors, users = None, [], {}, {}
    for node in graph.graph.nodes:
        shape = _shape(node)
        if node.op == "output":
            require(node.args[0] is value, f"{what}: expected one tensor as its output, the result of its last layer")
        elif node.op == "placeholder" and value is None:
            value = node
        elif shape is not None:
            read = [operand for operand in node.all_input_nodes if _shape(operand) is not None]
            name = node.target if node.op == "call_module" else node.name
            require(
                read == [value] and node.op.startswith("call_"),
                f"{what}: expected a chain of layers, but {name!r} does not take the result of the layer before "
                "alone; write the network in Flax and read its weights by load_pytorch, see docs/howto/network.md",
            )
            layer, before = _module_of(torch, graph, node), _shape(value)
            assert before is not None
            described = _describe_module(nn, f"{what}: {name}", layer, before, shape)
            if described and described[0]["type"] in WITH_WEIGHTS:
                parts = {part: getattr(layer, part, None) for part in PARTS}
                tensors |= {f"{len(description)}.{p}": to_numpy(each) for p, each in parts.items() if each is not None}
                for parameter in layer.parameters():
                    users.setdefault(id(parameter), []).append(str(name))
            description += described
            value = node
    for names in sorted({tuple(names) for names in users.values() if len(names) > 1}):
        warnings.warn(
            f"{what}: the layers {', '.join(names)} share parameters; in the converted network each has its own copy",
            AssumptionWarning,
            stacklevel=3,
        )
    return description, tensors


def _shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's result; None if it is no tensor."""
    return tuple(meta.shape) if hasattr(meta := node.meta.get("tensor_meta"), "shape") else None


def _layer_types(nn: Any) -> tuple[type, ...]:
    """Return the types of modules that are layers."""
    return (
        nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity,
        nn.Flatten, nn.Unflatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.LogSoftmax, nn.Softmax,
        *_activations(nn).values(),
    )  # fmt: skip


def _activations(nn: Any) -> dict[str, Any]:
    """Return the modules of activation functions by PyTorch's names, which are JAX's names but for "gelu"."""
    return {
        "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU,
        "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "softplus": nn.Softplus, "hardtanh": nn.Hardtanh,
    }  # fmt: skip


def _layer_type(nn: Any, module: Any) -> type:
    """Return the type of a module; a parametrized one has a class of its own, below the class of the layer."""
    is_parametrized = nn.utils.parametrize.is_parametrized(module)
    return type(module).__bases__[0] if is_parametrized else type(module)


def _module_of(torch: Any, graph: Any, node: Any) -> Any:
    """Return the module that a call stands for, `nn.Flatten` for any call that changes the shape, None for others."""
    nn, functional = torch.nn, torch.nn.functional
    if node.op == "call_module":
        return graph.get_submodule(node.target)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name in RESHAPES:
        return nn.Flatten()

    def dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        del p, inplace
        return None if training else nn.Identity()  # as a function it may be on in evaluation mode too

    kinds = {
        **_activations(nn), "relu_": nn.ReLU, "max_pool2d": nn.MaxPool2d, "avg_pool2d": nn.AvgPool2d,
        "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d, "log_softmax": nn.LogSoftmax, "softmax": nn.Softmax,
        "dropout": dropout, "dropout2d": dropout,
    }  # fmt: skip
    if node.target is functional.max_pool2d:  # its name is that of a wrapper
        name = "max_pool2d"
    args, options = torch.fx.node.map_arg((node.args[1:], dict(node.kwargs)), lambda operand: operand.meta["value"])
    options = {key: value for key, value in options.items() if key not in ("_stacklevel", "dtype", "input")}
    if any(operand is not node.args[0] for operand in node.all_input_nodes):
        # a window that depends on the images; only the average over the whole of them has a counterpart
        whole = tuple(node.args[0].meta["value"].shape[2:])
        return nn.AdaptiveAvgPool2d(1) if name == "avg_pool2d" and [*map(tuple, args)] == [whole] else None
    try:
        return kinds[name](*args, **options) if name in kinds else None
    except TypeError:  # arguments that the module does not have
        return None


def _describe_module(nn: Any, what: str, module: Any, before: tuple[int, ...], after: tuple[int, ...]) -> list[Layer]:
    """Return the description of a PyTorch module as in `describe_chain`: one layer, or none if it changes nothing.

    Args:
        nn: `torch.nn`.
        what: names the module in messages.
        module: the module; `nn.Flatten` is any change of the shape. None for an unknown operation.
        before, after: shapes of its operand and its result.
    """
    activation = _activation_name(nn, module)
    if activation is not None:
        return [{"type": "activation", "name": activation}]
    if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d | nn.AlphaDropout):
        return []
    if isinstance(module, nn.Flatten | nn.Unflatten):
        if after == before:
            return []
        if len(before) in (3, 4) and after == (before[0], math.prod(before[1:])):
            return [{"type": "flatten"}]
        if len(before) == 3 and after == (before[0], 1, *before[1:]):
            return [{"type": "add_channel_axis"}]
        raise InputError(
            f"{what}: {before} becomes {after}; only flattening to [example, feature] and adding an axis of one "
            "channel can be converted"
        )
    described = _describe_weighted(nn, module, before)
    if described is None and isinstance(module, nn.LogSoftmax) and len(before) == 2 and module.dim in (1, -1):
        described = {"type": "log_softmax"}
    if described is None and isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        described = _describe_pool(nn, module, before, after)
    remedy = "write the network in JAX with its weights, and pass it to ja.from_module or ja.from_function"
    if isinstance(module, nn.Softmax):
        remedy = "give the network without its softmax, since outcomes take logits"
    require(described is not None, f"{what}: {module or 'this operation'} cannot be converted; {remedy}")
    assert described is not None
    return [described]


def _activation_name(nn: Any, module: Any) -> str | None:
    """Return the name in `ACTIVATIONS` of an activation function; None for other modules."""
    if isinstance(module, nn.GELU):
        return "gelu_exact" if module.approximate == "none" else "gelu"
    if isinstance(module, nn.LeakyReLU):
        return f"leaky_relu:{float(module.negative_slope)!r}"
    if isinstance(module, nn.ELU):
        return f"elu:{float(module.alpha)!r}"
    if isinstance(module, nn.Softplus):
        return "softplus" if (module.beta, module.threshold) == (1, 20) else None
    if isinstance(module, nn.Hardtanh):
        return "hardtanh" if (module.min_val, module.max_val) == (-1, 1) else None
    return next((name for name, kind in _activations(nn).items() if type(module) is kind), None)


def _describe_weighted(nn: Any, module: Any, before: tuple[int, ...]) -> Layer | None:
    """Return the description of a linear map, a convolution or a batch norm; None for one without a counterpart."""
    if isinstance(module, nn.Linear) and len(before) in (2, 3):
        bias = module.bias is not None
        return {"type": "linear", "in": module.in_features, "out": module.out_features, "bias": bias}
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and len(before) == 4:
        padding: Any = module.padding
        if not isinstance(padding, str):
            padding = [[side, side] for side in padding]
        return {
            "type": "conv",
            "in": module.in_channels,
            "out": module.out_channels,
            "kernel": list(module.kernel_size),
            "strides": list(module.stride),
            "padding": padding.upper() if isinstance(padding, str) else padding,
            "dilation": list(module.dilation),
            "groups": module.groups,
            "bias": module.bias is not None,
        }
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats and len(before) in (2, 4):
        affine, momentum = bool(module.affine), 0.1 if module.momentum is None else module.momentum
        options = {"epsilon": module.eps, "momentum": 1 - momentum, "scale": affine, "bias": affine}
        return {"type": "batch_norm", "size": module.num_features, **options}
    return None


def _describe_pool(nn: Any, module: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Layer | None:
    """Return the description of a pooling layer; None for one without a counterpart."""
    if len(before) != 4:
        return None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if before[2] % after[2] or before[3] % after[3]:
            return None
        return {"type": "adaptive_avg_pool", "size": [after[2], after[3]]}
    if module.ceil_mode or getattr(module, "dilation", 1) not in (1, (1, 1)):
        return None
    if getattr(module, "divisor_override", None) is not None or getattr(module, "return_indices", False):
        return None
    window, strides, padding = (
        [int(number) for number in np.broadcast_to(value, 2)]
        for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    return {
        "type": "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool",
        "window": window,
        "strides": strides,
        "padding": [[side, side] for side in padding],
        "count_padding": bool(getattr(module, "count_include_pad", True)),
    }


def _make_modules(torch: Any, index: int, layer: Layer, shape: tuple[int, ...]) -> list[Any]:
    """Return the PyTorch modules of a layer, without its weights.

    Args:
        torch: the package.
        index: place of the layer, for messages.
        layer: its description.
        shape: shape of its operand in Flax.
    """
    nn = torch.nn
    match layer["type"]:
        case "linear":
            return [nn.Linear(layer["in"], layer["out"], bias=layer["bias"])]
        case "conv":
            sizes = [1 + (size - 1) * step for size, step in zip(layer["kernel"], layer["dilation"], strict=True)]
            pads, before = _pads(layer, sizes, shape)
            options = {"dilation": tuple(layer["dilation"]), "groups": layer["groups"], "bias": layer["bias"]}
            kernel, strides = tuple(layer["kernel"]), tuple(layer["strides"])
            conv = nn.Conv2d(layer["in"], layer["out"], kernel, strides, padding=pads, **options)
            return [nn.ZeroPad2d(before), conv] if before else [conv]
        case "batch_norm":
            kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
            affine = layer["scale"] or layer["bias"]
            return [kind(layer["size"], eps=layer["epsilon"], momentum=1 - layer["momentum"], affine=affine)]
        case "dropout":
            return [nn.Dropout(layer["rate"])]
        case "site":
            return []
        case "activation":
            return [_make_activation(nn, layer["name"])]
        case "flatten":
            return [nn.Flatten()]
        case "log_softmax":
            return [nn.LogSoftmax(dim=1)]
        case "add_channel_axis":
            return [nn.Unflatten(1, (1, shape[1]))]
        case "adaptive_avg_pool":
            return [nn.AdaptiveAvgPool2d(tuple(layer["size"]))]
        case kind:
            pads, before = _pads(layer, layer["window"], shape)
            require(not before, f"layer {index}: padding of a pool that is larger on one side has no counterpart")
            options = {} if kind == "max_pool" else {"count_include_pad": layer["count_padding"]}
            pool = {"max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}[kind]
            return [pool(tuple(layer["window"]), tuple(layer["strides"]), padding=pads, **options)]


def _pads(layer: Layer, sizes: Sequence[int], shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return equal padding (height, width), or (left, right, top, bottom) for a separate layer if sides differ."""
    padding = layer["padding"]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(shape[1:3], sizes, layer["strides"], padding)
    (top, bottom), (left, right) = padding
    return ((top, left), ()) if (top, left) == (bottom, right) else ((0, 0), (left, right, top, bottom))


def _make_activation(nn: Any, name: str) -> Any:
    """Return the module of an activation function."""
    kind, _, number = name.partition(":")
    if kind in ("gelu", "gelu_exact"):
        return nn.GELU(approximate="tanh" if kind == "gelu" else "none")
    module = _activations(nn)[kind]
    return module(float(number)) if number else module()
