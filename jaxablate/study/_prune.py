"""Pruning by a score, and what it costs: with fine-tuning also against a network trained from scratch."""

import itertools
from dataclasses import dataclass

import numpy as np

from jaxablate._checks import require, require_known
from jaxablate.ablation import evaluate_masks
from jaxablate.activations import compute_fill
from jaxablate.datasets import Dataset
from jaxablate.models import MLP
from jaxablate.models._network import is_mlp, site_bounds
from jaxablate.orders import DIRECTIONS, ablation_order
from jaxablate.pruning import count_flops, count_parameters, prune
from jaxablate.study._scores import score_neurons
from jaxablate.training import train

FILLS = ("zero", "mean", "median")
SCOPES = ("layer", "network")


@dataclass(frozen=True)
class PrunedRow:
    """One network of a comparison: its hidden layers, trainable numbers, floating point operations of one example, and
    test accuracy (fraction)."""

    name: str
    hidden: tuple[int, ...]
    parameters: int
    flops: int
    accuracy: float


def prune_by_score(
    model: MLP,
    data: Dataset,
    *,
    by: str = "mutual_information",
    direction: str = "low",
    keep: float = 0.6,
    scope: str = "layer",
    fill: str = "mean",
    fine_tune: int = 0,
    seed: int = 0,
    quantizer: str | float = "activation",
) -> tuple[list[PrunedRow], MLP]:
    """Remove the neurons that a score ranks first, and compare accuracies.

    Args:
        model: the network.
        data: scores and fill come from the validation split, accuracies from the test split.
        by: the score, one of `ja.scores.SCORES`.
        direction: "low" removes low values first, "high" high values.
        keep: the share of neurons to keep, above 0 and up to 1, rounded to whole neurons, at least one.
        scope: "layer" keeps that share of every layer, "network" ranks all neurons together.
        fill: "zero", "mean" or "median", folded into the next biases.
        fine_tune: epochs to train the smaller network on; as many are given to a new network of its size.
        seed: of fine-tuning and of the new network.
        quantizer: as in `StudyConfig`.

    Returns:
        A row each for the network before and after, and with fine-tuning for the tuned one and the new one; and the
        smaller network, tuned if asked for.

    Raises:
        InputError: for an unknown name, a share out of range, or a layer that would lose all its neurons.

    Example:
        >>> model = ja.MLP(784, (10,), 10, rngs=nnx.Rngs(0))
        >>> rows, small = ja.study.prune_by_score(model, ja.load_dataset("mnist5k"), keep=0.5)
        >>> [row.hidden for row in rows]
        [(10,), (5,)]
    """
    require(is_mlp(model), f"model: expected an MLP, got {type(model).__name__}; ja.prune takes chains")
    require_known("direction", direction, DIRECTIONS)
    require_known("scope", scope, SCOPES)
    require_known("fill", fill, FILLS)
    require(0 < keep <= 1, f"keep: expected a share above 0 and up to 1, got {keep:g}")
    require(fine_tune >= 0, f"fine_tune: expected epochs of at least 0, got {fine_tune}")
    scores = score_neurons(model, data, scores=(by,), quantizer=quantizer)["scores"].values[0]
    bounds = site_bounds(model.hidden)
    cuts = itertools.pairwise(bounds) if scope == "layer" else [(0, bounds[-1])]
    kept = np.ones(len(scores), bool)
    for start, stop in cuts:
        stay = max(1, round(keep * int(stop - start)))
        order = np.asarray(ablation_order(scores[start:stop], direction=direction))
        kept[start + order[: stop - start - stay]] = False
    values = compute_fill(model, fill, data.validation.images)
    small = prune(model, kept, np.asarray(values))
    rows = [_row("before", model, data), _row("pruned", small, data)]
    if fine_tune:
        small, _ = train(data, seed=seed, start=small, epochs=fine_tune)
        scratch, _ = train(data, small.hidden, seed, activation=small.activation, epochs=fine_tune)
        rows += [
            _row(f"tuned, epochs: {fine_tune}", small, data),
            _row(f"new, epochs: {fine_tune}", scratch, data),
        ]
    return rows, small


def _row(name: str, model: MLP, data: Dataset) -> PrunedRow:
    everything = np.ones((1, sum(model.hidden)), bool)
    correct = evaluate_masks(model, everything, data.test.images, data.test.labels)
    flops = count_flops(model, data.test.images[:1])
    return PrunedRow(name, model.hidden, count_parameters(model), flops, float(correct[0]) / len(data.test))
