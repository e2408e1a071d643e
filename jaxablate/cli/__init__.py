"""The command line: parse options, call the library, print."""

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from jaxablate.cli._compare import compare
from jaxablate.cli._console import console, exit_on_signal, print_error, signals
from jaxablate.cli._datasets import datasets
from jaxablate.cli._merge import merge
from jaxablate.cli._networks import ablate, prune, score
from jaxablate.cli._origin import RecordedCommand
from jaxablate.cli._processes import is_distributed
from jaxablate.cli._report import report
from jaxablate.cli._reproduce import reproduce
from jaxablate.cli._table import table

__all__ = ["app", "main"]

app = typer.Typer(
    name="jaxablate",
    help="Rank the neurons of a network by scores, ablate them one after another, and count correct predictions. "
    '"The paper" is "Using information theoretic metrics to study the importance of individual neurons in DNNs".',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# This order is the order in `jaxablate --help`. The commands import the library inside their functions, so that help
# and completion load neither JAX nor NumPy.
for command, short_help in {
    reproduce: "Repeat the paper's experiment and draw its figures.",
    merge: "Merge runs of different seeds into one.",
    compare: "Compare the networks of two runs.",
    report: "Write the results of a run as one HTML page.",
    table: "Write the curves or the neurons of a run as a table.",
    score: "Score every neuron of your network.",
    ablate: "Ablate the neurons of your network in the order of their scores.",
    prune: "Remove the neurons of your network with the lowest scores.",
    datasets: "List the available datasets.",
}.items():
    app.command(short_help=short_help, cls=RecordedCommand)(command)


def main() -> None:
    """Run the command line and exit.

    SIGINT and SIGTERM end the process by an exception, so that temporary files are removed. The exit code is 1 if the
    output cannot be written.
    """
    # Without a handler SIGTERM ends Python at once, and temporary files would stay. This handler raises SystemExit
    # instead, so that every `finally` and `with` block still runs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character still prints the rest
    code = 1
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # the commands report every other file, so this is a stream of the terminal
        code = _write_error(error)
    except BaseException:
        traceback.print_exc()
    # Python itself flushes these streams only as it exits. An error there, for example of a full disk, would end in the
    # code 120 and a note on an ignored exception. So they are flushed here, where an error becomes one sentence.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            # Python flushes again as it exits; into /dev/null that cannot fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or _write_error(error)
    if code and is_distributed():
        os._exit(code)  # without JAX's shutdown, which would wait for the other processes
    sys.exit(code)


def _write_error(error: OSError) -> int:
    """Report output that cannot be written in one sentence; a reader that closed its pipe needs none. Return 1."""
    if error.errno != errno.EPIPE:
        with contextlib.suppress(OSError):
            print_error(f"output: cannot be written ({error.strerror}); redirect it to a place that has room")
    return 1


def _on_signal(number: int, _) -> None:
    signals.append(number)
    exit_on_signal()


def _show_version(show: bool) -> bool:
    if show:
        import jaxablate

        console.print(f"jaxablate {jaxablate.__version__}", highlight=False)
        raise typer.Exit
    return show


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
