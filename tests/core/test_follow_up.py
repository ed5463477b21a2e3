"""Lesions over visits: spheres whose sizes are known, and what RANO-BM says of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from metaseg_cli.cli import app
from metaseg_cli.commands.follow_up import FollowUpReport, follow_up
from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.images import align_rigidly, read_image
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom, write_phantom_volumes
from metaseg_cli.errors import ConfigError, InputError

Ball = tuple[tuple[float, float, float], float]  # centre (x, y, z) in mm, diameter
A, B, C = (20.0, 20.0, 20.0), (20.0, 50.0, 20.0), (50.0, 30.0, 25.0)


def write(path: Path, *balls: Ball, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """A mask of 70 × 70 × 50 mm; *spacing* is (x, y, z)."""
    size = [round(n / s) for n, s in zip((70, 70, 50), spacing, strict=True)]
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip(size[::-1], spacing[::-1], strict=True)), indexing="ij")
    mask = np.zeros(z.shape, np.uint8)
    for (cx, cy, cz), diameter in balls:
        mask[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < (diameter / 2) ** 2] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def course(folder: Path, *visits: list[Ball], **settings: Any) -> FollowUpReport:
    paths = [str(write(folder / f"visit{i}.nii.gz", *balls)) for i, balls in enumerate(visits)]
    return follow_up(FollowUpConfig(visits=tuple(paths), out=folder / "out", **settings), Silent())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("visits", "categories"),
    [
        ([[(A, 20)], [(A, 19)]], ["baseline", "SD"]),
        ([[(A, 20)], [(A, 12)]], ["baseline", "PR"]),
        ([[(A, 20)], []], ["baseline", "CR"]),
        ([[(A, 20)], [(A, 27)]], ["baseline", "PD"]),
        ([[(A, 20)], [(A, 20), (C, 8)]], ["baseline", "PD"]),  # a new one
        ([[(A, 20)], [(A, 10)], [(A, 17)]], ["baseline", "PR", "PD"]),  # against the smallest sum, not against baseline
        ([[(A, 20)], [(A, 13)], [(A, 16.2)]], ["baseline", "PR", "SD"]),  # a fifth more, but less than 5 mm
        ([[(A, 20)], [], [(A, 6)]], ["baseline", "CR", "PD"]),
        ([[(A, 6)], [(A, 7)]], ["baseline", "non-CR/non-PD"]),
        ([[(A, 20), (B, 6)], [(B, 6)]], ["baseline", "PR"]),  # another lesion is left: no complete response
        ([[], []], ["baseline", "non-CR/non-PD"]),
        ([[], [(A, 8)]], ["baseline", "PD"]),
    ],
)
def test_categories(tmp_path: Path, visits: list[list[Ball]], categories: list[str]) -> None:
    assert [visit.category for visit in course(tmp_path, *visits).result.visits] == categories


def test_diameters_sums_and_changes(tmp_path: Path) -> None:
    result = course(tmp_path, [(A, 20), (B, 12), (C, 5)], [(A, 14), (B, 12), (C, 5)])
    first, second = result.result.visits
    assert first.sum_mm == pytest.approx(32, abs=2.5)
    assert second.from_baseline == pytest.approx(100 * (26 - 32) / 32, abs=3)
    assert [lesion.target for lesion in result.result.lesions] == [True, True, False]
    rows = list(csv.DictReader((tmp_path / "out" / "follow_up.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert float(rows[1]["from_first_percent"]) == pytest.approx(-30, abs=4)
    assert [float(rows[0][k]) for k in ("x_mm", "y_mm", "z_mm")] == pytest.approx(A, abs=0.2)
    document = json.loads((tmp_path / "out" / "follow_up.json").read_text())
    assert "not a medical device" in document["notes"][-1]
    assert document["visits"][1]["category"] == "SD"
    assert (tmp_path / "out" / "course.png").stat().st_size > 5000


def test_lesions_that_merge_and_come_apart_are_known_again(tmp_path: Path) -> None:
    apart: list[Ball] = [((20, 20, 20), 12), ((20, 36, 20), 10)]
    result = course(tmp_path, apart, [((20, 20, 20), 17), ((20, 36, 20), 17)], apart)
    one, two = result.result.lesions
    assert [one.state(v) for v in range(3)] == ["there"] * 3
    assert [two.state(v) for v in range(3)] == ["there", "merged into 1", "there"]
    assert len(one.at_visits[1].parts) == 1


def test_a_lesion_that_splits_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    whole: list[Ball] = [((20, 20, 20), 14), ((20, 30, 20), 14)]
    result = course(tmp_path, whole, [((20, 18, 20), 8), ((20, 33, 20), 8)])
    (lesion,) = result.result.lesions
    assert lesion.state(1) == "split in 2"
    assert lesion.at_visits[1].longest_mm == pytest.approx(16, abs=2)


def test_small_lesions_that_moved_a_little_are_the_same(tmp_path: Path) -> None:
    moved = [(A, 3.5)], [((24.0, 20.0, 20.0), 3.5)]
    assert [x.state(1) for x in course(tmp_path, *moved).result.lesions] == ["there"]
    far = course(tmp_path, *moved, match_distance=0.5, overwrite=True)
    assert [x.state(1) for x in far.result.lesions] == ["gone", "new"]


def test_other_grids_are_placed_by_their_coordinates(tmp_path: Path) -> None:
    first = write(tmp_path / "a.nii.gz", (A, 16), (C, 12))
    second = write(tmp_path / "b.nrrd", (A, 16), (C, 12), spacing=(0.7, 0.7, 2.0))
    result = follow_up(FollowUpConfig(visits=(str(first), str(second)), out=tmp_path / "out"), Silent())
    assert len(result.result.lesions) == 2
    assert result.result.visits[1].category == "SD"
    assert any("another grid" in note for note in result.document.notes)


@pytest.mark.slow
def test_rigid_alignment_finds_a_turned_and_shifted_head(tmp_path: Path) -> None:
    phantom = make_phantom(5, PhantomSettings(shape=(40, 88, 72), spacing_mm=(2.0, 2.0, 2.0)))
    image = sitk.GetImageFromArray(phantom.image[0])
    image.SetSpacing(phantom.spacing_mm[::-1])
    centre = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    true = sitk.Euler3DTransform(centre, 0.06, -0.04, 0.1, (6.0, -4.0, 3.0))  # first visit's points → second's
    reference = sitk.Image([80, 96, 44], sitk.sitkFloat32)
    reference.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(sitk.Resample(image, reference, true.GetInverse()), str(tmp_path / "b.nii.gz"))
    found = align_rigidly(read_image(tmp_path / "b.nii.gz"), read_image(tmp_path / "a.nii.gz"))
    for place in ((40.0, 60.0, 30.0), (90.0, 120.0, 50.0), (70.0, 90.0, 40.0)):
        back = found @ [*true.TransformPoint(place), 1.0]
        assert np.linalg.norm(back[:3] - place) < 1.0


@pytest.mark.slow
def test_scans_are_segmented_and_aligned_first(trained: Path, tmp_path: Path) -> None:
    write_phantom_volumes(tmp_path, 1, PhantomSettings(shape=(8, 64, 64)), seed=1)
    scan = next((tmp_path / "imagesTr").glob("*.nii.gz"))
    image = sitk.ReadImage(str(scan))
    image.SetOrigin((30.0, -12.0, 5.0))  # the patient lies elsewhere on the table
    sitk.WriteImage(image, str(tmp_path / "later.nii.gz"))
    visits = (str(scan), str(tmp_path / "later.nii.gz"))
    result = follow_up(FollowUpConfig(visits=visits, model=str(trained), out=tmp_path / "out"), Silent())
    assert any("aligned rigidly" in note for note in result.document.notes)
    assert result.result.visits[1].category in ("SD", "non-CR/non-PD")


def test_the_terminal_says_what_happened(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / name, *balls)) for name, balls in (("may.mha", [(A, 20)]), ("june.mha", [(A, 11)]))]
    done = CliRunner().invoke(app, ["follow-up", *paths, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for word in ("may", "june", "PR", "target", "not a medical device"):
        assert word in done.output


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    mask = str(write(tmp_path / "a.nii.gz", (A, 10)))
    with pytest.raises(ConfigError, match="two visits"):
        FollowUpConfig(visits=(mask,))
    with pytest.raises(InputError, match="no such file"):
        follow_up(FollowUpConfig(visits=(mask, str(tmp_path / "b.nii.gz")), out=tmp_path / "out"), Silent())
    (tmp_path / "c.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"c\.nii\.gz"):
        follow_up(FollowUpConfig(visits=(mask, str(tmp_path / "c.nii.gz")), out=tmp_path / "out"), Silent())
    assert not (tmp_path / "out").exists()
    settings = FollowUpConfig(visits=(mask, mask), out=tmp_path / "out")
    assert [v.visit for v in follow_up(settings, Silent()).document.visits] == ["visit 1", "visit 2"]
    with pytest.raises(InputError, match="--overwrite"):
        follow_up(settings, Silent())
