"""The report of ``metaseg prepare``: a contact sheet and a page on what was read and what was not."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.datasets import FoundCases
from metaseg_cli.core.images import spacing_text
from metaseg_cli.core.regions import index_region, lesion_definition
from metaseg_cli.errors import Problem
from metaseg_cli.reports import figures
from metaseg_cli.reports.pages import template
from metaseg_cli.reports.region_colours import region_colours

_TILES = 40  # cases on the contact sheet, spread over the folder


def write_prepare_page(
    prepared: Prepared, found: FoundCases, problems: Sequence[Problem], notes: Sequence[str]
) -> None:
    """Write ``contact_sheet.png`` and ``report.html`` into the prepared folder."""
    sheet = prepared.folder / "contact_sheet.png"
    colours = region_colours(list(prepared.regions), index_region(prepared.regions))
    figures.save_contact_sheet(sheet, [_tile(prepared, record) for record in _spread(prepared.cases)], colours)
    render_prepare_page(
        prepared.folder / "report.html",
        title=f"Prepared: {prepared.folder.resolve().name}",
        facts=_facts(prepared, found),
        notes=list(notes),
        problems=problems,
        cases=[_row(record, prepared.regions) for record in prepared.cases],
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


def _tile(prepared: Prepared, record: CaseRecord) -> tuple[str, np.ndarray, list[np.ndarray]]:
    """Return title, image ``(C, Y, X)`` and masks ``(Y, X)`` by region, of the slice with most lesion or the middle."""
    label = prepared.label(record)
    z = int(label.reshape(len(label), -1).astype(bool).sum(axis=1).argmax()) if label.any() else len(label) // 2
    image = prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))[:, 0].astype(np.float32)
    title = record.case if len(label) == 1 else f"{record.case} · {z + 1}/{len(label)}"
    return title, prepared.shown(record, image), list(region_masks(label[z], prepared.regions))


def _facts(prepared: Prepared, found: FoundCases) -> list[tuple[str, str]]:
    regions = (f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in prepared.regions.items())
    facts = [
        *((name, str(prepared.fingerprint[name])) for name in ("cases", "patients", "slices")),
        (f"lesions ({lesion_definition(prepared.regions)})", str(prepared.fingerprint["lesions"])),
        ("layout", f"{found.layout}: {found.why}"),
        ("sequences", ", ".join(prepared.sequences)),
        ("regions", ", ".join(regions)),
        ("folds", str(prepared.folds)),
    ]
    if prepared.kind == "volumes":
        spacing = prepared.preprocessing.spacing_mm
        facts.append(("voxel size", f"{spacing_text(spacing)} mm" if spacing else "every case's own"))
    return facts


def _row(record: CaseRecord, regions: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    return {
        "case": record.case,
        "patient": record.patient,
        "size (x × y × z)": "×".join(map(str, reversed(record.shape))),
        "voxel size (mm, x × y × z)": spacing_text(record.spacing_mm) if record.spacing_mm else "unknown",
        "sequences": ", ".join(record.sequences),
        "lesions": str(len(record.lesion_voxels)) if record.labelled else "no mask",
        **_volumes(record, regions),
        "fold": "–" if record.fold is None else str(record.fold),
        "split": record.split or "",
    }


def _volumes(record: CaseRecord, regions: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the volume of each region, in ml, or in pixels where there is no spacing."""
    unit = "ml" if record.spacing_mm else "px"
    cells = {}
    for region in regions:
        voxels = record.region_voxels.get(region)
        value = "–" if voxels is None or not record.labelled else str(voxels)
        if voxels is not None and record.labelled and record.spacing_mm:
            value = f"{voxels * float(np.prod(record.spacing_mm)) / 1000:.2f}"
        cells[f"{region} ({unit})"] = value
    return cells
