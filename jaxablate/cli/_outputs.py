"""Write and print the results of a run: the common end of `jaxablate reproduce` and `jaxablate merge`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxablate.cli._console import Bars, console, show
from jaxablate.cli._tables import accuracy_of, dataset_of, print_dataset, print_summary, print_verdicts

if TYPE_CHECKING:
    import xarray as xr

    from jaxablate.claims import Verdict
    from jaxablate.study import StudyConfig


def figure_folders(out: Path, protocols: Sequence[str], num_seeds: int) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders of the figures by protocol, and the folders of the findings (none for one seed)."""
    from jaxablate.protocols import SETS

    # Single departures of the published code are judged and explained in the report, but have no figures of their own.
    drawn = [name for name in protocols if name in SETS["both"]]
    folders = {name: out / "figures" / ("" if name == "paper" else name) for name in drawn}
    return folders, [out / "figures" / "findings"] if num_seeds > 1 and drawn else []


def _drawn_folders(results: "xr.DataTree", out: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return `figure_folders` without the protocols that have no figure: the paper's figures show its networks."""
    from jaxablate.figures import drawable
    from jaxablate.results import select_protocol

    folders, findings = figure_folders(out, *_protocols_and_seeds(results))
    return {name: folder for name, folder in folders.items() if drawable(select_protocol(results, name))}, findings


def write_outputs(
    results: "xr.DataTree", out: Path, bars: Bars, config: "StudyConfig | None" = None
) -> "list[Verdict]":
    """Write the results, figures, claims and report of a run, and return the verdicts on the claims.

    With one seed there is nothing to judge, and the list is empty. With the config of the run, the report shows the
    examples with the highest activations.
    """
    from jaxablate import judge_claims
    from jaxablate.claims import save_claims
    from jaxablate.figures import save_figures, save_finding_figures
    from jaxablate.report import networks_beside, write_report
    from jaxablate.results import conditions_of, save_results, select_protocol
    from jaxablate.study._networks import load_data

    if conditions_of(results):
        _write_grid(results, out)
        return []
    _, num_seeds = _protocols_and_seeds(results)
    folders, findings = _drawn_folders(results, out)
    report = out / "report.html"
    _remove_summaries(out)
    # The results come first: if a later step fails, `jaxablate report` still makes the page from them.
    save_results(results, out / "results.nc")
    for name, folder in folders.items():
        save_figures(select_protocol(results, name), folder, on_progress=bars)
    # One network has no interval. From two on claims.json has the effects, from five on their verdicts.
    verdicts = judge_claims(results) if num_seeds > 1 else []
    if verdicts:
        save_claims(verdicts, results, out)
    for folder in findings:
        save_finding_figures(results, verdicts, folder)
    networks, _ = networks_beside(results, out)
    data = load_data(config) if networks and config is not None else None
    write_report(results, report, networks=networks, data=data, verdicts=verdicts)
    return verdicts


def _remove_summaries(out: Path) -> None:
    """Remove the summaries of earlier results of the folder, be they of one study or of a grid.

    A run that is killed while it writes its own must not leave them. `--force` may put a grid where a study was.
    """
    from jaxablate.protocols import SETS

    protocols = dict.fromkeys(name for names in SETS.values() for name in names)
    stems = ["conditions", *(f"conditions_{protocol}" for protocol in protocols)]
    files = ["report.html", "claims.json", "claims.csv", *(f"comparisons_{protocol}.csv" for protocol in protocols)]
    for file in [*files, *(f"figures/{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf"))]:
        (out / file).unlink(missing_ok=True)


def _write_grid(results: "xr.DataTree", out: Path) -> None:
    """Write the results of a grid and of each condition, the comparisons as a table and a picture, and the report."""
    from jaxablate.figures import save_conditions
    from jaxablate.report import write_report
    from jaxablate.results import compare_conditions, save_results, save_table
    from jaxablate.results._labels import all_protocols, studies_of
    from jaxablate.study._grid import CONDITIONS

    _remove_summaries(out)
    save_results(results, out / "results.nc")
    # Commands that take the results of one study take the file of a condition.
    for name, study in studies_of(results).items():
        save_results(study, out / CONDITIONS / name / "results.nc")
    # Conditions can have different protocols; a table has the conditions that ran its protocol.
    for protocol in all_protocols(results):
        save_table(compare_conditions(results, protocol), out / f"comparisons_{protocol}.csv")
    save_conditions(results, out / "figures")
    write_report(results, out / "report.html")


def _print_grid(results: "xr.DataTree", out: Path, *, dataset: str, seconds: float) -> dict[str, Any]:
    """Print the accuracies and comparisons of every condition and the places of the files; return the values."""
    from jaxablate.protocols import shown_protocols
    from jaxablate.results import compare_conditions
    from jaxablate.results._labels import all_protocols

    protocols = all_protocols(results)
    compared = {protocol: compare_conditions(results, protocol) for protocol in protocols}
    for protocol in shown_protocols(protocols):
        _print_comparisons(compared[protocol], f", protocol {protocol}" if len(protocols) > 1 else "")
    console.print("The report and the tables have intervals, and the comparisons with random orders.", highlight=False)
    print_dataset(results, asked=dataset)
    console.print(f"Time: {seconds:.0f} s; the bars say where it went.", highlight=False)
    tables = [out / f"comparisons_{protocol}.csv" for protocol in protocols]
    places = {"Report": [out / "report.html"], "Results": [out / "results.nc"], "Comparisons": tables}
    for name, files in {**places, "Figures": [out / "figures"]}.items():
        show(f"{name}: {', '.join(map(str, files))}")
    return {
        "results": out / "results.nc",
        "report": out / "report.html",
        "comparisons": tables,
        "figures": [out / "figures"],
        **dataset_of(results),
        "seconds": seconds,
        "conditions": [
            {"protocol": protocol, **row}
            for protocol, data in compared.items()
            for row in data.to_dataframe().reset_index().to_dict("records")
        ],
    }


def _print_comparisons(data: "xr.Dataset", title: str) -> None:
    """Print the accuracies and comparisons of every condition under one protocol, a table for each network."""
    from rich.markup import escape
    from rich.table import Column, Table

    from jaxablate.charts import comparison_name, short_name

    # the comparisons with random orders would not fit a terminal
    names = [str(name) for name in data["comparison"].values if not str(name).endswith(" - random")]
    heads = [short_name(name.partition("_low - ")[0]) if "_low - " in name else comparison_name(name) for name in names]
    for network in data["network"].values:
        table = Table(
            Column("condition", overflow="fold"),  # names of conditions are never cut
            *(Column(head, justify="right", no_wrap=True) for head in ("accuracy", *heads)),
            title=f"{escape(str(network))} network{title}: test accuracy in %, and differences of areas under the "
            "curves of the whole network in points (scores: low values first minus high values first)",
            title_justify="left",
        )
        for condition in data["condition"].values:
            cell = data.sel(condition=condition, network=network)
            if int(cell["num_networks"].fillna(0)) > 0:
                values = [float(cell["difference"].sel(comparison=name)) for name in names]
                differences = (f"{value:+.1f}" if value == value else "" for value in values)  # NaN: lacks the score
                table.add_row(escape(str(condition)), f"{float(cell['accuracy']):.2f}", *differences)
        console.print(table)


def print_outputs(
    results: "xr.DataTree", out: Path, verdicts: "Sequence[Verdict]", *, dataset: str, seconds: float
) -> dict[str, Any]:
    """Print the tables of a run and the places of its files; return the values for `--json`.

    Args:
        results: the results.
        out: folder of the run.
        verdicts: from `write_outputs`.
        dataset: name of the dataset in the command.
        seconds: duration of the command.
    """
    from jaxablate.claims import departures_from_paper
    from jaxablate.results import conditions_of

    if conditions_of(results):
        return _print_grid(results, out, dataset=dataset, seconds=seconds)

    folders, findings = _drawn_folders(results, out)
    differences = departures_from_paper(results)
    print_summary(results)
    if verdicts:
        print_verdicts(verdicts, differences)
    else:
        what = "Comparisons" if differences else "The paper's claims"
        console.print(f"{what} are not judged on one network of each kind: --seeds 10 does that.")
    print_dataset(results, asked=dataset)
    console.print(f"Time: {seconds:.0f} s; the bars say where it went.", highlight=False)
    show(f"Report: {out / 'report.html'}")
    show(f"Results: {out / 'results.nc'}")
    if verdicts:
        what = "Comparisons" if differences else "Claims"
        show(f"{what}: {out / 'claims.json'}, {out / 'claims.csv'}")
    for folder in folders.values():
        show(f"Figures: {folder} (contact_sheet.png shows them all)")
    command = f"jaxablate table {shlex.quote(str(out))} --out curves.csv"
    show(f"All curves as a table: {command}")
    return {
        "results": out / "results.nc",
        "report": out / "report.html",
        "figures": [*folders.values(), *findings],
        "claims": out / "claims.json" if verdicts else None,
        **dataset_of(results),
        "seconds": seconds,
        "paper_setting": not differences,
        "differences": differences,
        "accuracy": accuracy_of(results),
        "verdicts": [
            {name: getattr(verdict, name) for name in ("protocol", "network", "claim", "verdict")}
            for verdict in verdicts
        ],
    }


def _protocols_and_seeds(results: "xr.DataTree") -> tuple[list[str], int]:
    """Return the protocols of the results and the largest number of seeds of a network."""
    from jaxablate.results import protocols_of

    return protocols_of(results), max(node.sizes.get("seed", 0) for node in results.subtree)
