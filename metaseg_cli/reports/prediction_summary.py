"""What ``metaseg predict`` and ``metaseg follow-up`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.counts import counted
from metaseg_cli.core.results import (
    PREDICTIONS_FILE,
    UNLIKE_TRAINING,
    FollowUp,
    LesionRow,
    LesionVisitRow,
    Predictions,
    RegionTotal,
    ScanResult,
    VisitRow,
)
from metaseg_cli.errors import Problem
from metaseg_cli.reports.terminal import (
    MANY,
    SHOWN,
    escape,
    new_table,
    note_lines,
    number_text,
    problem_tables,
    rest_lines,
)


def lesion_table(rows: Sequence[LesionRow]) -> Table:
    """Lesions of one scan."""
    unit, place = ("px", "px") if rows[0].diameter_mm is None else ("mm", "voxel")
    centre = (f">{axis} ({place})" for axis in "xyz")
    table = new_table("", ">lesion", "region", f">diameter ({unit})", ">voxels", *centre, ">confidence")
    for row in rows[:SHOWN]:
        table.add_row(
            str(row.lesion),
            escape(row.region),
            number_text(row.diameter_px if row.diameter_mm is None else row.diameter_mm, 1),
            str(row.voxels),
            *(number_text(value, 0) for value in (row.x, row.y, row.z)),
            number_text(row.confidence, 2),
        )
    return table


def _region_table(totals: Mapping[str, RegionTotal], index_region: str) -> Table:
    """Each region of a scan by itself."""
    table = new_table("By region (they may lie in one another)", "region", ">lesions", ">volume (ml)", ">voxels")
    for region, total in totals.items():
        name = f"{region} (counted)" if region == index_region else region
        table.add_row(escape(name), str(total.lesions), number_text(total.volume_ml, 2), str(total.voxels))
    return table


def predict_summary(predictions: Predictions, problems: Sequence[Problem]) -> list[RenderableType]:
    """What ``metaseg predict`` prints: one scan with its lesions, or a batch as one table."""
    scans = predictions.scans
    parts: list[RenderableType] = []
    if len(scans) == 1:
        parts += _scan_summary(scans[0], predictions)
    elif scans:
        index = predictions.index_region
        of_index = f" of {index}" if len(predictions.regions) > 1 else ""
        table = new_table(counted(len(scans), "scan"), "scan", f">lesions{of_index}", f">voxels{of_index}", "mask")
        for scan in scans[:MANY]:
            mine = [lesion for lesion in scan.lesions if lesion.region == index]
            voxels = sum(lesion.voxels for lesion in mine)
            table.add_row(escape(scan.scan), str(len(mine)), str(voxels), escape(scan.mask))
        warned = [(scan, note) for scan in scans for note in scan.notes if note.startswith(UNLIKE_TRAINING)]
        parts += [table, *rest_lines(len(scans), MANY, PREDICTIONS_FILE)]
        parts += [f"[yellow]! {escape(scan.scan)}: {escape(note)}[/yellow]" for scan, note in warned[:MANY]]
        parts += [f"… and {len(warned) - MANY} more"] if len(warned) > MANY else []
        parts += ["", f"All results: {escape(predictions.out)}"]
    return [*parts, *problem_tables(problems)]


def _note_line(note: str) -> str:
    if note.startswith(UNLIKE_TRAINING):
        return f"[yellow]! {escape(note)}[/yellow]"
    return f"[dim]· {escape(note)}[/dim]"


def _scan_summary(scan: ScanResult, predictions: Predictions) -> list[RenderableType]:
    index, several = predictions.index_region, len(predictions.regions) > 1
    rows = [row for row in scan.lesions if row.region == index]
    threshold = predictions.postprocessing[index].threshold
    found = counted(len(rows), "lesion") if rows else "no lesion found"
    if several:
        found += f" of {escape(index)}" if rows else f" in {escape(index)}"
    regions: list[RenderableType] = ["", _region_table(scan.totals, index)] if several else []
    return [
        f"[bold]{escape(scan.scan)}[/bold]: {found} ({predictions.operating_point}, threshold {threshold:.2f})",
        *([lesion_table(rows)] if rows else []),
        *rest_lines(len(rows), SHOWN, "lesions.csv"),
        *regions,
        *(_note_line(note) for note in scan.notes),
        "",
        f"mask     {escape(scan.mask)}",
        *([f"overlay  {escape(scan.overlay)}"] if scan.overlay else []),
    ]


def follow_up_summary(follow_up: FollowUp) -> list[RenderableType]:
    """What ``metaseg follow-up`` prints: each lesion's diameter at each visit, then each visit."""
    names = [visit.visit for visit in follow_up.visits]
    lengths = new_table("Longest axial diameter (mm)", "lesion", *(f">{escape(name)}" for name in names))
    numbers = list(dict.fromkeys(row.lesion for row in follow_up.lesions))
    for number in numbers[:MANY]:
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
        *rest_lines(len(numbers), MANY, "follow_up.csv"),
        "",
        _visit_table(follow_up.visits),
        *remarks,
        *note_lines(follow_up.notes),
        "",
        f"All results: {escape(follow_up.out)}; open report.html there",
    ]


def _visit_table(visits: Sequence[VisitRow]) -> Table:
    table = new_table(
        "RANO-BM, imaging only",
        "visit",
        ">lesions",
        ">sum (mm)",
        ">from baseline",
        ">from smallest",
        *("category", "why"),
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
