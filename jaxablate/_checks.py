"""Shared checks of what a user hands in; every message says what was expected, what came and what to do."""

import operator
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jax.core import Tracer

LONGEST = 1000


class InputError(ValueError):
    """A user's mistake, told in one line that can be printed; the command line prints it without a traceback."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text with spaces for what cannot be printed, of which names in a file may be full, and at most `LONGEST`
    characters: what is longer loses its middle."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 305]} ... {line[-300:]}"


class JaxablateWarning(UserWarning):
    """What a user should know of a result, told in one sentence; the command line prints it as a note."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise unless `name` is among the known ones, which the message lists."""
    known = list(known)
    require(name in known, f"unknown {kind} {name!r}: expected one of {', '.join(known)}")


def require_different(what: str, values: Collection) -> None:
    """Raise unless there is one or more, and none comes twice."""
    require(len(values) > 0, f"{what}: expected at least one, got none")
    require(len(set(values)) == len(values), f"{what}: expected different ones, got {', '.join(map(str, values))}")


def require_name(what: str, name: object) -> None:
    """Raise unless a name can be part of a file's: printable, without separators, not only points, of 1 to 100
    characters."""
    require(
        isinstance(name, str)
        and name.isprintable()
        and 1 <= len(name) <= 100
        and not set(name) & {*"/\\:"}
        and name.strip(". ") != "",
        f"{what}: expected a name of up to 100 printable characters other than / \\ :, got {name!r}",
    )


def traced(*arrays: object) -> bool:
    """Whether JAX is compiling with any of these, whose values are then unknown and cannot be checked."""
    return any(isinstance(array, Tracer) for array in arrays)


def require_finite(what: str, values: np.ndarray) -> None:
    """Raise if any value is NaN or infinite."""
    bad = int(values.size - np.isfinite(values).sum())
    require(bad == 0, f"{what}: expected finite numbers, got {bad} NaN or infinite of {values.size}")


def finite_float32(what: str, values: np.ndarray) -> np.ndarray:
    """The values as float32; raises if any is NaN or infinite then."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    require_finite(what, values)
    return values


def require_shape(what: str, array: Any, shape: tuple[int | None, ...], meaning: str) -> None:
    """Raise unless the array has this shape; None stands for any length, `meaning` names the axes."""
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    require(fits, f"{what}: expected shape ({wanted}) = [{meaning}], got {array.shape}")


def require_integer(what: str, value: object) -> int:
    """Raise unless the value is a whole number of an integer type; return it as Python's."""
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType] (that is the question)
    except TypeError:
        raise InputError(f"{what}: expected an integer, got {value!r}") from None


def require_count(what: str, value: object, least: int = 1) -> int:
    """Raise unless the value is a whole number, `least` or more; return it as Python's."""
    number = require_integer(what, value)
    require(number >= least, f"{what}: expected at least {least}, got {number}")
    return number


def require_integers(what: str, array: Any) -> None:
    """Raise unless the dtype is an integer one."""
    require(np.issubdtype(array.dtype, np.integer), f"{what}: expected integers, got dtype {array.dtype}")


def require_range(what: str, values: np.ndarray, low: int, high: int) -> None:
    """Raise unless every value lies in low..high, both included."""
    if values.size and (values.min() < low or values.max() > high):
        raise InputError(f"{what}: expected values in {low}..{high}, got {values.min()}..{values.max()}")


def require_batch_size(batch_size: int, num_examples: int) -> None:
    """Raise unless the examples to train on make a batch at least."""
    require(
        1 <= batch_size <= num_examples,
        f"batch_size: expected 1 to {num_examples}, the size of the training split, got {batch_size}",
    )


def require_labels(labels: np.ndarray, num_examples: int, num_classes: int) -> None:
    """Raise unless labels are integers [example] in 0..num_classes-1, one for each example."""
    require_integers("labels", labels)
    require_shape("labels", labels, (num_examples,), "example")
    require_range("labels", labels, 0, num_classes - 1)
