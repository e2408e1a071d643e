"""Read the settings of a study from a file, from `--set` and from `--vary`.

Input: a JSON or TOML file, or texts NAME=VALUE.
Output: values by the names of the fields of `StudyConfig`, which checks the values.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["parse_setting", "read_settings", "settings_from_text"]

TEXTS = ("dataset", "data_dir", "activation", "normalization")
"""Settings that are text, also if it reads "none" or "5"."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings in a JSON or TOML file.

    Raises:
        InputError: for a file that cannot be read, another suffix, or an unknown setting.
    """
    from jaxablate._checks import InputError, require
    from jaxablate._files import require_file
    from jaxablate.study._config import require_setting

    require(path.suffix in (".json", ".toml"), f"config {path}: unknown suffix; name a .json or .toml file")
    require_file("config", path, "; --print-config prints one")
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"config {path}: it cannot be read as {path.suffix[1:].upper()} ({error})") from None
    require(isinstance(settings, dict), f"config {path}: expected settings by name, got {type(settings).__name__}")
    for name in settings:
        require_setting(name)
    require(isinstance(settings.get("vary", {}), dict), f"config {path}: vary: expected values by setting")
    return settings


def settings_from_text(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings given by an option: values of `--set NAME=VALUE`, tuples of `--vary NAME=VALUE,VALUE`.

    Args:
        option: "--set" or "--vary".
        texts: the option's values, such as "l2=1e-4".

    Raises:
        InputError: for a text without "=", an unknown setting, or a setting that is given twice.
    """
    from jaxablate._checks import require
    from jaxablate.study._config import require_setting

    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        example = "l2=0,1e-4" if option == "--vary" else "l2=1e-4"
        require(bool(equals), f"{option}: expected NAME=VALUE such as {example}, got {text!r}")
        require_setting(name)
        require(name != "vary" or option == "--vary", f"{option}: vary is an option of its own; give --vary l2=0,1e-4")
        require(name not in settings, f"{option}: {name} is there twice; give it once")
        # Commas separate the values to vary. So "+" and "x" join the entries within one value.
        if option == "--vary":
            settings[name] = tuple(parse_setting(name, value) for value in values.split(","))
        else:
            settings[name] = parse_setting(name, values)
    return settings


def parse_setting(name: str, text: str) -> Any:
    """Return the value of a setting from text; `StudyConfig` checks it.

    The text joins the entries of a sequence by "+" and the widths of a network by "x": `200x200+200x200x200`.
    """
    from jaxablate.study._config import SEQUENCES

    if name == "networks":
        return tuple(tuple(_number(width) for width in hidden.split("x")) for hidden in text.split("+") if hidden)
    if name in SEQUENCES:
        return tuple(_number(entry) if name == "seeds" else entry for entry in text.split("+") if entry)
    # `quantizer` and `steps` take a name or a number, so they are not in TEXTS.
    return text if name in TEXTS else _number(text)


def _number(text: str) -> Any:
    """Return a number, True, False or None from a text; every other text is returned unchanged."""
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):  # JSON lacks ".5" and "1."
        return float(text)
    # In lower case, Python's True and None read like JSON's true and null.
    try:
        value = json.loads(text.lower().replace("none", "null"))
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text
