"""Visits as people have them: which labels are measured, whose visit it is, in which order, and where its scans are."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from metaseg_cli import load_model
from metaseg_cli.commands.follow_up import FollowUpReport, follow_up
from metaseg_cli.commands.predict import predict
from metaseg_cli.config import FollowUpConfig, PredictConfig
from metaseg_cli.core.images import align, read_image
from metaseg_cli.core.inference.visits import VisitReader
from metaseg_cli.core.model_file import save_model
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom, write_phantom_volumes
from metaseg_cli.errors import ConfigError, InputError
from tests.common import small_card
from tests.dicom_files import SHAPE, make_seg, numbers, write_series


def follow(folder: Path, *visits: Path | str, **settings: Any) -> FollowUpReport:
    return follow_up(FollowUpConfig(visits=tuple(map(str, visits)), out=folder / "out", **settings), Silent())


def label_map(path: Path, core_mm: float, *, oedema: bool = True) -> Path:
    """A BraTS label map: a core of 3 (diameter *core_mm*) with necrosis 1 in it, inside oedema 2 of 40 mm."""
    z, y, x = np.mgrid[:60, :60, :60] - 29.5
    distance = np.sqrt(z**2 + y**2 + x**2)
    mask = np.zeros(distance.shape, np.uint8)
    if oedema:
        mask[distance < 20] = 2
    mask[distance < core_mm / 2] = 3
    mask[distance < core_mm / 6] = 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(path))
    return path


def test_a_core_that_shrinks_in_constant_oedema_responds(tmp_path: Path) -> None:
    visits = label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 10)
    for choice in ({"labels": "3"}, {"region": "ET"}, {"region": "ET=3"}, {"region": "enhancing tumour"}):
        report = follow(tmp_path, *visits, **choice, overwrite=True)
        assert [v.category for v in report.result.visits] == ["baseline", "PR"]
        assert report.result.visits[0].sum_mm == pytest.approx(20, abs=1)
        assert report.result.visits[1].sum_mm == pytest.approx(10, abs=1)
        assert next(iter(choice.values())) in report.document.region
    whole = follow(tmp_path, *visits, labels="all", overwrite=True)
    assert whole.result.visits[1].category == "SD"
    assert whole.result.visits[0].sum_mm == pytest.approx(40, abs=1)


def test_several_labels_without_a_choice_are_refused_with_their_volumes(tmp_path: Path) -> None:
    visits = label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 10)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(visits[0])))
    with pytest.raises(InputError, match="several labels") as error:
        follow(tmp_path, *visits)
    for label in (1, 2, 3):
        assert f"label {label} {(mask == label).sum() / 1000:.2f} ml" in str(error.value)
    assert "--labels 3" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_labels_that_differ_between_visits_are_several_labels(tmp_path: Path) -> None:
    alone = label_map(tmp_path / "a.nii.gz", 0)
    other = label_map(tmp_path / "b.nii.gz", 10, oedema=False)
    with pytest.raises(InputError, match="several labels"):
        follow(tmp_path, alone, other)


def test_a_region_that_is_gone_is_a_complete_response_and_said(tmp_path: Path) -> None:
    report = follow(tmp_path, label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 0), labels="3")
    assert report.result.visits[1].category == "CR"
    assert any("nothing of label 3" in note and "label 2" in note for note in report.document.notes)


def test_a_choice_that_no_visit_has_is_refused(tmp_path: Path) -> None:
    visits = label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 10)
    with pytest.raises(InputError, match="no visit has label 7"):
        follow(tmp_path, *visits, labels="7")
    with pytest.raises(InputError, match="--region gland=3"):
        follow(tmp_path, *visits, region="gland")


def test_a_mask_of_zero_and_one_does_not_say_which_region_it_is(tmp_path: Path) -> None:
    first, second = label_map(tmp_path / "a.nii.gz", 20), tmp_path / "b.nii.gz"
    image = sitk.ReadImage(str(label_map(second, 10)))
    sitk.WriteImage(sitk.Cast(image == 3, sitk.sitkUInt8), str(second))
    with pytest.raises(InputError, match="a mask of 0 and 1"):
        follow(tmp_path, first, second, labels="3")
    assert follow(tmp_path, first, second, labels="3", force=True).result.visits[1].category == "CR"


def test_choices_are_checked_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        FollowUpConfig(visits=("a", "b"), labels="3", region="ET")
    with pytest.raises(ConfigError, match="--labels"):
        FollowUpConfig(visits=("a", "b"), labels="three")


def test_every_visit_has_an_overlay_and_a_report_is_written(tmp_path: Path) -> None:
    report = follow(tmp_path, label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 10), labels="3")
    for visit in report.document.visits:
        assert visit.overlay is not None
        assert visit.overlay.stat().st_size > 1000
    page = (tmp_path / "out" / "report.html").read_text()
    for word in ("PR", "imaging only", "not a medical device", "lesion", "label 3", "Corticosteroids", "size: A4"):
        assert word in page
    document = json.loads((tmp_path / "out" / "follow_up.json").read_text())
    assert document["visits"][1]["basis"] == "imaging only"
    assert document["visits"][1]["corticosteroids"] == ""


# -- whose visit, and when -------------------------------------------------------------------------------------------


def seg(folder: Path, *, patient: str = "P1", date: str = "", size: int = 8) -> Path:
    """A SEG of one lesion of *size* voxels (0.8 mm) on a DICOM series of *patient* on *date*."""

    def dated(_: int, data: Any) -> None:
        data.StudyDate = date

    files = write_series(folder / "series", numbers(), patient=patient, change=dated)
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 3 : 3 + size, 4 : 4 + size] = True
    make_seg(folder / "seg.dcm", files, mask, "BINARY")
    return folder / "seg.dcm"


def test_visits_of_different_patients_are_refused(tmp_path: Path) -> None:
    visits = seg(tmp_path / "a", patient="P1"), seg(tmp_path / "b", patient="P2")
    with pytest.raises(InputError, match=r"different patients.*'P1'.*'P2'.*--same-patient"):
        follow(tmp_path, *visits)
    report = follow(tmp_path, *visits, same_patient=True)
    assert any("taken as one patient" in note for note in report.document.notes)


def test_study_dates_put_visits_in_order(tmp_path: Path) -> None:
    late = seg(tmp_path / "late", date="20250310", size=6)
    early = seg(tmp_path / "early", date="20241231", size=12)
    report = follow(tmp_path, late, early)
    assert [visit.date for visit in report.document.visits] == ["2024-12-31", "2025-03-10"]
    assert any("in order of their StudyDates" in note for note in report.document.notes)


def test_dates_of_some_visits_that_contradict_the_order_are_refused(tmp_path: Path) -> None:
    visits = (
        seg(tmp_path / "a", date="20250310"),
        seg(tmp_path / "b", date=""),
        seg(tmp_path / "c", date="20240101"),
    )
    with pytest.raises(InputError, match=r"not in order of their StudyDates.*2025-03-10.*--force"):
        follow(tmp_path, *visits)
    assert len(follow(tmp_path, *visits, force=True).document.visits) == 3


def test_a_structured_report_says_the_measurements_of_each_segment(tmp_path: Path) -> None:
    visits = [seg(tmp_path / name, date=date, size=size).parent for name, date, size in
              (("v1", "20250101", 14), ("v2", "20250601", 8))]  # fmt: skip
    report = follow(tmp_path, *visits, format="sr")
    tracked = []
    for visit, rows in zip(report.document.visits, zip(*[iter(report.document.lesions)], strict=True), strict=True):
        assert visit.structured_report is not None
        sr = hd.sr.srread(visit.structured_report)
        (group,) = sr.content.get_volumetric_roi_measurement_groups()
        tracked.append((group.tracking_uid, group.tracking_identifier))
        said = {m.name.meaning: m.value for m in group.get_measurements()}
        assert said == {
            "Long axis": rows[0].longest_axial_mm,
            "Short axis": rows[0].perpendicular_mm,
            "Volume": rows[0].volume_mm3,
        }
        segment = pydicom.dcmread(visit.structured_report.with_name(f"{visit.visit}_seg.dcm"))
        assert group.referenced_segment.referenced_sop_instance_uid == segment.SOPInstanceUID
        assert sr.PatientID == segment.PatientID == "P1"
        if shutil.which("dciodvfy"):
            done = subprocess.run(["dciodvfy", visit.structured_report], capture_output=True, text=True, check=False)
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
            assert errors == []
    assert len(set(tracked)) == 1  # the same lesion at both visits


def test_a_visit_that_is_no_series_has_no_structured_report(tmp_path: Path) -> None:
    visits = label_map(tmp_path / "a.nii.gz", 20), label_map(tmp_path / "b.nii.gz", 10)
    report = follow(tmp_path, *visits, labels="3", format="sr")
    assert [visit.structured_report for visit in report.document.visits] == [None, None]
    assert any("not a DICOM series" in note for note in report.document.notes)


# -- alignment -------------------------------------------------------------------------------------------------------


def head(seed: int) -> Any:
    phantom = make_phantom(seed, PhantomSettings(shape=(40, 88, 72), spacing_mm=(2.0, 2.0, 2.0)))
    image = sitk.GetImageFromArray(phantom.image[0])
    image.SetSpacing((2.0, 2.0, 2.0))
    return image


@pytest.mark.slow
def test_an_alignment_is_judged_by_how_far_it_moves_and_how_alike_scans_are(tmp_path: Path) -> None:
    image = head(5)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    image.SetOrigin((30.0, -12.0, 5.0))
    sitk.WriteImage(image, str(tmp_path / "moved.nii.gz"))
    image.SetOrigin((300.0, 0.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / "far.nii.gz"))
    noise = sitk.GetImageFromArray(np.random.default_rng(0).random((40, 88, 72), np.float32))
    noise.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(noise, str(tmp_path / "noise.nii.gz"))
    first = read_image(tmp_path / "a.nii.gz")
    moved = align(read_image(tmp_path / "moved.nii.gz"), first)
    assert not moved.doubt
    assert moved.shift_mm == pytest.approx(np.linalg.norm([30, 12, 5]), abs=1)
    assert moved.similarity > 0.95
    assert "more than is plausible" in align(read_image(tmp_path / "far.nii.gz"), first).doubt
    assert align(read_image(tmp_path / "noise.nii.gz"), first).doubt


# -- visits as people have them --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one scan of a phantom."""
    work = tmp_path_factory.mktemp("case")
    write_phantom_volumes(work, 1, PhantomSettings(shape=(8, 64, 64), lesions=(3, 3)), seed=1)
    (work / "visit1").mkdir()
    next((work / "imagesTr").glob("*.nii.gz")).rename(work / "visit1" / "p1_t1c.nii.gz")
    next((work / "labelsTr").glob("*.nii.gz")).rename(work / "mask.nii.gz")
    return work / "visit1"


@pytest.mark.slow
def test_a_folder_a_zip_and_named_sequences_mean_the_same_scan(trained: Path, case: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "visit2.zip", "w") as archive:
        archive.write(case / "p1_t1c.nii.gz", "p1_t1c.nii.gz")
    from metaseg_cli.core.inference.predictor import load_model
    from metaseg_cli.core.run_folder import find_model

    (sequence,) = load_model(find_model(str(trained))).card.sequences
    named = f"{sequence}={case / 'p1_t1c.nii.gz'}"
    visits = (case, tmp_path / "visit2.zip", named) if sequence == "t1c" else (named, named)
    report = follow(tmp_path, *visits, model=str(trained))
    made = [sitk.GetArrayFromImage(sitk.ReadImage(str(v.mask))) for v in report.document.visits]
    assert all((mask == made[0]).all() for mask in made)
    assert report.document.model is not None


def test_a_case_folder_with_a_mask_is_read_with_its_scan(case: Path, tmp_path: Path) -> None:
    mask = case.parent / "mask.nii.gz"
    folder = tmp_path / "visit1"
    folder.mkdir()
    (folder / "p1_t1c.nii.gz").write_bytes((case / "p1_t1c.nii.gz").read_bytes())
    (folder / "p1_seg.nii.gz").write_bytes(mask.read_bytes())
    settings = {"labels": "all"}
    report = follow(tmp_path, folder, mask, **settings)
    assert [visit.visit for visit in report.document.visits] == ["visit1", "mask"]
    assert report.document.visits[0].lesions == report.document.visits[1].lesions > 0
    assert report.document.visits[0].mask is None  # it was not made here
    assert report.document.model is None


def test_strict_refuses_a_visit_that_is_unlike_the_training_data(trained: Path, case: Path, tmp_path: Path) -> None:
    scan = f"grey={case / 'p1_t1c.nii.gz'}"  # a volume, for a model of pictures
    with pytest.raises(InputError, match="unlike the training data: it is a volume"):
        follow(tmp_path, scan, scan, model=str(trained), strict=True)


def takes_t1c(path: Path) -> Path:
    """A random network of one sequence, t1c."""
    card = dataclasses.replace(
        small_card(),
        in_channels=1,
        out_channels=1,
        sequences=("t1c",),
        regions={"metastasis": ()},
        index_region="metastasis",
        postprocessing={},
        preprocessing={"normalisation": "case", "oriented": True, "spacing_mm": None},
    )
    save_model(path, card.build(), card)
    return path


def test_a_visit_is_called_after_the_sequence_that_is_used_and_the_others_are_named(case: Path, tmp_path: Path) -> None:
    model = takes_t1c(tmp_path / "model.safetensors")
    for name in ("jan", "jan_flair", "apr", "apr_flair"):
        shutil.copy(case / "p1_t1c.nii.gz", tmp_path / f"{name}.nii.gz")
    visits = tuple(f"t2f={tmp_path}/{name}_flair.nii.gz,t1c={tmp_path}/{name}.nii.gz" for name in ("jan", "apr"))
    reader = VisitReader(FollowUpConfig(visits=visits, model=str(model)))
    assert reader.names() == ["jan", "apr"]
    assert "not used, the model does not take it: t2f (jan_flair.nii.gz)" in reader.read("jan", visits[0]).notes


def test_a_sequence_that_is_unknown_or_named_twice_is_refused(case: Path, tmp_path: Path) -> None:
    model, scan = takes_t1c(tmp_path / "model.safetensors"), case / "p1_t1c.nii.gz"
    with pytest.raises(ConfigError, match="unknown sequence t1x; this model takes t1c"):
        follow(tmp_path, f"t1x={scan}", f"t1c={scan}", model=str(model))
    with pytest.raises(ConfigError, match="t1c is named twice"):
        follow(tmp_path, f"t1c={scan},t1ce={scan}", f"t1c={scan}", model=str(model))
    with pytest.raises(ConfigError, match="unknown sequence t1x; this model takes t1c"):
        load_model(model).predict({"t1x": scan})


def test_a_folder_per_case_gives_the_case_its_name_and_the_unused_are_named(case: Path, tmp_path: Path) -> None:
    model = takes_t1c(tmp_path / "model.safetensors")
    for patient in ("anna", "bert"):
        (tmp_path / "raw" / patient).mkdir(parents=True)
        for sequence in ("t1c", "flair"):
            shutil.copy(case / "p1_t1c.nii.gz", tmp_path / "raw" / patient / f"{sequence}.nii.gz")
    done = predict(PredictConfig(inputs=(str(tmp_path / "raw"),), model=str(model), out=tmp_path / "mine"), Silent())
    assert [scan.name for scan in done.document.scans] == ["anna", "bert"]
    for scan in done.document.scans:
        assert "not used, the model does not take it: t2f (flair.nii.gz)" in scan.notes
    report = follow(tmp_path, tmp_path / "raw" / "anna", tmp_path / "raw" / "bert", model=str(model))
    assert [visit.visit for visit in report.document.visits] == ["anna", "bert"]
    assert "anna: not used, the model does not take it: t2f (flair.nii.gz)" in report.document.notes
