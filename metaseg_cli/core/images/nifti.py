"""NIfTI-1 and NIfTI-2, single files and pairs, and FreeSurfer's MGH, through nibabel, the reference implementation.

nibabel reads and writes the headers; the voxels are counted here, because a truncated file must not be read.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import MGH, suffix_of
from metaseg_cli.core.images.axes import grid_of
from metaseg_cli.core.images.streams import inflate, read_exactly
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.memory import check_fits
from metaseg_cli.errors import COPY_AGAIN, InputError, decoding

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_DIMENSIONS = 5  # space, and one axis of time or channels; the standard allows 7
_SIZES = {348: "Nifti1", 540: "Nifti2"}
_IN_MM = {"meter": 1000.0, "micron": 0.001}
_PLAUSIBLE_MM = (0.02, 50.0)  # voxel sizes of any scanner
_LONGEST_QUATERNION = 1.01  # what rounding by a writer may make of length 1
_SAME = 0.01  # a relative difference of voxel sizes up to this is rounding
_MOST_HEADER = 16 * 2**20  # header and extensions


@dataclass(frozen=True)
class _Header:
    """A header with what the file says before nibabel repairs it."""

    parsed: Any
    raw: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int  # of the first voxel, in the file with the voxels


def _nibabel() -> Any:
    import nibabel

    # It prints warnings about headers to the terminal; what users must know stands in notes.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    return nibabel


def read_nifti(path: Path) -> Volume:
    """Return a NIfTI or MGH file as ``(C, Z, Y, X)``; axes beyond the third become channels.

    Raises InputError for what is damaged, holds another number of voxels than its header says, or does not say where
    it lies.
    """
    with decoding(path):
        return _read_mgh(path) if suffix_of(path) in MGH else _read(path, voxels=True)


def read_nifti_geometry(path: Path) -> Volume:
    """Read as ``read_nifti`` does, from the header alone: the array is 0 everywhere and takes no memory."""
    with decoding(path):
        return _read_mgh(path) if suffix_of(path) in MGH else _read(path, voxels=False)


def _read(path: Path, *, voxels: bool) -> Volume:
    header_file, image_file = _files(path)
    header = _header(header_file, path, single=header_file == image_file)
    volume = _placed(header, path)
    if not voxels:
        channels = int(np.prod(header.shape[3:]))
        return _with_array(volume, np.broadcast_to(np.uint8(0), (channels, *volume.shape)))
    size = int(np.prod(header.shape)) * header.dtype.itemsize
    check_fits(2 * size, path)
    with image_file.open("rb") as file:
        data = read_exactly(file, _encoding(file), header.offset + size, path)
    array: NDArray[Any] = np.ndarray(header.shape, header.dtype, data, header.offset, order="F")
    return _with_array(volume, _channels_first(_scaled(array, header)))


def _files(path: Path) -> tuple[Path, Path]:
    """Return the files with the header and with the voxels: one, or a pair."""
    name = path.name
    for header, image in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        for own, other in ((header, image), (image, header)):
            if name.lower().endswith(own):
                twin = _twin(path, path.name[: -len(own)], other)
                return (path, twin) if own == header else (twin, path)
    return path, path


def _twin(path: Path, stem: str, suffix: str) -> Path:
    for candidate in (suffix, suffix.upper(), f"{suffix}.gz"):
        if path.with_name(stem + candidate).is_file():
            return path.with_name(stem + candidate)
    raise InputError(f"it needs {stem}{suffix} beside it", where=path, remedy="copy both files of the pair")


def _encoding(file: BinaryIO) -> str:
    """Return the compression by the first bytes, not by the name: ``a.nii`` may be compressed."""
    magic = file.read(2)
    file.seek(0)
    return "gzip" if magic == b"\x1f\x8b" else "raw"


def _header(header_file: Path, path: Path, *, single: bool) -> _Header:
    with header_file.open("rb") as file:
        data = bytearray()
        for piece in inflate(file, _encoding(file)):
            data += piece
            if len(data) >= 540:
                break
    nibabel = _nibabel()
    number = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    size = next((n for n in number if n in _SIZES), 0)
    if not size or len(data) < size:
        raise InputError("not a NIfTI file, whatever its name says", where=path, remedy="convert it to NIfTI again")
    if bytes(data[344:346]) not in (b"n+", b"ni") and size == 348:
        raise InputError(
            "an Analyze 7.5 file, which does not say which side is left",
            where=path,
            remedy="convert it to NIfTI with the program that made it",
        )
    kind = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}[size]
    if not single:
        kind = {348: nibabel.nifti1.Nifti1PairHeader, 540: nibabel.nifti2.Nifti2PairHeader}[size]
    raw = bytes(data[:size])
    unchecked = kind(raw, check=False)
    dims = [int(n) for n in unchecked["dim"]]
    if not 1 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise InputError("its header names no size", where=path, remedy=COPY_AGAIN)
    raw = _with_unit_quaternion(unchecked).binaryblock
    parsed = kind(raw)  # checked, and repaired where nibabel does so
    shape = tuple(dims[1 : dims[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > _MOST_DIMENSIONS or sum(n > 1 for n in shape[3:]) > 1:
        raise InputError(f"it has {len(shape)} dimensions", where=path, remedy="save one volume of 2, 3 or 4")
    offset = float(unchecked["vox_offset"])
    if not 0 <= offset <= _MOST_HEADER or offset != int(offset):
        raise InputError(f"its voxels would begin at byte {offset:g}", where=path, remedy=COPY_AGAIN)
    offset = max(int(offset), size + 4) if single else int(offset)
    return _Header(parsed, raw, shape + (1,) * (3 - len(shape)), _dtype(parsed, path), offset)


def _with_unit_quaternion(header: Any) -> Any:
    """Scale the quaternion to length 1 where rounding made it longer, as the standard's own code does.

    nibabel refuses longer ones.
    """
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.sqrt(sum(float(header[name]) ** 2 for name in names)))
    if 1 < length < _LONGEST_QUATERNION:
        for name in names:
            header[name] = float(header[name]) / length / (1 + 2**-52)  # the last bit must not make it too long again
    return header


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    dtype = np.dtype(header.get_data_dtype())
    if dtype.names:  # colours: red, green, blue (, alpha) of a byte each
        return dtype
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise InputError(f"voxels of type {dtype} are not an image", where=path, remedy="save it as numbers")
    return dtype


def _scaled(array: NDArray[Any], header: _Header) -> NDArray[Any]:
    """Return the numbers that the file means, in the byte order of this machine."""
    if header.dtype.names:
        array = np.stack([array[name] for name in header.dtype.names[:3]], axis=-1)
        return array.reshape(*array.shape[:3], -1)
    slope, intercept = header.parsed.get_slope_inter()
    if slope is None or (slope == 1 and not intercept):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    scaled: NDArray[Any] = _nibabel().volumeutils.apply_read_scaling(array, slope, intercept)
    return scaled.astype(np.float32, copy=False)


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Transpose ``(X, Y, Z, …)`` to ``(C, Z, Y, X)``."""
    channels = array.reshape(*array.shape[:3], -1, order="F")
    return np.ascontiguousarray(channels.transpose(3, 2, 1, 0))


def _with_array(volume: Volume, array: NDArray[Any]) -> Volume:
    return dataclasses.replace(volume, array=array)


# -- where it lies ---------------------------------------------------------------------------------------------------


def _placed(header: _Header, path: Path) -> Volume:
    """Return the grid by the standard: the sform if it has a code (method 3), else qform (2), else sizes (1)."""
    parsed = header.parsed
    stored = type(parsed)(header.raw, check=False)
    q_code, s_code = int(stored["qform_code"]), int(stored["sform_code"])
    pixdim = np.array(stored["pixdim"][1:4], dtype=float)
    flat = header.shape[2] == 1
    notes: list[str] = []
    if s_code <= 0:
        sizes = pixdim[:2] if flat else pixdim
        if not np.isfinite(pixdim).all() or not sizes.all():
            raise InputError(
                "its header does not say how large its voxels are",
                where=path,
                remedy="convert it again from its source",
            )
        if (pixdim < 0).any():
            notes.append("its header gives a negative voxel size: taken without the sign")
    affine = np.array(parsed.get_best_affine(), dtype=float)
    if s_code <= 0 and q_code <= 0:
        notes.append("the file stores no orientation: which side is left cannot be known")
    factor, note = _to_mm(parsed, affine)
    with np.errstate(invalid="ignore"):  # infinities raise below
        lps = np.diag([-factor, -factor, factor, 1.0]) @ affine
    shape = (header.shape[2], header.shape[1], header.shape[0])
    spacing, origin, direction, more = grid_of(lps, shape, path)
    notes += [*note, *more]
    if s_code > 0:
        notes += _disagreements(stored, parsed, affine, np.array(spacing[::-1]) / factor, pixdim, flat=flat)
    return Volume(
        array=np.broadcast_to(np.uint8(0), (1, *shape)),
        spacing_mm=spacing,
        source=path,
        origin_mm=origin,
        direction=direction,
        nifti_header=header.raw,
        notes=tuple(notes),
    )


def _to_mm(header: Any, affine: NDArray[np.float64]) -> tuple[float, list[str]]:
    """Return the factor from the header's lengths to mm: 1, unless it names another unit and that is plausible."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        return 1.0, []
    factor = _IN_MM.get(unit, 1.0)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    lengths = lengths[lengths > 0]
    if factor == 1.0 or not lengths.size:
        return 1.0, []
    low, high = _PLAUSIBLE_MM
    if low <= lengths.min() * factor and lengths.max() * factor <= high:
        return factor, [f"its header measures in {unit}s: converted to mm"]
    return 1.0, [f"its header says that it measures in {unit}s, which cannot be: taken as mm"]


def _disagreements(
    stored: Any,
    parsed: Any,
    affine: NDArray[np.float64],
    sizes: NDArray[np.float64],
    pixdim: NDArray[np.float64],
    *,
    flat: bool,
) -> list[str]:
    """Return what else the header says than its sform, by which the scan is placed."""
    count = 2 if flat else 3
    if int(stored["qform_code"]) > 0:
        try:
            qform = np.array(parsed.get_qform(), dtype=float)
        except Exception:
            return ["its qform is damaged: placed by the sform"]
        columns = [*range(count), 3]
        if np.abs(qform - affine)[:3, columns].max() > 0.05 * sizes[:count].min():
            apart = float(np.linalg.norm(qform[:3, 3] - affine[:3, 3]))
            return [f"qform and sform disagree (origins {apart:.1f} mm apart): placed by the sform; both are kept"]
    if not np.allclose(np.abs(pixdim[:count]), sizes[:count], rtol=_SAME):
        stated, taken = ("×".join(f"{v:g}" for v in values[:count]) for values in (pixdim, sizes))
        return [f"its header gives two voxel sizes, {stated} and by its sform {taken} mm: the sform's are taken"]
    return []


def _read_mgh(path: Path) -> Volume:
    """Read FreeSurfer's format; nibabel checks the number of voxels itself, and headers are RAS millimetres."""
    image = _nibabel().load(path)
    shape = image.shape
    if len(shape) > 4 or min(shape) < 1:
        raise InputError(f"it has {len(shape)} dimensions", where=path, remedy="save one volume of 3 or 4")
    check_fits(2 * int(np.prod(shape)) * np.dtype(image.get_data_dtype()).itemsize, path)
    if path.suffix.lower() == ".mgz":
        with path.open("rb") as file:
            for _ in inflate(file, "gzip"):  # its checksum
                pass
    array = np.asanyarray(image.dataobj)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    channels = _channels_first(array)
    spacing, origin, direction, notes = grid_of(LPS_OF_RAS @ image.affine, channels.shape[1:], path)
    return Volume(
        array=channels, spacing_mm=spacing, source=path, origin_mm=origin, direction=direction, notes=tuple(notes)
    )


# -- writing ---------------------------------------------------------------------------------------------------------


def save_nifti(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write ``(Z, Y, X)`` with *like*'s geometry; of a NIfTI with its very matrices, so that every reader agrees."""
    nibabel = _nibabel()
    voxels = array.transpose(2, 1, 0)
    affine = LPS_OF_RAS @ like.affine
    if suffix_of(path) in MGH:
        nibabel.save(nibabel.MGHImage(voxels, affine), path)
        return
    pair = suffix_of(path) in (".hdr", ".img")
    if like.nifti_header is None:
        version = "Nifti1"
        image = _image_class(nibabel, version, pair=pair)(voxels, affine)
        image.header.set_qform(affine, 1)
        image.header.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
    else:
        version = _SIZES[len(like.nifti_header)]
        image = _like_header(_image_class(nibabel, version, pair=pair), voxels, like.nifti_header)
    nibabel.save(image, path)


def _image_class(nibabel: Any, version: str, *, pair: bool) -> Any:
    return getattr(nibabel, f"{version}Pair" if pair else f"{version}Image")


_PLACING = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def _like_header(kind: Any, voxels: NDArray[Any], raw: bytes) -> Any:
    """Return *voxels* with a new header that takes from *raw* the geometry, and nothing that may name a patient."""
    source = kind.header_class(raw, check=False)
    dims = int(source["dim"][0])
    if dims == 2:
        voxels = voxels[:, :, 0]
    image = kind(voxels, None)
    for field in _PLACING:
        image.header[field] = source[field]
    return image
