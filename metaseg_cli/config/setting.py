"""What a setting is: a field of a frozen dataclass, annotated with its meaning and limits."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field's type cannot say: its meaning, limits, choices, and its form on the command line."""

    help: str
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    positional: bool = False
    cli_name: str | None = None  # another name on the command line; for a positional, an option that means the same
    former_name: str | None = None  # its name in earlier versions, still read from files and the command line
    panel: str | None = None
    shown_default: str | None = None
    auto: bool = False  # a number, or the word auto for None
    accepts_triplet: bool = False  # a text that may be given as three numbers: --spacing 6.5 0.8 0.8


def settings_of(config: type) -> dict[str, tuple[Any, Setting, Any]]:
    """Field name → (type, Setting, default) of a config dataclass."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {}
    for field in dataclasses.fields(config):
        kind, *extras = typing.get_args(hints[field.name])
        found[field.name] = (kind, next(e for e in extras if isinstance(e, Setting)), field.default)
    return found


def check(config: object) -> None:
    """Check the limits and choices of every field. Raises ConfigError naming the option."""
    for name, (_, setting, _) in settings_of(type(config)).items():
        value = getattr(config, name)
        option = "--" + (setting.cli_name or name.replace("_", "-"))
        if value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        for each in values:
            if setting.min is not None and each < setting.min:
                raise ConfigError(f"{option} must be at least {setting.min:g}, got {each}")
            if setting.max is not None and each > setting.max:
                raise ConfigError(f"{option} must be at most {setting.max:g}, got {each}")
            if setting.choices and each not in setting.choices:
                raise ConfigError(
                    f"{option} {each!r} does not exist", remedy=f"take one of {', '.join(setting.choices)}"
                )
