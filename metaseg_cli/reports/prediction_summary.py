"""What ``metaseg predict`` and ``metaseg follow-up`` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.results import FollowUp, LesionRow, LesionVisitRow, Predictions, ScanResult, VisitRow
from metaseg_cli.errors import Problem
from metaseg_cli.reports.terminal import (
    MANY,
    SHOWN,
    counted,
    escape,
    new_table,
    note_lines,
    number_text,
    problem_tables,
)


def lesion_table(rows: Sequence[LesionRow]) -> Table:
    """Lesions of one scan."""
    unit = "px" if rows[0].diameter_mm is None else "mm"
    table = new_table("", ">lesion", "region", f">diameter ({unit})", ">voxels", ">z", ">y", ">x", ">confidence")
    for row in rows[:SHOWN]:
        table.add_row(
            str(row.lesion),
            escape(row.region),
            number_text(row.diameter_px if row.diameter_mm is None else row.diameter_mm, 1),
            str(row.voxels),
            *(number_text(value, 0) for value in (row.z, row.y, row.x)),
            number_text(row.confidence, 2),
        )
    return table


def predict_summary(predictions: Predictions, problems: Sequence[Problem]) -> list[RenderableType]:
    """What ``metaseg predict`` prints: one scan with its lesions, or a batch as one table."""
    scans = predictions.scans
    parts: list[RenderableType] = []
    if len(scans) == 1:
        parts += _scan_summary(scans[0], predictions.threshold)
    elif scans:
        table = new_table(f"{len(scans)} scans", "scan", ">lesions", ">voxels", "mask")
        for scan in scans[:MANY]:
            voxels = sum(lesion.voxels for lesion in scan.lesions)
            table.add_row(escape(scan.scan), str(len(scan.lesions)), str(voxels), escape(scan.mask))
        parts += [table, *([f"… and {len(scans) - MANY} more"] if len(scans) > MANY else [])]
        parts += ["", f"All results: {escape(predictions.out)}"]
    return [*parts, *problem_tables(problems)]


def _scan_summary(scan: ScanResult, threshold: float) -> list[RenderableType]:
    count = len(scan.lesions)
    found = counted(count, "lesion") if count else "no lesion found"
    return [
        f"[bold]{escape(scan.scan)}[/bold]: {found} (threshold {threshold:.2f})",
        *([lesion_table(scan.lesions)] if count else []),
        *(f"[dim]· {escape(note)}[/dim]" for note in scan.notes),
        "",
        f"mask     {escape(scan.mask)}",
        *([f"overlay  {escape(scan.overlay)}"] if scan.overlay else []),
    ]


def follow_up_summary(follow_up: FollowUp) -> list[RenderableType]:
    """What ``metaseg follow-up`` prints: each lesion's diameter at each visit, then each visit."""
    names = [visit.visit for visit in follow_up.visits]
    lengths = new_table("Longest axial diameter (mm)", "lesion", *(f">{escape(name)}" for name in names))
    for number in dict.fromkeys(row.lesion for row in follow_up.lesions):
        mine = {row.visit: row for row in follow_up.lesions if row.lesion == number}
        target = any(row.target for row in mine.values())
        cells = (_at_visit(mine[name]) if name in mine else "" for name in names)
        lengths.add_row(f"{number}{' target' if target else ''}", *cells)
    remarks = [
        f"[dim]· {escape(visit.visit)}: lesion {visit.uncertain} is equivocal: new, but on one slice only; "
        "not counted[/dim]"
        for visit in follow_up.visits
        if visit.uncertain
    ]
    remarks += [f"[dim]· {escape(visit.visit)}: {visit.remarks}[/dim]" for visit in follow_up.visits if visit.remarks]
    return [
        lengths if follow_up.lesions else "no lesion at any visit",
        "",
        _visit_table(follow_up.visits),
        *remarks,
        *note_lines(follow_up.notes),
        "",
        f"All results: {escape(follow_up.out)}; look at course.png there",
    ]


def _visit_table(visits: Sequence[VisitRow]) -> Table:
    table = new_table(
        "RANO-BM, imaging only", "visit", ">lesions", ">sum (mm)", ">baseline", ">smallest", "category", "why"
    )
    for visit in visits:
        changes = ("" if v is None else f"{v:+.0f} %" for v in (visit.from_baseline_percent, visit.from_nadir_percent))
        table.add_row(
            escape(visit.visit),
            str(visit.lesions),
            number_text(visit.sum_of_diameters_mm, 1),
            *changes,
            f"[bold]{visit.category}[/bold]",
            visit.reason,
        )
    return table


def _at_visit(row: LesionVisitRow) -> str:
    if row.state == "there":
        return f"{row.longest_axial_mm:.1f}"
    return row.state if not row.longest_axial_mm else f"{row.longest_axial_mm:.1f} ({row.state})"
