"""Headers of NRRD files, ``.nrrd`` and detached ``.nhdr`` (teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import suffix_of
from metaseg_cli.core.images.volume_headers import (
    MOST_HEADER,
    VolumeHeader,
    beside,
    check_sizes,
    damaged,
    no_external,
    nowhere,
    once,
    several_files,
    text_header,
    whole,
    without_time,
)
from metaseg_cli.errors import COPY_AGAIN, InputError, printable

_TYPES = {"char": "i1", "short": "i2", "int": "i4", "long long": "i8", "float": "f4", "double": "f8"}
_SHORT = {
    "uchar": "unsigned char",
    "ushort": "unsigned short",
    "uint": "unsigned int",
    "ulonglong": "unsigned long long",
    "longlong": "long long",
}
_ENCODINGS = {"gz": "gzip", "bz2": "bzip2", "txt": "text", "ascii": "text"}
# Signs of x and y that turn the coordinates of a space into LPS, by teem's long and short names.
_SPACES = {
    "left-posterior-superior": (1, 1),
    "right-anterior-superior": (-1, -1),
    "left-anterior-superior": (1, -1),
    "lps": (1, 1),
    "ras": (-1, -1),
    "las": (1, -1),
}
_OTHER_SPACES = {"scanner-xyz", "3d-right-handed", "3d-left-handed", ""}
_MM = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "none", "???", "s", "sec", "ms"}
_OF_SPACE = {"domain", "space", "???", "none", ""}
_NO_NUMBERS = re.compile("matrix|complex|quaternion", re.IGNORECASE)


def nrrd_header(path: Path) -> VolumeHeader:
    """Read the header. Raises InputError when it is damaged, contradicts itself, names other files, or has no place."""
    lines, end = text_header(path, _end)
    fields = _fields(lines, path)
    sizes = whole(fields["sizes"], "sizes", path)
    check_sizes(sizes, whole(fields["dimension"], "dimension", path), path)
    encoding = _ENCODINGS.get(fields["encoding"].lower(), fields["encoding"].lower())
    if encoding not in ("raw", "gzip", "bzip2", "text"):
        raise InputError(f"its encoding {printable(encoding)[:40]} is not read", where=path, remedy="save it as gzip")
    dtype = _byte_order(_dtype(fields["type"]), fields, encoding, path)
    data, offset = _data(fields, end, path)
    space, channels, affine, notes = _axes(fields, sizes, path)
    return VolumeHeader(
        sizes=sizes,
        dtype=dtype,
        space=space,
        channels=channels,
        encoding=encoding,
        data=data,
        offset=_skipped(fields, encoding, data, offset, path),
        affine=affine,
        notes=tuple(notes),
        fields=fields,
    )


def _end(data: bytes) -> int:
    """Return the end of the header: the first empty line; a detached header may end with the file."""
    found = [at + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if (at := data.find(gap)) >= 0]
    return min(found) if found else (len(data) if len(data) < MOST_HEADER else -1)


def _fields(lines: Sequence[str], path: Path) -> dict[str, str]:
    if not lines or not re.fullmatch(r"NRRD000[1-6]", lines[0].strip()):
        raise InputError("not an NRRD file, whatever its name says", where=path, remedy=COPY_AGAIN)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#") or not line.strip():
            continue
        name, sign, value = line.partition(":")
        if not sign:
            raise InputError(f"its header is damaged ({printable(line)[:60]})", where=path, remedy=COPY_AGAIN)
        if not value.startswith("="):  # a key of the writing program, not of the format
            once(fields, name.strip().lower().replace("datafile", "data file"), value.strip(), path)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise InputError(f"its header is damaged (no {name})", where=path, remedy=COPY_AGAIN)
    return fields


def _dtype(kind: str) -> np.dtype[Any] | None:
    """Return the type of *kind* in any of the spellings that the format allows: uint16_t, unsigned short int …"""
    kind = " ".join(kind.lower().split())
    if match := re.fullmatch(r"(u?)int(8|16|32|64)(?:_t)?", kind):
        return np.dtype(f"{match[1] or 'i'}{int(match[2]) // 8}")
    kind = _SHORT.get(kind, kind)
    named = kind.removeprefix("unsigned ").removeprefix("signed ")
    code = _TYPES.get(named) or _TYPES.get(named.removesuffix(" int"))
    if code is None or (code[0] == "f" and named != kind):
        return None
    return np.dtype(f"u{code[1]}" if kind.startswith("unsigned ") else code)


def _byte_order(dtype: np.dtype[Any] | None, fields: dict[str, str], encoding: str, path: Path) -> np.dtype[Any]:
    if dtype is None:
        raise InputError(
            f"voxels of type {printable(fields['type'])[:40]} are not an image", where=path, remedy="save numbers"
        )
    if dtype.itemsize == 1 or encoding == "text":
        return dtype
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        raise InputError("its header does not name the order of its bytes", where=path, remedy="save it again")
    return dtype.newbyteorder("<" if order == "little" else ">")


def _data(fields: dict[str, str], end: int, path: Path) -> tuple[Path, int]:
    """Return the file with the voxels, and the byte from which they may begin."""
    if "data file" in fields:
        if suffix_of(path) == ".nrrd":
            no_external(fields["data file"], path)
        if fields["data file"].split()[:1] == ["LIST"] or "%" in fields["data file"]:
            several_files(path)
        return beside(fields["data file"], path), 0
    if suffix_of(path) == ".nhdr":
        raise InputError("its header names no file with voxels", where=path, remedy=COPY_AGAIN)
    return path, end


def _skipped(fields: dict[str, str], encoding: str, data: Path, offset: int, path: Path) -> int:
    """Return the first byte of the voxels after ``line skip`` and ``byte skip``."""
    (lines,) = whole(fields.get("line skip", "0"), "line skip", path)[:1]
    (count,) = whole(fields.get("byte skip", "0"), "byte skip", path)[:1]
    if lines < 0 or count < -1 or (encoding != "raw" and (count or lines)):
        raise InputError("its header skips bytes in a way that is not read", where=path, remedy="save it as gzip")
    if count == -1:
        return -1
    with data.open("rb") as file:
        file.seek(offset)
        for _ in range(min(lines, MOST_HEADER)):
            file.readline()
        return file.tell() + count


# -- where it lies ---------------------------------------------------------------------------------------------------


def _axes(
    fields: dict[str, str], sizes: tuple[int, ...], path: Path
) -> tuple[tuple[int, ...], int | None, NDArray[np.float64], list[str]]:
    """Return the axes of space, the axis of channels, the affine, and notes on what the header leaves open."""
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * len(sizes)
    if len(kinds) != len(sizes):
        raise damaged("kinds", fields["kinds"], path)
    if any(_NO_NUMBERS.search(kind) for kind in kinds):
        raise InputError(f"its voxels are of the kind {fields['kinds'][:60]}", where=path, remedy="save plain numbers")
    _check_units(fields, path)
    if "space directions" in fields:
        return _oriented(fields, sizes, kinds, path)
    space = [i for i, kind in enumerate(kinds) if kind in _OF_SPACE or (kind == "time" and len(sizes) == 3)]
    if len(space) == 4:
        space = space[:3]
    return tuple(space), _channel_axis(sizes, space, path), *_not_oriented(fields, space, len(sizes), path)


def _channel_axis(sizes: tuple[int, ...], space: Sequence[int], path: Path) -> int | None:
    """Return the only axis that is not of space, not counting axes of length 1; None where there is none."""
    others = [i for i in range(len(sizes)) if i not in space]
    several = [i for i in others if sizes[i] > 1]
    if len(several) > 1 or not 2 <= len(space) <= 3:
        raise InputError(
            f"it has {len(space)} axes of space and {len(others)} others",
            where=path,
            remedy="save one volume of 2 or 3 axes",
        )
    return several[0] if several else None


def _oriented(
    fields: dict[str, str], sizes: tuple[int, ...], kinds: Sequence[str], path: Path
) -> tuple[tuple[int, ...], int | None, NDArray[np.float64], list[str]]:
    vectors = _vectors(fields["space directions"], "space directions", path)
    if len(vectors) != len(sizes):
        raise damaged("space directions", fields["space directions"], path)
    name = fields.get("space", "").lower()
    plain = name.removesuffix("-time") if name.endswith("-time") else name.removesuffix("t")
    signs = _SPACES.get(name) or _SPACES.get(plain)
    if signs is None and name not in _OTHER_SPACES:
        raise InputError(f"its space {printable(name)[:40]} is not known", where=path, remedy="save it as LPS or RAS")
    space = [i for i, vector in enumerate(vectors) if vector is not None]
    columns = np.array([vector for vector in vectors if vector is not None], dtype=float).T
    origin = _vectors(fields["space origin"], "space origin", path)[0] if "space origin" in fields else None
    place = np.zeros(len(columns)) if origin is None else np.array(origin)
    if len(place) != len(columns) or not np.isfinite(columns).all() or not np.isfinite(place).all():
        raise nowhere("space directions, space origin", fields["space directions"], path)
    if columns.shape == (4, 4):
        columns, place, space = without_time(columns, "space directions", path), place[:3], space[:3]
    if len(space) == 2 and len(sizes) > 2 and any(kinds[i] in _OF_SPACE for i in range(len(sizes)) if i not in space):
        raise nowhere("space directions", fields["space directions"], path)  # "none" for an axis of space
    channels = _channel_axis(sizes, space, path)
    if len(columns) not in (2, 3) or len(space) > len(columns):
        raise nowhere("space directions", fields["space directions"], path)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    affine[: len(columns), : len(space)] = columns
    affine[: len(columns), 3] = place
    affine[:2] *= np.array(signs or (1, 1))[:, None]
    notes = [] if signs else ["its header does not name the patient's axes: taken as left, posterior, superior"]
    return tuple(space), channels, affine, notes


def _vectors(text: str, name: str, path: Path) -> list[tuple[float, ...] | None]:
    """Parse ``(1,0,0) none (0,0,2)``. Raises InputError for what is not a number."""
    found: list[tuple[float, ...] | None] = []
    for part in re.findall(r"\([^()]*\)|[^\s()]+", text):
        if part.lower() == "none":
            found.append(None)
            continue
        try:
            found.append(tuple(float(number) for number in part.removeprefix("(").removesuffix(")").split(",")))
        except ValueError:
            raise damaged(name, text, path) from None
    lengths = {len(vector) for vector in found if vector is not None}
    if len(lengths) != 1 or not lengths <= {2, 3, 4}:
        raise damaged(name, text, path)
    return found


def _not_oriented(
    fields: dict[str, str], space: Sequence[int], count: int, path: Path
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine of spacings, or of ``axis mins`` and ``axis maxs``, as teem reads them."""
    notes = ["the file stores no orientation: which side is left cannot be known"]
    spacings, low, high = (
        _numbers(fields, name, space, count, path) for name in ("spacings", "axis mins", "axis maxs")
    )
    if (spacings == 0).any():
        raise nowhere("spacings", fields["spacings"], path)
    centers = fields.get("centers", fields.get("centerings", "")).split() or ["cell"] * count
    if len(centers) != count:
        raise damaged("centers", " ".join(centers), path)
    at_nodes = np.array([centers[axis].lower() == "node" for axis in space])
    steps = np.array([whole(fields["sizes"], "sizes", path)[axis] for axis in space]) - at_nodes
    with np.errstate(divide="ignore", invalid="ignore"):
        spacings = np.where(np.isnan(spacings), (high - low) / steps, spacings)
    unknown = ~np.isfinite(spacings) | (spacings == 0)
    if unknown.any():
        notes.insert(0, "its header gives no voxel size: taken as 1 mm")
    spacings = np.where(unknown, 1.0, spacings)
    if (spacings < 0).any():
        notes.append("its header gives a negative voxel size: that axis runs backwards")
    missing = [0.0] * (3 - len(space))
    affine = np.diag([*spacings, *missing, 1.0])
    origin = np.where(np.isnan(low), 0.0, low + np.where(at_nodes, 0.0, spacings / 2))
    affine[:3, 3] = [*origin, *missing]
    return affine, notes


def _numbers(fields: dict[str, str], name: str, space: Sequence[int], count: int, path: Path) -> NDArray[np.float64]:
    """Return one number per axis of space; NaN where the header has none."""
    if name not in fields:
        return np.full(len(space), np.nan)
    try:
        values = np.array([float(part) for part in fields[name].split()])
    except ValueError:
        raise damaged(name, fields[name], path) from None
    if len(values) != count or np.isinf(values).any():
        raise damaged(name, fields[name], path)
    return values[list(space)]


def _check_units(fields: dict[str, str], path: Path) -> None:
    """Raise InputError for lengths in anything but mm."""
    for name in ("space units", "units"):
        text = fields.get(name, "")
        units = {unit.strip().strip('"').strip().lower() for unit in re.findall(r'"[^"]*"|\S+', text)}
        if units - _MM:
            raise InputError(f"it measures in {printable(text)[:40]}, not in mm", where=path, remedy="save it in mm")
