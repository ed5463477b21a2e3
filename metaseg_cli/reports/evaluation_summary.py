"""What ``metaseg evaluate`` prints, of one system or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.counts import counted
from metaseg_cli.core.evaluation.system import FOLD_METRICS, EvaluatedSystem, fold_rows
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.core.metrics.froc import FROC_AT
from metaseg_cli.core.metrics.lesions import SizeClass
from metaseg_cli.core.metrics.table import metric_of
from metaseg_cli.core.results import SystemComparison
from metaseg_cli.core.results.scores import ConfidenceReport, FrocCurve
from metaseg_cli.errors import Problem
from metaseg_cli.reports.criteria import criteria_line
from metaseg_cli.reports.pages import p_value
from metaseg_cli.reports.terminal import (
    MANY,
    SHOWN,
    escape,
    interval_text,
    new_table,
    note_lines,
    number_text,
    problem_tables,
    rest_lines,
)


def evaluate_summary(system: EvaluatedSystem) -> list[RenderableType]:
    """What ``metaseg evaluate`` prints: lesions by size, the means, then the patients, worst first."""
    parts: list[RenderableType] = []
    for region in system.evaluation.summary:
        parts += _region_summary(system, region)
    where = f"All numbers: {escape(system.out)}; look at report.html there"
    rules = note_lines([criteria_line(system.evaluation.protocol)])
    if system.folds:
        parts += [_fold_table(system), ""]
    return [*parts, *rules, *note_lines(system.notes), *problem_tables(system.problems), where]


def _region_summary(system: EvaluatedSystem, region: str) -> list[RenderableType]:
    evaluation = system.evaluation
    table = new_table("Means over cases", "metric", ">mean", ">95 % interval", ">cases")
    for name, row in evaluation.summary[region].items():
        if metric_of(name).printed:
            interval = interval_text(*row.ci95) if row.n else "no case"
            table.add_row(name, number_text(row.mean), interval, str(row.n))
    return [
        f"[bold]{escape(region)}[/bold], {escape(system.what)}",
        _size_table(evaluation.by_size[region]),
        *(f"[yellow]{escape(text)}[/yellow]" for text in missed_small_lesions(evaluation, region)),
        *_confidence(evaluation.confidence.get(region)),
        "",
        table,
        "",
        *_patients(evaluation, region),
        "",
    ]


def missed_small_lesions(evaluation: Evaluation, region: str) -> list[str]:
    """Return a sentence where small lesions are found less than half as often as large ones."""
    halves = evaluation.halves(region)
    if halves is None or not halves.small_are_missed:
        return []
    smaller = f"{halves.smaller_found} of {counted(halves.smaller, 'lesion')} of up to {halves.up_to:.1f} {halves.unit}"
    return [
        f"found {smaller} in diameter, the smaller half, but {halves.larger_found} of the {halves.larger} larger ones"
    ]


def _fold_table(system: EvaluatedSystem) -> Table:
    """Means over the cases of each fold, and over those of all folds."""
    table = new_table("Folds", "fold", "region", ">cases", *(f">{name}" for name in FOLD_METRICS))
    for fold, region, count, scores in fold_rows(system):
        table.add_row(escape(fold), escape(region), str(count), *(number_text(score) for score in scores))
    return table


def _confidence(report: ConfidenceReport | None) -> list[RenderableType]:
    if report is None or report.froc is None:
        return []
    at = ", ".join(f"{recall:.3f} at {false:g}" for false, recall in _recalls(report.froc))
    text = f"FROC {report.froc.score:.3f}, average precision {report.average_precision:.3f}"
    text += f", calibration error {report.ece:.4f}" if report.ece is not None else ""
    return [f"Lesion recall at a number of false lesions per case: {at}", text]


def _recalls(curve: FrocCurve) -> list[tuple[float, float]]:
    """Return the recall at each of ``FROC_AT`` false lesions per case."""
    points = list(zip(curve.false_per_case, curve.recall, strict=True))
    return [(limit, max(recall for false, recall in points if false <= limit)) for limit in FROC_AT]


def _size_table(sizes: Mapping[str, SizeClass]) -> Table:
    title = "Lesions found, by diameter or volume"
    table = new_table(title, "size", ">lesions", ">found", ">false", ">recall", ">Dice")
    for name, size in sizes.items():
        if size.lesions or size.false:
            row = size.scores()
            counts = (str(count) for count in (row.lesions, row.found, row.false))
            table.add_row(escape(name), *counts, number_text(row.recall), number_text(row.dice))
    return table


def _patients(evaluation: Evaluation, region: str) -> list[RenderableType]:
    table = new_table(
        "Patients, worst first (voxels pooled)",
        *("patient", ">Dice", ">precision", ">recall", ">found", ">missed", ">false"),
    )
    of_region = ((patient, regions[region]) for patient, regions in evaluation.patients.items() if region in regions)
    rows = sorted(of_region, key=lambda row: row[1]["dice"])
    for patient, scores in rows[:SHOWN]:
        shares = (number_text(scores[name]) for name in ("dice", "precision", "recall"))
        counts = (str(scores[name]) for name in ("lesion_tp", "lesion_fn", "lesion_fp"))
        table.add_row(escape(patient), *shares, *counts)
    mean = sum(scores["dice"] for _, scores in rows) / max(1, len(rows))
    rest = rest_lines(len(rows), SHOWN, "report.html")
    return [table, *rest, f"[bold]Dice per patient {mean:.3f}[/bold] over {counted(len(rows), 'patient')}"]


def compare_summary(comparison: SystemComparison, out: Path, problems: Sequence[Problem]) -> list[RenderableType]:
    """What ``metaseg evaluate`` prints of several systems: their means, then every paired difference."""
    parts: list[RenderableType] = []
    for region in comparison.ranks:
        parts += _compared_region(comparison, region)
    where = f"All numbers: {escape(out)}; look at comparison.html there"
    notes = [criteria_line(comparison.protocol), *comparison.notes]
    return [*parts, *note_lines(notes), *problem_tables(problems), where]


def _compared_region(comparison: SystemComparison, region: str) -> list[RenderableType]:
    ranks = comparison.ranks[region]
    means = new_table("Mean over cases", "metric", *(f">{escape(system.name)}" for system in comparison.systems))
    for metric in ranks:
        summaries = (system.summary[region][metric] for system in comparison.systems)
        means.add_row(metric, *(number_text(summary.mean) for summary in summaries))
    table = new_table(
        "First minus second; p by Wilcoxon with Holm's correction",
        *("metric", "first", "second", ">difference", ">95 % interval", ">p", ">win/tie/loss"),
    )
    rows = [row for row in comparison.differences if row.region == region]
    for row in rows[:MANY]:
        sides = (escape(row.first), escape(row.second), f"{row.mean:+.3f}")
        counts = f"{row.wins}/{row.ties}/{row.losses}"
        table.add_row(row.metric, *sides, interval_text(row.ci95_low, row.ci95_high), p_value(row.p_holm), counts)
    shown = ", ".join(f"{escape(name)} {frequencies[0]:.0%}" for name, frequencies in ranks["dice"].items())
    return [
        f"[bold]{escape(region)}[/bold], {counted(comparison.patients, 'patient')}",
        means,
        "",
        table,
        *rest_lines(len(rows), MANY, "comparison.html"),
        f"Best Dice when patients are resampled: {shown}",
        "",
    ]
