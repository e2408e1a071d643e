"""The certified engine: it evaluates few examples, and every count equals a forward pass."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_counts, first_quick, pairwise, raises_input_error

import jaxablate as ja
from jaxablate.ablation import _certified, _incremental

HIDDEN = (40, 30, 20)
SCOPES = {
    "layer 1": range(40),
    "layers 1 and 2": range(70),
    "network": range(90),
    "layers 1 and 3": (*range(40), *range(70, 90)),
    "layer 2": range(40, 70),
    "layers 2 and 3": range(40, 90),
}


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images, mnist5k.test.labels


@pytest.fixture(scope="module")
def models(mnist5k):
    kinds = ("sigmoid", "relu", "tanh")
    return {kind: ja.train(mnist5k, HIDDEN, activation=kind, epochs=15)[0] for kind in kinds}


@pytest.fixture(scope="module")
def evaluated(monkeypatch_module):
    """[examples evaluated again, examples] since it was last cleared."""
    totals = []
    original = _certified._Follow._evaluate_changed

    def count(self, curve):
        is_beyond = ~(curve.distance < curve.radius)
        jax.debug.callback(lambda number: totals.append((int(number), len(is_beyond))), is_beyond.sum())
        return original(self, curve)

    monkeypatch_module.setattr(_certified._Follow, "_evaluate_changed", count)
    return totals


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.slow
@pairwise(activation=("sigmoid", "relu", "tanh"), scope=SCOPES, balanced=(False, True))
def test_all_counts_equal_full_passes(models, examples, evaluated, activation, scope, balanced):
    check_counts(models, examples, evaluated, activation, scope, balanced)


@pytest.mark.parametrize(
    ("activation", "scope", "balanced"),
    first_quick([("sigmoid", "network", True), ("relu", "layer 1", False), ("tanh", "layers 2 and 3", True)]),
)
def test_counts_equal_full_passes(models, examples, evaluated, activation, scope, balanced):
    check_counts(models, examples, evaluated, activation, scope, balanced)


def check_counts(models, examples, evaluated, activation, scope, balanced):
    model, neurons = models[activation], np.array(SCOPES[scope])
    fill = np.asarray(ja.mean_activations(model, examples[0])) if balanced else None
    orders = neurons[np.asarray(ja.random_orders(len(neurons), 4, key=jax.random.key(5)))]
    evaluated.clear()
    counts = {
        engine: ja.cumulative_ablation(
            model, orders, *examples, fill, steps=len(neurons), engine=engine, outcomes=_certified.PREDICTIONS
        )
        for engine in ("certified", "vmap")
    }
    for name in _certified.PREDICTIONS:
        np.testing.assert_array_equal(counts["certified"][name], counts["vmap"][name])
    masks = ja.orders.masks_of_orders(orders, 90, len(neurons))
    assert_counts(np.ravel(counts["certified"]["correct"]), model, masks, *examples, fill)
    jax.effects_barrier()
    again, total = np.sum(evaluated, axis=0)
    assert 0.001 < again / total < 0.9
    assert np.ptp(counts["vmap"]["correct"]) > 100


def check_radius(logits, p, bounds, key):
    """Move points by their radius in several directions; return how many change their class by a much larger one."""
    start = logits(p)
    radius = np.sqrt(_certified._radius(start, bounds))
    assert (radius > 0).mean() > 0.5

    def margin(p):
        return jnp.diff(jnp.sort(logits(p), axis=1)[:, -2:], axis=1).sum()

    gradient = jax.grad(margin)(p)
    for direction in (-gradient, jax.random.normal(key, p.shape), -p):
        unit = direction / (jnp.linalg.norm(direction, axis=1, keepdims=True) + 1e-30)
        moved = logits(p + unit * np.minimum(radius, 100)[:, None])
        np.testing.assert_array_equal(moved.argmax(axis=1), start.argmax(axis=1))
    # a radius a hundred times as large must fail for some, or the test shows nothing
    far = logits(p - 100 * radius[:, None] * gradient / (jnp.linalg.norm(gradient, axis=1, keepdims=True) + 1e-30))
    return int((far.argmax(axis=1) != start.argmax(axis=1)).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    "activation", ["relu", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sigmoid", "tanh"))]
)
def test_no_change_within_the_radius_changes_the_class(activation):
    """The worst direction that a gradient finds, and random ones, for networks with large weights too."""
    changed = 0
    for seed, scale in itertools.product(range(3), (1.0, 3.0, 10.0)):
        model = ja.MLP(6, (8, 7, 9, 5), 4, activation=activation, rngs=nnx.Rngs(seed))
        weights = [jnp.asarray(stage.weights[0]) * scale for stage in model.stages]
        spec = ja.from_module(model, np.zeros((2, 6), np.float32)).spec
        chain = _certified._find_chain(spec, (0,))
        assert chain.slope == {"sigmoid": 1 / 16, "relu": 1, "tanh": 1}[activation]
        bounds = _certified._bounds(chain, weights[1:])
        short = _certified._find_chain(spec, (2,))
        assert short.probe is None
        np.testing.assert_allclose(short.slope, 1 / 4 if activation == "sigmoid" else 1)
        last_bounds = _certified._bounds(short, weights[3:])
        act = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jnp.tanh}[activation]

        def logits(p, weights=weights, act=act):
            return act(act(p @ weights[2]) @ weights[3]) @ weights[4]

        def last_logits(z, weights=weights, act=act):
            return act(z) @ weights[4]

        keys = jax.random.split(jax.random.key(seed), 3)
        for function, width, c in ((logits, 7, bounds), (last_logits, 5, last_bounds)):
            changed += check_radius(function, jax.random.normal(keys[0], (300, width)), c, keys[1])
    assert changed > 300


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 7), (200, 200), (64, 1000)])
def test_the_bound_of_the_spectral_norm(shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for matrix in (weight, 1e-6 * weight, 1e6 * weight, np.ones(shape, np.float32)):
        norm = np.linalg.norm(matrix.astype(np.float64), 2)
        assert norm * (1 - 1e-5) <= float(_certified._spectral_bound(jnp.asarray(matrix))) <= 1.4 * norm


def confusions(model, orders, examples, engines=("certified", "vmap"), **options):
    return [
        np.asarray(ja.cumulative_ablation(model, orders, *examples, engine=engine, outcomes="confusion", **options))
        for engine in engines
    ]


@pytest.mark.slow
def test_equal_classes(mnist5k, examples):
    """Two classes with the same weights are tied for every example, and the first one is predicted."""
    model = ja.train(mnist5k, (12, 10, 8), activation="relu", epochs=5)[0]
    head = model.stages[-1].linear
    for weight in (head.kernel, head.bias):
        weight[...] = weight[...].at[..., 7].set(weight[...][..., 2])
    orders = np.asarray(ja.random_orders(30, 3, key=jax.random.key(0)))
    counts = confusions(model, orders, examples, steps=30)
    np.testing.assert_array_equal(*counts)
    assert counts[0][..., 2].any()
    assert not counts[0][..., 7].any()


@pytest.mark.parametrize(("layer", "order"), [(0, [0, 3, 7, 5]), (2, [1, 22, 25, 24])])
def test_a_large_output_leaves_no_rounding_error_behind(mnist5k, examples, layer, order):
    """Once a neuron of outputs near 1e7 is gone, the small ones decide."""
    model = ja.train(mnist5k, (12, 10, 8), activation="relu", epochs=5)[0]
    neuron = order[1] - (0, 12, 22)[layer]
    kernel, following = (model.stages[i].linear.kernel for i in (layer, layer + 1))
    kernel[...] = kernel[...].at[:, neuron].set(1e5)
    following[...] = following[...].at[neuron].set(jnp.linspace(0.5, 1.5, following.shape[1]))
    counts = confusions(model, np.array([order]), examples, steps=4)
    np.testing.assert_array_equal(*counts)
    assert np.trace(counts[0][0, 2]) > 2 * np.trace(counts[0][0, 0])


@pytest.mark.slow
def test_several_networks_and_little_memory(examples, mnist5k):
    models = [model for model, _ in ja.training.train_many(mnist5k, HIDDEN, (0, 1, 2), epochs=1)]
    orders = np.stack([ja.random_orders(90, 3, key=jax.random.key(seed)) for seed in range(3)])
    fill = np.stack([ja.mean_activations(model, examples[0]) for model in models])
    together = ja.cumulative_ablation(
        models, orders, *examples, fill, steps=60, memory_limit=100_000, engine="certified"
    )
    for i, model in enumerate(models):
        alone = ja.cumulative_ablation(model, orders[i], *examples, fill[i], steps=60, engine="vmap")
        np.testing.assert_array_equal(together[i], alone)


@pytest.mark.parametrize(("number", "engine"), [(1000, "incremental"), (2000, "certified")])
def test_many_examples_choose_the_engine(models, examples, number, engine, monkeypatch):
    called = []
    for module, name in ((_certified, "measure_orders"), (_incremental, "measure_steps")):
        measured = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=measured, m=module, **k: called.append(m) or f(*a, **k))
    images, labels = (np.resize(array, (number, *array.shape[1:])) for array in examples)
    ja.cumulative_ablation(models["sigmoid"], np.arange(40)[None], images, labels, steps=2)
    assert [module.__name__.rpartition("_")[2] for module in called] == [engine]


def product(a, b, precision=None):
    dims = (((1,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def layers(params, x, tags=(), cast=lambda value: value, precision=None):
    """ReLU layers of a list of weights; each tag marks the last hidden layer."""
    for weight in params[:-1]:
        x = cast(jax.nn.relu(product(x, weight, precision)))
    for name in tags:
        x = ja.tag(x, name)
    return product(x, params[-1])


def test_chains_for_which_the_bound_does_not_hold(examples):
    """Layers between p and the last one, other types and precisions, a layer tagged twice, a single class."""
    images, labels = examples[0].reshape(1000, -1), np.asarray(examples[1])
    random = np.random.default_rng(0)

    def weights(*sizes):
        return [random.normal(0, 1.5 / n**0.5, (n, m)).astype(np.float32) for n, m in itertools.pairwise(sizes)]

    deep = ja.MLP(784, (10, 9, 8, 7), 10, activation="tanh", rngs=nnx.Rngs(1))
    whole = [np.clip(60 * weight, -120, 120).astype(np.int8) for weight in weights(784, 12, 11, 10)]
    small = weights(784, 9, 8, 10)
    twice = ja.from_function(lambda p, x: layers(p, x, ("a", "b")), small, images[:2])
    bfloat16 = ja.from_function(
        lambda p, x: layers(p, x, cast=lambda value: value.astype(jnp.bfloat16)),
        [jnp.asarray(weight, jnp.float32 if i == 0 else jnp.bfloat16) for i, weight in enumerate(small)],
        images[:2],
    )
    rounded = ja.from_function(lambda p, x: layers(p, x, precision="default"), small, images[:2])
    cases = {
        "layers 1 and 3 of 4": (deep, (*range(10), *range(19, 27))),
        "layers 1 to 3 of 4": (deep, range(27)),
        "layers 1 to 4 of 4": (deep, range(34)),
        "weights of int8": (ja.from_function(layers, whole, images[:2]), range(12)),
        "outputs of bfloat16": (bfloat16, range(9)),
        "a layer tagged twice": (twice, range(twice.spec.num_neurons)),
        "products of the precision 'default'": (rounded, range(9)),
        "one class": (ja.MLP(784, (9, 8), 1, rngs=nnx.Rngs(0)), range(9)),
    }
    for name, (model, neurons) in cases.items():
        if name == "a layer tagged twice":
            model = ja.from_function(lambda p, x: layers(p, x, ("a", "b")), small, images[:2], sites=lambda _: True)
            # the first hidden layer and both tags
            neurons = np.flatnonzero(np.arange(model.spec.num_neurons) >= model.spec.offsets[-4])
        order = random.permutation(np.array(neurons))[None]
        with raises_input_error("engine: 'certified' does not support"):
            of_class = np.zeros(1000, int) if name == "one class" else labels
            ja.cumulative_ablation(model, order, images, of_class, engine="certified", steps=len(order[0]))
    # next to these, an order for which the bound holds
    no_ties = [
        *map(np.abs, small[:2]),
        small[2],
    ]  # an example without active neurons would tie all classes
    highest = ja.from_function(lambda p, x: layers(p, x, precision="highest"), no_ties, images[:2])
    for model, number, steps in ((deep, 19, 19), (highest, 9, 5)):
        order = random.permutation(number)[None]
        np.testing.assert_array_equal(*confusions(model, order, (images, labels), steps=steps))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize(("layer", "order"), [(0, [0, 3, 7, 5]), (2, [1, 22, 25, 24])])
def test_large_weights_leave_no_rounding_error_behind(mnist5k, examples, activation, layer, order):
    """A small output with a row of weights near 1e7: once the neuron is gone, the other rows decide."""
    model = ja.train(mnist5k, (12, 10, 8), activation=activation, epochs=5)[0]
    neuron = order[1] - (0, 12, 22)[layer]
    following = model.stages[layer + 1].linear.kernel
    following[...] = following[...].at[neuron].set(1e7 * jnp.linspace(0.5, 1.5, following.shape[1]))
    engines = ("certified", "incremental", "vmap")
    certified, incremental, full = confusions(model, np.array([order]), examples, engines, steps=4)
    np.testing.assert_array_equal(certified, full)
    np.testing.assert_array_equal(incremental, full)
    assert (full[0, 2] != full[0, 1]).any()


def residual(params, x):
    first = jax.nn.relu(x @ params["a"])
    second = first + jax.nn.relu(first @ params["b"])
    return jax.nn.relu(second @ params["c"]) @ params["d"]


@pytest.mark.slow
def test_what_is_not_certified(models, examples, mnist5k):
    model, order = models["sigmoid"], np.arange(40)[None]
    random = np.random.default_rng(0)
    sizes = {"a": (784, 9), "b": (9, 9), "c": (9, 9), "d": (9, 10)}
    params = {name: random.normal(size=size, scale=0.3).astype(np.float32) for name, size in sizes.items()}
    flat = examples[0].reshape(len(examples[0]), -1)
    cases = {
        "steps of several neurons": (model, order, examples[0], {"steps": (2, 4)}),
        "a loss": (model, order, examples[0], {"outcomes": "loss"}),
        "an unknown slope": (
            ja.train(mnist5k, (9, 8, 7), activation="gelu", epochs=1)[0],
            order[:, :9],
            examples[0],
            {},
        ),
        "a last layer": (model, order[:, :20] + 70, examples[0], {}),
        "a residual stream": (ja.from_function(residual, params, flat[:2]), order[:, :9], flat, {}),
    }
    for name, (network, orders, images, options) in cases.items():
        options = {"steps": 4, **options}
        with raises_input_error("engine: 'certified' does not support"):
            ja.cumulative_ablation(network, orders, images, examples[1], engine="certified", **options)
        if name == "a residual stream":
            continue  # without biases, examples of no active neuron are tied
        auto = ja.cumulative_ablation(network, orders, images, examples[1], **options)
        np.testing.assert_allclose(
            auto, ja.cumulative_ablation(network, orders, images, examples[1], engine="vmap", **options), rtol=1e-4
        )
    fill = ja.compute_fill(model, "linear", mnist5k.validation.images)
    with raises_input_error("engine: 'certified' does not support"):
        ja.cumulative_ablation(model, order, *examples, fill, steps=4, engine="certified")
