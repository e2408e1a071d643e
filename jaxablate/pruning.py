"""Pruning: a network, a mask and a fill come in, a smaller network with the same outputs goes out.

Where a unit goes, so do the weights that make it and those that read it; what its fill would have added to the next
linear map goes into that map's bias.
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
from jaxablate.models import MLP, Chain, Model, Site, from_arrays
from jaxablate.models._network import Layer, apply_layers, is_mlp, trace_model
from jaxablate.models._sites import flatten_layers, is_plain_sequential

LINEAR = (nnx.Linear, nnx.Conv)
SAFE = nnx.BatchNorm | nnx.Dropout  # modules that keep units apart

TOLERANCES = {jnp.dtype("float32"): 1e-4}  # of the largest logit: what rounding may make of a sum in another order
LOW_PRECISION = 0.03


@overload
def prune(model: MLP, keep: Mask, fill: Fill | None = None, *, images: Images | None = None) -> MLP: ...
@overload
def prune(model: nnx.Sequential, keep: Mask, fill: Fill | None = None, *, images: Images | None = None) -> Chain: ...
def prune(model: Model, keep: Mask, fill: Fill | None = None, *, images: Images | None = None) -> Model:
    """Remove neurons for good: a smaller network that puts out what the masked one does.

    Args:
        model: an `MLP` or a chain (`Chain`, `nnx.Sequential` with sites), as if in evaluation mode. Each site stands
            behind an `nnx.Linear` or `nnx.Conv` (activation functions, pooling, batch norm and dropout may lie between)
            and before another one (flattening too may lie between).
        keep: bool [neuron] over all sites in network order, True = kept; at least one at each site.
        fill: float [neuron], what removed neurons stood at; None for zeros. A fill other than zero before an `nnx.Conv`
            that pads cannot be folded into its bias.
        images: [example, ...], an example or more of what a chain takes, from which shapes are found and on which the
            outputs are compared; not needed for an `MLP`.

    Returns:
        A network of the same kind in evaluation mode, its activation functions, sites and remaining weights as before.
        `count_parameters` and `count_flops` of `jaxablate.pruning` compare the two.

    Raises:
        InputError: for a mask or fill of another width, a site that would lose all its neurons, or a chain whose units
            cannot be told apart between its sites.

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> ja.prune(model, np.array([True, False, True, True, True])).hidden
        (2, 2)
    """
    keep = np.asarray(keep)
    require(keep.dtype == bool, f"keep: expected booleans (True = kept), got dtype {keep.dtype}")
    if is_mlp(model):
        images = np.zeros((1, model.stages[0].linear.in_features), np.float32)
    else:
        require(is_plain_sequential(model), f"model: expected an MLP or a chain, got {type(model).__name__}")
        require(images is not None, "images: expected an example of what the chain takes, got none")
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
        masked = nnx.merge(network.graphdef, state, copy=True)
        small = _pruned_chain(nnx.merge(network.graphdef, state, copy=True), keeps, fills, images)
        sites = [layer for layer in flatten_layers(masked.layers) if isinstance(layer, Site)]
        for site, kept, values in zip(sites, keeps, fills, strict=True):
            site.set(jnp.asarray(kept), jnp.asarray(values))
        wanted, found = (np.asarray(of(images), np.float32) for of in (masked, small))
        tolerance = TOLERANCES.get(masked(images[:1]).dtype, LOW_PRECISION)
    difference, size = float(np.abs(wanted - found).max()), float(np.abs(wanted).max())
    require(
        difference <= tolerance * size,
        f"model: expected the pruned chain to put out what the masked one does, got a difference of {difference:g} "
        f"where logits are up to {size:g}; layers around its sites mix units or places",
    )
    return small


def count_parameters(model: Model) -> int:
    """The number of trainable numbers.

    Args:
        model: any module.

    Returns:
        The sizes of all `nnx.Param`, added.

    Example:
        >>> ja.pruning.count_parameters(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)))
        23
    """
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_flops(model: Model, images: Images) -> int:
    """The floating point operations of one example, as XLA counts them.

    Args:
        model: a network with sites, as if in evaluation mode.
        images: [example, ...], an example or more of what it takes.

    Returns:
        Multiplications and additions each count one; a loop's body counts once.

    Example:
        >>> ja.pruning.count_flops(ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), np.zeros((1, 4), np.float32)) >= 2 * 18
        True
    """
    network, state, images = trace_model(model, images)
    program = jax.jit(lambda state, images: nnx.merge(network.graphdef, state)(images)).lower(state, images[:1])
    analysis = program.cost_analysis()
    assert analysis is not None
    return int(analysis["flops"])


def _pruned_mlp(model: MLP, keeps: Sequence[np.ndarray], fills: Sequence[np.ndarray]) -> MLP:
    """The smaller network, from the mask and fill of each hidden layer."""
    weights = [tuple(map(np.asarray, stage.weights)) for stage in model.stages]
    kernels, biases = [kernel for kernel, _ in weights], [bias for _, bias in weights]
    for i, (kept, fill) in enumerate(zip(keeps, fills, strict=True)):
        kernels[i], biases[i] = kernels[i][:, kept], biases[i][kept]
        biases[i + 1] = biases[i + 1] + fill[~kept] @ kernels[i + 1][~kept]
        kernels[i + 1] = kernels[i + 1][kept]
    return from_arrays(kernels, biases, activation=model.activation)


@dataclass
class _Cut:
    """What becomes of a linear map: which inputs and outputs stay (None: all), and what is added to its bias."""

    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None
    bias: np.ndarray | None = None


def _pruned_chain(
    model: nnx.Sequential, keeps: Sequence[np.ndarray], fills: Sequence[np.ndarray], images: jax.Array
) -> Chain:
    """The smaller chain, whose layers are those of `model` changed in place."""
    links = list(flatten_layers(model.layers))
    _require_prunable(links)
    places = [i for i, link in enumerate(links) if isinstance(link, Site)]
    sites = [link for link in links if isinstance(link, Site)]
    cuts = {i: _Cut() for i, link in enumerate(links) if type(link) in LINEAR}
    norms: list[tuple[nnx.BatchNorm, np.ndarray]] = []
    for place, site, kept, fill in zip(places, sites, keeps, fills, strict=True):
        if kept.all():
            continue
        maker, reader = (_neighbour(links, place, site.name, where) for where in ("before", "behind"))
        between = links[place + 1 : reader]
        outputs = apply_layers(links[:place], images[:1])
        owner = _owners(site, between, outputs.shape)
        removed = ~kept[owner]
        filled = apply_layers(between, jnp.broadcast_to(jnp.asarray(fill), outputs.shape))
        folded = _folded(links[reader], jnp.where(removed, filled, 0), site.name)
        cuts[maker].outputs = kept
        cuts[reader].inputs, cuts[reader].bias = ~removed, folded
        norms += [(link, kept) for link in links[maker:reader] if isinstance(link, nnx.BatchNorm)]
        for norm in (link for link in between if isinstance(link, nnx.BatchNorm)):
            require(
                norm.num_features == len(kept),
                f"site {site.name!r}: expected a batch norm of its {len(kept)} units before the next linear map, got "
                f"one of {norm.num_features}; put it before the flattening",
            )
    for norm, kept in norms:
        _cut_norm(norm, kept)
    for i, cut in cuts.items():
        layer = links[i]
        assert isinstance(layer, LINEAR)
        _cut_linear(layer, cut)
    return Chain(*links)


def _require_prunable(links: Sequence[Layer]) -> None:
    """Raise for layers that cannot be cut: used twice, or with a mask or groups of their own."""
    cut = [link for link in links if isinstance(link, (*LINEAR, nnx.BatchNorm))]
    for link in cut:
        name = type(link).__name__
        require(
            sum(other is link for other in cut) == 1,
            f"model: expected each layer once, got an nnx.{name} that is used again; give each place a layer of its "
            "own",
        )
        require(
            getattr(link, "feature_group_count", 1) == 1 and getattr(link, "mask", None) is None,
            f"model: expected convolutions without groups and masks, got an nnx.{name} with one",
        )


def _neighbour(links: Sequence[Layer], place: int, site: str, where: str) -> int:
    """The linear map "before" or "behind" a site, by its place.

    Raises:
        InputError: if there is none, or a module that may mix units lies between.
    """
    others = range(place - 1, -1, -1) if where == "before" else range(place + 1, len(links))
    for i in others:
        if type(links[i]) in LINEAR:
            return i
        require(
            not isinstance(links[i], nnx.Module) or isinstance(links[i], SAFE),
            f"site {site!r}: expected an nnx.Linear or nnx.Conv {where} it (with functions, batch norm or dropout "
            f"between), got {type(links[i]).__name__}",
        )
    raise InputError(f"site {site!r}: expected an nnx.Linear or nnx.Conv {where} it, got none")


def _owners(site: Site, between: Sequence[Layer], shape: tuple[int, ...]) -> np.ndarray:
    """The unit that each feature [feature] of what the next linear map reads depends on.

    Found by raising one unit at a time, since the links between (pooling, flattening) may be any functions.

    Raises:
        InputError: for a feature that depends on several units, or on none.
    """
    start = jnp.full(shape, 0.5)
    still = apply_layers(between, start)
    one_up = jax.vmap(lambda unit: apply_layers(between, start + 0.5 * jax.nn.one_hot(unit, shape[-1])) != still)
    depends = np.asarray(one_up(jnp.arange(shape[-1]))).reshape(shape[-1], -1, still.shape[-1]).any(axis=1)
    require(
        bool((depends.sum(axis=0) <= 1).all()),
        f"site {site.name!r}: expected layers behind it that keep units apart up to the next linear map, got some that "
        "mix them",
    )
    require(
        bool(depends.any(axis=0).all()),
        f"site {site.name!r}: expected layers behind it that pass every unit on up to the next linear map, got some "
        "that put out features of none",
    )
    return depends.argmax(axis=0)


def _folded(reader: Layer, inputs: jax.Array, site: str) -> np.ndarray:
    """What inputs that are always the same add to a linear map's bias.

    Raises:
        InputError: if they add different amounts at different places, as where a convolution pads.
    """
    added = np.asarray(reader(inputs) - reader(jnp.zeros_like(inputs)))
    added = added.reshape(-1, added.shape[-1])
    require(
        np.allclose(added, added[0], atol=1e-6 + 1e-5 * np.abs(added).max()),
        f"site {site!r}: expected a fill of 0 before a convolution that pads, got another, which its bias cannot stand "
        "for; prune with zeros or use padding 'VALID'",
    )
    return added[0]


def _cut_norm(norm: nnx.BatchNorm, kept: np.ndarray) -> None:
    """Keep some units of a batch norm."""
    for name in ("scale", "bias", "mean", "var"):
        variable = getattr(norm, name)
        if variable is not None:
            setattr(norm, name, type(variable)(variable[...][kept]))
    norm.num_features = int(kept.sum())


def _cut_linear(layer: nnx.Linear | nnx.Conv, cut: _Cut) -> None:
    """Keep some inputs and outputs of a linear map, and add to its bias."""
    kernel = layer.kernel[...]
    bias = None if layer.bias is None else layer.bias[...]
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
