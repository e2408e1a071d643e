"""Test whether neurons that share information replace each other.

Input: networks and a dataset.
Output: correlations over the pairs of neurons of each layer, with p-values.
Memory: the counts and losses of all pairs of one layer, and logits [neuron, example, class] of one batch of examples.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxablate._checks import require, require_count, require_known
from jaxablate._precision import matmul_precision
from jaxablate._progress import OnProgress, no_progress
from jaxablate.ablation import evaluate_masks, pair_ablation
from jaxablate.activations import compute_fill, record_activations
from jaxablate.datasets import Dataset, Split
from jaxablate.fills import AnyFill, PerExampleFill
from jaxablate.interactions import loss_curvature, mantel_test, pair_information, super_additivity
from jaxablate.layer_analysis import spearman
from jaxablate.models import AnyModel
from jaxablate.models._model import ModelSpec, State, start_forward, trace_model
from jaxablate.results import redundancy_results
from jaxablate.study._scores import PLAIN_FILLS, networks_of_one_architecture, quantizer_of

QUANTITIES = ("redundancy", "synergy", "co_information")
BATCH_SIZE = 500


def redundancy_test(
    models: AnyModel | Sequence[AnyModel],
    data: Dataset,
    *,
    quantizer: str | float = "activation",
    fill: str = "mean",
    only_changing: bool = False,
    num_permutations: int = 999,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> xr.Dataset:
    """Test within each layer whether pairs of neurons that share information about the class can replace each other.

    The validation split gives the information of each pair about the class. The damage is the rise of the loss on the
    test split when a pair is ablated. The damage is super-additive if it is larger than the sum of the damages of the
    two neurons, each ablated alone. This is expected if either neuron can replace the other.

    It is also expected without any replacement, because the loss is convex (`ja.interactions.loss_curvature`). The
    partial correlations control for this curvature; a correlation without this control is no evidence of replacement.
    In the last hidden layer the changes of the logits always add up, if a linear map follows. Beyond the curvature,
    only third and higher orders of the loss remain there, so no correlation in this layer shows replacement.

    Args:
        models: one or more networks of one architecture; they are evaluated in evaluation mode.
        data: the dataset.
        quantizer: as in `StudyConfig`.
        fill: fill of ablated neurons, "zero", "mean", "median" or "class_mean", as in `compute_fill`, from the
            validation split.
        only_changing: leave out neurons whose code is the same for all validation images. Their pairs share no
            information, and a correlation over all pairs may come from the difference between such neurons and others.
        num_permutations: number of permutations of the neurons, for the p-values.
        seed: seed of the permutations.
        on_progress: called with (what, done, total, note) as the work progresses.

    Returns:
        A dataset over network, scope (every layer or site) and quantity ("redundancy", "synergy", "co_information", as
        in `ja.interactions.PairInformation`), all for the pairs of a layer:

        - `correlation`: Spearman's correlation of the quantity with the super-additivity of the damage, and `p_value`.
        - `partial_correlation`: the same, given the curvature of the loss, and `partial_p_value`.
        - `curvature_correlation`: Spearman's correlation of curvature and super-additivity; it has no quantity.

        The p-values are permutation tests within one network, as in `ja.interactions.mantel_test`. Estimate the mean
        over networks with `ja.statistics.estimate`.

    Raises:
        InputError: for unknown names, a site of fewer than 3 neurons, or networks of several architectures.

    Source: the paper infers redundancy from accuracy curves; this measures it. Partial test: Smouse, Long and Sokal
        1986, Systematic Zoology 35, 627-632.

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> ja.study.redundancy_test(model, data, num_permutations=9)["correlation"].sizes["quantity"]
        3
    """
    require_known("fill", fill, PLAIN_FILLS)
    num_permutations = require_count("num_permutations", num_permutations)
    models, network = networks_of_one_architecture(models, data)
    report, total = on_progress or no_progress, len(models) * len(network.sites)
    # For a pair (a, b) with losses L: damage(a) = L(a) - L(intact), and super-additivity is damage(a, b) - damage(a) -
    # damage(b). `pair_ablation` holds the single losses on its diagonal, so one call gives all of them. The losses are
    # subtracted in float64: super-additivity is a small difference of large sums. Pairs share neurons and are not
    # independent. The Mantel test therefore permutes neurons, not pairs.
    key = jax.random.key(seed)
    tests, curvature_correlations = [], []
    for i, model in enumerate(models):
        quantize = quantizer_of(quantizer, model)
        fit_fill = compute_fill(model, fill, data.validation.images, data.validation.labels)
        examples = data.test.images, data.test.labels
        whole = np.ones((1, network.num_neurons), bool)
        intact = float(evaluate_masks(model, whole, *examples, fit_fill, outcomes="loss")[0])
        layers = record_activations(model, data.validation.images)
        for j, (site, activations) in enumerate(zip(network.sites, layers, strict=True)):
            report("pairs", len(tests), total, f"network {i + 1} of {len(models)}, {site}")
            # Edges that depend on data come from the validation split, like the codes. The damage comes from the test
            # split, so that both are measured on different examples.
            fitted = quantize.fit(activations)
            codes = np.asarray(fitted(activations))
            compared = np.flatnonzero(np.ptp(codes, axis=0) > 0) if only_changing else np.arange(codes.shape[1])
            require(
                len(compared) > 2 or not only_changing,
                f"only_changing: only {len(compared)} neurons of {site} change their code, and 3 are needed; compare "
                "all neurons, or choose another quantizer",
            )
            pairs = pair_information(
                codes[:, compared], data.validation.labels, num_codes=fitted.num_codes, num_classes=data.num_classes
            )
            loss = pair_ablation(model, *examples, fit_fill, site=site, outcomes="loss")
            together = super_additivity(np.asarray(loss, np.float64) - intact)[np.ix_(compared, compared)]
            curvature = _site_curvature(model, data.test, fit_fill, j)[np.ix_(compared, compared)]
            upper = np.triu_indices(len(curvature), k=1)
            curvature_correlations.append(spearman(curvature[upper], together[upper]))
            pair_tests = [
                mantel_test(getattr(pairs, name), together, control=control, num_permutations=num_permutations, key=key)
                for name in QUANTITIES
                for control in (None, curvature)
            ]
            tests.append([(test.correlation, test.p_value) for test in pair_tests])
    report("pairs", total, total, "")
    places = len(models), len(network.sites)
    return redundancy_results(
        np.reshape(tests, (*places, len(QUANTITIES), 2, 2)),
        np.reshape(curvature_correlations, places),
        scopes=network.sites,
        quantities=QUANTITIES,
        attrs={
            "quantizer": str(quantizer),
            "fill": fill,
            "only_changing": int(only_changing),
            "num_test_examples": len(data.test),
        },
        source=data.source,
    )


def _site_curvature(model: AnyModel, examples: Split, fill: AnyFill, site: int) -> np.ndarray:
    """Return the `loss_curvature` [neuron, neuron] of a site's neurons, each ablated alone to its fill."""
    network, state, images = trace_model(model, examples.images)
    size, start = network.sizes[site], network.offsets[site]
    # The logits of all neurons are held for one batch of examples only.
    total = np.zeros((size, size))
    for i in range(0, len(images), BATCH_SIZE):
        batch = slice(i, i + BATCH_SIZE)
        if isinstance(fill, PerExampleFill):
            values = fill.tables[site][fill.rows(examples.labels[batch])]
        else:
            values = jnp.asarray(fill)[start : start + size]
        intact, changes = _logit_changes(network, site, state, images[batch], values)
        total += len(intact) * loss_curvature(changes, jax.nn.softmax(intact))
    return total / len(images)


@partial(jax.jit, static_argnums=(0, 1))
def _logit_changes(
    network: ModelSpec, site: int, state: State, images: jax.Array, fill: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the intact logits [example, class], and their changes [neuron, example, class] without each neuron."""
    with jax.default_matmul_precision(matmul_precision()):
        finish = start_forward(network, state, images, (site,))
        intact = finish({})
        neurons = jnp.arange(network.sizes[site])

        # One neuron at a time: the memory does not grow with the width of a hidden layer, only with the logits.
        def change(neuron: jax.Array) -> jax.Array:
            return finish({site: (neurons != neuron, fill, None)}) - intact

        return intact, jax.lax.map(change, neurons)
