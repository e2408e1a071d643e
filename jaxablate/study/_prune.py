"""Prune a network by a score and measure the cost.

Input: a network and a dataset.
Output: a `PruningComparison`; with fine-tuning it also has a network that was trained from scratch.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from jaxablate._checks import require, require_integer, require_known, require_number
from jaxablate._typing import Mask
from jaxablate.ablation import evaluate_masks
from jaxablate.activations import compute_fill
from jaxablate.datasets import Dataset
from jaxablate.datasets._types import require_dataset
from jaxablate.fills import AnyFill, PerExampleFill
from jaxablate.models import from_module
from jaxablate.models._mlp import is_mlp
from jaxablate.orders import DIRECTIONS, ablation_order
from jaxablate.pruning import count_flops, count_parameters, prune
from jaxablate.study._scores import score_neurons
from jaxablate.training import train

FILLS = ("zero", "mean", "median", "linear")
SCOPES = ("layer", "network")


@dataclass(frozen=True)
class PrunedRow:
    """Describe one network of a comparison.

    Attributes:
        name: "before"; "masked", whose neurons are ablated and still there; "pruned"; with fine-tuning also the
            fine-tuned network and the new network.
        hidden: number of neurons of each site; for an `MLP` of each hidden layer.
        parameters: number of trainable numbers.
        flops: number of floating-point operations for one example.
        accuracy: test accuracy, a fraction.
    """

    name: str
    hidden: tuple[int, ...]
    parameters: int
    flops: int
    accuracy: float


@dataclass(frozen=True)
class PruningComparison:
    """The result of `prune_by_score`.

    Attributes:
        rows: one `PrunedRow` for each network: before pruning, masked and pruned, and with fine-tuning also the tuned
            network and a new network of the same size.
        model: the smaller network, tuned if fine-tuning was requested.
    """

    rows: tuple[PrunedRow, ...]
    model: Any


def prune_by_score(
    model: nnx.Module,
    data: Dataset,
    *,
    score: str = "mutual_information",
    direction: str = "low",
    keep_fraction: float = 0.6,
    scope: str = "layer",
    fill: str = "mean",
    fine_tune_epochs: int = 0,
    quantizer: str | float = "activation",
    seed: int = 0,
) -> PruningComparison:
    """Remove the neurons with the lowest or highest scores, and compare the accuracies before and after.

    Args:
        model: the network, an `MLP` or another Flax NNX module that `ja.prune` can prune.
        data: the dataset; the validation split gives scores and fill, the test split gives accuracies.
        score: name of a score, as in `ja.scores.get_score`.
        direction: "low" removes the neurons with low scores first, "high" those with high scores.
        keep_fraction: fraction of the neurons to keep, in (0, 1], rounded to whole neurons; at least one neuron stays.
        scope: "layer" keeps that fraction of every layer, "network" ranks the neurons of all layers together.
        fill: "zero", "mean", "median" or "linear": the output of a removed neuron, which is added to the next layer's
            biases, and for "linear" to its weights.
        fine_tune_epochs: epochs of training after pruning. A new network of the same size is then trained for as many
            epochs, for comparison. Only for an `MLP`.
        quantizer: as in `StudyConfig`.
        seed: seed of the fine-tuning and of the new network.

    Returns:
        A `PruningComparison`.

    Raises:
        InputError: for an unknown name, a fraction out of range, a layer that would lose all its neurons, a network
            that cannot be pruned, or fine-tuning of another network than an `MLP`.

    Example:
        >>> model = ja.MLP(784, (10,), 10, rngs=nnx.Rngs(0))
        >>> comparison = ja.study.prune_by_score(model, ja.load_dataset("mnist5k"), keep_fraction=0.5)
        >>> [(row.name, row.hidden) for row in comparison.rows]
        [('before', (10,)), ('masked', (10,)), ('pruned', (5,))]
    """
    require(
        isinstance(model, nnx.Module),
        f"model: expected a Flax NNX module, got {type(model).__name__}; ja.prune takes any network",
    )
    require_dataset(data)
    require_known("direction", direction, DIRECTIONS)
    require_known("scope", scope, SCOPES)
    require_number("keep_fraction", keep_fraction)
    fine_tune_epochs = require_integer("fine_tune_epochs", fine_tune_epochs)
    require_known("fill", fill, FILLS)
    require(
        0 < keep_fraction <= 1,
        f"keep_fraction: {keep_fraction:g} is not a fraction to keep; choose above 0 and up to 1",
    )
    require(fine_tune_epochs >= 0, f"fine_tune_epochs: {fine_tune_epochs} is negative; choose 0 or more")
    require(
        fine_tune_epochs == 0 or is_mlp(model),
        f"fine_tune_epochs: only an MLP is trained further, got {type(model).__name__}; choose 0 and train it yourself",
    )
    scores = score_neurons(model, data, scores=(score,), quantizer=quantizer)["scores"].values[0]
    bounds = from_module(model, data.test.images).spec.offsets
    # Each span is ranked by itself: every layer, or the whole network as one span. At least one neuron of a span stays,
    # but a whole-network span may still empty a layer, which `prune` refuses.
    spans = itertools.pairwise(bounds) if scope == "layer" else [(0, bounds[-1])]
    kept = np.ones(len(scores), bool)
    for start, stop in spans:
        num_kept = max(1, round(keep_fraction * int(stop - start)))
        order = np.asarray(ablation_order(scores[start:stop], direction=direction))
        kept[start + order[: stop - start - num_kept]] = False
    values = compute_fill(model, fill, data.validation.images)
    assert not isinstance(values, PerExampleFill)
    small = prune(model, kept, values, images=data.validation.images[:100])
    rows = [_row("before", model, data), _row("masked", model, data, kept, values), _row("pruned", small, data)]
    if fine_tune_epochs:
        assert is_mlp(small)
        small, _ = train(data, seed=seed, start=small, epochs=fine_tune_epochs)
        # The control for pruning: if a new network of the same size reaches the same accuracy with the same training,
        # the choice of neurons was worth nothing.
        kind = {"activation": small.activation, "dropout": small.dropout, "batch_norm": small.batch_norm}
        scratch, _ = train(data, small.hidden, seed, **kind, epochs=fine_tune_epochs)
        rows += [
            _row(f"tuned, epochs: {fine_tune_epochs}", small, data),
            _row(f"new, epochs: {fine_tune_epochs}", scratch, data),
        ]
    return PruningComparison(tuple(rows), small)


def _row(
    name: str, model: nnx.Module, data: Dataset, keep: Mask | None = None, fill: AnyFill | None = None
) -> PrunedRow:
    """Return the row of one network, with a mask [neuron] or with all its neurons."""
    sizes = from_module(model, data.test.images).spec.sizes
    keep = np.ones(sum(sizes), bool) if keep is None else keep
    correct = evaluate_masks(model, keep[None], data.test.images, data.test.labels, fill)
    flops = count_flops(model, data.test.images[:1])
    return PrunedRow(name, tuple(sizes), count_parameters(model), flops, float(correct[0]) / len(data.test))
