"""The published protocol: where the code behind the published figures departs from the paper's formulas.

Each departure is a piece of its own, so that each can be turned on alone. Nothing else in the package knows of them.
Source: facts about the published code; two show in the published figures (scores above the log 2 of a one-bit code).
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._typing import Counts, Fill, Order, Scores
from jaxablate.fills import AffineFill
from jaxablate.orders import ablation_order
from jaxablate.protocols._protocol import PAPER, Protocol, paper_score
from jaxablate.quantizers import Quantizer, default_quantizer, threshold

DEPARTURES = {
    "mi_sign": "mutual information is H(T) + H(T|Y)",
    "nan_logs": "0 log 0 is NaN in entropy and mutual information",
    "nan_largest": "NaN ranks as the largest value (without this, as the smallest)",
    "firing_rate_scaling": "bias balancing multiplies the activation by the neuron's firing rate",
    "strict_threshold": "a neuron fires where its activation is above the threshold, not at it",
    "fresh_subsets": "random curves draw a new subset at every step, and begin at one neuron",
}
"""The six departures by name, each in a sentence."""


def with_departures(departures: Collection[str], name: str) -> Protocol:
    """The paper's protocol with some departures turned on."""
    protocol = replace(PAPER, name=name)
    scoring = frozenset(departures) & {"mi_sign", "nan_logs"}
    if scoring:
        protocol = replace(protocol, score=partial(published_score, scoring))
    if frozenset(departures) & {"nan_logs", "nan_largest"}:
        protocol = replace(protocol, rank=partial(rank_with_nan, "nan_largest" in departures))
    if "firing_rate_scaling" in departures:
        protocol = replace(protocol, balance=firing_rate_balance, fill_name="scaled")
    if "strict_threshold" in departures:
        protocol = replace(protocol, quantizer=strict_quantizer)
    if "fresh_subsets" in departures:
        protocol = replace(protocol, fresh_subsets=fresh_subsets)
    return protocol


def published_score(departures: Collection[str], metric: str, counts: Counts) -> Scores:
    """The score with "mi_sign", "nan_logs" or both; float32 [neuron], NaN where the published code has it.

    Entropy is NaN where a code never comes up; mutual information where a pair of class and code never does.
    """
    scores, counts = np.asarray(paper_score(metric, counts)), np.asarray(counts)
    if metric == "mutual_information" and "mi_sign" in departures:
        scores = 2 * np.asarray(paper_score("entropy", counts)) - scores  # H(T|Y) = H(T) - I(T;Y)
    if "nan_logs" in departures:
        if metric == "entropy":
            scores = np.where((counts.sum(axis=1) == 0).any(axis=1), np.float32(np.nan), scores)
        elif metric == "mutual_information":
            scores = np.where((counts == 0).any(axis=(1, 2)), np.float32(np.nan), scores)
    return scores


def rank_with_nan(largest: bool, scores: Scores, direction: str) -> Order:
    """Low or high values first, ties by index, NaN above or below all numbers."""
    scores = np.asarray(scores)
    numbers = scores[~np.isnan(scores)]
    if numbers.size:
        scores = np.where(np.isnan(scores), numbers.max() + 1 if largest else numbers.min() - 1, scores)
    else:
        scores = np.zeros_like(scores)
    return ablation_order(scores, direction=direction)


def firing_rate_balance(counts: Counts, mean: Fill) -> AffineFill:
    """Return the fill that multiplies each neuron's activation by its firing rate P(T=1)."""
    counts = np.asarray(counts)
    rate = counts[:, :, 1].sum(axis=1) / counts.sum(axis=(1, 2))
    return AffineFill(scale=rate.astype(np.float32), offset=np.zeros(len(counts), np.float32))


def strict_quantizer(activation: str) -> Quantizer:
    """h > threshold in place of h >= threshold, where the activation function's quantizer is not strict already."""
    strict = {"sigmoid": threshold(0.5, strict=True), "tanh": threshold(0.0, strict=True)}
    return strict.get(activation) or default_quantizer(activation)


def fresh_subsets(key: jax.Array, num_neurons: int, repetitions: int, steps: int) -> np.ndarray:
    """Masks bool [repetition, step + 1, neuron], True = kept: step k lacks k neurons, drawn anew at every step."""
    keys = jax.random.split(key, (repetitions, steps + 1))
    ranks = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, num_neurons)))(keys)
    return np.asarray(ranks >= jnp.arange(steps + 1)[:, None])
