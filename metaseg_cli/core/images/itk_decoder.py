"""SimpleITK in a separate process: a file that crashes its decoder costs that file, not the batch.

The process starts with the first file, which takes about a third of a second, and serves until this one ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.errors import COPY_AGAIN, InputError, printable

_SECONDS = 60.0  # for the smallest file; a damaged one may keep a decoder busy for ever
_BYTES_PER_SECOND = 2e6  # more time for larger files


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image as decoded by SimpleITK: ``array`` in the order of ``GetArrayFromImage``, geometry in ITK's order."""

    array: NDArray[Any]
    components: int  # numbers per voxel, the last axis of ``array`` when there are several
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    metadata: dict[str, str]

    @property
    def dimension(self) -> int:
        """Axes of space (and time)."""
        return len(self.spacing)


class _Process:
    def __init__(self) -> None:
        # In a new session: Ctrl-C is for the main program, which ends this one by closing its input.
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("itk_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def request(self, path: Path, image_io: str, seconds: float) -> tuple[dict[str, Any], bytearray] | None:
        """Return the answer; None when the process died, of the file or because it took longer than *seconds*."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            stdin.write(json.dumps([str(path.absolute()), image_io]).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
            if not line.endswith(b"\n"):
                return None
            head: dict[str, Any] = json.loads(line)
            voxels = bytearray(head["bytes"])
            if stdout.readinto(voxels) < len(voxels):  # type: ignore[attr-defined]
                return None
            return head, voxels
        except (BrokenPipeError, ValueError):
            return None
        finally:
            watchdog.cancel()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_lock = threading.Lock()
_running: _Process | None = None


def decode(path: Path, image_io: str = "") -> DecodedImage:
    """Read *path* with the named ImageIO of ITK, or the one that fits it. Raises InputError, a crash included."""
    global _running  # noqa: PLW0603  one process serves all threads
    with _lock:
        if _running is None or _running.owner != os.getpid():
            _running = _Process()
        seconds = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
        answer = _running.request(path, image_io, seconds)
        if answer is None:
            _running.close()
            _running = None
            raise InputError(
                "its decoder crashed, or did not end", where=path, remedy="copy it again from its source, or convert it"
            )
    head, voxels = answer
    if "error" in head:
        raise InputError(f"cannot be read ({printable(head['error'])[:160]})", where=path, remedy=COPY_AGAIN)
    return DecodedImage(
        array=np.frombuffer(voxels, head["dtype"]).reshape(head["shape"]),
        components=head["components"],
        spacing=tuple(head["spacing"]),
        origin=tuple(head["origin"]),
        direction=tuple(head["direction"]),
        metadata=head["metadata"],
    )


def _close() -> None:
    if _running is not None and _running.owner == os.getpid():
        _running.close()


atexit.register(_close)
