"""A file appears whole under its name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call *write* with a temporary name beside *path* (of the same suffix), then rename.

    Whatever goes wrong in between, a full disk or a kill, leaves what stood under *path* untouched.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """*text* in UTF-8, line ends as they are."""
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8", newline=""))


def write_bytes_whole(path: Path, data: bytes) -> None:
    """*data* as it is."""
    write_whole(path, lambda to: to.write_bytes(data))
