"""NIfTI, NRRD and MetaImage, through SimpleITK; nibabel where a NIfTI header says more than ITK can hold."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.formats import suffix_of
from metaseg_cli.core.images.geometry import as_itk
from metaseg_cli.core.images.volume import NiftiForms, Volume
from metaseg_cli.errors import InputError

_NIFTI = (".nii", ".nii.gz")
_LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR = 0.02  # cosine between axes up to which a matrix counts as a rotation that was rounded


def read_volume(path: Path) -> Volume:
    """A volume with its geometry; vector voxels and the fourth axis of a NIfTI become channels. Raises InputError."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _without_twin(path) as alone:
            image = sitk.ReadImage(str(alone))
    except RuntimeError as error:
        if suffix_of(path) in _NIFTI and "orthonormal" in str(error):
            return _sheared_nifti(path)
        reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
        raise InputError(f"cannot be read ({reason})", where=path, remedy="copy it again from its source") from None
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f" and suffix_of(path) in _NIFTI:
        _check_finite(_raw_nifti(path), path)  # ITK has already, silently, put 0 where they were
    dimension = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        if array.ndim == 5:  # a NIfTI of vectors: (C, 1, Z, Y, X)
            array = array.reshape(-1, *array.shape[-3:])
    elif dimension != 4:
        array = array[None]  # in 4D, (T, Z, Y, X), the fourth axis holds the channels
    if array.ndim == 3:  # a 2D file
        array = array[:, None]
    _check(array, path, dimension)
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    matrix = np.eye(3)
    in_file = np.array(image.GetDirection()).reshape(dimension, dimension)
    keep = min(3, dimension)
    matrix[:keep, :keep] = in_file[:keep, :keep]
    volume = Volume(
        array=np.ascontiguousarray(array),
        spacing_mm=(float(spacing[2]) if dimension > 2 else 1.0, float(spacing[1]), float(spacing[0])),
        source=path,
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2]) if dimension > 2 else 0.0),
        direction=tuple(float(v) for v in matrix.ravel()),
    )
    return _with_forms(volume, path, image) if suffix_of(path) in _NIFTI else volume


@contextmanager
def _without_twin(path: Path) -> Iterator[Path]:
    """*path*, or a copy of it where ``a.nii`` lies beside ``a.nii.gz``.

    The NIfTI library inside ITK takes the header from the one and the voxels, silently, from the other.
    """
    name = path.name[: len(path.name) - len(suffix_of(path))]
    twins = [path.with_name(name + s) for s in (".nii", ".nii.gz", ".img", ".hdr", ".img.gz", ".hdr.gz")]
    if suffix_of(path) not in _NIFTI or not any(twin.exists() for twin in twins if twin != path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        yield copy


def read_volume_geometry(path: Path) -> Volume:
    """As ``read_volume``, but without its voxels: the array is 0 everywhere and takes no memory. Raises InputError."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return read_volume(path)  # which knows what to do, or says what is wrong
    dimension = reader.GetDimension()
    size, spacing, origin = ([*v, 1] for v in (reader.GetSize(), reader.GetSpacing(), reader.GetOrigin()))
    matrix = np.eye(3)
    keep = min(3, dimension)
    matrix[:keep, :keep] = np.array(reader.GetDirection()).reshape(dimension, dimension)[:keep, :keep]
    channels = reader.GetNumberOfComponents() * (size[3] if dimension == 4 else 1)
    return Volume(
        array=np.broadcast_to(np.uint8(0), (channels, size[2], size[1], size[0])),
        spacing_mm=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        source=path,
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2]) if dimension > 2 else 0.0),
        direction=tuple(float(v) for v in matrix.ravel()),
    )


def _check(array: NDArray[Any], path: Path, dimension: int) -> None:
    if array.dtype.kind not in "uif":
        raise InputError(f"voxels of type {array.dtype} are no image", where=path, remedy="save it as numbers")
    if array.ndim != 4:
        raise InputError(f"it has {dimension} dimensions", where=path, remedy="save one volume of 2, 3 or 4")
    _check_finite(array, path)


def _raw_nifti(path: Path) -> NDArray[Any]:
    import nibabel

    image: Any = nibabel.load(path)
    return np.asanyarray(image.dataobj)


def _check_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(
            f"it holds {count} values that are not finite (NaN or Inf)", where=path, remedy="replace them first"
        )


def _with_forms(volume: Volume, path: Path, image: Any) -> Volume:
    """Add what a NIfTI header says beyond one rotation, and a sentence on it."""
    codes = [image.GetMetaData(key) if image.HasMetaDataKey(key) else "1" for key in ("qform_code", "sform_code")]
    if codes == ["0", "0"]:
        note = "the file stores no orientation: which side is left cannot be known"
    elif "0" in codes:
        return volume
    else:
        forms = _read_forms(path)  # both are there, and nearly always the same
        q, s = np.reshape(forms.qform, (4, 4)), np.reshape(forms.sform, (4, 4))
        if np.abs(q - s)[:3].max() <= 0.05 * min(volume.spacing_mm or (1.0,)):
            return volume
        taken = "sform" if np.allclose(_LPS_OF_RAS @ s, volume.affine, atol=1e-2) else "qform"
        apart = float(np.linalg.norm(q[:3, 3] - s[:3, 3]))
        note = f"qform and sform disagree (origins {apart:.1f} mm apart): placed by the {taken}; both are kept"
    return dataclasses.replace(volume, nifti_forms=_read_forms(path), notes=(*volume.notes, note))


def _read_forms(path: Path) -> NiftiForms:
    import nibabel

    header: Any = nibabel.load(path).header
    q, q_code = header.get_qform(coded=True)
    s, s_code = header.get_sform(coded=True)
    q = header.get_qform(coded=False) if q is None else q
    s = np.zeros((4, 4)) if s is None else s
    return NiftiForms(
        qform=tuple(float(v) for v in q.ravel()),
        qform_code=int(q_code),
        sform=tuple(float(v) for v in s.ravel()),
        sform_code=int(s_code),
    )


def _sheared_nifti(path: Path) -> Volume:
    """A NIfTI whose only matrix is not quite a rotation: the nearest one where rounding explains it."""
    import nibabel

    image: Any = nibabel.load(path)
    affine = _LPS_OF_RAS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    shear = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if not shear <= _SHEAR:
        raise InputError(
            f"its axes are not at right angles (sheared by {shear:.2f})",
            where=path,
            remedy="resample it to a straight grid first",
        )
    u, _, v = np.linalg.svd(cosines)
    array = np.asanyarray(image.dataobj)
    array = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    array = np.ascontiguousarray(array.transpose(0, 3, 2, 1))  # (C, X, Y, Z) → (C, Z, Y, X)
    _check(array, path, array.ndim)
    return Volume(
        array=array,
        spacing_mm=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        source=path,
        origin_mm=(float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3])),
        direction=tuple(float(x) for x in (u @ v).ravel()),
        nifti_forms=_read_forms(path),
        notes=(f"its axes are not quite at right angles (sheared by {shear:.4f}): taken as rounded",),
    )


def save_volume(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write ``(Z, Y, X)`` with *like*'s geometry."""
    import SimpleITK as sitk

    if like.nifti_forms is not None and suffix_of(path) in _NIFTI:
        _save_with_forms(path, array, like.nifti_forms)
    else:
        sitk.WriteImage(as_itk(array, like), str(path), useCompression=True)


def _save_with_forms(path: Path, array: NDArray[Any], forms: NiftiForms) -> None:
    import nibabel

    image: Any = nibabel.Nifti1Image(array.transpose(2, 1, 0), None)
    q, s = np.reshape(forms.qform, (4, 4)), np.reshape(forms.sform, (4, 4))
    image.header.set_zooms(np.linalg.norm(q[:3, :3], axis=0))
    image.header.set_qform(q, forms.qform_code, strip_shears=True)
    image.header.set_sform(s, forms.sform_code)
    nibabel.save(image, path)
