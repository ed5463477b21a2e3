"""Masks that hold only the slices or the box of their lesions are scored on what holds both, and nothing is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.evaluation.folder_pairs import evaluate_folder
from metaseg_cli.core.images import read_scan, write_mask
from metaseg_cli.core.progress import Silent
from tests.dicom_files import SHAPE, make_seg, numbers, square, write_rtstruct, write_series


def score(folder: Path) -> tuple[dict[str, float | None], list[str]]:
    """Return the metrics of the only case in *folder*'s ``mine`` and ``truth``, and the problems."""
    config = EvaluateConfig(predictions=folder / "mine", references=folder / "truth", out=folder / "out", workers=1)
    result = evaluate_folder(folder / "mine", folder / "out", config, Silent())
    (case,) = result.evaluation.cases
    return dict(case.regions["metastasis"]), [problem.reason for problem in result.problems]


def expected(mine: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((mine & truth).sum()) / float(mine.sum() + truth.sum())


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("mine", "truth"):
        (tmp_path / name).mkdir()
    return tmp_path


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Mine and truth; mine marks slices that the truth does not have."""
    mine, truth = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[2:4, 4:9, 5:10] = True
    mine[1:4, 5:9, 5:11] = mine[5, 12:15, 2:6] = True
    return mine, truth


@pytest.mark.parametrize("cropped", ["truth", "mine", "both"])
def test_a_seg_of_its_lesions_slices_is_scored_on_the_scan(folders: Path, cropped: str) -> None:
    files = write_series(folders / "series", numbers())
    mine, truth = masks()
    for side, mask in (("mine", mine), ("truth", truth)):
        if cropped in (side, "both"):
            make_seg(folders / side / "case1.dcm", files, mask, "BINARY")  # it leaves out empty slices
        else:
            write_mask(folders / side / "case1.nii.gz", mask.astype(np.uint8), read_scan(files))
    found, problems = score(folders)
    assert problems == []
    assert found["dice"] == pytest.approx(expected(mine, truth))
    assert (found["lesion_tp"], found["lesion_fp"], found["lesion_fn"]) == (1, 1, 0)


def test_a_seg_of_one_slice_is_scored(folders: Path) -> None:
    files = write_series(folders / "series", numbers())
    mine, truth = masks()
    truth[3] = False
    make_seg(folders / "truth" / "case1.dcm", files, truth, "BINARY")
    write_mask(folders / "mine" / "case1.nii.gz", mine.astype(np.uint8), read_scan(files))
    found, problems = score(folders)
    assert problems == []
    assert found["dice"] == pytest.approx(expected(mine, truth))
    assert found["volume_ml_prediction"] == pytest.approx(
        mine.sum() * np.prod(read_scan(files).spacing_mm or ()) / 1000
    )


def boxed(path: Path, mask: np.ndarray, box: tuple[slice, slice, slice], shift: float = 0.0) -> None:
    """Save a box of *mask*, in its place, moved by *shift* mm."""
    image = sitk.GetImageFromArray(mask[box].astype(np.uint8))
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetOrigin([s * (b.start or 0) + shift for s, b in zip((0.8, 0.9, 3.0), reversed(box), strict=True)])
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_boxes_that_overlap_in_part_are_scored_on_what_holds_both(folders: Path, ending: str) -> None:
    mine, truth = masks()
    boxed(folders / "mine" / f"case1.{ending}", mine, (slice(1, 6), slice(5, 15), slice(2, 11)))
    boxed(folders / "truth" / f"case1.{ending}", truth, (slice(2, 4), slice(4, 9), slice(5, 10)))
    found, problems = score(folders)
    assert problems == []  # a full box is no inverted mask
    assert found["dice"] == pytest.approx(expected(mine, truth))
    assert found["volume_ml_reference"] == pytest.approx(truth.sum() * 0.8 * 0.9 * 3 / 1000)


def test_parts_of_one_case_in_boxes_of_their_own_are_united(folders: Path) -> None:
    mine, truth = masks()
    boxed(folders / "truth" / "case1.nii.gz", truth, (slice(0, 6), slice(0, 20), slice(0, 24)))
    boxed(folders / "mine" / "case1_mask_1.nii.gz", mine, (slice(1, 4), slice(5, 9), slice(5, 11)))
    boxed(folders / "mine" / "case1_mask_2.nii.gz", mine, (slice(5, 6), slice(12, 15), slice(2, 6)))
    found, problems = score(folders)
    assert all("united" in reason for reason in problems)
    assert found["dice"] == pytest.approx(expected(mine, truth))


def test_a_box_between_the_voxels_is_refused_with_its_size(folders: Path) -> None:
    mine, truth = masks()
    boxed(folders / "mine" / "case1.nii.gz", mine, (slice(0, 6), slice(0, 20), slice(0, 24)))
    boxed(folders / "truth" / "case1.nii.gz", truth, (slice(2, 4), slice(4, 9), slice(5, 10)), shift=0.4)
    found, problems = score(folders)
    assert found["dice"] == 0
    assert any("its size (24×20×6) is not case1.nii.gz's (5×5×2)" in reason for reason in problems)


def test_a_box_far_away_does_not_fill_the_memory(folders: Path) -> None:
    mine, truth = masks()
    boxed(folders / "mine" / "case1.nii.gz", mine, (slice(0, 6), slice(0, 20), slice(0, 24)))
    boxed(folders / "truth" / "case1.nii.gz", truth, (slice(2, 4), slice(4, 9), slice(5, 10)), shift=7200.0 * 3)
    found, problems = score(folders)
    assert found["dice"] == 0
    assert any("its size" in reason for reason in problems)


def test_contours_beyond_the_reference_are_drawn_whole(folders: Path) -> None:
    files = write_series(folders / "series", numbers())
    scan, head = read_scan(files), pydicom.dcmread(files[0])
    truth = np.zeros(SHAPE, bool)
    truth[2:4, 4:9, 4:9] = True
    make_seg(folders / "truth" / "case1.dcm", files, truth, "BINARY")
    outlines = {"met": [square(3.5, 8.5, z) for z in (1, 2, 3, 4)], "met 2": [square(11.5, 14.5, 5)]}
    path = folders / "mine" / "case1.dcm"
    write_rtstruct(path, scan, head.StudyInstanceUID, head.SeriesInstanceUID, outlines)
    mine = np.zeros(SHAPE, bool)
    mine[1:5, 4:9, 4:9] = mine[5, 12:15, 12:15] = True
    found, problems = score(folders)
    assert problems == []
    assert found["dice"] == pytest.approx(expected(mine, truth))
