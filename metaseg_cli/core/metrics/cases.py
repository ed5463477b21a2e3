"""One case and its scores: what travels from a worker to the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.metrics.calibration import CalibrationCounts
from metaseg_cli.core.metrics.froc import Candidates
from metaseg_cli.core.metrics.scoring import Comparison, compare


@dataclass(frozen=True, kw_only=True)
class ScoringRules:
    """How cases are scored: the *protocol* of lesions, and surface *tolerances* in mm, or pixels without a spacing."""

    protocol: Protocol
    tolerances: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What the probabilities of one region contribute to FROC and calibration; it is added up over cases."""

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
        """Return the metrics of each region."""
        return {name: comparison.scores for name, comparison in self.comparisons.items()}

    def for_mean(self, region: str, metric: str) -> float:
        """Return the value as it enters a mean: the penalty for a distance to nothing, NaN where it is not defined."""
        comparison = self.comparisons[region]
        value = comparison.scores[metric]
        return comparison.penalty if math.isinf(value) else value


@dataclass(frozen=True)
class CaseSlice:
    """The slice in which the masks of a case differ most; ``image (C, Y, X)`` is None without a scan.

    ``reference`` and ``prediction (R, Y, X)`` are a mask per region, in the order of the score's regions.
    """

    image: NDArray[Any] | None
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredCase:
    """Scores and picture of a case."""

    score: CaseScore
    picture: CaseSlice


@dataclass(frozen=True, kw_only=True)
class MaskPair:
    """One region of a case: both masks ``(Z, Y, X)``, and of the prediction its probabilities, where there are any."""

    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    probability: NDArray[np.float32] | None = None
    confidence: Confidence | None = None


def score_case(
    case: str,
    patient: str,
    regions: dict[str, MaskPair],
    spacing_mm: tuple[float, float, float] | None,
    rules: ScoringRules,
    *,
    image: NDArray[Any] | None = None,
    affine: NDArray[np.float64] | None = None,
    view: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    per_slice: bool = False,
) -> ScoredCase:
    """Compare the masks of each region. *image* is ``(C, Z, Y, X)``; *affine* as for ``CaseScore``.

    *view* turns arrays ``(…, Z, Y, X)`` for the picture, so that their slices are axial. *per_slice*: the slices are
    pictures, and lesions lie in one.
    """
    comparisons = {
        name: compare(
            pair.reference,
            pair.prediction,
            spacing_mm,
            rules.protocol,
            rules.tolerances,
            pair.probability,
            per_slice=per_slice,
        )
        for name, pair in regions.items()
    }
    score = CaseScore(
        case=case,
        patient=patient,
        comparisons=comparisons,
        confidence={name: pair.confidence for name, pair in regions.items() if pair.confidence is not None},
        affine=None if affine is None else tuple(tuple(float(v) for v in row) for row in affine),
    )
    return ScoredCase(score, _slice(list(regions.values()), image, view or (lambda array: array)))


def _slice(
    pairs: Sequence[MaskPair], image: NDArray[Any] | None, view: Callable[[NDArray[Any]], NDArray[Any]]
) -> CaseSlice:
    # Region by region: regions that are mixed up differ, though they cover the same voxels together.
    reference = view(np.stack([pair.reference for pair in pairs]))
    prediction = view(np.stack([pair.prediction for pair in pairs]))
    wrong = (reference ^ prediction).sum(axis=(0, 2, 3))
    z = int(wrong.argmax()) if wrong.any() else int(reference.sum(axis=(0, 2, 3)).argmax())
    shown = None if image is None else view(image)[:, z].copy()
    return CaseSlice(shown, reference[:, z].copy(), prediction[:, z].copy())
