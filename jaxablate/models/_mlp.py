"""Define a multilayer perceptron as a Flax NNX module.

Input: images [example, ...], flattened to [example, pixel].
Output: logits [example, class].
A stage is a linear map and its activation function. The outputs of every stage except the last are a site; the sites
are named "layer1", "layer2", ... The ids of neurons count over all sites in this order. The last stage returns the
logits.
"""

import functools
import math
from collections.abc import Sequence
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import finite_float32, require, require_known
from jaxablate._typing import Images
from jaxablate.models._sites import tag

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}


# nnx.Linear keeps its initializers, and functions compare by identity. So the cache returns one object for each fan-in:
# networks of one architecture then have equal graphs and share compiled programs.
@functools.cache
def _uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """Return an initializer that is uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=np.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


class Stage(nnx.Module):
    """A linear map and an activation function (None for the logits)."""

    def __init__(self, in_features: int, out_features: int, activation: str | None, *, rngs: nnx.Rngs):
        init = _uniform_fan_in(in_features)
        self.linear = nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs [..., in_features] to outputs [..., out_features]."""
        outputs = self.linear(inputs)
        return outputs if self.activation is None else ACTIVATIONS[self.activation](outputs)

    @property
    def weights(self) -> tuple[jax.Array, jax.Array]:
        """Return the kernel [in, out] and the bias [out]."""
        assert self.linear.bias is not None
        return self.linear.kernel[...], self.linear.bias[...]


class MLP(nnx.Module):
    """A fully connected network: hidden layers with one activation function, and linear logits.

    The initial kernels and biases are uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in)), as in PyTorch.

    Args:
        in_features: number of pixels of an image.
        hidden: number of neurons of each hidden layer, at least one layer.
        num_classes: number of logits.
        activation: "sigmoid", "relu", "tanh" or "gelu".
        rngs: source of the initial values, `nnx.Rngs(seed)`.

    Raises:
        InputError: for an unknown activation, or a size below 1.

    Example:
        >>> model = ja.MLP(784, (200, 200), 10, rngs=nnx.Rngs(0))
        >>> model(np.zeros((5, 28, 28), np.float32)).shape
        (5, 10)
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], num_classes: int, *, activation: str = "sigmoid", rngs: nnx.Rngs
    ):
        require_known("activation", activation, ACTIVATIONS)
        require(isinstance(hidden, Sequence), f"hidden: expected a sequence of layer sizes, got {hidden!r}")
        sizes = (in_features, *hidden, num_classes)
        require(
            len(hidden) > 0 and min(sizes) >= 1,
            f"hidden: the layer sizes are {sizes}; give at least one hidden layer, and sizes of at least 1",
        )
        names = [activation] * len(hidden) + [None]
        self.stages = nnx.List(
            [Stage(n, m, name, rngs=rngs) for n, m, name in zip(sizes[:-1], sizes[1:], names, strict=True)]
        )
        self.hidden = tuple(hidden)
        self.activation = activation

    def __call__(self, images: Images) -> jax.Array:
        """Return the logits [example, class] of images [example, ...]."""
        outputs = jnp.asarray(flatten_images(images))
        *hidden, last = self.stages
        for i, stage in enumerate(hidden, start=1):
            outputs = tag(stage(outputs), f"layer{i}")
        return last(outputs)


def is_mlp(model: object) -> TypeGuard[MLP]:
    """Return True if a model is an `MLP` and no subclass has replaced its call."""
    return isinstance(model, MLP) and type(model).__call__ is MLP.__call__


def flatten_images(images: Images) -> Images:
    """Return images [example, ...] as [example, pixel]."""
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
    return np.repeat(np.arange(1, len(hidden) + 1, dtype=np.int32), hidden)


def from_arrays(kernels: list[np.ndarray], biases: list[np.ndarray], *, activation: str = "sigmoid") -> MLP:
    """Build an `MLP` from its weights.

    Args:
        kernels: one array [in, out] for each linear map.
        biases: one array [out] for each linear map.
        activation: activation function of the hidden layers, as in `MLP`.

    Returns:
        The network, with float32 weights.

    Raises:
        InputError: for weights that do not fit one after another, are complex or not finite, or an unknown activation.

    Example:
        >>> model = ja.models.from_arrays([np.eye(3), np.ones((3, 2))], [np.zeros(3), np.zeros(2)], activation="relu")
        >>> model(np.ones((1, 3), np.float32)).tolist()
        [[3.0, 3.0]]
    """
    require(
        len(kernels) == len(biases) >= 2,
        f"kernels: expected a kernel and a bias for each of two or more stages, got {len(kernels)} and {len(biases)}",
    )
    require(
        all(kernel.ndim == 2 for kernel in kernels),
        f"kernels: expected kernels [in, out], got shapes {', '.join(str(kernel.shape) for kernel in kernels)}",
    )
    require(
        not any(map(np.iscomplexobj, [*kernels, *biases])),
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
    # eval_shape builds the graph without drawing initial weights, which would be replaced at once
    model = nnx.eval_shape(
        lambda: MLP(sizes[0], tuple(sizes[1:-1]), sizes[-1], activation=activation, rngs=nnx.Rngs(0))
    )
    for stage, (kernel, bias) in zip(model.stages, weights, strict=True):
        stage.linear.kernel, stage.linear.bias = nnx.Param(jnp.asarray(kernel)), nnx.Param(jnp.asarray(bias))
    return model
