"""What the commands print that make a model: prepare, train, export, demo."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from metaseg_cli.core.regions import lesion_definition
from metaseg_cli.reports.terminal import MANY, escape, facts_table, new_table, note_lines, number_text, problem_tables

if TYPE_CHECKING:
    from metaseg_cli.core.cache import PrepareResult
    from metaseg_cli.core.postprocessing import Postprocessing
    from metaseg_cli.core.results import DemoResult, ExportResult
    from metaseg_cli.core.training.plan import Plan
    from metaseg_cli.core.training.result import TrainResult


def _dry_run_table(result: PrepareResult) -> Table:
    table = new_table(
        f"{len(result.found)} cases would be read, layout {result.layout} ({escape(result.why)})",
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
    if len(result.found) > MANY:
        table.caption = f"… and {len(result.found) - MANY} more"
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
        ("cases", f"{len(result.cases)} of {patients} patients{unchanged}"),
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
        facts.append(("voxel size", "×".join(f"{s:.2f}" for s in reversed(result.spacing_mm)) + " mm (x × y × z)"))
    return facts


def plan_summary(plan: Plan) -> list[RenderableType]:
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


def train_summary(result: TrainResult) -> list[RenderableType]:
    """What ``metaseg train`` prints."""
    validation: list[RenderableType]
    facts = [("ended after", f"{result.epochs} epochs, {result.minutes:.1f} minutes ({result.stopped})")]
    if result.scores:
        facts += _validation_facts(result)
        cases = "out of fold" if result.folds else "on the validation fold, which also chose epoch and threshold"
        validation = [f"[dim]{cases}: expect a little less elsewhere[/dim]", "", _size_table(result)]
    else:
        validation = ["[yellow]no validation cases: model quality is unknown[/yellow]"]
    facts.append(("speed", f"{result.images_per_second:.1f} images/s in {result.precision}"))
    if result.milliseconds_per_step:
        facts.append(("time of a step", ", ".join(f"{k} {v:.0f} ms" for k, v in result.milliseconds_per_step.items())))
    facts.append(("model", str(result.model)))
    return [facts_table("Trained", facts), *validation, "", "Next: metaseg evaluate, or metaseg predict scan.png"]


def _validation_facts(result: TrainResult) -> list[tuple[str, str]]:
    several = len(result.postprocessing) > 1
    return [
        *([("best epoch", str(result.best_epoch))] if result.best_epoch else []),
        ("Dice per patient", number_text(result.scores["dice"])),
        ("lesion F1", number_text(result.scores["lesion_f1"])),
        ("lesion recall", number_text(result.scores["lesion_recall"])),
        ("false lesions per case", number_text(result.scores["false_positives_per_case"])),
        *(
            (f"threshold of {region}" if several else "threshold", _in_words(each, result.unit))
            for region, each in result.postprocessing.items()
        ),
    ]


def _size_table(result: TrainResult) -> Table:
    table = new_table("Lesions found, by diameter", f"diameter ({result.unit})", ">lesions", ">found", ">recall")
    low = 0.0
    for size in result.by_size:
        name = f"{low:g} – {size.up_to:g}" if math.isfinite(size.up_to) else f"above {low:g}"
        recall = number_text(size.found / size.lesions) if size.lesions else "–"
        table.add_row(name, str(size.lesions), str(size.found), recall)
        low = size.up_to
    return table


def _in_words(chosen: Postprocessing, unit: str) -> str:
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
