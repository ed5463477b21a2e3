"""Two or more systems on the same patients: how certain it is that one is better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from metaseg_cli.core.results.scores import PairedDifference

_TIE = 1e-9


def paired_differences(
    region: str,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    lower_is_better: Collection[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> list[PairedDifference]:
    """Compare every pair of systems in every metric; *values*: system → metric → one number per patient, in one order.

    The intervals resample patients, the same for all systems (95 % percentile). One patient has no interval (NaN).
    """
    systems = list(values)
    rows: list[PairedDifference] = []
    for metric in values[systems[0]] if systems else ():
        for first, second in itertools.combinations(systems, 2):
            a, b = (np.asarray(values[name][metric], dtype=float) for name in (first, second))
            change = a - b
            better = -change if metric in lower_is_better else change
            wins, losses = int((better > _TIE).sum()), int((better < -_TIE).sum())
            low, high = _interval(change, resamples, seed)
            rows.append(
                PairedDifference(
                    region=region,
                    first=first,
                    second=second,
                    metric=metric,
                    mean=float(change.mean()),
                    p=float(stats.wilcoxon(change).pvalue) if wins + losses else 1.0,
                    p_holm=1.0,
                    wins=wins,
                    ties=len(change) - wins - losses,
                    losses=losses,
                    ci95_low=low,
                    ci95_high=high,
                )
            )
    return [replace(row, p_holm=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def _interval(change: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    if len(change) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, len(change), size=(resamples, len(change)))
    low, high = np.percentile(change[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): controls the chance of any false finding among all of them."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return [float(p) for p in corrected]


def rank_frequencies(
    values: Mapping[str, Sequence[float]], *, lower_is_better: bool = False, resamples: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """Return how often each system has rank 1, 2, … when patients are resampled (Wiesenfarth et al. 2021).

    *values*: system → one number per patient, in one order. Equal means share the better rank.
    """
    table = np.array([list(v) for v in values.values()], dtype=float)
    table = table if lower_is_better else -table
    patients = table.shape[1]
    drawn = np.random.default_rng(seed).integers(0, patients, size=(resamples, patients))
    means = table[:, drawn].mean(axis=2)
    ranks = (means[None, :, :] < means[:, None, :] - _TIE).sum(axis=1)
    return {name: [float((ranks[i] == r).mean()) for r in range(len(table))] for i, name in enumerate(values)}
