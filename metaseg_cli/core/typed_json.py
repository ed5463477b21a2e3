"""JSON documents of our own: written from dataclasses, and read back with their types checked.

A damaged document is refused as a whole. A field is a key of its name, unless its metadata says otherwise:
``stored_as("key")`` gives the key another name, ``OMIT_NONE`` leaves the key out where the value is None.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from metaseg_cli.core.paths import check_openable
from metaseg_cli.errors import InputError, decoding, printable

Kind = TypeVar("Kind")
JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
_MOST_BYTES = 512 * 2**20
_KEY, _OMIT_NONE = "json_key", "json_omit_none"
OMIT_NONE: Mapping[str, object] = {_OMIT_NONE: True}


def stored_as(key: str) -> Mapping[str, object]:
    """Return field metadata that gives a field another JSON key than its name."""
    return {_KEY: key}


def as_json(value: object) -> JsonValue:
    """Return dataclasses, mappings, sequences, paths and numpy scalars as JSON values; NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {
            _key_of(f): as_json(item) for f, item in fields if not (item is None and f.metadata.get(_OMIT_NONE, False))
        }
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    scalar: object = getattr(value, "item")()  # noqa: B009  of numpy, which this module does not load
    return as_json(scalar)


def json_text(value: object) -> str:
    """Return *value* as an indented JSON document."""
    return json.dumps(as_json(value), indent=1, allow_nan=False)


def _key_of(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get(_KEY, field.name))


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Return the JSON object in *path*. Raises InputError when it is missing, too large, damaged, or not an object."""
    check_openable(path)
    with decoding(path, "not valid JSON", remedy=remedy):
        if path.stat().st_size > _MOST_BYTES:
            raise InputError("far larger than such a file ever is", where=path, remedy=remedy)
        values = parsed(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise InputError("not a JSON object", where=path, remedy=remedy)
    return values


def parsed(text: str) -> Any:
    """Parse *text*. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def build(kind: type[Kind], value: Any, name: str = "") -> Kind:
    """Build *kind*, a dataclass or the type of a field, from a JSON *value*. Raises ValueError that says where."""
    result: Kind = _build(kind, value, name)
    return result


def _build(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        options = [o for o in typing.get_args(kind) if o is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        return _build(options[0], value, name)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(name, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(name, value, "a table")
        return {_key(arguments[0], k, name): _build(arguments[1], v, f"{name}.{k}") for k, v in value.items()}
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, name)
    return _plain(kind, value, name)


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(name, value, "a table")
    hints = _hints(kind)
    known = {_key_of(f): f for f in dataclasses.fields(kind) if f.init}
    missing = [
        key
        for key, f in known.items()
        if key not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{name or 'it'} has no {missing[0]}")
    return kind(
        **{
            known[key].name: _build(hints[known[key].name], item, f"{name}.{key}" if name else key)
            for key, item in value.items()
            if key in known
        }
    )


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    # Python compiles every annotation at each call, and an index holds hundreds of cases of one class.
    return typing.get_type_hints(kind)


def _key(kind: Any, key: str, name: str) -> Any:
    if kind is not int:
        return key
    if not key.lstrip("-").isdecimal() or len(key) > 18:
        raise _wrong(name, key, "a whole number")
    return int(key)


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, name: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(name, value, "a list")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(name, value, f"a list of {len(arguments)}")
        return tuple(_build(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(arguments, value, strict=True)))
    return origin(_build(arguments[0], v, f"{name}[{i}]") for i, v in enumerate(value))


def _plain(kind: Any, value: Any, name: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if not math.isfinite(number):
            raise _wrong(name, value, "a number")
        return number
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise _wrong(name, value, words.get(kind, kind.__name__))
    return value


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{printable(name) or 'it'} is not {wanted}: {printable(value)[:40]}")
