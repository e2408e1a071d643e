"""The outputs of every site, or their means.

Memory: recording keeps all activations, four bytes for each example and neuron; the means keep one batch.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._precision import matmul_precision
from jaxablate._typing import Activations, Fill, Images
from jaxablate.models import Model
from jaxablate.models._network import ModelSpec, peak_activation_bytes, record_sites, site_reductions, trace_model

BATCH_SIZE = 10_000
MEMORY = 2**28  # bytes of one activation in flight


def record_activations(model: Model, images: Images) -> tuple[Activations, ...]:
    """The outputs of every hidden layer, or of every site, for every image.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        images: [example, ...], what the network takes.

    Returns:
        A tuple of float32 [example, neuron], one for each site in network order. Where a unit has several places in an
        example (a channel's map), the site's `reduce` makes one number of them.

    Raises:
        InputError: for images that the network does not take, or a module that cannot be ablated.

    Source: paper, equation 1.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> [a.shape for a in ja.record_activations(model, np.zeros((5, 2, 2), np.float32))]
        [(5, 3), (5, 2)]
    """
    network, batches = _recorded(model, images)
    reductions = site_reductions(network, nnx.state(model))
    reduced = [[_over_places(*pair) for pair in zip(reductions, batch, strict=True)] for batch in batches]
    return tuple(jnp.concatenate(site).astype(jnp.float32) for site in zip(*reduced, strict=True))


def mean_activations(model: Model, images: Images) -> Fill:
    """The mean output of every hidden neuron, which is the fill of bias balancing.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        images: [example, ...], by convention the validation split.

    Returns:
        float32 [neuron], all sites concatenated in network order; the mean over examples, and over the places of a unit
        that has several in an example.

    Raises:
        InputError: for images that the network does not take, or a module that cannot be ablated.

    Source: paper, section 4 (bias balancing).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.mean_activations(model, np.zeros((5, 2, 2), np.float32)).shape
        (5,)
    """
    _, batches = _recorded(model, images)
    total, count = 0.0, len(images)
    for batch in batches:  # in float64: a float32 sum over many batches would lose digits
        means = [_over_places(jnp.mean, h) for h in batch]
        total = total + np.concatenate([np.asarray(h.sum(axis=0), np.float64) for h in means])
    return jnp.asarray(total / count, jnp.float32)


def zero_fractions(model: Model, images: Images) -> np.ndarray:
    """Of every neuron the share of examples, and of its places in them, where its output is not above 0; float64
    [neuron], all sites concatenated in network order."""
    network, batches = _recorded(model, images)
    zeros, outputs = np.zeros(network.num_neurons, np.int64), np.zeros(network.num_neurons, np.int64)
    for batch in batches:
        zeros += np.concatenate([np.asarray((h <= 0).sum(axis=tuple(range(h.ndim - 1)))) for h in batch])
        outputs += np.repeat([h[..., 0].size for h in batch], network.sizes)
    return zeros / outputs


def _over_places(reduction: Callable, outputs: jax.Array) -> jax.Array:
    """One number [example, neuron] of the places that a unit has in an example."""
    return reduction(outputs, axis=tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs


def recorded_outputs(model: Model, images: Images) -> list[jax.Array]:
    """The outputs of every site for every image, float32 [example, ..., neuron]."""
    _, batches = _recorded(model, images)
    return [jnp.concatenate(site).astype(jnp.float32) for site in zip(*batches, strict=True)]


def _recorded(model: Model, images: Images) -> tuple[ModelSpec, Iterator[list[jax.Array]]]:
    """The network, and the outputs [example, ..., unit] of every site, batch by batch."""
    network, state, images = trace_model(model, images)
    size = max(1, min(BATCH_SIZE, MEMORY // peak_activation_bytes(network, 0)))
    batches = (images[i : i + size] for i in range(0, len(images), size))
    return network, (_record(network, state, batch) for batch in batches)


@partial(jax.jit, static_argnums=0)
def _record(network: ModelSpec, state: nnx.State, images: jax.Array) -> list[jax.Array]:
    with jax.default_matmul_precision(matmul_precision()):
        return record_sites(network, state, images)[1]
