"""A picture that was cut or damaged is refused, or gives exactly what the whole one gives."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from metaseg_cli.core.images import read_image, read_mask
from metaseg_cli.errors import InputError
from tests.picture_files import GREY, KINDS, by_pillow, by_tifffile, chunk, png, tiff

_NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_every_prefix_is_refused_or_gives_the_whole(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, expected = KINDS[name]
    path = tmp_path / name
    lengths = {*range(0, len(data), 7), *range(max(0, len(data) - 40), len(data)), *range(16)}
    refused: list[InputError] = []
    for length in sorted(lengths - {len(data)}):
        path.write_bytes(data[:length])
        try:
            array = read_image(path).array
        except InputError as error:
            refused.append(error)
            continue
        np.testing.assert_array_equal(array, expected, err_msg=f"{length} of {len(data)} bytes")
    assert all(error.remedy for error in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", KINDS)
def test_what_follows_a_whole_file_changes_nothing(tmp_path: Path, name: str) -> None:
    data, expected = KINDS[name]
    (tmp_path / name).write_bytes(data + b"\0trailing" * 9)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damage_raises_nothing_but_input_errors(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, _ = KINDS[name]
    chance = random.Random(name)
    refused: list[InputError] = []
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 4))):
            place = chance.randrange(min(len(data), chance.choice((40, 300, len(data)))))
            damaged[place] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        (tmp_path / name).write_bytes(damaged)
        for read in (read_image, read_mask):
            try:
                read(tmp_path / name)
            except InputError as error:
                refused.append(error)
    assert all(error.where and error.remedy for error in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith(".png")])
def test_no_damaged_byte_of_a_png_goes_unseen(tmp_path: Path, name: str) -> None:
    data, _ = KINDS[name]
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError):
            read_image(tmp_path / name)


def _taller(data: bytes, place: int, kind: str) -> bytes:
    """*data* whose header promises twice as many rows."""
    (height,) = struct.unpack_from(kind, data, place)
    return data[:place] + struct.pack(kind, 2 * height) + data[place + struct.calcsize(kind) :]


def _half_scan(data: bytes) -> bytes:
    start = data.find(b"\xff\xda")
    return data[: start + (len(data) - start) // 2] + b"\xff\xd9"


_JPEG, _GIF = by_pillow(_NOISE, "JPEG"), by_pillow(_NOISE, "GIF")
_SHORT = {
    "rows.png": png(GREY, 8, 0).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 23, 17, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 23, 34, 8, 0, 0, 0, 0)),
    ),
    "rows.jpg": _taller(_JPEG, _JPEG.find(b"\xff\xc0") + 5, ">H"),
    "half.jpg": _half_scan(_JPEG),
    "half-progressive.jpg": _half_scan(by_pillow(_NOISE, "JPEG", progressive=True)),
    "rows.bmp": _taller(by_pillow(_NOISE, "BMP"), 22, "<i"),
    "rows.gif": _taller(_taller(_GIF, 8, "<H"), _GIF.find(b"\x2c\0\0\0\0") + 7, "<H"),
    "rows.tif": tiff({256: 8, 257: 9, 258: 8, 259: 1, 262: 1, 277: 1}, bytes(64)),
    "rows-deflate.tif": tiff({256: 8, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1}, zlib.compress(bytes(64))),
    "rows-packbits.tif": tiff({256: 8, 257: 9, 258: 8, 259: 32773, 262: 1, 277: 1}, b"\xc1\0"),
    "rows-lzw.tif": tiff({256: 8, 257: 9, 258: 8, 259: 5, 262: 1, 277: 1}, b"\x80\x00\x40\x20\x20"),
    "strips.tif": tiff({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 4}, bytes(64)),
}


@pytest.mark.parametrize("name", _SHORT)
def test_fewer_pixels_than_the_header_promises_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_SHORT[name])
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / name)


_HUGE = {"width": 2**16 - 1, "height": 2**16 - 1}
_BOMBS = {
    "size.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 16, 6, 0, 0, 0)),
    "size.jpg": _JPEG[: _JPEG.find(b"\xff\xc0") + 5] + b"\xff\xff\xff\xff" + _JPEG[_JPEG.find(b"\xff\xc0") + 9 :],
    "size.tif": tiff({256: 65535, 257: 65535, 258: 8, 259: 1, 262: 1, 277: 1}, bytes(64)),
    "deflate.tif": tiff({256: 65535, 257: 65535, 258: 8, 259: 8, 262: 1, 277: 1}, zlib.compress(bytes(2**22))),
    "proportion.tif": tiff({256: 40000, 257: 40000, 258: 8, 259: 8, 262: 1, 277: 1}, zlib.compress(bytes(2**30))),
    "strip.tif": tiff({256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1}, zlib.compress(bytes(2**30))),
    "circle.tif": tiff({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1}, bytes(64)).replace(
        struct.pack("<HHII", 279, 4, 1, 64) + bytes(4), struct.pack("<HHII", 279, 4, 1, 64) + struct.pack("<I", 8)
    ),
}


@pytest.mark.parametrize("name", _BOMBS)
def test_a_small_file_that_promises_gigabytes_is_refused_before_they_are_made(tmp_path: Path, name: str) -> None:
    import tracemalloc

    (tmp_path / name).write_bytes(_BOMBS[name])
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()
    assert caught.value.remedy


def test_a_stack_cut_between_its_pages_is_refused(tmp_path: Path) -> None:
    whole, first = by_tifffile(*KINDS["stack.tif"][1][0], metadata=None), by_tifffile(GREY, metadata=None)
    (tmp_path / "a.tif").write_bytes(whole[: len(first)])
    with pytest.raises(InputError, match="ends too early"):
        read_image(tmp_path / "a.tif")
