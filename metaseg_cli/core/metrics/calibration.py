"""Calibration: how often voxels of a predicted probability are lesion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.results.scores import Reliability, ReliabilityCurves

CALIBRATION_BINS = 15  # of equal mass, as in Guo et al. 2017
_WIDE_BINS = 10
_FINE = 4000  # probabilities are counted in steps of 1/4000, so that the counts of cases can be added up


@dataclass(frozen=True)
class CalibrationCounts:
    """Voxels of one or more cases by predicted probability: all of them, and those that are lesion."""

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
    """Count the voxels *inside* the head; all arrays are ``(Z, Y, X)``."""
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
    """Return reliability over *bins* of as equal mass as ties allow (Naeini et al. 2015 with equal-mass bins)."""
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
    """Add up *counts* per bin; *bin_of* ``(_FINE,)`` is the bin of each fine step."""
    voxels = np.bincount(bin_of, weights=counts.voxels)
    filled = voxels > 0
    predicted = np.bincount(bin_of, weights=counts.probability)[filled] / voxels[filled]
    observed = np.bincount(bin_of, weights=counts.lesion)[filled] / voxels[filled]
    return Reliability(
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        voxels=tuple(voxels[filled].astype(int).tolist()),
    )
