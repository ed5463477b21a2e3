"""Segment scans with a trained model and write masks, overlays and the table of lesions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.atomic import exclusive_writer, make_folder
from metaseg_cli.core.counts import counted
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.executor import map_cases, map_stages
from metaseg_cli.core.inference.finished_scans import FinishedScans
from metaseg_cli.core.inference.inputs import absolute, output_names, sources_of
from metaseg_cli.core.inference.pipeline import infer, load, model_of, predict_scan, save
from metaseg_cli.core.inference.predictor import resolve_postprocessing
from metaseg_cli.core.inference.scan_job import PredictedScan, ScanJob
from metaseg_cli.core.model_file import ModelCard, read_card
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import Predictions, problem_rows
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import ConfigError, Problem
from metaseg_cli.outputs.predictions import write_predictions
from metaseg_cli.reports.scan_pictures import save_pictures
from metaseg_cli.reports.scan_report import save_report


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """All scans of one call, and the ``document`` that describes them; ``problems`` are inputs without a mask."""

    document: Predictions
    scans: tuple[PredictedScan, ...]
    problems: tuple[Problem, ...] = ()


def predict(config: PredictConfig, progress: Progress, *, keep: bool = False) -> PredictResult:
    """Run ``metaseg predict``. One bad scan never stops the others; raises only where nothing can be done at all.

    A scan that an earlier call completed with the same model and settings is kept and listed. With *keep* the arrays of
    those that are predicted now stay in the result. Two calls cannot write one folder: their tables would mix.
    """
    model = find_model(config.model)
    card = read_card(model).at_operating_point(config.operating_point)
    sources, problems, notes = sources_of(config.inputs, config.out, card.sequences)
    if config.region is not None and config.region not in card.regions:
        raise ConfigError(f"there is no region {config.region}", remedy=f"the model has {', '.join(card.regions)}")
    for note in notes:
        progress.say(note)
    progress.say(f"model {model}: {card.name}, {card.dims}D, {', '.join(card.sequences)}")
    make_folder(config.out)
    with exclusive_writer(config.out, "metaseg predict"):
        if config.cluster is not None:  # another computer has another working folder
            model, config = model.resolve(), dataclasses.replace(config, out=config.out.resolve())
            sources = [absolute(source) for source in sources]
        finished = FinishedScans(config.out)
        scans: list[PredictedScan] = []
        for scan in _predicted(_jobs(sources, model, config, finished, keep=keep), config, progress):
            if isinstance(scan, Problem):
                problems.append(scan)
            else:
                scans.append(scan)
        document = _document(config, model, card, scans, problems)
        if config.cluster is None and any(not scan.kept for scan in scans):
            note = model_of(model, model.stat().st_mtime, config).backend_note
            if note:
                progress.say(note)
                document = dataclasses.replace(document, backend_note=note)
        _say_kept(scans, progress)
        if scans:
            others = finished.others({scan.result.name for scan in scans})
            write_predictions(dataclasses.replace(document, earlier=others))
            finished.clear()
    return PredictResult(document=document, scans=tuple(scans), problems=tuple(problems))


def _jobs(
    sources: Sequence[CaseSource], model: Path, config: PredictConfig, finished: FinishedScans, *, keep: bool
) -> list[ScanJob]:
    changed = model.stat().st_mtime
    return [
        ScanJob(
            source=source,
            name=name,
            model=model,
            changed=changed,
            config=config,
            finished=finished,
            draw=save_pictures,
            write_report=save_report,
            keep=keep,
        )
        for source, name in zip(sources, output_names(sources), strict=True)
    ]


def _predicted(jobs: Sequence[ScanJob], config: PredictConfig, progress: Progress) -> Iterator[PredictedScan | Problem]:
    """Yield every scan once its masks and pictures are written."""
    if jobs and config.cluster is None:
        # Loads the model: an error in it is reported once, not for every scan.
        model_of(jobs[0].model, jobs[0].changed, config)
    progress.start("predicting", len(jobs), unit="scan")
    if config.cluster is not None:
        results = map_cases(
            predict_scan, jobs, 1, config.cluster, file_of=lambda job: job.source.first_file, log_folder=config.out
        )
    else:
        # Reading ahead and writing behind keep up to three cases in memory.
        stages = (load, partial(infer, after_window=progress.within), save)
        results = map_stages(stages, jobs, overlap=config.max_memory is None)
    for job, scan in results:
        yield scan
        progress.advance(1, job.name)


def _document(
    config: PredictConfig,
    model: Path,
    card: ModelCard,
    scans: Sequence[PredictedScan],
    problems: Sequence[Problem],
) -> Predictions:
    settings = resolve_postprocessing(
        card, config.fusion, config.threshold, postprocess=config.postprocess, fill_holes=config.fill_holes
    )
    return Predictions(
        out=config.out,
        model=model,
        architecture=card.name,
        operating_point=card.operating_point if config.postprocess else "none",
        threshold=settings[0].threshold,
        tta=config.tta,
        fusion=config.fusion,
        postprocessing=dict(zip(card.regions, settings, strict=True)),
        temperature=card.temperature,
        regions=card.regions,
        index_region=config.region or card.index_region,
        scans=tuple(scan.result for scan in scans),
        problems=problem_rows(problems),
    )


def _say_kept(scans: Sequence[PredictedScan], progress: Progress) -> None:
    kept = sum(scan.kept for scan in scans)
    if kept:
        progress.say(f"{kept} of {counted(len(scans), 'scan')} kept: finished before, by the same model and settings")
