"""Predict and score the prepared cases that a model has not seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from metaseg_cli.config import EvaluateConfig, PredictConfig
from metaseg_cli.core.cache import LISTING_FILE, CaseOrigin, CaseRecord, Prepared, open_prepared
from metaseg_cli.core.counts import counted
from metaseg_cli.core.evaluation.grids import on_prepared_grid, on_scan_grid, regions_of
from metaseg_cli.core.evaluation.system import EvaluatedSystem, EvaluationLog, collect, rules_of
from metaseg_cli.core.executor import map_cases
from metaseg_cli.core.inference.pipeline import model_of
from metaseg_cli.core.inference.predictor import resolve_postprocessing
from metaseg_cli.core.inference.sliding_window import AfterWindow
from metaseg_cli.core.metrics.calibration import count_calibration
from metaseg_cli.core.metrics.cases import CaseScore, Confidence, MaskPair, ScoredCase, ScoringRules, score_case
from metaseg_cli.core.metrics.evaluation import Evaluation, summarise
from metaseg_cli.core.metrics.froc import find_candidates
from metaseg_cli.core.model_file import ModelCard, patient_hash, read_card, unkeyed_patient_hash
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import ModelSettings
from metaseg_cli.core.results.scores import Summary
from metaseg_cli.core.run_folder import MODEL_FILE, fold_folder
from metaseg_cli.errors import InputError, Problem

_GRIDS = {"scan": "on the grid of each scan", "prepared": "on the grid of the prepared cases"}


def unseen_cases(
    prepared: Prepared, card: ModelCard, path: Path, config: EvaluateConfig
) -> tuple[list[CaseRecord], tuple[str, ...]]:
    """Return the cases to score, never one that the model was trained on, and notes on the choice.

    Raises InputError when there is none, or when the folder does not fit the model.
    """
    _check_fit(card, prepared)
    seen = set(card.trained_on)
    labelled = [r for r in prepared.cases if r.labelled]
    fresh = [r for r in labelled if r.content not in seen and not _same_patient(r, card, prepared)]
    notes: list[str] = []
    if card.patients and not card.dataset_id and not prepared.patient_key:
        notes.append(
            "the prepared folder has no .patient_key: training cases are known by their images, but other visits of "
            "training patients are not"
        )
    if config.split == "test":
        chosen = [r for r in fresh if r.split == "test"]
        missing = "the folder has no test cases"
    elif config.split == "all":
        chosen = fresh
        missing = "the model was trained on every case of it"
        if len(fresh) < len(labelled):
            notes.append(f"left out: {counted(len(labelled) - len(fresh), 'case')} that the model was trained on")
    else:
        chosen = [r for r in fresh if r.content in set(card.validated_on)]
        missing = "none of its cases validated this model"
        if chosen:
            notes.append("these cases chose the model's epoch and threshold: expect a little less on new ones")
    if not chosen:
        raise InputError(
            f"nothing to score: {missing}",
            where=prepared.folder,
            remedy=f"choose another --split or --data for {path}",
        )
    return chosen, tuple(notes)


def _check_fit(card: ModelCard, prepared: Prepared) -> None:
    other = card.preprocessing != json.loads(json.dumps(prepared.preprocessing.record()))
    if card.sequences == prepared.sequences and other:
        raise InputError(
            "the folder was prepared in another way than the model's (voxel size, or pictures against volumes)",
            where=prepared.folder,
            remedy="prepare it with the --spacing of the model's own folder",
        )
    if card.sequences != prepared.sequences or set(card.regions) != set(prepared.regions):
        raise InputError(
            f"the model requires {', '.join(card.sequences)} → {', '.join(card.regions)}, the folder holds "
            f"{', '.join(prepared.sequences)} → {', '.join(prepared.regions)}",
            where=prepared.folder,
            remedy="name the folder it was trained on with --data",
        )


def _same_patient(record: CaseRecord, card: ModelCard, prepared: Prepared) -> bool:
    if card.dataset_id:
        hashed = unkeyed_patient_hash(prepared.dataset_id, record.patient)
        return card.dataset_id == prepared.dataset_id and hashed in card.patients
    return bool(prepared.patient_key) and patient_hash(prepared.patient_key, record.patient) in card.patients


@dataclass(frozen=True, kw_only=True)
class _CaseJob:
    """A prepared case to predict and score, as it travels to a worker."""

    record: CaseRecord
    folder: Path
    folder_changed: float  # likewise of dataset.json
    model: Path
    changed: float  # modification time of the model file: a worker must not use an older one
    postprocessing: tuple[Postprocessing, ...]
    device: str
    rules: ScoringRules
    grid: str  # auto or scan: that of the original scan


def evaluate_model(
    path: Path, config: EvaluateConfig, progress: Progress, only: frozenset[str] | None = None
) -> EvaluatedSystem:
    """Score a model on prepared cases that it has not seen; *only* on these, when they are named.

    On the validation split, the ensemble of a cross-validation means its out-of-fold report: each case by the model of
    the fold that validated it, with that model's post-processing. Raises InputError when there is no such case.
    """
    prepared, folds = open_prepared(config.data), _fold_models(path, config)
    out, log = config.out or path.parent / "evaluation", EvaluationLog(grid=config.grid)
    jobs: list[_CaseJob] = []
    postprocessing: dict[str, Postprocessing] = {}
    fold_of: dict[str, str] = {}
    for model in folds or (path,):
        records, notes = unseen_cases(prepared, read_card(model), model, config)
        records = [record for record in records if only is None or record.case in only]
        log.notes += [note for note in notes if note not in log.notes]
        prefix = f"{model.parent.name}/" if folds else ""
        settings = _postprocessing(model, config)
        postprocessing |= {prefix + region: each for region, each in settings.items()}
        jobs += [_job(record, model, prepared, tuple(settings.values()), config) for record in records]
        fold_of |= {record.case: model.parent.name for record in records}
    evaluation, worst = collect(_score_all(jobs, out, config, log, progress), config, log)
    if folds:
        log.notes.append("out of fold: each case by the fold's model that did not train on it, not by the ensemble")
        if any(record.split == "test" for record in prepared.cases):
            log.notes.append("score the ensemble itself on the test cases with --split test")
    what = "out of fold" if folds else config.split
    grid = "prepared" if log.grid == "prepared" else "scan"
    scored = "" if len(evaluation.cases) == len(jobs) else f"{len(evaluation.cases)} of "
    return EvaluatedSystem(
        out=out,
        name=path.parent.name,
        what=f"{scored}{counted(len(jobs), 'case')}, {what}, {_GRIDS[grid]}, {path}",
        settings=ModelSettings(
            model=path,
            data=config.data,
            split=config.split,
            postprocessing=postprocessing,
            grid=_GRIDS[grid],
        ),
        evaluation=evaluation,
        worst=worst,
        index_region=read_card(path).index_region,
        folds=_of_folds(evaluation, fold_of) if folds else {},
        notes=tuple(log.notes),
        problems=tuple(log.problems),
    )


def unseen_by(path: Path, config: EvaluateConfig) -> frozenset[str]:
    """Return the prepared cases that a model may be scored on. Raises InputError when there is none."""
    prepared = open_prepared(config.data)
    models = _fold_models(path, config) or (path,)
    found = [unseen_cases(prepared, read_card(model), model, config)[0] for model in models]
    return frozenset(record.case for records in found for record in records)


def _fold_models(path: Path, config: EvaluateConfig) -> tuple[Path, ...]:
    """Return the models of the folds where *path* is the ensemble of a cross-validation whose own cases are asked for.

    Raises InputError when a fold's model is missing.
    """
    members = read_card(path).members
    if config.split != "validation" or members == 1:
        return ()
    models = tuple(fold_folder(path.parent, fold) / MODEL_FILE for fold in range(members))
    missing = [model for model in models if not model.exists()]
    if missing:
        raise InputError(
            "the model of a fold is missing: out-of-fold scores need every one",
            where=missing[0],
            remedy="name the run's folder as metaseg train made it, or score the ensemble with --split test",
        )
    return models


def _postprocessing(model: Path, config: EvaluateConfig) -> dict[str, Postprocessing]:
    card = read_card(model).at_operating_point(config.operating_point)
    return dict(zip(card.regions, resolve_postprocessing(card, "mean", config.threshold), strict=True))


def _job(
    record: CaseRecord,
    model: Path,
    prepared: Prepared,
    postprocessing: tuple[Postprocessing, ...],
    config: EvaluateConfig,
) -> _CaseJob:
    far = config.cluster is not None  # another computer has another working folder
    return _CaseJob(
        record=record,
        folder=prepared.folder.resolve() if far else prepared.folder,
        folder_changed=(prepared.folder / LISTING_FILE).stat().st_mtime,
        model=model.resolve() if far else model,
        changed=model.stat().st_mtime,
        postprocessing=postprocessing,
        device=config.device,
        rules=rules_of(config),
        grid=config.grid,
    )


def _of_folds(evaluation: Evaluation, fold_of: Mapping[str, str]) -> dict[str, Summary]:
    """Return the means over the cases of each fold."""
    cases: dict[str, list[CaseScore]] = {}
    for case in evaluation.cases:
        cases.setdefault(fold_of[case.case], []).append(case)
    return {fold: summarise(own, evaluation.protocol).summary for fold, own in cases.items()}


def _score_all(
    jobs: Sequence[_CaseJob], out: Path, config: EvaluateConfig, log: EvaluationLog, progress: Progress
) -> Iterator[ScoredCase]:
    """Yield scores case by case; one case is in memory at a time."""
    unavailable: list[Problem] = []
    for case, problem in _scores(jobs, out, config, log, progress):
        if case is not None:
            yield case
        elif problem is not None:
            unavailable.append(problem)
    if config.grid != "auto" or not unavailable or len(unavailable) < len(jobs):
        # Two grids in one table would say nothing: a case whose original files are gone is left out, and named.
        log.problems += unavailable
        return
    first = unavailable[0]
    log.grid = "prepared"
    log.notes.append(
        f"scored on the prepared grid: of no case are the original files left; {first.file}: {first.reason}"
    )
    again = [replace(job, grid="prepared") for job in jobs]
    yield from (case for case, _ in _scores(again, out, config, log, progress) if case is not None)


def _scores(
    jobs: Sequence[_CaseJob], out: Path, config: EvaluateConfig, log: EvaluationLog, progress: Progress
) -> Iterator[tuple[ScoredCase | None, Problem | None]]:
    """Yield each case's score, or why its original files cannot be used; nothing of a case that failed otherwise."""
    progress.start("evaluating", len(jobs), unit="case")
    score = _score_record if config.cluster is not None else partial(_score_record, after_window=progress.within)
    results = map_cases(score, jobs, 1, config.cluster, file_of=lambda job: Path(job.record.file), log_folder=out)
    notes: Counter[str] = Counter()
    for job, result in results:
        if isinstance(result, Problem):
            log.problems.append(result)
        elif isinstance(result, _Unavailable):
            yield None, result.problem
        else:
            notes.update(result.notes)
            yield result.case, None
        progress.advance(1, job.record.case)
    log.notes += [f"{text} ({count} times)" if count > 1 else text for text, count in notes.items()]


@dataclass(frozen=True)
class _Unavailable:
    """The original files of a case are gone or have changed, or the folder does not name them."""

    problem: Problem


@dataclass(frozen=True)
class _Scored:
    case: ScoredCase
    notes: tuple[str, ...]


@lru_cache(maxsize=1)
def _opened(folder: Path, changed: float) -> Prepared:
    """Open the folder once per process."""
    del changed
    return open_prepared(folder)


def _score_record(job: _CaseJob, after_window: AfterWindow | None = None) -> _Scored | _Unavailable:
    prepared, record = _opened(job.folder, job.folder_changed), job.record
    origin = None
    if job.grid != "prepared":
        origin = prepared.origin(record)
        problem = origin if isinstance(origin, Problem) else origin.changed()
        if problem is not None:
            return _Unavailable(problem)
    model = model_of(job.model, job.changed, PredictConfig(inputs=("any",), device=job.device))
    if isinstance(origin, CaseOrigin):
        case = on_scan_grid(origin.read(record, regions_of(model, prepared)), model, job.postprocessing, after_window)
    else:
        case = on_prepared_grid(prepared, record, model, job.postprocessing, after_window)
    pairs = {
        name: MaskPair(
            reference=reference,
            prediction=mask,
            probability=probability,
            confidence=Confidence(
                candidates=find_candidates(reference, probability, per_slice=prepared.per_slice),
                calibration=count_calibration(reference, probability, case.head),
            ),
        )
        for name, reference, mask, probability in zip(
            model.card.regions, case.references, case.masks, case.probabilities, strict=True
        )
    }
    scored = score_case(
        record.case,
        record.patient,
        pairs,
        case.spacing_mm,
        job.rules,
        image=case.image,
        affine=case.affine,
        view=case.view.apply if case.view else None,
        per_slice=prepared.per_slice,
    )
    return _Scored(scored, case.notes)
