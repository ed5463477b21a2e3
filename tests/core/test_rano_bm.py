"""RANO-BM's categories: every course of the documentation's table, with diameters that are given and not measured."""

from __future__ import annotations

import re
from math import pi

import numpy as np
import pytest

from metaseg_cli.core.follow_up import FollowUpResult, follow
from metaseg_cli.core.lesion_tracking import Detection
from metaseg_cli.core.measurements import Measurement
from metaseg_cli.core.rano_bm import Rules
from tests.common import ROOT

_LESION = re.compile(r"(?P<names>[A-Z](?:\+[A-Z])*)(?P<mm>[\d.]+)(?:x(?P<x>[\d.]+))?(?:/(?P<n>\d+))?(?:@(?P<s>\d+))?")


def detection(text: str, part: int = 0) -> Detection:
    """``A20x12/3@5``: 20 × 12 mm at the place of A, on three slices 5 mm apart; the volume of a ball."""
    found = _LESION.fullmatch(text)
    assert found is not None, text
    longest = float(found["mm"])
    points = [(100.0 * ord(name) + part, 0.0, 0.0) for name in found["names"].split("+")]
    return Detection(
        points_mm=np.array(points),
        reach_mm=2.0,
        volume_mm3=pi / 6 * longest**3,
        measurement=Measurement(
            longest=longest,
            perpendicular=float(found["x"] or 0.8 * longest),
            slice=0,
            feret=longest,
            slices=(0, int(found["n"] or 5) - 1),
            slice_spacing=float(found["s"] or 1),
        ),
    )


def visits(course: str) -> list[list[Detection]]:
    """Return the detections of each visit of ``A20 B8 → A14``."""
    each = [visit.strip(" –").split() for visit in course.split("→")]
    return [[detection(text, part) for part, text in enumerate(texts)] for texts in each]


def assessed(course: str, **rules: bool) -> FollowUpResult:
    return follow(visits(course), rules=Rules(**rules))


def courses() -> list[tuple[str, str, str, str]]:
    """Return the rows of the table in docs/how-to/follow-up.md."""
    page = (ROOT / "docs" / "how-to" / "follow-up.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|") and "→" in line]
    return [
        (course.strip(), options.strip(" `"), expected.strip(), why.strip()) for course, options, expected, why in rows
    ]


@pytest.mark.parametrize(("course", "options", "expected", "why"), courses())
def test_a_course_of_the_documentation_has_its_categories(course: str, options: str, expected: str, why: str) -> None:
    assert options in ("", "--immunotherapy", "--non-target report")
    rules = Rules(immunotherapy="immunotherapy" in options, count_non_targets="report" not in options)
    result = follow(visits(course), rules=rules)
    assert [visit.category for visit in result.visits] == ["baseline", *expected.split(", ")], why


def test_the_documentation_has_enough_courses() -> None:
    assert len({row[:2] for row in courses()}) == len(courses()) >= 25


def test_every_reason_for_progression_is_named_with_its_lesion() -> None:
    _, later = assessed("A20 B8 → A26 B14 C9").visits
    assert later.reason == (
        "sum of targets 26.0 mm, smallest before 20.0 mm (+30 %); lesion 1 grew by 6.0 mm; "
        "non-target lesion 2 grew from 8.0 to 14.0 mm (+75 %); new: lesion 3"
    )
    assert later.new == (3,)


def test_volume_of_non_targets_is_named_in_millilitres() -> None:
    _, later = assessed("A9 B9 C9 D9 → A12 B11 C11 D11").visits
    # π/6 · 4 · 9³ = 1527 mm³; π/6 · (12³ + 3 · 11³) = 2995 mm³
    assert later.reason == "the volume of the non-target lesions grew from 1.53 to 3.00 ml, most in lesion 1"


def test_rules_turn_reasons_into_remarks() -> None:
    _, later = assessed("A20 B8 → A20 B14", count_non_targets=False).visits
    assert (later.category, later.remarks) == ("SD", ("non-target lesion 2 grew from 8.0 to 14.0 mm (+75 %)",))
    _, later = assessed("A20 → A20 C8", immunotherapy=True).visits
    assert later.category == "SD"
    assert later.remarks == ("new: lesion 2, which alone is no progression under immunotherapy",)


def test_equivocal_lesions_are_named_until_they_are_certain() -> None:
    _, second, third, fourth = assessed("A20 → A20 C4/1 → A20 C4/1 → A20 C5").visits
    assert [(v.new, v.uncertain) for v in (second, third, fourth)] == [((), (2,)), ((), (2,)), ((2,), ())]


def test_a_target_within_a_larger_non_target_is_no_response() -> None:
    # B is shorter on its slices than A, but has more volume: what they merge into is B.
    target, bulky = detection("A12"), detection("B9")
    bulky = Detection(**{**vars(bulky), "volume_mm3": 5000.0})
    result = follow([[target, bulky], [detection("A+B13")]])
    assert result.lesions[0].state(1) == "merged into 2"
    assert (result.visits[1].sum_mm, result.visits[1].category) == (13.0, "SD")


def test_non_targets_that_merge_do_not_grow_by_that() -> None:
    assert [v.category for v in assessed("A8 B7 → A+B11").visits] == ["baseline", "non-CR/non-PD"]
    apart_again = assessed("A20 B8 C7 → A20 B+C11 → A20 B8 C7").visits
    assert [v.category for v in apart_again] == ["baseline", "SD", "SD"]


def test_sums_and_changes_are_those_of_the_targets() -> None:
    first, second, third = assessed("A20 B12 C5 → A14 B9 C5 → A16 B9 C5").visits
    assert [v.sum_mm for v in (first, second, third)] == [32, 23, 25]
    assert second.from_baseline == pytest.approx(-28.125)
    assert third.from_nadir == pytest.approx(100 * 2 / 23)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7])
def test_limits_hold_however_numbers_are_rounded(scale: float) -> None:
    # 0.1 + 0.2 > 0.3 in floating-point numbers: limits that are met exactly must not depend on that.
    parts = [scale] * round(10 / scale) if abs(10 / scale - round(10 / scale)) < 1e-9 else [10.0]
    ten = sum(parts)
    at_limit = Measurement(longest=ten, perpendicular=ten / 2, slice=0, feret=ten, slices=(0, 1), slice_spacing=ten / 2)
    assert at_limit.measurable
