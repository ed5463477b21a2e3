"""What a model promises at each operating point: its post-processing, and what that found on the validation cases."""

from __future__ import annotations

from dataclasses import dataclass, field

from metaseg_cli.core.postprocessing import Postprocessing


@dataclass(frozen=True, kw_only=True)
class SizeClassScore:
    """How many reference lesions there are of one size, and how many of them were found."""

    up_to: float | None  # the diameter at which the next class begins; None for the last one
    lesions: int
    found: int


@dataclass(frozen=True, kw_only=True)
class RegionPoint:
    """One region on the validation cases: lesions found and false ones per case, with 95 % bootstrap intervals.

    ``dice`` is the mean over patients. One patient has no interval.
    """

    lesion_recall: float
    lesion_recall_ci95: tuple[float, float] | None
    false_per_case: float
    false_per_case_ci95: tuple[float, float] | None
    lesion_f1: float
    dice: float
    by_size: tuple[SizeClassScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What is done to each region's calibrated probabilities, and what that gave on the validation cases."""

    postprocessing: dict[str, Postprocessing]
    validation: dict[str, RegionPoint] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrocPoint:
    """The most lesions of the validation cases that are found at no more than *false_per_case* false ones per case."""

    false_per_case: float
    lesion_recall: float
    by_size: tuple[SizeClassScore, ...]
