"""The tables of ``metaseg follow-up``: ``follow_up.json``, ``follow_up.csv`` and ``visits.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.follow_up import FollowUpResult
from metaseg_cli.core.lesion_tracking import FollowedLesion
from metaseg_cli.core.rano_bm import change_percent
from metaseg_cli.core.results import FollowUp, LesionVisitRow, VisitRow
from metaseg_cli.outputs.documents import write_table

DISCLAIMER = (
    "Categories by imaging only, from diameters of masks that a program or a person made: not a medical device, and no "
    "assessment of a patient. Clinical state, corticosteroids and confirmation after four weeks are added by hand."
)


@dataclass(frozen=True, kw_only=True)
class FollowedVisit:
    """A visit's name and date (empty if unknown), and the files that are written of it."""

    name: str
    date: str
    mask: Path | None
    overlay: Path
    structured_report: Path | None = None


def follow_up_document(
    out: Path,
    visits: Sequence[FollowedVisit],
    result: FollowUpResult,
    notes: Sequence[str],
    *,
    region: str,
    model: Path | None,
) -> FollowUp:
    """Return the lesions over the *visits* as ``follow_up.json`` has them."""
    names = [visit.name for visit in visits]
    return FollowUp(
        out=out,
        visits=tuple(_visits(visits, result)),
        lesions=tuple(row for lesion in result.lesions for row in _visits_of(lesion, names)),
        notes=(*notes, DISCLAIMER),
        region=region,
        model=model,
    )


def write_follow_up_tables(document: FollowUp) -> None:
    """Write ``follow_up.csv`` and ``visits.csv`` into the output folder."""
    write_table(document.out / "follow_up.csv", LesionVisitRow, document.lesions)
    write_table(document.out / "visits.csv", VisitRow, document.visits)


def _visits(visits: Sequence[FollowedVisit], result: FollowUpResult) -> Iterator[VisitRow]:
    for v, (visit, assessment) in enumerate(zip(visits, result.visits, strict=True)):
        yield VisitRow(
            visit=visit.name,
            lesions=sum(len(lesion.at_visits[v].parts) for lesion in result.lesions),
            volume_ml=round(sum(lesion.at_visits[v].volume_mm3 for lesion in result.lesions) / 1000, 4),
            sum_of_diameters_mm=round(assessment.sum_mm, 2),
            from_baseline_percent=_rounded(assessment.from_baseline),
            from_nadir_percent=_rounded(assessment.from_nadir),
            category=assessment.category,
            reason=assessment.reason,
            new=" ".join(map(str, assessment.new)),
            uncertain=" ".join(map(str, assessment.uncertain)),
            remarks="; ".join(assessment.remarks),
            date=visit.date,
            mask=visit.mask,
            overlay=visit.overlay,
            structured_report=visit.structured_report,
        )


def _visits_of(lesion: FollowedLesion, names: Sequence[str]) -> Iterator[LesionVisitRow]:
    lengths = [at_visit.longest_mm for at_visit in lesion.at_visits]
    x, y, z = lesion.centre_mm
    for v in range(lesion.first, len(names)):
        at_visit, earlier = lesion.at_visits[v], lengths[lesion.first : v] or [lengths[v]]
        yield LesionVisitRow(
            lesion=lesion.number,
            visit=names[v],
            state=lesion.state(v),
            target=lesion.target,
            longest_axial_mm=round(at_visit.longest_mm, 2),
            perpendicular_mm=round(at_visit.perpendicular_mm, 2),
            volume_mm3=round(at_visit.volume_mm3, 2),
            from_first_percent=_rounded(change_percent(lengths[v], lengths[lesion.first])),
            from_nadir_percent=_rounded(change_percent(lengths[v], min(earlier))),
            x_mm=round(x, 1),
            y_mm=round(y, 1),
            z_mm=round(z, 1),
        )


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 1)
