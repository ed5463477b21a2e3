"""Rigid registration of scans of two visits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.geometry import as_itk
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError

_SAMPLES = 40_000  # voxels that each step compares
# Between two visits a head lies elsewhere on the table and is turned a little. More than this is a failed alignment,
# another orientation or another body part.
PLAUSIBLE_MM, PLAUSIBLE_DEGREES = 120.0, 35.0
PLAUSIBLE_SIMILARITY = 0.5


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A rigid transform (4×4, LPS, mm), how far it moves the middle of the scan, and how well the heads agree.

    ``similarity`` is the correlation of the scans where both have voxels, 1 for the same scan.
    """

    matrix: NDArray[np.float64]
    shift_mm: float
    angle_degrees: float
    similarity: float

    @property
    def doubt(self) -> str:
        """Why it is not plausible, in words; empty when it is."""
        if self.shift_mm > PLAUSIBLE_MM or self.angle_degrees > PLAUSIBLE_DEGREES:
            return f"it moves more than is plausible ({PLAUSIBLE_MM:.0f} mm, {PLAUSIBLE_DEGREES:.0f}°)"
        if self.similarity < PLAUSIBLE_SIMILARITY:
            return f"the scans are not alike (similarity below {PLAUSIBLE_SIMILARITY:.2f})"
        return ""


def align(moving: Volume, fixed: Volume) -> Alignment:
    """Align *moving* with *fixed* by ``align_rigidly``, and judge the result. Raises InputError."""
    matrix = align_rigidly(moving, fixed)
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    middle = moving.affine @ np.array([*(n / 2 for n in moving.shape[::-1]), 1.0])
    return Alignment(
        matrix=matrix,
        shift_mm=float(np.linalg.norm((matrix @ middle - middle)[:3])),
        angle_degrees=float(angle),
        similarity=similarity(moving, fixed, matrix),
    )


def similarity(moving: Volume, fixed: Volume, matrix: NDArray[np.float64]) -> float:
    """Return the correlation of the first channels over the voxels of *fixed* that *moving*, moved by *matrix*, covers.

    Values above the 99th percentile are cut off. 0 where nothing overlaps, or one side is constant.
    """
    step = [max(1, n // 48) for n in fixed.shape]
    grid = np.stack(np.meshgrid(*(np.arange(0, n, s) for n, s in zip(fixed.shape, step, strict=True)), indexing="ij"))
    zyx = grid.reshape(3, -1)
    index = np.linalg.inv(matrix @ moving.affine) @ fixed.affine @ np.vstack([zyx[::-1], np.ones(zyx.shape[1])])
    there = index[2::-1]
    shape = np.array(moving.shape)[:, None]
    covered = np.all((there >= -0.5) & (there <= shape - 0.5), axis=0)
    if covered.sum() < 100:
        return 0.0
    from scipy import ndimage

    a = fixed.array[0][tuple(zyx[:, covered])].astype(np.float64)
    b = ndimage.map_coordinates(moving.array[0].astype(np.float32), there[:, covered], order=1, mode="nearest")
    a, b = (np.minimum(values, np.percentile(values, 99)) for values in (a, b.astype(np.float64)))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def align_rigidly(moving: Volume, fixed: Volume) -> NDArray[np.float64]:
    """Return the rigid transform (4×4, LPS, mm) from *moving* to *fixed*, by mutual information of first channels.

    Mattes et al. 2003 on three resolutions; starts with the scans' centres of mass together. Raises InputError.
    """
    import SimpleITK as sitk

    images = [sitk.Cast(as_itk(np.asarray(v.array[0], np.float32), v), sitk.sitkFloat32) for v in (fixed, moving)]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=40)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / fixed.array[0].size), seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([3, 1.5, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        *images, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(*images).GetInverse()
    except RuntimeError as error:
        raise InputError(
            "it could not be aligned with the first visit", where=moving.source, remedy="register the scans first"
        ) from error
    matrix = np.eye(4)
    matrix[:3, 3] = found.TransformPoint((0.0, 0.0, 0.0))
    for axis in range(3):
        unit = tuple(float(axis == i) for i in range(3))
        matrix[:3, axis] = np.array(found.TransformPoint(unit)) - matrix[:3, 3]
    return matrix
