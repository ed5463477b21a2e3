"""The tables of ``metaseg evaluate``: ``metrics.json``, ``cases.csv`` and ``lesions.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.detection import Lesion
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.metrics import LesionComparison, policy
from metaseg_cli.core.metrics.cases import CaseScore
from metaseg_cli.core.results import CaseMetrics, CaseRow, EvaluatedLesionRow, Metrics, PatientMetrics, problem_rows
from metaseg_cli.outputs.documents import cells, columns, write_table


def metrics_document(system: EvaluatedSystem) -> Metrics:
    """Return the scores of a system as ``metrics.json`` has them."""
    evaluation = system.evaluation
    return Metrics(
        protocol=evaluation.protocol,
        policy=policy(evaluation.protocol),
        settings=system.settings,
        cases=tuple(_case_metrics(case) for case in evaluation.cases),
        patients=tuple(PatientMetrics(patient=name, regions=r) for name, r in evaluation.patients.items()),
        summary=evaluation.summary,
        by_size={
            region: {name: row.scores() for name, row in rows.items()} for region, rows in evaluation.by_size.items()
        },
        confidence=evaluation.confidence,
        notes=system.notes,
        problems=problem_rows(system.problems),
        folds=system.folds or None,
    )


def write_score_tables(out: Path, cases: Sequence[CaseScore]) -> None:
    """Write ``cases.csv`` and ``lesions.csv`` into *out*."""
    write_case_table(out / "cases.csv", [_case_metrics(case) for case in cases])
    write_table(out / "lesions.csv", EvaluatedLesionRow, [row for case in cases for row in evaluated_lesions(case)])


def write_case_table(path: Path, cases: Sequence[CaseMetrics]) -> None:
    """Write one row per case and region; the columns are all metrics that any case has."""
    rows = [
        {**cells(CaseRow(case=case.case, patient=case.patient, region=region)), **scores}
        for case in cases
        for region, scores in case.regions.items()
    ]
    metrics = dict.fromkeys(name for case in cases for scores in case.regions.values() for name in scores)
    atomic_write_text(path, csv_text(rows, (*columns(CaseRow), *metrics)))


def _case_metrics(case: CaseScore) -> CaseMetrics:
    reasons = {
        region: {metric: reason for metric in comparison.scores if (reason := comparison.reason(metric)) is not None}
        for region, comparison in case.comparisons.items()
    }
    named = {region: of_region for region, of_region in reasons.items() if of_region}
    return CaseMetrics(case=case.case, patient=case.patient, regions=case.regions, reasons=named or None)


def evaluated_lesions(case: CaseScore) -> Iterator[EvaluatedLesionRow]:
    """Yield one row per lesion of either side."""
    for region, comparison in case.comparisons.items():
        found = comparison.lesions
        for scored in found.reference:
            row = _row(scored.lesion, case, region, comparison.unit)
            hd95 = scored.hd95 if scored.found else None
            yield replace(
                row,
                side="reference",
                matched=int(scored.found),
                matched_with=";".join(map(str, scored.matched)),
                counted=int(scored.counted),
                dice=scored.dice,
                hd95_mm=hd95 if comparison.unit == "mm" else None,
                hd95_px=None if comparison.unit == "mm" else hd95,
            )
        matched_with = _reference_numbers(found)
        for lesion in found.prediction:
            yield replace(
                _row(lesion, case, region, comparison.unit),
                matched=int(lesion.number not in found.false),
                matched_with=";".join(map(str, matched_with.get(lesion.number, ()))),
                confidence=lesion.confidence,
            )


def _row(lesion: Lesion, case: CaseScore, region: str, unit: str) -> EvaluatedLesionRow:
    """Return what both sides have: a predicted lesion that is not matched, until the caller says otherwise."""
    z, y, x = lesion.centroid_voxel
    place = [sum(m * v for m, v in zip(line, (x, y, z, 1.0), strict=True)) for line in (case.affine or ())[:3]]
    return EvaluatedLesionRow(
        case=case.case,
        patient=case.patient,
        region=region,
        side="prediction",
        lesion=lesion.number,
        matched=0,
        matched_with="",
        counted=1,
        voxels=lesion.voxels,
        volume_mm3=lesion.volume_mm3,
        z=z,
        y=y,
        x=x,
        **{f"diameter_{unit}": lesion.equivalent_diameter},
        **dict(zip(("x_mm", "y_mm", "z_mm"), place, strict=False)),
    )


def _reference_numbers(found: LesionComparison) -> dict[int, list[int]]:
    """Return the reference lesions that each predicted lesion is matched with."""
    numbers: dict[int, list[int]] = {}
    for scored in found.reference:
        for other in scored.matched:
            numbers.setdefault(other, []).append(scored.lesion.number)
    return numbers
