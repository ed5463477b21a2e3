"""Volume files: NIfTI and MGH through nibabel, NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.axes import grid_of
from metaseg_cli.core.images.formats import suffix_of
from metaseg_cli.core.images.geometry import as_itk
from metaseg_cli.core.images.itk_decoder import decode
from metaseg_cli.core.images.nifti import MGH, NIFTI, read_nifti, read_nifti_geometry, save_nifti
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.images.volume_headers import check_volume
from metaseg_cli.errors import InputError, decoding


def read_volume(path: Path) -> Volume:
    """A volume with its geometry; vector voxels and a fourth axis become channels. Raises InputError."""
    volume = read_nifti(path) if suffix_of(path) in NIFTI + MGH else _read_with_itk(path)
    _check_finite(volume.array, path)
    return volume


def read_volume_geometry(path: Path) -> Volume:
    """As ``read_volume``, from the header alone where the format allows; its voxels are all 0. Raises InputError."""
    if suffix_of(path) in NIFTI + MGH:
        return read_nifti_geometry(path)
    volume = _read_with_itk(path)
    return Volume(**{**vars(volume), "array": np.broadcast_to(np.uint8(0), volume.array.shape)})


def _read_with_itk(path: Path) -> Volume:
    with decoding(path):
        header = check_volume(path)
        image = decode(path)
    array, dimension = image.array, image.dimension
    if image.components > 1:
        array = np.moveaxis(array, -1, 0)
    elif dimension != 4:
        array = array[None]  # in 4D, (T, Z, Y, X), the fourth axis holds the channels
    if array.ndim == 3:  # a 2D file
        array = array[:, None]
    if array.dtype.kind not in "uif":
        raise InputError(f"voxels of type {array.dtype} are no image", where=path, remedy="save it as numbers")
    if array.ndim != 4:
        raise InputError(f"it has {dimension} dimensions", where=path, remedy="save one volume of 2, 3 or 4")
    keep = min(3, dimension)
    affine = np.eye(4)
    affine[:keep, :keep] = np.reshape(image.direction, (dimension, dimension))[:keep, :keep] * image.spacing[:keep]
    affine[:keep, 3] = image.origin[:keep]
    _, z, y, x = array.shape
    spacing, origin, direction, notes = grid_of(affine, (z, y, x), path)
    return Volume(
        array=np.ascontiguousarray(array),
        spacing_mm=spacing,
        source=path,
        origin_mm=origin,
        direction=direction,
        notes=(*header.notes, *notes),
    )


def _check_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(
            f"it holds {count} values that are not finite (NaN or Inf)", where=path, remedy="replace them first"
        )


def save_volume(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write ``(Z, Y, X)`` with *like*'s geometry."""
    import SimpleITK as sitk

    if suffix_of(path) in NIFTI + MGH:
        save_nifti(path, array, like)
    else:
        sitk.WriteImage(as_itk(array, like), str(path), useCompression=True)
        _check_written(path, array)


def _check_written(path: Path, array: NDArray[Any]) -> None:
    """Raise OSError unless *path* holds *array*: ITK writes half a file on a full disk and says nothing."""
    try:
        whole = np.array_equal(decode(path).array, array)
    except InputError:
        whole = False
    if not whole:
        raise OSError("not all of it was written")
