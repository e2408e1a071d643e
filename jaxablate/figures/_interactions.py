"""Draw heat maps of a `PairInformation`; no statistics."""

import numpy as np
from matplotlib.figure import Figure

from jaxablate.interactions import PairInformation

ARRANGED = {
    "information": "by I(T;Y), the most informative first",
    "clusters": "clustered by co-information",
}


def pair_maps(pairs: PairInformation, arranged: str, title: str) -> Figure:
    """Draw redundancy, synergy and co-information with separate scales, because they differ in magnitude."""
    order = _by_information(pairs) if arranged == "information" else _by_clusters(pairs)
    panels = {
        "Redundancy, min(I(T$_i$;Y), I(T$_j$;Y))": pairs.redundancy,
        "Synergy, I(T$_i$,T$_j$;Y) \N{MINUS SIGN} max": pairs.synergy,
        "Co-information, redundancy \N{MINUS SIGN} synergy": pairs.co_information,
    }
    figure = Figure(figsize=(11.5, 3.9))
    for i, (name, values) in enumerate(panels.items()):
        matrix = np.asarray(values)[np.ix_(order, order)].copy()
        np.fill_diagonal(matrix, np.nan)  # the diagonal would set the scale
        axes = figure.add_axes((0.05 + 0.32 * i, 0.15, 0.235, 0.235 * 11.5 / 3.9))
        limit = float(np.nanmax(np.abs(matrix), initial=0)) or 1.0
        low, colours = (-limit, "PuOr") if i == 2 else (0.0, "cividis")
        image = axes.imshow(matrix, cmap=colours, vmin=low, vmax=limit, interpolation="none")
        bar = figure.colorbar(image, cax=figure.add_axes((0.292 + 0.32 * i, 0.15, 0.008, 0.235 * 11.5 / 3.9)))
        bar.ax.set_title("nats", fontsize="small")
        bar.ax.grid(visible=False)
        axes.set_title(name)
        axes.set_xlabel("Rank of neuron j")
        axes.set_ylabel("Rank of neuron i" if i == 0 else "")
        axes.grid(visible=False)
    figure.text(0.05, 0.955, title, fontsize="large")
    figure.text(0.01, 0.012, f"neurons {ARRANGED[arranged]}; diagonal left out", fontsize="x-small", color="#555555")
    return figure


def _by_information(pairs: PairInformation) -> np.ndarray:
    return np.argsort(-np.asarray(pairs.single), kind="stable")


def _by_clusters(pairs: PairInformation) -> np.ndarray:
    """Return the order of the leaves of a tree that joins neurons with the largest co-information first."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    shared = np.asarray(pairs.co_information, np.float64)
    if len(shared) < 3:
        return np.arange(len(shared))
    distance = shared.max() - shared
    np.fill_diagonal(distance, 0)
    return hierarchy.leaves_list(
        hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    )
