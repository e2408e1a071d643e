"""The parts of a protocol, and the paper's protocol."""

import typing
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jaxablate._typing import Counts, Fill, Masks, Order, Scores
from jaxablate.fills import AnyFill
from jaxablate.metrics import get_metric
from jaxablate.orders import ablation_order
from jaxablate.quantizers import Quantizer, default_quantizer


@typing.runtime_checkable
class FreshSubsets(typing.Protocol):
    """A function that draws random subsets of neurons, a new subset at every step."""

    def __call__(self, num_neurons: int, num_repetitions: int, steps: int, *, key: jax.Array) -> Masks:
        """Return masks bool [repetition, step + 1, neuron], True = kept; the mask of step k ablates k neurons."""
        ...


def paper_score(metric: str, counts: Counts) -> Scores:
    """Return the score by the paper's formula, float32 [neuron]."""
    return np.asarray(get_metric(metric)(counts))


def paper_rank(scores: Scores, direction: str) -> Order:
    """Return the order int32 [rank] with low or high values first, ties by index."""
    return ablation_order(scores, direction=direction)


def mean_balance(counts: Counts, mean: Fill) -> AnyFill:
    """Return the fill of bias balancing: the mean activation of each neuron."""
    return np.asarray(mean)


@dataclass(frozen=True)
class Protocol:
    """The functions by which a study gets from activations to curves.

    Attributes:
        name: name of the protocol in results and tables.
        quantizer: maps the name of an activation function to its quantizer.
        score: maps the name of a metric and counts [neuron, class, code] to scores [neuron].
        rank: maps scores [neuron] and a direction to an order [rank].
        balance: maps counts and mean activations [neuron] to the fill of bias balancing.
        fill_name: name of that fill in results and tables.
        fresh_subsets: draws the masks of random curves, a new subset at every step; None if random curves follow a
            random permutation.
        constant_last: True if neurons whose code never changes on the validation split are ablated after all others,
            in random orders too. Random curves with fresh subsets then draw from the other neurons only.

    Example:
        >>> ja.protocols.get_protocol("published").fresh_subsets(5, 2, 3, key=jax.random.key(0)).shape
        (2, 4, 5)
    """

    name: str
    quantizer: Callable[[str], Quantizer] = default_quantizer
    score: Callable[[str, Counts], Scores] = paper_score
    rank: Callable[[Scores, str], Order] = paper_rank
    balance: Callable[[Counts, Fill], AnyFill] = mean_balance
    fill_name: str = "mean"
    fresh_subsets: FreshSubsets | None = None
    constant_last: bool = False


PAPER = Protocol("paper")
