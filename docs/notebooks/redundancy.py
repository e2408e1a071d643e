# %% [markdown]
# # Redundancy and synergy in one layer
#
# Two neurons may say the same about the class, or only together say something. This notebook measures both for all
# pairs of one layer, and asks whether pairs that repeat each other are also worse to lose together: that is what
# standing in for each other looks like. About a quarter of a minute on two CPU cores.

# %%
import os
from pathlib import Path

import jax
import numpy as np

import jaxablate as ja
from jaxablate.figures import draw_pair_information

SMALL = os.environ.get("JAXABLATE_NOTEBOOKS") == "small"
OUT = Path(os.environ.get("JAXABLATE_NOTEBOOKS_OUT", "."))

# %%
data = ja.load_dataset("mnist5k")
hidden = (24, 16) if SMALL else (60, 40)
model, history = ja.train(data, hidden, epochs=3 if SMALL else 60)
print(f"{history.validation_accuracy[-1]:.1%} of the validation images are right")

# %% [markdown]
# ## What pairs tell of the class
#
# The codes are one bit each: does the neuron fire? For a pair the joint information splits into four parts (minimum-MI
# decomposition): what both have, what each has beyond the other, and what only the two together have.

# %%
codes = ja.quantizers.threshold(0.5)(ja.record_activations(model, data.validation.images)[1])
labels = data.validation.labels
pairs = ja.interactions.pair_information(codes, labels, num_codes=2, num_classes=10)
parts = pairs.redundancy + pairs.unique + pairs.unique.T + pairs.synergy
assert np.allclose(parts, pairs.joint, atol=1e-5)
off = ~np.eye(len(pairs.single), dtype=bool)
for name in ("joint", "redundancy", "synergy", "co_information"):
    values = np.asarray(getattr(pairs, name))[off]
    print(f"{name:15s} mean {values.mean():+.3f}, from {values.min():+.3f} to {values.max():+.3f} nats")

# %% [markdown]
# Before reading these as facts about the network: from so few validation images the plug-in estimate of a pair's
# information is too high by about $(K-1)(C-1)/2N$, with $K$ code pairs, $C$ classes and $N$ examples, and synergy
# carries the difference to a single neuron's.

# %%
classes, examples = data.num_classes, len(labels)
print(f"expected bias: pair {3 * (classes - 1) / (2 * examples):.3f}, neuron {(classes - 1) / (2 * examples):.3f} nats")
null = ja.interactions.pair_information(
    codes, np.random.default_rng(0).permutation(labels), num_codes=2, num_classes=10
)
print(f"synergy with shuffled labels: {float(np.asarray(null.synergy)[off].mean()):.3f} nats on average")

# %%
figure = draw_pair_information(pairs, arranged="clusters", title="Layer 2: what pairs of neurons tell of the digit")
figure.savefig(OUT / "redundancy.png", dpi=110)
figure

# %% [markdown]
# ![Redundancy, synergy and co-information of all pairs](redundancy.png)
#
# ## Do they stand in for each other?
#
# Ablate every pair. Where losing both costs more than losing each, added up, the damage is super-additive. A neuron is
# in many pairs, so a usual p-value would be far too small; the Mantel test permutes neurons instead.

# %%
fill = ja.mean_activations(model, data.validation.images)
test = data.test.images, data.test.labels
loss = np.asarray(ja.ablation.pair_ablation(model, "layer2", *test, fill, outcomes="loss"), np.float64)
intact = float(ja.evaluate_masks(model, np.ones((1, sum(hidden)), bool), *test, fill, outcomes="loss")[0])
together = ja.interactions.super_additivity(loss - intact)
permutations = 99 if SMALL else 999
for name in ("redundancy", "synergy", "co_information"):
    found = ja.interactions.mantel_test(
        getattr(pairs, name), together, num_permutations=permutations, key=jax.random.key(0)
    )
    print(f"{name:15s} correlation {found.correlation:+.2f}, p = {found.p_value:.3f}")

# %% [markdown]
# `ja.study.redundancy_test(model, data)` does all of this for every layer of one or several networks.
# [The findings](../findings.md#do-neurons-that-share-information-stand-in-for-each-other) have it for the paper's
# networks on full MNIST.
