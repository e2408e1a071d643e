"""Score the neurons of a network on a dataset.

Input: a network and a dataset.
Output: labelled scores [score, neuron].
"""

import warnings
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
import xarray as xr

from jaxablate._checks import (
    ONE_OUTPUT,
    InputError,
    JaxablateWarning,
    describe_value,
    require,
    require_different,
    require_type,
)
from jaxablate.activations import mean_activations
from jaxablate.datasets import Dataset
from jaxablate.datasets._types import require_dataset
from jaxablate.metrics import METRICS
from jaxablate.models import AnyModel
from jaxablate.models._mlp import is_mlp
from jaxablate.models._model import ModelSpec, trace_model
from jaxablate.quantizers import Quantizer, default_quantizer, get_quantizer
from jaxablate.results import neuron_scores
from jaxablate.scores import Evidence, compute_score
from jaxablate.uncertainty import warn_of_bias

PLAIN_FILLS = ("zero", "mean", "median", "class_mean")
"""Fills that need nothing but the validation split."""


def score_neurons(
    model: AnyModel,
    data: Dataset,
    *,
    scores: str | Sequence[str] = tuple(METRICS),
    quantizer: str | float = "activation",
) -> xr.Dataset:
    """Score every neuron of a network on the validation split.

    Args:
        model: a Flax NNX module such as an `MLP`, in evaluation mode, or a model from `ja.from_function`.
        data: the dataset; only the validation split is used.
        scores: names of scores, as in `ja.scores.get_score`.
        quantizer: how activations become codes, as in `StudyConfig`; "activation" needs an `MLP`.

    Returns:
        `scores` (score, neuron) and `mean_activation` (neuron). A neuron has the coordinates `neuron` (id in the whole
        network), `neuron_in_site` (id within its site), `site` and `layer`.

    Raises:
        InputError: for an unknown score or quantizer, no score, a score named twice, or images or labels that do not
            fit the network.

    Warns:
        BiasWarning: if mutual information is not larger than its predicted bias.
        JaxablateWarning: if all labels are equal.

    Example:
        >>> scores = ja.study.score_neurons(ja.MLP(784, (5,), 10, rngs=nnx.Rngs(0)), ja.load_dataset("mnist5k"))
        >>> scores["scores"].sel(score="entropy").shape
        (5,)
    """
    require_dataset(data)
    network, _, _ = trace_model(model, data.validation.images[:1])
    # A label beyond the network's logits would never be predicted. More logits than classes are harmless.
    require(
        data.num_classes <= network.num_classes,
        f"labels: the data have {data.num_classes} classes, and the network has {network.num_classes}"
        + (ONE_OUTPUT if network.num_classes == 1 else "; take a network that was trained on these classes"),
    )
    require_type("scores", scores, Iterable, "names of scores")
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    require(all(isinstance(name, str) for name in names), f"scores: expected names, got {describe_value(scores)}")
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
    setting: str | float, model: AnyModel, by_activation: Callable[[str], Quantizer] = default_quantizer
) -> Quantizer:
    """Return the quantizer that a study's setting names.

    Args:
        setting: as in `StudyConfig.quantizer`.
        model: the network, for its activation function.
        by_activation: maps the name of an activation function to its quantizer.

    Raises:
        InputError: for an unknown setting, or "activation" for a model that does not know its activation function.
    """
    require_type("quantizer", setting, str | int | float, "a name or a number")
    if setting != "activation":
        return get_quantizer(setting)
    if not is_mlp(model):
        raise InputError(
            f"quantizer: 'activation' needs an MLP, which knows its activation function, not {type(model).__name__}; "
            "choose 'mean', 'positive' or a threshold"
        )
    return by_activation(model.activation)


def networks_of_one_architecture(
    models: AnyModel | Sequence[AnyModel], data: Dataset
) -> tuple[list[AnyModel], ModelSpec]:
    """Return one or several models as a list, and the specification that all share.

    Raises:
        InputError: for no model, several architectures, or models that cannot be ablated.
    """
    require_dataset(data)
    require_type("models", models, AnyModel | Iterable, "a network or several")
    models = [models] if isinstance(models, AnyModel) else list(models)
    require(len(models) > 0, "models: the sequence is empty; pass at least one network")
    first, *rest = (trace_model(model, data.test.images[:1])[0] for model in models)
    require(all(spec == first for spec in rest), "models: the architectures differ; pass networks of one architecture")
    return models, first


def evidence_of(model: AnyModel, data: Dataset, quantizer: Quantizer, key: jax.Array | None = None) -> Evidence:
    """Return the evidence of a network on the validation split.

    Warns:
        JaxablateWarning: if all its labels are equal.
    """
    # With one class, every score that compares classes is 0 for all neurons. A ranking would then only follow the
    # index.
    classes = np.unique(data.validation.labels)
    if len(classes) == 1:
        warnings.warn(
            f"validation labels: all are {classes[0]}, so no neuron carries information about the class; shuffle the "
            "data before you split them",
            JaxablateWarning,
            stacklevel=3,
        )
    return Evidence(model, data.validation.images, data.validation.labels, data.num_classes, quantizer, key=key)
