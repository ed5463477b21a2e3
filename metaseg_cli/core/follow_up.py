"""Lesions over the visits of one patient: which is which, how they change, and RANO-BM's category of each visit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from metaseg_cli.core.lesion_tracking import Detection, FollowedLesion, track
from metaseg_cli.core.rano_bm import Assessment, Rules, assess, targets


@dataclass(frozen=True, kw_only=True)
class FollowUpResult:
    """All lesions, and an assessment for every visit."""

    lesions: tuple[FollowedLesion, ...]
    visits: tuple[Assessment, ...]


def follow(
    visits: Sequence[Sequence[Detection]], tolerance_mm: float = 3.0, rules: Rules | None = None
) -> FollowUpResult:
    """Match the detections of *visits*, which are in order of time, and assess each visit.

    Lesions that do not overlap are the same within *tolerance_mm*.
    """
    tracked = track(visits, tolerance_mm)
    chosen = targets(tracked)
    lesions = tuple(dataclasses.replace(lesion, target=lesion.number in chosen) for lesion in tracked)
    return FollowUpResult(lesions=lesions, visits=assess(lesions, len(visits), rules or Rules()))
