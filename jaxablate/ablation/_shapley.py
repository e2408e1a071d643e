"""Shapley values of neurons, from cumulative curves along random permutations."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxablate._checks import require, require_integer, require_known
from jaxablate._typing import Fill, Images, Labels
from jaxablate.ablation._alone import HARM, neurons_of
from jaxablate.ablation._evaluate import cumulative_ablation
from jaxablate.ablation._outcomes import CORRECT
from jaxablate.devices import first_example, require_examples
from jaxablate.models import Model, PerExampleFill
from jaxablate.models._network import trace_model
from jaxablate.orders import random_orders


def shapley_values(
    model: Model,
    images: Images,
    labels: Labels,
    fill: Fill | PerExampleFill | None = None,
    *,
    key: jax.Array,
    num_permutations: int = 100,
    site: str | None = None,
    by: str = CORRECT,
    memory_limit: int | None = None,
    precision: str = "highest",
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shapley value of each neuron, by sampling permutations: what it contributes on average over all orders.

    Neurons are removed in random orders; a neuron's value is the mean of what is lost where it goes. The values of a
    site (or of the whole network) add up to what all of its neurons contribute together.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        images, labels, fill, memory_limit, precision, mesh: as in `evaluate_masks`.
        key: a random key, `jax.random.key(seed)`.
        num_permutations: at least 2; the error falls with its square root.
        site: whose neurons play, by name (all others stay); None for the whole network.
        by: "correct", as a fraction of the examples, "loss" or "divergence", in nats (what falls when a neuron comes).

    Returns:
        Values and their standard errors, float64 [neuron] each, over the neurons of the scope.

    Raises:
        InputError: for an unknown site or measure, fewer than 2 permutations, or as in `evaluate_masks`.

    Source: Castro et al., Polynomial calculation of the Shapley value based on sampling (2009); Ghorbani and Zou,
        Neuron Shapley (2020).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int32)
        >>> values, errors = ja.ablation.shapley_values(model, images, labels, key=jax.random.key(0), site="layer1")
        >>> values.shape, errors.shape
        ((3,), (3,))
    """
    require_known("measure of harm", by, HARM)
    num_permutations = require_integer("num_permutations", num_permutations)
    require(num_permutations >= 2, f"num_permutations: expected at least 2, got {num_permutations}")
    require(isinstance(model, nnx.Module), f"model: expected one network, got {type(model).__name__}")
    network, _, _ = trace_model(model, first_example(images))
    num_examples = require_examples(labels, len(images), network.num_classes)
    neurons = neurons_of(network, site)
    local = np.asarray(random_orders(len(neurons), num_permutations, key=key))
    found = cumulative_ablation(
        model, neurons[local], images, labels, fill, steps=len(neurons), outcomes=by, memory_limit=memory_limit,
        precision=precision, mesh=mesh,
    )  # fmt: skip
    along = -HARM[by] * np.asarray(found, np.float64) / (num_examples if by == CORRECT else 1)
    marginal = np.empty(local.shape)
    np.put_along_axis(marginal, local, along[:, :-1] - along[:, 1:], axis=1)
    return marginal.mean(axis=0), marginal.std(axis=0, ddof=1) / num_permutations**0.5
