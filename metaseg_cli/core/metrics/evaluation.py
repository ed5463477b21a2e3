"""Scores of many cases together: means with intervals, patients, size classes, confidence."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.detection import smaller_half
from metaseg_cli.core.metrics.calibration import calibration
from metaseg_cli.core.metrics.cases import CaseScore
from metaseg_cli.core.metrics.froc import froc
from metaseg_cli.core.metrics.lesions import SizeClass, lesion_scores
from metaseg_cli.core.metrics.summary import bootstrap_mean
from metaseg_cli.core.metrics.voxels import Confusion
from metaseg_cli.core.results.scores import ConfidenceReport, MetricMean, Summary


@dataclass(frozen=True, kw_only=True)
class SizeHalves:
    """The reference lesions of a region in two halves by equivalent diameter, and how many of each were found.

    The smaller half reaches up to the median, *up_to*, in mm or pixels (*unit*).
    """

    up_to: float
    unit: str
    smaller: int
    smaller_found: int
    larger: int
    larger_found: int

    @property
    def small_are_missed(self) -> bool:
        """Whether the smaller half is found less than half as often as the larger one."""
        if not self.smaller or not self.larger:
            return False
        return self.smaller_found / self.smaller < 0.5 * self.larger_found / self.larger


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All cases under one *protocol*; everything else by region.

    ``patients``: patient → region → metric, with the voxels and lesions of all their cases added up. ``by_size``:
    region → size class → detection and overlap. ``confidence`` is empty without probabilities.
    """

    protocol: Protocol
    cases: tuple[CaseScore, ...]
    summary: Summary
    patients: dict[str, dict[str, dict[str, float]]]
    by_size: dict[str, dict[str, SizeClass]]
    confidence: dict[str, ConfidenceReport]

    def halves(self, region: str) -> SizeHalves | None:
        """Return how the smaller and the larger half of a region's lesions were found; None without any lesion."""
        comparisons = [case.comparisons[region] for case in self.cases]
        lesions = [lesion for each in comparisons for lesion in each.lesions.counted]
        if not lesions:
            return None
        diameters = np.array([each.lesion.equivalent_diameter for each in lesions])
        found = np.array([each.found for each in lesions])
        small = smaller_half(diameters)
        return SizeHalves(
            up_to=float(np.median(diameters)),
            unit=comparisons[0].unit,
            smaller=int(small.sum()),
            smaller_found=int(found[small].sum()),
            larger=int((~small).sum()),
            larger_found=int(found[~small].sum()),
        )

    @property
    def headline(self) -> dict[str, float]:
        """Return mean Dice per patient, and lesion scores of all cases added up; every region has the same weight."""
        patients = [scores for regions in self.patients.values() for scores in regions.values()]
        counts = {k: int(sum(p[k] for p in patients)) for k in ("lesion_tp", "lesion_fp", "lesion_fn")}
        lesions = lesion_scores(counts["lesion_tp"], counts["lesion_fp"], counts["lesion_fn"])
        return {"dice": float(np.mean([p["dice"] for p in patients])), **lesions}


def summarise(cases: Sequence[CaseScore], protocol: Protocol) -> Evaluation:
    """Summarise *cases*, which have the same regions."""
    regions = list(cases[0].comparisons)
    return Evaluation(
        protocol=protocol,
        cases=tuple(cases),
        summary={region: _summary(cases, region) for region in regions},
        patients=_pooled(cases),
        by_size={region: _by_size(cases, region) for region in regions},
        confidence={region: _confidence(cases, region) for region in regions if cases[0].confidence},
    )


def _summary(cases: Sequence[CaseScore], region: str) -> dict[str, MetricMean]:
    """Return the mean of each metric over cases.

    A metric in mm or ml averages the cases with a spacing, one in px those without. A case for which the protocol does
    not define a metric is left out of its mean, as in the challenge; ``n`` says how many remain.
    """
    summary: dict[str, MetricMean] = {}
    for metric in dict.fromkeys(name for case in cases for name in case.comparisons[region].scores):
        having = [case for case in cases if metric in case.comparisons[region].scores]
        values = [(case.for_mean(region, metric), case.patient) for case in having]
        defined = [(value, patient) for value, patient in values if not np.isnan(value)]
        mean, (low, high) = np.nan, (np.nan, np.nan)
        if defined:
            mean, (low, high) = bootstrap_mean([value for value, _ in defined], [patient for _, patient in defined])
        summary[metric] = MetricMean(mean=mean, ci95=(low, high), n=len(defined))
    return summary


def _by_size(cases: Sequence[CaseScore], region: str) -> dict[str, SizeClass]:
    total: dict[str, SizeClass] = {}
    for case in cases:
        comparison = case.comparisons[region]
        for name, row in comparison.lesions.by_size().items():
            named = name if "mm" in name else f"{name} {comparison.unit}"
            total[named] = total.get(named, SizeClass()) + row
    return total


def _confidence(cases: Sequence[CaseScore], region: str) -> ConfidenceReport:
    found = [case.confidence[region] for case in cases]
    counts = functools.reduce(operator.add, [each.calibration for each in found])
    curve, reliability = froc([each.candidates for each in found]), calibration(counts)
    return ConfidenceReport(
        froc=None if curve is None else curve.curve,
        average_precision=None if curve is None else curve.average_precision,
        ece=None if reliability is None else reliability.ece,
        reliability=None if reliability is None else reliability.curves,
    )


def _pooled(cases: Sequence[CaseScore]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by patient and region, scores of the voxels and lesion counts of all the patient's cases added up."""
    voxels: dict[tuple[str, str], Confusion] = {}
    lesions: dict[tuple[str, str], list[int]] = {}
    for case in cases:
        for region, comparison in case.comparisons.items():
            key = (case.patient, region)
            voxels[key] = voxels.get(key, Confusion()) + comparison.confusion
            before = lesions.get(key, [0, 0, 0])
            lesions[key] = [a + b for a, b in zip(before, comparison.lesions.counts, strict=True)]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (patient, region), counts in voxels.items():
        result.setdefault(patient, {})[region] = {**counts.scores(), **lesion_scores(*lesions[patient, region])}
    return result
