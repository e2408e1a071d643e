"""The sweep against a plain NumPy forward pass, mask by mask, and its laws."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    OPTIMIZED,
    assert_counts,
    first_quick,
    logits64,
    pairwise,
    raises_input_error,
    random_masks,
    weights64,
)

import jaxablate as ja
from jaxablate.ablation import _certified, _execute, _incremental, _vmap


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:203], mnist5k.test.labels[:203]


@pytest.fixture(scope="module")
def fill(small_model, mnist5k):
    return ja.mean_activations(small_model, mnist5k.validation.images)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("first_neuron", [0, 10, 18, 27], ids=["all layers", "from layer 2", "layer 3", "none"])
def test_masks_equal_numpy(small_model, examples, fill, balanced, first_neuron):
    masks = random_masks(first_neuron, 70, 27)
    masks[:, :first_neuron] = True
    counts = ja.evaluate_masks(small_model, masks, *examples, fill if balanced else None)
    assert_counts(counts, small_model, masks, *examples, fill if balanced else None)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_masks_equal_numpy_for_other_activations(examples, activation):
    model = ja.MLP(784, (9, 11), 10, activation=activation, rngs=nnx.Rngs(4))
    masks = random_masks(3, 30, 20)
    fill = np.linspace(-1, 1, 20).astype(np.float32)
    assert_counts(ja.evaluate_masks(model, masks, *examples, fill), model, masks, *examples, fill)


SCOPES = {"layer 1": (0, 10), "layer 2": (10, 18), "layer 3": (18, 27), "network": (0, 27), "deep layers": (10, 27)}
ENGINES = ("vmap", "incremental")


# the number of ablated neurons at each step, for n neurons: one after another, three at a time, uneven steps
STEPS = {"one": lambda n: n, "three": lambda n: range(3, n + 1, 3), "uneven": lambda n: (1, 2, 5, n - 2, n)}


@pairwise(scope=SCOPES, balanced=(False, True), steps=STEPS, engine=ENGINES)
def test_curves_equal_numpy(small_model, examples, fill, scope, balanced, steps, engine):
    start, stop = SCOPES[scope]
    value = fill if balanced else None
    orders = np.asarray(ja.random_orders(stop - start, 3, key=jax.random.key(2))) + start
    steps = STEPS[steps](stop - start)
    counts = np.asarray(ja.cumulative_ablation(small_model, orders, *examples, value, steps=steps, engine=engine))
    numbers = [0, *(range(1, steps + 1) if isinstance(steps, int) else steps)]
    assert counts.shape == (3, len(numbers))
    masks = ja.orders.masks_of_orders(orders, 27, numbers[-1]).reshape(3, -1, 27)[:, numbers]
    assert_counts(counts.ravel(), small_model, masks.reshape(-1, 27), *examples, value)
    intact = int((logits64(small_model, examples[0]).argmax(axis=1) == examples[1]).sum())
    assert (counts[:, 0] == intact).all()
    if numbers[-1] == 27:
        assert len(set(counts[:, -1].tolist())) == 1, "with nothing left every order ends at the same prediction"
    else:
        assert len(set(counts.ravel().tolist())) > 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", first_quick(["sigmoid", "relu"]))
def test_a_scale_keeps_a_part_of_the_activation(examples, fill, activation, engine):
    random, sizes = np.random.default_rng(2), (784, 10, 8, 9, 10)
    kernels = [random.normal(0, n**-0.5, (n, m)).astype(np.float32) for n, m in itertools.pairwise(sizes)]
    model = ja.models.from_arrays(kernels, [np.zeros(m, np.float32) for m in sizes[1:]], activation=activation)
    scale = np.linspace(-0.5, 1.5, 27).astype(np.float32)
    orders = np.asarray(ja.random_orders(27, 3, key=jax.random.key(6)))
    masks = ja.orders.masks_of_orders(orders, 27, 27)
    zeros = np.zeros(27, np.float32)
    for offset in (zeros, fill):
        affine = ja.fills.AffineFill(scale, offset)
        counts = ja.cumulative_ablation(model, orders, *examples, affine, steps=27, engine=engine)
        assert_counts(counts.ravel(), model, masks, *examples, offset, scale)
        np.testing.assert_array_equal(counts.ravel(), ja.evaluate_masks(model, masks, *examples, affine))
    plain = ja.cumulative_ablation(model, orders, *examples, steps=27, engine=engine)
    scaled = ja.cumulative_ablation(
        model, orders, *examples, ja.fills.AffineFill(scale, zeros), steps=27, engine=engine
    )
    assert (plain != scaled).any()
    intact = ja.fills.AffineFill(np.ones(27), zeros)
    curves = ja.cumulative_ablation(model, orders, *examples, intact, steps=27, engine=engine)
    assert (curves == curves[:, :1]).all(), "a scale of 1 ablates nothing"


def test_a_scale_of_another_width_is_refused(small_model, examples):
    keep = np.ones((1, 27), bool)
    zeros, ones = np.zeros(27), np.ones(27)
    for scale, offset, message in (
        (np.ones(26), zeros, "fill scale: expected shape"),
        (np.full(27, np.nan), zeros, "fill scale: .*finite"),
        (ones, np.zeros(28), "fill offset: expected shape"),
        (ones, np.full(27, np.inf), "fill offset: .*finite"),
    ):
        with raises_input_error(message):
            ja.evaluate_masks(small_model, keep, *examples, ja.fills.AffineFill(scale, offset))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_between_may_stay_whole(small_model, examples, fill, engine):
    """Orders that skip the second layer, and a network of four hidden layers."""
    orders = np.array([[0, 20, 5, 19, 26, 2], [25, 1, 3, 18, 9, 22]])
    counts = ja.cumulative_ablation(small_model, orders, *examples, fill, steps=6, engine=engine)
    assert_counts(counts.ravel(), small_model, ja.orders.masks_of_orders(orders, 27, 6), *examples, fill)
    deep = ja.MLP(784, (7, 6, 5, 6), 10, activation="tanh", rngs=nnx.Rngs(1))
    orders = np.asarray(ja.random_orders(24, 2, key=jax.random.key(5)))
    counts = ja.cumulative_ablation(deep, orders, *examples, np.full(24, 0.5), steps=24, engine=engine)
    assert_counts(counts.ravel(), deep, ja.orders.masks_of_orders(orders, 24, 24), *examples, np.full(24, 0.5))


def test_equal_orders_are_followed_once(small_model, examples, monkeypatch):
    seen = []
    measure_steps = _incremental.measure_steps
    monkeypatch.setattr(
        _incremental,
        "measure_steps",
        lambda m, orders, numbers, *a, **k: (
            seen.append(orders[0, : numbers[0]]) or measure_steps(m, orders, numbers, *a, **k)
        ),
    )
    orders = np.array([[5, 1, 2, 3], [0, 1, 2, 3], [5, 1, 2, 4], [5, 2, 1, 3]])
    counts = ja.cumulative_ablation(small_model, orders, *examples, steps=3, engine="incremental")
    assert seen[0][..., 0].tolist() == [[0, 1, 2], [5, 1, 2], [5, 2, 1]]
    assert_counts(counts.ravel(), small_model, ja.orders.masks_of_orders(orders, 27, 3), *examples)


@pytest.fixture(scope="module")
def networks():
    return [ja.MLP(784, (10, 8, 9), 10, rngs=nnx.Rngs(seed)) for seed in (3, 4, 5)]


@pytest.mark.parametrize("engine", ENGINES)
def test_several_networks_in_one_call_equal_each_alone(networks, examples, monkeypatch, engine):
    """Each with orders and fills of its own; the second has fewer distinct orders than the others."""
    monkeypatch.setattr(_vmap, "SLAB", 50)
    orders = np.stack([ja.random_orders(27, 4, key=jax.random.key(seed)) for seed in range(3)])
    orders[1] = orders[1, 0]
    fill = np.linspace(0, 1, 3 * 27).reshape(3, 27).astype(np.float32)
    counts = np.asarray(ja.cumulative_ablation(networks, orders, *examples, fill, steps=20, engine=engine))
    assert counts.shape == (3, 4, 21)
    for model, of_network, values, got in zip(networks, orders, fill, counts, strict=True):
        alone = ja.cumulative_ablation(model, of_network, *examples, values, steps=20, engine=engine)
        np.testing.assert_array_equal(got, alone)
        assert_counts(got.ravel(), model, ja.orders.masks_of_orders(of_network, 27, 20), *examples, values)
    assert len({of_network.tobytes() for of_network in counts}) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_networks_whose_orders_lie_in_different_layers(networks, examples, engine):
    orders = np.stack([np.arange(18, 24), np.arange(10, 16), np.arange(6)])[:, None]
    counts = np.asarray(ja.cumulative_ablation(networks, orders, *examples, steps=6, engine=engine))
    for model, of_network, got in zip(networks, orders, counts, strict=True):
        assert_counts(got.ravel(), model, ja.orders.masks_of_orders(of_network, 27, 6), *examples)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 1e5, 1e7])
def test_large_outputs_leave_nothing_behind(examples, size, engine):
    """A relu neuron that dwarfs all others goes first; subtracting it would leave its rounding error."""
    model = ja.MLP(784, (20, 15), 10, activation="relu", rngs=nnx.Rngs(1))
    kernel = model.stages[0].linear.kernel
    kernel[...] = kernel[...].at[:, 3].set(size / 784)
    orders = np.array([[3, *(i for i in range(35) if i != 3)]])
    counts = ja.cumulative_ablation(model, orders, *examples, steps=30, engine=engine)
    assert_counts(counts.ravel(), model, ja.orders.masks_of_orders(orders, 35, 30), *examples)


@pytest.mark.parametrize("slab", [1, 7, 8192])
def test_masks_of_several_networks(networks, examples, monkeypatch, slab):
    monkeypatch.setattr(_vmap, "SLAB", slab)
    masks = random_masks(4, 33, 27).reshape(3, 11, 27)
    fill = np.linspace(0, 1, 3 * 27).reshape(3, 27).astype(np.float32)
    counts = ja.evaluate_masks(tuple(networks), masks, *examples, fill)
    for model, of_network, values, got in zip(networks, masks, fill, counts, strict=True):
        assert_counts(got, model, of_network, *examples, values)
    unfilled = ja.evaluate_masks(networks[1:2], masks[1:2], *examples)
    assert_counts(unfilled[0], networks[1], masks[1], *examples)


def test_bad_input_for_several_networks(networks, examples):
    masks = random_masks(4, 33, 27).reshape(3, 11, 27)
    orders = np.stack([ja.random_orders(27, 4, key=jax.random.key(seed)) for seed in range(3)])
    with raises_input_error(r"keep: expected shape \(3, any, 27\) = \[network, mask, neuron\], got \(11, 27\)"):
        ja.evaluate_masks(networks, masks[0], *examples)
    with raises_input_error(r"keep: expected shape \(any, 27\) = \[mask, neuron\], got \(3, 11, 27\)"):
        ja.evaluate_masks(networks[0], masks, *examples)
    with raises_input_error(r"fill: expected shape \(3, 27\) = \[network, neuron\], got \(27,\)"):
        ja.evaluate_masks(networks, masks, *examples, np.zeros(27, np.float32))
    with raises_input_error(r"orders: expected shape \(3, any, any\) = \[network, order, rank\], got \(4, 27\)"):
        ja.cumulative_ablation(networks, orders[0], *examples)
    with raises_input_error("model: expected at least one network, got none"):
        ja.evaluate_masks([], masks, *examples)
    for second in (ja.MLP(784, (10, 9, 8), 10, rngs=nnx.Rngs(0)), ja.MLP(784, (10, 8, 9), 9, rngs=nnx.Rngs(0))):
        with raises_input_error("model: expected networks of one architecture, got sites layer1 .* for network 1,"):
            ja.evaluate_masks([networks[0], second], masks[:2], *examples)
    broken = ja.MLP(784, (10, 8, 9), 10, rngs=nnx.Rngs(3))
    bias = broken.stages[2].linear.bias
    bias[...] = bias[...].at[3].set(np.nan)
    for engine in ENGINES:
        with raises_input_error("under 24 of 48 steps, the first at network 1, order 0, step 0;"):
            ja.cumulative_ablation([networks[0], broken], orders[:2], *examples, steps=5, engine=engine)


@pytest.mark.slow
@pairwise(cores=(1, 2, 3), memory_limit=(2_000, 20_000, 10**9), masks_per_batch=(1, 4, 100))
def test_chunks_and_threads_do_not_matter(
    small_model, examples, fill, monkeypatch, cores, memory_limit, masks_per_batch
):
    orders = np.asarray(ja.random_orders(27, 2, key=jax.random.key(3)))
    expected = ja.cumulative_ablation(small_model, orders, *examples, fill, steps=9)
    monkeypatch.setattr(_execute, "num_cores", lambda: cores)
    monkeypatch.setattr(_vmap, "MASKS_PER_BATCH", masks_per_batch)
    monkeypatch.setattr(_vmap, "SLAB", 7)
    for engine in ENGINES:
        counts = ja.cumulative_ablation(
            small_model, orders, *examples, fill, steps=9, engine=engine, memory_limit=memory_limit
        )
        np.testing.assert_array_equal(counts, expected)


def test_each_mask_alone_equals_all_sharded(small_model, examples, fill):
    masks = random_masks(8, 6, 27)
    alone = [ja.evaluate_masks(small_model, mask[None], *examples, fill).item() for mask in masks]
    assert ja.evaluate_masks(small_model, masks, *examples, fill).tolist() == alone


def test_examples_add_up(small_model, examples):
    images, labels = examples
    masks = random_masks(9, 5, 27)
    halves = [ja.evaluate_masks(small_model, masks, images[i::2], labels[i::2]) for i in (0, 1)]
    np.testing.assert_array_equal(sum(halves), ja.evaluate_masks(small_model, masks, images, labels))


def test_mean_fill_is_cutting_neurons_and_moving_their_mean_into_the_bias(small_model, examples, fill):
    """Bias balancing as the paper defines it: a smaller network with sum_j w_jk f_j added to the next bias."""
    images, labels = examples
    masks = random_masks(5, 12, 27)
    bounds = np.cumsum((0, *small_model.hidden))
    for mask, count in zip(masks, ja.evaluate_masks(small_model, masks, images, labels, fill).tolist(), strict=True):
        layers = [(kernel, bias) for kernel, bias in weights64(small_model)]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            kept, values = mask[start:stop], np.asarray(fill, np.float64)[start:stop]
            (kernel, bias), (next_kernel, next_bias) = layers[i], layers[i + 1]
            layers[i] = kernel[:, kept], bias[kept]
            layers[i + 1] = next_kernel[kept], next_bias + values[~kept] @ next_kernel[~kept]
        outputs = images.reshape(len(images), -1).astype(np.float64)
        for kernel, bias in layers[:-1]:
            outputs = 1 / (1 + np.exp(-(outputs @ kernel + bias)))
        logits = outputs @ layers[-1][0] + layers[-1][1]
        np.testing.assert_allclose(logits, logits64(small_model, images, mask, fill), atol=1e-12)
        second, first = np.sort(logits, axis=1)[:, -2:].T
        assert abs(count - (logits.argmax(axis=1) == labels).sum()) <= (first - second < 1e-5).sum()


def test_programs_are_compiled_once_per_shape(small_model, examples):
    images, labels = map(jnp.asarray, examples)
    second = ja.MLP(784, (10, 8, 9), 10, rngs=nnx.Rngs(77))
    _vmap._engine.single_device.clear_cache()
    _incremental._engine.single_device.clear_cache()
    for model in (small_model, second):
        for seed in range(3):
            fill = np.full(27, seed, np.float32)
            orders = ja.random_orders(27, 4, key=jax.random.key(seed))
            ja.evaluate_masks(model, random_masks(seed, 11, 27), images, labels)
            ja.evaluate_masks(model, random_masks(seed, 11, 27), images, labels, fill)
            ja.cumulative_ablation(model, orders, images, labels, fill, steps=20, engine="incremental")
    assert _vmap._engine.single_device._cache_size() == 1
    assert _incremental._engine.single_device._cache_size() == 1


@pytest.mark.slow
def test_ten_thousand_masks_on_full_mnist_stay_under_two_gigabytes(mnist_dir):
    code = """
import sys, resource, numpy as np, jaxablate as ja
from flax import nnx
test = ja.load_dataset("mnist", data_dir=sys.argv[1]).test
model = ja.MLP(784, (16, 16, 16), 10, rngs=nnx.Rngs(0))
keep = np.random.default_rng(0).random((10_000, 48)) < 0.5
counts = ja.evaluate_masks(model, keep, test.images, test.labels)
print(counts.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    command = [sys.executable, "-c", code, mnist_dir]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=OPTIMIZED)
    masks, megabytes = map(int, run.stdout.split())
    assert masks == 10_000
    assert megabytes < 2000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("hidden", "classes", "num_examples", "limit"),
    [((200, 200, 200), 10, 60_000, 10**7), ((200, 200), 10, 10_000, 10**6), ((8, 8), 1000, 10_000, 10**7)],
)
def test_programs_keep_to_the_memory_limit(monkeypatch, hidden, classes, num_examples, limit, engine):
    """XLA's memory for many curves, without running them."""
    model = ja.MLP(784, hidden, classes, rngs=nnx.Rngs(0))
    images, labels = np.zeros((num_examples, 784), np.float32), np.zeros(num_examples, np.int32)
    module, sizes = {"vmap": _vmap, "incremental": _incremental}[engine], []
    count = module._engine.single_device

    def record(*arguments):
        sizes.append(count.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
        raise StopIteration

    monkeypatch.setattr(module._engine, "single_device", record)
    monkeypatch.setattr(_execute, "num_cores", lambda: 1)
    orders = np.asarray(ja.random_orders(sum(hidden), 40, key=jax.random.key(0)))
    with pytest.raises(StopIteration):
        ja.cumulative_ablation(model, orders, images, labels, steps=16, engine=engine, memory_limit=limit)
    assert 0 < sizes[0] <= limit


def test_full_size_programs_stay_small_by_default(mnist5k):
    """XLA's memory for 8,192 masks of 3 x 200 neurons on 10,000 examples, without running it."""
    model = ja.MLP(784, (200, 200, 200), 10, rngs=nnx.Rngs(0))
    images, labels = np.zeros((10_000, 784), np.float32), np.zeros(10_000, np.int32)
    calls = []
    for module, run in (
        (_vmap, lambda: ja.evaluate_masks(model, np.zeros((8192, 600), bool), images, labels)),
        (
            _incremental,
            lambda: ja.cumulative_ablation(model, np.arange(600)[None], images, labels, engine="incremental"),
        ),
        (_certified, lambda: ja.cumulative_ablation(model, np.arange(600)[None], images, labels)),
    ):
        count = module._engine.single_device

        def record(*arguments, count=count):
            calls.append(count.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
            raise StopIteration

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module._engine, "single_device", record)
            patch.setattr(_execute, "num_cores", lambda: 1)
            with pytest.raises(StopIteration):
                run()
    assert len(calls) == 3
    assert max(calls) < 100e6


@pytest.mark.parametrize("engine", ENGINES)
def test_matrix_products_have_the_highest_precision_or_the_users(small_model, examples, monkeypatch, engine):
    module = {"vmap": _vmap, "incremental": _incremental}[engine]
    count, programs = module._engine.single_device, []

    def record(*arguments):
        programs.append(count.lower(*arguments).as_text())
        return count(*arguments)

    monkeypatch.setattr(module._engine, "single_device", record)
    orders = np.arange(27)[None]
    ja.cumulative_ablation(small_model, orders, *examples, steps=2, engine=engine)
    with jax.default_matmul_precision("tensorfloat32"):
        ja.cumulative_ablation(small_model, orders, *examples, steps=2, engine=engine)
    exact, fast = programs[0], programs[-1]
    assert exact.count("dot_general") == exact.count("precision = [HIGHEST, HIGHEST]") > 3
    assert "HIGHEST" not in fast


def products(jaxpr, times=1):
    """Every matrix product of a program: the shape of its second factor, and how often the loops around it run it.

    A loop of no fixed length counts as two rounds.
    """
    for equation in jaxpr.eqns:
        inner = times * (2 if equation.primitive.name == "while" else equation.params.get("length", 1))
        if equation.primitive.name == "dot_general":
            yield equation.invars[1].aval.shape, times
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            parameter = getattr(parameter, "jaxpr", parameter)
            if hasattr(parameter, "eqns"):
                yield from products(parameter, inner)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_comes_before_the_first_ablated_layer_is_computed_once(small_model, examples, monkeypatch, engine):
    """Orders of the last layer: the two products before it run once for each chunk, however many orders there are."""
    module = {"vmap": _vmap, "incremental": _incremental}[engine]
    count, seen = module._engine.single_device, []
    monkeypatch.setattr(_vmap, "MASKS_PER_BATCH", 5)
    monkeypatch.setattr(_execute, "num_cores", lambda: 1)
    monkeypatch.setattr(module._engine, "single_device", lambda *arguments: seen.append(arguments) or count(*arguments))
    orders = np.asarray(ja.random_orders(9, 6, key=jax.random.key(0))) + 18
    ja.cumulative_ablation(small_model, orders, *examples, steps=4, engine=engine, memory_limit=10_000)
    chunks = len(seen[0][-1].starts)
    assert chunks > 3
    program = jax.make_jaxpr(count.__wrapped__, static_argnums=0)(*seen[0])
    found = list(products(program.jaxpr))
    counted = dict(found)
    assert counted[784, 10] == counted[10, 8] == counted[8, 9] == chunks
    after = [times for shape, times in found if shape == (9, 10)]
    if engine == "vmap":
        assert min(after) > chunks
    else:  # updates need no product: one is computed when the level is entered
        assert after == [chunks]


def test_a_logit_that_is_not_finite_is_found_in_any_chunk(small_model, examples, monkeypatch):
    images, labels = examples
    monkeypatch.setattr(_execute, "num_cores", lambda: 2)
    for place in (0, 120, 202):
        broken = np.array(images)
        broken[place, 0, 0] = np.nan
        for engine in ENGINES:
            with raises_input_error("outputs: NaN or infinite numbers"):
                ja.cumulative_ablation(
                    small_model, np.arange(27)[None], broken, labels, steps=2, engine=engine, memory_limit=20_000
                )


def test_bad_input(small_model, examples):
    images, labels = examples
    keep = np.ones((2, 27), bool)
    with raises_input_error(r"keep: expected shape \(any, 27\) = \[mask, neuron\], got \(2, 26\)"):
        ja.evaluate_masks(small_model, keep[:, 1:], images, labels)
    with raises_input_error("keep: expected booleans"):
        ja.evaluate_masks(small_model, keep.astype(int), images, labels)
    with raises_input_error("keep: there is no mask; give at least one"):
        ja.evaluate_masks(small_model, keep[:0], images, labels)
    with raises_input_error("fill: expected finite numbers, got 1 NaN"):
        ja.evaluate_masks(small_model, keep, images, labels, np.where(np.arange(27) == 3, np.nan, 0))
    with raises_input_error(r"fill: expected shape \(27\)"):
        ja.evaluate_masks(small_model, keep, images, labels, np.zeros(10))
    with raises_input_error("images: expected examples of 784 pixels, which the network takes, got 756 in"):
        ja.evaluate_masks(small_model, keep, images[:, 1:], labels)
    with raises_input_error("labels: expected values in 0..9, got 1..10"):
        ja.evaluate_masks(small_model, keep, images, labels + 1)
    with raises_input_error(r"labels: expected shape \(203\)"):
        ja.evaluate_masks(small_model, keep, images, labels[1:])
    broken = np.array(images)
    broken[7, 0, 0] = np.nan
    with raises_input_error("outputs: NaN or infinite numbers under 1 of 2 masks, the first at mask 1"):
        everything = np.array([[False] * 10 + [True] * 17, [True] * 27])
        ja.evaluate_masks(small_model, everything, broken, labels)
    order = np.arange(27)[None]
    with raises_input_error("steps: 80 neurons to ablate are more than the 27 of an order; choose at most 27"):
        ja.cumulative_ablation(small_model, order, images, labels)
    with raises_input_error("steps: expected at least 1, got 0"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=0)
    with raises_input_error("steps: 30 neurons to ablate are more than the 27 of an order; choose at most 27"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=range(3, 31, 3))
    for steps in ((2, 2), (3, 1), ()):
        with raises_input_error("steps: expected a number, or numbers of ablated neurons in increasing order, got"):
            ja.cumulative_ablation(small_model, order, images, labels, steps=steps)
    with raises_input_error("steps: expected an integer, got 2.0"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=2.0)
    with raises_input_error("steps: expected an integer, got '2'"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=("2",))
    with raises_input_error("memory_limit: expected an integer, got 1000000.0"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=1, memory_limit=1e6)
    with raises_input_error(r"orders: shape \(1, 0\) holds no neuron; give at least one"):
        ja.cumulative_ablation(small_model, order[:, :0], images, labels, steps=1)
    with raises_input_error("model: expected networks, at place 1 got int; ja.from_pytorch reads networks of PyTorch"):
        ja.cumulative_ablation([small_model, 3], order, images, labels, steps=1)
    with raises_input_error("model: expected a network or several, got NoneType; ja.from_pytorch reads networks of"):
        ja.cumulative_ablation(None, order, images, labels, steps=1)
    with raises_input_error("steps: expected at least 1, got 0"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=(0, 1))
    with raises_input_error("engine: unknown 'magic'; choose one of auto, vmap, incremental"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=1, engine="magic")
    with raises_input_error("memory_limit: 10 bytes are less than the [0-9]+ that one example takes"):
        ja.cumulative_ablation(small_model, order, images, labels, steps=1, memory_limit=10)
    for engine in ENGINES:
        with raises_input_error("outputs: NaN or infinite numbers under [0-9]+ of [0-9]+"):
            ja.cumulative_ablation(small_model, order, broken, labels, steps=3, engine=engine)
    with raises_input_error("orders: neuron 1 is twice in one order; name each neuron once"):
        ja.cumulative_ablation(small_model, np.array([[1, 1]]), images, labels, steps=1)
    with raises_input_error("orders: neuron 27 is not in the network, whose 27 neurons are 0..26"):
        ja.cumulative_ablation(small_model, order + 1, images, labels, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_counts_without_compilation_are_the_same(scope):
    """JAX_DISABLE_JIT runs the loops of the engines in Python, over NumPy arrays."""
    random = np.random.default_rng(0)
    images, labels = random.random((40, 6), np.float32), random.integers(0, 3, 40)
    model = ja.MLP(6, (4, 3), 3, rngs=nnx.Rngs(0))
    orders = np.array([[3, 0, 1], [0, 2, 3]] if scope == "layer" else [[3, 5, 0, 6], [4, 0, 6, 1]])
    steps, fill = orders.shape[1], np.linspace(-0.5, 0.5, 7).astype(np.float32)
    for engine in ("vmap", "incremental"):
        arguments = (model, orders, images, labels, fill)
        expected = np.asarray(ja.cumulative_ablation(*arguments, steps=steps, engine=engine))
        jax.config.update("jax_disable_jit", True)  # in all threads, unlike jax.disable_jit()
        try:
            counts = ja.cumulative_ablation(*arguments, steps=steps, engine=engine)
        finally:
            jax.config.update("jax_disable_jit", False)
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("engine", [*ENGINES, "certified"])
def test_counts_with_64_bits_are_the_same(engine):
    random = np.random.default_rng(0)
    images, labels = random.random((40, 6), np.float32), random.integers(0, 3, 40)
    model = ja.MLP(6, (4, 3), 3, rngs=nnx.Rngs(0))
    arguments = (model, np.array([[3, 5, 0, 6], [4, 0, 6, 1]]), images, labels)
    expected = np.asarray(ja.cumulative_ablation(*arguments, steps=4, engine=engine))
    jax.config.update("jax_enable_x64", True)  # in all threads, unlike jax.enable_x64()
    try:
        counts = ja.cumulative_ablation(*arguments, steps=4, engine=engine)
    finally:
        jax.config.update("jax_enable_x64", False)
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("hidden", [(6,), (12, 8)])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("engine", [*ENGINES, "certified", "auto"])
def test_exact_ties_of_networks_without_biases(engine, activation, hidden):
    """If all kept outputs of a layer are 0, all logits are 0, and the first class wins, at whatever chunk and order."""
    random = np.random.default_rng(4)
    model = ja.MLP(12, hidden, 3, activation=activation, rngs=nnx.Rngs(0))
    for stage in model.stages:
        stage.linear.kernel[...] = random.normal(0, 0.5, stage.linear.kernel.shape)
        stage.linear.bias[...] = 0
    images, labels = random.normal(size=(200, 12)).astype(np.float32), random.integers(0, 3, 200).astype(np.int32)
    if engine == "certified" and len(hidden) == 1:
        pytest.skip("the engine follows chains of two layers or more")
    num_ties, limits = 0, [None, 20_000] if activation == "relu" else [20_000, None]
    for neurons, limit in zip((np.arange(hidden[0]), np.arange(sum(hidden))), limits, strict=True):
        orders = np.stack([random.permutation(neurons) for _ in range(4)])
        masks = ja.orders.masks_of_orders(orders, sum(hidden), len(neurons))
        expected = []
        for keep in masks:
            logits = logits64(model, images, keep)
            num_ties += int((logits == 0).all(axis=1).sum())
            expected.append(int((logits.argmax(axis=1) == labels).sum()))
        counts = ja.cumulative_ablation(
            model, orders, images, labels, steps=len(neurons), engine=engine, memory_limit=limit
        )
        np.testing.assert_array_equal(np.ravel(counts), expected)
    assert num_ties > 200


def _convolve(p, h):
    z = jax.lax.conv_general_dilated(
        h, p["w"][:6].reshape(2, 5, 6), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jax.nn.relu(z).reshape(len(h), -1) @ p["v"]


def _normalize(p, h):
    z = h.reshape(len(h), -1) @ p["w"]
    return z / jnp.sqrt((z**2).mean(1, keepdims=True) + 1e-12)


# From the outputs [example, position, unit] of a hidden layer to logits; "columns" and "pruned" read one position.
HEADS = {
    "flattened": lambda p, h: h.reshape(len(h), -1) @ p["w"],
    "averaged": lambda p, h: h.mean(1) @ p["w"][:5],
    "convolution": _convolve,
    "columns": lambda p, h: (p["w"][:5].T @ h[:, 0].T).T,
    "several axes": lambda p, h: jnp.einsum("npu,puc->nc", h, p["w"].reshape(4, 5, 10)),
    "normalized": _normalize,
    "pruned": lambda p, h: h[:, 0] @ p["w"][:5],
    "sparse": lambda p, h: h[:, 0] @ p["w"][:5],
}


@pytest.mark.parametrize("head", HEADS)
def test_exact_ties_behind_other_operations(head):
    """As above, for linear maps that read a site through other operations, and for units without weights."""
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(200, 4, 6)).astype(np.float32), random.integers(0, 10, 200)
    shapes = {"first": (6, 5), "w": (20, 10), "v": (18, 10)}
    params = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if head == "pruned":
        params["w"][:2] = 0
    if head == "sparse":  # the units that are left last reach two of the classes, and take them below the others
        params["w"][:5] = 0
        params["w"][:2, 5:7] = -1
        params["w"][2:5] = -np.abs(random.normal(size=(3, 10)))

    def network(p, x, keep=np.ones(5, bool)):  # noqa: B008
        return HEADS[head](p, ja.tag(jax.nn.relu(x @ p["first"]), "hidden") * keep)

    model = ja.from_function(lambda p, x: network(p, x), params, images)
    orders = np.array([[0, 3, 4, 2, 1], [4, 2, 3, 1, 0]])
    masks = ja.orders.masks_of_orders(orders, 5, 5)
    logits = np.stack([network(params, images, keep) for keep in masks])
    expected = (logits.argmax(-1) == labels).sum(-1)
    ties = (logits == 0).all(-1)
    if head == "sparse":  # of some classes only
        ties = (logits == logits.max(-1, keepdims=True)).sum(-1) > 1
    assert ties.sum() > 400, "examples whose largest logits are equal"
    for limit in (None, 50_000):
        counts = ja.cumulative_ablation(
            model, orders, images, labels, steps=5, engine="incremental", memory_limit=limit
        )
        np.testing.assert_array_equal(np.ravel(counts), expected)


@pytest.mark.parametrize("weights", ["infinite", "large"])
def test_weights_that_the_network_computes(weights):
    """What a linear map reads may be larger than the parameters, even infinite."""
    random = np.random.default_rng(3)
    images, labels = random.normal(size=(300, 6)).astype(np.float32), random.integers(0, 4, 300)
    params = {"first": random.normal(size=(6, 5)), "w": random.dirichlet(np.ones(4) / 2, 5)}
    params = {name: array.astype(np.float32) for name, array in params.items()}
    params["w"][params["w"] < 0.1] = 0
    if weights == "large":
        params["w"][1:] /= 1e6

    fill = np.full(5, 0 if weights == "large" else 0.5, np.float32)

    def network(p, x, keep=None):
        h = ja.tag(jax.nn.sigmoid(x @ p["first"]), "hidden")
        h = h if keep is None else jnp.where(keep, h, fill)
        return h @ (p["w"] * 1e6) if weights == "large" else jnp.nan_to_num(h @ jnp.log(p["w"]), nan=0, neginf=-50)

    model = ja.from_function(network, params, images)
    orders = np.arange(5)[None]
    masks = ja.orders.masks_of_orders(orders, 5, 5)
    expected = [(network(params, images, keep).argmax(-1) == labels).sum() for keep in masks]
    counts = ja.cumulative_ablation(model, orders, images, labels, fill, steps=5, engine="incremental")
    np.testing.assert_array_equal(counts[0], expected)


@pytest.mark.parametrize("engine", ["vmap", "incremental"])
@pytest.mark.parametrize("name", ["zero", "linear"])
def test_a_unit_that_is_nan_does_no_harm_once_it_is_ablated(engine, name):
    """The network guards against NaN behind the linear map, so its outputs are finite."""
    random = np.random.default_rng(0)
    validation = np.abs(random.normal(size=(400, 6))).astype(np.float32)
    images = random.normal(size=(100, 6)).astype(np.float32)
    images[:30, 3], labels = 0, random.integers(0, 3, 100)
    params = [random.normal(size=shape).astype(np.float32) for shape in ((6, 5), (5, 8), (8, 3))]

    def hidden(p, x):
        return jnp.tanh(jnp.asarray(x @ p[0]).at[:, 2].add(x[:, 3] / jnp.abs(x[:, 3])))  # 0 / 0

    def rest(p, h):
        return jnp.tanh(jnp.nan_to_num(h @ p[1])) @ p[2]

    model = ja.from_function(lambda p, x: rest(p, ja.tag(hidden(p, x), "hidden")), params, images)
    fill = ja.compute_fill(model, name, validation)
    outputs, means = (np.asarray(hidden(params, x), np.float64) for x in (images, validation))
    centered, mean = means - means.mean(0), means.mean(0)
    covariance, expected = centered.T @ centered / len(means), []
    for removed in ([], [2], [2, 0], [2, 0, 1], [2, 0, 1, 4]):
        kept, values = np.setdiff1d(np.arange(5), removed), outputs.copy()
        values[:, removed] = 0
        if name == "linear" and removed:
            ridge = fill.ridge * np.trace(covariance) / 5 * np.eye(len(kept))
            weights = np.linalg.solve(covariance[np.ix_(kept, kept)] + ridge, covariance[np.ix_(kept, removed)])
            values[:, removed] = mean[removed] + (outputs[:, kept] - mean[kept]) @ weights
        expected.append((rest(params, values).argmax(1) == labels).sum())
    order = np.array([[2, 0, 1, 4, 3]])
    counts = ja.cumulative_ablation(model, order, images, labels, fill, steps=4, engine=engine)
    np.testing.assert_array_equal(counts[0], expected)
    assert ja.single_ablation(model, images, labels, fill)[2] == expected[1]


@pytest.mark.parametrize("engine", ["vmap", "incremental", "auto"])
def test_zero_times_infinity_is_refused(engine):
    """The intact network is finite, since the sigmoid of infinity is 1."""
    random = np.random.default_rng(1)
    params = [random.normal(size=shape).astype(np.float32) for shape in ((10, 6), (6, 7), (7, 4))]
    params[1][2, 3] = np.inf
    images = random.normal(size=(200, 10)).astype(np.float32)

    def network(p, x):
        return jax.nn.sigmoid(jax.nn.sigmoid(x @ p[0]) @ p[1]) @ p[2]

    model = ja.from_function(network, params, images, sites="0")
    with raises_input_error("outputs: NaN or infinite numbers under 1 of 7 steps, the first at order 0, step 6"):
        ja.cumulative_ablation(
            model, np.array([[0, 1, 3, 4, 5, 2]]), images, np.zeros(200, int), steps=6, engine=engine
        )


@pytest.mark.parametrize("fill", ["mean", "linear"])
def test_an_axis_of_one_head(fill):
    """Units along two axes, one of size 1, which the result of the linear map keeps; as first and as deeper level."""
    random = np.random.default_rng(0)
    shapes = {"first": (6, 6), "query": (6, 1, 5), "out": (5, 4)}
    params = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    images, labels = random.normal(size=(60, 3, 6)).astype(np.float32), random.integers(0, 4, 60)

    def network(p, x):
        x = ja.tag(jax.nn.relu(x @ p["first"]), "first")
        heads = ja.tag(jax.nn.relu(jnp.einsum("ntd,dhk->nthk", x, p["query"])), "heads", axis=(-2, -1))
        return jnp.einsum("nthk,kc->nthc", heads, p["out"]).sum((1, 2))

    model = ja.from_function(network, params, images)
    values = ja.compute_fill(model, fill, images, labels)
    for neurons in (np.arange(11), np.arange(6, 11)):
        order = random.permutation(neurons)[None]
        masks = ja.orders.masks_of_orders(order, 11, len(neurons))
        counts = ja.cumulative_ablation(model, order, images, labels, values, steps=len(neurons), engine="incremental")
        np.testing.assert_array_equal(counts[0], ja.evaluate_masks(model, masks, images, labels, values))
