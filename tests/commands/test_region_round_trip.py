"""Regions that overlap, from predict through DICOM SEG and RTSTRUCT into prepare and evaluate, and back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage

import metaseg_cli
from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.commands.predict import predict
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import EvaluateConfig, PredictConfig, PrepareConfig
from metaseg_cli.core.cache import open_prepared, region_masks
from metaseg_cli.core.images import on_grid_of, read_mask, read_scan, write_rtstruct, write_seg
from metaseg_cli.core.label_maps import to_label_map
from metaseg_cli.core.model_file import ModelCard, save_model
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Silent
from tests.common import metaseg
from tests.dicom_files import SHAPE, write_series

NESTED = ("ET=3", "TC=1,3", "WT=1,2,3")
APART = ("NCR=1", "ED=2", "ET=3")
CODES = {"ET": "C113842", "TC": "14799000", "WT": "301766008", "NCR": "6574001", "ED": "79654002"}


def regions_of(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    return PrepareConfig(raw=Path(), region=texts).regions()


def model_of(texts: tuple[str, ...], path: Path, scan: Path) -> Path:
    """A random network whose thresholds mark 2, 5 and 10 % of *scan* in its regions."""
    regions = regions_of(texts)
    card = ModelCard(
        name="attention-unet",
        in_channels=1,
        out_channels=len(regions),
        dims=2,
        widths=(4, 8),
        strides=((2, 2),),
        norm="batch",
        activation="leaky-relu",
        sequences=("t1c",),
        regions=regions,
        preprocessing={"normalisation": "case", "oriented": True, "spacing_mm": None},
        patch=(1, 16, 16),
    )
    torch.manual_seed(0)
    network = card.build()
    save_model(path, network, card)
    values = metaseg_cli.load_model(path).predict({"t1c": scan}).probabilities
    cuts = {
        name: Postprocessing(threshold=float(np.quantile(each, share)))
        for name, each, share in zip(regions, values, (0.98, 0.95, 0.9), strict=True)
    }
    save_model(path, network, ModelCard(**{**vars(card), "postprocessing": cuts}))
    return path


def series(folder: Path) -> list[Path]:
    smooth = np.random.default_rng(2).normal(500, 150, SHAPE).clip(1, 2000)
    return write_series(folder, smooth.astype(np.uint16), description="t1c")


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize("texts", [NESTED, NESTED[::-1], APART])
def test_every_region_comes_back_through_dicom_into_a_prepared_folder(
    tmp_path: Path, kind: str, texts: tuple[str, ...]
) -> None:
    regions = regions_of(texts)
    files = series(tmp_path / "raw" / "visit")
    model = model_of(texts, tmp_path / "model.safetensors", tmp_path / "raw" / "visit")
    given = f"t1c={tmp_path / 'raw' / 'visit'}"
    for form in (kind, "nifti"):
        predict(PredictConfig(inputs=(given,), model=str(model), out=tmp_path / form, format=form), Silent())
    written = next((tmp_path / kind).glob("*.dcm"))
    reference = read_mask(next((tmp_path / "nifti").glob("*_mask.nii.gz")))
    wanted = region_masks(reference.array[0], regions)
    assert (wanted.sum(axis=(1, 2, 3)) > 5).all()
    # prepare
    shutil.copy(written, tmp_path / "raw" / "mask.dcm")
    # a second patient, because one alone makes no folds
    second = write_series(
        tmp_path / "raw" / "other", np.random.default_rng(3).integers(1, 900, SHAPE).astype(np.uint16),
        patient="P2", description="t1c",
    )  # fmt: skip
    write_seg(tmp_path / "raw" / "other.dcm", [("ET", np.ones(SHAPE, bool) & (np.arange(SHAPE[2]) > 19))], second)
    out = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=out, region=texts, spacing="native", workers=1), Silent())
    prepared = open_prepared(out)
    record = next(r for r in prepared.cases if r.patient == "P1")
    scan = read_scan(files)
    found = region_masks(prepared.label(record), prepared.regions)
    assert found.sum(axis=(1, 2, 3)).tolist() == wanted.sum(axis=(1, 2, 3)).tolist()
    assert on_grid_of(reference, scan) is not None
    # evaluate
    for direction in ((kind, "nifti"), ("nifti", kind)):
        masks, references = (tmp_path / each for each in direction)
        config = EvaluateConfig(
            predictions=masks, references=references, region=texts, out=tmp_path / "-".join(direction)
        )
        scored = evaluate(config, Silent())
        values = scored.evaluation.cases[0].regions
        assert {name: values[name]["dice"] for name in regions} == dict.fromkeys(regions, 1.0)


def test_segments_are_coded_by_what_their_names_say(tmp_path: Path) -> None:
    files = series(tmp_path / "scan")
    mask = np.zeros(SHAPE, bool)
    mask[2, 3:9, 3:9] = True
    write_seg(tmp_path / "a.dcm", [(name, mask) for name in (*CODES, "metastasis 2")], files)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    coded = {s.SegmentLabel: s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in data.SegmentSequence}
    assert coded == {**CODES, "metastasis 2": "128462008"}


def test_regions_that_are_no_lesion_survive_contours(tmp_path: Path) -> None:
    files = series(tmp_path / "scan")
    scan = read_scan(files)
    ring = np.zeros(SHAPE, bool)
    ring[2, 3:12, 3:12] = True
    core = ring & (np.indices(SHAPE)[1] < 7)
    write_rtstruct(tmp_path / "a.dcm", [("ET", core), ("ED", ring)], files, scan)
    observed = {
        int(o.ReferencedROINumber): o.RTROIInterpretedType
        for o in pydicom.dcmread(tmp_path / "a.dcm").RTROIObservationsSequence
    }
    assert observed == {1: "GTV", 2: ""}
    assert [s.name for s in read_mask(tmp_path / "a.dcm", scan).segments] == ["ET"]
    assert [s.name for s in read_mask(tmp_path / "a.dcm", scan, regions=["ET", "ED"]).segments] == ["ET", "ED"]


def test_a_label_stands_for_just_the_regions_a_voxel_lies_in() -> None:
    regions: dict[str, tuple[int, ...]] = {"A": (1, 2), "B": (2, 3)}
    masks = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)[:, None, None]
    assert to_label_map(masks, regions)[0, 0].tolist() == [1, 2, 3, 0]


def test_counts_and_volumes_are_told_by_region_and_never_added_up(tmp_path: Path) -> None:
    files = series(tmp_path / "scan")
    model = model_of(NESTED, tmp_path / "model.safetensors", tmp_path / "scan")
    typed: list[str | Path] = ["predict", f"t1c={tmp_path / 'scan'}", "--model", model, "--out"]
    done = metaseg(*typed, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    (scan,) = document["scans"]
    label = read_mask(Path(scan["mask"])).array[0]
    masks = dict(zip(regions_of(NESTED), region_masks(label, regions_of(NESTED)), strict=True))
    lesions = {name: ndimage.label(mask, np.ones((3, 3, 3)))[1] for name, mask in masks.items()}
    voxel = float(np.prod(read_scan(files).spacing_mm or ())) / 1000
    for name, mask in masks.items():
        assert scan["totals"][name]["voxels"] == mask.sum()
        assert scan["totals"][name]["lesions"] == lesions[name]
        assert scan["totals"][name]["volume_ml"] == pytest.approx(mask.sum() * voxel, abs=1e-4)
    assert document["index_region"] == "ET"
    assert re.search(rf": {lesions['ET']} lesions? of ET ", " ".join(done.stdout.split()))
    other = metaseg(*typed, tmp_path / "wt", "--region", "WT")
    assert re.search(rf": {lesions['WT']} lesions? of WT ", " ".join(other.stdout.split()))
    wrong = metaseg(*typed, tmp_path / "no", "--region", "edema")
    assert (wrong.returncode, "the model has ET, TC, WT" in wrong.stderr) == (1, True)


def test_sequences_that_a_model_does_not_take_are_named_and_unknown_ones_refused(tmp_path: Path) -> None:
    series(tmp_path / "used")
    series(tmp_path / "other")
    model = model_of(NESTED, tmp_path / "model.safetensors", tmp_path / "used")
    given = [f"t2f={tmp_path / 'other'}", f"t1c={tmp_path / 'used'}"]
    done = metaseg("predict", *given, "--model", model, "--out", tmp_path / "out", "--json")
    (scan,) = json.loads(done.stdout)["scans"]
    assert scan["name"] == "used"
    assert any("not used, the model does not take it: t2f (other)" in note for note in scan["notes"])
    wrong = metaseg("predict", f"t1x={tmp_path / 'used'}", "--model", model, "--out", tmp_path / "no")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        1,
        "metaseg: unknown sequence t1x; this model takes t1c",
    )


def test_a_dry_run_lists_its_cases_in_json(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "raw" / str(number), np.ones(SHAPE, np.uint16), patient=f"P{number}", description="t1c")
    document = json.loads(metaseg("prepare", tmp_path / "raw", "--dry-run", "--json").stdout)
    assert [(case["case"], case["patient"], list(case["sequences"])) for case in document["cases"]] == [
        ("P1", "P1", ["t1c"]),
        ("P2", "P2", ["t1c"]),
    ]


def test_the_report_of_prepare_has_volumes_by_region(tmp_path: Path) -> None:
    for number in (1, 2):
        files = write_series(tmp_path / f"raw{number}", np.full(SHAPE, 9, np.uint16) + np.arange(24, dtype=np.uint16))
        image, mask = nib.Nifti1Image(read_scan(files).array[0].T.astype(float), np.eye(4)), np.zeros(SHAPE, np.uint8)
        mask[1:4, 2:8, 2:8], mask[2, 4:6, 4:6] = 2, 3
        (tmp_path / "raw").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "raw" / f"case{number}.nii.gz")
        nib.save(nib.Nifti1Image(mask.T, np.eye(4)), tmp_path / "raw" / f"case{number}_seg.nii.gz")
    out = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=out, region=NESTED, spacing="native", workers=1), Silent())
    assert open_prepared(out).cases[0].region_voxels == {"ET": 4, "TC": 4, "WT": 108}
    page = (out / "report.html").read_text()
    assert "connected parts of ET, TC, WT together" in page
    assert "WT (ml)" in page
    assert "0.11" in page  # 108 voxels of 1 mm³
