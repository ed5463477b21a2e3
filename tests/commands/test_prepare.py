"""The prepared folder: what plain h5py finds in it, what is left out and said, and what a second run does."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers LZ4
import numpy as np
import pytest
from PIL import Image

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache import PrepareResult, exclusive_cache_writer, open_prepared, region_masks
from metaseg_cli.core.images import read_image, read_mask
from metaseg_cli.core.intensity import head_mask, normalise
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError


def run(raw: Path, out: Path, **settings: Any) -> PrepareResult:
    return prepare(PrepareConfig(raw=raw, out=out, workers=1, **settings), Silent())


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Four pictures with a bright square each."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        image = rng.integers(20, 120, (32, 40), dtype=np.uint8)
        mask = np.zeros((32, 40), np.uint8)
        image[8:14, 10:18], mask[8:14, 10:18] = 220, 255
        picture(tmp_path / "raw" / "images" / f"{name}.png", image)
        picture(tmp_path / "raw" / "masks" / f"{name}.png", mask)
    return tmp_path / "raw"


def test_plain_h5py_walks_the_index(prepared: Path) -> None:
    with h5py.File(prepared / "dataset.h5") as file:
        cases = file["cases"]
        assert len(cases) == 6
        group = cases["patient001"]
        assert group["image"].shape == (4, 1, 64, 64)  # (Z, C, Y, X)
        assert group["image"].dtype == np.float16
        assert group["image"].chunks == (1, 1, 64, 64)
        assert group["label"].shape == (4, 64, 64)
        assert group.attrs["patient"] == "patient001"
        assert len(json.loads(group.attrs["sources"])[0]["sha256"]) == 64


def test_the_cache_holds_the_normalised_pictures_and_their_masks(prepared: Path, raw: Path) -> None:
    folder = open_prepared(prepared)
    record = next(r for r in folder.cases if r.case == "patient002")
    files = sorted((raw / "train" / "patient002").glob("*_mask.png"))
    label = np.concatenate([read_mask(f).array[0] for f in files])
    np.testing.assert_array_equal(folder.label(record), label)
    image = np.concatenate(
        [normalise(read_image(f.with_name(f.name.replace("_mask", ""))).array, "slice") for f in files], axis=1
    )
    np.testing.assert_allclose(folder.image(record), image, atol=4e-3)
    box = (slice(1, 3), slice(10, 30), slice(5, 25))
    np.testing.assert_array_equal(folder.image(record, box), folder.image(record)[:, 1:3, 10:30, 5:25])


def test_the_listing_says_what_the_folder_holds(prepared: Path) -> None:
    listing = json.loads((prepared / "dataset.json").read_text())
    assert listing["schema"] == 4
    assert listing["sequences"] == ["grey"]
    assert listing["fingerprint"]["patients"] == 6
    assert {c["split"] for c in listing["cases"]} == {"train", "test"}
    assert (prepared / "report.html").exists()
    assert (prepared / "contact_sheet.png").exists()


def test_test_cases_are_in_no_fold(prepared: Path) -> None:
    folder = open_prepared(prepared)
    training, validation = folder.in_fold(0)
    names = {r.case for r in training} | {r.case for r in validation}
    assert not {r.case for r in training} & {r.case for r in validation}
    assert all(r.case not in names for r in folder.cases if r.split == "test")


def test_lesion_points_lie_on_lesions(prepared: Path) -> None:
    folder = open_prepared(prepared)
    for record in folder.cases:
        points = folder.lesion_points(record)
        label = folder.label(record)
        assert (label[tuple(points[:, 1:].T)] > 0).all()
        assert sum(record.lesion_voxels) == np.count_nonzero(label)


def test_bad_pairs_are_listed_with_a_reason_and_the_rest_is_prepared(few: Path, tmp_path: Path) -> None:
    (few / "images" / "text.png").write_text("not a picture")
    picture(few / "masks" / "text.png", np.zeros((32, 40), np.uint8))
    picture(few / "images" / "small.png", np.zeros((16, 16), np.uint8))
    picture(few / "masks" / "small.png", np.zeros((17, 16), np.uint8))
    picture(few / "images" / "alone.png", np.zeros((16, 16), np.uint8))
    result = run(few, tmp_path / "out")
    assert len(result.cases) == 4
    reasons = {p.file.name: p.reason for p in result.problems}
    assert set(reasons) == {"text.png", "small.png", "alone.png"}
    assert "16×17" in reasons["small.png"]
    assert all(p.remedy for p in result.problems)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "text.png" in report


def test_strict_fails_on_any_problem_and_leaves_nothing(few: Path, tmp_path: Path) -> None:
    picture(few / "images" / "alone.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(InputError, match=r"alone\.png"):
        run(few, tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_second_run_reads_only_what_changed(few: Path, tmp_path: Path) -> None:
    assert run(few, tmp_path / "out").reused == 0
    assert run(few, tmp_path / "out").reused == 4
    picture(few / "images" / "a.png", np.full((32, 40), 7, np.uint8))
    result = run(few, tmp_path / "out")
    assert result.reused == 3
    linked = {r.shard for r in result.cases}
    assert {p.name for p in (tmp_path / "out" / "shards").iterdir()} == linked
    with h5py.File(tmp_path / "out" / "dataset.h5") as file:
        assert all(file["cases"][r.case]["image"].shape == (1, 1, 32, 40) for r in result.cases)


def test_a_slice_that_cannot_be_read_is_said_by_every_run(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "train", tmp_path / "raw")
    (tmp_path / "raw" / "patient001" / "patient001_02.png").write_bytes(b"broken")
    for reused in (0, 5):
        result = run(tmp_path / "raw", tmp_path / "out")
        assert result.reused == reused
        assert [p.file.name for p in result.problems] == ["patient001_02.png"]
        assert next(r.shape[0] for r in result.cases if r.case == "patient001") == 3


def test_slices_of_another_size_become_a_case_of_their_own(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "train", tmp_path / "raw")
    for ending in ("", "_mask"):
        path = tmp_path / "raw" / "patient001" / f"patient001_03{ending}.png"
        with Image.open(path) as opened:
            cut = np.asarray(opened)[:50]
        picture(path, cut)
    shapes = {r.case: r.shape for r in run(tmp_path / "raw", tmp_path / "out").cases if r.patient == "patient001"}
    assert shapes == {"patient001": (3, 64, 64), "patient001_size2": (1, 50, 64)}


def test_a_removed_file_leaves_the_folder(few: Path, tmp_path: Path) -> None:
    run(few, tmp_path / "out")
    for kind in ("images", "masks"):
        (few / kind / "d.png").unlink()
    assert [r.case for r in run(few, tmp_path / "out").cases] == ["a", "b", "c"]


def test_leftovers_of_a_killed_run_are_cleared(few: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / ".writing-1-x.h5").write_bytes(b"half")
    (tmp_path / "out" / "shards" / "broken.h5").write_bytes(b"half")
    run(few, tmp_path / "out")
    assert all(p.suffix == ".h5" and not p.name.startswith(".") for p in (tmp_path / "out" / "shards").iterdir())
    assert not (tmp_path / "out" / "shards" / "broken.h5").exists()


def _hold(folder: Path, held: object, release: object) -> None:
    with exclusive_cache_writer(folder):
        held.set()
        release.wait(20)


def test_the_second_of_two_writers_is_refused_with_the_first_ones_pid(few: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out", held, release))
    process.start()
    try:
        assert held.wait(20)
        with pytest.raises(InputError, match=str(process.pid)):
            run(few, tmp_path / "out")
    finally:
        release.set()
        process.join()


def test_workers_prepare_the_same_as_one_process(raw: Path, prepared: Path, tmp_path: Path) -> None:
    prepare(PrepareConfig(raw=raw, out=tmp_path / "out", workers=2), Silent())
    one, two = open_prepared(prepared), open_prepared(tmp_path / "out")
    assert [r.case for r in one.cases] == [r.case for r in two.cases]
    for a, b in zip(one.cases, two.cases, strict=True):
        assert a == b
        np.testing.assert_array_equal(one.image(a), two.image(b))


def test_a_patient_in_train_and_test_folders_is_a_leak_and_said(tmp_path: Path, raw: Path) -> None:
    shutil.copytree(raw / "train", tmp_path / "raw" / "train")
    shutil.copytree(raw / "train" / "patient001", tmp_path / "raw" / "test" / "patient001")
    shutil.copytree(raw / "test", tmp_path / "raw" / "test", dirs_exist_ok=True)
    result = run(tmp_path / "raw", tmp_path / "out")
    assert [p.reason for p in result.problems if "patient001" in p.reason]
    assert all(r.split == "train" for r in result.cases if r.patient == "patient001")
    folds = {r.fold for r in result.cases if r.patient == "patient001"}
    assert len(folds) == 1


def test_a_validation_folder_is_the_only_fold(tmp_path: Path, few: Path) -> None:
    for kind in ("images", "masks"):
        for split, names in (("train", "abc"), ("val", "d")):
            (tmp_path / "split" / split / kind).mkdir(parents=True)
            for name in names:
                shutil.copy(few / kind / f"{name}.png", tmp_path / "split" / split / kind)
    run(tmp_path / "split", tmp_path / "out")
    training, validation = open_prepared(tmp_path / "out").in_fold(0)
    assert [r.case for r in training] == ["a", "b", "c"]
    assert [r.case for r in validation] == ["d"]


def test_regions_name_label_values() -> None:
    config = PrepareConfig(raw=Path("x"), region=("ET=3", "TC=1,3"))
    assert config.regions() == {"ET": (3,), "TC": (1, 3)}
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    np.testing.assert_array_equal(region_masks(label, config.regions())[:, 0, 0], [[0, 0, 0, 1], [0, 1, 0, 1]])
    assert region_masks(label, {"metastasis": ()})[0, 0, 0].tolist() == [False, True, True, True]


@pytest.mark.parametrize("wrong", [{"region": ("ET",)}, {"labels": "a"}, {"region": ("ET=0",)}, {"folds": 1}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PrepareConfig(raw=Path("x"), **wrong)


def test_grey_pictures_in_colour_are_one_channel_and_colour_ones_three(few: Path, tmp_path: Path) -> None:
    for path in (few / "images").iterdir():
        grey = np.asarray(Image.open(path))
        picture(path, np.dstack([grey] * 3))
    assert run(few, tmp_path / "grey").sequences == ("grey",)
    for path in (few / "images").iterdir():
        colour = np.asarray(Image.open(path)).copy()
        colour[..., 0] //= 3
        picture(path, colour)
    assert run(few, tmp_path / "colour").sequences == ("red", "green", "blue")


def test_a_slice_is_normalised_alike_alone_and_in_a_stack() -> None:
    stack = np.random.default_rng(0).integers(0, 255, (2, 5, 20, 20))
    np.testing.assert_array_equal(normalise(stack, "slice")[:, 2:3], normalise(stack[:, 2:3], "slice"))


def test_normalisation_is_of_the_head_not_of_the_background() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((1, 1, 64, 64))
    image[0, 0, 16:48, 16:48] = rng.normal(100, 10, (32, 32))
    inside = normalise(image, "case")[0, 0, 16:48, 16:48]
    assert abs(inside.mean()) < 0.05
    assert abs(inside.std() - 1) < 0.05
    assert head_mask(image.astype(np.float32))[0].sum() == 32 * 32


def test_a_constant_image_becomes_zero() -> None:
    assert not normalise(np.full((1, 2, 8, 8), 7), "slice").any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mets2d", "brisc2025", "brain_nrrd"])
def test_real_folders_are_prepared(real_data: Path, tmp_path: Path, name: str) -> None:
    result = prepare(PrepareConfig(raw=real_data / name, out=tmp_path / "out"), Silent())
    assert result.problems == ()
    assert all(r.lesion_voxels for r in result.cases)
