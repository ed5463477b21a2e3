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

from metaseg_cli.core.measurements import MEASURABLE_SLICES, Measurement

TARGETS = 5
_RESPONSE, _PROGRESSION, _PROGRESSION_MM = -30.0, 20.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A lesion as one visit shows it.

    *points_mm* ``(N, 3)`` are its voxels' centres in patient coordinates that all visits share, *reach_mm* is half the
    diagonal of a voxel.
    """

    points_mm: NDArray[np.float64]
    reach_mm: float
    volume_mm3: float
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One lesion at one visit. Its ``parts`` are numbers of the visit's findings: none, one, or several after a split.

    ``longest_mm`` and ``volume_mm3`` are sums over the parts. ``joined`` is the lesion that it has merged into.
    """

    parts: tuple[int, ...] = ()
    longest_mm: float = 0.0
    perpendicular_mm: float = 0.0
    volume_mm3: float = 0.0
    slices: int = 0
    joined: int | None = None


@dataclass(frozen=True, kw_only=True)
class FollowedLesion:
    """One lesion, numbered from 1, with what each visit shows of it. ``first`` is the visit that saw it first."""

    number: int
    first: int
    sights: tuple[Sight, ...]
    target: bool
    centre_mm: tuple[float, float, float]  # x, y, z where it was first seen

    def state(self, visit: int) -> str:
        """In a word or two."""
        sight = self.sights[visit]
        if visit < self.first:
            return ""
        if sight.joined is not None:
            return f"merged into {sight.joined}"
        if not sight.parts:
            return "gone"
        if len(sight.parts) > 1:
            return f"split in {len(sight.parts)}"
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
class Course:
    """All lesions, and an assessment for every visit."""

    lesions: tuple[FollowedLesion, ...]
    visits: tuple[Assessment, ...]


@dataclass
class _Track:
    """A lesion while the visits are gone through. *points* are those it had when it last stood alone."""

    first: int
    points: NDArray[np.float64]
    reach: float
    volume: float
    sights: list[Sight] = field(default_factory=list)


def follow(visits: Sequence[Sequence[Finding]], tolerance_mm: float = 3.0) -> Course:
    """Match the findings of *visits*, which are in order of time, and assess each visit.

    A finding belongs to the lesion that it overlaps, or else to the nearest one that lies within *tolerance_mm*. One
    that overlaps several lesions is the largest of them, and the others have merged into it; several that overlap one
    lesion are its parts.
    """
    tracks: list[_Track] = []
    for number, findings in enumerate(visits):
        owners = [_owners(finding, tracks, tolerance_mm) for finding in findings]
        parts: dict[int, list[int]] = {}
        joined: dict[int, int] = {}
        for i, (finding, owned) in enumerate(zip(findings, owners, strict=True)):
            if not owned:
                tracks.append(_Track(number, finding.points_mm, finding.reach_mm, finding.volume_mm3))
                tracks[-1].sights = [Sight()] * number
                parts[len(tracks) - 1] = [i]
                continue
            holder = max(owned, key=lambda t: tracks[t].volume)
            parts.setdefault(holder, []).append(i)
            joined.update({other: holder for other in owned if other != holder})
        for t, track in enumerate(tracks):
            mine = parts.get(t, [])
            into = joined.get(t) if not mine else None
            track.sights.append(_sight([findings[i] for i in mine], mine, None if into is None else into + 1))
            # What has merged is remembered as it was before, so that it is known again should it come apart.
            alone = mine and t not in joined.values()
            if alone:
                track.points = np.concatenate([findings[i].points_mm for i in mine])
                track.reach = findings[mine[0]].reach_mm
                track.volume = sum(findings[i].volume_mm3 for i in mine)
    targets = _targets(tracks)
    lesions = tuple(
        FollowedLesion(
            number=t + 1,
            first=track.first,
            sights=tuple(track.sights),
            target=t in targets,
            centre_mm=_centre(visits[track.first], track.sights[track.first]),
        )
        for t, track in enumerate(tracks)
    )
    return Course(lesions=lesions, visits=_assessments(lesions, len(visits)))


def _owners(finding: Finding, tracks: Sequence[_Track], tolerance_mm: float) -> list[int]:
    """The lesions that *finding* is."""
    distances = [float(KDTree(track.points).query(finding.points_mm)[0].min()) for track in tracks]
    touched = [t for t, d in enumerate(distances) if d <= max(finding.reach_mm, tracks[t].reach)]
    if touched or not tracks:
        return touched
    nearest = int(np.argmin(distances))
    return [nearest] if distances[nearest] <= tolerance_mm else []


def _sight(findings: Sequence[Finding], numbers: Sequence[int], joined: int | None) -> Sight:
    measured = [finding.measurement for finding in findings]
    return Sight(
        parts=tuple(number + 1 for number in numbers),
        longest_mm=sum(m.longest for m in measured),
        perpendicular_mm=sum(m.perpendicular for m in measured),
        volume_mm3=sum(finding.volume_mm3 for finding in findings),
        slices=max((m.slices[1] - m.slices[0] + 1 for m in measured), default=0),
        joined=joined,
    )


def _targets(tracks: Sequence[_Track]) -> set[int]:
    """Up to five lesions that are measurable at baseline, the longest first."""
    able = [
        (track.sights[0].longest_mm, t)
        for t, track in enumerate(tracks)
        if track.first == 0 and track.sights[0].longest_mm >= 10.0 and track.sights[0].slices >= MEASURABLE_SLICES
    ]
    return {t for _, t in sorted(able, reverse=True)[:TARGETS]}


def _centre(findings: Sequence[Finding], sight: Sight) -> tuple[float, float, float]:
    x, y, z = np.concatenate([findings[n - 1].points_mm for n in sight.parts]).mean(axis=0)
    return (float(x), float(y), float(z))


def _assessments(lesions: Sequence[FollowedLesion], count: int) -> tuple[Assessment, ...]:
    targets = [lesion for lesion in lesions if lesion.target]
    sums = [sum(lesion.sights[v].longest_mm for lesion in targets) for v in range(count)]
    found = [Assessment(sum_mm=sums[0], from_baseline=None, from_nadir=None, category="baseline", reason="")]
    for v in range(1, count):
        nadir = min(range(v), key=lambda earlier: sums[earlier])
        appeared = [lesion for lesion in lesions if lesion.first == v]
        new = tuple(x.number for x in appeared if x.sights[v].slices >= MEASURABLE_SLICES)
        from_baseline, from_nadir = _percent(sums[v], sums[0]), _percent(sums[v], sums[nadir])
        growth = max((x.sights[v].longest_mm - x.sights[nadir].longest_mm for x in targets), default=0.0)
        more = sums[v] - sums[nadir] >= _PROGRESSION / 100 * sums[nadir] and growth >= _PROGRESSION_MM
        gone = not any(x.sights[v].parts for x in lesions if x.first < v)
        if new:
            category, reason = "PD", f"new: lesion {', '.join(map(str, new))}"
        elif more:
            category, reason = (
                "PD",
                f"smallest sum {sums[nadir]:.1f} mm, now {sums[v]:.1f}, one lesion {growth:.1f} mm more",
            )
        elif gone and any(x.first == 0 for x in lesions):
            category, reason = "CR", "no lesion is left"
        elif not targets:
            category, reason = "non-CR/non-PD", "nothing was measurable at baseline"
        elif from_baseline is not None and from_baseline <= _RESPONSE:
            category, reason = "PR", f"{from_baseline:+.0f} % from baseline"
        else:
            category, reason = (
                "SD",
                f"{from_baseline or 0:+.0f} % from baseline, {from_nadir or 0:+.0f} % from the smallest sum",
            )
        found.append(
            Assessment(
                sum_mm=sums[v],
                from_baseline=from_baseline,
                from_nadir=from_nadir,
                category=category,
                reason=reason,
                new=new,
                uncertain=tuple(x.number for x in appeared if x.number not in new),
            )
        )
    return tuple(found)


def _percent(now: float, before: float) -> float | None:
    return 100 * (now - before) / before if before else None
