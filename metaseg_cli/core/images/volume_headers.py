"""Headers of NRRD and MetaImage files, checked before a decoder sees them.

ITK crashes on some damaged headers, fills what is missing in others, and reads whatever file of the machine a header
names. So sizes, voxel type, the number of bytes, and the file with the voxels are looked at here first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from metaseg_cli.core.images.formats import suffix_of
from metaseg_cli.core.images.streams import check_length, inflated
from metaseg_cli.core.memory import check_fits
from metaseg_cli.errors import InputError, printable

_MOST_HEADER = 2**20
_AGAIN = "copy it again from its source"
_NRRD_TYPES = {"char": 1, "short": 2, "int": 4, "long long": 8, "float": 4, "double": 8}
_META_TYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    # ITK reads MET_LONG as eight bytes on this kind of machine, and other programs as four: refused.
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
# Spaces in which ITK knows what is left and what is right, in teem's long and short names.
_SPACES = {
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
    *("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last"),
    *("left-posterior-superior-time", "lpst"),
}


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """What a header announces: ``sizes`` in the order of the file, bytes per number, and where the voxels are."""

    sizes: tuple[int, ...]
    itemsize: int
    channels: int
    encoding: str  # raw, gzip, zlib, bzip2 or text
    data: Path
    offset: int  # of the voxels in ``data``; -1: the last bytes of the file
    notes: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The length of the voxels, unpacked."""
        return int(np.prod(self.sizes, dtype=object)) * self.itemsize * self.channels


def check_volume(path: Path) -> VolumeHeader:
    """The header of an NRRD or MetaImage file whose voxels are all there. Raises InputError for anything else."""
    nrrd = suffix_of(path) in (".nrrd", ".nhdr")
    header = _nrrd(path) if nrrd else _metaimage(path)
    if not 1 <= len(header.sizes) <= 5 or min(header.sizes) < 1:
        raise InputError(
            f"its header names the size {'×'.join(map(str, header.sizes)) or 'of nothing'}", where=path, remedy=_AGAIN
        )
    check_fits(2 * header.bytes, path)
    with header.data.open("rb") as file:
        if header.encoding == "text":
            file.seek(header.offset)
            _check_numbers(b"".join(inflated(file, "raw")), header, path)
        elif header.offset < 0:
            if file.seek(0, 2) < header.bytes:
                raise InputError("it is cut short", where=path, remedy=_AGAIN)
        else:
            file.seek(header.offset)
            check_length(file, header.encoding, header.bytes, path)
    return header


def _check_numbers(text: bytes, header: VolumeHeader, path: Path) -> None:
    wanted = header.bytes // header.itemsize
    found = len(text.split())
    if text[-1:].strip():  # the last number may lack digits
        raise InputError("its last line does not end: it is cut short", where=path, remedy=_AGAIN)
    if found != wanted:
        raise InputError(f"its header announces {wanted} numbers, {found} are there", where=path, remedy=_AGAIN)


def _text_header(path: Path, ends: Callable[[bytes], int]) -> tuple[list[str], int]:
    """The lines of the header, and the byte behind it as *ends* finds it. Raises InputError."""
    with path.open("rb") as file:
        data = file.read(_MOST_HEADER)
    end = ends(data)
    if end < 0:
        raise InputError("its header does not end", where=path, remedy=_AGAIN)
    if b"\0" in data[:end]:
        raise InputError("its header is damaged (it holds zero bytes)", where=path, remedy=_AGAIN)
    return data[:end].decode("utf-8", "replace").splitlines(), end


def _beside(name: str, path: Path) -> Path:
    """The file with the voxels, which must lie beside its header: a header must not read other files of the machine."""
    plain = name.strip()
    if plain != Path(plain).name or plain in ("", ".", "..") or "\\" in plain or ":" in plain or plain != name.strip():
        raise InputError(
            f"its header names a file elsewhere ({printable(plain)[:80]})",
            where=path,
            remedy="put header and voxels into one folder, with the plain name in the header",
        )
    data = path.with_name(plain)
    if data == path or not data.is_file():
        raise InputError(f"the file with its voxels, {printable(plain)[:80]}, is missing", where=path, remedy=_AGAIN)
    if data.is_symlink() and data.resolve().parent != path.resolve().parent:
        raise InputError("the file with its voxels is a link to elsewhere", where=path, remedy="copy the file itself")
    return data


def _no_external(name: str, path: Path) -> NoReturn:
    raise InputError(
        f"its header names another file ({printable(name)[:80]}), which a file of this kind must not",
        where=path,
        remedy="save header and voxels in one file",
    )


def _several_files(path: Path) -> NoReturn:
    raise InputError("its voxels lie in several files", where=path, remedy="save them in one file")


def _whole(text: str, name: str, path: Path) -> tuple[int, ...]:
    """Whole numbers of a header's line; nothing beyond what 64 bits hold."""
    parts = text.split()
    if not parts or not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts):
        raise InputError(f"its header is damaged ({name}: {printable(text)[:60]})", where=path, remedy=_AGAIN)
    return tuple(int(part) for part in parts)


def _once(fields: dict[str, str], name: str, value: str, path: Path) -> None:
    if name in fields and fields[name] != value:
        raise InputError(f"its header says two things of {printable(name)[:40]}", where=path, remedy=_AGAIN)
    fields[name] = value


# -- NRRD ------------------------------------------------------------------------------------------------------------


def _nrrd_end(data: bytes) -> int:
    """Behind the first empty line; a detached header may end with the file."""
    found = [at + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if (at := data.find(gap)) >= 0]
    return min(found) if found else (len(data) if len(data) < _MOST_HEADER else -1)


def _nrrd(path: Path) -> VolumeHeader:
    lines, end = _text_header(path, _nrrd_end)
    if not lines or not re.fullmatch(r"NRRD000[1-6]", lines[0].strip()):
        raise InputError("not an NRRD file, whatever its name says", where=path, remedy=_AGAIN)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#") or not line.strip():
            continue
        name, sign, value = line.partition(":")
        if not sign:
            raise InputError(f"its header is damaged ({printable(line)[:60]})", where=path, remedy=_AGAIN)
        if not value.startswith("="):  # a key of the program that wrote it, not of the format
            _once(fields, name.strip().lower().replace("datafile", "data file"), value.strip(), path)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise InputError(f"its header is damaged (no {name})", where=path, remedy=_AGAIN)
    sizes = _whole(fields["sizes"], "sizes", path)
    if _whole(fields["dimension"], "dimension", path) != (len(sizes),):
        raise InputError("its header names another number of sizes than of dimensions", where=path, remedy=_AGAIN)
    itemsize = _nrrd_itemsize(fields["type"])
    if itemsize is None:
        raise InputError(
            f"voxels of type {printable(fields['type'])[:40]} are no image", where=path, remedy="save numbers"
        )
    encoding = {"gz": "gzip", "bz2": "bzip2", "txt": "text", "ascii": "text"}.get(
        fields["encoding"].lower(), fields["encoding"].lower()
    )
    if encoding not in ("raw", "gzip", "bzip2", "text"):
        raise InputError(f"its encoding {printable(encoding)[:40]} is not read", where=path, remedy="save it as gzip")
    data, offset = path, end
    if "data file" in fields:
        if suffix_of(path) == ".nrrd":
            _no_external(fields["data file"], path)
        if fields["data file"].split()[:1] == ["LIST"] or "%" in fields["data file"]:
            _several_files(path)
        data, offset = _beside(fields["data file"], path), 0
    elif suffix_of(path) == ".nhdr":
        raise InputError("its header names no file with voxels", where=path, remedy=_AGAIN)
    offset = _skipped(fields, encoding, data, offset, path)
    return VolumeHeader(
        sizes=sizes,
        itemsize=itemsize,
        channels=1,
        encoding=encoding,
        data=data,
        offset=offset,
        notes=tuple(_nrrd_place(fields, path)),
        fields=fields,
    )


def _nrrd_itemsize(kind: str) -> int | None:
    """Bytes of a number of *kind* in any of the spellings that the format allows: uint16_t, unsigned short int …"""
    words = kind.lower().split()
    if match := re.fullmatch(r"u?int(8|16|32|64)(?:_t)?", "".join(words)):
        return int(match[1]) // 8
    named = " ".join(word for word in words if word not in ("signed", "unsigned"))
    short = {"uchar": "char", "ushort": "short", "uint": "int", "longlong": "long long", "ulonglong": "long long"}
    named = short.get(named, named)
    return _NRRD_TYPES.get(named) or _NRRD_TYPES.get(named.removesuffix(" int"))


def _skipped(fields: dict[str, str], encoding: str, data: Path, offset: int, path: Path) -> int:
    """The first byte of the voxels behind ``line skip`` and ``byte skip``."""
    (lines,) = _whole(fields.get("line skip", "0"), "line skip", path)[:1]
    (count,) = _whole(fields.get("byte skip", "0"), "byte skip", path)[:1]
    if lines < 0 or count < -1 or (encoding != "raw" and (count or lines)):
        raise InputError("its header skips bytes in a way that is not read", where=path, remedy="save it as gzip")
    if count == -1:
        return -1
    with data.open("rb") as file:
        file.seek(offset)
        for _ in range(min(lines, _MOST_HEADER)):
            file.readline()
        return file.tell() + count


def _nrrd_place(fields: dict[str, str], path: Path) -> list[str]:
    """Sentences on what the header leaves open of where the voxels lie. Raises InputError for other units than mm."""
    units = {u.strip().strip('"').lower() for u in re.findall(r'"[^"]*"|\S+', fields.get("space units", ""))}
    if units - {"mm", "millimeter", "millimeters", "millimetre", "", "none", "???", "s", "sec", "ms"}:
        raise InputError(
            f"it measures in {printable(fields['space units'])[:40]}, not in mm", where=path, remedy="save it in mm"
        )
    notes = []
    if "space directions" not in fields:
        if "spacings" not in fields:
            notes.append("its header gives no voxel size: taken as 1 mm")
        notes.append("the file stores no orientation: which side is left cannot be known")
    elif fields.get("space", "").lower() not in _SPACES:
        notes.append("its header does not name the patient's axes: taken as left, posterior, superior")
    if "nan" in fields.get("space directions", "").lower() or "nan" in fields.get("space origin", "").lower():
        raise InputError(
            "its header does not say where it lies", where=path, remedy="convert it again from the original images"
        )
    return notes


# -- MetaImage -------------------------------------------------------------------------------------------------------


def _meta_end(data: bytes) -> int:
    """Behind the line that names the file with the voxels, always the last one."""
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|\Z)", data, re.MULTILINE)
    return found.end() if found else -1


def _metaimage(path: Path) -> VolumeHeader:
    lines, end = _text_header(path, _meta_end)
    fields: dict[str, str] = {}
    for line in lines:
        name, sign, value = line.partition("=")
        if sign:
            _once(fields, name.strip(), value.strip(), path)
        elif line.strip():
            raise InputError(f"its header is damaged ({printable(line)[:60]})", where=path, remedy=_AGAIN)
    for name in ("NDims", "DimSize", "ElementType"):
        if name not in fields:
            raise InputError(f"its header is damaged (no {name})", where=path, remedy=_AGAIN)
    sizes = _whole(fields["DimSize"], "DimSize", path)
    if _whole(fields["NDims"], "NDims", path) != (len(sizes),):
        raise InputError("its header names another number of sizes than of dimensions", where=path, remedy=_AGAIN)
    (channels,) = _whole(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", path)[:1]
    if not 1 <= channels <= 1024:
        raise InputError(f"its header names {channels} channels", where=path, remedy=_AGAIN)
    itemsize = _META_TYPES.get(fields["ElementType"].upper())
    if itemsize is None:
        kind = printable(fields["ElementType"])[:40]
        raise InputError(f"voxels of type {kind} are not read", where=path, remedy="save it as MET_SHORT or MET_FLOAT")
    notes = _meta_place(fields, len(sizes), path)
    data, offset = _meta_data(fields["ElementDataFile"], end, path)
    (skip,) = _whole(fields.get("HeaderSize", "0"), "HeaderSize", path)[:1]
    packed = fields.get("CompressedData", "False").lower() in ("true", "1", "t", "y", "yes")
    binary = fields.get("BinaryData", "True").lower() in ("true", "1", "t", "y", "yes")
    if skip < -1 or (skip and (packed or data == path or not binary)):
        raise InputError("its header skips bytes in a way that is not read", where=path, remedy="save it again")
    return VolumeHeader(
        sizes=sizes,
        itemsize=itemsize,
        channels=channels,
        encoding="zlib" if packed else "raw" if binary else "text",
        data=data,
        offset=-1 if skip == -1 else offset + skip,
        notes=tuple(notes),
        fields=fields,
    )


def _meta_data(named: str, end: int, path: Path) -> tuple[Path, int]:
    if named.upper() == "LOCAL":
        return path, end
    if suffix_of(path) == ".mha":
        _no_external(named, path)
    if named.upper().startswith("LIST") or "%" in named:
        _several_files(path)
    return _beside(named, path), 0


def _meta_place(fields: dict[str, str], dimensions: int, path: Path) -> list[str]:
    notes = []
    sizes = fields.get("ElementSpacing", fields.get("ElementSize", ""))
    if not sizes:
        notes.append("its header gives no voxel size: taken as 1 mm")
    for name, count in (
        ("ElementSpacing", dimensions),
        ("ElementSize", dimensions),
        ("Offset", dimensions),
        ("Position", dimensions),
        ("Origin", dimensions),
        ("TransformMatrix", dimensions**2),
        ("Rotation", dimensions**2),
        ("Orientation", dimensions**2),
    ):
        if name not in fields:
            continue
        try:
            values = np.array([float(part) for part in fields[name].split()])
        except ValueError:
            values = np.zeros(0)
        if (
            len(values) != count
            or not np.isfinite(values).all()
            or (name.startswith("Element") and (values <= 0).any())
        ):
            raise InputError(
                f"its header does not say where it lies ({name}: {printable(fields[name])[:60]})",
                where=path,
                remedy="convert it again from the original images",
            )
    if not {"TransformMatrix", "Rotation", "Orientation"} & set(fields):
        notes.append("the file stores no orientation: which side is left cannot be known")
    return notes
