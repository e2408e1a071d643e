"""Test whether neurons that share information replace each other.

Input: networks and a dataset.
Output: correlations over the pairs of neurons of each layer, with p-values.
Memory: the counts and losses of all pairs of one layer.
"""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import require_count, require_known
from jaxablate.ablation import evaluate_masks, pair_ablation
from jaxablate.activations import compute_fill, record_activations
from jaxablate.datasets import Dataset
from jaxablate.interactions import mantel_test, pair_information, super_additivity
from jaxablate.models import Model
from jaxablate.results import redundancy_results
from jaxablate.study._networks import OnProgress, no_progress
from jaxablate.study._scores import PLAIN_FILLS, networks_of_one_architecture, quantizer_of

QUANTITIES = ("redundancy", "synergy", "co_information")


def redundancy_test(
    models: Model | Sequence[Model],
    data: Dataset,
    *,
    quantizer: str | float = "activation",
    fill: str = "mean",
    num_permutations: int = 999,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> xr.Dataset:
    """Test within each layer whether pairs of neurons that share information about the class can replace each other.

    The validation split gives the information of each pair about the class. The damage is the rise of the loss on the
    test split when a pair is ablated. The damage is super-additive if it is larger than the sum of the damages of the
    two neurons, each ablated alone. This is expected if either neuron can replace the other.

    Args:
        models: one or more networks of one architecture; they are evaluated in evaluation mode.
        data: the dataset.
        quantizer: as in `StudyConfig`.
        fill: fill of ablated neurons, "zero", "mean", "median" or "class_mean", as in `compute_fill`, from the
            validation split.
        num_permutations: number of permutations of the neurons, for the p-values.
        seed: seed of the permutations.
        on_progress: called with (what, done, total, note) as the work progresses.

    Returns:
        A dataset over network, scope (every layer or site) and quantity ("redundancy", "synergy", "co_information", as
        in `ja.interactions.PairInformation`). `correlation` is Spearman's correlation over the pairs between the
        quantity and the super-additivity of the damage. `p_value` tests it. Both are as in
        `ja.interactions.mantel_test`.

    Raises:
        InputError: for unknown names, a site of fewer than 3 neurons, or networks of several architectures.

    Source: the paper infers redundancy from accuracy curves; this measures it.

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
    tests = []
    for i, model in enumerate(models):
        quantize = quantizer_of(quantizer, model)
        fit_fill = compute_fill(model, fill, data.validation.images, data.validation.labels)
        examples = data.test.images, data.test.labels
        whole = np.ones((1, network.num_neurons), bool)
        intact = float(evaluate_masks(model, whole, *examples, fit_fill, outcomes="loss")[0])
        layers = record_activations(model, data.validation.images)
        for site, activations in zip(network.sites, layers, strict=True):
            report("pairs", len(tests), total, f"network {i + 1} of {len(models)}, {site}")
            # Edges that depend on data come from the validation split, like the codes. The damage comes from the test
            # split, so that both are measured on different examples.
            fitted = quantize.fit(activations)
            pairs = pair_information(
                fitted(activations), data.validation.labels, num_codes=fitted.num_codes, num_classes=data.num_classes
            )
            loss = pair_ablation(model, *examples, fit_fill, site=site, outcomes="loss")
            together = super_additivity(np.asarray(loss, np.float64) - intact)
            pair_tests = [
                mantel_test(getattr(pairs, name), together, num_permutations=num_permutations, key=key)
                for name in QUANTITIES
            ]
            tests.append([(test.correlation, test.p_value) for test in pair_tests])
    report("pairs", total, total, "")
    return redundancy_results(
        np.reshape(tests, (len(models), len(network.sites), len(QUANTITIES), 2)),
        scopes=network.sites,
        quantities=QUANTITIES,
        attrs={"quantizer": str(quantizer), "fill": fill, "num_test_examples": len(data.test)},
        source=data.source,
    )
