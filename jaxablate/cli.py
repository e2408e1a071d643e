"""The command line: parses, calls the library, prints. Nothing is computed here."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

app = typer.Typer(
    name="jaxablate",
    help="Information-ordered cumulative ablation of neural networks, in JAX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


_signals: list[int] = []


def main() -> None:
    """Run the command line; an interrupt or a termination signal ends it so that temporary files go."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character still gets the rest
    app()


def _on_signal(number: int, _) -> None:
    _signals.append(number)
    _end_if_asked()


def _end_if_asked() -> None:
    """Exit as the signal asks; called at every progress report too, since Python drops what a finalizer raises."""
    if _signals:
        raise SystemExit(128 + _signals[0])


@contextlib.contextmanager
def _one_sentence_errors() -> Iterator[None]:
    """Print a user's mistake, or what the file system refused, as one sentence and exit with 1."""
    from jaxablate import InputError

    try:
        yield
    except (InputError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None


class _Bars:
    """Progress bars, one for each thing that the library reports on."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=14, no_wrap=True)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
        )
        self.tasks = {}

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        """Move the bar of `what`; it is made when first heard of."""
        _end_if_asked()
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, note=note)
        self.progress.update(self.tasks[what], completed=done, total=total, note=note)


def _show_version(wanted: bool) -> bool:
    if wanted:
        import jaxablate

        console.print(f"jaxablate {jaxablate.__version__}", highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    dataset: Annotated[
        str,
        typer.Option(
            help="mnist, fashion_mnist, kmnist, mnist5k, a folder of IDX files or an .npz file; auto takes mnist "
            "where it is at hand or can be fetched, else mnist5k."
        ),
    ] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with canonical files; default: JAXABLATE_DATA_DIR, if set.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks of each kind to train, one for each seed.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of the seeds; the others follow it.")] = 0,
    protocol: Annotated[
        str,
        typer.Option(
            help="paper (the formulas), published (what the published code did), both, or each (both, and every "
            "departure of the published code alone); or names joined by commas."
        ),
    ] = "paper",
    random_orders: Annotated[int, typer.Option(min=1, help="Random orders for each network and scope.")] = 10,
    random_subsets: Annotated[
        int, typer.Option(min=1, help="Random curves where a protocol draws a new subset at every step.")
    ] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Neurons to ablate, one after another.")] = 80,
    activation: Annotated[str, typer.Option(help="sigmoid, relu, tanh or gelu.")] = "sigmoid",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Default: as many as keep the optimiser steps near the paper's 15 620."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results, networks and figures.")] = Path("results"),
    cache: Annotated[
        bool,
        typer.Option(help="Keep compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/jaxablate."),
    ] = True,
) -> None:
    """Train the paper's networks, score and ablate their neurons, draw all 22 figures; with several seeds, judge the
    paper's claims.

    Example: jaxablate reproduce --dataset mnist --seeds 10 --protocol both --out results
    """
    with _one_sentence_errors():
        from jaxablate import StudyConfig, judge_claims, run_study, save_claims, save_results, select_protocol
        from jaxablate._checks import require
        from jaxablate._files import require_writable
        from jaxablate.figures import save_figures, save_finding_figures
        from jaxablate.protocols import SETS, protocol_names

        config = StudyConfig(
            dataset=dataset,
            data_dir=None if data_dir is None else str(data_dir),
            seeds=tuple(range(first_seed, first_seed + seeds)),
            protocols=protocol_names(protocol),
            random_orders=random_orders,
            random_subsets=random_subsets,
            steps=steps,
            activation=activation,
            epochs=epochs,
        )
        drawn = [name for name in config.protocols if name in SETS["both"]]
        folders = {name: out / "figures" / ("" if name == "paper" else name) for name in drawn}
        findings = [out / "figures" / "findings"] if seeds > 1 and drawn else []
        for folder in (out, out / "networks", *folders.values(), *findings):
            require_writable(folder)
        claims = [out / "claims.json", out / "claims.csv"]
        for file in (out / "results.nc", *claims):
            require(not file.is_dir(), f"{file}: expected a file or nothing, got a folder")
        if cache:
            _keep_compiled_programs()
        start = time.monotonic()
        bars = _Bars()
        with bars.progress:
            results = run_study(config, network_dir=out / "networks", on_progress=bars)
            for file in claims:
                file.unlink(missing_ok=True)  # those of the results that are replaced
            save_results(results, out / "results.nc")
            for name, folder in folders.items():
                save_figures(select_protocol(results, name), folder, on_progress=bars)
            verdicts = judge_claims(results) if seeds > 1 else []
            if verdicts:
                save_claims(verdicts, results, out)
            for folder in findings:
                save_finding_figures(results, verdicts, folder)
        _print_summary(results)
        if verdicts:
            _print_verdicts(verdicts)
        else:
            console.print("The paper's claims are not judged on one network of each kind: --seeds 10 does that.")
        _print_dataset(results, asked=dataset)
        console.print(f"Time: {time.monotonic() - start:.0f} s; the bars say where it went.", highlight=False)
        console.print(f"Results: {out / 'results.nc'}", highlight=False, soft_wrap=True)
        if verdicts:
            console.print(f"Claims: {out / 'claims.json'}, {out / 'claims.csv'}", highlight=False, soft_wrap=True)
        for folder in folders.values():
            console.print(f"Figures: {folder} (contact_sheet.png shows them all)", highlight=False, soft_wrap=True)


@app.command()
def datasets(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with canonical files; default: JAXABLATE_DATA_DIR, if set.")
    ] = None,
) -> None:
    """List the datasets by name and where each would come from: a folder, the cache, a server.

    Example: jaxablate datasets --data-dir ~/mnist
    """
    with _one_sentence_errors():
        from jaxablate.datasets import KNOWN, dataset_status

        table = Table("name", "what it is", "where")
        for name, status in dataset_status(data_dir).items():
            table.add_row(name, KNOWN[name], status)
        console.print(table)
        console.print("Also: a folder with the four canonical IDX files, or an .npz file, given by its path.")


def _keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in a folder of the user's cache, unless the user has named another."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxablate" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _print_dataset(results, asked: str) -> None:
    name, origin = escape(results.attrs["dataset"]), escape(results.attrs["dataset_origin"])
    console.print(f"[bold]Dataset: {name}[/] ({origin})", highlight=False)
    if asked == "auto" and results.attrs["dataset"] != "mnist":
        console.print(
            "[bold yellow]Full MNIST is neither cached nor reachable, so these are not the paper's numbers:[/] "
            "connect to the internet, or give the folder of its four files with --data-dir.",
            highlight=False,
        )


def _shown(protocols: Iterable[str]) -> list[str]:
    """The protocols that tables show: the paper's and the published one, or all where there is neither."""
    from jaxablate.protocols import SETS

    names = list(dict.fromkeys(protocols))
    return [name for name in names if name in SETS["both"]] or names


def _print_summary(results) -> None:
    """The table: test accuracy, and accuracy after 40 and 80 ablated neurons for each scope and ordering."""
    from jaxablate import summarize

    all_rows = summarize(results)
    for protocol in _shown(row.protocol for row in all_rows):
        _print_protocol(protocol, [row for row in all_rows if row.protocol == protocol])
    console.print("In brackets: test accuracy of the intact network. Random: mean over orders.", highlight=False)


def _print_protocol(protocol: str, rows) -> None:
    """The table of one protocol."""
    from jaxablate.claims import SHORT

    steps = [step for step in rows[0].accuracy if step > 0]
    fills = sorted({row.fill for row in rows})  # zero comes last
    columns = [(fill, step) for fill in fills for step in steps]
    table = Table(
        Column("network", no_wrap=True),
        "scope",
        Column("order", no_wrap=True),
        *(Column(f"{fill}\nk = {step}", justify="right") for fill, step in columns),
        title=f"Test accuracy in % after k ablated neurons ({fills[0]}: bias balanced; zero: not), protocol {protocol}",
        title_justify="left",
    )
    cells: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        order = f"{SHORT.get(row.ranking, row.ranking)} {row.direction}".strip()
        cells.setdefault((row.network, row.scope, order), {})[row.fill] = row.accuracy
    intact = {network: by_fill["zero"][0] for (network, _, _), by_fill in cells.items()}
    previous = None
    for (network, scope, order), by_fill in cells.items():
        head = (f"{network} ({100 * intact[network]:.2f})", scope)
        if head != previous:
            table.add_section()
        values = (f"{100 * by_fill[fill][step]:.2f}" for fill, step in columns)
        table.add_row(*(head if head != previous else ("", "")), order, *values)
        previous = head
    console.print(table)


_VERDICT_STYLES = {"holds": "green", "does not hold": "red", "undecided": "dim"}


def _print_verdicts(verdicts) -> None:
    """The table of the claims: a verdict for each network under each protocol."""
    from jaxablate.claims import CLAIMS

    shown = _shown(verdict.protocol for verdict in verdicts)
    table = Table(
        Column("claim", no_wrap=True), "of the paper", Column("network", no_wrap=True), *shown,
        title=f"The paper's claims, on {verdicts[0].num_networks} networks of each kind", title_justify="left",
    )  # fmt: skip
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: list(CLAIMS).index(verdict.claim)):
        holding = sum(effect.verdict == "holds" for effect in verdict.effects)
        cell = f"[{_VERDICT_STYLES[verdict.verdict]}]{verdict.verdict}[/] ({holding}/{len(verdict.effects)})"
        rows.setdefault((verdict.claim, verdict.text, verdict.network), {})[verdict.protocol] = cell
    previous = ""
    for (claim, text, network), cells in rows.items():
        if claim != previous:
            table.add_section()
        head = (claim, text) if claim != previous else ("", "")
        table.add_row(*head, network, *(cells[name] for name in shown))
        previous = claim
    console.print(table)
    console.print("In brackets: how many of the claim's comparisons hold; claims.json has them all.", highlight=False)
