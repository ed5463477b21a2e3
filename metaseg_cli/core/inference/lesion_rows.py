"""The lesions of a prediction as rows of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metaseg_cli.core.images import Volume
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.core.results import LesionRow, RegionTotal


def lesion_rows(scan: Path, prediction: Prediction) -> tuple[LesionRow, ...]:
    """Return one row per lesion; sizes in mm where the scan has a spacing, else in pixels."""
    volume = prediction.source
    unit = "mm" if volume.spacing_mm else "px"
    return tuple(
        LesionRow(
            scan=scan,
            region=region,
            lesion=lesion.number,
            voxels=lesion.voxels,
            volume_mm3=lesion.volume_mm3,
            **{
                f"diameter_{unit}": round(lesion.equivalent_diameter, 2),
                f"longest_axial_{unit}": round(lengths.longest, 2),
                f"perpendicular_{unit}": round(lengths.perpendicular, 2),
                f"feret_{unit}": round(lengths.feret, 2),
            },
            axial_slices=lengths.slices[1] - lengths.slices[0] + 1,
            measurable=lengths.measurable if volume.spacing_mm else None,
            z=round(lesion.centroid_voxel[0], 1),
            y=round(lesion.centroid_voxel[1], 1),
            x=round(lesion.centroid_voxel[2], 1),
            **_patient_coordinates(lesion.centroid_voxel, volume),
            confidence=None if lesion.confidence is None else round(lesion.confidence, 3),
        )
        for region, lesions in prediction.lesions.items()
        for lesion, lengths in zip(lesions, prediction.measurements[region], strict=True)
    )


def region_totals(prediction: Prediction) -> dict[str, RegionTotal]:
    """Return the lesions and the volume of each region. Regions may lie in one another: they do not add up."""
    voxel = prediction.source.spacing_mm and float(np.prod(prediction.source.spacing_mm)) / 1000
    totals = {}
    for (region, lesions), mask in zip(prediction.lesions.items(), prediction.masks, strict=True):
        voxels = int(np.count_nonzero(mask))
        volume = round(voxels * voxel, 4) if voxel else None
        totals[region] = RegionTotal(lesions=len(lesions), voxels=voxels, volume_ml=volume)
    return totals


def _patient_coordinates(zyx: tuple[float, float, float], volume: Volume) -> dict[str, float]:
    """Return ``x_mm``, ``y_mm``, ``z_mm`` (LPS, as in DICOM); nothing for pictures."""
    if not volume.spacing_mm:
        return {}
    place = volume.affine @ np.array([*zyx[::-1], 1.0])
    return {name: round(float(value), 2) for name, value in zip(("x_mm", "y_mm", "z_mm"), place, strict=False)}
