"""Which channels of a convolutional network can go?

A small CNN learns MNIST. Each channel is scored by the mutual information of the digit and one bit: is the channel more
active than on average? The channels of each convolution are then ablated one after another, with low information first,
with high information first, or at random. Ablated channels output zeros or their means. The figure shows how much of
the test accuracy each order keeps, and how much of the damage a mean prevents.

The convolutions do not pad, so that `ja.prune` can fold the means of removed channels into the next layer's bias.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import typer
from _drawing import BLACK, BLUE, ORANGE, in_percent, new_figure, plot_curves, save, styled
from _training import train
from flax import nnx
from matplotlib.figure import Figure

import jaxablate as ja

CONVOLUTIONS = ("conv1", "conv2")
NUM_RANDOM = 8
LOOKS = {
    "random": (f"random: mean, range of {NUM_RANDOM} orders", BLACK, "-"),
    "low": ("low mutual information first", BLUE, (0, (5, 1.5))),
    "high": ("high mutual information first", ORANGE, (0, (3, 1, 1, 1))),
}
FILLS = {"zero": "zeros in their place", "mean": "their means in their place"}

max_pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))


def add_channel_axis(images: jax.Array) -> jax.Array:
    """Return images [example, row, column, 1] for images [example, row, column]."""
    return images[..., None]


def flatten(maps: jax.Array) -> jax.Array:
    """Return features [example, feature] for maps [example, row, column, channel]."""
    return maps.reshape(len(maps), -1)


def make_model(seed: int) -> nnx.Sequential:
    """Return the network, with a site after each activation function."""
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        add_channel_axis,
        nnx.Conv(1, 16, (3, 3), padding="VALID", rngs=rngs),
        nnx.relu,
        ja.Site("conv1", reduce="mean"),  # one number for each image and channel: the mean of its map
        max_pool,
        nnx.Conv(16, 32, (3, 3), padding="VALID", rngs=rngs),
        nnx.relu,
        ja.Site("conv2", reduce="mean"),
        max_pool,
        flatten,
        nnx.Linear(5 * 5 * 32, 64, rngs=rngs),
        nnx.relu,
        ja.Site("dense"),
        nnx.Linear(64, 10, rngs=rngs),
    )


def score_units(model: nnx.Sequential, split: ja.datasets.Split) -> np.ndarray:
    """Return the mutual information of each unit's bit and the class, in nats [unit]."""
    activations = np.concatenate(ja.record_activations(model, split.images), axis=1)
    codes = ja.quantizers.threshold(activations.mean(axis=0))(activations)
    return np.asarray(ja.mutual_information(ja.joint_histogram(codes, split.labels, num_codes=2, num_classes=10)))


def make_orders(scores: np.ndarray, units: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return orders [order, rank] of the units of a site, for each kind in `LOOKS`."""
    orders = {"random": units[ja.random_orders(len(units), NUM_RANDOM, key=jax.random.key(seed))]}
    for direction in ("low", "high"):
        orders[direction] = units[ja.ablation_order(scores[units], direction=direction)][None]
    return orders


def ablate(model: nnx.Sequential, split: ja.datasets.Split, orders: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Return accuracies [order, step] as all units of a site are ablated one by one."""
    correct = ja.cumulative_ablation(model, orders, split.images, split.labels, fill, steps=orders.shape[1])
    return np.asarray(correct) / len(split)


@styled
def draw(curves: dict[tuple[str, str], dict[str, np.ndarray]], num_images: int) -> Figure:
    """Draw one panel for each fill and convolution, from accuracies [order, step] by fill, site and kind of order."""
    figure, panels = new_figure(2, 2, width=3.6, height=2.6, share=True)
    for axes, (kind, site) in zip(panels.flat, curves, strict=True):
        for name, (label, color, linestyle) in LOOKS.items():
            accuracy = curves[kind, site][name]
            plot_curves(axes, np.arange(accuracy.shape[1]), accuracy, label, color=color, linestyle=linestyle)
        size = curves[kind, site]["low"].shape[1] - 1
        axes.set(title=f"{site}, {FILLS[kind]}", xlabel=f"Channels ablated (of {size})")
        axes.set(xlim=(0, size), xticks=range(0, size + 1, size // 8))
    for axes in panels[:, 0]:
        axes.set_ylabel(f"Accuracy ({num_images} test images)")
    in_percent(panels[0, 0])
    panels[0, 0].set_ylim(0, 1)
    panels[0, 0].legend(loc="lower left")
    return figure


def main(
    dataset: str = "auto",
    data_dir: Path | None = None,
    epochs: int = 4,
    out: Path = Path("cnn_channels.png"),
    seed: int = 0,
) -> None:
    """Train a CNN, ablate its channels in several orders, and draw the remaining accuracy."""
    data = ja.load_dataset(dataset, data_dir=data_dir)
    model = make_model(seed)
    train(model, data, epochs=epochs, seed=seed)
    scores = score_units(model, data.validation)
    units = ja.models.site_neurons(model, data.validation.images)
    curves = {}
    for kind in FILLS:
        fill = ja.compute_fill(model, kind, data.validation.images)
        for site in CONVOLUTIONS:
            orders = make_orders(scores, units[site], seed)
            curves[kind, site] = {name: ablate(model, data.test, order, fill) for name, order in orders.items()}
    save(draw(curves, len(data.test)), out)


if __name__ == "__main__":
    typer.run(main)
