"""Let real calls run out of room or rights: ``python tests/faults/full_disk.py``, as root on Linux.

Every command writes to a small disk in memory with less and less room left, to a read-only one, under a file, and into
a folder without permission; reads a file without permission; and unpacks into a full TMPDIR. Each time: exit code 1,
one line that names the place and the cause, nothing half-written, no crash; and when there is room, the same call ends
with the undisturbed result. Exit code 1 for any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.calls import CALLS, MORE, Call, environment, make_inputs, run
from tests.faults.disturb import differences, of_finished, undisturbed
from tests.faults.results import broken, files_of, leftovers

_ALL = {**CALLS, **MORE}
_SHARES = (0.0, 0.03, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)  # of the room that a call takes
_DISK = 256 * 2**20
_FULL, _READ_ONLY, _FORBIDDEN = "the disk is full", "the disk is read-only", "permission"


@dataclass
class Tally:
    """Tries and what was wrong, by what was done to the disk."""

    tries: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, faults: Sequence[str]) -> None:
        self.tries[kind] = self.tries.get(kind, 0) + 1
        if faults:
            self.faults.append(what)
            print(what, *faults, sep="\n  ", flush=True)


def can_mount() -> bool:
    """Whether this user may mount a disk in memory here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder)):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(place: Path, size: int = _DISK) -> Iterator[Path]:
    """A disk in memory at *place*, unmounted however this ends."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """*disk* with no more than *room* bytes left."""
    ballast = disk / "ballast"
    values = os.statvfs(disk)
    size = values.f_bavail * values.f_frsize - room
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    try:
        yield
    finally:
        ballast.unlink()


def used(disk: Path) -> int:
    values = os.statvfs(disk)
    return (values.f_blocks - values.f_bfree) * values.f_frsize


def refusal(code: int, said: str, cause: str, place: str) -> list[str]:
    """What is wrong with a call that should have said *cause* and *place*."""
    faults = [] if code == 1 else [f"exit code {code} instead of 1: {said[-1500:]}"]
    if "Traceback" in said or "unexpected" in said or "perhaps for lack of memory" in said:
        faults.append(f"not translated: {said[-1500:]}")
    lines = [line for line in said.splitlines() if cause in line]
    if not any(place in line for line in lines):
        faults.append(f"no line says {cause!r} and {place!r}: {said[-1500:]}")
    return faults


def full(call: Call, share: float, room: int, expected: dict[str, str], inputs: Path, folder: Path) -> list[str]:
    """The call on a disk with *room* bytes left; then on one with enough."""
    faults: list[str] = []
    env = environment(folder / "tmp")
    with small_disk(folder / "disk") as disk:
        work = disk / "work"
        work.mkdir()
        with filled(disk, room):
            done = run(call.arguments(inputs), work, env)
            if done.returncode or share < 0.9:  # what is written and removed on the way may have fitted
                faults += refusal(done.returncode, done.stdout + done.stderr, _FULL, call.results)
            faults += broken(work / call.results)
            faults += [f"left over: {p}" for p in leftovers(work, folder / "tmp") if ".predictions" not in p]
        again = call.again(work) or call.arguments(inputs)
        if done.returncode or not call.name.startswith(("train", "follow-up", "export")):
            done = run(again, work, env)
            if done.returncode:
                faults.append(f"with room: exit code {done.returncode}, {done.stderr[-600:]}")
        faults += [f"with room: left over: {path}" for path in leftovers(work, folder / "tmp")]
        faults += [f"with room: {each}" for each in _not_as_expected(call, expected, work)]
        faults += [f"with room: {path} is there" for path in files_of(work) if path.name == "errors.log"]
    return faults


def _not_as_expected(call: Call, expected: dict[str, str], work: Path) -> list[str]:
    found = of_finished(call, work)
    if call.name != "demo":
        return differences(expected, found)
    # It trains for a time, not for a number of steps, on pictures that it makes again: the same files, other content.
    shards = "prepared/shards/"
    names = [{name: "" for name in files if not name.startswith(shards)} for files in (expected, found)]
    return differences(*names)


def read_only(call: Call, inputs: Path, folder: Path) -> list[str]:
    with small_disk(folder / "disk") as disk:
        (disk / "work").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = run(call.arguments(inputs), disk / "work", environment(folder / "tmp"))
    return refusal(done.returncode, done.stdout + done.stderr, _READ_ONLY, call.results)


def in_the_way(call: Call, inputs: Path, folder: Path) -> list[str]:
    """``--out file/inside``, where *file* is no folder."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "file").write_text("mine")
    arguments = list(call.arguments(inputs))
    out = "file/m.onnx" if call.name == "export" else "file/inside"
    if "--out" in arguments:
        arguments[arguments.index("--out") + 1] = out
    else:
        arguments += ["--out", out]
    done = run(arguments, work, environment(folder / "tmp"))
    faults = refusal(done.returncode, done.stdout + done.stderr, "not a folder", "file")
    return faults if (work / "file").read_text() == "mine" else [*faults, "the file was changed"]


def forbidden_folder(call: Call, inputs: Path, folder: Path) -> list[str]:
    """Into a folder that the user may not write."""
    work = folder / "work"
    work.mkdir(parents=True)
    work.chmod(0o555)
    done = run(call.arguments(inputs), work, environment(folder / "tmp"), as_root=False)
    return refusal(done.returncode, done.stdout + done.stderr, _FORBIDDEN, call.results)


def forbidden_file(call: Call, path: Path, inputs: Path, folder: Path) -> list[str]:
    """One input that the user may not read; the others are done."""
    work = folder / "work"
    work.mkdir(parents=True)
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        done = run(call.arguments(inputs), work, environment(folder / "tmp"), as_root=False)
    finally:
        path.chmod(mode)
    faults = refusal(done.returncode, done.stdout + done.stderr, _FORBIDDEN, path.name)
    single = path.suffix == ".safetensors" or call.name in ("follow-up", "train")
    if not single and not any((work / call.results).glob(call.last)):
        faults.append(f"the others were not done: {done.stderr[-600:]}")
    return faults + broken(work / call.results)


def full_temporary(inputs: Path, folder: Path) -> list[str]:
    """ZIPs on a TMPDIR with no room: each is named, the scan beside them is done."""
    work, scans = folder / "work", folder / "scans"
    scans.mkdir(parents=True)
    sources = sorted((inputs / "scans").glob("*.nii.gz"))
    with zipfile.ZipFile(scans / "packed.zip", "w") as archive:
        archive.write(sources[0], sources[0].name)
    (scans / "plain.nii.gz").write_bytes(sources[1].read_bytes())
    faults = []
    with small_disk(folder / "disk") as disk, filled(disk, 2**13):
        done = run(("predict", scans, "--model", inputs / "model_vol.safetensors"), work, environment(disk / "tmp"))
        faults += refusal(done.returncode, done.stdout + done.stderr, "no room", str(disk))
        faults += [f"left over: {path}" for path in leftovers(disk / "tmp")]
    if not (work / "predictions" / "plain_mask.nii.gz").exists():
        faults.append("the other scan was not done")
    return faults


def forbidden_inputs(inputs: Path) -> list[tuple[str, Path]]:
    """(call, input that it may not read)."""
    return [
        ("prepare", inputs / "raw" / "train" / "patient001" / "patient001_01_mask.png"),
        ("prepare-workers", inputs / "vol" / "imagesTr" / "phantom_001.nii.gz"),
        ("predict", inputs / "scans" / "phantom_002.nii.gz"),
        ("predict", inputs / "scans" / "phantom_001_asnrrd.nrrd"),
        ("predict", inputs / "model_vol.safetensors"),
        ("evaluate-folders", inputs / "found" / "phantom_002.nii.gz"),
        ("evaluate-folders", inputs / "vol" / "labelsTr" / "phantom_003.nii.gz"),
        ("follow-up", inputs / "vol" / "labelsTr" / "phantom_002.nii.gz"),
        ("train", _shard_that_trains(inputs / "prepared")),
        ("train", inputs / "prepared" / "dataset.json"),
    ]


def _shard_that_trains(prepared: Path) -> Path:
    cases = json.loads((prepared / "dataset.json").read_text())["cases"]
    return prepared / "shards" / next(case["shard"] for case in cases if case["fold"] == 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--call", action="append", choices=list(_ALL), help="only this one; may be repeated")
    options = parser.parse_args()
    if not can_mount():
        print("skipped: mounting a disk in memory needs root on Linux")
        return 0
    names = options.call or list(_ALL)
    began, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        folder = Path(place)
        inputs = make_inputs(folder / "inputs")
        for name in names:
            before = dict(tally.tries)
            _try_call(_ALL[name], inputs, folder / name, tally)
            counts = {kind: n - before.get(kind, 0) for kind, n in tally.tries.items() if n > before.get(kind, 0)}
            print(f"{name:18} {counts}", flush=True)
        tally.add("full TMPDIR", "predict with a full TMPDIR", full_temporary(inputs, folder / "temporary"))
    print(f"{tally.tries}, {len(tally.faults)} with faults, {time.monotonic() - began:.0f} s")
    return 1 if tally.faults else 0


def _try_call(call: Call, inputs: Path, folder: Path, tally: Tally) -> None:
    with small_disk(folder / "plain" / "work", size=_DISK) as disk:
        plain = undisturbed(call, inputs, folder / "plain")
        needed = used(disk)
    shares = (0.0, 0.5) if call.name == "demo" else _SHARES
    for number, share in enumerate(shares):
        faults = full(call, share, int(share * needed), plain.files, inputs, folder / f"full{number}")
        tally.add("full", f"{call.name} with {share:.0%} of {needed} bytes", faults)
    tries: dict[str, Callable[[Call, Path, Path], list[str]]] = {
        "read-only": read_only,
        "file in the way": in_the_way,
        "forbidden folder": forbidden_folder,
    }
    for kind, trial in tries.items():
        tally.add(kind, f"{call.name}: {kind}", trial(call, inputs, folder / kind.replace(" ", "_")))
    for number, (name, path) in enumerate(forbidden_inputs(inputs)):
        if name == call.name:
            with contextlib.suppress(FileNotFoundError):
                faults = forbidden_file(call, path, inputs, folder / f"unreadable{number}")
                tally.add("forbidden file", f"{name} may not read {path.name}", faults)


if __name__ == "__main__":
    sys.exit(main())
