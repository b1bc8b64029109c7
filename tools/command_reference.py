#!/usr/bin/env python3
"""The reference of the commands as Markdown, made from the commands themselves."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from slmq.cli.app import COMMANDS, app

WIDTH = 106
# What stands for a value of a type, most special first.
WORDS: dict[Any, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def cell(text: str) -> str:
    """A text for a table: bars would end the cell, and brackets look like links or tags."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace("[", "\\[").replace("]", "\\]")


def code(text: str) -> str:
    """Code for a table."""
    return "`" + text.replace("|", "\\|") + "`"


def table(head: str, rows: list[tuple[str, str]]) -> list[str]:
    """A table of two columns; nothing without rows."""
    if not rows:
        return []
    lines = [f"| {head} | |", "|---|---|"]
    return [*lines, *(f"| {left} | {cell(right)} |" for left, right in rows), ""]


def parts_of(hint: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [hint, *(part for arg in get_args(hint) for part in parts_of(arg))]


def option_of(parameter: Any, hint: Any) -> str:
    """How an option is written."""
    flags = ", ".join(parameter.opts)
    if parameter.is_flag:
        return code(flags)
    words = [word for kind, word in WORDS.items() if kind in parts_of(hint)]
    return code(f"{flags} {parameter.metavar or words[0]}")


def section(name: str, command: Any) -> str:
    """Usage, help, arguments and options of a command."""
    hints = get_type_hints(COMMANDS[name], include_extras=True)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["slmq", name, *(p.metavar for p in arguments), "[OPTIONS]"])
    lines = [f"## slmq {name}", "", "```text", usage, "```", ""]
    for paragraph in command.help.split("\n\n"):
        lines += [*textwrap.wrap(paragraph, WIDTH), ""]
    lines += table("argument", [(code(p.metavar), p.help) for p in arguments])
    panels: dict[str | None, list[tuple[str, str]]] = {}
    for p in options:
        panels.setdefault(p.rich_help_panel, []).append((option_of(p, hints[p.name]), p.help))
    for panel, rows in panels.items():
        lines += table("option" if panel is None else panel.lower(), rows)
    return "\n".join(lines)


def reference() -> str:
    """Every command, in the order of the help."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join(section(name, command) for name, command in commands.items())


if __name__ == "__main__":
    print(reference(), end="")
