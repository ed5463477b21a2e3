"""Segment scans with a trained model and write masks, overlays and the table of lesions."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import metaseg_cli
from metaseg_cli.commands.predict_case import Job, lesion_rows, look, model_of, read, write
from metaseg_cli.commands.predict_inputs import absolute, output_names, sources_of
from metaseg_cli.commands.predict_records import DOCUMENT, Records
from metaseg_cli.commands.predicted_scan import PredictedScan
from metaseg_cli.commands.runs import find_model
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.atomic import atomic_write_text, exclusive_writer, make_folder
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.executor import map_cases, map_stages
from metaseg_cli.core.inference.predictor import Model, Prediction, RawPrediction, load_model, resolve_postprocessing
from metaseg_cli.core.model_file import ModelCard, read_card
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import Problem

__all__ = ["PredictResult", "PredictedScan", "as_document", "at_threshold", "lesion_rows", "load_model", "predict"]


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """All scans of one call; ``problems`` are those that gave no mask."""

    model: Path
    card: ModelCard
    out: Path
    postprocessing: dict[str, Postprocessing]
    tta: bool
    fusion: str
    scans: tuple[PredictedScan, ...]
    problems: tuple[Problem, ...] = field(default=())


def predict(config: PredictConfig, progress: Progress, *, keep: bool = False) -> PredictResult:
    """Run ``metaseg predict``. One bad scan never stops the others; raises only where nothing can be done at all.

    A scan that an earlier call finished with the same model and settings is kept and listed. With *keep* the arrays of
    those that are predicted now stay in the result. Two calls cannot write one folder: their tables would mix.
    """
    path = find_model(config.model)
    sources, problems, notes = sources_of(config.inputs, config.out)
    card = read_card(path)
    for note in notes:
        progress.say(note)
    progress.say(f"model {path}: {card.name}, {card.dims}D, {', '.join(card.sequences)}")
    make_folder(config.out)
    with exclusive_writer(config.out, "metaseg predict"):
        result, records = _predicted(config, path, card, sources, problems, progress, keep=keep)
        kept = sum(scan.kept for scan in result.scans)
        if kept:
            progress.say(
                f"{kept} of {len(result.scans)} scans were finished before, by the same model and settings: kept"
            )
        if result.scans:
            _write_tables(result, records)
            records.clear()
    return result


def _predicted(
    config: PredictConfig,
    path: Path,
    card: ModelCard,
    sources: list[CaseSource],
    problems: list[Problem],
    progress: Progress,
    *,
    keep: bool,
) -> tuple[PredictResult, Records]:
    """Every scan's masks and pictures, without the tables."""
    changed = path.stat().st_mtime
    settings = resolve_postprocessing(
        card, config.fusion, config.threshold, postprocess=config.postprocess, fill_holes=config.fill_holes
    )
    if config.cluster is not None:  # another computer has another working folder
        path, config = path.resolve(), dataclasses.replace(config, out=config.out.resolve())
        sources = [absolute(source) for source in sources]
    elif sources:
        # What is wrong with it is said once, not for every scan.
        model_of(path, changed, config).scans = len(sources)
    records = Records(config.out)
    jobs = [
        Job(source=source, name=name, model=path, changed=changed, config=config, keep=keep, records=records)
        for source, name in zip(sources, output_names(sources), strict=True)
    ]
    done: list[PredictedScan] = []
    progress.start("predicting", len(jobs))
    if config.cluster is not None:
        results = map_cases(
            _predict_one, jobs, 1, config.cluster, file_of=lambda job: job.source.first_file, log_folder=config.out
        )
    else:
        # Reading ahead and writing behind keep up to three cases in memory.
        results = map_stages((read, look, write), jobs, overlap=config.max_memory is None)
    for job, one in results:
        if isinstance(one, Problem):
            problems.append(one)
        else:
            done.append(one)
        progress.advance(1, job.name)
    result = PredictResult(
        model=path,
        card=card,
        out=config.out,
        postprocessing=dict(zip(card.regions, settings, strict=True)),
        tta=config.tta,
        fusion=config.fusion,
        scans=tuple(done),
        problems=tuple(problems),
    )
    return result, records


def _predict_one(job: Job) -> PredictedScan | Problem:
    return write(look(read(job)))


def at_threshold(model: Model, prediction: Prediction, threshold: float | None) -> Prediction:
    """The same scan at another threshold, without running the network again."""
    raw = RawPrediction(prediction.probabilities)
    return model.postprocess(prediction.source, raw, model.postprocessing(threshold))


def as_document(result: PredictResult) -> dict[str, Any]:
    """The result as ``predictions.json`` and ``--json`` have it."""
    return {
        "schema": 1,
        "program": f"metaseg {metaseg_cli.__version__}",
        "out": str(result.out),
        "model": str(result.model),
        "architecture": result.card.name,
        "threshold": next(iter(result.postprocessing.values())).threshold,
        "tta": result.tta,
        "fusion": result.fusion,
        "postprocessing": {name: dataclasses.asdict(each) for name, each in result.postprocessing.items()},
        "temperature": result.card.temperature,
        "regions": {name: list(values) for name, values in result.card.regions.items()},
        "scans": [scan.document() for scan in result.scans],
        "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in result.problems],
    }


def _write_tables(result: PredictResult, records: Records) -> None:
    columns = [
        "scan",
        "region",
        "lesion",
        "voxels",
        "volume_mm3",
        "diameter_mm",
        "diameter_px",
        "longest_axial_mm",
        "longest_axial_px",
        "perpendicular_mm",
        "perpendicular_px",
        "feret_mm",
        "feret_px",
        "axial_slices",
        "measurable",
        "z",
        "y",
        "x",
        "x_mm",
        "y_mm",
        "z_mm",
        "confidence",
    ]
    rows = [row for scan in result.scans for row in scan.lesions]
    atomic_write_text(result.out / "lesions.csv", csv_text(rows, columns))
    document = as_document(result) | {"earlier": records.others({scan.name for scan in result.scans})}
    atomic_write_text(result.out / DOCUMENT, json.dumps(document, indent=1, allow_nan=False))
