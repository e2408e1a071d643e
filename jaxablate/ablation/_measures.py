"""Measures: logits and labels come in, sums over the examples go out, which add over chunks and shards."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import require, require_known

CORRECT = "correct"
NOT_FINITE = "not_finite"
"""1 for each chunk of examples in which a logit is NaN or infinite, so 0 if all are finite; measured always."""

Sums = dict[str, jax.Array]


def _correct(logits, labels, intact):
    return (logits.argmax(axis=-1) == labels).sum(axis=-1, dtype=jnp.int32)


def _confusion(logits, labels, intact):
    classes = logits.shape[-1]
    true, predicted = (jax.nn.one_hot(codes, classes) for codes in (labels, logits.argmax(axis=-1)))
    return jnp.einsum("ec,...ed->...cd", true, predicted).astype(jnp.int32)


def _class_correct(logits, labels, intact):
    right = (logits.argmax(axis=-1) == labels)[..., None]
    return (right & (labels[:, None] == jnp.arange(logits.shape[-1]))).sum(axis=-2, dtype=jnp.int32)


def _loss(logits, labels, intact):
    of_label = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.broadcast_to(jnp.maximum(labels, 0), logits.shape[:-1])[..., None], axis=-1
    )
    return -(of_label[..., 0] * (labels >= 0)).sum(axis=-1)


def _divergence(logits, labels, intact):
    assert intact is not None
    before, after = jax.nn.log_softmax(intact), jax.nn.log_softmax(logits)
    return ((jnp.exp(before) * (before - after)).sum(axis=-1) * (labels >= 0)).sum(axis=-1)


MEASURES: dict[str, Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]] = {
    CORRECT: _correct,
    "class_correct": _class_correct,
    "confusion": _confusion,
    "loss": _loss,
    "divergence": _divergence,
}
"""From logits [..., example, class], labels [example] (-1: none) and the intact logits [example, class] to sums [...].

- `correct`: int32, examples whose largest logit (the first, if tied) is the label's.
- `class_correct`: int32 [..., class], the same for each class.
- `confusion`: int32 [..., label, predicted].
- `loss`: cross-entropy, in nats; reported as the mean over examples.
- `divergence`: D_KL(intact || ablated) of the output distributions, in nats; reported as the mean over examples.
"""


def measure(names: Sequence[str], logits: jax.Array, labels: jax.Array, intact: jax.Array | None) -> Sums:
    """The measures of these names, and `NOT_FINITE`, all summed over examples."""
    sums = {name: MEASURES[name](logits, labels, intact) for name in names}
    return {**sums, NOT_FINITE: (~jnp.isfinite(logits).all(axis=(-2, -1))).astype(jnp.int32)}


def zeros(names: Sequence[str], num_classes: int, shape: tuple[int, ...]) -> Sums:
    """Sums to start from, for each of `shape` results."""
    logits, labels = jax.ShapeDtypeStruct((1, num_classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    sums = jax.eval_shape(lambda logits, labels: measure(names, logits, labels, logits), logits, labels)
    return {name: jnp.zeros((*shape, *of.shape), of.dtype) for name, of in sums.items()}


def checked_names(measures: str | Iterable[str]) -> tuple[str, ...]:
    """The names of the measures asked for.

    Raises:
        InputError: for an unknown one, or none.
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    require(len(names) > 0, f"measures: expected at least one of {', '.join(MEASURES)}, got none")
    for name in names:
        require_known("measure", name, MEASURES)
    return names


def finished(sums: dict[str, np.ndarray], num_examples: int) -> dict[str, np.ndarray]:
    """Counts as they are, in int32; what is a mean over examples divided by their number, in float32."""
    return {
        name: of.astype(np.int32) if np.issubdtype(of.dtype, np.integer) else (of / num_examples).astype(np.float32)
        for name, of in sums.items()
    }
