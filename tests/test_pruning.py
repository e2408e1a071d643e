"""Pruning: the smaller network has the outputs of the masked one; what cannot be folded is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import logits64, raises_input_error, random_masks
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


def test_what_cannot_be_pruned(small_model, images):
    rngs = nnx.Rngs(0)
    keep = np.arange(6) < 3

    def chain_of(*between, behind=()):
        return nnx.Sequential(flatten, nnx.Linear(784, 6, rngs=rngs), *between, ja.Site("s"), *behind,
                        nnx.Linear(6, 10, rngs=rngs))  # fmt: skip

    with raises_input_error("keep: expected at least one neuron of site 'layer2', got none"):
        ja.prune(small_model, np.isin(np.arange(27), [0, 20]))
    with raises_input_error(r"keep: expected shape \(27\) = \[neuron\], got \(26,\)"):
        ja.prune(small_model, np.ones(26, bool))
    with raises_input_error("keep: expected booleans"):
        ja.prune(small_model, np.ones(27))
    with raises_input_error("fill: expected finite numbers"):
        ja.prune(small_model, np.ones(27, bool), np.full(27, np.nan, np.float32))
    with raises_input_error("model: expected an MLP or a chain, got Residual"):
        ja.prune(KINDS["residual"](), np.ones(14, bool), images=images)
    with raises_input_error("images: expected an example of what the chain takes, got none"):
        ja.prune(chain_of(nnx.relu), keep)
    with raises_input_error("site 's': expected an nnx.Linear or nnx.Conv before it .* got LayerNorm"):
        ja.prune(chain_of(nnx.LayerNorm(6, rngs=rngs)), keep, images=images)
    with raises_input_error("site 's': expected an nnx.Linear or nnx.Conv after it .* got LayerNorm"):
        ja.prune(chain_of(nnx.relu, behind=[nnx.LayerNorm(6, rngs=rngs)]), keep, images=images)
    with raises_input_error("model: logits of the pruned chain differ by"):
        ja.prune(chain_of(nnx.softmax), keep, images=images)
    tiny = nnx.Linear(6, 10, kernel_init=nnx.initializers.normal(1e-5), rngs=rngs)
    with raises_input_error("model: logits of the pruned chain differ by"):
        ja.prune(
            nnx.Sequential(flatten, nnx.Linear(784, 6, rngs=rngs), nnx.softmax, ja.Site("s"), tiny), keep, images=images
        )
    with raises_input_error("model: expected ja.Site layers, got none; put ja.Site.name. after each activation"):
        ja.prune(nnx.Sequential(flatten, nnx.Linear(784, 6, rngs=rngs), nnx.relu, tiny), keep, images=images)
    function = ja.from_function(
        lambda w, x: jnp.tanh(x @ w[0]) @ w[1], [np.ones((4, 3)), np.ones((3, 2))], images[:2, 0, :4]
    )
    assert ja.pruning.count_parameters(function) == 18
    with raises_input_error("site 's': some inputs of the next linear map depend on none of its units"):
        ja.prune(chain_of(nnx.relu, behind=[lambda h: h * (h > 2)]), keep, images=images)
    twice = nnx.Linear(6, 6, rngs=rngs)
    with raises_input_error("model: expected each layer once, got an nnx.Linear that is used twice"):
        ja.prune(chain_of(twice, nnx.relu, twice), keep, images=images)
    with raises_input_error("fill: expected numbers .neuron., the same for every example, got PerExampleFill"):
        ja.prune(small_model, np.ones(27, bool), ja.PerExampleFill(()))
    with raises_input_error("site 's': expected an nnx.Linear or nnx.Conv before it .* got ResidualSequential"):
        ja.prune(chain_of(ResidualSequential(nnx.Linear(6, 6, rngs=rngs))), keep, images=images)
    with raises_input_error("site 's': layers between it and the next linear map mix its units"):
        ja.prune(chain_of(nnx.relu, behind=[lambda h: jnp.cumsum(h, axis=1)]), keep, images=images)


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
