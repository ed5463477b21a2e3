"""What all result files have in common: JSON documents and CSV tables from dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from metaseg_cli.core.atomic import atomic_write_text, make_folder, translate_write_errors
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.typed_json import json_text

Row = TypeVar("Row")
Cell = None | bool | int | float | str


def write_document(path: Path, document: object) -> None:
    """Write *document*, a dataclass of ``core.results``, as JSON; the file appears complete or not at all."""
    atomic_write_text(path, json_text(document))


@contextmanager
def document_last(path: Path, document: object) -> Iterator[None]:
    """Write the other files of a result inside this block, and *document* after them.

    An older document is removed first: where a document exists, all files beside it are of the same call.
    """
    make_folder(path.parent)
    with translate_write_errors(path):
        path.unlink(missing_ok=True)
    yield
    write_document(path, document)


def columns(kind: type[object]) -> tuple[str, ...]:
    """Return the CSV columns of a row class."""
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is not a dataclass")
    return tuple(f.name for f in dataclasses.fields(kind))


def cells(row: object) -> dict[str, Cell]:
    """Return the values of a row by column."""
    return {name: _cell(getattr(row, name)) for name in columns(type(row))}


def write_table(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write *rows* as CSV with the fields of *kind* as columns, also when there is no row."""
    atomic_write_text(path, table_text(kind, rows))


def table_text(kind: type[Row], rows: Sequence[Row]) -> str:
    """Return the CSV that ``write_table`` writes."""
    return csv_text([cells(row) for row in rows], columns(kind))


def _cell(value: object) -> Cell:
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} does not fit into a CSV cell")
