"""The report for the chart: one or two A4 pages on the lesions of one patient, at one visit or over several."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metaseg_cli.core.results import FollowUp, LesionVisitRow, VisitRow
from metaseg_cli.reports import charts
from metaseg_cli.reports.lesion_colours import lesion_colour_code
from metaseg_cli.reports.pages import and_more, template

MOST_LESIONS = 10  # rows with pictures; two pages hold no more
_MOST_NOTES = 8
_HAND = ("Confirmed after 4 weeks", "Corticosteroids", "Clinical state")
_WARNING = (
    "The masks were made by a program or a person and have to be checked by a radiologist. RANO-BM also asks for "
    "clinical state, corticosteroids and confirmation."
)


@dataclass(frozen=True, kw_only=True)
class LesionCell:
    """One lesion at one visit: a picture (base64 of a PNG, or empty) and lines of text."""

    picture: str
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LesionLine:
    """A row of the table of lesions, with a cell for each visit."""

    number: int
    colour: str
    lines: tuple[str, ...]
    cells: tuple[LesionCell, ...]


@dataclass(frozen=True, kw_only=True)
class PatientReport:
    """What the template shows. ``category_column`` is the column of ``visit_rows`` printed large."""

    title: str
    facts: tuple[tuple[str, str], ...]
    visits_title: str
    visit_columns: tuple[str, ...]
    visit_rows: tuple[tuple[str, ...], ...]
    visit_names: tuple[str, ...]
    lesions: tuple[LesionLine, ...]
    lesion_count: int
    notes: tuple[str, ...]
    more: str = ""
    chart: str = ""
    hand: tuple[str, ...] = ()
    category_column: int = -1
    warning: str = _WARNING

    @property
    def picture_mm(self) -> int:
        """Return the size of a thumbnail on paper: smaller where many visits lie side by side."""
        return max(12, min(24, 150 // max(1, len(self.visit_names)) - 4))


def follow_up_page(follow_up: FollowUp, pictures: Mapping[tuple[int, int], bytes]) -> str:
    """Return the report of a follow-up as HTML; *pictures* are PNGs by lesion and visit (from 0)."""
    names = tuple(visit.visit for visit in follow_up.visits)
    numbers = _order(follow_up.lesions)
    shown = numbers[:MOST_LESIONS]
    report = PatientReport(
        title="Brain metastases: follow-up",
        facts=(
            ("Visits", ", ".join(f"{v.visit} ({v.date})" if v.date else v.visit for v in follow_up.visits)),
            ("Measured", follow_up.region),
            ("Masks", f"by the model {follow_up.model}" if follow_up.model else "as given"),
            ("Program", follow_up.program),
            ("Last category", f"{follow_up.visits[-1].category} (imaging only): {follow_up.visits[-1].reason}"),
        ),
        visits_title="RANO-BM, imaging only",
        visit_columns=("Visit", "Category", "Why", "Lesions", "Volume (ml)", "Sum of targets (mm)", "Change"),
        visit_rows=tuple(_visit_cells(visit) for visit in follow_up.visits),
        category_column=1,
        visit_names=names,
        lesions=tuple(_lesion(number, follow_up, pictures) for number in shown),
        lesion_count=len(numbers),
        more=and_more(len(numbers), len(shown), "follow_up.csv"),
        chart=base64_text(charts.diameters_over_visits(follow_up)),
        hand=_HAND,
        notes=_shortened(follow_up.notes),
    )
    return page(report)


def page(report: PatientReport) -> str:
    """Return *report* as HTML."""
    return template("patient_report.html.j2").render(report=report)


def _order(rows: Sequence[LesionVisitRow]) -> list[int]:
    """Return the numbers of the lesions: targets first, then by their largest diameter."""
    largest: dict[int, tuple[bool, float, int]] = {}
    for row in rows:
        before = largest.get(row.lesion, (True, 0.0, row.lesion))
        largest[row.lesion] = (not row.target, min(before[1], -row.longest_axial_mm), row.lesion)
    return sorted(largest, key=lambda number: largest[number])


def _visit_cells(visit: VisitRow) -> tuple[str, ...]:
    changes = (("from baseline", visit.from_baseline_percent), ("from smallest", visit.from_nadir_percent))
    why = [visit.reason, visit.remarks, f"equivocal: lesion {visit.uncertain}" if visit.uncertain else ""]
    return (
        f"{visit.visit} {visit.date}".strip(),
        visit.category,
        "; ".join(filter(None, why)),
        str(visit.lesions),
        f"{visit.volume_ml:.2f}",
        f"{visit.sum_of_diameters_mm:.1f}",
        ", ".join(f"{value:+.0f} % {name}" for name, value in changes if value is not None),
    )


def _lesion(number: int, follow_up: FollowUp, pictures: Mapping[tuple[int, int], bytes]) -> LesionLine:
    rows = {row.visit: row for row in follow_up.lesions if row.lesion == number}
    first = next(iter(rows.values()))
    cells = []
    for v, visit in enumerate(follow_up.visits):
        row = rows.get(visit.visit)
        picture = base64_text(pictures.get((number, v), b""))
        cells.append(LesionCell(picture=picture, lines=_lines(row, is_first=row is first)))
    return LesionLine(
        number=number,
        colour=lesion_colour_code(number),
        lines=(
            "target" if first.target else "non-target",
            f"x {first.x_mm:.0f}, y {first.y_mm:.0f},",
            f"z {first.z_mm:.0f} mm (LPS)",
        ),
        cells=tuple(cells),
    )


def _lines(row: LesionVisitRow | None, *, is_first: bool) -> tuple[str, ...]:
    if row is None:
        return ("not seen",)
    if not row.longest_axial_mm:
        return (row.state,)
    state = () if row.state == "there" else (row.state,)
    change = "" if row.from_first_percent is None or is_first else f" ({row.from_first_percent:+.0f} %)"
    size = f"{row.longest_axial_mm:.1f} × {row.perpendicular_mm:.1f} mm{change}"
    return (size, f"{row.volume_mm3 / 1000:.2f} ml", *state)


def _shortened(notes: Sequence[str]) -> tuple[str, ...]:
    """Return the first notes and the last one, which is the disclaimer."""
    if len(notes) <= _MOST_NOTES:
        return tuple(notes)
    return (*notes[: _MOST_NOTES - 2], f"… and {len(notes) - _MOST_NOTES + 1} more notes", notes[-1])


def base64_text(png: bytes) -> str:
    """Return *png* as a page embeds it."""
    return base64.b64encode(png).decode()
