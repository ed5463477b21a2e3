"""What a finished command prints: Rich tables and a last line that says how to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import markup
from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.core.metrics.lesions import SizeClass
from metaseg_cli.core.metrics.table import metric_of
from metaseg_cli.core.results import (
    ConfidenceReport,
    FollowUp,
    LesionRow,
    LesionVisitRow,
    Predictions,
    ScanResult,
    SystemComparison,
    VisitRow,
)
from metaseg_cli.errors import Problem, printable


def escape(text: str) -> str:
    """*text* without markup of Rich's, and without control characters, which a name of a file may hold."""
    return markup.escape(printable(text))


_SHOWN = 12
_MANY = 40


def _table(title: str, *columns: str) -> Table:
    """A plain table; columns named with a leading > are right-aligned."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _facts(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} – {high:.3f}" if math.isfinite(low) else "one patient"


def problems_table(problems: Sequence[Problem]) -> list[Any]:
    """Each problem with file, reason and remedy; none gives nothing."""
    if not problems:
        return []
    left_out = [p for p in problems if p.left_out]
    doubtful = [p for p in problems if not p.left_out]
    parts: list[Any] = []
    for these, title in (
        (left_out, f"[red]{len(left_out)} problem{'s' if len(left_out) != 1 else ''}[/red]"),
        (doubtful, f"[yellow]{len(doubtful)} thing{'s' if len(doubtful) != 1 else ''} to look at[/yellow]"),
    ):
        if these:
            table = _table(title, "file", "reason", "what to do")
            for problem in these[:_SHOWN]:
                table.add_row(escape(str(problem.file)), escape(problem.reason), escape(problem.remedy))
            rest = len(these) - _SHOWN
            parts += ["", table, *([f"… and {rest} more"] if rest > 0 else [])]
    return parts


def _dry_run_table(result: Any) -> Table:
    table = _table(
        f"{len(result.found)} cases would be read, layout {result.layout} ({escape(result.why)})",
        "case",
        "patient",
        "split",
        "sequences",
        ">files",
        "mask",
        "first file",
    )
    for source in result.found[:_MANY]:
        mask = source.masks[0].name if source.masks else "none"
        table.add_row(
            escape(source.case),
            escape(source.patient),
            source.split or "",
            escape(", ".join(source.channels or source.sequences)),
            str(sum(len(files) for files in source.sequences.values())),
            escape(mask if len(source.masks) < 2 else f"{mask} …"),
            escape(str(source.first_file)),
        )
    if len(result.found) > _MANY:
        table.add_row("…")
    return table


def prepare_summary(result: Any) -> list[Any]:
    """What ``metaseg prepare`` prints."""
    regions = ", ".join(f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in result.regions.items())
    notes = [f"[dim]· {escape(note)}[/dim]" for note in result.notes]
    if result.manifest is not None:
        return [
            f"Wrote {escape(str(result.manifest))}: one line per case, to complete by hand.",
            f"Then: metaseg prepare RAW --manifest {escape(str(result.manifest))}",
        ]
    if result.out is None:
        return [_dry_run_table(result), *notes, *problems_table(result.problems)]
    patients = len({case.patient for case in result.cases})
    facts = [
        (
            "cases",
            f"{len(result.cases)} of {patients} patients" + (f" ({result.reused} unchanged)" if result.reused else ""),
        ),
        ("lesions", str(sum(len(case.lesion_voxels) for case in result.cases))),
        ("sequences", ", ".join(result.sequences)),
        ("regions", regions),
        ("folds", str(result.folds)),
        ("layout", f"{result.layout} ({result.why})"),
    ]
    if result.spacing_mm:
        facts.append(("voxel size", "×".join(f"{s:.2f}" for s in reversed(result.spacing_mm)) + " mm"))
    out = escape(str(result.out))
    last = f"[bold]{out}[/bold] is ready. See report.html in it; then: metaseg train --data {out}"
    key = []
    if result.key is not None:
        key = [f"The key to the random names is {escape(str(result.key))}: keep it apart, and do not pass it on."]
    return [_facts("Prepared", facts), *notes, *problems_table(result.problems), "", *key, last]


def plan_summary(plan: Any) -> list[Any]:
    """What ``metaseg train --plan-only`` prints."""
    lines = [escape(reason) for reason in plan.reasons]
    strides = ", ".join("×".join(map(str, stride)) for stride in plan.strides)
    return [
        "[bold]The plan[/bold]",
        *(f"  {line}" for line in lines),
        f"  poolings {strides}",
        "",
        "Nothing was trained.",
    ]


def train_summary(result: Any) -> list[Any]:
    """What ``metaseg train`` prints."""
    facts = [("ended after", f"{result.epochs} epochs, {result.minutes:.1f} minutes ({result.stopped})")]
    parts: list[Any] = []
    if result.scores:
        facts += [("best epoch", str(result.best_epoch))] if result.best_epoch else []
        facts += [
            ("Dice per patient", _number(result.scores["dice"])),
            ("lesion F1", _number(result.scores["lesion_f1"])),
            ("lesion recall", _number(result.scores["lesion_recall"])),
            ("false lesions per case", _number(result.scores["false_positives_per_case"])),
        ]
        facts += [
            ("threshold" + (f" of {name}" if len(result.postprocessing) > 1 else ""), _settings(each, result.unit))
            for name, each in result.postprocessing.items()
        ]
        cases = "out of fold" if result.folds else "on the validation fold, which also chose epoch and threshold"
        parts.append(f"[dim]{cases}: expect a little less elsewhere[/dim]")
        sizes = _table("Lesions found, by diameter", f"diameter ({result.unit})", ">lesions", ">found", ">recall")
        least = 0.0
        for each in result.by_size:
            name = f"{least:g} – {each.up_to:g}" if each.up_to < float("inf") else f"above {least:g}"
            recall = _number(each.found / each.lesions) if each.lesions else "–"
            sizes.add_row(name, str(each.lesions), str(each.found), recall)
            least = each.up_to
        parts += ["", sizes]
    else:
        parts.append("[yellow]no validation case: nobody knows how good this model is[/yellow]")
    facts.append(("speed", f"{result.images_per_second:.1f} images/s in {result.precision}"))
    if result.milliseconds_per_step:
        facts.append(("time of a step", ", ".join(f"{k} {v:.0f} ms" for k, v in result.milliseconds_per_step.items())))
    facts.append(("model", str(result.model)))
    return [_facts("Trained", facts), *parts, "", "Next: metaseg evaluate, or metaseg predict scan.png"]


def _settings(chosen: Any, unit: str) -> str:
    """A ``Postprocessing`` in words."""
    text = f"{chosen.threshold:.2f}"
    if chosen.high_threshold > chosen.threshold:
        text += f", {chosen.high_threshold:.2f} somewhere in the lesion"
    if chosen.min_size:
        text += f", lesions from {chosen.min_size:g} {'mm³' if unit == 'mm' else 'voxels'} on"
        if chosen.keep_confidence < 1:
            text += f" or of confidence {chosen.keep_confidence:.2f}"
    return text


def evaluate_summary(system: EvaluatedSystem) -> list[RenderableType]:
    """What ``metaseg evaluate`` prints: the means, lesions by size, then the patients, worst first."""
    parts: list[RenderableType] = []
    for region in system.evaluation.summary:
        parts += _region_summary(system, region)
    where = f"All numbers: {escape(str(system.out))}; look at report.html there"
    return [*parts, *_notes(system.notes), *problems_table(system.problems), where]


def _region_summary(system: EvaluatedSystem, region: str) -> list[RenderableType]:
    evaluation = system.evaluation
    by = "" if evaluation.protocol.name == "default" else f", by {evaluation.protocol.name}"
    table = _table("", "metric", ">mean", ">95 % interval", ">n")
    for name, row in evaluation.summary[region].items():
        if metric_of(name).printed:
            table.add_row(name, _number(row.mean), _interval(*row.ci95), str(row.n))
    return [
        f"[bold]{escape(region)}[/bold], {escape(system.what)}{escape(by)}",
        table,
        "",
        *_confidence(evaluation.confidence.get(region)),
        _size_table(evaluation.by_size[region]),
        "",
        *_patients(evaluation, region),
        "",
    ]


def _confidence(report: ConfidenceReport | None) -> list[RenderableType]:
    if report is None or report.froc is None:
        return []
    text = f"FROC {report.froc.score:.3f}, average precision {report.average_precision:.3f}"
    return [text + (f", calibration error {report.ece:.4f}" if report.ece is not None else "")]


def _size_table(sizes: Mapping[str, SizeClass]) -> Table:
    title = "Lesions found, by diameter or volume"
    table = _table(title, "size", ">lesions", ">found", ">false", ">recall", ">Dice")
    for name, size in sizes.items():
        if size.lesions or size.false:
            row = size.scores()
            counts = (str(count) for count in (row.lesions, row.found, row.false))
            table.add_row(escape(name), *counts, _number(row.recall), _number(row.dice))
    return table


def _patients(evaluation: Evaluation, region: str) -> list[RenderableType]:
    table = _table(
        "Patients, worst first (voxels pooled)",
        *("patient", ">Dice", ">precision", ">recall", ">found", ">missed", ">false"),
    )
    of_region = ((patient, regions[region]) for patient, regions in evaluation.patients.items() if region in regions)
    rows = sorted(of_region, key=lambda row: row[1]["dice"])
    for patient, scores in rows[:_SHOWN]:
        shares = (_number(scores[name]) for name in ("dice", "precision", "recall"))
        counts = (str(scores[name]) for name in ("lesion_tp", "lesion_fn", "lesion_fp"))
        table.add_row(escape(patient), *shares, *counts)
    mean = sum(scores["dice"] for _, scores in rows) / max(1, len(rows))
    return [table, f"[bold]Dice per patient {mean:.3f}[/bold] over {len(rows)} patients"]


def compare_summary(comparison: SystemComparison, out: Path, problems: Sequence[Problem]) -> list[RenderableType]:
    """What ``metaseg evaluate`` prints of several systems: their means, then every paired difference."""
    parts: list[RenderableType] = []
    for region in comparison.ranks:
        parts += _compared_region(comparison, region)
    where = f"All numbers: {escape(str(out))}; look at comparison.html there"
    return [*parts, *_notes(comparison.notes), *problems_table(problems), where]


def _compared_region(comparison: SystemComparison, region: str) -> list[RenderableType]:
    ranks = comparison.ranks[region]
    means = _table("Mean over cases", "metric", *(f">{escape(system.name)}" for system in comparison.systems))
    for metric in ranks:
        summaries = (system.summary[region][metric] for system in comparison.systems)
        means.add_row(metric, *(_number(summary.mean) for summary in summaries))
    table = _table(
        "First minus second; p by Wilcoxon with Holm's correction",
        *("metric", "first", "second", ">difference", ">95 % interval", ">p", ">win/tie/loss"),
    )
    for row in comparison.differences:
        if row.region == region:
            sides = (escape(row.first), escape(row.second), f"{row.mean:+.3f}")
            counts = f"{row.wins}/{row.ties}/{row.losses}"
            table.add_row(row.metric, *sides, _interval(row.ci95_low, row.ci95_high), f"{row.p_holm:.3f}", counts)
    shown = ", ".join(f"{escape(name)} {frequencies[0]:.0%}" for name, frequencies in ranks["dice"].items())
    return [
        f"[bold]{escape(region)}[/bold], {comparison.patients} patients",
        means,
        "",
        table,
        f"Best Dice when patients are resampled: {shown}",
        "",
    ]


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    return [f"[dim]· {escape(note)}[/dim]" for note in notes]


def lesion_table(rows: Sequence[LesionRow]) -> Table:
    """Lesions of one scan."""
    unit = "px" if rows[0].diameter_mm is None else "mm"
    table = _table("", ">lesion", "region", f">diameter ({unit})", ">voxels", ">z", ">y", ">x", ">confidence")
    for row in rows[:_SHOWN]:
        table.add_row(
            str(row.lesion),
            escape(row.region),
            _number(row.diameter_px if row.diameter_mm is None else row.diameter_mm, 1),
            str(row.voxels),
            *(_number(value, 0) for value in (row.z, row.y, row.x)),
            _number(row.confidence, 2),
        )
    return table


def predict_summary(predictions: Predictions, problems: Sequence[Problem]) -> list[RenderableType]:
    """What ``metaseg predict`` prints: one scan with its lesions, or a batch as one table."""
    scans = predictions.scans
    parts: list[RenderableType] = []
    if len(scans) == 1:
        parts += _scan_summary(scans[0], predictions.threshold)
    elif scans:
        table = _table(f"{len(scans)} scans", "scan", ">lesions", ">voxels", "mask")
        for scan in scans[:_MANY]:
            voxels = sum(lesion.voxels for lesion in scan.lesions)
            table.add_row(escape(str(scan.scan)), str(len(scan.lesions)), str(voxels), escape(str(scan.mask)))
        parts += [table, *([f"… and {len(scans) - _MANY} more"] if len(scans) > _MANY else [])]
        parts += ["", f"All results: {escape(str(predictions.out))}"]
    return [*parts, *problems_table(problems)]


def _scan_summary(scan: ScanResult, threshold: float) -> list[RenderableType]:
    count = len(scan.lesions)
    found = f"{count} lesion{'s' if count != 1 else ''}" if count else "no lesion found"
    return [
        f"[bold]{escape(str(scan.scan))}[/bold]: {found} (threshold {threshold:.2f})",
        *([lesion_table(scan.lesions)] if count else []),
        *(f"[dim]· {escape(note)}[/dim]" for note in scan.notes),
        "",
        f"mask     {escape(str(scan.mask))}",
        *([f"overlay  {escape(str(scan.overlay))}"] if scan.overlay else []),
    ]


def follow_up_summary(follow_up: FollowUp) -> list[RenderableType]:
    """What ``metaseg follow-up`` prints: each lesion's diameter at each visit, then each visit."""
    names = [visit.visit for visit in follow_up.visits]
    lengths = _table("Longest axial diameter (mm)", "lesion", *(f">{escape(name)}" for name in names))
    for number in dict.fromkeys(row.lesion for row in follow_up.lesions):
        mine = {row.visit: row for row in follow_up.lesions if row.lesion == number}
        target = any(row.target for row in mine.values())
        cells = (_at_visit(mine[name]) if name in mine else "" for name in names)
        lengths.add_row(f"{number}{' target' if target else ''}", *cells)
    uncertain = [
        f"[dim]· {escape(visit.visit)}: lesion {visit.uncertain} is new, but on one slice only: not counted[/dim]"
        for visit in follow_up.visits
        if visit.uncertain
    ]
    return [
        lengths if follow_up.lesions else "no lesion at any visit",
        "",
        _visit_table(follow_up.visits),
        *uncertain,
        *_notes(follow_up.notes),
        "",
        f"All results: {escape(str(follow_up.out))}; look at course.png there",
    ]


def _visit_table(visits: Sequence[VisitRow]) -> Table:
    table = _table("Visits", "visit", ">lesions", ">sum (mm)", ">baseline", ">smallest", "category", "why")
    for visit in visits:
        changes = ("" if v is None else f"{v:+.0f} %" for v in (visit.from_baseline_percent, visit.from_nadir_percent))
        table.add_row(
            escape(visit.visit),
            str(visit.lesions),
            _number(visit.sum_of_diameters_mm, 1),
            *changes,
            f"[bold]{visit.category}[/bold]",
            visit.reason,
        )
    return table


def _at_visit(row: LesionVisitRow) -> str:
    if row.state == "there":
        return f"{row.longest_axial_mm:.1f}"
    return row.state if not row.longest_axial_mm else f"{row.longest_axial_mm:.1f} ({row.state})"


def export_summary(result: Any) -> Table:
    """What ``metaseg export`` prints."""
    facts = [
        ("model", str(result.onnx)),
        ("how to use it", str(result.description)),
        ("compared with torch", f"probabilities differ by at most {result.difference:.1e}, on {result.checked_on}"),
    ]
    return _facts("Exported", facts)


def demo_summary(result: Any) -> list[Any]:
    """What ``metaseg demo`` prints."""
    facts = [
        (
            "Dice per patient",
            f"{result.scores['dice']:.3f}, on {result.patients} phantom patients that training has not seen",
        ),
        ("lesion F1", _number(result.scores["lesion_f1"])),
        ("lesion recall", _number(result.scores["lesion_recall"])),
        ("took", f"{result.seconds:.0f} s"),
        ("model", str(result.model)),
        ("overlay", str(result.overlay)),
        ("scan to try", str(result.scan)),
    ]
    runs = escape(str(result.out / "runs"))
    return [
        "",
        _facts("The demo is done", facts),
        "",
        f"Now look at it in the browser: [bold]metaseg serve-ui --runs {runs}[/bold]",
    ]
