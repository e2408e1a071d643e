"""Mark the sites of a network: the places whose neurons can be ablated.

Input: a small module, `Site`, that you put after an activation function; or `with_sites`, which puts it there.
Output: a model with the same outputs, in which masks can replace the outputs of neurons.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx

from jaxablate._checks import InputError, require, require_known

REDUCTIONS = {"mean": jnp.mean, "max": jnp.max}
_call_numbers = itertools.count()


class SiteVariable(nnx.Variable):
    """The mask, fill and scale of a site. It is not an `nnx.Param`, so no optimizer updates it."""


# A site's mask, fill and scale are `SiteVariable`s, not attributes: `nnx.split(model, SiteVariable, ...)` separates
# them from the weights, so that `jax.vmap` maps over many masks while the weights are shared, and no optimizer updates
# them. A site starts without a mask (a scalar `True`). It then returns its input itself, so that an unmasked model
# computes exactly what it would compute without sites.
class Site(nnx.Module):
    """A place where neurons can be ablated: put it after an activation whose last axis is the neuron or channel.

    A site returns its input unchanged until a mask is set. Under a mask, an output h becomes m h + (1 - m) (s h + f):
    m is 1 if the neuron is kept and 0 if it is ablated, f is the fill and s the scale. Mask, fill and scale are
    variables of the type `SiteVariable`: `nnx.split(model, SiteVariable, ...)` separates them for `jax.vmap`.

    Args:
        name: name of the site, unique within the model; results carry it.
        reduce: how scores reduce a neuron with several values in an example (a channel's map, a neuron at every token)
            to one number: "mean" or "max".

    Raises:
        InputError: for a name that is empty or not printable, or an unknown reduction.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, ja.Site("hidden"),
        ...                        nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> model(np.ones((5, 4), np.float32)).shape
        (5, 2)
    """

    def __init__(self, name: str, *, reduce: str = "mean"):
        require(
            isinstance(name, str) and name != "" and name.isprintable(),
            f"site: expected a printable name, got {name!r}",
        )
        require_known("reduction", reduce, REDUCTIONS)
        self.name, self.reduce = name, reduce
        self.reset()
        # While `recording`, a call appends its input to `recorded` and takes a number, by which sites are put in order.
        self.recording, self.call_number = False, -1
        self.recorded = nnx.List([])

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Return the outputs [example, ..., neuron], with the outputs of ablated neurons replaced."""
        if self.recording:
            self.call_number = next(_call_numbers)
            self.recorded.append(SiteVariable(outputs))
        keep, scale = self.keep[...], self.scale[...]
        if keep.ndim == 0:  # no mask is set; ndim is known while JAX traces, the values are not
            return outputs
        return apply_masks(outputs, keep, self.fill[...], scale if scale.ndim else None)

    def set(self, keep: jax.Array, fill: jax.Array, scale: jax.Array | None = None) -> None:
        """Set a mask: keep bool [neuron], True = kept; fill and scale (None for 0) as in `apply_masks`."""
        self.keep, self.fill = SiteVariable(keep), SiteVariable(fill)
        self.scale = SiteVariable(jnp.array(0.0, jnp.float32) if scale is None else scale)

    def reset(self) -> None:
        """Remove the mask: every neuron is kept."""
        self.set(jnp.array(True), jnp.array(0.0, jnp.float32))


def ablated_values(outputs: jax.Array, fill: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Return the outputs that neurons have when they are ablated: scale * outputs + fill, or the fill without a scale.

    A fill [example, neuron] is used at every place of an example if the outputs have more axes.
    """
    if 1 < fill.ndim < outputs.ndim:
        # [example, neuron] becomes [example, 1, ..., neuron] and is broadcast over the positions.
        fill = fill.reshape(len(fill), *(1,) * (outputs.ndim - fill.ndim), *fill.shape[1:])
    return fill if scale is None else scale * outputs + fill


def apply_masks(outputs: jax.Array, keep: jax.Array, fill: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Return outputs [example, ..., neuron] in which ablated neurons have their `ablated_values`.

    Args:
        outputs: [example, ..., neuron].
        keep: bool [neuron], True = kept.
        fill: [neuron], [example, neuron], or of the shape of the outputs.
        scale: [neuron], or None for 0.
    """
    return jnp.where(keep, outputs, ablated_values(outputs, fill, scale)).astype(outputs.dtype)


class Chain(nnx.Sequential):
    """A sequence of layers with sites between them: the kind of model that ablates fastest.

    The layers before the first ablated site run once for all masks. If an `nnx.Linear` follows a site, the incremental
    engine applies. A plain `nnx.Sequential` with sites is a chain too; `Chain` in addition checks the sites at once.

    Args:
        layers: modules or functions, among them sites; an `nnx.Sequential` among the layers is flattened.

    Raises:
        InputError: if there is no site, two sites share a name, or no layer follows the last site.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> model = ja.Chain(nnx.Linear(4, 3, rngs=rngs), nnx.relu, ja.Site("hidden"), nnx.Linear(3, 2, rngs=rngs))
        >>> ja.mean_activations(model, np.ones((5, 4), np.float32)).shape
        (3,)
    """

    def __init__(self, *layers: Callable):
        flat = list(flatten_layers(layers))
        for index, layer in enumerate(flat):
            require(
                callable(layer), f"chain: expected modules or functions, got {type(layer).__name__} as layer {index}"
            )
        require_distinct([layer for layer in flat if isinstance(layer, Site)])
        require(not isinstance(flat[-1], Site), "chain: no layer follows the last site; add the layer of the logits")
        super().__init__(*flat)


def is_plain_sequential(layer: object) -> TypeGuard[nnx.Sequential]:
    """Return True for an `nnx.Sequential` whose call no subclass has replaced."""
    return isinstance(layer, nnx.Sequential) and type(layer).__call__ is nnx.Sequential.__call__


def flatten_layers(layers: Sequence[Callable]) -> Iterator[Callable]:
    """Yield the layers of a sequential; an `nnx.Sequential` among them is replaced by its layers."""
    for layer in layers:
        if is_plain_sequential(layer):
            yield from flatten_layers(layer.layers)
        else:
            yield layer


def require_distinct(sites: Sequence[Site]) -> None:
    """Raise unless there is a site and all names of sites differ."""
    require(
        len(sites) > 0,
        "model: it has no sites; put ja.Site(name) after an activation, or use ja.with_sites for an nnx.Sequential",
    )
    names = [site.name for site in sites]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(
            f"site {repeated[0]!r}: the model has {names.count(repeated[0])} sites of that name, or applies one of "
            "them again; use a new ja.Site with a new name for each place"
        )


After = Callable | type | int | tuple
"""A function, a type of module, or the index of a layer: a number, or a tuple of numbers into nested sequentials."""


def with_sites(
    model: nnx.Sequential, after: After | list[After], *, names: Sequence[str] | None = None, reduce: str = "mean"
) -> Chain:
    """Add sites to a sequential model; the result shares its layers and weights.

    Args:
        model: the model.
        after: the layers that a site follows: a function such as `nnx.relu`, a type of module, the index of a layer (a
            tuple of indices into nested sequentials), or a list of these.
        names: one name for each site, in order; None for "layer1", "layer2", ...
        reduce: as in `Site`.

    Returns:
        A `Chain` with the same outputs.

    Raises:
        InputError: for a model that is not an `nnx.Sequential`, an `after` that matches no layer, or a number of names
            that is not the number of sites.

    Example:
        >>> plain = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> model = ja.with_sites(plain, after=nnx.relu)
        >>> bool((model(np.ones((1, 4))) == plain(np.ones((1, 4)))).all())
        True
    """
    require(
        is_plain_sequential(model),
        f"model: expected an nnx.Sequential, got {type(model).__name__}; in other models put ja.Site(name) after the "
        "activations",
    )
    criteria = after if isinstance(after, list) else [after]
    require(len(criteria) > 0, "after: the list is empty; name at least one function, type or index")
    indexed = list(_indexed_layers(model.layers))
    # matches[criterion][layer]; the last layer gives the logits, so no site can follow it
    matches = [[_matches(criterion, path, layer) for path, layer in indexed[:-1]] for criterion in criteria]
    for criterion, row in zip(criteria, matches, strict=True):
        require(
            any(row),
            f"after: no layer before the last matches {getattr(criterion, '__name__', criterion)!r}; choose among "
            + ", ".join(f"{'.'.join(map(str, path))} {_name_of(layer)}" for path, layer in indexed),
        )
    is_followed = [any(column) for column in zip(*matches, strict=True)]
    names = [f"layer{i}" for i in range(1, sum(is_followed) + 1)] if names is None else list(names)
    require(len(names) == sum(is_followed), f"names: expected {sum(is_followed)}, one for each site, got {len(names)}")
    layers, next_names = [], iter(names)
    for (_, layer), followed in zip(indexed, [*is_followed, False], strict=True):
        layers += [layer, Site(next(next_names), reduce=reduce)] if followed else [layer]
    return Chain(*layers)


def _indexed_layers(
    layers: Sequence[Callable], path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Callable]]:
    """Yield each layer with its index in each of the nested sequentials that lead to it."""
    for index, layer in enumerate(layers):
        if is_plain_sequential(layer):
            yield from _indexed_layers(layer.layers, (*path, index))
        else:
            yield (*path, index), layer


def _matches(after: After, path: tuple[int, ...], layer: Callable) -> bool:
    """Return True if `after` names the layer at this path."""
    if isinstance(after, type):
        return isinstance(layer, after)
    if isinstance(after, int | tuple):
        return path == ((after,) if isinstance(after, int) else after)
    return layer is after


def _name_of(layer: Callable) -> str:
    return getattr(layer, "__name__", type(layer).__name__)
