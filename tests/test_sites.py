"""Networks of every kind: activations and counts against masks set by hand, and what cannot be ablated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TIE, first_quick, raises_input_error, random_masks
from networks import KINDS, SITES, chain, cnn_chain, flatten, in_evaluation, masked_logits, set_mask

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


@pytest.mark.slow
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


def test_auto_takes_the_incremental_engine_on_a_cpu(examples, monkeypatch):
    """Where a linear map reads the site, or orders visit several sites; "vmap" where nothing can be updated."""
    taken = []
    for module, name in ((_incremental, "measure_steps"), (_vmap, "measure_masks")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: taken.append(name) or real(*a, **k))
    mixed = Own(lambda m, x: x @ jnp.ones((6, 6)) + jax.nn.softmax(m.site(x)), site=ja.Site("s"))
    for model, order, engine in (
        (chain(), [0, 12, 3, 15], "measure_steps"),
        (cnn_chain(), [9, 5], "measure_steps"),
        (KINDS["residual"](), [0, 9], "measure_steps"),
        (KINDS["tokens"](), [5], "measure_steps"),
        (mixed, [0, 3], "measure_masks"),
    ):
        ja.cumulative_ablation(model, np.array([order]), *examples, steps=len(order))
        assert taken.pop() == engine


@pytest.mark.slow
def test_both_engines_agree(kind, examples):
    """Steps of one and of several neurons, over one site and all, with every kind of fill."""
    model, num_neurons = KINDS[kind](), neurons_of(kind)
    fills = [
        np.linspace(-0.5, 0.5, num_neurons).astype(np.float32),
        ja.compute_fill(model, "resample", examples[0], key=jax.random.key(0)),
        ja.fills.AffineFill(
            np.full(num_neurons, 0.5, np.float32), np.linspace(-0.2, 0.3, num_neurons).astype(np.float32)
        ),
    ]
    orders = np.asarray(ja.random_orders(num_neurons, 3, key=jax.random.key(1)))
    for fill, steps in zip(fills, (num_neurons, range(2, num_neurons, 2), (1, 4, 5, num_neurons - 1)), strict=True):
        options = {"steps": steps, "outcomes": ("correct", "loss")}
        first, second = (
            ja.cumulative_ablation(model, orders, *examples, fill, engine=engine, **options)
            for engine in ("vmap", "incremental")
        )
        np.testing.assert_allclose(first["loss"], second["loss"], atol=1e-5)
        assert np.abs(np.asarray(first["correct"]) - second["correct"]).max() <= 1  # a tie at most
        assert np.ptp(first["loss"]) > 1e-3


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


def test_sites_are_found_in_a_plain_sequential(examples):
    rngs = nnx.Rngs(0)
    inner = nnx.Sequential(nnx.Linear(784, 5, rngs=rngs), nnx.relu)
    plain = nnx.Sequential(lambda x: x.reshape(len(x), -1), inner, nnx.Linear(5, 6, rngs=rngs), nnx.gelu,
                           nnx.Linear(6, 10, rngs=rngs))  # fmt: skip
    assert {name: ids.size for name, ids in ja.models.site_neurons(plain, examples[0]).items()} == {
        "layers/1/layers/0": 5,
        "layers/2": 6,
    }
    hidden = nnx.relu(inner.layers[0](examples[0].reshape(60, -1)))
    np.testing.assert_allclose(ja.record_activations(plain, examples[0])[0], hidden, atol=1e-6)
    chosen = ja.from_module(plain, examples[0], sites="layers/2")
    assert [a.shape for a in ja.record_activations(chosen, examples[0])] == [(60, 6)]
    np.testing.assert_array_equal(chosen(examples[0]), plain(examples[0]))


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
    return {
        "no nonlinear function": (
            Own(lambda m, x: m.linear(jnp.ones((len(x), 784)))),
            "model: it has no sites of kind 'units' .found none.; choose others with sites=, or mark a value",
        ),
        "dropout that ignores eval": (
            Own(
                lambda m, x: m.site(m.drop(x, deterministic=False)), site=site, drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            ),
            "model: it draws random numbers at test_sites.py:[0-9]+; switch dropout off",
        ),
        "batch norm that ignores eval": (
            Own(
                lambda m, x: m.site(m.norm(x, use_running_average=False)),
                site=site,
                norm=nnx.BatchNorm(6, rngs=nnx.Rngs(0)),
            ),
            "model: a number.* depends on the number of examples, .*; switch batch statistics off",
        ),
        "a tag of the examples": (
            Own(lambda m, x: m.site(x.T).T, site=ja.Site("s", axis=1)),
            r"tag 's': axis 1 is not an axis of units of shape \(6, 2\) for 2 examples at test_sites.py:[0-9]+;",
        ),
        "a site that grows with the examples": (
            Own(lambda m, x: m.site(x @ x.T) @ x, site=site),
            r"tag 's': expected a value with one axis of examples, got shape \(2, 2\)",
        ),
        "an argument more": (NeedsTrain(), "model: for 2 images of shape .* it raises TypeError"),
        "a fixed batch": (
            Own(lambda m, x: m.site(x).reshape(2, -1)[:, :6], site=site),
            r"model: expected outputs \[example, ...\], got shape \(2, 10\) for 2 examples and \(2, 10\) for 5; keep",
        ),
        "classes": (Classes(), "model: expected floating outputs, got int32; return logits, not classes"),
        "a callback": (
            Own(lambda m, x: m.site(jax.pure_callback(np.abs, x, x, vmap_method="sequential")), site=site),
            "model: it calls back into Python at test_sites.py:[0-9]+, which would run for every mask; use",
        ),
        "a linear map in a loop": (
            Own(lambda m, x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ jnp.ones((6, 6))), x)),
            "model: a linear map is inside a scan at test_sites.py:[0-9]+, where no site can be found; tag",
        ),
    }


class Classes(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(784, 6, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return nnx.relu(self.linear(images.reshape(len(images), -1))).argmax(axis=1)


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


def test_bad_sites():
    with raises_input_error("site: expected a printable name, got ''"):
        ja.Site("")
    with raises_input_error("reduction: unknown 'sum'; choose one of mean, max"):
        ja.tag(jnp.ones(3), "a", reduce="sum")


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
        "LoRA behind the site": nnx.Sequential(flatten, first, nnx.relu, site, lora),
        "a linear map with a product of its own": nnx.Sequential(flatten, first, nnx.relu, site, negated),
        "a residual sequential": nnx.Sequential(flatten, first, ResidualSequential(second, nnx.relu), site, head),
        "a scaled sequential": ScaledSequential(flatten, first, nnx.relu, site, head),
        "a layer of two outputs": nnx.Sequential(flatten, first, lambda x: (x, 2 * x), jnp.maximum, site, head),
        "a site in bfloat16": nnx.Sequential(
            flatten, low, nnx.relu, site, nnx.Linear(6, 10, dtype=jnp.float32, rngs=rngs)
        ),
        "jit and remat": Jitted(),
        "scan": Scanned(),
    }


@pytest.mark.parametrize("what", first_quick(special_models(), 3))
def test_special_models_count_as_called(what, examples):
    """Every way to evaluate equals the model called with its site masked."""
    model, (images, labels) = special_models()[what], examples
    copy = in_evaluation(model)
    site = next(module for _, module in nnx.iter_modules(copy) if isinstance(module, ja.Site))
    fill = np.linspace(-1, 1, 6).astype(np.float32)

    def loss_by_hand(keep):
        set_mask(site, keep, fill)
        log_p = jax.nn.log_softmax(copy(jnp.asarray(images)).astype(jnp.float32))
        return -float(log_p[np.arange(len(labels)), labels].mean())

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
    with raises_input_error("fill: expected numbers .neuron., got 'mean'; ja.compute_fill makes them"):
        ja.evaluate_masks(model, np.ones((1, 16), bool), *examples, "mean")
    with raises_input_error("images: expected an array, got list .*inhomogeneous"):
        ja.evaluate_masks(model, np.ones((1, 16), bool), [[1, 2], [3]], examples[1])
    with raises_input_error("key: expected a random key, jax.random.key.seed., got 0"):
        ja.compute_fill(model, "resample", examples[0], key=0)
    for use in (
        lambda: ja.single_ablation([model, model], *examples),
        lambda: ja.ablation.pair_ablation([model, model], *examples, site="first"),
        lambda: ja.ablation.greedy_order([model, model], *examples),
        lambda: ja.ablation.shapley_values([model, model], *examples, key=key),
    ):
        with raises_input_error("model: expected one network, got list; pass one at a time"):
            use()
    with raises_input_error("model: expected a Flax NNX module or a model, got function; ja.from_function makes"):
        ja.record_activations(lambda x: x, examples[0])


def test_a_module_with_attributes_that_cannot_be_hashed(examples):
    model = Own(lambda m, x: m.site(x), site=ja.Site("s"))
    model.names = ["a"]
    assert ja.record_activations(model, examples[0])[0].shape == (60, 6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # sow and perturb outside of nnx.capture
def test_a_module_that_changes_its_state_is_evaluated_as_it_is(examples):
    """Counters, sown values and perturbations have no effect on the outputs."""

    def count(m, x):
        m.counter[...] += 1
        m.sow(nnx.Intermediate, "seen", x)
        return m.perturb("hidden_grad", m.site(x))

    model = Own(
        count, site=ja.Site("s"), counter=nnx.Variable(jnp.zeros(())), hidden_grad=nnx.Perturbation(jnp.zeros(6))
    )
    plain = Own(lambda m, x: m.site(x), site=ja.Site("s"))
    masks = ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(*(ja.evaluate_masks(m, masks, *examples) for m in (model, plain)))
    assert float(model.counter[...]) == 0
