"""What can go wrong through no fault of the program, and the two places where foreign exceptions are translated.

    MetasegError            one message for the user, exit code 1
    ├── ConfigError         a setting that cannot be used
    ├── InputError          a file or folder that cannot be used
    ├── ModelFileError      a model file that cannot be used
    └── Interrupted         stopped by Ctrl-C or SIGTERM, with everything saved (exit code 130)

Packages raise these with cause and remedy; ``cli.main`` alone prints them. ``decoding`` wraps every call into a
library that reads a file; ``attempt`` is the boundary of a case in a batch: whatever one input raises there is a
``Problem`` of that input. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
ERROR_LOG = "errors.log"
COPY_AGAIN = "copy it again from its source"  # the remedy for damaged and truncated files


class MetasegError(Exception):
    """A user's mistake or an unusable input: *what* is wrong, *where*, and what to do (*remedy*)."""

    def __init__(self, what: str, *, where: object = None, remedy: str = "") -> None:
        self.what, self.where, self.remedy = printable(what), where, printable(remedy)
        self.reported = False  # by another process of the same training
        super().__init__(what, where, remedy)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel between processes; by default pickle would pass the three arguments by position.
        return _restored, (type(self), self.what, self.where, self.remedy)

    def __str__(self) -> str:
        located = f"{printable(self.where)}: {self.what}" if self.where is not None else self.what
        return f"{located}; {self.remedy}" if self.remedy else located


def _restored(kind: type[MetasegError], what: str, where: object, remedy: str) -> MetasegError:
    return kind(what, where=where, remedy=remedy)


def install_hint(extra: str) -> str:
    """Return the command that adds an *extra*: from a checkout by its folder, else by the file it was installed from.

    The name is not on a registry, so that ``pip install metaseg-cli[…]`` would find nothing.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return f"pip install '{root}[{extra}]'"
    return f"pip install {' '.join(repr(each) for each in _requirements(extra))}"


def _requirements(extra: str) -> list[str]:
    """Return what *extra* requires, as the installed package lists it."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        every = requires("metaseg-cli") or []
    except PackageNotFoundError:
        every = []
    named = [each.partition(";") for each in every if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", each)]
    return [requirement.strip() for requirement, _, _ in named]


class ConfigError(MetasegError):
    """A setting that cannot be used."""


class InputError(MetasegError):
    """A file or folder that cannot be used."""


class ModelFileError(MetasegError):
    """A model file that cannot be used."""


class Interrupted(MetasegError):
    """Stopped on request; the message says what was saved and how to continue. Exit code 130."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was left out, or is only doubtful: which file, why, and what the user can do."""

    file: Path
    reason: str
    remedy: str
    left_out: bool = True

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.reason}; {self.remedy}"


def printable(text: object) -> str:
    """Return *text* in one line that is safe to show, with control characters and undecodable bytes escaped.

    A file name may hold any byte; an escape sequence in one must not reach the terminal.
    """
    shown = str(text)
    if shown.isprintable():  # nearly always: a page of numbers is not looked at letter by letter
        return shown
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def first_line(error: BaseException, most: int = 120) -> str:
    """Return the message of an exception in at most *most* characters, or its type when it has no message."""
    lines = str(error).strip().splitlines()
    return printable((lines[0] if lines else type(error).__name__)[:most])


@contextmanager
def decoding(path: Path, what: str = "cannot be read", *, remedy: str = COPY_AGAIN) -> Iterator[None]:
    """Translate whatever a library raises while it decodes *path* into an InputError: *what*, and the library's words.

    Decoders raise exceptions of every kind on damaged files, so they are not listed.
    """
    try:
        yield
    except MetasegError:
        raise
    except MemoryError as error:
        raise InputError("it does not fit into memory", where=path, remedy="use a machine with more memory") from error
    except PermissionError as error:
        raise InputError("no permission to read it", where=path, remedy="change its permissions") from error
    except Exception as error:
        raise InputError(f"{what} ({first_line(error)})", where=path, remedy=remedy) from error


_DISK = {
    errno.ENOSPC: ("the disk is full", "make room on the disk, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "make room on the disk, then run the same command again"),
    errno.EROFS: ("the disk is read-only", "choose another output folder with --out"),
    errno.EACCES: ("no permission", "change the permissions, or choose another output folder with --out"),
    errno.EPERM: ("not permitted", "change the permissions, or choose another output folder with --out"),
    errno.EFBIG: ("the file would be too large for this disk", "choose another output folder with --out"),
}


def disk_error(error: OSError, otherwise: Path | None) -> InputError:
    """Return what the operating system refused (a full disk, no permission), with the place and the remedy."""
    where: object = otherwise
    if isinstance(error.filename, (str, bytes)):
        where = Path(os.fsdecode(error.filename))
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and isinstance(where, Path):
        file = next((p for p in (where, *where.parents) if p.exists() and not p.is_dir()), None)
        if file is not None:
            return InputError("a file, not a folder", where=file, remedy="choose another output folder with --out")
    what, remedy = _DISK.get(error.errno or 0, (error.strerror or first_line(error), "check the path"))
    return InputError(what, where=where, remedy=remedy)


def problem_of(error: BaseException, file: Path, log_folder: Path | None) -> Problem:
    """Return what *error*, raised while *file* was processed, means for the user.

    An unexpected error is named as such, and its traceback is added to ``errors.log`` in *log_folder*, for a report.
    """
    if isinstance(error, MetasegError):
        where = error.where if isinstance(error.where, Path) else file
        return Problem(file=where, reason=error.what, remedy=error.remedy)
    if isinstance(error, MemoryError):
        return Problem(
            file=file, reason="there is not enough memory for it", remedy="close other programs, or use fewer --workers"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return problem_of(disk_error(error, file), file, log_folder)
    written = log_folder is not None and log_unexpected(error, file, log_folder)
    return Problem(
        file=file,
        reason=f"unexpected {type(error).__name__} ({first_line(error)})",
        remedy=f"a fault of metaseg: please report it with {log_folder}/{ERROR_LOG}" if written else "please report it",
    )


def log_unexpected(error: BaseException, file: Path, folder: Path) -> bool:
    """Add the traceback of *error* to the folder's ``errors.log``; return whether that was possible."""
    lines = "".join(traceback.format_exception(error))
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(file)}\n{lines}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ERROR_LOG).open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)  # one write, appended: several processes may do so at once
    except OSError:
        return False
    return True


def attempt(function: Callable[[], Result], file: Path, log_folder: Path | None) -> Result | Problem:
    """Return what *function* returns, or the Problem of *file* for whatever it raises: the boundary of a case."""
    try:
        return function()
    except Interrupted:
        raise
    except Exception as error:
        return problem_of(error, file, log_folder)
