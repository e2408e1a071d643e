"""Evidence: what scores are computed from, each part when it is first asked for."""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxablate._checks import require, require_labels
from jaxablate._precision import matmul_precision
from jaxablate._typing import Counts, Images, Labels
from jaxablate.ablation import ShapleyValues, evaluate_masks, shapley_values, single_ablation
from jaxablate.activations import mean_activations, record_activations, zero_fractions
from jaxablate.histograms import joint_histogram
from jaxablate.models import Model
from jaxablate.models._network import ModelSpec, record_sites, run_from_site, run_prefix, split_at_sites, trace_model
from jaxablate.quantizers import Quantizer, mean

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evidence:
    """What a score of the neurons of a network is computed from; `neuron` runs over all sites in network order.

    Attributes:
        model: the network: an `MLP`, or any module with sites.
        images, labels: the examples, by convention the validation split.
        num_classes: the number of classes.
        quantizer: from activations [example, neuron] to codes; one that takes its edges from data takes them from
            these examples.
        key: for scores that draw at random.

    Raises:
        InputError: for labels that are not those of the examples and classes, or something that is no quantizer; once
            activations are asked for, where they are not all finite.
    """

    model: Model
    images: Images
    labels: Labels
    num_classes: int
    quantizer: Quantizer = field(default_factory=mean)
    key: jax.Array | None = None

    def __post_init__(self):
        require(
            isinstance(self.quantizer, Quantizer),
            f"quantizer: expected one of ja.quantizers, as get_quantizer makes of a setting, got {self.quantizer!r}",
        )
        require_labels(np.asarray(self.labels), len(self.images), self.num_classes)

    @cached_property
    def activations(self) -> np.ndarray:
        """float32 [example, neuron], of a unit with several places their reduction."""
        found = np.concatenate([np.asarray(layer) for layer in record_activations(self.model, self.images)], axis=1)
        bad = int(found.size - np.isfinite(found).sum())
        require(  # NaN would be code 0, and so a neuron that knows nothing
            bad == 0,
            f"activations: expected finite numbers, got {bad} NaN or infinite of {found.size}; check the weights and "
            "the images",
        )
        return found

    @cached_property
    def counts(self) -> Counts:
        """Joint counts int32 [neuron, class, code]."""
        codes = self.quantizer.fit(self.activations)(self.activations)
        return joint_histogram(codes, self.labels, num_codes=self.quantizer.num_codes, num_classes=self.num_classes)

    def recoded(self, quantizer: Quantizer) -> "Evidence":
        """The same with another quantizer; what does not depend on it is not computed again."""
        other = replace(self, quantizer=quantizer)
        known = {name: value for name, value in vars(self).items() if name not in ("quantizer", "counts")}
        vars(other).update(known)
        return other

    @cached_property
    def class_means(self) -> np.ndarray:
        """Mean activation over the examples of each class present, float64 [class, neuron]."""
        present = np.unique(np.asarray(self.labels))
        return np.stack(
            [self.activations[np.asarray(self.labels) == c].mean(axis=0, dtype=np.float64) for c in present]
        )

    @cached_property
    def zeros(self) -> np.ndarray:
        """The share of examples, and of a unit's places in them, where it is not above 0, float64 [neuron]."""
        return zero_fractions(self.model, self.images)

    @cached_property
    def incoming(self) -> np.ndarray:
        """The Euclidean norm of the weights that make each unit, float32 [neuron]; for chains."""
        return self._norms(incoming=True)

    @cached_property
    def outgoing(self) -> np.ndarray:
        """The Euclidean norm of the weights that read each unit, float32 [neuron]; for chains."""
        return self._norms(incoming=False)

    @cached_property
    def taylor(self) -> np.ndarray:
        """Mean over the examples of |sum over places of a dL/da|, float64 [neuron], L the example's cross-entropy."""
        network, state, images = trace_model(self.model, self.images)
        require_labels(np.asarray(self.labels), len(images), network.num_classes)
        labels = jnp.asarray(self.labels)
        total = np.zeros(network.num_neurons)
        for i in range(0, len(images), BATCH_SIZE):
            total += np.asarray(_first_order(network, state, images[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]))
        return total / len(images)

    @cached_property
    def damage(self) -> np.ndarray:
        """By how much the loss rises without each neuron, its mean in its place, in nats, float64 [neuron]."""
        fill = mean_activations(self.model, self.images)
        alone = single_ablation(self.model, self.images, self.labels, fill, outcomes="loss")
        whole = np.ones((1, len(fill)), bool)
        intact = evaluate_masks(self.model, whole, self.images, self.labels, outcomes="loss")
        return np.asarray(alone, np.float64) - float(intact[0])

    @cached_property
    def shapley(self) -> ShapleyValues:
        """Shapley values of the loss over the whole network, means in place, and their errors, float64 [neuron]."""
        key = jax.random.key(0) if self.key is None else self.key
        fill = mean_activations(self.model, self.images)
        return shapley_values(self.model, self.images, self.labels, fill, key=key, num_permutations=20, outcome="loss")

    def _norms(self, incoming: bool) -> np.ndarray:
        network, state, _ = trace_model(self.model, self.images[:1])
        segments = split_at_sites(nnx.merge(network.graphdef, state))
        require(segments is not None, f"weight norms: expected a chain, got {type(self.model).__name__}")
        assert segments is not None
        norms = []
        for site, size in enumerate(network.sizes):
            links = reversed(segments[site]) if incoming else segments[site + 1]
            kernel = next((link.kernel[...] for link in links if isinstance(link, nnx.Linear | nnx.Conv)), None)
            where = "before" if incoming else "behind"
            name = network.sites[site]
            require(kernel is not None, f"weight norms: expected a linear map {where} site {name!r}, got none")
            assert kernel is not None
            # features that were flattened run over the channels last
            by_unit = kernel if incoming else jnp.moveaxis(kernel, -2, -1)
            require(
                by_unit.shape[-1] % size == 0,
                f"weight norms: expected a linear map of the {size} units of site {name!r} {where} it, got one of "
                f"{by_unit.shape[-1]}",
            )
            norms.append(jnp.sqrt((by_unit.reshape(-1, size) ** 2).sum(axis=0)))
        return np.asarray(jnp.concatenate(norms))


@partial(jax.jit, static_argnums=0)
def _first_order(network: ModelSpec, state: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum over examples of |sum over places of a dL/da| [neuron]."""

    def loss_of(deltas: list[jax.Array]) -> jax.Array:
        # an ablated unit with scale 1 puts out its own value plus the fill
        changes = {
            i: (jnp.zeros(size, bool), delta, jnp.ones(size))
            for i, (size, delta) in enumerate(zip(network.sizes, deltas, strict=True))
        }
        logits = run_from_site(network, state, run_prefix(network, state, images, 0), 0, changes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    with jax.default_matmul_precision(matmul_precision()):
        outputs = record_sites(network, state, images)[1]
        gradients = jax.grad(loss_of)([jnp.zeros(h.shape, jnp.float32) for h in outputs])
    products = [(h * g).reshape(len(h), -1, h.shape[-1]) for h, g in zip(outputs, gradients, strict=True)]
    return jnp.concatenate([jnp.abs(product.sum(axis=1)).sum(axis=0) for product in products])
