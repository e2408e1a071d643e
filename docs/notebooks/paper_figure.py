# %% [markdown]
# # A figure of the paper, from training to curves
#
# This notebook trains the paper's network of two hidden layers, scores its neurons, ablates them one after another
# and draws Figure 13: layer 1, low values first, bias balanced. It uses the 5 000 images that come with the
# installation and takes about half a minute on two CPU cores. With `JAXABLATE_NOTEBOOKS=small` in the environment it
# trains for two epochs only, which shows that it runs and nothing else.

# %%
import os
from pathlib import Path

import numpy as np

import jaxablate as ja
from jaxablate.figures import draw_figure

SMALL = os.environ.get("JAXABLATE_NOTEBOOKS") == "small"
OUT = Path(os.environ.get("JAXABLATE_NOTEBOOKS_OUT", "."))

# %% [markdown]
# ## What to run
#
# A `StudyConfig` holds every setting; what is not named here is as in the paper. `networks` are the hidden layers of
# each network to train. "mnist" in place of "mnist5k" takes the full data, "auto" whichever is at hand.

# %%
config = ja.StudyConfig(
    dataset="mnist5k",
    networks=((200, 200),),
    epochs=2 if SMALL else None,  # None: as many as keep the optimiser steps near the paper's
    num_random_orders=3 if SMALL else 10,
    steps=80,
)

# %% [markdown]
# ## Train, score, rank, ablate
#
# One call. With `run_dir="FOLDER"` it could be interrupted and would go on there.

# %%
results = ja.run_study(config)
network = results["2-layer"].to_dataset()
print(network)

# %% [markdown]
# ## Scores
#
# Each neuron has one score of each kind, in nats, from the validation split. A neuron that never changes its code
# scores 0 in all three.

# %%
scores = network["scores"].isel(seed=0)
for layer in (1, 2):
    of_layer = scores.where(scores["layer"] == layer, drop=True)
    silent = float((of_layer.sel(score="entropy") == 0).mean())
    print(f"layer {layer}: {silent:.0%} of the neurons never change their code; means:")
    print({str(metric): round(float(of_layer.sel(score=metric).mean()), 3) for metric in of_layer["score"].values})

# %% [markdown]
# ## Curves
#
# `correct` counts the test images that are still right after each step, `accuracy` is that over their number. The area
# under a curve is its mean over the steps; a difference of two is in accuracy points.

# %%
area = ja.results.auc(network).isel(seed=0).sel(fill="mean")
for scope in area["scope"].values:
    of_scope = area.sel(scope=scope)
    ranked = {str(name): round(float(of_scope.sel(ordering=name)), 2) for name in ("entropy_low", "entropy_high")}
    random = of_scope[np.flatnonzero(of_scope["ranking"] == "random")]
    print(
        scope, ranked, f"random {float(random.mean()):.2f}, from {float(random.min()):.2f} to {float(random.max()):.2f}"
    )

# %% [markdown]
# ## The figure
#
# Numbers 1 to 22 are those of the paper; `ja.figures.FIGURES` says what each shows.

# %%
figure = draw_figure(results, 13)
figure.savefig(OUT / "paper_figure.png", dpi=110)
figure

# %% [markdown]
# ![Accuracy while the neurons of layer 1 are ablated, low values first](paper_figure.png)
#
# One network, one seed, 1 000 test images: the curves show what happened here, and the band is that of random orders
# of this network. Whether low values first is better than random in general is a question for many networks:
# [the findings](../findings.md) have twenty of each kind.
