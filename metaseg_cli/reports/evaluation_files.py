"""The files of an evaluation: metrics.json, cases.csv, lesions.csv, and pictures of the worst cases."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metaseg_cli
from metaseg_cli.core.metrics import POLICY, Confusion, Matching, bootstrap_mean
from metaseg_cli.core.whole_file import write_text_whole
from metaseg_cli.reports import figures

if TYPE_CHECKING:
    from metaseg_cli.core.datasets import Problem

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """Scores of one case by region, and the counts from which a patient's are pooled."""

    case: str
    patient: str
    regions: dict[str, dict[str, float]]
    counts: dict[str, Confusion]
    matches: dict[str, Matching]


def summarise(cases: Sequence[CaseScore]) -> dict[str, dict[str, Any]]:
    """Region → metric → mean over cases, bootstrap 95 % interval over patients, number of cases.

    Some cases may have a spacing and others none: a volume in ml then averages the former, one in px the latter.
    """
    summary: dict[str, dict[str, Any]] = {}
    for region in cases[0].regions:
        summary[region] = {}
        for metric in _in_order(case.regions[region] for case in cases):
            having = [case for case in cases if metric in case.regions[region]]
            values = [case.regions[region][metric] for case in having]
            mean, (low, high) = bootstrap_mean(values, [case.patient for case in having])
            summary[region][metric] = {"mean": mean, "ci95": [low, high], "n": len(values)}
    return summary


def write(
    out: Path,
    cases: Sequence[CaseScore],
    summary: dict[str, dict[str, Any]],
    patients: dict[str, dict[str, dict[str, Any]]],
    settings: dict[str, Any],
    pictures: Sequence[tuple[str, Any, Any, Any]],
    problems: Sequence[Problem],
    notes: Sequence[str],
) -> None:
    """Write everything into *out*; each file appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": SCHEMA,
        "program": f"metaseg {metaseg_cli.__version__}",
        "protocol": {"name": "default", "connectivity": "26 neighbours (2D: 8)", "matching": "any overlap"},
        "policy": POLICY,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "cases": [{"case": c.case, "patient": c.patient, "regions": _finite(c.regions)} for c in cases],
        "patients": [{"patient": name, "regions": _finite(regions)} for name, regions in patients.items()],
        "summary": _finite(summary),
        "notes": list(notes),
        "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in problems],
    }
    write_text_whole(out / "metrics.json", json.dumps(document, indent=1, allow_nan=False))
    write_text_whole(out / "cases.csv", _csv(_case_rows(cases)))
    write_text_whole(
        out / "lesions.csv", _csv(_lesion_rows(cases), ["case", "patient", "region", "side", "lesion", "matched"])
    )
    figures.save_worst_cases(out / "worst_cases.png", pictures)


def _case_rows(cases: Iterable[CaseScore]) -> list[dict[str, Any]]:
    return [
        {"case": case.case, "patient": case.patient, "region": region, **scores}
        for case in cases
        for region, scores in case.regions.items()
    ]


def _lesion_rows(cases: Iterable[CaseScore]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        for region, match in case.matches.items():
            for side, matched in (("reference", match.found), ("prediction", tuple(not f for f in match.false))):
                for number, hit in enumerate(matched, start=1):
                    rows.append(
                        {
                            "case": case.case,
                            "patient": case.patient,
                            "region": region,
                            "side": side,
                            "lesion": number,
                            "matched": int(hit),
                        }
                    )
    return rows


def _in_order(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key of *rows* once, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns) or _in_order(rows))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: both become null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
