"""Activations: a network and images come in, the outputs of every hidden layer (or their means) go out.

Memory: recording keeps all activations, four bytes for each example and neuron; the means keep one batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._typing import Activations, Fill, Images
from jaxablate.models import MLP, check_images, flatten_images

BATCH_SIZE = 10_000


def record_activations(model: MLP, images: Images) -> tuple[Activations, ...]:
    """The outputs of every hidden layer for every image.

    Args:
        model: the network.
        images: float32 [example, height, width].

    Returns:
        A tuple of float32 [example, neuron], one for each hidden layer.

    Raises:
        InputError: for images of another number of pixels.

    Source: paper, equation 1.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> [a.shape for a in ja.record_activations(model, np.zeros((5, 2, 2), np.float32))]
        [(5, 3), (5, 2)]
    """
    images = check_images(model, images)
    graphdef, state = nnx.split(model)
    batches = [_hidden(graphdef, state, images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
    return tuple(jnp.concatenate(layer) for layer in zip(*batches, strict=True))


def mean_activations(model: MLP, images: Images) -> Fill:
    """The mean output of every hidden neuron, which is the fill of bias balancing.

    Args:
        model: the network.
        images: float32 [example, height, width], by convention the validation split.

    Returns:
        float32 [neuron], all hidden layers concatenated in network order.

    Raises:
        InputError: for images of another number of pixels.

    Source: paper, section 4 (bias balancing).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.mean_activations(model, np.zeros((5, 2, 2), np.float32)).shape
        (5,)
    """
    images = check_images(model, images)
    graphdef, state = nnx.split(model)
    total = sum(  # in float64: a float32 sum over many batches would lose digits
        np.concatenate(
            [np.asarray(h.sum(axis=0), np.float64) for h in _hidden(graphdef, state, images[i : i + BATCH_SIZE])]
        )
        for i in range(0, len(images), BATCH_SIZE)
    )
    return jnp.asarray(total / len(images), jnp.float32)


@partial(jax.jit, static_argnames="graphdef")
def _hidden(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> tuple[jax.Array, ...]:
    model = nnx.merge(graphdef, state)
    outputs, recorded = flatten_images(images), []
    with jax.default_matmul_precision("highest"):
        for stage in list(model.stages)[:-1]:
            outputs = stage(outputs)
            recorded.append(outputs)
    return tuple(recorded)
