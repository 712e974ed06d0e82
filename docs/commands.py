"""The reference of the commands, from the command line itself: a heading for each, and a table of what it takes."""

from __future__ import annotations

from typing import Any

import typer

from pipeline.cli import app


def in_markdown() -> str:
    """A heading, a sentence and a table for each command."""
    return "\n".join(_command(name, command) for name, command in typer.main.get_command(app).commands.items())


def _command(name: str, command: Any) -> str:
    rows = [f"| `{_written(each)}` | {each.help} |" for each in command.params if each.name != "help"]
    return "\n".join([f"## {name}", "", command.help, "", "| option | meaning |", "|---|---|", *rows, ""])


def _written(parameter: Any) -> str:
    """An option's name, or what stands for an argument."""
    return parameter.opts[0] if parameter.param_type_name == "option" else (parameter.metavar or parameter.name).upper()
