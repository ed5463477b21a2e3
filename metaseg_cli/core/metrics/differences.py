"""Two or more models on the same patients: how sure it is that one is better."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """*first* minus *second* in one metric over patients; ``wins`` of the first, by what is better in that metric."""

    first: str
    second: str
    metric: str
    mean: float
    ci95: tuple[float, float]
    p: float  # Wilcoxon signed-rank, two-sided; 1 when no patient differs
    p_holm: float  # corrected for all pairs and metrics of the comparison
    wins: int
    ties: int
    losses: int


def paired_differences(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    lower_is_better: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """Every pair of systems in every metric; *values*: system → metric → one number per patient, in one order.

    The intervals resample patients, the same for all systems (95 % percentile). One patient has no interval (NaN).
    """
    systems = list(values)
    rows: list[Difference] = []
    for metric in values[systems[0]] if systems else ():
        for first, second in itertools.combinations(systems, 2):
            a, b = (np.asarray(values[name][metric], dtype=float) for name in (first, second))
            change = a - b
            better = -change if metric in lower_is_better else change
            wins, losses = int((better > _TIE).sum()), int((better < -_TIE).sum())
            low, high = (np.nan, np.nan)
            if len(change) > 1:
                drawn = np.random.default_rng(seed).integers(0, len(change), size=(resamples, len(change)))
                low, high = np.percentile(change[drawn].mean(axis=1), (2.5, 97.5))
            rows.append(
                Difference(
                    first=first,
                    second=second,
                    metric=metric,
                    mean=float(change.mean()),
                    ci95=(float(low), float(high)),
                    p=float(stats.wilcoxon(change).pvalue) if wins + losses else 1.0,
                    p_holm=1.0,
                    wins=wins,
                    ties=len(change) - wins - losses,
                    losses=losses,
                )
            )
    corrected = holm([row.p for row in rows])
    return [Difference(**{**vars(row), "p_holm": p}) for row, p in zip(rows, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): controls the chance of any false finding among all of them."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return [float(p) for p in corrected]


def rank_shares(
    values: Mapping[str, Sequence[float]], *, lower_is_better: bool = False, resamples: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """How often each system takes rank 1, 2, … when patients are drawn anew (Wiesenfarth et al. 2021).

    *values*: system → one number per patient, in one order. Equal means share the better rank.
    """
    table = np.array([list(v) for v in values.values()], dtype=float)
    table = table if lower_is_better else -table
    patients = table.shape[1]
    drawn = np.random.default_rng(seed).integers(0, patients, size=(resamples, patients))
    means = table[:, drawn].mean(axis=2)
    ranks = (means[None, :, :] < means[:, None, :] - _TIE).sum(axis=1)
    return {name: [float((ranks[i] == r).mean()) for r in range(len(table))] for i, name in enumerate(values)}
