"""How far the network's probabilities can be trusted: lesion by lesion (FROC, precision), and voxel by voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.detection import describe_labels, label_lesions, overlaps
from metaseg_cli.core.results import FrocCurve, Reliability, ReliabilityCurves

FROC_AT = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # false lesions per case
CANDIDATE = 0.5  # the probability from which a component is a candidate
CALIBRATION_BINS = 15
_WIDE_BINS = 10
_FINE = 4000  # probabilities are counted this finely, so that cases can be added up


@dataclass(frozen=True)
class Candidates:
    """Predicted components of one case: confidence (mean probability), and the reference lesions that each touches."""

    confidence: tuple[float, ...]
    hits: tuple[tuple[int, ...], ...]
    lesions: int  # of the reference


def find_candidates(
    reference: NDArray[np.bool_], probability: NDArray[np.floating[Any]], threshold: float = CANDIDATE
) -> Candidates:
    """Components of *probability* ``(Z, Y, X)`` at *threshold* and what they touch."""
    truth, lesions = label_lesions(reference)
    labels, count = label_lesions(probability >= threshold)
    touched: list[list[int]] = [[] for _ in range(count)]
    for component, lesion in overlaps(labels, truth)[0]:
        touched[component - 1].append(int(lesion))
    components = describe_labels(labels, count, probability=probability)
    return Candidates(tuple(each.confidence or 0.0 for each in components), tuple(map(tuple, touched)), lesions)


@dataclass(frozen=True)
class Froc:
    """The free-response curve as the lowest accepted confidence falls, and the average precision."""

    curve: FrocCurve
    average_precision: float


def froc(cases: Sequence[Candidates]) -> Froc | None:
    """The free-response curve of all *cases*, None without any reference lesion.

    ``score`` is the mean recall at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false lesions per case (as in LUNA16). Average
    precision sums the precision at each gain of recall; a second component on a lesion already found counts neither
    way.
    """
    lesions = sum(case.lesions for case in cases)
    if not lesions:
        return None
    ranked = sorted(
        (
            (c, number, hit)
            for number, case in enumerate(cases)
            for c, hit in zip(case.confidence, case.hits, strict=True)
        ),
        key=lambda row: -row[0],
    )
    found: set[tuple[int, int]] = set()
    false = true = 0
    average = 0.0
    points = [(0.0, 0.0)]
    for i, (confidence, number, hit) in enumerate(ranked):
        fresh = {(number, lesion) for lesion in hit} - found
        false += not hit
        true += bool(fresh)
        found |= fresh
        # Components of one confidence come and go together.
        if i + 1 == len(ranked) or ranked[i + 1][0] != confidence:
            recall = len(found) / lesions
            average += (recall - points[-1][1]) * true / max(1, true + false)
            points.append((false / len(cases), recall))
    x, y = zip(*points, strict=True)
    score = float(np.mean([max(r for f, r in points if f <= limit) for limit in FROC_AT]))
    return Froc(FrocCurve(false_per_case=x, recall=y, score=score), average)


@dataclass(frozen=True)
class CalibrationCounts:
    """Voxels of one or more cases by predicted probability: how many, how many of them are lesion."""

    voxels: NDArray[np.int64]
    lesion: NDArray[np.int64]
    probability: NDArray[np.float64]  # their sum

    def __add__(self, other: CalibrationCounts) -> CalibrationCounts:
        return CalibrationCounts(
            self.voxels + other.voxels, self.lesion + other.lesion, self.probability + other.probability
        )


def count_calibration(
    reference: NDArray[np.bool_], probability: NDArray[np.floating[Any]], inside: NDArray[np.bool_]
) -> CalibrationCounts:
    """Count the voxels *inside* the head."""
    values = probability[inside]
    fine = np.clip((values * _FINE).astype(np.int64), 0, _FINE - 1)
    return CalibrationCounts(
        np.bincount(fine, minlength=_FINE),
        np.bincount(fine[reference[inside]], minlength=_FINE),
        np.bincount(fine, weights=values, minlength=_FINE).astype(np.float64),
    )


@dataclass(frozen=True)
class Calibration:
    """``ece``: expected calibration error, the mean difference over the bins of equal mass, weighted by voxels."""

    ece: float
    curves: ReliabilityCurves


def calibration(counts: CalibrationCounts, bins: int = CALIBRATION_BINS) -> Calibration | None:
    """Reliability over *bins* of as equal mass as ties allow (Naeini et al. 2015 with equal-mass bins)."""
    total = int(counts.voxels.sum())
    if not total:
        return None
    by_mass = (np.cumsum(counts.voxels) - counts.voxels / 2) * bins / total
    equal_mass = _binned(counts, np.minimum(by_mass, bins - 1).astype(np.int64))
    errors = np.abs(np.subtract(equal_mass.predicted, equal_mass.observed))
    ece = float(np.average(errors, weights=equal_mass.voxels))
    equal_width = _binned(counts, np.arange(_FINE) * _WIDE_BINS // _FINE)
    return Calibration(ece, ReliabilityCurves(equal_mass=equal_mass, equal_width=equal_width))


def _binned(counts: CalibrationCounts, bin_of: NDArray[np.int64]) -> Reliability:
    """*bin_of* ``(_FINE,)``: the bin of each fine step of *counts*."""
    voxels = np.bincount(bin_of, weights=counts.voxels)
    filled = voxels > 0
    predicted = np.bincount(bin_of, weights=counts.probability)[filled] / voxels[filled]
    observed = np.bincount(bin_of, weights=counts.lesion)[filled] / voxels[filled]
    return Reliability(
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        voxels=tuple(voxels[filled].astype(int).tolist()),
    )
