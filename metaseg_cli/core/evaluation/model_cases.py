"""Predict and score the prepared cases that a model has not seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared, region_masks
from metaseg_cli.core.evaluation.system import EvaluatedSystem, EvaluationLog, collect, rules_of
from metaseg_cli.core.executor import map_cases
from metaseg_cli.core.inference.predictor import Model, load_model
from metaseg_cli.core.intensity import head_of_normalised
from metaseg_cli.core.metrics.calibration import count_calibration
from metaseg_cli.core.metrics.cases import Confidence, MaskPair, ScoredCase, ScoringRules, score_case
from metaseg_cli.core.metrics.froc import find_candidates
from metaseg_cli.core.model_file import ModelCard, patient_hash, read_card, unkeyed_patient_hash
from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import ModelSettings
from metaseg_cli.errors import InputError, Problem


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
            notes.append(f"{len(labelled) - len(fresh)} cases were left out: the model was trained on them")
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
    model: Path
    changed: float  # modification time of the model file: a worker must not use an older one
    postprocessing: tuple[Postprocessing, ...]
    device: str
    rules: ScoringRules


def evaluate_model(
    path: Path, config: EvaluateConfig, progress: Progress, only: frozenset[str] | None = None
) -> EvaluatedSystem:
    """Score a model on prepared cases that it has not seen; *only* on these, when they are named.

    Raises InputError when there is no such case.
    """
    card, prepared = read_card(path), open_prepared(config.data)
    records, notes = unseen_cases(prepared, card, path, config)
    records = [record for record in records if only is None or record.case in only]
    postprocessing = card.of_regions()
    if config.threshold is not None:
        postprocessing = tuple(each.with_threshold(config.threshold) for each in postprocessing)
    out, log = config.out or path.parent / "evaluation", EvaluationLog(notes=list(notes))
    jobs = [
        _CaseJob(
            record=record,
            folder=prepared.folder if config.cluster is None else prepared.folder.resolve(),
            model=path if config.cluster is None else path.resolve(),  # another computer has another working folder
            changed=path.stat().st_mtime,
            postprocessing=postprocessing,
            device=config.device,
            rules=rules_of(config),
        )
        for record in records
    ]
    evaluation, worst = collect(_score_all(jobs, out, config, log, progress), config, log)
    return EvaluatedSystem(
        out=out,
        name=path.parent.name,
        what=f"{len(records)} cases, {config.split}, {path}",
        settings=ModelSettings(
            model=path,
            data=config.data,
            split=config.split,
            postprocessing=dict(zip(card.regions, postprocessing, strict=True)),
        ),
        evaluation=evaluation,
        worst=worst,
        notes=tuple(log.notes),
        problems=tuple(log.problems),
    )


def unseen_by(path: Path, config: EvaluateConfig) -> frozenset[str]:
    """Return the prepared cases that a model may be scored on. Raises InputError when there is none."""
    records, _ = unseen_cases(open_prepared(config.data), read_card(path), path, config)
    return frozenset(record.case for record in records)


def _score_all(
    jobs: Sequence[_CaseJob], out: Path, config: EvaluateConfig, log: EvaluationLog, progress: Progress
) -> Iterator[ScoredCase]:
    """Yield scores case by case; one case is in memory at a time."""
    progress.start("evaluating", len(jobs))
    results = map_cases(
        _score_record, jobs, 1, config.cluster, file_of=lambda job: Path(job.record.file), log_folder=out
    )
    for job, result in results:
        if isinstance(result, Problem):
            log.problems.append(result)
        else:
            yield result
        progress.advance(1, job.record.case)


@lru_cache(maxsize=1)
def _opened(folder: Path, model: Path, changed: float, device: str) -> tuple[Prepared, Model]:
    """Open folder and model once per process."""
    del changed
    return open_prepared(folder), load_model(model, device)


def _score_record(job: _CaseJob) -> ScoredCase:
    prepared, model = _opened(job.folder, job.model, job.changed, job.device)
    record = job.record
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).float()
    probabilities = model.probabilities(image, torch.from_numpy(prepared.available(record)))
    references = dict(zip(prepared.regions, region_masks(prepared.label(record), prepared.regions), strict=True))
    scan = image.numpy()
    head = head_of_normalised(scan)
    pairs = {
        name: MaskPair(
            reference=references[name],
            prediction=to_mask(probability, settings, record.spacing_mm),
            probability=probability,
            confidence=Confidence(
                candidates=find_candidates(references[name], probability),
                calibration=count_calibration(references[name], probability, head),
            ),
        )
        for name, probability, settings in zip(model.card.regions, probabilities, job.postprocessing, strict=True)
    }
    image_shown = prepared.shown(record, scan)
    return score_case(record.case, record.patient, pairs, record.spacing_mm, job.rules, image=image_shown)
