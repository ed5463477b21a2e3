"""Paths from users and file systems: what may be opened, and which names a file may have.

A named pipe or a device never ends, so only regular files are opened. A name with a line break, an escape sequence or
bytes that are not text cannot be written into tables, pages and HDF5: its file is reported and excluded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from metaseg_cli.core.formats import ALL_READ
from metaseg_cli.errors import InputError, Problem

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REASONS = {
    errno.ENOENT: ("no such file", "check the path"),
    errno.ENOTDIR: ("no such file", "check the path"),
    errno.ENAMETOOLONG: ("no such file: its name is longer than any file's", "check the path"),
    errno.ELOOP: ("a link that leads in a circle", "name the file itself"),
    errno.EACCES: ("no permission to read it", "change its permissions"),
}
_SYSTEM_FILES = ("icon\r",)  # of macOS, in a folder with a custom icon
_MOST_BYTES = 160  # of a name, to which endings such as _probability_ET.nii.gz are added; file systems allow 255


def why_not_openable(path: Path) -> tuple[str, str] | None:
    """Return why *path* is neither a regular file nor a folder, and the remedy; None where it is one. Never raises."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a zero byte in the path
        return "no such file", "check the path"
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.islink(path):
            return "a link to a file that is not there", "copy the file itself"
        return _REASONS.get(error.errno or 0, (error.strerror or "cannot be opened", "check the path"))
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return f"{_KINDS.get(stat.S_IFMT(mode), 'something special')}, not a file", "name a regular file"


def check_openable(path: Path) -> None:
    """Raise InputError where *path* is neither a regular file nor a folder."""
    why = why_not_openable(path)
    if why is not None:
        raise InputError(why[0], where=path, remedy=why[1])


def path_exists(path: Path | str) -> bool:
    """Return whether something of this name exists; also for names that no file can have, where Path.exists raises."""
    return os.path.exists(path)


def odd_name(name: str) -> str | None:
    """Return why *name* cannot stand in a table or report, or None."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name holds bytes that are not UTF-8"
    kinds = {unicodedata.category(c) for c in name}
    if kinds & {"Zl", "Zp"} or set(name) & set("\n\r\v\f\x1c\x1d\x1e\x85"):
        return "its name holds a line break"
    return "its name holds control characters" if "Cc" in kinds else None


def odd_name_below(path: Path, root: Path) -> str | None:
    """Return ``odd_name`` of *path* and of the folders between it and *root*."""
    return odd_name("/".join(path.relative_to(root).parts))


def unusable(path: Path) -> Problem | None:
    """Return the Problem of a path that a user named: missing, not openable, or with a name that cannot be used."""
    why = why_not_openable(path)
    if why is None:
        reason = odd_name(path.name)
        why = None if reason is None else (reason, "rename it")
    return None if why is None else Problem(file=path, reason=why[0], remedy=why[1])


def unusable_below(folder: Path) -> list[Problem]:
    """Return Problems of what lies under *folder*, is named like an image or has no suffix, and cannot be used.

    A search for images skips such files; they are reported here, so that none is missing silently.
    """
    problems = []
    for path in _entries(folder):
        name = path.name.lower()
        if name in _SYSTEM_FILES or (not name.endswith(ALL_READ) and "." in name.strip(".")):
            continue
        problem = unusable(path)
        reason = None if problem else odd_name_below(path, folder)
        if reason is not None:
            problem = Problem(file=path, reason=f"{reason} (a folder's)", remedy="rename the folder")
        if problem is not None:
            problems.append(problem)
    return problems


def _entries(folder: Path) -> Iterator[Path]:
    """Yield everything under *folder* that is not a folder, except hidden things, sorted by name."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def file_name(text: str, most: int = _MOST_BYTES) -> str:
    """Make *text*, from a header or a table, a part of a file name: no folders, no control characters, not too long.

    A hash replaces what is cut off, so that different texts stay different.
    """
    name = "".join("_" if c in "/\\:\0" or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    name = name.strip(" ") if name.strip(". ") else "case"
    data = name.encode("utf-8")
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:8]
    return data[: most - 9].decode("utf-8", "ignore") + "_" + digest
