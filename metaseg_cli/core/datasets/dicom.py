"""DICOM folders, however named: patients, visits and series come from the headers; masks are SEG, RTSTRUCT or files."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.names import image_files, mask_key, stem, suffix
from metaseg_cli.core.datasets.sequence_names import from_description, in_order, sequence_name
from metaseg_cli.errors import Problem

_TAGS = [
    "Modality", "PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber",
    "Rows", "ImageType", "ContrastBolusAgent", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence",
]  # fmt: skip
_NO_DICOM = {".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".html", ".pdf", ".py", ".zip", ".gz", ".xlsx", ".log"}
_LOCALISER = re.compile(r"local|scout|survey|3.?plane", re.IGNORECASE)


@dataclass
class _Series:
    uid: str
    description: str
    sequence: str | None
    files: list[Path] = field(default_factory=list)


@dataclass
class _Visit:
    """One study of one patient."""

    patient: str
    date: str
    folder: Path
    series: dict[str, _Series] = field(default_factory=dict)
    masks: list[tuple[Path, str, set[str]]] = field(default_factory=list)  # file, modality, series it refers to


def looks_like(root: Path) -> str | None:
    """Why *root* is laid out so, or None."""
    found = next((p for p in islice(_candidates(root), 200) if _header(p) is not None), None)
    return f"it holds DICOM files such as {found.name}" if found else None


def find(root: Path) -> FoundCases:
    """One case for each study; its sequences are named after the series' descriptions."""
    visits, problems = _visits(root)
    notes: list[str] = []
    patients = {v.patient for v in visits.values()}
    tops = {_top(v.folder, root) for v in visits.values()}
    if len(patients) == 1 and len(tops) > 1 and len(visits) > 1:
        notes.append(f"every file names the same patient ({next(iter(patients))!r}): each folder counts as one")
        for visit in visits.values():
            visit.patient = _top(visit.folder, root)
    per_patient: dict[str, list[_Visit]] = defaultdict(list)
    for visit in visits.values():
        per_patient[visit.patient].append(visit)
    cases: list[CaseSource] = []
    for patient, own in sorted(per_patient.items()):
        for number, visit in enumerate(sorted(own, key=lambda v: v.date), start=1):
            name = patient if len(own) == 1 else f"{patient}_{visit.date or number}"
            if any(c.case == name for c in cases):
                name = f"{name}_{number}"
            case = _case(name, visit, problems, notes)
            if case is not None:
                cases.append(case)
    cases = _evenly_named(cases)
    return FoundCases(layout="dicom", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _candidates(root: Path) -> Any:
    for path in sorted(root.rglob("*")):
        passed_over = path.name == "DICOMDIR" or any(part.startswith(".") for part in path.relative_to(root).parts)
        if not passed_over and not suffix(path) and path.suffix.lower() not in _NO_DICOM and path.is_file():
            yield path


def _header(path: Path) -> Any:
    """The header of a DICOM file; None for any other file."""
    import pydicom

    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError, TypeError):
        return None
    return found if "SeriesInstanceUID" in found else None


def _visits(root: Path) -> tuple[dict[str, _Visit], list[Problem]]:
    visits: dict[str, _Visit] = {}
    problems: list[Problem] = []
    for path in _candidates(root):
        head = _header(path)
        if head is None:
            if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
                problems.append(Problem(file=path, reason="not a DICOM file", remedy="replace or remove it"))
            continue
        patient = str(head.get("PatientID") or "").strip() or _top(path.parent, root)
        study = str(head.get("StudyInstanceUID", "")) or str(path.parent)
        visit = visits.setdefault(study, _Visit(patient, str(head.get("StudyDate") or ""), path.parent))
        modality = str(head.get("Modality", ""))
        uid = str(head.SeriesInstanceUID)
        if modality in ("SEG", "RTSTRUCT"):
            visit.masks.append((path, modality, _referenced(head)))
        elif "Rows" in head:
            description = str(head.get("SeriesDescription") or "")
            if "LOCALIZER" in (head.get("ImageType") or ()) or _LOCALISER.search(description):
                continue
            sequence = from_description(description, str(head.get("ContrastBolusAgent") or ""))
            visit.series.setdefault(uid, _Series(uid, description, sequence)).files.append(path)
    for path in image_files(root):  # masks drawn in another program and saved as NIfTI, NRRD …
        if mask_key(stem(path), certain=False) is not None or "mask" in path.name.lower():
            near = [v for v in visits.values() if v.series and path.is_relative_to(_common(v))]
            if len(near) == 1:
                near[0].masks.append((path, "file", set()))
    return visits, problems


def _common(visit: _Visit) -> Path:
    """The folder that holds the whole visit."""
    folders = {f.parent for s in visit.series.values() for f in s.files}
    first = min(folders, key=lambda p: len(p.parts))
    while len(folders) > 1 and not all(f.is_relative_to(first) for f in folders):
        first = first.parent
    return first


def _referenced(head: Any) -> set[str]:
    """The series that a SEG, or an RTSTRUCT in its frames of reference, was drawn on."""
    found = {str(s.get("SeriesInstanceUID", "")) for s in head.get("ReferencedSeriesSequence") or []}
    for frame in head.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            found |= {str(s.get("SeriesInstanceUID", "")) for s in study.get("RTReferencedSeriesSequence") or []}
    return found - {""}


def _case(name: str, visit: _Visit, problems: list[Problem], notes: list[str]) -> CaseSource | None:
    """The visit's series by sequence name, the one its mask was drawn on before all others of that name."""
    order = {"SEG": 0, "RTSTRUCT": 1, "file": 2}
    masks = sorted(visit.masks, key=lambda m: order[m[1]])
    best = [m for m in masks if order[m[1]] == order[masks[0][1]]] if masks else []
    if len(best) > 1:
        names = ", ".join(path.name for path, _, _ in best)
        problems.append(Problem(file=best[0][0], reason=f"several masks of one visit: {names}", remedy="keep one"))
        return None
    drawn_on = best[0][2] if best else set()
    if not visit.series:
        if best:
            problems.append(Problem(file=best[0][0], reason="a mask without its images", remedy="add the series"))
        return None
    sequences: dict[str, tuple[Path, ...]] = {}
    for series in sorted(visit.series.values(), key=lambda s: (s.uid not in drawn_on, -len(s.files))):
        sequence = series.sequence or (sequence_name(series.description) if len(visit.series) > 1 else "image")
        if sequence in sequences:
            notes.append(
                f"{name}: series {series.description!r} ({len(series.files)} files) is a second {sequence}: passed over"
            )
        else:
            sequences[sequence] = tuple(series.files)
    return CaseSource(
        case=re.sub(r"[\\/]+", "_", name) or "case",
        patient=visit.patient,
        sequences={s: sequences[s] for s in in_order(set(sequences))},
        masks=(best[0][0],) if best else (),
    )


def _evenly_named(cases: list[CaseSource]) -> list[CaseSource]:
    """Where every case has one series and their names differ, they are one sequence that was named freely."""
    names = {next(iter(c.sequences)) for c in cases if len(c.sequences) == 1}
    if len(names) < 2 or any(len(c.sequences) > 1 for c in cases):
        return cases
    return [
        CaseSource(case=c.case, patient=c.patient, sequences={"image": next(iter(c.sequences.values()))}, masks=c.masks)
        for c in cases
    ]


def _top(folder: Path, root: Path) -> str:
    parts = folder.relative_to(root).parts
    return parts[0] if parts else root.resolve().name
