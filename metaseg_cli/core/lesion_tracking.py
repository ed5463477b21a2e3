"""Lesions over the visits of one patient: which detection of a visit is which lesion, with merges and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from metaseg_cli.core.measurements import Measurement


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A connected lesion of one visit.

    *points_mm* ``(N, 3)`` are the centres of its voxels in patient coordinates common to all visits, *reach_mm* is half
    the diagonal of a voxel.
    """

    points_mm: NDArray[np.float64]
    reach_mm: float
    volume_mm3: float
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class LesionAtVisit:
    """One lesion at one visit. ``parts`` are numbers of the visit's detections: none, one, or several after a split.

    ``longest_mm`` and ``volume_mm3`` are sums over the parts; ``measurable`` if one of them is. ``merged_into`` is the
    number of another lesion.
    """

    parts: tuple[int, ...] = ()
    longest_mm: float = 0.0
    perpendicular_mm: float = 0.0
    volume_mm3: float = 0.0
    slices: int = 0
    measurable: bool = False
    merged_into: int | None = None


@dataclass(frozen=True, kw_only=True)
class FollowedLesion:
    """One lesion, numbered from 1, at all visits. ``first`` is the first visit that shows it."""

    number: int
    first: int
    at_visits: tuple[LesionAtVisit, ...]
    target: bool
    centre_mm: tuple[float, float, float]  # x, y, z where it was first seen

    def state(self, visit: int) -> str:
        """Return "there", "new", "gone", "split in 2", "merged into 1", or nothing before its first visit."""
        at_visit = self.at_visits[visit]
        if visit < self.first:
            return ""
        if at_visit.merged_into is not None:
            return f"merged into {at_visit.merged_into}"
        if not at_visit.parts:
            return "gone"
        if len(at_visit.parts) > 1:
            return f"split in {len(at_visit.parts)}"
        return "new" if visit and visit == self.first else "there"


@dataclass
class _Trajectory:
    """A lesion while visits are added. *points* are those it had when it was last separate from others."""

    first: int
    points: NDArray[np.float64]
    reach: float
    volume: float
    at_visits: list[LesionAtVisit] = field(default_factory=list)


def track(visits: Sequence[Sequence[Detection]], tolerance_mm: float = 3.0) -> tuple[FollowedLesion, ...]:
    """Match the detections of *visits*, which are in order of time; none of the lesions is a target yet.

    A detection belongs to the lesion that it overlaps, or else to the nearest one within *tolerance_mm*. One that
    overlaps several lesions is the largest of them, and the others have merged into it; several that overlap one lesion
    are its parts.
    """
    trajectories: list[_Trajectory] = []
    for number, detections in enumerate(visits):
        _add_visit(trajectories, number, detections, tolerance_mm)
    return tuple(
        FollowedLesion(
            number=number,
            first=trajectory.first,
            at_visits=tuple(trajectory.at_visits),
            target=False,
            centre_mm=_centre(visits[trajectory.first], trajectory.at_visits[trajectory.first]),
        )
        for number, trajectory in enumerate(trajectories, start=1)
    )


def _add_visit(
    trajectories: list[_Trajectory], number: int, detections: Sequence[Detection], tolerance_mm: float
) -> None:
    """Extend every trajectory by visit *number*, and add those of lesions that are new."""
    owners = [_owners(detection, trajectories, tolerance_mm) for detection in detections]
    parts: dict[int, list[int]] = {}
    merged_into: dict[int, int] = {}
    for i, (detection, owned) in enumerate(zip(detections, owners, strict=True)):
        if not owned:
            trajectories.append(_Trajectory(number, detection.points_mm, detection.reach_mm, detection.volume_mm3))
            trajectories[-1].at_visits = [LesionAtVisit()] * number
            parts[len(trajectories) - 1] = [i]
            continue
        holder = max(owned, key=lambda t: trajectories[t].volume)
        parts.setdefault(holder, []).append(i)
        merged_into.update({other: holder for other in owned if other != holder})
    for t, trajectory in enumerate(trajectories):
        mine = parts.get(t, [])
        into = merged_into.get(t) if not mine else None
        trajectory.at_visits.append(_at_visit([detections[i] for i in mine], mine, None if into is None else into + 1))
        # A lesion that has merged is remembered as it was before, so that it is recognised should it separate again.
        if mine and t not in merged_into.values():
            trajectory.points = np.concatenate([detections[i].points_mm for i in mine])
            trajectory.reach = detections[mine[0]].reach_mm
            trajectory.volume = sum(detections[i].volume_mm3 for i in mine)


def _owners(detection: Detection, trajectories: Sequence[_Trajectory], tolerance_mm: float) -> list[int]:
    """Return the lesions that *detection* belongs to."""
    distances = [float(KDTree(trajectory.points).query(detection.points_mm)[0].min()) for trajectory in trajectories]
    touched = [t for t, d in enumerate(distances) if d <= max(detection.reach_mm, trajectories[t].reach)]
    if touched or not trajectories:
        return touched
    nearest = int(np.argmin(distances))
    return [nearest] if distances[nearest] <= tolerance_mm else []


def _at_visit(detections: Sequence[Detection], numbers: Sequence[int], merged_into: int | None) -> LesionAtVisit:
    measured = [detection.measurement for detection in detections]
    return LesionAtVisit(
        parts=tuple(number + 1 for number in numbers),
        longest_mm=sum(m.longest for m in measured),
        perpendicular_mm=sum(m.perpendicular for m in measured),
        volume_mm3=sum(detection.volume_mm3 for detection in detections),
        slices=max((m.slice_count for m in measured), default=0),
        measurable=any(m.measurable for m in measured),
        merged_into=merged_into,
    )


def _centre(detections: Sequence[Detection], at_visit: LesionAtVisit) -> tuple[float, float, float]:
    x, y, z = np.concatenate([detections[n - 1].points_mm for n in at_visit.parts]).mean(axis=0)
    return (float(x), float(y), float(z))
