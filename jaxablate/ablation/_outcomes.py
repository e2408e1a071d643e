"""Compute outcomes of a network (correct predictions, loss, ...) as sums over examples.

Input: outputs of a model for one chunk of examples, and their labels.
Output: sums over the examples, which add over chunks and shards; `average` turns them into results.
Exactness: outcomes of integers are integer sums, the same for every size of chunks and shards.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import InputError, require, require_known
from jaxablate.models._model import ModelSpec

CORRECT = "correct"
NOT_FINITE = "not_finite"
"""Number of examples with a NaN or infinite output; always computed."""

Sums = dict[str, jax.Array]
Outcomes = str | Iterable[str] | Mapping[str, str | Callable[[Any, Any], Any]]
"""Names of outcomes, or functions of (outputs, labels) by name."""
Named = tuple[tuple[str, str | Callable], ...]


class Batch(NamedTuple):
    """One chunk of examples.

    Attributes:
        labels: int [example]; -1 marks an example that does not count.
        targets: labels as the user gave them [example, ...], for the user's own outcomes; else None.
        intact: outputs of the intact network, for "divergence"; else None.
    """

    labels: jax.Array
    targets: Any
    intact: Any


class _Predictions(NamedTuple):
    """Inputs of an outcome.

    Attributes:
        logits: [example, class].
        predicted: class of the largest logit, [example].
        labels: [example]; -1 marks an example that does not count.
        intact: logits of the intact network [example, class]; None unless an outcome needs them.
    """

    logits: jax.Array
    predicted: jax.Array
    labels: jax.Array
    intact: jax.Array | None


def _correct(batch: _Predictions) -> jax.Array:
    # No network predicts the label -1, so padding does not count.
    return (batch.predicted == batch.labels).sum(dtype=jnp.int32)


def _class_correct(batch: _Predictions) -> jax.Array:
    # [example, 1] against [example, class]; padding matches no class.
    is_class = batch.labels[:, None] == jnp.arange(batch.logits.shape[-1])
    return ((batch.predicted == batch.labels)[:, None] & is_class).sum(axis=0, dtype=jnp.int32)


def _confusion(batch: _Predictions) -> jax.Array:
    # The products of one-hot vectors are sums of 0 and 1, which are exact in float32 up to 2^24 examples in a chunk.
    true, predicted = (jax.nn.one_hot(classes, batch.logits.shape[-1]) for classes in (batch.labels, batch.predicted))
    return jnp.einsum("ec,ed->cd", true, predicted).astype(jnp.int32)


def _loss(batch: _Predictions) -> jax.Array:
    # A label of -1 indexes class 0 here, and the factor below removes its term.
    labels = jnp.maximum(batch.labels, 0)[:, None]
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(batch.logits), labels, axis=-1)[:, 0]
    return -(log_likelihood * (batch.labels >= 0)).sum()


def _divergence(batch: _Predictions) -> jax.Array:
    assert batch.intact is not None
    # D_KL(intact || ablated) = sum_c p_c (log p_c - log q_c), by log-softmax, so that no probability underflows.
    intact, ablated = jax.nn.log_softmax(batch.intact), jax.nn.log_softmax(batch.logits)
    return ((jnp.exp(intact) * (intact - ablated)).sum(axis=-1) * (batch.labels >= 0)).sum()


OUTCOMES: dict[str, Callable[[_Predictions], jax.Array]] = {
    CORRECT: _correct,
    "class_correct": _class_correct,
    "confusion": _confusion,
    "loss": _loss,
    "divergence": _divergence,
}
"""Functions from logits [example, class] to sums over the examples, by name.

- `correct`: int32, number of examples whose largest logit (the first, if tied) is the label's.
- `class_correct`: int32 [class], the same for each class.
- `confusion`: int32 [label, predicted].
- `loss`: cross-entropy in nats; reported as the mean over examples.
- `divergence`: D_KL(intact || ablated) of the output distributions in nats; reported as the mean over examples.
"""


def measure(outcomes: Named, kind: str, outputs: Any, batch: Batch) -> Sums:
    """Compute the outcomes and `NOT_FINITE`, each summed over the examples.

    Args:
        outcomes: pairs of a name, and the name of a built-in outcome or a function.
        kind: what the outputs are, "logits" or "probabilities".
        outputs: the model's outputs for the examples of the batch.
        batch: the examples.
    """
    sums: Sums = {}
    if any(isinstance(function, str) for _, function in outcomes):
        predicted, bad = _predict(outputs)
        intact = None if batch.intact is None else _as_logits(batch.intact, kind)
        predictions = _Predictions(_as_logits(outputs, kind), predicted, batch.labels, intact)
        sums = {name: OUTCOMES[function](predictions) for name, function in outcomes if isinstance(function, str)}
    else:
        leaves = [leaf.reshape(len(batch.labels), -1) for leaf in jax.tree.leaves(outputs)]
        bad = ~jnp.stack([jnp.isfinite(leaf).all(axis=1) for leaf in leaves]).all(axis=0)
    for name, function in outcomes:
        if not isinstance(function, str):
            values = function(outputs, batch.targets)
            if jnp.issubdtype(values.dtype, jnp.floating):
                values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
            # a product with False would keep NaN of examples that do not count
            sums[name] = jnp.where(batch.labels >= 0, values, 0).sum()
    sums[NOT_FINITE] = (bad & (batch.labels >= 0)).sum(dtype=jnp.int32)
    return sums


def _as_logits(outputs: jax.Array, kind: str) -> jax.Array:
    """Return float32 logits: of probabilities the logarithms, where 0 counts as the smallest float."""
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))  # sums in bfloat16 would lose digits
    return jnp.log(jnp.maximum(outputs, jnp.finfo(outputs.dtype).tiny)) if kind == "probabilities" else outputs


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


def zero_sums(outcomes: Named, network: ModelSpec, targets: Any, shape: tuple[int, ...]) -> Sums:
    """Return sums of 0 with the leading axes `shape`, for example (network, mask).

    Args:
        outcomes: the outcomes.
        network: the model, which gives the shapes of outputs.
        targets: labels for the user's own outcomes, as in `Batch`, of any number of examples.
        shape: leading axes.
    """
    # The outcomes themselves give the shapes and dtypes, so a new outcome needs no second table. Nothing is computed.
    two = _two_examples(targets)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)

    def both(outputs, labels, targets):
        return measure(outcomes, network.kind, outputs, Batch(labels, targets, outputs))

    sums = jax.eval_shape(both, network.result, labels, two)
    return {name: jnp.zeros((*shape, *spec.shape), spec.dtype) for name, spec in sums.items()}


def _two_examples(targets: Any) -> Any:
    """Return the shapes and dtypes of arrays [example, ...] for two examples, as JAX takes them."""

    def two(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype) if isinstance(array, np.ndarray) else array.dtype
        return jax.ShapeDtypeStruct((2, *np.shape(array)[1:]), dtype)

    return jax.tree.map(two, targets)


def check_outcomes(outcomes: Outcomes) -> Named:
    """Return the outcomes as pairs of a name, and the name of a built-in outcome or a function.

    Raises:
        InputError: for an unknown name, none, or a value that is no function.
    """
    if isinstance(outcomes, str):
        pairs: list[tuple[str, Any]] = [(outcomes, outcomes)]
    elif isinstance(outcomes, Mapping):
        pairs = list(outcomes.items())
    else:
        require(isinstance(outcomes, Iterable), 'outcomes: expected names, or {"name": function}')
        pairs = [(name, name) for name in outcomes]
    require(len(pairs) > 0, f"outcomes: expected at least one of {', '.join(OUTCOMES)}, got none")
    for name, function in pairs:
        if callable(function):
            require(
                isinstance(name, str) and name != NOT_FINITE,
                f"outcomes: {name!r} is no name for an outcome; choose another string",
            )
        else:
            require_known("outcomes", function, OUTCOMES)
    return tuple(pairs)


def require_computable(outcomes: Named, network: ModelSpec, targets: Any) -> None:
    """Raise if a model's outputs or the labels do not suit an outcome.

    Raises:
        InputError: for a loss of logits that are probabilities or always lie between 0 and 1, built-in outcomes of
            outputs that are no logits, or a function that does not return a number for each example.
    """
    names = {function for _, function in outcomes if isinstance(function, str)}
    if names:
        assert network.num_classes > 0  # raises for outputs that are no logits [example, class]
    for name in sorted(names & {"loss", "divergence"} if network.kind == "logits" else ()):
        require(
            not network.are_probabilities,
            f"outcomes: {name!r} takes logits, but the outputs are probabilities, which sum to 1; pass "
            'outputs="probabilities" to ja.from_function or ja.from_module, or return logits',
        )
        # numbers of several classes that do not sum to 1 are no probabilities of one class among them
        require(
            not network.in_unit_interval,
            f"outcomes: {name!r} takes logits, but the outputs always lie between 0 and 1, as after a sigmoid; "
            "return logits",
        )
    two = _two_examples(targets)
    for name, function in outcomes:
        if isinstance(function, str):
            continue
        try:
            values = jax.eval_shape(function, network.result, two)
        except Exception as error:  # the user's own code may raise anything
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"outcome {name!r}: the function raises {type(error).__name__}: {reason}") from error
        require(
            getattr(values, "shape", None) == (2,) and not jnp.issubdtype(values.dtype, jnp.complexfloating),
            f"outcome {name!r}: expected a number for each example, shape (2,) for 2 examples, got "
            f"{getattr(values, 'shape', type(values).__name__)}; return an array [example]",
        )


def average(sums: dict[str, np.ndarray], num_examples: int) -> dict[str, np.ndarray]:
    """Return counts as int32, and sums of floating-point outcomes divided by the number of examples as float32."""
    return {
        name: values.astype(np.int32)
        if np.issubdtype(values.dtype, np.integer)
        else (values / num_examples).astype(np.float32)
        for name, values in sums.items()
    }
