"""Tables as CSV, written and read in one place: a cell never becomes a formula in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from metaseg_cli.errors import printable

_FORMULA = ("=", "+", "-", "@")  # tab and carriage return are escaped before
_QUOTE = "'"  # in front of a cell it makes a spreadsheet take what follows as text


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return *rows* below a header of *columns*; texts are in one line and harmless to spreadsheets (CWE-1236)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def safe_cell(value: object) -> object:
    """Escape control characters, and put a quote before a text that a spreadsheet would run. Numbers stay numbers."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return _QUOTE + shown if _is_formula(shown.lstrip(_QUOTE)) else shown


def plain_cell(text: str) -> str:
    """Invert ``safe_cell`` for a table that was written with it."""
    return text[1:] if text.startswith(_QUOTE) and _is_formula(text.lstrip(_QUOTE)) else text


def _is_formula(text: str) -> bool:
    return text.lstrip(" ").startswith(_FORMULA)
