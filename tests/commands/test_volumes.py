"""Volumes through the whole chain: several sequences, some missing, regions, any geometry; and what may go wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.commands.predict import PredictResult, predict
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.commands.train import train
from metaseg_cli.config import EvaluateConfig, PredictConfig, PrepareConfig
from metaseg_cli.core import augmentation
from metaseg_cli.core.cache import PrepareResult, open_prepared
from metaseg_cli.core.images import on_grid_of, read_mask
from metaseg_cli.core.label_maps import to_label_map
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError
from tests.common import tiny_training

SHAPE = (20, 44, 40)
REGIONS = ("ET=3", "TC=1,3", "WT=1,2,3")


def brain(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two sequences and nested labels 2 (outermost), 1, 3."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    head = ((z - 10) / 9) ** 2 + ((y - 22) / 18) ** 2 + ((x - 20) / 16) ** 2 < 1
    centre = rng.integers((8, 16, 14), (12, 28, 26))
    radius = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
    label = np.select([radius < 2.5, radius < 4, radius < 6], [3, 1, 2]) * head
    noise = rng.normal(0, 3, (2, *SHAPE))
    t1c = (100 + 80 * (label == 3) - 20 * (label == 1) + noise[0]) * head
    t2f = (90 + 60 * (label > 0) + noise[1]) * head
    return {"t1c": t1c.astype(np.int16), "t2f": t2f.astype(np.int16)}, label.astype(np.uint8)


def save(path: Path, array: np.ndarray, direction: tuple[float, ...] | None = None, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, spacing))
    image.SetOrigin((-12.0, 7.0, 33.0))
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five BraTS-like patients; the third has no t1c."""
    root = tmp_path_factory.mktemp("visits")
    for n in range(5):
        name = f"BraTS-MET-{n:05d}-000"
        sequences, label = brain(n)
        for sequence, array in sequences.items():
            if (n, sequence) != (2, "t1c"):
                save(root / name / f"{name}-{sequence}.nii.gz", array)
        save(root / name / f"{name}-seg.nii.gz", label)
    return root


def prepared_from(raw: Path, out: Path, **settings: Any) -> PrepareResult:
    return prepare(PrepareConfig(raw=raw, out=out, **{"workers": 1, "region": REGIONS, **settings}), Silent())


@pytest.fixture(scope="module")
def folder(visits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("volumes") / "prepared"
    prepared_from(visits, out)
    return out


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return train(tiny_training(folder, folder.parent / "runs", dims="3", patch=(16,)), Silent()).run


def predicted(run: Path, out: Path, *inputs: object, **settings: Any) -> PredictResult:
    config = PredictConfig(inputs=tuple(map(str, inputs)), model=str(run), out=out, **settings)
    return predict(config, Silent(), keep=True)


def test_a_missing_sequence_is_kept_and_marked(folder: Path) -> None:
    prepared = open_prepared(folder)
    assert prepared.sequences == ("t1c", "t2f")
    without = next(r for r in prepared.cases if r.sequences == ("t2f",))
    assert without.patient == "BraTS-MET-00002"
    assert prepared.available(without).tolist() == [False, True]
    image = prepared.image(without)
    assert not image[0].any()
    assert image[1].any()
    np.testing.assert_array_equal(prepared.shown(without, image), image[1:])
    complete = prepared.image(prepared.cases[0])
    np.testing.assert_array_equal(prepared.shown(prepared.cases[0], complete), complete[:1])
    with h5py.File(folder / "dataset.h5") as file:
        case = file[f"cases/{without.case}"]
        assert list(case.attrs["sequences_present"]) == ["t2f"]
        assert case["image"].dtype == np.float16
        assert case["image"].chunks == (1, *case["image"].shape[1:])


def test_volumes_are_cropped_and_normalised(folder: Path) -> None:
    prepared = open_prepared(folder)
    record = prepared.cases[0]
    assert record.shape[2] <= SHAPE[2]
    image = prepared.image(record).astype(np.float32)
    assert abs(np.median(image[0][image[0] > image[0].min() + 0.5])) < 0.5
    assert prepared.preprocessing.spacing_mm == (1.0, 1.0, 1.0)
    assert set(record.labels) == {1, 2, 3}


@pytest.mark.slow
def test_the_order_of_files_never_matters(visits: Path, run: Path, tmp_path: Path) -> None:
    case = visits / "BraTS-MET-00000-000"
    a, b = case / f"{case.name}-t1c.nii.gz", case / f"{case.name}-t2f.nii.gz"
    one = predicted(run, tmp_path / "1", f"t1c={a}", f"t2f={b}").scans[0].prediction
    two = predicted(run, tmp_path / "2", f"flair={b}", f"t1ce={a}").scans[0].prediction
    three = predicted(run, tmp_path / "3", case).scans[0].prediction
    assert one is not None
    assert two is not None
    assert three is not None
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    np.testing.assert_array_equal(one.probabilities, three.probabilities)


def test_prediction_works_with_what_is_there_and_says_what_was_missing(visits: Path, run: Path, tmp_path: Path) -> None:
    case = visits / "BraTS-MET-00001-000"
    result = predicted(run, tmp_path, case / f"{case.name}-t2f.nii.gz")
    assert not result.problems
    assert any("without t1c" in note for note in result.document.scans[0].notes)
    assert result.scans[0].prediction is not None
    assert result.scans[0].prediction.source.sequences == ("t2f",)


def test_a_sequence_of_another_name_is_not_taken_for_the_models(visits: Path, run: Path, tmp_path: Path) -> None:
    save(tmp_path / "x_t2.nii.gz", brain(0)[0]["t1c"])
    result = predicted(run, tmp_path / "out", tmp_path / "x_t2.nii.gz")
    assert "by its name it is t2w" in result.problems[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    "direction",
    [None, (-1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, 1, 0), (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)],
)
def test_the_mask_lies_exactly_on_its_scan(
    run: Path, tmp_path: Path, suffix: str, direction: tuple[float, ...] | None
) -> None:
    """Also of another spacing than the model's, which is resampled and put back."""
    scan = tmp_path / f"scan_t1c{suffix}"
    save(scan, brain(3)[0]["t1c"], direction, spacing=1.7)
    result = predicted(run, tmp_path / "out", scan, probabilities=True, threshold=0.01)
    assert not result.problems
    for path in (result.document.scans[0].mask, *result.document.scans[0].probability):
        before, after = sitk.ReadImage(str(scan)), sitk.ReadImage(str(path))
        assert after.GetSize() == before.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(after, get)(), getattr(before, get)(), atol=1e-4)
        if suffix == ".nii.gz":
            np.testing.assert_allclose(nibabel.load(path).affine, nibabel.load(scan).affine, atol=1e-4)


def test_sequences_on_different_grids_are_brought_onto_the_first(visits: Path, run: Path, tmp_path: Path) -> None:
    sequences, _ = brain(0)
    save(tmp_path / "a.nii.gz", sequences["t1c"])
    save(tmp_path / "b.nii.gz", sequences["t2f"][::2], spacing=2.0)
    result = predicted(run, tmp_path / "out", f"t1c={tmp_path / 'a.nii.gz'}", f"t2f={tmp_path / 'b.nii.gz'}")
    assert any("another grid" in n or "covers" in n for n in result.document.scans[0].notes)
    image = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    image.SetOrigin((900.0, 0.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / "far.nii.gz"))
    result = predicted(run, tmp_path / "o2", f"t1c={tmp_path / 'a.nii.gz'}", f"t2f={tmp_path / 'far.nii.gz'}")
    assert "covers only 0%" in result.problems[0].reason


def test_nested_regions_make_one_label_map() -> None:
    masks = np.zeros((3, 1, 1, 4), bool)
    masks[0, ..., :1] = masks[1, ..., :2] = masks[2, ..., :3] = True
    regions = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}
    assert to_label_map(masks, regions).ravel().tolist() == [3, 1, 2, 0]


def test_sequences_are_dropped_at_random_but_never_all() -> None:
    import torch

    settings = augmentation.Augmentation(drop_sequence=0.6)
    image, present = torch.ones(64, 3, 8, 8), torch.tensor([[True, True, False]]).expand(64, 3)
    p = augmentation.draw(settings, (64, 3, 8, 8), np.random.default_rng(0))
    left, stays = augmentation.drop_sequences(image, present, p)
    assert stays.any(dim=1).all()
    assert (stays.sum(dim=1) == 1).any()
    assert not stays[:, 2].any()
    torch.testing.assert_close(left.amax(dim=(2, 3)), stays.float())


# -- checks ----------------------------------------------------------------------------------------------------------


def pair(root: Path, name: str, seed: int = 0, **geometry: Any) -> Path:
    sequences, label = brain(seed)
    save(root / f"{name}_image.nii.gz", sequences["t1c"], **geometry)
    save(root / f"{name}_seg.nii.gz", (label > 0).astype(np.uint8))
    return root / f"{name}_seg.nii.gz"


def reasons(raw: Path, out: Path, **settings: Any) -> list[tuple[str, bool]]:
    result = prepare(PrepareConfig(raw=raw, out=out, workers=1, **settings), Silent())
    return [(p.reason, p.left_out) for p in result.problems]


def test_each_wrong_volume_is_named_and_the_rest_is_prepared(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    pair(raw, "good", 0)
    pair(raw, "good2", 1)
    pair(raw, "flipped", 2, direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    constant = pair(raw, "constant", 3)
    save(raw / "constant_image.nii.gz", np.full(SHAPE, 7, np.int16))
    nan = brain(4)[0]["t1c"].astype(np.float32)
    nan[0, 0, 0] = np.nan
    save(raw / "nan_image.nii.gz", nan)
    save(raw / "nan_seg.nii.gz", brain(4)[1])
    pair(raw, "empty", 5)
    save(raw / "empty_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    pair(raw, "far", 6, spacing=5.0)
    save(raw / "far_seg.nii.gz", (brain(6)[1] > 0).astype(np.uint8), spacing=5.0)
    assert constant.exists()
    found = reasons(raw, tmp_path / "out")
    left_out = " | ".join(r for r, out in found if out)
    doubtful = " | ".join(r for r, out in found if not out)
    assert "left and right flipped: its corners lie up to 78.0 mm" in left_out
    assert "constant: every voxel is 7" in left_out
    assert "not finite" in left_out
    assert "mask of empty" in doubtful
    assert "spacing" in doubtful
    assert {r.case for r in open_prepared(tmp_path / "out").cases} >= {"good_image", "good2_image", "empty_image"}
    with pytest.raises(InputError):
        reasons(raw, tmp_path / "strict", strict=True)


def test_the_same_scan_under_two_patients_never_meets_itself_in_validation(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for n, name in enumerate(("a", "b", "c", "d")):
        pair(raw, name, n)
    pair(raw, "twin", 1)
    result = prepare(PrepareConfig(raw=raw, out=tmp_path / "out", workers=1), Silent())
    assert any("same content as case b_image" in p.reason and not p.left_out for p in result.problems)
    fold = {r.case: r.fold for r in result.cases}
    assert fold["twin_image"] == fold["b_image"]


def test_labels_nobody_declared_are_said_and_count_as_background(visits: Path, tmp_path: Path) -> None:
    result = prepared_from(visits, tmp_path / "out", region=(), labels="3")
    assert any("label 2 (5 case(s)) is in no region" in p.reason for p in result.problems)
    with_all = prepared_from(visits, tmp_path / "all")
    small, large = (sum(v for r in x.cases for v in r.lesion_voxels) for x in (result, with_all))
    assert small < large


def test_spacing_and_sequences_can_be_chosen(visits: Path, tmp_path: Path) -> None:
    result = prepared_from(visits, tmp_path / "a", spacing="2 2 2", sequences="t2f")
    assert result.sequences == ("t2f",)
    assert all(r.spacing_mm == pytest.approx((2, 2, 2), rel=0.1) for r in result.cases)
    native = prepared_from(visits, tmp_path / "b", spacing="native")
    assert native.spacing_mm is None
    with pytest.raises(ConfigError, match="is not there"):
        prepared_from(visits, tmp_path / "c", sequences="dwi")
    with pytest.raises(ConfigError, match="not a voxel size"):
        PrepareConfig(raw=visits, spacing="1 2")


# -- killed, and far away --------------------------------------------------------------------------------------------


def content(prepared: Path) -> dict[str, bytes]:
    """Everything a reader sees in a prepared folder."""
    seen: dict[str, bytes] = {}
    with h5py.File(prepared / "dataset.h5") as file:

        def take(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                seen[name] = item[()].tobytes()

        for case in file["cases"]:
            file["cases"][case].visititems(lambda name, item, case=case: take(f"{case}/{name}", item))
    listing = json.loads((prepared / "dataset.json").read_text())
    listing["settings"].pop("out")
    listing["settings"].pop("workers")
    listing["settings"].pop("cluster")
    return seen | {"listing": json.dumps(listing, sort_keys=True).encode()}


def many(root: Path, count: int = 24) -> Path:
    for n in range(count):
        pair(root, f"case{n:02d}", n)
    return root


@pytest.mark.kill
@pytest.mark.slow
def test_prepare_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    raw = many(tmp_path / "raw")
    command = [sys.executable, "-m", "metaseg_cli", "prepare", str(raw), "--workers", "2", "--quiet", "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "calm")], check=True)
    whole = time.monotonic() - began
    rng = random.Random(0)
    killed = 0
    for _ in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.95) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        time.sleep(0.2)
    assert killed > 0
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")
    assert not list((tmp_path / "killed" / "shards").glob(".writing-*"))


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")
def test_a_cluster_that_loses_a_worker_prepares_every_case_as_this_computer_does(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    raw = many(tmp_path / "raw", 16)
    environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    file = tmp_path / "scheduler.json"
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = subprocess.Popen(
        [*start, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **quiet
    )
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
    worker += ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        while not file.exists():
            time.sleep(0.1)
        workers += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        command = [sys.executable, "-m", "metaseg_cli", "prepare", str(raw), "--quiet", "--out"]
        remote = subprocess.Popen([*command, str(tmp_path / "far"), "--cluster", str(file)])
        while not list((tmp_path / "far" / "shards").glob("*.h5")) and remote.poll() is None:
            time.sleep(0.02)
        workers[0].kill()
        assert remote.wait(timeout=120) == 0
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
    prepared_from(raw, tmp_path / "near", region=())
    assert content(tmp_path / "far") == content(tmp_path / "near")
    shards = {p.name: p.read_bytes() for p in (tmp_path / "near" / "shards").glob("*.h5")}
    assert {p.name: p.read_bytes() for p in (tmp_path / "far" / "shards").glob("*.h5")} == shards


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_predict_and_evaluate_on_a_cluster_find_the_same(visits: Path, run: Path, folder: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        far = predicted(run, tmp_path / "far", visits, cluster=address)
        scores = EvaluateConfig(models=(str(run),), data=folder, out=tmp_path / "e1", cluster=address)
        masks: dict[str, Any] = {"predictions": tmp_path / "far", "references": tmp_path / "far"}
        far_scores = evaluate(scores, Silent()).evaluation.headline
        alike = evaluate(EvaluateConfig(**masks, out=tmp_path / "e2", cluster=address), Silent())
    near = predicted(run, tmp_path / "near", visits)
    assert [s.lesions for s in far.document.scans] == [s.lesions for s in near.document.scans]
    assert len(far.scans) == 5
    assert (
        evaluate(EvaluateConfig(models=(str(run),), data=folder, out=tmp_path / "e3"), Silent()).evaluation.headline
        == far_scores
    )
    assert alike.evaluation.headline["dice"] == 1.0


def test_a_cluster_nobody_answers_at_is_an_error_with_a_remedy(visits: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="dask scheduler"):
        prepared_from(visits, tmp_path / "out", cluster=str(tmp_path / "no-such-scheduler"))


# -- files of several channels ---------------------------------------------------------------------------------------


def test_channels_of_one_file_keep_their_names(visits: Path, run: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    entries = []
    for n in range(4):
        sequences, label = brain(n)
        save(raw / "imagesTr" / f"c{n}.nii.gz", np.zeros(SHAPE, np.int16))
        joined = sitk.JoinSeries([sitk.GetImageFromArray(sequences[s]) for s in ("t2f", "t1c")])
        sitk.WriteImage(joined, str(raw / "imagesTr" / f"c{n}.nii.gz"))
        plain = sitk.GetImageFromArray(label)
        (raw / "labelsTr").mkdir(exist_ok=True)
        sitk.WriteImage(plain, str(raw / "labelsTr" / f"c{n}.nii.gz"))
        entries.append({"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"})
    description = {"modality": {"0": "FLAIR", "1": "t1gd"}, "training": entries}
    (raw / "dataset.json").write_text(json.dumps(description))
    result = prepared_from(raw, tmp_path / "prepared")
    assert result.sequences == ("t1c", "t2f")
    trained = train(tiny_training(tmp_path / "prepared", tmp_path / "runs", dims="2", patch=(16,)), Silent()).run
    sequences, _ = brain(0)
    for name, array in sequences.items():
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    apart = predicted(trained, tmp_path / "a", *(f"{s}={tmp_path / s}.nii.gz" for s in ("t2f", "t1c"))).scans[0]
    together = predicted(trained, tmp_path / "b", raw / "imagesTr" / "c0.nii.gz").scans[0]
    assert apart.prediction is not None
    assert together.prediction is not None
    np.testing.assert_array_equal(apart.prediction.probabilities, together.prediction.probabilities)
    # A model of separate files does not take channels by their position.
    guessed = predicted(run, tmp_path / "c", raw / "imagesTr" / "c0.nii.gz")
    assert "does not say which sequences" in guessed.problems[0].reason


def test_the_voxel_size_is_typed_as_three_numbers(visits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaseg_cli", "prepare", str(visits), "--json", "--out", str(tmp_path / "p")]
    for typed in (["--spacing", "3", "2", "2"], ["--spacing", "3,2,2"]):
        result = subprocess.run([*command, *typed], capture_output=True, check=True, encoding="utf-8")
        assert json.loads(result.stdout)["spacing_mm"] == [3.0, 2.0, 2.0]


@pytest.mark.slow
def test_a_dicom_series_comes_back_as_nifti_and_as_seg(run: Path, tmp_path: Path) -> None:
    from tests.dicom_files import write_series

    scan, _ = brain(7)
    write_series(tmp_path / "scan", scan["t1c"].clip(0).astype(np.uint16), description="t1c")
    given = f"t1c={tmp_path / 'scan'}"
    (first,) = predicted(run, tmp_path / "first", given).scans
    low = float(np.quantile(first.prediction.probabilities, 0.97))  # so that a hardly trained network finds something
    (one,) = predicted(run, tmp_path / "out", given, threshold=low).scans
    found, prediction = one.result, one.prediction
    assert found.mask.name.endswith("_mask.nii.gz")
    assert found.segmentation == found.mask.with_name(found.mask.name.replace(".nii.gz", ".dcm"))
    seg = on_grid_of(read_mask(found.segmentation), prediction.source)
    for number, mask in enumerate(prediction.masks, start=1):
        np.testing.assert_array_equal((seg.array == number).any(axis=0), mask)
    assert prediction.masks.any()
    (each,) = predicted(
        run, tmp_path / "each", given, threshold=low, format="dicom-seg", per_lesion=True
    ).document.scans
    assert each.mask == each.segmentation
    counted = len([lesion for region in prediction.lesions.values() for lesion in region])
    assert counted > 0
    assert read_mask(each.mask).array.max() == counted
    for region, measured in found.sum_of_diameters_mm.items():
        rows = [row for row in found.lesions if row.region == region and row.measurable]
        longest = sorted((row.longest_axial_mm or 0 for row in rows), reverse=True)[:5]
        assert measured == pytest.approx(sum(longest), abs=0.05)
    (drawn,) = predicted(run, tmp_path / "rt", given, threshold=low, format="rtstruct").document.scans
    contours = on_grid_of(read_mask(drawn.mask, prediction.source), prediction.source)
    for number, mask in enumerate(prediction.masks, start=1):
        np.testing.assert_array_equal((contours.array == number).any(axis=0), mask)
    other = predicted(run, tmp_path / "nrrd", given, threshold=low, format="nrrd").document.scans[0]
    np.testing.assert_array_equal(read_mask(other.mask).array, read_mask(found.mask).array)
    assert other.segmentation is None
    masks: dict[str, Any] = {"predictions": tmp_path / "out", "references": tmp_path / "nrrd"}
    assert evaluate(EvaluateConfig(**masks, out=tmp_path / "e"), Silent()).evaluation.headline["dice"] == 1


def test_a_zip_of_a_series_comes_back_as_its_folder_does(run: Path, tmp_path: Path) -> None:
    from tests.dicom_files import write_series

    scan, _ = brain(7)
    paths = write_series(tmp_path / "scan", scan["t1c"].clip(0).astype(np.uint16))
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"inside/{path.name}")
    (folder,) = predicted(run, tmp_path / "folder", f"t1c={tmp_path / 'scan'}", threshold=0.01).document.scans
    for number, given in enumerate((f"t1c={tmp_path / 'case.zip'}", str(tmp_path / "case.zip"))):
        result = predicted(run, tmp_path / f"zip{number}", given, threshold=0.01)
        assert not result.problems
        (packed,) = result.document.scans
        assert (packed.mask.name, packed.segmentation.name) == ("case_mask.nii.gz", "case_mask.dcm")
        assert packed.scan == tmp_path / "case.zip"
        assert packed.sequences == {"t1c": str(tmp_path / "case.zip")}
        assert packed.segmentation is not None
        assert folder.segmentation is not None
        for ours, theirs in ((packed.mask, folder.mask), (packed.segmentation, folder.segmentation)):
            np.testing.assert_array_equal(read_mask(ours).array, read_mask(theirs).array)
        assert pydicom.dcmread(packed.segmentation).StudyInstanceUID == pydicom.dcmread(paths[0]).StudyInstanceUID


def test_a_format_that_cannot_be_is_named(visits: Path, run: Path, tmp_path: Path) -> None:
    scan = next(visits.glob("*0-000")) / "BraTS-MET-00000-000-t1c.nii.gz"
    for wanted, reason in (
        ("dicom-seg", "not a DICOM series"),
        ("rtstruct", "not a DICOM series"),
        ("png", "does not fit into a PNG"),
    ):
        result = predicted(run, tmp_path / wanted, f"t1c={scan}", format=wanted)
        assert reason in result.problems[0].reason
