"""Pruning: the smaller network has the outputs of the masked one; what cannot be folded is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from helpers import first_quick, logits64, raises_input_error, random_masks
from networks import KINDS, SITES, cnn_chain, flatten, masked_logits
from test_sites import ResidualSequential

import jaxablate as ja
from jaxablate.models._model import trace_model


@pytest.fixture(scope="module")
def images(mnist5k):
    return mnist5k.test.images[:40]


def test_a_pruned_mlp_puts_out_what_the_masked_one_does(small_model, images):
    fill = np.linspace(-0.5, 1, 27).astype(np.float32)
    for keep in random_masks(0, 6, 27) | np.eye(27, dtype=bool)[[0, 10, 18]].any(axis=0):
        small = ja.prune(small_model, keep, fill)
        assert small.hidden == (keep[:10].sum(), keep[10:18].sum(), keep[18:].sum())
        np.testing.assert_allclose(small(images), logits64(small_model, images, keep, fill), atol=1e-5)
        np.testing.assert_allclose(ja.prune(small_model, keep)(images), logits64(small_model, images, keep), atol=1e-5)
    whole = ja.prune(small_model, np.ones(27, bool), fill)
    np.testing.assert_array_equal(whole(images), small_model(images))


@pytest.mark.parametrize(
    ("kind", "keep", "padding"),
    [("cnn_chain", [0, 2, 3, 5, 8, 9, 11, 14], "VALID"), ("cnn_chain", [4, 6, 10], "VALID"),
     ("cnn_chain", [0, 2, 3, 5, 8, 9, 11, 14], "SAME")],
)  # fmt: skip
def test_a_pruned_cnn_puts_out_what_the_masked_one_does(kind, keep, padding, images):
    """Channels before a convolution with pooling between, before a flattened linear map, and neurons; batch norm goes
    along. With padding only zeros can be folded before the second convolution."""
    model = cnn_chain(padding=padding)
    kept = np.isin(np.arange(15), keep)
    fill = np.linspace(-0.3, 0.9, 15).astype(np.float32)
    if padding == "SAME":
        with raises_input_error(
            "site 'conv1': a fill other than 0 cannot be folded into the bias of a convolution with padding"
        ):
            ja.prune(model, kept, fill, images=images)
        fill[:5] = 0
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    small = ja.prune(model, kept, fill, images=images)
    np.testing.assert_allclose(small(images), masked_logits(model, kind, kept, fill, images), atol=1e-5)
    network, _, _ = trace_model(small, images)
    assert network.sizes == tuple(np.add.reduceat(kept, [0, 5, 9]))
    assert network.sites == tuple(SITES[kind])
    for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)  # the network itself stays whole
    assert ja.pruning.count_parameters(small) < ja.pruning.count_parameters(model)
    assert ja.pruning.count_flops(small, images) < ja.pruning.count_flops(model, images)


def test_parameters_and_operations_of_an_mlp():
    model = ja.MLP(784, (200, 100), 10, rngs=nnx.Rngs(0))
    weights = 784 * 200 + 200 * 100 + 100 * 10
    assert ja.pruning.count_parameters(model) == weights + 200 + 100 + 10
    flops = ja.pruning.count_flops(model, np.zeros((3, 28, 28), np.float32))
    assert 2 * weights <= flops <= 2 * weights + 10 * 310


def keep_all(_, values):
    return values


class LinenResidual(nn.Module):
    """Two pre-norm residual blocks, whose widths are fixed in the code."""

    widths: tuple[int, ...] = (9, 7)

    @nn.compact
    def __call__(self, x, edit=keep_all):
        h = nn.Dense(12)(x.reshape(len(x), -1))
        for i, width in enumerate(self.widths):
            hidden = edit(i, nn.gelu(nn.Dense(width, name=f"up{i}")(nn.LayerNorm()(h))))
            h = h + nn.Dense(12, name=f"down{i}")(hidden)
        return nn.Dense(10)(nn.LayerNorm()(h))


def linen_residual():
    params = LinenResidual().init(jax.random.key(0), IMAGES)
    model = ja.from_function(LinenResidual().apply, params, IMAGES)
    return model, (9, 7), partial(LinenResidual().apply, params), lambda widths: LinenResidual(widths).apply


def haiku_mlp():
    hk = pytest.importorskip("haiku")

    def apply_of(widths):
        mlp = hk.transform(lambda x: hk.nets.MLP([*widths, 10], name="mlp", activation=jnp.tanh)(hk.Flatten()(x)))
        return hk.without_apply_rng(mlp)

    params = apply_of((9, 7)).init(jax.random.key(0), IMAGES)

    def by_hand(x, edit):
        h = x.reshape(len(x), -1)
        for i in range(3):
            layer = params[f"mlp/~/linear_{i}"]
            h = h @ layer["w"] + layer["b"]
            h = edit(i, jnp.tanh(h)) if i < 2 else h
        return h

    return ja.from_function(apply_of((9, 7)).apply, params, IMAGES), (9, 7), by_hand, lambda w: apply_of(w).apply


def equinox_cnn():
    """Batch norm before and after the activation, pooling, and flattening; channels come first."""
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {
        "conv1": eqx.nn.Conv2d(1, 5, 3, 2, key=keys[0]),
        "norm": [eqx.nn.BatchNorm(5, axis_name="batch", mode="batch", inference=True) for _ in range(2)],
        "conv2": eqx.nn.Conv2d(5, 4, 3, key=keys[1]),
        "after": eqx.nn.BatchNorm(4, axis_name="batch", mode="batch", inference=True),
        "head": eqx.nn.Linear(4 * 5 * 5, 10, key=keys[2]),
    }
    state = eqx.nn.State(layers)
    leaves, structure = jax.tree.flatten((layers, state))
    shift = lambda i, leaf: leaf + jnp.linspace(0.1, 0.7, leaf.size, dtype=leaf.dtype).reshape(leaf.shape)  # noqa: E731
    leaves = [shift(i, leaf) if eqx.is_inexact_array(leaf) and leaf.size < 6 else leaf for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(structure, leaves)

    def network(params, x, edit=keep_all):
        layers, state = params
        norm = lambda layer, h: jax.vmap(lambda maps: layer(maps, state)[0])(h)  # noqa: E731
        h = norm(layers["norm"][0], jax.vmap(lambda image: layers["conv1"](image[None]))(x))
        h = norm(layers["norm"][1], edit(0, jax.nn.relu(h)))
        h = norm(layers["after"], jax.vmap(layers["conv2"])(h))
        pool = eqx.nn.AvgPool2d(2, 2)
        return jax.vmap(lambda h: layers["head"](pool(h).ravel()))(edit(1, jax.nn.sigmoid(h)))

    return ja.from_function(network, params, IMAGES), (5, 4), partial(network, params), None


RANDOM = np.random.default_rng(0)
WEIGHTS = {
    name: RANDOM.normal(0, 0.2, shape).astype(np.float32)
    for name, shape in {"embed": (784, 12), "gate": (12, 9), "up": (12, 9), "down": (9, 12), "b": (12,), "w": (7, 12),
                        "down2": (12, 7), "c": (12,), "head": (12, 10)}.items()
}  # fmt: skip


def gated_residual(w, x, edit=keep_all, xp=jnp):
    """A gated block with two linear maps before its site, then a block with weights [output, input]."""
    sigmoid = lambda z: 1 / (1 + xp.exp(-z))  # noqa: E731
    h = x.reshape(len(x), -1) @ w["embed"]
    h = h + edit(0, sigmoid(h @ w["gate"]) * (h @ w["up"])) @ w["down"] + w["b"]
    h = h + edit(1, xp.tanh(h @ w["w"].T)) @ w["down2"].T + w["c"]
    return h @ w["head"]


def plain_function():
    weights = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    by_hand = partial(gated_residual, weights, xp=np)
    return ja.from_function(gated_residual, WEIGHTS, IMAGES), (9, 7), by_hand, None


IMAGES = np.zeros((2, 28, 28), np.float32)
FUNCTIONS = {f.__name__: f for f in (plain_function, linen_residual, haiku_mlp, equinox_cnn)}


@pytest.mark.parametrize("name", first_quick(FUNCTIONS, 2))
def test_a_pruned_function_puts_out_what_the_masked_one_does(name, images):
    """Functions of every framework. For the plain one the masks are applied in float64 NumPy."""
    model, sizes, by_hand, apply_of = FUNCTIONS[name]()
    num_units, splits = sum(sizes), np.cumsum(sizes)[:-1]
    random = np.random.default_rng(1)
    keep, fill = random.random(num_units) < 0.6, random.normal(size=num_units).astype(np.float32)
    keep[[0, sizes[0]]] = True
    keeps, fills = np.split(keep, splits), np.split(fill, splits)
    on_axis = 1 if name == "equinox_cnn" else -1

    def edit(i, h):
        places = [1] * h.ndim
        places[on_axis] = -1
        masked = keeps[i].reshape(places), fills[i].reshape(places)
        return np.where(masked[0], h, masked[1]) if isinstance(h, np.ndarray) else jnp.where(masked[0], h, masked[1])

    widths = tuple(int(kept.sum()) for kept in keeps)
    apply = None if apply_of is None else apply_of(widths)
    small = ja.prune(model, keep, fill, images=images, apply=apply)
    expected = np.asarray(by_hand(images.astype(np.float64) if name == "plain_function" else images, edit=edit))
    np.testing.assert_allclose(small(images), expected, atol=1e-5 * np.abs(expected).max())
    assert small.spec.sizes == widths
    assert small.spec.sites == model.spec.sites
    assert jax.tree.structure(small.params) == jax.tree.structure(model.params)
    np.testing.assert_array_equal((apply or by_hand.func)(small.params, images), small(images))
    assert ja.pruning.count_parameters(small) < ja.pruning.count_parameters(model)
    if apply_of is not None:
        with raises_input_error("model: it does not take the smaller parameters .* pass apply="):
            ja.prune(model, keep, fill, images=images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "tokens"])
def test_a_pruned_module_that_is_no_chain(kind, images):
    model = KINDS[kind]()
    num_units = sum(SITES[kind].values())
    keep, fill = np.arange(num_units) % 3 > 0, np.linspace(-1, 1, num_units).astype(np.float32)
    small = ja.prune(model, keep, fill, images=images)
    expected = masked_logits(model, kind, keep, fill, images)
    np.testing.assert_allclose(small(images), expected, atol=1e-5 * np.abs(expected).max())
    assert type(small) is type(model)
    whole = ja.from_module(model, images)
    of_model = ja.prune(whole, keep, fill, images=images)
    np.testing.assert_array_equal(of_model(images), small(images))
    assert ja.pruning.count_parameters(of_model.params) == ja.pruning.count_parameters(small)
    first = small.up[0] if kind == "residual" else small.up
    assert first.kernel.shape == (first.in_features, first.out_features)


def test_layers_without_bias_get_one_only_for_a_fill(images):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        flatten,
        nnx.Linear(784, 6, use_bias=False, rngs=rngs),
        nnx.BatchNorm(6, use_running_average=True, rngs=rngs),
        nnx.relu,
        nnx.Linear(6, 5, use_bias=False, rngs=rngs),
        nnx.tanh,
        nnx.Linear(5, 10, use_bias=False, rngs=rngs),
    )
    keep = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1], bool)
    for fill, has_bias in ((0, [False, False, False]), (0.5, [False, True, False])):
        fills = np.full(11, fill, np.float32)
        small = ja.prune(model, keep, fills, images=images)
        layers = [layer for layer in small.layers if isinstance(layer, nnx.Linear)]
        assert [layer.bias is not None for layer in layers] == has_bias == [layer.use_bias for layer in layers]
        assert (layers[0].out_features, layers[1].in_features, small.layers[2].num_features) == (4, 4, 4)
        hidden = np.where(keep[:6], nnx.relu(model.layers[2](model.layers[1](flatten(images)))), fill)
        expected = model.layers[6](nnx.tanh(model.layers[4](jnp.asarray(hidden, jnp.float32))))
        np.testing.assert_allclose(small(images), expected, atol=1e-6)


def test_a_fill_joins_the_mean_of_a_batch_norm(images):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        flatten,
        nnx.Linear(784, 6, rngs=rngs),
        nnx.relu,
        nnx.Linear(6, 5, use_bias=False, rngs=rngs),
        nnx.BatchNorm(5, use_running_average=True, rngs=rngs),
        nnx.tanh,
        nnx.Linear(5, 10, rngs=rngs),
    )
    params = nnx.split(model)
    function = ja.from_function(lambda state, x: nnx.merge(params[0], state)(x), params[1], images)
    small = ja.prune(function, np.arange(11) > 2, np.ones(11, np.float32), images=images)
    hidden = nnx.relu(model.layers[1](flatten(images))).at[:, :3].set(1)
    expected = model.layers[6](nnx.tanh(model.layers[4](model.layers[3](hidden))))
    np.testing.assert_allclose(small(images), expected, atol=1e-6)


def test_parameters_of_16_bits(images):
    """The bias takes the fill in 16 bits, so the outputs differ by more than in float32."""
    first, second = (nnx.Linear(n, m, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(n)) for n, m in ((784, 9), (9, 10)))
    model = nnx.Sequential(flatten, first, nnx.gelu, second)
    keep = np.arange(9) % 3 > 0
    small = ja.prune(model, keep, np.full(9, 0.4, np.float32), images=images)
    assert small.layers[3].bias.dtype == jnp.bfloat16
    expected = second(jnp.where(keep, nnx.gelu(first(flatten(images))), 0.4))
    np.testing.assert_allclose(small(images), expected, atol=0.01)


def function_of(apply, images, *shapes, sites=None):
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.2, shape).astype(np.float32) for shape in shapes]
    return ja.from_function(lambda w, x: apply(w, flatten(x)), weights, images, sites=sites)


def normalised(h):
    return h / (1 + jnp.abs(h).mean(axis=-1, keepdims=True))


def gate_from_before(w, x):
    z = x @ w[0]
    return (jax.nn.relu(z) @ w[1] + z) @ w[2]


def residual_of_the_site(w, x):
    h = jax.nn.relu(x @ w[0])
    return (h + jnp.tanh(h @ w[1])) @ w[2]


def several_heads(w, x):
    return jnp.tanh(jnp.einsum("np,phd->nhd", x, w[0])).reshape(len(x), 6) @ w[1].reshape(6, 10)


THREE = (784, 6), (6, 6), (6, 10)
TWO = (784, 6), (6, 10)
REFUSED = {
    "skip around the site": (
        gate_from_before, THREE, r"site '0': add at test_pruning.py:\d+ also reads a value from before the site",
    ),
    "residual": (
        residual_of_the_site, THREE, r"site '0': add at test_pruning.py:\d+ also reads it and is no linear map",
    ),
    "weights used twice": (
        lambda w, x: jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) @ w[1] @ w[2], THREE,
        r"site '0': dot_general at test_pruning.py:\d+ also reads a parameter of its units",
    ),
    "norm before": (
        lambda w, x: jax.nn.relu(normalised(x @ w[0])) @ w[1], TWO,
        r"site '0': abs at test_pruning.py:\d+ also reads a value from before the site",
    ),
    "norm after": (
        lambda w, x: normalised(ja.tag(jax.nn.relu(x @ w[0]), "s")) @ w[1], TWO,
        r"site 's': .* at test_pruning.py:\d+ also reads it and is no linear map",
    ),
    "output": (lambda w, x: ja.tag(jnp.tanh(x @ w[0]), "s"), TWO[:1], "site 's': it is a part of the outputs"),
    "captured": (
        lambda w, x: jnp.tanh(x @ w[0] * np.arange(6.0, dtype=np.float32)) @ w[1], TWO,
        "site '0': the model captures an array with a number for each unit; pass it in params",
    ),
    "numbered": (
        lambda w, x: jnp.tanh(x @ w[0] * jnp.arange(w[0].shape[1])) @ w[1], TWO,
        r"site '0': iota at test_pruning.py:\d+ cannot be cut into units",
    ),
    "width": (
        lambda w, x: jnp.tanh(x @ w[0]) / w[0].shape[1] @ w[1], TWO,
        "model: outputs of the pruned network differ by .* depends on the number of units",
    ),
    "fixed size": (
        lambda w, x: jnp.tanh(x @ w[0]).reshape(-1, 6) @ w[1], TWO,
        "model: it does not take the smaller parameters .cannot reshape",
    ),
    "heads": (
        several_heads, ((784, 2, 3), (2, 3, 10)), "site '0': its removed units are no whole slices of parameter '0'"
    ),
    "groups": (
        lambda w, x: jnp.einsum("nhd,hdc->nhc", jnp.tanh(x @ w[0]).reshape(-1, 2, 3), w[1]).sum(axis=1),
        ((784, 6), (2, 3, 10)), r"site '0': dot_general at test_pruning.py:\d+ reads it in groups or batches",
    ),
    "same units": (
        lambda w, x: ja.tag(2 * ja.tag(jnp.tanh(x @ w[0]), "a"), "b") @ w[1], TWO,
        "site 'b': it has the same units as an earlier site; prune one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_cannot_be_pruned(name, images):
    apply, shapes, message = REFUSED[name]
    model = function_of(apply, images, *shapes)
    with raises_input_error(message):
        ja.prune(model, np.arange(model.spec.num_neurons) % 6 > 1, images=images)


def test_what_cannot_be_pruned(small_model, images):
    rngs = nnx.Rngs(0)
    keep = np.arange(6) < 3

    def chain_of(*between, behind=()):
        return nnx.Sequential(flatten, nnx.Linear(784, 6, rngs=rngs), *between, ja.Site("s"), *behind,
                        nnx.Linear(6, 10, rngs=rngs))  # fmt: skip

    with raises_input_error("keep: no neuron of site 'layer2' is kept; keep one or more of each site"):
        ja.prune(small_model, np.isin(np.arange(27), [0, 20]))
    with raises_input_error(r"keep: expected shape \(27\) = \[neuron\], got \(26,\)"):
        ja.prune(small_model, np.ones(26, bool))
    with raises_input_error("keep: expected booleans"):
        ja.prune(small_model, np.ones(27))
    with raises_input_error("fill: expected finite numbers"):
        ja.prune(small_model, np.ones(27, bool), np.full(27, np.nan, np.float32))
    with raises_input_error("fill: expected numbers .neuron., the same for every example, or a linear fill, got PerEx"):
        ja.prune(small_model, np.ones(27, bool), ja.fills.PerExampleFill(()))
    with raises_input_error("images: expected an example of what the model takes, got none"):
        ja.prune(chain_of(nnx.relu), keep)
    with raises_input_error("apply: expected None for a Flax NNX module"):
        ja.prune(small_model, np.ones(27, bool), apply=small_model)
    with raises_input_error("model: expected a Flax NNX module or a model, got function"):
        ja.prune(flatten, keep, images=images)
    for mixing in (nnx.LayerNorm(6, rngs=rngs), nnx.softmax, ResidualSequential(nnx.Linear(6, 6, rngs=rngs))):
        with raises_input_error("site 's': .* also reads a value from before the site"):
            ja.prune(chain_of(mixing), keep, images=images)
    for mixing in (nnx.LayerNorm(6, rngs=rngs), lambda h: jnp.cumsum(h, axis=1)):
        with raises_input_error("site 's': .* also reads it and is no linear map"):
            ja.prune(chain_of(nnx.relu, behind=[mixing]), keep, images=images)
    twice = nnx.Linear(6, 6, rngs=rngs)
    with raises_input_error("site 's': dot_general.* also reads a parameter of its units"):
        ja.prune(chain_of(twice, nnx.relu, twice), keep, images=images)
    grouped = nnx.Sequential(lambda x: x[..., None], nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.relu,
                             nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=rngs), nnx.relu,
                             lambda maps: maps.mean(axis=(1, 2)), nnx.Linear(6, 10, rngs=rngs))  # fmt: skip
    with raises_input_error("site 'layers/1': conv_general_dilated.* reads it in groups or batches"):
        ja.prune(grouped, np.arange(10) != 1, images=images)
    with raises_input_error("site 'layers/3': conv_general_dilated.* cannot be cut into units"):
        ja.prune(grouped, np.arange(10) != 5, images=images)
    model = function_of(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], images, *TWO)
    with raises_input_error(r"site '0': no bias is added to the result of dot_general at test_pruning.py:\d+"):
        ja.prune(model, keep, np.ones(6, np.float32), images=images)
    with raises_input_error("site 'input': it is computed without a linear map"):
        whole = function_of(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], images, *TWO, sites="input")
        ja.prune(whole, np.arange(784) > 3, images=images)
    assert ja.pruning.count_parameters(model) == 784 * 6 + 60


def test_parameters_of_a_function_are_those_that_it_reads():
    """Running statistics, and the state of an optimizer in a `TrainState`, are no parameters."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images):
            hidden = nn.BatchNorm(use_running_average=True)(nn.Dense(16)(images))
            return nn.Dense(3)(nn.relu(hidden))

    images, network = np.ones((2, 7), np.float32), Network()
    variables = network.init(jax.random.key(0), images)
    trainable = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert trainable == 7 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    moments = optax.adam(1e-3).init(variables["params"])
    state = {**variables, "opt_state": moments, "step": jnp.zeros((), jnp.int32)}

    def apply(state, images):
        return network.apply({name: state[name] for name in ("params", "batch_stats")}, images)

    for function, params in ((network.apply, variables), (apply, state)):
        assert ja.pruning.count_parameters(ja.from_function(function, params, images)) == trainable
    module = nnx.Sequential(nnx.Linear(7, 16, rngs=nnx.Rngs(0)), nnx.BatchNorm(16, rngs=nnx.Rngs(0)), nnx.relu,
                            nnx.Linear(16, 3, rngs=nnx.Rngs(0)))  # fmt: skip
    for model in (module, ja.from_module(module, images)):
        assert ja.pruning.count_parameters(model) == trainable


@pytest.mark.slow
def test_training_on_after_pruning(small_model, mnist5k):
    small = ja.prune(small_model, np.arange(27) % 2 == 0)
    tuned, history = ja.train(mnist5k, start=small, epochs=1)
    assert tuned.hidden == small.hidden
    assert history.loss.shape == (1,)
    first, _ = ja.train(mnist5k, small.hidden, epochs=1)
    assert history.validation_loss[0] < first_loss(mnist5k, first)
    with raises_input_error("start: expected a network of 784 pixels and 10 classes, got 784 and 9"):
        ja.train(mnist5k, start=ja.MLP(784, (5,), 9, rngs=nnx.Rngs(0)), epochs=1)


def first_loss(data, model) -> float:
    keep = np.ones((1, sum(model.hidden)), bool)
    return float(ja.evaluate_masks(model, keep, data.validation.images, data.validation.labels, outcomes="loss")[0])
