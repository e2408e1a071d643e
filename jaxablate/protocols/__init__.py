"""Protocols: a name comes in; how a study quantizes, scores, ranks, balances and draws at random goes out.

`paper` follows the paper's formulas and is the default everywhere; `published` does what the code behind the
published figures did; the six departures between them can be had one by one.
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
    # NaN scores and their ranking only act together
    "each": (PAPER.name, *DEPARTURES, "nan_logs+nan_largest", PUBLISHED),
}
"""Protocols to compare, by a name for the set: `each` turns the departures on one at a time."""


def get_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Args:
        name: `paper`, `published`, or departures of the published code from the paper's formulas, one or several
            joined by "+", such as `nan_logs+nan_largest`; `DEPARTURES` lists and explains them.

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
    """The protocols that a text asks for: names and sets (`both`, `each`), joined by commas, each once."""
    names = [name for part in text.split(",") for name in SETS.get(part.strip(), (part.strip(),))]
    return tuple(dict.fromkeys(names))


def shown_protocols(names: Iterable[str]) -> list[str]:
    """Those that pages and tables show: the paper's and the published one, or all where there is neither.

    Example:
        >>> ja.protocols.shown_protocols(["paper", "nan_logs", "published"])
        ['paper', 'published']
    """
    names = list(dict.fromkeys(names))
    return [name for name in names if name in SETS["both"]] or names
