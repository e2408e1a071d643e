"""`jaxablate table`: write the curves or the neurons of a run as a table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import command, console

__all__ = ["table"]


@command
def table(
    results: Annotated[Path, typer.Argument(help="File results.nc, or the folder of a run.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table to write: .csv or .parquet.", show_default=False)],
    neurons: Annotated[
        bool, typer.Option("--neurons", help="One row for each neuron, instead of each point of each curve.")
    ] = False,
) -> dict[str, Any]:
    """Write the curves of a run as a table, with one row for each point of each curve; or its neurons.

    Example: jaxablate table results --out curves.csv
    """
    from jaxablate.results import TABLE_SUFFIXES, check_table_path, load_results, save_table, tidy

    check_table_path(out, TABLE_SUFFIXES)
    rows = tidy(
        load_results(results / "results.nc" if results.is_dir() else results), "neurons" if neurons else "curves"
    )
    save_table(rows, out)
    console.print(
        f"Table: {out} ({len(rows):,} rows: {', '.join(rows)})", highlight=False, markup=False, soft_wrap=True
    )
    return {"table": out, "rows": len(rows), "columns": list(rows)}
