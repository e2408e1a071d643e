"""A Flax NNX multilayer perceptron as a chain of stages.

A stage is a linear map and its activation function. Every stage but the last is followed by an ablation site:
its outputs are the hidden neurons, counted through in network order. The last stage gives the logits.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import finite_float32, require, require_known
from jaxablate._typing import Images

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
ELEMENTWISE = {
    jax.nn.sigmoid: True,
    jnp.tanh: True,
    nnx.tanh: True,
    jax.nn.relu: False,
    jax.nn.gelu: False,
    jax.nn.silu: False,
    jax.nn.elu: False,
    jax.nn.leaky_relu: False,
    jax.nn.softplus: False,
}
"""Activation functions of one unit at a time; True where their outputs lie in [-1, 1]."""


@functools.cache  # one object for each fan-in, so that equal networks share compiled programs
def _uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """Uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in)), for kernel and bias alike."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=np.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


class Stage(nnx.Module):
    """One link of the chain: a linear map and an activation function (None: the logits)."""

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
        """Kernel [in, out] and bias [out]."""
        assert self.linear.bias is not None
        return self.linear.kernel[...], self.linear.bias[...]


class MLP(nnx.Module):
    """A fully connected network: hidden layers with one activation function, linear logits.

    Kernels and biases start uniform in (-1/sqrt(fan_in), +1/sqrt(fan_in)).

    Args:
        in_features: pixels of an image.
        hidden: neurons of each hidden layer, at least one layer.
        num_classes: logits.
        activation: "sigmoid", "relu", "tanh" or "gelu".
        rngs: the source of the initial values, `nnx.Rngs(seed)`.

    Raises:
        InputError: for an unknown activation or a size below 1.

    Example:
        >>> model = ja.MLP(784, (200, 200), 10, rngs=nnx.Rngs(0))
        >>> model(np.zeros((5, 28, 28), np.float32)).shape
        (5, 10)
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        *,
        activation: str = "sigmoid",
        rngs: nnx.Rngs,
    ):
        require_known("activation", activation, ACTIVATIONS)
        require(isinstance(hidden, Sequence), f"hidden: expected a sequence of layer sizes, got {hidden!r}")
        sizes = (in_features, *hidden, num_classes)
        require(
            len(hidden) > 0 and min(sizes) >= 1,
            f"network: expected at least one hidden layer and sizes of at least 1, got {sizes}",
        )
        names = [activation] * len(hidden) + [None]
        self.stages = nnx.List(
            [Stage(n, m, name, rngs=rngs) for n, m, name in zip(sizes[:-1], sizes[1:], names, strict=True)]
        )
        self.hidden = tuple(hidden)
        self.activation = activation

    def __call__(self, images: Images) -> jax.Array:
        """Logits [example, class] of images [example, ...], flattened."""
        outputs = jnp.asarray(flatten_images(images))
        for stage in self.stages:
            outputs = stage(outputs)
        return outputs


def flatten_images(images: Images) -> Images:
    """Images [example, ...] as rows [example, pixel]."""
    return images.reshape(len(images), -1)


def require_fitting(model: MLP, images: Images) -> None:
    """Raise `InputError` unless images [example, ...] are as large as the network's input."""
    wanted = model.stages[0].linear.in_features
    require(
        math.prod(images.shape[1:]) == wanted,
        f"images: expected examples of the {wanted} pixels that the network takes, got {math.prod(images.shape[1:])} "
        f"in shape {images.shape}",
    )


def layer_of_neuron(hidden: Sequence[int]) -> np.ndarray:
    """The layer of every hidden neuron.

    Args:
        hidden: neurons of each hidden layer.

    Returns:
        int32 [neuron], in network order; the first hidden layer is 1.

    Example:
        >>> ja.models.layer_of_neuron((2, 3)).tolist()
        [1, 1, 2, 2, 2]
    """
    return np.repeat(np.arange(1, len(hidden) + 1, dtype=np.int32), hidden)


def from_arrays(kernels: list[np.ndarray], biases: list[np.ndarray], *, activation: str = "sigmoid") -> MLP:
    """Build a network from its weights.

    Args:
        kernels: one [in, out] for each stage.
        biases: one [out] for each stage.
        activation: of the hidden layers.

    Returns:
        The network.

    Raises:
        InputError: for weights that do not fit together, or an unknown activation.

    Example:
        >>> model = ja.models.from_arrays([np.eye(3), np.ones((3, 2))], [np.zeros(3), np.zeros(2)], activation="relu")
        >>> model(np.ones((1, 3), np.float32)).tolist()
        [[3.0, 3.0]]
    """
    require(
        len(kernels) == len(biases) >= 2,
        f"network: expected a kernel and a bias for each of two or more stages, got {len(kernels)} and {len(biases)}",
    )
    require(
        all(kernel.ndim == 2 for kernel in kernels),
        f"network: expected kernels [in, out], got shapes {', '.join(str(kernel.shape) for kernel in kernels)}",
    )
    require(
        not any(map(np.iscomplexobj, [*kernels, *biases])),
        "network: expected real numbers as weights, got complex ones",
    )
    sizes = [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]
    weights = []
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        wanted = (sizes[i], sizes[i + 1])
        require(
            kernel.shape == wanted and bias.shape == wanted[1:],
            f"stage {i}: expected kernel {wanted} and bias {wanted[1:]}, got {kernel.shape} and {bias.shape}",
        )
        weights.append((finite_float32(f"stage {i} kernel", kernel), finite_float32(f"stage {i} bias", bias)))
    model = nnx.eval_shape(
        lambda: MLP(sizes[0], tuple(sizes[1:-1]), sizes[-1], activation=activation, rngs=nnx.Rngs(0))
    )
    for stage, (kernel, bias) in zip(model.stages, weights, strict=True):
        stage.linear.kernel, stage.linear.bias = nnx.Param(jnp.asarray(kernel)), nnx.Param(jnp.asarray(bias))
    return model
