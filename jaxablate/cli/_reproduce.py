"""`jaxablate reproduce`: the whole experiment."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import Bars, Cache, DataDir, Devices, command, console, keep_compiled_programs
from jaxablate.cli._processes import Coordinator, NumProcesses, ProcessId, initialize_distributed, is_primary
from jaxablate.cli._tables import accuracy_of, dataset_of, print_dataset, print_summary, print_verdicts


@command
def reproduce(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="As `jaxablate datasets` lists, a folder of IDX files or an .npz file; auto: mnist where at hand or "
            "fetchable, else mnist5k.",
        ),
    ] = "auto",
    data_dir: DataDir = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Networks of each kind to train.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, metavar="N", help="The others follow it.")] = 0,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="paper (the formulas), published (what the published code did), both, each (every departure of that "
            "code too), or names joined by commas.",
        ),
    ] = "paper",
    random_orders: Annotated[int, typer.Option(min=1, metavar="N", help="For each network and scope.")] = 10,
    random_subsets: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random curves of new subsets at each step.")
    ] = 2,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Neurons to ablate.")] = 80,
    activation: Annotated[str, typer.Option(metavar="NAME", help="sigmoid, relu, tanh or gelu.")] = "sigmoid",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Default: near the paper's 15 620 steps."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Results, figures, report.")] = Path("results"),
    force: Annotated[bool, typer.Option("--force", help="Begin afresh where another run has been.")] = False,
    devices: Devices = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    cache: Cache = True,
) -> dict[str, Any]:
    """Train the paper's networks, score and ablate their neurons, draw all 22 figures and write a report; with several
    seeds, judge the paper's claims.

    Example: jaxablate reproduce --dataset mnist --seeds 10 --protocol both --out results
    """
    from jaxablate import StudyConfig, judge_claims, run_study
    from jaxablate._checks import require
    from jaxablate._files import require_writable
    from jaxablate._rundir import lock_folder
    from jaxablate.claims import save_claims
    from jaxablate.figures import save_figures, save_finding_figures
    from jaxablate.protocols import SETS, protocol_names
    from jaxablate.report import networks_beside, write_report
    from jaxablate.results import save_results, select_protocol

    devices = initialize_distributed(coordinator, num_processes, process_id, devices)
    config = StudyConfig(
        dataset=dataset,
        data_dir=None if data_dir is None else str(data_dir),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        protocols=protocol_names(protocol),
        num_random_orders=random_orders,
        num_random_subsets=random_subsets,
        steps=steps,
        activation=activation,
        epochs=epochs,
    )
    drawn = [name for name in config.protocols if name in SETS["both"]]
    folders = {name: out / "figures" / ("" if name == "paper" else name) for name in drawn}
    findings = [out / "figures" / "findings"] if seeds > 1 and drawn else []
    if cache:
        keep_compiled_programs()
    if not is_primary():
        run_study(config, run_dir=out, force=force, mesh=devices)
        return {}
    for folder in (out, out / "networks", *folders.values(), *findings):
        require_writable(folder)
    claims = [out / "claims.json", out / "claims.csv"]
    report = out / "report.html"
    for file in (out / "results.nc", report, *claims):
        require(not file.is_dir(), f"{file}: expected a file or nothing, got a folder")
    start = time.monotonic()
    bars = Bars()
    with lock_folder(out) as killed:
        if killed:
            console.print(f"Resuming: {killed} ended before it was done.", highlight=False, markup=False)
        with bars.progress:
            results = run_study(config, run_dir=out, force=force, on_progress=bars, mesh=devices)
            for file in (report, *claims):
                file.unlink(missing_ok=True)  # those of the results that are replaced
            save_results(results, out / "results.nc")
            for name, folder in folders.items():
                save_figures(select_protocol(results, name), folder, on_progress=bars)
            verdicts = judge_claims(results) if seeds > 1 else []
            if verdicts:
                save_claims(verdicts, results, out)
            for folder in findings:
                save_finding_figures(results, verdicts, folder)
            write_report(results, report, networks=networks_beside(results, out)[0], verdicts=verdicts)
    print_summary(results)
    if verdicts:
        print_verdicts(verdicts)
    else:
        console.print("The paper's claims are not judged on one network of each kind: --seeds 10 does that.")
    print_dataset(results, asked=dataset)
    seconds = time.monotonic() - start
    console.print(f"Time: {seconds:.0f} s; the bars say where it went.", highlight=False)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    console.print(f"Results: {out / 'results.nc'}", highlight=False, soft_wrap=True)
    if verdicts:
        console.print(f"Claims: {out / 'claims.json'}, {out / 'claims.csv'}", highlight=False, soft_wrap=True)
    for folder in folders.values():
        console.print(f"Figures: {folder} (contact_sheet.png shows them all)", highlight=False, soft_wrap=True)
    return {
        "results": out / "results.nc",
        "report": report,
        "figures": [*folders.values(), *findings],
        "claims": claims[0] if verdicts else None,
        **dataset_of(results),
        "seconds": seconds,
        "accuracy": accuracy_of(results),
        "verdicts": [
            {"protocol": of.protocol, "network": of.network, "claim": of.claim, "verdict": of.verdict}
            for of in verdicts
        ],
    }
