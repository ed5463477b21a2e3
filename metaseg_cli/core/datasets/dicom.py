"""DICOM folders of any names: patients, visits and series come from the headers; masks are SEG, RTSTRUCT or files."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import image_files, mask_key, stem
from metaseg_cli.core.datasets.sequence_names import KNOWN, from_description, in_order, sequence_name
from metaseg_cli.core.dicom import (
    ImageHeader,
    group_series,
    image_header,
    is_dicom,
    is_skipped,
    quiet,
    read_header,
    remove_copies,
    text_of,
)
from metaseg_cli.core.formats import image_suffix
from metaseg_cli.errors import InputError, Problem, decoding

_TAGS = [
    "Modality", "PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SeriesDescription", "Rows",
    "ImageType", "ContrastBolusAgent", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence",
]  # fmt: skip
_LOCALISER = re.compile(r"local|scout|survey|3.?plane", re.IGNORECASE)


@dataclass
class _Series:
    uids: set[str]
    description: str
    sequence: str | None
    files: list[Path]


@dataclass
class _Visit:
    """One study of one patient."""

    patient: str
    date: str
    folder: Path
    images: list[ImageHeader] = field(default_factory=list)
    contrast: dict[Path, str] = field(default_factory=dict)  # images that name a contrast agent, and how
    masks: list[tuple[Path, str, set[str]]] = field(default_factory=list)  # file, modality, series it refers to
    series: list[_Series] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """What a DICOM file says about its patient and visit."""

    path: Path
    patient: str
    study: str
    date: str
    modality: str
    contrast: str
    localiser: bool
    refers_to: set[str]
    image: ImageHeader | None


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    found = next((p for p in islice(_candidates(root), 200) if _is_readable(p)), None)
    return f"it holds DICOM files such as {found.name}" if found else None


def find(root: Path) -> FoundCases:
    """Return one case per study; its sequences are named after the series' descriptions."""
    visits, problems, notes = _visits(root)
    patients = {v.patient for v in visits}
    tops = {_top(v.folder, root) for v in visits}
    if len(patients) == 1 and len(tops) > 1 and len(visits) > 1:
        notes.append(f"every file names the same patient ({next(iter(patients))!r}): each folder counts as one")
        for visit in visits:
            visit.patient = _top(visit.folder, root)
    per_patient: dict[str, list[_Visit]] = defaultdict(list)
    for visit in visits:
        per_patient[visit.patient].append(visit)
    cases: list[CaseSource] = []
    for patient, own in sorted(per_patient.items()):
        for number, visit in enumerate(sorted(own, key=lambda v: v.date), start=1):
            name = patient if len(own) == 1 else f"{patient}_{visit.date or number}"
            if any(c.case == name for c in cases):
                name = f"{name}_{number}"
            case = _case(name, visit, problems)
            if case is not None:
                cases.append(case)
    cases = _evenly_named(cases)
    return FoundCases(layout="dicom", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _candidates(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if not is_skipped(path, root) and not image_suffix(path) and is_dicom(path):
            yield path


def _is_readable(path: Path) -> bool:
    try:
        return bool(text_of(read_header(path, ["Modality", "SOPClassUID"]), "SOPClassUID"))
    except InputError:
        return False


def _read(path: Path) -> _File:
    """Read what is needed of a file. Raises InputError for what is not DICOM, or holds invalid values."""
    head = read_header(path, _TAGS)
    image = image_header(path)
    with decoding(path, "its header is damaged"), quiet():
        return _File(
            path=path,
            patient=text_of(head, "PatientID"),
            study=text_of(head, "StudyInstanceUID") or str(path.parent),
            date=text_of(head, "StudyDate"),
            modality=text_of(head, "Modality"),
            contrast=text_of(head, "ContrastBolusAgent"),
            localiser="LOCALIZER" in (head.get("ImageType") or ())
            or bool(_LOCALISER.search(text_of(head, "SeriesDescription"))),
            refers_to=_referenced(head),
            image=image,
        )


def _visits(root: Path) -> tuple[list[_Visit], list[Problem], list[str]]:
    files: list[_File] = []
    problems: list[Problem] = []
    for path in _candidates(root):
        try:
            files.append(_read(path))
        except InputError as error:
            reason = f"{error.what}; a series in its folder may lack this slice"
            problems.append(Problem(file=path, reason=reason, remedy=error.remedy))
    visits: dict[tuple[str, str], _Visit] = {}
    for key, file in _by_visit(files, root):
        visit = visits.setdefault(key, _Visit(key[0], file.date, file.path.parent))
        if file.modality in ("SEG", "RTSTRUCT"):
            visit.masks.append((file.path, file.modality, file.refers_to))
        elif file.image is not None and not file.localiser:
            visit.images.append(file.image)
            if file.contrast:
                visit.contrast[file.path] = file.contrast
    notes: list[str] = []
    for visit in visits.values():
        _find_series(visit, notes)
    for path in image_files(root):  # masks drawn in another program and saved as NIfTI, NRRD …
        if mask_key(stem(path), certain=False) is not None or "mask" in path.name.lower():
            near = [v for v in visits.values() if v.series and path.is_relative_to(_common(v))]
            if len(near) == 1:
                near[0].masks.append((path, "file", set()))
    return list(visits.values()), problems, notes


def _by_visit(files: list[_File], root: Path) -> Iterator[tuple[tuple[str, str], _File]]:
    """Yield images and masks with the patient and study that they belong to.

    Where an anonymiser invented a study for every slice of one stack, their folder is the study. A file without
    PatientID, such as some structure sets, belongs to the patient of its study.
    """
    used = [f for f in files if f.image is not None or f.modality in ("SEG", "RTSTRUCT")]
    in_folder: dict[Path, list[_File]] = defaultdict(list)
    patients: dict[str, set[str]] = defaultdict(set)
    for file in used:
        if file.image is not None:
            in_folder[file.path.parent].append(file)
        patients[file.study].add(file.patient)
    made_up: dict[str, str] = {}
    for folder, own in in_folder.items():
        studies = {f.study for f in own}
        if len(own) > 2 and len(studies) == len(own) and len(group_series([f.image for f in own if f.image])) == 1:
            made_up |= dict.fromkeys(studies, str(folder))
    for file in used:
        known = patients[file.study] - {""}
        patient = file.patient or (known.pop() if len(known) == 1 else _top(file.path.parent, root))
        yield (patient, made_up.get(file.study, file.study)), file


def _find_series(visit: _Visit, notes: list[str]) -> None:
    images, copies = remove_copies(visit.images)
    if copies:
        notes.append(f"{visit.folder.name}: {copies} copies of images were skipped")
    for group in group_series(images):
        uids = {image.series for image in group}
        description = group[0].description
        sequence = from_description(description, visit.contrast.get(group[0].path, ""))
        visit.series.append(_Series(uids, description, sequence, [image.path for image in group]))


def _common(visit: _Visit) -> Path:
    """Return the folder that holds the whole visit."""
    folders = {f.parent for s in visit.series for f in s.files}
    first = min(folders, key=lambda p: len(p.parts))
    while len(folders) > 1 and not all(f.is_relative_to(first) for f in folders):
        first = first.parent
    return first


def _referenced(head: Any) -> set[str]:
    """Return the series that a SEG, or an RTSTRUCT in its frames of reference, was drawn on."""
    found = {str(s.get("SeriesInstanceUID", "")) for s in head.get("ReferencedSeriesSequence") or []}
    for frame in head.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            found |= {str(s.get("SeriesInstanceUID", "")) for s in study.get("RTReferencedSeriesSequence") or []}
    return found - {""}


def _case(name: str, visit: _Visit, problems: list[Problem]) -> CaseSource | None:
    """Return the visit's series by sequence; of several of one name, the one that its mask was drawn on."""
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
    for series in sorted(visit.series, key=lambda s: (not s.uids & drawn_on, -len(s.files))):
        sequence = series.sequence or (sequence_name(series.description) if len(visit.series) > 1 else "image")
        if sequence in sequences:
            problems.append(
                Problem(
                    file=series.files[0],
                    reason=f"series {series.description!r} ({len(series.files)} files) is a second {sequence} of "
                    f"{name}: left out",
                    remedy="move the series that is not meant, or name the folder of each",
                )
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
    """Unite the names where every case has one series and they differ: it is one sequence, named freely.

    Two known sequences stay apart: a T1 without contrast agent is not one with it.
    """
    names = {next(iter(c.sequences)) for c in cases if len(c.sequences) == 1}
    if len(names) < 2 or len(names & set(KNOWN)) > 1 or any(len(c.sequences) > 1 for c in cases):
        return cases
    return [dataclasses.replace(c, sequences={"image": next(iter(c.sequences.values()))}) for c in cases]


def _top(folder: Path, root: Path) -> str:
    parts = folder.relative_to(root).parts
    return parts[0] if parts else root.resolve().name
