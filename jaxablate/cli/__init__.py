"""The command line: parses, calls the library, prints. Nothing is computed here."""

import io
import signal
import sys
from typing import Annotated

import typer

from jaxablate.cli._console import console, end_if_asked, signals
from jaxablate.cli._datasets import datasets
from jaxablate.cli._merge import merge
from jaxablate.cli._networks import ablate, prune, score
from jaxablate.cli._processes import SIGNALS, joined, shutdown
from jaxablate.cli._report import report
from jaxablate.cli._reproduce import reproduce

__all__ = ["app", "main"]

app = typer.Typer(
    name="jaxablate",
    help="Information-ordered cumulative ablation of neural networks, in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command, in_short in {
    reproduce: "The paper's experiment: networks, scores, curves, figures.",
    merge: "One run from several runs of different seeds.",
    report: "One page of HTML of a run.",
    score: "Scores of every neuron of a network of your own.",
    ablate: "Its accuracy as neurons go, by their scores.",
    prune: "A smaller network, without those that score lowest.",
    datasets: "What data are at hand.",
}.items():
    app.command(short_help=in_short)(command)


def main() -> None:
    """Run the command line; an interrupt or a termination signal ends it so that temporary files go."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character still gets the rest
    try:
        app()
    except BaseException as end:
        if joined():
            shutdown(end)
        raise


def _on_signal(number: int, _) -> None:
    signals.append(number)
    end_if_asked()


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
