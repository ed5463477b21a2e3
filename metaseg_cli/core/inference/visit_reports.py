"""The lesions of a DICOM visit as a SEG and a Structured Report of their measurements that refers to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.follow_up import FollowUpResult
from metaseg_cli.core.images import Volume, write_seg
from metaseg_cli.core.images.dicom_sr import LesionMeasurement, write_sr
from metaseg_cli.core.inference.visits import Visit


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a visit's SEG and its Structured Report go."""

    seg: Path
    report: Path


def reportable(visit: Visit, mask: Volume) -> str:
    """Return why there is no Structured Report of *visit*, in words; empty when there is one."""
    if not visit.series or not all(path.exists() for path in visit.series):
        return "no structured report: not a DICOM series in a folder"
    return "" if mask.array.any() else "no structured report: no lesion"


def write_measurements(
    files: ReportFiles,
    visit: Visit,
    mask: Volume,
    lesions: FollowUpResult,
    v: int,
    uids: Mapping[int, str],
    region: str,
) -> None:
    """Write the lesions of *visit*, number *v*, found in *mask* ``(1, Z, Y, X)`` of *region*.

    *uids* are the lesions' tracking UIDs, the same at all visits. Raises InputError for a series without what a SEG
    repeats.
    """
    numbers, _ = find_lesions(mask.array[0], mask.spacing_mm)
    there = [(lesion.number, lesion.at_visits[v]) for lesion in lesions.lesions if lesion.at_visits[v].parts]
    name = "lesion" if region == "lesions" else f"{region} lesion"
    segments = [(f"{name} {number}", np.isin(numbers, at_visit.parts)) for number, at_visit in there]
    write_seg(files.seg, segments, visit.series)
    measured = [
        LesionMeasurement(
            segment=segment,
            name=f"lesion {number}",
            uid=uids[number],
            longest_mm=at_visit.longest_mm,
            perpendicular_mm=at_visit.perpendicular_mm,
            volume_mm3=at_visit.volume_mm3,
        )
        for segment, (number, at_visit) in enumerate(there, start=1)
    ]
    write_sr(files.report, measured, files.seg, visit.series, name)
