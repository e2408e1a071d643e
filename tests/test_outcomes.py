"""Measures, neurons alone, in pairs and greedily, and fills: against float64 and masks set by hand."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import first_quick, logits64, raises_input_error, random_masks
from networks import KINDS, SITES, masked_logits

import jaxablate as ja
from jaxablate.ablation import _incremental

ALL = ("correct", "class_correct", "confusion", "loss", "divergence")
ENGINES = ("vmap", "incremental")


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:203], mnist5k.test.labels[:203]


@pytest.fixture(scope="module")
def fill(small_model, mnist5k):
    return np.asarray(ja.mean_activations(small_model, mnist5k.validation.images))


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def measured64(logits, intact, labels) -> dict[str, np.ndarray]:
    """Every measure of one mask, in float64 loops."""
    confusion = np.zeros((10, 10), int)
    for label, predicted in zip(labels, logits.argmax(axis=1), strict=True):
        confusion[label, predicted] += 1
    after, before = log_softmax64(logits), log_softmax64(intact)
    return {
        "correct": np.trace(confusion),
        "class_correct": np.diagonal(confusion),
        "confusion": confusion,
        "loss": -np.mean([row[label] for row, label in zip(after, labels, strict=True)]),
        "divergence": np.mean((np.exp(before) * (before - after)).sum(axis=1)),
    }


def assert_measured(computed: dict, references: list[dict], atol: float = 2e-6) -> None:
    """Counts equal (no example here is nearly a tie), means within float32's rounding."""
    for name in ALL:
        expected = np.stack([reference[name] for reference in references])
        if name in ("loss", "divergence"):
            np.testing.assert_allclose(computed[name], expected, atol=atol)
            assert np.asarray(computed[name]).dtype == np.float32
        else:
            np.testing.assert_array_equal(computed[name], expected)
            assert np.asarray(computed[name]).dtype == np.int32


def test_measures_under_masks(small_model, examples, fill):
    masks = random_masks(4, 12, 27)
    intact = logits64(small_model, examples[0])
    expected = [measured64(logits64(small_model, examples[0], keep, fill), intact, examples[1]) for keep in masks]
    outcomes = ja.evaluate_masks(small_model, masks, *examples, fill, outcomes=ALL)
    assert set(outcomes) == set(ALL)
    assert_measured(outcomes, expected)
    alone = ja.evaluate_masks(small_model, masks, *examples, fill, outcomes="loss")
    np.testing.assert_allclose(alone, outcomes["loss"], atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", first_quick([0, 10, 18]))
def test_measures_along_orders(small_model, examples, fill, engine, first):
    """Also where chunks are small, so that the last one is filled up with examples that must not count."""
    orders = np.stack([np.arange(first, 27), np.arange(26, first - 1, -1)])[:, :6]
    masks = ja.orders.masks_of_orders(orders, 27, 6)
    intact = logits64(small_model, examples[0])
    expected = [measured64(logits64(small_model, examples[0], keep, fill), intact, examples[1]) for keep in masks]
    outcomes = ja.cumulative_ablation(
        small_model, orders, *examples, fill, steps=6, outcomes=ALL, engine=engine, memory_limit=100_000
    )
    assert outcomes["confusion"].shape == (2, 7, 10, 10)
    assert_measured({name: values.reshape(14, *values.shape[2:]) for name, values in outcomes.items()}, expected)
    assert np.asarray(outcomes["divergence"])[:, 0].max() < 1e-6


def test_measures_of_several_networks(examples):
    models = [KINDS["chain"](seed) for seed in (0, 1)]
    masks = np.stack([random_masks(seed, 3, 16) for seed in (0, 1)])
    outcomes = ja.evaluate_masks(models, masks, *examples, outcomes=("confusion", "loss"))
    assert outcomes["confusion"].shape == (2, 3, 10, 10)
    for i, model in enumerate(models):
        np.testing.assert_allclose(
            outcomes["loss"][i], ja.evaluate_masks(model, masks[i], *examples, outcomes="loss"), atol=1e-6
        )


@pytest.mark.parametrize("kind", first_quick(KINDS))
def test_each_neuron_alone(kind, examples):
    model, images, labels = KINDS[kind](), examples[0][:60], examples[1][:60]
    neurons = sum(SITES[kind].values())
    fill = np.linspace(-0.3, 0.6, neurons).astype(np.float32)
    intact = masked_logits(model, kind, np.ones(neurons, bool), fill, images)
    masks = ~np.eye(neurons, dtype=bool)
    expected = [measured64(masked_logits(model, kind, keep, fill, images), intact, labels) for keep in masks]
    assert_measured(ja.single_ablation(model, images, labels, fill, outcomes=ALL), expected, atol=1e-5)


def test_a_scale_goes_with_neurons_alone(small_model, examples, fill):
    scale = np.linspace(0, 1, 27).astype(np.float32)
    logits = [logits64(small_model, examples[0], keep, fill, scale) for keep in ~np.eye(27, dtype=bool)]
    correct = [(outputs.argmax(axis=1) == examples[1]).sum() for outputs in logits]
    np.testing.assert_array_equal(ja.single_ablation(small_model, *examples, ja.fills.AffineFill(scale, fill)), correct)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "site", "start"), [("chain", "second", 9), ("chain", "first", 0), ("residual", "a", 8)]
)
def test_pairs(kind, site, start, examples, monkeypatch):
    """Small rooms, so that the pairs come in more than one call."""
    model, images, labels = KINDS[kind](), examples[0][:60], examples[1][:60]
    neurons, width = sum(SITES[kind].values()), SITES[kind][site]
    fill = np.linspace(-0.3, 0.6, neurons).astype(np.float32)
    matrices = ja.ablation.pair_ablation(model, images, labels, fill, site=site, outcomes=ALL)
    intact = masked_logits(model, kind, np.ones(neurons, bool), fill, images)
    for i, j in itertools.product(range(width), repeat=2):
        keep = np.ones(neurons, bool)
        keep[[start + i, start + j]] = False
        expected = measured64(masked_logits(model, kind, keep, fill, images), intact, labels)
        assert_measured({name: values[i, j][None] for name, values in matrices.items()}, [expected], atol=1e-5)


def test_pairs_of_a_large_layer_keep_to_the_memory_limit(monkeypatch):
    """XLA's memory for the 19,900 pairs of a layer of 200, without running them."""
    model = ja.MLP(784, (200, 200), 10, rngs=nnx.Rngs(0))
    images, labels = np.zeros((10_000, 784), np.float32), np.zeros(10_000, np.int32)
    measure, sizes = _incremental._engine.single_device, []

    def record(*arguments):
        _, (orders, *_), _ = arguments
        sizes.append((orders.shape[1], measure.lower(*arguments).compile().memory_analysis().temp_size_in_bytes))
        raise StopIteration

    pairs = np.stack(np.triu_indices(200, k=1), axis=1)
    monkeypatch.setattr(_incremental._engine, "single_device", record)
    problem, _ = ja.ablation._single.make_site_problem(model, "layer1", images, labels, None, "correct", 10**7, None)
    with pytest.raises(StopIteration):
        ja.ablation._single._measure_sets(problem, pairs)
    assert sizes[0][0] == 19_900
    assert 0 < sizes[0][1] < 10**7


@pytest.mark.parametrize("outcome", first_quick(["loss", "correct", "divergence"]))
@pytest.mark.parametrize(("kind", "site", "start"), [("chain", "second", 9), ("residual", "a", 8), ("chain", None, 0)])
def test_greedy_takes_the_least_harmful_each_time(kind, site, start, outcome, examples):
    model, images, labels = KINDS[kind](), examples[0][:60], examples[1][:60]
    neurons = sum(SITES[kind].values())
    fill = np.full(neurons, 0.1, np.float32)
    greedy = ja.ablation.greedy_order(model, images, labels, fill, site=site, steps=4, outcome=outcome)
    order, along = np.asarray(greedy.order) + (start if site else 0), greedy.outcome
    intact = masked_logits(model, kind, np.ones(neurons, bool), fill, images)
    scope = range(start, start + (SITES[kind][site] if site else neurons))
    keep, sign = np.ones(neurons, bool), -1 if outcome == "correct" else 1
    np.testing.assert_allclose(along[0], measured64(intact, intact, labels)[outcome], atol=1e-5)
    for rank, taken in enumerate(np.asarray(order).tolist()):
        harm = {}
        for neuron in scope:
            if keep[neuron]:
                tried = keep.copy()
                tried[neuron] = False
                logits = masked_logits(model, kind, tried, fill, images)
                harm[neuron] = sign * float(measured64(logits, intact, labels)[outcome])
        assert harm[taken] <= min(harm.values()) + 1e-5
        if outcome == "correct":
            assert taken == min(neuron for neuron in harm if harm[neuron] == min(harm.values()))
        assert abs(sign * float(along[rank + 1]) - harm[taken]) < 1e-5
        keep[taken] = False


def test_fills_by_hand(mnist5k):
    """On a chain whose sites hold one number for each neuron, from the activations themselves."""
    model = KINDS["chain"]()
    images, labels = mnist5k.validation.images[:150], mnist5k.validation.labels[:150]
    activations = [np.asarray(layer, np.float64) for layer in ja.record_activations(model, images)]
    both = np.concatenate(activations, axis=1)
    np.testing.assert_array_equal(ja.compute_fill(model, "zero", images), np.zeros(16))
    np.testing.assert_array_equal(ja.compute_fill(model, "constant", images, value=0.3), np.full(16, np.float32(0.3)))
    np.testing.assert_allclose(ja.compute_fill(model, "mean", images), both.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(ja.compute_fill(model, "median", images), np.median(both, axis=0), atol=1e-5)
    by_class = ja.compute_fill(model, "class_mean", images, labels)
    for table, layer in zip(by_class.tables, activations, strict=True):
        np.testing.assert_allclose(table, [layer[labels == c].mean(axis=0) for c in range(10)], atol=1e-5)


@pytest.mark.parametrize("kind", first_quick(KINDS, 2))
@pytest.mark.parametrize("fill", ["class_mean", "resample"])
def test_fills_that_differ_between_examples(kind, fill, mnist5k):
    """The row that each example takes, set by hand on the sites; a channel's whole map is resampled."""
    model = KINDS[kind]()
    images, labels = mnist5k.test.images[:60], mnist5k.test.labels[:60]
    validation = mnist5k.validation.images[:150], mnist5k.validation.labels[:150]
    computed = ja.compute_fill(model, fill, *validation, key=jax.random.key(5))
    rows = np.asarray(labels if fill == "class_mean" else computed.rows(labels))
    if fill == "resample":
        assert rows.min() >= 0
        assert 100 < rows.max() < 150
        assert len(set(rows.tolist())) > 40
        assert set(np.asarray(computed.rows(np.zeros(5000, int))).tolist()) == set(range(150))
    of_examples = [np.asarray(table)[rows] for table in computed.tables]
    masks = random_masks(2, 8, sum(SITES[kind].values()))
    losses = ja.evaluate_masks(model, masks, images, labels, computed, outcomes="loss")
    expected = [measured64(masked_logits(model, kind, keep, of_examples, images), np.zeros((60, 10)), labels)["loss"]
              for keep in masks]  # fmt: skip
    np.testing.assert_allclose(losses, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["class_mean", "resample"])
def test_engines_agree_on_fills_that_differ_between_examples(small_model, examples, mnist5k, fill):
    computed = ja.compute_fill(
        small_model, fill, mnist5k.validation.images, mnist5k.validation.labels, key=jax.random.key(1)
    )
    orders = np.asarray(ja.random_orders(27, 3, key=jax.random.key(2)))
    losses = [
        ja.cumulative_ablation(
            small_model, orders, *examples, computed, steps=27, engine=engine, outcomes=("correct", "loss"),
            memory_limit=100_000,
        )
        for engine in ENGINES
    ]  # fmt: skip
    np.testing.assert_array_equal(losses[0]["correct"], losses[1]["correct"])
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], atol=1e-5)
    singles = ja.single_ablation(small_model, *examples, computed, outcomes="loss")
    np.testing.assert_allclose(
        singles,
        ja.evaluate_masks(small_model, ~np.eye(27, dtype=bool), *examples, computed, outcomes="loss"),
        atol=1e-5,
    )


@pytest.mark.slow
def test_the_optimal_fill_beats_the_mean_and_is_a_minimum(small_model, mnist5k):
    """On its own examples and masks; small steps away from it in any direction raise the loss."""
    examples = mnist5k.validation.images, mnist5k.validation.labels
    masks = np.ones((1, 27), bool)
    masks[:, [0, 2, 3, 5, 7, 8, 11, 13, 16, 18, 20, 21, 23, 24, 25]] = False
    fill = np.asarray(ja.compute_fill(small_model, "optimal", *examples, key=jax.random.key(0), keep=masks,
                                      steps=1500, batch_size=500, learning_rate=0.05))  # fmt: skip
    mean = np.asarray(ja.mean_activations(small_model, examples[0]))
    np.testing.assert_array_equal(fill[masks[0]], mean[masks[0]])

    def loss(values):
        return float(ja.evaluate_masks(small_model, masks, *examples, values, outcomes="loss")[0])

    best = loss(fill)
    assert best < loss(mean) - 0.003
    for neuron in np.flatnonzero(~masks[0]):
        for step in (-0.2, 0.2):
            assert loss(fill + step * np.eye(27, dtype=np.float32)[neuron]) > best


def test_bad_input(small_model, examples, mnist5k):
    masks = np.ones((1, 27), bool)
    with raises_input_error("outcomes: unknown 'accuracy'; choose one of correct, class_correct, confusion, loss"):
        ja.evaluate_masks(small_model, masks, *examples, outcomes="accuracy")
    with raises_input_error("outcomes: expected at least one of correct, .* got none"):
        ja.evaluate_masks(small_model, masks, *examples, outcomes=())
    with raises_input_error("site: unknown 'layer4'; choose one of layer1, layer2, layer3"):
        ja.ablation.pair_ablation(small_model, *examples, site="layer4")
    with raises_input_error("outcome: unknown 'confusion'; choose one of correct, loss, divergence"):
        ja.ablation.greedy_order(small_model, *examples, outcome="confusion")
    with raises_input_error("steps: 10 is not within 1\\.\\.9, the number of neurons; choose at most 9"):
        ja.ablation.greedy_order(small_model, *examples, site="layer3", steps=10)
    with raises_input_error("fill: unknown 'average'; choose one of zero, constant, mean, median"):
        ja.compute_fill(small_model, "average", examples[0])
    with raises_input_error("fill 'class_mean': expected labels, got none"):
        ja.compute_fill(small_model, "class_mean", examples[0])
    with raises_input_error("fill 'optimal': expected key and keep, got none"):
        ja.compute_fill(small_model, "optimal", *examples)
    with raises_input_error(r"fill 'class_mean': expected examples of every class, got none of \[3\]"):
        some = examples[1] != 3
        ja.compute_fill(small_model, "class_mean", examples[0][some], examples[1][some])
    with raises_input_error("value: expected a finite number, got nan"):
        ja.compute_fill(small_model, "constant", examples[0], value=np.nan)
    resampled = ja.compute_fill(small_model, "resample", examples[0], key=jax.random.key(0))
    with raises_input_error(r"fill: a PerExampleFill goes with one network"):
        ja.evaluate_masks([small_model, small_model], np.ones((2, 1, 27), bool), *examples, resampled)
    with raises_input_error("fill: expected 3 tables, one for each site, got 2"):
        ja.evaluate_masks(small_model, masks, *examples, ja.fills.PerExampleFill(resampled.tables[:2]))
    short = ja.fills.PerExampleFill(tuple(table[:5] for table in resampled.tables))
    with raises_input_error(r"fill: expected a table \[row, 10\] or .* of at least 10 rows for site 'layer1', got"):
        ja.evaluate_masks(small_model, masks, *examples, short)


def test_measures_are_the_same_in_company():
    """jaxlib 0.10.2 overwrote the sums of one outcome with another's (github.com/jax-ml/jax/issues/39103)."""
    random = np.random.default_rng(0)
    model = ja.MLP(20, (12, 10), 10, rngs=nnx.Rngs(0))
    images, labels = random.random((6000, 20), np.float32), random.integers(0, 10, 6000)
    keep = random.random((81, 22)) < 0.6
    names = tuple(ja.ablation.OUTCOMES)
    together = ja.evaluate_masks(model, keep, images, labels, outcomes=names)
    for name in names:
        alone = ja.evaluate_masks(model, keep[-1:], images, labels, outcomes=name)[0]
        np.testing.assert_allclose(together[name][-1], alone, rtol=1e-5)


@pytest.mark.slow
def test_ids_within_a_site_equal_network_wide_ids(small_model, examples, fill):
    """layer2 has the neurons 10..17 of the network, which are 0..7 within the site."""
    first, width, call = 10, 8, (*examples, fill)
    orders = np.asarray(ja.random_orders(width, 3, key=jax.random.key(1)))
    for engine in ja.ablation.ENGINES:
        curves = ja.cumulative_ablation(small_model, orders, *call, site="layer2", steps=8, engine=engine)
        same = ja.cumulative_ablation(small_model, orders + first, *call, steps=8, engine=engine)
        np.testing.assert_array_equal(curves, same)
        assert np.ptp(np.asarray(curves)) > 0
    site_keep = random_masks(2, 5, width)
    keep = np.ones((5, 27), bool)
    keep[:, first : first + width] = site_keep
    np.testing.assert_array_equal(
        ja.evaluate_masks(small_model, site_keep, *call, site="layer2"), ja.evaluate_masks(small_model, keep, *call)
    )
    singles = ja.single_ablation(small_model, *call, outcomes="loss")
    np.testing.assert_array_equal(
        ja.single_ablation(small_model, *call, site="layer2", outcomes="loss"), singles[first : first + width]
    )
    greedy = ja.ablation.greedy_order(small_model, *call, site="layer2")
    assert sorted(greedy.order.tolist()) == list(range(width))
    again = ja.cumulative_ablation(small_model, greedy.order[None], *call, site="layer2", steps=width)
    np.testing.assert_array_equal(greedy.outcome, again[0])


def test_an_id_out_of_range_is_refused_with_both_numberings(small_model, examples):
    with raises_input_error(
        r"orders: neuron 8 is not in site 'layer2', whose 8 neurons are 0\.\.7 within the site, 10\.\.17 in the whole"
    ):
        ja.cumulative_ablation(small_model, np.array([[8]]), *examples, site="layer2", steps=1)
    with raises_input_error(
        r"orders: neuron 27 is not in the network, whose 27 neurons are 0\.\.26; ids within a site"
    ):
        ja.cumulative_ablation(small_model, np.array([[27]]), *examples, steps=1)
    with raises_input_error(r"keep: expected shape \(any, 8\) = \[mask, neuron of site 'layer2'\], got \(1, 27\)"):
        ja.evaluate_masks(small_model, np.ones((1, 27), bool), *examples, site="layer2")
    with raises_input_error("site: unknown 'layer4'; choose one of layer1, layer2, layer3"):
        ja.single_ablation(small_model, *examples, site="layer4")
