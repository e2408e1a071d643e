"""Does a neuron's information predict what the network loses without it?

A residual network, a custom module, learns MNIST. Each block adds the output of a hidden layer to a stream.

Every hidden neuron is ablated alone. Its damage is compared with the mutual information of the digit and one bit: does
the neuron fire? Then all neurons of one block are ablated one by one: by that information, at random, and in a greedy
order. The greedy order ablates at each step the neuron that harms least. It is found on validation images and evaluated
on test images.

The figure shows whether the score ranks neurons within a block or only separates the blocks, and how much longer the
greedy order keeps the accuracy.
"""

from pathlib import Path

import jax
import numpy as np
import typer
from _drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, in_percent, new_figure, plot_curves, save, styled
from _training import train
from flax import nnx
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import jaxablate as ja

WIDTH, HIDDEN, BLOCKS = 64, 48, 3  # width of the stream, width of each hidden layer, number of blocks
EMPTIED = 1
SITE = f"block{EMPTIED}"
NUM_RANDOM = 8
BLOCK_LOOKS = ((BLUE, "o"), (PURPLE, "^"), (ORANGE, "s"))
ORDER_LOOKS = {
    "greedy": ("greedy, fitted on validation", GREEN, (0, (1, 1))),
    "low": ("low mutual information first", BLUE, (0, (5, 1.5))),
    "high": ("high mutual information first", ORANGE, (0, (3, 1, 1, 1))),
    "random": (f"random: mean, range of {NUM_RANDOM}", BLACK, "-"),
}


class Block(nnx.Module):
    """A residual block: it adds the output of a hidden layer, which is a site, to the stream."""

    def __init__(self, name: str, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.site = ja.Site(name)

    def __call__(self, stream: jax.Array) -> jax.Array:
        """Return the stream [example, WIDTH] after this block."""
        return stream + self.down(self.site(nnx.relu(self.up(self.norm(stream)))))


class ResidualMLP(nnx.Module):
    """A network from images [example, row, column] to logits [example, class]."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed, self.head = nnx.Linear(28 * 28, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 10, rngs=rngs)
        self.blocks = nnx.List([Block(f"block{i + 1}", rngs=rngs) for i in range(BLOCKS)])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the logits."""
        stream = self.embed(images.reshape(len(images), -1))
        for block in self.blocks:
            stream = block(stream)
        return self.head(stream)


def score_neurons(model: nnx.Module, split: ja.datasets.Split) -> np.ndarray:
    """Return the mutual information of the class and the bit "the neuron fires", in nats [neuron]."""
    activations = np.concatenate(ja.record_activations(model, split.images), axis=1)
    codes = ja.quantizers.default_quantizer("relu")(activations)
    return np.asarray(ja.mutual_information(ja.joint_histogram(codes, split.labels, num_codes=2, num_classes=10)))


def single_damage(model: nnx.Module, split: ja.datasets.Split, fill: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rise of the loss (nats) and the number of further wrong images without each neuron, each [neuron]."""
    outcomes = ("loss", "correct")
    single = ja.single_ablation(model, split.images, split.labels, fill, outcomes=outcomes)
    intact = np.ones((1, BLOCKS * HIDDEN), bool)
    before = ja.evaluate_masks(model, intact, split.images, split.labels, outcomes=outcomes)
    rise, further = single["loss"] - before["loss"], before["correct"] - single["correct"]
    return {"loss": np.asarray(rise), "correct": np.asarray(further)}


def make_orders(
    model: nnx.Module, scores: np.ndarray, split: ja.datasets.Split, fill: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return orders [order, rank] of the neurons of one block; the greedy order is fitted to this split."""
    neurons = ja.models.site_neurons(model, split.images)[SITE]
    greedy = ja.ablation.greedy_order(model, split.images, split.labels, fill, site=SITE, outcome="loss")
    return {
        "greedy": np.asarray(greedy.order)[None],
        "low": np.asarray(ja.ablation_order(scores[neurons], direction="low"))[None],
        "high": np.asarray(ja.ablation_order(scores[neurons], direction="high"))[None],
        "random": np.asarray(ja.random_orders(len(neurons), NUM_RANDOM, key=jax.random.key(seed))),
    }


def ablate(model: nnx.Module, split: ja.datasets.Split, orders: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Return accuracies [order, step] as all neurons of the block are ablated one by one."""
    correct = ja.cumulative_ablation(model, orders, split.images, split.labels, fill, site=SITE, steps=orders.shape[1])
    return np.asarray(correct) / len(split)


@styled
def draw(scores: np.ndarray, damage: dict[str, np.ndarray], curves: dict[str, np.ndarray], num_images: int) -> Figure:
    """Draw damage against information, as loss and as images, and the accuracy as one block is ablated."""
    figure, panels = new_figure(1, 3, width=3.8)
    scatters, emptied = panels[0, :2], panels[0, 2]
    labels = {"loss": "Rise of the test loss (nats)", "correct": f"Further test images wrong (of {num_images})"}
    for axes, (outcome, label) in zip(scatters, labels.items(), strict=True):
        for block, (color, marker) in enumerate(BLOCK_LOOKS, start=1):
            in_block = slice((block - 1) * HIDDEN, block * HIDDEN)
            x, y = scores[in_block], damage[outcome][in_block]
            name = rf"block {block}: $\rho = {spearmanr(x, y).statistic:+.2f}$"
            axes.scatter(x, y, s=16, color=color, marker=marker, alpha=0.75, linewidth=0, label=name)
        axes.set(title="Each neuron alone, its mean in its place", ylabel=label)
        axes.set_xlabel("Mutual information with the class (nats)")
        span = np.ptp(damage[outcome])
        axes.set_ylim(damage[outcome].min() - 0.1 * span, damage[outcome].max() + 0.4 * span)  # room for the legend
        rho = spearmanr(scores, damage[outcome]).statistic
        title = rf"Spearman correlation, all: $\rho = {rho:+.2f}$"
        axes.legend(title=title, title_fontsize=8, loc="upper right", alignment="left")
    for name, (label, color, linestyle) in ORDER_LOOKS.items():
        plot_curves(emptied, np.arange(HIDDEN + 1), curves[name], label, color=color, linestyle=linestyle)
    emptied.set(title=f"Block {EMPTIED} neuron by neuron, means in their place")
    emptied.set(xlabel=f"Neurons ablated (of {HIDDEN})", xlim=(0, HIDDEN), ylabel="Test accuracy")
    in_percent(emptied)
    emptied.legend(loc="lower left")
    return figure


def main(
    dataset: str = "auto",
    data_dir: Path | None = None,
    epochs: int = 8,
    out: Path = Path("residual_mlp.png"),
    seed: int = 0,
) -> None:
    """Train a residual network, ablate its neurons alone and in several orders, and draw the damage."""
    data = ja.load_dataset(dataset, data_dir=data_dir)
    model = ResidualMLP(rngs=nnx.Rngs(seed))
    train(model, data, epochs=epochs, seed=seed)
    scores = score_neurons(model, data.validation)
    fill = ja.mean_activations(model, data.validation.images)
    damage = single_damage(model, data.test, fill)
    orders = make_orders(model, scores, data.validation, fill, seed)
    curves = {name: ablate(model, data.test, order, fill) for name, order in orders.items()}
    save(draw(scores, damage, curves, len(data.test)), out)


if __name__ == "__main__":
    typer.run(main)
