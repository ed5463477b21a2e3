"""Lesions over the visits of one patient: which is which, how they change, and RANO-BM's categories by diameters.

RANO-BM: Lin et al. 2015, "Response assessment criteria for brain metastases", Lancet Oncology 16:e270. It also asks for
clinical state, corticosteroids and confirmation by a later scan, which images do not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from metaseg_cli.core.measurements import MEASURABLE_MM, MEASURABLE_SLICES, Measurement

# RANO-BM: up to five target lesions; partial response from -30 % of the baseline sum on, progression from +20 % of the
# smallest sum on if one lesion grew by at least 5 mm.
TARGETS = 5
_RESPONSE_PERCENT, _PROGRESSION_PERCENT, _PROGRESSION_MM = -30.0, 20.0, 5.0


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

    ``longest_mm`` and ``volume_mm3`` are sums over the parts. ``merged_into`` is the number of another lesion.
    """

    parts: tuple[int, ...] = ()
    longest_mm: float = 0.0
    perpendicular_mm: float = 0.0
    volume_mm3: float = 0.0
    slices: int = 0
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


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One visit as RANO-BM sees it. Changes are in percent, None where there is nothing to compare with.

    ``category`` is "baseline", "CR", "PR", "SD", "PD", or "non-CR/non-PD" when nothing was measurable at baseline.
    ``uncertain`` are new lesions on fewer than two axial slices, which do not count.
    """

    sum_mm: float
    from_baseline: float | None
    from_nadir: float | None
    category: str
    reason: str
    new: tuple[int, ...] = ()
    uncertain: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FollowUpResult:
    """All lesions, and an assessment for every visit."""

    lesions: tuple[FollowedLesion, ...]
    visits: tuple[Assessment, ...]


@dataclass
class _Trajectory:
    """A lesion while visits are added. *points* are those it had when it was last separate from others."""

    first: int
    points: NDArray[np.float64]
    reach: float
    volume: float
    at_visits: list[LesionAtVisit] = field(default_factory=list)


def follow(visits: Sequence[Sequence[Detection]], tolerance_mm: float = 3.0) -> FollowUpResult:
    """Match the detections of *visits*, which are in order of time, and assess each visit.

    A detection belongs to the lesion that it overlaps, or else to the nearest one within *tolerance_mm*. One that
    overlaps several lesions is the largest of them, and the others have merged into it; several that overlap one lesion
    are its parts.
    """
    trajectories: list[_Trajectory] = []
    for number, detections in enumerate(visits):
        _add_visit(trajectories, number, detections, tolerance_mm)
    targets = _targets(trajectories)
    lesions = tuple(
        FollowedLesion(
            number=t + 1,
            first=trajectory.first,
            at_visits=tuple(trajectory.at_visits),
            target=t in targets,
            centre_mm=_centre(visits[trajectory.first], trajectory.at_visits[trajectory.first]),
        )
        for t, trajectory in enumerate(trajectories)
    )
    return FollowUpResult(lesions=lesions, visits=_assessments(lesions, len(visits)))


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
        slices=max((m.slices[1] - m.slices[0] + 1 for m in measured), default=0),
        merged_into=merged_into,
    )


def _targets(trajectories: Sequence[_Trajectory]) -> set[int]:
    """Return up to five lesions that are measurable at baseline, the longest first."""
    at_baseline = [(t, trajectory.at_visits[0]) for t, trajectory in enumerate(trajectories) if trajectory.first == 0]
    measurable = [
        (lesion.longest_mm, t)
        for t, lesion in at_baseline
        if lesion.longest_mm >= MEASURABLE_MM and lesion.slices >= MEASURABLE_SLICES
    ]
    return {t for _, t in sorted(measurable, reverse=True)[:TARGETS]}


def _centre(detections: Sequence[Detection], at_visit: LesionAtVisit) -> tuple[float, float, float]:
    x, y, z = np.concatenate([detections[n - 1].points_mm for n in at_visit.parts]).mean(axis=0)
    return (float(x), float(y), float(z))


def _assessments(lesions: Sequence[FollowedLesion], count: int) -> tuple[Assessment, ...]:
    targets = [lesion for lesion in lesions if lesion.target]
    sums = [sum(lesion.at_visits[v].longest_mm for lesion in targets) for v in range(count)]
    baseline = Assessment(sum_mm=sums[0], from_baseline=None, from_nadir=None, category="baseline", reason="")
    return (baseline, *(_assess(lesions, sums, v) for v in range(1, count)))


def _assess(lesions: Sequence[FollowedLesion], sums: Sequence[float], v: int) -> Assessment:
    """Assess visit *v*; *sums* are those of the targets' diameters at each visit."""
    nadir = min(range(v), key=lambda earlier: sums[earlier])
    appeared = [lesion for lesion in lesions if lesion.first == v]
    new = tuple(x.number for x in appeared if x.at_visits[v].slices >= MEASURABLE_SLICES)
    category, reason = _category(lesions, sums, v, nadir, new)
    return Assessment(
        sum_mm=sums[v],
        from_baseline=change_percent(sums[v], sums[0]),
        from_nadir=change_percent(sums[v], sums[nadir]),
        category=category,
        reason=reason,
        new=new,
        uncertain=tuple(x.number for x in appeared if x.number not in new),
    )


def _category(
    lesions: Sequence[FollowedLesion], sums: Sequence[float], v: int, nadir: int, new: Sequence[int]
) -> tuple[str, str]:
    """Return the category of visit *v* and why; *nadir* is the earlier visit with the smallest sum."""
    targets = [lesion for lesion in lesions if lesion.target]
    from_baseline, from_nadir = change_percent(sums[v], sums[0]), change_percent(sums[v], sums[nadir])
    growth = max((x.at_visits[v].longest_mm - x.at_visits[nadir].longest_mm for x in targets), default=0.0)
    if new:
        return "PD", f"new: lesion {', '.join(map(str, new))}"
    if sums[v] - sums[nadir] >= _PROGRESSION_PERCENT / 100 * sums[nadir] and growth >= _PROGRESSION_MM:
        return "PD", f"smallest sum {sums[nadir]:.1f} mm, now {sums[v]:.1f}, one lesion {growth:.1f} mm more"
    gone = not any(x.at_visits[v].parts for x in lesions if x.first < v)
    if gone and any(x.first == 0 for x in lesions):
        return "CR", "no lesion is left"
    if not targets:
        return "non-CR/non-PD", "nothing was measurable at baseline"
    if from_baseline is not None and from_baseline <= _RESPONSE_PERCENT:
        return "PR", f"{from_baseline:+.0f} % from baseline"
    return "SD", f"{from_baseline or 0:+.0f} % from baseline, {from_nadir or 0:+.0f} % from the smallest sum"


def change_percent(now: float, before: float) -> float | None:
    """Return the change in percent; None where there is nothing to compare with."""
    return 100 * (now - before) / before if before else None
