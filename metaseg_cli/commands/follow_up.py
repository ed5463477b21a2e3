"""Lesions over the visits of one patient: masks or scans in, a table, a picture and RANO-BM's categories out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.atomic import atomic_write_bytes
from metaseg_cli.core.follow_up import FollowUpResult, follow
from metaseg_cli.core.inference.visits import Visit, load_visit, place_in_first, visit_names
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.rano_bm import Rules
from metaseg_cli.core.results import FOLLOW_UP_FILE, FollowUp
from metaseg_cli.errors import InputError, Problem, attempt
from metaseg_cli.outputs.documents import document_last
from metaseg_cli.outputs.follow_up import follow_up_document, write_follow_up_tables
from metaseg_cli.reports import charts


@dataclass(frozen=True, kw_only=True)
class FollowUpReport:
    """The lesions over all visits, and the ``document`` that describes them."""

    result: FollowUpResult
    document: FollowUp


def follow_up(config: FollowUpConfig, progress: Progress) -> FollowUpReport:
    """Run ``metaseg follow-up``. Raises MetasegError: a result with a visit left out would be wrong."""
    if not config.overwrite and (config.out / FOLLOW_UP_FILE).exists():
        raise InputError("it holds a follow-up already", where=config.out, remedy="pass --overwrite, or another --out")
    names = visit_names(config.visits)
    progress.start("visits", len(names))
    first: Visit | None = None
    notes: list[str] = []
    detections = []
    for name, path in zip(names, config.visits, strict=True):
        visit = attempt(partial(load_visit, Path(path), config), Path(path), config.out)
        if isinstance(visit, Problem):
            raise InputError(visit.reason, where=visit.file, remedy=visit.remedy)
        first = first or visit
        found, how = place_in_first(visit, first)
        detections.append(found)
        notes += [f"{name}: {note}" for note in (*visit.mask.notes, *how)]
        progress.advance(1, name)
    rules = Rules(count_non_targets=config.non_target == "count", immunotherapy=config.immunotherapy)
    result = follow(detections, config.match_distance, rules)
    if not any(lesion.target for lesion in result.lesions):
        notes.append("no lesion is measurable at baseline (10 × 5 mm on two slices): there is no sum of diameters")
    document = follow_up_document(config.out, names, result, notes)
    with document_last(config.out / FOLLOW_UP_FILE, document):
        write_follow_up_tables(document)
        atomic_write_bytes(config.out / "course.png", charts.diameters_over_visits(names, result))
    return FollowUpReport(result=result, document=document)
