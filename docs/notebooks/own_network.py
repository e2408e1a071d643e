# %% [markdown]
# # Your own network
#
# You have a convolutional network in Flax NNX, trained by a loop that does not use jaxablate. Which of its channels
# have information about the class? What does the network lose without each channel? How many channels can you prune?
#
# This takes about half a minute on two CPU cores, and a few seconds with `JAXABLATE_NOTEBOOKS=small`.

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
# ## Train the network
#
# The network needs images with a channel axis, which the embedded MNIST lacks.

# %%
data = ja.load_dataset("mnist5k")
train, validation, test = (
    (split.images[..., None], split.labels) for split in (data.train, data.validation, data.test)
)
rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Conv(1, 8, (5, 5), strides=3, padding="VALID", rngs=rngs),
    nnx.relu,
    ja.Site("conv1"),
    nnx.Conv(8, 16, (3, 3), strides=2, padding="VALID", rngs=rngs),
    nnx.relu,
    ja.Site("conv2"),
    lambda maps: maps.reshape(len(maps), -1),
    nnx.Linear(3 * 3 * 16, 32, rngs=rngs),
    nnx.relu,
    ja.Site("dense"),
    nnx.Linear(32, 10, rngs=rngs),
)
optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    """Update the model by one step of Adam on one batch."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


random = np.random.default_rng(0)
for _ in range(EPOCHS):
    for batch in np.split(random.permutation(len(train[1]))[:3456], 27):
        step(model, optimizer, train[0][batch], train[1][batch])

# %% [markdown]
# ## Sites
#
# A `ja.Site` names the value that reaches it and returns it unchanged. The units of a convolution are its channels, and
# the units of a linear map are its neurons. Ablation also works without `ja.Site`, in networks of every framework:
# jaxablate then finds the values that linear maps read.

# %%
print(ja.from_module(model, test[0]).sites)
print(f"{float((model(test[0]).argmax(axis=1) == test[1]).mean()):.1%} of the test images are right")
units = {site: ids.size for site, ids in ja.models.site_neurons(model, test[0]).items()}
print(units)

# %% [markdown]
# ## Score and ablate
#
# The information is the mutual information of the class and one bit: is the unit at or above its mean? The damage is
# the rise of the loss if the unit outputs its mean. Both come from validation images, the curves from test images.

# %%
evidence = ja.scores.Evidence(model, *validation, num_classes=10)
information = np.asarray(ja.scores.compute_score("mutual_information", evidence))
damage = ja.scores.compute_score("single_damage", evidence)
fill = ja.compute_fill(model, "mean", validation[0])

low_information = ja.ablation_order(information, direction="low")[None]
low_damage = ja.ablation_order(damage, direction="low")[None]
random_orders = ja.random_orders(len(information), 4 if SMALL else 20, key=jax.random.key(0))
orders = {"low information": low_information, "least damage alone": low_damage, "random": random_orders}
steps = len(information) - 1
curves = {
    name: np.asarray(ja.cumulative_ablation(model, order, *test, fill, steps=steps)) / len(data.test)
    for name, order in orders.items()
}

# %%
figure = Figure(figsize=(9, 3.6), layout="constrained")
scatter, lines = figure.subplots(1, 2)
for (site, size), color, start in zip(units.items(), ("C0", "C1", "C2"), (0, 8, 24), strict=True):
    site_units = slice(start, start + size)
    scatter.scatter(information[site_units], damage[site_units], color=color, s=18, label=site)
scatter.set(xlabel="I(T;Y) (nats)", ylabel="Rise of the validation loss (nats)", title="Each unit alone")
scatter.legend()
for name, curve in curves.items():
    lines.plot(curve.mean(axis=0), label=name)
lines.set(xlabel=f"Units ablated (of {steps + 1})", ylabel="Test accuracy", title="One after another, means in place")
lines.yaxis.set_major_formatter(PercentFormatter(1))
lines.legend()
figure.savefig(OUT / "own_network.png", dpi=110)
figure

# %% [markdown]
# ![Damage against information, and accuracy as units are ablated](own_network.png)
#
# The units with the most information are not the units with the most damage: information describes the unit, damage
# describes the network. Low information first is better than random only at the beginning. The convolutions have lower
# scores than the dense layer, so this order ablates the convolutions first. `ja.orders.normalize_per_layer` ranks units
# within their layers. This is one network and one seed; another seed gives other curves.
#
# ## Prune
#
# Prune the quarter of the units with the least damage on validation images. `prune` adds the fill to the biases, so the
# smaller network has the same outputs as the masked one.

# %%
keep = np.ones(len(information), bool)
keep[np.asarray(low_damage[0][: len(keep) // 4])] = False
small = ja.prune(model, keep, fill, images=test[0])
before, after = (ja.pruning.count_parameters(network) for network in (model, small))
print(f"{before} parameters, then {after}; {float((small(test[0]).argmax(axis=1) == test[1]).mean()):.1%} are right")

# %% [markdown]
# For a PyTorch network, load its state dict: see [how to](../howto/network.md#a-pytorch-state-dict).
