"""Record the outputs of every site, and compute fills for ablated neurons from them.

Input: a network and images [example, ...].
Output: activations [example, neuron] of each site, their means, or a fill.
Memory: recording holds four bytes for each example and neuron; means hold one batch.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxablate._checks import (
    JaxablateWarning,
    check_labels,
    host_array,
    require,
    require_count,
    require_finite,
    require_key,
    require_known,
    require_number,
    require_same_index,
    require_shape,
)
from jaxablate._precision import matmul_precision
from jaxablate._typing import Activations, Fill, Images, Labels, Masks
from jaxablate.fills import LinearFill, PerExampleFill
from jaxablate.linear_compensation import check_ridge, predictors
from jaxablate.models._model import (
    AnyModel,
    ModelSpec,
    SiteMask,
    State,
    peak_activation_bytes,
    record_sites,
    start_forward,
    trace_model,
)
from jaxablate.models._sites import REDUCTIONS, Prediction

__all__ = ["FILLS", "compute_fill", "mean_activations", "record_activations", "zero_fractions"]

BATCH_SIZE = 10_000
MEMORY = 2**28  # bytes of one activation of a batch
FILLS = ("zero", "constant", "mean", "median", "class_mean", "resample", "optimal", "linear")
RIDGE = 1e-6
CHECK = "check the weights and the images"
EXAMPLES_PER_NEURON = 10  # a linear fill from fewer examples predicts these examples better than others


def record_activations(model: AnyModel, images: Images) -> tuple[Activations, ...]:
    """Record the outputs of every hidden layer or site for every image.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images: [example, ...], as the model takes them.

    Returns:
        One float32 array [example, neuron] for each site in network order. If a unit has several positions in an
        example (a channel's map), the site's `reduce` turns them into one number.

    Raises:
        InputError: for images that the model does not take, or a module that cannot be ablated.

    Source: paper, equation 1.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> [a.shape for a in ja.record_activations(model, np.zeros((5, 2, 2), np.float32))]
        [(5, 3), (5, 2)]
    """
    network, batches = _record_batches(model, images)
    reductions = [REDUCTIONS[site.reduce] for site in network.site_specs]
    reduced = [[_reduce_positions(*pair) for pair in zip(reductions, batch, strict=True)] for batch in batches]
    recorded = tuple(jnp.concatenate(site).astype(jnp.float32) for site in zip(*reduced, strict=True))
    # JAX may read a NumPy array until the computation ends, and the user may fill it with the next batch.
    return jax.block_until_ready(recorded)


def mean_activations(model: AnyModel, images: Images) -> Fill:
    """Compute the mean output of every hidden neuron, which is the fill of bias balancing.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images: [example, ...], by convention the validation split.

    Returns:
        float32 [neuron], all sites in network order: the mean over examples, and over a unit's positions in an example.

    Raises:
        InputError: for images that the model does not take, a module that cannot be ablated, or means that are NaN or
            infinite.

    Source: paper, section 4 (bias balancing).

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.mean_activations(model, np.zeros((5, 2, 2), np.float32)).shape
        (5,)
    """
    _, batches = _record_batches(model, images)
    total, count = 0.0, len(images)
    for batch in batches:  # added in float64, because a float32 sum over many batches would lose digits
        means = [_reduce_positions(jnp.mean, h) for h in batch]
        total = total + np.concatenate([np.asarray(h.sum(axis=0), np.float64) for h in means])
    mean = np.asarray(total / count, np.float32)
    require_finite("mean activations", mean, CHECK)
    return jnp.asarray(mean)


def zero_fractions(model: AnyModel, images: Images) -> np.ndarray:
    """Compute the fraction of examples, and of a unit's positions in them, with an output of at most 0.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images: [example, ...], as the model takes them.

    Returns:
        float64 [neuron] in [0, 1], all sites in network order.

    Raises:
        InputError: for images that the model does not take, or a module that cannot be ablated.
    """
    network, batches = _record_batches(model, images)
    # Integers, so that batches add exactly and the fraction does not depend on their size.
    zeros, outputs = np.zeros(network.num_neurons, np.int64), np.zeros(network.num_neurons, np.int64)
    for batch in batches:
        zeros += np.concatenate([np.asarray((h <= 0).sum(axis=tuple(range(h.ndim - 1)))) for h in batch])
        outputs += np.repeat([h[..., 0].size for h in batch], network.sizes)
    return zeros / outputs


def compute_fill(
    model: AnyModel,
    kind: str,
    images: Images,
    labels: Labels | None = None,
    *,
    value: float = 0.0,
    ridge: float = RIDGE,
    keep: Masks | None = None,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    key: jax.Array | None = None,
) -> Fill | LinearFill | PerExampleFill:
    """Compute the outputs of ablated neurons from examples; all ablation functions take the result as `fill`.

    - "zero": 0.
    - "constant": `value` for every neuron.
    - "mean", "median": of the neuron's activations; of a channel over examples and positions.
    - "class_mean": for an example of class c, the neuron's mean over the examples of class c. This fill reveals the
      label to the network, as far as the neuron knew it: an upper bound of the remaining accuracy.
    - "resample": the activation in another example. Each evaluated example draws one of these examples, for all of its
      neurons (and a channel's whole map).
    - "optimal": the constant for each neuron that minimises the loss of the network under the masks `keep`, by gradient
      descent (Adam) from the mean.
    - "linear": what the kept neurons of the same site predict, by ridge regression (linear compensation). Means and
      covariances come from the intact network. With one mask `keep` they are sequential: for each site they come from
      the network whose earlier sites are already ablated and compensated under this mask.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        kind: one of the names above.
        images: the examples, by convention the validation split.
        labels: integers [example], for "class_mean" and "optimal".
        value: the constant of "constant".
        ridge: at least 1e-12, for "linear": the ridge lambda relative to the mean variance of a site's units.
        keep: bool [mask, neuron], for "optimal"; each step draws one mask. Neurons that no mask ablates keep
            their mean. One mask [1, neuron] for a sequential "linear".
        steps, batch_size, learning_rate: of the gradient descent of "optimal".
        key: random key, `jax.random.key(seed)`, for "resample" and "optimal".

    Returns:
        float32 [neuron] over all sites in network order; a `ja.fills.PerExampleFill` for "class_mean" and "resample",
        a `ja.fills.LinearFill` for "linear".

    Warns:
        JaxablateWarning: if "linear" gets fewer than ten examples for each neuron of a site.

    Raises:
        InputError: for an unknown kind, a missing argument that the kind needs, a class without examples, images
            that the model does not take, or activations that are NaN or infinite.

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
    require_same_index("labels", images, labels)
    network, state, images = trace_model(model, images)
    # All arguments are checked before the network runs over the examples, which may take long.
    needed = {"class_mean": {"labels": labels}, "resample": {"key": key}}
    needed["optimal"] = {"labels": labels, "key": key, "keep": keep}
    missing = [name for name, argument in needed.get(kind, {}).items() if argument is None]
    require(not missing, f"fill {kind!r}: expected {' and '.join(missing)}, got none")
    if key is not None:
        require_key(key)
    if labels is not None:
        labels = check_labels(labels, len(images), network.num_classes)
    if keep is not None and kind in ("optimal", "linear"):
        keep = host_array("keep", keep)
        require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
        require_shape("keep", keep, (None, network.num_neurons), "mask, neuron")
        require(len(keep) > 0, f"{kind} fill: expected at least one mask, got none")
    if kind == "constant":
        require_number("value", value)
    if kind == "optimal":
        steps, batch_size = require_count("steps", steps), require_count("batch_size", batch_size)
        require_number("learning_rate", learning_rate)
    if kind in ("zero", "constant"):
        constant = np.full(network.num_neurons, value if kind == "constant" else 0.0, np.float32)
        require_finite("fill", constant)
        return jnp.asarray(constant)
    if kind == "mean":
        return mean_activations(model, images)
    if kind == "median":
        outputs = _record_finite(model, images)
        return jnp.concatenate([jnp.median(h.reshape(-1, h.shape[-1]), axis=0) for h in outputs])
    if kind == "class_mean":
        outputs = _record_finite(model, images)
        by_label = np.asarray(labels)
        return PerExampleFill(tuple(_class_means(h, by_label, network.num_classes) for h in outputs))
    if kind == "linear":
        return fit_linear(network, state, images, ridge, keep)
    if kind == "resample":
        return PerExampleFill(tuple(_record_finite(model, images)), key)
    start = np.asarray(mean_activations(model, images))
    settings = steps, min(batch_size, len(images)), learning_rate
    fitted = _fit_optimal(network, settings, state, start, images, jnp.asarray(labels), jnp.asarray(keep), key)
    require_finite("optimal fill (lower learning_rate)", np.asarray(fitted))
    return fitted


# A site's outputs are [example, ..., unit]: a dense layer has no axis in between, a convolution has the positions of a
# map, a transformer has tokens. Scores need one number for each example and unit, so the axes in between are reduced by
# the site's own reduction (mean or max). Means for fills always average over examples and positions together.
def _reduce_positions(reduction: Callable, outputs: jax.Array) -> jax.Array:
    """Reduce the positions of a unit in an example to one number [example, neuron]."""
    return reduction(outputs, axis=tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs


def _record_finite(model: AnyModel, images: Images) -> list[jax.Array]:
    """Record the outputs of every site for every image, float32 [example, ..., neuron].

    Raises:
        InputError: if an output is NaN or infinite.
    """
    network, batches = _record_batches(model, images)
    outputs = [jnp.concatenate(site).astype(jnp.float32) for site in zip(*batches, strict=True)]
    for name, values in zip(network.sites, outputs, strict=True):
        require_finite(f"activations of site {name!r}", np.asarray(values), CHECK)
    return outputs


def _record_batches(model: AnyModel, images: Images) -> tuple[ModelSpec, Iterator[list[jax.Array]]]:
    """Return the model's specification, and the outputs [example, ..., unit] of every site batch by batch."""
    network, state, images = trace_model(model, images)
    return network, _batches(network, state, images, {})


def _batches(
    network: ModelSpec, state: State, images: jax.Array, masks: dict[int, SiteMask]
) -> Iterator[list[jax.Array]]:
    """Return the outputs [example, ..., unit] of every site under masks of some sites, batch by batch."""
    # Batches bound the memory; the last one is smaller, which compiles one more program.
    size = max(1, min(BATCH_SIZE, MEMORY // peak_activation_bytes(network, (0,))))
    for i in range(0, len(images), size):
        batch = images[i : i + size]
        # A single image is doubled, because a model of one could broadcast it.
        outputs = _record(network, state, batch if len(batch) > 1 else jnp.repeat(batch, 2, axis=0), masks)
        yield [h[: len(batch)] for h in outputs]


@partial(jax.jit, static_argnums=0)
def _record(network: ModelSpec, state: State, images: jax.Array, masks: dict[int, SiteMask]) -> list[jax.Array]:
    with jax.default_matmul_precision(matmul_precision()):
        return record_sites(network, state, images, masks)[1]


def fit_linear(
    network: ModelSpec, state: State, images: jax.Array, ridge: float = RIDGE, keep: Masks | None = None
) -> LinearFill:
    """Return the means and covariances of every site as a fill.

    Args:
        network, state, images: as `trace_model` returns them.
        ridge: as in `compute_fill`.
        keep: bool [1, neuron], the mask of sequential statistics, as in `compute_fill`; None for the intact network.

    Raises:
        InputError: for a ridge out of range, several masks, or activations that are NaN or infinite.
    """
    check_ridge(ridge)
    require(keep is None or len(keep) == 1, "keep: a linear fill takes one mask; fit one fill for each mask")
    for name, size, outputs in zip(network.sites, network.sizes, network.outputs, strict=True):
        number = len(images) * outputs.size // size
        if number < EXAMPLES_PER_NEURON * size:
            warnings.warn(
                f"linear fill: {number} examples are fewer than {EXAMPLES_PER_NEURON} for each of the {size} "
                f"neurons of site {name!r}; pass more, or read the results as fitted to few examples",
                JaxablateWarning,
                stacklevel=3,
            )
    masks: dict[int, SiteMask] = {}
    moments = _moments(network, state, images, masks)
    for site, kept in enumerate([] if keep is None else np.split(keep[0], network.offsets[1:-1])):
        if masks:  # with the earlier sites masked, the network is the ablated one
            moments[site] = _moments(network, state, images, masks)[site]
        mean, covariance = moments[site]
        prediction = Prediction(mean.astype(np.float32), predictors(covariance, ridge, kept[None])[0])
        masks[site] = jnp.asarray(kept), prediction, None
    means, covariances = zip(*moments, strict=True)
    return LinearFill(np.concatenate(means), covariances, float(ridge))


def _moments(
    network: ModelSpec, state: State, images: jax.Array, masks: dict[int, SiteMask]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean [unit] and the covariance [unit, unit] of every site under masks, in float64.

    The positions of a unit in an example count as examples.
    """
    # Activations are shifted by the means of the first batch, so that E[h h^T] - E[h] E[h]^T loses no digits. A last
    # column of ones makes the sums and the number of examples a part of the same matrix product.
    shifts, sums, moments = [], [np.zeros((size + 1, size + 1)) for size in network.sizes], []
    for batch in _batches(network, state, images, masks):
        values = [np.asarray(h, np.float64).reshape(-1, h.shape[-1]) for h in batch]
        shifts = shifts or [h.mean(axis=0) for h in values]
        for total, h, shift in zip(sums, values, shifts, strict=True):
            with np.errstate(invalid="ignore"):  # infinity minus infinity, which the check below reports
                shifted = np.column_stack([h - shift, np.ones(len(h))])
                total += shifted.T @ shifted
    for name, total, shift in zip(network.sites, sums, shifts, strict=True):
        mean_products = total / total[-1, -1]
        mean = mean_products[-1, :-1]
        covariance = mean_products[:-1, :-1] - np.outer(mean, mean)
        require_finite(f"activations of site {name!r}", covariance, CHECK)
        moments.append((shift + mean, covariance))
    return moments


def _class_means(outputs: jax.Array, labels: np.ndarray, num_classes: int) -> jax.Array:
    """Return the mean [class, neuron] of outputs [example, ..., neuron] over the examples and positions of a class."""
    absent = np.setdiff1d(np.arange(num_classes), labels)
    require(absent.size == 0, f"fill 'class_mean': expected examples of every class, got none of {absent.tolist()}")
    # Every example has equally many positions, so the mean over examples of means over positions is the mean over both.
    means = outputs.reshape(len(outputs), -1, outputs.shape[-1]).mean(axis=1)
    sums = jax.ops.segment_sum(means, jnp.asarray(labels), num_classes)
    return sums / np.bincount(labels, minlength=num_classes)[:, None].astype(np.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _fit_optimal(network: ModelSpec, settings: tuple[int, int, float], state: State, start, images, labels, keep, key):
    """Return the fill [neuron] after Adam on random batches under random masks of `keep`.

    The expected loss over masks and batches is minimised by one random mask and one batch for each step. Only ablated
    neurons pass the gradient on to their fill, so that a neuron that no mask ablates keeps its start.
    """
    steps, batch_size, learning_rate = settings
    splits = network.offsets[1:-1]
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(fill, mask, images, labels):
        parts = zip(jnp.split(mask, splits), jnp.split(fill, splits), strict=True)
        changes = {site: (site_keep, site_fill, None) for site, (site_keep, site_fill) in enumerate(parts)}
        logits = start_forward(network, state, images, changes)(changes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, key):
        fill, opt_state = carry
        mask_key, batch_key = jax.random.split(key)
        mask = keep[jax.random.randint(mask_key, (), 0, len(keep))]
        batch = jax.random.choice(batch_key, len(labels), (batch_size,), replace=False)
        updates, opt_state = optimizer.update(jax.grad(loss)(fill, mask, images[batch], labels[batch]), opt_state)
        return (optax.apply_updates(fill, updates), opt_state), None

    with jax.default_matmul_precision(matmul_precision()):
        (fill, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))
    return fill
