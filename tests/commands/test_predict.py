"""Prediction: results in the input's own size and format, and one bad file that stops nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metaseg_cli
from metaseg_cli.commands.predict import PredictResult, predict
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.atomic import exclusive_writer
from metaseg_cli.core.images import read_mask
from metaseg_cli.core.inference.finished_scans import EarlierScan, FinishedScans
from metaseg_cli.core.inference.memory import bytes_per_voxel, fitting_windows
from metaseg_cli.core.inference.pipeline import at_threshold
from metaseg_cli.core.inference.windows import LARGEST
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.results import ScanResult
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.core.typed_json import build
from metaseg_cli.errors import ConfigError, InputError


def run(trained: Path, out: Path, *inputs: Path, **settings: Any) -> PredictResult:
    config = PredictConfig(inputs=tuple(map(str, inputs)), model=str(trained), out=out, **settings)
    return predict(config, Silent(), keep=True)


@pytest.fixture
def scan(raw: Path) -> Path:
    return raw / "train" / "patient001" / "patient001_02.png"


def test_a_picture_gets_mask_overlay_and_tables(trained: Path, scan: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path / "out", scan, threshold=0.02)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"patient001_02_mask.png", "patient001_02_overlay.png", "lesions.csv", "predictions.json"}
    with Image.open(tmp_path / "out" / "patient001_02_mask.png") as mask, Image.open(scan) as picture:
        assert mask.size == picture.size
        assert mask.mode == "L"
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    lesions = document["scans"][0]["lesions"]
    rows = list(csv.DictReader((tmp_path / "out" / "lesions.csv").read_text().splitlines()))
    assert len(rows) == len(lesions) == len(result.scans[0].prediction.lesions["metastasis"])
    assert document["threshold"] == 0.02


LOSSY = (".jpg", ".webp", ".gif")  # their scans get PNG masks: JPEG changes labels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".gif"])
@pytest.mark.parametrize("size", [(64, 64), (37, 51), (200, 90)])
def test_masks_come_in_the_inputs_size_and_format(
    trained: Path, tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"scan{suffix}")
    result = run(trained, tmp_path / "out", tmp_path / f"scan{suffix}", threshold=0.3)
    mask = tmp_path / "out" / f"scan_mask{'.png' if suffix in LOSSY else suffix}"
    with Image.open(mask) as picture:
        assert picture.size == size[::-1]
    np.testing.assert_array_equal(read_mask(mask).array[0], result.scans[0].prediction.mask > 0)


def test_bad_files_are_listed_and_the_others_go_on(trained: Path, scan: Path, tmp_path: Path) -> None:
    bad = tmp_path / "in"
    bad.mkdir()
    shutil.copy(scan, bad / "good.png")
    (bad / "text.png").write_text("hello")
    (bad / "cut.png").write_bytes(scan.read_bytes()[:500])
    (bad / "empty.nii.gz").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(bad / "colour.png")
    result = run(trained, tmp_path / "out", bad, tmp_path / "nowhere.png", bad / "notes.txt")
    reasons = {p.file.name: p.reason for p in result.problems}
    assert set(reasons) == {"text.png", "cut.png", "empty.nii.gz", "colour.png", "nowhere.png", "notes.txt"}
    assert "1 channel" in reasons["colour.png"]
    assert "damaged" in reasons["cut.png"]
    assert all(p.remedy for p in result.problems)
    assert [s.scan.name for s in result.document.scans] == ["good.png"]
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_a_grey_picture_saved_in_colour_is_taken_as_grey(trained: Path, scan: Path, tmp_path: Path) -> None:
    with Image.open(scan) as picture:
        picture.convert("RGB").save(tmp_path / "colour.png")
    grey = run(trained, tmp_path / "a", scan).scans[0].prediction
    colour = run(trained, tmp_path / "b", tmp_path / "colour.png").scans[0].prediction
    np.testing.assert_array_equal(grey.probabilities, colour.probabilities)


def test_results_of_other_settings_are_not_overwritten_unless_asked(trained: Path, scan: Path, tmp_path: Path) -> None:
    run(trained, tmp_path, scan)
    before = (tmp_path / "patient001_02_mask.png").stat().st_mtime_ns
    again = run(trained, tmp_path, scan, threshold=0.1)
    assert "--overwrite" in again.problems[0].remedy
    assert (tmp_path / "patient001_02_mask.png").stat().st_mtime_ns == before
    assert run(trained, tmp_path, scan, threshold=0.1, overwrite=True).problems == ()


def test_a_finished_scan_is_kept_and_stands_in_the_tables_again(trained: Path, scan: Path, tmp_path: Path) -> None:
    other = scan.with_name("patient001_03.png")
    first = run(trained, tmp_path, scan, threshold=0.02)
    before = (tmp_path / "patient001_02_mask.png").stat().st_mtime_ns
    both = run(trained, tmp_path, scan, other, threshold=0.02)
    assert [s.kept for s in both.scans] == [True, False]
    assert both.scans[0].result == first.scans[0].result
    assert (tmp_path / "patient001_02_mask.png").stat().st_mtime_ns == before
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert [Path(s["scan"]) for s in document["scans"]] == [scan, other]
    rows = list(csv.DictReader((tmp_path / "lesions.csv").read_text().splitlines()))
    assert len(rows) == sum(len(s["lesions"]) for s in document["scans"])
    assert [s.kept for s in run(trained, tmp_path, other, threshold=0.02).scans] == [True]
    assert [s.kept for s in run(trained, tmp_path, scan, threshold=0.02).scans] == [True]  # known from two calls before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_a_killed_call_left_is_done_again(trained: Path, scan: Path, tmp_path: Path) -> None:
    whole = run(trained, tmp_path / "a", scan, threshold=0.02)
    records = FinishedScans(tmp_path / "b")
    records.begin("patient001_02", whole.scans[0].result.key)
    (tmp_path / "b" / "patient001_02_overlay.png").write_bytes(b"half a pictu")
    again = run(trained, tmp_path / "b", scan, threshold=0.02)
    assert again.problems == ()
    for name in ("patient001_02_overlay.png", "patient001_02_mask.png"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_kill_of_one_call_and_another_in_between_lose_nothing(trained: Path, scan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    shutil.copy(scan, other)
    out = tmp_path / "out"
    predict(PredictConfig(inputs=(str(scan),), model=str(trained), out=out), Silent())
    entry = json.loads((out / "predictions.json").read_text())["scans"][0]
    records = FinishedScans(out)
    (out / "predictions.json").unlink()  # as if the first call had been killed before its tables
    records.begin(entry["name"], entry["key"])
    records.finish(build(ScanResult, entry))
    records.begin("unfinished", "its key")
    predict(PredictConfig(inputs=(str(other),), model=str(trained), out=out), Silent())
    assert FinishedScans(out).earlier(entry["name"]) == EarlierScan(key=entry["key"], result=build(ScanResult, entry))
    assert FinishedScans(out).earlier("unfinished") == EarlierScan(key="its key")
    again = predict(PredictConfig(inputs=(str(scan),), model=str(trained), out=out), Silent())
    assert [each.kept for each in again.scans] == [True]


def test_two_calls_do_not_write_one_folder(trained: Path, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        exclusive_writer(out, "metaseg predict"),
        pytest.raises(InputError, match=rf"another metaseg predict is writing it \(process {os.getpid()}\)"),
    ):
        predict(PredictConfig(inputs=(str(scan),), model=str(trained), out=out), Silent())


def test_a_changed_scan_is_not_taken_for_finished(trained: Path, scan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scan.png"
    shutil.copy(scan, copy)
    run(trained, tmp_path / "out", copy)
    shutil.copy(scan.with_name("patient001_03.png"), copy)
    assert "--overwrite" in run(trained, tmp_path / "out", copy).problems[0].remedy


def test_scans_of_one_name_from_two_folders_do_not_collide(trained: Path, scan: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(scan, tmp_path / folder / "scan.png")
    result = run(trained, tmp_path / "out", tmp_path / "one", tmp_path / "two")
    assert sorted(s.mask.name for s in result.document.scans) == ["one_scan_mask.png", "two_scan_mask.png"]


def test_scans_that_differ_in_format_alone_do_not_collide(trained: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for suffix in (".png", ".jpg", ".webp"):
        with Image.open(scan) as picture:
            picture.save(tmp_path / "in" / f"scan{suffix}")
    result = run(trained, tmp_path / "out", tmp_path / "in")
    assert len({s.mask for s in result.document.scans}) == 3
    assert all(s.mask.exists() and s.mask.suffix == ".png" for s in result.document.scans)


def test_images_of_an_unknown_kind_are_named(trained: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scan, tmp_path / "in" / "scan.png")
    (tmp_path / "in" / "photo.HEIC").write_bytes(b"anything")
    result = run(trained, tmp_path / "out", tmp_path / "in")
    assert len(result.scans) == 1
    assert [(p.file.name, "does not read" in p.reason) for p in result.problems] == [("photo.HEIC", True)]


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_scan_that_shows_nothing_is_refused(trained: Path, tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(tmp_path / "scan.png")
    result = run(trained, tmp_path / "out", tmp_path / "scan.png")
    assert not result.scans
    assert result.problems[0].reason == f"constant: every voxel is {value}"


def test_a_folder_means_its_scans_not_its_masks(trained: Path, raw: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path / "a", raw / "train" / "patient001")
    assert sorted(s.scan.name for s in result.document.scans) == [f"patient001_{i:02d}.png" for i in (1, 2, 3, 4)]
    for kind, ending in (("images", ""), ("masks", "_mask")):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        shutil.copy(raw / "train" / "patient001" / f"patient001_01{ending}.png", tmp_path / "pairs" / kind / "one.png")
    result = run(trained, tmp_path / "b", tmp_path / "pairs")
    assert [str(s.scan.relative_to(tmp_path)) for s in result.document.scans] == ["pairs/images/one.png"]


def test_probabilities_are_written_when_asked(trained: Path, scan: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path, scan, probabilities=True)
    with Image.open(tmp_path / "patient001_02_probability.png") as picture:
        values: Any = np.asarray(picture) / 65535
    np.testing.assert_allclose(values, result.scans[0].prediction.probabilities[0, 0], atol=1e-4)


def test_a_lower_threshold_finds_no_less(trained: Path, scan: Path, tmp_path: Path) -> None:
    prediction = run(trained, tmp_path, scan).scans[0].prediction
    assert prediction is not None
    model = metaseg_cli.load_model(trained / "model.safetensors")
    sizes = [at_threshold(model, prediction, t).mask.sum() for t in (0.9, 0.5, 0.1, 0.01)]
    assert sizes == sorted(sizes)


def test_mirror_images_and_votes(trained: Path, scan: Path, tmp_path: Path) -> None:
    once = run(trained, tmp_path / "once", scan).scans[0].prediction
    more = run(trained, tmp_path / "more", scan, tta=True).scans[0].prediction
    assert once is not None
    assert more is not None
    assert not np.array_equal(once.probabilities, more.probabilities)
    voted = run(trained, tmp_path / "voted", scan, tta=True, fusion="vote")
    shares = voted.scans[0].prediction
    assert shares is not None
    assert set(np.unique(shares.probabilities)) <= {0, 0.25, 0.5, 0.75, 1}
    document = json.loads((tmp_path / "voted" / "predictions.json").read_text())
    assert (document["tta"], document["fusion"], document["threshold"]) == (True, "vote", 0.5)


def test_uncertainty_and_disagreement_are_written_when_asked(trained: Path, scan: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path, scan, uncertainty=True, tta=True)
    prediction = result.scans[0].prediction
    assert prediction is not None
    p = prediction.probabilities.astype(float)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(prediction.uncertainty, entropy, atol=1e-4)
    with Image.open(tmp_path / "patient001_02_uncertainty.png") as picture:
        np.testing.assert_allclose(np.asarray(picture) / 65535, entropy[0, 0], atol=1e-4)
    assert prediction.disagreement is not None
    assert 0 < prediction.disagreement.max() <= 0.5
    assert (tmp_path / "patient001_02_disagreement.png").exists()
    assert not run(trained, tmp_path / "once", scan, uncertainty=True).document.scans[0].disagreement


def test_the_raw_result_is_the_probabilities_at_a_half(trained: Path, scan: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path, scan, postprocess=False)
    prediction = result.scans[0].prediction
    assert prediction is not None
    np.testing.assert_array_equal(prediction.masks, prediction.probabilities >= 0.5)
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert document["postprocessing"]["metastasis"] == {
        "threshold": 0.5,
        "seed": 0.0,
        "smallest_lesion": 0.0,
        "sparing": 1.0,
        "fill_holes": False,
        "per_slice": True,
    }


@pytest.mark.parametrize(
    ("text", "expected"), [("2GB", 2_000_000_000), ("1.5 GiB", 1_610_612_736), ("500mb", 500_000_000), ("7B", 7)]
)
def test_sizes_of_memory(text: str, expected: int) -> None:
    assert PredictConfig(inputs=("a.png",), max_memory=text).max_bytes() == expected
    with pytest.raises(ConfigError, match="2GB"):
        PredictConfig(inputs=("a.png",), max_memory=text + " or so")
    with pytest.raises(ConfigError, match="--max-memory 2 has no unit; write it as 2GB"):
        PredictConfig(inputs=("a.png",), max_memory="2")


def test_too_little_memory_is_said_and_little_memory_gives_smaller_windows(
    trained: Path, scan: Path, tmp_path: Path
) -> None:
    result = run(trained, tmp_path, scan, max_memory="1MB")
    assert "--max-memory" in result.problems[0].reason
    card = ModelCard(
        name="attention-unet",
        in_channels=1,
        out_channels=1,
        dims=3,
        widths=(32, 64, 128),
        strides=((2, 2, 2),) * 2,
        norm="batch",
        activation="leaky-relu",
        sequences=("t1c",),
        regions={"metastasis": ()},
        preprocessing={},
        patch=(64, 64, 64),
    )
    assert fitting_windows(card, LARGEST, "bf16", 1, 10**9) == ((64, 64, 64), LARGEST)
    patch, largest = fitting_windows(card, LARGEST, "bf16", 1, 120 * 10**6)
    assert patch == (32, 64, 64)
    assert largest is not None
    assert largest * bytes_per_voxel(card, "bf16", 1) < 120 * 10**6
    with pytest.raises(ConfigError, match="GB more"):
        fitting_windows(card, None, "bf16", 1, 120 * 10**6)


def test_python_and_terminal_give_the_same_mask(trained: Path, scan: Path, tmp_path: Path) -> None:
    model = metaseg_cli.load_model(trained / "model.safetensors")
    from_path = model.predict(scan)
    from_terminal = run(trained, tmp_path, scan).scans[0].prediction
    np.testing.assert_array_equal(from_path.mask, from_terminal.mask)
    with Image.open(scan) as picture:
        array = np.asarray(picture)
    for shaped in (array[None], array[None, None]):
        np.testing.assert_array_equal(model.predict(shaped).mask, from_path.mask)
    np.testing.assert_array_equal(model.predict({"grey": scan}).mask, from_path.mask)


@pytest.mark.parametrize("array", [np.zeros((5, 5)), np.full((1, 8, 8), np.nan), np.zeros((2, 8, 8))])
def test_arrays_that_are_no_image_are_refused(trained: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError):
        metaseg_cli.load_model(trained / "model.safetensors").predict(array)


def test_models_are_found_by_file_run_architecture_or_age(trained: Path) -> None:
    file = trained / "model.safetensors"
    assert find_model(str(file)) == file
    assert find_model(trained) == file
    assert find_model("Attention_UNet", trained.parent) == file
    assert find_model(None, trained.parent) == file
    for missing in ("nested-unet", "nowhere.safetensors"):
        with pytest.raises(InputError, match=r"metaseg train|name a model"):
            find_model(missing, trained.parent)


def test_nothing_to_predict_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="nothing to predict"):
        PredictConfig()
