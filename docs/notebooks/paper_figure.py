# %% [markdown]
# # A figure of the paper, from training to curves
#
# This notebook trains the paper's network of two hidden layers, scores its neurons, ablates them one after another, and
# draws Figure 13: layer 1, low values first, bias balanced. It uses the 5,000 images that come with the installation,
# and takes about half a minute on two CPU cores. With `JAXABLATE_NOTEBOOKS=small` in the environment it trains for only
# two epochs; this shows that the notebook runs, but the results mean nothing.

# %%
import os
from pathlib import Path

import numpy as np

import jaxablate as ja
from jaxablate.figures import draw_figure

SMALL = os.environ.get("JAXABLATE_NOTEBOOKS") == "small"
OUT = Path(os.environ.get("JAXABLATE_NOTEBOOKS_OUT", "."))

# %% [markdown]
# ## Configure the study
#
# A `StudyConfig` holds every setting. Settings that you do not name are as in the paper. `networks` lists the hidden
# layers of each network to train. "mnist" uses the full data; "auto" uses the full data if it is available.

# %%
config = ja.StudyConfig(
    dataset="mnist5k",
    networks=((200, 200),),
    epochs=2 if SMALL else None,  # None: about as many optimiser steps as in the paper
    num_random_orders=3 if SMALL else 10,
    steps=80,
)

# %% [markdown]
# ## Train, score, rank, ablate
#
# One call does all of this. With `run_dir="FOLDER"` you could interrupt and resume it.

# %%
results = ja.run_study(config)
network = results["2-layer"].to_dataset()
print(network)

# %% [markdown]
# ## Scores
#
# Each neuron has three scores, in nats, from the validation split. A neuron that never changes its code scores 0 in all
# three.

# %%
scores = network["scores"].isel(seed=0)
for layer in (1, 2):
    layer_scores = scores.where(scores["layer"] == layer, drop=True)
    silent = float((layer_scores.sel(score="entropy") == 0).mean())
    print(f"layer {layer}: {silent:.0%} of the neurons never change their code; means:")
    print({str(score): round(float(layer_scores.sel(score=score).mean()), 3) for score in layer_scores["score"].values})

# %% [markdown]
# ## Curves
#
# `correct` counts the correct test images after each step; `accuracy` divides it by the number of test images. The area
# under a curve is its mean over the steps. The difference of two areas is in accuracy points.

# %%
area = ja.results.auc(network).isel(seed=0).sel(fill="mean")
for scope in area["scope"].values:
    scope_area = area.sel(scope=scope)
    ranked = {str(name): round(float(scope_area.sel(ordering=name)), 2) for name in ("entropy_low", "entropy_high")}
    random = scope_area[np.flatnonzero(scope_area["ranking"] == "random")]
    print(
        scope, ranked, f"random {float(random.mean()):.2f}, from {float(random.min()):.2f} to {float(random.max()):.2f}"
    )

# %% [markdown]
# ## The figure
#
# Figures have the paper's numbers, 1 to 22; `jaxablate.figures.FIGURES` describes each.

# %%
figure = draw_figure(results, 13)
figure.savefig(OUT / "paper_figure.png", dpi=110)
figure

# %% [markdown]
# ![Accuracy while the neurons of layer 1 are ablated, low values first](paper_figure.png)
#
# These curves show one network, one seed and 1,000 test images. The band shows random orders of this network only. To
# learn whether low values first is better than random in general you need many networks: [the
# findings](../findings.md) use twenty of each kind.
