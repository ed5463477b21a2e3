"""How much memory there is, and whether something fits into it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from metaseg_cli.errors import InputError

_SHARE = 0.8  # of the available memory that one array may use; the rest is for its copies and other programs


def available_memory() -> int | None:
    """Return the bytes that this machine, or the container around this process, can still give; None where unknown."""
    found = []
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" without a limit: ValueError
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cache = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith("inactive_file ")
        )
        found.append(max(0, limit - used + cache))
    return min(found, default=None)


def total_memory() -> int | None:
    """Return the bytes that this machine, or the container around this process, has; None where unknown."""
    found = []
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def check_fits(size: int, path: Path) -> None:
    """Raise InputError where an array of *size* bytes, which the header of *path* announces, does not fit into memory.

    Called before it is allocated: the system would kill the whole process.
    """
    free = available_memory()
    if free is not None and size > _SHARE * free:
        raise InputError(
            f"by its header it holds {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free",
            where=path,
            remedy="use a machine with more memory, or copy the file again if it is not that large",
        )
