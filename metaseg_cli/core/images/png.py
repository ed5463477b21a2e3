"""What Pillow ignores in PNG: checksums of the pixels, their number, and the lower 8 of 16 bits."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaseg_cli.core.images.picture import check_size, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK = 1 << 16  # bytes inflated at once


@dataclass(frozen=True)
class PngHeader:
    """The chunk IHDR: size in pixels, bits of a sample, kind of colour, whether it is interlaced."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def raw_bytes(self) -> int:
        """How many bytes the pixels have before compression, each row with its filter's number."""
        bits = self.depth * _SAMPLES[self.colour]
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = (((self.width - x + dx - 1) // dx, (self.height - y + dy - 1) // dy) for x, y, dx, dy in passes)
        return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def check_png(path: Path) -> PngHeader:
    """Return the header of a PNG after checking every checksum and the number of pixels. Raises InputError."""
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        kind, data = _chunk(file, path)
        if kind != b"IHDR" or len(data) != 13:
            raise damaged(path, "its header is missing")
        header = _header(data, path)
        inflate, remaining = zlib.decompressobj(), header.raw_bytes
        while kind != b"IEND":
            kind, data = _chunk(file, path)
            if kind == b"IDAT" and remaining > 0:
                remaining -= _inflated(inflate, data, remaining, path)
    if remaining > 0:
        raise damaged(path, "some of its pixels are missing")
    return header


def _header(data: bytes, path: Path) -> PngHeader:
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data)
    if not width or not height or depth not in _DEPTHS.get(colour, ()) or interlace > 1:
        raise damaged(path, "its header is not valid")
    check_size(width, height, path)
    return PngHeader(width, height, depth, colour, interlace == 1)


def _chunk(file: BinaryIO, path: Path) -> tuple[bytes, bytes]:
    head = file.read(8)
    length = int.from_bytes(head[:4], "big")
    data = file.read(length) if len(head) == 8 and length < 1 << 31 else b""
    checksum = file.read(4)
    if len(head) < 8 or len(data) < length or len(checksum) < 4:
        raise damaged(path, "the file ends too early")
    if zlib.crc32(data, zlib.crc32(head[4:])) != int.from_bytes(checksum, "big"):
        raise damaged(path, "a checksum is wrong")
    return head[4:], data


def _inflated(inflate: zlib._Decompress, data: bytes, most: int, path: Path) -> int:
    """Return the inflated length of *data*, counted up to *most*."""
    count = 0
    try:
        while data and count < most and not inflate.eof:
            count += len(inflate.decompress(data, _BLOCK))
            data = inflate.unconsumed_tail
    except zlib.error as error:
        raise damaged(path, str(error)) from error
    return count


def read_sixteen_bits(path: Path, header: PngHeader) -> NDArray[np.uint16]:
    """Read ``(Y, X, samples)`` of a PNG in colour or with alpha, with all 16 bits.

    Pillow unpacks the upper bytes of such a PNG; with the other byte order it unpacks the lower ones.
    """
    if header.colour == GREY_ALPHA:  # the four bytes of a pixel as they come
        four = _unpacked(path, "RGBA").astype(np.uint16)
        return four[..., 0::2] * np.uint16(256) + four[..., 1::2]
    name = "RGB" if header.colour == RGB else "RGBA"
    values = _unpacked(path, f"{name};16B").astype(np.uint16)
    values *= 256
    values += _unpacked(path, f"{name};16L")
    return values


def _unpacked(path: Path, layout: str) -> NDArray[np.uint8]:
    with Image.open(path, formats=("PNG",)) as picture:
        picture.tile = [tile._replace(args=layout) for tile in picture.tile]
        return np.asarray(picture)
