"""The LZW of TIFF 6.0 (section 13), which tifffile leaves to the package imagecodecs."""

from __future__ import annotations

_CLEAR, _END = 256, 257
_TABLE = (*(bytes((i,)) for i in range(256)), b"", b"")


def lzw_decode(data: bytes, /, *, out: object = None) -> bytes:
    """Decompress a strip, of which some writers leave out the end code. Raises ValueError for an impossible code."""
    del out  # tifffile's signature
    parts: list[bytes] = []
    table, previous = list(_TABLE), b""
    width, buffer, bits = 9, 0, 0
    for byte in data:
        buffer, bits = (buffer << 8 | byte) & 0xFFFFFF, bits + 8
        if bits < width:
            continue
        bits -= width
        code = buffer >> bits & (1 << width) - 1
        if code == _END:
            return b"".join(parts)
        if code == _CLEAR:
            table, previous, width = list(_TABLE), b"", 9
            continue
        if code < (len(table) if previous else _CLEAR):
            entry = table[code]
        elif previous and code == len(table):
            entry = previous + previous[:1]
        else:
            raise ValueError("an impossible LZW code")
        parts.append(entry)
        if previous:
            table.append(previous + entry[:1])
            if len(table) + 1 >= 1 << width and width < 12:  # one code early, as TIFF requires
                width += 1
        previous = entry
    return b"".join(parts)
