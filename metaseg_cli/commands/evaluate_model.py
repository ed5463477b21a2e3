"""Predict and score the prepared cases that a model has not seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared, region_masks
from metaseg_cli.core.executor import map_cases
from metaseg_cli.core.intensity import head_of_normalised
from metaseg_cli.core.metrics import Protocol
from metaseg_cli.core.metrics.cases import Confidence, ScoredCase, score_case
from metaseg_cli.core.metrics.curves import count_calibration, find_candidates
from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, Problem

if TYPE_CHECKING:
    from metaseg_cli.core.model_file import ModelCard


def unseen_cases(
    prepared: Prepared, card: ModelCard, path: Path, config: EvaluateConfig
) -> tuple[list[CaseRecord], tuple[str, ...]]:
    """The cases to score, and what is to be said of them: never one that the model was trained on."""
    made = card.preprocessing != json.loads(json.dumps(prepared.preprocessing.record()))
    if card.sequences == prepared.sequences and made:
        raise InputError(
            "the folder was prepared another way than the model's (voxel size, or pictures against volumes)",
            where=prepared.folder,
            remedy="prepare it with the --spacing of the model's own folder",
        )
    if card.sequences != prepared.sequences or set(card.regions) != set(prepared.regions):
        raise InputError(
            f"the model wants {', '.join(card.sequences)} → {', '.join(card.regions)}, the folder holds "
            f"{', '.join(prepared.sequences)} → {', '.join(prepared.regions)}",
            where=prepared.folder,
            remedy="name the folder it was trained for with --data",
        )
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


def _same_patient(record: CaseRecord, card: ModelCard, prepared: Prepared) -> bool:
    from metaseg_cli.core.model_file import patient_hash, unkeyed_patient_hash

    if card.dataset_id:
        hashed = unkeyed_patient_hash(prepared.dataset_id, record.patient)
        return card.dataset_id == prepared.dataset_id and hashed in card.patients
    return bool(prepared.patient_key) and patient_hash(prepared.patient_key, record.patient) in card.patients


@dataclass(frozen=True)
class _Job:
    """A prepared case to predict and score, as it travels to a worker."""

    record: CaseRecord
    folder: Path
    model: Path
    changed: float  # of the model file: a worker must not go on with an older one
    postprocessing: tuple[Postprocessing, ...]
    device: str
    protocol: Protocol
    tolerances: tuple[float, ...]


def score_with_model(
    path: Path,
    prepared: Prepared,
    records: Sequence[CaseRecord],
    postprocessing: tuple[Postprocessing, ...],
    config: EvaluateConfig,
    protocol: Protocol,
    problems: list[Problem],
    progress: Progress,
    log_folder: Path,
) -> Iterator[ScoredCase]:
    """Predict and score case by case; one case is in memory at a time."""
    folder = prepared.folder
    if config.cluster is not None:  # another computer has another working folder
        path, folder = path.resolve(), folder.resolve()
    changed = path.stat().st_mtime
    jobs = [
        _Job(record, folder, path, changed, postprocessing, config.device, protocol, config.tolerance)
        for record in records
    ]
    progress.start("evaluating", len(jobs))
    results = map_cases(
        _score_record, jobs, 1, config.cluster, file_of=lambda job: Path(job.record.file), log_folder=log_folder
    )
    for job, result in results:
        if isinstance(result, Problem):
            problems.append(result)
        else:
            yield result
        progress.advance(1, job.record.case)


@lru_cache(maxsize=1)
def _opened(folder: Path, model: Path, changed: float, device: str) -> tuple[Prepared, Any]:
    """Folder and model, opened once in each process."""
    from metaseg_cli.core.inference.predictor import load_model

    del changed
    return open_prepared(folder), load_model(model, device)


def _score_record(job: _Job) -> ScoredCase:
    import torch

    prepared, model = _opened(job.folder, job.model, job.changed, job.device)
    record = job.record
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).float()
    found = model.probabilities(image, torch.from_numpy(prepared.available(record)))
    reference = region_masks(prepared.label(record), prepared.regions)
    prediction = np.stack(
        [to_mask(p, each, record.spacing_mm) for p, each in zip(found, job.postprocessing, strict=True)]
    )
    scan = image.numpy()
    head = head_of_normalised(scan)
    return score_case(
        record.case,
        record.patient,
        dict(zip(prepared.regions, zip(reference, prediction, strict=True), strict=True)),
        record.spacing_mm,
        job.protocol,
        job.tolerances,
        image=prepared.shown(record, scan),
        probabilities=dict(zip(prepared.regions, found, strict=True)),
        confidence={
            name: Confidence(candidates=find_candidates(r, p), calibration=count_calibration(r, p, head))
            for name, r, p in zip(prepared.regions, reference, found, strict=True)
        },
    )
