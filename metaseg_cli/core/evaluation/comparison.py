"""Paired differences and ranks of several systems over the patients that all of them have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.metrics.cases import CaseScore
from metaseg_cli.core.metrics.paired_comparison import paired_differences, rank_frequencies
from metaseg_cli.core.metrics.table import COMPARED, metric_of
from metaseg_cli.core.results import SystemComparison, SystemSummary
from metaseg_cli.core.results.scores import PairedDifference, RankFrequencies


def compare_systems(systems: Sequence[EvaluatedSystem], notes: Sequence[str]) -> SystemComparison:
    """Compare *systems*, which were scored on the same cases."""
    patients = sorted(set.intersection(*({case.patient for case in s.evaluation.cases} for s in systems)))
    differences: list[PairedDifference] = []
    ranks: dict[str, RankFrequencies] = {}
    missing: list[str] = []
    for region in systems[0].evaluation.summary:
        metrics, others = _metrics(systems, region)
        if others:
            missing.append(f"{region}: not compared, because not every case has a value: {', '.join(others)}")
        values = {
            system.name: {
                metric: [_of_patient(system.evaluation.cases, patient, region, metric) for patient in patients]
                for metric in metrics
            }
            for system in systems
        }
        lower = {metric for metric in metrics if metric_of(metric).lower_is_better}
        differences += paired_differences(region, values, lower)
        ranks[region] = {
            metric: rank_frequencies(
                {name: row[metric] for name, row in values.items()}, lower_is_better=metric in lower
            )
            for metric in metrics
        }
    return SystemComparison(
        protocol=systems[0].evaluation.protocol,
        systems=tuple(SystemSummary(name=s.name, what=s.what, summary=s.evaluation.summary) for s in systems),
        patients=len(patients),
        differences=tuple(differences),
        ranks=ranks,
        notes=(*notes, *missing),
    )


def _metrics(systems: Sequence[EvaluatedSystem], region: str) -> tuple[list[str], list[str]]:
    """Return the metrics that every case of every system has as a number, and the others."""
    cases = [case for system in systems for case in system.evaluation.cases]
    unit = cases[0].comparisons[region].unit
    scores = [case.regions[region] for case in cases]
    metrics: list[str] = []
    others: list[str] = []
    for metric in (name.format(unit=unit) for name in COMPARED):
        defined = all(metric in row and not np.isnan(row[metric]) for row in scores)
        (metrics if defined else others).append(metric)
    return metrics, others


def _of_patient(cases: Sequence[CaseScore], patient: str, region: str, metric: str) -> float:
    return float(np.mean([case.for_mean(region, metric) for case in cases if case.patient == patient]))
