"""ZIP archives of scans, unpacked for a moment and guarded against traversal and bombs."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from metaseg_cli.errors import InputError

_MOST_FILES = 50_000
_MOST_BYTES = 16 * 2**30
_MOST_RATIO = 200  # images rarely shrink to less than a fiftieth
_SMALL = 64 * 2**20


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the content of the ZIP *path*. Raises InputError for one that must not be unpacked."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"not a readable ZIP ({error})", where=path, remedy="pack it again") from error
    with archive, tempfile.TemporaryDirectory(prefix="metaseg-zip-") as name:
        members = [m for m in archive.infolist() if not m.is_dir()]
        _guard(members, path)
        folder = Path(name)
        try:
            for member in members:
                archive.extract(member, folder)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            raise InputError(f"damaged or encrypted ZIP ({error})", where=path, remedy="pack it again") from error
        yield folder


def _guard(members: list[zipfile.ZipInfo], path: Path) -> None:
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            raise InputError(f"it would write outside its folder ({member.filename})", where=path, remedy="pack again")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"it holds a link ({member.filename})", where=path, remedy="pack the files themselves")
    size = sum(m.file_size for m in members)
    packed = sum(m.compress_size for m in members)
    if len(members) > _MOST_FILES or size > _MOST_BYTES or (size > _SMALL and size > _MOST_RATIO * max(1, packed)):
        raise InputError(
            f"it would unpack to {len(members)} files and {size / 2**30:.1f} GiB from {packed / 2**20:.1f} MiB",
            where=path,
            remedy="unpack it yourself if you trust it",
        )
