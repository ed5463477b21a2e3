"""Self-contained HTML pages; whatever comes from a file's name is escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.metrics import policy
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.errors import printable
from metaseg_cli.reports import charts


def write_prepare_report(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    problems: Sequence[tuple[str, str, str, bool]],
    cases: Sequence[dict[str, str]],
    pictures: Sequence[Path],
) -> None:
    """Write the report of ``metaseg prepare``: *problems* are (file, reason, remedy, left out), *cases* table rows."""
    text = template("prepare.html.j2").render(
        title=title,
        facts=facts,
        notes=notes,
        problems=problems,
        cases=cases,
        columns=list(cases[0]) if cases else [],
        pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
    )
    atomic_write_text(path, text)


def write_evaluation_report(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str,
    settings: Mapping[str, str],
    problems: Sequence[tuple[str, str, str, bool]],
    notes: Sequence[str],
    worst: Path,
) -> None:
    """Write the report of ``metaseg evaluate``: *problems* as above, *worst* the picture of the worst cases."""
    meanings = policy(evaluation.protocol)
    regions = []
    for region, summary in evaluation.summary.items():
        rows = [
            (metric, number(m["mean"]), interval(m["ci95"]), m["n"], _meaning(metric, meanings))
            for metric, m in summary.items()
        ]
        shown = [("Scores of each case", charts.distributions(evaluation, region))]
        if any(row.lesions for row in evaluation.by_size[region].values()):
            shown.append(("Sensitivity by size", charts.by_size(evaluation.by_size[region])))
        trust = evaluation.trust.get(region)
        if trust and trust.froc:
            shown.append(("Free-response curve", charts.free_response(trust.froc)))
        if trust and trust.calibration:
            shown.append(("Reliability", charts.reliability(trust.calibration)))
        encoded = [(name, base64.b64encode(png).decode()) for name, png in shown]
        sizes = [
            (name, s["lesions"], s["found"], s["false"], *(number(s[k]) for k in ("recall", "f1", "dice")))
            for name, row in evaluation.by_size[region].items()
            for s in (row.scores(),)
            if row.lesions or row.false
        ]
        regions.append({"name": region, "rows": rows, "sizes": sizes, "charts": encoded})
    patients = [
        (
            p,
            region,
            *(number(s[k]) for k in ("dice", "precision", "recall")),
            s["lesion_tp"],
            s["lesion_fn"],
            s["lesion_fp"],
        )
        for p, scores in sorted(evaluation.patients.items(), key=lambda row: min(s["dice"] for s in row[1].values()))
        for region, s in scores.items()
    ]
    head = evaluation.headline
    text = template("evaluation.html.j2").render(
        title=title,
        headline=[
            ("Dice per patient", number(head["dice"])),
            ("lesion F1", number(head["lesion_f1"])),
            ("lesions found", f"{head['lesion_tp']} of {head['lesion_tp'] + head['lesion_fn']}"),
            ("false lesions per case", number(head["lesion_fp"] / len(evaluation.cases), 2)),
        ],
        notes=notes,
        problems=problems,
        regions=regions,
        patients=patients,
        worst=base64.b64encode(worst.read_bytes()).decode(),
        facts=[*settings.items(), *((f"protocol: {k}", v) for k, v in evaluation.protocol.record().items())],
    )
    atomic_write_text(path, text)


def template(name: str) -> Any:
    """The Jinja template of this name; whatever goes into it is escaped."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("metaseg_cli", "reports"), autoescape=True, finalize=_shown).get_template(
        name
    )


def _shown(value: Any) -> Any:
    """Texts without control characters, which a name of a file may hold."""
    return printable(value) if type(value) is str else value


def number(value: float | None, digits: int = 3) -> str:
    """*value*, or a dash where there is none."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def interval(ends: Sequence[float]) -> str:
    """Both *ends*, or a dash."""
    return f"{ends[0]:.3f} – {ends[1]:.3f}" if all(map(math.isfinite, ends)) else "–"


def p_value(p: float) -> str:
    """As papers have it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _meaning(metric: str, meanings: Mapping[str, str]) -> str:
    """What empty masks mean for *metric*: by its own name, or that of its family."""
    for name in sorted(meanings, key=len, reverse=True):
        if metric == name or metric.startswith(f"{name}_"):
            return meanings[name]
    return meanings["pq"] if metric in ("sq", "rq") else ""
