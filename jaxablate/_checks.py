"""Checks of user input that all modules share.

A message has one line: `argument: problem; remedy`. For shapes, types and enumerations the problem reads
"expected X, got Y".
"""

import contextlib
import dataclasses
import operator
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

AnyArray = jax.Array | np.ndarray

SEPARATORS = "/\\:"
"""Characters that no name can have."""
MAX_MESSAGE = 400
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
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 205]} ... {line[-200:]}"


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def describe_value(value: object) -> str:
    """Return a short text for a value in a message, without the content of an array.

    Arrays are described by type, dtype and shape, other values by a short `repr`, or else by type and length.
    """
    name = "Array" if isinstance(value, jax.Array) else type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"{name} of dtype {dtype} and shape {shape}"
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:80]}...")
    text = repr(value)
    if len(text) <= 80 and text.isprintable() and not re.search(r"array|Array|tensor|object at 0x|function <", text):
        return text
    return f"{name} of length {len(value)}" if isinstance(value, bytes | list | tuple | dict | set) else name


def short_repr(self: Any) -> str:
    """Return the `repr` of a dataclass, with dtype and shape in place of the content of large arrays."""
    parts = [f"{field.name}={_shorten(getattr(self, field.name))}" for field in dataclasses.fields(self)]
    return f"{type(self).__name__}({', '.join(parts)})"


def _shorten(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shorten, value))})"
    text = "" if isinstance(value, AnyArray) and value.size > 10 else repr(value)
    return text if 0 < len(text) <= 100 and text.isprintable() else describe_value(value)


def require_known(argument: str, name: object, known: Iterable[str]) -> None:
    """Raise unless `name` is one of the known names, which the message lists."""
    known = list(known)
    # An array would be compared with each name by its elements.
    require(
        isinstance(name, str) and name in known,
        f"{argument}: unknown {describe_value(name)}; choose one of {', '.join(known)}",
    )


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
        and not set(name) & {*SEPARATORS}
        and name.strip(". ") != "",
        f"{argument}: expected a name of up to 100 printable characters other than / \\ :, got {describe_value(name)}",
    )


def traced(*arrays: object) -> bool:
    """Return True if JAX is tracing any of the arrays: its values are unknown then and cannot be checked."""
    return any(isinstance(array, Tracer) for array in arrays)


def host_array(argument: str, values: Any) -> np.ndarray:
    """Return values as a NumPy array of one dtype.

    Raises:
        InputError: for what is no array, a masked array, a tensor that NumPy cannot read, or a traced array.
    """
    name = type(values).__name__
    require(
        not traced(values),
        f"{argument}: JAX is tracing it, so its values are unknown; call this outside of jit and vmap",
    )
    # NumPy would drop the mask and use the values under it.
    require(
        not np.ma.is_masked(values),
        f"{argument}: expected an array without a mask, got a masked array; drop the masked examples, or replace the "
        "values by .filled(value)",
    )
    require(
        not isinstance(values, list | tuple) or all(getattr(value, "mode", None) != "P" for value in values),
        f"{argument}: images with a palette hold numbers of colors; convert each by .convert('L') or .convert('RGB')",
    )
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, and tensors of other libraries, which raise anything
        reason = str(error).strip().split("\n")[0][:150]
        remedy = "; pass values.float()" if "BFloat16" in reason else ""
        raise InputError(f"{argument}: expected an array, got {name} ({reason}){remedy}") from None
    remedy = "; .toarray() makes an array of it" if hasattr(values, "toarray") else ""
    require(array.dtype != object or array.ndim > 0, f"{argument}: expected an array, got {name}{remedy}")
    # NumPy makes objects of the nullable numbers of pandas.
    kinds = np.ravel(getattr(values, "dtypes", [])) if array.dtype == object else ()
    if any(not isinstance(kind, np.dtype) for kind in kinds):
        with contextlib.suppress(TypeError, ValueError):  # a missing value, or texts: refused as objects
            array = array.astype(np.float64)
    # JAX takes neither long doubles nor another order of bytes, as files of FITS and netCDF 3 have it.
    kind = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    return array.astype(kind, copy=False)


def as_array(argument: str, values: Any) -> Any:
    """Return a JAX array as it is, and other values as by `host_array`."""
    return values if isinstance(values, jax.Array) else host_array(argument, values)


def is_floating(dtype: np.dtype) -> bool:
    """Return True for floating-point dtypes, also for those that NumPy does not know, such as bfloat16."""
    return jnp.issubdtype(dtype, np.floating)


def host_numbers(argument: str, values: Any) -> np.ndarray:
    """Return values as a NumPy array of real numbers.

    Raises:
        InputError: as in `host_array`, or for another dtype: NumPy would convert texts, dates and complex numbers.
    """
    array = host_array(argument, values)
    require(
        array.dtype.kind in "biuf" or is_floating(array.dtype),
        f"{argument}: expected an array of numbers, got dtype {array.dtype}; convert it, for example by .astype(float)",
    )
    return array


def require_finite(argument: str, values: np.ndarray, remedy: str = "") -> None:
    """Raise `InputError` if any value is NaN or infinite; the message ends with the remedy, if it is not empty."""
    bad = int(values.size - np.isfinite(values).sum())
    ending = f"; {remedy}" if remedy else ""
    require(bad == 0, f"{argument}: expected finite numbers, got {bad} NaN or infinite of {values.size}{ending}")


def finite_float32(argument: str, values: Any) -> np.ndarray:
    """Return the values as float32; raise if any is then NaN or infinite."""
    # A float64 beyond the range of float32 becomes infinite; the next line reports it, so NumPy's warning would be a
    # second message.
    with np.errstate(over="ignore"):
        values = host_numbers(argument, values).astype(np.float32)
    require_finite(argument, values)
    return values


def require_shape(argument: str, array: Any, shape: tuple[int | None, ...], axes: str) -> None:
    """Raise unless the array has this shape; None allows any length, and `axes` names the axes in the message."""
    fits = array.ndim == len(shape) and all(
        length in (None, actual) for length, actual in zip(shape, array.shape, strict=True)
    )
    expected = ", ".join("any" if length is None else str(length) for length in shape)
    require(fits, f"{argument}: expected shape ({expected}) = [{axes}], got {array.shape}")


def require_type(argument: str, value: object, kind: Any, expected: str) -> None:
    """Raise unless a value is an instance of a type; `expected` names the type in the message."""
    if not isinstance(value, kind):  # the description may be slow, as the `repr` of a network is
        raise InputError(f"{argument}: expected {expected}, got {describe_value(value)}")


def require_key(key: object) -> None:
    """Raise unless a value is a random key of JAX, of the new or the old kind."""
    # The old kind is an array of uint32.
    is_key = isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or (key.dtype == np.uint32 and key.ndim == 1)
    )
    require(is_key, f"key: expected a random key, jax.random.key(seed), got {describe_value(key)}")


def require_number(argument: str, value: Any) -> None:
    """Raise unless a value is one finite real number."""
    is_number = isinstance(value, int | float | np.number) or (isinstance(value, AnyArray) and value.ndim == 0)
    require(
        is_number and not np.iscomplexobj(value) and bool(np.isfinite(value)),
        f"{argument}: expected a finite number, got {describe_value(value)}",
    )


def as_path(argument: str, path: object) -> Path:
    """Return a path; raise unless it is a text or a path."""
    require_type(argument, path, str | os.PathLike, "a path")
    return Path(path)  # pyright: ignore[reportArgumentType] (checked above)


def require_bool(argument: str, value: object) -> None:
    """Raise `InputError` unless a value is True or False."""
    require(isinstance(value, bool | np.bool_), f"{argument}: expected True or False, got {describe_value(value)}")


def require_fraction(argument: str, value: Any, *, below_one: bool = False) -> None:
    """Raise `InputError` unless a value is a number in [0, 1], or in [0, 1) if `below_one`."""
    require(isinstance(value, int | float | np.number), f"{argument}: expected a number, got {describe_value(value)}")
    require(
        bool(0 <= value < 1) or bool(value == 1 and not below_one),
        f"{argument}: {value} is out of range; choose {'0 or more, and less than 1' if below_one else '0 to 1'}",
    )


def require_integer(argument: str, value: object) -> int:
    """Return the value as a Python integer; raise unless its type is an integer type."""
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType] (that is the question)
    except TypeError:
        raise InputError(f"{argument}: expected an integer, got {describe_value(value)}") from None


def require_count(argument: str, value: object, minimum: int = 1) -> int:
    """Return the value as a Python integer; raise unless it is an integer of at least `minimum`."""
    number = require_integer(argument, value)
    require(number >= minimum, f"{argument}: expected at least {minimum}, got {number}")
    return number


def require_integers(argument: str, array: Any) -> None:
    """Raise unless the array has an integer dtype."""
    require(jnp.issubdtype(array.dtype, np.integer), f"{argument}: expected integers, got dtype {array.dtype}")


def require_range(argument: str, values: np.ndarray, low: int, high: int) -> None:
    """Raise unless every value lies in low..high, both ends included."""
    # min and max raise for an empty array, which has no value out of range.
    if values.size and (values.min() < low or values.max() > high):
        raise InputError(f"{argument}: expected values in {low}..{high}, got {values.min()}..{values.max()}")


def require_same_index(argument: str, images: Any, labels: Any) -> None:
    """Raise if images and labels are of pandas or xarray, and their examples have other names or another order."""
    indexes: list[Any] = [_index_of_examples(table) for table in (images, labels)]
    require(
        not all(hasattr(index, "equals") for index in indexes) or indexes[0].equals(indexes[1]),
        f"{argument}: their index differs from that of the images, so their rows may not belong together; align "
        "them, or pass images.to_numpy() and labels.to_numpy()",
    )
    dims: list[Any] = [_dimensions(table) for table in (images, labels)]
    require(
        not all(dims) or dims[0][0] == dims[1][0] or dims[1][0] not in dims[0],
        f"{argument}: their dimension {dims[1] and dims[1][0]!r} is not the first of the images; pass "
        "images.transpose(...) with the examples first",
    )


def _dimensions(table: Any) -> tuple[Any, ...] | None:
    """Return the names of the dimensions of an array of xarray; None for others."""
    dims = getattr(table, "dims", None)  # those of a `Dataset` of xarray are a mapping
    return dims if isinstance(dims, tuple) and hasattr(table, "indexes") else None


def _index_of_examples(table: Any) -> Any:
    """Return the index of pandas, or that of the first dimension of xarray; None for other arrays."""
    if (dims := _dimensions(table)) is not None:
        return table.indexes.get(dims[0]) if dims else None
    return getattr(table, "index", None)


def require_same_features(argument: str, table: Any, train: Any) -> None:
    """Raise if tables or xarray name the features or dimensions of two arrays differently, or in another order."""
    columns: list[Any] = [_column_names(each) for each in (train, table)]
    require(
        any(names is None for names in columns) or columns[0] == columns[1],
        f"{argument}: their columns differ from the columns of the training images in name or order; reorder them by "
        "frame[train.columns], or pass frame.to_numpy() if only the names differ",
    )
    dims: list[Any] = [_dimensions(each) for each in (train, table)]
    if not all(dims):
        return
    require(
        dims[0][1:] == dims[1][1:],
        f"{argument}: their dimensions {dims[1][1:]} differ from {dims[0][1:]} of the training images; transpose them, "
        "or pass images.to_numpy() if only the names differ",
    )
    for name in dims[0][1:]:
        first, second = (each.indexes.get(name) for each in (train, table))
        require(
            first is None or second is None or first.equals(second),
            f"{argument}: their coordinate {name!r} has other values, or another order, than in the training images; "
            f"reorder them by images.sel({name}=train.{name}), or pass images.to_numpy() if only the labels differ",
        )


def _column_names(table: Any) -> list | None:
    """Return the names of the columns of a table of pandas or Polars; None for other arrays."""
    columns: Any = getattr(table, "columns", None)
    is_polars = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    return [*columns] if is_polars or hasattr(columns, "equals") else None


def require_in_order(argument: str, values: Any) -> None:
    """Raise if pandas or xarray label the last axis in another order: a sorted or selected table is in another order.

    pandas must number it 0, 1, 2, ...; xarray may begin at another number, as a part for one layer does.
    """
    if (dims := _dimensions(values)) is not None:
        numbers = np.asarray(values.indexes.get(dims[-1], ())) if dims else np.array([])
        require(
            not np.issubdtype(numbers.dtype, np.number) or bool((np.diff(numbers) == 1).all()),
            f"{argument}: its xarray coordinate {dims and dims[-1]!r} does not count up in steps of 1, so its values "
            "may be in another order; bring them into the order of the neurons, and pass .to_numpy()",
        )
        return
    axis = "columns are" if hasattr(values, "columns") else "index is"
    labels: Any = getattr(values, axis.split()[0], None)
    require(
        not hasattr(labels, "equals") or np.array_equal(labels, np.arange(len(labels))),
        f"{argument}: its pandas {axis} not 0, 1, 2, ..., so its values may be in another order; bring them into the "
        "order of the neurons, and pass .to_numpy()",
    )


def check_labels(
    labels: Any, num_examples: int | None = None, num_classes: int | None = None, *, argument: str = "labels"
) -> np.ndarray:
    """Return labels as a NumPy array of integers [example].

    Args:
        labels: integers [example].
        num_examples: number of examples; None for any.
        num_classes: labels lie in 0..num_classes-1; None for any.
        argument: names the labels in messages.

    Raises:
        InputError: for other labels; the message has the expression that makes class labels of them, if there is one.
    """
    array = host_array(argument, labels)
    # Labels in another form are not converted: the same array could mean a regression or several labels per example.
    # The message names the conversion.
    remedy = _label_remedy(array)
    if array.ndim != 1 or num_examples not in (None, len(array)):
        expected = "one axis [example]" if num_examples is None else f"shape ({num_examples}) = [example]"
        ending = remedy if array.ndim == 2 else ""
        raise InputError(f"{argument}: expected {expected}, got {array.shape}{ending}")
    is_integer = jnp.issubdtype(array.dtype, np.integer)
    require(is_integer, f"{argument}: expected integers, got dtype {array.dtype}{remedy}")
    if num_classes is not None and array.size:
        low, high = int(array.min()), int(array.max())
        require(
            low >= 0 and high < num_classes,
            f"{argument}: expected values in 0..{num_classes - 1}, got {low}..{high}"
            f"{_range_remedy(low, high, num_classes, array)}",
        )
    return array


ONE_OUTPUT = (
    "; one output is one class: make two logits of the output z, jnp.concatenate([0 * z, z], axis=1), or pass "
    "outcomes={'name': function}"
)
NUMBER_CLASSES = (
    "np.unique(all_labels, return_inverse=True)[1] numbers the classes, for all splits together (for a trained "
    "network, number them in the order of its outputs)"
)
UNKNOWN_CLASS = "; drop the examples without a class"


def _label_remedy(labels: np.ndarray) -> str:
    """Return the end of a message on labels that are no integers [example]; "" if there is no remedy."""
    kind, to_integers = labels.dtype.kind, "; np.asarray(labels, int) converts them"
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "; np.ravel(labels) drops the second axis"
    if kind in "OUSTMm":
        values = labels.ravel().tolist()
        if values and all(isinstance(label, str | bytes) and label.isdigit() for label in values):
            return "; labels.astype(int) reads the numbers"
        return to_integers if all(isinstance(label, int) for label in values) else f"; {NUMBER_CLASSES}"
    if kind in "biuf" and labels.ndim == 2 and labels.size:
        one_hot = ((labels != 0).sum(axis=1) == 1).all() and (labels.max(axis=1) == 1).all()
        if one_hot:
            return " (one-hot labels); np.argmax(labels, axis=1) converts them"
        return "; if an example can have several classes, pass outcomes={'name': function}, or one class, labels[:, k]"
    if kind == "f" and not np.isfinite(labels).all():
        return f" with {int((~np.isfinite(labels)).sum())} NaN or infinite{UNKNOWN_CLASS}"
    if kind == "f" and (labels != np.floor(labels)).any():
        return " with fractions; number the classes from 0"
    return to_integers if kind in "bf" else ""


def _range_remedy(low: int, high: int, num_classes: int, labels: np.ndarray) -> str:
    """Return the end of a message on labels low..high that are not in 0..num_classes-1."""
    if low == 1 and high == num_classes > 1:
        return "; number the classes from 0, by labels - 1"
    if num_classes == 1 and (low, high) == (0, 1):
        return ONE_OUTPUT
    if (low, high) == (-1, 1) and 0 not in labels:
        return "; (labels > 0).astype(int) numbers the two classes from 0, if -1 is one of them"
    return UNKNOWN_CLASS if low < 0 or high == 255 else ""
