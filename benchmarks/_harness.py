"""Timing, tables and result files of all benchmarks.

A row is one variant's answer to a question: the median and the spread of its repeats, and how the answer was checked.
Set-up is not timed, and the first call, which compiles, is timed apart. Times on shared machines vary: trust ratios
within one run.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "torch", "captum")


@dataclass(frozen=True)
class Timing:
    """Seconds of compilation (the first call less the median) and of the repeats, and the number of busy cores."""

    compile: float
    median: float
    low: float
    high: float
    cores: float


def measure(function: Callable[[], Any], repeats: int = 5) -> tuple[Timing, Any]:
    """Time a function that returns when its work is done; return the timing and the function's last answer."""
    start = time.perf_counter()
    answer = function()
    first = time.perf_counter() - start
    walls, busy = [], 0.0
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        answer = function()
        walls.append(time.perf_counter() - start)
        busy += time.process_time() - cpu
    median = statistics.median(walls)
    return Timing(max(0.0, first - median), median, min(walls), max(walls), busy / sum(walls)), answer


@dataclass
class Row:
    """One variant's answer to one question.

    Attributes:
        question: what is compared.
        variant: the implementation that was timed.
        value: the median, in the table's unit.
        low: the smallest repeat.
        high: the largest repeat.
        check: how the answer was checked; a wrong answer raises instead.
        against: the value of the reference row; the ratio is against / value.
        ceiling: a lower bound of the time in the same unit, measured in the same run: matrix products and sigmoids
            alone, or one device's time divided by the number of devices.
        compile_s: seconds of compilation, apart from the value.
        cores: processor cores kept busy.
        size: what grows from row to row of a question; the picture then shows the value against it.
        note: anything else.
    """

    question: str
    variant: str
    value: float
    low: float
    high: float
    check: str
    against: float | None = None
    ceiling: float | None = None
    compile_s: float | None = None
    cores: float | None = None
    size: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Return how many times faster this row is than its reference row."""
        return None if self.against is None else self.against / self.value

    @property
    def of_ceiling(self) -> float | None:
        """Return the fraction of the measured ceiling that is reached."""
        return None if self.ceiling is None else self.ceiling / self.value


def make_row(question: str, variant: str, timing: Timing, per: float, check: str, **more) -> Row:
    """Make a row from a timing: milliseconds for each of `per` units, for example masks."""
    scale = 1e3 / per
    return Row(
        question,
        variant,
        timing.median * scale,
        timing.low * scale,
        timing.high * scale,
        check,
        compile_s=timing.compile,
        cores=timing.cores,
        **more,
    )


@dataclass
class Report:
    """The rows of one benchmark script.

    Attributes:
        name: name of the script, and of its result files.
        title: title of the table and of the picture.
        unit: unit of the values.
        baselines: variants that are not jaxablate; the picture shows them in gray.
        rows: the rows.
    """

    name: str
    title: str
    unit: str
    baselines: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> Row:
        """Keep a row and print it at once, since some benchmarks take minutes."""
        self.rows.append(row)
        Console().print(f"  {row.question}: {row.variant}: {row.value:.4g} {self.unit}", highlight=False)
        return row

    def finish(self) -> None:
        """Print the table, write JSON and a picture."""
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        device = jax.devices()[0]
        record = {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "baselines": list(self.baselines),
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": "CPU" if device.platform == "cpu" else f"{device.platform}: {device.device_kind}",
            "cores": os.cpu_count(),
            "versions": versions,
            "rows": [{**asdict(row), "ratio": row.ratio, "of_ceiling": row.of_ceiling} for row in self.rows],
        }
        console = Console()
        console = console if console.is_terminal else Console(width=200)
        console.print(_table(record))
        FOLDER.mkdir(exist_ok=True)
        stem = self.name if device.platform == "cpu" else f"{self.name}_{device.platform}"
        (FOLDER / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
        save_picture(record, FOLDER / f"{stem}.png")


HEADINGS = ("question", "variant", "median", "spread", "ratio", "of ceiling", "compile", "cores", "checked")


def format_cells(row: dict, unit: str) -> tuple[str, ...]:
    """Return the cells of a row under `HEADINGS`."""

    def format_value(value: float | None, template: str) -> str:
        return "" if value is None else template.format(value)

    return (
        row["question"],
        row["variant"],
        f"{row['value']:.4g} {unit}",
        f"{row['low']:.4g} to {row['high']:.4g}",
        format_value(row["ratio"], "{:.1f}x"),
        format_value(row["of_ceiling"], "{:.0%}"),
        format_value(row["compile_s"], "{:.1f} s"),
        format_value(row["cores"], "{:.1f}"),
        "; ".join(filter(None, (row["check"], row["note"]))),
    )


def _table(record: dict) -> Table:
    table = Table(*HEADINGS, title=f"{record['title']} ({record['device']}, {record['cores']} cores)")
    question = None
    for row in record["rows"]:
        if question not in (None, row["question"]):
            table.add_section()
        question = row["question"]
        table.add_row(*format_cells(row, record["unit"]))
    return table


COLORS = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#E69F00", "#000000")
MARKERS = "osD^vP*"


def save_picture(record: dict, path: Path) -> None:
    """Draw growth as lines, variants of one question as speeds relative to its first row, other rows as bars."""
    rows = record["rows"]
    if all(row["size"] is not None for row in rows):
        figure = _growth_picture(record)
    elif any(row["ratio"] is not None for row in rows):
        figure = _speed_picture(record)
    else:
        figure = _time_picture(record)
    figure.suptitle(f"{record['title']}\n{record['device']}, {record['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=110)


def _by(key: str, rows: list[dict]) -> dict[str, list[dict]]:
    """Return the rows by the value of a key, in their order."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _speed_picture(record: dict) -> Figure:
    """Draw one line for each question, with a marker for each variant: gray for baselines, colored for jaxablate."""
    questions = _by("question", record["rows"])
    figure = Figure(figsize=(8, 1.9 + 0.42 * len(questions)), layout="constrained")
    axes = figure.add_subplot()
    references = {question: rows[0]["value"] for question, rows in questions.items()}
    ours = 0
    for number, (variant, rows) in enumerate(_by("variant", record["rows"]).items()):
        is_baseline = variant in record["baselines"]
        color = "0.55" if is_baseline else COLORS[ours % len(COLORS)]
        ours += not is_baseline
        for row in rows:
            place, reference = list(questions).index(row["question"]), references[row["question"]]
            label = variant if row is rows[0] else None
            axes.plot([reference / row["high"], reference / row["low"]], [place] * 2, color=color, linewidth=1)
            marker, size = MARKERS[number % len(MARKERS)], 6 if is_baseline else 8
            axes.plot(reference / row["value"], place, marker, color=color, markersize=size, label=label)
    axes.axvline(1, color="0.55", linewidth=0.8, zorder=0)
    for place, rows in enumerate(questions.values()):
        fastest = max(row["ratio"] or 1 for row in rows)
        axes.annotate(
            f"{fastest:,.0f}x" if fastest >= 100 else f"{fastest:.3g}x",
            (fastest, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(questions)), list(questions), fontsize=8)
    axes.set_ylim(len(questions) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    first = {rows[0]["variant"] for rows in questions.values()}
    relative = f"relative to: {', '.join(sorted(first))}" if len(first) <= 2 else "relative to each first row"
    axes.set_xlabel(f"Speed {relative} (right is faster; lines: spread of the repeats)", fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _growth_picture(record: dict) -> Figure:
    """Draw one panel for each question: the value against the size, both logarithmic."""
    questions = _by("question", record["rows"])
    figure = Figure(figsize=(2.6 * len(questions) + 0.6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(questions), sharey=True, squeeze=False)[0]
    for axes, (question, rows) in zip(panels, questions.items(), strict=True):
        sizes, values = [row["size"] for row in rows], [row["value"] for row in rows]
        axes.fill_between(sizes, [row["low"] for row in rows], [row["high"] for row in rows], color="0.85")
        axes.plot(sizes, values, "o-", color=COLORS[0])
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sizes, [f"{size / 1000:g}k" if size >= 1000 else f"{size:g}" for size in sizes], fontsize=8)
        axes.minorticks_off()
        name, _, constant = question.partition(" (")
        axes.set_xlabel(f"{name.capitalize()}\n({constant}" if constant else name.capitalize(), fontsize=8)
        axes.grid(color="0.9")
    panels[0].set_ylabel(f"{record['unit']} (gray: spread; the table has memory)", fontsize=8)
    return figure


def _time_picture(record: dict) -> Figure:
    """Draw one bar for each row."""
    rows = record["rows"]
    figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(places, [row["value"] for row in rows], color=COLORS[0], height=0.7)
    for place, row in zip(places, rows, strict=True):
        axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=1)
    axes.set_yticks(places, [f"{row['question']}: {row['variant']}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(f"{record['unit']} (black: spread)", fontsize=8)
    return figure
