"""Lesions over the visits of one patient: masks or scans in; tables, pictures and a report with RANO-BM out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.atomic import atomic_write_bytes, atomic_write_text
from metaseg_cli.core.follow_up import FollowUpResult, follow
from metaseg_cli.core.images import Volume, align, same_grid, write_mask
from metaseg_cli.core.images.dicom_sr import tracking_uid
from metaseg_cli.core.inference.visit_checks import check_alignment, check_patient, in_order
from metaseg_cli.core.inference.visit_lesions import VisitLesions, lesions_of
from metaseg_cli.core.inference.visit_masks import choose_region
from metaseg_cli.core.inference.visit_reports import ReportFiles, reportable, write_measurements
from metaseg_cli.core.inference.visits import Visit, VisitReader
from metaseg_cli.core.paths import file_name
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.rano_bm import Rules
from metaseg_cli.core.results import FOLLOW_UP_FILE, FollowUp
from metaseg_cli.errors import InputError, Problem, attempt
from metaseg_cli.outputs.documents import document_last
from metaseg_cli.outputs.follow_up import FollowedVisit, follow_up_document, write_follow_up_tables
from metaseg_cli.reports import charts, lesion_pictures, patient_report


@dataclass(frozen=True, kw_only=True)
class FollowUpReport:
    """The lesions over all visits, and the ``document`` that describes them."""

    result: FollowUpResult
    document: FollowUp


def follow_up(config: FollowUpConfig, progress: Progress) -> FollowUpReport:
    """Run ``metaseg follow-up``. Raises MetasegError: a result with a visit left out would be wrong."""
    if not config.overwrite and (config.out / FOLLOW_UP_FILE).exists():
        raise InputError("it holds a follow-up already", where=config.out, remedy="pass --overwrite, or another --out")
    reader = VisitReader(config, progress.within)
    visits, notes = _read(reader, config, progress)
    model = reader.used_model
    region, masks, said = choose_region(
        [visit.mask for visit in visits], config, None if model is None else model.card.regions
    )
    notes += said
    placed = _placed(visits, masks, config, notes)
    rules = Rules(count_non_targets=config.non_target == "count", immunotherapy=config.immunotherapy)
    result = follow([each.detections for each in placed], config.match_distance, rules)
    if not any(lesion.target for lesion in result.lesions):
        notes.append("no lesion is measurable at baseline (10 × 5 mm on two slices): there is no sum of diameters")
    reports = _reports(visits, masks, config, notes)
    followed = [_outputs(visit, config.out, reports.get(v)) for v, visit in enumerate(visits)]
    document = follow_up_document(
        config.out, followed, result, notes, region=region, model=None if model is None else model.path
    )
    with document_last(config.out / FOLLOW_UP_FILE, document):
        write_follow_up_tables(document)
        uids = {lesion.number: tracking_uid() for lesion in result.lesions} if reports else {}
        for v, (visit, mask) in enumerate(zip(visits, masks, strict=True)):
            if (path := followed[v].mask) is not None and visit.scan is not None:
                write_mask(path, mask.array[0], visit.scan)
            if v in reports:
                write_measurements(reports[v], visit, mask, result, v, uids, region)
            lesion_pictures.save_visit(followed[v].overlay, placed[v], result, v)
        atomic_write_bytes(config.out / "course.png", charts.diameters_over_visits(document))
        page = patient_report.follow_up_page(document, lesion_pictures.thumbnails(placed, result))
        atomic_write_text(config.out / "report.html", page)
    return FollowUpReport(result=result, document=document)


def _read(reader: VisitReader, config: FollowUpConfig, progress: Progress) -> tuple[list[Visit], list[str]]:
    """Return the visits in order of time, and notes. Raises InputError for the first that cannot be used."""
    names = reader.names()
    progress.start("reading", len(names), unit="visit")
    visits: list[Visit] = []
    for name, text in zip(names, config.visits, strict=True):
        visit = attempt(partial(reader.read, name, text), Path(text), config.out)
        if isinstance(visit, Problem):
            raise InputError(visit.reason, where=visit.file, remedy=visit.remedy)
        visits.append(visit)
        progress.advance(1, name)
    notes = check_patient(visits, config)
    ordered, said = in_order(visits, config)
    return ordered, [*notes, *said, *(f"{visit.name}: {note}" for visit in ordered for note in visit.notes)]


def _placed(
    visits: Sequence[Visit], masks: Sequence[Volume], config: FollowUpConfig, notes: list[str]
) -> list[VisitLesions]:
    """Return the lesions of each visit in the coordinates of the first one; *notes* receive how they were placed."""
    first = visits[0]
    placed = []
    for visit, mask in zip(visits, masks, strict=True):
        matrix = np.eye(4)
        if not same_grid(mask, masks[0]):
            if visit.scan is None or first.scan is None:
                how = ["on another grid than the first visit: placed by the coordinates in the files"]
            else:
                alignment = align(visit.scan, first.scan)
                matrix, how = alignment.matrix, check_alignment(visit, alignment, config)
            notes += [f"{visit.name}: {said}" for said in how]
        placed.append(lesions_of(mask, visit.scan, matrix))
    return placed


def _reports(
    visits: Sequence[Visit], masks: Sequence[Volume], config: FollowUpConfig, notes: list[str]
) -> dict[int, ReportFiles]:
    """Return where the Structured Report of each visit goes; *notes* receive which visits have none, and why."""
    if config.format != "sr":
        return {}
    reports = {}
    for v, (visit, mask) in enumerate(zip(visits, masks, strict=True)):
        name = _stem(visit)
        if why := reportable(visit, mask):
            notes.append(f"{visit.name}: {why}")
        else:
            reports[v] = ReportFiles(seg=config.out / f"{name}_seg.dcm", report=config.out / f"{name}_sr.dcm")
    return reports


def _stem(visit: Visit) -> str:
    return file_name(visit.name.replace("/", "_"))


def _outputs(visit: Visit, out: Path, report: ReportFiles | None) -> FollowedVisit:
    """Return what the tables say of *visit*, and where its mask, if one was made, and its picture go."""
    name = _stem(visit)
    return FollowedVisit(
        name=visit.name,
        date=visit.identity.date,
        mask=out / f"{name}_mask.nii.gz" if visit.made else None,
        overlay=out / f"{name}_overlay.png",
        structured_report=None if report is None else report.report,
    )
