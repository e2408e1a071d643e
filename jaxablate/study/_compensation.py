"""Measure how well the neurons of a layer predict each other, and how few of them the network needs.

Input: networks and a dataset.
Output: R^2 of each neuron given its layer, effective ranks, and accuracies to the end of every layer.
Memory: the activations of one layer for all training examples, float64 [example, neuron].
"""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import require, require_count
from jaxablate._progress import OnProgress, no_progress
from jaxablate._typing import AnyArray
from jaxablate.ablation import cumulative_ablation
from jaxablate.activations import RIDGE, compute_fill, fit_linear, record_activations
from jaxablate.datasets import Dataset
from jaxablate.linear_compensation import effective_rank, r_squared, regularize
from jaxablate.models import AnyModel
from jaxablate.models._model import trace_model
from jaxablate.orders import ablation_order, random_orders
from jaxablate.results import RANDOM, compensation_results
from jaxablate.scores import compute_score
from jaxablate.study._scores import evidence_of, networks_of_one_architecture, quantizer_of

FILLS = ("zero", "mean", "linear")


def linear_redundancy(
    models: AnyModel | Sequence[AnyModel],
    data: Dataset,
    *,
    scores: Sequence[str] = ("mutual_information", "elimination_rank"),
    num_random_orders: int = 1,
    neurons_per_step: int = 1,
    share: float = 0.99,
    quantizer: str | float = "activation",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> xr.Dataset:
    """Ablate every layer to its end under zeros, means and linear compensation, and measure its linear redundancy.

    Fills and scores come from the validation split, accuracies from the test split. A readout is a new linear
    classifier (ridge regression of the one-hot labels, fitted on the training split) that reads the kept neurons of the
    intact network alone. Its accuracy shows what these neurons say about the class, even if the rest of the network
    does not use it.

    Args:
        models: one or more networks of one architecture with class logits; they are evaluated in evaluation mode.
        data: the dataset.
        scores: names of scores whose low values are ablated first, as in `ja.scores.get_score`.
        num_random_orders: number of random orders of each layer, the same for all networks.
        neurons_per_step: number of neurons that each step ablates. Neurons beyond the last whole step stay.
        share: fraction in (0, 1] of the intact accuracy. A layer needs the neurons without which accuracy falls below.
        quantizer: as in `StudyConfig`.
        seed: seed of the random orders.
        on_progress: called with (what, done, total, note) as the work progresses.

    Returns:
        A dataset over network, scope (every layer or site), ordering (the scores, then "random 0", ...), fill ("zero",
        "mean", "linear") and step (number of ablated neurons, in multiples of `neurons_per_step`):

        - `accuracy`: test accuracy, a fraction; NaN after the last step of a layer.
        - `needed`: number of kept neurons at the last step before the accuracy first falls below `share` times the
          intact accuracy. NaN if even all neurons fall short, which is possible for readouts only.
        - `readout_accuracy`, `readout_needed`: the same for readouts; they have no fill.
        - `r_squared` (network, neuron): fraction of a neuron's variance on the test split that the other neurons of its
          layer predict linearly; NaN for a constant neuron. The coordinate `site` names the layer of each neuron.
        - `effective_rank` (network, scope): number of principal components with 99% of the layer's variance on the
          validation split, whatever `share` is.

    Raises:
        InputError: for unknown names, a share or a number out of range, no order at all, or networks of several
            architectures.

    Source: the paper infers redundancy from accuracy curves; this measures the linear part of it.

    Example:
        >>> data, model = ja.load_dataset("mnist5k"), ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0))
        >>> ja.study.linear_redundancy(model, data, scores=())["accuracy"].dims
        ('network', 'scope', 'ordering', 'fill', 'step')
    """
    require(0 < share <= 1, f"share: {share:g} is not a fraction of the intact accuracy; choose above 0 and up to 1")
    require(num_random_orders >= 0, f"num_random_orders: {num_random_orders} is negative; choose 0 or more")
    require(len(scores) + num_random_orders > 0, "scores: there is no order; give a score or num_random_orders")
    neurons_per_step = require_count("neurons_per_step", neurons_per_step)
    models, network = networks_of_one_architecture(models, data)
    require(
        neurons_per_step <= min(network.sizes),
        f"neurons_per_step: {neurons_per_step} are more than the {min(network.sizes)} neurons of the smallest layer",
    )
    report = on_progress or no_progress
    orderings = [*scores, *(f"{RANDOM} {i}" for i in range(num_random_orders))]
    shape = len(models), len(network.sites), len(orderings), len(FILLS) + 1  # the last are the readouts
    sizes = np.array(network.sizes)
    num_steps, total = sizes // neurons_per_step, len(models) * len(sizes)
    accuracy = np.full((*shape, num_steps.max() + 2), np.nan)  # one step more than any layer has
    r_squares, ranks = np.empty((len(models), network.num_neurons)), np.empty(shape[:2], int)
    # One key for each layer: all networks get the same random orders.
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    # One pass for each network and layer: scores and fills from the validation split, curves on the test split. The
    # readouts are fitted on the training split, which no score has seen.
    for i, model in enumerate(models):
        evidence = evidence_of(model, data, quantizer_of(quantizer, model))
        values = [compute_score(name, evidence) for name in scores]
        fills = [compute_fill(model, kind, data.validation.images) for kind in FILLS[:2]]
        fit, test = evidence.linear_fill, fit_linear(*trace_model(model, data.test.images))
        train_layers, test_layers = (record_activations(model, split.images) for split in (data.train, data.test))
        for j, (site, size, steps) in enumerate(zip(network.sites, network.sizes, num_steps.tolist(), strict=True)):
            numbers = np.arange(1, steps + 1) * neurons_per_step
            report("layers", i * len(sizes) + j, total, f"network {i + 1} of {len(models)}, {site}")
            part = slice(*network.offsets[j : j + 2])
            moments = fit.covariances[j], fit.ridge, fit.means[part], test.covariances[j], test.means[part]
            r_squares[i, part], ranks[i, j] = r_squared(*moments), effective_rank(fit.covariances[j])
            ranked = [ablation_order(score[part], direction="low") for score in values]
            orders = np.stack([*ranked, *random_orders(size, num_random_orders, key=keys[j])])
            examples = data.test.images, data.test.labels
            for m, fill in enumerate((*fills, fit)):
                counts = cumulative_ablation(model, orders, *examples, fill, site=site, steps=numbers)
                accuracy[i, j, :, m, : steps + 1] = np.asarray(counts) / len(data.test)
            for o, order in enumerate(orders):
                correct = _readout(order, fit.ridge, train_layers[j], data.train.labels, test_layers[j], examples[1])
                accuracy[i, j, o, -1, : steps + 1] = correct[::neurons_per_step] / len(data.test)
    report("layers", total, total, "")
    # The first step at which the accuracy is below the share. NaN, after the last step of a layer, counts as below.
    first_below = (~(accuracy >= share * accuracy[:, :1, :1, :1, :1])).argmax(axis=-1)
    # 0 means that even all neurons fall short.
    needed = np.where(first_below > 0, sizes[:, None, None] - (first_below - 1) * neurons_per_step, np.nan)
    return compensation_results(
        accuracy[..., :-1],
        needed,
        r_squares,
        ranks,
        coordinates={"ordering": orderings, "fill": FILLS, "step": np.arange(num_steps.max() + 1) * neurons_per_step},
        sites=dict(zip(network.sites, network.sizes, strict=True)),
        attrs={"share": share, "ridge": RIDGE, "quantizer": str(quantizer), "num_test_examples": len(data.test)},
        source=data.source,
    )


def _readout(
    order: np.ndarray, ridge: float, train: AnyArray, train_labels: AnyArray, test: AnyArray, test_labels: AnyArray
) -> np.ndarray:
    """Return the correct predictions [step] of linear readouts of the neurons that an order has not yet ablated.

    Args:
        order: int [rank], all neurons of a layer.
        ridge: as in `ja.fills.LinearFill`.
        train, test: activations [example, neuron] of the layer.
        train_labels, test_labels: int [example].
    """
    h, targets = np.asarray(train, np.float64), np.eye(np.max(train_labels) + 1)[np.asarray(train_labels)]
    mean, base = h.mean(axis=0), targets.mean(axis=0)
    kept = order[::-1]  # a readout of n neurons reads the first n of these
    centred = (h - mean)[:, kept]
    lower = np.linalg.cholesky(regularize(centred.T @ centred / len(h), ridge))
    # In the basis z = L^-1 h the readouts are nested: each further neuron adds one term z_i v_i to the predictions. The
    # first term is the mean of the targets.
    weights = np.vstack([base, np.linalg.solve(lower, centred.T @ (targets - base) / len(h))])
    z = (np.asarray(test, np.float64) - mean)[:, kept] @ np.linalg.inv(lower).T
    outputs, correct = np.zeros((len(test), targets.shape[1])), []
    for column, weight in zip((np.ones(len(test)), *z.T), weights, strict=True):
        outputs += np.outer(column, weight)
        correct.append((outputs.argmax(axis=1) == test_labels).sum())
    return np.array(correct[::-1])
