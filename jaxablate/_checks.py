"""Checks of user input that all modules share.

A message has one line: `argument: problem; remedy`. For shapes, types and enumerations the problem reads
"expected X, got Y".
"""

import operator
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jax.core import Tracer

MAX_MESSAGE = 1000
"""Number of characters that a message may have."""


class InputError(ValueError):
    """Report a mistake in the user's input in one printable line; the command line prints it without a traceback."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class JaxablateWarning(UserWarning):
    """Report in one sentence what a user should know about a result; the command line prints it as a note."""


def one_line(text: str) -> str:
    """Return the text as one printable line of at most `MAX_MESSAGE` characters.

    Unprintable characters, which names in a damaged file may hold, become spaces. Longer text loses its middle.
    """
    # The start of a message names the argument and its end the remedy, so the middle is what can go.
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 305]} ... {line[-300:]}"


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_known(argument: str, name: str, known: Iterable[str]) -> None:
    """Raise unless `name` is one of the known names, which the message lists."""
    known = list(known)
    require(name in known, f"{argument}: unknown {name!r}; choose one of {', '.join(known)}")


def require_different(argument: str, values: Collection) -> None:
    """Raise unless there is at least one value and no value is repeated."""
    require(len(values) > 0, f"{argument}: expected at least one, got none")
    # Repeated entries would compute the same results twice under one label.
    require(
        len(set(values)) == len(values), f"{argument}: expected different values, got {', '.join(map(str, values))}"
    )


def require_name(argument: str, name: object) -> None:
    """Raise unless a name can be part of a file name.

    It has 1 to 100 printable characters, none of them a separator, and does not consist of points and spaces alone.
    """
    # The name becomes a part of file names and of paths in netCDF files. "/" separates the latter; "\" and
    # ":" have a meaning in paths of Windows.
    require(
        isinstance(name, str)
        and name.isprintable()
        and 1 <= len(name) <= 100
        and not set(name) & {*"/\\:"}
        and name.strip(". ") != "",
        f"{argument}: expected a name of up to 100 printable characters other than / \\ :, got {name!r}",
    )


def traced(*arrays: object) -> bool:
    """Return True if JAX is tracing any of the arrays: its values are unknown then and cannot be checked."""
    return any(isinstance(array, Tracer) for array in arrays)


def require_finite(argument: str, values: np.ndarray, remedy: str = "") -> None:
    """Raise `InputError` if any value is NaN or infinite; the message ends with the remedy, if it is not empty."""
    bad = int(values.size - np.isfinite(values).sum())
    ending = f"; {remedy}" if remedy else ""
    require(bad == 0, f"{argument}: expected finite numbers, got {bad} NaN or infinite of {values.size}{ending}")


def finite_float32(argument: str, values: np.ndarray) -> np.ndarray:
    """Return the values as float32; raise if any is then NaN or infinite."""
    # A float64 beyond the range of float32 becomes infinite; the next line reports it, so NumPy's warning would be a
    # second message.
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    require_finite(argument, values)
    return values


def require_shape(argument: str, array: Any, shape: tuple[int | None, ...], axes: str) -> None:
    """Raise unless the array has this shape; None allows any length, and `axes` names the axes in the message."""
    fits = array.ndim == len(shape) and all(
        length in (None, actual) for length, actual in zip(shape, array.shape, strict=True)
    )
    expected = ", ".join("any" if length is None else str(length) for length in shape)
    require(fits, f"{argument}: expected shape ({expected}) = [{axes}], got {array.shape}")


def require_bool(argument: str, value: object) -> None:
    """Raise `InputError` unless a value is True or False."""
    require(isinstance(value, bool | np.bool_), f"{argument}: expected True or False, got {value!r}")


def require_fraction(argument: str, value: Any, *, below_one: bool = False) -> None:
    """Raise `InputError` unless a value is a number in [0, 1], or in [0, 1) if `below_one`."""
    require(isinstance(value, int | float | np.number), f"{argument}: expected a number, got {value!r}")
    require(
        bool(0 <= value < 1) or bool(value == 1 and not below_one),
        f"{argument}: {value} is out of range; choose {'0 or more, and less than 1' if below_one else '0 to 1'}",
    )


def require_integer(argument: str, value: object) -> int:
    """Return the value as a Python integer; raise unless its type is an integer type."""
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType] (that is the question)
    except TypeError:
        raise InputError(f"{argument}: expected an integer, got {value!r}") from None


def require_count(argument: str, value: object, minimum: int = 1) -> int:
    """Return the value as a Python integer; raise unless it is an integer of at least `minimum`."""
    number = require_integer(argument, value)
    require(number >= minimum, f"{argument}: expected at least {minimum}, got {number}")
    return number


def require_integers(argument: str, array: Any) -> None:
    """Raise unless the array has an integer dtype."""
    require(np.issubdtype(array.dtype, np.integer), f"{argument}: expected integers, got dtype {array.dtype}")


def require_range(argument: str, values: np.ndarray, low: int, high: int) -> None:
    """Raise unless every value lies in low..high, both ends included."""
    # min and max raise for an empty array, which has no value out of range.
    if values.size and (values.min() < low or values.max() > high):
        raise InputError(f"{argument}: expected values in {low}..{high}, got {values.min()}..{values.max()}")


def require_labels(labels: np.ndarray, num_examples: int, num_classes: int) -> None:
    """Raise unless labels are integers [example] in 0..num_classes-1, one for each example."""
    require_integers("labels", labels)
    require_shape("labels", labels, (num_examples,), "example")
    require_range("labels", labels, 0, num_classes - 1)
