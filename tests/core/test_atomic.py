"""What a stop, a kill or a full disk leaves: whole files, no litter of the dead, and one writer at a time."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from metaseg_cli.commands import demo
from metaseg_cli.core.atomic import (
    _here,
    atomic_write,
    atomic_write_bytes,
    clear_leftovers,
    exclusive_writer,
    make_folder,
    temporary_folder,
)
from metaseg_cli.core.images import Volume, read_mask, write_mask
from metaseg_cli.core.run_folder import new_run
from metaseg_cli.errors import InputError


def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_two_writers_of_a_folder_are_one_too_many(tmp_path: Path) -> None:
    with (
        exclusive_writer(tmp_path, "metaseg train"),
        pytest.raises(InputError, match=rf"another metaseg train is writing it \(process {os.getpid()}\)"),
        exclusive_writer(tmp_path, "metaseg train"),
    ):
        pass
    with exclusive_writer(tmp_path, "metaseg train"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_new_run_clears_the_locks_of_runs_that_were_killed(tmp_path: Path) -> None:
    killed, alive = new_run(tmp_path, "attention-unet"), new_run(tmp_path, "attention-unet")
    (killed / ".lock").write_text(str(dead()))
    with exclusive_writer(alive, "metaseg train"):
        new_run(tmp_path, "attention-unet")
        assert (alive / ".lock").exists()
    assert not list(killed.iterdir())


def test_a_disk_without_locks_is_not_taken_for_a_busy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with exclusive_writer(tmp_path, "metaseg train"):
        pass


def test_only_what_the_dead_left_is_cleared(tmp_path: Path) -> None:
    here, there = _here(), "00000000"
    names = {
        "dead": f".metaseg-{here}-{dead()}-a.png",
        "living": f".metaseg-{here}-{os.getpid()}-a.png",
        "born later": f".metaseg-{here}-{os.getpid()}-b.png",
        "elsewhere": f".metaseg-{there}-{dead()}-a.png",
        "elsewhere, long ago": f".metaseg-{there}-{dead()}-b.png",
        "somebody's own": ".metaseg-demo",
    }
    for name in names.values():
        (tmp_path / name).touch()
    long_ago = time.time() - 10**6
    for name in ("born later", "elsewhere, long ago"):
        os.utime(tmp_path / names[name], (long_ago, long_ago))
    clear_leftovers(tmp_path)
    left = {what for what, name in names.items() if (tmp_path / name).exists()}
    assert left == {"living", "elsewhere", "somebody's own"}


def test_temporary_folders_of_the_dead_go_too(tmp_path: Path) -> None:
    old = tmp_path / f".metaseg-{_here()}-{dead()}-volume-x"
    (old / "patient").mkdir(parents=True)
    make_folder(tmp_path)
    with temporary_folder("volume", tmp_path / "a.mhd") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a" * 248 + ".nii.gz", "ä" * 120 + ".nii.gz"])
def test_a_temporary_name_is_short_enough_and_keeps_the_suffix(tmp_path: Path, name: str) -> None:
    used = []

    def write(to: Path) -> None:
        used.append(to.name)
        to.write_bytes(b"x")

    atomic_write(tmp_path / name, write)
    assert used[0].endswith(".nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/inside/it"):
        with pytest.raises(InputError, match="file: a file, not a folder"):
            make_folder(tmp_path / folder)
    with pytest.raises(InputError, match="file: a file, not a folder"):
        atomic_write_bytes(tmp_path / "file" / "x", b"")


def volume() -> Volume:
    return Volume(array=np.zeros((1, 4, 8, 8), np.float32), spacing_mm=(1.0, 1.0, 1.0), source=Path("scan.nrrd"))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_half_a_file_that_itk_writes_in_silence_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write = sitk.WriteImage

    def write_half(image: sitk.Image, path: str, **options: Any) -> None:
        write(image, path, **options)
        for part in Path(path).parent.glob(f"*{Path(path).stem}.*"):
            part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    mask = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(np.uint8)
    with pytest.raises(InputError, match="not all of it was written"):
        write_mask(tmp_path / f"a{suffix}", mask, volume())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "files"), [("a.hdr", {"a.hdr", "a.img"}), ("a.mhd", {"a.mhd", "a.zraw"})])
def test_formats_of_two_files_come_with_both_and_nothing_else(tmp_path: Path, name: str, files: set[str]) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(np.uint8)
    for _ in range(2):
        write_mask(tmp_path / name, mask, volume())
        assert {p.name for p in tmp_path.iterdir()} == files
    if name.endswith(".hdr"):
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / name).dataobj).transpose(2, 1, 0), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / name).array[0], mask)


def test_a_demo_that_is_killed_while_it_clears_its_folder_may_clear_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "runs"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            demo._clear(tmp_path)
    assert (tmp_path / demo._MARK).exists()
    demo._clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [demo._MARK]


_SLEEPERS = """
import os, sys, time
from pathlib import Path
from metaseg_cli.core.executor import map_cases

def sleep(n):
    os.write(1, f"{os.getpid()}\\n".encode())  # a line at once: another process writes to the same pipe
    time.sleep(60)

def file_of(n):
    return Path("x")

if __name__ == "__main__":
    list(map_cases(sleep, [0, 1], 2, file_of=file_of, log_folder=None))
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(_SLEEPERS)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


@pytest.mark.slow
def test_workers_do_not_keep_a_stopped_program_waiting(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(_SLEEPERS)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)  # a third of what they sleep
    assert "KeyboardInterrupt" in said


_SWALLOWED = """import os, signal
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise RecursionError from None"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')", _SWALLOWED])
def test_an_interruption_ends_with_130_wherever_it_comes(how: str) -> None:
    code = (
        "import sys, metaseg_cli.cli as cli\n"
        f"def main():\n    {how}\n"
        "cli.main = main\nfrom metaseg_cli.__main__ import main as program\nprogram()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
