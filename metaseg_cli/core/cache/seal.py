"""A checksum in front of each HDF5 file of the prepared folder, in HDF5's user block.

HDF5's own checksums (Fletcher-32 per chunk) double the time of every read; this one is checked once, when a file opens.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py

from metaseg_cli.errors import InputError

_BLOCK = 512  # bytes, the smallest user block of HDF5
_MARK = b"metaseg sha256 "


def file_in_memory() -> h5py.File:
    """Return a new HDF5 file in memory; ``seal`` returns its bytes."""
    return h5py.File("memory", "w", driver="core", backing_store=False, userblock_size=_BLOCK)


def seal(file: h5py.File) -> bytes:
    """Return the bytes of *file* with their checksum in front."""
    file.flush()
    image: bytes = file.id.get_file_image()
    return (_MARK + hashlib.sha256(image).hexdigest().encode()).ljust(_BLOCK, b"\n") + image


def check_seal(path: Path, remedy: str) -> None:
    """Raise InputError unless *path* is unchanged since ``seal``."""
    with path.open("rb") as file:
        block = file.read(_BLOCK)
        found = hashlib.file_digest(file, "sha256").hexdigest() if block.startswith(_MARK) else ""
    if block != (_MARK + found.encode()).ljust(_BLOCK, b"\n"):
        raise InputError("the cache is damaged (checksum)", where=path, remedy=remedy)
