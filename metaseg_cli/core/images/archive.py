"""ZIP archives of scans, unpacked temporarily and guarded against path traversal and bombs."""

from __future__ import annotations

import errno
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from metaseg_cli.core.atomic import temporary_folder
from metaseg_cli.errors import InputError, MetasegError, decoding

_MOST_FILES = 50_000  # a study has a few thousand
_MOST_BYTES = 16 * 2**30  # unpacked; more than any study
_MOST_RATIO = 200  # images rarely shrink to less than a fiftieth
_SMALL = 64 * 2**20  # bytes: below this any ratio is harmless


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack the ZIP *path* into a temporary folder. Raises InputError for one that must not be unpacked.

    Errors on files in that folder, raised inside the context, name the files as in the ZIP.
    """
    with decoding(path, "not a readable ZIP", remedy="pack it again"):
        archive = zipfile.ZipFile(path)
    with archive, temporary_folder("zip") as folder:
        with decoding(path, "damaged or encrypted ZIP", remedy="pack it again"):
            members = [m for m in archive.infolist() if not m.is_dir()]
            _guard(members, path)
            for member in members:
                _extract(archive, member, folder, path)
        try:
            yield folder
        except MetasegError as error:
            if isinstance(error.where, Path) and error.where.is_relative_to(folder):
                error.where = path / error.where.relative_to(folder) if error.where != folder else path
            raise


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    try:
        archive.extract(member, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no room to unpack it in {folder.parent}", where=path, remedy="make room there, or set TMPDIR"
            ) from error
        raise


def _guard(members: list[zipfile.ZipInfo], path: Path) -> None:
    names: set[str] = set()
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in "".join(parts.parts[:1]):
            raise InputError(f"it would write outside its folder ({member.filename})", where=path, remedy="pack again")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"it holds a link ({member.filename})", where=path, remedy="pack the files themselves")
        if parts.suffix.lower() == ".zip":
            raise InputError(
                f"it holds another ZIP ({member.filename})", where=path, remedy="unpack it and name the inner one"
            )
        if str(parts) in names:
            raise InputError(f"it holds {member.filename} twice", where=path, remedy="pack it again")
        names.add(str(parts))
    size = sum(m.file_size for m in members)
    packed = sum(m.compress_size for m in members)
    if len(members) > _MOST_FILES or size > _MOST_BYTES or (size > _SMALL and size > _MOST_RATIO * max(1, packed)):
        raise InputError(
            f"it would unpack to {len(members)} files and {size / 2**30:.1f} GiB from {packed / 2**20:.1f} MiB",
            where=path,
            remedy="unpack it yourself if you trust it",
        )
