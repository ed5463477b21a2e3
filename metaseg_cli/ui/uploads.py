"""Uploaded files: what they are called on disk, and how they are recognised."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from metaseg_cli.core.paths import file_name

_LONGEST_NAME = 120


class Upload(Protocol):
    """What Streamlit knows of an uploaded file."""

    name: str

    def getvalue(self) -> bytes:
        """Return its content."""


def digest_of(uploads: Sequence[Upload]) -> str:
    """Return what is equal for the same files under the same names."""
    digest = hashlib.sha256()
    for upload in uploads:
        content = upload.getvalue()
        digest.update(f"{upload.name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def write_uploads(uploads: Sequence[Upload], folder: Path) -> Path:
    """Write *uploads* into the new *folder*; return the only file, or the folder."""
    folder.mkdir()
    for name, upload in zip(distinct([upload.name for upload in uploads]), uploads, strict=True):
        (folder / name).write_bytes(upload.getvalue())
    return folder if len(uploads) > 1 else next(folder.iterdir())


def distinct(names: Sequence[str]) -> list[str]:
    """Return a valid file name for each of *names*, none of them twice: files of two folders may be called alike."""
    bases = [_base_name(name) for name in names]
    counts = Counter(base.casefold() for base in bases)
    return [base if counts[base.casefold()] == 1 else f"{i}_{base}" for i, base in enumerate(bases, start=1)]


def _base_name(name: str) -> str:
    """Return the name of an uploaded file without any folder; it is not hidden, and not too long."""
    base = file_name(re.split(r"[/\\\\]", name)[-1].lstrip("."))
    return base if len(base) <= _LONGEST_NAME else base[-_LONGEST_NAME:]
