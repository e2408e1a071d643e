"""The published protocol: the departures of the code behind the published figures from the paper's formulas.

Input: names of departures.
Output: a `Protocol`. Each departure replaces one function, so it can be turned on alone.
Source: the published code. Two departures are visible in the published figures, as scores above log 2, the largest
entropy of a one-bit code.
"""

from collections.abc import Callable, Collection
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
    "strict_threshold": "a neuron fires if its activation is above the threshold, not at it",
    "fresh_subsets": "random curves draw a new subset at every step, and begin at one neuron",
}
"""The six departures by name, each explained in one sentence."""

CONTROLS = {
    "constant_last": "neurons whose code never changes on the validation split are ablated after all others",
    "reversed_ties": "neurons with equal scores are ranked by descending index",
}
"""Changes of the orders that control a comparison; neither the paper nor its code makes them."""


def with_departures(departures: Collection[str], name: str) -> Protocol:
    """Return the paper's protocol with some departures and controls turned on."""
    # Each departure replaces functions of the paper's protocol that do not depend on the other departures. So any
    # subset works.
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
    if "reversed_ties" in departures:
        protocol = replace(protocol, rank=partial(rank_reversed, protocol.rank))
    return replace(protocol, constant_last="constant_last" in departures)


def published_score(departures: Collection[str], metric: str, counts: Counts) -> Scores:
    """Return the score with the departures "mi_sign", "nan_logs" or both, as float32 [neuron].

    "mi_sign" adds H(T|Y) where the formula I(T;Y) = H(T) - H(T|Y) subtracts it. "nan_logs" gives NaN for 0 log 0:
    entropy is NaN if a code of the neuron never occurs, mutual information if a pair of class and code never occurs.
    """
    # NaN is set afterwards, wherever the published code computed 0 log 0.
    scores, counts = np.asarray(paper_score(metric, counts)), np.asarray(counts)
    if metric == "mutual_information" and "mi_sign" in departures:
        # H(T) + H(T|Y) = 2 H(T) - I(T;Y)
        scores = 2 * np.asarray(paper_score("entropy", counts)) - scores
    if "nan_logs" in departures:
        if metric == "entropy":
            scores = np.where((counts.sum(axis=1) == 0).any(axis=1), np.float32(np.nan), scores)
        elif metric == "mutual_information":
            scores = np.where((counts == 0).any(axis=(1, 2)), np.float32(np.nan), scores)
    return scores


def rank_with_nan(largest: bool, scores: Scores, direction: str) -> Order:
    """Return the order with low or high values first; ties by index, NaN above (`largest`) or below all numbers."""
    # NaN becomes a number beyond the others, so that all NaN tie and ablation_order ranks them by index
    scores = np.asarray(scores)
    numbers = scores[~np.isnan(scores)]
    if numbers.size:
        scores = np.where(np.isnan(scores), numbers.max() + 1 if largest else numbers.min() - 1, scores)
    else:
        scores = np.zeros_like(scores)
    return ablation_order(scores, direction=direction)


def rank_reversed(rank: Callable[[Scores, str], Order], scores: Scores, direction: str) -> Order:
    """Return the order of another ranking, with neurons of equal scores by descending index."""
    # ranked in reverse, the neuron with the highest index comes first among equals
    return len(scores) - 1 - np.asarray(rank(np.asarray(scores)[::-1], direction))


def firing_rate_balance(counts: Counts, mean: Fill) -> AffineFill:
    """Return the fill that multiplies each neuron's activation by its firing rate P(T=1)."""
    counts = np.asarray(counts)
    # Code 1 means that the neuron fires: protocols other than the paper's always use one-bit quantizers (`StudyConfig`
    # checks it).
    rate = counts[:, :, 1].sum(axis=1) / counts.sum(axis=(1, 2))
    return AffineFill(scale=rate.astype(np.float32), offset=np.zeros(len(counts), np.float32))


def strict_quantizer(activation: str) -> Quantizer:
    """Return the quantizer with h > threshold instead of h >= threshold; relu and gelu have a strict default."""
    strict = {"sigmoid": threshold(0.5, strict=True), "tanh": threshold(0.0, strict=True)}
    return strict.get(activation) or default_quantizer(activation)


def fresh_subsets(num_neurons: int, num_repetitions: int, steps: int, *, key: jax.Array) -> np.ndarray:
    """Draw masks bool [repetition, step + 1, neuron], True = kept: step k ablates k neurons, drawn for each step."""
    keys = jax.random.split(key, (num_repetitions, steps + 1))
    # A random rank for each neuron, drawn again for each step. Keeping ranks of at least k ablates exactly k neurons at
    # step k.
    ranks = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, num_neurons)))(keys)
    return np.asarray(ranks >= jnp.arange(steps + 1)[:, None])
