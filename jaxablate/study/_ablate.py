"""Score, rank and ablate the networks of one kind under every protocol of a study.

Input: trained networks, a dataset, a `StudyConfig`.
Output: one labelled dataset for each protocol.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxablate._checks import require
from jaxablate._progress import OnProgress
from jaxablate._rundir import Arrays, CheckpointStore, digest
from jaxablate._typing import Counts, Images, Labels
from jaxablate.ablation import cumulative_ablation, evaluate_masks, single_ablation
from jaxablate.activations import compute_fill, mean_activations
from jaxablate.datasets import Dataset
from jaxablate.devices import make_room_for_programs, to_device
from jaxablate.fills import AffineFill, AnyFill, LinearFill, PerExampleFill
from jaxablate.histograms import constant_codes
from jaxablate.metrics import METRICS
from jaxablate.models import AnyModel
from jaxablate.models._mlp import is_mlp
from jaxablate.models._model import ModelSpec, model_kind, state_digest, trace_model
from jaxablate.orders import DIRECTIONS, normalize_per_layer, random_orders
from jaxablate.protocols import FreshSubsets, Protocol, get_protocol
from jaxablate.pruning import count_parameters
from jaxablate.quantizers import Quantizer
from jaxablate.results import NETWORK_SCOPE, network_results
from jaxablate.results._labels import NO_NEURON, NOT_EVALUATED, PassedNetworks
from jaxablate.scores import compute_score, is_user_defined
from jaxablate.study._config import StudyConfig
from jaxablate.study._scores import evidence_of, quantizer_of
from jaxablate.training import History
from jaxablate.uncertainty import warn_of_bias


class EvaluationData(NamedTuple):
    """The test split, and the mesh of devices that share its examples."""

    images: Images
    labels: Labels
    mesh: Mesh | None


@dataclass(frozen=True)
class _View:
    """A network under one protocol.

    Attributes:
        protocol: the protocol.
        mean: mean activations [neuron].
        counts: joint counts [neuron, class, code].
        scores: [score, neuron].
        fill: the fill of bias balancing.
        orders: for each scope, network-wide neuron ids [ordering, rank].
    """

    protocol: Protocol
    mean: np.ndarray
    counts: Counts
    scores: np.ndarray
    fill: AnyFill
    orders: list[np.ndarray]

    @classmethod
    def from_arrays(cls, protocol: Protocol, measured: Arrays, num_scopes: int) -> "_View":
        """Make the view of a protocol from the arrays of `_score_and_rank`."""
        mean, name = measured["mean"], protocol.name
        counts, scores = measured[f"{name} counts"], measured[f"{name} scores"]
        orders = [measured[f"{name} orders {scope}"] for scope in range(num_scopes)]
        return cls(protocol, mean, counts, scores, protocol.balance(counts, mean), orders)


# How the results of one kind of network are computed, for each seed:
# 1. `_score_and_rank` quantizes and scores the neurons on the validation split, once for each quantizer that the
#    protocols use. It ranks them within every scope (each site, then the whole network) under every protocol.
# 2. `_curves` ablates along these orders and counts correct test predictions, scope by scope. Protocols often agree on
#    an order or a fill: views with equal fills are evaluated in one call, and equal orders are followed only once.
# 3. `_ablate_singly` ablates each neuron alone with the fill of bias balancing.
# Each of these results is a unit of the `CheckpointStore`. The digest of its inputs decides whether a saved unit is
# reused, so that a resumed run equals an undisturbed one. Inputs are the network's state, and for curves the scores
# and orders too.
# Random orders and fresh subsets have keys that depend on seed, kind of network and scope only. They are therefore
# the same in a study with more networks, scopes or protocols.
def ablate_networks(
    config: StudyConfig,
    name: str,
    data: Dataset,
    networks: Sequence[tuple[AnyModel, History | None]],
    units: CheckpointStore,
    report: OnProgress,
    mesh: Mesh | None = None,
) -> dict[str, xr.Dataset]:
    """Return the labelled results of the networks of one kind by protocol; a mesh shares the test examples.

    Raises:
        InputError: for networks that cannot be ablated, of different architectures, or with fewer neurons at a site
            than there are steps.
    """
    make_room_for_programs()
    kinds, states, _ = zip(*(trace_model(model, data.test.images[:1]) for model, _ in networks), strict=True)
    network = kinds[0]
    require(all(kind == network for kind in kinds), f"{name}: expected networks of one architecture, got several")
    digests = [state_digest(state) for state in states]
    require(
        len({*digests}) == len(digests),
        f"models: some networks of {name!r} are equal, so an interval over them says nothing about other networks; "
        "pass one network, and the number of orders by num_random_orders",
    )
    require(
        NETWORK_SCOPE not in network.sites,
        f"{name}: expected sites of other names than {NETWORK_SCOPE!r}, which stands for all of them",
    )
    config.check_steps(network.sizes)
    protocols = [get_protocol(name) for name in config.protocols]
    images, labels = data.test.images, data.test.labels
    if mesh is None:  # once for all curves; on a mesh the engines shard the examples
        images, labels = to_device(images), to_device(labels)
    test = EvaluationData(images, labels, mesh)
    what = f"ablate {name}"
    total, done = len(networks) * (len(network.sites) + 1), itertools.count(1)
    report(what, 0, total, "")
    per_seed, views, scopes = [], [], _Scopes.from_network(network, name, config.seeds[0])
    for seed, (model, history), weights in zip(config.seeds, networks, digests, strict=True):
        scopes, unit = _Scopes.from_network(network, name, seed), f"{name}_seed{seed}"

        # Cached: computed once for all scopes, and not at all if the folder has all curves. The arguments bind this
        # iteration's model and seed.
        @functools.cache
        def extra_fills(model=model, seed=seed) -> list[AnyFill]:
            split, key = data.validation, jax.random.key(seed)
            return [compute_fill(model, fill, split.images, split.labels, key=key) for fill in config.extra_fills]

        # a user's function may have changed since
        kept = CheckpointStore() if any(map(is_user_defined, config.scores)) else units
        measured = kept.get(f"{unit} scores", weights, partial(_score_and_rank, config, scopes, model, data, protocols))
        inputs_digest = f"{weights} {digest(measured)}"
        views = [_View.from_arrays(protocol, measured, len(scopes.places)) for protocol in protocols]
        curves = []
        for scope, scope_name in enumerate([*network.sites, NETWORK_SCOPE]):
            report(what, next(done) - 1, total, f"seed {seed}, {scope_name}")
            compute = partial(_curves, config, scopes, scope, model, views, extra_fills, test)
            curves.append(units.get(f"{unit} curves {scope_name}", inputs_digest, compute))
        singles = units.get(f"{unit} singles", inputs_digest, partial(_ablate_singly, model, views, test))
        per_seed.append([_collect_arrays(config, history, view, curves, singles) for view in views])
    report(what, total, total, "")
    passed = None
    if networks[0][1] is None:
        model = networks[0][0]
        passed = PassedNetworks(model_kind(model), count_parameters(model), digests)
    return {
        view.protocol.name: network_results(
            {name: np.stack([arrays[i][name] for arrays in per_seed]) for name in per_seed[0][i]},
            protocol=view.protocol.name,
            first_step=1 if view.protocol.fresh_subsets else 0,
            sites=dict(zip(network.sites, network.sizes, strict=True)),
            activation=model.activation if is_mlp(model := networks[0][0]) else "other",
            seeds=config.seeds,
            scores=config.scores,
            orderings=config.orderings(view.protocol),
            fills=config.fill_names(view.protocol),
            num_test_examples=len(data.test),
            ablated_numbers=[config.ablated_numbers(stop - start) for start, stop in scopes.places],
            passed=passed,
        )
        for i, view in enumerate(views)
    }


def _collect_arrays(
    config: StudyConfig, history: History | None, view: _View, curves: Sequence[Arrays], singles: Arrays
) -> Arrays:
    """Collect the results of one network under one protocol."""
    num_orderings = len(config.orderings(view.protocol))
    # The last scope is the whole network, which has the most neurons. Shorter scopes are padded at their end.
    numbers = [config.ablated_numbers(orders.shape[1]) for orders in view.orders]
    num_steps = max(map(len, numbers))
    ablated = np.full((len(view.orders), num_orderings, numbers[-1][-1]), NO_NEURON, np.int32)
    curve_shape = len(view.orders), num_orderings, len(config.fill_names(view.protocol)), num_steps
    correct = np.full(curve_shape, NOT_EVALUATED, np.int32)
    by_class = np.full((*curve_shape, view.counts.shape[1]), np.nan, np.float32) if config.by_class else None
    for scope, (orders, of_scope) in enumerate(zip(view.orders, numbers, strict=True)):
        # Random curves with fresh subsets follow no order. Their rows, which come last, keep NO_NEURON.
        ablated[scope, : len(orders), : of_scope[-1]] = orders[:, : of_scope[-1]]
        correct[scope, :, :, : len(of_scope)] = curves[scope][view.protocol.name]
        if by_class is not None:
            by_class[scope, :, :, : len(of_scope)] = curves[scope][f"{view.protocol.name} by class"]
    training = (
        {}
        if history is None
        else {
            "train_loss": history.loss,
            "train_accuracy": history.accuracy,
            "validation_loss": history.validation_loss,
            "validation_accuracy": history.validation_accuracy,
        }
    )
    return {
        **training,
        "joint_counts": np.asarray(view.counts),
        "mean_activation": view.mean,
        "scores": view.scores,
        "ablated": ablated,
        "correct": correct,
        **({} if by_class is None else {"class_accuracy": by_class}),
        "single_correct": singles[f"{view.protocol.name} correct"],
        "single_damage": singles[f"{view.protocol.name} damage"],
        "single_class_drop": singles[f"{view.protocol.name} class drop"],
    }


def _score_and_rank(
    config: StudyConfig, scopes: "_Scopes", model: AnyModel, data: Dataset, protocols: Sequence[Protocol]
) -> Arrays:
    """Quantize, score and rank the neurons of a network under every protocol; return arrays for `_View.from_arrays`."""
    evidence = evidence_of(model, data, quantizer_of(config.quantizer, model), scopes.keys[-1])
    if "mutual_information" in config.scores:
        warn_of_bias(evidence.counts)
    mean = np.asarray(mean_activations(model, data.validation.images))
    random = [
        np.asarray(random_orders(stop - start, config.num_random_orders, key=key))
        for key, (start, stop) in zip(scopes.keys, scopes.places, strict=True)
    ]

    @functools.cache  # most protocols share their quantizer
    def count(of_activation: Callable[[str], Quantizer]) -> Counts:
        return evidence.with_quantizer(quantizer_of(config.quantizer, model, of_activation)).counts

    @functools.cache  # protocols share all scores that are not metrics of the counts
    def score(name: str) -> np.ndarray:
        return compute_score(name, evidence)

    def normalized(scores: np.ndarray) -> np.ndarray:
        if config.normalization == "none":
            return scores
        layers = np.repeat(np.arange(len(scopes.places) - 1), [stop - start for start, stop in scopes.places[:-1]])
        return normalize_per_layer(scores, layers, config.normalization)

    arrays = {"mean": mean}
    for protocol in protocols:
        counts = count(protocol.quantizer)
        scores = np.stack([protocol.score(m, counts) if m in METRICS else score(m) for m in config.scores])
        arrays[f"{protocol.name} counts"], arrays[f"{protocol.name} scores"] = np.asarray(counts), scores
        last = _ablated_last(protocol, counts)
        for scope, ((start, stop), shuffled) in enumerate(zip(scopes.places, random, strict=True)):
            # No normalization changes the order within a site, so only the last scope, the whole network, needs one.
            ranked = scores if stop - start < scopes.num_neurons else [normalized(values) for values in scores]
            orders = [np.asarray(protocol.rank(values[start:stop], way)) for values in ranked for way in DIRECTIONS]
            if not protocol.fresh_subsets:
                orders += list(shuffled)
            # a stable partition: constant-code neurons move to the end, and both parts keep their order
            orders = [order[np.argsort(last[start:stop][order], kind="stable")] for order in orders]
            arrays[f"{protocol.name} orders {scope}"] = np.stack(orders).astype(np.int32) + np.int32(start)
    return arrays


def _ablated_last(protocol: Protocol, counts: Counts) -> np.ndarray:
    """Return the neurons that a protocol ablates after all others, bool [neuron]."""
    return constant_codes(counts) if protocol.constant_last else np.zeros(len(counts), bool)


class _Scopes(NamedTuple):
    """Every site, and then the whole network.

    Attributes:
        places: first neuron of each scope and one past its last.
        keys: a random key for each scope.
    """

    places: list[tuple[int, int]]
    keys: list[jax.Array]

    @classmethod
    def from_network(cls, network: ModelSpec, name: str, seed: int) -> "_Scopes":
        """Make the scopes of a network; their keys are independent of initial weights and example order."""
        bounds = network.offsets.tolist()
        # crc32, since Python's own hash of a text differs from process to process.
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        keys = [jax.random.fold_in(key, scope) for scope in range(len(network.sites) + 1)]
        return cls([*itertools.pairwise(bounds), (0, bounds[-1])], keys)

    @property
    def num_neurons(self) -> int:
        """Return the number of neurons of the whole network."""
        return self.places[-1][1]


def _group_by_fill(fills: Sequence[AnyFill]) -> list[list[int]]:
    """Group the views, by their numbers, whose fills are equal, so that a group is evaluated once."""
    groups: dict[object, list[int]] = {}
    for i, fill in enumerate(fills):
        if isinstance(fill, LinearFill | PerExampleFill):
            key: object = id(fill)
        elif isinstance(fill, AffineFill):
            key = np.asarray(fill.scale).tobytes(), np.asarray(fill.offset).tobytes()
        else:
            key = np.asarray(fill).tobytes()
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _curves(
    config: StudyConfig,
    scopes: _Scopes,
    scope: int,
    model: AnyModel,
    views: Sequence[_View],
    extra_fills: Callable[[], Sequence[AnyFill]],
    test: EvaluationData,
) -> Arrays:
    """Return the correct predictions [ordering, fill, step] of each protocol; shared curves are evaluated once.

    With `by_class` in the config, "PROTOCOL by class" is the accuracy within each class [ordering, fill, step, class],
    NaN for a class without test examples.
    """
    zero = np.zeros(scopes.num_neurons, np.float32)
    same_for_all = [[fill] * len(views) for fill in (zero, *extra_fills())]
    by_fill = [same_for_all[0], [view.fill for view in views], *same_for_all[1:]]
    curves: list[list[np.ndarray]] = [[] for _ in views]
    for fills in by_fill:
        for members in _group_by_fill(fills):
            fill = fills[members[0]]
            orders = [views[i].orders[scope] for i in members]
            counts = cumulative_ablation(
                model,
                np.concatenate(orders),
                test.images,
                test.labels,
                fill,
                outcomes=_curve_outcome(config),
                steps=config.ablated_numbers(orders[0].shape[1])[1:],
                mesh=test.mesh,
            )
            parts = np.split(np.asarray(counts), np.cumsum([len(part) for part in orders])[:-1])
            subsets: dict[tuple[FreshSubsets, bytes], np.ndarray] = {}
            for i, part in zip(members, parts, strict=True):
                if draw := views[i].protocol.fresh_subsets:
                    key = draw, _ablated_last(views[i].protocol, views[i].counts).tobytes()
                    if key not in subsets:
                        subsets[key] = _subset_curves(config, views[i], scopes, scope, model, fill, test)
                    part = np.concatenate([part, subsets[key]])
                curves[i].append(part)
    arrays = {view.protocol.name: np.stack(parts, axis=1) for view, parts in zip(views, curves, strict=True)}
    if not config.by_class:
        return arrays
    num_classes = views[0].counts.shape[1]  # of the data; the network may have more outputs
    arrays = {name: counts[..., :num_classes] for name, counts in arrays.items()}
    totals = _class_totals(test, num_classes)
    # Counts are exact, so the sum over the classes is the number of all correct predictions.
    sums = {name: counts.sum(axis=-1, dtype=np.int32) for name, counts in arrays.items()}
    return sums | {f"{name} by class": (counts / totals).astype(np.float32) for name, counts in arrays.items()}


def _curve_outcome(config: StudyConfig) -> str:
    """Return the outcome that is counted along the curves."""
    return "class_correct" if config.by_class else "correct"


def _class_totals(test: EvaluationData, num_classes: int) -> np.ndarray:
    """Return the number of test examples of each class, float [class]; NaN for a class without examples."""
    totals = np.bincount(np.asarray(test.labels), minlength=num_classes).astype(float)
    return np.where(totals > 0, totals, np.nan)


def _subset_curves(
    config: StudyConfig,
    view: _View,
    scopes: _Scopes,
    scope: int,
    model: AnyModel,
    fill: AnyFill,
    test: EvaluationData,
) -> np.ndarray:
    """Return the correct predictions [repetition, step] with a fresh subset of a scope ablated at every step.

    With `by_class` in the config, they have a last axis [class].
    """
    start, stop = scopes.places[scope]
    neurons = start + np.flatnonzero(~_ablated_last(view.protocol, view.counts)[start:stop])
    draw = view.protocol.fresh_subsets
    assert draw is not None
    # the scope's key itself draws the random orders
    key = jax.random.fold_in(scopes.keys[scope], 1)
    # [repetition, step, neuron], embedded below in masks of the whole network that keep all other neurons. After the
    # last neuron the subsets stay the same. A subset is drawn for every number of neurons up to the last one.
    numbers = config.ablated_numbers(stop - start)
    masks = draw(len(neurons), config.num_random_subsets, int(numbers[-1]), key=key)[:, numbers]
    keep = np.ones((*masks.shape[:2], scopes.num_neurons), bool)
    keep[:, :, neurons] = masks
    masks = keep.reshape(-1, keep.shape[-1])
    outcome = _curve_outcome(config)
    counts = np.asarray(evaluate_masks(model, masks, test.images, test.labels, fill, outcomes=outcome, mesh=test.mesh))
    return counts.reshape(*keep.shape[:2], *counts.shape[1:])


def _ablate_singly(model: AnyModel, views: Sequence[_View], test: EvaluationData) -> Arrays:
    """Return the effect of each neuron alone [neuron], bias balanced, under each protocol.

    The arrays are "PROTOCOL correct", correct predictions; "PROTOCOL damage", the rise of the loss in nats; and
    "PROTOCOL class drop" [neuron, class], the fall of the accuracy within a class, NaN for a class without examples.
    """
    fills = [view.fill for view in views]
    examples = test.images, test.labels
    keep_all = np.ones((1, len(views[0].mean)), bool)
    outcomes = ("class_correct", "loss")
    intact = evaluate_masks(model, keep_all, *examples, outcomes=outcomes, mesh=test.mesh)
    num_classes = views[0].counts.shape[1]  # of the data; the network may have more outputs
    totals, intact_correct = _class_totals(test, num_classes), np.asarray(intact["class_correct"])[:, :num_classes]
    arrays = {}
    for members in _group_by_fill(fills):
        alone = single_ablation(model, *examples, fills[members[0]], outcomes=outcomes, mesh=test.mesh)
        correct = np.asarray(alone["class_correct"])[:, :num_classes]
        # Counts are exact, so the sum over classes equals the count over all examples. The damage is a small difference
        # of two losses, so it is taken in float64.
        drops = (intact_correct - correct) / totals
        damage = np.asarray(alone["loss"], np.float64) - float(intact["loss"][0])
        for i in members:
            name = views[i].protocol.name
            arrays |= {f"{name} correct": correct.sum(axis=-1, dtype=np.int32), f"{name} damage": damage}
            arrays[f"{name} class drop"] = drops
    return arrays
