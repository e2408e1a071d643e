"""Networks of several kinds that are no MLP, and their slow source: each mask set on the sites of a copy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxablate as ja


def flatten(images):
    return images.reshape(len(images), -1)


def every_other_pixel(images):
    return images[:, ::2, ::2, None]


def pool(maps):
    return nnx.max_pool(maps, (2, 2), (2, 2))


def chain(seed: int = 0, activation=nnx.relu) -> nnx.Sequential:
    """784-9-7-10 with a dropout and a layer norm in between."""
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        flatten,
        nnx.Linear(784, 9, rngs=rngs),
        activation,
        ja.Site("first"),
        nnx.Linear(9, 7, rngs=rngs),
        nnx.LayerNorm(7, rngs=rngs),
        activation,
        nnx.Dropout(0.5, rngs=rngs),
        ja.Site("second"),
        nnx.Linear(7, 10, use_bias=False, rngs=rngs),
    )


def cnn_chain(seed: int = 0, padding: str = "VALID") -> nnx.Sequential:
    """Two convolutions (channels 5 and 4) and a hidden layer of 6, with batch norm and pooling."""
    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(
        every_other_pixel,
        nnx.Conv(1, 5, (3, 3), padding=padding, rngs=rngs),
        nnx.BatchNorm(5, rngs=rngs),
        nnx.relu,
        ja.Site("conv1"),
        pool,
        nnx.Conv(5, 4, (3, 3), padding=padding, use_bias=False, rngs=rngs),
        nnx.relu,
        ja.Site("conv2", reduce="max"),
        flatten,
        nnx.Linear(64 if padding == "VALID" else 196, 6, rngs=rngs),
        nnx.sigmoid,
        ja.Site("dense"),
        nnx.Linear(6, 10, rngs=rngs),
    )
    norm = model.layers[2]
    norm.mean[...], norm.bias[...] = jnp.linspace(-0.2, 0.3, 5), jnp.linspace(0.4, -0.1, 5)
    norm.var[...], norm.scale[...] = jnp.linspace(0.5, 2, 5), jnp.linspace(1.5, 0.7, 5)
    return model


class Residual(nnx.Module):
    """Two residual blocks of 8 and 6 hidden units over 12 features: no chain. The later site comes first by name."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Linear(784, 12, rngs=rngs)
        self.up = nnx.List([nnx.Linear(12, width, rngs=rngs) for width in (8, 6)])
        self.down = nnx.List([nnx.Linear(width, 12, rngs=rngs) for width in (8, 6)])
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.sites = nnx.List([ja.Site("z"), ja.Site("a")])
        self.head = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, images):
        x = self.embed(images.reshape(len(images), -1))
        for up, site, down in zip(self.up, self.sites, self.down, strict=True):
            x = x + down(site(nnx.gelu(up(x))))
        return self.head(self.norm(x))


class Tokens(nnx.Module):
    """Attention over the rows of an image, then 11 hidden units at every row."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Linear(28, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, dropout_rate=0.1, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 11, rngs=rngs), nnx.Linear(11, 8, rngs=rngs)
        self.site = ja.Site("hidden")
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        x = self.embed(images)
        x = x + self.attention(x)
        return self.head((x + self.down(self.site(nnx.gelu(self.up(x))))).mean(axis=1))


KINDS = {"chain": chain, "cnn_chain": cnn_chain, "residual": Residual, "tokens": Tokens}
SITES = {
    "chain": {"first": 9, "second": 7},
    "cnn_chain": {"conv1": 5, "conv2": 4, "dense": 6},
    "residual": {"z": 8, "a": 6},
    "tokens": {"hidden": 11},
}


def in_evaluation(model):
    model = nnx.clone(model)
    model.eval()
    return model


class MaskedSite(ja.Site):
    """A site that applies a mask to what reaches it."""

    def __call__(self, outputs):
        fill = self.fill[...]
        if 1 < fill.ndim < outputs.ndim:  # one fill for each example, at all positions
            fill = fill.reshape(len(fill), *(1,) * (outputs.ndim - fill.ndim), fill.shape[-1])
        return jnp.where(self.keep[...], outputs, fill).astype(outputs.dtype)


def set_mask(site: ja.Site, keep, fill) -> None:
    """Set a mask [unit] and a fill by hand."""
    site.__class__ = MaskedSite
    site.keep, site.fill = nnx.Variable(jnp.asarray(keep)), nnx.Variable(jnp.asarray(fill))


def sites_in_order(model, kind: str) -> list[ja.Site]:
    sites = {module.name: module for _, module in nnx.iter_modules(model) if isinstance(module, ja.Site)}
    return [sites[name] for name in SITES[kind]]


@functools.partial(jax.jit, static_argnums=0)
def called(graphdef, state, images):
    """The model's outputs; compiled once for all masks of a model."""
    return nnx.merge(graphdef, state)(images)


def masked_logits(model, kind: str, keep, fill, images) -> np.ndarray:
    """Logits [example, class] with one mask [neuron] and fill [neuron], or a fill for each site, set by hand."""
    model = in_evaluation(model)
    splits = np.cumsum(list(SITES[kind].values()))[:-1]
    fills = fill if isinstance(fill, list) else np.split(np.asarray(fill, np.float32), splits)
    for site, kept, filled in zip(sites_in_order(model, kind), np.split(keep, splits), fills, strict=True):
        set_mask(site, kept, filled)
    return np.asarray(called(*nnx.split(model), jnp.asarray(images)))
