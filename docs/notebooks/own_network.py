# %% [markdown]
# # A network of your own
#
# A convolutional network in Flax NNX, trained by a loop that knows nothing of jaxablate. Then: which of its channels
# tell something about the class, what does it lose without each, and how many can go for good? About half a minute on
# two CPU cores; `JAXABLATE_NOTEBOOKS=small` makes it a few seconds.

# %%
import os
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import jaxablate as ja

SMALL = os.environ.get("JAXABLATE_NOTEBOOKS") == "small"
OUT = Path(os.environ.get("JAXABLATE_NOTEBOOKS_OUT", "."))
EPOCHS = 1 if SMALL else 20

# %% [markdown]
# ## The network, trained elsewhere
#
# Images have a channel axis here, which the embedded MNIST has not.

# %%
data = ja.load_dataset("mnist5k")
train, validation, test = (
    (split.images[..., None], split.labels) for split in (data.train, data.validation, data.test)
)
rngs = nnx.Rngs(0)
network = nnx.Sequential(
    nnx.Conv(1, 8, (5, 5), strides=3, padding="VALID", rngs=rngs),
    nnx.relu,
    nnx.Conv(8, 16, (3, 3), strides=2, padding="VALID", rngs=rngs),
    nnx.relu,
    lambda maps: maps.reshape(len(maps), -1),
    nnx.Linear(3 * 3 * 16, 32, rngs=rngs),
    nnx.relu,
    nnx.Linear(32, 10, rngs=rngs),
)
optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def step(network, optimizer, images, labels):
    """One step of Adam on one batch."""

    def loss(network):
        return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

    optimizer.update(network, nnx.grad(loss)(network))


random = np.random.default_rng(0)
for _ in range(EPOCHS):
    for batch in np.split(random.permutation(len(train[1]))[:3456], 27):
        step(network, optimizer, train[0][batch], train[1][batch])

# %% [markdown]
# ## Sites
#
# A site behind each activation function: `with_sites` puts them into an `nnx.Sequential`, the weights are shared. The
# units of a convolution are its channels, those of a linear map its neurons. (In an `nnx.Module` of your own, write
# `self.site = ja.Site("name")` and apply it behind the activation.)

# %%
model = ja.with_sites(network, after=nnx.relu, names=["conv1", "conv2", "dense"])
print(f"{float((model(test[0]).argmax(axis=1) == test[1]).mean()):.1%} of the test images are right")
units = {site: ids.size for site, ids in ja.models.site_neurons(model, test[0]).items()}
print(units)

# %% [markdown]
# ## Score and ablate
#
# Mutual information of the class and one bit, "is the unit at its mean or above?", and the damage: by how much the loss
# rises without the unit, its mean in its place. Both on validation images; the curves are of test images.

# %%
evidence = ja.scores.Evidence(model, *validation, num_classes=10)
information = np.asarray(ja.scores.compute_score("mutual_information", evidence))
damage = ja.scores.compute_score("single_damage", evidence)
fill = ja.compute_fill(model, "mean", validation[0])

low = ja.ablation_order(information, direction="low")[None]
least = ja.ablation_order(damage, direction="low")[None]
anyhow = ja.random_orders(len(information), 4 if SMALL else 20, key=jax.random.key(0))
orders = {"low information": low, "least damage alone": least, "random": anyhow}
steps = len(information) - 1
curves = {
    name: np.asarray(ja.cumulative_ablation(model, of, *test, fill, steps=steps)) / len(data.test)
    for name, of in orders.items()
}

# %%
figure = Figure(figsize=(9, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
for (site, size), color, start in zip(units.items(), ("C0", "C1", "C2"), (0, 8, 24), strict=True):
    of = slice(start, start + size)
    left.scatter(information[of], damage[of], color=color, s=18, label=site)
left.set(xlabel="I(T;Y) (nats)", ylabel="Rise of the validation loss (nats)", title="Each unit alone")
left.legend()
for name, curve in curves.items():
    right.plot(curve.mean(axis=0), label=name)
right.set(xlabel=f"Units ablated (of {steps + 1})", ylabel="Test accuracy", title="One after another, means in place")
right.yaxis.set_major_formatter(PercentFormatter(1))
right.legend()
figure.savefig(OUT / "own_network.png", dpi=110)
figure

# %% [markdown]
# ![Damage against information, and accuracy as units go](own_network.png)
#
# The units that tell most are not those whose loss costs most: information is about the unit, damage about the network.
# Low information first is better than random only at the beginning. The scores of the convolutions lie lower than those
# of the dense layer, so that this order empties the convolutions first; `ja.orders.normalize_per_layer` ranks units
# within their layers. One network, one seed: another gives other curves.
#
# ## Prune
#
# The quarter whose loss alone costs least on validation images goes for good. `prune` gives a smaller network with the
# same outputs as the masked one: the fill goes into the biases.

# %%
keep = np.ones(len(information), bool)
keep[np.asarray(least[0][: len(keep) // 4])] = False
small = ja.prune(model, keep, fill, images=test[0])
before, after = (ja.pruning.count_parameters(of) for of in (model, small))
print(f"{before} parameters, then {after}; {float((small(test[0]).argmax(axis=1) == test[1]).mean()):.1%} are right")

# %% [markdown]
# A PyTorch network comes over by its state dict: see [its how-to](../howto/network.md#a-pytorch-state-dict).
