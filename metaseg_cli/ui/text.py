"""Names and messages as text that a page can show."""

from __future__ import annotations

import re

from metaseg_cli.errors import printable


def plain(text: str) -> str:
    """Return *text* without Markdown: a name must not become a link or a picture, which a browser would fetch."""
    return re.sub(r"([\\`*_\[\]<>#~$]|:(?=[\w/]))", r"\\\1", printable(text))
