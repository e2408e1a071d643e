"""Scores: a network and a dataset come in, one number for each neuron and metric goes out."""

import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import InputError, JaxablateWarning, require, require_different
from jaxablate.activations import mean_activations
from jaxablate.datasets import Dataset
from jaxablate.metrics import METRICS
from jaxablate.models import Model
from jaxablate.models._network import is_mlp, trace_model
from jaxablate.quantizers import Quantizer, default_quantizer, get_quantizer
from jaxablate.results import neuron_scores
from jaxablate.scores import Evidence, compute_score
from jaxablate.uncertainty import warn_of_bias

PLAIN_FILLS = ("zero", "mean", "median", "class_mean")
"""What may stand in for ablated neurons where nothing but the validation split is given."""


def score_neurons(
    model: Model,
    data: Dataset,
    *,
    scores: str | Sequence[str] = tuple(METRICS),
    quantizer: str | float = "activation",
) -> xr.Dataset:
    """Score every neuron of a network on the validation split.

    Args:
        model: the network: an `MLP`, or any module with sites, as if in evaluation mode.
        data: of which the validation split is used.
        scores: names of scores, as in `ja.scores.get_score`.
        quantizer: how activations become codes, as in `StudyConfig`; "activation" for an `MLP` only.

    Returns:
        `scores` (score, neuron) and `mean_activation` (neuron), with the coordinates `site` and `layer`.

    Raises:
        InputError: for an unknown score or quantizer, no score or one twice, or images or labels that are not the
            network's.

    Warns:
        BiasWarning: where mutual information is no larger than its predicted bias.
        JaxablateWarning: where all labels are the same.

    Example:
        >>> scores = ja.study.score_neurons(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k"))
        >>> scores["scores"].sel(score="entropy").shape
        (5,)
    """
    network, _, _ = trace_model(model, data.validation.images[:1])
    require(
        data.num_classes <= network.num_classes,
        f"labels: expected 0..{network.num_classes - 1}, the classes of the network, got {data.num_classes} classes",
    )
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    require_different("scores", names)
    evidence = evidence_of(model, data, quantizer_of(quantizer, model))
    if "mutual_information" in names:
        warn_of_bias(evidence.counts)
    return neuron_scores(
        np.stack([compute_score(name, evidence) for name in names]),
        np.asarray(mean_activations(model, data.validation.images)),
        scores=names,
        sites=dict(zip(network.sites, network.sizes, strict=True)),
        source=data.source,
    )


def quantizer_of(
    setting: str | float, model: Model, of_activation: Callable[[str], Quantizer] = default_quantizer
) -> Quantizer:
    """The quantizer of a setting of a study; `of_activation` says that of an activation function.

    Raises:
        InputError: for an unknown setting, or "activation" for a model that does not know its activation function.
    """
    if setting != "activation":
        return get_quantizer(setting)
    if not is_mlp(model):
        raise InputError(
            "quantizer: expected another than 'activation', such as 'mean', 'positive' or a threshold, since only an "
            f"MLP says what its activation functions are, got {type(model).__name__}"
        )
    return of_activation(model.activation)


def evidence_of(model: Model, data: Dataset, quantizer: Quantizer, key: jax.Array | None = None) -> Evidence:
    """The evidence of a network on the validation split.

    Warns:
        JaxablateWarning: where all its labels are the same.
    """
    seen = np.unique(data.validation.labels)
    if len(seen) == 1:
        warnings.warn(
            f"validation labels: expected several classes, got {seen[0]} alone, of which no neuron can tell anything",
            JaxablateWarning,
            stacklevel=3,
        )
    return Evidence(model, data.validation.images, data.validation.labels, data.num_classes, quantizer, key=key)
