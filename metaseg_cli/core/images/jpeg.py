"""Whether a JPEG is whole: decoders fill what is missing with grey."""

from __future__ import annotations

from pathlib import Path

from metaseg_cli.errors import InputError

_END, _START_OF_SCAN = 0xD9, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: restarts, start of image


def is_jpeg(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a JPEG."""
    return start[:3] == b"\xff\xd8\xff"


def check_jpeg(path: Path) -> None:
    """Raise InputError unless the first picture of the file goes to its end marker."""
    data = path.read_bytes()
    at = 2
    while at + 1 < len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # padding between segments
            at += 1
        elif marker == _END:
            return
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == _START_OF_SCAN:
                at = _next_marker(data, at)
    raise InputError("damaged (the file ends too early)", where=path, remedy="copy it again from its source")


def _next_marker(data: bytes, at: int) -> int:
    """Where the first marker after a scan's compressed data is."""
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        if data[at + 1] != 0 and data[at + 1] not in _ALONE and data[at + 1] != 0xFF:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    return len(data)
