"""The numbers in the documents of an evaluation and a comparison: field names are JSON keys and CSV columns."""

from __future__ import annotations

from dataclasses import dataclass, field

from metaseg_cli.core.typed_json import OMIT_NONE


@dataclass(frozen=True, kw_only=True)
class MetricMean:
    """Mean over the ``n`` cases that have a metric, and its bootstrap 95 % interval over patients (NaN for one)."""

    mean: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class SizeClassScores:
    """Reference lesions of one size; None where there is nothing to divide by."""

    lesions: int
    found: int
    false: int
    recall: float | None
    f1: float | None
    dice: float | None


@dataclass(frozen=True, kw_only=True)
class FrocCurve:
    """Lesion recall against mean false lesions per case; ``score`` is the mean recall at 1/8, 1/4, …, 8 of them."""

    false_per_case: tuple[float, ...]
    recall: tuple[float, ...]
    score: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Voxels in bins of probability: the mean ``predicted`` one, the share that is lesion, the number of voxels."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    voxels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReliabilityCurves:
    """Nearly all voxels are background: bins of ``equal_mass`` crowd near 0, those of ``equal_width`` show the rest."""

    equal_mass: Reliability
    equal_width: Reliability


@dataclass(frozen=True, kw_only=True)
class ConfidenceReport:
    """How far the probabilities of one region can be trusted, over all cases; what is not defined is left out."""

    froc: FrocCurve | None = field(default=None, metadata=OMIT_NONE)
    average_precision: float | None = field(default=None, metadata=OMIT_NONE)
    ece: float | None = field(default=None, metadata=OMIT_NONE)
    reliability: ReliabilityCurves | None = field(default=None, metadata=OMIT_NONE)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """*first* minus *second* in one metric over patients: a row of ``comparison.csv``.

    ``p`` is that of Wilcoxon's signed-rank test (two-sided; 1 when no patient differs), ``p_holm`` corrected for all
    pairs and metrics of the region. ``wins`` are those of the first, by what is better in that metric.
    """

    region: str
    first: str
    second: str
    metric: str
    mean: float
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int
    ci95_low: float
    ci95_high: float


Summary = dict[str, dict[str, MetricMean]]  # region → metric


RankFrequencies = dict[str, dict[str, list[float]]]  # metric → system → how often it has rank 1, 2, …
