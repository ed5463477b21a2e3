"""Score a model on prepared cases that it has not seen, or one folder of masks against another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared, region_masks
from metaseg_cli.core.datasets import Problem
from metaseg_cli.core.executor import Failure, default_workers, map_cases
from metaseg_cli.core.images import describe_difference, is_dicom, is_image_file, on_grid_of, read_mask, stem_of
from metaseg_cli.core.metrics import Confusion, confusion, lesion_scores, match_lesions, score
from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, MetasegError
from metaseg_cli.reports import evaluation_files
from metaseg_cli.reports.evaluation_files import CaseScore

if TYPE_CHECKING:
    from metaseg_cli.core.model_file import ModelCard

_WORST = 6


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What was scored (*what*), the summary over cases, each patient's pooled scores, and where it all lies."""

    out: Path
    what: str
    cases: tuple[CaseScore, ...]
    summary: dict[str, dict[str, Any]]
    patients: dict[str, dict[str, dict[str, Any]]]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def headline(self) -> dict[str, float]:
        """Mean Dice per patient, and lesion scores of all cases added up; regions count alike."""
        patients = [scores for regions in self.patients.values() for scores in regions.values()]
        counts = {k: sum(p[k] for p in patients) for k in ("lesion_tp", "lesion_fp", "lesion_fn")}
        lesions = lesion_scores(counts["lesion_tp"], counts["lesion_fp"], counts["lesion_fn"])
        return {"dice": float(np.mean([p["dice"] for p in patients])), **lesions}


@dataclass(frozen=True)
class _Scored:
    """One case with what the pictures of the worst cases need."""

    score: CaseScore
    image: NDArray[Any] | None
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


def evaluate(config: EvaluateConfig, progress: Progress) -> EvaluateResult:
    """Run ``metaseg evaluate``. Raises InputError when there is nothing to score."""
    if config.predictions is not None and config.references is not None:
        out = config.out or Path("evaluation")
        problems: list[Problem] = []
        cases = _folders(config, problems, progress)
        what = f"{config.predictions} against {config.references}"
        return _finish(
            out, what, cases, (), problems, {"predictions": config.predictions, "references": config.references}
        )
    from metaseg_cli.commands.runs import find_model
    from metaseg_cli.core.model_file import read_card

    path = find_model(config.model)
    card = read_card(path)
    prepared = open_prepared(config.data)
    records, notes = _unseen(prepared, card, path, config)
    threshold = card.threshold if config.threshold is None else config.threshold
    out = config.out or path.parent / "evaluation"
    failed: list[Problem] = []
    scored = _with_model(path, prepared, records, threshold, config, failed, progress)
    settings = {"model": path, "data": config.data, "split": config.split, "threshold": threshold}
    return _finish(out, f"{len(records)} cases, {config.split}, {path}", scored, notes, failed, settings)


def _unseen(
    prepared: Prepared, card: ModelCard, path: Path, config: EvaluateConfig
) -> tuple[list[CaseRecord], tuple[str, ...]]:
    """The cases to score: never one that the model was trained on."""
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
    from metaseg_cli.core.model_file import patient_hash

    return card.dataset_id == prepared.dataset_id and patient_hash(prepared.dataset_id, record.patient) in card.patients


@dataclass(frozen=True)
class _Record:
    """A prepared case to predict and score, as it travels to a worker."""

    record: CaseRecord
    folder: Path
    model: Path
    changed: float  # of the model file: a worker must not go on with an older one
    threshold: float
    device: str


@lru_cache(maxsize=1)
def _opened(folder: Path, model: Path, changed: float, device: str) -> tuple[Prepared, Any]:
    """Folder and model, opened once in each process."""
    from metaseg_cli.core.inference.predictor import load_model

    del changed
    return open_prepared(folder), load_model(model, device)


def _with_model(
    path: Path, prepared: Prepared, records: list[CaseRecord], threshold: float, config: EvaluateConfig,
    problems: list[Problem], progress: Progress,
) -> Iterator[_Scored]:  # fmt: skip
    """Predict and score case by case; one case is in memory at a time."""
    folder = prepared.folder
    if config.cluster is not None:  # another computer has another working folder
        path, folder = path.resolve(), folder.resolve()
    changed = path.stat().st_mtime
    jobs = [_Record(record, folder, path, changed, threshold, config.device) for record in records]
    progress.start("evaluating", len(jobs))
    for job, result in map_cases(_score_record, jobs, 1, config.cluster):
        if isinstance(result, Failure):
            problems.append(Problem(file=Path(job.record.file), reason=result.reason, remedy="evaluate again"))
        else:
            yield result
        progress.advance(1, job.record.case)


def _score_record(job: _Record) -> _Scored:
    import torch

    prepared, model = _opened(job.folder, job.model, job.changed, job.device)
    record = job.record
    settings = Postprocessing(threshold=job.threshold, smallest_lesion_voxels=model.card.smallest_lesion_voxels)
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).float()
    probabilities = model.probabilities(image, torch.from_numpy(prepared.present(record)))
    reference = region_masks(prepared.label(record), prepared.regions)
    prediction = np.stack([to_mask(p, settings) for p in probabilities])
    regions = dict(zip(prepared.regions, zip(reference, prediction, strict=True), strict=True))
    return _scored(record.case, record.patient, regions, record.spacing_mm, image.numpy())


@dataclass(frozen=True)
class _Pair:
    """A reference and the prediction of its name (none: missed), as they travel to a worker."""

    name: str
    references: tuple[Path, ...]
    predictions: tuple[Path, ...]


def _folders(config: EvaluateConfig, problems: list[Problem], progress: Progress) -> Iterator[_Scored]:
    """Score masks of equal stem; a reference without prediction counts as wholly missed."""
    assert config.predictions is not None
    assert config.references is not None
    # On a cluster another computer has another working folder.
    absolute = config.cluster is not None
    predictions, references = (f.resolve() if absolute else f for f in (config.predictions, config.references))
    for folder in (predictions, references):
        if not folder.is_dir():
            raise InputError("no such folder", where=folder, remedy="name a folder of masks")
    true_masks, found_masks = _masks_in(references), _masks_in(predictions)
    repeated = _repeated(true_masks) | _repeated(found_masks)
    truth, found = _by_name(references, true_masks, repeated), _by_name(predictions, found_masks, repeated)
    if not truth:
        raise InputError("no mask in this folder", where=references, remedy="name a folder of masks")
    for stem in sorted(set(found) - set(truth)):
        problems.append(Problem(file=found[stem][0], reason="no reference of this name", remedy="it was not scored"))
    pairs = [_Pair(stem, tuple(paths), tuple(found.get(stem, ()))) for stem, paths in sorted(truth.items())]
    workers = config.workers or default_workers()
    progress.start("evaluating", len(pairs))
    for pair, result in map_cases(_score_pair, pairs, workers, config.cluster):
        if isinstance(result, Failure):
            problems.append(Problem(file=pair.references[0], reason=result.reason, remedy="evaluate again"))
        else:
            scored, wrong = result
            problems += wrong
            if scored is not None:
                yield scored
        progress.advance(1, pair.name)


def _score_pair(pair: _Pair) -> tuple[_Scored | None, list[Problem]]:
    """The pair's score, None when there is no usable reference, and what was wrong with its files."""
    path = pair.references[0]
    try:
        path = _the_mask(list(pair.references))
        reference = read_mask(path)
    except MetasegError as error:
        where = error.where if isinstance(error.where, Path) else path
        return None, [Problem(file=where, reason=error.what, remedy=error.remedy)]
    problems: list[Problem] = []
    r: NDArray[np.bool_] = reference.array.max(axis=0) > 0
    p = np.zeros_like(r)
    try:
        if not pair.predictions:
            raise InputError("no prediction of this name", where=path, remedy="predict it")
        mine = _the_mask(list(pair.predictions))
        predicted = read_mask(mine)
        placed = on_grid_of(predicted, reference)
        if placed is None and predicted.shape == reference.shape:
            # The same voxels under another header: scored as they lie in the files, and said.
            reason = f"{describe_difference(predicted, reference)}: scored voxel by voxel all the same"
            problems.append(Problem(file=mine, reason=reason, remedy="mend its header", left_out=False))
            placed = predicted
        if placed is None:
            raise InputError(describe_difference(predicted, reference), where=mine, remedy="resample it")
        p = placed.array.max(axis=0) > 0
    except MetasegError as error:
        # A broken prediction must not be cheaper than a missing one: both count as wholly missed.
        where = error.where if isinstance(error.where, Path) else path
        remedy = f"{error.remedy}; the case was counted as wholly missed"
        problems.append(Problem(file=where, reason=error.what, remedy=remedy))
    return _scored(pair.name, pair.name, {"metastasis": (r, p)}, reference.spacing_mm, None), problems


def _masks_in(folder: Path) -> list[Path]:
    """Mask files anywhere under *folder*, without what ``predict`` writes beside them."""
    visible = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
    files = [p for p in visible if is_image_file(p) or is_dicom(p)]
    return [p for p in files if not stem_of(p).endswith(("_overlay", "_probability"))]


def _name(path: Path) -> str:
    """What the stem has in common with that of another tool's mask."""
    return stem_of(path).removesuffix("_mask")


def _repeated(masks: list[Path]) -> set[str]:
    """Names that occur in more than one folder, as in ``patient1/seg.nii.gz`` and ``patient2/seg.nii.gz``."""
    places = {(path.parent, _name(path)) for path in masks}
    return {name for name, count in Counter(name for _, name in places).items() if count > 1}


def _by_name(folder: Path, masks: list[Path], repeated: set[str]) -> dict[str, list[Path]]:
    """*masks* by name; by folder and name where the name alone would mix up several cases."""
    result: dict[str, list[Path]] = {}
    for path in masks:
        name = _name(path)
        key = (path.relative_to(folder).parent / name).as_posix() if name in repeated else name
        result.setdefault(key, []).append(path)
    return result


def _the_mask(paths: list[Path]) -> Path:
    """The mask among files of one name: ``a_mask.tif`` beside its scan ``a.tif``. Raises InputError when unclear."""
    masks = [p for p in paths if stem_of(p).endswith("_mask")] or paths
    if len(masks) > 1:
        names = ", ".join(p.name for p in masks)
        raise InputError(f"several masks of one name ({names})", where=masks[0], remedy="keep one; it was not scored")
    return masks[0]


def _scored(
    case: str,
    patient: str,
    regions: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    spacing_mm: tuple[float, float, float] | None,
    image: NDArray[Any] | None,
) -> _Scored:
    scores = {name: score(r, p, spacing_mm) for name, (r, p) in regions.items()}
    counts = {name: confusion(r, p) for name, (r, p) in regions.items()}
    matches = {name: match_lesions(r, p) for name, (r, p) in regions.items()}
    reference, prediction = next(iter(regions.values()))
    one = CaseScore(case=case, patient=patient, regions=scores, counts=counts, matches=matches)
    return _Scored(one, *_worst_slice(image, reference, prediction))


def _worst_slice(
    image: NDArray[Any] | None, reference: NDArray[np.bool_], prediction: NDArray[np.bool_]
) -> tuple[NDArray[Any] | None, NDArray[np.bool_], NDArray[np.bool_]]:
    """The slice where the masks differ most."""
    wrong = (reference ^ prediction).reshape(len(reference), -1).sum(axis=1)
    z = int(wrong.argmax()) if wrong.any() else int(reference.reshape(len(reference), -1).sum(axis=1).argmax())
    return (None if image is None else image[:, z].copy()), reference[z].copy(), prediction[z].copy()


def _finish(
    out: Path,
    what: str,
    scored: Iterator[_Scored],
    notes: tuple[str, ...],
    problems: list[Problem],
    settings: dict[str, Any],
) -> EvaluateResult:
    """Collect the cases, keeping only the worst one's pictures, and write everything."""
    cases: list[CaseScore] = []
    worst: list[tuple[float, _Scored]] = []
    for each in scored:
        cases.append(each.score)
        dice = float(np.mean([s["dice"] for s in each.score.regions.values()]))
        worst = sorted([*worst, (dice, each)], key=lambda pair: pair[0])[:_WORST]
    if not cases:
        first = problems[0] if problems else None
        raise InputError(
            f"not one pair could be scored{f': {first.file}: {first.reason}' if first else ''}",
            remedy="check the folders",
        )
    patients = pooled(cases)
    summary = evaluation_files.summarise(cases)
    pictures = [
        (
            f"{e.score.case} · Dice {dice:.2f}",
            e.image if e.image is not None else e.reference,
            e.reference,
            e.prediction,
        )
        for dice, e in worst
    ]
    evaluation_files.write(out, cases, summary, patients, settings, pictures, problems, notes)
    return EvaluateResult(
        out=out,
        what=what,
        cases=tuple(cases),
        summary=summary,
        patients=patients,
        notes=notes,
        problems=tuple(problems),
    )


def pooled(cases: list[CaseScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Patient → region → scores with the voxels, and the lesion counts, of all the patient's cases added up."""
    voxels: dict[tuple[str, str], Confusion] = {}
    lesions: dict[tuple[str, str], list[int]] = {}
    for case in cases:
        for region, counts in case.counts.items():
            key = (case.patient, region)
            voxels[key] = voxels.get(key, Confusion()) + counts
            total = lesions.setdefault(key, [0, 0, 0])
            match = case.matches[region]
            for i, n in enumerate((match.lesion_tp, match.lesion_fp, match.lesion_fn)):
                total[i] += n
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (patient, region), counts in voxels.items():
        result.setdefault(patient, {})[region] = {**counts.scores(), **lesion_scores(*lesions[patient, region])}
    return result
