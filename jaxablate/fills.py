"""Fills: the outputs of ablated neurons.

A fill is None (zeros), an array float [neuron] with one constant for each neuron, an `AffineFill` or a
`PerExampleFill`. Every function that ablates takes any of them; `ja.compute_fill` makes them from examples.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxablate._typing import Fill, Labels

__all__ = ["AffineFill", "AnyFill", "PerExampleFill"]


@dataclass(frozen=True)
class AffineFill:
    """A fill that depends on the neuron's own activation: an ablated neuron outputs scale * h + offset.

    Attributes:
        scale: float [neuron], factor of the activation h. A scale of 1 with an offset of 0 ablates nothing.
        offset: float [neuron], in the unit of activations.

    With several networks both arrays have a leading axis [network, neuron].

    Example:
        >>> model = ja.MLP(4, (3,), 2, rngs=nnx.Rngs(0))
        >>> halved = ja.AffineFill(scale=np.full(3, 0.5), offset=np.zeros(3))
        >>> ja.single_ablation(model, np.ones((5, 4), np.float32), np.zeros(5, np.int32), halved).shape
        (3,)
    """

    scale: Fill
    offset: Fill


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

    def rows(self, labels: Labels) -> jax.Array:
        """Return the row of each example, int32 [example]."""
        if self.key is None:
            return jnp.asarray(labels, jnp.int32)
        return jax.random.randint(self.key, labels.shape, 0, len(self.tables[0]), jnp.int32)


AnyFill = Fill | AffineFill | PerExampleFill
