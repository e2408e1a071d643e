"""What should replace an ablated neuron?

A transformer block reads each MNIST image as 28 tokens, its rows. Every neuron of its hidden layer acts at every token.
The neurons are ablated in random orders with each fill: zero, the mean, the median, the mean of the image's class, the
activations from another image, or the constants that harm least. For the same ablated neurons the figure shows how many
images stay right, and how far the predicted distribution moves from the intact network's: how much of an ablation's
result depends on the fill.
"""

from pathlib import Path

import jax
import numpy as np
import typer
from _drawing import AMBER, BLACK, BLUE, GREEN, ORANGE, PURPLE, in_percent, new_figure, plot_curves, save, styled
from _training import train
from flax import nnx
from matplotlib.figure import Figure

import jaxablate as ja

TOKENS, PIXELS, WIDTH, HEADS, HIDDEN = 28, 28, 64, 4, 128
STEPS, NUM_ORDERS, FITTING_STEPS = 16, 6, 300
LOOKS = {
    "zero": ("0", BLACK, "-"),
    "mean": ("mean", BLUE, "-"),
    "median": ("median", AMBER, (0, (5, 1.5))),
    "class_mean": ("mean of the image's class (tells the label)", PURPLE, (0, (1, 1))),
    "resample": ("from another image", ORANGE, (0, (3, 1, 1, 1))),
    "optimal": ("optimal constant", GREEN, "-"),
}


class Block(nnx.Module):
    """A transformer block that normalises first: attention, then an MLP whose hidden neurons can be ablated."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, deterministic=True, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.site = ja.Site("mlp", reduce="mean")  # [example, token, neuron]

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the tokens [example, token, WIDTH] after this block."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.down(self.site(nnx.gelu(self.up(self.norm2(tokens)))))


class Transformer(nnx.Module):
    """A network from images [example, row, column], whose rows are the tokens, to logits [example, class]."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed, self.head = nnx.Linear(PIXELS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 10, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((TOKENS, WIDTH)))
        self.block, self.norm = Block(rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the logits, from the mean over tokens."""
        tokens = self.block(self.embed(images) + self.positions[...])
        return self.head(self.norm(tokens).mean(axis=1))


def compute_fills(model: nnx.Module, split: ja.datasets.Split, seed: int) -> dict:
    """Compute every fill on this split; the optimal fill uses masks of separate random orders."""
    order_key, resampling_key, fitting_key = jax.random.split(jax.random.key(seed), 3)
    # masks with every number of ablated neurons, from none to all
    keep = ja.orders.masks_of_orders(ja.random_orders(HIDDEN, 8, key=order_key), HIDDEN, HIDDEN)
    needs = {
        "class_mean": {"labels": split.labels},
        "resample": {"key": resampling_key},
        "optimal": {"labels": split.labels, "key": fitting_key, "keep": keep, "steps": FITTING_STEPS},
    }
    return {kind: ja.compute_fill(model, kind, split.images, **needs.get(kind, {})) for kind in LOOKS}


def make_orders(seed: int) -> np.ndarray:
    """Return random orders [order, rank], different from the orders that the optimal fill is fitted to."""
    return np.asarray(ja.random_orders(HIDDEN, NUM_ORDERS, key=jax.random.fold_in(jax.random.key(seed), 1)))


def ablate(model: nnx.Module, split: ja.datasets.Split, orders: np.ndarray, fill) -> dict[str, np.ndarray]:
    """Return accuracies and divergences [order, step] along the orders."""
    outcomes = ja.cumulative_ablation(
        model,
        orders,
        split.images,
        split.labels,
        fill,
        steps=range(HIDDEN // STEPS, HIDDEN + 1, HIDDEN // STEPS),
        outcomes=("correct", "divergence"),
    )
    return {
        "accuracy": np.asarray(outcomes["correct"]) / len(split),
        "divergence": np.asarray(outcomes["divergence"]),
    }


@styled
def draw(curves: dict[str, dict[str, np.ndarray]], num_images: int) -> Figure:
    """Draw the remaining accuracy and the divergence from the intact network, by fill."""
    figure, panels = new_figure(1, 2)
    labels = {
        "accuracy": ("What is still right", f"Accuracy ({num_images} test images)"),
        "divergence": ("What has changed", "Divergence from the intact network (nats)"),
    }
    ablated = np.linspace(0, HIDDEN, STEPS + 1)
    for axes, (outcome, (title, label)) in zip(panels[0], labels.items(), strict=True):
        first = int(outcome == "divergence")  # skip the intact network: its 0 has no place on a logarithmic axis
        for kind, (name, color, linestyle) in LOOKS.items():
            values = curves[kind][outcome][:, first:]
            plot_curves(axes, ablated[first:], values, name, color=color, linestyle=linestyle)
        axes.set(title=title, ylabel=label, xlabel=f"Hidden neurons ablated (of {HIDDEN})", xlim=(0, HIDDEN))
    in_percent(panels[0, 0])
    panels[0, 0].set_ylim(0, 1.02)
    panels[0, 1].set_yscale("log")
    panels[0, 0].legend(
        title=f"Fill (mean, range of {NUM_ORDERS} random orders)", title_fontsize=8, loc="lower left", alignment="left"
    )
    return figure


def main(
    dataset: str = "auto",
    data_dir: Path | None = None,
    epochs: int = 5,
    out: Path = Path("transformer_block.png"),
    seed: int = 0,
) -> None:
    """Train a transformer block, ablate its hidden neurons with each fill, and draw the outcomes."""
    data = ja.load_dataset(dataset, data_dir=data_dir)
    model = Transformer(rngs=nnx.Rngs(seed))
    train(model, data, epochs=epochs, seed=seed, learning_rate=3e-3)
    fills, orders = compute_fills(model, data.validation, seed), make_orders(seed)
    curves = {kind: ablate(model, data.test, orders, fill) for kind, fill in fills.items()}
    save(draw(curves, len(data.test)), out)


if __name__ == "__main__":
    typer.run(main)
