"""The visits of one patient: their masks, read or segmented by a model, and their lesions in common coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.formats import is_picture, stem_of
from metaseg_cli.core.images import (
    Volume,
    align_rigidly,
    dicom_files,
    read_mask,
    read_scan,
    reorient,
    same_grid,
    to_canonical,
)
from metaseg_cli.core.lesion_tracking import Detection
from metaseg_cli.core.measurements import measure
from metaseg_cli.core.paths import unusable
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Visit:
    """``mask`` has one channel; ``scan`` is None if the visit is a mask already."""

    mask: Volume
    scan: Volume | None


def visit_names(paths: Sequence[str]) -> list[str]:
    """Return distinct names: the files' stems, else with their folders, else numbers."""
    stems = [stem_of(Path(p)).removesuffix("_mask") for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    longer = [f"{Path(p).resolve().parent.name}/{stem}" for p, stem in zip(paths, stems, strict=True)]
    return longer if len(set(longer)) == len(longer) else [f"visit {i}" for i in range(1, len(paths) + 1)]


def load_visit(path: Path, config: FollowUpConfig) -> Visit:
    """Read a mask, or segment a scan with the model of *config*. Raises InputError for what has no size in mm."""
    problem = unusable(path)
    if problem is not None:
        raise InputError(problem.reason, where=path, remedy=problem.remedy)
    if is_picture(path):
        raise InputError("a picture has no lengths in mm", where=path, remedy="follow up volumes")
    mask, scan = _mask_if_any(path), None
    if mask is None:
        from metaseg_cli.core.inference.predictor import load_model  # torch loads here

        model = load_model(find_model(config.model), config.device)
        prediction = model.predict({model.card.sequences[0]: dicom_files(path)} if path.is_dir() else path)
        scan = prediction.source
        mask = dataclasses.replace(scan, array=prediction.mask[None], notes=prediction.notes)
    if mask.spacing_mm is None:
        raise InputError("it does not say its spacing", where=path, remedy="follow up volumes with a spacing in mm")
    foreground: NDArray[np.bool_] = np.asarray((mask.array > 0).any(axis=0))
    return Visit(mask=dataclasses.replace(mask, array=foreground[None].astype(np.uint8)), scan=scan)


def _mask_if_any(path: Path) -> Volume | None:
    """Read *path* as a mask; None for a folder, or a scan. Raises InputError for what is neither."""
    if not path.is_file():
        return None
    try:
        return read_mask(path)
    except InputError as error:
        try:
            read_scan([path])
        except InputError:
            raise error from None
        return None


def place_in_first(visit: Visit, first: Visit) -> tuple[list[Detection], tuple[str, ...]]:
    """Return the lesions of *visit* in the patient coordinates of the *first* one, and how they were placed there."""
    if same_grid(visit.mask, first.mask):
        return _detections(visit.mask, np.eye(4)), ()
    if visit.scan is None or first.scan is None:
        how = "on another grid than the first visit: placed by the coordinates in the files"
        return _detections(visit.mask, np.eye(4)), (how,)
    matrix = align_rigidly(visit.scan, first.scan)
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    middle = visit.scan.affine @ np.array([*(n / 2 for n in visit.scan.shape[::-1]), 1.0])
    shift = float(np.linalg.norm((matrix @ middle - middle)[:3]))
    how = f"aligned rigidly with the first visit, by {shift:.1f} mm and {angle:.1f}°"
    return _detections(visit.mask, matrix), (how,)


def _detections(mask: Volume, to_first: NDArray[np.float64]) -> list[Detection]:
    """Measure the lesions on their own axial slices; *to_first* maps patient coordinates to the first visit's."""
    upright = reorient(mask, to_canonical(mask))
    spacing = upright.spacing_mm
    assert spacing is not None  # load_visit refuses others
    numbers, lesions = find_lesions(upright.array[0], spacing)
    to_mm = to_first @ upright.affine
    reach = float(np.linalg.norm(spacing)) / 2
    found = []
    for lesion in lesions:
        crop = numbers[tuple(slice(*side) for side in lesion.box)] == lesion.number
        zyx = np.argwhere(crop) + [start for start, _ in lesion.box]
        found.append(
            Detection(
                points_mm=zyx[:, ::-1] @ to_mm[:3, :3].T + to_mm[:3, 3],
                reach_mm=reach,
                volume_mm3=float(lesion.volume_mm3 or 0),
                measurement=measure(crop, spacing),
            )
        )
    return found
