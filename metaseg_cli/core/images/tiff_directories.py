"""The directories of a TIFF (one for each page), checked: everything they point to lies in the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from metaseg_cli.core.images.picture import damaged

Directory = dict[int, tuple[int, ...] | bytes]  # tag → whole numbers, or the bytes of other values

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, PLANAR, COLORMAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 274, 277, 284, 320, 338, 339
STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 273, 279, 324, 325
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MOST_PAGES = 20_000  # more than any stack; a damaged file may point on for ever
_ALIKE = {
    WIDTH: 0,
    HEIGHT: 0,
    BITS: 1,
    PHOTOMETRIC: 1,
    SAMPLES: 1,
    PLANAR: 1,
    ORIENTATION: 1,
    COLORMAP: 0,
    EXTRA_SAMPLES: 0,
    SAMPLE_FORMAT: 1,
}  # with the value that a missing tag means


def is_tiff(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is a TIFF or a BigTIFF."""
    return start[:4] in _MAGIC


def number(directory: Directory, tag: int, default: int) -> int:
    """Return the first number of a tag."""
    value = directory.get(tag, ())
    return int(value[0]) if value else default


def alike(a: Directory, b: Directory) -> bool:
    """Return whether two pages can be slices of one stack: size, type, colours and orientation are the same."""
    return all(_values(a, tag, default) == _values(b, tag, default) for tag, default in _ALIKE.items())


def _values(directory: Directory, tag: int, default: int) -> tuple[int, ...]:
    """Return a tag's numbers; a single one where all samples have the same."""
    values = tuple(directory.get(tag) or (default,))
    return values[:1] if len(set(values)) == 1 else values


def is_main(directory: Directory) -> bool:
    """Return whether a page is an image of its own: not a reduced copy of another, nor a transparency mask."""
    return number(directory, SUBFILE, 0) & 0b101 == 0 and number(directory, OLD_SUBFILE, 1) != 2


def read_directories(path: Path) -> list[Directory]:
    """Return the directories of a TIFF, in order. Raises InputError for a truncated file and for damaged ones."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        order, big = ("<" if start[:2] == b"II" else ">"), start[2:4].strip(b"\0") == b"+"
        offsets = struct.unpack_from(order + ("Q" if big else "I"), start.ljust(16, b"\0"), 8 if big else 4)
        offset, seen, directories = int(offsets[0]), set[int](), list[Directory]()
        while offset:
            if offset in seen or len(seen) > _MOST_PAGES:
                raise damaged(path, "its pages go round in a circle" if offset in seen else "too many pages")
            seen.add(offset)
            directory, offset = _directory(file, offset, order, big, size, path)
            directories.append(directory)
    if not directories:
        raise damaged(path, "no page is in it")
    for directory in directories:
        _check_segments(directory, size, path)
    return directories


def _directory(file: BinaryIO, offset: int, order: str, big: bool, size: int, path: Path) -> tuple[Directory, int]:
    """Read one directory; also return where the next one is (0: nowhere)."""
    count_size, entry_size, pointer_size = (8, 20, 8) if big else (2, 12, 4)
    count = int.from_bytes(_bytes(file, offset, count_size, size, path), "little" if order == "<" else "big")
    if not count or count > 4096:
        raise damaged(path, f"a page with {count} tags")
    data = _bytes(file, offset + count_size, count * entry_size + pointer_size, size, path)
    directory: Directory = {}
    for start in range(0, count * entry_size, entry_size):
        tag, kind = struct.unpack_from(order + "HH", data, start)
        (values,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + 4)
        at = start + (12 if big else 8)
        length = values * _SIZES.get(kind, 0)
        if length > pointer_size:
            (elsewhere,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
            value = _bytes(file, elsewhere, length, size, path)
        else:
            value = data[at : at + length]
        directory[tag] = struct.unpack(f"{order}{values}{_WHOLE[kind]}", value) if kind in _WHOLE else value
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, count * entry_size)
    return directory, int(following)


def _bytes(file: BinaryIO, offset: int, length: int, size: int, path: Path) -> bytes:
    if offset + length > size:
        raise damaged(path, "the file ends too early")
    file.seek(offset)
    return file.read(length)


def _check_segments(directory: Directory, size: int, path: Path) -> None:
    """Check that every strip or tile lies in the file. Raises InputError."""
    where, lengths = directory.get(STRIPS), directory.get(STRIP_BYTES)
    if TILES in directory:
        where, lengths = directory[TILES], directory.get(TILE_BYTES)
    if not where or isinstance(where, bytes) or isinstance(lengths, bytes):
        raise damaged(path, "a page without pixels")
    if lengths is None:  # old writers omit it for uncompressed pages
        lengths = (1,) * len(where)
    if len(where) != len(lengths):
        raise damaged(path, "the lists of its strips disagree")
    if any(length == 0 or start + length > size for start, length in zip(where, lengths, strict=True)):
        raise damaged(path, "the file ends too early, or strips are empty")
