"""`jaxablate plan`: what a study will take."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from jaxablate.cli._console import DataDir, command, console

if TYPE_CHECKING:
    from jaxablate import StudyConfig
    from jaxablate.study import Plan, Sizes


@command
def plan(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="Settings of a StudyConfig as JSON, or the folder of a run; default: those of `jaxablate reproduce`.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATA", help="Whose sizes to take; default: as the settings say.")
    ] = None,
    data_dir: DataDir = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,N,N,N", help="Of data not at hand: train, validation, test, features, classes."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Networks of each kind.")] = None,
    protocol: Annotated[str | None, typer.Option(metavar="NAMES", help="As in `jaxablate reproduce --help`.")] = None,
    devices: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of each process; of a CPU they share its cores.")
    ] = 1,
    num_processes: Annotated[int, typer.Option(min=1, metavar="N", help="On machines like this one.")] = 1,
) -> dict[str, Any]:
    """Tell what a study will take before it runs: operations, bytes, memory of each device, time at the speed that is
    measured here, and how devices share it.

    Example: jaxablate plan --seeds 100 --protocol both --devices 4
    """
    from jaxablate import StudyConfig, load_dataset
    from jaxablate.protocols import protocol_names
    from jaxablate.study import Sizes, load_config, plan_study

    chosen = StudyConfig() if config is None else load_config(config)
    given = {
        "dataset": dataset,
        "data_dir": None if data_dir is None else str(data_dir),
        "seeds": None if seeds is None else tuple(range(seeds)),
        "protocols": None if protocol is None else protocol_names(protocol),
    }
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    if sizes is None:
        data = load_dataset(chosen.dataset, seed=chosen.split_seed, data_dir=chosen.data_dir)
        known, name = Sizes.of(data), data.source.name
    else:
        known, name = sizes_of(sizes), "not at hand"
    found = plan_study(chosen, known, devices=devices, num_processes=num_processes)
    show(found, chosen, known, name, devices * num_processes)
    return {
        "dataset": name,
        "sizes": known._asdict(),
        "layout": dict(zip(("data", "study"), found.layout, strict=True)),
        "operations_per_second": found.rates.operations,
        "stages": [asdict(stage) for stage in found.stages],
        "flops": found.flops,
        "bytes": found.bytes,
        "memory": found.memory,
        "available": found.available,
        "seconds": found.seconds,
        "left_out": list(found.left_out),
    }


def sizes_of(text: str) -> "Sizes":
    """The sizes that an option gives.

    Raises:
        InputError: for anything but five whole numbers of 1 or more.
    """
    from jaxablate._checks import require
    from jaxablate.study import Sizes

    parts = text.split(",")
    require(
        len(parts) == len(Sizes._fields) and all(part.strip().isdecimal() and int(part) > 0 for part in parts),
        f"--sizes: expected {','.join(Sizes._fields)}, such as 50000,10000,10000,784,10, got {text!r}",
    )
    return Sizes(*map(int, parts))


def show(found: "Plan", config: "StudyConfig", sizes: "Sizes", name: str, devices: int) -> None:
    """Print the table of a plan, its sums, the layout, and what does not fit."""
    import jax

    from jaxablate._parallel import num_cores

    on_cpu = jax.default_backend() == "cpu"
    speed = f"{jax.default_backend()}{f', {num_cores()} cores' if on_cpu else ''}"
    table = Table(
        "network", "stage", "work", *(Column(of, justify="right", no_wrap=True) for of in ("GFLOP", "GB", "GiB", "s")),
        title=f"What the study takes ({len(config.seeds)} seeds, {config.steps} steps; {speed})", title_justify="left",
        padding=(0, 0, 0, 1),
    )  # fmt: skip
    before = None
    for stage in found.stages:
        if before not in (None, stage.network):
            table.add_section()
        numbers = stage.flops / 1e9, stage.bytes / 1e9, stage.memory / 2**30, stage.seconds
        table.add_row(stage.network if stage.network != before else "", stage.name, stage.work, *map(_short, numbers))
        before = stage.network
    console.print(table)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    splits = f"{sizes.train} training, {sizes.validation} validation, {sizes.test} test examples"
    say(f"Data: {name} ({splits}, {sizes.features} numbers each, {sizes.classes} classes)")
    data, study = found.layout
    if devices > 1:
        shared = f"examples in {data}, curves in {study}"
        say(f"Layout: {data} x {study} devices: {shared}; each has at most {-(-sizes.test // data)} test examples")
    room = "" if found.available is None else f" of {found.available / 2**30:.1f} GiB"
    where = "in the process" if on_cpu else "on each device"
    say(f"Memory: at most {found.memory / 2**30:.2f} GiB{room} {where}")
    say(
        f"Time: about {_duration(found.seconds)} for {found.flops / 1e12:.3g} TFLOP and {found.bytes / 1e9:.3g} GB, at "
        f"{found.rates.operations / 1e9:.0f} GFLOP/s measured now, without compiling and drawing; curves that agree "
        "are computed once, which makes it less"
    )
    if found.left_out:
        say(f"Not counted: the scores {', '.join(found.left_out)}")
    if found.available is not None and found.memory > found.available:
        say("It does not fit: take more devices, fewer examples or smaller layers")


def _short(number: float) -> str:
    """Three digits."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
