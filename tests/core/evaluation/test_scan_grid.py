"""A model is scored as its masks are written: predict's file against the original mask gives the same numbers."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from scipy import ndimage

import metaseg_cli
from metaseg_cli.commands.predict import predict
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import EvaluateConfig, PredictConfig, PrepareConfig
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.evaluation.folder_pairs import evaluate_folder
from metaseg_cli.core.evaluation.model_cases import evaluate_model
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.images import read_mask, write_seg
from metaseg_cli.core.inference.channels import Scan
from metaseg_cli.core.metrics import compare, score
from metaseg_cli.core.model_file import ModelCard, save_model
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from tests.common import metaseg
from tests.dicom_files import SHAPE as SERIES
from tests.dicom_files import write_series

LAS = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0, 0, -1, 1, 0, 0, 0, -1, 0)
OBLIQUE = (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)
REGIONS = ("ET=3", "TC=1,3", "WT=1,2,3")


def head(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A head with nested labels 2, 1, 3 in two lesions, one of them outside the head, where predict crops."""
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    inside = (((points - 0.5) / 0.38) ** 2).sum(axis=-1) < 1
    label = np.zeros(shape, np.uint8)
    for centre in (0.35 + 0.3 * rng.random(3), np.array([0.5, 0.05, 0.05])):
        distance = np.sqrt(((points - centre) ** 2).sum(axis=-1))
        for value, radius in ((2, 0.15), (1, 0.11), (3, 0.08)):
            label[distance < radius] = value
    image = ndimage.gaussian_filter(rng.normal(0, 160, shape), 1) + 400 + 200 * (label > 0)
    return (image * inside).round().astype(np.int16), label


def save(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), direction: tuple[float, ...] = ()
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-12.5, 7.25, 33.0))
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def random_model(prepared: Path, path: Path, scan: Scan, *, dims: int = 2, **card: Any) -> Path:
    """A random network for *prepared*, whose thresholds mark 3, 6, 12 % of *scan* in its regions, large parts only."""
    folder = open_prepared(prepared)
    known: dict[str, Any] = {
        "name": "attention-unet",
        "in_channels": len(folder.sequences),
        "out_channels": len(folder.regions),
        "dims": dims,
        "widths": (4, 8),
        "strides": ((2,) * dims,),
        "norm": "batch",
        "activation": "leaky-relu",
        "sequences": folder.sequences,
        "regions": folder.regions,
        "preprocessing": json.loads(json.dumps(folder.preprocessing.record())),
        "patch": (1, 16, 16) if dims == 2 else (8, 16, 16),
        "file_channels": folder.file_channels,
        **card,
    }
    torch.manual_seed(0)
    network = ModelCard(**known).build()
    save_model(path, network, ModelCard(**known))
    values = metaseg_cli.load_model(path).predict(scan).probabilities
    cuts = {
        name: Postprocessing(threshold=float(np.quantile(each, 1 - 0.03 * 2**number)), min_size=2)
        for number, (name, each) in enumerate(zip(folder.regions, values, strict=True))
    }
    save_model(path, network, ModelCard(**{**known, "postprocessing": cuts}))
    return path


def scored(model: Path, prepared: Path, out: Path, **settings: Any) -> EvaluatedSystem:
    return evaluate_model(model, EvaluateConfig(data=prepared, split="all", out=out, **settings), Silent())


def compare_with_files(system: EvaluatedSystem, files: EvaluatedSystem, names: dict[str, str] | None = None) -> None:
    """*names*: case of the model's evaluation → name of its masks, where they differ."""
    by_file = {case.case: case.regions for case in files.evaluation.cases}
    assert len(by_file) == len(system.evaluation.cases)
    assert not files.problems
    assert all(
        any(len(c.comparisons[r].lesions.prediction) for c in system.evaluation.cases) for r in files.evaluation.summary
    )
    for case in system.evaluation.cases:
        others = by_file[(names or {}).get(case.case, case.case)]
        assert case.regions.keys() == others.keys()
        for region, metrics in case.regions.items():
            assert metrics.keys() == others[region].keys()
            for name, value in metrics.items():
                assert value == pytest.approx(others[region][name], abs=1e-6, nan_ok=True), (case.case, region, name)


def through_files(
    model: Path, out: Path, masks: dict[str, Path], scans: Mapping[str, tuple[str, ...]]
) -> EvaluatedSystem:
    """What ``predict`` writes of *scans*, scored against *masks* as files."""
    for name, scan in scans.items():
        predict(PredictConfig(inputs=scan, model=str(model), out=out / "masks" / name, overlay=False), Silent())
        (written,) = (p for p in (out / "masks" / name).glob("*_mask.*") if p.suffix != ".dcm")
        (out / "found").mkdir(exist_ok=True)
        shutil.copy(written, out / "found" / f"{name}{''.join(written.suffixes)}")
        (out / "truth").mkdir(exist_ok=True)
        shutil.copy(masks[name], out / "truth" / f"{name}{''.join(masks[name].suffixes)}")
    regions = tuple(f"{name}={','.join(map(str, values))}" for name, values in read_regions(model).items() if values)
    config = EvaluateConfig(predictions=out / "found", references=out / "truth", region=regions, workers=1)
    return evaluate_folder(out / "found", out / "files", config, Silent())


def read_regions(model: Path) -> dict[str, tuple[int, ...]]:
    return metaseg_cli.load_model(model).card.regions


VOLUMES = {
    "isotropic": ((22, 26, 24), (1, 1, 1), (), "native", 2),
    "anisotropic": ((9, 40, 44), (0.8, 0.9, 5.0), (), "2 2 2", 3),
    "las": ((18, 26, 24), (1.3, 1.1, 2.0), LAS, "1.5 1.5 1.5", 2),
    "sagittal": ((16, 24, 26), (1.2, 1.0, 2.4), SAGITTAL, "2 1.5 1.5", 3),
    "oblique": ((18, 26, 24), (1.3, 1.1, 2.0), OBLIQUE, "1.5 1.5 1.5", 2),
}


QUICK = ("anisotropic", "las")  # the others take the same way


@pytest.mark.parametrize(
    "kind", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in VOLUMES]
)
def test_volumes_score_as_their_files_do(tmp_path: Path, kind: str) -> None:
    shape, spacing, direction, voxel, dims = VOLUMES[kind]
    scans, masks = {}, {}
    for number, name in enumerate(("a", "b")):
        image, label = head(number, shape)
        scans[name] = save(tmp_path / "raw" / f"{name}_t1c.nii.gz", image, spacing, direction)
        masks[name] = save(tmp_path / "raw" / f"{name}_seg.nii.gz", label, spacing, direction)
    data = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=data, region=REGIONS, spacing=voxel, workers=1), Silent())
    model = random_model(data, tmp_path / "model.safetensors", scans["a"], dims=dims)
    system = scored(model, data, tmp_path / "out")
    files = through_files(model, tmp_path, masks, {name: (str(scan),) for name, scan in scans.items()})
    compare_with_files(system, files, {case.case: case.case[0] for case in system.evaluation.cases})
    assert "grid of each scan" in system.what
    assert system.settings.grid == "on the grid of each scan"
    lesion = system.evaluation.cases[0].comparisons["WT"].lesions.reference[0].lesion
    place = np.array(system.evaluation.cases[0].affine) @ [*lesion.centroid_voxel[::-1], 1.0]
    stored = sitk.ReadImage(str(masks["a"]))
    expected = stored.TransformContinuousIndexToPhysicalPoint(lesion.centroid_voxel[::-1])
    np.testing.assert_allclose(place[:3], expected, atol=1e-3)
    if kind == "anisotropic":
        prepared = scored(model, data, tmp_path / "old", grid="prepared")
        assert prepared.settings.grid == "on the grid of the prepared cases"
        assert prepared.evaluation.cases[0].regions != system.evaluation.cases[0].regions


def pictures(raw: Path, count: int = 2, slices: int = 3) -> tuple[dict[str, Path], dict[str, Path]]:
    scans, masks = {}, {}
    for number in range(count):
        image, label = (each[2:-2] for each in head(number, (slices + 4, 40, 44)))
        for z in range(slices):
            name = f"patient{number}_{z}"
            scans[name], masks[name] = raw / "images" / f"{name}.png", raw / "masks" / f"{name}.png"
            for path, values in ((scans[name], image[z] / 4), (masks[name], (label[z] > 0) * 255)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return scans, masks


def test_pictures_score_as_their_files_do(tmp_path: Path) -> None:
    scans, masks = pictures(tmp_path / "raw", count=4, slices=1)
    data = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=data, workers=1), Silent())
    model = random_model(data, tmp_path / "model.safetensors", scans["patient0_0"])
    system = scored(model, data, tmp_path / "out")
    files = through_files(model, tmp_path, masks, {name: (str(path),) for name, path in scans.items()})
    compare_with_files(system, files)


def test_each_picture_of_a_stack_is_what_predict_writes_of_it(tmp_path: Path) -> None:
    """Post-processing goes picture by picture, also with adjacent slices as context and a constant one among them."""
    scans, masks = pictures(tmp_path / "raw", slices=5)
    Image.fromarray(np.full((40, 44), 7, np.uint8)).save(scans["patient0_1"])
    data = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=data, workers=1), Silent())
    card = {"context": 1, "in_channels": 3}
    model = random_model(data, tmp_path / "model.safetensors", scans["patient0_2"], **card)
    system = scored(model, data, tmp_path / "out")
    assert any("constant picture" in note for note in system.notes)
    for case in system.evaluation.cases:
        own = sorted(name for name in scans if name.startswith(case.case))
        stack = []
        for name in own:
            config = PredictConfig(inputs=(str(scans[name]),), model=str(model), out=tmp_path / name, overlay=False)
            done = predict(config, Silent())
            assert len(done.problems) == (name == "patient0_1")
            found = done.document.scans
            stack.append(read_mask(found[0].mask).array[0, 0] if found else np.zeros((40, 44), np.uint8))
        truth = np.stack([np.asarray(Image.open(masks[name])) for name in own])
        metrics = compare(truth, np.stack(stack), per_slice=True).scores
        assert case.regions["metastasis"] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


def test_sequences_of_a_case_on_different_grids(tmp_path: Path) -> None:
    """The mask lies on the second sequence's grid, predict writes on the first's: the mask stays as it is."""
    for number, name in enumerate(("a", "b")):
        image, label = head(number, (20, 26, 24))
        save(tmp_path / "raw" / name / f"{name}_t1c.nii.gz", image)
        save(tmp_path / "raw" / name / f"{name}_t2f.nii.gz", image[1::2, ::2, ::2], (2, 2, 2))
        masks = save(tmp_path / "raw" / name / f"{name}_seg.nii.gz", label[1::2, ::2, ::2], (2, 2, 2))
    data = tmp_path / "prepared"
    prepare(PrepareConfig(raw=tmp_path / "raw", out=data, spacing="native", workers=1), Silent())
    assert open_prepared(data).sequences == ("t1c", "t2f")
    given = {s: tmp_path / "raw" / "b" / f"b_{s}.nii.gz" for s in ("t1c", "t2f")}
    model = random_model(data, tmp_path / "model.safetensors", given)
    system = scored(model, data, tmp_path / "out")
    assert any("grid of another sequence" in note for note in system.notes)
    inputs = tuple(f"{name}={path}" for name, path in given.items())
    predict(PredictConfig(inputs=inputs, model=str(model), out=tmp_path / "masks", overlay=False), Silent())
    (written,) = (tmp_path / "masks").glob("*_mask.nii.gz")
    reference, found = sitk.ReadImage(str(masks)), sitk.ReadImage(str(written))
    assert found.GetSize() == (24, 26, 20)
    moved = sitk.GetArrayFromImage(sitk.Resample(found, reference, sitk.Transform(), sitk.sitkNearestNeighbor))
    metrics = score(sitk.GetArrayFromImage(reference), moved, (2.0, 2.0, 2.0))
    case = next(case for case in system.evaluation.cases if case.case.startswith("b"))
    assert case.regions["metastasis"] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


def test_overlapping_segments_of_a_series_are_scored_as_layers(tmp_path: Path) -> None:
    """Where segments overlap as no label can say, the original SEG still counts as it is."""
    masks, scans = {}, {}
    for number, name in enumerate(("p1", "p2")):
        values = np.random.default_rng(number).normal(500, 150, SERIES).clip(1, 2000).astype(np.uint16)
        files = write_series(tmp_path / "raw" / name, values, patient=name, description="t1c")
        first, second = np.zeros(SERIES, bool), np.zeros(SERIES, bool)
        first[:4, 3:12, 3:12] = second[2:, 8:16, 8:16] = True
        masks[name] = tmp_path / "raw" / f"{name}.dcm"
        write_seg(masks[name], [("ET", first), ("ED", second)], files)
        scans[name] = (f"t1c={tmp_path / 'raw' / name}",)
    data = tmp_path / "prepared"
    raw = tmp_path / "raw"
    settings = PrepareConfig(raw=raw, out=data, region=("ET=3", "ED=2"), spacing="2 1 1", workers=1)
    prepare(settings, Silent())
    model = random_model(data, tmp_path / "model.safetensors", {"t1c": raw / "p1"})
    system = scored(model, data, tmp_path / "out")
    files_scored = through_files(model, tmp_path, masks, scans)
    names = {record.case: record.patient for record in open_prepared(data).cases}
    compare_with_files(system, files_scored, names)


def test_a_channel_of_one_file_and_chosen_labels(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        image, label = head(number, (12, 24, 26))
        joined = sitk.JoinSeries([sitk.GetImageFromArray(each) for each in (image, image[::-1].copy())])
        (tmp_path / "raw" / "imagesTr").mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(joined, str(tmp_path / "raw" / "imagesTr" / f"{name}.nii.gz"))
        save(tmp_path / "raw" / "labelsTr" / f"{name}.nii.gz", label)
        plain = sitk.GetImageFromArray(label)
        sitk.WriteImage(plain, str(tmp_path / "raw" / "labelsTr" / f"{name}.nii.gz"))
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
    description = {"modality": {"0": "FLAIR", "1": "t1gd"}, "training": listed}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(description))
    data = tmp_path / "prepared"
    config = PrepareConfig(raw=tmp_path / "raw", out=data, labels="1,3", sequences="t1c", spacing="2 2 2", workers=1)
    prepare(config, Silent())
    alone = save(tmp_path / "alone.nii.gz", head(0, (12, 24, 26))[0][::-1].copy())
    model = random_model(data, tmp_path / "model.safetensors", alone)
    system = scored(model, data, tmp_path / "out", grid="scan")
    found = metaseg_cli.load_model(model).predict(alone).mask
    metrics = score(np.isin(head(0, (12, 24, 26))[1], (1, 3)), found, (1.0, 1.0, 1.0))
    case = next(case for case in system.evaluation.cases if case.case == "a")
    assert case.regions["metastasis"] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


# -- originals that are gone -----------------------------------------------------------------------------------------


@pytest.fixture
def moving(tmp_path: Path) -> tuple[Path, Path, dict[str, Path]]:
    """A prepared folder of four pictures, a model for it, and the masks."""
    scans, masks = pictures(tmp_path / "raw", count=4, slices=1)
    prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "prepared", workers=1), Silent())
    model = random_model(tmp_path / "prepared", tmp_path / "model.safetensors", scans["patient0_0"])
    return model, tmp_path / "prepared", masks


@pytest.mark.parametrize("damage", ["gone", "changed", "same size"])
def test_one_original_that_changed_is_named_and_costs_its_case_alone(
    moving: tuple[Path, Path, dict[str, Path]], tmp_path: Path, damage: str
) -> None:
    model, data, masks = moving
    path = masks["patient1_0"]
    before = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-1] + b"x" if damage == "same size" else before + b"x")
    for grid in ("auto", "scan"):
        system = scored(model, data, tmp_path / grid, grid=grid)
        assert "patient1_0" not in {case.case for case in system.evaluation.cases}
        assert len(system.evaluation.cases) == 3
        (problem,) = system.problems
        assert (problem.file, "--grid prepared" in problem.remedy) == (path, True)
        assert "3 of 4 cases" in system.what
        assert "grid of each scan" in system.what
    whole = scored(model, data, tmp_path / "prepared grid", grid="prepared")
    assert (len(whole.evaluation.cases), whole.problems) == (4, ())


def test_the_table_the_document_and_the_page_say_which_grid(
    moving: tuple[Path, Path, dict[str, Path]], tmp_path: Path
) -> None:
    model, data, masks = moving
    masks["patient2_0"].unlink()
    said = {"auto": "on the grid of each scan", "prepared": "on the grid of the prepared cases"}
    for grid, text in said.items():
        typed = ["evaluate", str(model), "--data", str(data), "--split", "all", "--grid", grid, "--out"]
        done = metaseg(*typed, tmp_path / grid)
        assert done.returncode == (grid == "auto")
        assert text in " ".join(done.stdout.split())
        assert json.loads((tmp_path / grid / "metrics.json").read_text())["settings"]["grid"] == text
        assert text in (tmp_path / grid / "report.html").read_text()


def test_a_folder_without_its_originals_is_scored_on_its_own_grid_unless_the_scans_is_asked_for(
    moving: tuple[Path, Path, dict[str, Path]], tmp_path: Path
) -> None:
    model, data, _ = moving
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    system = scored(model, data, tmp_path / "auto")
    assert (len(system.evaluation.cases), system.problems) == (4, ())
    assert "grid of the prepared cases" in system.what
    assert any("which is gone" in note for note in system.notes)
    with pytest.raises(InputError, match="which is gone") as stop:
        scored(model, data, tmp_path / "scan", grid="scan")
    assert "--grid prepared" in stop.value.remedy


def test_a_pseudonymised_folder_names_no_original_and_is_scored_on_its_own_grid(tmp_path: Path) -> None:
    scans, _ = pictures(tmp_path / "raw", slices=1)
    config = PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "prepared", workers=1, pseudonymise=True)
    prepare(config, Silent())
    model = random_model(tmp_path / "prepared", tmp_path / "model.safetensors", scans["patient0_0"])
    system = scored(model, tmp_path / "prepared", tmp_path / "out")
    assert any("--pseudonymise" in note for note in system.notes)
    assert "grid of the prepared cases" in system.what


def test_the_working_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving: tuple[Path, Path, dict[str, Path]]
) -> None:
    model, _, _ = moving
    monkeypatch.chdir(tmp_path)
    prepare(PrepareConfig(raw=Path("raw"), out=Path("relative"), workers=1), Silent())
    monkeypatch.chdir("/")
    system = scored(model, tmp_path / "relative", tmp_path / "out", grid="scan")
    assert len(system.evaluation.cases) == 4


def test_pictures_of_the_worst_cases_are_upright(tmp_path: Path) -> None:
    """The picture of a case is the same however its axes are stored."""
    image, label = head(0, (18, 26, 24))
    seen = []
    for axes in ("", "PIR"):
        raw = tmp_path / f"stored{axes}"
        for name in ("a", "b"):
            for kind, array in (("t1c", image), ("seg", label)):
                stored = sitk.GetImageFromArray(array)
                if axes:
                    stored = sitk.DICOMOrient(stored, axes)
                (raw / "raw").mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(stored, str(raw / "raw" / f"{name}_{kind}.nii.gz"))
        prepare(PrepareConfig(raw=raw / "raw", out=raw / "prepared", spacing="native", workers=1), Silent())
        model = random_model(raw / "prepared", raw / "model.safetensors", raw / "raw" / "a_t1c.nii.gz")
        seen.append(scored(model, raw / "prepared", raw / "out", grid="scan").worst[0].picture)
    for one, other in itertools.pairwise(seen):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.reference, other.reference)
