"""Prune a network: remove neurons for good, with the same outputs as the masked network.

Input: an `MLP` or a chain (an `nnx.Sequential` with `ja.Site` layers), a mask, a fill.
Output: a smaller network of the same kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxablate._checks import InputError, require, require_finite, require_shape
from jaxablate._precision import matmul_precision
from jaxablate._typing import Fill, Images, Mask
from jaxablate.models import MLP, AnyModel, Site, from_arrays
from jaxablate.models._layers import Layer, apply_layers, flatten_layers, is_plain_sequential
from jaxablate.models._mlp import is_mlp
from jaxablate.models._model import start_forward, trace_model

LINEAR = (nnx.Linear, nnx.Conv)
SAFE = nnx.BatchNorm | nnx.Dropout  # modules that do not mix units

TOLERANCES = {jnp.dtype("float32"): 1e-4}  # relative to the largest logit; float32 sums in another order differ by less
LOW_PRECISION = 0.03


@overload
def prune(model: MLP, keep: Mask, fill: Fill | None = None, *, images: Images | None = None) -> MLP: ...
@overload
def prune(
    model: nnx.Sequential, keep: Mask, fill: Fill | None = None, *, images: Images | None = None
) -> nnx.Sequential: ...
def prune(
    model: MLP | nnx.Sequential, keep: Mask, fill: Fill | None = None, *, images: Images | None = None
) -> MLP | nnx.Sequential:
    """Remove neurons for good and return a smaller network with the outputs of the masked network.

    A removed unit takes its incoming and outgoing weights with it. The contribution of its fill to the next linear map
    is added to that map's bias.

    Args:
        model: an `MLP`, or an `nnx.Sequential` with `ja.Site` layers, in evaluation mode. Each site follows an
            `nnx.Linear` or `nnx.Conv`, with activation functions, pooling, batch norm or dropout in between. Another
            `nnx.Linear` or `nnx.Conv` follows the site; flattening may also lie in between.
        keep: bool [neuron] over all sites in network order, True = kept; at least one at each site.
        fill: float [neuron], the outputs of removed neurons; None for zeros. A fill other than zero before an
            `nnx.Conv` with padding cannot be folded into a bias.
        images: [example, ...], at least one example for a chain: it gives the shapes, and the outputs of both networks
            are compared on it. Not needed for an `MLP`.

    Returns:
        A network of the same kind in evaluation mode with the same activation functions, sites and remaining weights.
        `ja.pruning.count_parameters` and `ja.pruning.count_flops` compare the two networks.

    Raises:
        InputError: for a mask or fill of another width, a site that would lose all its neurons, or a chain with layers
            between its sites that mix units.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.prune(model, np.array([True, False, True, True, True])).hidden
        (2, 2)
    """
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    if is_mlp(model):
        # An image of zeros serves to trace an MLP. The logits are not compared: cutting an MLP is plain algebra.
        images = np.zeros((1, model.stages[0].linear.in_features), np.float32)
    else:
        require(is_plain_sequential(model), f"model: expected an MLP or a chain, got {type(model).__name__}")
        require(images is not None, "images: expected an example of what the chain takes, got none")
        require(
            any(isinstance(module, Site) for _, module in nnx.iter_modules(model)),
            "model: expected ja.Site layers, got none; put ja.Site(name) after each activation function to prune",
        )
    assert images is not None
    network, state, images = trace_model(model, images)
    require_shape("keep", keep, (network.num_neurons,), "neuron")
    require(
        fill is None or isinstance(fill, np.ndarray | jax.Array | list | tuple),
        f"fill: expected numbers [neuron], the same for every example, got {type(fill).__name__}",
    )
    values = np.zeros(network.num_neurons, np.float32) if fill is None else np.asarray(fill, np.float32)
    require_shape("fill", values, (network.num_neurons,), "neuron")
    require_finite("fill", values)
    keeps, fills = (np.split(array, network.offsets[1:-1]) for array in (keep, values))
    for site, kept in zip(network.sites, keeps, strict=True):
        require(bool(kept.any()), f"keep: expected at least one neuron of site {site!r}, got none")
    with jax.default_matmul_precision(matmul_precision()):
        if is_mlp(model):
            return _pruned_mlp(model, keeps, fills)
        assert is_plain_sequential(model)
        small = nnx.clone(model)
        small.eval()
        small = _pruned_chain(small, keeps, fills, images)
        masks = {
            i: (jnp.asarray(kept), jnp.asarray(fill), None)
            for i, (kept, fill) in enumerate(zip(keeps, fills, strict=True))
        }
        masked = start_forward(network, state, images, masks)(masks)
        masked_logits, logits = (np.asarray(array, np.float32) for array in (masked, small(images)))
        tolerance = TOLERANCES.get(masked.dtype, LOW_PRECISION)
    difference, size = float(np.abs(masked_logits - logits).max()), float(np.abs(masked_logits).max())
    require(
        difference <= tolerance * size,
        f"model: logits of the pruned chain differ by {difference:g} from the masked chain's (up to {size:g}); "
        "the layers around its sites mix units or positions, so mask the chain instead",
    )
    return small


def count_parameters(model: AnyModel) -> int:
    """Count the trainable numbers of a model.

    Args:
        model: an NNX module, or a `ja.models.Model`.

    Returns:
        The total size of all `nnx.Param`; for a `ja.models.Model` of all its parameters.

    Example:
        >>> ja.pruning.count_parameters(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)))
        23
    """
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param)) if isinstance(model, nnx.Module) else model.state
    return sum(leaf.size for leaf in leaves)


def count_flops(model: AnyModel, images: Images) -> int:
    """Count the floating-point operations for one example, as XLA reports them.

    Args:
        model: a network with sites, in evaluation mode.
        images: [example, ...], at least one example, as the model takes them.

    Returns:
        Multiplications and additions count one each; the body of a loop counts once.

    Example:
        >>> ja.pruning.count_flops(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), np.zeros((1, 4), np.float32)) >= 2 * 18
        True
    """
    network, state, images = trace_model(model, images)
    # Lowered, not compiled: the analysis counts the operations that the model asks for, before XLA fuses any.
    program = jax.jit(lambda state, images: start_forward(network, state, images, ())({})).lower(state, images[:1])
    analysis = program.cost_analysis()
    assert analysis is not None
    return int(analysis["flops"])


def _pruned_mlp(model: MLP, keeps: Sequence[np.ndarray], fills: Sequence[np.ndarray]) -> MLP:
    """Return the smaller network, from the mask and fill of each hidden layer."""
    weights = [tuple(map(np.asarray, stage.weights)) for stage in model.stages]
    kernels, biases = [kernel for kernel, _ in weights], [bias for _, bias in weights]
    for i, (kept, fill) in enumerate(zip(keeps, fills, strict=True)):
        kernels[i], biases[i] = kernels[i][:, kept], biases[i][kept]
        # W h + b with constant h_j for the removed j: sum_j fill_j W_j joins the bias, and the rows of W go.
        biases[i + 1] = biases[i + 1] + fill[~kept] @ kernels[i + 1][~kept]
        kernels[i + 1] = kernels[i + 1][kept]
    return from_arrays(kernels, biases, activation=model.activation)


@dataclass
class _Cut:
    """The change of a linear map: kept inputs and outputs (None keeps all), and an addition to its bias."""

    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None
    bias: np.ndarray | None = None


# Pruning one site of a chain. `maker` is the linear map before the site, `reader` the one after it.
#   maker -> activation, norm, pooling -> site -> pooling, flattening -> reader
# A removed unit takes away one output column of the maker, its entries in batch norms in between, and all inputs of
# the reader that depend on it. Flattening and pooling may spread a unit over many inputs; `_owners` finds them by
# raising one unit at a time, so that any function may lie in between as long as it does not mix units.
# The removed units' constant fill enters the reader as a constant, which its bias takes over. This fails only if the
# constant differs between positions, as at the padding of a convolution. Finally `prune` compares the logits
# of both networks.
def _pruned_chain(
    model: nnx.Sequential, keeps: Sequence[np.ndarray], fills: Sequence[np.ndarray], images: jax.Array
) -> nnx.Sequential:
    """Cut the layers of `model` in place and return them as the smaller chain."""
    layers = list(flatten_layers(model.layers))
    _require_prunable(layers)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, Site)]
    sites = [layer for layer in layers if isinstance(layer, Site)]
    cuts = {i: _Cut() for i, layer in enumerate(layers) if type(layer) in LINEAR}
    norms: list[tuple[nnx.BatchNorm, np.ndarray]] = []
    for place, site, kept, fill in zip(places, sites, keeps, fills, strict=True):
        if kept.all():
            continue
        maker, reader = (_neighbour(layers, place, site.name, where) for where in ("before", "after"))
        between = layers[place + 1 : reader]
        outputs = apply_layers(layers[:place], images[:1])
        owner = _owners(site, between, outputs.shape)
        removed = ~kept[owner]
        filled = apply_layers(between, jnp.broadcast_to(jnp.asarray(fill), outputs.shape))
        folded = _folded(layers[reader], jnp.where(removed, filled, 0), site.name)
        cuts[maker].outputs = kept
        cuts[reader].inputs, cuts[reader].bias = ~removed, folded
        norms += [(layer, kept) for layer in layers[maker:reader] if isinstance(layer, nnx.BatchNorm)]
        for norm in (layer for layer in between if isinstance(layer, nnx.BatchNorm)):
            require(
                norm.num_features == len(kept),
                f"site {site.name!r}: expected a batch norm of its {len(kept)} units before the next linear map, got "
                f"one of {norm.num_features}; put it before the flattening",
            )
    for norm, kept in norms:
        _cut_norm(norm, kept)
    for i, cut in cuts.items():
        layer = layers[i]
        assert isinstance(layer, LINEAR)
        _cut_linear(layer, cut)
    return nnx.Sequential(*layers)


def _require_prunable(layers: Sequence[Layer]) -> None:
    """Raise for layers that cannot be cut: layers used twice, or with masks or groups."""
    cut = [layer for layer in layers if isinstance(layer, (*LINEAR, nnx.BatchNorm))]
    for layer in cut:
        name = type(layer).__name__
        require(
            sum(candidate is layer for candidate in cut) == 1,
            f"model: expected each layer once, got an nnx.{name} that is used twice; create one layer for each use",
        )
        require(
            getattr(layer, "feature_group_count", 1) == 1 and getattr(layer, "mask", None) is None,
            f"model: expected convolutions without groups and masks, got an nnx.{name} with one",
        )


def _neighbour(layers: Sequence[Layer], place: int, site: str, where: str) -> int:
    """Return the index of the linear map "before" or "after" a site.

    Raises:
        InputError: if there is none, or a module in between may mix units.
    """
    indices = range(place - 1, -1, -1) if where == "before" else range(place + 1, len(layers))
    for i in indices:
        if type(layers[i]) in LINEAR:
            return i
        require(
            not isinstance(layers[i], nnx.Module) or isinstance(layers[i], SAFE),
            f"site {site!r}: expected an nnx.Linear or nnx.Conv {where} it (with functions, batch norm or dropout "
            f"between), got {type(layers[i]).__name__}",
        )
    raise InputError(f"site {site!r}: expected an nnx.Linear or nnx.Conv {where} it, got none")


def _owners(site: Site, between: Sequence[Layer], shape: tuple[int, ...]) -> np.ndarray:
    """Return the unit on which each input [feature] of the next linear map depends.

    The layers in between (pooling, flattening) may be any functions. One unit at a time is therefore raised, and the
    features that change are recorded.

    Raises:
        InputError: for a feature that depends on several units, or on none.
    """
    start = jnp.full(shape, 0.5)
    still = apply_layers(between, start)
    one_up = jax.vmap(lambda unit: apply_layers(between, start + 0.5 * jax.nn.one_hot(unit, shape[-1])) != still)
    depends = np.asarray(one_up(jnp.arange(shape[-1]))).reshape(shape[-1], -1, still.shape[-1]).any(axis=1)
    require(
        bool((depends.sum(axis=0) <= 1).all()),
        f"site {site.name!r}: layers between it and the next linear map mix its units; move the site after them",
    )
    require(
        bool(depends.any(axis=0).all()),
        f"site {site.name!r}: some inputs of the next linear map depend on none of its units; move the site after the "
        "layers that add them",
    )
    return depends.argmax(axis=0)


def _folded(reader: Layer, inputs: jax.Array, site: str) -> np.ndarray:
    """Return the contribution of constant inputs to a linear map's outputs, which its bias takes over.

    Raises:
        InputError: if the contribution differs between positions, for example at the padding of a convolution.
    """
    added = np.asarray(reader(inputs) - reader(jnp.zeros_like(inputs)))
    added = added.reshape(-1, added.shape[-1])
    require(
        np.allclose(added, added[0], atol=1e-6 + 1e-5 * np.abs(added).max()),
        f"site {site!r}: a fill other than 0 cannot be folded into the bias of a convolution with padding; prune "
        "with zeros or use padding 'VALID'",
    )
    return added[0]


def _cut_norm(norm: nnx.BatchNorm, kept: np.ndarray) -> None:
    """Cut a batch norm to the kept units, in place."""
    for name in ("scale", "bias", "mean", "var"):
        variable = getattr(norm, name)
        if variable is not None:
            setattr(norm, name, type(variable)(variable[...][kept]))
    norm.num_features = int(kept.sum())


def _cut_linear(layer: nnx.Linear | nnx.Conv, cut: _Cut) -> None:
    """Cut a linear map to the kept inputs and outputs and add to its bias, in place."""
    kernel = layer.kernel[...]
    bias = None if layer.bias is None else layer.bias[...]
    # The bias is added first: `cut.bias` has an entry for each output, also for those cut below. A map without bias
    # gets one only if a fill asks for it.
    if cut.bias is not None and (bias is not None or cut.bias.any()):
        bias = cut.bias if bias is None else bias + cut.bias
    if cut.inputs is not None:
        kernel = kernel[..., cut.inputs, :]
    if cut.outputs is not None:
        kernel, bias = kernel[..., cut.outputs], None if bias is None else bias[cut.outputs]
    layer.kernel = nnx.Param(kernel)
    if bias is not None:
        layer.bias, layer.use_bias = nnx.Param(jnp.asarray(bias, kernel.dtype)), True
    layer.in_features, layer.out_features = kernel.shape[-2:]
    if isinstance(layer, nnx.Conv):
        layer.kernel_shape = kernel.shape
