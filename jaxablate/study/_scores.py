"""Scores: a network and a dataset come in, one number for each neuron and metric goes out."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxablate._checks import require_known
from jaxablate._typing import AnyArray, Counts, Labels
from jaxablate.activations import mean_activations, record_activations
from jaxablate.datasets import Dataset
from jaxablate.histograms import joint_histogram
from jaxablate.metrics import METRICS, get_metric
from jaxablate.models import MLP, Model, describe
from jaxablate.quantizers import Quantizer, default_quantizer, threshold
from jaxablate.results import neuron_scores

QUANTIZERS = ("activation", "mean")


def score_neurons(
    model: Model,
    data: Dataset,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    quantizer: str | float = "activation",
    activation: str = "sigmoid",
) -> xr.Dataset:
    """Score every neuron of a network on the validation split.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        data: of which the validation split is used.
        metrics: names of scores, as in `METRICS`.
        quantizer: how activations become codes, as in `StudyConfig`.
        activation: the function before the sites; an `MLP` knows its own.

    Returns:
        `scores` (metric, neuron) in nats and `mean_activation` (neuron), with the coordinates `site` and `layer`.

    Raises:
        InputError: for an unknown metric, quantizer or activation, or images that the network does not take.

    Example:
        >>> scores = ja.study.score_neurons(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k"))
        >>> scores["scores"].sel(metric="entropy").shape
        (5,)
    """
    check_quantizer(quantizer)
    network, _, _ = describe(model, data.validation.images[:1])
    activations = record_activations(model, data.validation.images)
    one_bit = default_quantizer(activation_of(model, activation))
    counts = count_codes(activations, data.validation.labels, data.num_classes, quantizer, one_bit)
    return neuron_scores(
        np.stack([np.asarray(get_metric(metric)(counts)) for metric in metrics]),
        np.asarray(mean_activations(model, data.validation.images)),
        metrics=metrics,
        sites=dict(zip(network.sites, network.sizes, strict=True)),
        source=data.source,
    )


def check_quantizer(quantizer: str | float) -> None:
    """Raise unless the quantizer is a number or a known name."""
    if isinstance(quantizer, str):
        require_known("quantizer", quantizer, QUANTIZERS)


def activation_of(model: Model, otherwise: str) -> str:
    """The activation function at the sites of a model, by its name."""
    return model.activation if isinstance(model, MLP) else otherwise


def count_codes(
    activations: Sequence[AnyArray], labels: Labels, num_classes: int, quantizer: str | float, one_bit: Quantizer
) -> Counts:
    """Joint counts of all neurons, whose codes come from the quantizer; from `one_bit` for "activation"."""
    codes = []
    for of_site in activations:
        level = jnp.mean(of_site, axis=0) if quantizer == "mean" else quantizer
        codes.append(one_bit(of_site) if isinstance(level, str) else threshold(level)(of_site))
    return joint_histogram(jnp.concatenate(codes, axis=1), labels, num_codes=2, num_classes=num_classes)
