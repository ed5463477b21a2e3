"""The files of an evaluation: metrics.json, cases.csv, lesions.csv, report.html and its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metaseg_cli
from metaseg_cli.core.atomic import atomic_write_text, make_folder, translate_write_errors
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.metrics import Lesion, policy
from metaseg_cli.core.metrics.cases import CaseScore, Picture
from metaseg_cli.core.metrics.evaluation import Evaluation, Trust
from metaseg_cli.reports import figures, pages
from metaseg_cli.reports.comparison_files import finite

if TYPE_CHECKING:
    from metaseg_cli.errors import Problem

SCHEMA = 1
DOCUMENT = "metrics.json"


def write(
    out: Path,
    evaluation: Evaluation,
    *,
    title: str,
    settings: Mapping[str, Any],
    worst: Sequence[tuple[str, Picture]],
    problems: Sequence[Problem],
    notes: Sequence[str],
) -> None:
    """Write everything into *out*; each file appears whole or not at all, ``metrics.json`` last.

    An older one goes first: where it stands, all files are of one evaluation.
    """
    make_folder(out)
    with translate_write_errors(out / DOCUMENT):
        (out / DOCUMENT).unlink(missing_ok=True)
    document = {
        "schema": SCHEMA,
        "program": f"metaseg {metaseg_cli.__version__}",
        "protocol": evaluation.protocol.record(),
        "policy": policy(evaluation.protocol),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "cases": [_case_document(case) for case in evaluation.cases],
        "patients": [{"patient": name, "regions": regions} for name, regions in evaluation.patients.items()],
        "summary": evaluation.summary,
        "by_size": {
            region: {name: row.scores() for name, row in rows.items()} for region, rows in evaluation.by_size.items()
        },
        "confidence": {region: _trust_document(trust) for region, trust in evaluation.trust.items()},
        "notes": list(notes),
        "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in problems],
    }
    atomic_write_text(out / "cases.csv", _csv(_case_rows(evaluation.cases)))
    atomic_write_text(out / "lesions.csv", _csv(_lesion_rows(evaluation.cases), _LESION_COLUMNS))
    figures.save_worst_cases(
        out / "worst_cases.png",
        [(name, p.image if p.image is not None else p.reference, p.reference, p.prediction) for name, p in worst],
    )
    pages.write_evaluation_report(
        out / "report.html",
        evaluation,
        title=title,
        settings={name: str(value) for name, value in settings.items()},
        problems=[(str(p.file), p.reason, p.remedy, p.left_out) for p in problems],
        notes=notes,
        worst=out / "worst_cases.png",
    )
    atomic_write_text(out / DOCUMENT, json.dumps(finite(document), indent=1, allow_nan=False))


def _case_document(case: CaseScore) -> dict[str, Any]:
    reasons = {
        region: {m: reason for m in comparison.scores if (reason := comparison.reason(m)) is not None}
        for region, comparison in case.comparisons.items()
    }
    document: dict[str, Any] = {"case": case.case, "patient": case.patient, "regions": case.regions}
    # Why a metric is null; what stands for it in means is the protocol's penalty.
    if any(reasons.values()):
        document["reasons"] = {region: named for region, named in reasons.items() if named}
    return document


def _trust_document(trust: Trust) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if trust.froc is not None:
        document["froc"] = {
            "false_per_case": trust.froc.false_per_case,
            "recall": trust.froc.recall,
            "score": trust.froc.score,
        }
        document["average_precision"] = trust.froc.average_precision
    if trust.calibration is not None:
        document["ece"] = trust.calibration.ece
        document["reliability"] = {
            "equal_mass": asdict(trust.calibration.equal_mass),
            "equal_width": asdict(trust.calibration.equal_width),
        }
    return document


def _case_rows(cases: Iterable[CaseScore]) -> list[dict[str, Any]]:
    return [
        {"case": case.case, "patient": case.patient, "region": region, **scores}
        for case in cases
        for region, scores in case.regions.items()
    ]


_LESION_COLUMNS = (
    *("case", "patient", "region", "side", "lesion", "matched", "matched_with", "counted", "voxels", "volume_mm3"),
    *("diameter_mm", "diameter_px", "z", "y", "x", "x_mm", "y_mm", "z_mm"),
    *("dice", "hd95_mm", "hd95_px", "confidence"),
)


def _lesion_rows(cases: Iterable[CaseScore]) -> list[dict[str, Any]]:
    """One row per lesion of either side; *x_mm*, *y_mm*, *z_mm* are its centre in patient coordinates (LPS)."""
    rows = []
    for case in cases:
        for region, comparison in case.comparisons.items():
            found = comparison.lesions
            owners: dict[int, list[int]] = {}
            common = {"case": case.case, "patient": case.patient, "region": region}
            for each in found.reference:
                for other in each.matched:
                    owners.setdefault(other, []).append(each.lesion.number)
                rows.append(
                    {
                        **common,
                        "side": "reference",
                        **_described(each.lesion, case, comparison.unit),
                        "matched": int(each.found),
                        "matched_with": ";".join(map(str, each.matched)),
                        "counted": int(each.counted),
                        "dice": each.dice,
                        f"hd95_{comparison.unit}": each.hd95 if each.found else None,
                    }
                )
            rows += [
                {
                    **common,
                    "side": "prediction",
                    **_described(lesion, case, comparison.unit),
                    "matched": int(lesion.number not in found.false),
                    "matched_with": ";".join(map(str, owners.get(lesion.number, ()))),
                    "counted": 1,
                    "confidence": lesion.confidence,
                }
                for lesion in found.prediction
            ]
    return rows


def _described(lesion: Lesion, case: CaseScore, unit: str) -> dict[str, Any]:
    z, y, x = lesion.centroid_voxel
    row = {
        "lesion": lesion.number,
        "voxels": lesion.voxels,
        "volume_mm3": lesion.volume_mm3,
        f"diameter_{unit}": lesion.equivalent_diameter,
        "z": z,
        "y": y,
        "x": x,
    }
    if case.affine is not None:
        place = [sum(m * v for m, v in zip(line, (x, y, z, 1.0), strict=True)) for line in case.affine[:3]]
        row.update(zip(("x_mm", "y_mm", "z_mm"), place, strict=True))
    return row


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    return csv_text(rows, list(columns) or list(dict.fromkeys(key for row in rows for key in row)))
