"""What the commands print that make a model: prepare, train, export, demo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.counts import counted, sizes_with_axes
from metaseg_cli.core.detection import SizeRange
from metaseg_cli.core.images import spacing_text
from metaseg_cli.core.regions import lesion_definition
from metaseg_cli.reports.pages import and_more
from metaseg_cli.reports.terminal import (
    MANY,
    escape,
    facts_table,
    interval_text,
    new_table,
    note_lines,
    number_text,
    problem_tables,
)

if TYPE_CHECKING:
    from metaseg_cli.core.cache import PrepareResult
    from metaseg_cli.core.postprocessing import Postprocessing
    from metaseg_cli.core.results import DemoResult, ExportResult
    from metaseg_cli.core.results.operating_points import FrocPoint, SizeClassScore
    from metaseg_cli.core.training.plan import Plan
    from metaseg_cli.core.training.result import TrainResult

_NO_INTERVAL = (math.nan, math.nan)


def _dry_run_table(result: PrepareResult) -> Table:
    table = new_table(
        f"{counted(len(result.found), 'case')} would be read, layout {result.layout} ({escape(result.why)})",
        "case",
        "patient",
        "split",
        "sequences",
        ">files",
        "mask",
        "first file",
    )
    for source in result.found[:MANY]:
        mask = source.masks[0].name if source.masks else "none"
        table.add_row(
            escape(source.case),
            escape(source.patient),
            source.split or "",
            escape(", ".join(source.channels or source.sequences)),
            str(sum(len(files) for files in source.sequences.values())),
            escape(mask if len(source.masks) < 2 else f"{mask} …"),
            escape(source.first_file),
        )
    table.caption = and_more(len(result.found), MANY, "--dry-run --json") or None
    return table


def prepare_summary(result: PrepareResult) -> list[RenderableType]:
    """What ``metaseg prepare`` prints."""
    if result.manifest is not None:
        return [
            f"Wrote {escape(result.manifest)}: one line per case, to complete by hand.",
            f"Then: metaseg prepare RAW --manifest {escape(result.manifest)}",
        ]
    remarks = [*note_lines(result.notes), *problem_tables(result.problems)]
    if result.out is None:
        return [_dry_run_table(result), *remarks]
    out = escape(result.out)
    last = f"[bold]{out}[/bold] is ready. See report.html in it; then: metaseg train --data {out}"
    key = []
    if result.key is not None:
        key = [f"The key to the random names is {escape(result.key)}: keep it apart, and do not pass it on."]
    return [facts_table("Prepared", _prepared_facts(result)), *remarks, "", *key, last]


def _prepared_facts(result: PrepareResult) -> list[tuple[str, str]]:
    patients = len({case.patient for case in result.cases})
    unchanged = f" ({result.reused} unchanged)" if result.reused else ""
    regions = (f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in result.regions.items())
    facts = [
        ("cases", f"{len(result.cases)} of {counted(patients, 'patient')}{unchanged}"),
        (
            "lesions",
            f"{sum(len(case.lesion_voxels) for case in result.cases)} ({lesion_definition(result.regions)})",
        ),
        ("sequences", ", ".join(result.sequences)),
        ("regions", ", ".join(regions)),
        ("folds", str(result.folds)),
        ("layout", f"{result.layout} ({result.why})"),
    ]
    if result.spacing_mm:
        facts.append(("voxel size", f"{spacing_text(result.spacing_mm)} mm (x × y × z)"))
    return facts


def plan_summary(plan: Plan) -> list[RenderableType]:
    """What ``metaseg train --plan-only`` prints."""
    lines = [escape(reason) for reason in plan.reasons]
    strides = ", ".join(map(sizes_with_axes, plan.strides))
    return [
        "[bold]The plan[/bold]",
        *(f"  {line}" for line in lines),
        f"  poolings {strides}",
        "",
        "Nothing was trained.",
    ]


def train_summary(result: TrainResult) -> list[RenderableType]:
    """What ``metaseg train`` prints."""
    validation: list[RenderableType]
    facts = [("ended after", f"{counted(result.epochs, 'epoch')}, {result.minutes:.1f} minutes ({result.stopped})")]
    if result.scores:
        facts += _validation_facts(result)
        cases = "out of fold" if result.folds else "on the validation fold, which also chose epoch and threshold"
        validation = [
            _size_table(result),
            *(_point_table(result, region) for region in result.postprocessing),
            *(_froc_table(result.froc[region], region, result) for region in result.froc),
            f"[dim]{cases}: expect a little less elsewhere[/dim]",
            "",
        ]
    else:
        validation = ["[yellow]no validation cases: model quality is unknown[/yellow]"]
    facts.append(("speed", f"{result.images_per_second:.1f} images/s in {result.precision}"))
    if result.milliseconds_per_step:
        facts.append(("time of a step", ", ".join(f"{k} {v:.0f} ms" for k, v in result.milliseconds_per_step.items())))
    facts.append(("model", str(result.model)))
    return [*validation, facts_table("Trained", facts), "", "Next: metaseg evaluate, or metaseg predict scan.png"]


def _validation_facts(result: TrainResult) -> list[tuple[str, str]]:
    several = len(result.postprocessing) > 1
    return [
        *([("best epoch", str(result.best_epoch))] if result.best_epoch else []),
        ("operating point", f"{result.operating_point}; metaseg predict --operating-point takes another"),
        ("lesion recall", number_text(result.scores["lesion_recall"])),
        ("… of the smaller half", number_text(result.scores["small_lesion_recall"])),
        ("false lesions per case", number_text(result.scores["false_positives_per_case"])),
        ("lesion F1", number_text(result.scores["lesion_f1"])),
        ("Dice per patient", number_text(result.scores["dice"])),
        *(
            (f"threshold of {region}" if several else "threshold", postprocessing_text(each, result.unit))
            for region, each in result.postprocessing.items()
        ),
    ]


def _size_table(result: TrainResult) -> Table:
    table = new_table("Lesions found, by diameter", f"diameter ({result.unit})", ">lesions", ">found", ">recall")
    for name, size in zip(_size_names(result.by_size), result.by_size, strict=True):
        table.add_row(name, str(size.lesions), str(size.found), _recall(size))
    return table


def _size_names(classes: Sequence[SizeClassScore]) -> list[str]:
    """Return the names of size classes, from their edges."""
    edges = [0.0, *(each.up_to for each in classes if each.up_to is not None), math.inf]
    return [str(SizeRange(low, high)) for low, high in itertools.pairwise(edges)]


def _recall(size: SizeClassScore) -> str:
    return number_text(size.found / size.lesions) if size.lesions else "–"


def _point_table(result: TrainResult, region: str) -> Table:
    """What each operating point finds, and at which price."""
    table = new_table(
        f"Operating points{_of(region, result)}",
        *("operating point", ">lesion recall", ">95 % interval", ">false per case", ">95 % interval", ">F1", ">Dice"),
    )
    for name, point in result.operating_points.items():
        found = point.validation[region]
        table.add_row(
            f"{name} (default)" if name == result.operating_point else name,
            number_text(found.lesion_recall),
            interval_text(*(found.lesion_recall_ci95 or _NO_INTERVAL)),
            f"{found.false_per_case:.2f}",
            interval_text(*(found.false_per_case_ci95 or _NO_INTERVAL)),
            number_text(found.lesion_f1),
            number_text(found.dice),
        )
    return table


def _froc_table(curve: Sequence[FrocPoint], region: str, result: TrainResult) -> Table:
    """Recall against false lesions per case, by size: what any threshold could give."""
    sizes = _size_names(curve[0].by_size)
    names = [f">{escape(size)} {result.unit}" for size in sizes]
    title = f"Recall by false lesions per case{_of(region, result)}"
    table = new_table(title, "false per case", ">all", *names)
    for point in curve:
        recalls = [_recall(size) for size in point.by_size]
        table.add_row(f"{point.false_per_case:g}", number_text(point.lesion_recall), *recalls)
    return table


def _of(region: str, result: TrainResult) -> str:
    return f", {escape(region)}" if len(result.postprocessing) > 1 else ""


def postprocessing_text(chosen: Postprocessing, unit: str) -> str:
    """Return the post-processing of one region in words."""
    text = f"{chosen.threshold:.2f}"
    if chosen.high_threshold > chosen.threshold:
        text += f", {chosen.high_threshold:.2f} somewhere in the lesion"
    if chosen.min_size:
        text += f", lesions from {chosen.min_size:g} {'mm³' if unit == 'mm' else 'voxels'} on"
        if chosen.keep_confidence < 1:
            text += f" or of mean-logit confidence {chosen.keep_confidence:.2f}"
    return text


def export_summary(result: ExportResult) -> list[RenderableType]:
    """What ``metaseg export`` prints."""
    facts = [
        ("model", str(result.onnx)),
        ("how to use it", str(result.description)),
        ("compared with torch", f"probabilities differ by at most {result.difference:.1e}, on {result.checked_on}"),
    ]
    return [facts_table("Exported", facts)]


def demo_summary(result: DemoResult) -> list[RenderableType]:
    """What ``metaseg demo`` prints."""
    facts = [
        (
            "Dice per patient",
            f"{result.scores['dice']:.3f}, on {result.patients} phantom patients that training has not seen",
        ),
        ("lesion F1", number_text(result.scores["lesion_f1"])),
        ("lesion recall", number_text(result.scores["lesion_recall"])),
        ("took", f"{result.seconds:.0f} s"),
        ("model", str(result.model)),
        ("overlay", str(result.overlay)),
        ("scan to try", str(result.scan)),
    ]
    runs = escape(result.out / "runs")
    return [
        "",
        facts_table("The demo is done", facts),
        "",
        f"Now look at it in the browser: [bold]metaseg serve-ui --runs {runs}[/bold]",
    ]
