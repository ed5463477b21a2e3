"""LZW decodes to what was encoded, whatever the data and the writer, and refuses what cannot be."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import STRIPBYTECOUNTS, STRIPOFFSETS

from metaseg_cli.core.images.tiff_lzw import lzw_decode


def strips(array: np.ndarray) -> tuple[list[bytes], int]:
    """The compressed strips that Pillow (libtiff) writes of *array*, and the rows of each."""
    file = BytesIO()
    Image.fromarray(array).save(file, "TIFF", compression="tiff_lzw")
    with Image.open(file) as picture:
        tags = picture.tag_v2
        offsets, counts, rows = tags[STRIPOFFSETS], tags[STRIPBYTECOUNTS], tags[278]
    data = file.getvalue()
    return [data[at : at + count] for at, count in zip(offsets, counts, strict=True)], rows


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 255), st.integers(0, 2**32 - 1))
def test_what_libtiff_encodes_is_decoded(height: int, width: int, grey_levels: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, grey_levels + 1, (height, width)).astype(np.uint8)
    parts, _ = strips(array)
    assert b"".join(map(lzw_decode, parts)) == array.tobytes()


def test_a_table_that_fills_up_and_starts_again() -> None:
    array = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    parts, _ = strips(array)
    assert b"".join(map(lzw_decode, parts)) == array.tobytes()


def test_repetition_uses_the_code_that_is_being_made() -> None:
    array = np.zeros((200, 200), np.uint8)
    parts, _ = strips(array)
    assert b"".join(map(lzw_decode, parts)) == array.tobytes()


def test_an_impossible_code_is_refused() -> None:
    # 256 (clear), 65, then 300, which no table holds yet: nine bits each
    bits = f"{256:09b}{65:09b}{300:09b}".ljust(32, "0")
    with pytest.raises(ValueError, match="impossible"):
        lzw_decode(int(bits, 2).to_bytes(4, "big"))
