"""Digests that recognise files by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_under(paths: Iterable[Path]) -> list[str]:
    """Return the digest of each file; a folder stands for all files in it, in order of their names."""
    files = [f for p in paths for f in (sorted(q for q in p.rglob("*") if q.is_file()) if p.is_dir() else [p])]
    return [file_digest(file) for file in files]


def key_of(identity: object) -> str:
    """Return a text that changes when anything in *identity*, as JSON has it, does."""
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()
