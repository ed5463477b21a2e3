"""How the terminal shows results: plain Rich tables, and lists of problems and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import markup
from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.counts import counted
from metaseg_cli.errors import Problem, printable
from metaseg_cli.reports.pages import and_more

SHOWN = 12  # rows of a table that is followed by others
MANY = 40  # rows of a table that is alone


def escape(text: object) -> str:
    """Return *text* without markup of Rich's, and without control characters, which a file name may hold."""
    return markup.escape(printable(text))


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table; columns whose names begin with > are right-aligned."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def facts_table(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def number_text(value: float | None, digits: int = 3) -> str:
    """Return *value* with *digits* decimals, a whole number unchanged, and a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def interval_text(low: float, high: float) -> str:
    """Return both ends, or why there is no interval."""
    return f"{low:.3f} – {high:.3f}" if math.isfinite(low) else "one patient"


def rest_lines(total: int, shown: int, where: str = "") -> list[RenderableType]:
    """Return the line below a table that shows *shown* of *total* rows; none when it shows all."""
    return [text] if (text := and_more(total, shown, where)) else []


def note_lines(notes: Sequence[str]) -> list[RenderableType]:
    """Return one dim line per note."""
    return [f"[dim]· {escape(note)}[/dim]" for note in notes]


def problem_tables(problems: Sequence[Problem]) -> list[RenderableType]:
    """Return a table of what was left out and one of what is doubtful, each with reason and remedy."""
    left_out = [p for p in problems if p.left_out]
    doubtful = [p for p in problems if not p.left_out]
    return [
        *_problem_table(left_out, f"[red]{counted(len(left_out), 'problem')}[/red]"),
        *_problem_table(doubtful, f"[yellow]{counted(len(doubtful), 'thing')} to look at[/yellow]"),
    ]


def _problem_table(problems: Sequence[Problem], title: str) -> list[RenderableType]:
    if not problems:
        return []
    table = new_table(title, "file", "reason", "what to do")
    for problem in problems[:SHOWN]:
        table.add_row(escape(problem.file), escape(problem.reason), escape(problem.remedy))
    return ["", table, *rest_lines(len(problems), SHOWN)]
