"""`jaxablate reproduce`: run the whole experiment of the paper."""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxablate.cli._console import (
    Bars,
    Cache,
    DataDir,
    Devices,
    ExtraFills,
    command,
    console,
    keep_compiled_programs,
    parse_steps,
)
from jaxablate.cli._outputs import figure_folders, print_outputs, write_outputs
from jaxablate.cli._processes import Coordinator, NumProcesses, ProcessId, initialize_distributed
from jaxablate.cli._settings import read_settings, settings_from_text

__all__ = ["reproduce"]

option = partial(typer.Option, show_default=False)
"""Make an option without a default: `StudyConfig` has the defaults, so that a file can override them."""


@command
def reproduce(
    dataset: Annotated[
        str | None,
        option(
            metavar="DATA",
            help="Name from `jaxablate datasets`, folder or .npz file; default: mnist if available, else mnist5k.",
        ),
    ] = None,
    data_dir: DataDir = None,
    seeds: Annotated[int | None, option(metavar="N", help="Networks of each architecture; default: 1.")] = None,
    first_seed: Annotated[int | None, option(metavar="N", help="First of the consecutive seeds; default: 0.")] = None,
    protocol: Annotated[
        str | None,
        option(
            metavar="NAMES",
            help="Protocols: paper (default), published, both, departures or controls; joined by commas.",
        ),
    ] = None,
    random_orders: Annotated[
        int | None, option(metavar="N", help="Random orders per layer and network; default: 10.")
    ] = None,
    random_subsets: Annotated[
        int | None, option(metavar="N", help="Random curves of protocol published; default: 2.")
    ] = None,
    # Any: Typer takes no union of types, and `parse_steps` returns a number or a text
    steps: Annotated[
        Any, option(parser=parse_steps, metavar="N|all|P%", help="Neurons to ablate, or all of a layer; default: 80.")
    ] = None,
    extra_fills: ExtraFills = None,
    activation: Annotated[
        str | None, option(metavar="NAME", help="Activation: sigmoid (default), relu, tanh or gelu.")
    ] = None,
    epochs: Annotated[int | None, option(metavar="N", help="Epochs; default: about 15,620 training steps.")] = None,
    config_file: Annotated[
        Path | None, option("--config", metavar="FILE", help="Settings in JSON or TOML; options override them.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        option("--set", metavar="NAME=VALUE", help="Any setting, such as l2=0; repeatable."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        option(metavar="NAME=V1,V2", help="Values of a setting; repeatable: every combination."),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as JSON, and exit.")] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for all results.")] = Path("results"),
    force: Annotated[bool, typer.Option("--force", help="New run in a folder that holds another run.")] = False,
    devices: Devices = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    cache: Cache = True,
) -> dict[str, Any]:
    """Train the paper's networks, score and ablate their neurons, draw 22 figures and write a report. With five seeds
    or more, judge the paper's claims too.

    Example: jaxablate reproduce --dataset mnist --seeds 10 --protocol both
    """
    from jaxablate import StudyConfig, run_study
    from jaxablate._checks import require
    from jaxablate._files import require_writable
    from jaxablate._rundir import lock_folder
    from jaxablate.devices import is_primary
    from jaxablate.protocols import protocol_names

    # Before anything else: JAX fixes the number of its devices and processes when they are first used.
    devices = initialize_distributed(coordinator, num_processes, process_id, devices)
    options = {
        "dataset": dataset,
        "data_dir": None if data_dir is None else str(data_dir),
        "protocols": None if protocol is None else protocol_names(protocol),
        "num_random_orders": random_orders,
        "num_random_subsets": random_subsets,
        "steps": steps,
        "extra_fills": extra_fills,
        "activation": activation,
        "epochs": epochs,
    }
    # Both options make one setting. An option that is not given has its default, also if the file has seeds.
    if seeds is not None or first_seed is not None:
        options["seeds"] = range(first_seed or 0, (first_seed or 0) + (seeds or 1))
    # Options override the file, also where the file varies a setting. The file overrides the defaults of StudyConfig.
    file = {} if config_file is None else read_settings(config_file)
    given = {name: value for name, value in options.items() if value is not None}
    varied = settings_from_text("--vary", vary or ())
    for name, value in settings_from_text("--set", settings or ()).items():
        require(name not in given, f"--set: {name} has another option in this command too; give one of them")
        given[name] = value
    twice = [name for name in varied if name in given]
    require(not twice, f"--vary: {', '.join(twice)} has one value in this command too; give one or the other")
    file_varied = {name: values for name, values in file.pop("vary", {}).items() if name not in given}
    config = StudyConfig(**{**file, **given, "vary": {**file_varied, **varied}})
    if print_config:
        values = dataclasses.asdict(config)
        if not console.quiet:
            print(json.dumps(values, indent=1))
        return values
    folders, findings = figure_folders(out, config.protocols, len(config.seeds))
    if cache:
        keep_compiled_programs()
    # The other processes compute with their devices, and print and write nothing. They need not see the output folder.
    if not is_primary():
        run_study(config, run_dir=out, force=force, mesh=devices)
        return {}
    # All places are checked before the training, so that no finished run fails to write its results.
    for folder in (out, out / "networks", *folders.values(), *findings):
        require_writable(folder)
    for file in (out / name for name in ("results.nc", "report.html", "claims.json", "claims.csv")):
        require(not file.is_dir(), f"{file}: this is a folder; remove it or choose another --out")
    start = time.monotonic()
    bars = Bars()
    # `run_study` locks the folder as well, which the same thread may do. The lock here also covers the figures and the
    # report, which are written after the study.
    with lock_folder(out) as killed:
        if killed:
            console.print(f"Resuming: {killed} ended before it was done.", highlight=False, markup=False)
        with bars.progress:
            results = run_study(config, run_dir=out, force=force, on_progress=bars, mesh=devices)
            verdicts = write_outputs(results, out, bars, config)
    return print_outputs(results, out, verdicts, dataset=str(config.dataset), seconds=time.monotonic() - start)
