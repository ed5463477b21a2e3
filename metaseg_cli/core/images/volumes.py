"""Volume files: NIfTI and MGH by nibabel's headers, NRRD and MetaImage by their text headers; ITK writes the latter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import MGH, NIFTI, NRRD, suffix_of
from metaseg_cli.core.images.axes import grid_of
from metaseg_cli.core.images.geometry import as_itk
from metaseg_cli.core.images.itk_decoder import decode
from metaseg_cli.core.images.metaimage import metaimage_header
from metaseg_cli.core.images.nifti import read_nifti, read_nifti_geometry, save_nifti
from metaseg_cli.core.images.nrrd import nrrd_header
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.images.volume_headers import read_voxels
from metaseg_cli.errors import InputError, decoding


def read_volume(path: Path) -> Volume:
    """Return a volume with its geometry; vector voxels and a fourth axis become channels. Raises InputError."""
    volume = read_nifti(path) if suffix_of(path) in NIFTI + MGH else _read_text_headed(path, voxels=True)
    _check_finite(volume.array, path)
    return volume


def read_volume_geometry(path: Path) -> Volume:
    """Read as ``read_volume``, from the header alone where the format allows; voxels are all 0. Raises InputError."""
    if suffix_of(path) in NIFTI + MGH:
        return read_nifti_geometry(path)
    return _read_text_headed(path, voxels=False)


def _read_text_headed(path: Path, *, voxels: bool) -> Volume:
    """Read NRRD or MetaImage. ITK does not read the voxels: it returns uninitialised memory for odd headers."""
    with decoding(path):
        header = nrrd_header(path) if suffix_of(path) in NRRD else metaimage_header(path)
        spacing, origin, direction, notes = grid_of(header.affine, header.shape[1:], path)
        array = read_voxels(header, path) if voxels else np.broadcast_to(np.uint8(0), header.shape)
    return Volume(
        array=array,
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
