"""The same numbers from PyTorch, Captum and Torch-Pruning, which share no code with this package."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TIE

import jaxablate as ja
from jaxablate.models import load_pytorch
from jaxablate.models._model import start_forward, trace_model

pytestmark = pytest.mark.filterwarnings("ignore::jaxablate.models.AssumptionWarning")

torch = pytest.importorskip("torch")
SIZES = (784, 20, 16, 12, 10)


@pytest.fixture(scope="module")
def examples(mnist5k):
    """256 real images and their labels."""
    return np.asarray(mnist5k.test.images[:256]), np.asarray(mnist5k.test.labels[:256])


@pytest.fixture(scope="module")
def net(mnist5k):
    """A network that PyTorch has trained, its hidden activations at places 2, 4 and 6."""
    nn, train = torch.nn, mnist5k.train
    torch.manual_seed(0)
    maps = [nn.Linear(n, m) for n, m in itertools.pairwise(SIZES)]
    layers = [layer for linear in maps[:-1] for layer in (linear, nn.Sigmoid())]
    net = nn.Sequential(nn.Flatten(), *layers, maps[-1])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    images, labels = (torch.tensor(np.asarray(array)) for array in (train.images, train.labels))
    for step in range(150):
        batch = slice(100 * step % len(images), 100 * step % len(images) + 100)
        loss = nn.functional.cross_entropy(net(images[batch]), labels[batch].long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def model(net, tmp_path_factory):
    """Return the imported network."""
    path = tmp_path_factory.mktemp("crosscheck") / "net.pt"
    torch.save(net.state_dict(), path)
    return load_pytorch(path, activation="sigmoid")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A convolutional network of two channel sites, in PyTorch and imported."""
    nn, rngs = torch.nn, nnx.Rngs(0)
    torch.manual_seed(1)
    torch_net = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 10),
    ).eval()
    path = tmp_path_factory.mktemp("crosscheck") / "cnn.pt"
    torch.save(torch_net.state_dict(), path)
    ours = nnx.Sequential(
        nnx.Conv(1, 4, (5, 5), strides=3, padding="VALID", rngs=rngs),
        nnx.relu,
        ja.Site("first"),
        nnx.Conv(4, 6, (3, 3), strides=2, padding="VALID", rngs=rngs),
        nnx.relu,
        ja.Site("second"),
        lambda x: x.reshape(len(x), -1),
        nnx.Linear(54, 10, rngs=rngs),
    )
    return torch_net, load_pytorch(path, ours, images=np.zeros((1, 28, 28, 1), np.float32))


def logits_of(net, images) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def mean_loss(net, labels):
    """The mean cross-entropy of a batch, as Captum takes it: one number for all examples."""
    labels = torch.from_numpy(labels).long()
    return lambda images: torch.nn.functional.cross_entropy(net(images), labels)


def losses_by_captum(net, layer, images, labels, baselines, mask=None) -> np.ndarray:
    """The loss with each unit (each group of `mask`) of a layer ablated: the intact loss less Captum's attribution."""
    captum = pytest.importorskip("captum.attr")
    loss, inputs = mean_loss(net, labels), torch.from_numpy(images)
    attributions = captum.LayerFeatureAblation(loss, layer).attribute(
        inputs, layer_baselines=baselines, layer_mask=mask
    )
    with torch.no_grad():
        return (loss(inputs) - attributions[0]).numpy()


def test_a_trained_network_comes_over(net, model, examples):
    images, labels = examples
    expected = logits_of(net, images)
    assert (expected.argmax(axis=1) == labels).mean() > 0.6  # it has learned something
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_single_ablation_equals_captum(net, model, examples, kind):
    images, labels = examples
    fill = None if kind == "zero" else ja.mean_activations(model, images)
    losses = ja.single_ablation(model, images, labels, fill, outcomes="loss")
    start = 0
    for place, width in zip((2, 4, 6), SIZES[1:-1], strict=True):
        with torch.no_grad():
            outputs = net[: place + 1](torch.from_numpy(images))
        baselines = 0 if kind == "zero" else outputs.mean(dim=0, keepdim=True)
        expected = losses_by_captum(net, net[place], images, labels, baselines)
        np.testing.assert_allclose(losses[start : start + width], expected, atol=1e-5)
        assert np.ptp(expected) > 1e-3  # the neurons differ
        start += width
    assert start == len(losses)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_single_ablation_of_channels_equals_captum(cnn, examples, kind):
    torch_net, ours = cnn
    images, labels = examples
    fill = None if kind == "zero" else ja.mean_activations(ours, images[..., None])
    losses = ja.single_ablation(ours, images[..., None], labels, fill, outcomes="loss")
    start = 0
    for place, width in ((1, 4), (3, 6)):
        with torch.no_grad():
            outputs = torch_net[: place + 1](torch.from_numpy(images[:, None]))
        means = outputs.mean(dim=(0, 2, 3), keepdim=True).expand(1, *outputs.shape[1:])
        channels = torch.arange(width)[None, :, None, None].expand(1, *outputs.shape[1:])
        baselines = 0 if kind == "zero" else means
        expected = losses_by_captum(torch_net, torch_net[place], images[:, None], labels, baselines, channels)
        np.testing.assert_allclose(losses[start : start + width], expected[:, 0, 0], atol=1e-5)
        assert np.ptp(expected) > 1e-4
        start += width
    assert start == len(losses)


REMOVED = {1: [0, 3, 4, 19], 3: [15], 5: [1, 2, 7]}
"""Neurons of the hidden layers, by the place of the linear map that makes them."""


@pytest.fixture(scope="module")
def keep():
    masks = [np.ones(width, bool) for width in SIZES[1:-1]]
    for mask, removed in zip(masks, REMOVED.values(), strict=True):
        mask[removed] = False
    return np.concatenate(masks)


@pytest.fixture(scope="module")
def smaller(net):
    """Return the network after Torch-Pruning."""
    pruning = pytest.importorskip("torch_pruning")
    small = copy.deepcopy(net)
    graph = pruning.DependencyGraph().build_dependency(small, example_inputs=torch.zeros(1, 28, 28))
    for place, removed in REMOVED.items():
        group = graph.get_pruning_group(small[place], pruning.prune_linear_out_channels, idxs=removed)
        assert graph.check_pruning_group(group)
        group.prune()
    assert [layer.out_features for layer in small if hasattr(layer, "out_features")] == [16, 15, 9, 10]
    return small


def test_masks_equal_structural_pruning(model, smaller, keep, examples):
    """Zero fill is what remains when the neurons are gone."""
    images, labels = examples
    expected = logits_of(smaller, images)
    network, state, inputs = trace_model(model, images)
    masks = np.split(keep, network.offsets[1:-1])
    changes = {i: (jnp.asarray(mask), jnp.zeros(len(mask)), None) for i, mask in enumerate(masks)}
    with jax.default_matmul_precision("highest"):
        masked = start_forward(network, state, inputs, changes)(changes)
        intact = model(images)
    np.testing.assert_allclose(masked, expected, atol=1e-5)
    assert np.abs(intact - expected).max() > 0.1  # the removed ones counted
    sums = ja.evaluate_masks(model, keep[None], images, labels, outcomes=("loss", "class_correct"))
    with torch.no_grad():
        loss = mean_loss(smaller, labels)(torch.from_numpy(images)).item()
    assert float(sums["loss"][0]) == pytest.approx(loss, abs=1e-5)
    right, (second, first) = expected.argmax(axis=1) == labels, np.sort(expected, axis=1)[:, -2:].T
    by_class = np.bincount(labels[right], minlength=10)
    ties = np.bincount(labels[first - second < TIE], minlength=10)
    assert (np.abs(np.asarray(sums["class_correct"][0]) - by_class) <= ties).all()


def test_prune_equals_torch_pruning(model, smaller, keep, examples):
    pruning = pytest.importorskip("jaxablate.pruning")
    images, _ = examples
    small = pruning.prune(model, keep, np.zeros(len(keep), np.float32))
    assert small.hidden == (16, 15, 9)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(small(images), logits_of(smaller, images), atol=1e-5)
