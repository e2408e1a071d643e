"""Networks of every kind: activations and counts against masks set by hand, and what cannot be ablated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TIE, raises_input_error, random_masks
from networks import KINDS, SITES, chain, cnn_chain, flatten, in_evaluation, masked_logits

import jaxablate as ja
from jaxablate.ablation import _incremental, _vmap


@pytest.fixture(scope="module")
def examples(mnist5k):
    return mnist5k.test.images[:60], mnist5k.test.labels[:60]


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


def neurons_of(kind: str) -> int:
    return sum(SITES[kind].values())


def assert_counts_by_hand(counts, model, kind, masks, fill, images, labels):
    for count, keep in zip(np.asarray(counts).tolist(), masks, strict=True):
        logits = masked_logits(model, kind, keep, fill, images)
        second, first = np.sort(logits, axis=1)[:, -2:].T
        assert abs(count - int((logits.argmax(axis=1) == labels).sum())) <= int((first - second < TIE).sum())


def test_a_site_changes_nothing_until_it_is_set(kind, examples):
    model = in_evaluation(KINDS[kind]())
    bare = in_evaluation(KINDS[kind]())
    for _, module in nnx.iter_modules(bare):
        if isinstance(module, ja.Site):
            module.__class__ = Identity
    np.testing.assert_array_equal(model(examples[0]), bare(examples[0]))


class Identity(ja.Site):
    def __call__(self, outputs):
        return outputs


def test_masks_and_fills_are_variables_of_their_own(examples):
    """They split from the weights, and `vmap` maps over them."""
    model = in_evaluation(chain())
    site = model.layers[3]
    site.set(jnp.ones(9, bool), jnp.zeros(9))
    graphdef, masks, weights = nnx.split(model, ja.models.SiteVariable, ...)
    assert {leaf.shape for leaf in jax.tree.leaves(masks)} == {(9,), ()}
    site.set(jnp.zeros(9, bool), jnp.zeros(9))
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), masks, nnx.state(model, ja.models.SiteVariable))
    logits = jax.vmap(lambda of_sites: nnx.merge(graphdef, of_sites, weights)(jnp.asarray(examples[0])))(both)
    np.testing.assert_allclose(logits[1], model(examples[0]), atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_activations_are_what_reaches_the_sites(kind, examples):
    model = KINDS[kind]()
    recorded = ja.record_activations(model, examples[0])
    assert [layer.shape for layer in recorded] == [(60, size) for size in SITES[kind].values()]
    tapped.clear()
    hooked = in_evaluation(model)
    for _, module in nnx.iter_modules(hooked):
        if isinstance(module, ja.Site):
            module.__class__ = Tap
    hooked(jnp.asarray(examples[0]))
    means = []
    for (name, got), (site, outputs) in zip(zip(SITES[kind], recorded, strict=True), tapped, strict=True):
        assert site.name == name
        places = tuple(range(1, outputs.ndim - 1))
        reduced = {"mean": outputs.mean, "max": outputs.max}[site.reduce](axis=places)
        np.testing.assert_allclose(got, reduced, atol=1e-5)
        means.append(outputs.mean(axis=(0, *places)))
    np.testing.assert_allclose(ja.mean_activations(model, examples[0]), np.concatenate(means), atol=1e-5)


tapped = []


class Tap(ja.Site):
    def __call__(self, outputs):
        tapped.append((self, np.asarray(outputs, np.float64)))
        return outputs


def test_masks_count_as_set_by_hand(kind, examples):
    model = KINDS[kind]()
    masks = random_masks(1, 20, neurons_of(kind))
    fill = np.asarray(ja.mean_activations(model, examples[0]))
    counts = ja.evaluate_masks(model, masks, *examples, fill)
    assert_counts_by_hand(counts, model, kind, masks, fill, *examples)
    losses = ja.evaluate_masks(model, masks, *examples, fill, outcomes="loss")
    assert len(set(losses.tolist())) > 10


def test_orders_of_any_scope_count_as_set_by_hand(kind, examples):
    """Orders over one site (any of them) and over all; on a chain the engines agree."""
    model = KINDS[kind]()
    num_neurons = neurons_of(kind)
    bounds = np.cumsum([0, *SITES[kind].values()])
    fill = np.linspace(-0.5, 0.5, num_neurons).astype(np.float32)
    for start, stop in [*itertools.pairwise(bounds), (0, num_neurons)]:
        orders = np.asarray(ja.random_orders(int(stop - start), 2, key=jax.random.key(3))) + start
        steps = int(stop - start)
        counts = ja.cumulative_ablation(model, orders, *examples, fill, steps=steps)
        masks = ja.orders.masks_of_orders(orders, num_neurons, steps)
        assert_counts_by_hand(counts.ravel(), model, kind, masks, fill, *examples)


def test_several_networks_of_a_kind(kind, examples):
    models = [KINDS[kind](seed) for seed in (0, 1)]
    masks = np.stack([random_masks(seed, 6, neurons_of(kind)) for seed in (0, 1)])
    fills = np.stack([np.full(neurons_of(kind), value, np.float32) for value in (0.1, 0.2)])
    counts = ja.evaluate_masks(models, masks, *examples, fills)
    for i, model in enumerate(models):
        np.testing.assert_array_equal(counts[i], ja.evaluate_masks(model, masks[i], *examples, fills[i]))


def test_a_linear_map_behind_the_site_takes_the_incremental_engine(examples, monkeypatch):
    """On CPU: for the sites of a chain that a linear map follows, also where a norm lies between the sites."""
    taken = []
    for module, name in ((_incremental, "measure_steps"), (_vmap, "measure_masks")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: taken.append(name) or real(*a, **k))
    for model, order, engine in (
        (chain(), [0, 12, 3, 15], "measure_steps"),
        (cnn_chain(), [9, 11], "measure_steps"),
        (cnn_chain(), [9, 5], "measure_masks"),
        (KINDS["residual"](), [0, 9], "measure_masks"),
    ):
        ja.cumulative_ablation(model, np.array([order]), *examples, steps=len(order))
        assert taken.pop() == engine
    with raises_input_error("engine 'incremental': it needs an nnx.Linear in float32 right after site 'conv2';"):
        ja.cumulative_ablation(cnn_chain(), np.array([[5]]), *examples, steps=1, engine="incremental")
    with raises_input_error("engine 'incremental': it needs a model that is a chain"):
        ja.cumulative_ablation(KINDS["tokens"](), np.array([[5]]), *examples, steps=1, engine="incremental")


def test_a_large_activation_leaves_no_rounding_error_behind(examples):
    """Neurons of 1e6 cancel; once they are gone, both engines must see the small ones."""
    model = chain()
    kernel = model.layers[1].kernel
    kernel[...] = kernel[...].at[:, 0].set(1e6)
    order = np.array([[0, 12, 3, 15, 7]])
    counts = [ja.cumulative_ablation(model, order, *examples, steps=5, engine=e) for e in ("vmap", "incremental")]
    np.testing.assert_array_equal(*counts)
    alone = ja.single_ablation(model, *examples)
    assert int(alone[0]) == int(counts[0][0, 1])


def test_plain_sequentials_become_chains(examples):
    rngs = nnx.Rngs(0)
    inner = nnx.Sequential(nnx.Linear(784, 5, rngs=rngs), nnx.relu)
    plain = nnx.Sequential(lambda x: x.reshape(len(x), -1), inner, nnx.Linear(5, 6, rngs=rngs), nnx.relu,
                           nnx.Linear(6, 10, rngs=rngs))  # fmt: skip
    for after, sizes in ((nnx.relu, (5, 6)), (nnx.Linear, (5, 6)), (3, (6,)), ((1, 1), (5,)), ([(1, 0), 3], (5, 6))):
        model = ja.with_sites(plain, after=after)
        assert tuple(a.shape[1] for a in ja.record_activations(model, examples[0])) == sizes
        np.testing.assert_array_equal(model(examples[0]), plain(examples[0]))
        assert model.layers[1].kernel is inner.layers[0].kernel
    named = ja.with_sites(plain, after=nnx.relu, names=("a", "b"), reduce="max")
    assert [layer.name for layer in named.layers if isinstance(layer, ja.Site)] == ["a", "b"]
    assert named.layers[3].reduce == "max"
    with raises_input_error("after: no layer before the last matches 'tanh'; choose among 0 <lambda>, 1.0"):
        ja.with_sites(plain, after=nnx.tanh)
    with raises_input_error("names: expected 2, one for each site, got 1"):
        ja.with_sites(plain, after=nnx.relu, names=("a",))
    with raises_input_error("model: expected an nnx.Sequential, got Residual; in other models put ja.Site"):
        ja.with_sites(KINDS["residual"](), after=nnx.relu)


class Own(nnx.Module):
    """A linear map and a head, with what a test puts between them."""

    def __init__(self, between, **modules):
        self.linear = nnx.Linear(784, 6, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(6, 10, rngs=nnx.Rngs(1))
        self.between = between
        for name, module in modules.items():
            setattr(self, name, module)

    def __call__(self, images):
        return self.head(self.between(self, nnx.relu(self.linear(images.reshape(len(images), -1)))))


def broken_models():
    """Models that cannot be ablated, and the sentence for each."""
    site = ja.Site("s")
    counter = nnx.Variable(jnp.zeros(()))

    def count(m, x):
        m.counter[...] += 1
        return m.site(x)

    return {
        "no sites": (Own(lambda m, x: x), "model: it has no sites; put ja.Site"),
        "applied twice": (
            Own(lambda m, x: m.site(m.site(x)), site=site),
            "site 's': the model applies it 2 times in a call; use a new ja.Site for each place",
        ),
        "one name twice": (
            Own(lambda m, x: m.b(m.a(x)), a=ja.Site("s"), b=ja.Site("s")),
            "site 's': the model has 2 sites of that name",
        ),
        "never reached": (
            Own(lambda m, x: x, site=site),
            "site 's': the model does not reach it; remove it or call it",
        ),
        "dropout that ignores eval": (
            Own(
                lambda m, x: m.site(m.drop(x, deterministic=False)), site=site, drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            ),
            "model: a call changes its state .dropout or batch norm in training mode, or a counter.; use a model",
        ),
        "batch norm that ignores eval": (
            Own(
                lambda m, x: m.site(m.norm(x, use_running_average=False)),
                site=site,
                norm=nnx.BatchNorm(6, rngs=nnx.Rngs(0)),
            ),
            "model: a call changes its state .dropout or batch norm in training mode, or a counter.; use a model",
        ),
        "a counter": (Own(count, site=site, counter=counter), "model: a call changes its state"),
        "features that mix examples": (
            Own(lambda m, x: m.site(x.T).T, site=site),
            r"site 's': expected outputs \[example, ..., neuron\], got shape \(6, 2\) for 2 examples",
        ),
        "a site that grows with the examples": (
            Own(lambda m, x: m.site(x @ x.T) @ x, site=site),
            r"model: its sites or classes depend on the number of examples, with .*2.* for 2 and .*3.* for 3",
        ),
        "an argument more": (NeedsTrain(), "model: model.images. with images of shape .* raises TypeError"),
        "no logits": (
            Own(lambda m, x: m.site(x)[0], site=site),
            r"model: expected floating logits \[example, class\], got \(10,\)",
        ),
    }


class NeedsTrain(nnx.Module):
    def __init__(self):
        self.site = ja.Site("s")

    def __call__(self, images, train):
        return self.site(images)


@pytest.mark.parametrize("what", list(broken_models()))
def test_what_cannot_be_ablated_is_said_in_one_sentence(what, examples):
    model, sentence = broken_models()[what]
    for use in (
        lambda: ja.record_activations(model, examples[0]),
        lambda: ja.evaluate_masks(model, np.ones((1, 6), bool), *examples),
    ):
        with raises_input_error(sentence):
            use()


def test_a_site_of_another_size_for_other_images(examples):
    """The mask must fit the site's outputs for the given images; otherwise a sentence says so."""
    model = Rows()
    images, labels = examples
    assert ja.evaluate_masks(model, np.ones((1, 28), bool), images, labels).shape == (1,)
    with raises_input_error(r"keep: expected shape \(any, 20\) = \[mask, neuron\], got \(1, 28\)"):
        ja.evaluate_masks(model, np.ones((1, 28), bool), images[:, :20], labels)


class Rows(nnx.Module):
    """A site over the rows of an image, as many as there are."""

    def __init__(self):
        self.site, self.head = ja.Site("rows"), nnx.Linear(1, 10, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.head(self.site(images.mean(axis=2)).mean(axis=1, keepdims=True))


def test_dropout_and_batch_norm_run_in_evaluation_mode_and_stay_as_they_were(examples):
    model = cnn_chain()
    model.train()
    before = jax.tree.map(np.array, nnx.state(model))
    counts = ja.evaluate_masks(model, np.ones((1, 15), bool), *examples)
    assert not model.layers[2].use_running_average
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    correct = (in_evaluation(model)(examples[0]).argmax(axis=1) == examples[1]).sum()
    assert int(counts[0]) == int(correct)


def test_tokens_may_be_integers(examples):
    class Words(nnx.Module):
        def __init__(self):
            self.embed, self.site = nnx.Embed(30, 7, rngs=nnx.Rngs(0)), ja.Site("s")
            self.head = nnx.Linear(7, 10, rngs=nnx.Rngs(1))

        def __call__(self, tokens):
            return self.head(self.site(self.embed(tokens)).mean(axis=1))

    tokens = np.random.default_rng(0).integers(0, 30, (60, 5)).astype(np.int32)
    assert ja.single_ablation(Words(), tokens, examples[1]).shape == (7,)
    with raises_input_error("images: expected floating pixels in .* got dtype uint8; divide"):
        ja.single_ablation(Words(), tokens.astype(np.uint8), examples[1])


def test_bad_sites_and_chains():
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    with raises_input_error("site: expected a printable name, got ''"):
        ja.Site("")
    with raises_input_error("reduction: unknown 'sum'; choose one of mean, max"):
        ja.Site("a", reduce="sum")
    with raises_input_error("model: it has no sites"):
        ja.Chain(linear, nnx.relu)
    with raises_input_error("chain: no layer follows the last site; add the layer of the logits"):
        ja.Chain(linear, ja.Site("a"))
    with raises_input_error("chain: expected modules or functions, got int as layer 0"):
        ja.Chain(3, ja.Site("a"), linear)
    with raises_input_error("site 'a': the model has 2 sites of that name"):
        ja.Chain(ja.Site("a"), linear, ja.Site("a"), linear)


class ResidualSequential(nnx.Sequential):
    def __call__(self, x):
        return x + super().__call__(x)


class ScaledSequential(nnx.Sequential):
    def __call__(self, x):
        return super().__call__((x - 0.5) * 8)


class Jitted(nnx.Module):
    """A block under `nnx.jit` and the rest under `nnx.remat`, whose states come back as new arrays."""

    def __init__(self):
        self.first, self.second = nnx.Linear(784, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 6, rngs=nnx.Rngs(1))
        self.site, self.head = ja.Site("s"), nnx.Linear(6, 10, rngs=nnx.Rngs(2))

    @nnx.jit
    def block(self, x):
        return nnx.relu(self.second(nnx.relu(self.first(x))))

    def __call__(self, images):
        return nnx.remat(lambda model, x: model.head(model.site(model.block(x))))(self, images.reshape(len(images), -1))


class Scanned(nnx.Module):
    """Three layers of stacked weights under `nnx.scan`."""

    def __init__(self):
        make = nnx.vmap(lambda key: nnx.Linear(6, 6, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.first, self.layers = nnx.Linear(784, 6, rngs=nnx.Rngs(0)), make(jax.random.split(jax.random.key(0), 3))
        self.site, self.head = ja.Site("s"), nnx.Linear(6, 10, rngs=nnx.Rngs(2))

    def __call__(self, images):
        scan = nnx.scan(lambda x, layer: nnx.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(self.site(scan(self.first(images.reshape(len(images), -1)), self.layers)))


def special_models():
    """Models whose layers do something that a chain's plain layers do not; each with one site of 6 units."""
    rngs = nnx.Rngs(0)
    first, second, head = (nnx.Linear(n, m, rngs=rngs) for n, m in ((784, 6), (6, 6), (6, 10)))
    lora = nnx.LoRALinear(6, 10, lora_rank=2, rngs=rngs)
    lora.lora.lora_b[...] = jax.random.normal(jax.random.key(1), lora.lora.lora_b.shape)
    negated = nnx.Linear(6, 10, dot_general=lambda *a, **k: -jax.lax.dot_general(*a, **k), rngs=rngs)
    low = nnx.Linear(784, 6, dtype=jnp.bfloat16, rngs=rngs)
    site = ja.Site("s")
    return {
        "LoRA behind the site": ja.Chain(flatten, first, nnx.relu, site, lora),
        "a linear map with a product of its own": ja.Chain(flatten, first, nnx.relu, site, negated),
        "a residual sequential": nnx.Sequential(flatten, first, ResidualSequential(second, nnx.relu), site, head),
        "a scaled sequential": ScaledSequential(flatten, first, nnx.relu, site, head),
        "a layer of two outputs": nnx.Sequential(flatten, first, lambda x: (x, 2 * x), jnp.maximum, site, head),
        "a site in bfloat16": ja.Chain(flatten, low, nnx.relu, site, nnx.Linear(6, 10, dtype=jnp.float32, rngs=rngs)),
        "jit and remat": Jitted(),
        "scan": Scanned(),
    }


@pytest.mark.parametrize("what", list(special_models()))
def test_special_models_count_as_called(what, examples):
    """Every way to evaluate equals the model called with its site set; a mask left on the site does not matter."""
    model, (images, labels) = special_models()[what], examples
    copy = in_evaluation(model)
    site = next(module for _, module in nnx.iter_modules(copy) if isinstance(module, ja.Site))
    fill = np.linspace(-1, 1, 6).astype(np.float32)

    def loss_by_hand(keep):
        site.set(jnp.asarray(keep), jnp.asarray(fill))
        log_p = jax.nn.log_softmax(copy(jnp.asarray(images)).astype(jnp.float32))
        return -float(log_p[np.arange(len(labels)), labels].mean())

    scaled_site = next(module for _, module in nnx.iter_modules(model) if isinstance(module, ja.Site))
    scaled_site.set(jnp.zeros(6, bool), jnp.ones(6), jnp.full(6, 2.0))
    atol = 2e-2 if "bfloat16" in what else 1e-5
    masks = np.concatenate([~np.eye(6, dtype=bool), random_masks(0, 4, 6)])
    expected = [loss_by_hand(keep) for keep in masks]
    options = {"fill": fill, "outcomes": "loss"}
    np.testing.assert_allclose(ja.evaluate_masks(model, masks, images, labels, **options), expected, atol=atol)
    np.testing.assert_allclose(ja.single_ablation(model, images, labels, **options), expected[:6], atol=atol)
    orders = np.array([[3, 0, 5]])
    along = [loss_by_hand(keep) for keep in ja.orders.masks_of_orders(orders, 6, 3)]
    losses = ja.cumulative_ablation(model, orders, images, labels, steps=3, **options)
    np.testing.assert_allclose(losses[0], along, atol=atol)
    assert np.ptp(expected) > 1e-3


def test_a_huge_fill_leaves_no_rounding_error_behind(examples):
    """Fills of a million cancel in pairs; behind a bounded activation too."""
    model = chain(activation=nnx.tanh)
    kernel = model.layers[4].kernel
    kernel[...] = kernel[...].at[1].set(kernel[...][0])
    fill = np.zeros(16, np.float32)
    fill[:2] = 1e6, -1e6
    order = np.array([[0, 1, 12, 3]])

    def losses(fill, engine):
        losses = ja.cumulative_ablation(model, order, *examples, fill, steps=4, engine=engine, outcomes="loss")
        return np.asarray(losses[0, 2:])

    exact = losses(np.zeros(16, np.float32), "vmap")  # the fills of the first two add up to nothing
    direct, updated = (np.abs(losses(fill, engine) - exact).max() for engine in ("vmap", "incremental"))
    # a matrix product that adds up in another order has the fills' own rounding error, and no engine can do better
    assert updated <= 1.2 * direct


def test_input_of_another_kind(examples):
    model, key = chain(), jax.random.key(0)
    with raises_input_error("fill: expected numbers .neuron., got str; ja.compute_fill makes them"):
        ja.evaluate_masks(model, np.ones((1, 16), bool), *examples, "mean")
    with raises_input_error(r"images: expected an array \[example, ...\], got list"):
        ja.evaluate_masks(model, np.ones((1, 16), bool), [[1, 2], [3]], examples[1])
    with raises_input_error("key: expected a random key, jax.random.key.seed., got int"):
        ja.compute_fill(model, "resample", examples[0], key=0)
    for use in (
        lambda: ja.single_ablation([model, model], *examples),
        lambda: ja.ablation.pair_ablation([model, model], *examples, site="first"),
        lambda: ja.ablation.greedy_order([model, model], *examples),
        lambda: ja.ablation.shapley_values([model, model], *examples, key=key),
    ):
        with raises_input_error("model: expected one network, got list"):
            use()
    with raises_input_error("after: the list is empty; name at least one function, type or index"):
        ja.with_sites(nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu), after=[])
    unhashable = Own(lambda m, x: m.site(x), site=ja.Site("s"))
    unhashable.names = ["a"]
    with raises_input_error("model: its attributes must be hashable .unhashable type: 'list'.; turn lists into tuples"):
        ja.record_activations(unhashable, examples[0])
