"""Write docs/reference.md from the settings in the code: ``python docs/make_reference.py``."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from metaseg_cli.config import COMMANDS, settings_of


def reference() -> str:
    """The page: one table per command."""
    parts = [
        "# Every setting",
        "",
        "Made by `python docs/make_reference.py` from `metaseg_cli/config`. In a YAML file for `--config` the names",
        "are those of the options, without the dashes. Every command also takes `--config`, `--quiet` and `--json`.",
    ]
    for command, kind in COMMANDS.items():
        parts += [
            "",
            f"## metaseg {command}",
            "",
            (kind.__doc__ or "").strip(),
            "",
            "| option | meaning | default |",
            "|---|---|---|",
        ]
        for name, (_, setting, default) in settings_of(kind).items():
            option = f"`{name.upper()}`" if setting.positional else f"`--{name.replace('_', '-')}`"
            choices = f" One of {', '.join(f'`{c}`' for c in setting.choices)}." if setting.choices else ""
            parts.append(f"| {option} | {setting.help}{choices} | {_shown(setting.shown_default, default)} |")
    return "\n".join(parts) + "\n"


def _shown(said: str | None, default: typing.Any) -> str:
    if said:
        return said
    if default is dataclasses.MISSING:
        return "required"
    if default in (None, ()):
        return ""
    return "yes" if default is True else "no" if default is False else f"`{default}`"


if __name__ == "__main__":
    (Path(__file__).parent / "reference.md").write_text(reference(), encoding="utf-8")
