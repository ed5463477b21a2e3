"""The lesions of a visit, measured on its own axial slices and placed in the first visit's coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.images import Volume, reorient, to_canonical
from metaseg_cli.core.lesion_tracking import Detection
from metaseg_cli.core.measurements import measure


@dataclass(frozen=True, kw_only=True)
class VisitLesions:
    """What a visit shows, upright: axial slices from the feet up, the patient's right on the left.

    ``numbers`` ``(Z, Y, X)`` are 1, 2 … for the voxels of ``detections`` in their order. ``slices`` is the axial slice
    with the longest diameter of each. ``image`` ``(C, Z, Y, X)`` is what people look at, None for a mask alone.
    ``affine`` maps voxel indices (x, y, z, 1) to the first visit's patient coordinates.
    """

    detections: tuple[Detection, ...]
    numbers: NDArray[np.int32]
    slices: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    image: NDArray[np.generic] | None
    affine: NDArray[np.float64]


def lesions_of(mask: Volume, scan: Volume | None, to_first: NDArray[np.float64]) -> VisitLesions:
    """Measure the lesions of *mask* ``(1, Z, Y, X)``; *to_first* maps its patient coordinates to the first visit's."""
    reorientation = to_canonical(mask)
    upright = reorient(mask, reorientation)
    spacing = upright.spacing_mm
    assert spacing is not None  # the reader of visits refuses others
    as_stored, lesions = find_lesions(mask.array[0], mask.spacing_mm)  # the numbers that predict gives them
    numbers = reorientation.apply(as_stored)
    to_mm = to_first @ upright.affine
    reach = float(np.linalg.norm(spacing)) / 2
    found, slices = [], []
    for lesion, box in zip(lesions, find_objects(numbers, len(lesions)), strict=True):
        crop = numbers[box] == lesion.number
        zyx = np.argwhere(crop) + [side.start for side in box]
        measurement = measure(crop, spacing)
        slices.append(box[0].start + measurement.slice)
        found.append(
            Detection(
                points_mm=zyx[:, ::-1] @ to_mm[:3, :3].T + to_mm[:3, 3],
                reach_mm=reach,
                volume_mm3=float(lesion.volume_mm3 or 0),
                measurement=measurement,
            )
        )
    return VisitLesions(
        detections=tuple(found),
        numbers=numbers,
        slices=tuple(slices),
        spacing_mm=spacing,
        image=None if scan is None else reorient(scan, reorientation).shown,
        affine=to_mm,
    )
