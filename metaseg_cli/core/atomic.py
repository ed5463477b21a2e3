"""A file appears whole under its name, or not at all; one process at a time writes a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TextIO

from metaseg_cli.errors import InputError, MetasegError, disk_error, first_line

_TEMPORARY = re.compile(r"^\.?metaseg-([0-9a-f]{8})-(\d+)-")
_LOCK = ".lock"
_LONGEST_NAME = 255  # bytes
_ABANDONED = 86400.0  # seconds, after which a temporary file of another computer is abandoned
# How libraries that hide errno report a full disk: HDF5, libtiff, safetensors, the system itself.
_FULL = ("No space left on device", "errno = 28", "os error 28", "Disk quota exceeded")
_LITTLE = 2**16  # bytes; a disk with less is full


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Call *write* with a temporary name beside *path* (of the same suffix), then rename.

    Whatever goes wrong in between, a full disk or a kill, leaves the old *path* untouched. Raises InputError with the
    place and the cause where the disk, or a library that writes to it, fails.
    """
    temporary = path.with_name(_temporary_name(path.name))
    with translate_write_errors(path):
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _temporary_name(name: str) -> str:
    """Return a hidden name that ends like *name* and tells its owner: the computer and the process."""
    owner = f".metaseg-{_here()}-{os.getpid()}-"
    end = os.fsencode(name)[-(_LONGEST_NAME - len(owner)) :]
    return owner + end.decode("utf-8", "ignore")  # not every library accepts other names


@lru_cache(maxsize=1)
def _here() -> str:
    """Identify this computer or container, within which process numbers are unique: others may write here too."""
    try:
        numbers = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        numbers = 0
    return hashlib.sha256(f"{platform.node()} {numbers}".encode("utf-8", "surrogateescape")).hexdigest()[:8]


@contextlib.contextmanager
def temporary_folder(purpose: str, beside: Path | None = None) -> Iterator[Path]:
    """Provide a temporary folder, in the system's place for them or beside the file *beside*, and remove it afterwards.

    Such folders of killed processes are removed too: they may hold images of patients. Raises InputError where the
    folder cannot be made.
    """
    place = _system_folder() if beside is None else beside.parent
    _clear_once(place)
    hidden = "" if beside is None else "."
    with translate_write_errors(place / purpose):
        folder = tempfile.mkdtemp(prefix=f"{hidden}metaseg-{_here()}-{os.getpid()}-{purpose}-", dir=place)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write *text* in UTF-8, line ends unchanged; bytes of file names that are not UTF-8 are escaped."""
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write *data* unchanged."""
    atomic_write(path, lambda to: to.write_bytes(data))


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Translate what the system, or a library that writes *path*, raises; a full disk is always reported as such."""
    try:
        yield
    except MetasegError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise disk_error(OSError(error.errno, error.strerror), path) from error
        if any(words in str(error) for words in _FULL) or _is_full(path):
            raise disk_error(OSError(errno.ENOSPC, ""), path) from error
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
            raise disk_error(OSError(errno.ENOSPC, ""), path)


def make_folder(folder: Path) -> Path:
    """Create *folder* with its parents, and clear what killed writers left in it. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    clear_leftovers(folder)
    return folder


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that have ended."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.match(path.name)
            with contextlib.suppress(OSError):
                if match and _is_abandoned(path, match[1], int(match[2])):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _system_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(
            "no folder for temporary files can be written", remedy="make room in /tmp, or set TMPDIR"
        ) from error


@cache
def _clear_once(folder: Path) -> None:
    clear_leftovers(folder)


def _is_abandoned(path: Path, where: str, process: int) -> bool:
    written = path.stat().st_mtime
    if where != _here():
        return time.time() - written > _ABANDONED
    # Process numbers are reused: a process that began after the file was written did not write it.
    return not _runs(process) or written < _began(process) - 2


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


def _began(process: int) -> float:
    """Return when *process* began, in seconds since 1970; 0 where the system does not say."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
        boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
        return int(boot[1]) + ticks / os.sysconf("SC_CLK_TCK") if boot else 0.0
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


@contextlib.contextmanager
def exclusive_writer(folder: Path, command: str) -> Iterator[None]:
    """Be the only process that writes *folder*, and clear what killed writers left in it.

    Raises InputError with the other one's process number when it is busy.
    """
    path = folder / _LOCK
    handle = _locked(path, command)
    with handle:
        with contextlib.suppress(OSError):  # a full disk must not stop a writer of other disks
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), str(os.getpid()).encode())
        clear_leftovers(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def clear_abandoned(folders: Iterable[Path]) -> None:
    """Remove what killed writers left in *folders*, lock files too, but nothing of a folder that is being written."""
    for folder in folders:
        if (folder / _LOCK).exists():
            with contextlib.suppress(InputError, OSError), exclusive_writer(folder, "program"):
                pass  # the lock goes with its holder


def _locked(path: Path, command: str) -> TextIO:
    """Open and lock the file *path*; the kernel releases the lock however the process ends."""
    while True:
        with translate_write_errors(path):
            handle = path.open("a+", encoding="utf-8")
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            return handle  # Windows has no such locks
        except (BlockingIOError, PermissionError):
            with handle:
                handle.seek(0)
                process = handle.read().strip() or "unknown"
            raise InputError(
                f"another {command} is writing it (process {process})",
                where=path.parent,
                remedy="wait for it, or choose another folder",
            ) from None
        except OSError:
            return handle  # nor do some network disks
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
        handle.close()  # its previous holder has just removed the file that was opened here
