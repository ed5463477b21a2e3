"""Puts mutants through readers in a process of its own, and says what went wrong: a foreign exception, a crash, too
much time or memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from metaseg_cli.errors import MetasegError
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutations import mutant

MOST_SECONDS = 10.0
MOST_BYTES = 2 * 2**30
_PATIENCE = 60.0  # until a process that does not answer is ended


@dataclass(frozen=True)
class Fault:
    """A mutant that was not read and not refused; ``seed`` makes it again."""

    kind: str
    seed: int
    what: str


@dataclass(frozen=True)
class Tally:
    """What became of the mutants of one kind."""

    kind: str
    read: int
    refused: int
    faults: tuple[Fault, ...]
    slowest: float


def fuzz(name: str, seeds: Sequence[int], folder: Path) -> Tally:
    """Put a mutant for each of *seeds* through the reader of the kind *name*."""
    read = refused = 0
    slowest = 0.0
    faults: list[Fault] = []
    waiting = list(seeds)
    while waiting:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(name, waiting, folder, theirs))
        process.start()
        theirs.close()
        while waiting:
            answer = _next(ours)
            if answer is None:
                process.kill()
                process.join()
                faults.append(Fault(name, waiting.pop(0), f"the process died or hung (exit code {process.exitcode})"))
                break
            what, seconds = answer
            slowest = max(slowest, seconds)
            seed = waiting.pop(0)
            read, refused = read + (what == "read"), refused + (what == "refused")
            if what not in ("read", "refused"):
                faults.append(Fault(name, seed, what))
        else:
            process.join()
        ours.close()
    return Tally(name, read, refused, tuple(faults), slowest)


def _next(connection: Connection) -> tuple[str, float] | None:
    try:
        return connection.recv() if connection.poll(_PATIENCE) else None
    except EOFError:
        return None


def _serve(name: str, seeds: Sequence[int], folder: Path, connection: Connection) -> None:
    import warnings

    warnings.simplefilter("ignore")
    kind = KINDS[name]
    place = folder / f"{name}-{os.getpid()}"
    place.mkdir(parents=True)
    target = kind.make(place)
    whole = target.read_bytes()
    kind.read(target if kind.whole is None else kind.whole(place))  # what is loaded once is not the mutant's doing
    for seed in seeds:
        target.write_bytes(mutant(whole, seed))
        connection.send(_tried(kind, target, place))


def _tried(kind: Kind, target: Path, place: Path) -> tuple[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    what = "read"
    try:
        kind.read(target if kind.whole is None else kind.whole(place))
    except MetasegError as error:
        what = "refused" if error.remedy or kind.no_remedy else f"no remedy in: {error}"
    except BaseException:
        what = traceback.format_exc()
    seconds = time.monotonic() - began
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if seconds > kind.most_seconds:
        what = f"it took {seconds:.1f} s"
    elif grown > MOST_BYTES:
        what = f"it took {grown / 2**30:.1f} GiB"
    return what, seconds
