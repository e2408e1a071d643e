"""What a protocol decides, and the paper's."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jaxablate._typing import Counts, Fill, Masks, Order, Scores
from jaxablate.fills import AnyFill
from jaxablate.metrics import get_metric
from jaxablate.orders import ablation_order
from jaxablate.quantizers import Quantizer, default_quantizer

FreshSubsets = Callable[[jax.Array, int, int, int], Masks]


def paper_score(metric: str, counts: Counts) -> Scores:
    """The score by the paper's formula, float32 [neuron]."""
    return np.asarray(get_metric(metric)(counts))


def paper_rank(scores: Scores, direction: str) -> Order:
    """Low or high values first, ties by index."""
    return ablation_order(scores, direction=direction)


def mean_balance(counts: Counts, mean: Fill) -> AnyFill:
    """Return the fill of bias balancing: the mean activation of each neuron."""
    return np.asarray(mean)


@dataclass(frozen=True)
class Protocol:
    """How a study gets from activations to curves.

    Attributes:
        name: in results and tables.
        quantizer: from the name of an activation function to a quantizer.
        score: from a metric's name and counts [neuron, class, code] to scores [neuron].
        rank: from scores [neuron] and a direction to an order [rank].
        balance: from counts and mean activations [neuron] to the fill of bias balancing.
        fill_name: name of that fill in results and tables.
        fresh_subsets: None where random curves follow a permutation; else from a key, neurons, repetitions and steps
            to masks bool [repetition, step + 1, neuron], whose random subsets are drawn anew at every step.

    Example:
        >>> ja.protocols.get_protocol("published").fresh_subsets(jax.random.key(0), 5, 2, 3).shape
        (2, 4, 5)
    """

    name: str
    quantizer: Callable[[str], Quantizer] = default_quantizer
    score: Callable[[str, Counts], Scores] = paper_score
    rank: Callable[[Scores, str], Order] = paper_rank
    balance: Callable[[Counts, Fill], AnyFill] = mean_balance
    fill_name: str = "mean"
    fresh_subsets: FreshSubsets | None = None


PAPER = Protocol("paper")
