"""Scores of every kind: evidence of a network and examples comes in, one number for each neuron goes out.

A score is a function from `Evidence` to an array [neuron]. `SCORES` has them by name; a score of one's own joins them
by `ja.scores.SCORES["mine"] = lambda evidence: evidence.activations.max(axis=0)` and can then order a study.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from jaxablate._checks import require, require_finite, require_known
from jaxablate._typing import AnyArray
from jaxablate.metrics import METRICS, entropy, mutual_information, specific_information
from jaxablate.scores._evidence import Evidence

__all__ = ["SCORES", "Evidence", "Score", "compute_score", "get_score"]

Score = Callable[[Evidence], AnyArray]


def conditional_entropy(evidence: Evidence) -> np.ndarray:
    """H(T|Y) = H(T) - I(T;Y), in nats: what the code does not tell of the class."""
    return np.asarray(METRICS["entropy"](evidence.counts)) - np.asarray(METRICS["mutual_information"](evidence.counts))


def class_selectivity(evidence: Evidence) -> np.ndarray:
    """(m_max - m_rest) / (m_max + m_rest) of the class means of the activation, m_rest the mean over the other classes;
    0 where both are 0. In [0, 1] for activations >= 0. Source: Morcos et al., 2018."""
    means = evidence.class_means
    require(len(means) > 1, f"class_selectivity: expected examples of two classes or more, got {len(means)}")
    largest = means.max(axis=0)
    rest = (means.sum(axis=0) - largest) / (len(means) - 1)
    total = largest + rest
    return np.divide(largest - rest, total, out=np.zeros_like(total), where=total != 0)


SCORES: dict[str, Score] = {
    **{name: (lambda evidence, metric=metric: metric(evidence.counts)) for name, metric in METRICS.items()},
    "entropy_miller_madow": lambda evidence: entropy(evidence.counts, estimator="miller_madow"),
    "mutual_information_miller_madow": lambda evidence: mutual_information(evidence.counts, estimator="miller_madow"),
    "conditional_entropy": conditional_entropy,
    "class_selectivity": class_selectivity,
    "mean_activation": lambda evidence: evidence.activations.mean(axis=0, dtype=np.float64),
    "activation_variance": lambda evidence: evidence.activations.var(axis=0, dtype=np.float64),
    "zero_fraction": lambda evidence: evidence.zeros,
    "incoming_norm": lambda evidence: evidence.incoming,
    "outgoing_norm": lambda evidence: evidence.outgoing,
    "taylor": lambda evidence: evidence.taylor,
    "single_damage": lambda evidence: evidence.damage,
    "shapley": lambda evidence: evidence.shapley.values,
}
"""Scores by name.

- `entropy`, `mutual_information`, `kl_selectivity`, `conditional_entropy`: of the code, in nats; the first two also
  with the first-order bias taken off, `entropy_miller_madow` and `mutual_information_miller_madow`.
- `class_selectivity`: of the activation (Morcos et al., 2018).
- `mean_activation`, `activation_variance`; `zero_fraction`: examples, and places of a channel's map in them, where it
  is not above 0 (APoZ, Hu et al., 2016).
- `incoming_norm`, `outgoing_norm`: of weights (chains only).
- `taylor`: |a dL/da| (Molchanov et al., 2017).
- `single_damage`: rise of the loss without the neuron, its mean in its place, in nats.
- `shapley`: Shapley value of the loss in nats, from 20 permutations of the whole network.
"""


SHIPPED = SCORES.copy()
SPECIFIC = "specific_information_"


def get_score(name: str) -> Score:
    """The score of this name.

    Args:
        name: one of `SCORES`, or `specific_information_C`: what the code tells of class C, in nats, as in
            `ja.metrics.specific_information`.

    Returns:
        A function from `Evidence` to an array [neuron].

    Raises:
        InputError: for an unknown name.

    Example:
        >>> ja.scores.get_score("taylor") is ja.scores.SCORES["taylor"]
        True
    """
    of_class = name.removeprefix(SPECIFIC)
    if of_class != name and of_class.isdecimal():
        return partial(_specific_to, int(of_class))
    require_known("score", name, (*SCORES, SPECIFIC + "CLASS"))
    return SCORES[name]


def _specific_to(class_: int, evidence: Evidence) -> np.ndarray:
    last = evidence.num_classes - 1
    require(class_ <= last, f"score '{SPECIFIC}{class_}': expected a class in 0..{last}, got {class_}")
    return np.asarray(specific_information(evidence.counts))[:, class_]


def is_user_defined(name: str) -> bool:
    """Whether a score is the user's own, or stands in place of one of ours."""
    return SCORES.get(name) is not SHIPPED.get(name)


def compute_score(name: str, evidence: Evidence) -> np.ndarray:
    """One score of every neuron.

    Args:
        name: as in `get_score`.
        evidence: of a network.

    Returns:
        float [neuron], over all sites in network order.

    Raises:
        InputError: for an unknown name, a score that the network has not, or one that is not finite or of another
            shape.

    Example:
        >>> data = ja.load_dataset("mnist5k").validation
        >>> model = ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> ja.scores.compute_score("taylor", ja.scores.Evidence(model, data.images, data.labels, 10)).shape
        (5,)
    """
    found = np.asarray(get_score(name)(evidence))
    neurons = evidence.activations.shape[1]
    require(found.shape == (neurons,), f"score {name!r}: expected shape ({neurons},) = [neuron], got {found.shape}")
    require_finite(f"score {name!r}", found)
    return found
