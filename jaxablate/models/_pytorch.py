"""Load the weights of a PyTorch network.

Input: the file of a state dict, and the same architecture as an `nnx.Sequential` (not needed for an MLP).
Output: a network with these weights in Flax's layout.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import (
    InputError,
    describe_value,
    finite_float32,
    require,
    require_known,
    require_type,
)
from jaxablate._typing import Images
from jaxablate.models._chain import describe_layer, flatten_layers, layers_of
from jaxablate.models._mlp import (
    ACTIVATIONS,
    DEFAULTS,
    MLP,
    flatten_images,
    from_arrays,
    get_activation,
    in_evaluation_mode,
    set_image_shape,
)
from jaxablate.models._parametrizations import compute_parametrized
from jaxablate.models._sites import Site
from jaxablate.models._tensors import (
    AssumptionWarning,
    Tensors,
    detached,
    find_state_dict,
    read_tensors,
    require_plain,
    to_numpy,
)

# PyTorch and Flax store the same numbers in another order:
#
#   |                     | PyTorch                  | Flax                     |
#   | linear map          | [out, in]                | [in, out]                |
#   | convolution         | [out, in, height, width] | [height, width, in, out] |
#   | feature map         | [channel, height, width] | [height, width, channel] |
#
# So each kernel is transposed. In addition, a layer that flattens a feature map numbers its features in the framework's
# order; the next linear map then needs its inputs permuted. `feature_orders` finds that permutation by flattening a
# map whose values are PyTorch's feature numbers.
WEIGHTS = {
    nnx.Linear: {"weight": "kernel", "bias": "bias"},
    nnx.Conv: {"weight": "kernel", "bias": "bias"},
    nnx.BatchNorm: {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
}
"""For each type of layer, PyTorch's names of its weights and Flax's names."""
PARTS = tuple(WEIGHTS[nnx.BatchNorm])
CHANNELS = (1, 3, 4)  # numbers of channels of grey and of colour images
MAX_STEPS = 10_000  # of the search for the order of modules
TOLERANCE = 1e-4  # relative to the range of an output over the examples
NOT_FLOAT32 = 1e-2  # relative to the largest output; bfloat16 and TF32 differ by less
ROUNDING = 1e-5  # relative to the largest output; float32 sums in another order differ by less
IN_PYTORCH = {"gelu": "gelu_exact", "gelu_tanh": "gelu"}
"""Names of activation functions that differ in PyTorch."""
TORCH_ACTIVATIONS = (*(name for name in ACTIVATIONS if name != "gelu_exact"), "gelu_tanh")
ELEMENTWISE = {
    jax.nn.sigmoid, jnp.tanh, nnx.tanh, jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.elu, jax.nn.leaky_relu,
    jax.nn.softplus,
}  # fmt: skip
"""Functions that act on each neuron separately."""


def load_pytorch(
    source: str | Path | Mapping[str, Any],
    model: nnx.Sequential | None = None,
    *,
    activation: str | None = None,
    images: Images | None = None,
    layers: Sequence[str] | None = None,
    reference: tuple[Any, Any] | None = None,
    state_key: str | None = None,
) -> MLP | nnx.Sequential:
    """Read a network from a PyTorch state dict, in a file or in memory.

    A state dict has names and weights, but not the order in which the layers are applied. The order follows from the
    shapes, and from the numbers in names that differ only in numbers. If both leave several orders open, the state dict
    is refused, and `layers` settles it. `from_pytorch` reads a module in memory, which leaves nothing open.

    Args:
        source: path of `.safetensors`, or of `.pt`, `.pth` or `.ckpt` as `torch.save(model.state_dict(), path)` writes
            it since PyTorch 1.6; or a state dict. A checkpoint that has one state dict among its values is read too.
            Reading `.pt` needs PyTorch. The file may take at most 4 GiB, also unpacked. Masks of
            `torch.nn.utils.prune`, weight norms and spectral norms are computed.
        model: an `nnx.Sequential` of the same architecture, with `nnx.Linear`, `nnx.Conv` (2-D) and
            `nnx.BatchNorm`; None for an `MLP` of the linear maps.
        activation: activation function of the hidden layers of that `MLP`, as in `MLP`; a state dict does not contain
            it. "gelu" is PyTorch's `nn.GELU()`, the exact form; "gelu_tanh" is its approximation.
        images: [example, height, width, channel]; only the shape matters. Needed if a feature map of several channels
            is flattened before a linear map, because PyTorch flattens the channel first and Flax last.
        layers: names of the modules of the state dict in the order in which the network applies them, for example
            ("layer_one", "layer_two", "output"). Modules without a place in it are left out.
        reference: (inputs, outputs), with inputs as the loaded network takes them, and the outputs of the network in
            PyTorch for these inputs [example, ...]. The loaded network must reproduce them.
        state_key: key of the state dict in a checkpoint that has several, for example "model" and "ema".

    Returns:
        The network in evaluation mode, with float32 weights: an `MLP`, or a copy of `model`. A bias that the state dict
        lacks becomes 0, and a scale of a batch norm that it lacks becomes 1.

    Warns:
        AssumptionWarning: if one entry of a checkpoint was read, and another may hold a network too. Without a
            reference, if the state dict leaves something open: the order of the layers, and for an `MLP` also the
            activation function and everything without weights. Only a reference shows whether the options of the
            layers of `model` are right: padding, pooling, `epsilon` of a batch norm.

    Raises:
        InputError: for a file that has no state dict, or several and no `state_key`; for weights that do not fit the
            model's layers in number, type or shape; for several possible orders of the layers; for a missing
            activation; for missing images, or images whose shape looks like [example, channel, height, width]; for an
            unknown parametrization; or for other outputs than the reference. A pickled module is refused too, because
            reading it runs code.

    Example:
        >>> from safetensors.numpy import save_file
        >>> shapes = {"fc1.weight": (3, 4), "fc1.bias": (3,), "fc2.weight": (2, 3), "fc2.bias": (2,)}
        >>> tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        >>> save_file(tensors, tmp_path / "pytorch.safetensors")
        >>> inputs = np.array([[0.5, 0, 0, 0], [0, -1, 0, 0]], np.float32)
        >>> outputs = 3 * np.tanh(inputs.sum(axis=1, keepdims=True) + 1) + np.ones(2)  # as PyTorch computes them
        >>> path, reference = tmp_path / "pytorch.safetensors", (inputs, outputs)
        >>> model = ja.models.load_pytorch(path, activation="tanh", reference=reference)
        >>> model.hidden, model.activation
        ((3,), 'tanh')
    """
    require(
        model is None or isinstance(model, nnx.Sequential),
        f"model: expected an nnx.Sequential or None, got {type(model).__name__}",
    )
    shape = None if images is None else np.shape(images)
    network, names = read_state_dict(
        source, model, activation=activation, shape=shape, layers=layers, state_key=state_key,
        is_checked=reference is not None,
    )  # fmt: skip
    if reference is not None:
        require(
            isinstance(reference, tuple | list) and len(reference) == 2,
            f"reference: expected a pair (inputs, outputs), got {describe_value(reference)}",
        )
        require_reference(_name_of(source), network, *reference)
    else:
        _warn_of_assumptions(_name_of(source), network, names, shape)
    return network


def _name_of(source: str | Path | Mapping[str, Any]) -> str:
    """Return the name of a source in messages."""
    return f"PyTorch file {source}" if isinstance(source, str | Path) else "PyTorch state dict"


def read_state_dict(
    source: str | Path | Mapping[str, Any],
    model: nnx.Sequential | None,
    *,
    activation: str | None,
    shape: tuple[int, ...] | None,
    layers: Sequence[str] | None,
    state_key: str | None,
    is_checked: bool,
) -> tuple[MLP | nnx.Sequential, dict[str, list[str]]]:
    """Return the network of a state dict, and the names of its modules in the order of the layers with their parts.

    Args:
        source, model, activation, layers, state_key: as in `load_pytorch`.
        shape: shape of the images, or None.
        is_checked: True if a reference will be compared.
    """
    what = _name_of(source)
    if isinstance(source, str | Path):
        tensors = read_tensors(Path(source), state_key)
    else:
        require(
            isinstance(source, Mapping),
            f"source: expected a path or a state dict, got {type(source).__name__}; ja.from_pytorch takes modules",
        )
        state = find_state_dict(what, source, state_key)
        tensors = {name: to_numpy(require_plain(what, name, tensor)) for name, tensor in state.items()}
    kept = tensors
    if isinstance(layers, list | tuple) and all(_entries_of(name, tensors) for name in layers):
        kept = {entry: tensors[entry] for name in layers for entry in _entries_of(name, tensors)} or tensors
    modules = group_modules(what, kept, is_checked=is_checked)
    if model is None:
        network, names = _mlp(what, modules, activation, shape, layers)
        if not is_checked:
            _require_activations_between(what, names)
    else:
        network, names = set_weights(what, modules, nnx.clone(model), shape, layers)
        network.eval()
    used = {entry for name in names for entry in _entries_of(name, tensors)}
    left_out = [entry for entry in tensors if entry not in used]
    if left_out and not is_checked:
        listed = ", ".join(left_out[:8]) + f" and {len(left_out) - 8} more" * (len(left_out) > 8)
        warnings.warn(
            f"{what}: layers leaves out {listed}; multiply a mask among them into its weights before you save them; "
            "reference=(inputs, outputs) checks the result",
            AssumptionWarning,
            stacklevel=3,
        )
    return network, {name: list(modules[name]) for name in names}


def _entries_of(module: Any, tensors: Iterable[str]) -> list[str]:
    """Return the names of the tensors of a module."""
    return [name for name in tensors if name.startswith(f"{module}.") or (module == "" and "." not in name)]


def _require_activations_between(what: str, names: Sequence[str]) -> None:
    """Raise if numbers in the names of modules say that only some of them have a module between them.

    In an `nn.Sequential`, 0, 1, 3 have none between 0 and 1. An `nn.ModuleList` has 0, 1, 2, and the activation
    functions are in the code.
    """
    parents, _, numbers = zip(*(name.rpartition(".") for name in names), strict=True)
    if len(set(parents)) > 1 or not all(number.isdecimal() and len(number) < 10 for number in numbers):
        return
    gaps = np.diff([int(number) for number in numbers])
    if (gaps == 1).any() and (gaps > 1).any():
        first = int(np.argmax(gaps == 1))
        raise InputError(
            f"{what}: by their names, no activation function is between {names[first]!r} and {names[first + 1]!r}, but "
            "between others; convert the module by ja.from_pytorch, or pass a model of the same architecture"
        )


def _warn_of_assumptions(
    what: str, network: MLP | nnx.Sequential, names: Iterable[str], shape: tuple[int, ...] | None
) -> None:
    """Warn of what a state dict does not say, unless the shapes of the layers of a given model settle it."""
    check = "check it by reference=(inputs, outputs), or convert the module by ja.from_pytorch"
    if isinstance(network, MLP):
        order = "; images flattened with their channels last (images= reorders them)"
        if shape is not None:
            how = "channel by channel" if len(shape) == 4 else "with their axes in this order"
            order = f"; examples of shape {shape[1:]} flattened {how}" if len(shape) > 2 else ""
        warnings.warn(
            f"{what}: assumed {', '.join(names)} in this order with {in_words(network.activation)} between them, and "
            f"nothing else{order}; {check}",
            AssumptionWarning,
            stacklevel=3,
        )
        return
    shapes = [
        layer.num_features if isinstance(layer, nnx.BatchNorm) else layer.kernel.shape
        for layer in flatten_layers(network.layers)
        if isinstance(layer, nnx.Linear | nnx.Conv | nnx.BatchNorm)
    ]
    if len(set(shapes)) < len(shapes):
        warnings.warn(
            f"{what}: assumed {', '.join(names)} in this order, although shapes allow another; {check}",
            AssumptionWarning,
            stacklevel=3,
        )


def in_words(activation: str) -> str:
    """Return an activation function with PyTorch's name and its parameters, such as "leaky_relu (slope 0.01)"."""
    name = {ours: theirs for theirs, ours in IN_PYTORCH.items()}.get(activation, activation)
    return f"{name} ({DEFAULTS[activation]})" if activation in DEFAULTS else name


def require_reference(what: str, network: Any, inputs: Any, outputs: Any) -> None:
    """Raise `InputError` unless a network reproduces outputs [example, ...], as in `require_close`.

    An `MLP` that was not made for images of some shape takes examples of the inputs' shape from then on.

    Args:
        what: names the network's source in messages.
        network: the network.
        inputs: [example, ...], as the network takes them.
        outputs: its outputs in the framework that it comes from.
    """
    inputs, outputs = (
        finite_float32(f"reference {name}", detached(values))
        for name, values in (("inputs", inputs), ("outputs", outputs))
    )
    require(
        inputs.ndim >= 2 and inputs.size > 0,
        f"reference: expected inputs [example, ...] with at least one example, got shape {inputs.shape}",
    )
    try:
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(in_evaluation_mode(network)(jnp.asarray(inputs)))
    except Exception as error:  # the network may have any operations
        reason = str(error).strip().split("\n")[0][:150]
        raise InputError(f"reference: the {what} does not take inputs of shape {inputs.shape} ({reason})") from None
    require(
        ours.shape == outputs.shape,
        f"reference: expected outputs {ours.shape} for these inputs, got {outputs.shape}; give the logits of "
        "PyTorch for the same inputs",
    )
    require(bool(np.ptp(inputs) > 0), "reference: expected inputs that differ, got equal numbers; give real examples")
    spread = float((np.ptp(outputs, axis=0) if len(outputs) > 1 else np.abs(outputs)).max())
    require(
        spread > 0,
        "reference: expected outputs that differ between examples, got constant ones; give other inputs",
    )
    if not _are_close(ours, outputs, spread):
        for function in (jax.nn.log_softmax, jax.nn.softmax, jax.nn.sigmoid):
            name = function.__name__
            require(
                not _are_close(np.asarray(function(jnp.asarray(ours))), outputs, spread),
                f"reference: its outputs are the {name} of what the {what} gives; give the outputs before the {name}",
            )
    remedy = (
        "check activation, layers, the layout of the images, and that inputs and outputs have one order of examples"
    )
    if np.abs(ours - outputs).max() < NOT_FLOAT32 * np.abs(outputs).max():
        remedy += ", or compute the reference in float32, without TF32 and autocast"
    require_close(f"reference: the {what}", ours, outputs, spread, remedy)
    layers = layers_of(in_evaluation_mode(network))
    swapped = [_other_gelu(layer) for layer in layers]
    if swapped != layers:  # the two forms of GELU differ by less than what is tolerated
        with jax.default_matmul_precision("highest"):
            swapped_outputs = functools.reduce(lambda values, layer: layer(values), swapped, jnp.asarray(inputs))
        difference, other = (float(np.abs(each - outputs).max()) for each in (ours, np.asarray(swapped_outputs)))
        require(
            10 * other >= difference,
            f"reference: the outputs of the {what} differ by up to {difference:.2g}, and by {other:.2g} with the other "
            "form of GELU, so use the other one of 'gelu', which is nn.GELU(), and 'gelu_tanh', which is "
            "nn.GELU(approximate='tanh')",
        )
    if isinstance(network, MLP) and network.image_shape is None:
        set_image_shape(network, inputs.shape, flat=True)


def _other_gelu(layer: Callable) -> Callable:
    """Return the approximation of GELU for the exact form and vice versa, and any other layer unchanged."""
    swapped = {"gelu": "gelu_exact", "gelu_exact": "gelu"}
    described = describe_layer(layer) or {}
    is_gelu = described.get("type") == "activation" and described["name"] in swapped
    return get_activation(swapped[described["name"]]) if is_gelu else layer


def require_close(subject: str, outputs: np.ndarray, expected: np.ndarray, spread: float, remedy: str) -> None:
    """Raise `InputError` unless outputs equal the expected ones, up to 1e-4 of `spread` and 1e-5 of the largest one.

    Args:
        subject: starts the message.
        outputs, expected: [example, ...].
        spread: range of an output over the examples: outputs may have a large constant part.
        remedy: ends the message.
    """
    difference, size = np.abs(outputs - expected).max(initial=0), np.abs(expected).max(initial=0)
    require(
        _are_close(outputs, expected, spread),
        f"{subject} gives other outputs, by up to {difference:.3g} with the largest output at {size:.3g}; {remedy}",
    )


def _are_close(outputs: np.ndarray, expected: np.ndarray, spread: float) -> bool:
    """Return True if outputs equal the expected ones, as in `require_close`."""
    difference, size = np.abs(outputs - expected).max(initial=0), np.abs(expected).max(initial=0)
    return bool(difference <= TOLERANCE * spread + ROUNDING * size)


def _numbered(name: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Return a name without its numbers, and a sort key of the numbers: ("layers.#", ((1, "2"),)) for "layers.2".

    A number is compared by its length and then its digits: Python refuses to convert more than 4,300 digits.
    """
    numbers = re.findall(r"0*(\d+)", name)
    return re.sub(r"\d+", "#", name), tuple((len(number), number) for number in numbers)


def _settle_order(
    what: str,
    modules: dict[str, Tensors],
    layers: Sequence[str] | None,
    fits: Callable[[int, Tensors | None, Tensors], bool],
) -> dict[str, Tensors]:
    """Return the modules in the order in which the network applies them.

    Args:
        what: names the source in messages.
        modules: the modules in any order.
        layers: the user's order, or None.
        fits: function of (place, module before or None, module): True if the module can stand there.

    Raises:
        InputError: if several orders are possible, or if `layers` does not name the modules.
    """
    if layers is not None:
        require_type("layers", layers, str | list | tuple, "names")
        names = [layers] if isinstance(layers, str) else list(layers)
        require(
            len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(modules),
            f"layers: expected modules of the {what}, each once ({', '.join(modules)}), got "
            f"{', '.join(map(str, names)) or 'none'}",
        )
        return {name: modules[name] for name in names}
    orders: list[list[str]] = []
    steps = 0

    # Depth first, since a second order is enough to refuse. Modules whose names differ only in their numbers keep the
    # order of the numbers, so only the first that is left of each kind of name can follow.
    def extend(order: list[str], remaining: dict[str, list[str]]) -> None:
        nonlocal steps
        steps += 1
        if len(orders) > 1 or steps > MAX_STEPS:
            return
        if not any(remaining.values()):
            orders.append(order)
        for kind, names in remaining.items():
            if names and fits(len(order), modules[order[-1]] if order else None, modules[names[0]]):
                extend([*order, names[0]], {**remaining, kind: names[1:]})

    kinds: dict[str, list[str]] = {}
    for name in sorted(modules, key=lambda name: _numbered(name)[1]):
        kinds.setdefault(_numbered(name)[0], []).append(name)
    extend([], kinds)
    if not orders and steps <= MAX_STEPS:  # the numbers contradict the shapes, which decide alone then
        extend([], {name: [name] for name in modules})
    if not orders and steps <= MAX_STEPS:
        return modules  # no order fits; the caller says why
    # A state dict has the order of definition, unless something has sorted it. Against the numbers, it leaves the order
    # open.
    in_file = list(modules)
    if in_file not in (sorted(in_file), *orders) and all(
        fits(i, modules[in_file[i - 1]] if i else None, modules[name]) for i, name in enumerate(in_file)
    ):
        orders.append(in_file)
    require(
        len(orders) == 1 and steps <= MAX_STEPS,
        f"{what}: the names and shapes of its modules leave their order open"
        + (f", for example {' or '.join(', '.join(order) for order in orders)}" if orders else "")
        + "; give the order in which the network applies them with layers (--layers)",
    )
    return {name: modules[name] for name in orders[0]}


def set_weights(
    what: str,
    modules: dict[str, Tensors],
    model: nnx.Sequential,
    image_shape: tuple[int, ...] | None,
    names: Sequence[str] | None,
) -> tuple[nnx.Sequential, list[str]]:
    """Set the weights of a model in place; return it and the names of the modules in the order of its layers.

    Args:
        what: names the source in messages.
        modules: the modules of the file.
        model: the model.
        image_shape: [example, height, width, channel], or None.
        names: the user's order of the modules, or None.
    """
    layers = list(flatten_layers(model.layers))
    for index, layer in enumerate(layers):
        require(
            not (isinstance(layer, nnx.Conv) and layer.padding == "SAME" and np.max(layer.strides or 1) > 1),
            f"layer {index} (Conv): padding 'SAME' with strides pads other sides than PyTorch's numbers do; write the "
            "numbers, for example padding=((1, 1), (1, 1)) for PyTorch's padding=1",
        )
    weighted = [index for index, layer in enumerate(layers) if _has_weights(layer)]
    for index in weighted:
        require(
            _type_of(layers[index]) is not None,
            f"layer {index} ({type(layers[index]).__name__}): expected no weights, or an nnx.Linear, a 2-D nnx.Conv or "
            "an nnx.BatchNorm; weights of other layers cannot be read from PyTorch",
        )
    if image_shape is None:
        _require_nothing_flattened(layers)
    orders = {} if image_shape is None else feature_orders(model, image_shape)
    require(
        len(modules if names is None else names) == len(weighted),
        f"{what}: expected {len(weighted)} modules, one for each layer with weights, got {len(modules)} "
        f"({', '.join(modules)}); name the modules of the network in order by layers (--layers), without the others",
    )
    modules = _settle_order(
        what, modules, names, lambda place, _, tensors: _has_shapes_of(layers[weighted[place]], tensors)
    )
    by_layer: dict[int, tuple[str, Tensors]] = {}
    for index, (name, tensors) in zip(weighted, modules.items(), strict=True):
        # one object at two places gets one set of weights
        first_name, first = by_layer.setdefault(id(layers[index]), (name, tensors))
        require(
            first.keys() == tensors.keys() and all(np.array_equal(first[part], tensors[part]) for part in first),
            f"layer {index} ({type(layers[index]).__name__}): the model has the same object in another place, but the "
            f"weights of {first_name!r} and {name!r} differ; give the model a layer of its own in each place",
        )
        label = f"layer {index} ({type(layers[index]).__name__}) from module {name!r} of the {what}"
        _set_layer(layers[index], tensors, orders.get(index), label)
    return model, list(modules)


def group_modules(what: str, tensors: Tensors, *, is_checked: bool = True) -> dict[str, Tensors]:
    """Group the tensors by module: "conv1.weight" becomes modules["conv1"]["weight"], as float32.

    Raises:
        InputError: for tensors that do not belong to a linear map, a convolution or a batch norm.
    """
    floats = {}
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        require(
            jnp.issubdtype(tensor.dtype, jnp.floating) or (tensor.dtype == bool and name.endswith("_mask")),
            f"{what}: expected floating numbers, got dtype {tensor.dtype} for {name!r}; leave this entry out, or save "
            "the state dict of the network itself",
        )
        require(tensor.size > 0, f"{what}: expected numbers, got shape {tensor.shape} for {name!r}")
        floats[name] = finite_float32(f"{what}: {name}", tensor)
    modules: dict[str, Tensors] = {}
    for name, tensor in compute_parametrized(what, floats, is_checked=is_checked).items():
        module, _, part = name.rpartition(".")
        require(
            part in PARTS,
            f"{what}: expected names that end in {', '.join(PARTS)}, got {name!r}; only linear maps, "
            "convolutions and batch norms can be read; leave out what the network does not use, or modules by layers "
            "(--layers)",
        )
        modules.setdefault(module, {})[part] = tensor
    for module, parts in modules.items():
        require(
            _type_in_file(parts) is not None,
            f"{what}: expected a weight [out, in] or [out, in, height, width], or a batch norm with its "
            "running_mean and running_var, got "
            + ", ".join(f"{part} {tensor.shape}" for part, tensor in parts.items())
            + f" for module {module!r}; leave it out by layers (--layers) if it is no layer, else write the network in "
            "JAX with its weights",
        )
    return modules


def _type_in_file(parts: Tensors) -> type | None:
    """Return the type of layer that has these tensors; None if no known type has them."""
    if "running_mean" in parts or "running_var" in parts:
        return nnx.BatchNorm if "running_mean" in parts and "running_var" in parts else None
    return {2: nnx.Linear, 4: nnx.Conv}.get(parts["weight"].ndim) if "weight" in parts else None


def _type_of(layer: Callable) -> type | None:
    """Return the type of a layer whose weights can be set; None for other layers."""
    if isinstance(layer, nnx.Conv) and layer.kernel.ndim != 4:
        return None
    return next((known for known in WEIGHTS if isinstance(layer, known)), None)


def _has_shapes_of(layer: Any, tensors: Tensors) -> bool:
    """Return True if the tensors have the type and the shapes of a layer."""
    kind = _type_of(layer)
    return (
        kind is not None
        and kind is _type_in_file(tensors)
        and all(
            variable is not None and tensors[part].shape == _shape_in_file(variable)
            for part, variable in (
                (part, getattr(layer, name)) for part, name in WEIGHTS[kind].items() if part in tensors
            )
        )
    )


def _shape_in_file(variable: Any) -> tuple[int, ...]:
    """Return PyTorch's shape of a weight: [out, in, height, width] for [height, width, in, out], [out] for [out]."""
    return (*variable.shape[-2:][::-1], *variable.shape[:-2])


def _has_weights(layer: Callable) -> bool:
    """Return True for a layer with parameters or running statistics."""
    return isinstance(layer, nnx.Module) and len(jax.tree.leaves(nnx.state(layer, (nnx.Param, nnx.BatchStat)))) > 0


def _mlp(
    what: str,
    modules: dict[str, Tensors],
    activation: str | None,
    shape: tuple[int, ...] | None,
    names: Sequence[str] | None,
) -> tuple[MLP, list[str]]:
    """Return the `MLP` of the linear maps, and their names in order; `names` is the user's order of them."""
    for name, parts in modules.items():
        require(
            _type_in_file(parts) is nnx.Linear,
            f"{what}: expected linear maps only, got weight {parts.get('weight', np.array(0)).shape} for "
            f"module {name!r}; in Python, pass a model of the same architecture, or convert the module by from_pytorch "
            "and write it by save_model, for the commands too",
        )
    if activation is None:
        raise InputError(
            f"activation: the {what} does not name its activation function; give one of {', '.join(TORCH_ACTIVATIONS)}"
        )
    require_type("activation", activation, str, "a name")
    require_known("activation", activation.partition(":")[0], (*TORCH_ACTIVATIONS, "gelu_exact"))
    activation = IN_PYTORCH.get(activation, activation)
    get_activation(activation)
    modules = _settle_order(
        what,
        modules,
        names,
        lambda _, before, tensors: before is None or before["weight"].shape[0] == tensors["weight"].shape[1],
    )
    return mlp_of_modules(what, modules, activation, shape), list(modules)


def mlp_of_modules(what: str, modules: dict[str, Tensors], activation: str, shape: tuple[int, ...] | None) -> MLP:
    """Return the `MLP` of linear maps in order.

    Args:
        what: names the source in messages.
        modules: the linear maps.
        activation: name of the activation function in JAX.
        shape: shape of the images, or None.
    """
    weights = [parts["weight"] for parts in modules.values()]
    biases = [parts.get("bias", np.zeros(len(parts["weight"]))) for parts in modules.values()]
    if shape is not None and len(shape) == 4 and weights:
        require_channels_last(shape)
        order = _feature_order(flatten_images, shape[1:], "images")
        require(
            weights[0].shape[1] == len(order),
            f"images: expected {weights[0].shape[1]} pixels for the {what}, got shape {shape}",
        )
        weights[0] = weights[0][:, order]
    try:
        model = from_arrays([weight.T for weight in weights], biases, activation=activation)
    except InputError as error:
        raise InputError(
            f"{what}: its linear maps do not form a network ({error}); name the modules of the network in order by "
            "layers (--layers), without the others, or pass a model of the same architecture"
        ) from None
    set_image_shape(model, shape or (), flat=True)
    return model


def require_channels_last(shape: tuple[int, ...]) -> None:
    """Raise if images of this shape look like [example, channel, height, width], by few channels or by equal sides."""
    _, first, second, last = shape
    require(
        last in CHANNELS or (first not in CHANNELS and not first != second == last),
        f"images: shape {shape} looks like PyTorch's [example, channel, height, width], but images have their channels "
        "last; pass images.transpose(0, 2, 3, 1), also to the functions that evaluate the network",
    )


def _set_layer(layer: Any, tensors: Tensors, order: np.ndarray | None, label: str) -> None:
    """Set the weights of a layer in place.

    Args:
        layer: an `nnx.Linear`, `nnx.Conv` or `nnx.BatchNorm`.
        tensors: PyTorch's weights by name.
        order: for each input feature of the layer, PyTorch's number of that feature; None if they are the same.
        label: name of the layer in messages.

    Raises:
        InputError: for tensors of another type of layer, or of other shapes.
    """
    kind, file_kind = _type_of(layer), _type_in_file(tensors)
    assert kind is not None
    assert file_kind is not None
    require(
        file_kind is kind, f"{label}: expected the weights of a {kind.__name__}, got weights of a {file_kind.__name__}"
    )
    for part, name in WEIGHTS[kind].items():
        variable = getattr(layer, name)
        if variable is None:
            require(part not in tensors, f"{label}: the file has a {part}, the layer has none; add it to the layer")
            continue
        shape = _shape_in_file(variable)
        tensor = tensors.get(part, np.full(shape, float(part == "weight")))
        require(tensor.shape == shape, f"{label}: expected {part} {shape}, got {tensor.shape}")
        if order is not None and (kind is not nnx.Linear or part == "weight"):
            tensor = tensor[..., order]  # features are the last axis of a linear map, the only axis of a batch norm
        if tensor.ndim > 1:
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        setattr(layer, name, variable.replace(jnp.asarray(tensor, jnp.float32)))


def _require_nothing_flattened(layers: Sequence[Callable]) -> None:
    """Raise unless all layers before each linear map are known not to flatten feature maps."""
    unknown = None  # index of the last layer that may have flattened its input
    for index, layer in enumerate(layers):
        if isinstance(layer, nnx.Linear):
            require(
                unknown is None,
                f"images: layer {unknown} may flatten feature maps, and the inputs of layer {index} (Linear) depend on "
                "their shape; pass at least one example",
            )
        elif isinstance(layer, nnx.Conv):
            unknown = None  # a convolution outputs feature maps
        elif not isinstance(layer, Site | nnx.BatchNorm | nnx.Dropout) and layer not in ELEMENTWISE:
            unknown = index


def feature_orders(model: nnx.Sequential, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Return by its index the input order of each layer with weights that reads flattened maps, as in `_feature_order`.

    The layers are applied to one image of zeros, so that the shape before and after each layer is known.

    Args:
        model: the model, with any weights.
        shape: shape of images [example, ...].
    """
    model = nnx.clone(model)
    model.eval()
    # `order` is set while the features are flattened and no linear map has read them yet. A batch norm in between has
    # one weight for each feature, so its weights are permuted too and the order still holds for the next layer.
    outputs, order, orders = jnp.zeros((1, *shape[1:])), None, {}
    for index, layer in enumerate(flatten_layers(model.layers)):
        inputs = outputs
        try:
            outputs = layer(inputs)
        except Exception as error:  # the user's own code may raise anything
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"images: with shape {shape}, layer {index} gets {inputs.shape} and raises {type(error).__name__}: "
                f"{reason}; pass images that the model takes"
            ) from error
        if order is not None and _has_weights(layer):
            orders[index] = order
            order = None if isinstance(layer, nnx.Linear) else order
        elif order is not None:
            require(
                outputs.shape == inputs.shape,
                f"layer {index}: expected to keep the {inputs.shape[1]} flattened features up to the next linear map, "
                f"got shape {outputs.shape}",
            )
        elif inputs.ndim == 4 and not _has_weights(layer):
            keeps_channels = outputs.ndim == 4 and outputs.shape[-1] == inputs.shape[-1]
            require(
                keeps_channels or outputs.ndim == 2,
                f"layer {index}: expected to keep the channels as the last of four axes, or to flatten all to "
                f"[example, feature], got shape {outputs.shape} from {inputs.shape}",
            )
            order = None if keeps_channels else _feature_order(layer, inputs.shape[1:], f"layer {index}")
    return orders


def _feature_order(flatten: Callable, shape: tuple[int, ...], label: str) -> np.ndarray:
    """Return for each feature that `flatten` makes of a map [height, width, channel] PyTorch's number of that feature.

    PyTorch numbers the features of a map [channel, height, width] row by row. If `flatten` pools each channel to one
    feature, the number is that of the channel.

    Raises:
        InputError: if the function does more than flatten or pool.
    """
    height, width, channels = shape
    numbers = np.arange(height * width * channels, dtype=np.float32).reshape(channels, height, width).transpose(1, 2, 0)
    order = np.asarray(flatten(jnp.asarray(numbers)[None]), np.float64)[0]
    if len(order) == channels:
        # any mean or maximum of the numbers of channel c lies in [c, c + 1) * height * width
        order = order // (height * width)
    require(
        np.array_equal(np.sort(order), np.arange(len(order))) and len(order) in (channels, numbers.size),
        f"{label}: expected only to flatten maps of shape {shape}, or to pool each channel, got {len(order)} features "
        "that are neither; put the flattening into a separate layer",
    )
    return order.astype(np.int64)
