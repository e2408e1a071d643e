"""Scores: a network and a dataset come in, one number for each neuron and metric goes out."""

from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import require_known
from jaxablate.activations import mean_activations
from jaxablate.datasets import Dataset
from jaxablate.metrics import METRICS
from jaxablate.models import MLP, Model, describe
from jaxablate.quantizers import Quantizer, default_quantizer, threshold
from jaxablate.results import neuron_scores
from jaxablate.scores import Evidence, compute_score

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
        metrics: names of scores, as in `ja.scores.SCORES`.
        quantizer: how activations become codes, as in `StudyConfig`.
        activation: the function before the sites; an `MLP` knows its own.

    Returns:
        `scores` (metric, neuron) and `mean_activation` (neuron), with the coordinates `site` and `layer`.

    Raises:
        InputError: for an unknown score, quantizer or activation, or images that the network does not take.

    Example:
        >>> scores = ja.study.score_neurons(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k"))
        >>> scores["scores"].sel(metric="entropy").shape
        (5,)
    """
    network, _, _ = describe(model, data.validation.images[:1])
    evidence = evidence_of(model, data, quantizer_of(quantizer, default_quantizer(activation_of(model, activation))))
    return neuron_scores(
        np.stack([compute_score(metric, evidence) for metric in metrics]),
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


def quantizer_of(quantizer: str | float, one_bit: Quantizer) -> Quantizer | str:
    """What `Evidence` takes, from the setting of a study; `one_bit` for "activation".

    Raises:
        InputError: for an unknown name.
    """
    check_quantizer(quantizer)
    if isinstance(quantizer, str):
        return one_bit if quantizer == "activation" else quantizer
    return threshold(quantizer)


def evidence_of(model: Model, data: Dataset, quantizer: Quantizer | str, key: jax.Array | None = None) -> Evidence:
    """The evidence of a network on the validation split."""
    return Evidence(model, data.validation.images, data.validation.labels, data.num_classes, quantizer, key=key)
