# %% [markdown]
# # Redundancy and synergy in one layer
#
# Two neurons can carry the same information about the class, or carry information only together. This notebook measures
# both for all pairs of one layer. Then it tests whether pairs that share information also replace each other: whether
# losing both costs more than losing each, beyond what the curvature of the loss explains. It takes about 20 seconds on
# two CPU cores.

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
# ## The information of pairs
#
# The codes have one bit: does the neuron fire? The joint information of a pair splits into four parts (minimum-MI
# decomposition). Both neurons have the redundancy, each neuron has a unique part, and only the pair has the synergy.

# %%
codes = ja.quantizers.threshold(0.5)(ja.record_activations(model, data.validation.images)[1])
labels = data.validation.labels
pairs = ja.interactions.pair_information(codes, labels, num_codes=2, num_classes=10)
parts = pairs.redundancy + pairs.unique + pairs.unique.T + pairs.synergy
assert np.allclose(parts, pairs.joint, atol=1e-5)
off_diagonal = ~np.eye(len(pairs.single), dtype=bool)
for name in ("joint", "redundancy", "synergy", "co_information"):
    values = np.asarray(getattr(pairs, name))[off_diagonal]
    print(f"{name:15s} mean {values.mean():+.3f}, from {values.min():+.3f} to {values.max():+.3f} nats")

# %% [markdown]
# Check the bias before you read these numbers as facts about the network. The plug-in estimate of a pair's information
# is too high by about $(K-1)(C-1)/2N$, with $K$ code pairs, $C$ classes and $N$ examples. The bias of synergy is the
# difference between the bias of a pair and the bias of a single neuron.

# %%
classes, examples = data.num_classes, len(labels)
print(f"expected bias: pair {3 * (classes - 1) / (2 * examples):.3f}, neuron {(classes - 1) / (2 * examples):.3f} nats")
null = ja.interactions.pair_information(
    codes, np.random.default_rng(0).permutation(labels), num_codes=2, num_classes=10
)
print(f"synergy with shuffled labels: {float(np.asarray(null.synergy)[off_diagonal].mean()):.3f} nats on average")

# %%
figure = draw_pair_information(pairs, arranged="clusters", title="Layer 2: what pairs of neurons tell of the digit")
figure.savefig(OUT / "redundancy.png", dpi=110)
figure

# %% [markdown]
# ![Redundancy, synergy and co-information of all pairs](redundancy.png)
#
# ## Do the neurons replace each other?
#
# Ablate every pair. If losing both costs more than the sum of losing each, the damage is super-additive. Every neuron
# is in many pairs, so an ordinary p-value would be far too small. The Mantel test permutes neurons instead.
#
# Damage can also be super-additive without any replacement, because the loss is convex. In the last hidden layer the
# logits are linear in the activations: ablating neuron $i$ adds (fill - activation) times its weights to the logits.
# Two neurons that push the logits in the same direction then cost more than their sum. `loss_curvature` computes this
# part to second order, and the partial correlation takes it out.

# %%
fill = ja.mean_activations(model, data.validation.images)
test = data.test.images, data.test.labels
loss = np.asarray(ja.ablation.pair_ablation(model, *test, fill, site="layer2", outcomes="loss"), np.float64)
intact = float(ja.evaluate_masks(model, np.ones((1, sum(hidden)), bool), *test, fill, outcomes="loss")[0])
excess_damage = ja.interactions.super_additivity(loss - intact)
outputs = np.asarray(ja.record_activations(model, data.test.images)[1])
weights = np.asarray(model.stages[-1].linear.kernel[...])
logit_changes = (np.asarray(fill)[hidden[0] :] - outputs).T[:, :, None] * weights[:, None]
curvature = ja.interactions.loss_curvature(logit_changes, jax.nn.softmax(model(data.test.images)))
permutations = 99 if SMALL else 999
key = jax.random.key(0)
explained = ja.interactions.mantel_test(curvature, excess_damage, num_permutations=permutations, key=key)
print(f"curvature of the loss and super-additivity: correlation {explained.correlation:+.3f}")
for name in ("redundancy", "synergy", "co_information"):
    for control, words in ((None, "correlation"), (curvature, "given the curvature")):
        test_result = ja.interactions.mantel_test(
            getattr(pairs, name), excess_damage, control=control, num_permutations=permutations, key=key
        )
        print(f"{name:15s} {words} {test_result.correlation:+.2f}, p = {test_result.p_value:.3f}")

# %% [markdown]
# The curvature ranks the pairs almost as their super-additivity does. What it leaves in this layer is the third and
# higher order of the loss, so that even a significant partial correlation does not show replacement: that needs an
# earlier layer, where later units are nonlinear.
#
# `ja.study.redundancy_test(model, data)` does all of this for every layer of one or several networks. [The
# findings](../findings.md#can-neurons-that-share-information-replace-each-other) have the results for the paper's
# networks on full MNIST.
