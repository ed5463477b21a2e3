"""Check whether a JPEG is complete: decoders silently fill what is missing with grey."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from metaseg_cli.core.images.picture import damaged

_END, _START_OF_SCAN = 0xD9, 0xDA
_MOST_SCANS = 100  # a progressive JPEG has about ten, and each is a pass over all pixels
_ARITHMETIC = (0xC9, 0xCA, 0xCB)  # frames whose codes may end in zeros that are left out
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: restarts, start of image
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_MORE = bytes((37 * i) % 251 for i in range(1, 200))  # codes of all lengths, and no marker


def is_jpeg(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is a JPEG."""
    return start[:3] == b"\xff\xd8\xff"


def load_jpeg(opened: Image.Image, path: Path) -> None:
    """Decode the first picture of the file. Raises InputError unless it has its end marker and the codes of all pixels.

    A decoder that has found all pixels of a scan skips to the next marker. So codes inserted there change nothing
    unless pixels are missing.
    """
    data = path.read_bytes()
    *scans, end = _ends(data, path)
    parts = [data[a:b] for a, b in zip([0, *scans], [*scans, end], strict=True)]
    if len(scans) > _MOST_SCANS:
        raise damaged(path, "some of its pixels are missing")
    opened.load()
    if ImageChops.difference(opened, JpegImageFile(io.BytesIO(_MORE.join(parts)))).getbbox():
        raise damaged(path, "some of its pixels are missing")


def _ends(data: bytes, path: Path) -> list[int]:
    """Return where the Huffman codes of each scan end, and where the picture ends.

    Raises InputError when there is no end marker.
    """
    at, found, arithmetic = 2, list[int](), False
    while at + 1 < len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # padding between segments
            at += 1
        elif marker == _END:
            return [*([] if arithmetic else found), at + 2]
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == _START_OF_SCAN:
                at = _next_marker(data, at)
                found.append(at)
            arithmetic = arithmetic or marker in _ARITHMETIC
    raise damaged(path, "the file ends too early")


def _next_marker(data: bytes, at: int) -> int:
    """Return the position of the first marker behind a scan's data; 0xFF00, restarts and fill bytes are not markers."""
    found = _MARKER.search(data, at)
    return found.start() if found else len(data)
