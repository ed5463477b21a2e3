"""Picture files of every kind that people save, for tests: bytes by name, and what they show."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Y, X = np.mgrid[:17, :23]
GREY = ((Y * 37 + X * 11) % 251).astype(np.uint8)
COLOUR = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
ALPHA = 255 - GREY
STACK = np.stack([GREY, GREY[::-1], GREY[:, ::-1]])
BINARY = GREY > 120
GREY_16 = GREY.astype(np.uint16) * 201 + 7
COLOUR_16 = COLOUR.astype(np.uint16) * 201 + 7
PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 70], [70, 80, 90]], np.uint8)


def as_channels(picture: NDArray[Any]) -> NDArray[Any]:
    """``(Y, X)`` or ``(Y, X, samples)`` → ``(C, 1, Y, X)``."""
    return np.moveaxis(np.atleast_3d(picture), -1, 0)[:, None]


def palette_image(index: NDArray[np.uint8], colours: NDArray[np.uint8] = PALETTE) -> Image.Image:
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes() + bytes(768 - colours.size))
    return image


def by_pillow(picture: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def by_tifffile(*arrays: NDArray[Any], **options: Any) -> bytes:
    """Several arrays are appended one by one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        for array in arrays:
            tifffile.imwrite(path, array, append=path.exists(), **options)
        return path.read_bytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(samples: NDArray[Any], depth: int, colour: int, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG by its specification, of kinds that Pillow does not write; ``samples`` ``(Y, X[, samples])``."""
    samples = np.atleast_3d(samples)
    height, width = samples.shape[:2]
    raw = b""
    for x, y, dx, dy in _PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[y::dy, x::dx]
        if part.size:
            raw += b"".join(b"\0" + _packed(row.ravel(), depth) for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def _packed(row: NDArray[Any], depth: int) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else np.uint8).tobytes()
    bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """A little-endian TIFF of one strip, by its specification."""
    tags = {273: 0, 278: 2**31, 279: len(data), **tags}
    directory_end = 8 + 2 + 12 * len(tags) + 4
    elsewhere, entries = b"", b""
    numbers = sum(len(v) for v in tags.values() if isinstance(v, tuple) and len(v) > 2)
    tags[273] = directory_end + 2 * numbers
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > 2:
            at = struct.pack("<I", directory_end + len(elsewhere))
            elsewhere += struct.pack(f"<{len(values)}H", *values)
            entries += struct.pack("<HHI", tag, 3, len(values)) + at
        else:
            entries += struct.pack("<HHII", tag, 4, 1, values[0])
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + elsewhere + data


_RAMP = tuple(10 * 257 * i for i in range(16))


def _kinds() -> dict[str, tuple[bytes, NDArray[Any] | None]]:
    """Name → the file, and ``(C, Z, Y, X)`` that it shows; None for what loses detail: there Pillow's word counts."""
    index = GREY % 5
    colours = as_channels(PALETTE[index])
    pages = {"save_all": True, "append_images": [Image.fromarray(page) for page in STACK[1:]]}
    wide = STACK.astype(np.uint16) * 201
    little = {"photometric": "minisblack"}
    grey, colour, stack = as_channels(GREY), as_channels(COLOUR), STACK[None]
    binary = as_channels(BINARY).astype(np.uint8) * 255
    with_alpha = np.dstack([COLOUR, ALPHA])
    return {
        "grey.png": (by_pillow(GREY, "PNG"), grey),
        "colour.png": (by_pillow(COLOUR, "PNG"), colour),
        "alpha.png": (by_pillow(with_alpha, "PNG"), colour),
        "palette.png": (by_pillow(palette_image(index), "PNG"), colours),
        "binary.png": (by_pillow(Image.fromarray(BINARY), "PNG"), binary),
        "grey-4-bits.png": (png(GREY % 16, 4, 0), as_channels(GREY % 16 * 17)),
        "grey-16.png": (by_pillow(GREY_16, "PNG"), as_channels(GREY_16)),
        "grey-16-with-transparent-value.png": (
            png(GREY_16, 16, 0, extra=chunk(b"tRNS", b"\0\7")),
            as_channels(GREY_16),
        ),
        "colour-16.png": (png(COLOUR_16, 16, 2), as_channels(COLOUR_16)),
        "colour-16-interlaced.png": (png(COLOUR_16, 16, 2, interlaced=True), as_channels(COLOUR_16)),
        "grey-alpha-16.png": (png(np.dstack([GREY_16, GREY]), 16, 4), as_channels(GREY_16)),
        "grey-alpha-16-interlaced.png": (
            png(np.dstack([GREY_16, GREY]), 16, 4, interlaced=True),
            as_channels(GREY_16),
        ),
        "colour-alpha-16.png": (png(np.dstack([COLOUR_16, GREY_16]), 16, 6), as_channels(COLOUR_16)),
        "interlaced.png": (png(COLOUR, 8, 2, interlaced=True), colour),
        "grey.jpg": (by_pillow(GREY, "JPEG"), None),
        "colour.jpg": (by_pillow(COLOUR, "JPEG", quality=95), None),
        "progressive.jpg": (by_pillow(COLOUR, "JPEG", progressive=True), None),
        "restarts.jpg": (by_pillow(COLOUR, "JPEG", restart_marker_blocks=1), None),
        "first.jpg": (by_pillow(COLOUR, "JPEG"), None),
        "grey.bmp": (by_pillow(GREY, "BMP"), grey),
        "colour.bmp": (by_pillow(COLOUR, "BMP"), colour),
        "binary.bmp": (by_pillow(Image.fromarray(BINARY), "BMP"), binary),
        "grey.gif": (by_pillow(GREY, "GIF"), grey),
        "palette.gif": (by_pillow(palette_image(index), "GIF", interlace=True), colours),
        "lossless.webp": (by_pillow(COLOUR, "WEBP", lossless=True), colour),
        "lossy.webp": (by_pillow(COLOUR, "WEBP"), None),
        "plain.tif": (by_tifffile(GREY), grey),
        "big-endian.tif": (by_tifffile(GREY_16, byteorder=">"), as_channels(GREY_16)),
        "bigtiff.tif": (by_tifffile(GREY, bigtiff=True), grey),
        "stack.tif": (by_tifffile(STACK, **little), stack),
        "stack-16.tif": (by_tifffile(wide, metadata=None, **little), wide[None]),
        "stack-in-one-page.tif": (by_tifffile(STACK, metadata={"axes": "ZYX"}, software="", **little), stack),
        "appended.tif": (by_tifffile(*STACK), stack),
        "appended-deflate.tif": (by_tifffile(*STACK, compression="zlib"), stack),
        "pillow-stack.tif": (by_pillow(STACK[0], "TIFF", **pages), stack),
        "pillow-stack-lzw.tif": (by_pillow(STACK[0], "TIFF", compression="tiff_lzw", **pages), stack),
        "imagej-zyx.tif": (by_tifffile(STACK, imagej=True, metadata={"axes": "ZYX"}), stack),
        "imagej-cyx.tif": (by_tifffile(wide, imagej=True, metadata={"axes": "CYX"}), wide[:, None]),
        "imagej-zcyx.tif": (
            by_tifffile(np.stack([wide, wide + 1]), imagej=True, metadata={"axes": "ZCYX"}),
            np.stack([wide, wide + 1], axis=1),
        ),
        "ome.tif": (by_tifffile(STACK, ome=True, metadata={"axes": "ZYX"}, **little), stack),
        "planar.tif": (by_tifffile(colour[:, 0], photometric="rgb", planarconfig="separate"), colour),
        "planar-16.tif": (
            by_tifffile(np.moveaxis(COLOUR_16, -1, 0), photometric="rgb", planarconfig="separate"),
            as_channels(COLOUR_16),
        ),
        "colour-16.tif": (by_tifffile(COLOUR_16, photometric="rgb"), as_channels(COLOUR_16)),
        "colour-stack.tif": (
            by_tifffile(np.stack([COLOUR, COLOUR[::-1]]), photometric="rgb"),
            np.stack([colour[:, 0], colour[:, 0, ::-1]], axis=1),
        ),
        "tiles.tif": (by_tifffile(GREY, tile=(16, 16)), grey),
        "tiles-deflate.tif": (by_tifffile(STACK, tile=(16, 16), compression="zlib", **little), stack),
        "strips.tif": (by_tifffile(GREY, rowsperstrip=4), grey),
        "predictor.tif": (
            by_tifffile(COLOUR_16, photometric="rgb", compression="zlib", predictor=2),
            as_channels(COLOUR_16),
        ),
        "lzw.tif": (by_pillow(GREY, "TIFF", compression="tiff_lzw"), grey),
        "lzw-16.tif": (by_pillow(GREY_16, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), as_channels(GREY_16)),
        "lzw-colour.tif": (by_pillow(COLOUR, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), colour),
        "packbits.tif": (by_pillow(GREY, "TIFF", compression="packbits"), grey),
        "deflate.tif": (by_pillow(COLOUR, "TIFF", compression="tiff_adobe_deflate"), colour),
        "jpeg.tif": (by_pillow(COLOUR, "TIFF", compression="jpeg"), None),
        "fax.tif": (by_pillow(Image.fromarray(BINARY), "TIFF", compression="group4"), binary),
        "fax-3.tif": (by_pillow(Image.fromarray(BINARY), "TIFF", compression="group3"), binary),
        "binary.tif": (by_pillow(Image.fromarray(BINARY), "TIFF"), binary),
        "binary-miniswhite.tif": (by_tifffile(~BINARY, photometric="miniswhite"), binary),
        "miniswhite.tif": (by_tifffile(GREY, photometric="miniswhite"), 255 - grey),
        "miniswhite-16.tif": (by_tifffile(GREY_16, photometric="miniswhite"), 65535 - as_channels(GREY_16)),
        "miniswhite-stack.tif": (by_tifffile(STACK, photometric="miniswhite"), 255 - stack),
        "miniswhite-lzw.tif": (by_pillow(GREY, "TIFF", compression="tiff_lzw", tiffinfo={262: 0}), grey),
        "palette.tif": (by_pillow(palette_image(index), "TIFF"), colours),
        "palette-4-bits.tif": (
            tiff({256: 2, 257: 1, 258: 4, 259: 1, 262: 3, 277: 1, 320: (*_RAMP, *_RAMP[::-1], *(0,) * 16)}, b"\x12"),
            np.array([10, 20, 140, 130, 0, 0], np.uint8).reshape(3, 1, 1, 2),
        ),
        "grey-alpha.tif": (by_pillow(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "TIFF"), grey),
        "cmyk.tif": (
            by_pillow(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
            as_channels(np.asarray(Image.fromarray(COLOUR).convert("CMYK").convert("RGB"))),
        ),
        "int64.tif": (by_tifffile(GREY.astype(np.int64) - 100), grey.astype(np.int64) - 100),
        "uint64.tif": (by_tifffile(GREY.astype(np.uint64)), grey),
        "float64.tif": (by_tifffile(GREY / 3), grey / 3),
        "float16.tif": (by_tifffile((GREY / 4).astype(np.float16)), grey / 4),
        "float32-deflate.tif": (by_tifffile((GREY / 4).astype(np.float32), compression="zlib"), grey / 4),
    }


def _by_pillow(data: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(data)) as picture:
        return as_channels(np.asarray(picture))


KINDS = {
    name: (data, _by_pillow(data) if expected is None else expected) for name, (data, expected) in _kinds().items()
}
