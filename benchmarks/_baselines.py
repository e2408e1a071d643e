"""Baselines for the engines: NumPy, a naive JAX loop, PyTorch as in the paper's notebooks, `torch.func.vmap`.

Every function takes keep, bool [mask, neuron], and counts correct predictions; ablated neurons output the fill.
PyTorch and captum are optional: `pip install ".[bench]"`.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxablate as ja


def numpy_loop(model: ja.MLP, keep, fill, images, labels) -> np.ndarray:
    """Run a full forward pass in NumPy for each mask."""
    weights = [tuple(map(np.asarray, stage.weights)) for stage in model.stages]
    splits = np.cumsum(model.hidden)[:-1]
    fills = np.split(fill, splits)
    pixels = np.asarray(images).reshape(len(images), -1)
    counts = []
    for mask in keep:
        outputs = pixels
        for (kernel, bias), m, f in zip(weights[:-1], np.split(mask, splits), fills, strict=True):
            outputs = np.where(m, 1 / (1 + np.exp(-(outputs @ kernel + bias))), f)
        logits = outputs @ weights[-1][0] + weights[-1][1]
        counts.append((logits.argmax(axis=1) == labels).sum())
    return np.array(counts)


@jax.jit
def _one_mask(weights, mask, fills, pixels, labels):
    outputs = pixels
    for (kernel, bias), m, f in zip(weights[:-1], mask, fills, strict=True):
        outputs = jnp.where(m, jax.nn.sigmoid(outputs @ kernel + bias), f)
    logits = outputs @ weights[-1][0] + weights[-1][1]
    return (logits.argmax(axis=1) == labels).sum()


def naive_jax(model: ja.MLP, keep, fill, images, labels) -> np.ndarray:
    """Run one jitted full forward pass for each mask, in a Python loop."""
    weights = [stage.weights for stage in model.stages]
    splits = np.cumsum(model.hidden)[:-1]
    fills = jnp.split(jnp.asarray(fill), splits)
    pixels, labels = jnp.asarray(images).reshape(len(images), -1), jnp.asarray(labels)
    masks = [np.split(mask, splits) for mask in keep]
    return np.array([int(_one_mask(weights, mask, fills, pixels, labels)) for mask in masks])


def _torch_parts(model: ja.MLP, fill, images, labels):
    import torch  # pyright: ignore[reportMissingImports] (optional)

    weights = [tuple(torch.from_numpy(np.array(array)) for array in stage.weights) for stage in model.stages]
    fills = torch.split(torch.from_numpy(np.array(fill)), list(model.hidden))
    pixels = torch.from_numpy(np.array(images).reshape(len(images), -1))
    return torch, weights, fills, pixels, torch.from_numpy(np.array(labels)).long()


def torch_data_loader(model: ja.MLP, keep, fill, images, labels) -> np.ndarray:
    """Iterate over a `DataLoader` in batches of 32 for each mask, as the paper's notebooks do."""
    import torch  # pyright: ignore[reportMissingImports] (optional)

    data = torch.utils.data.TensorDataset(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)))
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    return torch_batches_of_32(model, keep, fill, images, labels, lambda pixels, labels: loader)


def torch_batches_of_32(model: ja.MLP, keep, fill, images, labels, batches=None) -> np.ndarray:
    """Iterate over slices of 32 examples for each mask, without a `DataLoader`."""
    torch, weights, fills, pixels, labels = _torch_parts(model, fill, images, labels)
    counts = []
    with torch.no_grad():
        for mask in keep:
            masks = torch.split(torch.from_numpy(mask), list(model.hidden))
            correct = 0
            for x, y in batches(pixels, labels) if batches else zip(pixels.split(32), labels.split(32), strict=True):
                x = x.flatten(1)
                for (kernel, bias), m, f in zip(weights[:-1], masks, fills, strict=True):
                    x = torch.where(m, torch.sigmoid(x @ kernel + bias), f)
                correct += ((x @ weights[-1][0] + weights[-1][1]).argmax(dim=1) == y).sum().item()
            counts.append(correct)
    return np.array(counts)


def torch_func_vmap(model: ja.MLP, keep, fill, images, labels, masks_per_batch: int = 10) -> np.ndarray:
    """Map `torch.func.vmap` over the masks; the first layer is computed once."""
    torch, weights, fills, pixels, labels = _torch_parts(model, fill, images, labels)

    def count(mask, first):
        masks = torch.split(mask, list(model.hidden))
        outputs = torch.where(masks[0], first, fills[0])
        for (kernel, bias), m, f in zip(weights[1:-1], masks[1:], fills[1:], strict=True):
            outputs = torch.where(m, torch.sigmoid(outputs @ kernel + bias), f)
        return ((outputs @ weights[-1][0] + weights[-1][1]).argmax(dim=1) == labels).sum()

    with torch.no_grad():
        first = torch.sigmoid(pixels @ weights[0][0] + weights[0][1])
        batches = torch.split(torch.from_numpy(np.array(keep)), masks_per_batch)
        counts = [torch.func.vmap(count, in_dims=(0, None))(batch, first) for batch in batches]
    return torch.cat(counts).numpy()


def captum_single_neurons(model: ja.MLP, layer: int, fill, images, labels) -> np.ndarray:
    """Return captum's `LayerFeatureAblation` of the loss [neuron]: the intact loss minus the ablated network's loss."""
    import torch  # pyright: ignore[reportMissingImports] (optional)
    from captum.attr import LayerFeatureAblation  # pyright: ignore[reportMissingImports] (optional)

    _, weights, fills, pixels, classes = _torch_parts(model, fill, images, labels)
    modules = []
    for i, (kernel, bias) in enumerate(weights):
        linear = torch.nn.Linear(kernel.shape[0], kernel.shape[1])
        linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
        modules += [linear] + ([torch.nn.Sigmoid()] if i < len(weights) - 1 else [])
    network = torch.nn.Sequential(*modules)

    def loss_of(pixels):
        return torch.nn.functional.cross_entropy(network(pixels), classes.long(), reduction="none")

    ablation = LayerFeatureAblation(loss_of, network[2 * layer + 1])
    with torch.no_grad():
        change = ablation.attribute(pixels, layer_baselines=fills[layer][None])
    assert isinstance(change, torch.Tensor)  # a tuple only for a layer of several outputs
    return change.mean(dim=0).numpy()
