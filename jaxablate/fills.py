"""Fills: the outputs of ablated neurons.

A fill is None (zeros), an array float [neuron] with one constant for each neuron, an `AffineFill`, a `LinearFill` or a
`PerExampleFill`. Every function that ablates takes any of them; `ja.compute_fill` makes them from examples.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate._checks import short_repr
from jaxablate._typing import Fill, Labels

__all__ = ["AffineFill", "AnyFill", "LinearFill", "PerExampleFill"]


@dataclass(frozen=True)
class AffineFill:
    """A fill that depends on the neuron's own activation: an ablated neuron outputs scale * h + offset.

    Attributes:
        scale: float [neuron], factor of the activation h. A scale of 1 with an offset of 0 ablates nothing.
        offset: float [neuron], in the unit of activations.

    With several networks both arrays have a leading axis [network, neuron].

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> halved = ja.fills.AffineFill(scale=np.full(3, 0.5), offset=np.zeros(3))
        >>> ja.single_ablation(model, np.ones((5, 4), np.float32), np.zeros(5, np.int32), halved).shape
        (3,)
    """

    scale: Fill
    offset: Fill

    __repr__ = short_repr


@dataclass(frozen=True)
class LinearFill:
    """A fill that predicts ablated neurons from the kept neurons of their site, by ridge regression.

    Let mu and C be means and covariance of a site's activations h, G its ablated and K its kept units. Then h_G becomes
    mu_G + C_GK (C_KK + lambda I)^-1 (h_K - mu_K), with lambda = `ridge` times the mean of the diagonal of C. If the
    kept units predict nothing, or none is kept, this is bias balancing: the means.

    Attributes:
        means: float64 [neuron] over all sites in network order, in the unit of activations.
        covariances: for each site, float64 [unit, unit]. The positions of a channel or token count as examples.
        ridge: lambda, relative to the mean variance of the site's units.

    With several networks the arrays have a leading axis [network, ...].

    Example:
        >>> model = ja.MLP(4, (3, 2), 2, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).random((60, 4), np.float32)
        >>> fill = ja.compute_fill(model, "linear", images)
        >>> fill.means.shape, [covariance.shape for covariance in fill.covariances]
        ((5,), [(3, 3), (2, 2)])
    """

    means: np.ndarray
    covariances: tuple[np.ndarray, ...]
    ridge: float

    __repr__ = short_repr


@dataclass(frozen=True)
class PerExampleFill:
    """A fill that differs between examples: each example takes a row of a table, by its label or at random.

    Attributes:
        tables: one array for each site, [row, neuron] or [row, ..., neuron] with the shape of the site's outputs.
        key: random key that draws the rows; None if an example's row is its label.

    Example:
        >>> model, images = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0)), np.ones((6, 4), np.float32)
        >>> fill = ja.compute_fill(model, "resample", images, key=jax.random.key(0))
        >>> fill.tables[0].shape
        (6, 3)
    """

    tables: tuple[jax.Array, ...]
    key: jax.Array | None = None

    __repr__ = short_repr

    def rows(self, labels: Labels) -> jax.Array:
        """Return the row of each example, int32 [example]."""
        if self.key is None:
            return jnp.asarray(labels, jnp.int32)
        return jax.random.randint(self.key, labels.shape, 0, len(self.tables[0]), jnp.int32)


AnyFill = Fill | AffineFill | LinearFill | PerExampleFill
