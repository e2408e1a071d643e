"""Models of any framework, unedited: counts against the same network with each mask applied by hand."""

import functools
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import TIE, first_quick, raises_input_error, random_masks

import jaxablate as ja

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:60], mnist5k.test.labels[:60]


def keep_all(_, values):
    return values


class LinenResidual(nn.Module):
    """Two pre-norm residual blocks. `edit(i, hidden)` is how the reference masks; the tested network has no edit."""

    edit: object = keep_all

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(12)(x.reshape(len(x), -1))
        for i, width in enumerate((9, 7)):
            hidden = nn.gelu(nn.Dense(width, name=f"up{i}")(nn.LayerNorm()(h)))
            h = h + nn.Dense(12, name=f"down{i}")(self.edit(i, hidden))
        return nn.Dense(10)(nn.LayerNorm()(h))


def linen_residual():
    params = LinenResidual().init(jax.random.key(0), np.zeros((2, 28, 28), np.float32))
    tested = ja.from_function(LinenResidual().apply, params, np.zeros((2, 28, 28), np.float32))
    return tested, {"up0": 9, "up1": 7}, lambda edit, x: LinenResidual(edit).apply(params, x)


def equinox_mlp():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(784, 10, 8, 2, key=jax.random.key(0))

    def by_hand(edit, x):
        h = x.reshape(len(x), -1)
        for i, layer in enumerate(mlp.layers[:-1]):
            h = edit(i, jax.nn.relu(jax.vmap(layer)(h)))
        return jax.vmap(mlp.layers[-1])(h)

    tested = ja.from_function(
        lambda mlp, x: jax.vmap(mlp)(x.reshape(len(x), -1)), mlp, np.zeros((2, 28, 28), np.float32)
    )
    return tested, {"layers/0": 8, "layers/1": 8}, by_hand


def equinox_cnn():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {
        "conv1": eqx.nn.Conv2d(1, 4, 3, 2, key=keys[0]),
        "conv2": eqx.nn.Conv2d(4, 3, 3, key=keys[1]),
        "head": eqx.nn.Linear(3 * 5 * 5, 10, key=keys[2]),
    }
    pool = eqx.nn.MaxPool2d(2, 2)

    def network(layers, x, edit=keep_all):
        h = edit(0, jax.vmap(lambda image: jax.nn.relu(layers["conv1"](image[None])))(x))
        h = edit(1, jax.vmap(lambda h: jax.nn.sigmoid(layers["conv2"](h)))(h))
        return jax.vmap(lambda h: layers["head"](pool(h).ravel()))(h)

    tested = ja.from_function(network, layers, np.zeros((2, 28, 28), np.float32))
    return tested, {"conv1": 4, "conv2": 3}, lambda edit, x: network(layers, x, edit), 1


def haiku_mlp():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([9, 7, 10], name="mlp")(hk.Flatten()(x))))
    params = network.init(jax.random.key(0), np.zeros((2, 28, 28), np.float32))

    def by_hand(edit, x):
        h = x.reshape(len(x), -1)
        for i in range(3):
            layer = params[f"mlp/~/linear_{i}"]
            h = h @ layer["w"] + layer["b"]
            h = edit(i, jax.nn.relu(h)) if i < 2 else h
        return h

    tested = ja.from_function(network.apply, params, np.zeros((2, 28, 28), np.float32))
    return tested, {"mlp/~/linear_0": 9, "mlp/~/linear_1": 7}, by_hand


class Transformer(nnx.Module):
    """A pre-norm block over the rows of an image; dropout and batch norm in evaluation mode, and a sown value."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Linear(28, 8, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, dropout_rate=0.1, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 11, rngs=rngs), nnx.Linear(11, 8, rngs=rngs)
        self.dropout, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images, edit=keep_all):
        x = self.embed(images)
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(self.dropout(edit(0, nnx.silu(self.up(self.norms[1](x))))))
        return self.head(self.norm(x).mean(axis=1))


def nnx_transformer():
    model = Transformer()
    in_evaluation = nnx.clone(model)
    in_evaluation.eval()
    return model, {"up": 11}, lambda edit, x: in_evaluation(x, edit)


def plain_lambda():
    weights = [RNG.normal(0, 0.1, shape).astype(np.float32) for shape in ((784, 9), (9, 7), (7, 10))]
    tested = ja.from_function(
        lambda w, x: jnp.tanh(jax.nn.relu(x.reshape(len(x), -1) @ w[0]) @ w[1]) @ w[2],
        weights,
        np.zeros((2, 28, 28), np.float32),
    )

    def by_hand(edit, x):
        h = edit(0, np.maximum(x.reshape(len(x), -1) @ weights[0], 0))
        return edit(1, np.tanh(h @ weights[1])) @ weights[2]

    return tested, {"0": 9, "1": 7}, by_hand


NETWORKS = {f.__name__: f for f in (linen_residual, nnx_transformer, plain_lambda, equinox_mlp, equinox_cnn, haiku_mlp)}


@pytest.mark.parametrize("name", first_quick(NETWORKS, 2))
def test_an_unedited_network_counts_as_masked_by_hand(name, examples):
    model, sites, by_hand, *unit_axis = NETWORKS[name]()
    images, labels = examples
    assert {site: ids.size for site, ids in ja.models.site_neurons(model, images).items()} == sites
    num_neurons, ends = sum(sites.values()), np.cumsum(list(sites.values()))[:-1]
    fill = np.linspace(-0.5, 0.5, num_neurons).astype(np.float32)
    orders = np.asarray(ja.random_orders(num_neurons, 2, key=jax.random.key(0)))
    masks = np.concatenate([random_masks(0, 6, num_neurons), ja.orders.masks_of_orders(orders, num_neurons, 5)])
    expected, margins = [], []
    for keep in masks:
        parts = list(zip(np.split(keep, ends), np.split(fill, ends), strict=True))

        def edit(site, values, parts=parts):
            axis = unit_axis[0] if unit_axis else values.ndim - 1
            shape = [-1 if a == axis else 1 for a in range(values.ndim)]
            return jnp.where(parts[site][0].reshape(shape), values, parts[site][1].reshape(shape))

        with jax.default_matmul_precision("highest"):
            logits = np.asarray(by_hand(edit, images))
        second, first = np.sort(logits, axis=1)[:, -2:].T
        expected.append(int((logits.argmax(axis=1) == labels).sum()))
        margins.append(int((first - second < TIE).sum()))
    assert len(set(expected)) > 1
    counts = np.asarray(ja.evaluate_masks(model, masks[:6], images, labels, fill)).tolist()
    assert all(abs(a - b) <= tie for a, b, tie in zip(counts, expected, margins, strict=False))
    for engine in ("vmap", "incremental"):
        curves = ja.cumulative_ablation(model, orders, images, labels, fill, steps=5, engine=engine)
        rest = zip(np.asarray(curves).ravel().tolist(), expected[6:], margins[6:], strict=True)
        assert all(abs(a - b) <= tie for a, b, tie in rest)


def small(function, *shapes, **options):
    """A model of a function of these weights, for images of 4 numbers."""
    weights = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)]
    return ja.from_function(function, weights, np.zeros((2, 4), np.float32), **options)


def kinds(model):
    return {site.name: site.kind for site in model.sites}


def test_values_of_images_and_of_a_linear_map_are_hidden_units():
    """A residual block without an embedding adds the images themselves; its units are those of the linear map."""
    examples, tokens = (RNG.normal(size=shape).astype(np.float32) for shape in ((6, 4), (6, 5, 4)))
    w = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 4), (4, 3))]

    def block(w, x):
        return jax.nn.relu(x + x @ w[0]) @ w[1]

    def gate(w, x):
        return (x * jax.nn.sigmoid(x @ w[0])) @ w[1]

    def stream(w, x):
        return ((x + jax.nn.relu(x @ w[0])) @ w[1]).mean(1)

    assert kinds(ja.from_function(block, w, examples)) == {"input": "input", "0": "units"}
    assert kinds(ja.from_function(gate, w, examples)) == {"input": "input", "0": "units"}
    model = ja.from_function(stream, w, tokens, sites=lambda site: site.kind == "stream")
    assert dict(zip(model.spec.sites, model.spec.sizes, strict=True)) == {"0": 4}
    blocks = ja.from_function(block, w, examples)
    labels = np.arange(6) % 3
    for unit, loss in enumerate(ja.single_ablation(blocks, examples, labels, outcomes="loss")):
        hidden = np.maximum(examples + examples @ w[0], 0) * (np.arange(4) != unit)
        logits = hidden @ w[1]
        expected = (np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]).mean()
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_table_of_sites_and_the_choice_among_them():
    def network(w, x):
        h = jax.nn.relu(x @ w[0])
        return (h + jnp.tanh(h @ w[1]) @ w[2]) @ w[3]

    shapes = (4, 6), (6, 5), (5, 6), (6, 3)
    model = small(network, *shapes)
    assert kinds(model) == {"input": "input", "0": "units", "1": "units", "2": "stream"}
    assert model.spec.sites == ("0", "1")
    lines = str(model.sites).splitlines()
    assert lines[0].split() == ["name", "kind", "shape", "made", "by", "read", "by", "where"]
    assert lines[2].split()[:5] == ["*", "0", "units", "6", "relu"]
    assert lines[2].split()[-1].startswith("test_functions.py:")
    assert lines[4].split()[:4] == ["2", "stream", "6", "add"]
    assert small(network, *shapes, sites="2").spec.sites == ("2",)
    assert small(network, *shapes, sites=["input", "[01]"]).spec.sites == ("input", "0", "1")
    assert small(network, *shapes, sites=lambda site: site.kind == "stream").spec.sites == ("2",)
    with raises_input_error(r"sites: no site matches 'hidden'; found 'input' \(input\), '0' \(units\), '1'"):
        small(network, *shapes, sites="hidden")


def test_ablating_an_input_or_a_stream_is_replacing_it():
    def network(w, x):
        h = x @ w[0]
        return (h + jax.nn.relu(h) @ w[1]) @ w[2]

    x = RNG.random((7, 4), np.float32)
    y = np.arange(7, dtype=np.int32) % 3
    w = [
        np.random.default_rng(i).normal(size=shape).astype(np.float32)
        for i, shape in enumerate(((4, 6), (6, 6), (6, 3)))
    ]
    for site, size in (("input", 4), ("1", 6)):
        model = small(network, (4, 6), (6, 6), (6, 3), sites=site)
        losses = ja.single_ablation(model, x, y, outcomes="loss")
        for unit in range(size):
            kept = np.arange(size) != unit
            h = (x * kept if site == "input" else x) @ w[0]
            h = h + np.maximum(h, 0) @ w[1]
            h = h if site == "input" else h * kept
            expected = -jax.nn.log_softmax(h @ w[2])[np.arange(7), y].mean()
            np.testing.assert_allclose(losses[unit], expected, atol=1e-5)


def test_tags_choose_what_is_ablated_and_along_which_axes():
    """Attention heads as units: one axis of [example, token, head, feature]."""

    def network(w, x):
        heads = jnp.einsum("nt,thd->nthd", x, w[0])
        heads = ja.tag(jax.nn.relu(heads), "heads", axis=-2)
        return jnp.einsum("nthd,hdc->nc", heads, w[1])

    x = RNG.random((7, 4), np.float32)
    y = np.arange(7, dtype=np.int32) % 3
    model = small(network, (4, 3, 2), (3, 2, 3))
    (site,) = [site for site in model.sites if site.name in model.spec.sites]
    assert (site.kind, site.size, site.output.shape) == ("tag", 3, (4, 2, 3))
    weights = model.state
    losses = ja.single_ablation(model, x, y, outcomes="loss")
    for head in range(3):
        heads = np.maximum(np.einsum("nt,thd->nthd", x, weights[0]), 0)
        heads[:, :, head] = 0
        logits = np.einsum("nthd,hdc->nc", heads, weights[1])
        expected = -jax.nn.log_softmax(logits)[np.arange(7), y].mean()
        np.testing.assert_allclose(losses[head], expected, atol=1e-5)
    both = small(
        lambda w, x: ja.tag(jax.nn.relu(jnp.einsum("nt,thd->nthd", x, w[0])), "all", axis=(-2, -1)).sum((1, 2)) @ w[1],
        (4, 3, 2), (2, 3),
    )  # fmt: skip
    assert both.spec.sizes == (6,)


def test_feature_first_networks_and_merged_axes():
    """The axis of examples last, and tokens merged with examples: activations come out as [example, unit]."""
    first = small(lambda w, x: (w[1] @ jnp.tanh(w[0] @ x.T)).T, (5, 4), (3, 5))
    x = RNG.random((7, 4), np.float32)
    np.testing.assert_allclose(ja.record_activations(first, x)[0], np.tanh(x @ np.asarray(first.state[0]).T), atol=1e-6)
    merged = small(lambda w, x: (jnp.tanh(x.reshape(-1, 2) @ w[0]) @ w[1]).reshape(len(x), 2, 3).sum(1), (2, 5), (5, 3))
    expected = np.tanh(x.reshape(7, 2, 2) @ np.asarray(merged.state[0]))
    np.testing.assert_allclose(ja.record_activations(merged, x)[0], expected.mean(axis=1), atol=1e-6)
    y = np.arange(7, dtype=np.int32) % 3
    for model in (first, merged):
        fill = ja.compute_fill(model, "resample", x, key=jax.random.key(0))
        order = np.arange(5)[None]
        curves = [
            ja.cumulative_ablation(model, order, x, y, fill, steps=5, outcomes="loss", engine=engine)
            for engine in ("vmap", "incremental")
        ]
        np.testing.assert_allclose(*curves, atol=1e-5)
        assert np.ptp(curves[0]) > 1e-2


def test_scanned_layers_are_unrolled():
    def network(w, x):
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w[0])[0] @ w[1]

    model = small(network, (3, 4, 4), (4, 2))
    assert model.spec.sites == ("0", "0:2", "0:3")
    x, y = RNG.random((7, 4), np.float32), np.arange(7, dtype=np.int32) % 2
    layers, head = map(np.asarray, model.state)
    losses = ja.single_ablation(model, x, y, outcomes="loss")
    for neuron in range(12):
        h = x
        for i in range(3):
            h = np.tanh(h @ layers[i])
            if neuron // 4 == i:
                h[:, neuron % 4] = 0
        expected = -jax.nn.log_softmax(h @ head)[np.arange(7), y].mean()
        np.testing.assert_allclose(losses[neuron], expected, atol=1e-5)


def rms_norm(h):
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6)


@jax.custom_vjp
def my_tanh(x):
    return jnp.tanh(x)


my_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g,))


def conv(x, kernel, groups=1):
    layout = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=layout, feature_group_count=groups)


def dense_net(w, x):
    first = jax.nn.relu(x @ w[0])
    return jnp.concatenate([first, jax.nn.relu(first @ w[1])], axis=1) @ w[2]


def two_readers(w, x):
    h = jax.nn.relu(x @ w[0])
    return jnp.tanh(h @ w[1]) @ w[2] + h @ w[3]


FOUND = {  # the function, the shapes of its weights, and the sites: operation and units
    "glu": (lambda w, x: jax.nn.glu(x @ w[0]) @ w[1], [(4, 8), (4, 3)], [("glu", 4)]),
    "swiglu": (
        lambda w, x: (jax.nn.silu(x @ w[0]) * (x @ w[1])) @ w[2], [(4, 8), (4, 8), (8, 3)], [("mul", 8)],
    ),
    "where": (lambda w, x: jnp.where(x @ w[0] > 0, x @ w[0], 0.1) @ w[1], [(4, 8), (8, 3)], [("_where", 8)]),
    "transposed": (lambda w, x: jax.nn.relu(x @ w[0].T) @ w[1].T, [(8, 4), (3, 8)], [("relu", 8)]),
    "tied": (
        lambda w, x: jnp.tanh(jax.nn.relu(x @ w[0]) @ w[0].T) @ w[1], [(4, 8), (4, 3)], [("relu", 8), ("tanh", 4)],
    ),
    "low rank": (
        lambda w, x: (lambda h: h @ w[1] + (h @ w[2]) @ w[3])(jax.nn.relu(x @ w[0])),
        [(4, 8), (8, 3), (8, 2), (2, 3)], [("relu", 8)],
    ),
    "normalised before": (lambda w, x: jax.nn.relu(rms_norm(x @ w[0])) @ w[1], [(4, 8), (8, 3)], [("relu", 8)]),
    "normalised after": (lambda w, x: jnp.tanh(rms_norm(jax.nn.relu(x @ w[0])) @ w[1]) @ w[2],
                         [(4, 8), (8, 5), (5, 3)], [("tanh", 5)]),
    "dense net": (dense_net, [(4, 8), (8, 4), (12, 3)], [("relu", 8), ("relu", 4)]),
    "two readers": (two_readers, [(4, 8), (8, 5), (5, 3), (8, 3)], [("relu", 8), ("tanh", 5)]),
    "under jit": (jax.jit(lambda w, x: jnp.exp(x @ w[0]) @ w[1]), [(4, 8), (8, 3)], [("exp", 8)]),
    "under remat": (
        lambda w, x: jax.checkpoint(lambda x: jnp.sin(x @ w[0]) @ w[1])(x), [(4, 8), (8, 3)], [("sin", 8)],
    ),
    "under vmap": (lambda w, x: jax.vmap(lambda x: jnp.tanh(w[0] @ x) @ w[1])(x), [(8, 4), (8, 3)], [("tanh", 8)]),
    "own derivative": (lambda w, x: my_tanh(x @ w[0]) @ w[1], [(4, 8), (8, 3)], [("my_tanh", 8)]),
    "grouped convolution": (
        lambda w, x: jax.nn.relu(conv(jnp.tanh(conv(x[:, :, None], w[0])), w[1], groups=5)).mean(1) @ w[2],
        [(3, 1, 5), (3, 1, 5), (5, 3)], [("tanh", 5), ("relu", 5)],
    ),
    "low precision": (
        lambda w, x: jax.nn.relu(x.astype(jnp.bfloat16) @ w[0].astype(jnp.bfloat16)).astype(jnp.float32) @ w[1],
        [(4, 8), (8, 3)], [("relu", 8)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FOUND))
def test_sites_of_many_constructions(name):
    network, shapes, sites = FOUND[name]
    model = small(network, *shapes)
    assert [(site.made_by, site.size) for site in model.sites if site.name in model.spec.sites] == sites
    x, y = RNG.random((9, 4), np.float32), np.arange(9, dtype=np.int32) % 3
    n = model.spec.num_neurons
    losses = ja.evaluate_masks(model, np.stack([np.ones(n, bool), np.arange(n) != 0]), x, y, outcomes="loss")
    expected = -jax.nn.log_softmax(model(x))[np.arange(9), y].mean()
    np.testing.assert_allclose(losses[0], expected, atol=1e-5)
    assert losses[0] != losses[1]


MOVES = {  # functions of values [example, 8] that move their numbers or replace some of them
    "tile": lambda h: jnp.tile(h, (1, 2)),
    "stack": lambda h: jnp.stack([h, h], axis=1).reshape(len(h), -1),
    "unstack": lambda h: jnp.unstack(jnp.stack([h, h], axis=2), axis=2)[1],
    "device_put": jax.device_put,
    "set": lambda h: h.at[:, 0].set(0.0),
    "add at": lambda h: h.at[:, jnp.array([0, 2])].add(1.0),
    "multiply at": lambda h: h.at[:, 1].multiply(2.0),
    "update": lambda h: jax.lax.dynamic_update_slice(h, jnp.ones((len(h), 2), h.dtype), (0, 3)),
}


@pytest.mark.parametrize("name", list(MOVES))
def test_moved_numbers_keep_their_kind_and_units(name):
    width = 16 if name in ("tile", "stack") else 8
    shapes = (4, 8), (width, 3)
    linear = small(lambda w, x: MOVES[name](x @ w[0]) @ w[1], *shapes, sites="*")
    assert [(site.kind, site.size) for site in linear.sites] == [("input", 4), ("linear", 8)]
    model = small(lambda w, x: MOVES[name](jnp.tanh(x @ w[0])) @ w[1], *shapes)
    masks, x, y = random_masks(0, 4, 8), RNG.random((9, 4), np.float32), np.arange(9, dtype=np.int32) % 3
    got = ja.evaluate_masks(model, masks, x, y, outcomes="loss")
    replaces = name in ("set", "add at", "multiply at", "update")  # then the units are the values after it
    assert [site.kind for site in model.sites] == ["input", "units"]
    for keep, loss in zip(masks, got, strict=True):
        h = jnp.tanh(x @ model.params[0])
        z = (MOVES[name](h) * keep if replaces else MOVES[name](h * keep)) @ model.params[1]
        np.testing.assert_allclose(loss, -jax.nn.log_softmax(z)[np.arange(9), y].mean(), atol=1e-5)
    if not replaces:
        pruned = ja.prune(model, masks[0], images=x)
        np.testing.assert_allclose(pruned(x), MOVES[name](h * masks[0]) @ model.params[1], atol=1e-5)


NOT_FOUND = {
    "maxout": (
        lambda w, x: (x @ w[0]).reshape(len(x), 4, 2).max(-1) @ w[1], [(4, 8), (4, 3)],
        "model: it has no sites of kind 'units' .found 'input' .input., '0' .linear..; choose others with sites=",
    ),
    "the largest values": (
        lambda w, x: jax.lax.top_k(jax.nn.relu(x @ w[0]), 3)[0] @ w[1], [(4, 8), (3, 3)],
        "model: it has no sites of kind 'units' .found 'input' .input., '0' .sorted..",
    ),
    "a branch": (
        lambda w, x: jax.lax.cond(w[2][0] > 0, lambda h: h, lambda h: jnp.tanh(h @ w[1]), x @ w[0]) @ w[1],
        [(4, 8), (8, 8), (1,)], "model: a linear map is inside a cond at test_functions.py:[0-9]+, where no site",
    ),
    "one example at a time": (
        lambda w, x: jax.lax.map(lambda x: jnp.tanh(x @ w[0]) @ w[1], x), [(4, 8), (8, 3)],
        "model: a linear map is inside a scan at test_functions.py:[0-9]+, .* or use jax.vmap for loops over examples",
    ),
    "batch statistics": (
        lambda w, x: jax.nn.relu(x @ w[0] - (x @ w[0]).mean(0)) @ w[1], [(4, 8), (8, 3)],
        "model: a number at test_functions.py:[0-9]+ depends on the number of examples, .*; switch batch",
    ),
    "dropout": (
        lambda w, x: (x @ w[0] * jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 8))) @ w[1], [(4, 8), (8, 3)],
        "model: it draws random numbers at test_functions.py:[0-9]+; switch dropout off",
    ),
    "a neighbour": (
        lambda w, x: jnp.roll(jnp.tanh(x @ w[0]), 1, axis=0) @ w[1], [(4, 8), (8, 3)],
        "model: its outputs for one example depend on another example; .* keep examples apart",
    ),
    "only the next example": (
        lambda w, x: (lambda h: jnp.concatenate([h[1:], h[-1:]]))(jnp.tanh(x @ w[0])) @ w[1], [(4, 8), (8, 3)],
        "model: its outputs for one example depend on another example; .* keep examples apart",
    ),
    "a comparison over the batch": (
        lambda w, x: (lambda h: jnp.tanh(h + (h > 4).any()))(x @ w[0]) @ w[1], [(4, 8), (8, 3)],
        "model: its outputs for one example depend on another example; .* keep examples apart",
    ),
    "captured values of the batch": (
        lambda w, x: jnp.tanh(x @ w[0]) @ w[1] * np.full(3, 1 / len(x), np.float32), [(4, 8), (8, 3)],
        "model: it captures an array whose values depend on the number of examples; compute it from the images",
    ),
    "a captured array of rows": (
        lambda w, x: jnp.tanh(x @ w[0]) @ w[1] + np.zeros((len(x), 3), np.float32), [(4, 8), (8, 3)],
        "model: it captures an array whose shape depends on the number of examples; compute it from the images",
    ),
    "sites of a number": (
        lambda w, x: jnp.tanh(x @ w[0]) @ w[1], [(4, 8), (8, 3)], "sites: expected names, a function or None, got 5",
    ),
    "more operations for more examples": (
        lambda w, x: jnp.tanh(sum(x @ w[0] for _ in x)) @ w[1], [(4, 8), (8, 3)],
        "model: for 5 examples it computes other operations than for 2 .12 and 6 operations, the first difference at",
    ),
    "a tag that nothing uses": (
        lambda w, x: (ja.tag(jnp.tanh(x @ w[0]), "a"), jnp.tanh(x @ w[0]) @ w[1])[1], [(4, 8), (8, 3)],
        "tag 'a': no output depends on the tagged value; use what ja.tag returns",
    ),
    "no array": (lambda w, x: None, [(4, 8)], "model: it returns no array; return logits"),
    "an error": (lambda w, x: x @ w[0], [(3, 8)], "model: for 2 images of shape .4,. it raises TypeError"),
    "NumPy inside": (
        lambda w, x: np.maximum(np.asarray(x @ w[0]), 0) @ w[1], [(4, 8), (8, 3)],
        "it raises TracerArrayConversionError: .*; let it compute by jax.numpy what NumPy computes",
    ),
    "no function": (3, [(4, 8)], "apply: expected a function of .params, images., got int"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NOT_FOUND))
def test_what_cannot_be_ablated_says_why(name):
    network, shapes, sentence = NOT_FOUND[name]
    with raises_input_error(sentence):
        small(network, *shapes, **({"sites": 5} if name == "sites of a number" else {}))


def test_a_module_in_training_mode_within_a_function():
    rngs = nnx.Rngs(0)
    linear = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
    module = nnx.Sequential(linear[0], nnx.BatchNorm(5, rngs=rngs), nnx.relu, linear[1])
    with raises_input_error(r"put its modules into evaluation mode by .eval\(\), or pass the module itself"):
        ja.from_function(lambda _, x: module(x), {}, EXAMPLES[0])
    module.eval()
    assert ja.from_function(lambda _, x: module(x), {}, EXAMPLES[0])(EXAMPLES[0]).shape == (40, 3)


EXAMPLES = np.random.default_rng(5).random((40, 4), np.float32), np.arange(40, dtype=np.int32) % 3


def loss_of(logits):
    return -jax.nn.log_softmax(logits)[np.arange(40), EXAMPLES[1]].mean()


@pytest.mark.parametrize("mix", [jax.nn.log_softmax, jax.jit(lambda h: h * jax.nn.sigmoid(h.sum(-1, keepdims=True)))])
def test_functions_that_mix_units_are_not_updated_unit_by_unit(mix):
    """A site read by a linear map directly, and through a function of all units that stays one operation."""
    model = small(lambda w, x: (lambda h: h @ w[1] + mix(h) @ w[1])(jax.nn.relu(x @ w[0])), (4, 6), (6, 3))
    w = list(map(np.asarray, model.state))
    for engine in ("vmap", "incremental"):
        losses = ja.cumulative_ablation(model, np.arange(6)[None], *EXAMPLES, steps=6, outcomes="loss", engine=engine)
        for step in range(7):
            h = np.maximum(EXAMPLES[0] @ w[0], 0) * (np.arange(6) >= step)
            np.testing.assert_allclose(losses[0, step], loss_of(h @ w[1] + mix(h) @ w[1]), atol=1e-5)


def test_arrays_captured_by_a_jitted_function_are_not_shared():
    def make(seed):
        captured = np.random.default_rng(seed).normal(size=6).astype(np.float32)
        act = jax.jit(lambda z: jnp.tanh(z * captured))
        return captured, small(lambda w, x: act(x @ w[0]) @ w[1], (4, 6), (6, 3))

    for seed in (0, 1):
        captured, model = make(seed)
        w = list(map(np.asarray, model.state))
        expected = loss_of(np.tanh(EXAMPLES[0] @ w[0] * captured) @ w[1])
        got = ja.evaluate_masks(model, np.ones((1, 6), bool), *EXAMPLES, outcomes="loss")
        np.testing.assert_allclose(got[0], expected, atol=1e-5)


@pytest.mark.parametrize("place", ["parameters", "constants"])
def test_a_model_keeps_the_weights_that_it_was_made_with(place):
    def aligned(*shape):
        """JAX shares the memory of arrays that start at a multiple of 64 bytes."""
        memory = np.empty(4 * np.prod(shape) + 64, np.uint8)
        start = -memory.ctypes.data % 64
        array = memory[start : start + 4 * np.prod(shape)].view(np.float32).reshape(shape)
        array[:] = np.random.default_rng(0).normal(size=shape)
        return array

    weights = {"w": aligned(6, 8), "v": aligned(8, 3)}
    images, labels = aligned(20, 6), np.arange(20) % 3

    def apply(params, x):
        chosen = weights if place == "constants" else params
        return jax.nn.relu(x @ chosen["w"]) @ chosen["v"]

    model = ja.from_function(apply, {} if place == "constants" else weights, images)
    before = np.array(ja.single_ablation(model, images, labels, outcomes="loss"))
    for array in weights.values():
        array *= 3  # trained further
    np.testing.assert_array_equal(ja.single_ablation(model, images, labels, outcomes="loss"), before)


def test_greedy_removal_over_sites_that_are_linear_maps():
    """A removed unit of a linear map stays removed when the map is updated."""
    model = small(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1] @ w[2], (4, 6), (6, 5), (5, 3), sites=["0", "1"])
    fill, w = np.ones(11, np.float32), list(map(np.asarray, model.state))
    greedy = ja.ablation.greedy_order(model, *EXAMPLES, fill, outcome="loss")
    keep = np.ones(11, bool)
    for neuron, loss in zip(np.asarray(greedy.order), np.asarray(greedy.outcome)[1:], strict=True):
        keep[neuron] = False
        h = np.where(keep[:6], np.maximum(EXAMPLES[0] @ w[0], 0), 1)
        np.testing.assert_allclose(loss, loss_of(np.where(keep[6:], h @ w[1], 1) @ w[2]), atol=1e-5)


def test_fills_by_class_with_outcomes_of_your_own():
    model = small(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], (4, 6), (6, 3))
    fill = ja.compute_fill(model, "class_mean", *EXAMPLES)
    mine = {"mine": lambda out, labels: out[:, 0]}
    alone = ja.single_ablation(model, *EXAMPLES, fill, outcomes=mine)
    both = ja.single_ablation(model, *EXAMPLES, fill, outcomes={**mine, "correct": "correct"})
    np.testing.assert_array_equal(alone["mine"], both["mine"])
    with raises_input_error("fill: a fill for each class needs integer labels .example., got float32 of shape"):
        ja.single_ablation(model, EXAMPLES[0], EXAMPLES[0][:, 0], fill, outcomes=mine)


def test_sums_of_low_precision_outputs_keep_their_digits():
    def network(w, x):
        return jnp.tanh(x @ w[0]) @ w[1]

    x, y = np.tile(EXAMPLES[0], (250, 1)), np.tile(EXAMPLES[1], 250)
    low = small(lambda w, x: network(w, x).astype(jnp.bfloat16), (4, 6), (6, 3))
    outcomes = {"loss": "loss", "mine": lambda out, labels: out[:, 0]}
    masks = np.ones((1, 6), bool)
    got, expected = (
        ja.evaluate_masks(model, masks, x, y, outcomes=outcomes, memory_limit=10_000)
        for model in (low, small(network, (4, 6), (6, 3)))
    )
    for name in outcomes:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-2)


def test_tags_under_vmap_count_axes_of_one_example():
    """`vmap` may put the examples last."""
    model = small(
        lambda w, x: jax.vmap(
            lambda z: jnp.einsum("hd,hdc->c", ja.tag(jax.nn.relu(jnp.tensordot(w[0], z, 1)), "heads", axis=-2), w[1])
        )(x),
        (2, 3, 4), (2, 3, 3),
    )  # fmt: skip
    assert model.spec.sizes == (2,)
    w = list(map(np.asarray, model.state))
    losses = ja.single_ablation(model, *EXAMPLES, outcomes="loss")
    for head in range(2):
        heads = np.maximum(np.einsum("hdp,np->nhd", w[0], EXAMPLES[0]), 0)
        heads[:, head] = 0
        np.testing.assert_allclose(losses[head], loss_of(np.einsum("nhd,hdc->nc", heads, w[1])), atol=1e-5)


def test_one_example_of_a_network_that_broadcasts():
    def network(w, x):
        token = jnp.broadcast_to(w[2], (len(x), 1, 6))
        tokens = jnp.concatenate([token, jnp.tanh(x @ w[0])[:, None]], axis=1)
        return jax.nn.relu(tokens @ w[3]).mean(1) @ w[1]

    model = small(network, (4, 6), (5, 3), (6,), (6, 5))
    for number in (1, 2, 3):
        images, labels = EXAMPLES[0][:number], EXAMPLES[1][:number]
        got = ja.evaluate_masks(model, np.ones((1, 11), bool), images, labels, outcomes="loss")
        expected = -jax.nn.log_softmax(model(images))[np.arange(number), labels].mean()
        np.testing.assert_allclose(got[0], expected, atol=1e-5)
        assert [h.shape for h in ja.record_activations(model, images)] == [(number, 6), (number, 5)]


def test_weight_norms_of_feature_first_networks():
    model = small(lambda w, x: jax.vmap(lambda z: w[1] @ jax.nn.relu(w[0] @ z))(x), (6, 4), (3, 6))
    evidence = ja.scores.Evidence(model, *EXAMPLES, 3)
    w = list(map(np.asarray, model.state))
    np.testing.assert_allclose(evidence.incoming_norm, np.linalg.norm(w[0], axis=1), rtol=1e-6)
    np.testing.assert_allclose(evidence.outgoing_norm, np.linalg.norm(w[1], axis=0), rtol=1e-6)


def test_programs_grow_linearly_with_the_number_of_sites():
    from jaxablate.ablation import _incremental

    sizes = []
    for number in (3, 6):
        shapes = [(4, 6), *[(6, 6)] * (number - 1), (6, 3)]
        model = small(lambda w, x: [x := jnp.tanh(x @ layer) for layer in w[:-1]][-1] @ w[-1], *shapes)
        arguments = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_incremental._engine, "single_device", lambda *a, kept=arguments: kept.append(a) or 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ja.cumulative_ablation(model, np.arange(6 * number)[None], *EXAMPLES, steps=5, engine="incremental")
        program = jax.make_jaxpr(_incremental._engine.function, static_argnums=0)(*arguments[0])
        sizes.append(str(program).count("dot_general"))
    assert sizes[1] <= 3 * sizes[0]


def test_a_tag_outside_of_a_loop_makes_it_usable():
    def network(w, x):
        h = ja.tag(jnp.tanh(x @ w[0]), "before")
        return jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w[1]), h) @ w[2]

    model = small(network, (4, 5), (5, 5), (5, 3))
    x, y = RNG.random((9, 4), np.float32), np.arange(9, dtype=np.int32) % 3
    losses = ja.single_ablation(model, x, y, outcomes="loss")
    w = list(map(np.asarray, model.state))
    for neuron in range(5):
        h = np.tanh(x @ w[0]) * (np.arange(5) != neuron)
        h = np.tanh(np.tanh(h @ w[1]) @ w[1])
        np.testing.assert_allclose(losses[neuron], -jax.nn.log_softmax(h @ w[2])[np.arange(9), y].mean(), atol=1e-5)


def test_several_networks_of_one_function():
    """Functions defined again, and captured weights, are one architecture if they compute the same."""

    def make(seed):
        captured = jnp.asarray(np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32))
        params = {"head": np.random.default_rng(seed + 9).normal(size=(5, 3)).astype(np.float32)}
        return ja.from_function(lambda p, x: jnp.tanh(x @ captured) @ p["head"], params, np.zeros((2, 4), np.float32))

    models = [make(seed) for seed in range(3)]
    x, y = RNG.random((40, 4), np.float32), np.arange(40, dtype=np.int32) % 3
    masks = np.stack([random_masks(seed, 4, 5) for seed in range(3)])
    together = ja.evaluate_masks(models, masks, x, y, outcomes="loss")
    for model, keep, losses in zip(models, masks, together, strict=True):
        np.testing.assert_array_equal(losses, ja.evaluate_masks(model, keep, x, y, outcomes="loss"))
    assert len(np.unique(np.asarray(together).round(6))) > 6
    relu = small(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], (4, 5), (5, 3))
    with raises_input_error("model: expected networks of one architecture, got sites .*, or different .* operations"):
        ja.evaluate_masks([models[0], relu], masks[:2], x, y)


def squared_error(outputs, labels):
    return ((outputs - labels) ** 2).sum(axis=-1)


def test_outcomes_of_your_own(examples):
    """Regression, counts of one logit, several outputs and a loss per token, each against NumPy, by both engines."""
    x = RNG.random((50, 4), np.float32)
    targets = RNG.random((50, 2), np.float32)
    binary = (x.sum(axis=1) > 2).astype(np.int32)
    tokens = RNG.integers(0, 3, (50, 5)).astype(np.int32)
    cases = {
        "regression": (
            lambda w, x: jnp.tanh(x @ w[0]) @ w[1], [(4, 6), (6, 2)], targets,
            squared_error, lambda out, labels: ((out - labels) ** 2).sum(-1).mean(),
        ),
        "one logit": (
            lambda w, x: (jnp.tanh(x @ w[0]) @ w[1])[:, 0], [(4, 6), (6, 1)], binary,
            # with all units ablated the output is 0 up to rounding, so 0 would be no safe threshold
            lambda out, labels: (out > 0.01) == (labels == 1),
            lambda out, labels: ((out > 0.01) == (labels == 1)).sum(),
        ),
        "several outputs": (
            lambda w, x: {"a": jnp.tanh(x @ w[0]) @ w[1], "b": x @ w[2]}, [(4, 6), (6, 2), (4, 1)], targets,
            lambda out, labels: squared_error(out["a"] * out["b"], labels),
            lambda out, labels: ((out["a"] * out["b"] - labels) ** 2).sum(-1).mean(),
        ),
        "loss per token": (
            lambda w, x: jnp.einsum("nu,utc->ntc", jnp.tanh(x @ w[0]), w[1]), [(4, 6), (6, 5, 3)], tokens,
            lambda out, labels: -jnp.take_along_axis(jax.nn.log_softmax(out), labels[..., None], -1).mean((1, 2)),
            lambda out, labels: -np.take_along_axis(np.asarray(jax.nn.log_softmax(out)), labels[..., None], -1).mean(),
        ),
    }  # fmt: skip
    for name, (network, shapes, labels, outcome, by_hand) in cases.items():
        model = small(network, *shapes)
        order = np.arange(6)[None]
        curves = {
            engine: ja.cumulative_ablation(model, order, x, labels, steps=6, outcomes={"mine": outcome}, engine=engine)
            for engine in ("vmap", "incremental")
        }
        w = list(map(np.asarray, model.state))
        hidden = np.tanh(x @ w[0])
        for step in range(7):
            h = np.where(np.arange(6) < step, 0, hidden).astype(np.float32)
            out = np.einsum("nu,utc->ntc", h, w[1]) if name == "loss per token" else h @ w[1]
            if name == "one logit":
                out = out[:, 0]
            elif name == "several outputs":
                out = {"a": out, "b": x @ w[2]}
            for curve in curves.values():
                np.testing.assert_allclose(curve["mine"][0, step], by_hand(out, labels), rtol=1e-5, err_msg=name)
        assert np.ptp(curves["vmap"]["mine"]) > 1e-3
        assert curves["vmap"]["mine"].dtype == (jnp.int32 if name == "one logit" else jnp.float32)
        no_logits = r"model: expected logits \[example, class\], got"
        with raises_input_error("labels: expected" if name == "regression" else no_logits):
            ja.evaluate_masks(model, np.ones((1, 6), bool), x, labels)


def test_outcomes_of_your_own_beside_built_in_ones(small_model, mnist5k):
    images, labels = mnist5k.test.images[:101], mnist5k.test.labels[:101]
    masks = random_masks(0, 5, 27)
    outcomes = {
        "correct": "correct",
        "mine": lambda out, labels: out.argmax(-1) == labels,
        "mean": lambda out, _: out[:, 0],
    }
    got = ja.evaluate_masks(small_model, masks, images, labels, outcomes=outcomes)
    np.testing.assert_array_equal(got["mine"], got["correct"])
    assert got["mine"].dtype == jnp.int32
    assert got["mean"].dtype == jnp.float32
    mesh = ja.devices.make_mesh(1)
    sharded = ja.evaluate_masks(small_model, masks, images, labels, outcomes=outcomes, mesh=mesh)
    np.testing.assert_array_equal(sharded["mine"], got["mine"])
    for bad, sentence in (
        (
            lambda out, labels: out,
            r"outcome 'bad': expected a number for each example, shape \(2,\) for 2",
        ),
        (lambda out: out, "outcome 'bad': the function raises TypeError: .*takes 1 positional argument"),
        (3, "outcomes: unknown 3; choose one of correct, class_correct"),
    ):
        with raises_input_error(sentence):
            ja.evaluate_masks(small_model, masks, images, labels, outcomes={"bad": bad})


def test_outputs_that_are_probabilities():
    """Refused for the loss unless `outputs` says what they are; then the loss is that of the logits."""

    def logits(w, x):
        return jnp.tanh(x @ w[0]) @ w[1]

    def softmax(w, x):
        return jax.nn.softmax(logits(w, x))

    shapes, masks = ((4, 6), (6, 3)), random_masks(0, 4, 6)
    x, y = RNG.random((50, 4), np.float32), RNG.integers(0, 3, 50).astype(np.int32)
    names = ("loss", "divergence", "correct")
    expected = ja.evaluate_masks(small(logits, *shapes), masks, x, y, outcomes=names)
    given = ja.evaluate_masks(small(softmax, *shapes, outputs="probabilities"), masks, x, y, outcomes=names)
    log_p = small(lambda w, x: jax.nn.log_softmax(logits(w, x)), *shapes)  # log-probabilities are logits
    for name in names:
        np.testing.assert_allclose(given[name], expected[name], atol=1e-5)
        np.testing.assert_allclose(ja.evaluate_masks(log_p, masks, x, y, outcomes=name), expected[name], atol=1e-5)
    sums_to_1 = {
        "softmax": jax.nn.softmax,
        "written out": lambda z: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(z)),
        "clipped softmax": lambda z: jnp.clip(jax.nn.softmax(z), 1e-7, 1 - 1e-7),
        "mean of two": lambda z: jnp.stack([jax.nn.softmax(z), jax.nn.softmax(2 * z)]).mean(0),
    }
    sigmoids = {
        "sigmoid": jax.nn.sigmoid,
        "clipped": lambda z: jnp.clip(jax.nn.sigmoid(z), 1e-7, 1 - 1e-7),
        "written out": lambda z: 1 / (1 + jnp.exp(-z)),
        "by tanh": lambda z: (jnp.tanh(z / 2) + 1) / 2,
        "one for each class": lambda z: jnp.stack([jax.nn.sigmoid(each) for each in z.T], axis=1),
        "side by side": lambda z: jnp.concatenate([jax.nn.sigmoid(z[:, :2]), jax.nn.sigmoid(z[:, 2:])], axis=1),
        "mean of two": lambda z: jnp.stack([jax.nn.sigmoid(z), jax.nn.sigmoid(2 * z)]).mean(0),
        "hard": jax.nn.hard_sigmoid,
    }
    cases = [*((each, "are probabilities, which sum to 1; pass outputs=") for each in sums_to_1.values())]
    cases += [(each, "always lie between 0 and 1, as after a sigmoid; return logits") for each in sigmoids.values()]
    for function, reason in cases:
        model = small(lambda w, x, f=function: f(logits(w, x)), *shapes)
        assert ja.evaluate_masks(model, masks, x, y).shape == (4,)  # the largest output needs no logits
        with raises_input_error(f"outcomes: 'loss' takes logits, but the outputs {reason}"):
            ja.single_ablation(model, x, y, outcomes="loss")
    for function in (jnp.tanh, jax.nn.relu, lambda z: 2 * jax.nn.sigmoid(z), lambda z: -jax.nn.sigmoid(z)):
        model = small(lambda w, x, f=function: f(logits(w, x)), *shapes)
        expected = -jax.nn.log_softmax(model(x))[np.arange(50), y].mean()
        np.testing.assert_allclose(
            ja.evaluate_masks(model, masks[:1] | True, x, y, outcomes="loss"), [expected], atol=1e-5
        )
    with raises_input_error("outputs: unknown 'log'; choose one of logits, probabilities"):
        small(softmax, *shapes, outputs="log")


def test_gradients_keep_the_functions_own_rules():
    """A relu at exactly 0 has the derivative 0, where a maximum has 1/2."""
    equal = np.repeat(np.arange(1, 5, dtype=np.float32)[:, None], 2, axis=1)
    weights = [equal, np.array([[1.0], [-1.0]], np.float32), np.array([[1.0, -1.0]], np.float32)]
    model = ja.from_function(
        lambda w, x: jax.nn.relu(jnp.tanh(x @ w[0]) @ w[1]) @ w[2], weights, np.zeros((2, 4), np.float32)
    )
    x, y = RNG.random((8, 4), np.float32), np.zeros(8, np.int32)
    assert np.abs(ja.scores.Evidence(model, x, y, 2).taylor).max() == 0
    model.state[1] = model.state[1] + 0.5  # the control: now the second site is above 0
    assert np.abs(ja.scores.Evidence(model, x, y, 2).taylor[:2]).min() > 0.01


@pytest.mark.parametrize("in_jit", [False, True])
def test_networks_that_differ_in_a_derivative_rule_alone(in_jit):
    """The same outputs, but another gradient: compiled programs of one network are not used for the other."""
    weights = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 6), (6, 3))]
    x, y = RNG.normal(size=(20, 4)).astype(np.float32), RNG.integers(0, 3, 20)

    def spikes(slope):
        @jax.custom_vjp
        def spike(v):
            return (v > 0).astype(v.dtype)

        spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1 + slope * jnp.abs(v)) ** 2,))
        return jax.jit(spike) if in_jit else spike

    digests = []
    for slope in (1.0, 25.0, jnp.float32(25), 1.0):
        spike = spikes(slope)
        model = ja.from_function(lambda w, x, f=spike: f(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2], weights, x)
        hidden = jax.nn.relu(x @ weights[0])

        def loss(h, label, f=spike):
            return -jax.nn.log_softmax(f(h @ weights[1]) @ weights[2])[label]

        expected = np.abs(hidden * jax.vmap(jax.grad(loss))(hidden, y)).mean(axis=0)
        np.testing.assert_allclose(ja.scores.Evidence(model, x, y, 3).taylor[:6], expected, rtol=1e-5)
        digests.append(model.spec.digest)
    assert digests[0] == digests[3], "the same rule, written again"
    assert len(set(digests[:3])) == 3


RANDOM_FUNCTIONS = {
    "a shift": lambda w, x: jax.nn.relu(jnp.pad(x, ((0, 0), (4, 4)))[:, (k := random.randint(0, 8)) : k + 4] @ w[0]),
    "a flip": lambda w, x: jax.nn.relu((x[:, ::-1] if random.random() < 0.5 else x) @ w[0]),
    "noise": lambda w, x: jax.nn.relu(x * np.random.rand(4).astype(np.float32) @ w[0]),  # noqa: NPY002
    "a choice": lambda w, x: jax.nn.relu(x[:, np.random.permutation(4)] @ w[0]),  # noqa: NPY002
}


@pytest.mark.parametrize("name", RANDOM_FUNCTIONS)
def test_functions_that_draw_numbers_of_python_or_numpy(name):
    weights = [RNG.random((4, 8), np.float32), RNG.random((8, 3), np.float32)]
    x = np.zeros((2, 4), np.float32)
    with raises_input_error("model: the function draws random numbers from Python or NumPy, which are drawn once"):
        ja.from_function(lambda w, x: RANDOM_FUNCTIONS[name](w, x) @ w[1], weights, x)
    # numbers that change nothing are no obstacle: they may be another thread's
    model = ja.from_function(lambda w, x: (random.random(), jax.nn.relu(x @ w[0]) @ w[1])[1], weights, x)
    assert model.spec.num_neurons == 8


BY_PLACE = {
    "a table": lambda w, x: jax.nn.relu(x @ w[0] + w[2][: len(x)]) @ w[1],
    "the first one": lambda w, x: jax.nn.relu((x @ w[0]).at[0].set(1.0)) @ w[1],
    "numbers": lambda w, x: jax.nn.relu(x @ w[0] * jnp.arange(len(x))[:, None]) @ w[1],
}


@pytest.mark.parametrize("name", BY_PLACE)
def test_functions_of_the_place_of_an_example_are_refused(name):
    weights = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 8), (8, 3), (64, 8))]
    with raises_input_error("depend on its place among the examples|depends on the number of examples"):
        model = ja.from_function(BY_PLACE[name], weights, EXAMPLES[0][:2])
        ja.evaluate_masks(model, np.ones((1, 8), bool), *EXAMPLES)


INTEGER_SITES = {
    "bool": lambda w, x: (x @ w[0] > 0).astype(jnp.float32) @ w[1],
    "int": lambda w, x: jnp.where(x @ w[0] > 0, 1, 0) @ w[1],
}


@pytest.mark.parametrize("name", INTEGER_SITES)
def test_fills_that_integers_cannot_hold_are_refused(name):
    """A mean of 0.4 would become True or 0."""
    random, (x, y) = np.random.default_rng(1), EXAMPLES
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 3))]
    model = ja.from_function(INTEGER_SITES[name], weights, x[:2])
    keep, zeros = np.arange(6) > 1, np.zeros(6, np.float32)
    mean = np.asarray(ja.mean_activations(model, x))
    hidden = (x.astype(np.float64) @ weights[0] > 0).astype(np.float64)

    def expected(fill):
        return int(((np.where(keep, hidden, fill) @ weights[1]).argmax(1) == y).sum())

    assert ja.evaluate_masks(model, keep[None], x, y).item() == expected(0)
    ones = np.ones(6, np.float32)
    assert ja.evaluate_masks(model, keep[None], x, y, ones).item() == expected(1)
    assert expected(0) != expected(1)
    linear = ja.compute_fill(model, "linear", np.tile(x, (2, 1)))  # 10 examples for each neuron
    for fill in (mean, ja.fills.AffineFill(zeros, mean), ja.fills.AffineFill(mean, zeros), linear):
        with raises_input_error(f"fill: site .* has the dtype {name}.*, which cannot hold these numbers; convert"):
            ja.evaluate_masks(model, keep[None], x, y, fill)
    for fill in (mean, linear):
        with raises_input_error("fill: site .* which cannot hold these numbers"):
            ja.prune(model, keep, fill, images=x)
    # the remedy
    tagged = ja.from_function(lambda w, x: ja.tag((x @ w[0] > 0).astype(jnp.float32), "h") @ w[1], weights, x[:2])
    assert ja.evaluate_masks(tagged, keep[None], x, y, mean).item() == expected(mean)


@pytest.mark.parametrize("engine", ["vmap", "incremental"])
def test_checks_of_jax_itself_pass(engine):
    x, y = EXAMPLES
    model = small(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], (4, 6), (6, 3))
    expected = ja.cumulative_ablation(model, np.arange(6)[None], x, y, steps=6, engine=engine)
    jax.config.update("jax_enable_checks", True)  # in all threads
    try:
        again = small(lambda w, x: jax.nn.relu(x @ w[0] + 0) @ w[1], (4, 6), (6, 3))
        counts = ja.cumulative_ablation(again, np.arange(6)[None], x, y, steps=6, engine=engine)
    finally:
        jax.config.update("jax_enable_checks", False)
    np.testing.assert_array_equal(counts, expected)


def deep(w, x):
    h = x @ w[0]
    for layer in w[1:-1]:
        h = h + jax.nn.gelu((h - h.mean(-1, keepdims=True)) @ layer) @ layer / 20
    return h @ w[-1]


@pytest.mark.slow
def test_a_hundred_layers_are_traced_once_and_quickly(monkeypatch):
    # beartype, which checks types in tests, draws from Python's generator, so that functions would be traced again
    monkeypatch.setattr("jaxablate.models._graph._random_states", int)
    shapes = [(4, 8), *[(8, 8)] * 100, (8, 3)]
    start = time.perf_counter()
    model = small(deep, *shapes)
    assert len(model.spec.sites) == 100
    print(f"traced and analysed in {time.perf_counter() - start:.2f} s")
    calls = []
    counted = ja.from_function(
        lambda w, x: calls.append(len(x)) or deep(w, x), model.state, np.zeros((2, 4), np.float32)
    )
    x, y = RNG.random((64, 4), np.float32), np.arange(64, dtype=np.int32) % 3
    for _ in range(3):
        ja.evaluate_masks(counted, random_masks(0, 4, 800), x, y)
    assert len(calls) <= 4, "two numbers of examples on construction, and one for each size of chunk"


def test_probabilities_are_probabilities():
    images = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    weights = {"w": np.ones((4, 3), np.float32), "v": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)}

    def logits(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    for outputs in (logits, lambda params, x: jax.nn.log_softmax(logits(params, x))):
        with raises_input_error("outputs: expected probabilities, which are positive and sum to 1"):
            ja.from_function(outputs, weights, images, outputs="probabilities")
    ja.from_function(lambda params, x: jax.nn.softmax(logits(params, x)), weights, images, outputs="probabilities")


def test_activations_of_a_buffer_that_is_filled_again():
    """JAX computes in the background and reads the buffer until it is done."""
    network = ja.MLP(400, (300,), 10, rngs=nnx.Rngs(0))
    batches = np.random.default_rng(0).random((3, 4000, 20, 20), np.float32)
    expected = [np.asarray(ja.record_activations(network, batch.copy())[0]) for batch in batches]
    memory = np.empty(batches[0].size + 16, np.float32)
    buffer = memory[-(memory.ctypes.data // 4) % 16 :][: batches[0].size].reshape(batches[0].shape)
    recorded = []
    for batch in batches:
        buffer[:] = batch
        recorded.append(ja.record_activations(network, buffer)[0])
    for values, target in zip(recorded, expected, strict=True):
        np.testing.assert_array_equal(values, target)


def test_donated_parameters_are_named():
    images = np.ones((4, 3), np.float32)
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
    model = ja.from_function(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], params, images)
    jax.jit(lambda p: jax.tree.map(lambda a: a + 1, p), donate_argnums=0)(params)
    with raises_input_error("model: its parameters are gone, since a jitted function took them over"):
        ja.single_ablation(model, images, np.zeros(4, int))


def test_code_that_was_changed_is_traced_again():
    """Notebooks change classes that have instances, for example by `%autoreload`."""

    class Net(nnx.Module):
        def __init__(self):
            self.first, self.head = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1))

        def hidden(self, x):
            return nnx.relu(self.first(x))

        def __call__(self, x):
            return self.head(self.hidden(x))

    net, images = Net(), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    before = np.asarray(ja.from_module(net, images)(images))
    np.testing.assert_allclose(before, net(images), atol=1e-6)
    Net.hidden = lambda self, x: jnp.tanh(self.first(x))
    after = np.asarray(ja.from_module(net, images)(images))
    np.testing.assert_allclose(after, net(images), atol=1e-6)
    assert np.abs(after - before).max() > 0.1
    labels, fill = np.zeros(20, int), np.zeros(5, np.float32)
    loss = ja.evaluate_masks(net, np.ones((1, 5), bool), images, labels, fill, outcomes="loss")[0]
    assert abs(float(loss) + float(nnx.log_softmax(net(images))[:, 0].mean())) < 1e-6


def wrap(function):
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args)

    return wrapped


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("slope", 0.0, 0.5),
        ("slope", property(lambda self: 0.0), property(lambda self: 0.5)),
        ("act", staticmethod(nnx.relu), staticmethod(jnp.tanh)),
        ("hidden", wrap(lambda self, x: nnx.relu(x)), wrap(lambda self, x: jnp.tanh(x))),
    ],
    ids=["a number", "a property", "a static method", "a decorated method"],
)
def test_every_attribute_of_a_class_may_be_edited(name, before, after):
    class Net(nnx.Module):
        slope = 0.0
        act = staticmethod(nnx.relu)

        def __init__(self):
            self.first, self.head = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1))

        def hidden(self, x):
            return self.act(x) + self.slope * jnp.minimum(x, 0)

        def __call__(self, x):
            return self.head(self.hidden(self.first(x)))

    setattr(Net, name, before)
    net, images = Net(), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    labels, fill, intact = np.zeros(20, int), np.zeros(5, np.float32), np.ones((1, 5), bool)

    def losses():
        """By the traced operations, and by a call."""
        traced = ja.evaluate_masks(net, intact, images, labels, fill, outcomes="loss")[0]
        return float(traced), -float(nnx.log_softmax(net(images))[:, 0].mean())

    first = losses()
    assert first[0] == pytest.approx(first[1], abs=1e-6)
    assert ja.from_module(net, images).spec is ja.from_module(net, images).spec, "traced once"
    setattr(Net, name, after)
    second = losses()
    assert second[0] == pytest.approx(second[1], abs=1e-6)
    assert abs(second[0] - first[0]) > 1e-3


def test_tensors_of_pytorch_among_the_parameters_are_copied(examples):
    torch = pytest.importorskip("torch")
    weight = torch.ones(784, 3)
    head = jnp.ones((3, 2))
    model = ja.from_function(
        lambda p, x: jax.nn.relu(x.reshape(len(x), -1) @ p["w"]) @ head, {"w": weight}, examples[0]
    )
    before = np.asarray(model(examples[0]))
    weight.mul_(2)
    np.testing.assert_array_equal(model(examples[0]), before)


def test_one_array_as_parameters():
    head, kernel = RNG.normal(size=(5, 3)).astype(np.float32), RNG.normal(size=(4, 5)).astype(np.float32)
    x, y = RNG.random((9, 4), np.float32), np.arange(9, dtype=np.int32) % 3
    model = ja.from_function(lambda w, x: jnp.tanh(x @ w) @ head, kernel, x)
    expected = -jax.nn.log_softmax((np.tanh(x @ kernel) * (np.arange(5) != 2)) @ head)[np.arange(9), y].mean()
    np.testing.assert_allclose(ja.single_ablation(model, x, y, outcomes="loss", site="params")[2], expected, atol=1e-6)
