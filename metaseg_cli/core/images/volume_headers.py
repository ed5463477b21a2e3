"""What headers of NRRD and MetaImage files have in common, checked before a voxel is read.

Headers may be damaged, contradict themselves, or name any file of the machine. So sizes, voxel type, the number of
bytes, and the file with the voxels are checked here first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.streams import inflate, read_exactly
from metaseg_cli.core.memory import check_fits
from metaseg_cli.errors import COPY_AGAIN, InputError, printable

MOST_HEADER = 2**20  # bytes; real headers are a few kB, those with Slicer's segments some hundreds
NOWHERE = "its header does not say where it lies"
CONVERT = "convert it again from the original images"


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """What a header announces.

    ``sizes`` are in the order of the file, the fastest axis first; ``space`` are its two or three axes of space, x
    first, and ``channels`` the axis of several numbers per voxel, if any. ``affine`` is 4×4, from index to LPS in mm;
    the column of a missing third axis is 0.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]  # with the file's byte order
    space: tuple[int, ...]
    channels: int | None
    encoding: str  # raw, gzip, zlib, bzip2 or text
    data: Path
    offset: int  # of the voxels in ``data``; -1: the last bytes of the file
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The length of the voxels, unpacked."""
        return int(np.prod(self.sizes, dtype=object)) * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(C, Z, Y, X)``."""
        x, y, z = (*(self.sizes[axis] for axis in self.space), 1)[:3]
        return (1 if self.channels is None else self.sizes[self.channels], z, y, x)


def check_sizes(sizes: tuple[int, ...], dimension: tuple[int, ...], path: Path) -> None:
    """Raise InputError unless *sizes* are those of one to five axes, as many as the header says."""
    if dimension != (len(sizes),):
        raise InputError("its header names another number of sizes than of dimensions", where=path, remedy=COPY_AGAIN)
    if not 1 <= len(sizes) <= 5 or min(sizes) < 1:
        shown = "×".join(map(str, sizes)) or "of nothing"
        raise InputError(f"its header names the size {shown}", where=path, remedy=COPY_AGAIN)


def read_voxels(header: VolumeHeader, path: Path) -> NDArray[Any]:
    """Return the voxels ``(C, Z, Y, X)`` in native byte order, exactly as many as announced. Raises InputError."""
    check_fits(2 * header.bytes, path)
    with header.data.open("rb") as file:
        if header.encoding == "text":
            file.seek(header.offset)
            flat = _numbers(b"".join(inflate(file, "raw")), header, path)
        else:
            flat = np.frombuffer(_packed(file, header, path), header.dtype)
    axes = header.channels, *reversed(header.space)
    array = flat.reshape(header.sizes, order="F")
    array = array.transpose([a for a in range(array.ndim) if a not in axes] + [a for a in axes if a is not None])
    native = header.dtype.newbyteorder("=")
    return np.ascontiguousarray(array.reshape(header.shape).astype(native, copy=False))


def _packed(file: BinaryIO, header: VolumeHeader, path: Path) -> bytearray:
    if header.offset >= 0:
        file.seek(header.offset)
        return read_exactly(file, header.encoding, header.bytes, path)
    if file.seek(0, 2) < header.bytes:
        raise InputError("it is cut short", where=path, remedy=COPY_AGAIN)
    file.seek(-header.bytes, 2)
    return bytearray(file.read(header.bytes))


def _numbers(text: bytes, header: VolumeHeader, path: Path) -> NDArray[Any]:
    wanted = header.bytes // header.dtype.itemsize
    found = text.split()
    if text[-1:].strip():  # the last number may have lost digits
        raise InputError("its last line does not end: it is cut short", where=path, remedy=COPY_AGAIN)
    if len(found) != wanted:
        raise InputError(
            f"its header announces {wanted} numbers, {len(found)} are there", where=path, remedy=COPY_AGAIN
        )
    if header.dtype.kind == "f":
        return np.array([float(number) for number in found], header.dtype)
    numbers = [int(number) for number in found]
    limits = np.iinfo(header.dtype)
    if not limits.min <= min(numbers) <= max(numbers) <= limits.max:
        raise InputError(f"it holds numbers that are not of the type {header.dtype}", where=path, remedy=COPY_AGAIN)
    return np.array(numbers, header.dtype)


def text_header(path: Path, ends: Callable[[bytes], int]) -> tuple[list[str], int]:
    """Return the lines of the header, and the byte after it, as *ends* finds it. Raises InputError."""
    with path.open("rb") as file:
        data = file.read(MOST_HEADER)
    end = ends(data)
    if end < 0:
        raise InputError("its header does not end", where=path, remedy=COPY_AGAIN)
    if b"\0" in data[:end]:
        raise InputError("its header is damaged (it holds zero bytes)", where=path, remedy=COPY_AGAIN)
    return data[:end].decode("utf-8", "replace").splitlines(), end


def beside(name: str, path: Path) -> Path:
    """Return the file with the voxels. It must lie beside its header, or a header could open any file here."""
    plain = name.strip().removeprefix("./")
    if plain != Path(plain).name or plain in ("", ".", "..") or "\\" in plain or ":" in plain:
        raise InputError(
            f"its header names a file elsewhere ({printable(plain)[:80]})",
            where=path,
            remedy="put header and voxels into one folder, with the plain name in the header",
        )
    data = path.with_name(plain)
    if data == path or not data.is_file():
        raise InputError(
            f"the file with its voxels, {printable(plain)[:80]}, is missing", where=path, remedy=COPY_AGAIN
        )
    if data.is_symlink() and data.resolve().parent != path.resolve().parent:
        raise InputError("the file with its voxels is a link to elsewhere", where=path, remedy="copy the file itself")
    return data


def no_external(name: str, path: Path) -> NoReturn:
    """Raise InputError: *path* is of a kind that holds its own voxels."""
    raise InputError(
        f"its header names another file ({printable(name)[:80]}), which a file of this kind must not",
        where=path,
        remedy="save header and voxels in one file",
    )


def several_files(path: Path) -> NoReturn:
    """Raise InputError: the voxels lie in a list of files."""
    raise InputError("its voxels lie in several files", where=path, remedy="save them in one file")


def damaged(name: str, text: str, path: Path) -> InputError:
    """Return the error for a header line that cannot be understood."""
    return InputError(f"its header is damaged ({name}: {printable(text)[:60]})", where=path, remedy=COPY_AGAIN)


def nowhere(name: str, text: str, path: Path) -> InputError:
    """Return the error for a header line that fails to place the voxels."""
    return InputError(f"{NOWHERE} ({name}: {printable(text)[:60]})", where=path, remedy=CONVERT)


def whole(text: str, name: str, path: Path) -> tuple[int, ...]:
    """Parse whole numbers of a header's line. Raises InputError for anything else, or beyond 64 bits."""
    parts = text.split()
    if not parts or not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts):
        raise damaged(name, text, path)
    return tuple(int(part) for part in parts)


def once(fields: dict[str, str], name: str, value: str, path: Path) -> None:
    """Keep *value* in *fields*. Raises InputError for a second one that differs."""
    if name in fields and fields[name] != value:
        raise InputError(f"its header says two things of {printable(name)[:40]}", where=path, remedy=COPY_AGAIN)
    fields[name] = value


def without_time(matrix: NDArray[np.float64], name: str, path: Path) -> NDArray[np.float64]:
    """Reduce 4×4 with time as last row and column to 3×3. Raises InputError where space and time are mixed."""
    if matrix[3, :3].any() or matrix[:3, 3].any():
        raise InputError(f"{NOWHERE} ({name} mixes space and time)", where=path, remedy=CONVERT)
    return matrix[:3, :3]
