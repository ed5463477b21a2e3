"""YAML files of settings: read, overridden by the command line, written back complete."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from metaseg_cli.config import settings_of
from metaseg_cli.core.paths import why_not_openable
from metaseg_cli.errors import ConfigError, InputError, decoding

Config = TypeVar("Config")
_AS = "write one 'setting: value' a line"
_MOST_BYTES = 2**20
_DEEP = 8


class _PlainLoader(yaml.SafeLoader):
    """Plain values and lists of them: no aliases, which a few lines can multiply without end, and no deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias")
        self.depth += 1
        if self.depth > _DEEP:
            raise ValueError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path | None) -> dict[str, Any]:
    """Return the settings of a YAML file, or none. Raises ConfigError with file and line."""
    if path is None:
        return {}
    why = why_not_openable(path)
    if why is not None or path.is_dir():
        what, remedy = why or ("a folder, not a file of settings", "name the YAML file in it")
        raise ConfigError(what, where=path, remedy=remedy)
    try:
        with decoding(path, "not valid YAML", remedy=_AS):
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError("far larger than settings ever are", where=path, remedy=_AS)
            values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except InputError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        what = f"not valid YAML, line {mark.line + 1}" if mark else error.what
        raise ConfigError(what, where=path, remedy=error.remedy) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("not a list of settings", where=path, remedy="write one 'setting: value' a line")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def merge_config(config: type[Config], file_values: dict[str, Any], cli_values: dict[str, Any]) -> Config:
    """Merge defaults < file < command line. Raises ConfigError for an unknown key, naming the nearest one."""
    known = settings_of(config)
    renamed = {setting.former_name: name for name, (_, setting, _) in known.items() if setting.former_name}
    file_values = {renamed.get(key, key): value for key, value in file_values.items()}
    for key in file_values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigError(f"unknown setting {key!r}", remedy=f"did you mean {near[0]!r}?")
    plain = {key: None if known[key][1].auto and value == "auto" else value for key, value in file_values.items()}
    converted = {key: _converted(value, known[key][0], key) for key, value in plain.items()}
    return config(**{**converted, **cli_values})


def dump_yaml(config: Any) -> str:
    """Return every setting of *config* as YAML that ``read_yaml`` and ``merge_config`` take back."""
    plain = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _converted(value: Any, kind: Any, key: str) -> Any:
    """Return a YAML value as the field's type. Raises ConfigError."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    base = next(o for o in options if o is not type(None))
    if typing.get_origin(base) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_converted(item, typing.get_args(base)[0], key) for item in items)
    kinds: dict[Any, tuple[type, ...]] = {
        bool: (bool,),
        int: (int,),
        float: (int, float),
        str: (str, int, float),
        Path: (str,),
    }
    accepted = kinds[base]
    if not isinstance(value, accepted) or (isinstance(value, bool) and base is not bool):
        raise ConfigError(f"{key}: {value!r} is not a {base.__name__.lower()}")
    return base(value)
