"""Tables that commands print, and their values for `--json`."""

import warnings
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from jaxablate.cli._console import console

NUM_DIFFERENCES = 3
"""Number of differences that are printed for each network."""

__all__ = ["accuracy_of", "dataset_of", "print_dataset", "print_summary", "print_verdicts"]


def dataset_of(results) -> dict[str, str]:
    """Return the name and the source of the data of the results."""
    return {name: results.attrs[name] for name in ("dataset", "dataset_origin")}


def accuracy_of(results) -> list[dict[str, Any]]:
    """Return the mean accuracy of every network, scope, ordering and fill at some numbers of ablated neurons."""
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
    """Print the accuracy of every network, and its largest differences between orders or fills."""
    from jaxablate.protocols import shown_protocols
    from jaxablate.results import protocols_of, select_protocol

    protocols = shown_protocols(protocols_of(results))
    has_intervals = any(node.sizes.get("seed", 0) > 1 for node in results.subtree)
    for protocol in protocols:
        table = Table(
            "network", "ablated", Column("difference", overflow="fold"),
            *(Column(name, justify="right", no_wrap=True) for name in ("points", "95% interval")[: 1 + has_intervals]),
            title="Test accuracy in %, and the largest differences of the areas under the curves"
            + (f", protocol {protocol}" if len(protocols) > 1 else ""),
            title_justify="left",
        )  # fmt: skip
        for name, node in select_protocol(results, protocol).children.items():
            table.add_section()
            network = node.to_dataset()
            intact = 100 * network["accuracy"].isel(step=0, ordering=0, fill=0, scope=0).values
            head = f"{escape(name)} ({intact.mean():.2f}{f', mean of {len(intact)}' if len(intact) > 1 else ''})"
            for row in _largest_differences(network):
                table.add_row(head, *row[: len(table.columns) - 1])
                head = ""
        console.print(table)
    console.print(
        "Areas: mean accuracy over the steps. Orders are bias balanced; random: mean over orders.", highlight=False
    )


def _largest_differences(network) -> list[tuple[str, str, str, str]]:
    """Return scope, comparison, difference and interval of the comparisons with the largest differences."""
    from jaxablate.charts import comparison_name, place_name
    from jaxablate.results._compare import compare_orders

    # All scopes and comparisons compete, since the reader wants to know where anything happens at all. The report and
    # the tables have the rest.
    rows = []
    for scope in map(str, network["scope"].values):
        compared = compare_orders(network, scope)
        parts = (compared[name].values.tolist() for name in ("comparison", "difference", "low", "high"))
        rows += [(scope, *row) for row in zip(*parts, strict=True) if row[1] == row[1]]  # NaN: an undefined score
    rows.sort(key=lambda row: -abs(row[2]))
    return [
        (
            escape(place_name(scope)),
            "balanced \u2212 zeros" if name.endswith(" - zero") else comparison_name(name),
            f"[{'green' if difference > 0 else 'red'}]{difference:+.1f}[/]",
            f"{low:+.1f} to {high:+.1f}" if low == low else "",
        )
        for scope, name, difference, low, high in rows[:NUM_DIFFERENCES]
    ]


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
