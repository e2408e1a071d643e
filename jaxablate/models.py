"""Networks: a Flax NNX multilayer perceptron as a chain of stages, and its file.

A stage is a linear map and its activation function. Every stage but the last is followed by an ablation site:
its outputs are the hidden neurons, counted through in network order. The last stage gives the logits.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, require, require_finite, require_known
from jaxablate._files import atomic_path
from jaxablate._typing import Images

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
FORMAT = "jaxablate network 1"


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


def check_images(model: MLP, images: Images) -> jax.Array:
    """Raise `InputError` unless images [example, ...] are floating and as large as the network's input; return them."""
    wanted = model.stages[0].linear.in_features
    images = jnp.asarray(images)
    require(
        jnp.issubdtype(images.dtype, jnp.floating),
        f"images: expected floating pixels in [0, 1], got dtype {images.dtype}; divide uint8 pixels by 255",
    )
    require(
        images.ndim >= 2 and len(images) > 0 and math.prod(images.shape[1:]) == wanted,
        f"images: expected at least one example of {wanted} pixels, got shape {images.shape}",
    )
    return images


def site_bounds(hidden: Sequence[int]) -> np.ndarray:
    """Where the neurons of each hidden layer begin and end in network order: int [layer + 1], from 0."""
    return np.cumsum((0, *hidden))


def stack_states(states: Sequence[nnx.State]) -> nnx.State:
    """The weights of several networks of one architecture as one, with a leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)


def layer_of_neuron(hidden: Sequence[int]) -> np.ndarray:
    """The layer of every hidden neuron.

    Args:
        hidden: neurons of each hidden layer.

    Returns:
        int32 [neuron], in network order; the first hidden layer is 1.

    Example:
        >>> ja.layer_of_neuron((2, 3)).tolist()
        [1, 1, 2, 2, 2]
    """
    return np.repeat(np.arange(1, len(hidden) + 1, dtype=np.int32), hidden)


def save_model(model: MLP, path: str | Path, metadata: Mapping[str, str] | None = None, **arrays: np.ndarray) -> None:
    """Write a network as safetensors, atomically.

    Args:
        model: the network; kernels [in, out] and biases [out] go in as `stages.0.kernel`, ...
        path: the file.
        metadata: strings to keep in the header, beside the network's own.
        arrays: further arrays to keep in the file, such as a training history.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
    """
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for i, stage in enumerate(model.stages):
        kernel, bias = stage.weights
        tensors[f"stages.{i}.kernel"], tensors[f"stages.{i}.bias"] = np.array(kernel), np.array(bias)
    header = {"format": FORMAT, "activation": model.activation, **(metadata or {})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_model(path: str | Path) -> tuple[MLP, dict[str, str], dict[str, np.ndarray]]:
    """Read what `save_model` wrote.

    Args:
        path: the file.

    Returns:
        The network, its metadata, and the further arrays of the file.

    Raises:
        InputError: for a file that `save_model` did not write.

    Example:
        >>> ja.save_model(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), tmp_path / "model.safetensors", {"seed": "0"})
        >>> model, metadata, arrays = ja.load_model(tmp_path / "model.safetensors")
        >>> model.hidden, metadata
        ((3,), {'seed': '0'})
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    require(path.is_file(), f"network file {path}: expected a file, got none")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"network file {path}: expected safetensors, got an unreadable file ({error}); remove it"
        ) from None
    require(
        metadata.pop("format", None) == FORMAT,
        f"network file {path}: expected format {FORMAT!r}; it was not written by this version of jaxablate",
    )
    num_stages = sum(name.startswith("stages.") and name.endswith(".kernel") for name in tensors)
    try:
        kernels = [tensors.pop(f"stages.{i}.kernel") for i in range(num_stages)]
        biases = [tensors.pop(f"stages.{i}.bias") for i in range(num_stages)]
        model = from_arrays(kernels, biases, activation=metadata.pop("activation"))
    except (KeyError, InputError) as error:
        raise InputError(f"network file {path}: expected the weights of a whole network, but {error}") from None
    return model, metadata, tensors


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
        >>> model = ja.from_arrays([np.eye(3), np.ones((3, 2))], [np.zeros(3), np.zeros(2)], activation="relu")
        >>> model(np.ones((1, 3), np.float32)).tolist()
        [[3.0, 3.0]]
    """
    require(
        len(kernels) == len(biases) >= 2,
        f"network: expected a kernel and a bias for each of two or more stages, got {len(kernels)} and {len(biases)}",
    )
    sizes = [kernels[0].shape[0], *(kernel.shape[-1] for kernel in kernels)]
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        wanted = (sizes[i], sizes[i + 1])
        require(
            kernel.shape == wanted and bias.shape == wanted[1:],
            f"stage {i}: expected kernel {wanted} and bias {wanted[1:]}, got {kernel.shape} and {bias.shape}",
        )
        require_finite(f"stage {i} kernel", np.asarray(kernel))
        require_finite(f"stage {i} bias", np.asarray(bias))
    model = nnx.eval_shape(
        lambda: MLP(sizes[0], tuple(sizes[1:-1]), sizes[-1], activation=activation, rngs=nnx.Rngs(0))
    )
    for stage, kernel, bias in zip(model.stages, kernels, biases, strict=True):
        stage.linear.kernel = nnx.Param(jnp.asarray(kernel, np.float32))
        stage.linear.bias = nnx.Param(jnp.asarray(bias, np.float32))
    return model
