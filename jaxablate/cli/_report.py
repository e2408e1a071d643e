"""`jaxablate report`: write the HTML page of a run from its results."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import DataDir, command, show

__all__ = ["report"]


@command
def report(
    results: Annotated[Path, typer.Argument(help="File results.nc, or the folder of a run.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="HTML page to write; default: report.html next to the results.", show_default=False
        ),
    ] = None,
    data_dir: DataDir = None,
) -> dict[str, Any]:
    """Write results as one HTML page with verdicts, figures, neurons and provenance; the page needs no internet.

    Example: jaxablate report results --out report.html
    """
    from jaxablate._checks import InputError, JaxablateWarning
    from jaxablate.report import load_data_of, networks_beside, write_report
    from jaxablate.results import load_results

    file = results / "results.nc" if results.is_dir() else results
    run = load_results(file)
    page = file.parent / "report.html" if out is None else out
    networks, notes = networks_beside(run, file.parent)
    for note in notes:
        warnings.warn(f"no pictures of weights from {note}", JaxablateWarning, stacklevel=2)
    data = None
    if networks:
        try:
            data = load_data_of(run, data_dir)
        except InputError as error:
            notes.append(str(error))
            warnings.warn(f"no examples with high activations: {error}", JaxablateWarning, stacklevel=2)
    write_report(run, page, networks=networks, data=data)
    show(f"Report: {page}")
    return {"report": page, "pictures_of": list(networks), "notes": notes}
