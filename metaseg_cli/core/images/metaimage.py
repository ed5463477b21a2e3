"""Headers of MetaImage files, ``.mha`` and detached ``.mhd`` (itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import suffix_of
from metaseg_cli.core.images.volume_headers import (
    VolumeHeader,
    beside,
    check_sizes,
    no_external,
    nowhere,
    once,
    several_files,
    text_header,
    whole,
    without_time,
)
from metaseg_cli.errors import COPY_AGAIN, InputError, printable

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    # MET_LONG has eight bytes for some programs and four for others: refused.
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SPACINGS = ("ElementSpacing", "ElementSize")  # the first that is there holds
_ORIGINS = ("Offset", "Position", "Origin")
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_YES = ("true", "1", "t", "y", "yes")


def metaimage_header(path: Path) -> VolumeHeader:
    """Read the header. Raises InputError for a damaged or contradictory one, or one that does not place its voxels."""
    lines, end = text_header(path, _end)
    fields: dict[str, str] = {}
    for line in lines:
        name, sign, value = line.partition("=")
        if sign:
            once(fields, name.strip(), value.strip(), path)
        elif line.strip():
            raise InputError(f"its header is damaged ({printable(line)[:60]})", where=path, remedy=COPY_AGAIN)
    for name in ("NDims", "DimSize", "ElementType"):
        if name not in fields:
            raise InputError(f"its header is damaged (no {name})", where=path, remedy=COPY_AGAIN)
    sizes = whole(fields["DimSize"], "DimSize", path)
    check_sizes(sizes, whole(fields["NDims"], "NDims", path), path)
    (channels,) = whole(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", path)[:1]
    if not 1 <= channels <= 1024:
        raise InputError(f"its header names {channels} channels", where=path, remedy=COPY_AGAIN)
    if not 2 <= len(sizes) <= 4 or (len(sizes) == 4 and channels > 1 and sizes[3] > 1):
        raise InputError(f"it has {len(sizes)} dimensions", where=path, remedy="save one volume of 2, 3 or 4")
    affine, notes = _place(fields, len(sizes), path)
    data, offset = _data(fields["ElementDataFile"], end, path)
    packed = _flag(fields, ("CompressedData",), path)
    binary = _flag(fields, ("BinaryData",), path, otherwise=True)
    (skip,) = whole(fields.get("HeaderSize", "0"), "HeaderSize", path)[:1]
    if skip < -1 or (skip and (packed or data == path or not binary)):
        raise InputError("its header skips bytes in a way that is not read", where=path, remedy="save it again")
    time = len(sizes) == 4 and channels == 1
    return VolumeHeader(
        sizes=(channels, *sizes),
        dtype=_dtype(fields, path),
        space=tuple(range(1, min(3, len(sizes)) + 1)),
        channels=4 if time else 0,
        encoding="zlib" if packed else "raw" if binary else "text",
        data=data,
        offset=-1 if skip == -1 else offset + skip,
        affine=affine,
        notes=tuple(notes),
        fields=fields,
    )


def _end(data: bytes) -> int:
    """Return the end of the header: it is behind the line that names the file with the voxels, always the last one."""
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|\Z)", data, re.MULTILINE)
    return found.end() if found else -1


def _flag(fields: dict[str, str], names: tuple[str, ...], path: Path, *, otherwise: bool = False) -> bool:
    said = {fields[name].lower() in _YES for name in names if name in fields}
    if len(said) > 1:
        raise InputError(f"its header says two things of {names[0]}", where=path, remedy=COPY_AGAIN)
    return said.pop() if said else otherwise


def _dtype(fields: dict[str, str], path: Path) -> np.dtype[np.generic]:
    code = _TYPES.get(fields["ElementType"].upper())
    if code is None:
        kind = printable(fields["ElementType"])[:40]
        raise InputError(f"voxels of type {kind} are not read", where=path, remedy="save it as MET_SHORT or MET_FLOAT")
    return np.dtype((">" if _flag(fields, _BYTE_ORDERS, path) else "<") + code)


def _data(named: str, end: int, path: Path) -> tuple[Path, int]:
    if named.upper() == "LOCAL":
        return path, end
    if suffix_of(path) == ".mha":
        no_external(named, path)
    if named.upper().startswith("LIST") or "%" in named:
        several_files(path)
    return beside(named, path), 0


def _place(fields: dict[str, str], dimensions: int, path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine (4×4, to LPS in mm), as ITK reads it, and what the header leaves open."""
    notes = []
    sizes = [_numbers(fields, name, dimensions, path) for name in _SPACINGS if name in fields]
    if any((each <= 0).any() for each in sizes):
        name = next(name for name in _SPACINGS if name in fields)
        raise nowhere(name, fields[name], path)
    if not sizes:
        notes.append("its header gives no voxel size: taken as 1 mm")
    origin = _agreed(fields, _ORIGINS, dimensions, path)
    matrix = _agreed(fields, _MATRICES, dimensions**2, path)
    if matrix is None:
        notes.append("the file stores no orientation: which side is left cannot be known")
        matrix = np.eye(dimensions).ravel()
    if any(float(fields.get(f"ElementToIntensityFunction{part}") or plain) != plain for part, plain in _INTENSITY):
        notes.append("its function of intensity (ElementToIntensityFunctionSlope, …Offset) was not applied")
    directions = matrix.reshape(dimensions, dimensions).T  # the file has one axis after the other
    if dimensions == 4:
        directions = without_time(directions, "TransformMatrix", path)
    keep = min(3, dimensions)
    affine = np.zeros((4, 4))
    affine[:keep, :keep] = directions * (sizes[0][:keep] if sizes else 1.0)
    affine[:keep, 3] = 0.0 if origin is None else origin[:keep]
    affine[3, 3] = 1
    return affine, notes


_INTENSITY = (("Slope", 1.0), ("Offset", 0.0))


def _agreed(fields: dict[str, str], names: tuple[str, ...], count: int, path: Path) -> NDArray[np.float64] | None:
    """Return what the format's several names for one thing say. Raises InputError where they disagree."""
    found = [_numbers(fields, name, count, path) for name in names if name in fields]
    if any(not np.allclose(other, found[0], atol=1e-4) for other in found[1:]):
        named = ", ".join(name for name in names if name in fields)
        raise InputError(f"its header says two things of where it lies ({named})", where=path, remedy=COPY_AGAIN)
    return found[0] if found else None


def _numbers(fields: dict[str, str], name: str, count: int, path: Path) -> NDArray[np.float64]:
    try:
        values = np.array([float(part) for part in fields[name].split()])
    except ValueError:
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        raise nowhere(name, fields[name], path)
    return values
