"""Check that a DICOM file is complete: every element, item and fragment lies inside its container and the file.

pydicom silently returns what it could read of a truncated file. This walk over tags and lengths (PS3.5 7) does not read
values, and finds the place where the file ends too early.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"),
    *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_PIXELS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
_IMPLICIT, _BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_MOST_RATIO, _SMALL = 200, 2**28  # of inflating
_DEEPEST = 40  # nested sequences: real objects have fewer than ten
Tag = tuple[int, int]


class BrokenStructure(Exception):
    """The file ends too early, or its lengths contradict one another; the message says where."""


def looks_like_dicom(head: bytes) -> bool:
    """Return whether a file that starts with *head* is DICOM: by DICM at byte 128, or by its first elements.

    Files without preamble start with group 2 or 8; three elements in a row with known value representations (or, in
    implicit VR, short even lengths) and rising tags are not a coincidence.
    """
    if head[128:132] == b"DICM":
        return True
    return any(_three_elements(head, implicit=i, order=o) for i, o in ((False, "<"), (False, ">"), (True, "<")))


def _three_elements(head: bytes, *, implicit: bool, order: str) -> bool:
    at, before = 0, (0, 0)
    for number in range(3):
        if at + 12 > len(head):
            return False
        tag = struct.unpack_from(f"{order}HH", head, at)
        if tag[0] not in ((2, 8) if number == 0 else (2, 8, 0x10, 0x18, 0x20)) or tag <= before:
            return False
        if implicit and tag[0] != 2:
            length, start = struct.unpack_from(f"{order}L", head, at + 4)[0], at + 8
        elif (vr := head[at + 4 : at + 6]) in _LONG and vr != b"SQ":
            length, start = struct.unpack_from(f"{order}L", head, at + 8)[0], at + 12
        elif vr in _SHORT:
            length, start = struct.unpack_from(f"{order}H", head, at + 6)[0], at + 8
        else:
            return False
        if length % 2 or length > 1024:
            return False
        at, before = start + length, (tag[0], tag[1])
    return True


def check_structure(data: bytes, is_sequence: Callable[[Tag], bool]) -> None:
    """Walk over a whole file's bytes. *is_sequence* knows, for implicit VR, which tags are sequences.

    Raises BrokenStructure.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    syntax = ""
    walk = _Walk(data, implicit=False, order="<", is_sequence=is_sequence)
    while data[at : at + 2] == b"\x02\x00":
        if data[at + 4 : at + 6] not in _LONG | _SHORT:
            raise BrokenStructure(f"its meta header is damaged at byte {at}")
        tag, _, length, start = walk.element_header(at, len(data))
        if length == _UNDEFINED or start + length > len(data):
            raise BrokenStructure("it ends in the middle of its meta header")
        if tag == (0x0002, 0x0010):
            syntax = data[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    if syntax == DEFLATED:
        data, at = _inflated(data[at:]), 0
    implicit, order = _encoding(syntax, data, at)
    walk = _Walk(data, implicit=implicit, order=order, is_sequence=is_sequence)
    walk.data_set(at, len(data), delimited=False, depth=0)


def _encoding(syntax: str, data: bytes, at: int) -> tuple[bool, str]:
    """Return whether VRs are implicit, and the byte order: of *syntax*, or guessed from the first element."""
    if syntax:
        return syntax == _IMPLICIT, ">" if syntax == _BIG_ENDIAN else "<"
    if data[at + 4 : at + 6] not in _LONG | _SHORT:
        return True, "<"
    return False, ">" if struct.unpack_from("<H", data, at)[0] >= 1024 else "<"


def _inflated(data: bytes) -> bytes:
    stream, most = zlib.decompressobj(-zlib.MAX_WBITS), max(_SMALL, _MOST_RATIO * len(data))
    inflated = stream.decompress(data, most)
    if stream.unconsumed_tail:
        raise BrokenStructure(f"it would inflate to more than {most // 2**20} MiB")
    if not stream.eof:
        raise BrokenStructure("it ends in the middle of its deflated data set")
    return inflated


class _Walk:
    """The recursion over data sets, sequences and items of one encoding."""

    def __init__(self, data: bytes, *, implicit: bool, order: str, is_sequence: Callable[[Tag], bool]) -> None:
        self.data, self.implicit, self.is_sequence = data, implicit, is_sequence
        self._tag, self._short, self._long = (struct.Struct(order + code) for code in ("HH", "H", "L"))

    def data_set(self, at: int, end: int, *, delimited: bool, depth: int) -> int:
        """Walk from *at* up to *end*, or to its delimiter; return where it stopped."""
        if depth > _DEEPEST:
            raise BrokenStructure(f"its sequences are nested more than {_DEEPEST} deep")
        seen: set[Tag] = set()
        while at < end:
            if end - at < 8:
                return self._padding(at, end)
            tag, vr, length, start = self.element_header(at, end)
            if tag == _ITEM_END and delimited:
                return start
            if tag == (0, 0) and not depth:
                return self._padding(at, end)
            if tag[0] == 0xFFFE or tag in seen:
                raise BrokenStructure(f"it holds {_text(tag)} where that cannot stand, at byte {at}")
            seen.add(tag)
            at = self._value(tag, vr, length, start, end, depth)
        if delimited:
            raise BrokenStructure("it ends in the middle of an item")
        return at

    def element_header(self, at: int, end: int) -> tuple[Tag, bytes, int, int]:
        """Return tag, value representation, length, and where the value starts."""
        group, element = self._tag.unpack_from(self.data, at)
        tag, vr = (group, element), self.data[at + 4 : at + 6]
        if group == 0xFFFE or self.implicit or not b"AA" <= vr <= b"ZZ":
            return tag, b"", self._long.unpack_from(self.data, at + 4)[0], at + 8
        if vr not in _LONG:
            return tag, vr, self._short.unpack_from(self.data, at + 6)[0], at + 8
        if at + 12 > end:
            raise BrokenStructure(f"it ends in the middle of {_text(tag)}")
        return tag, vr, self._long.unpack_from(self.data, at + 8)[0], at + 12

    def _value(self, tag: Tag, vr: bytes, length: int, start: int, end: int, depth: int) -> int:
        if length != _UNDEFINED:
            if start + length > end:
                missing = start + length - end
                raise BrokenStructure(f"{_text(tag)} lacks {missing} of its {length} bytes")
            if vr == b"SQ" or (not vr and self.is_sequence(tag)):
                self._items(tag, start, start + length, delimited=False, depth=depth)
            return start + length
        if tag in _PIXELS:
            return self._fragments(tag, start, end)
        if vr == b"UN" and not self.implicit:  # its items are in implicit VR (PS3.5 6.2.2)
            self.implicit = True
            try:
                return self._items(tag, start, end, delimited=True, depth=depth)
            finally:
                self.implicit = False
        return self._items(tag, start, end, delimited=True, depth=depth)

    def _items(self, tag: Tag, at: int, end: int, *, delimited: bool, depth: int) -> int:
        while at < end:
            if end - at < 8:
                break
            found, _, length, start = self.element_header(at, end)
            if found == _SEQUENCE_END and delimited:
                return start
            if found != _ITEM or (length != _UNDEFINED and start + length > end):
                raise BrokenStructure(f"{_text(tag)} ends in the middle of an item")
            if length == _UNDEFINED:
                at = self.data_set(start, end, delimited=True, depth=depth + 1)
            else:
                at = start + length
                self.data_set(start, at, delimited=False, depth=depth + 1)
        if delimited or at < end:
            raise BrokenStructure(f"it ends in the middle of {_text(tag)}")
        return at

    def _fragments(self, tag: Tag, at: int, end: int) -> int:
        while end - at >= 8:
            found, _, length, start = self.element_header(at, end)
            if found == _SEQUENCE_END:
                return start
            if found != _ITEM or length == _UNDEFINED or start + length > end:
                raise BrokenStructure("its compressed pixels end in the middle of a fragment")
            at = start + length
        raise BrokenStructure(f"it ends in the middle of {_text(tag)}: its compressed pixels are cut off")

    def _padding(self, at: int, end: int) -> int:
        """Accept zeros, which some archives append; anything else is a torn element. Raises BrokenStructure."""
        if self.data[at:end].strip(b"\0"):
            raise BrokenStructure(f"it ends in the middle of an element, at byte {at}")
        return end


def _text(tag: Tag) -> str:
    return f"({tag[0]:04X},{tag[1]:04X})"
