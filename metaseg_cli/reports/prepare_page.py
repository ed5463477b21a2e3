"""The report of ``metaseg prepare``: a contact sheet and a page on what was read and what was not."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.datasets import FoundCases
from metaseg_cli.core.images import spacing_text
from metaseg_cli.errors import Problem
from metaseg_cli.reports import figures
from metaseg_cli.reports.pages import template

_TILES = 40  # cases on the contact sheet, spread over the folder


def write_prepare_page(
    prepared: Prepared, found: FoundCases, problems: Sequence[Problem], notes: Sequence[str]
) -> None:
    """Write ``contact_sheet.png`` and ``report.html`` into the prepared folder."""
    sheet = prepared.folder / "contact_sheet.png"
    figures.save_contact_sheet(sheet, [_tile(prepared, record) for record in _spread(prepared.cases)])
    render_prepare_page(
        prepared.folder / "report.html",
        title=f"Prepared: {prepared.folder.resolve().name}",
        facts=_facts(prepared, found),
        notes=list(notes),
        problems=problems,
        cases=[_row(record) for record in prepared.cases],
        pictures=[sheet],
    )


def render_prepare_page(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    problems: Sequence[Problem],
    cases: Sequence[dict[str, str]],
    pictures: Sequence[Path],
) -> None:
    """Write the page to *path*: *cases* are table rows by column, *pictures* PNG files that it will contain."""
    text = template("prepare.html.j2").render(
        title=title,
        facts=facts,
        notes=notes,
        problems=problems,
        cases=cases,
        columns=list(cases[0]) if cases else [],
        pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
    )
    atomic_write_text(path, text)


def _spread(records: Sequence[CaseRecord]) -> list[CaseRecord]:
    chosen = np.unique(np.linspace(0, len(records) - 1, min(_TILES, len(records))).astype(int))
    return [records[i] for i in chosen]


def _tile(prepared: Prepared, record: CaseRecord) -> tuple[str, np.ndarray, np.ndarray]:
    """Return title, image ``(C, Y, X)`` and mask ``(Y, X)`` of the slice with most lesion, or of the middle one."""
    label = prepared.label(record)
    z = int(label.reshape(len(label), -1).astype(bool).sum(axis=1).argmax()) if label.any() else len(label) // 2
    image = prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))[:, 0].astype(np.float32)
    title = record.case if len(label) == 1 else f"{record.case} · {z + 1}/{len(label)}"
    return title, prepared.shown(record, image), label[z] > 0


def _facts(prepared: Prepared, found: FoundCases) -> list[tuple[str, str]]:
    regions = (f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in prepared.regions.items())
    facts = [
        *((name, str(prepared.fingerprint[name])) for name in ("cases", "patients", "slices", "lesions")),
        ("layout", f"{found.layout}: {found.why}"),
        ("sequences", ", ".join(prepared.sequences)),
        ("regions", ", ".join(regions)),
        ("folds", str(prepared.folds)),
    ]
    if prepared.kind == "volumes":
        spacing = prepared.preprocessing.spacing_mm
        facts.append(("voxel size", f"{spacing_text(spacing)} mm" if spacing else "every case's own"))
    return facts


def _row(record: CaseRecord) -> dict[str, str]:
    return {
        "case": record.case,
        "patient": record.patient,
        "size": "×".join(map(str, reversed(record.shape))),
        "spacing (mm)": spacing_text(record.spacing_mm) if record.spacing_mm else "unknown",
        "sequences": ", ".join(record.sequences),
        "lesions": str(len(record.lesion_voxels)) if record.labelled else "no mask",
        "fold": "–" if record.fold is None else str(record.fold),
        "split": record.split or "",
    }
