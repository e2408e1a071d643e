"""Describe a chain of layers by plain values, and build the chain again.

Input: an `nnx.Sequential` whose layers have known types.
Output: a dict for each layer, which JSON can hold; or the chain of such dicts, with weights of 0.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, finite_float32, require, require_shape
from jaxablate._typing import Images
from jaxablate.models._mlp import ACTIVATIONS, MLP, WITH_NUMBER, flatten_images, get_activation
from jaxablate.models._sites import Site

Layer = dict[str, Any]
WEIGHTS = ("kernel", "bias", "scale", "mean", "var")
POOLS = {"max_pool": nnx.max_pool, "avg_pool": nnx.avg_pool}


def add_channel_axis(images: Images) -> Images:
    """Return images [example, height, width] as [example, height, width, 1]."""
    return images[..., None]


def adaptive_avg_pool(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Average images [example, height, width, channel] over equal windows, so that `size` (height, width) is left.

    Raises:
        InputError: if no windows of equal size give this size.
    """
    before = images.shape[1:3]
    require(
        all(side % number == 0 for side, number in zip(before, size, strict=True)),
        f"images: adaptive pooling to {size} needs a height and a width that these numbers divide, got {before}; pass "
        "images of such a size",
    )
    window = (before[0] // size[0], before[1] // size[1])
    return nnx.avg_pool(images, window, window)


FUNCTIONS = {"flatten": flatten_images, "add_channel_axis": add_channel_axis, "log_softmax": jax.nn.log_softmax}


def is_chain(model: object) -> TypeGuard[nnx.Sequential]:
    """Return True if a model is an `nnx.Sequential` and no subclass has replaced its call."""
    return isinstance(model, nnx.Sequential) and type(model).__call__ is nnx.Sequential.__call__


def flatten_layers(layers: Sequence[Callable]) -> Iterator[Callable]:
    """Yield the layers of a sequential; an `nnx.Sequential` among them is replaced by its layers."""
    for layer in layers:
        if is_chain(layer):
            yield from flatten_layers(layer.layers)
        else:
            yield layer


def layers_of(model: MLP | nnx.Sequential) -> list[Callable]:
    """Return the layers of a network in the order in which they are applied."""
    if not isinstance(model, MLP):
        return list(flatten_layers(model.layers))
    layers: list[Callable] = [flatten_images]
    for stage in model.stages:
        layers.append(stage.linear)
        layers += [] if stage.batch_norm is None else [stage.batch_norm]
        layers += [] if stage.activation is None else [get_activation(stage.activation)]
        layers += [] if stage.dropout is None else [stage.dropout]
    return layers


def describe_layer(layer: Any) -> Layer | None:
    """Return the type and the options of a layer; None for a layer of an unknown type."""
    if isinstance(layer, nnx.Module) and not _computes_as_usual(layer):
        return None
    if type(layer) is nnx.Linear:  # a subclass may compute something else
        inputs, outputs = layer.kernel.shape
        return {"type": "linear", "in": inputs, "out": outputs, "bias": layer.bias is not None}
    if type(layer) is nnx.Conv:
        return _describe_conv(layer)
    if type(layer) is nnx.BatchNorm:
        known = layer.axis == -1 and layer.axis_name is None
        scale, bias = layer.scale is not None, layer.bias is not None
        options = {"epsilon": layer.epsilon, "momentum": layer.momentum, "scale": scale, "bias": bias}
        return {"type": "batch_norm", "size": layer.mean.shape[0], **options} if known else None
    if type(layer) is nnx.Dropout:
        return {"type": "dropout", "rate": float(layer.rate)} if layer.broadcast_dims == () else None
    if type(layer) is Site:
        return {"type": "site", "name": layer.name, "axis": layer.axis, "reduce": layer.reduce}
    return _describe_function(layer)


COMPUTING = ("dtype", "precision", "dot_general", "conv_general_dilated", "promote_dtype", "preferred_element_type")
"""Attributes of Flax's layers that change what a layer computes from its weights."""


# A description has shapes and options only. A layer with another product, dtype or promotion would be built again as a
# usual one and compute something else, so it is compared with a usual layer of its type, attribute by attribute.
@functools.cache
def _usual_layers() -> dict[type, nnx.Module]:
    rngs = nnx.Rngs(0)
    return {
        nnx.Linear: nnx.Linear(1, 1, rngs=rngs),
        nnx.Conv: nnx.Conv(1, 1, (1, 1), rngs=rngs),
        nnx.BatchNorm: nnx.BatchNorm(1, rngs=rngs),
    }


def _computes_as_usual(layer: nnx.Module) -> bool:
    """Return False for a layer that computes in another precision, or with a product of its own."""
    usual = _usual_layers().get(type(layer))
    values = {name: getattr(layer, name, None) for name in COMPUTING}
    if values["dtype"] is not None and jnp.dtype(values["dtype"]) == jnp.float32:
        values["dtype"] = None
    return usual is None or all(value is getattr(usual, name, None) for name, value in values.items())


def _describe_conv(layer: nnx.Conv) -> Layer | None:
    rank = layer.kernel.ndim - 2
    padding = layer.padding
    if rank != 2 or layer.mask is not None or np.max(_numbers(layer.input_dilation, 2)) > 1:
        return None
    if not isinstance(padding, str):
        padding = [[side, side] if isinstance(side, int) else list(side) for side in _numbers(padding, 2)]
    elif padding not in ("SAME", "VALID"):
        return None
    height, width, inputs, outputs = layer.kernel.shape
    return {
        "type": "conv",
        "in": inputs * layer.feature_group_count,
        "out": outputs,
        "kernel": [height, width],
        "strides": _numbers(layer.strides, 2),
        "padding": padding,
        "dilation": _numbers(layer.kernel_dilation, 2),
        "groups": layer.feature_group_count,
        "bias": layer.bias is not None,
    }


def _numbers(value: Any, rank: int) -> list:
    """Return an option of Flax that is None, one number or a sequence as a list with one entry for each axis."""
    return [1] * rank if value is None else [value] * rank if isinstance(value, int) else list(value)


def _describe_function(layer: Callable) -> Layer | None:
    """Return the description of a function, which may be a `functools.partial`; None if it is not known."""
    for kind, function in FUNCTIONS.items():
        if layer is function:
            return {"type": kind}
    for name, function in (*ACTIVATIONS.items(), ("tanh", nnx.tanh)):
        if _parts(layer) == _parts(function):
            return {"type": "activation", "name": name}
    function, args, options = _parts(layer)
    for name in WITH_NUMBER:
        if function is ACTIVATIONS[name] and not args and len(options) == 1:
            return {"type": "activation", "name": f"{name}:{float(options[0][1])!r}"}
    if function is adaptive_avg_pool:
        return {"type": "adaptive_avg_pool", "size": list(dict(options)["size"])}
    for kind, pool in POOLS.items():
        if function is pool:
            keys = ("window_shape", "strides", "padding", "count_include_pad")
            given = dict(zip(keys, args, strict=False)) | dict(options)
            window, padding = list(given["window_shape"]), given.get("padding", "VALID")
            return {
                "type": kind,
                "window": window,
                "strides": _numbers(given.get("strides"), len(window)),
                "padding": padding if isinstance(padding, str) else [list(pair) for pair in padding],
                "count_padding": bool(given.get("count_include_pad", True)),
            }
    return None


def _parts(layer: Callable) -> tuple:
    """Return a function, the arguments that a `functools.partial` fixes, and its options in order."""
    if isinstance(layer, functools.partial):
        return layer.func, layer.args, tuple(sorted(layer.keywords.items()))
    return layer, (), ()


def build_layer(layer: Layer) -> Callable:
    """Return the layer of a description, with weights of 0, in evaluation mode."""
    zeros, rngs = nnx.initializers.zeros_init(), nnx.Rngs(0)
    match layer["type"]:
        case "linear":
            return nnx.Linear(layer["in"], layer["out"], use_bias=layer["bias"], kernel_init=zeros, rngs=rngs)
        case "conv":
            return nnx.Conv(
                layer["in"],
                layer["out"],
                tuple(layer["kernel"]),
                tuple(layer["strides"]),
                padding=_hashable(layer["padding"]),
                kernel_dilation=tuple(layer["dilation"]),
                feature_group_count=layer["groups"],
                use_bias=layer["bias"],
                kernel_init=zeros,
                rngs=rngs,
            )
        case "batch_norm":
            return nnx.BatchNorm(
                layer["size"],
                use_running_average=True,
                momentum=layer["momentum"],
                epsilon=layer["epsilon"],
                use_bias=layer["bias"],
                use_scale=layer["scale"],
                rngs=rngs,
            )
        case "dropout":
            return nnx.Dropout(layer["rate"], deterministic=True)
        case "site":
            return Site(layer["name"], axis=layer["axis"], reduce=layer["reduce"])
        case "activation":
            return get_activation(layer["name"])
        case "adaptive_avg_pool":
            return functools.partial(adaptive_avg_pool, size=tuple(layer["size"]))
        case "max_pool" | "avg_pool":
            options = {"count_include_pad": layer["count_padding"]} if layer["type"] == "avg_pool" else {}
            return functools.partial(
                POOLS[layer["type"]],
                window_shape=tuple(layer["window"]),
                strides=tuple(layer["strides"]),
                padding=_hashable(layer["padding"]),
                **options,
            )
        case kind:
            return FUNCTIONS[kind]


def _hashable(padding: str | Sequence[Sequence[int]]) -> Any:
    """Return padding as Flax takes it; lists come from JSON."""
    return padding if isinstance(padding, str) else tuple(map(tuple, padding))


def describe_chain(layers: Sequence[Callable], shape: tuple[int, ...] | None = None) -> list[Layer]:
    """Describe the layers of a network.

    Args:
        layers: the layers.
        shape: shape of images [example, ...]. A function that is not known is then applied to numbers; one that only
            flattens them is described as such. None describes known functions only.

    Raises:
        InputError: for a layer that is not known.
    """
    described, outputs = [], None if shape is None else jnp.zeros((1, *shape[1:]))
    for index, layer in enumerate(layers):
        description = describe_layer(layer)
        if description is None and outputs is not None and not isinstance(layer, nnx.Module):
            # negative numbers too, which an activation function would change
            numbers = jnp.arange(outputs.size, dtype=jnp.float32).reshape(outputs.shape) - outputs.size // 2
            result = layer(numbers)
            if result.ndim == 2 and bool(jnp.array_equal(result, flatten_images(numbers))):
                description = {"type": "flatten"}
        if description is None:
            name = getattr(layer, "__name__", type(layer).__name__)
            if isinstance(layer, nnx.Module) and not _computes_as_usual(layer):
                raise InputError(
                    f"layer {index} ({name}): it computes in another precision or by a product of its own, which "
                    "cannot be written down; make it with Flax's defaults"
                )
            raise InputError(
                f"layer {index} ({name}): expected a linear map, a 2-D convolution, a batch norm, dropout, a site, a "
                "function of ja.models.ACTIVATIONS, functools.partial(nnx.max_pool, window_shape=...) or its avg_pool, "
                "or ja.models.flatten_images; no other layer can be written down"
            )
        described.append(description)
        outputs = None if outputs is None else layer(outputs)
    return described


def chain_tensors(layers: Sequence[Callable]) -> dict[str, np.ndarray]:
    """Return copies of the weights of a chain by name: `layers.0.kernel`, `layers.0.bias`, ..."""
    return {
        f"layers.{index}.{name}": np.array(variable[...])
        for index, layer in enumerate(layers)
        for name, variable in _weights(layer)
    }


def pop_chain(tensors: dict[str, np.ndarray], description: Sequence[Layer]) -> nnx.Sequential:
    """Build a chain from its description and tensors with the names of `chain_tensors`, and remove these tensors.

    Raises:
        KeyError: for a weight that is missing.
        InputError: for a weight of another shape, or a description that is not one of `describe_chain`.
    """
    model = build_chain(description)
    for index, layer in enumerate(model.layers):
        for name, variable in _weights(layer):
            array = tensors.pop(f"layers.{index}.{name}")
            require_shape(f"layer {index} {name}", array, variable.shape, "number")
            setattr(layer, name, variable.replace(jnp.asarray(finite_float32(f"layer {index} {name}", array))))
    return model


def _weights(layer: Callable) -> list[tuple[str, nnx.Variable]]:
    """Return the parameters and running statistics of a layer by name; [] for a function."""
    values = [(name, getattr(layer, name, None)) for name in WEIGHTS]
    return [(name, value) for name, value in values if isinstance(value, nnx.Variable)]


def build_chain(description: Sequence[Layer]) -> nnx.Sequential:
    """Return the chain of a description, with weights of 0, in evaluation mode.

    Raises:
        InputError: for a description that is not one of `describe_chain`.
    """
    try:
        return nnx.Sequential(*map(build_layer, description))
    except (KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"layers: expected a description of layers, got another ({error!r})") from None
