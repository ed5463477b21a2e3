"""The pictures of a predicted scan: its lesions outlined and numbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.images import Volume, reorient, to_canonical
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.reports import figures

_MOST_NUMBERED = 100  # lesions in a picture; more labels would hide it


def save_pictures(prediction: Prediction, overlay: Path, overview: Path | None) -> None:
    """Write *overlay*, and for a volume *overview*, its projections from three sides.

    Slices are shown as radiologists see them: axial, the patient's right on the left.
    """
    image, mask = prediction.source, prediction.mask
    found = next(iter(prediction.lesions.values()), [])
    largest = sorted(found, key=lambda lesion: -lesion.voxels)[:_MOST_NUMBERED]
    numbered = [(lesion.number, lesion.centroid_voxel) for lesion in largest]
    if not is_picture(image.source) and image.shape[0] > 1:
        reorientation = to_canonical(image)
        upright = reorient(image, reorientation)
        numbered = [(number, _moved(centre, image, upright)) for number, centre in numbered]
        image, mask = upright, reorientation.apply(mask)
    lesions = [(number, *centre, "") for number, centre in numbered]
    figures.save_overlay(overlay, image.shown, mask > 0, lesions)
    if overview is not None:
        figures.save_overview(overview, image.shown, mask > 0, lesions, image.spacing_mm)


def _moved(zyx: tuple[float, float, float], before: Volume, after: Volume) -> tuple[float, float, float]:
    """Return the voxel coordinates in *after* of a point given in those of *before*."""
    index = np.linalg.inv(after.affine) @ before.affine @ np.array([*zyx[::-1], 1.0])
    return (float(index[2]), float(index[1]), float(index[0]))
