"""Which images are one volume, where careless scanners, archives and anonymisers leave that open."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metaseg_cli.core.datasets import find_cases, scans_under
from metaseg_cli.core.images import on_grid_of, read_image, read_mask, read_scan, unpacked, write_rtstruct, write_seg
from metaseg_cli.core.inference.inputs import sources_of
from metaseg_cli.errors import InputError
from tests.dicom_files import SHAPE, STEP, enhanced, lesions, make_seg, numbers, write_series


def uid_per_slice(*keywords: str) -> Callable[[int, Dataset], None]:
    def change(_: int, data: Dataset) -> None:
        for keyword in keywords:
            setattr(data, keyword, generate_uid())

    return change


@pytest.mark.parametrize(
    "keywords",
    [
        ("SeriesInstanceUID",),
        ("SeriesInstanceUID", "FrameOfReferenceUID"),
        ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    ],
)
def test_a_series_uid_for_every_slice_makes_one_volume(tmp_path: Path, keywords: tuple[str, ...]) -> None:
    write_series(tmp_path / "scan", numbers(), change=uid_per_slice(*keywords))
    scan = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(scan.array[0], numbers())
    assert "6 SeriesInstanceUIDs, whose images form one stack" in scan.notes[0]
    assert [len(case.files) for case in scans_under(tmp_path).cases] == [6]


def test_repeated_series_of_one_name_stay_apart(tmp_path: Path) -> None:
    study = generate_uid()
    for name in ("a", "b"):
        write_series(tmp_path / name, numbers(), study=study)
    with pytest.raises(InputError, match="2 series"):
        read_image(tmp_path)
    found = scans_under(tmp_path)
    assert [len(c.files) for c in found.cases] == [6]
    (problem,) = found.problems
    assert "a second t1c of P1: left out" in problem.reason
    sources, problems, _ = sources_of([str(tmp_path)])
    assert len(sources) == len(problems) == 1


def test_one_series_uid_for_two_series_keeps_them_apart(tmp_path: Path) -> None:
    uids = {"study": generate_uid(), "series": generate_uid()}

    def same(_: int, data: Dataset) -> None:
        data.SeriesInstanceUID = uids["series"]

    for name, description in (("a", "AX T1 POST"), ("b", "AX T2 FLAIR")):
        write_series(tmp_path / name, numbers(), study=uids["study"], description=description, change=same)
    with pytest.raises(InputError, match="2 series"):
        read_image(tmp_path)
    (case,) = scans_under(tmp_path).cases
    assert {name: len(files) for name, files in case.sequences.items()} == {"t1c": 6, "t2f": 6}


def test_one_instance_uid_for_all_slices_makes_no_copies(tmp_path: Path) -> None:
    uid = generate_uid()

    def same(z: int, data: Dataset) -> None:
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid

    files = write_series(tmp_path / "scan", numbers(), change=same)
    shutil.copy(files[2], tmp_path / "scan" / "copy")
    scan = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(scan.array[0], numbers())
    assert scan.notes[0] == "1 copies of images were skipped"
    for write in (
        lambda: write_seg(tmp_path / "a.dcm", [("metastasis", lesions(SHAPE))], files),
        lambda: write_rtstruct(tmp_path / "a.dcm", [("metastasis", lesions(SHAPE))], files, scan),
    ):
        with pytest.raises(InputError, match="6 slices have 1 SOPInstanceUIDs instead of 6"):
            write()


@pytest.mark.parametrize("kind", ["series", "multi-frame"])
def test_pixel_spacings_that_differ_are_refused_with_both(tmp_path: Path, kind: str) -> None:
    if kind == "series":
        write_series(tmp_path, numbers(), change=lambda z, d: setattr(d, "PixelSpacing", [0.7, 0.9 + (z > 2) * 0.1]))
    else:

        def other(z: int, own: Dataset) -> None:
            measures = Dataset()
            measures.PixelSpacing, measures.SliceThickness = [0.7, 0.9 + (z > 2) * 0.1], 2.5
            own.PixelMeasuresSequence = [measures]

        enhanced(tmp_path / "image.dcm", list(range(6)), other)
    with pytest.raises(InputError, match=r"spacing differs: 0\.7×(0\.9|1) mm in .*, 0\.7×(1|0\.9) mm in"):
        read_image(tmp_path if kind == "series" else tmp_path / "image.dcm")


def test_orientations_that_differ_by_rounding_are_one_series_with_its_seg(tmp_path: Path) -> None:
    def rounded(z: int, data: Dataset) -> None:
        data.ImageOrientationPatient = [round(float(v), 3 + z % 3) for v in data.ImageOrientationPatient]
        data.PixelSpacing = [0.7, 0.9 + 1e-5 * z]

    files = write_series(tmp_path / "scan", numbers(), change=rounded)
    scan, mask = read_scan(files), lesions(SHAPE)
    write_seg(tmp_path / "a.dcm", [("metastasis", mask)], files)
    write_rtstruct(tmp_path / "b.dcm", [("metastasis", mask)], files, scan)
    for name in ("a.dcm", "b.dcm"):
        again = on_grid_of(read_mask(tmp_path / name, scan), scan)
        np.testing.assert_array_equal(again.array[0] > 0, mask)


@pytest.mark.parametrize(
    ("keyword", "values", "told"),
    [
        ("EchoTime", (14, 96), "echo time 14 ms, echo time 96 ms"),
        ("TemporalPositionIdentifier", (1, 2), "time point 1, time point 2"),
        ("AcquisitionNumber", (3, 7), "acquisition 3, acquisition 7"),
    ],
)
def test_several_images_of_one_position_are_told_apart(
    tmp_path: Path, keyword: str, values: tuple[int, int], told: str
) -> None:
    def place(z: int, data: Dataset) -> None:
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-40.0, 12.0, 3.0 * (z // 2)]
        setattr(data, keyword, values[z % 2])

    write_series(tmp_path, numbers(), change=place)
    scan = read_image(tmp_path)
    np.testing.assert_array_equal(scan.array, np.stack([numbers()[0::2], numbers()[1::2]]))
    assert scan.notes == (f"2 images at each position, read as channels: {told}",)


def test_a_multi_frame_object_that_does_not_describe_every_frame_is_refused(tmp_path: Path) -> None:
    def without_position(z: int, own: Dataset) -> None:
        if z == 4:
            del own.PlanePositionSequence

    enhanced(tmp_path / "a.dcm", list(range(6)), without_position)
    with pytest.raises(InputError, match="frame 5 does not say where it lies"):
        read_image(tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:4]
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(InputError, match="6 frames but describes 4"):
        read_image(tmp_path / "b.dcm")
    del data.PerFrameFunctionalGroupsSequence
    data.save_as(tmp_path / "c.dcm")
    with pytest.raises(InputError, match="frames do not say where they lie"):
        read_image(tmp_path / "c.dcm")


def test_an_enhanced_object_of_one_frame_lies_where_its_frame_says(tmp_path: Path) -> None:
    enhanced(tmp_path / "one.dcm", [2])
    scan = read_image(tmp_path / "one.dcm")
    assert scan.origin_mm == pytest.approx((-40, 12, 30 + 2 * STEP))
    assert scan.spacing_mm == pytest.approx((2.5, 0.7, 0.9))


def test_a_damaged_slice_is_named_and_the_rest_of_the_folder_is_found(tmp_path: Path) -> None:
    write_series(tmp_path / "a", numbers(), patient="A")
    files = write_series(tmp_path / "b", numbers(), patient="B")
    (tmp_path / "b" / "cut.dcm").write_bytes(files[0].read_bytes()[:500])
    (tmp_path / "b" / "empty.dcm").write_bytes(b"")
    found = find_cases(tmp_path)
    assert [c.patient for c in found.cases] == ["A", "B"]
    assert "the file is empty (0 bytes); a series in its folder may lack this slice" in found.problems[-1].reason


def test_a_structure_set_without_patient_belongs_to_its_study(tmp_path: Path) -> None:
    study = generate_uid()
    files = write_series(tmp_path / "s", numbers(), study=study)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 5:9, 5:9] = 1
    make_seg(tmp_path / "seg.dcm", files, mask, "BINARY")
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    data.PatientID = ""
    data.save_as(tmp_path / "seg.dcm")
    assert [(c.patient, len(c.masks)) for c in find_cases(tmp_path).cases] == [("P1", 1)]


# -- ZIPs ------------------------------------------------------------------------------------------------------------


def pack(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder.parent))
    return to


def test_a_zip_of_a_study_holds_the_cases_of_its_folder(tmp_path: Path) -> None:
    study = generate_uid()
    write_series(tmp_path / "in" / "study" / "s1", numbers(), study=study)
    write_series(tmp_path / "in" / "study" / "s2", numbers(), study=study, description="T2 FLAIR ax")
    archive = pack(tmp_path / "in" / "study", tmp_path / "case7.zip")
    sources, problems, _ = sources_of([str(archive), str(tmp_path / "in"), str(tmp_path)])
    assert not problems
    packed, folder = sources[0], sources[1]
    assert (packed.case, list(packed.sequences)) == ("case7", ["t1c", "t2f"]) == ("case7", list(folder.sequences))
    assert packed.first_file == archive
    with unpacked(archive) as where:
        np.testing.assert_array_equal(read_scan([where / f for f in packed.sequences["t1c"]]).array[0], numbers())


def test_what_is_wrong_inside_a_zip_is_named_as_the_zip_has_it(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", numbers())
    files[0].write_bytes(files[0].read_bytes()[:-10])
    archive = pack(tmp_path / "in", tmp_path / "a.zip")
    with pytest.raises(InputError, match=rf"a\.zip/in/{files[0].name}: truncated") as caught:
        read_image(archive)
    assert "metaseg-zip-" not in str(caught.value)


def test_a_zip_in_a_zip_and_a_name_used_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(InputError, match="holds another ZIP"):
        read_image(tmp_path / "outer.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.dcm", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.dcm", b"2")
    with pytest.raises(InputError, match=r"a\.dcm twice"):
        read_image(tmp_path / "twice.zip")


def test_a_t1_without_contrast_agent_is_not_taken_for_one_with_it(tmp_path: Path) -> None:
    for name, description in (("a", "T1 POST"), ("b", "T1 native")):
        write_series(tmp_path / name, numbers(), patient=name, description=description)
    assert sorted(next(iter(case.sequences)) for case in scans_under(tmp_path).cases) == ["t1c", "t1n"]


def test_slices_that_are_named_one_by_one_are_said_to_be_scans_of_their_own(tmp_path: Path) -> None:
    files = write_series(tmp_path / "scan", numbers())
    sources, _, notes = sources_of([str(file) for file in files])
    assert len(sources) == len(files)
    assert "6 DICOM files were named one by one" in notes[0]
