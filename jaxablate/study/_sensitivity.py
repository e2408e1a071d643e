"""Test whether a result depends on the quantizer.

Input: networks, a dataset and quantizers.
Output: correlations of scores, and areas under the curves, under each quantizer; verdicts on their direction.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from jaxablate._checks import InputError, require, require_different, require_known, require_type
from jaxablate._progress import OnProgress, no_progress
from jaxablate.ablation import cumulative_ablation
from jaxablate.activations import compute_fill
from jaxablate.claims import NOT_JUDGED, UNDECIDED
from jaxablate.claims._statistics import FEWEST_NETWORKS, LEVEL
from jaxablate.datasets import Dataset
from jaxablate.layer_analysis import spearman
from jaxablate.metrics import METRICS
from jaxablate.models import AnyModel
from jaxablate.orders import DIRECTIONS, ablation_order
from jaxablate.results import NETWORK_SCOPE, sensitivity_results
from jaxablate.scores import compute_score, get_score
from jaxablate.statistics import Estimate, holm, paired_difference
from jaxablate.study._config import require_steps
from jaxablate.study._scores import PLAIN_FILLS, evidence_of, networks_of_one_architecture, quantizer_of

QUANTIZERS = ("activation", *(f"quantile:{bins}" for bins in (2, 4, 8, 16, 32)))
KEPT, REVERSED, NO_DIRECTION = "kept", "reversed", "no direction"


def quantizer_sensitivity(
    models: AnyModel | Sequence[AnyModel],
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
    require_type("quantizers", quantizers, str | float | Iterable, "names of quantizers, or thresholds")
    quantizers = (quantizers,) if isinstance(quantizers, str | float) else tuple(quantizers)
    for quantizer in quantizers:
        require_type("quantizers", quantizer, str | int | float, "a name or a number")
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


@dataclass(frozen=True, eq=False)
class QuantizerComparison:
    """The direction of ablation that costs less, under each quantizer, for one scope and score.

    Attributes:
        scope, score: names as in `quantizer_sensitivity`.
        quantizers: names of the quantizers; the first one is the reference.
        difference: AUC with low values first minus AUC with high values first, in accuracy points, paired within
            networks: an `Estimate` [quantizer]. NaN where all neurons score the same.
        p_holm: float64 [quantizer], p-values of two-sided t-tests against 0, corrected by Holm's method over all
            quantizers but the first. The first one's is not corrected. NaN for fewer than five networks.
        verdict: "no direction" if the first quantizer shows none (p >= 0.05). "reversed" if another quantizer shows the
            opposite direction (p_holm < 0.05). "kept" if all others show the same direction (raw p < 0.05 suffices,
            because all must). Otherwise "undecided"; "not judged" for fewer than five networks.
        reversed_by: names of the quantizers that show the opposite direction.
    """

    scope: str
    score: str
    quantizers: tuple[str, ...]
    difference: Estimate
    p_holm: np.ndarray
    verdict: str
    reversed_by: tuple[str, ...]


def compare_quantizers(sensitivity: xr.Dataset) -> list[QuantizerComparison]:
    """Judge for each scope and score whether the direction of ablation that costs less depends on the quantizer.

    With many quantizers, one of them may show the opposite direction by chance. "reversed" is therefore corrected for
    the number of quantizers compared with the first one. Nothing is corrected across scopes and scores.

    Args:
        sensitivity: from `quantizer_sensitivity`, on five or more networks.

    Returns:
        One `QuantizerComparison` for each scope and score. Entropy under a "quantile" quantizer is left out (NaN):
        equally frequent codes have the same entropy in every neuron, up to rounding.

    Source: Holm (1979) for "reversed"; Berger (1982), intersection-union tests, for "kept".

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> results = ja.study.quantizer_sensitivity(model, data, ("activation", "quantile:4"), scores=("entropy",))
        >>> [comparison.verdict for comparison in ja.study.compare_quantizers(results)]
        ['not judged', 'not judged']
    """
    is_sensitivity = isinstance(sensitivity, xr.Dataset) and "quantizer" in sensitivity.coords
    if not is_sensitivity:
        raise InputError(
            f"sensitivity: expected results from ja.study.quantizer_sensitivity, got {type(sensitivity).__name__}"
        )
    quantizers = tuple(map(str, sensitivity["quantizer"].values))
    comparisons = []
    for scope, score in itertools.product(map(str, sensitivity["scope"].values), map(str, sensitivity["score"].values)):
        areas = sensitivity["auc"].sel(scope=scope, score=score).transpose("direction", "network", "quantizer")
        low, high = (areas.sel(direction=direction).values for direction in DIRECTIONS)
        ranks_nothing = [score.startswith("entropy") and name.startswith("quantile") for name in quantizers]
        difference = paired_difference(np.where(ranks_nothing, np.nan, low), high)
        p_values = np.where(difference.num_networks >= FEWEST_NETWORKS, difference.p_value, np.nan)
        p_holm = np.concatenate([p_values[:1], holm(p_values[1:])])
        compared = np.isfinite(p_values[1:])
        same = np.sign(difference.mean[1:]) == np.sign(difference.mean[0])
        reversals = compared & ~same & (p_holm[1:] < LEVEL)
        if np.isnan(p_values[0]) or not compared.any():
            verdict = NOT_JUDGED
        elif p_values[0] >= LEVEL:
            verdict = NO_DIRECTION
        elif reversals.any():
            verdict = REVERSED
        else:
            verdict = KEPT if (same & (p_values[1:] < LEVEL))[compared].all() else UNDECIDED
        reversed_by = tuple(itertools.compress(quantizers[1:], reversals)) if verdict == REVERSED else ()
        comparisons.append(QuantizerComparison(scope, score, quantizers, difference, p_holm, verdict, reversed_by))
    return comparisons
