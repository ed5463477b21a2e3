"""Count the bytes of an image file: one that holds less or more than its header says is damaged."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NoReturn

from metaseg_cli.errors import COPY_AGAIN, InputError

_CHUNK = 2**20  # bytes read at once


def inflate(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Yield what *file* holds from here on, in pieces of at most a few MB: *encoding* is raw, gzip, zlib or bzip2.

    Checksums are checked. Raises ValueError, zlib.error or OSError for damaged data, EOFError where it ends too early.
    """
    if encoding == "raw":
        yield from iter(lambda: file.read(_CHUNK), b"")
        return
    if encoding == "bzip2":
        with closing(bz2.BZ2File(file)) as stream:
            yield from iter(lambda: stream.read(_CHUNK), b"")
        return
    wbits = {"gzip": 31, "zlib": 47}[encoding]  # 47: either header, as writers of MetaImage use both
    stream_of = zlib.decompressobj(wbits)
    started = False
    while chunk := file.read(_CHUNK):
        while chunk:
            if stream_of.eof:  # another member, or padding after the last one
                if not chunk.strip(b"\0"):
                    break
                stream_of = zlib.decompressobj(wbits)
            started = True
            # A few MB at a time: a few bytes may inflate to gigabytes.
            yield stream_of.decompress(chunk, 4 * _CHUNK)
            chunk = stream_of.unused_data if stream_of.eof else stream_of.unconsumed_tail
    if not started or not stream_of.eof:
        raise EOFError("the compressed data end too early")


def read_exactly(file: BinaryIO, encoding: str, size: int, path: Path) -> bytearray:
    """Return the rest of *file*, which must inflate to *size* bytes. Raises InputError for less and for more."""
    data = bytearray()
    for piece in inflate(file, encoding):
        data += piece
        if len(data) > size:
            _too_many(size, path)
    if len(data) < size:
        _too_few(size, len(data), path)
    return data


def _too_few(size: int, found: int, path: Path) -> NoReturn:
    raise InputError(
        f"it is cut short: its header announces {size} bytes, {found} are there", where=path, remedy=COPY_AGAIN
    )


def _too_many(size: int, path: Path) -> NoReturn:
    raise InputError(
        f"it holds more than the {size} bytes that its header announces: its size, voxel type or data offset is wrong",
        where=path,
        remedy="save it again with the program that made it",
    )
