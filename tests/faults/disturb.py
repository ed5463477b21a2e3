"""Ends a call at some moment, looks at what it left, and makes the same call again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults.calls import PATIENCE, Call, command, environment, run
from tests.faults.results import broken, canonical, leftovers

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_PROGRESS = re.compile(r"^\d\d:\d\d:\d\d ")
_CHILDREN_END = 5.0  # seconds


@dataclass(frozen=True)
class Undisturbed:
    """What a call leaves, how long it takes and how often it writes."""

    files: dict[str, str]
    seconds: float
    writes: int


@dataclass(frozen=True)
class Moment:
    """When a call is ended: after *seconds*, or so many *milliseconds* after its write number *write*."""

    signal: signal.Signals
    seconds: float = 0.0
    write: int = 0
    milliseconds: float = 0.0
    whole_group: bool = False  # as Ctrl-C in a terminal, or a batch system does

    def __str__(self) -> str:
        when = f"{self.milliseconds:.0f} ms after write {self.write}" if self.write else f"after {self.seconds:.3f} s"
        return f"{self.signal.name} {when}{' to all its processes' if self.whole_group else ''}"


@dataclass(frozen=True)
class Outcome:
    call: str
    moment: Moment
    ended: str  # stopped, killed, or finished before
    faults: tuple[str, ...]
    seconds: float  # until it ended


def undisturbed(call: Call, inputs: Path, folder: Path) -> Undisturbed:
    """Make the call as a user would, and count what it writes."""
    count = folder / "count"
    env = environment(folder / "tmp", METASEG_FAULT=f"0:0:0:{folder / 'work'}", METASEG_FAULT_COUNT=str(count))
    began = time.monotonic()
    done = run(call.arguments(inputs), folder / "work", env)
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{call.name}: {done.stderr}")
    left = leftovers(folder / "work", folder / "tmp")
    if left or _foreign_lines(done.stderr):
        raise RuntimeError(f"{call.name}, undisturbed: {left} {_foreign_lines(done.stderr)}")
    return Undisturbed(canonical(folder / "work" / call.results), seconds, int(count.read_text()))


def draw(rng: np.random.Generator, plain: Undisturbed, seconds: float | None = None) -> Moment:
    """Half of all moments are spread over the whole run, which now takes *seconds*, half lie at writes."""
    which = SIGNALS[rng.integers(3)]
    group = which is signal.SIGINT or (which is signal.SIGTERM and bool(rng.random() < 0.3))
    if rng.random() < 0.5:
        return Moment(which, seconds=float(rng.uniform(0, seconds or plain.seconds)), whole_group=group)
    late = 0.0 if rng.random() < 0.6 else float(rng.uniform(0, 30))
    return Moment(which, write=int(rng.integers(1, plain.writes + 1)), milliseconds=late)


def disturb(call: Call, moment: Moment, plain: Undisturbed, inputs: Path, folder: Path) -> Outcome:
    """End the call at *moment* in *folder*; then the same call must end with the undisturbed result."""
    faults: list[str] = []
    work, temporary = folder / "work", folder / "tmp"
    work.mkdir(parents=True)
    mark = f"METASEG_FAULT_MARK={folder}"
    fault = f"{int(moment.signal)}:{moment.write}:{moment.milliseconds}:{work}" if moment.write else ""
    env = environment(temporary, METASEG_FAULT=fault, METASEG_FAULT_MARK=str(folder))
    began = time.monotonic()
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command(*call.arguments(inputs)),
            cwd=work,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        ready = _end(process, moment)
        try:
            code = process.wait(60 if not moment.write else PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
            faults.append("it did not end within a minute of the signal")
    seconds = time.monotonic() - began
    said = (folder / "stderr").read_text(errors="replace")
    ended = {0: "finished before", 130: "stopped"}.get(code or 0, "killed") if code is not None else "hung"
    faults += _ending(code, said, moment, ready)
    faults += _alive(mark)
    faults += broken(work / call.results)
    again = call.again(work) if code != 0 else None
    if any((work / call.results).glob(call.last)) and call.name.startswith(("train", "follow-up", "export")):
        again = ()  # it is done: these commands begin anew, or refuse, then
    if again != ():
        done = run(again or call.arguments(inputs), work, environment(temporary))
        if done.returncode:
            faults.append(f"the same call again: exit code {done.returncode}, {done.stderr[-600:]}")
        faults += [f"the same call again says: {line}" for line in _foreign_lines(done.stderr)]
        faults += [f"left over: {path}" for path in leftovers(work, temporary)]
    faults += differences(plain.files, of_finished(call, work))
    if not faults:
        shutil.rmtree(folder)
    return Outcome(call.name, moment, ended, tuple(faults), seconds)


def of_finished(call: Call, work: Path) -> dict[str, str]:
    """The results; of runs those of the finished one."""
    if call.results != "runs":
        return canonical(work / call.results)
    finished = [path.parent for path in (work / "runs").glob(call.last)]
    return {f"RUN/{name}": digest for run in finished[-1:] for name, digest in canonical(run).items()}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [
        f"{name} {'is missing' if name not in found else 'is too much' if name not in expected else 'differs'}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def _end(process: subprocess.Popen[bytes], moment: Moment) -> bool:
    """Send the signal when it is time; whether the program had begun (before, Python itself answers it)."""
    if moment.write:
        return True
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.seconds)
        return True
    ready = _catches(process.pid, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if moment.whole_group else os.kill)(process.pid, moment.signal)
    return ready


def _catches(process: int, which: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return bool(caught >> (which - 1) & 1)


def _ending(code: int | None, said: str, moment: Moment, ready: bool) -> list[str]:
    """What is wrong with the exit code and the last words."""
    if moment.signal is signal.SIGKILL:
        return [] if code in (0, -9, None) else [f"exit code {code}"]
    if not ready:
        return []
    lines = _foreign_lines(said)
    if code == 0:
        return [f"it had finished, and says: {line}" for line in lines]
    faults = [] if code in (130, None) else [f"exit code {code} instead of 130: {said[-600:]}"]
    if len(lines) != 1 or not lines[0].startswith("metaseg: ") or ";" not in lines[0]:
        faults.append(f"its last words are not one message with a remedy: {lines[-12:]}")
    return faults


def _foreign_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.strip() and not _PROGRESS.match(line)]


def _alive(mark: str) -> list[str]:
    """Processes of a call that is gone, after a few seconds; they are ended."""
    deadline = time.monotonic() + _CHILDREN_END
    while (found := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid, _ in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"still running: {what}" for _, what in found]


def _marked(mark: str) -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if text:  # a zombie has none
                        found.append((int(entry.name), text[:200]))
    return found
