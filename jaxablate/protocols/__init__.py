"""Protocols: how a study quantizes, scores, ranks, balances and draws at random.

Input: the name of a protocol.
Output: a `Protocol`, a frozen bundle of functions.
`paper` follows the paper's formulas and is the default everywhere. `published` does what the code behind the published
figures did. The code departs from the formulas in six ways, and each departure is a protocol too.
"""

from collections.abc import Iterable

from jaxablate._checks import InputError, require
from jaxablate.protocols._protocol import PAPER, FreshSubsets, Protocol
from jaxablate.protocols._published import DEPARTURES, with_departures

__all__ = [
    "DEPARTURES",
    "PAPER",
    "PUBLISHED",
    "SETS",
    "FreshSubsets",
    "Protocol",
    "get_protocol",
    "protocol_names",
    "shown_protocols",
]

PUBLISHED = "published"
SETS = {
    "both": (PAPER.name, PUBLISHED),
    # without NaN scores there is no NaN to rank, so "nan_largest" has an effect only together with "nan_logs"
    "each": (PAPER.name, *DEPARTURES, "nan_logs+nan_largest", PUBLISHED),
}
"""Sets of protocols by name; `each` turns the departures on one at a time."""


def get_protocol(name: str) -> Protocol:
    """Return the protocol of this name.

    Args:
        name: `paper`, `published`, or one or several departures of the published code from the paper's formulas,
            joined by "+", for example `nan_logs+nan_largest`. `DEPARTURES` explains each.

    Returns:
        A `Protocol`.

    Raises:
        InputError: for an unknown name; the message lists the known ones.

    Example:
        >>> ja.protocols.get_protocol("paper").fresh_subsets is None
        True
    """
    require(isinstance(name, str), f"protocol: expected a name, got {name!r}")
    if name == PAPER.name:
        return PAPER
    departures = tuple(DEPARTURES) if name == PUBLISHED else tuple(name.split("+"))
    unknown = [departure for departure in departures if departure not in DEPARTURES]
    if unknown:
        known = ", ".join((PAPER.name, PUBLISHED, *DEPARTURES))
        raise InputError(f"protocol: unknown {unknown[0]!r}; choose one of {known}, or departures joined by '+'")
    return with_departures(departures, name)


def protocol_names(text: str) -> tuple[str, ...]:
    """Return the protocols named in a text of names and sets (`both`, `each`), separated by commas, without repeats."""
    # A set may repeat a name, as in "paper,both"; `dict.fromkeys` drops repeats and keeps the order.
    names = [name for part in text.split(",") for name in SETS.get(part.strip(), (part.strip(),))]
    return tuple(dict.fromkeys(names))


def shown_protocols(names: Iterable[str]) -> list[str]:
    """Return the protocols that pages and tables show: `paper` and `published`, or all if neither is among the names.

    Example:
        >>> ja.protocols.shown_protocols(["paper", "nan_logs", "published"])
        ['paper', 'published']
    """
    names = list(dict.fromkeys(names))
    return [name for name in names if name in SETS["both"]] or names
