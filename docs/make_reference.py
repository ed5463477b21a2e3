"""Write docs/reference/cli.md from the parser of the program itself: ``python docs/make_reference.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from metaseg_cli.cli import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
_INTRODUCTION = """# Command line

Made by `python docs/make_reference.py` from the program's own parser; `metaseg COMMAND --help` says the same. In a YAML
file for `--config` the names are those of the options, without the dashes; options on the command line override it.
"""


def reference() -> str:
    """The page: one section per command, one table per group of options."""
    group: Any = typer.main.get_command(app)
    return "\n".join([_INTRODUCTION, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    description, _, example = (command.help or "").strip().partition("\n\n")
    panels: dict[str, list[Any]] = {}
    for parameter in (each for each in command.params if not getattr(each, "hidden", False)):
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
    parts = [f"## metaseg {name}", "", description.replace("\n", " "), "", *_code(example)]
    for panel, parameters in sorted(panels.items()):
        parts += [f"### {panel}", ""] if panel else []
        parts += ["| option | meaning |", "|---|---|", *map(_row, parameters), ""]
    return "\n".join(parts)


def _code(example: str) -> list[str]:
    """``Example: a, or b`` as lines of code."""
    lines = example.partition(":")[2].replace("\n", " ").split(", or ")
    return [*(f"    {line.strip()}" for line in lines if line.strip()), ""]


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        shown = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        metavar = f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else ""
        shown = ", ".join(f"`{option}{metavar}`" for option in (*parameter.opts, *parameter.secondary_opts))
    return f"| {_cell(shown)} | {_cell(parameter.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
