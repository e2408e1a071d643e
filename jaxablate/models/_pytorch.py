"""Weights from PyTorch: the file of a state dict comes in, a network with these weights goes out.

PyTorch keeps a linear map as [out, in], a convolution as [out, in, height, width] and a map of channels as [channel,
height, width]; Flax as [in, out], [height, width, in, out] and [height, width, channel]. So every kernel is transposed,
and behind a flattened map of channels the features are put in our order.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, finite_float32, require, require_known
from jaxablate._typing import Images
from jaxablate.models._mlp import ACTIVATIONS, ELEMENTWISE, MLP, flatten_images, from_arrays
from jaxablate.models._sites import Site, flatten_layers
from jaxablate.models._tensors import Tensors, read_tensors

WEIGHTS = {
    nnx.Linear: {"weight": "kernel", "bias": "bias"},
    nnx.Conv: {"weight": "kernel", "bias": "bias"},
    nnx.BatchNorm: {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
}
"""For each type of layer its weights: PyTorch's name and Flax's."""
PARTS = tuple(WEIGHTS[nnx.BatchNorm])


def load_pytorch(
    path: str | Path,
    model: nnx.Sequential | None = None,
    *,
    activation: str = "relu",
    images: Images | None = None,
) -> MLP | nnx.Sequential:
    """Read a network from the file of a PyTorch state dict.

    Args:
        path: `.safetensors`, or `.pt` or `.pth` as `torch.save(model.state_dict(), path)` writes it, which only PyTorch
            can read. Weights are taken in the file's order; safetensors keep none, so there the names decide, numbers
            in them counting as such. The file, and what it holds unpacked, may take 4 GiB.
        model: an `nnx.Sequential` or `Chain` of the same architecture, with `nnx.Linear`, `nnx.Conv` (2-D) and
            `nnx.BatchNorm`; None for an `MLP` of the file's linear maps.
        activation: of the hidden layers of that `MLP`, since a state dict does not say it.
        images: [example, height, width, channel], of which only the shape counts. Needed where maps of several channels
            are flattened before a linear map: PyTorch flattens the channel first, Flax last.

    Returns:
        The network, with float32 weights: an `MLP`, or a copy of `model`. What the file lacks is 0 (a bias) or 1 (the
        scale of a batch norm).

    Raises:
        InputError: for a file that is no state dict (a pickled module is refused, since reading it runs code), weights
            that do not fit the model's layers in number, type or shape, or lacking images.

    Example:
        >>> from safetensors.numpy import save_file
        >>> shapes = {"fc1.weight": (3, 4), "fc1.bias": (3,), "fc2.weight": (2, 3), "fc2.bias": (2,)}
        >>> tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        >>> save_file(tensors, tmp_path / "pytorch.safetensors")
        >>> model = ja.models.load_pytorch(tmp_path / "pytorch.safetensors", activation="tanh")
        >>> model.hidden, model.activation
        ((3,), 'tanh')
    """
    path = Path(path)
    require(
        model is None or isinstance(model, nnx.Sequential),
        f"model: expected an nnx.Sequential, a Chain or None, got {type(model).__name__}",
    )
    modules = _modules(path, read_tensors(path))
    if model is None:
        return _mlp(path, modules, activation, images)
    return _filled(path, modules, nnx.clone(model), None if images is None else np.shape(images))


def _filled(
    path: Path, modules: dict[str, Tensors], model: nnx.Sequential, shape: tuple[int, ...] | None
) -> nnx.Sequential:
    """The model, its weights set; the shape is that of images."""
    links = list(flatten_layers(model.layers))
    places = [place for place, link in enumerate(links) if _has_weights(link)]
    for place in places:
        require(
            _type_of(links[place]) is not None,
            f"layer {place} ({type(links[place]).__name__}): expected no weights, or an nnx.Linear, a 2-D nnx.Conv or "
            "an nnx.BatchNorm; those of others cannot be read from PyTorch",
        )
    if shape is None:
        _require_nothing_flattened(links)
    orders = {} if shape is None else _feature_orders(model, shape)
    require(
        len(modules) == len(places),
        f"PyTorch file {path}: expected {len(places)} modules, one for each layer with weights, got {len(modules)} "
        f"({', '.join(modules)})",
    )
    if path.suffix == ".safetensors":  # by name bn1 comes before conv1, so each type is in order by itself
        modules = _by_type(modules, [_type_of(links[place]) for place in places])
    for place, (name, tensors) in zip(places, modules.items(), strict=True):
        what = f"layer {place} ({type(links[place]).__name__}) from module {name!r} of {path}"
        _put(links[place], tensors, orders.get(place), what)
    return model


def _modules(path: Path, tensors: Tensors) -> dict[str, Tensors]:
    """The tensors of each module by their last name.

    Raises:
        InputError: for tensors that are not those of a linear map, a convolution or a batch norm.
    """
    modules: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "num_batches_tracked":
            continue
        require(
            part in PARTS,
            f"PyTorch file {path}: expected names that end in {', '.join(PARTS)}, got {name!r}; only linear maps, "
            "convolutions and batch norms can be read",
        )
        require(
            jnp.issubdtype(tensor.dtype, jnp.floating),
            f"PyTorch file {path}: expected floating numbers, got dtype {tensor.dtype} for {name!r}",
        )
        require(tensor.size > 0, f"PyTorch file {path}: expected numbers, got shape {tensor.shape} for {name!r}")
        modules.setdefault(module, {})[part] = finite_float32(f"PyTorch file {path}: {name}", tensor)
    for module, parts in modules.items():
        require(
            _type_in_file(parts) is not None,
            f"PyTorch file {path}: expected a weight [out, in] or [out, in, height, width], or a batch norm with its "
            "running_mean and running_var, got "
            + ", ".join(f"{part} {of.shape}" for part, of in parts.items())
            + f" for module {module!r}",
        )
    return modules


def _type_in_file(parts: Tensors) -> type | None:
    """The type of layer that a module's tensors are for."""
    if "running_mean" in parts or "running_var" in parts:
        return nnx.BatchNorm if "running_mean" in parts and "running_var" in parts else None
    return {2: nnx.Linear, 4: nnx.Conv}.get(parts["weight"].ndim) if "weight" in parts else None


def _type_of(layer: Callable) -> type | None:
    """The type of a layer among those that can be filled."""
    if isinstance(layer, nnx.Conv) and layer.kernel.ndim != 4:
        return None
    return next((known for known in WEIGHTS if isinstance(layer, known)), None)


def _by_type(modules: dict[str, Tensors], types: Sequence[type | None]) -> dict[str, Tensors]:
    """The modules in the order of the layers' types; as they are, if they are not of these types."""
    names: dict[type | None, list[str]] = {}
    for name, parts in modules.items():
        names.setdefault(_type_in_file(parts), []).append(name)
    if any(len(of_type) != types.count(kind) for kind, of_type in names.items()):
        return modules
    return {name: modules[name] for name in (names[kind].pop(0) for kind in types)}


def _has_weights(link: Callable) -> bool:
    return isinstance(link, nnx.Module) and len(jax.tree.leaves(nnx.state(link, (nnx.Param, nnx.BatchStat)))) > 0


def _mlp(path: Path, modules: dict[str, Tensors], activation: str, images: Images | None) -> MLP:
    """The network of linear maps one after another."""
    require_known("activation", activation, ACTIVATIONS)
    for name, parts in modules.items():
        require(
            _type_in_file(parts) is nnx.Linear,
            f"PyTorch file {path}: expected linear maps only, got weight {parts.get('weight', np.array(0)).shape} for "
            f"module {name!r}; in Python, hand in a model of the same architecture",
        )
    weights = [parts["weight"] for parts in modules.values()]
    biases = [parts.get("bias", np.zeros(len(parts["weight"]))) for parts in modules.values()]
    if images is not None and np.ndim(images) == 4 and weights:
        order = _order_of(flatten_images, np.shape(images)[1:], "images")
        require(
            weights[0].shape[1] == len(order),
            f"images: expected {weights[0].shape[1]} pixels for {path}, got shape {np.shape(images)}",
        )
        weights[0] = weights[0][:, order]
    try:
        return from_arrays([weight.T for weight in weights], biases, activation=activation)
    except InputError as error:
        raise InputError(f"PyTorch file {path}: expected linear maps that fit one after another, but {error}") from None


def _put(layer: Any, tensors: Tensors, order: np.ndarray | None, what: str) -> None:
    """Set the weights of a layer; `order` says which of PyTorch's features is each of the layer's.

    Raises:
        InputError: for tensors of another type of layer, or of other shapes.
    """
    kind, found = _type_of(layer), _type_in_file(tensors)
    assert kind is not None
    assert found is not None
    require(found is kind, f"{what}: expected the weights of a {kind.__name__}, got those of a {found.__name__}")
    for part, name in WEIGHTS[kind].items():
        variable = getattr(layer, name)
        if variable is None:
            require(part not in tensors, f"{what}: expected no {part}, since the layer has none, got one")
            continue
        in_and_out = variable.shape[-2:][::-1]  # of a vector its only axis
        shape = (*in_and_out, *variable.shape[:-2])
        tensor = tensors.get(part, np.full(shape, float(part == "weight")))
        require(tensor.shape == shape, f"{what}: expected {part} {shape}, got {tensor.shape}")
        if order is not None and (kind is not nnx.Linear or part == "weight"):
            tensor = tensor[..., order]  # the features are a linear map's last axis, and a batch norm's only one
        if tensor.ndim > 1:
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        setattr(layer, name, variable.replace(jnp.asarray(tensor, jnp.float32)))


def _require_nothing_flattened(links: Sequence[Callable]) -> None:
    """Raise unless each linear map has before it only layers that are known to keep the features as they are."""
    unknown = None
    for place, link in enumerate(links):
        if isinstance(link, nnx.Linear):
            require(
                unknown is None,
                f"images: expected one example at least, got none; layer {unknown} may flatten maps, and the features "
                f"of layer {place} (Linear) depend on their shape",
            )
        elif isinstance(link, nnx.Conv):
            unknown = None  # what it puts out is not flattened
        elif not isinstance(link, Site | nnx.BatchNorm | nnx.Dropout) and link not in ELEMENTWISE:
            unknown = place


def _feature_orders(model: nnx.Sequential, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each layer with weights that has flattened maps before it, the order of its features as in `_order_of`.

    Args:
        model: of any weights.
        shape: of images [example, ...].
    """
    model = nnx.clone(model)
    model.eval()
    outputs, order, orders = jnp.zeros((1, *shape[1:])), None, {}
    for place, link in enumerate(flatten_layers(model.layers)):
        before = outputs
        try:
            outputs = link(before)
        except Exception as error:  # whatever a user's own code raises
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"images: expected what the model takes, got shape {shape}, which layer {place} meets as "
                f"{before.shape} and raises {type(error).__name__}: {reason}"
            ) from error
        if order is not None and _has_weights(link):
            orders[place] = order
            order = None if isinstance(link, nnx.Linear) else order
        elif order is not None:
            require(
                outputs.shape == before.shape,
                f"layer {place}: expected to keep the {before.shape[1]} flattened features as they are up to the next "
                f"linear map, got shape {outputs.shape}",
            )
        elif before.ndim == 4 and not _has_weights(link):
            kept = outputs.ndim == 4 and outputs.shape[-1] == before.shape[-1]
            require(
                kept or outputs.ndim == 2,
                f"layer {place}: expected to keep the channels as the last of four axes, or to flatten all to "
                f"[example, feature], got shape {outputs.shape} from {before.shape}",
            )
            order = None if kept else _order_of(link, before.shape[1:], f"layer {place}")
    return orders


def _order_of(flatten: Callable, shape: tuple[int, ...], what: str) -> np.ndarray:
    """For each feature that `flatten` makes of a map [height, width, channel], its place among those that PyTorch makes
    of [channel, height, width]; or that of its channel, if each channel becomes one feature.

    Raises:
        InputError: if the function does more than that.
    """
    height, width, channels = shape
    places = np.arange(height * width * channels, dtype=np.float32).reshape(channels, height, width).transpose(1, 2, 0)
    order = np.asarray(flatten(jnp.asarray(places)[None]), np.float64)[0]
    if len(order) == channels:
        order = order // (height * width)
    require(
        np.array_equal(np.sort(order), np.arange(len(order))) and len(order) in (channels, places.size),
        f"{what}: expected only to flatten maps of shape {shape}, or to pool each channel, got {len(order)} features "
        "that are neither; put the flattening into a layer of its own",
    )
    return order.astype(np.int64)
