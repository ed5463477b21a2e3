"""DICOM as scanners and archives give it, made here by pydicom and highdicom."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.sr.coding import Code
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, RLELossless, generate_uid

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.datasets import find_cases
from metaseg_cli.core.images import Volume, on_grid_of, read_image, read_mask, read_scan, write_seg
from metaseg_cli.core.images import write_rtstruct as write_rtstruct_of_masks
from metaseg_cli.core.images.dicom_rtstruct import outlines
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError

OBLIQUE = np.array([[0.98, 0.17, 0.0], [-0.17, 0.96, 0.2]])
SHAPE = (6, 20, 24)
STEP = 3.5  # slices 2.5 mm thick with a gap of 1 mm


def numbers() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2000, SHAPE).astype(np.uint16)


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    patient: str = "P1",
    study: str | None = None,
    description: str = "AX T1 POST",
    change: Callable[[int, Dataset], None] | None = None,
) -> list[Path]:
    """One oblique series with gaps, its files shuffled and badly named."""
    folder.mkdir(parents=True, exist_ok=True)
    row = OBLIQUE[0] / np.linalg.norm(OBLIQUE[0])
    column = OBLIQUE[1] - row * (OBLIQUE[1] @ row)
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    series, frame, study = generate_uid(), generate_uid(), study or generate_uid()
    names = [f"IM{n:04d}" for n in range(len(array))]
    random.Random(0).shuffle(names)
    paths = []
    for z, (name, pixels) in enumerate(zip(names, array, strict=True)):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MRImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientID, data.PatientName, data.Modality, data.SeriesDescription = (
            patient,
            f"{patient}^",
            "MR",
            description,
        )
        data.PatientBirthDate = data.PatientSex = data.StudyID = data.AccessionNumber = data.StudyTime = ""
        data.ReferringPhysicianName = data.PositionReferenceIndicator = data.Manufacturer = ""
        data.StudyDate, data.SeriesNumber, data.InstanceNumber = "20260101", 1, 7 * z % 6
        data.Rows, data.Columns = pixels.shape
        data.PixelSpacing, data.SliceThickness = [0.7, 0.9], 2.5
        data.ImageOrientationPatient = [*map(float, row), *map(float, column)]
        data.ImagePositionPatient = list(map(float, np.array([-40.0, 12.0, 30.0]) + z * STEP * normal))
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelData = pixels.tobytes()
        if change:
            change(z, data)
        path = folder / name
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def test_an_oblique_shuffled_series_with_gaps_lies_where_its_positions_say(tmp_path: Path) -> None:
    paths = write_series(tmp_path, numbers())
    (tmp_path / "notes.txt").write_text("not DICOM")
    scan = read_image(tmp_path)
    np.testing.assert_array_equal(scan.array[0], numbers())
    assert scan.spacing_mm == pytest.approx((STEP, 0.7, 0.9))
    np.testing.assert_allclose(scan.origin_mm, (-40, 12, 30), atol=1e-6)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(list(map(str, paths)))
    theirs = reader.Execute()
    np.testing.assert_allclose(scan.direction, theirs.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(scan.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-6)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, numbers())
    paths[3].unlink()
    with pytest.raises(InputError, match=f"1 between {paths[2].name} and {paths[4].name}"):
        read_image(tmp_path)


def test_unevenly_spaced_slices_are_refused_with_their_millimetres(tmp_path: Path) -> None:
    def moved(z: int, data: Dataset) -> None:
        if z == 5:
            data.ImagePositionPatient = [p + 0.4 for p in data.ImagePositionPatient]

    write_series(tmp_path, numbers(), change=moved)
    with pytest.raises(InputError, match=r"unevenly spaced: .* mm between"):
        read_image(tmp_path)


def test_two_series_in_one_folder_are_named_and_not_mixed(tmp_path: Path) -> None:
    write_series(tmp_path / "a", numbers(), description="AX T1")
    write_series(tmp_path / "b", numbers(), description="AX T2")
    with pytest.raises(InputError, match=r"2 series: AX T1 \(6 files\), AX T2 \(6 files\)"):
        read_image(tmp_path)


def test_copies_are_passed_over_and_two_images_per_slice_become_channels(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "copies", numbers())
    shutil.copy(paths[0], tmp_path / "copies" / "again")
    scan = read_image(tmp_path / "copies")
    assert scan.shape == SHAPE
    assert "1 copies" in scan.notes[0]

    def echo(z: int, data: Dataset) -> None:
        data.ImagePositionPatient = [float(v) for v in np.array([-40.0, 12.0, 30.0]) + (z // 2) * np.array([0, 0, 3.0])]
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.EchoNumbers = z % 2 + 1

    write_series(tmp_path / "echoes", numbers(), change=echo)
    scan = read_image(tmp_path / "echoes")
    np.testing.assert_array_equal(scan.array, np.stack([numbers()[0::2], numbers()[1::2]]))


# In a process of its own: ITK's writer leaves the locale changed.
TO_JPEG2000 = """
import sys, SimpleITK as sitk
image = sitk.ReadImage(sys.argv[1], imageIO="GDCMImageIO")
writer = sitk.ImageFileWriter()
writer.KeepOriginalImageUIDOn()
writer.SetUseCompression(True)
writer.SetCompressor("JPEG2000")
writer.SetImageIO("GDCMImageIO")
writer.SetFileName(sys.argv[1])
writer.Execute(image)
"""


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_syntaxes_give_the_same_numbers(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path, numbers())
    for path in paths:
        data = pydicom.dcmread(path)
        if syntax == RLELossless:
            data.compress(syntax, generate_instance_uid=False)
        else:
            subprocess.run([sys.executable, "-c", TO_JPEG2000, str(path)], check=True)
            continue
        data.save_as(path)
    np.testing.assert_array_equal(read_image(tmp_path).array[0], numbers())


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    def slope(z: int, data: Dataset) -> None:
        data.RescaleSlope, data.RescaleIntercept = z + 1, 10

    write_series(tmp_path, numbers(), change=slope)
    expected = numbers() * (np.arange(6) + 1.0)[:, None, None] + 10
    np.testing.assert_allclose(read_image(tmp_path).array[0], expected)


def test_a_single_image_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    path = write_series(tmp_path, numbers())[0]
    assert read_image(path).shape == (1, 20, 24)


def test_a_zip_is_read_and_a_traversal_and_a_bomb_are_not(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", numbers())
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"inside/{path.name}")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.zip").array[0], numbers())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.dcm", b"x")
    with pytest.raises(InputError, match="outside its folder"):
        read_image(tmp_path / "evil.zip")
    assert not (tmp_path / "outside.dcm").exists()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(80 * 2**20))
    with pytest.raises(InputError, match="would unpack to"):
        read_image(tmp_path / "bomb.zip")
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="not a readable ZIP"):
        read_image(tmp_path / "broken.zip")


# -- masks -----------------------------------------------------------------------------------------------------------


def make_seg(path: Path, source: list[Path], mask: np.ndarray, kind: str, count: int = 1) -> None:
    tumour = Code("108369006", "SCT", "Neoplasm")
    segments = [
        hd.seg.SegmentDescription(
            segment_number=n + 1,
            segment_label=f"lesion {n + 1}",
            segmented_property_category=Code("49755003", "SCT", "Morphologically Altered Structure"),
            segmented_property_type=tumour,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n in range(count)
    ]
    seg = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(p) for p in source],
        pixel_array=mask,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )
    seg.save_as(path)


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


def lesions(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:3, 3:8, 4:9] = mask[4, 12:15, 2:5] = True
    return mask


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


def test_an_enhanced_multi_frame_image_is_the_series_it_was_made_of(real_data: Path) -> None:
    for size in ("23x38x3", "24x38x3"):
        frames = read_image(real_data / "dicom_seg" / size / "multiframe" / "mf.dcm")
        series = read_image(real_data / "dicom_seg" / size / "image")
        np.testing.assert_array_equal(frames.array, series.array)
        np.testing.assert_allclose(frames.affine, series.affine, atol=1e-6)


def test_frames_in_any_order_are_put_where_they_say(tmp_path: Path) -> None:
    """An enhanced MR image whose frames are shuffled and rescaled each by its own slope."""
    data = pydicom.dcmread(write_series(tmp_path / "one", numbers()[:1])[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, keyword)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    order = [3, 0, 5, 1, 4, 2]
    data.NumberOfFrames = len(order)
    data.PixelData = numbers()[order].tobytes()
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.9], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for z in order:
        position, values, own = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-40.0, 12.0, 30.0 + z * STEP]
        values.RescaleSlope, values.RescaleIntercept = z + 1, 5
        own.PlanePositionSequence, own.PixelValueTransformationSequence = [position], [values]
        data.PerFrameFunctionalGroupsSequence.append(own)
    data.save_as(tmp_path / "enhanced.dcm")
    scan = read_image(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(scan.array[0], numbers() * (np.arange(6.0) + 1)[:, None, None] + 5)
    assert scan.spacing_mm == pytest.approx((STEP, 0.7, 0.9))
    assert scan.origin_mm == pytest.approx((-40, 12, 30))


def write_rtstruct(path: Path, scan: Volume, study: str, series: str, rois: dict[str, list[np.ndarray]]) -> None:
    """*rois*: name → contours ``(n, 3)`` in voxel indices x y z."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Modality, data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = (
        "RTSTRUCT",
        "P1",
        study,
        generate_uid(),
    )
    referenced = Dataset()
    referenced.SeriesInstanceUID = series
    in_study = Dataset()
    in_study.RTReferencedSeriesSequence = [referenced]
    frame = Dataset()
    frame.RTReferencedStudySequence = [in_study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        drawn.ContourSequence = []
        for index in contours:
            points = (np.column_stack([index, np.ones(len(index))]) @ scan.affine.T)[:, :3]
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{v:.6f}" for v in points.ravel()]
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    data.save_as(path, enforce_file_format=True)


def square(low: float, high: float, z: int) -> np.ndarray:
    return np.array([(low, low, z), (high, low, z), (high, high, z), (low, high, z)], dtype=float)


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


def test_a_folder_of_patients_becomes_cases_with_their_sequences_and_masks(tmp_path: Path) -> None:
    for patient in ("A", "B"):
        study = generate_uid()
        write_series(tmp_path / patient / "s1", numbers(), patient=patient, study=study, description="T2 FLAIR ax")
        source = write_series(tmp_path / patient / "s2", numbers(), patient=patient, study=study)
        write_series(tmp_path / patient / "s0", numbers()[:3], patient=patient, study=study, description="localizer")
        mask = np.zeros(SHAPE, np.uint8)
        mask[2, 5:9, 5:9] = 1
        make_seg(tmp_path / patient / "seg.dcm", source, mask, "BINARY")
    found = find_cases(tmp_path)
    assert found.layout == "dicom"
    assert [(c.patient, list(c.sequences)) for c in found.cases] == [("A", ["t1c", "t2f"]), ("B", ["t1c", "t2f"])]
    assert all(len(c.sequences["t1c"]) == 6 and c.masks[0].name == "seg.dcm" for c in found.cases)
    result = prepare(
        PrepareConfig(raw=tmp_path, out=tmp_path.parent / "prepared", workers=1, spacing="native"), Silent()
    )
    assert result.sequences == ("t1c", "t2f")
    assert [r.lesion_voxels for r in result.cases] == [(16,), (16,)]
    assert all(r.source_spacing_mm == pytest.approx((STEP, 0.7, 0.9)) for r in result.cases)
