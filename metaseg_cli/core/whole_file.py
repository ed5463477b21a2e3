"""A file appears whole under its name, or not at all; one process at a time writes a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from metaseg_cli.errors import InputError, MetasegError, disk_error, first_line

_TEMPORARY = re.compile(r"^\.metaseg-(\d+)-")
_FULL = ("No space left on device", "errno = 28", "os error 28", "Disk quota exceeded")
_LONG_NAME = 200
_LITTLE = 2**16  # bytes; a disk with less is full for whoever failed to write


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call *write* with a temporary name beside *path* (of the same suffix), then rename.

    Whatever goes wrong in between, a full disk or a kill, leaves what stood under *path* untouched. Raises InputError
    that names the place and the cause where the disk, or a library that writes to it, refuses.
    """
    temporary = _beside(path)
    with writing_to(path):
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A temporary name in the same folder, of the same suffix; file systems count the bytes of a name, not its letters.

    A long name gives way to its hash and its end, for libraries that go by the suffix.
    """
    name = os.fsencode(path.name)
    if len(name) > _LONG_NAME:
        name = hashlib.sha256(name).hexdigest()[:16].encode() + b"-" + name[-_LONG_NAME // 2 :]
    start = f".metaseg-{os.getpid()}-".encode()
    return path.with_name(os.fsdecode(start + name).encode("utf-8", "ignore").decode("utf-8"))


def write_text_whole(path: Path, text: str) -> None:
    """*text* in UTF-8, line ends as they are; bytes of file names that are not UTF-8 are escaped."""
    write_bytes_whole(path, text.encode("utf-8", "backslashreplace"))


def write_bytes_whole(path: Path, data: bytes | memoryview) -> None:
    """*data* as it is."""
    write_whole(path, lambda to: to.write_bytes(data))


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Translate what the system, or a library that writes *path*, raises: a full disk says so, whoever noticed it."""
    try:
        yield
    except MetasegError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise disk_error(OSError(error.errno, error.strerror), path) from error
        if any(words in str(error) for words in _FULL) or _is_full(path):
            raise InputError(
                "the disk is full", where=path, remedy="make room on the disk, then run the same command again"
            ) from error
        if isinstance(error, (OSError, RuntimeError)):
            raise InputError(f"cannot be written ({first_line(error)})", where=path, remedy="check the disk") from error
        raise


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE
    except OSError:
        return False


def check_room(path: Path, size: int) -> None:
    """Raise InputError where *size* more bytes do not fit beside *path*: not every library survives a full disk."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(path.parent).free < size:
            raise InputError(
                "the disk is full", where=path, remedy="make room on the disk, then run the same command again"
            )


def make_folder(folder: Path) -> Path:
    """*folder* with its parents, cleared of what killed writers left. Raises InputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError("a file, not a folder", where=folder, remedy="choose another output folder") from error
    except OSError as error:
        raise disk_error(error, folder) from error
    clear_leftovers(folder)
    return folder


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that are gone."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.match(path.name)
            if match and not _runs(int(match[1])):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def exclusive_writer(folder: Path, command: str) -> Iterator[None]:
    """Be the only one who writes *folder*. Raises InputError with the other one's process number when it is busy."""
    with writing_to(folder / ".lock"):
        handle = (folder / ".lock").open("a+", encoding="utf-8")
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however the process ends
        except ImportError:
            pass  # Windows: two at once are not told apart
        except OSError:
            handle.seek(0)
            raise InputError(
                f"another {command} is writing it (process {handle.read().strip() or 'unknown'})",
                where=folder,
                remedy="wait for it, or choose another folder",
            ) from None
        with contextlib.suppress(OSError):  # a full disk must not stop what may write elsewhere
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        yield
