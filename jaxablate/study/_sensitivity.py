"""Test whether a result depends on the quantizer.

Input: networks, a dataset and quantizers.
Output: correlations of scores, and areas under the curves, under each quantizer.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr

from jaxablate._checks import require, require_different, require_known
from jaxablate.ablation import cumulative_ablation
from jaxablate.activations import compute_fill
from jaxablate.datasets import Dataset
from jaxablate.layer_analysis import spearman
from jaxablate.metrics import METRICS
from jaxablate.models import Model
from jaxablate.orders import DIRECTIONS, ablation_order
from jaxablate.results import NETWORK_SCOPE, sensitivity_results
from jaxablate.scores import compute_score, get_score
from jaxablate.study._config import require_steps
from jaxablate.study._networks import OnProgress, no_progress
from jaxablate.study._scores import PLAIN_FILLS, evidence_of, networks_of_one_architecture, quantizer_of

QUANTIZERS = ("activation", *(f"quantile:{bins}" for bins in (2, 4, 8, 16, 32)))


def quantizer_sensitivity(
    models: Model | Sequence[Model],
    data: Dataset,
    quantizers: Sequence[str | float] = QUANTIZERS,
    *,
    scores: Sequence[str] = tuple(METRICS),
    fill: str = "mean",
    steps: int | None = None,
    on_progress: OnProgress | None = None,
) -> xr.Dataset:
    """Rank and ablate the neurons of networks under several quantizers, to see whether a result depends on them.

    The validation split gives the scores and the edges of quantizers that depend on data. The neurons of every scope
    are then ablated by each score, with low and with high values first, and evaluated on the test split.

    Args:
        models: one or more networks of one architecture; they are evaluated in evaluation mode.
        data: the dataset.
        quantizers: at least two quantizers, as in `StudyConfig`; the first one is the reference.
        scores: names of scores, as in `ja.scores.get_score`; a score that reads no codes is the same under all
            quantizers.
        fill: fill of ablated neurons, "zero", "mean", "median" or "class_mean", as in `compute_fill`, from the
            validation split.
        steps: number of neurons to ablate; None takes 80, or the size of the smallest layer if that is less.
        on_progress: called with (what, done, total, note) as the work progresses.

    Returns:
        A dataset over network, scope (every layer or site, and "network"), score and quantizer. `rank_correlation` is
        Spearman's correlation between the scores under this quantizer and under the first one; it is NaN if all neurons
        score the same under one of them. `auc` (also over direction) is the mean accuracy over the steps in percent, so
        that differences are accuracy points; it is NaN if all neurons score the same. The coordinate `num_codes`
        belongs to `quantizer`.

    Raises:
        InputError: for unknown names, fewer than two quantizers, more steps than the smallest layer has neurons, or
            networks of several architectures.

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> results = ja.study.quantizer_sensitivity(model, data, ("activation", "quantile:4"), scores=("entropy",))
        >>> results["auc"].sizes["quantizer"], results["num_codes"].values.tolist()
        (2, [2, 4])
    """
    quantizers = (quantizers,) if isinstance(quantizers, str | float) else tuple(quantizers)
    labels = [str(quantizer) for quantizer in quantizers]
    require(
        len(labels) > 1 and len(set(labels)) == len(labels),
        f"quantizers: {', '.join(labels) or 'none'} cannot be compared; name two or more, all different",
    )
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    require_different("scores", names)
    for name in names:
        get_score(name)
    require_known("fill", fill, PLAIN_FILLS)
    models, network = networks_of_one_architecture(models, data)
    steps = min(80, *network.sizes) if steps is None else steps
    require_steps(steps, network.sizes)
    bounds = network.offsets.tolist()
    scopes = dict(zip([*network.sites, NETWORK_SCOPE], [*itertools.pairwise(bounds), (0, bounds[-1])], strict=True))
    num_codes = [quantizer_of(quantizer, models[0]).num_codes for quantizer in quantizers]
    report, total = on_progress or no_progress, len(models) * len(scopes)
    correlations, areas = [], []
    for i, model in enumerate(models):
        evidence = evidence_of(model, data, quantizer_of(quantizers[0], model))
        coded = [evidence.with_quantizer(quantizer_of(quantizer, model)) for quantizer in quantizers]
        values_by_score = np.stack([[compute_score(name, coding) for coding in coded] for name in names])
        fill_values = compute_fill(model, fill, data.validation.images, data.validation.labels)
        for j, (start, stop) in enumerate(scopes.values()):
            report("quantizers", i * len(scopes) + j, total, f"network {i + 1} of {len(models)}")
            in_scope = values_by_score[:, :, start:stop]  # [score, quantizer, neuron]
            # [score, quantizer] for this network and scope. The first quantizer correlates with itself, which gives 1,
            # or NaN if all scores are equal.
            correlations.append(
                [[spearman(by_quantizer[0], values) for values in by_quantizer] for by_quantizer in in_scope]
            )
            # One call evaluates the orders of all scores, quantizers and directions, so that engines share the prefix.
            flat = in_scope.reshape(-1, stop - start)
            orders = np.stack(
                [ablation_order(values, direction=direction) for values in flat for direction in DIRECTIONS]
            )
            counts = cumulative_ablation(
                model, orders + start, data.test.images, data.test.labels, fill_values, steps=steps
            )
            area = 100 * np.asarray(counts)[:, 1:].mean(axis=1) / len(data.test)
            # equal scores rank nothing: such an order would only follow the index
            area[np.repeat(np.ptp(flat, axis=1) == 0, len(DIRECTIONS))] = np.nan
            areas.append(area.reshape(len(names), len(quantizers), len(DIRECTIONS)))
    report("quantizers", total, total, "")
    shape = len(models), len(scopes), len(names), len(labels)
    return sensitivity_results(
        np.reshape(correlations, shape),
        np.reshape(areas, (*shape, len(DIRECTIONS))),
        scopes=list(scopes),
        scores=names,
        quantizers=dict(zip(labels, num_codes, strict=True)),
        attrs={"fill": fill, "steps": steps, "num_test_examples": len(data.test)},
        source=data.source,
    )
