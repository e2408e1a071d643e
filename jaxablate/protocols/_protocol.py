"""What a protocol decides, and the paper's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxablate._typing import Counts, Fill, Masks, Order, Scores
from jaxablate.metrics import get_metric
from jaxablate.orders import ablation_order
from jaxablate.quantizers import Quantizer, default_quantizer

FreshSubsets = Callable[[jax.Array, int, int, int], Masks]


class Balance(NamedTuple):
    """What a neuron ablated with bias balancing puts out: scale * h + fill, or the fill alone; `name` labels it."""

    name: str
    fill: np.ndarray
    scale: np.ndarray | None


def paper_score(metric: str, counts: Counts) -> Scores:
    """The score by the paper's formula, float32 [neuron]."""
    return np.asarray(get_metric(metric)(counts))


def paper_rank(scores: Scores, direction: str) -> Order:
    """Low or high values first, ties by index."""
    return ablation_order(scores, direction=direction)


def mean_balance(counts: Counts, mean: Fill) -> Balance:
    """The neuron's mean activation in its place."""
    return Balance("mean", np.asarray(mean), None)


@dataclass(frozen=True)
class Protocol:
    """How a study gets from activations to curves.

    Attributes:
        name: in results and tables.
        quantizer: from the name of an activation function to a quantizer.
        score: from a metric's name and counts [neuron, class, code] to scores [neuron].
        rank: from scores [neuron] and a direction to an order [rank].
        balance: from counts and mean activations [neuron] to what a balanced ablated neuron puts out.
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
    balance: Callable[[Counts, Fill], Balance] = mean_balance
    fresh_subsets: FreshSubsets | None = None


PAPER = Protocol("paper")
