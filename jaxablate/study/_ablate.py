"""Score, rank and ablate the networks of one kind, under every protocol of the study."""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxablate._typing import Counts
from jaxablate.ablation import cumulative_ablation, evaluate_masks
from jaxablate.activations import mean_activations, record_activations
from jaxablate.datasets import Dataset
from jaxablate.histograms import joint_histogram
from jaxablate.models import MLP, site_bounds
from jaxablate.orders import DIRECTIONS, random_orders
from jaxablate.protocols import Balance, FreshSubsets, Protocol, get_protocol
from jaxablate.quantizers import Quantizer
from jaxablate.results import network_results
from jaxablate.study._config import StudyConfig, network_name
from jaxablate.study._networks import OnProgress
from jaxablate.training import History

Test = tuple[jax.Array, jax.Array]  # images and labels of the test split
NO_ORDER = -1  # in place of the neurons of a random curve that follows no order


@dataclass(frozen=True)
class _View:
    """What a protocol makes of a network: mean activations [neuron], joint counts [neuron, class, code], scores
    [metric, neuron], what a balanced ablated neuron puts out, and for each scope the orders [ordering, rank] of
    network-wide neuron ids."""

    protocol: Protocol
    mean: np.ndarray
    counts: Counts
    scores: np.ndarray
    balance: Balance
    orders: list[np.ndarray]


def ablate_networks(
    config: StudyConfig,
    hidden: Sequence[int],
    data: Dataset,
    trained: list[tuple[MLP, History]],
    report: OnProgress,
) -> dict[str, xr.Dataset]:
    """The results of the networks of one kind by protocol, labelled."""
    protocols = [get_protocol(name) for name in config.protocols]
    test = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)
    what = f"ablate {network_name(hidden)}"
    total, done = len(trained) * (len(hidden) + 1) * 2, itertools.count(1)
    report(what, 0, total, "")
    per_seed, views = [], []
    for seed, (model, history) in zip(config.seeds, trained, strict=True):

        def advance(seed=seed) -> None:
            report(what, next(done), total, f"seed {seed}")

        views = _views(config, seed, model, data, protocols)
        curves = _curves(config, seed, model, views, test, advance)
        alone = _each_alone(model, views, test)
        per_seed.append([_arrays(config, history, *of_view) for of_view in zip(views, curves, alone, strict=True)])
    return {
        view.protocol.name: network_results(
            {name: np.stack([arrays[i][name] for arrays in per_seed]) for name in per_seed[0][i]},
            protocol=view.protocol.name,
            first_step=1 if view.protocol.fresh_subsets else 0,
            hidden=hidden,
            activation=config.activation,
            seeds=config.seeds,
            metrics=config.metrics,
            orderings=config.orderings(view.protocol),
            fills=("zero", view.balance.name),
            num_test_examples=len(data.test),
        )
        for i, view in enumerate(views)
    }


def _arrays(
    config: StudyConfig, history: History, view: _View, correct: np.ndarray, alone: np.ndarray
) -> dict[str, np.ndarray]:
    """Everything that is kept of one network under one protocol."""
    num_orderings = len(config.orderings(view.protocol))
    ablated = np.full((len(view.orders), num_orderings, config.steps), NO_ORDER, np.int32)
    for scope, orders in enumerate(view.orders):
        ablated[scope, : len(orders)] = orders[:, : config.steps]
    return {
        "train_loss": history.loss,
        "train_accuracy": history.accuracy,
        "validation_loss": history.validation_loss,
        "validation_accuracy": history.validation_accuracy,
        "joint_counts": np.asarray(view.counts),
        "mean_activation": view.mean,
        "scores": view.scores,
        "ablated": ablated,
        "correct": correct,
        "correct_alone": alone,
    }


def _views(config: StudyConfig, seed: int, model: MLP, data: Dataset, protocols: Sequence[Protocol]) -> list[_View]:
    """Quantize, score and rank the neurons of a network under every protocol."""
    activations = record_activations(model, data.validation.images)
    mean = np.asarray(mean_activations(model, data.validation.images))
    scopes = _scopes(model.hidden)
    random = [
        np.asarray(random_orders(key, stop - start, config.random_orders))
        for key, (start, stop) in zip(_keys(seed, model.hidden), scopes, strict=True)
    ]

    @functools.cache  # most protocols share their quantizer
    def count(quantizer: Callable[[str], Quantizer]) -> Counts:
        quantize = quantizer(config.activation)
        codes = jnp.concatenate([quantize(layer) for layer in activations], axis=1)
        return joint_histogram(codes, data.validation.labels, num_codes=2, num_classes=data.num_classes)

    views = []
    for protocol in protocols:
        counts = count(protocol.quantizer)
        scores = np.stack([protocol.score(metric, counts) for metric in config.metrics])
        orders = []
        for (start, stop), shuffled in zip(scopes, random, strict=True):
            found = [np.asarray(protocol.rank(of[start:stop], way)) for of in scores for way in DIRECTIONS]
            if not protocol.fresh_subsets:
                found += list(shuffled)
            orders.append(np.stack(found).astype(np.int32) + np.int32(start))
        views.append(_View(protocol, mean, counts, scores, protocol.balance(counts, mean), orders))
    return views


def _scopes(hidden: Sequence[int]) -> list[tuple[int, int]]:
    """First neuron, and one past the last, of every layer and then of the whole network."""
    bounds = site_bounds(hidden).tolist()
    return [*itertools.pairwise(bounds), (0, bounds[-1])]


def _keys(seed: int, hidden: Sequence[int]) -> list[jax.Array]:
    """For each scope a stream of its own, apart from those of initial weights and example order."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(network_name(hidden).encode()))
    return [jax.random.fold_in(key, scope) for scope in range(len(hidden) + 1)]


def _sharing(balances: Sequence[Balance]) -> list[list[int]]:
    """The views, by number, that put the same in place of ablated neurons and so can be evaluated together."""
    groups: dict[tuple, list[int]] = {}
    for i, (_, fill, scale) in enumerate(balances):
        groups.setdefault((fill.tobytes(), None if scale is None else scale.tobytes()), []).append(i)
    return list(groups.values())


def _curves(
    config: StudyConfig, seed: int, model: MLP, views: Sequence[_View], test: Test, advance: Callable[[], None]
) -> list[np.ndarray]:
    """For each view the correct predictions [scope, ordering, fill, step]; what views share is evaluated once."""
    zero = Balance("zero", np.zeros(sum(model.hidden), np.float32), None)
    scopes, keys = _scopes(model.hidden), _keys(seed, model.hidden)
    found: list[list[np.ndarray]] = [[] for _ in views]
    for balances in ([zero] * len(views), [view.balance for view in views]):
        for scope, place in enumerate(scopes):
            for members in _sharing(balances):
                balance = balances[members[0]]
                orders = [views[i].orders[scope] for i in members]
                counts = cumulative_ablation(
                    model, np.concatenate(orders), *test, balance.fill, scale=balance.scale, steps=config.steps
                )
                parts = np.split(np.asarray(counts), np.cumsum([len(part) for part in orders])[:-1])
                subsets: dict[FreshSubsets, np.ndarray] = {}
                for i, part in zip(members, parts, strict=True):
                    draw = views[i].protocol.fresh_subsets
                    if draw and draw not in subsets:
                        subsets[draw] = _subset_curves(config, draw, keys[scope], model, place, balance, test)
                    found[i].append(np.concatenate([part, subsets[draw]]) if draw else part)
            advance()
    shape = (2, len(scopes))  # fill, scope
    return [np.stack(parts).reshape(*shape, *parts[0].shape).transpose(1, 2, 0, 3) for parts in found]


def _subset_curves(
    config: StudyConfig,
    draw: FreshSubsets,
    key: jax.Array,
    model: MLP,
    place: tuple[int, int],
    balance: Balance,
    test: Test,
) -> np.ndarray:
    """Correct predictions [repetition, step] with a fresh subset of a scope ablated at every step."""
    start, stop = place
    # the scope's own stream serves the random orders
    masks = draw(jax.random.fold_in(key, 1), stop - start, config.random_subsets, config.steps)
    keep = np.ones((*masks.shape[:2], sum(model.hidden)), bool)
    keep[:, :, start:stop] = masks
    counts = evaluate_masks(model, keep.reshape(-1, keep.shape[-1]), *test, balance.fill, scale=balance.scale)
    return np.asarray(counts).reshape(masks.shape[:2])


def _each_alone(model: MLP, views: Sequence[_View], test: Test) -> list[np.ndarray]:
    """For each view the correct predictions [neuron] with that neuron alone ablated, bias balanced."""
    balances = [view.balance for view in views]
    found: list[np.ndarray] = [np.empty(0, np.int32)] * len(views)
    for members in _sharing(balances):
        _, fill, scale = balances[members[0]]
        counts = np.concatenate(
            [
                np.asarray(
                    cumulative_ablation(model, np.arange(start, stop)[:, None], *test, fill, scale=scale, steps=1)
                )
                for start, stop in _scopes(model.hidden)[:-1]
            ]
        )
        for i in members:
            found[i] = counts[:, 1]
    return found
