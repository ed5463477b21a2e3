"""What the training cases looked like, and how a scan differs from them. Free of torch.

A scan is unlike them where the Mahalanobis distance of its descriptors is large (Lee et al. 2018, NeurIPS). The limit
comes from the training cases themselves: each patient's distance is measured with statistics of the others, so that few
cases make a wide limit, not false alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.descriptors import columns

VERSION = 1  # of the descriptors; statistics of other ones are not compared
_LEAST_PATIENTS = 4  # below, intensities are not compared
_MOST_ROWS = 600  # of descriptors: more say nothing new
_MOST_PARTS = 24  # into which patients are divided to find limits
_SHRINKAGE = 0.3  # of the correlations towards none: few cases give rough ones (measured between 0.03 and 1)
_LEAST_SCALE = 0.02  # of a descriptor, whose noise is about this
_FALSE_ALARMS = 0.05  # on patients like those of the training
_LEAST_LIMIT = 1.7  # deviations …
_LEAST_EVIDENCE = 3.0  # … and logarithm of how much more likely another sequence is, where there are many patients; …
_FEW = 4.0  # … with this many patients, twice as much
_ONE_DEVIATION = (15.87, 50, 84.13)  # percentiles of a Gaussian at −1, 0 and 1 deviation
_LEAST_DEVIATION = 0.05  # of logarithms of distances
_LENGTH_MARGIN = 1.25  # by which lengths may lie outside those of the training cases …
_LENGTH_DEVIATIONS = 3.0  # … or this many deviations of their logarithms from the mean

Rows = NDArray[np.float64]
Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LengthRange:
    """Lengths of training cases along ``(z, y, x)``, and the limits *low* and *high* outside which one is odd."""

    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @classmethod
    def of(cls, lengths: Sequence[tuple[float, float, float]]) -> LengthRange:
        """Of at least one case."""
        logs = np.log(np.maximum(np.array(lengths, float), 1e-6))
        margin = np.log(_LENGTH_MARGIN) * (1 + 1 / len(logs))
        spread = _LENGTH_DEVIATIONS * logs.std(axis=0)
        low = np.exp(np.minimum(logs.min(axis=0) - margin, logs.mean(axis=0) - spread))
        high = np.exp(np.maximum(logs.max(axis=0) + margin, logs.mean(axis=0) + spread))
        return cls(
            smallest=_three(np.exp(logs.min(axis=0))),
            largest=_three(np.exp(logs.max(axis=0))),
            low=_three(low),
            high=_three(high),
        )

    def odd(self, lengths: Sequence[float]) -> list[int]:
        """Return the axes (0 is z) along which *lengths* lie outside."""
        bounds = enumerate(zip(self.low, lengths, self.high, strict=True))
        return [axis for axis, (low, length, high) in bounds if not low <= length <= high]

    def text(self, axis: int) -> str:
        """Return ``0.9–1.2``."""
        low, high = length_text(self.smallest[axis]), length_text(self.largest[axis])
        return low if low == high else f"{low}–{high}"


def length_text(length: float) -> str:
    """Return two digits of a short length, and whole numbers of a long one."""
    return f"{length:.0f}" if length >= 10 else f"{length:.2g}"


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = (float(f"{value:.5g}") for value in values)
    return (z, y, x)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Descriptors of one sequence, or of a pair of them: a Gaussian, and how far training cases lie from the others'.

    ``mean`` and ``scale`` have one number per descriptor, ``precision`` is the inverse of their correlations.
    """

    mean: Numbers
    scale: Numbers
    precision: tuple[Numbers, ...]
    log_distance: float = 0.0  # mean over held-out training cases …
    log_deviation: float = 1.0  # … and deviation

    def __post_init__(self) -> None:
        n = len(self.mean)
        if len(self.scale) != n or len(self.precision) != n or any(len(row) != n for row in self.precision):
            raise ValueError("descriptors of different lengths")
        if min((*self.scale, self.log_deviation), default=1.0) <= 0:
            raise ValueError("a deviation is not positive")

    @classmethod
    def of(cls, rows: Rows) -> Distribution:
        """Of ``(N, D)``."""
        mean, scale = rows.mean(axis=0), rows.std(axis=0) + _LEAST_SCALE
        centred = (rows - mean) / scale
        return cls._of(mean, scale, centred.T @ centred / len(rows))

    @classmethod
    def within(cls, groups: Sequence[Rows]) -> Distribution:
        """Return how rows differ from the mean of their own group, with equal weight of groups; its mean is 0."""
        centred = [rows - rows.mean(axis=0) for rows in groups]
        scale = np.sqrt(np.mean([(rows**2).mean(axis=0) for rows in centred], axis=0)) + _LEAST_SCALE
        correlations = np.mean([(rows / scale).T @ (rows / scale) / len(rows) for rows in centred], axis=0)
        return cls._of(np.zeros_like(scale), scale, correlations)

    @classmethod
    def _of(cls, mean: Rows, scale: Rows, correlations: Rows) -> Distribution:
        shrunk = (1 - _SHRINKAGE) * correlations + _SHRINKAGE * np.eye(len(mean))
        precision = np.linalg.inv(shrunk)
        return cls(mean=_short(mean), scale=_short(scale), precision=tuple(_short(row) for row in precision))

    def squared_distances(self, rows: Rows, mean: Sequence[float] | None = None) -> Rows:
        """Return the squared Mahalanobis distance of each of ``(N, D)`` from *mean*; not given: the distribution's."""
        centred = (rows - np.array(self.mean if mean is None else mean)) / np.array(self.scale)
        return np.maximum(np.einsum("ni,ij,nj->n", centred, np.array(self.precision), centred), 1e-12)

    def log_distances(self, rows: Rows) -> Rows:
        """Return the logarithm of each row's distance per descriptor."""
        return 0.5 * np.log(self.squared_distances(rows) / len(self.mean))


def _short(values: NDArray[np.float64]) -> Numbers:
    return tuple(float(f"{value:.6g}") for value in values)


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """Of the training cases, as the model's card holds them.

    ``distributions`` are of each sequence and pair of sequences, ``within`` is how cases of one sequence differ;
    ``limit`` bounds the deviations of a scan, ``evidence_limit``
    how much better another sequence may fit. Lengths in mm are
    of volumes: their voxels before resampling, and the box of the head; pixels are of pictures.
    """

    version: int = VERSION
    patients: int
    voxel_mm: LengthRange | None = None
    head_mm: LengthRange | None = None
    picture_px: LengthRange | None = None
    distributions: dict[str, Distribution] = field(default_factory=dict)
    within: Distribution | None = None
    limit: float = _LEAST_LIMIT
    evidence_limit: float = _LEAST_EVIDENCE

    def odd_intensities(self, rows: Rows, sequences: Sequence[str]) -> list[str]:
        """Return the sequences, and pairs of them, whose descriptors ``(S, K)`` are unlike those of the training."""
        return [name for name, deviation in self.deviations(rows, sequences).items() if deviation > self.limit]

    def mistaken(self, rows: Rows, sequences: Sequence[str]) -> dict[str, str]:
        """Return for each sequence that looks like another one of the model's, which one that is."""
        found = self.evidence(rows, sequences)
        return {name: other for name, (other, value) in found.items() if value > self.evidence_limit}

    def deviations(self, rows: Rows, sequences: Sequence[str]) -> dict[str, float]:
        """Return for each sequence and pair by how many deviations it is further away than held-out training cases.

        The median over the rows, which are slices of pictures. Sequences that are missing are left out.
        """
        found = {}
        for name, part in columns(sequences).items():
            own = complete(rows[:, part])
            if name in self.distributions and len(own):
                each = self.distributions[name]
                distance = float(np.median(each.log_distances(own)))
                found[name] = (distance - each.log_distance) / each.log_deviation
        return found

    def evidence(self, rows: Rows, sequences: Sequence[str]) -> dict[str, tuple[str, float]]:
        """Return which other sequence each one looks most like, and the logarithm of how much more it does.

        That the other one looks like it in turn counts too: two were swapped.
        """
        own = {name: complete(rows[:, columns(sequences)[name]]) for name in sequences if name in self.distributions}
        own = {name: values for name, values in own.items() if len(values)}
        if self.within is None:
            return {}
        likeness = {
            (a, b): -0.5 * float(np.median(self.within.squared_distances(own[a], self.distributions[b].mean)))
            for a in own
            for b in self.distributions
            if b in sequences
        }
        more = {(a, b): value - likeness[a, a] for (a, b), value in likeness.items() if a != b}
        found: dict[str, tuple[str, float]] = {}
        for (a, b), value in more.items():
            total = value + max(0.0, more.get((b, a), 0.0))
            if a not in found or total > found[a][1]:
                found[a] = b, total
        return found


def complete(rows: Rows) -> Rows:
    """Return the rows ``(N, D)`` without missing values."""
    return rows[np.isfinite(rows).all(axis=1)]


@dataclass(frozen=True, kw_only=True)
class CaseInput:
    """What is known of one training case: lengths of a volume in mm, or of a picture in pixels; descriptors (S, K)."""

    patient: str
    voxel_mm: tuple[float, float, float] | None
    head_mm: tuple[float, float, float] | None
    picture_px: tuple[float, float, float] | None
    rows: NDArray[np.float32]


def input_statistics(cases: Sequence[CaseInput], sequences: Sequence[str]) -> InputStatistics | None:
    """Return statistics of *cases*; None where there is nothing to compare with."""
    described = [case for case in cases if case.rows.size]
    every = max(1, -(-sum(len(case.rows) for case in described) // _MOST_ROWS))
    described = described[::every]
    patients = sorted({case.patient for case in described})
    fitted = InputStatistics(
        patients=len(patients),
        voxel_mm=_range(case.voxel_mm for case in cases),
        head_mm=_range(case.head_mm for case in cases),
        picture_px=_range(case.picture_px for case in cases),
    )
    if not described and fitted == InputStatistics(patients=0):
        return None
    if len(patients) < _LEAST_PATIENTS:
        return fitted
    parts = [patients.index(case.patient) % _MOST_PARTS for case in described]
    return _with_limits(fitted, [case.rows.astype(float) for case in described], parts, sequences)


def _range(lengths: Iterable[tuple[float, float, float] | None]) -> LengthRange | None:
    known = [each for each in lengths if each is not None]
    return LengthRange.of(known) if known else None


def _with_limits(
    fitted: InputStatistics, cases: Sequence[Rows], parts: Sequence[int], sequences: Sequence[str]
) -> InputStatistics:
    """Add distributions of all *cases*, and limits from each of the *parts* measured with statistics of the others."""
    held_out: list[tuple[InputStatistics, Rows]] = []
    for part in sorted(set(parts)):
        rest = [rows for rows, p in zip(cases, parts, strict=True) if p != part]
        others = _with_distributions(fitted, rest, sequences)
        own = [rows for rows, p in zip(cases, parts, strict=True) if p == part]
        held_out += [(others, row[None]) for row in np.concatenate(own)]
    distances = [others.deviations(row, sequences) for others, row in held_out]
    whole = _with_distributions(fitted, cases, sequences)
    calibrated = {}
    for name, each in whole.distributions.items():
        logs = [found[name] for found in distances if name in found]
        if logs:
            low, median, high = np.percentile(logs, _ONE_DEVIATION)  # one odd training case must not widen them
            deviation = max(_LEAST_DEVIATION, float(high - low) / 2)
            calibrated[name] = replace(each, log_distance=float(median), log_deviation=deviation)
    worst = [
        max(
            (found[name] - each.log_distance) / each.log_deviation for name, each in calibrated.items() if name in found
        )
        for found in distances
        if set(found) & set(calibrated)
    ]
    evidence = [
        max(value for _, value in found.values())
        for others, row in held_out
        if (found := others.evidence(row, sequences))
    ]
    few = 1 + _FEW / fitted.patients
    return replace(
        whole,
        distributions=calibrated,
        limit=max(_LEAST_LIMIT * few, _bound(worst, 2 if evidence else 1)),
        evidence_limit=max(_LEAST_EVIDENCE * few, _bound(evidence, 2)),
    )


def _bound(values: Sequence[float], checks: int) -> float:
    """Return what few held-out cases exceed, where they must pass several *checks*."""
    return float(np.quantile(values, 1 - _FALSE_ALARMS / checks, method="higher")) if values else 0.0


def _with_distributions(fitted: InputStatistics, cases: Sequence[Rows], sequences: Sequence[str]) -> InputStatistics:
    rows = np.concatenate(cases)
    found = {name: complete(rows[:, part]) for name, part in columns(sequences).items()}
    found = {name: values for name, values in found.items() if len(values) >= _LEAST_PATIENTS - 1}
    of_sequences = [values for name, values in found.items() if name in sequences]
    return replace(
        fitted,
        distributions={name: Distribution.of(values) for name, values in found.items()},
        within=Distribution.within(of_sequences) if len(of_sequences) > 1 else None,
    )
