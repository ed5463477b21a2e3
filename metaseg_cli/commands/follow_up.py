"""Lesions over the visits of one patient: masks or scans in, a table, a picture and RANO-BM's categories out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.atomic import atomic_write_bytes, atomic_write_text, make_folder, translate_write_errors
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.follow_up import Course, Finding, follow
from metaseg_cli.core.formats import is_picture, stem_of
from metaseg_cli.core.images import (
    Volume,
    align_rigidly,
    dicom_files,
    read_mask,
    read_scan,
    reorient,
    same_grid,
    to_canonical,
)
from metaseg_cli.core.measurements import measure
from metaseg_cli.core.paths import unusable
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import InputError, Problem, attempt
from metaseg_cli.reports import charts

DOCUMENT = "follow_up.json"  # written last: where it stands, the follow-up is whole
DISCLAIMER = (
    "Diameters alone, of masks that a program or a person made: not a medical device, and no assessment of a patient."
)


@dataclass(frozen=True, kw_only=True)
class FollowUpResult:
    """``names`` of the visits in order, their ``course``, and ``notes`` on what was assumed."""

    out: Path
    names: tuple[str, ...]
    course: Course
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """``mask`` has one channel; ``scan`` is None where a mask was given."""

    name: str
    mask: Volume
    scan: Volume | None


def follow_up(config: FollowUpConfig, progress: Progress) -> FollowUpResult:
    """Run ``metaseg follow-up``. Raises MetasegError: a course with a visit left out would be a false one."""
    if not config.overwrite and (config.out / DOCUMENT).exists():
        raise InputError("it holds a follow-up already", where=config.out, remedy="pass --overwrite, or another --out")
    names = _names(config.visits)
    progress.start("visits", len(config.visits))
    visits: list[_Visit] = []
    notes: list[str] = []
    findings = []
    for name, path in zip(names, config.visits, strict=True):
        visit = attempt(partial(_read, name, Path(path), config), Path(path), config.out)
        if isinstance(visit, Problem):
            raise InputError(visit.reason, where=visit.file, remedy=visit.remedy)
        notes += [f"{name}: {note}" for note in visit.mask.notes]
        to_first = np.eye(4)
        if visits and not same_grid(visit.mask, visits[0].mask):
            to_first, how = _alignment(visit, visits[0])
            notes.append(f"{name}: {how}")
        findings.append(_findings(visit.mask, to_first))
        visits.append(visit if not visits else dataclasses.replace(visit, scan=None))
        progress.advance(1, name)
    course = follow(findings, config.match_distance)
    if not any(lesion.target for lesion in course.lesions):
        notes.append("no lesion is measurable at baseline (10 mm, two slices): sums of diameters mean nothing")
    result = FollowUpResult(out=config.out, names=tuple(names), course=course, notes=tuple(notes))
    _write(result)
    return result


def _names(paths: tuple[str, ...]) -> list[str]:
    """What tells the visits apart: their stems, else their folders too, else their numbers."""
    stems = [stem_of(Path(p)).removesuffix("_mask") for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    longer = [f"{Path(p).resolve().parent.name}/{stem}" for p, stem in zip(paths, stems, strict=True)]
    return longer if len(set(longer)) == len(longer) else [f"visit {i}" for i in range(1, len(paths) + 1)]


def _read(name: str, path: Path, config: FollowUpConfig) -> _Visit:
    """A mask, or else a scan that the model segments."""
    problem = unusable(path)
    if problem is not None:
        raise InputError(problem.reason, where=path, remedy=problem.remedy)
    if is_picture(path):
        raise InputError("a picture has no lengths in mm", where=path, remedy="follow up volumes")
    mask, scan = None, None
    if path.is_file():
        try:
            mask = read_mask(path)
        except InputError as error:
            if not _is_scan(path):
                raise error from None
    if mask is None:
        from metaseg_cli.core.inference.predictor import load_model

        model = load_model(find_model(config.model), config.device)
        prediction = model.predict({model.card.sequences[0]: dicom_files(path)} if path.is_dir() else path)
        scan = prediction.source
        mask = dataclasses.replace(scan, array=prediction.mask[None], notes=prediction.notes)
    array: NDArray[np.bool_] = np.asarray((mask.array > 0).any(axis=0))
    if mask.spacing_mm is None:
        raise InputError("it does not say its spacing", where=path, remedy="follow up volumes with a spacing in mm")
    return _Visit(name=name, mask=dataclasses.replace(mask, array=array[None].astype(np.uint8)), scan=scan)


def _is_scan(path: Path) -> bool:
    """Whether what is no mask can be read as an image."""
    try:
        read_scan([path])
    except InputError:
        return False
    return True


def _alignment(visit: _Visit, first: _Visit) -> tuple[NDArray[np.float64], str]:
    """From the visit's patient coordinates to the first one's."""
    if visit.scan is None or first.scan is None:
        return np.eye(4), "on another grid than the first visit: placed by the coordinates in the files"
    matrix = align_rigidly(visit.scan, first.scan)
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    middle = visit.scan.affine @ np.array([*(n / 2 for n in visit.scan.shape[::-1]), 1.0])
    shift = float(np.linalg.norm((matrix @ middle - middle)[:3]))
    return matrix, f"aligned rigidly with the first visit, by {shift:.1f} mm and {angle:.1f}°"


def _findings(mask: Volume, to_first: NDArray[np.float64]) -> list[Finding]:
    """The lesions of one visit, measured on its own axial slices, placed in the first visit's coordinates."""
    upright = reorient(mask, to_canonical(mask))
    spacing = upright.spacing_mm
    assert spacing is not None
    numbers, lesions = find_lesions(upright.array[0], spacing)
    place = to_first @ upright.affine
    reach = float(np.linalg.norm(spacing)) / 2
    found = []
    for lesion in lesions:
        crop = numbers[tuple(slice(*side) for side in lesion.box)] == lesion.number
        zyx = np.argwhere(crop) + [start for start, _ in lesion.box]
        points = zyx[:, ::-1] @ place[:3, :3].T + place[:3, 3]
        found.append(
            Finding(
                points_mm=points,
                reach_mm=reach,
                volume_mm3=float(lesion.volume_mm3 or 0),
                measurement=measure(crop, spacing),
            )
        )
    return found


# -- what is written -------------------------------------------------------------------------------------------------


def visit_rows(result: FollowUpResult) -> list[dict[str, Any]]:
    """One row per visit, as ``visits.csv`` has them."""
    course = result.course
    return [
        {
            "visit": name,
            "lesions": sum(len(lesion.sights[v].parts) for lesion in course.lesions),
            "volume_ml": round(sum(lesion.sights[v].volume_mm3 for lesion in course.lesions) / 1000, 4),
            "sum_of_diameters_mm": round(seen.sum_mm, 2),
            "from_baseline_percent": _rounded(seen.from_baseline),
            "from_nadir_percent": _rounded(seen.from_nadir),
            "category": seen.category,
            "reason": seen.reason,
            "new": " ".join(map(str, seen.new)),
            "uncertain": " ".join(map(str, seen.uncertain)),
        }
        for v, (name, seen) in enumerate(zip(result.names, course.visits, strict=True))
    ]


def lesion_rows(result: FollowUpResult) -> list[dict[str, Any]]:
    """One row per lesion and visit from its first one on, as ``follow_up.csv`` has them."""
    rows = []
    for lesion in result.course.lesions:
        lengths = [sight.longest_mm for sight in lesion.sights]
        for v, name in enumerate(result.names):
            if v < lesion.first:
                continue
            sight, earlier = lesion.sights[v], lengths[lesion.first : v] or [lengths[v]]
            x, y, z = lesion.centre_mm
            rows.append(
                {
                    "lesion": lesion.number,
                    "visit": name,
                    "state": lesion.state(v),
                    "target": lesion.target,
                    "longest_axial_mm": round(sight.longest_mm, 2),
                    "perpendicular_mm": round(sight.perpendicular_mm, 2),
                    "volume_mm3": round(sight.volume_mm3, 2),
                    "from_first_percent": _change(lengths[v], lengths[lesion.first]),
                    "from_nadir_percent": _change(lengths[v], min(earlier)),
                    "x_mm": round(x, 1),
                    "y_mm": round(y, 1),
                    "z_mm": round(z, 1),
                }
            )
    return rows


def _change(now: float, before: float) -> float | None:
    return round(100 * (now - before) / before, 1) if before else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def as_document(result: FollowUpResult) -> dict[str, Any]:
    """The result as ``follow_up.json`` and ``--json`` have it."""
    return {
        "schema": 1,
        "program": f"metaseg {metaseg_cli.__version__}",
        "out": str(result.out),
        "visits": visit_rows(result),
        "lesions": lesion_rows(result),
        "notes": [*result.notes, DISCLAIMER],
    }


def _write(result: FollowUpResult) -> None:
    make_folder(result.out)
    with translate_write_errors(result.out / DOCUMENT):
        (result.out / DOCUMENT).unlink(missing_ok=True)
    for name, rows in (("follow_up.csv", lesion_rows(result)), ("visits.csv", visit_rows(result))):
        atomic_write_text(result.out / name, csv_text(rows, list(rows[0]) if rows else ["lesion"]))
    atomic_write_bytes(result.out / "course.png", charts.course(result.names, result.course))
    atomic_write_text(result.out / DOCUMENT, json.dumps(as_document(result), indent=1, allow_nan=False))
