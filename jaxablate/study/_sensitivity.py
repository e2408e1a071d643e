"""Whether a result depends on the quantizer: networks and quantizers come in, ranks and curves under each go out."""

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr
from flax import nnx

from jaxablate._checks import require, require_different, require_known
from jaxablate.ablation import cumulative_ablation
from jaxablate.activations import compute_fill
from jaxablate.datasets import Dataset
from jaxablate.metrics import METRICS
from jaxablate.models import Model
from jaxablate.models._network import trace_model
from jaxablate.orders import DIRECTIONS, ablation_order
from jaxablate.results import NETWORK_SCOPE, sensitivity_results
from jaxablate.scores import compute_score, get_score
from jaxablate.study._networks import OnProgress
from jaxablate.study._scores import PLAIN_FILLS, evidence_of, quantizer_of

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

    Under each quantizer every neuron is scored on the validation split, where also quantizers that take their edges
    from data get them; the neurons of every scope are ablated by each score, low and high values first, and counted on
    the test split.

    Args:
        models: one or more networks of one architecture, as if in evaluation mode.
        data: the dataset.
        quantizers: as in `StudyConfig`; the first is the one that the others are compared with.
        scores: names of scores, as in `ja.scores.get_score`; those that do not read codes are the same throughout.
        fill: what ablated neurons put out: "zero", "mean", "median" or "class_mean", as in `compute_fill`, from the
            validation split.
        steps: neurons to ablate; None takes 80, or all of the smallest layer where it has fewer.
        on_progress: called with (what, done, total, note) as the work goes on.

    Returns:
        A dataset over network, scope (every layer or site, and "network"), score and quantizer:
        `rank_correlation` is Spearman's between the scores under this quantizer and under the first (NaN where all
        neurons score the same under one of them); `auc` (also direction) the mean accuracy over the steps in percent,
        so that differences are accuracy points (NaN where all neurons score the same). The coordinate `num_codes` goes
        with `quantizer`.

    Raises:
        InputError: for unknown names, fewer than two quantizers, more steps than the smallest layer has neurons, or
            networks of several architectures.

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> found = ja.study.quantizer_sensitivity(model, data, ("activation", "quantile:4"), scores=("entropy",))
        >>> found["auc"].sizes["quantizer"], found["num_codes"].values.tolist()
        (2, [2, 4])
    """
    models = [models] if isinstance(models, nnx.Module) else list(models)
    require(len(models) > 0, "models: expected at least one, got none")
    quantizers = (quantizers,) if isinstance(quantizers, str | float) else tuple(quantizers)
    labels = [str(quantizer) for quantizer in quantizers]
    require(
        len(labels) > 1 and len(set(labels)) == len(labels),
        f"quantizers: expected two or more, all different, got {', '.join(labels) or 'none'}",
    )
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    require_different("scores", names)
    for name in names:
        get_score(name)
    require_known("fill", fill, PLAIN_FILLS)
    kinds = [trace_model(model, data.test.images[:1])[0] for model in models]
    network = kinds[0]
    require(all(kind == network for kind in kinds), "models: expected networks of one architecture, got several")
    steps = min(80, *network.sizes) if steps is None else steps
    require(
        1 <= steps <= min(network.sizes),
        f"steps: expected 1 to {min(network.sizes)}, the neurons of the smallest layer, got {steps}",
    )
    bounds = network.offsets.tolist()
    scopes = dict(zip([*network.sites, NETWORK_SCOPE], [*itertools.pairwise(bounds), (0, bounds[-1])], strict=True))
    num_codes = [quantizer_of(quantizer, models[0]).num_codes for quantizer in quantizers]
    report, total = on_progress or (lambda what, done, total, note: None), len(models) * len(scopes)
    correlations, areas = [], []
    for i, model in enumerate(models):
        evidence = evidence_of(model, data, quantizer_of(quantizers[0], model))
        coded = [evidence.with_quantizer(quantizer_of(quantizer, model)) for quantizer in quantizers]
        values_by_score = np.stack([[compute_score(name, coding) for coding in coded] for name in names])
        values = compute_fill(model, fill, data.validation.images, data.validation.labels)
        for j, (start, stop) in enumerate(scopes.values()):
            report("quantizers", i * len(scopes) + j, total, f"network {i + 1} of {len(models)}")
            in_scope = values_by_score[:, :, start:stop]
            correlations.append([[_spearman(of[0], one) for one in of] for of in in_scope])
            flat = in_scope.reshape(-1, stop - start)
            orders = np.stack([ablation_order(of, direction=way) for of in flat for way in DIRECTIONS]) + start
            correct = cumulative_ablation(model, orders, data.test.images, data.test.labels, values, steps=steps)
            area = 100 * np.asarray(correct)[:, 1:].mean(axis=1) / len(data.test)
            area[np.repeat(np.ptp(flat, axis=1) == 0, len(DIRECTIONS))] = np.nan  # no ranking but that of the index
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


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    from scipy import stats

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)  # pyright: ignore[reportAttributeAccessIssue]
