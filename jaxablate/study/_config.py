"""What a study runs: `StudyConfig`, checked when it is made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxablate._checks import require, require_known
from jaxablate.metrics import METRICS
from jaxablate.models import ACTIVATIONS
from jaxablate.orders import DIRECTIONS, NORMALIZATIONS
from jaxablate.protocols import PAPER, Protocol, get_protocol
from jaxablate.quantizers import get_quantizer
from jaxablate.results import RANDOM, Ordering
from jaxablate.scores import get_score

EXTRA_FILLS = ("median", "class_mean", "resample")


@dataclass(frozen=True)
class StudyConfig:
    """What to run; the defaults are the paper's experiment.

    Attributes:
        dataset: as in `load_dataset`.
        data_dir: as in `load_dataset`.
        split_seed: of the training / validation split.
        networks: hidden layers of each network to train; () where `run_study` is given models.
        activation: of the hidden layers of the networks to train.
        quantizer: how activations become codes: "activation" asks whether the neuron fires, as in `default_quantizer`
            (of an `MLP`, which knows its activation function); all others are those of `get_quantizer`, such as "mean"
            or "quantile:8", with edges from the validation split where they come from data, and go with the paper's
            protocol alone.
        seeds: one network of each kind is trained for each.
        epochs: None keeps the number of optimiser steps near the paper's.
        batch_size: examples of one optimiser step.
        learning_rate: of Adam.
        l2: coefficient of the weights in the gradient.
        protocols: how neurons are scored, ranked, balanced and drawn at random, as in `get_protocol`; each protocol
            gets its own results, from the same trained networks.
        scores: scores that rank neurons, by their names in `ja.scores.get_score`.
        normalization: how scores of different layers are made comparable in orders of the whole network, as in
            `ja.orders.normalize_per_layer`; "none", which the paper does, ranks them raw. Others go with the paper's
            protocol alone.
        num_random_orders: random permutations for each network, seed and scope.
        num_random_subsets: repetitions of the random curve where a protocol draws a fresh subset at every step.
        steps: neurons ablated, one after another.
        extra_fills: beside zero and the protocol's bias balancing: "median", "class_mean", "resample", as in
            `compute_fill`, on the validation split.

    Raises:
        InputError: for an unknown activation, metric or protocol, more steps than the smallest layer has neurons, or a
            setting out of range or of another kind.

    Example:
        >>> ja.StudyConfig(dataset="mnist5k", seeds=(0, 1)).steps
        80
    """

    dataset: str | Path = "auto"
    data_dir: str | Path | None = None
    split_seed: int = 2045
    networks: Sequence[Sequence[int]] = ((200, 200), (200, 200, 200))
    activation: str = "sigmoid"
    quantizer: str | float = "activation"
    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    l2: float = 1e-3
    protocols: Sequence[str] = (PAPER.name,)
    scores: Sequence[str] = tuple(METRICS)
    normalization: str = "none"
    num_random_orders: int = 10
    num_random_subsets: int = 2
    steps: int = 80
    extra_fills: Sequence[str] = ()

    def __post_init__(self):
        for name, value in vars(self).copy().items():
            if isinstance(value, np.generic):  # a NumPy number, which the JSON of the results would not take
                object.__setattr__(self, name, value.item())
        for name in ("seeds", "scores", "networks", "protocols", "extra_fills"):
            value = getattr(self, name)
            require(
                isinstance(value, Iterable) and not isinstance(value, str),
                f"{name}: expected a sequence, got {value!r}",
            )
        require(
            all(isinstance(hidden, Iterable) for hidden in self.networks),
            f"networks: expected the hidden layers of each network, such as ((200, 200),), got {self.networks!r}",
        )
        plain = {
            "dataset": str(self.dataset),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "networks": tuple(tuple(int(width) for width in hidden) for hidden in self.networks),
            "seeds": tuple(int(seed) for seed in self.seeds),
            "scores": tuple(self.scores),
            "protocols": tuple(self.protocols),
            "extra_fills": tuple(self.extra_fills),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the documented way to fill a frozen dataclass
        self._check()

    def _check(self) -> None:
        require_known("activation", self.activation, ACTIVATIONS)
        for metric in self.scores:
            get_score(metric)
        for protocol in self.protocols:
            get_protocol(protocol)
        for fill in self.extra_fills:
            require_known("fill to add", fill, EXTRA_FILLS)
        if self.quantizer != "activation":
            get_quantizer(self.quantizer)
        require(
            self.quantizer == "activation" or self.protocols == (PAPER.name,),
            f"quantizer {self.quantizer!r}: expected the paper's protocol alone, which does not fix the codes, got "
            f"{', '.join(self.protocols)}",
        )
        require_known("normalization", self.normalization, NORMALIZATIONS)
        require(
            self.normalization == "none" or self.protocols == (PAPER.name,),
            f"normalization {self.normalization!r}: expected the paper's protocol alone, got "
            f"{', '.join(self.protocols)}",
        )
        for name in ("networks", "seeds", "scores", "protocols", "extra_fills"):
            values = getattr(self, name)
            require(len(values) > 0 or name in ("networks", "extra_fills"), f"{name}: expected at least one, got none")
            require(len(set(values)) == len(values), f"{name}: expected different values, got {values}")
        require(
            all(len(hidden) > 0 and min(hidden) >= 1 for hidden in self.networks),
            f"networks: expected hidden layers of at least one neuron each, got {self.networks}",
        )
        require(
            all(0 <= seed < 2**32 for seed in self.seeds), f"seeds: expected numbers in 0..2^32-1, got {self.seeds}"
        )
        for name in ("num_random_orders", "num_random_subsets", "batch_size", "epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: expected at least 1, got {value}")
        require(self.learning_rate > 0, f"learning_rate: expected a number above 0, got {self.learning_rate}")
        require(self.l2 >= 0, f"l2: expected a number of at least 0, got {self.l2}")
        self.check_steps([width for hidden in self.networks for width in hidden] or [self.steps])

    def check_steps(self, widths: Sequence[int]) -> None:
        """Raise unless layers of these widths have as many neurons as there are steps."""
        largest = min(widths)
        require(
            1 <= self.steps <= largest,
            f"steps: expected 1 to {largest}, the neurons of the smallest layer, got {self.steps}; "
            f"{largest} is the largest possible",
        )

    def orderings(self, protocol: Protocol) -> tuple[Ordering, ...]:
        """Every ordering evaluated under a protocol: each metric low and high values first, then the random ones."""
        ranked = [Ordering(metric, direction) for metric in self.scores for direction in DIRECTIONS]
        repetitions = self.num_random_subsets if protocol.fresh_subsets else self.num_random_orders
        return (*ranked, *(Ordering(RANDOM, str(i)) for i in range(repetitions)))


def network_name(hidden: Sequence[int]) -> str:
    """The name of a network in the results: `2-layer` for (200, 200), `2-layer-100-50` for (100, 50).

    Args:
        hidden: neurons of each hidden layer.

    Returns:
        The name of the node.

    Example:
        >>> ja.study.network_name((200, 200, 200))
        '3-layer'
    """
    depth = f"{len(hidden)}-layer"
    return depth if set(hidden) == {200} else "-".join([depth, *map(str, hidden)])
