"""One case, scored: what travels from a worker to the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.metrics.curves import CalibrationCounts, Candidates
from metaseg_cli.core.metrics.protocols import Protocol
from metaseg_cli.core.metrics.scoring import Comparison, compare

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What the probabilities of one region and case say, to be added up over cases."""

    candidates: Candidates
    calibration: CalibrationCounts


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """The comparison of each region. ``affine`` (4 × 4, (x, y, z) index → patient mm, LPS) is None for pictures."""

    case: str
    patient: str
    comparisons: dict[str, Comparison]
    confidence: dict[str, Confidence]
    affine: tuple[tuple[float, ...], ...] | None = None

    @property
    def regions(self) -> dict[str, dict[str, float]]:
        """Region → metric → value."""
        return {name: comparison.scores for name, comparison in self.comparisons.items()}

    def for_mean(self, region: str, metric: str) -> float:
        """The value as it enters a mean: a distance to nothing is the protocol's penalty; NaN where not defined."""
        comparison = self.comparisons[region]
        value = comparison.scores[metric]
        return comparison.penalty if math.isinf(value) else value


@dataclass(frozen=True)
class Picture:
    """The slice in which the masks of a case differ most; ``image (C, Y, X)`` None when there is no scan."""

    image: NDArray[Any] | None
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredCase:
    """Scores and picture of a case."""

    score: CaseScore
    picture: Picture


def score_case(
    case: str,
    patient: str,
    regions: dict[str, Masks],
    spacing_mm: tuple[float, float, float] | None,
    protocol: Protocol,
    tolerances: Sequence[float],
    *,
    image: NDArray[Any] | None = None,
    affine: NDArray[np.float64] | None = None,
    probabilities: dict[str, NDArray[np.float32]] | None = None,
    confidence: dict[str, Confidence] | None = None,
) -> ScoredCase:
    """Compare the masks ``(Z, Y, X)`` of each region; *image* is ``(C, Z, Y, X)``."""
    comparisons = {
        name: compare(r, p, spacing_mm, protocol, tolerances, (probabilities or {}).get(name))
        for name, (r, p) in regions.items()
    }
    score = CaseScore(
        case=case,
        patient=patient,
        comparisons=comparisons,
        confidence=confidence or {},
        affine=None if affine is None else tuple(tuple(float(v) for v in row) for row in affine),
    )
    reference = np.any([r for r, _ in regions.values()], axis=0)
    prediction = np.any([p for _, p in regions.values()], axis=0)
    wrong = (reference ^ prediction).reshape(len(reference), -1).sum(axis=1)
    z = int(wrong.argmax()) if wrong.any() else int(reference.reshape(len(reference), -1).sum(axis=1).argmax())
    shown = None if image is None else image[:, z].copy()
    return ScoredCase(score, Picture(shown, reference[z].copy(), prediction[z].copy()))
