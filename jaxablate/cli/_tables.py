"""Tables that commands print, and their values for `--json`."""

import warnings
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from jaxablate.cli._console import console

__all__ = ["accuracy_of", "dataset_of", "print_dataset", "print_summary", "print_verdicts"]


def dataset_of(results) -> dict[str, str]:
    """Return the name and the source of the data of the results."""
    return {name: results.attrs[name] for name in ("dataset", "dataset_origin")}


def accuracy_of(results) -> list[dict[str, Any]]:
    """Return the rows of `print_summary`."""
    from jaxablate.results import summarize

    return [asdict(row) for row in summarize(results)]


def print_dataset(results, asked: str) -> None:
    """Print the data of the results; warn if they are not the data that the user asked for."""
    from jaxablate._checks import JaxablateWarning

    name, origin = escape(results.attrs["dataset"]), escape(results.attrs["dataset_origin"])
    console.print(f"[bold]Dataset: {name}[/] ({origin})", highlight=False)
    if asked == "auto" and results.attrs["dataset"] != "mnist":
        warnings.warn(
            "dataset: full MNIST is neither cached nor reachable, so these are not the paper's numbers; connect to the "
            "internet, or give the folder of its four files with --data-dir",
            JaxablateWarning,
            stacklevel=2,
        )


def print_summary(results) -> None:
    """Print test accuracy, and accuracy after 40 and 80 ablated neurons for each scope and ordering."""
    from jaxablate.protocols import shown_protocols
    from jaxablate.results import summarize

    all_rows = summarize(results)
    for protocol in shown_protocols(row.protocol for row in all_rows):
        _print_protocol(protocol, [row for row in all_rows if row.protocol == protocol])
    console.print("In brackets: test accuracy of the intact network. Random: mean over orders.", highlight=False)


def _print_protocol(protocol: str, rows) -> None:
    """Print the table of one protocol."""
    from jaxablate.claims import SHORT

    # a scope with fewer neurons lacks the later steps
    steps = sorted({step for row in rows for step in row.accuracy if step > 0})
    zero, *more_fills = dict.fromkeys(row.fill for row in rows)
    fills = [*more_fills, zero]
    digits, padding = 2, 1
    if len(fills) > 2:
        steps, digits, padding = steps[-1:], 1, 0  # more columns would not fit a terminal
    columns = [(fill, step) for fill in fills for step in steps]
    table = Table(
        "network",
        "scope",
        "order",  # in a narrow terminal these columns shrink, the numbers do not
        *(Column(f"{fill.replace('_', ' ')}\nk = {step}", justify="right", no_wrap=True) for fill, step in columns),
        title=f"Test accuracy in % after k ablated neurons ({fills[0]}: bias balanced; zero: not), protocol {protocol}",
        title_justify="left",
        padding=(0, padding),
    )
    # cells[network, scope, order][fill][step] is an accuracy. A dictionary keeps the order of its keys, so that rows
    # appear in the order of the results.
    cells: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        order = f"{SHORT.get(row.ranking, row.ranking)} {row.direction}".strip()
        cells.setdefault((row.network, row.scope, order), {})[row.fill] = row.accuracy
    intact = {network: by_fill["zero"][0] for (network, _, _), by_fill in cells.items()}
    previous = None
    for (network, scope, order), by_fill in cells.items():
        # Network and scope are printed once for each group of rows.
        head = (f"{network} ({100 * intact[network]:.2f})", scope)
        if head != previous:
            table.add_section()
        values = (f"{100 * by_fill[fill][step]:.{digits}f}" if step in by_fill[fill] else "" for fill, step in columns)
        table.add_row(*(head if head != previous else ("", "")), order, *values)
        previous = head
    console.print(table)


_VERDICT_STYLES = {
    "holds": "green",
    "holds in part": "green",
    "does not hold": "red",
    "reversed": "red",
    "reversed in part": "red",
}


def print_verdicts(verdicts, differences: list[str]) -> None:
    """Print the claims, with a verdict for each network and protocol.

    Args:
        verdicts: from `judge_claims`.
        differences: differences from the paper's setting, from `departures_from_paper`. If there are any, the table is
            headed as comparisons, not as the paper's claims.
    """
    from jaxablate.claims import CLAIMS, NOT_JUDGED
    from jaxablate.protocols import shown_protocols

    protocols = shown_protocols(verdict.protocol for verdict in verdicts)
    if all(verdict.verdict == NOT_JUDGED for verdict in verdicts):
        what = "The comparisons" if differences else "The paper's claims"
        console.print(f"{what} are not judged: {verdicts[0].reason} (--seeds 10).", highlight=False)
        return
    # In another setting than the paper's, the same comparisons say something about these networks, not about the paper.
    heads, title = ("claim", "of the paper"), "The paper's claims"
    if differences:
        heads, title = ("no.", "statement"), f"Not the paper's setting ({escape('; '.join(differences))}): comparisons"
    table = Table(
        Column(heads[0], no_wrap=True), heads[1], Column("network", no_wrap=True), *protocols,
        title=f"{title}, on {verdicts[0].num_networks} networks of each kind", title_justify="left",
    )  # fmt: skip
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: list(CLAIMS).index(verdict.claim)):
        holding = sum(effect.verdict == "holds" for effect in verdict.effects)
        style = _VERDICT_STYLES.get(verdict.verdict, "dim")
        why = f": {verdict.reason}" if verdict.reason else f" ({holding}/{len(verdict.effects)})"
        cell = f"[{style}]{verdict.verdict}[/]{why}"
        rows.setdefault((verdict.claim, verdict.text, verdict.network), {})[verdict.protocol] = cell
    previous = ""
    for (claim, text, network), cells in rows.items():
        if claim != previous:
            table.add_section()
        head = (claim, text) if claim != previous else ("", "")
        table.add_row(*head, network, *(cells[name] for name in protocols))
        previous = claim
    console.print(table)
    console.print("In brackets: number of comparisons that hold; claims.json has all.", highlight=False)
