"""What all commands share: their manners, the console, progress bars, signals, the cache of programs."""

import contextlib
import functools
import inspect
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from jaxablate.cli._processes import ended, is_primary, joined

console = Console()
signals: list[int] = []

DataDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="With canonical files; default: JAXABLATE_DATA_DIR.", show_default=False),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="To share the work; a CPU counts as N.", show_default=False),
]
Cache = Annotated[
    bool,
    typer.Option(help="Keep compiled programs in ~/.cache/jaxablate."),
]


def end_if_asked() -> None:
    """Exit as the signal asks; called at every progress report too, since Python drops what a finalizer raises."""
    if signals:
        raise SystemExit(128 + signals[0])


LOST = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
"""How JAX tells, by a RuntimeError or a ValueError, that another process does not answer."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but notes and errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was found as JSON, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error too.")]


def command(run: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A command that prints and returns what it found, with the options that all commands have."""

    @functools.wraps(run)
    def with_common_options(*, quiet: bool, as_json: bool, debug: bool, **options: Any) -> None:
        _require_address_space()
        console.quiet = quiet or as_json
        with one_sentence_errors(debug):
            found = run(**options)
            if as_json and is_primary():
                print(json.dumps(_for_json(found), indent=1, allow_nan=False), flush=True)

    manners = {"quiet": Quiet, "as_json": AsJson, "debug": Debug}
    signature = inspect.signature(run, eval_str=True)
    with_common_options.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[
            *signature.parameters.values(),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
                for name, option in manners.items()
            ),
        ]
    )
    with_common_options.__annotations__ = {**run.__annotations__, **manners}
    return with_common_options


ADDRESS_SPACE = 5 * 2**29
"""Bytes; with fewer JAX may crash without a word, as it starts or in a small study."""


def _require_address_space() -> None:
    """Exit where a limit leaves so little that an error could not be told."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        _print_error(
            f"memory: expected a limit of at least {ADDRESS_SPACE >> 20} MiB of address space, since JAX may crash "
            f"with less, got {limit >> 20} MiB; raise it (ulimit -v)"
        )
        raise typer.Exit(1)


def _print_error(told: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(told)}", highlight=False)


def _for_json(found: Any) -> Any:
    """With texts for paths and null for NaN, which JSON lacks."""
    if isinstance(found, dict):
        return {str(name): _for_json(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_for_json(value) for value in found]
    if isinstance(found, Path):
        return str(found)
    return None if isinstance(found, float) and not math.isfinite(found) else found


@contextlib.contextmanager
def one_sentence_errors(debug: bool = False) -> Iterator[None]:
    """Print a user's mistake, what the file system refused or that memory ran out as one sentence and exit with 1; a
    warning of our own as a note."""
    from jaxablate._checks import InputError, JaxablateWarning, one_line

    by_python = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, JaxablateWarning) and not is_primary():
            return
        if issubclass(category, JaxablateWarning):
            Console(stderr=True, soft_wrap=True).print(
                f"[bold]note:[/] {escape(one_line(str(message)))}", highlight=False
            )
        else:
            by_python(message, category, *where)

    warnings.showwarning = show
    try:
        yield
    except BrokenPipeError:  # who reads has seen enough, which Typer knows
        raise
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        told = one_line(str(error))
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in told:  # what JAX raises is a RuntimeError
            told = (
                f"memory: expected room for the data and the networks, but it ran out ('{told}'); end other programs, "
                "raise the limit (ulimit -v) or take a machine with more"
            )
        elif joined() and LOST.match(told):
            told = f"{ended()} ('{told}')"
        elif not isinstance(error, InputError | OSError):
            raise
        if debug:
            Console(stderr=True).print_exception()
        _print_error(told)
        raise typer.Exit(1) from None
    finally:
        warnings.showwarning = by_python


class _TimeLeft(TimeRemainingColumn):
    """How long it will still take; how long it took, when it is done."""

    def render(self, task: Task) -> Text:
        shown = super().render(task)
        return shown if task.finished else shown.append(" left")


class Bars:
    """Progress bars, one for each thing that the library reports on; without a terminal, a line when one is full, and
    every `EVERY` seconds how far the others are."""

    EVERY = 60

    def __init__(self):
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=14, no_wrap=True)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            _TimeLeft(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self.tasks = {}
        self.said = time.monotonic()
        self.full = set()

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        """Move the bar of `what`; it is made when first heard of."""
        end_if_asked()
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, note=note)
        self.progress.update(self.tasks[what], completed=done, total=total, note=note)
        news = what not in self.full if done >= total else time.monotonic() - self.said >= self.EVERY
        if news and not console.is_terminal:
            self.said = time.monotonic()
            shown = [task for task in self.progress.tasks if task.id == self.tasks[what]]
            console.print(self.progress.make_tasks_table(shown))
        if done >= total:
            self.full.add(what)


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in a folder of the user's cache, unless the user has named another.

    JAX compiles anew what it cannot read, but keeps the damaged file and warns every time; here the file goes, before
    JAX writes the new one.
    """
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(home / "jaxablate" / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    show = warnings.showwarning

    def remove_damaged(message: Warning | str, *others, **named) -> None:
        found = re.match(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        if found is None:
            show(message, *others, **named)
            return
        console.print(f"Compiled anew, since what was kept of it is damaged: {found[1]}", highlight=False)
        for entry in Path(folder).glob(f"{found[1]}-*-cache"):
            entry.unlink(missing_ok=True)

    warnings.showwarning = remove_damaged
