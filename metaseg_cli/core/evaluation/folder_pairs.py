"""Score a folder of masks, from any tool, against a folder of references."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.choices import BRATS_REGIONS
from metaseg_cli.core.datasets.mask_pairs import MaskFolder, mask_folders, pair_masks, share_a_name, the_mask
from metaseg_cli.core.datasets.naming import patients_of
from metaseg_cli.core.evaluation.system import EvaluatedSystem, EvaluationLog, collect, rules_of
from metaseg_cli.core.executor import default_workers, map_cases
from metaseg_cli.core.formats import is_image_file
from metaseg_cli.core.images import (
    Volume,
    describe_difference,
    inverted_mask,
    is_dicom,
    on_grid_of,
    on_one_grid,
    orient_like_image,
    padding_value,
    read_mask,
)
from metaseg_cli.core.images.dicom_masks import modality_of
from metaseg_cli.core.images.region_layers import RegionLayers, flatten, split_regions
from metaseg_cli.core.metrics.cases import MaskPair, ScoredCase, ScoringRules, score_case
from metaseg_cli.core.paths import odd_name_below, unusable_below
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.regions import index_region
from metaseg_cli.core.results import FolderSettings, Regions
from metaseg_cli.errors import InputError, Problem, attempt, problem_of

_ANYTHING: Regions = {"metastasis": ()}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A reference and the predictions of its name (empty: missed), as they travel to a worker."""

    name: str
    patient: str
    references: tuple[Path, ...]
    predictions: tuple[Path, ...]
    regions: Regions
    rules: ScoringRules
    structures: tuple[str, ...]
    log_folder: Path


def evaluate_folder(predictions: Path, out: Path, config: EvaluateConfig, progress: Progress) -> EvaluatedSystem:
    """Score the masks in *predictions* against those of ``config.references``; errors are logged in *out*.

    A reference without prediction counts as entirely missed. Raises InputError when a folder holds no mask, or when no
    name of the references is among the predictions.
    """
    assert config.references is not None
    log = EvaluationLog()
    folders = (predictions, config.references)
    if config.cluster is not None:  # another computer has another working folder
        folders = (predictions.resolve(), config.references.resolve())
    pairs = _find_pairs(*folders, out, config, log)
    evaluation, worst = collect(_score_pairs(pairs, out, config, log, progress), config, log)
    settings = FolderSettings(predictions=predictions, references=config.references)
    return EvaluatedSystem(
        out=out,
        name=predictions.name,
        what=f"{predictions} against {config.references}, on the grid {settings.grid}",
        settings=settings,
        evaluation=evaluation,
        worst=worst,
        index_region=index_region(pairs[0].regions),
        notes=tuple(log.notes),
        problems=tuple(log.problems),
    )


def _score_pairs(
    pairs: Sequence[_Pair], out: Path, config: EvaluateConfig, log: EvaluationLog, progress: Progress
) -> Iterator[ScoredCase]:
    progress.start("evaluating", len(pairs), unit="case")
    results = map_cases(
        _score_pair,
        pairs,
        config.workers or default_workers(),
        config.cluster,
        file_of=lambda pair: pair.references[0],
        log_folder=out,
    )
    unowned: dict[tuple[str, str], list[Path]] = defaultdict(list)
    notes: Counter[str] = Counter()
    for pair, result in results:
        if isinstance(result, Problem):
            log.problems.append(result)
        else:
            log.problems += result.problems
            notes.update(result.notes)
            for file, side, labels in result.unowned:
                for label in labels:
                    unowned[label, side].append(file)
            if result.case is not None:
                yield result.case
        progress.advance(1, pair.name)
    log.problems += _unowned(unowned)
    log.notes += [f"{text} ({count} times)" if count > 1 else text for text, count in notes.items()]


def _find_pairs(
    predictions: Path, references: Path, out: Path, config: EvaluateConfig, log: EvaluationLog
) -> list[_Pair]:
    """Return what belongs together by name, in order of the references' names."""
    for folder in (predictions, references):
        if not folder.is_dir():
            raise InputError("no such folder", where=folder, remedy="name a folder of masks")
        log.problems += unusable_below(folder)
    truth, found = mask_folders(_files_in(references), references, _files_in(predictions), predictions)
    for masks, folder in ((truth, references), (found, predictions)):
        if not masks.files:
            raise InputError("no mask in this folder", where=folder, remedy="name a folder of masks")
    partner = pair_masks(truth, found)
    if not partner and not share_a_name(truth, found):
        raise _nothing_in_common(truth, found, predictions)
    log.problems += [
        Problem(file=found.files[name][0], reason="no reference of this name", remedy="it was not scored")
        for name in sorted(set(found.files) - set(partner.values()))
    ]
    regions = config.regions() or _regions_of(truth, config)
    patients = patients_of([path for paths in truth.files.values() for path in paths], references)
    return [
        _Pair(
            name=name,
            patient=patients[paths[0]],
            references=paths,
            predictions=found.files[partner[name]] if name in partner else (),
            regions=regions,
            rules=rules_of(config),
            structures=config.structure_names(),
            log_folder=out,
        )
        for name, paths in sorted(truth.files.items())
    ]


def _unowned(labels: Mapping[tuple[str, str], list[Path]]) -> list[Problem]:
    """Report labels that no region has: a region whose label is misnamed would score 1 on empty masks."""
    return [
        Problem(
            file=files[0],
            reason=f"{label} ({len(files)} {side}{'s' if len(files) > 1 else ''}) is in no region: "
            "it counts as background",
            remedy=f"name it if it is lesion, as in --region ET={label.removeprefix('label ')}"
            if label.startswith("label ")
            else "name its region with --region NAME=…, or rename it",
            left_out=False,
        )
        for (label, side), files in sorted(labels.items())
    ]


def _nothing_in_common(truth: MaskFolder, found: MaskFolder, predictions: Path) -> InputError:
    def some(masks: MaskFolder) -> str:
        files = sorted(paths[0].name for paths in masks.files.values())
        return ", ".join(files[:_SHOWN]) + (" …" if len(files) > _SHOWN else "")

    return InputError(
        f"no prediction is named like a reference: predictions {some(found)}; references {some(truth)}",
        where=predictions,
        remedy="name each prediction after its case, as in case7.nii.gz or case7_mask.nii.gz for case7-seg.nii.gz",
    )


def _regions_of(truth: MaskFolder, config: EvaluateConfig) -> Regions:
    """Return a challenge's regions where the references have its labels, one region where they are plain masks."""
    challenge = BRATS_REGIONS.get(config.protocol)
    if challenge is None:
        return _ANYTHING
    jobs = [(paths, config.structure_names()) for paths in truth.files.values()]
    workers = config.workers or default_workers()
    found = map_cases(_largest_label, jobs, workers, config.cluster, file_of=lambda job: job[0][0], log_folder=None)
    largest = [label for _, label in found if isinstance(label, int)]
    if max(largest, default=0) <= 1:
        return _ANYTHING
    return challenge


def _largest_label(job: tuple[tuple[Path, ...], tuple[str, ...]]) -> int:
    paths, structures = job
    return int(_read(paths, structures, _ANYTHING)[0].array.max())  # what it raises is reported when its case is scored


def _read(
    paths: tuple[Path, ...], structures: tuple[str, ...], regions: Regions, image: Volume | None = None
) -> tuple[Volume, list[Problem]]:
    """Return the mask of a case, its parts united, and doubts; contours lie on *image*. Raises InputError."""
    masks = _the_masks(paths)
    first, *others = (_read_one(path, structures, regions, image) for path in masks)
    if not others:
        return first, []
    together = _together([*others, first])
    if together is None:
        raise InputError(
            f"it does not lie on the grid of {others[0].source.name}, another mask of the same case",
            where=first.source,
            remedy="bring the masks of a case onto one grid",
        )
    *others, first = together
    doubt = Problem(
        file=masks[0],
        reason=f"{len(masks)} masks of one case, united: {', '.join(path.name for path in masks)}",
        remedy="this is right if they are parts of one",
        left_out=False,
    )
    label, _ = flatten([first, *others], regions)
    return dataclasses.replace(first, array=label[None], segments=()), [doubt]


def _read_one(path: Path, structures: Sequence[str], regions: Regions, image: Volume | None) -> Volume:
    """Read one mask; what a DICOM label map calls padding becomes background."""
    mask = read_mask(path, image, structures, list(regions), whole=True)
    padding = padding_value(path) if is_dicom(path) else 0
    if not padding:
        return mask
    return dataclasses.replace(mask, array=np.where(mask.array == padding, 0, mask.array))


@dataclass(frozen=True)
class _ScoredPair:
    """The pair's score, None without a usable reference, and problems and notes of its files.

    *unowned* is what no region has: the file, whether it is a reference or a prediction, and the labels or segments.
    """

    case: ScoredCase | None
    problems: list[Problem]
    notes: tuple[str, ...] = ()
    unowned: tuple[tuple[Path, str, tuple[str, ...]], ...] = ()


def _reference(pair: _Pair) -> tuple[Volume, list[Problem]]:
    """Read the reference of a pair; contours are drawn on the grid of the prediction. Raises InputError."""
    contours = any(not is_image_file(p) and is_dicom(p) and modality_of(p) == "RTSTRUCT" for p in pair.references)
    image = _read(pair.predictions, pair.structures, pair.regions)[0] if contours and pair.predictions else None
    return _read(pair.references, pair.structures, pair.regions, image)


def _score_pair(pair: _Pair) -> _ScoredPair:
    read = attempt(partial(_reference, pair), pair.references[0], pair.log_folder)
    if isinstance(read, Problem):
        return _ScoredPair(None, [read])
    reference, problems = read
    masks = [("reference", reference)]
    split: RegionLayers | None = None
    try:
        if not pair.predictions:
            raise InputError("no prediction of this name", where=reference.source, remedy="predict it")
        predicted, doubts = _read(pair.predictions, pair.structures, pair.regions, reference)
        problems += doubts
        masks.append(("prediction", predicted))
        placed, doubts = _on_common_grid(predicted, reference)
        problems += doubts
        split = split_regions(placed[0], pair.regions)
        masks = [("reference", placed[1]), ("prediction", placed[0])]
        reference = placed[1]
    except Exception as error:
        # A broken prediction must not be cheaper than a missing one: both count as entirely missed.
        problem = problem_of(error, (pair.predictions or pair.references)[0], pair.log_folder)
        remedy = f"{problem.remedy}; the case was counted as wholly missed"
        problems.append(dataclasses.replace(problem, remedy=remedy))
    truth = split_regions(reference, pair.regions)
    found, others = (np.zeros_like(truth.masks), ()) if split is None else (split.masks, split.others)
    scored = score_case(
        pair.name,
        pair.patient,
        {
            name: MaskPair(reference=reference_mask, prediction=prediction_mask)
            for name, reference_mask, prediction_mask in zip(pair.regions, truth.masks, found, strict=True)
        },
        reference.spacing_mm,
        pair.rules,
        affine=None if reference.spacing_mm is None else reference.affine,
    )
    problems += [problem for _, mask in masks for problem in _inverted(mask)]
    return _ScoredPair(
        scored,
        problems,
        notes=tuple(dict.fromkeys(note for _, mask in masks for note in mask.notes)),
        unowned=tuple(
            (mask.source, side, names) for (side, mask), names in zip(masks, (truth.others, others), strict=False)
        ),
    )


def _on_common_grid(predicted: Volume, reference: Volume) -> tuple[tuple[Volume, Volume], list[Problem]]:
    """Return prediction and reference on one grid that holds all of both, and doubts. Raises InputError without one."""
    doubts = []
    upright, doubt = orient_like_image(predicted, reference)
    if doubt is not None:
        doubts.append(Problem(file=predicted.source, reason=doubt, remedy="save both masks upright", left_out=False))
    placed = _together([upright, reference])
    if placed is not None:
        return (placed[0], placed[1]), doubts
    difference = describe_difference(upright, reference)
    if upright.shape != reference.shape:
        raise InputError(difference, where=predicted.source, remedy="resample it")
    # The same voxels under another header are scored as they lie in the files.
    reason = f"{difference}: scored voxel by voxel all the same"
    doubt_of_header = Problem(file=predicted.source, reason=reason, remedy="fix its header", left_out=False)
    return (upright, reference), [*doubts, doubt_of_header]


def _together(masks: Sequence[Volume]) -> list[Volume] | None:
    """Return the masks on the smallest grid that holds them all, that of the last one or larger; None without one."""
    *others, whole = masks
    for mask in others:
        both = on_one_grid(mask, whole)
        if both is None:  # a single slice does not say the others' distance: the lattice is that of the larger mask
            swapped = on_one_grid(whole, mask)
            both = None if swapped is None else (swapped[1], swapped[0])
        if both is None:
            return None
        whole = both[1]
    placed = [on_grid_of(mask, whole) for mask in masks]
    return [mask for mask in placed if mask is not None] if None not in placed else None


def _inverted(mask: Volume) -> list[Problem]:
    reasons = [reason for layer in mask.array if (reason := inverted_mask(layer)) is not None]
    remedy = "invert it if lesions are 0 in it"
    return [Problem(file=mask.source, reason=reason, remedy=remedy, left_out=False) for reason in reasons[:1]]


def _files_in(folder: Path) -> list[Path]:
    """Return the image files anywhere under *folder* whose names tables can hold."""
    visible = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
    return [p for p in visible if odd_name_below(p, folder) is None and (is_image_file(p) or is_dicom(p))]


def _the_masks(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the mask among files of one name (``a_mask.tif`` beside its scan ``a.tif``). Raises InputError."""
    masks = the_mask(paths, [p for p in paths if not is_image_file(p) and is_dicom(p)])
    if masks is None:
        names = ", ".join(p.name for p in paths)
        raise InputError(f"several masks of one name ({names})", where=paths[0], remedy="keep one; it was not scored")
    return masks
