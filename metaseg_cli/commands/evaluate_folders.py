"""Score a folder of masks, from any tool, against a folder of references."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.datasets.names import patients_of
from metaseg_cli.core.executor import default_workers, map_cases
from metaseg_cli.core.images import (
    Volume,
    describe_difference,
    is_dicom,
    is_image_file,
    on_grid_of,
    padding_value,
    read_mask,
    stem_of,
)
from metaseg_cli.core.metrics import BRATS_REGIONS, Protocol
from metaseg_cli.core.metrics.cases import Masks, ScoredCase, score_case
from metaseg_cli.core.paths import odd_name_below, unusable_below
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, MetasegError, Problem

Regions = dict[str, tuple[int, ...]]
_ANYTHING: Regions = {"metastasis": ()}


@dataclass(frozen=True)
class _Pair:
    """A reference and the prediction of its name (none: missed), as they travel to a worker."""

    name: str
    patient: str
    references: tuple[Path, ...]
    predictions: tuple[Path, ...]
    regions: Regions
    protocol: Protocol
    tolerances: tuple[float, ...]


def score_folder(
    predictions: Path,
    references: Path,
    config: EvaluateConfig,
    protocol: Protocol,
    problems: list[Problem],
    progress: Progress,
    log_folder: Path,
) -> Iterator[ScoredCase]:
    """Score masks of equal stem; a reference without prediction counts as wholly missed."""
    # On a cluster another computer has another working folder.
    if config.cluster is not None:
        predictions, references = predictions.resolve(), references.resolve()
    for folder in (predictions, references):
        if not folder.is_dir():
            raise InputError("no such folder", where=folder, remedy="name a folder of masks")
        problems += unusable_below(folder)
    true_masks, found_masks = _masks_in(references), _masks_in(predictions)
    repeated = _repeated(true_masks) | _repeated(found_masks)
    truth, found = _by_name(references, true_masks, repeated), _by_name(predictions, found_masks, repeated)
    if not truth:
        raise InputError("no mask in this folder", where=references, remedy="name a folder of masks")
    for stem in sorted(set(found) - set(truth)):
        problems.append(Problem(file=found[stem][0], reason="no reference of this name", remedy="it was not scored"))
    workers = config.workers or default_workers()
    regions = config.regions() or _regions_of(true_masks, config, workers)
    patients = patients_of(true_masks, references)
    pairs = [
        _Pair(stem, patients[paths[0]], tuple(paths), tuple(found.get(stem, ())), regions, protocol, config.tolerance)
        for stem, paths in sorted(truth.items())
    ]
    progress.start("evaluating", len(pairs))
    results = map_cases(
        _score_pair, pairs, workers, config.cluster, file_of=lambda pair: pair.references[0], log_folder=log_folder
    )
    for pair, result in results:
        if isinstance(result, Problem):
            problems.append(result)
        else:
            scored, wrong = result
            problems += wrong
            if scored is not None:
                yield scored
        progress.advance(1, pair.name)


def _regions_of(references: list[Path], config: EvaluateConfig, workers: int) -> Regions:
    """A challenge's regions where the references have its labels; one region where they are plain masks."""
    challenge = BRATS_REGIONS.get(config.protocol)
    if challenge is None:
        return _ANYTHING
    found = map_cases(_largest_label, references, workers, config.cluster, file_of=lambda path: path, log_folder=None)
    largest = [n for _, n in found if isinstance(n, int)]
    if max(largest, default=0) <= 1:
        return _ANYTHING
    return challenge


def _largest_label(path: Path) -> int:
    return int(_read(path).array.max())


def _read(path: Path) -> Volume:
    """A mask; what a DICOM label map calls padding is nothing."""
    mask = read_mask(path)
    padding = padding_value(path) if is_dicom(path) else 0
    if not padding:
        return mask
    return dataclasses.replace(mask, array=np.where(mask.array == padding, 0, mask.array))


def _score_pair(pair: _Pair) -> tuple[ScoredCase | None, list[Problem]]:
    """The pair's score, None when there is no usable reference, and what was wrong with its files."""
    path = pair.references[0]
    try:
        path = _the_mask(list(pair.references))
        reference = _read(path)
    except MetasegError as error:
        where = error.where if isinstance(error.where, Path) else path
        return None, [Problem(file=where, reason=error.what, remedy=error.remedy)]
    problems: list[Problem] = []
    found = np.zeros_like(reference.array)
    try:
        if not pair.predictions:
            raise InputError("no prediction of this name", where=path, remedy="predict it")
        mine = _the_mask(list(pair.predictions))
        predicted = _read(mine)
        placed = on_grid_of(predicted, reference)
        if placed is None and predicted.shape == reference.shape:
            # The same voxels under another header: scored as they lie in the files, and said.
            reason = f"{describe_difference(predicted, reference)}: scored voxel by voxel all the same"
            problems.append(Problem(file=mine, reason=reason, remedy="mend its header", left_out=False))
            placed = predicted
        if placed is None:
            raise InputError(describe_difference(predicted, reference), where=mine, remedy="resample it")
        found = placed.array
    except MetasegError as error:
        # A broken prediction must not be cheaper than a missing one: both count as wholly missed.
        where = error.where if isinstance(error.where, Path) else path
        remedy = f"{error.remedy}; the case was counted as wholly missed"
        problems.append(Problem(file=where, reason=error.what, remedy=remedy))
    masks: dict[str, Masks] = {
        name: (_region(reference.array, values), _region(found, values)) for name, values in pair.regions.items()
    }
    affine = None if reference.spacing_mm is None else reference.affine
    scored = score_case(
        pair.name, pair.patient, masks, reference.spacing_mm, pair.protocol, pair.tolerances, affine=affine
    )
    return scored, problems


def _region(labels: NDArray[np.generic], values: tuple[int, ...]) -> NDArray[np.bool_]:
    """``(C, Z, Y, X)`` → ``(Z, Y, X)``: where any channel has one of *values*, or anything when none are named."""
    return np.asarray((np.isin(labels, values) if values else labels != 0).any(axis=0))


def _masks_in(folder: Path) -> list[Path]:
    """Mask files anywhere under *folder*, without what ``predict`` writes beside them."""
    visible = (
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".") and odd_name_below(p, folder) is None
    )
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
    # What metaseg predicts of a DICOM series is there twice.
    masks = [p for p in masks if not is_dicom(p)] or masks
    if len(masks) > 1:
        names = ", ".join(p.name for p in masks)
        raise InputError(f"several masks of one name ({names})", where=masks[0], remedy="keep one; it was not scored")
    return masks[0]
