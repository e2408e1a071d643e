"""Figures: results come in, the 22 figures of the paper and five extras, and figures of the findings, go out.

They draw only; summaries come from `results`. Memory: one figure at a time.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from jaxablate._checks import require, require_known
from jaxablate._files import atomic_path, require_writable
from jaxablate.claims import Verdict, explain_changes
from jaxablate.figures import _findings
from jaxablate.figures._catalogue import EXTRAS, FIGURES, METRIC_NAMES, FigureSpec
from jaxablate.figures._draw import STYLE, draw
from jaxablate.figures._interactions import ARRANGED, pair_maps
from jaxablate.figures._sensitivity import sensitivity_figure
from jaxablate.interactions import PairInformation
from jaxablate.results import protocols_of, select_protocol

__all__ = [
    "EXTRAS",
    "FIGURES",
    "METRIC_NAMES",
    "FigureSpec",
    "draw_figure",
    "draw_pair_information",
    "draw_sensitivity",
    "save_figure",
    "save_figures",
    "save_finding_figures",
]

CONTACT_SHEET = "contact_sheet.png"


def draw_figure(results: xr.DataTree, number: int) -> Figure:
    """Draw one figure of the paper.

    Args:
        results: from `run_study` or `load_results`.
        number: 1 to 22, as in the paper.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: for an unknown number, or results without the network that the figure shows.
    """
    spec = _spec(results, number)
    with matplotlib.style.context(STYLE):
        return draw(results, spec)


def save_figure(results: xr.DataTree, number: int, folder: str | Path) -> list[Path]:
    """Draw one figure of the paper into a folder, as PNG and PDF.

    Returns:
        The two files.

    Raises:
        InputError: as `draw_figure`, or for a folder that cannot be written.
    """
    require_writable(folder)
    return _save(results, _spec(results, number), Path(folder))


def save_figures(
    results: xr.DataTree,
    folder: str | Path,
    *,
    on_progress: Callable[[str, int, int, str], None] | None = None,
) -> list[Path]:
    """Draw every figure that the results have the network for, and a contact sheet of them all.

    Args:
        results: from `run_study` or `load_results`.
        folder: where PNG and PDF files go.
        on_progress: called with ("draw", figures done, figures in all, file name).

    Returns:
        The files written: two for each figure, then the contact sheet.

    Raises:
        InputError: for a folder that cannot be written, or results without any network of the paper.
    """
    require_writable(folder)
    folder = Path(folder)
    specs = [spec for spec in (*FIGURES.values(), *EXTRAS) if _missing(results, spec) is None]
    require(len(specs) > 0, f"figures: expected a 2-layer or 3-layer network, got {list(results.children)}")
    files = []
    for i, spec in enumerate(specs):
        files += _save(results, spec, folder)
        if on_progress is not None:
            on_progress("draw", i + 1, len(specs), spec.stem)
    return [*files, _contact_sheet([file for file in files if file.suffix == ".png"], folder)]


def save_finding_figures(results: xr.DataTree, verdicts: Sequence[Verdict], folder: str | Path) -> list[Path]:
    """Draw what the results say of the paper's claims, and the mechanism behind whole-network rankings.

    Args:
        results: from `run_study` or `load_results`.
        verdicts: from `judge_claims` on them.
        folder: where PNG and PDF files go.

    Returns:
        The files: `claims` (every effect and verdict); `departures` (where the results hold single departures and a
        claim is judged differently by the two protocols); `correlations`; `layer_shares` for each network.

    Raises:
        InputError: for a folder that cannot be written.
    """
    require_writable(folder)
    protocols = [name for name in protocols_of(results) if name in _findings.COMPARED]
    require(len(protocols) > 0, f"figures: expected the protocol paper or published, got {protocols_of(results)}")
    networks = {name: node.to_dataset() for name, node in select_protocol(results, protocols[0]).children.items()}
    seeds = max(network.sizes["seed"] for network in networks.values())
    caption = (
        f"{seeds} network{'s' if seeds > 1 else ''} of each kind trained on {results.attrs['dataset']}; "
        f"bars and bands: 95 % t-interval of the mean; jaxablate {json.loads(results.attrs['versions'])['jaxablate']}"
    )
    flips = explain_changes(verdicts)
    figures = {"claims": lambda: _findings.forest(verdicts, caption)}
    if any(flip.cause for flip in flips):
        figures["departures"] = lambda: _findings.departures(flips, caption)
    figures["correlations"] = lambda: _findings.correlations(results, list(networks), protocols, caption)
    for name in networks:
        figures[f"layer_shares_{name}"] = lambda name=name: _findings.shares(results, name, protocols, caption)
    files = []
    for stem, draw_it in figures.items():
        with matplotlib.style.context(STYLE):
            files += _write(draw_it(), Path(folder), stem)
    return files


def draw_pair_information(pairs: PairInformation, *, arranged: str = "information", title: str = "") -> Figure:
    """Draw heat maps of the information of a layer's pairs about the class: redundancy, synergy, co-information.

    Args:
        pairs: from `ja.interactions.pair_information`.
        arranged: order of the neurons: "information" puts the most informative first; "clusters" puts neurons next to
            each other that share information (average linkage on co-information).
        title: title above the maps.

    Returns:
        A matplotlib figure; colours show nats, and the diagonal (a neuron with itself) is blank.

    Raises:
        InputError: for an unknown order.
    """
    require_known("order", arranged, ARRANGED)
    with matplotlib.style.context(STYLE):
        return pair_maps(pairs, arranged, title)


def draw_sensitivity(sensitivity: xr.Dataset, *, title: str = "Does the result depend on the quantizer?") -> Figure:
    """Draw how ranks and curves change with the quantizer and its number of codes.

    Args:
        sensitivity: from `ja.study.quantizer_sensitivity`.
        title: above the panels.

    Returns:
        A matplotlib figure with a column for each scope: above, Spearman's correlation with the scores under the first
        quantizer; below, by how much the AUC is higher with low values first than with high ones, in accuracy points.
        Both are means over the networks, with 95% t-intervals.
    """
    with matplotlib.style.context(STYLE):
        return sensitivity_figure(sensitivity, title)


def _missing(results: xr.DataTree, spec: FigureSpec) -> str | None:
    """Return what the results lack for this figure, or None."""
    if spec.network not in results.children:
        return f"a {spec.network} network"
    metrics = {"scores": {spec.subject}, "balancing": {"mutual_information"}, "orders": set(METRIC_NAMES)}
    absent = metrics.get(spec.kind, set()) - set(results[spec.network].to_dataset()["score"].values)
    return f"the scores {sorted(absent)}" if absent else None


def _spec(results: xr.DataTree, number: int) -> FigureSpec:
    require(number in FIGURES, f"figure: expected a number in 1..{len(FIGURES)}, got {number}")
    spec = FIGURES[number]
    missing = _missing(results, spec)
    require(missing is None, f"figure {number}: expected results with {missing}, got {list(results.children)}")
    return spec


def _save(results: xr.DataTree, spec: FigureSpec, folder: Path) -> list[Path]:
    with matplotlib.style.context(STYLE):
        return _write(draw(results, spec), folder, spec.stem)


def _write(figure: Figure, folder: Path, stem: str) -> list[Path]:
    files = [folder / f"{stem}.{suffix}" for suffix in ("png", "pdf")]
    for file in files:
        drawn = io.BytesIO()  # on a full disk matplotlib's PDF writer raises other errors than OSError
        figure.savefig(drawn, format=file.suffix[1:])
        with atomic_path(file) as temporary:
            temporary.write_bytes(drawn.getvalue())
    return files


def _contact_sheet(pictures: list[Path], folder: Path) -> Path:
    """Paste all pictures on one page at half their size."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    width, height = (size // 2 for size in images[0].size)
    columns = min(5, len(images))
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (column * width, row * height))
    path = folder / CONTACT_SHEET
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path
