"""Progress of long computations: the reports that they make, and bars that show these.

Input: reports (what, done, total, note).
Output: bars on a terminal or in a notebook.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

__all__ = ["BARS", "Bars", "OnProgress", "Progress", "no_progress", "progress_reporter"]

OnProgress = Callable[[str, int, int, str], None]
"""Called with (what, done, total, note): the stage, its finished and total units of work, and a note."""
BARS = "bars"
"""The default of `run_study`: bars on a terminal or in a notebook, nothing elsewhere."""
Progress = OnProgress | Literal["bars"] | None
REFRESH = 0.2
"""Least seconds between two displays in a notebook."""


def no_progress(what: str, done: int, total: int, note: str) -> None:
    """Report nothing."""


def progress_bars(console: Any) -> Any:
    """Return a `rich.progress.Progress` with the name, bar, counts, remaining time and note of each task.

    Its tasks need the field `note`. It shows nothing by itself if the console is no terminal.
    """
    # rich takes a tenth of a second to import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    class TimeLeft(TimeRemainingColumn):
        """Show the estimated time that is left; in the end, the time that the task took."""

        def render(self, task):
            text = super().render(task)
            return text if task.finished else text.append(" left")

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=14, no_wrap=True)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeLeft(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
        disable=not console.is_terminal,
        # on a terminal, what is printed meanwhile goes above the bars; in a file it stays where it belongs
        redirect_stdout=is_terminal(sys.stdout),
        redirect_stderr=is_terminal(sys.stderr),
    )


def is_terminal(stream: Any) -> bool:
    """Return True if a stream is a terminal; it may be None, closed, or an object of another program."""
    try:
        return stream.isatty()
    except Exception:
        return False


class Bars:
    """Show one progress bar for each reported task, if the console is a terminal or belongs to a notebook."""

    def __init__(self, console: Any):
        self.progress = progress_bars(console)
        self.tasks: dict[str, Any] = {}
        self.output: Any = None  # of the notebook's cell
        self.in_notebook = console.is_jupyter
        self.last_shown = float("-inf")  # the first report is shown at once

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        """Move the bar of the task `what`; the first report adds the bar."""
        # Stages begin in any order, and several at once if networks are trained in threads; rich locks its tasks.
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, note=note)
        self.progress.update(self.tasks[what], completed=done, total=total, note=note)
        if self.in_notebook and (done >= total or time.monotonic() - self.last_shown >= REFRESH):
            self.show_in_notebook()

    def show_in_notebook(self) -> None:
        """Display the bars below the cell, or replace those that are there."""
        # rich's own display in notebooks needs ipywidgets, which many lack
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self.last_shown = time.monotonic()
        if self.output is None:
            self.output = display(self.progress, display_id=True)
        else:
            self.output.update(self.progress)


class _ForgivingStream:
    """A terminal whose failures do not end the work that it shows: what cannot be written is left out."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with contextlib.suppress(Exception):
            self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self.stream.flush()

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def progress_reporter(on_progress: Progress) -> Iterator[OnProgress]:
    """Give a function to report to: the user's, one that shows bars, or one that does nothing."""
    if on_progress != BARS:
        yield on_progress or no_progress
        return
    from rich.console import Console

    on_terminal = is_terminal(sys.stderr)
    # by itself rich takes the variable FORCE_COLOR for a terminal, and bars would fill a file
    stream: Any = _ForgivingStream(sys.stderr) if on_terminal else None
    console = Console(file=stream, stderr=True, force_terminal=on_terminal)
    if not (on_terminal or console.is_jupyter):
        yield no_progress
        return
    bars = Bars(console)
    with bars.progress:
        yield bars
