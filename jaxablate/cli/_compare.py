"""`jaxablate compare`: compare the networks of two runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import command, console, show
from jaxablate.cli._merge import load_run

__all__ = ["compare"]


@command
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Folder of another run.", show_default=False)],
    by: Annotated[
        str, typer.Option(metavar="MEASURE", help="Measure: auc, normalized_auc or first_step_below:POINTS.")
    ] = "auc",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table with all layers too: .csv or .nc.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page with intervals and curves: .html.", show_default=False)
    ] = None,
) -> dict[str, Any]:
    """Compare the networks that two runs have in common: first minus second, with 95% intervals.

    Example: jaxablate compare sigmoid relu --report differences.html
    """
    import xarray as xr
    from rich.markup import escape
    from rich.table import Column, Table

    from jaxablate.charts import order_name
    from jaxablate.results import NETWORK_SCOPE, check_table_path, save_table
    from jaxablate.results import compare as compare_results

    if out is not None:
        check_table_path(out)
    if report is not None:
        from jaxablate.report import check_report_path

        check_report_path(report)
    runs = load_run(first), load_run(second)
    compared = compare_results(*runs, by=by)
    networks = {node.path.strip("/"): node.to_dataset() for node in compared.subtree if node.data_vars}
    for name, data in networks.items():
        table = Table(
            "order", "fill", Column("difference", justify="right"), Column("95% interval", justify="right"),
            Column("p (Holm)", justify="right"), title_justify="left",
            title=escape(
                f"{name}: {by} of {first} minus {second}, whole network; {data.attrs['comparison']}, "
                f"{int(data['num_networks'].max())} networks"
            ),
        )  # fmt: skip
        whole = data.sel(scope=NETWORK_SCOPE)
        for ordering in whole["ordering"].values:
            for fill in whole["fill"].values:
                cell = {key: float(value) for key, value in whole.sel(ordering=ordering, fill=fill).items()}
                has_interval = cell["low"] == cell["low"]  # one network has none
                interval = escape(f"[{cell['low']:+.2f}, {cell['high']:+.2f}]") if has_interval else ""
                values = f"{cell['difference']:+.2f}", interval, f"{cell['p_holm']:.2g}" if has_interval else ""
                table.add_row(order_name(str(ordering)), str(fill).replace("_", " "), *values)
        console.print(table)
    # networks have different scopes; coordinates that differ between networks get the new dimension
    parts = [data.assign_coords(network=name) for name, data in networks.items()]
    joined = xr.concat(parts, "network", join="outer", coords="different", compat="equals", data_vars="all")
    if out is not None:
        save_table(joined, out)
        show(f"Table of all scopes: {out}")
    if report is not None:
        from jaxablate.report import write_comparison

        names = (first.name, second.name) if first.name != second.name else ("first", "second")
        write_comparison(*runs, report, names=names, by=by)
        show(f"Report: {report}")
    rows = joined.to_dataframe().reset_index().to_dict("records")
    return {"by": by, "differences": rows, "table": out, "report": report}
