"""Config dataclasses → Typer options, so that no option is written twice."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from metaseg_cli.config import Setting, settings_of
from metaseg_cli.errors import ConfigError, Interrupted

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings; command-line options override it.", metavar="FILE"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
_TOO, _OFF = "__too", "__off"  # parameters that stand for a field of another name
_NUMBER_LISTS: dict[Any, type[int] | type[float]] = {tuple[int, ...]: int, tuple[float, ...]: float}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class NumbersMayFollow(TyperCommand):
    """A command that accepts lists of numbers with blanks, as in ``--spacing 6.5 0.8 0.8``, and with commas."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers that follow an option whose metavar announces several."""
        lists = {
            name
            for p in self.params
            if any(several in (p.metavar or "") for several in ("N,N", "X,X", "Z Y X"))
            for name in p.opts
        }
        joined: list[str] = []
        for arg in args:
            before = joined[-2] if len(joined) > 1 else ""
            if before in lists and _is_number(arg) and all(_is_number(n) for n in joined[-1].split(",")):
                joined[-1] += f",{arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith("-")


def options_from(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of *config*; it receives those that were given as the dict ``cli_values``."""
    settings = settings_of(config)
    number_lists = {name: kind for name, (kind, _, _) in settings.items() if kind in _NUMBER_LISTS}
    autos = {name for name, (_, setting, _) in settings.items() if setting.auto}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "cli_values"]
        parameters = [
            p for name, (kind, setting, default) in settings.items() for p in _parameters(name, kind, setting, default)
        ]

        @wraps(command)
        def wrapper(**given: Any) -> None:
            cli_values: dict[str, Any] = {}
            for parameter in parameters:
                name = parameter.name.removesuffix(_TOO).removesuffix(_OFF)
                value = given.pop(parameter.name)
                if parameter.name.endswith(_OFF) and value is not None:
                    value = not value
                if isinstance(value, list):
                    value = (*cli_values.get(name, ()), *value) or None
                if isinstance(value, str) and name in number_lists:
                    value = _numbers(value, name, _NUMBER_LISTS[number_lists[name]])
                if isinstance(value, str) and name in autos:
                    value = _number_or_auto(value, name)
                if value is not None:
                    cli_values[name] = value
            try:
                command(cli_values=cli_values, **given)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted; {getattr(config, 'when_interrupted', 'nothing is lost')}",
                    remedy="run the same command again",
                ) from None

        every = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*parameters, *own)]
        wrapper.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in every}
        return wrapper

    return decorate


def _parameters(name: str, kind: Any, setting: Setting, default: Any) -> list[inspect.Parameter]:
    """The parameter of a field, and a second one for another name of it: of a positional, or its former one."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    base = next(o for o in options if o is not type(None))
    is_list = typing.get_origin(base) is tuple
    numbers = base in _NUMBER_LISTS
    typer_kind = str if numbers or setting.auto else list[typing.get_args(base)[0]] if is_list else base  # type: ignore[misc]
    empty: Any = None
    flag = "--" + name.replace("_", "-")
    off = base is bool and bool(default)  # only the direction that changes something is offered
    option_name = f"--no-{flag[2:]}" if off else "--" + (setting.cli_name or flag[2:])
    shown = setting.shown_default or ("" if default in ((), None) or _is_missing(default) else _as_typed(default))
    details = [", ".join(setting.choices)] if setting.choices else []
    details += [f"default: {shown}"] if shown and base is not bool else []
    help_text = ("Switch off: " if off else "") + setting.help + (f" ({'; '.join(details)})" if details else "")
    metavar = (
        ("N,N,…" if _NUMBER_LISTS[base] is int else "X,X,…")
        if numbers
        else "X|auto"
        if setting.auto
        else _METAVARS.get(base)
    )
    metavar = "auto|native|Z Y X" if setting.accepts_triplet else metavar
    option = typer.Option(
        option_name,
        help=help_text,
        show_default=False,
        rich_help_panel=setting.panel,
        metavar=None if base is bool else metavar,
    )
    if not setting.positional:
        names = [_parameter(name + _OFF if off else name, typer_kind, option, empty)]
        if setting.former_name:
            former = typer.Option("--" + setting.former_name.replace("_", "-"), hidden=True, show_default=False)
            names.append(_parameter(name + _TOO, typer_kind, former, empty))
        return names
    # A positional without default is required; the config itself checks those that may also come as an option.
    argument = typer.Argument(help=help_text, metavar=name.upper() + ("..." if is_list else ""), show_default=False)
    both = [_parameter(name, typer_kind, argument, inspect.Parameter.empty if _is_missing(default) else empty)]
    if setting.cli_name:
        twin = typer.Option(f"--{setting.cli_name}", help=f"The same as {name.upper()}.", show_default=False)
        both.append(_parameter(name + _TOO, typer_kind, twin, empty))
    return both


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind | None, info]
    )


def _as_typed(default: Any) -> str:
    return ",".join(f"{number:g}" for number in default) if isinstance(default, tuple) else str(default)


def _is_missing(default: Any) -> bool:
    return default is dataclasses.MISSING


def _number_or_auto(text: str, name: str) -> float | None:
    """A number, or None for ``auto``, which leaves the default."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise ConfigError(f"--{name.replace('_', '-')} {text!r} is neither a number nor auto") from None


def _numbers(text: str, name: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    """``16,32,64`` → (16, 32, 64)."""
    try:
        return tuple(kind(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ConfigError(
            f"--{name.replace('_', '-')} {text!r} is not a list of {'whole ' if kind is int else ''}numbers",
            remedy="write it as in 16,32,64" if kind is int else "write it as in 1,2.5",
        ) from None
