"""Rigid registration of scans of two visits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.geometry import as_itk
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError

_SAMPLES = 40_000  # voxels that each step compares


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
