"""Draw heat maps of a `PairInformation`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from jaxablate._checks import require_known, require_type
from jaxablate.figures._draw import NotebookFigure, add_caption, styled
from jaxablate.interactions import PairInformation

ARRANGED = {
    "information": "by I(T;Y), the most informative first",
    "clusters": "clustered by co-information",
}

QUANTITIES = {
    "redundancy": "Redundancy, min(I(T$_i$;Y), I(T$_j$;Y))",
    "synergy": "Synergy, I(T$_i$,T$_j$;Y) \N{MINUS SIGN} max",
    "co_information": "Co-information, redundancy \N{MINUS SIGN} synergy",
}


@styled
def draw_pair_information(pairs: PairInformation, *, arranged: str = "information", title: str = "") -> Figure:
    """Draw heat maps of the information of a layer's pairs about the class: redundancy, synergy, co-information.

    Args:
        pairs: from `ja.interactions.pair_information`.
        arranged: order of the neurons: "information" puts the most informative first; "clusters" puts neurons next to
            each other whose co-information is large (average linkage).
        title: title above the maps.

    Returns:
        A matplotlib figure; colours show nats, and the diagonal (a neuron with itself) is blank.

    Raises:
        InputError: for an unknown order.
    """
    order = order_of(pairs, arranged)
    figure = NotebookFigure(figsize=(11.5, 3.9))
    for i, quantity in enumerate(QUANTITIES):
        # Boxes are (left, bottom, width, height) as fractions of the figure; a square map has the figure's aspect ratio
        # as a factor in its height. Each map has its own scale, because the three differ in magnitude.
        start, height = 0.05 + 0.32 * i, 0.235 * 11.5 / 3.9
        axes = figure.add_axes((start, 0.15, 0.235, height))
        image = draw_map(axes, pairs, quantity, order)
        bar = figure.colorbar(image, cax=figure.add_axes((start + 0.242, 0.15, 0.008, height)))
        bar.ax.set_title("nats", fontsize="small")
        bar.ax.grid(visible=False)
        axes.set_ylabel(axes.get_ylabel() if i == 0 else "")
    figure.text(0.05, 0.955, title, fontsize="large")
    add_caption(figure, f"neurons {ARRANGED[arranged]}; diagonal left out")
    return figure


def order_of(pairs: PairInformation, arranged: str) -> np.ndarray:
    """Return the order of the neurons in a map, after checks."""
    require_type("pairs", pairs, PairInformation, "pairs from ja.interactions.pair_information")
    require_known("arranged", arranged, ARRANGED)
    if arranged == "clusters":
        return _by_clusters(pairs)
    return np.argsort(-np.asarray(pairs.single), kind="stable")


def draw_map(axes: Axes, pairs: PairInformation, quantity: str, order: np.ndarray) -> AxesImage:
    """Draw a quantity of all pairs as a map of the neurons in an order, and return the image."""
    matrix = np.asarray(getattr(pairs, quantity))[np.ix_(order, order)].copy()
    np.fill_diagonal(matrix, np.nan)  # the diagonal would set the scale
    limit = float(np.nanmax(np.abs(matrix), initial=0)) or 1.0
    # only co-information has a sign
    low, colours = (-limit, "PuOr") if quantity == "co_information" else (0.0, "cividis")
    axes.set_title(QUANTITIES[quantity])
    axes.set_xlabel("Position of neuron j")
    axes.set_ylabel("Position of neuron i")
    axes.grid(visible=False)
    return axes.imshow(matrix, cmap=colours, vmin=low, vmax=limit, interpolation="none")


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
