"""Compute outcomes of a network (correct predictions, loss, ...) as sums over examples.

Input: logits [..., example, class] and labels [example].
Output: sums over the examples, which add over chunks and shards; `average` turns them into results.
Exactness: "correct", "class_correct" and "confusion" are integer sums, the same for every size of chunks and shards.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_known

CORRECT = "correct"
NOT_FINITE = "not_finite"
"""Number of examples with a NaN or infinite logit; always computed."""

Sums = dict[str, jax.Array]


class _Predictions(NamedTuple):
    """Inputs of an outcome.

    Attributes:
        logits: [..., example, class].
        predicted: class of the largest logit, [..., example].
        labels: [example]; -1 marks an example that does not count.
        intact: logits of the intact network [example, class]; None unless an outcome needs them.
    """

    logits: jax.Array
    predicted: jax.Array
    labels: jax.Array
    intact: jax.Array | None


def _correct(batch: _Predictions) -> jax.Array:
    # No network predicts the label -1, so padding does not count.
    return (batch.predicted == batch.labels).sum(axis=-1, dtype=jnp.int32)


def _class_correct(batch: _Predictions) -> jax.Array:
    # [..., example, 1] against [example, class]; padding matches no class.
    is_correct = (batch.predicted == batch.labels)[..., None]
    is_class = batch.labels[:, None] == jnp.arange(batch.logits.shape[-1])
    return (is_correct & is_class).sum(axis=-2, dtype=jnp.int32)


def _confusion(batch: _Predictions) -> jax.Array:
    # The products of one-hot vectors are sums of 0 and 1, which are exact in float32 up to 2^24 examples in a chunk.
    true, predicted = (jax.nn.one_hot(classes, batch.logits.shape[-1]) for classes in (batch.labels, batch.predicted))
    return jnp.einsum("ec,...ed->...cd", true, predicted).astype(jnp.int32)


def _loss(batch: _Predictions) -> jax.Array:
    # A label of -1 indexes class 0 here, and the factor below removes its term.
    labels = jnp.broadcast_to(jnp.maximum(batch.labels, 0), batch.predicted.shape)[..., None]
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(batch.logits), labels, axis=-1)[..., 0]
    return -(log_likelihood * (batch.labels >= 0)).sum(axis=-1)


def _divergence(batch: _Predictions) -> jax.Array:
    assert batch.intact is not None
    # D_KL(intact || ablated) = sum_c p_c (log p_c - log q_c), by log-softmax, so that no probability underflows.
    intact, ablated = jax.nn.log_softmax(batch.intact), jax.nn.log_softmax(batch.logits)
    return ((jnp.exp(intact) * (intact - ablated)).sum(axis=-1) * (batch.labels >= 0)).sum(axis=-1)


OUTCOMES: dict[str, Callable[[_Predictions], jax.Array]] = {
    CORRECT: _correct,
    "class_correct": _class_correct,
    "confusion": _confusion,
    "loss": _loss,
    "divergence": _divergence,
}
"""Functions from logits [..., example, class] to sums over the examples [...], by name.

- `correct`: int32, number of examples whose largest logit (the first, if tied) is the label's.
- `class_correct`: int32 [..., class], the same for each class.
- `confusion`: int32 [..., label, predicted].
- `loss`: cross-entropy in nats; reported as the mean over examples.
- `divergence`: D_KL(intact || ablated) of the output distributions in nats; reported as the mean over examples.
"""


def measure(names: Sequence[str], logits: jax.Array, labels: jax.Array, intact: jax.Array | None) -> Sums:
    """Compute the named outcomes and `NOT_FINITE`, each summed over the examples.

    Args:
        names: names of outcomes.
        logits: [..., example, class].
        labels: [example]; -1 for an example that does not count.
        intact: logits of the intact network [example, class], for "divergence".
    """
    predicted, bad = _predict(logits)
    batch = _Predictions(logits, predicted, labels, intact)
    return {**{name: OUTCOMES[name](batch) for name in names}, NOT_FINITE: bad.sum(axis=-1, dtype=jnp.int32)}


def _predict(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the predicted class of each example, and True for an example with a NaN or infinite logit.

    The predicted class has the largest logit; the first class wins a tie. Both results are [..., example].
    One reduction computes both in a fifth of the time of `argmax` followed by `isfinite`.
    """

    def larger(first, second):
        (value, index, bad), (other_value, other_index, other_bad) = first, second
        keeps = (value > other_value) | ((value == other_value) & (index < other_index))
        return jnp.where(keeps, value, other_value), jnp.where(keeps, index, other_index), bad | other_bad

    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    # The start loses against every logit, -inf included, because its index is larger than any class.
    start = jnp.array(-jnp.inf, logits.dtype), jnp.int32(logits.shape[-1]), False
    _, predicted, bad = jax.lax.reduce((logits, classes, ~jnp.isfinite(logits)), start, larger, (logits.ndim - 1,))
    return predicted, bad


def zero_sums(names: Sequence[str], num_classes: int, shape: tuple[int, ...]) -> Sums:
    """Return sums of 0 with the leading axes `shape`, for example (network, mask)."""
    # The outcomes themselves give the shapes and dtypes, so a new outcome needs no second table. Nothing is computed.
    logits, labels = jax.ShapeDtypeStruct((1, num_classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    sums = jax.eval_shape(lambda logits, labels: measure(names, logits, labels, logits), logits, labels)
    return {name: jnp.zeros((*shape, *spec.shape), spec.dtype) for name, spec in sums.items()}


def check_names(outcomes: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of the outcomes.

    Raises:
        InputError: for an unknown name, or none.
    """
    names = (outcomes,) if isinstance(outcomes, str) else tuple(outcomes)
    require(len(names) > 0, f"outcomes: expected at least one of {', '.join(OUTCOMES)}, got none")
    for name in names:
        require_known("outcomes", name, OUTCOMES)
    return names


def average(sums: dict[str, np.ndarray], num_examples: int) -> dict[str, np.ndarray]:
    """Return counts as int32, and sums of floating-point outcomes divided by the number of examples as float32."""
    return {
        name: values.astype(np.int32)
        if np.issubdtype(values.dtype, np.integer)
        else (values / num_examples).astype(np.float32)
        for name, values in sums.items()
    }
