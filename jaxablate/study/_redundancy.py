"""Whether neurons that share information stand in for each other: networks come in, correlations over pairs go out."""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr
from flax import nnx

from jaxablate._checks import require, require_count, require_known
from jaxablate.ablation import evaluate_masks, pair_ablation
from jaxablate.activations import compute_fill, record_activations
from jaxablate.datasets import Dataset
from jaxablate.interactions import mantel_test, pair_information, super_additivity
from jaxablate.models import Model
from jaxablate.models._network import trace_model
from jaxablate.results import redundancy_results
from jaxablate.study._networks import OnProgress
from jaxablate.study._scores import PLAIN_FILLS, quantizer_of

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
    """Test, within each layer, whether pairs that share information about the class are worse to lose together.

    What pairs of neurons tell of the class is taken from the validation split; the damage of ablating them is the rise
    of the loss on the test split. That damage is super-additive where a pair costs more than its two neurons one by
    one, which is what standing in for each other looks like.

    Args:
        models: one or more networks of one architecture, as if in evaluation mode.
        data: the dataset.
        quantizer: as in `StudyConfig`.
        fill: what ablated neurons put out: "zero", "mean", "median" or "class_mean", as in `compute_fill`, from the
            validation split.
        num_permutations: of neurons, for the p-values.
        seed: of the permutations.
        on_progress: called with (what, done, total, note) as the work goes on.

    Returns:
        A dataset over network, scope (every layer or site) and quantity ("redundancy", "synergy", "co_information", as
        in `ja.interactions.PairInformation`): `correlation`, Spearman's over the pairs with the super-additivity of the
        damage, and `p_value`, both as in `ja.interactions.mantel_test`.

    Raises:
        InputError: for unknown names, a site of fewer than 3 neurons, or networks of several architectures.

    Source: the paper infers redundancy from accuracy curves; this measures it.

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> ja.study.redundancy_test(model, data, num_permutations=9)["correlation"].sizes["quantity"]
        3
    """
    models = [models] if isinstance(models, nnx.Module) else list(models)
    require(len(models) > 0, "models: expected at least one, got none")
    require_known("fill", fill, PLAIN_FILLS)
    num_permutations = require_count("num_permutations", num_permutations)
    kinds = [trace_model(model, data.test.images[:1])[0] for model in models]
    network = kinds[0]
    require(all(kind == network for kind in kinds), "models: expected networks of one architecture, got several")
    report, total = on_progress or (lambda what, done, total, note: None), len(models) * len(network.sites)
    key = jax.random.key(seed)
    tests = []
    for i, model in enumerate(models):
        quantize = quantizer_of(quantizer, model)
        fit_fill = compute_fill(model, fill, data.validation.images, data.validation.labels)
        test = data.test.images, data.test.labels
        whole = np.ones((1, network.num_neurons), bool)
        intact = float(evaluate_masks(model, whole, *test, fit_fill, outcomes="loss")[0])
        layers = record_activations(model, data.validation.images)
        for site, activations in zip(network.sites, layers, strict=True):
            report("pairs", len(tests), total, f"network {i + 1} of {len(models)}, {site}")
            fitted = quantize.fit(activations)
            pairs = pair_information(
                fitted(activations), data.validation.labels, num_codes=fitted.num_codes, num_classes=data.num_classes
            )
            loss = pair_ablation(model, *test, fit_fill, site=site, outcomes="loss")
            together = super_additivity(np.asarray(loss, np.float64) - intact)
            found = [
                mantel_test(getattr(pairs, name), together, num_permutations=num_permutations, key=key)
                for name in QUANTITIES
            ]
            tests.append([(of.correlation, of.p_value) for of in found])
    report("pairs", total, total, "")
    return redundancy_results(
        np.reshape(tests, (len(models), len(network.sites), len(QUANTITIES), 2)),
        scopes=network.sites,
        quantities=QUANTITIES,
        attrs={"quantizer": str(quantizer), "fill": fill, "num_test_examples": len(data.test)},
        source=data.source,
    )
