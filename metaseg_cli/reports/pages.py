"""What the HTML pages have in common: templates that escape every text, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metaseg_cli.errors import printable

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """Return the Jinja template *name*, which escapes whatever goes into it."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("metaseg_cli", "reports"), autoescape=True, finalize=_shown).get_template(
        name
    )


def _shown(value: object) -> object:
    """Escape control characters, which a file name may hold."""
    return printable(value) if type(value) is str else value


def number(value: float | None, digits: int = 3) -> str:
    """Return *value* as text, or a dash where there is none."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def interval(ends: Sequence[float]) -> str:
    """Return both *ends*, or a dash."""
    return f"{ends[0]:.3f} – {ends[1]:.3f}" if all(map(math.isfinite, ends)) else "–"


def and_more(total: int, shown: int, where: str = "") -> str:
    """Return how many of *total* rows are not *shown*, and the file *where* they are; nothing when all are."""
    if total <= shown:
        return ""
    return f"… and {total - shown} more" + (f": {where} lists all" if where else "")


def p_value(p: float) -> str:
    """Return *p* as papers print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
