"""Scores assign one number to each neuron, from everything that can be measured on a network and examples.

A score is a function from `Evidence` to an array [neuron]. `SCORES` lists them by name. Add your own with
`ja.scores.SCORES["mine"] = lambda evidence: evidence.activations.max(axis=0)`; it can then order a study.

Input: a network and examples, as `Evidence`.
Output: scores, float [neuron], over all sites in network order.
Memory: the activations of all neurons for all examples, float32 [example, neuron].
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxablate._checks import (
    as_array,
    check_labels,
    require,
    require_count,
    require_finite,
    require_known,
    require_same_index,
    require_type,
    short_repr,
)
from jaxablate._precision import matmul_precision
from jaxablate._typing import AnyArray, Counts, Images, Labels
from jaxablate.ablation import ShapleyValues, evaluate_masks, shapley_values, single_ablation
from jaxablate.activations import fit_linear, mean_activations, record_activations, zero_fractions
from jaxablate.fills import LinearFill
from jaxablate.histograms import joint_histogram
from jaxablate.linear_compensation import elimination_ranks, unique_variances
from jaxablate.metrics import METRICS, entropy, mutual_information, specific_information
from jaxablate.models._model import AnyModel, ModelSpec, State, record_sites, start_forward, trace_model
from jaxablate.models._weights import site_weights
from jaxablate.quantizers import Quantizer, mean

__all__ = ["SCORES", "Evidence", "Score", "class_selectivity", "compute_score", "conditional_entropy", "get_score"]

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evidence:
    """Measurements of a network on examples, from which scores are computed.

    Every measurement is computed when it is first used, and then kept. The axis `neuron` runs over all sites in network
    order.

    Attributes:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        images, labels: the examples, by convention the validation split.
        num_classes: number of classes.
        quantizer: from activations [example, neuron] to codes. A quantizer that takes its edges from data is fitted to
            these examples.
        key: a JAX random key for the scores that draw at random; None uses `jax.random.key(0)`.

    Raises:
        InputError: if the labels do not fit the examples and classes, or if `quantizer` is not a quantizer. The first
            use of activations raises it if they are not all finite.

    Example:
        >>> data = ja.load_dataset("mnist5k").validation
        >>> evidence = ja.scores.Evidence(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), data.images, data.labels, 10)
        >>> evidence.activations.shape, evidence.counts.shape
        ((500, 5), (5, 10, 2))
    """

    model: AnyModel
    images: Images
    labels: Labels
    num_classes: int
    quantizer: Quantizer = field(default_factory=mean)
    key: jax.Array | None = None

    __repr__ = short_repr

    def __post_init__(self):
        require_type(
            "quantizer", self.quantizer, Quantizer, "a quantizer from ja.quantizers (get_quantizer reads settings)"
        )
        require_same_index("labels", self.images, self.labels)
        images = as_array("images", self.images)
        require(images.ndim > 0, "images: expected [example, ...], got shape ()")
        check_labels(self.labels, len(images), require_count("num_classes", self.num_classes))

    @cached_property
    def activations(self) -> np.ndarray:
        """Activations, float32 [example, neuron]; a channel's map is reduced to one number per example."""
        layers = record_activations(self.model, self.images)
        activations = np.concatenate([np.asarray(layer) for layer in layers], axis=1)
        # NaN would silently get the code 0 and make a neuron look uninformative.
        require_finite("activations", activations, "check the weights and the images")
        return activations

    @cached_property
    def counts(self) -> Counts:
        """Joint counts of class and code, int32 [neuron, class, code]."""
        codes = self.quantizer.fit(self.activations)(self.activations)
        return joint_histogram(codes, self.labels, num_codes=self.quantizer.num_codes, num_classes=self.num_classes)

    def with_quantizer(self, quantizer: Quantizer) -> "Evidence":
        """Return the evidence with another quantizer; keeps all measurements that do not depend on it."""
        evidence = replace(self, quantizer=quantizer)
        # A cached property lives in the instance's dictionary. `counts` is the only one that depends on the quantizer.
        kept = {name: value for name, value in vars(self).items() if name not in ("quantizer", "counts")}
        vars(evidence).update(kept)
        return evidence

    @cached_property
    def class_means(self) -> np.ndarray:
        """Mean activation over the examples of each class that has any, float64 [class, neuron]."""
        labels = np.asarray(self.labels)
        return np.stack([self.activations[labels == c].mean(axis=0, dtype=np.float64) for c in np.unique(labels)])

    @cached_property
    def zero_fraction(self) -> np.ndarray:
        """Fraction of examples (and of a channel's positions in them) with an output <= 0, float64 [neuron] in 0..1."""
        return zero_fractions(self.model, self.images)

    @cached_property
    def incoming_norm(self) -> np.ndarray:
        """Euclidean norm of the weights into each neuron, float32 [neuron]."""
        return self._weight_norms(incoming=True)

    @cached_property
    def outgoing_norm(self) -> np.ndarray:
        """Euclidean norm of the weights out of each neuron, float32 [neuron]."""
        return self._weight_norms(incoming=False)

    @cached_property
    def linear_fill(self) -> LinearFill:
        """Means and covariances of each site, as `ja.compute_fill(model, "linear", images)` returns them."""
        return fit_linear(*trace_model(self.model, self.images))

    @cached_property
    def unique_variance(self) -> np.ndarray:
        """Variance that the other neurons of the site do not predict linearly, float64 [neuron]."""
        fill = self.linear_fill
        return np.concatenate([unique_variances(covariance, fill.ridge) for covariance in fill.covariances])

    @cached_property
    def elimination_rank(self) -> np.ndarray:
        """Step at which greedy elimination with a linear fill removes each neuron from its site, float64 [neuron]."""
        network, state, _ = trace_model(self.model, self.images[:1])
        fill, weights = self.linear_fill, site_weights(network, state, incoming=False)
        pairs = zip(fill.covariances, weights, strict=True)
        return np.concatenate([elimination_ranks(c, fill.ridge, np.asarray(w)) for c, w in pairs]).astype(float)

    @cached_property
    def taylor(self) -> np.ndarray:
        """Mean over examples of |sum over positions of a dL/da|, L the cross-entropy in nats, float64 [neuron]."""
        network, state, images = trace_model(self.model, self.images)
        labels = jnp.asarray(check_labels(self.labels, len(images), network.num_classes))
        total = np.zeros(network.num_neurons)
        # The gradient holds all activations of a batch, so examples are taken in batches. The sum over batches is in
        # float64.
        for i in range(0, len(images), BATCH_SIZE):
            total += np.asarray(_taylor_sum(network, state, images[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]))
        return total / len(images)

    @cached_property
    def single_damage(self) -> np.ndarray:
        """Rise of the loss in nats if the neuron alone is ablated to its mean, float64 [neuron]."""
        fill = mean_activations(self.model, self.images)
        # The difference of two losses is small, so it is taken in float64; each loss is a mean over all examples.
        ablated = single_ablation(self.model, self.images, self.labels, fill, outcomes="loss")
        keep_all = np.ones((1, len(fill)), bool)
        intact = evaluate_masks(self.model, keep_all, self.images, self.labels, outcomes="loss")
        return np.asarray(ablated, np.float64) - float(intact[0])

    @cached_property
    def shapley(self) -> ShapleyValues:
        """Shapley values of the loss in nats, with their standard errors.

        The players are all neurons of the network, and ablated neurons output their means. The estimate uses 20
        permutations.
        """
        key = jax.random.key(0) if self.key is None else self.key
        fill = mean_activations(self.model, self.images)
        return shapley_values(self.model, self.images, self.labels, fill, key=key, num_permutations=20, outcome="loss")

    def _weight_norms(self, *, incoming: bool) -> np.ndarray:
        network, state, _ = trace_model(self.model, self.images[:1])
        weights = site_weights(network, state, incoming=incoming)
        return np.concatenate([jnp.sqrt((site**2).sum(axis=1)) for site in weights])


# First-order Taylor score: |a dL/da| estimates the change of the loss if the unit's output a is set to 0. Summing over
# the positions of a channel before taking the absolute value treats the channel as one unit (Molchanov et al., 2017).
# Examples are independent, so the gradient of the summed loss with respect to one example's outputs is the gradient of
# that example's loss.
@partial(jax.jit, static_argnums=0)
def _taylor_sum(network: ModelSpec, state: State, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the sum over examples of |sum over positions of a dL/da| [neuron]."""

    # The gradient with respect to the outputs of all sites comes from one backward pass: every neuron is ablated with
    # scale 1 and the fill `delta`. It then outputs its own value plus delta, and dL/d delta at delta = 0 is dL/da.
    def loss_of_deltas(deltas: list[jax.Array]) -> jax.Array:
        changes = {
            i: (jnp.zeros(size, bool), delta, jnp.ones(size))
            for i, (size, delta) in enumerate(zip(network.sizes, deltas, strict=True))
        }
        logits = start_forward(network, state, images, changes)(changes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    with jax.default_matmul_precision(matmul_precision()):
        outputs = record_sites(network, state, images)[1]
        gradients = jax.grad(loss_of_deltas)([jnp.zeros(h.shape, jnp.float32) for h in outputs])
    # Products are summed over the positions of a channel before the absolute value is taken.
    products = [(h * g).reshape(len(h), -1, h.shape[-1]) for h, g in zip(outputs, gradients, strict=True)]
    return jnp.concatenate([jnp.abs(product.sum(axis=1)).sum(axis=0) for product in products])


Score = Callable[[Evidence], AnyArray]


def _require_evidence(evidence: object) -> None:
    require_type("evidence", evidence, Evidence, "ja.scores.Evidence(model, images, labels, num_classes)")


def conditional_entropy(evidence: Evidence) -> np.ndarray:
    """Return H(T|Y) = H(T) - I(T;Y), float32 [neuron] in nats: the entropy of the code that the class leaves.

    Args:
        evidence: measurements of a network.

    Returns:
        float32 [neuron] in nats.
    """
    _require_evidence(evidence)
    return np.asarray(entropy(evidence.counts)) - np.asarray(mutual_information(evidence.counts))


def class_selectivity(evidence: Evidence) -> np.ndarray:
    """Return (m_max - m_rest) / (m_max + m_rest), where m_max is the largest class mean of the activation.

    m_rest is the mean of the remaining class means.

    Args:
        evidence: of a network, with examples of at least two classes.

    Returns:
        float64 [neuron]; in [0, 1] for activations >= 0; 0 if the denominator is 0.

    Raises:
        InputError: if all examples have the same class.

    Source: Morcos et al., 2018.
    """
    _require_evidence(evidence)
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
    "zero_fraction": attrgetter("zero_fraction"),
    "incoming_norm": attrgetter("incoming_norm"),
    "outgoing_norm": attrgetter("outgoing_norm"),
    "taylor": attrgetter("taylor"),
    "single_damage": attrgetter("single_damage"),
    "unique_variance": attrgetter("unique_variance"),
    "elimination_rank": attrgetter("elimination_rank"),
    "brain_surgeon": lambda evidence: evidence.unique_variance * np.asarray(evidence.outgoing_norm, np.float64) ** 2,
    "contribution_sd": lambda evidence: evidence.activations.std(axis=0, dtype=np.float64) * evidence.outgoing_norm,
    "shapley": attrgetter("shapley.values"),
}
"""Scores by name.

- `entropy`, `mutual_information`, `kl_selectivity`, `conditional_entropy`: of the code, in nats.
- `entropy_miller_madow`, `mutual_information_miller_madow`: in nats, without the first-order bias.
- `class_selectivity`: of the activation (Morcos et al., 2018).
- `mean_activation`, `activation_variance`: over the examples.
- `zero_fraction`: fraction of examples, and of a channel's positions in them, with an output <= 0 (APoZ, Hu et al.,
  2016).
- `incoming_norm`, `outgoing_norm`: of the weights of the linear maps, without batch norm; only for chains.
- `contribution_sd`: standard deviation of the activation times the norm of the outgoing weights; only for chains.
- `taylor`: mean |a dL/da| (Molchanov et al., 2017).
- `single_damage`: rise of the loss in nats if the neuron alone is ablated to its mean; no bound on its importance.
- `unique_variance`: variance that the other neurons of the layer do not predict linearly.
- `brain_surgeon`: unique variance times the squared norm of the outgoing weights: about the squared error of the next
  pre-activation after the neuron alone is ablated with a linear fill (Optimal Brain Surgeon, Hassibi and Stork, 1992).
- `elimination_rank`: step at which greedy elimination by that error removes the neuron from its layer
  (`ja.linear_compensation.elimination_ranks`); the order with low values first is that of the elimination.
- `shapley`: Shapley value of the loss in nats, from 20 permutations of the whole network.
"""

# A copy from before users add scores. A study does not reuse saved scores of users' functions, which may have changed
# since.
BUILT_IN = SCORES.copy()
SPECIFIC = "specific_information_"


def get_score(name: str) -> Score:
    """Return the score with this name.

    Args:
        name: one of `SCORES`, or `specific_information_C`: the specific surprise of class C in nats, as in
            `ja.metrics.specific_information`.

    Returns:
        A function from `Evidence` to an array [neuron].

    Raises:
        InputError: if the name is unknown.

    Example:
        >>> ja.scores.get_score("taylor") is ja.scores.SCORES["taylor"]
        True
    """
    require_type("score", name, str, "a name")
    # Digits after the prefix name a class; every other ending is looked up in SCORES.
    label = name.removeprefix(SPECIFIC)
    if label != name and label.isdecimal():
        return partial(_specific_information_of, int(label))
    require_known("score", name, (*SCORES, SPECIFIC + "CLASS"))
    return SCORES[name]


def _specific_information_of(label: int, evidence: Evidence) -> np.ndarray:
    last = evidence.num_classes - 1
    require(label <= last, f"score '{SPECIFIC}{label}': expected a class in 0..{last}, got {label}")
    return np.asarray(specific_information(evidence.counts))[:, label]


def is_user_defined(name: str) -> bool:
    """Return True if the score was added by the user, or replaces a built-in score."""
    return SCORES.get(name) is not BUILT_IN.get(name)


def compute_score(name: str, evidence: Evidence) -> np.ndarray:
    """Compute one score of every neuron.

    Args:
        name: name of the score, as in `get_score`.
        evidence: measurements of a network.

    Returns:
        float [neuron], over all sites in network order.

    Raises:
        InputError: if the name is unknown, if the network does not have this score, or if the score is not finite or
            has another shape.

    Example:
        >>> data = ja.load_dataset("mnist5k").validation
        >>> model = ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> ja.scores.compute_score("taylor", ja.scores.Evidence(model, data.images, data.labels, 10)).shape
        (5,)
    """
    _require_evidence(evidence)
    score = np.asarray(get_score(name)(evidence))
    neurons = evidence.activations.shape[1]
    require(score.shape == (neurons,), f"score {name!r}: expected shape ({neurons},) = [neuron], got {score.shape}")
    require_finite(f"score {name!r}", score)
    return score
