"""A share of the kills and of the full disks: nothing lost, nothing half-written, the same call again finishes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.images import Volume, read_mask, write_mask
from metaseg_cli.errors import InputError
from tests.faults.calls import CALLS, make_inputs
from tests.faults.disturb import Undisturbed, disturb, draw, undisturbed
from tests.faults.full_disk import can_mount, filled, forbidden_file, full, read_only, small_disk

pytestmark = [pytest.mark.kill, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]
KILLED = ("prepare-workers", "train", "predict-pictures", "evaluate-folders", "follow-up")
KILLS = 12
PAGES_LEFT = (0, 1, 2, 4, 8, 16, 32, 1000)  # of 4096 bytes
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgz", ".nrrd", ".mha", ".mhd", ".nhdr", ".tif", ".png", ".bmp")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("faults") / "inputs", model_of_volumes=False)


@pytest.fixture(scope="module")
def plain(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """What calls leave that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda name: undisturbed(CALLS[name], inputs, folder / name), KILLED)
    return dict(zip(KILLED, results, strict=True))


@pytest.mark.slow
def test_calls_that_are_stopped_or_killed_end_like_undisturbed_ones(
    plain: dict[str, Undisturbed], inputs: Path, tmp_path: Path
) -> None:
    def one(number: int) -> tuple[str, ...]:
        name = KILLED[number % len(KILLED)]
        moment = draw(np.random.default_rng([1, number]), plain[name])
        outcome = disturb(CALLS[name], moment, plain[name], inputs, tmp_path / str(number))
        return tuple(f"{name}, {moment}: {fault}" for fault in outcome.faults)

    with ThreadPoolExecutor(2) as pool:
        faults = [fault for found in pool.map(one, range(KILLS)) for fault in found]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounts a disk in memory, which needs root")
@pytest.mark.parametrize(("name", "share"), [("prepare-workers", 0.5), ("predict-pictures", 0.4), ("follow-up", 0.0)])
def test_a_full_disk_is_said_and_the_same_call_finishes_when_there_is_room(
    plain: dict[str, Undisturbed], inputs: Path, tmp_path: Path, name: str, share: float
) -> None:
    size = {"prepare-workers": 700_000, "predict-pictures": 200_000, "follow-up": 1}[name]
    assert not full(CALLS[name], share, int(share * size), plain[name].files, inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounts a disk in memory, which needs root")
def test_a_read_only_disk_and_a_forbidden_file_are_said(inputs: Path, tmp_path: Path) -> None:
    assert not read_only(CALLS["predict-pictures"], inputs, tmp_path / "disk")
    unreadable = inputs / "found" / "phantom_002.nii.gz"
    assert not forbidden_file(CALLS["evaluate-folders"], unreadable, inputs, tmp_path / "file")


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounts a disk in memory, which needs root")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves closing to Python
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_whole_or_absent_on_a_full_disk(suffix: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (8, 64, 64)).astype(np.uint8)
    if suffix in (".png", ".bmp"):
        mask = np.tile(mask[:1], (1, 4, 4))
    like = Volume(
        array=np.zeros((1, *mask.shape), np.float32),
        spacing_mm=None if is_picture(Path(f"a{suffix}")) else (1.0, 1.0, 1.0),
        source=Path(f"scan{suffix}"),
    )
    refused = written = 0
    with small_disk(tmp_path / "disk") as disk:
        path = disk / f"a{suffix}"
        for room in PAGES_LEFT:
            with filled(disk, room * 4096):
                try:
                    write_mask(path, mask, like)
                except InputError as error:
                    refused += error.what == "the disk is full"
                    assert [p.name for p in disk.iterdir()] == ["ballast"]
                else:
                    written += 1
                    np.testing.assert_array_equal(read_mask(path).array[0], mask)
                    for left in [p for p in disk.iterdir() if p.name != "ballast"]:
                        left.unlink()
    assert refused
    assert written
    assert refused + written == len(PAGES_LEFT)
