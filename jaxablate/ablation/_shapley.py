"""Estimate Shapley values of neurons from cumulative curves along random permutations.

Input: a model, images, labels, a fill, a random key.
Output: a value and its standard error for each neuron.
Memory: one curve for each permutation.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate._checks import require, require_count, require_key, require_known, short_repr
from jaxablate._typing import Images, Labels
from jaxablate.ablation._arguments import site_range
from jaxablate.ablation._evaluate import cumulative_ablation
from jaxablate.ablation._outcomes import CORRECT
from jaxablate.ablation._single import HARM
from jaxablate.devices import first_example, require_examples
from jaxablate.fills import AnyFill
from jaxablate.models._model import AnyModel, no_network, trace_model
from jaxablate.orders import random_orders


@dataclass(frozen=True)
class ShapleyValues:
    """Result of `shapley_values`, over the neurons of the site or of the whole network.

    Attributes:
        values: float64 [neuron]; a fraction of the examples for "correct", nats for "loss" and "divergence".
        standard_errors: float64 [neuron], the standard error of each value over the permutations.
    """

    values: np.ndarray
    standard_errors: np.ndarray

    __repr__ = short_repr


def shapley_values(
    model: AnyModel,
    images: Images,
    labels: Labels,
    fill: AnyFill | None = None,
    *,
    site: str | None = None,
    outcome: str = CORRECT,
    num_permutations: int = 100,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
    key: jax.Array,
) -> ShapleyValues:
    """Estimate each neuron's Shapley value, its mean contribution over all orders, from sampled permutations.

    Neurons are ablated one after another along random permutations. A neuron's value is the mean rise of the loss when
    it is ablated (with "correct", the mean fall of the accuracy). The values of a site sum to the rise of the loss when
    the whole site is ablated; without `site`, the values of all neurons sum to that of the whole network.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images, labels, fill, memory_limit, mesh: as in `evaluate_masks`.
        site: name of the site whose neurons are ablated, while all other neurons are kept; None for all sites.
        outcome: "correct", "loss" or "divergence". Values are positive for neurons that help: neurons that raise the
            accuracy or lower the loss or divergence.
        num_permutations: number of permutations n, at least 2; standard errors fall as 1 / sqrt(n).
        key: random key, `jax.random.key(seed)`.

    Returns:
        `ShapleyValues` with `values` and `standard_errors`.

    Raises:
        InputError: for an unknown site or outcome, fewer than 2 permutations, or as in `evaluate_masks`.

    Source: Castro et al., Polynomial calculation of the Shapley value based on sampling (2009); Ghorbani and Zou,
        Neuron Shapley (2020).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int32)
        >>> ja.ablation.shapley_values(model, images, labels, site="layer1", key=jax.random.key(0)).values.shape
        (3,)
    """
    require_known("outcome", outcome, HARM)
    num_permutations = require_count("num_permutations", num_permutations, 2)
    require_key(key)
    require(isinstance(model, AnyModel), f"model: expected one network, got {no_network(model)}")
    network, _, _ = trace_model(model, first_example(images))
    num_examples = require_examples(labels, len(images), network.num_classes)
    first, last = site_range(network, site)
    # Each permutation gives a curve v_0, ..., v_n: v_k is the accuracy, or minus the loss or divergence, with k neurons
    # ablated. The neuron ablated at step k contributes v_(k-1) - v_k. The contributions of a permutation sum to
    # v_0 - v_n.
    permutations = np.asarray(random_orders(last - first, num_permutations, key=key))
    curves = cumulative_ablation(
        model, permutations + first, images, labels, fill, steps=last - first, outcomes=outcome,
        memory_limit=memory_limit, mesh=mesh,
    )  # fmt: skip
    # Values are higher for better networks: HARM has the sign. Counts become fractions; means stay as they are.
    values = -HARM[outcome] * np.asarray(curves, np.float64) / (num_examples if outcome == CORRECT else 1)
    contributions = np.empty(permutations.shape)
    np.put_along_axis(contributions, permutations, values[:, :-1] - values[:, 1:], axis=1)
    errors = contributions.std(axis=0, ddof=1) / num_permutations**0.5
    return ShapleyValues(contributions.mean(axis=0), errors)
