"""DICOM SEG and RTSTRUCT read as label maps, and written."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metaseg_cli.core.datasets import find_cases
from metaseg_cli.core.images import Volume, on_grid_of, read_image, read_mask, read_scan, write_seg
from metaseg_cli.core.images import write_rtstruct as write_rtstruct_of_masks
from metaseg_cli.core.images.dicom_rtstruct import outlines
from metaseg_cli.errors import InputError
from tests.dicom_files import (
    SHAPE,
    lesions,
    make_seg,
    numbers,
    square,
    write_rtstruct,
    write_series,
)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_sparse_seg_comes_back_voxel_for_voxel(tmp_path: Path, kind: str) -> None:
    source = write_series(tmp_path / "images", numbers())
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 3:9, 4:8] = 1
    mask[3:5, 10:15, 10:20] = 1
    pixels = mask.astype(float) * 0.8 if kind == "FRACTIONAL" else mask
    make_seg(tmp_path / "mask.seg", source, pixels, kind)
    read = read_mask(tmp_path / "mask.seg")
    placed = on_grid_of(read, read_image(tmp_path / "images"))
    assert placed is not None
    np.testing.assert_array_equal(placed.array[0], mask)


def test_a_seg_of_ours_lies_on_the_series_voxel_for_voxel(tmp_path: Path) -> None:
    files = write_series(tmp_path / "scan", numbers())
    scan, mask = read_scan(files), lesions(SHAPE)
    inner = mask & (np.arange(SHAPE[2]) > 6)
    write_seg(tmp_path / "a_mask.dcm", [("metastasis", mask), ("core", inner)], files)
    found = on_grid_of(read_mask(tmp_path / "a_mask.dcm", scan), scan)
    assert found is not None
    np.testing.assert_array_equal((found.array == 1).any(axis=0), mask)
    np.testing.assert_array_equal((found.array == 2).any(axis=0), inner)
    data = pydicom.dcmread(tmp_path / "a_mask.dcm")
    assert (data.Modality, data.PatientID) == ("SEG", "P1")
    assert [s.SegmentLabel for s in data.SegmentSequence] == ["metastasis", "core"]
    assert data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Metastasis"
    assert data.FrameOfReferenceUID == pydicom.dcmread(files[0]).FrameOfReferenceUID
    # An independent reader puts every frame on the same voxels.
    seg = hd.seg.segread(tmp_path / "a_mask.dcm")
    ours = hd.get_volume_from_series([pydicom.dcmread(f) for f in files])
    volume = seg.get_volume(segment_numbers=[1], combine_segments=True).match_geometry(ours)
    theirs = volume.array if np.allclose(volume.position, scan.origin_mm, atol=1e-4) else volume.array[::-1]
    np.testing.assert_array_equal(theirs > 0, mask)


def ragged() -> np.ndarray:
    """Holes, an island in a hole, a single voxel, two voxels that touch at a corner, voxels at the edge."""
    mask = np.zeros(SHAPE, bool)
    mask[0, 1:12, 1:14] = True
    mask[0, 3:6, 3:6] = mask[0, 4, 8] = mask[0, 7:11, 7:12] = mask[0, 3:5, 11:13] = False
    mask[0, 9, 9] = True
    mask[2, 5, 5] = mask[2, 9, 9] = mask[2, 10, 10] = True
    mask[3, 0:2, 0:3] = mask[3, -1, -1] = True
    mask[5] = np.random.default_rng(4).random(SHAPE[1:]) > 0.4
    return mask


def test_an_rtstruct_of_ours_fills_to_the_very_mask(tmp_path: Path) -> None:
    files = write_series(tmp_path / "scan", numbers())
    scan, mask = read_scan(files), ragged()
    inner = mask & (np.arange(SHAPE[2]) > 6)
    write_rtstruct_of_masks(tmp_path / "a.dcm", [("metastasis", mask), ("core", inner)], files, scan)
    found = read_mask(tmp_path / "a.dcm", scan)
    np.testing.assert_array_equal((found.array == 1).any(axis=0), mask)
    np.testing.assert_array_equal((found.array == 2).any(axis=0), inner)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert (data.Modality, data.PatientID) == ("RTSTRUCT", "P1")
    assert {o.RTROIInterpretedType for o in data.RTROIObservationsSequence} == {"GTV"}
    # Every contour names the image that it lies on.
    positions = {d.SOPInstanceUID: d.ImagePositionPatient for d in map(pydicom.dcmread, files)}
    row, column = np.array(pydicom.dcmread(files[0]).ImageOrientationPatient).reshape(2, 3)
    for contour in data.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        at = np.array(positions[contour.ContourImageSequence[0].ReferencedSOPInstanceUID], float)
        np.testing.assert_allclose((points - at) @ np.cross(row, column), 0, atol=1e-3)
        assert contour.NumberOfContourPoints == len(points)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
def test_a_validator_finds_no_error_in_seg_and_rtstruct(tmp_path: Path) -> None:
    def odd(z: int, data: Dataset) -> None:
        data.PatientAge, data.StudyDate = "42", "yesterday"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the odd values
        files = write_series(tmp_path / "scan", numbers(), change=odd)
        scan, structures = read_scan(files), [("metastasis", ragged()), ("core", ragged() & (np.arange(SHAPE[2]) > 6))]
        write_seg(tmp_path / "seg.dcm", structures, files)
        write_rtstruct_of_masks(tmp_path / "rt.dcm", structures, files, scan)
    for name in ("seg.dcm", "rt.dcm"):
        done = subprocess.run(["dciodvfy", "-new", str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr
        assert done.returncode == 0


def test_outlines_give_random_masks_again_by_a_reader_of_polygons() -> None:
    from skimage.draw import polygon2mask

    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.65, 0.8, 0.95):
        mask = rng.random((30, 37)) < density
        again = np.zeros_like(mask)
        for ring in outlines(mask):
            filled = polygon2mask(mask.shape, ring)
            assert not (again & filled).any()
            again |= filled
        np.testing.assert_array_equal(again, mask)


def test_a_seg_without_any_lesion_is_written_too(tmp_path: Path) -> None:
    files = write_series(tmp_path / "scan", numbers())
    write_seg(tmp_path / "a.dcm", [("metastasis", np.zeros(SHAPE, bool))], files)
    assert not read_mask(tmp_path / "a.dcm", read_scan(files)).array.any()


def test_a_series_that_lacks_what_a_seg_repeats_is_named(tmp_path: Path) -> None:
    def anonymous(_: int, data: Dataset) -> None:
        del data.FrameOfReferenceUID

    files = write_series(tmp_path / "scan", numbers(), change=anonymous)
    with pytest.raises(InputError, match="Frame Of Reference UID"):
        write_seg(tmp_path / "a.dcm", [("metastasis", lesions(SHAPE))], files)
    assert not (tmp_path / "a.dcm").exists()


def test_a_seg_is_written_of_a_series_whose_anonymiser_removed_what_may_be_empty(tmp_path: Path) -> None:
    def anonymous(_: int, data: Dataset) -> None:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyTime", "PatientName"):
            del data[keyword]

    files = write_series(tmp_path / "scan", numbers(), change=anonymous)
    write_seg(tmp_path / "a.dcm", [("metastasis", lesions(SHAPE))], files)
    assert read_mask(tmp_path / "a.dcm", read_scan(files)).array.any()


def test_overlapping_segments_get_layers(tmp_path: Path) -> None:
    source = write_series(tmp_path / "images", numbers())
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[:, 2:10, 2:10, 0] = 1
    masks[:, 8:12, 8:12, 1] = 1
    make_seg(tmp_path / "mask.seg", source, masks, "BINARY", count=2)
    layers = read_mask(tmp_path / "mask.seg").array
    np.testing.assert_array_equal(layers, np.stack([masks[..., 0], 2 * masks[..., 1]]))


def test_masks_on_a_real_series_come_back_voxel_for_voxel(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "dicom_t1").glob("*.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the patient's age, which is none
        scan = read_scan(files)
        mask = np.zeros(scan.shape, bool)
        mask[5:9, 100:140, 90:150] = np.random.default_rng(0).random((4, 40, 60)) > 0.3
        mask[20, 200, 200] = mask[-1, 0, 0] = True
        write_seg(tmp_path / "seg.dcm", [("metastasis", mask)], files)
        write_rtstruct_of_masks(tmp_path / "rt.dcm", [("metastasis", mask)], files, scan)
    for name in ("seg.dcm", "rt.dcm"):
        again = on_grid_of(read_mask(tmp_path / name, scan), scan)
        np.testing.assert_array_equal((again.array == 1).any(axis=0), mask)


def test_the_seg_files_of_others_read_to_their_label_volumes(real_data: Path) -> None:
    folder = real_data / "dicom_seg"
    pairs = {
        "liver.dcm": ["liver_seg.nrrd"],
        "partial_overlaps.dcm": [f"partial_overlaps-{n}.nrrd" for n in (1, 2, 3)],
        "sparse-labelmap-noppv.dcm": ["sparse_labelmap_noppv_seg.nrrd"],
        "sparse-labelmap-ppv5.dcm": ["sparse_labelmap_ppv5_seg.nrrd"],
        "23x38x3/seg/label.seg": ["23x38x3/nrrd/label.nrrd"],
        "24x38x3/seg/label.seg": ["24x38x3/nrrd/label.nrrd"],
    }
    for seg, nrrds in pairs.items():
        mask = read_mask(folder / seg, structures=("*",))  # whatever they show
        assert len(mask.array) == len(nrrds)
        for layer, nrrd in zip(mask.array, nrrds, strict=True):
            truth = read_image(folder / nrrd)
            np.testing.assert_array_equal(layer, truth.array[0])
            np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)


def test_contours_fill_what_lies_inside_and_leave_holes_and_organs_out(tmp_path: Path) -> None:
    study = generate_uid()
    paths = write_series(tmp_path / "P1", numbers(), study=study)
    scan = read_image(tmp_path / "P1")
    series = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
    rois = {
        "Brainstem": [square(0.5, 18.5, 0)],
        "GTV_1": [square(3.5, 12.5, 2), square(6.5, 8.5, 2), square(3.5, 9.5, 3)],
    }
    write_rtstruct(tmp_path / "P1" / "rt", scan, study, series, rois)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 4:13, 4:13] = 1
    expected[2, 7:9, 7:9] = 0
    expected[3, 4:10, 4:10] = 1
    mask = read_mask(tmp_path / "P1" / "rt", scan)
    np.testing.assert_array_equal(mask.array[0], expected)
    assert any("Brainstem" in note for note in mask.notes)
    found = find_cases(tmp_path)
    assert [(c.patient, list(c.sequences), len(c.masks)) for c in found.cases] == [("P1", ["t1c"], 1)]


# -- what is wrong with a SEG ----------------------------------------------------------------------------------------


def set_segment(data: Dataset, frame: int, number: int) -> None:
    group = data.PerFrameFunctionalGroupsSequence[frame].SegmentIdentificationSequence[0]
    group.ReferencedSegmentNumber = number


def without_segment(data: Dataset) -> None:
    del data.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence


def declared_twice(data: Dataset) -> None:
    data.SegmentSequence.append(data.SegmentSequence[0])


def huge_segment(data: Dataset) -> None:
    data.SegmentSequence[0].SegmentNumber = 300


def far_away(data: Dataset) -> None:
    data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 99999]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: set_segment(d, 1, 7), "frame 2 belongs to segment 7, which it does not declare"),
        (without_segment, "frame 2 belongs to no segment"),
        (declared_twice, "declares segment 1 twice"),
        (huge_segment, "segments up to 300"),
        (lambda d: d.__delattr__("SegmentSequence"), "declares no segment"),
        (lambda d: setattr(d, "SegmentationType", "WHAT"), "unknown type 'WHAT'"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-4]), "less than expected"),
        (lambda d: setattr(d, "Rows", 40), "less than expected"),
        (lambda d: setattr(d, "NumberOfFrames", 3), "3 frames but describes"),
        (far_away, "slices are|planes lie|shifted"),
    ],
)
def test_a_seg_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], message: str
) -> None:
    masks = np.stack([lesions(SHAPE), np.roll(lesions(SHAPE), 9, axis=1)], axis=-1).astype(np.uint8)
    make_seg(tmp_path / "a.dcm", write_series(tmp_path / "scan", numbers()), masks, "BINARY", count=2)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    change(data)
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=message):
        read_mask(tmp_path / "a.dcm")


def test_a_label_map_holds_only_what_it_declares(tmp_path: Path) -> None:
    make_seg(tmp_path / "a.dcm", write_series(tmp_path / "s", numbers()), lesions(SHAPE).astype(np.uint8), "LABELMAP")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.PixelData = data.PixelData.replace(b"\1", b"\5")
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="label 5, which it does not declare"):
        read_mask(tmp_path / "a.dcm")


def test_a_segment_without_a_frame_is_told(tmp_path: Path) -> None:
    masks = np.stack([lesions(SHAPE), np.zeros(SHAPE, bool)], axis=-1).astype(np.uint8)
    make_seg(tmp_path / "a.dcm", write_series(tmp_path / "scan", numbers()), masks, "BINARY", count=2)
    assert "segments without a frame: 2 = lesion 2" in read_mask(tmp_path / "a.dcm").notes


# -- contours --------------------------------------------------------------------------------------------------------


def structure_set(
    folder: Path, contours: list[np.ndarray], change: Callable[[Dataset], None] | None = None
) -> tuple[Path, Volume]:
    """A GTV of *contours* on a series, and the series read."""
    paths = write_series(folder / "scan", numbers())
    scan = read_image(folder / "scan")
    head = pydicom.dcmread(paths[0])
    write_rtstruct(folder / "rt.dcm", scan, head.StudyInstanceUID, head.SeriesInstanceUID, {"GTV": contours})
    if change:
        data = pydicom.dcmread(folder / "rt.dcm")
        change(data)
        data.save_as(folder / "rt.dcm")
    return folder / "rt.dcm", scan


@pytest.mark.parametrize(
    ("planes", "slices"),
    [
        ((1.5, 2.5), (2, 3)),
        ([1 + k / 4 for k in range(9)], (1, 2, 3)),
        ((0.4, 1.6, 2.8, 4.0), (0, 1, 2, 3, 4)),  # planes 1.2 slices apart
        ((1, 2, 3), (1, 2, 3)),
        ((3.3,), (3,)),
    ],
)
def test_contours_between_slices_make_a_solid_lesion(
    tmp_path: Path, planes: tuple[float, ...], slices: tuple[int, ...]
) -> None:
    path, scan = structure_set(tmp_path, [square(3.5, 12.5, z) for z in planes])
    mask = read_mask(path, scan)
    expected = np.zeros(SHAPE, np.uint8)
    expected[list(slices), 4:13, 4:13] = 1
    np.testing.assert_array_equal(mask.array[0], expected)
    assert any("between the image's slices" in note for note in mask.notes) == (planes != (1, 2, 3))


def test_a_hole_is_cut_only_within_one_plane(tmp_path: Path) -> None:
    path, scan = structure_set(tmp_path, [square(3.5, 12.5, 2), square(6.5, 8.5, 2.3), square(3.5, 12.5, 2)])
    mask = read_mask(path, scan).array[0]
    assert mask.sum() == 81  # neither the plane beside it nor the same contour again cuts anything out


@pytest.mark.parametrize(
    "again", [lambda p: p[::-1], lambda p: np.roll(p, 2, axis=0), lambda p: np.concatenate([p, p[:1]])]
)
def test_the_same_contour_again_cuts_nothing_out(again: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    contour = square(3.5, 12.5, 2)
    path, scan = structure_set(tmp_path, [contour, again(contour)])
    assert read_mask(path, scan).array.sum() == 81


def test_a_lesion_smaller_than_a_voxel_keeps_the_one_it_lies_in(tmp_path: Path) -> None:
    path, scan = structure_set(tmp_path, [square(5.1, 5.3, 2)])
    mask = read_mask(path, scan)
    assert np.argwhere(mask.array[0]).tolist() == [[2, 5, 5]]
    assert "smaller than a voxel" in " ".join(mask.notes)


def test_a_structure_without_a_closed_contour_is_no_empty_mask(tmp_path: Path) -> None:
    def change(data: Dataset) -> None:
        first_contour(data).ContourGeometricType = "OPEN_PLANAR"

    path, scan = structure_set(tmp_path, [square(3.5, 12.5, 2)], change)
    with pytest.raises(InputError, match="no closed contour"):
        read_mask(path, scan)


def test_contours_that_overlap_in_one_plane_are_united(tmp_path: Path) -> None:
    path, scan = structure_set(tmp_path, [square(3.5, 9.5, 2), square(7.5, 12.5, 2)])
    assert read_mask(path, scan).array.sum() == 36 + 25 - 4


def test_a_structure_drawn_on_every_second_slice_says_so(tmp_path: Path) -> None:
    path, scan = structure_set(tmp_path, [square(3.5, 12.5, z) for z in (0, 2, 4)])
    mask = read_mask(path, scan)
    assert mask.array[0].any(axis=(1, 2)).tolist() == [True, False, True, False, True, False]
    assert "GTV is drawn on every second slice only: the slices between are empty" in mask.notes


def first_contour(data: Dataset) -> Dataset:
    return data.ROIContourSequence[0].ContourSequence[0]


def tilted(data: Dataset) -> None:
    contour = first_contour(data)
    contour.ContourData = [*contour.ContourData[:2], float(contour.ContourData[2]) + 9, *contour.ContourData[3:]]


def shifted(data: Dataset) -> None:
    contour = first_contour(data)
    contour.ContourData = [v + 500 for v in contour.ContourData]


def other_frame(data: Dataset) -> None:
    data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = generate_uid()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(first_contour(d), "ContourData", first_contour(d).ContourData[:-1]), "not three for each"),
        (lambda d: setattr(first_contour(d), "NumberOfContourPoints", 5), "4 points where it promises 5"),
        (tilted, "tilted against them"),
        (shifted, "outside the image"),
        (other_frame, "another frame of reference"),
        (
            lambda d: setattr(d.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", generate_uid()),
            "GTV lies in another frame of reference",
        ),
        (lambda d: d.__delattr__("RTROIObservationsSequence"), "without its RTROIObservationsSequence"),
        (lambda d: d.ROIContourSequence.append(d.ROIContourSequence[0]), "structure 1 is there twice"),
    ],
)
def test_a_structure_set_that_contradicts_itself_or_the_image_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], message: str
) -> None:
    path, scan = structure_set(tmp_path, [square(3.5, 12.5, 2)], change)
    with pytest.raises(InputError, match=message):
        read_mask(path, scan)


def test_points_and_structures_without_contours_are_told(tmp_path: Path) -> None:
    def change(data: Dataset) -> None:
        point, roi = Dataset(), Dataset()
        point.ContourGeometricType, point.NumberOfContourPoints = "POINT", 1
        point.ContourData = first_contour(data).ContourData[:3]
        data.ROIContourSequence[0].ContourSequence.append(point)
        roi.ROINumber, roi.ROIName = 9, "GTV_later"
        data.StructureSetROISequence.append(roi)

    path, scan = structure_set(tmp_path, [square(3.5, 12.5, 2)], change)
    mask = read_mask(path, scan)
    assert mask.array.sum() == 81
    assert "GTV: 1 contour(s) were left out, being POINT" in mask.notes
    assert "structures without contours: GTV_later" in mask.notes
