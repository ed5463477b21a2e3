"""RANO-BM's categories by imaging alone: Lin et al. 2015, "Response assessment criteria for brain metastases".

Lancet Oncology 16:e270. It also asks for clinical state, corticosteroids and confirmation by a later scan, which images
do not show. Where the criteria leave a judgement to a reader, ``non_target_progression`` states the arithmetic that
stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from metaseg_cli.core.lesion_tracking import FollowedLesion, LesionAtVisit
from metaseg_cli.core.measurements import MEASURABLE_SLICES

# Up to five target lesions; partial response from -30 % of the baseline sum on, progression from +20 % of the smallest
# sum on if one lesion grew by at least 5 mm.
TARGETS = 5
RESPONSE_PERCENT, PROGRESSION_PERCENT, PROGRESSION_MM = -30.0, 20.0, 5.0
# "Unequivocal progression" of non-target lesions: one grows by 5 mm and by 20 %, to 10 mm or more; or the volume of all
# of them grows as with 20 % in diameter (1.2³ = 1.73), to 1 ml or more.
NON_TARGET_MM, NON_TARGET_PERCENT, NON_TARGET_LONGEST_MM = 5.0, 20.0, 10.0
NON_TARGET_VOLUME_RATIO, NON_TARGET_VOLUME_MM3 = 1.73, 1000.0
_ROUNDING = 1e-6  # 12 mm is 20 % more than 10 mm, however floating-point numbers add up

Category = Literal["baseline", "CR", "PR", "SD", "PD", "non-CR/non-PD"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the user decides.

    Progression of non-target lesions counts with *count_non_targets*, else it is a remark. With *immunotherapy*, new
    lesions alone do not make a progression.
    """

    count_non_targets: bool = True
    immunotherapy: bool = False


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One visit as RANO-BM sees it. Changes are in percent, None where there is nothing to compare with.

    ``category`` is "non-CR/non-PD" when nothing was measurable at baseline and nothing else applies. ``new`` lesions
    count as new from this visit on; ``uncertain`` are equivocal ones, on fewer than two axial slices, which do not
    count. ``remarks`` are findings that do not decide the category.
    """

    sum_mm: float
    from_baseline: float | None
    from_nadir: float | None
    category: Category
    reason: str
    new: tuple[int, ...] = ()
    uncertain: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


def targets(lesions: Sequence[FollowedLesion]) -> set[int]:
    """Return the numbers of up to five lesions that are measurable at baseline, the longest first."""
    measurable = [lesion for lesion in lesions if lesion.first == 0 and lesion.at_visits[0].measurable]
    longest_first = sorted(measurable, key=lambda lesion: (-lesion.at_visits[0].longest_mm, lesion.number))
    return {lesion.number for lesion in longest_first[:TARGETS]}


def assess(lesions: Sequence[FollowedLesion], visits: int, rules: Rules) -> tuple[Assessment, ...]:
    """Assess each of the *visits*; the first is the baseline. Targets are marked in *lesions*."""
    course = _Course(lesions, rules)
    sums = [course.sum_of_targets(v) for v in range(visits)]
    baseline = Assessment(sum_mm=sums[0], from_baseline=None, from_nadir=None, category="baseline", reason="")
    assessments = [baseline]
    for v in range(1, visits):
        assessments.append(_assess(course, sums, v, [each.category for each in assessments]))
    return tuple(assessments)


def change_percent(now: float, before: float) -> float | None:
    """Return the change in percent; None where there is nothing to compare with."""
    return 100 * (now - before) / before if before else None


def _certain(at_visit: LesionAtVisit) -> bool:
    return at_visit.slices >= MEASURABLE_SLICES


class _Course:
    """The lesions of one patient, with the questions that RANO-BM asks of them."""

    def __init__(self, lesions: Sequence[FollowedLesion], rules: Rules) -> None:
        self.lesions, self.rules = lesions, rules
        self.targets = [lesion for lesion in lesions if lesion.target]

    def holder(self, lesion: FollowedLesion, v: int) -> FollowedLesion:
        """Return the lesion that *lesion* is part of at visit *v*: itself, or the one it has merged into."""
        into = lesion.at_visits[v].merged_into
        return lesion if into is None else self.lesions[into - 1]

    def sum_of_targets(self, v: int) -> float:
        """Return the sum of the targets' longest diameters (mm); what they have merged into counts once."""
        holders = {self.holder(lesion, v).number for lesion in self.targets}
        return sum(self.lesions[number - 1].at_visits[v].longest_mm for number in holders)

    def growth_of_targets(self, v: int, nadir: int) -> tuple[FollowedLesion | None, float]:
        """Return the target that grew most from visit *nadir* to *v*, and by how much (mm)."""
        grown = [
            (self.holder(x, v).at_visits[v].longest_mm - self.holder(x, nadir).at_visits[nadir].longest_mm, x)
            for x in self.targets
        ]
        most = max(grown, key=lambda pair: pair[0], default=None)
        return (None, 0.0) if most is None else (most[1], most[0])

    def counted_as_new(self, v: int) -> list[FollowedLesion]:
        """Return lesions that were not there at baseline and are seen on two slices for the first time at visit *v*."""
        return [x for x in self.lesions if x.first > 0 and self.new_since(x) == v]

    def new_since(self, lesion: FollowedLesion) -> int | None:
        """Return the first visit that shows *lesion* on two slices; None if there is none."""
        return next((u for u, at_visit in enumerate(lesion.at_visits) if _certain(at_visit)), None)

    def equivocal(self, v: int) -> list[FollowedLesion]:
        """Return lesions that are there at visit *v*, and neither at baseline nor until now on two slices."""
        return [x for x in self.lesions if x.first > 0 and x.at_visits[v].parts and not self._known(x, v)]

    def still_new(self, v: int) -> list[FollowedLesion]:
        """Return lesions that counted as new at an earlier visit and are there at *v*, alone or within another one."""
        earlier = [x for x in self.lesions if x.first > 0 and self._known(x, v - 1)]
        return [x for x in earlier if x.at_visits[v].parts or x.at_visits[v].merged_into is not None]

    def there(self, v: int) -> list[FollowedLesion]:
        """Return all lesions that visit *v* shows."""
        return [x for x in self.lesions if x.at_visits[v].parts]

    def _known(self, lesion: FollowedLesion, v: int) -> bool:
        since = self.new_since(lesion)
        return since is not None and since <= v

    def non_target_progression(self, v: int) -> str:
        """Return which non-target lesions progress unequivocally at visit *v*, in words; empty for none."""
        grown = max(self._grown_non_targets(v), default=None)
        if grown is not None:
            growth, number, before, now = grown
            percent = change_percent(now, before)
            by = f"{percent:+.0f} %" if percent is not None else f"+{growth:.1f} mm"
            return f"non-target lesion {number} grew from {before:.1f} to {now:.1f} mm ({by})"
        for u in range(v):
            both = [x for x in self._non_targets(v, u) if x.first <= u]
            before_mm3, now_mm3 = (sum(x.at_visits[w].volume_mm3 for x in both) for w in (u, v))
            if now_mm3 >= NON_TARGET_VOLUME_MM3 - _ROUNDING and (
                now_mm3 >= NON_TARGET_VOLUME_RATIO * before_mm3 - _ROUNDING
            ):
                most = max(both, key=lambda x: x.at_visits[v].volume_mm3 - x.at_visits[u].volume_mm3)
                grew = f"from {before_mm3 / 1000:.2f} to {now_mm3 / 1000:.2f} ml, most in lesion {most.number}"
                return f"the volume of the non-target lesions grew {grew}"
        return ""

    def _grown_non_targets(self, v: int) -> Iterator[tuple[float, int, float, float]]:
        """Yield growth (mm), number, smallest earlier and present diameter of each that progresses by itself."""
        for x in self._non_targets(v):
            inside = [y for y in self.lesions if y.at_visits[v].merged_into == x.number]
            apart = [u for u in range(x.first, v) if x in self._non_targets(v, u)]
            before = [x.at_visits[u].longest_mm + sum(y.at_visits[u].longest_mm for y in inside) for u in apart]
            if not before:
                continue
            smallest, now = min(before), x.at_visits[v].longest_mm
            growth = now - smallest
            if (
                growth >= NON_TARGET_MM - _ROUNDING
                and growth >= NON_TARGET_PERCENT / 100 * smallest - _ROUNDING
                and now >= NON_TARGET_LONGEST_MM - _ROUNDING
            ):
                yield growth, x.number, smallest, now

    def _non_targets(self, v: int, u: int | None = None) -> list[FollowedLesion]:
        """Return non-target lesions known before visit *v* that neither there nor at *u* are one with a target."""
        visits = (v,) if u is None else (v, u)
        held = {self.holder(t, w).number for t in self.targets for w in visits}
        return [
            x
            for x in self.lesions
            if x.first < v
            and x.number not in held
            and not any(self.holder(x, w).target or self._lost(x, w) for w in visits)
        ]

    def _lost(self, lesion: FollowedLesion, w: int) -> bool:
        """Return whether the diameter of *lesion* at visit *w* is unknown: it is part of another lesion there."""
        return lesion.at_visits[w].merged_into is not None


def _assess(course: _Course, sums: Sequence[float], v: int, before: Sequence[Category]) -> Assessment:
    """Assess visit *v*; *sums* are those of the targets' diameters, *before* the categories of the earlier visits."""
    nadir = min(range(v), key=lambda earlier: sums[earlier])
    progression, remarks = _progression(course, sums, v, nadir, before)
    category: Category
    category, reason = ("PD", "; ".join(progression)) if progression else _without_progression(course, sums, v, nadir)
    return Assessment(
        sum_mm=sums[v],
        from_baseline=change_percent(sums[v], sums[0]),
        from_nadir=change_percent(sums[v], sums[nadir]),
        category=category,
        reason=reason,
        new=_numbers(course.counted_as_new(v)),
        uncertain=_numbers(course.equivocal(v)),
        remarks=tuple(remarks),
    )


def _progression(
    course: _Course, sums: Sequence[float], v: int, nadir: int, before: Sequence[Category]
) -> tuple[list[str], list[str]]:
    """Return every reason for PD at visit *v*, and remarks on what would be one under other rules."""
    reasons: list[str] = []
    remarks: list[str] = []
    grew, growth = course.growth_of_targets(v, nadir)
    if (
        grew is not None
        and sums[v] - sums[nadir] >= PROGRESSION_PERCENT / 100 * sums[nadir] - _ROUNDING
        and growth >= PROGRESSION_MM - _ROUNDING
    ):
        percent = change_percent(sums[v], sums[nadir])
        by = "" if percent is None else f" ({percent:+.0f} %)"
        reasons.append(
            f"sum of targets {sums[v]:.1f} mm, smallest before {sums[nadir]:.1f} mm{by}; "
            f"lesion {grew.number} grew by {growth:.1f} mm"
        )
    if said := course.non_target_progression(v):
        (reasons if course.rules.count_non_targets else remarks).append(said)
    appeared = []
    if new := course.counted_as_new(v):
        appeared.append(f"new: {_named(new)}")
    if old := course.still_new(v):
        appeared.append(f"new since baseline and still there: {_named(old)}")
    if "CR" in before and (back := [x for x in course.there(v) if x.first == 0 and _certain(x.at_visits[v])]):
        appeared.append(f"back after complete response: {_named(back)}")
    if course.rules.immunotherapy:
        remarks += [f"{said}, which alone is no progression under immunotherapy" for said in appeared]
    else:
        reasons += appeared
    return reasons, remarks


def _without_progression(course: _Course, sums: Sequence[float], v: int, nadir: int) -> tuple[Category, str]:
    """Return the category of visit *v*, which is not PD, and why."""
    from_baseline, from_nadir = change_percent(sums[v], sums[0]), change_percent(sums[v], sums[nadir])
    left = course.there(v)
    if not left and any(x.first == 0 for x in course.lesions):
        return "CR", "no lesion is left"
    if not course.targets:
        return "non-CR/non-PD", "nothing was measurable at baseline"
    others = f"; not complete: {_named(left)} still there" if sums[v] == 0 else ""
    if from_baseline is not None and from_baseline <= RESPONSE_PERCENT + _ROUNDING:
        return "PR", f"sum of targets {from_baseline:+.0f} % from baseline{others}"
    return (
        "SD",
        f"sum of targets {from_baseline or 0:+.0f} % from baseline, {from_nadir or 0:+.0f} % from the smallest sum",
    )


def _numbers(lesions: Sequence[FollowedLesion]) -> tuple[int, ...]:
    return tuple(lesion.number for lesion in lesions)


def _named(lesions: Sequence[FollowedLesion]) -> str:
    numbers = [str(lesion.number) for lesion in lesions]
    shown = ", ".join(numbers[:10]) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"lesion{'s' if len(numbers) > 1 else ''} {shown}"
