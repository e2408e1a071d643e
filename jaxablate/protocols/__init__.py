"""Protocols: how a study quantizes, scores, ranks, balances and draws at random.

Input: the name of a protocol.
Output: a `Protocol`, a frozen bundle of functions.
`paper` follows the paper's formulas and is the default everywhere. `published` does what the code behind the published
figures did. The code departs from the formulas in six ways, and each combination of departures is a protocol too.
Two controls change the orders: of neurons whose code never changes, and of ties.
"""

import itertools
from collections.abc import Iterable

from jaxablate._checks import InputError, describe_value, require, require_type
from jaxablate.protocols._protocol import PAPER, FreshSubsets, Protocol
from jaxablate.protocols._published import CONTROLS, DEPARTURES, with_departures

__all__ = [
    "CONTROLS",
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


def _distinct_subsets() -> tuple[str, ...]:
    """Return the subsets of the departures that can differ, from `paper` to `published`."""
    # Without NaN scores there is no NaN to rank, so "nan_largest" has an effect only together with "nan_logs". A
    # float32 activation is almost never exactly at the threshold, so "strict_threshold" is turned on alone, to show
    # that it changes nothing, and in `published`.
    choices = [
        ((), ("mi_sign",)),
        ((), ("nan_logs",), ("nan_logs", "nan_largest")),
        ((), ("firing_rate_scaling",)),
        ((), ("fresh_subsets",)),
    ]
    subsets = [sum(chosen, ()) for chosen in itertools.product(*choices)]
    return (*("+".join(subset) or PAPER.name for subset in subsets), "strict_threshold", PUBLISHED)


SETS = {
    "both": (PAPER.name, PUBLISHED),
    "departures": _distinct_subsets(),
    "controls": (PAPER.name, *CONTROLS, PUBLISHED, *(f"{PUBLISHED}+{control}" for control in CONTROLS)),
}
"""Sets of protocols by name: `departures` has every combination that can differ, `controls` every control of `both`."""


def get_protocol(name: str) -> Protocol:
    """Return the protocol of this name.

    Args:
        name: `paper`, `published`, or departures of the published code from the paper's formulas and controls, joined
            by "+": for example `nan_logs+nan_largest`, or `published+constant_last`. `DEPARTURES` and `CONTROLS`
            explain each.

    Returns:
        A `Protocol`.

    Raises:
        InputError: for an unknown name; the message lists the known ones.

    Example:
        >>> ja.protocols.get_protocol("paper").fresh_subsets is None
        True
    """
    require(isinstance(name, str), f"protocol: expected a name, got {describe_value(name)}")
    if name == PAPER.name:
        return PAPER
    parts = name.split("+")
    unknown = [part for part in parts if part not in (PUBLISHED, *DEPARTURES, *CONTROLS)]
    if unknown:
        known = ", ".join((PAPER.name, PUBLISHED, *DEPARTURES, *CONTROLS))
        raise InputError(f"protocol: unknown {unknown[0]!r}; choose one of {known}, or several joined by '+'")
    return with_departures({*parts, *(DEPARTURES if PUBLISHED in parts else ())}, name)


def protocol_names(text: str) -> tuple[str, ...]:
    """Return the protocols named in a text of names and of `SETS`, separated by commas, without repeats."""
    require_type("protocol", text, str, "a text")
    # A set may repeat a name, as in "paper,both"; `dict.fromkeys` drops repeats and keeps the order.
    names = [name for part in text.split(",") for name in SETS.get(part.strip(), (part.strip(),))]
    return tuple(dict.fromkeys(names))


def shown_protocols(names: Iterable[str]) -> list[str]:
    """Return the protocols that pages and tables show: `paper` and `published`, or all if neither is among the names.

    Example:
        >>> ja.protocols.shown_protocols(["paper", "nan_logs", "published"])
        ['paper', 'published']
    """
    require_type("protocols", names, Iterable, "names")
    names = list(dict.fromkeys(names))
    return [name for name in names if name in SETS["both"]] or names
