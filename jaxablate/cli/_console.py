"""Parts that all commands share: common options, console, progress bars, signals, cache of compiled programs."""

import contextlib
import functools
import inspect
import json
import locale
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

from jaxablate import _progress

__all__ = [
    "Bars",
    "Cache",
    "DataDir",
    "Devices",
    "command",
    "console",
    "exit_on_signal",
    "keep_compiled_programs",
    "one_sentence_errors",
    "parse_steps",
    "print_error",
    "show",
    "signals",
]

if os.environ.get("COLUMNS") == "0":  # as some shells set it; Rich would print nothing
    del os.environ["COLUMNS"]
console = Console()
signals: list[int] = []
"""Numbers of the signals received so far."""

DataDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of the data; default: $JAXABLATE_DATA_DIR.", show_default=False),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of devices; a CPU is split into N virtual ones.", show_default=False),
]
ExtraFills = Annotated[
    list[str] | None,
    typer.Option("--extra-fill", metavar="NAME", help="median, class_mean, resample, linear; repeatable."),
]
Cache = Annotated[bool, typer.Option(help="Reuse of compiled programs from ~/.cache/jaxablate.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No output except notes and errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Output as JSON, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Traceback in addition to the error's sentence.")]


def show(text: str) -> None:
    """Print a line without wrapping it, and without taking brackets in paths for markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def parse_steps(text: str | int | None) -> int | str | None:
    """Return the value of `--steps`: a number of at least 1, or a text, which `StudyConfig` checks."""
    # Typer passes the default value through here as well, hence the integer and None.
    if text is None or text == "all" or "%" in str(text):
        return text
    if not str(text).isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected a number of at least 1, all, or a percentage, got {text}")
    return int(text)


def exit_on_signal() -> None:
    """Exit if a signal was received; progress reports call this too, since Python drops what a finalizer raises."""
    if signals:
        raise SystemExit(128 + signals[0])


# Typer reads the options of a command from the signature and the annotations of its function. So the wrapper states
# the options of `run` and adds the common options; it removes these before it calls `run`.
def command(run: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Return a Typer command from a function that prints and returns its results; add the options of all commands."""

    @functools.wraps(run)
    def with_common_options(*, quiet: bool, as_json: bool, debug: bool, **options: Any) -> None:
        os.environ["MPLBACKEND"] = "agg"  # commands open no window, and a notebook's backend may not exist here
        _quiet_compiler()
        _require_address_space()
        _require_working_folder()
        from jaxablate._files import for_json
        from jaxablate.devices import is_primary  # imports JAX, whose start the two lines above prepare

        _reset_settings()
        console.quiet = quiet or as_json
        with one_sentence_errors(debug):
            results = run(**options)
            if as_json and is_primary():
                print(json.dumps(for_json(results), indent=1, allow_nan=False), flush=True)

    common = {"quiet": Quiet, "as_json": AsJson, "debug": Debug}
    signature, keyword = inspect.signature(run, eval_str=True), inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, keyword, default=False, annotation=option) for name, option in common.items()]
    signature = signature.replace(parameters=[*signature.parameters.values(), *added])
    with_common_options.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    with_common_options.__annotations__ = {**run.__annotations__, **common}
    return with_common_options


def _quiet_compiler() -> None:
    """Hide a page of alarm that two versions of jaxlib write about each cached program on some CPUs.

    JAX reads the variable when it is imported. The value 1 is JAX's own, inherited from the program that started this.
    """
    from importlib.metadata import version

    if version("jaxlib") in ("0.10.0", "0.10.1") and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def _reset_settings() -> None:
    """Undo settings of JAX by which a user's environment forbids conversions, or changes what a seed means."""
    import jax

    from jaxablate._precision import RANDOM

    for name, value in RANDOM.items():
        if hasattr(jax.config, name):
            jax.config.update(name, value)
    for name, value in (("numpy_dtype_promotion", "standard"), ("numpy_rank_promotion", "allow")):
        jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_transfer_guard", "allow")


ADDRESS_SPACE = 5 * 2**29
"""Bytes; with less address space JAX may crash without a message, at its start or in a small study."""


def _require_address_space() -> None:
    """Exit if a limit leaves so little address space that JAX may crash without a message."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        print_error(
            f"memory: JAX may crash with a limit of {limit >> 20} MiB of address space; raise it to "
            f"{ADDRESS_SPACE >> 20} MiB (ulimit -v)"
        )
        raise typer.Exit(1)


def _require_working_folder() -> None:
    """Exit if the working folder was deleted, since no relative path has a meaning then."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print_error("working folder: it was deleted; change to a folder that exists")
        raise typer.Exit(1) from None


def print_error(text: str) -> None:
    """Print one sentence on the error stream."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False)


@contextlib.contextmanager
def one_sentence_errors(debug: bool = False) -> Iterator[None]:
    """Print a mistake, a file error or lack of memory as one sentence and exit with 1; print our warnings as notes."""
    from jaxablate._checks import InputError, JaxablateWarning, one_line
    from jaxablate.devices import backend_failure, is_primary

    python_showwarning = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *location: Any) -> None:
        if not issubclass(category, JaxablateWarning):
            python_showwarning(message, category, *location)
        elif is_primary():
            text = escape(one_line(str(message)))
            Console(stderr=True, soft_wrap=True).print(f"[bold]note:[/] {text}", highlight=False)

    with warnings.catch_warnings():
        warnings.showwarning = show
        # PYTHONWARNINGS=ignore would hide what was assumed
        warnings.filterwarnings("default", category=JaxablateWarning)
        try:
            yield
        # BrokenPipeError is an OSError, so it has to come first. InputError is a ValueError, and JAX reports a lack of
        # memory, or a device that it cannot start, by a RuntimeError or an AssertionError. All others are defects of
        # the program and keep their traceback.
        except BrokenPipeError:  # the reader has closed its pipe; Typer exits quietly
            raise
        except (ValueError, OSError, MemoryError, RuntimeError, AssertionError, locale.Error) as error:
            text = one_line(str(error))
            if isinstance(error, locale.Error):
                text = f"locale: matplotlib gets '{text}' from the system; set LC_ALL=C.UTF-8 or an installed locale"
            elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # JAX raises a RuntimeError
                text = (
                    f"memory: no room for the data and the networks ('{text}'); end other programs, raise the limit "
                    "(ulimit -v) or take a larger machine"
                )
            elif not isinstance(error, InputError | OSError) and (failure := backend_failure()):
                text = failure
            elif not isinstance(error, InputError | OSError):
                raise
            if debug:
                Console(stderr=True).print_exception()
            print_error(text)
            raise typer.Exit(1) from None


class Bars(_progress.Bars):
    """Show one progress bar for each task that the library reports.

    Without a terminal, print a line when a task is done, and every `EVERY` seconds a line for a running one.
    """

    EVERY = 60

    def __init__(self):
        super().__init__(console)
        self.last_printed = time.monotonic()
        self.finished = set()

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        """Move the bar of the task `what`; the first report adds the bar."""
        exit_on_signal()
        super().__call__(what, done, total, note)
        # Without a terminal, for example in the log of a job, bars would fill the file. A task prints one line at its
        # end, and at most one a minute before.
        due = what not in self.finished if done >= total else time.monotonic() - self.last_printed >= self.EVERY
        if due and not console.is_terminal:
            self.last_printed = time.monotonic()
            rows = [task for task in self.progress.tasks if task.id == self.tasks[what]]
            console.print(self.progress.make_tasks_table(rows))
        if done >= total:
            self.finished.add(what)


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the user's cache folder, unless the user has chosen another folder.

    JAX compiles a program again if its file is damaged, but keeps the file and warns every time. Here the file is
    removed, before JAX writes the new one.
    """
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(home / "jaxablate" / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    # By default JAX keeps only programs that took a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    show = warnings.showwarning

    def remove_damaged(message: Warning | str, *location, **details) -> None:
        match = re.match(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        if match is None:
            show(message, *location, **details)
            return
        console.print(f"Compiled again, since its cached program is damaged: {match[1]}", highlight=False)
        # JAX names the file of a cached program by its key, which the warning quotes.
        for entry in Path(folder).glob(f"{match[1]}-*-cache"):
            entry.unlink(missing_ok=True)

    warnings.showwarning = remove_damaged
