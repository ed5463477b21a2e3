"""Compiled networks in the user's cache folder. They only save time: whatever goes wrong here never matters."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.errors import MetasegError

_KEPT = 16  # files; the least recently used ones go
_DIGEST = hashlib.sha256().digest_size  # bytes at the beginning of each file: of what follows


def cache_folder() -> Path:
    """Return where this program keeps compiled networks: XDG_CACHE_HOME, or the platform's folder for caches."""
    if named := os.environ.get("XDG_CACHE_HOME", ""):
        base = Path(named)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path("~/.cache")
    return base.expanduser() / "metaseg" / "compiled"


def kept_bytes(name: str) -> bytes | None:
    """Return what was kept under *name*; None where there is nothing, it is damaged, or others may write there."""
    try:
        path = cache_folder() / name
        if not _is_ours(path) or not _is_ours(path.parent):
            return None
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError):
        return None
    digest, blob = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(blob).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return blob


def keep_bytes(name: str, blob: bytes) -> None:
    """Keep *blob* under *name*, if that is possible, and remove what was not used for long."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, MetasegError):
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            return
        atomic_write(folder / name, lambda path: path.write_bytes(hashlib.sha256(blob).digest() + blob))
        files = sorted(folder.glob(f"*{Path(name).suffix}"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Return whether no other user may write *path*: what is read from it is run."""
    if not hasattr(os, "getuid"):
        return True
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022
