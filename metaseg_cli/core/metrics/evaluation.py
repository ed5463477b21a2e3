"""Scores of many cases together: means with intervals, patients, size classes, and how far to trust probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaseg_cli.core.metrics.cases import CaseScore
from metaseg_cli.core.metrics.curves import Calibration, Froc, calibration, froc
from metaseg_cli.core.metrics.lesions import SizeClass, lesion_scores
from metaseg_cli.core.metrics.protocols import Protocol
from metaseg_cli.core.metrics.summary import bootstrap_mean
from metaseg_cli.core.metrics.voxels import Confusion


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the probabilities of one region say over all cases; None where there is nothing to say."""

    froc: Froc | None
    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All cases under one *protocol*; everything else by region.

    ``summary``: region → metric → mean, ci95, n. ``patients``: patient → region → scores of all their cases added up.
    ``by_size``: region → size class → detection and overlap. ``trust`` is empty without probabilities.
    """

    protocol: Protocol
    cases: tuple[CaseScore, ...]
    summary: dict[str, dict[str, Any]]
    patients: dict[str, dict[str, dict[str, Any]]]
    by_size: dict[str, dict[str, SizeClass]]
    trust: dict[str, Trust]

    @property
    def headline(self) -> dict[str, float]:
        """Mean Dice per patient, and lesion scores of all cases added up; regions count alike."""
        patients = [scores for regions in self.patients.values() for scores in regions.values()]
        counts = {k: sum(p[k] for p in patients) for k in ("lesion_tp", "lesion_fp", "lesion_fn")}
        lesions = lesion_scores(counts["lesion_tp"], counts["lesion_fp"], counts["lesion_fn"])
        return {"dice": float(np.mean([p["dice"] for p in patients])), **lesions}


def summarise(cases: Sequence[CaseScore], protocol: Protocol) -> Evaluation:
    """Put *cases*, of the same regions, together."""
    regions = list(cases[0].comparisons)
    return Evaluation(
        protocol=protocol,
        cases=tuple(cases),
        summary={region: _summary(cases, region) for region in regions},
        patients=_pooled(cases),
        by_size={region: _by_size(cases, region) for region in regions},
        trust={region: _trust(cases, region) for region in regions if cases[0].confidence},
    )


def _summary(cases: Sequence[CaseScore], region: str) -> dict[str, Any]:
    """Metric → mean over cases, bootstrap 95 % interval over patients, number of cases.

    Some cases may have a spacing and others none: a volume in ml then averages the former, one in px the latter. What a
    protocol does not define for a case is left out of its mean, as the challenge does; ``n`` says so.
    """
    summary: dict[str, Any] = {}
    for metric in dict.fromkeys(name for case in cases for name in case.comparisons[region].scores):
        having = [case for case in cases if metric in case.comparisons[region].scores]
        values = [(case.for_mean(region, metric), case.patient) for case in having]
        defined = [(value, patient) for value, patient in values if not np.isnan(value)]
        mean, (low, high) = np.nan, (np.nan, np.nan)
        if defined:
            mean, (low, high) = bootstrap_mean([value for value, _ in defined], [patient for _, patient in defined])
        summary[metric] = {"mean": mean, "ci95": [low, high], "n": len(defined)}
    return summary


def _by_size(cases: Sequence[CaseScore], region: str) -> dict[str, SizeClass]:
    total: dict[str, SizeClass] = {}
    for case in cases:
        comparison = case.comparisons[region]
        for name, row in comparison.lesions.by_size().items():
            named = name if "mm" in name else f"{name} {comparison.unit}"
            total[named] = total.get(named, SizeClass()) + row
    return total


def _trust(cases: Sequence[CaseScore], region: str) -> Trust:
    found = [case.confidence[region] for case in cases]
    counts = found[0].calibration
    for each in found[1:]:
        counts = counts + each.calibration
    return Trust(froc=froc([each.candidates for each in found]), calibration=calibration(counts))


def _pooled(cases: Sequence[CaseScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Patient → region → scores with the voxels, and the lesion counts, of all the patient's cases added up."""
    voxels: dict[tuple[str, str], Confusion] = {}
    lesions: dict[tuple[str, str], list[int]] = {}
    for case in cases:
        for region, comparison in case.comparisons.items():
            key = (case.patient, region)
            voxels[key] = voxels.get(key, Confusion()) + comparison.confusion
            before = lesions.get(key, [0, 0, 0])
            lesions[key] = [a + b for a, b in zip(before, comparison.lesions.counts, strict=True)]
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (patient, region), counts in voxels.items():
        result.setdefault(patient, {})[region] = {**counts.scores(), **lesion_scores(*lesions[patient, region])}
    return result
