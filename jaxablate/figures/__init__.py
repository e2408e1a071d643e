"""Plot any network's results on Matplotlib axes, and draw the paper's 22 figures, extra ones and the findings.

Input: results of a study, arrays of the library's functions, verdicts, or the information of pairs.
Output: axes, figures, or their PNG and PDF files.
Memory: one figure at a time.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from jaxablate._checks import as_path, require
from jaxablate._files import atomic_path, require_writable
from jaxablate._progress import OnProgress
from jaxablate.charts import EXTRAS, FIGURES, INTERVAL, METRIC_NAMES, FigureSpec, names_of, origin
from jaxablate.claims import Verdict, departures_from_paper, explain_changes
from jaxablate.claims._judge import require_verdicts
from jaxablate.figures import _findings
from jaxablate.figures._conditions import draw_conditions
from jaxablate.figures._draw import draw, draw_published, styled
from jaxablate.figures._interactions import draw_pair_information
from jaxablate.figures._plots import (
    plot_comparison,
    plot_curves,
    plot_damage,
    plot_pairs,
    plot_redundancy,
    plot_scores,
)
from jaxablate.figures._sensitivity import draw_sensitivity
from jaxablate.protocols import PAPER
from jaxablate.results import protocols_of, select_protocol
from jaxablate.results._labels import all_protocols, is_passed, require_results

__all__ = [
    "EXTRAS",
    "FIGURES",
    "METRIC_NAMES",
    "FigureSpec",
    "draw_conditions",
    "draw_figure",
    "draw_pair_information",
    "draw_published",
    "draw_sensitivity",
    "plot_comparison",
    "plot_curves",
    "plot_damage",
    "plot_pairs",
    "plot_redundancy",
    "plot_scores",
    "save_conditions",
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
    require_results(results)
    return draw(results, _spec(results, number))


def save_figure(results: xr.DataTree, number: int, folder: str | Path) -> list[Path]:
    """Draw one figure of the paper into a folder, as PNG and PDF.

    Returns:
        The two files.

    Raises:
        InputError: as `draw_figure`, or for a folder that cannot be written.
    """
    require_results(results)
    folder = as_path("folder", folder)
    require_writable(folder)
    return _write(draw_figure(results, number), Path(folder), FIGURES[number].stem)


def save_conditions(results: xr.DataTree, folder: str | Path) -> list[Path]:
    """Draw the comparisons of every condition of a grid into a folder, as PNG and PDF.

    Args:
        results: results of a grid, from `run_study` or `load_results`.
        folder: where the files go.

    Returns:
        The paths of the two files of each protocol. They are named `conditions` for the paper's protocol, and for
        example `conditions_published` for another protocol.

    Raises:
        InputError: for a folder that cannot be written.
    """
    require_results(results)
    folder = as_path("folder", folder)
    require_writable(folder)
    files = []
    for protocol in all_protocols(results):
        stem = "conditions" if protocol == PAPER.name else f"conditions_{protocol}"
        files += _write(draw_conditions(results, protocol), Path(folder), stem)
    return files


def save_figures(
    results: xr.DataTree,
    folder: str | Path,
    *,
    on_progress: OnProgress | None = None,
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
    require_results(results)
    folder = as_path("folder", folder)
    require_writable(folder)
    folder = Path(folder)
    specs = drawable(results)
    require(len(specs) > 0, f"figures: expected a 2-layer or 3-layer network, got {list(results.children)}")
    files = []
    for i, spec in enumerate(specs):
        files += _write(draw(results, spec), folder, spec.stem)
        if on_progress is not None:
            on_progress("draw", i + 1, len(specs), spec.stem)
    return [*files, _contact_sheet([file for file in files if file.suffix == ".png"], folder)]


def drawable(results: xr.DataTree) -> list[FigureSpec]:
    """Return the figures that the results of one protocol have the networks and scores for."""
    return [spec for spec in (*FIGURES.values(), *EXTRAS) if _missing(results, spec) is None]


def save_finding_figures(results: xr.DataTree, verdicts: Sequence[Verdict], folder: str | Path) -> list[Path]:
    """Draw what the results say of the paper's claims, and the mechanism behind whole-network rankings.

    Args:
        results: from `run_study` or `load_results`.
        verdicts: from `judge_claims` on them.
        folder: where PNG and PDF files go.

    Returns:
        The files: `claims`, a table of all verdicts; `claim_C1` and so on, the comparisons of each claim;
        `correlations`; `layer_shares` for each network; `departures` for each network, if the results hold the
        combinations of departures and the two protocols judge a claim differently.

    Raises:
        InputError: for a folder that cannot be written.
    """
    require_results(results)
    folder = as_path("folder", folder)
    require_verdicts(verdicts)
    require_writable(folder)
    protocols = [name for name in protocols_of(results) if name in _findings.COMPARED]
    require(len(protocols) > 0, f"figures: expected the protocol paper or published, got {protocols_of(results)}")
    networks = select_protocol(results, protocols[0]).children
    network = next(iter(networks.values())).to_dataset()
    source = origin(results, network)
    bars, bands = (origin(results, network, f"{mark}: {INTERVAL}") for mark in ("bars", "bands"))
    differences = departures_from_paper(results)
    changes = [change for change in explain_changes(verdicts) if change.shapley]
    # a function for each file, so that only one figure is in memory
    figures = {"claims": lambda: _findings.claims(verdicts, source, differences)}
    for claim in dict.fromkeys(verdict.claim for verdict in verdicts):
        judged = [v for v in verdicts if v.claim == claim and v.protocol in protocols and v.effects]
        if judged:
            name = re.sub(r"\W+", "_", claim)
            figures[f"claim_{name}"] = lambda judged=judged: _findings.comparisons(judged, bars, differences)
    figures["correlations"] = lambda: _findings.correlations(results, list(networks), protocols, bars)
    for name in networks:
        figures[f"layer_shares_{name}"] = lambda name=name: _findings.shares(results, name, protocols, bands)
        of_network = [change for change in changes if change.network == name]
        if of_network:
            figures[f"departures_{name}"] = lambda changes=of_network: _findings.departures(changes, source)
    return [file for stem, draw_it in figures.items() for file in _write(draw_it(), Path(folder), stem)]


def _missing(results: xr.DataTree, spec: FigureSpec) -> str | None:
    """Return what the results lack for this figure, or None."""
    if spec.network not in results.children:
        return f"a {spec.network} network"
    network = results[spec.network].to_dataset()
    if spec.kind == "training" and is_passed(network):
        return f"the training of the {spec.network} network, which the study did not train"
    # the paper's figures show only the paper's scores
    metrics = {"scores": {spec.subject}, "balancing": {"mutual_information"}, "orders": set(METRIC_NAMES)}
    absent = metrics.get(spec.kind, set()) - {*names_of(network, "score")}
    return f"the scores {sorted(absent)}" if absent else None


def _spec(results: xr.DataTree, number: int) -> FigureSpec:
    require(number in FIGURES, f"figure: expected a number in 1..{len(FIGURES)}, got {number}")
    spec = FIGURES[number]
    missing = _missing(results, spec)
    require(missing is None, f"figure {number}: expected results with {missing}, got {list(results.children)}")
    return spec


# The resolution and the fonts of files belong to the style too.
@styled
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
    # rows of five; a negative floor division rounds up
    columns = min(5, len(images))
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (column * width, row * height))
    path = folder / CONTACT_SHEET
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path
