"""``report.html`` of an evaluation, and its picture of the worst cases."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.evaluation.system import FOLD_METRICS, EvaluatedSystem, WorstCase, fold_rows
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.core.metrics.table import meaning_of_empty, policy
from metaseg_cli.core.results import FolderSettings
from metaseg_cli.reports import charts, figures
from metaseg_cli.reports.criteria import criteria
from metaseg_cli.reports.evaluation_summary import missed_small_lesions
from metaseg_cli.reports.pages import interval, number, template
from metaseg_cli.reports.region_colours import region_colours
from metaseg_cli.reports.training_summary import postprocessing_text


@dataclass(frozen=True, kw_only=True)
class EvaluatedRegion:
    """What the page shows of one region: rows of its tables, and charts as (title, base64 of a PNG)."""

    name: str
    rows: list[tuple[str, str, str, int, str]]
    sizes: list[tuple[str | int, ...]]
    charts: list[tuple[str, str]]
    remarks: list[str]


def write_evaluation_page(system: EvaluatedSystem) -> None:
    """Write ``report.html`` and ``worst_cases.png`` into the folder of *system*."""
    evaluation = system.evaluation
    picture = system.out / "worst_cases.png"
    colours = region_colours(list(evaluation.summary), system.index_region)
    figures.save_worst_cases(picture, [_worst_case(case) for case in system.worst], colours)
    text = template("evaluation.html.j2").render(
        title=system.what,
        headline=_headline(evaluation),
        notes=system.notes,
        problems=system.problems,
        regions=[_region(evaluation, region) for region in evaluation.summary],
        patients=_patients(evaluation),
        worst=base64.b64encode(picture.read_bytes()).decode(),
        facts=_facts(system),
        fold_metrics=FOLD_METRICS if system.folds else (),
        folds=[
            (fold, region, count, *(number(score) for score in scores))
            for fold, region, count, scores in fold_rows(system)
        ]
        if system.folds
        else [],
    )
    atomic_write_text(system.out / "report.html", text)


def _worst_case(case: WorstCase) -> figures.WorstCasePicture:
    picture = case.picture
    image = picture.image if picture.image is not None else np.asarray(picture.reference.any(axis=0))
    dice = "Dice" if len(picture.reference) == 1 else "mean Dice of the regions"
    return f"{case.case} · {dice} {case.dice:.2f}", image, picture.reference, picture.prediction


def _headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    scores = evaluation.headline
    return [
        ("lesions found", f"{scores['lesion_tp']} of {scores['lesion_tp'] + scores['lesion_fn']}"),
        ("false lesions per case", number(scores["lesion_fp"] / len(evaluation.cases), 2)),
        ("lesion F1", number(scores["lesion_f1"])),
        ("Dice per patient", number(scores["dice"])),
    ]


def _region(evaluation: Evaluation, region: str) -> EvaluatedRegion:
    meanings = policy(evaluation.protocol)
    sizes = {name: row.scores() for name, row in evaluation.by_size[region].items()}
    return EvaluatedRegion(
        name=region,
        rows=[
            (metric, number(row.mean), interval(row.ci95), row.n, meaning_of_empty(metric, meanings))
            for metric, row in evaluation.summary[region].items()
        ],
        sizes=[
            (name, row.lesions, row.found, row.false, number(row.recall), number(row.f1), number(row.dice))
            for name, row in sizes.items()
            if row.lesions or row.false
        ],
        charts=[(title, base64.b64encode(png).decode()) for title, png in _charts(evaluation, region)],
        remarks=missed_small_lesions(evaluation, region),
    )


def _charts(evaluation: Evaluation, region: str) -> list[tuple[str, bytes]]:
    shown = []
    sizes, confidence = evaluation.by_size[region], evaluation.confidence.get(region)
    if any(row.lesions for row in sizes.values()):
        shown.append(("Sensitivity by size", charts.by_size(sizes)))
    if confidence is not None and confidence.froc is not None and confidence.average_precision is not None:
        shown.append(("Free-response curve", charts.free_response(confidence.froc, confidence.average_precision)))
    shown.append(("Scores of each case", charts.distributions(evaluation, region)))
    if confidence is not None and confidence.reliability is not None and confidence.ece is not None:
        shown.append(("Reliability", charts.reliability(confidence.reliability, confidence.ece)))
    return shown


def _patients(evaluation: Evaluation) -> list[tuple[str | float, ...]]:
    """Return one row per patient and region, the worst patient first."""
    worst_first = sorted(evaluation.patients.items(), key=lambda row: min(s["dice"] for s in row[1].values()))
    return [
        (
            patient,
            region,
            *(number(scores[metric]) for metric in ("dice", "precision", "recall")),
            *(scores[count] for count in ("lesion_tp", "lesion_fn", "lesion_fp")),
        )
        for patient, regions in worst_first
        for region, scores in regions.items()
    ]


def _facts(system: EvaluatedSystem) -> list[tuple[str, str]]:
    """Return what was scored, and by which rules."""
    settings = system.settings
    if isinstance(settings, FolderSettings):
        facts = [("predictions", str(settings.predictions)), ("references", str(settings.references))]
    else:
        facts = [("model", str(settings.model)), ("data", str(settings.data)), ("cases", settings.split)]
        for region, chosen in settings.postprocessing.items():
            unit = "px" if chosen.per_slice else _unit(system.evaluation)
            facts.append((f"threshold of {region}", postprocessing_text(chosen, unit)))
    return [*facts, ("grid", settings.grid), *criteria(system.evaluation.protocol)]


def _unit(evaluation: Evaluation) -> str:
    return next(iter(evaluation.cases[0].comparisons.values())).unit
