"""Means over cases with intervals that know which cases belong to one patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bootstrap_mean(
    values: Sequence[float], patients: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the mean over cases and its 95 % percentile interval, resampling patients with all their cases.

    With a single patient there is no interval: NaN to NaN.

    Raises ValueError for no values, and for None, NaN and infinity: only a metric's policy can say what replaces them
    in a mean, and leaving them out would flatter it.
    """
    if not len(values):
        raise ValueError("no values")
    numbers = np.asarray(values, dtype=float)  # None becomes NaN
    if not np.isfinite(numbers).all():
        raise ValueError("values that are not finite; put in what the metric's policy says first")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1
    if count == 1:
        return float(numbers.mean()), (math.nan, math.nan)
    sums = np.bincount(owner, weights=numbers, minlength=count)
    sizes = np.bincount(owner, minlength=count)
    drawn = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(numbers.mean()), (float(low), float(high))
