"""NIfTI, NRRD and MetaImage, through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError


def read_volume(path: Path) -> Volume:
    """A volume with its geometry; vector voxels and the fourth axis of a NIfTI become channels. Raises InputError."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
        raise InputError(f"cannot be read ({reason})", where=path, remedy="copy it again from its source") from None
    array = sitk.GetArrayFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("it holds values that are not finite (NaN or Inf)", where=path, remedy="replace them first")
    if array.dtype.kind not in "uif":
        raise InputError(f"voxels of type {array.dtype} are no image", where=path, remedy="save it as numbers")
    dimension = image.GetDimension()
    if vector:
        array = np.moveaxis(array, -1, 0)
    elif dimension == 4:
        pass  # (T, Z, Y, X): the fourth axis holds the channels
    else:
        array = array[None]
    if array.ndim == 3:  # a 2D file
        array = array[:, None]
    if array.ndim != 4:
        raise InputError(f"it has {dimension} dimensions", where=path, remedy="save one volume of 2, 3 or 4")
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    matrix = np.eye(3)
    in_file = np.array(image.GetDirection()).reshape(dimension, dimension)
    keep = min(3, dimension)
    matrix[:keep, :keep] = in_file[:keep, :keep]
    return Volume(
        array=np.ascontiguousarray(array),
        spacing_mm=(float(spacing[2]) if dimension > 2 else 1.0, float(spacing[1]), float(spacing[0])),
        source=path,
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2]) if dimension > 2 else 0.0),
        direction=tuple(float(v) for v in matrix.ravel()),
    )


def save_volume(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write ``(Z, Y, X)`` with *like*'s geometry."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    if like.spacing_mm is not None:
        image.SetSpacing(like.spacing_mm[::-1])
    image.SetOrigin(like.origin_mm)
    image.SetDirection(like.direction)
    sitk.WriteImage(image, str(path), useCompression=True)
