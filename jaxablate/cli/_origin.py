"""Describe where the network of a command comes from: its file, what was assumed, and the command itself."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["RecordedCommand", "command_line", "file_facts"]


ARGUMENTS = "jaxablate.arguments"


class RecordedCommand(TyperCommand):
    """A command that keeps its arguments as the user gave them, for `command_line`."""

    context_class = typer.Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, and parse them."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def command_line(context: typer.Context) -> str:
    """Return the command of a context as a shell takes it, with the options that the user gave.

    Results are made to be sent on, so that of an absolute path only the name is left.
    """
    from jaxablate._files import as_utf8, shown_path

    def shown(argument: str) -> str:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        return f"{option}{equals}{shown_path(value)}" if value.startswith("/") else argument

    return as_utf8(shlex.join(["jaxablate", str(context.info_name), *map(shown, context.meta[ARGUMENTS])]))


def file_facts(
    path: Path,
    *,
    activation: str,
    is_pytorch: bool,
    layers: str | None,
    names: Iterable[str],
    state_key: str | None,
    assumed: str,
    notes: Sequence[str],
    reference: Path | None,
) -> dict[str, Any]:
    """Return what is known of the file of a network, and what was assumed when it was read.

    Args:
        path: the file.
        activation: activation function of the network.
        is_pytorch: True for a state dict of PyTorch, False for a file that jaxablate wrote.
        layers: value of --layers.
        names: the modules of the state dict in the order in which they are applied.
        state_key: value of --state-key.
        assumed: what was assumed of its inputs, such as "flattens images channel by channel"; "" for nothing.
        notes: warnings about the file and the reference.
        reference: value of --reference, whose outputs the network has reproduced.
    """
    from jaxablate._files import as_utf8
    from jaxablate.datasets._types import sha256_of

    facts = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if is_pytorch:
        facts |= {
            "format": "PyTorch state dict",
            "activation": f"{activation}, from --activation; the file does not name it",
            "layers": f"{', '.join(names)}, "
            + ("by shapes and the numbers in the names" if layers is None else "from --layers"),
        }
        if state_key is not None:
            facts["state dict"] = f"{state_key}, from --state-key"
    else:
        facts |= {
            "format": "network of jaxablate",
            "activation": f"{activation}, named in the file",
            "layers": "named in the file",
        }
    if assumed:
        facts["images"] = f"assumed that the network {assumed}"
    if notes:
        facts["notes"] = "; ".join(notes)
    facts["reference"] = (
        "not checked, since --reference was not given"
        if reference is None
        else f"reproduced, from {reference.name} (SHA-256 {sha256_of(reference)})"
    )
    return {name: as_utf8(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
