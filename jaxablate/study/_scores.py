"""Scores: a network and a dataset come in, one number for each neuron and metric goes out."""

import math
from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import require, require_known
from jaxablate.activations import mean_activations
from jaxablate.datasets import Dataset
from jaxablate.metrics import METRICS
from jaxablate.models import MLP, Model, describe, is_mlp
from jaxablate.quantizers import Quantizer, default_quantizer, threshold
from jaxablate.results import neuron_scores
from jaxablate.scores import Evidence, compute_score

QUANTIZERS = ("activation", "mean", "positive")


def score_neurons(
    model: Model,
    data: Dataset,
    *,
    metrics: str | Sequence[str] = tuple(METRICS),
    quantizer: str | float = "activation",
) -> xr.Dataset:
    """Score every neuron of a network on the validation split.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        data: of which the validation split is used.
        metrics: names of scores, as in `ja.scores.SCORES`.
        quantizer: how activations become codes, as in `StudyConfig`; "activation" for an `MLP` only.

    Returns:
        `scores` (metric, neuron) and `mean_activation` (neuron), with the coordinates `site` and `layer`.

    Raises:
        InputError: for an unknown score or quantizer, or images or labels that are not the network's.

    Example:
        >>> scores = ja.study.score_neurons(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k"))
        >>> scores["scores"].sel(metric="entropy").shape
        (5,)
    """
    network, _, _ = describe(model, data.validation.images[:1])
    require(
        data.num_classes <= network.num_classes,
        f"labels: expected 0..{network.num_classes - 1}, the classes of the network, got {data.num_classes} classes",
    )
    require(
        quantizer != "activation" or is_mlp(model),
        "quantizer: expected 'mean', 'positive' or a threshold, since only an MLP says what its activation functions "
        "are, got 'activation'",
    )
    one_bit = default_quantizer(activation_of(model, "sigmoid"))
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    evidence = evidence_of(model, data, quantizer_of(quantizer, one_bit))
    return neuron_scores(
        np.stack([compute_score(metric, evidence) for metric in metrics]),
        np.asarray(mean_activations(model, data.validation.images)),
        metrics=metrics,
        sites=dict(zip(network.sites, network.sizes, strict=True)),
        source=data.source,
    )


def check_quantizer(quantizer: str | float) -> None:
    """Raise unless the quantizer is a finite number or a known name."""
    if isinstance(quantizer, str):
        require_known("quantizer", quantizer, QUANTIZERS)
    else:
        require(math.isfinite(quantizer), f"quantizer: expected a finite threshold, got {quantizer}")


def activation_of(model: Model, otherwise: str) -> str:
    """The activation function at the sites of a model, by its name."""
    return model.activation if isinstance(model, MLP) else otherwise


def quantizer_of(quantizer: str | float, one_bit: Quantizer) -> Quantizer | str:
    """What `Evidence` takes, from the setting of a study; `one_bit` for "activation".

    Raises:
        InputError: for an unknown name.
    """
    check_quantizer(quantizer)
    if quantizer == "positive":
        return threshold(0.0, strict=True)
    if isinstance(quantizer, str):
        return one_bit if quantizer == "activation" else quantizer
    return threshold(quantizer)


def evidence_of(model: Model, data: Dataset, quantizer: Quantizer | str, key: jax.Array | None = None) -> Evidence:
    """The evidence of a network on the validation split."""
    return Evidence(model, data.validation.images, data.validation.labels, data.num_classes, quantizer, key=key)
