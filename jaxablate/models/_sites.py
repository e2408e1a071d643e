"""Sites: where a network can be ablated, marked by a small module that a user puts behind an activation."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx

from jaxablate._checks import InputError, require, require_known
from jaxablate._typing import Labels

REDUCTIONS = {"mean": jnp.mean, "max": jnp.max}
_calls = itertools.count()


class SiteVariable(nnx.Variable):
    """What a site holds: which of its units are kept, the fill, the scale. Not a parameter: no optimiser sees it."""


class Site(nnx.Module):
    """A place where neurons can be ablated: put it behind an activation, whose last axis is the neuron or channel.

    It passes its input on as it is, until a mask is set: then a unit h becomes m h + (1 - m) (s h + f), with m 1 where
    the unit is kept, fill f and scale s. Mask, fill and scale are variables of the type `SiteVariable`, so that
    `nnx.split(model, SiteVariable, ...)` separates them and `jax.vmap` maps over them.

    Args:
        name: of the site, which no other site of the model has; results carry it.
        reduce: what stands for a unit that has several places in an example (a channel's map, a neuron at every token)
            where scores ask for one number: their "mean" or "max".

    Raises:
        InputError: for a name that is empty or cannot be printed, or an unknown reduction.

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
        self.recording, self.called_as = False, -1
        self.seen = nnx.List([])

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Pass on outputs [example, ..., unit], those of masked units replaced."""
        if self.recording:
            self.called_as = next(_calls)
            self.seen.append(SiteVariable(outputs))
        keep, scale = self.keep[...], self.scale[...]
        if keep.ndim == 0:
            return outputs
        return apply_masks(outputs, keep, self.fill[...], scale if scale.ndim else None)

    def set(self, keep: jax.Array, fill: jax.Array, scale: jax.Array | None = None) -> None:
        """Mask the units: keep bool [unit], True = kept; fill and scale (None for 0) as in `intervene`."""
        self.keep, self.fill = SiteVariable(keep), SiteVariable(fill)
        self.scale = SiteVariable(jnp.array(0.0, jnp.float32) if scale is None else scale)

    def reset(self) -> None:
        """Pass everything on again."""
        self.set(jnp.array(True), jnp.array(0.0, jnp.float32))


def ablated_values(outputs: jax.Array, fill: jax.Array, scale: jax.Array | None) -> jax.Array:
    """What units put out when ablated, from what they would: s h + f, or f without a scale.

    A fill of [example, unit] holds at every place of an example whose outputs have more axes.
    """
    if 1 < fill.ndim < outputs.ndim:
        fill = fill.reshape(len(fill), *(1,) * (outputs.ndim - fill.ndim), *fill.shape[1:])
    return fill if scale is None else scale * outputs + fill


def apply_masks(outputs: jax.Array, keep: jax.Array, fill: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Outputs [example, ..., unit] with those of units that are not kept [unit] replaced by `ablated`.

    A fill is [unit], [example, unit], or as large as the outputs; a scale is [unit].
    """
    return jnp.where(keep, outputs, ablated_values(outputs, fill, scale)).astype(outputs.dtype)


@dataclass(frozen=True)
class PerExampleFill:
    """A fill that differs between examples: each takes a row of a table, the row of its label or one at random.

    Attributes:
        tables: for each site [row, neuron], or [row, ..., neuron] as large as the site's outputs.
        key: of the random rows; None where rows are classes.
    """

    tables: tuple[jax.Array, ...]
    key: jax.Array | None = None

    def rows(self, labels: Labels) -> jax.Array:
        """The row of each example, int32 [example]."""
        if self.key is None:
            return jnp.asarray(labels, jnp.int32)
        return jax.random.randint(self.key, labels.shape, 0, len(self.tables[0]), jnp.int32)


class Chain(nnx.Sequential):
    """Layers one after another with sites between them: the model that all engines know best.

    What lies before the first ablated site is computed once for all masks, and where an `nnx.Linear` follows a site the
    incremental engine applies. A plain `nnx.Sequential` with sites counts as a chain too; this one says at once what is
    wrong with its sites.

    Args:
        layers: modules or functions, among them sites; sequentials inside are laid out flat.

    Raises:
        InputError: without a site, with two of one name, or with nothing behind the last.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> model = ja.Chain(nnx.Linear(4, 3, rngs=rngs), nnx.relu, ja.Site("hidden"), nnx.Linear(3, 2, rngs=rngs))
        >>> ja.mean_activations(model, np.ones((5, 4), np.float32)).shape
        (3,)
    """

    def __init__(self, *layers: Callable):
        flat = list(flatten_layers(layers))
        for place, layer in enumerate(flat):
            require(
                callable(layer), f"chain: expected modules or functions, got {type(layer).__name__} at place {place}"
            )
        require_distinct([layer for layer in flat if isinstance(layer, Site)])
        require(not isinstance(flat[-1], Site), "chain: expected a layer behind the last site, got none")
        super().__init__(*flat)


def is_plain_sequential(layer: object) -> TypeGuard[nnx.Sequential]:
    """Whether calling it calls its layers one after another, and nothing else."""
    return isinstance(layer, nnx.Sequential) and type(layer).__call__ is nnx.Sequential.__call__


def flatten_layers(layers: Sequence[Callable]) -> Iterator[Callable]:
    """The layers of a sequential, those of sequentials inside it in their place."""
    for layer in layers:
        if is_plain_sequential(layer):
            yield from flatten_layers(layer.layers)
        else:
            yield layer


def require_distinct(sites: Sequence[Site]) -> None:
    """Raise unless there are sites, each with a name of its own."""
    require(
        len(sites) > 0,
        "model: expected sites, got none; put ja.Site(name) behind an activation, or wrap an nnx.Sequential by "
        "ja.with_sites",
    )
    names = [site.name for site in sites]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(
            f"site {repeated[0]!r}: expected to be applied once, got {names.count(repeated[0])} sites of that name or "
            "one that is applied again; give each place a site of its own"
        )


After = Callable | type | int | tuple
"""A function, a type of module, or the place of a layer: its number, or the numbers on the way into nested ones."""


def with_sites(
    model: nnx.Sequential, after: After | list[After], *, names: Sequence[str] | None = None, reduce: str = "mean"
) -> Chain:
    """Mark sites in a sequential model, which keeps its weights.

    Args:
        model: the model; the chain shares its layers.
        after: behind which layers: a function such as `nnx.relu`, a type of module, the place of a layer (its number; a
            tuple of numbers where sequentials are nested), or a list of these.
        names: of the sites in order; None for "layer1", "layer2", ...
        reduce: as in `Site`.

    Returns:
        A `Chain` with the same outputs.

    Raises:
        InputError: for another kind of model, an `after` that matches no layer, or names of another number.

    Example:
        >>> plain = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> model = ja.with_sites(plain, after=nnx.relu)
        >>> bool((model(np.ones((1, 4))) == plain(np.ones((1, 4)))).all())
        True
    """
    require(
        is_plain_sequential(model),
        f"model: expected an nnx.Sequential, got {type(model).__name__}; in other models put ja.Site(name) behind the "
        "activations",
    )
    wanted = after if isinstance(after, list) else [after]
    require(len(wanted) > 0, "after: expected at least one function, type or place, got none")
    placed = list(_places(model.layers))
    matches = [[_matches(one, path, layer) for path, layer in placed[:-1]] for one in wanted]
    for one, of_one in zip(wanted, matches, strict=True):
        require(
            any(of_one),
            f"after: expected a layer before the last to match {getattr(one, '__name__', one)!r}, got none among "
            + ", ".join(f"{'.'.join(map(str, path))} {_name_of(layer)}" for path, layer in placed),
        )
    chosen = [any(of_layer) for of_layer in zip(*matches, strict=True)]
    names = [f"layer{i}" for i in range(1, sum(chosen) + 1)] if names is None else list(names)
    require(len(names) == sum(chosen), f"names: expected {sum(chosen)}, one for each site, got {len(names)}")
    layers, left = [], iter(names)
    for (_, layer), here in zip(placed, [*chosen, False], strict=True):
        layers += [layer, Site(next(left), reduce=reduce)] if here else [layer]
    return Chain(*layers)


def _places(layers: Sequence[Callable], path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Callable]]:
    """The layers that are no sequentials themselves, with the numbers that lead there."""
    for number, layer in enumerate(layers):
        if is_plain_sequential(layer):
            yield from _places(layer.layers, (*path, number))
        else:
            yield (*path, number), layer


def _matches(after: After, path: tuple[int, ...], layer: Callable) -> bool:
    """Whether a layer at a path is one that `after` means."""
    if isinstance(after, type):
        return isinstance(layer, after)
    if isinstance(after, int | tuple):
        return path == ((after,) if isinstance(after, int) else after)
    return layer is after


def _name_of(layer: Callable) -> str:
    return getattr(layer, "__name__", type(layer).__name__)
