"""Define a multilayer perceptron as a Flax NNX module.

Input: images [example, ...], flattened to [example, pixel].
Output: logits [example, class].
A stage is a linear map, batch norm if the network uses it, and an activation function. The outputs of every stage
except the last are a site; the sites are named "layer1", "layer2", ... The ids of neurons count over all sites in this
order. The last stage is a linear map alone and returns the logits.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import (
    describe_value,
    finite_float32,
    host_array,
    require,
    require_bool,
    require_fraction,
    require_integer,
    require_known,
    require_shape,
    require_type,
)
from jaxablate._typing import Images
from jaxablate.models._sites import tag
from jaxablate.models._tensors import AssumptionWarning

ACTIVATIONS = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "hardtanh": jax.nn.hard_tanh,
}
"""Activation functions by name."""
WITH_NUMBER = ("leaky_relu", "elu")
"""Activation functions that take a number: the slope below 0 (0.01), or alpha (1)."""
DEFAULTS = {
    "gelu": "approximation by tanh", "gelu_exact": "exact form", "leaky_relu": "slope 0.01", "elu": "alpha 1",
    "softplus": "beta 1", "hardtanh": "from -1 to 1",
}  # fmt: skip
"""What a name leaves open, in words."""
Module = TypeVar("Module", bound=nnx.Module)
BATCH_NORM = ("scale", "bias", "mean", "var")
"""Names of the arrays [out] of a batch norm: two parameters, then two running statistics."""


def get_activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation function of a name such as "relu" or "leaky_relu:0.2".

    Args:
        name: a name in `ACTIVATIONS`. "gelu" is the approximation by tanh, "gelu_exact" the exact form. "leaky_relu"
            and "elu" may have a number: the slope below 0, otherwise 0.01; or alpha, otherwise 1.

    Returns:
        The function, which keeps the shape of its argument.

    Raises:
        InputError: for an unknown name, or a number that is not finite.

    Example:
        >>> ja.models.get_activation("leaky_relu:0.5")(jnp.array([-2.0, 2.0])).tolist()
        [-1.0, 2.0]
    """
    require(isinstance(name, str), f"activation: expected a name, got {describe_value(name)}")
    kind, colon, number = name.partition(":")
    require_known("activation", kind if kind in WITH_NUMBER else name, ACTIVATIONS)
    if not colon:
        return ACTIVATIONS[name]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"activation: expected a number after {kind}:, got {name!r}")
    return functools.partial(ACTIVATIONS[kind], **{{"leaky_relu": "negative_slope", "elu": "alpha"}[kind]: value})


# nnx.Linear keeps its initializers, and functions compare by identity. So the cache returns one object for each fan-in:
# networks of one architecture then have equal graphs and share compiled programs.
@functools.cache
def _uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """Return an initializer that is uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=np.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


class Stage(nnx.Module):
    """A linear map, optional batch norm, an activation function (None for the logits), and optional dropout."""

    # An object gets these attributes only if it uses them, so that the graph of a plain network has neither.
    batch_norm: nnx.BatchNorm | None = None
    dropout: nnx.Dropout | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | None,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        init = _uniform_fan_in(in_features)
        self.linear = nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, rngs=rngs)
        self.activation = activation
        if batch_norm:
            # The initial values are constants, so any key will do. Keys from `rngs` would change the weights that later
            # stages draw.
            self.batch_norm = nnx.BatchNorm(out_features, use_running_average=True, rngs=nnx.Rngs(0))
        if dropout > 0:
            # Without `rngs`: a stream of keys would be state of the module. The keys come with each call.
            self.dropout = nnx.Dropout(dropout, deterministic=True)

    def __call__(self, inputs: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Map inputs [..., in_features] to outputs [..., out_features]; dropout in training mode draws from `rngs`."""
        outputs = self.linear(inputs)
        if self.batch_norm is not None:
            outputs = self.batch_norm(outputs)
        if self.activation is not None:
            outputs = get_activation(self.activation)(outputs)
        if self.dropout is not None:
            require(
                rngs is not None or bool(self.dropout.deterministic),
                "rngs: dropout in training mode draws random numbers; pass rngs=nnx.Rngs(seed), or call model.eval()",
            )
            outputs = self.dropout(outputs, rngs=rngs)
        return outputs

    @property
    def weights(self) -> tuple[jax.Array, jax.Array]:
        """Return the kernel [in, out] and the bias [out] of the affine map before the activation function.

        In evaluation mode batch norm is affine too, so linear map and batch norm together are one affine map.
        """
        assert self.linear.bias is not None
        kernel, bias = self.linear.kernel[...], self.linear.bias[...]
        if self.batch_norm is None:
            return kernel, bias
        scale, offset, mean, var = (getattr(self.batch_norm, name)[...] for name in BATCH_NORM)
        # (x W + b - mean) factor + offset = x (W factor) + (b - mean) factor + offset
        factor = scale / jnp.sqrt(var + self.batch_norm.epsilon)
        return kernel * factor, (bias - mean) * factor + offset


class MLP(nnx.Module):
    """A fully connected network: hidden layers with one activation function, and linear logits.

    The initial kernels and biases are uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in)), as in PyTorch.

    A network is built in evaluation mode: there is no dropout, and batch norm uses its running statistics. As for any
    Flax NNX module, `model.train()` and `model.eval()` change the mode.

    Args:
        in_features: number of pixels of an image.
        hidden: number of neurons of each hidden layer, at least one layer.
        num_classes: number of logits.
        activation: "sigmoid", "relu", "tanh", "gelu" or another name that `ja.models.get_activation` takes.
        dropout: probability in [0, 1) with which training mode sets an output of a hidden layer to 0. The other outputs
            are divided by 1 - dropout.
        batch_norm: True puts an `nnx.BatchNorm` between linear map and activation function of each hidden layer, with
            Flax's momentum of 0.99 and epsilon of 1e-5. The initial weights are the same with and without batch norm.
        rngs: source of the initial values, `nnx.Rngs(seed)`.

    Raises:
        InputError: for an unknown activation, a size below 1, a `dropout` out of range, or a `batch_norm` that is not
            True or False.

    Example:
        >>> model = ja.MLP(784, (200, 200), 10, rngs=nnx.Rngs(0))
        >>> model(np.zeros((5, 28, 28), np.float32)).shape
        (5, 10)
    """

    image_shape: tuple[int, ...] | None = None
    """Shape of the images that the weights were made for, without axes of size 1; set only by `set_image_shape`."""

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        *,
        activation: str = "sigmoid",
        dropout: float = 0.0,
        batch_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        get_activation(activation)
        require_fraction("dropout", dropout, below_one=True)
        require_bool("batch_norm", batch_norm)
        hidden = check_hidden(hidden)
        require_type("rngs", rngs, nnx.Rngs, "nnx.Rngs(seed)")
        sizes = (require_integer("in_features", in_features), *hidden, require_integer("num_classes", num_classes))
        require(
            len(hidden) > 0 and min(sizes) >= 1,
            f"hidden: the layer sizes are {sizes}; give at least one hidden layer, and sizes of at least 1",
        )
        layers = [
            Stage(n, m, activation, dropout=float(dropout), batch_norm=batch_norm, rngs=rngs)
            for n, m in itertools.pairwise(sizes[:-1])
        ]
        self.stages = nnx.List([*layers, Stage(sizes[-2], num_classes, None, rngs=rngs)])
        # Static attributes are a part of the graph, which compares them by value: equal architectures share programs.
        self.hidden = hidden
        self.activation = activation

    def __call__(self, images: Images, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return the logits [example, class] of images [example, ...].

        Dropout in training mode draws from `rngs`; evaluation needs none.
        """
        if images.ndim > 2:
            require_image_shape(self, images.shape)
        outputs = jnp.asarray(flatten_images(images))
        *hidden, last = self.stages
        for i, stage in enumerate(hidden, start=1):
            outputs = tag(stage(outputs, rngs), f"layer{i}")
        return last(outputs)

    @property
    def dropout(self) -> float:
        """Return the probability of dropout, 0 without dropout."""
        dropout = self.stages[0].dropout
        return 0.0 if dropout is None else dropout.rate

    @property
    def batch_norm(self) -> bool:
        """Return True if the hidden layers have batch norm."""
        return self.stages[0].batch_norm is not None


def is_mlp(model: object) -> TypeGuard[MLP]:
    """Return True if a model is an `MLP` and no subclass has replaced its call."""
    return isinstance(model, MLP) and type(model).__call__ is MLP.__call__


def in_evaluation_mode(model: Module) -> Module:
    """Return a copy of a module in evaluation mode; an `MLP` without dropout and batch norm has no modes."""
    if is_mlp(model) and not (model.dropout or model.batch_norm):
        return model
    model = nnx.clone(model)
    model.eval()
    return model


def flatten_images(images: Images) -> Images:
    """Return images [example, ...] as [example, pixel]; also a layer of an `nnx.Sequential` that can be saved.

    Example:
        >>> ja.models.flatten_images(np.zeros((5, 28, 28), np.float32)).shape
        (5, 784)
    """
    return images.reshape(len(images), -1)


def require_fitting(model: MLP, images: Images) -> None:
    """Raise `InputError` unless images [example, ...] have as many pixels as the network takes."""
    num_pixels = math.prod(images.shape[1:])
    in_features = model.stages[0].linear.in_features
    require(
        num_pixels == in_features,
        f"images: expected examples of {in_features} pixels, which the network takes, got {num_pixels} in shape "
        f"{images.shape}",
    )


def zeros_for(model: MLP) -> np.ndarray:
    """Return an example of zeros in the shape that a network was made for, to trace it."""
    return np.zeros((1, *(model.image_shape or (model.stages[0].linear.in_features,))), np.float32)


def set_image_shape(model: nnx.Module, shape: tuple[int, ...], *, flat: bool = False) -> None:
    """Record the shape of images [example, ...], so that a network refuses images of another layout.

    Flattened, images of another order of axes have as many pixels, and the network's outputs would be wrong. Axes of
    size 1 do not matter: wherever they are, the pixels are in the same order. `flat` records the number of pixels of
    flat examples too, whose order only the user knows.
    """
    if len(sizes := without_ones(shape)) > 1 or (flat and len(sizes) == 1):
        model.image_shape = sizes  # pyright: ignore[reportAttributeAccessIssue] (an nnx.Sequential may get it too)


def require_image_shape(model: nnx.Module, shape: tuple[int, ...]) -> None:
    """Raise `InputError` for images of another layout than the network was made for, and name flat color images.

    Warns:
        AssumptionWarning: for flat examples in place of color images.
    """
    made_for, sizes = getattr(model, "image_shape", None), without_ones(shape)
    if made_for is None or (min(len(made_for), len(sizes)) < 2 and max(len(made_for), len(sizes)) < 3):
        return  # grey images are flattened in one way
    axes = ", ".join(map(str, made_for))
    remedy = "transpose their axes to this order" if len(made_for) > 1 else "flatten them in the order of its training"
    require(
        len(sizes) < 2 or sizes == made_for,
        f"images: the network was made for images [example, {axes}], got shape {shape}; {remedy}",
    )
    if len(sizes) < 2:
        warnings.warn(
            f"images: assumed that the {math.prod(sizes)} pixels of an example are an image [{axes}], flattened",
            AssumptionWarning,
            stacklevel=3,
        )


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an example, without axes of size 1."""
    return tuple(size for size in shape[1:] if size > 1)


def check_hidden(hidden: object) -> tuple[int, ...]:
    """Return the sizes of hidden layers as a tuple; raise unless they are integers."""
    require(
        isinstance(hidden, Sequence) and not isinstance(hidden, str | bytes),
        f"hidden: expected a sequence of layer sizes, got {describe_value(hidden)}",
    )
    return tuple(require_integer("hidden", size) for size in hidden)  # pyright: ignore[reportGeneralTypeIssues]


def layer_of_neuron(hidden: Sequence[int]) -> np.ndarray:
    """Return the layer of each hidden neuron.

    Args:
        hidden: number of neurons of each hidden layer.

    Returns:
        int32 [neuron] in network order; the first hidden layer is 1.

    Example:
        >>> ja.models.layer_of_neuron((2, 3)).tolist()
        [1, 1, 2, 2, 2]
    """
    hidden = check_hidden(hidden)
    return np.repeat(np.arange(1, len(hidden) + 1, dtype=np.int32), hidden)


def from_arrays(
    kernels: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    *,
    activation: str,
    dropout: float = 0.0,
    batch_norms: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> MLP:
    """Build an `MLP` from its weights.

    Args:
        kernels: one array [in, out] for each linear map.
        biases: one array [out] for each linear map.
        activation: activation function of the hidden layers, as in `MLP`.
        dropout: as in `MLP`.
        batch_norms: for each hidden layer a mapping with the arrays "scale", "bias", "mean" and "var" [out]; the last
            two are the running statistics. None for a network without batch norm.

    Returns:
        The network, with float32 weights.

    Raises:
        InputError: for weights whose shapes do not fit together, complex, infinite or NaN weights, batch norms that do
            not fit the hidden layers, a negative variance, an unknown activation, or a `dropout` out of range.

    Example:
        >>> model = ja.models.from_arrays([np.eye(3), np.ones((3, 2))], [np.zeros(3), np.zeros(2)], activation="relu")
        >>> model(np.ones((1, 3), np.float32)).tolist()
        [[3.0, 3.0]]
    """
    for name, arrays in (("kernels", kernels), ("biases", biases)):
        require_type(name, arrays, list | tuple, "a list of arrays")
    kernels, biases = [host_array("kernels", k) for k in kernels], [host_array("biases", b) for b in biases]
    require(
        len(kernels) == len(biases) >= 2,
        f"kernels: expected a kernel and a bias for each of two or more stages, got {len(kernels)} and {len(biases)}",
    )
    require(
        all(kernel.ndim == 2 for kernel in kernels),
        f"kernels: expected kernels [in, out], got shapes {', '.join(str(kernel.shape) for kernel in kernels)}",
    )
    require_type("batch_norms", batch_norms, list | tuple | None, "a list of mappings")
    for norm in batch_norms or ():
        require_type("batch_norms", norm, Mapping, "a mapping for each hidden layer")
    norms, num_norms = [dict(norm) for norm in batch_norms or ()], 0 if batch_norms is None else len(kernels) - 1
    require(
        len(norms) == num_norms and all(set(norm) == {*BATCH_NORM} for norm in norms),
        f"batch_norms: expected {', '.join(BATCH_NORM)} for each of {num_norms} hidden layers, got "
        f"{[sorted(norm) for norm in norms]}",
    )
    require(
        not any(map(np.iscomplexobj, [*kernels, *biases, *(array for norm in norms for array in norm.values())])),
        "kernels: expected real numbers as weights, got complex numbers",
    )
    sizes = [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]
    weights = []
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        # The inputs of a kernel are the outputs of the kernel before; only the first one sets the number of pixels.
        shape = (sizes[i], sizes[i + 1])
        require(
            kernel.shape == shape and bias.shape == shape[1:],
            f"stage {i}: expected kernel {shape} and bias {shape[1:]}, got {kernel.shape} and {bias.shape}",
        )
        weights.append((finite_float32(f"stage {i} kernel", kernel), finite_float32(f"stage {i} bias", bias)))
    for i, norm in enumerate(norms):
        for name, array in norm.items():
            array = host_array(f"stage {i} batch norm {name}", array)
            require_shape(f"stage {i} batch norm {name}", array, (sizes[i + 1],), "neuron")
            norm[name] = finite_float32(f"stage {i} batch norm {name}", array)
        require(bool((norm["var"] >= 0).all()), f"stage {i} batch norm var: a variance is negative; give 0 or more")
    # eval_shape builds the graph without drawing initial weights, which would be replaced at once
    options = {"activation": activation, "dropout": dropout, "batch_norm": bool(norms)}
    model = nnx.eval_shape(lambda: MLP(sizes[0], tuple(sizes[1:-1]), sizes[-1], **options, rngs=nnx.Rngs(0)))
    for stage, (kernel, bias) in zip(model.stages, weights, strict=True):
        stage.linear.kernel, stage.linear.bias = nnx.Param(jnp.asarray(kernel)), nnx.Param(jnp.asarray(bias))
    for stage, norm in zip(model.stages, norms, strict=False):  # the last stage has no batch norm
        for name, array in norm.items():
            # Each array keeps its kind of variable: the optimizer updates parameters, not running statistics.
            setattr(stage.batch_norm, name, type(getattr(stage.batch_norm, name))(jnp.asarray(array)))
    return model


def to_tensors(model: MLP) -> dict[str, np.ndarray]:
    """Return copies of the weights of a network by name.

    The names are `stages.0.kernel` [in, out], `stages.0.bias` [out], ..., and with batch norm also
    `stages.0.batch_norm.scale`, `.bias`, `.mean` and `.var` [out].
    """
    tensors = {}
    for i, stage in enumerate(model.stages):
        assert stage.linear.bias is not None
        tensors[f"stages.{i}.kernel"] = np.array(stage.linear.kernel[...])
        tensors[f"stages.{i}.bias"] = np.array(stage.linear.bias[...])
        if stage.batch_norm is not None:
            for name in BATCH_NORM:
                tensors[f"stages.{i}.batch_norm.{name}"] = np.array(getattr(stage.batch_norm, name)[...])
    return tensors


def pop_tensors(
    tensors: dict[str, np.ndarray],
    *,
    activation: str,
    dropout: float = 0.0,
    image_shape: Sequence[int] | None = None,
) -> MLP:
    """Build an `MLP` from tensors with the names of `to_tensors`, and remove these tensors from the mapping.

    `image_shape` is the shape that the network was made for, as `MLP.image_shape`.

    Raises:
        KeyError: for a kernel without its bias, or a batch norm without one of its arrays.
        InputError: as in `from_arrays`.
    """
    num_stages = sum(name.startswith("stages.") and name.endswith(".kernel") for name in tensors)
    kernels = [tensors.pop(f"stages.{i}.kernel") for i in range(num_stages)]
    biases = [tensors.pop(f"stages.{i}.bias") for i in range(num_stages)]
    norms = None
    if any(name.startswith("stages.") and ".batch_norm." in name for name in tensors):
        prefixes = [f"stages.{i}.batch_norm." for i in range(num_stages - 1)]
        norms = [{name: tensors.pop(prefix + name) for name in BATCH_NORM} for prefix in prefixes]
    model = from_arrays(kernels, biases, activation=activation, dropout=dropout, batch_norms=norms)
    set_image_shape(model, (1, *(image_shape or ())), flat=True)
    return model
