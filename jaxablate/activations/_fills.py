"""Fills: what stands in for an ablated neuron, computed on examples that the caller names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxablate._checks import require, require_finite, require_known, require_labels, require_shape
from jaxablate._precision import matmul_precision
from jaxablate._typing import Fill, Images, Labels, Masks
from jaxablate.activations._record import mean_activations, recorded_outputs
from jaxablate.fills import PerExampleFill
from jaxablate.models import Model
from jaxablate.models._network import ModelSpec, run_from_site, run_prefix, trace_model

FILLS = ("zero", "constant", "mean", "median", "class_mean", "resample", "optimal")


def compute_fill(
    model: Model,
    kind: str,
    images: Images,
    labels: Labels | None = None,
    *,
    value: float = 0.0,
    key: jax.Array | None = None,
    keep: Masks | None = None,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
) -> Fill | PerExampleFill:
    """What stands in for an ablated neuron, from these examples; `evaluate_masks` and the like take it as `fill`.

    - "zero": 0.
    - "constant": `value`, for every neuron.
    - "mean", "median": of the neuron's activations (of a channel: over examples and places).
    - "class_mean": for an example of class c the neuron's mean over the examples of class c. It tells the network the
      label, as far as the neuron knew it: an upper bound of what is left.
    - "resample": the neuron's activation in another example, one of these drawn for each example that is evaluated (one
      for all its neurons; a channel's whole map).
    - "optimal": the constant for each neuron that minimises the loss of the network ablated by the masks `keep`, by
      gradient descent (Adam) from the mean.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        kind: one of the names above.
        images: the examples to compute it on, by convention the validation split.
        labels: integers [example], for "class_mean" and "optimal".
        value: of "constant".
        key: a random key, `jax.random.key(seed)`, for "resample" and "optimal".
        keep: bool [mask, neuron], for "optimal": one of them is drawn at each step. Neurons that none of them ablates
            stay at their mean.
        steps, batch_size, learning_rate: of "optimal".

    Returns:
        float32 [neuron] over all sites in network order; a `PerExampleFill` for "class_mean" and "resample".

    Raises:
        InputError: for an unknown kind, an argument that the kind needs and that is absent, a class without examples,
            or images that the network does not take.

    Source: "optimal" follows M. Li and L. Janson, Optimal ablation for interpretability (2024).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).random((6, 4), np.float32)
        >>> ja.compute_fill(model, "median", images).shape
        (5,)
        >>> by_class = ja.compute_fill(model, "class_mean", images, np.array([0, 1, 0, 1, 0, 1]))
        >>> [table.shape for table in by_class.tables]
        [(2, 3), (2, 2)]
    """
    require_known("fill", kind, FILLS)
    network, state, images = trace_model(model, images)
    needed = {"class_mean": {"labels": labels}, "resample": {"key": key}}
    needed["optimal"] = {"labels": labels, "key": key, "keep": keep}
    absent = [name for name, given in needed.get(kind, {}).items() if given is None]
    require(not absent, f"fill {kind!r}: expected {' and '.join(absent)}, got none")
    if key is not None:
        require(
            isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
            f"key: expected a random key, jax.random.key(seed), got {type(key).__name__}",
        )
    if labels is not None:
        require_labels(np.asarray(labels), len(images), network.num_classes)
    if kind == "optimal":
        keep = np.asarray(keep)
        require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
        require_shape("keep", keep, (None, network.num_neurons), "mask, neuron")
        require(len(keep) > 0 and steps >= 1, f"optimal fill: expected masks and steps, got {len(keep)} and {steps}")
    if kind in ("zero", "constant"):
        constant = np.full(network.num_neurons, value if kind == "constant" else 0.0, np.float32)
        require_finite("fill", constant)
        return jnp.asarray(constant)
    if kind == "mean":
        return mean_activations(model, images)
    if kind == "median":
        return jnp.concatenate(
            [jnp.median(h.reshape(-1, h.shape[-1]), axis=0) for h in recorded_outputs(model, images)]
        )
    if kind == "class_mean":
        outputs = recorded_outputs(model, images)
        return PerExampleFill(tuple(_class_means(h, np.asarray(labels), network.num_classes) for h in outputs))
    if kind == "resample":
        return PerExampleFill(tuple(recorded_outputs(model, images)), key)
    start = np.asarray(mean_activations(model, images))
    fitted = _optimal(
        network,
        (steps, min(batch_size, len(images)), learning_rate),
        state,
        start,
        images,
        jnp.asarray(labels),
        jnp.asarray(keep),
        key,
    )
    require_finite("optimal fill (lower learning_rate)", np.asarray(fitted))
    return fitted


def _class_means(outputs: jax.Array, labels: np.ndarray, num_classes: int) -> jax.Array:
    """The mean of outputs [example, ..., neuron] over the examples of each class and their places: [class, neuron]."""
    absent = np.setdiff1d(np.arange(num_classes), labels)
    require(absent.size == 0, f"fill 'class_mean': expected examples of every class, got none of {absent.tolist()}")
    means = outputs.reshape(len(outputs), -1, outputs.shape[-1]).mean(axis=1)
    sums = jax.ops.segment_sum(means, jnp.asarray(labels), num_classes)
    return sums / np.bincount(labels, minlength=num_classes)[:, None].astype(np.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _optimal(network: ModelSpec, recipe: tuple[int, int, float], state: nnx.State, start, images, labels, keep, key):
    """The fill [neuron] after so many steps of Adam on random batches under random masks of `keep`."""
    steps, batch_size, learning_rate = recipe
    splits = network.offsets[1:-1]
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(fill, mask, images, labels):
        parts = zip(jnp.split(mask, splits), jnp.split(fill, splits), strict=True)
        changes = {site: (kept, of_site, None) for site, (kept, of_site) in enumerate(parts)}
        logits = run_from_site(network, state, run_prefix(network, state, images, 0), 0, changes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, key):
        fill, opt_state = carry
        of_mask, of_batch = jax.random.split(key)
        mask = keep[jax.random.randint(of_mask, (), 0, len(keep))]
        batch = jax.random.choice(of_batch, len(labels), (batch_size,), replace=False)
        updates, opt_state = optimizer.update(jax.grad(loss)(fill, mask, images[batch], labels[batch]), opt_state)
        return (optax.apply_updates(fill, updates), opt_state), None

    with jax.default_matmul_precision(matmul_precision()):
        (fill, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))
    return fill
