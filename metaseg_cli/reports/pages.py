"""Self-contained HTML pages; whatever comes from a file's name is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from metaseg_cli.core.whole_file import write_text_whole


def write_prepare_report(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    problems: Sequence[tuple[str, str, str, bool]],
    cases: Sequence[dict[str, str]],
    pictures: Sequence[Path],
) -> None:
    """Write the report of ``metaseg prepare``: *problems* are (file, reason, remedy, left out), *cases* table rows."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("metaseg_cli", "reports"), autoescape=True)
    text = environment.get_template("prepare.html.j2").render(
        title=title,
        facts=facts,
        notes=notes,
        problems=problems,
        cases=cases,
        columns=list(cases[0]) if cases else [],
        pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
    )
    write_text_whole(path, text)
