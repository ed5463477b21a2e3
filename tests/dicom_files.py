"""DICOM series, SEG and RTSTRUCT made for the tests by pydicom and highdicom."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr.coding import Code
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RTStructureSetStorage, generate_uid

from metaseg_cli.core.images import Volume

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


def to_jpeg2000(path: Path) -> None:
    """Compress a file in place, without loss."""
    subprocess.run([sys.executable, "-c", TO_JPEG2000, str(path)], check=True)


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


def lesions(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:3, 3:8, 4:9] = mask[4, 12:15, 2:5] = True
    return mask


def write_rtstruct(path: Path, scan: Volume, study: str, series: str, rois: dict[str, list[np.ndarray]]) -> None:
    """*rois*: name → contours ``(n, 3)`` in voxel indices x y z."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
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


def square(low: float, high: float, z: float) -> np.ndarray:
    return np.array([(low, low, z), (high, low, z), (high, high, z), (low, high, z)], dtype=float)


def enhanced(path: Path, order: list[int], change: Callable[[int, Dataset], None] | None = None) -> None:
    """An enhanced MR object of the slices *order* of ``numbers()``; *change* edits the groups of each frame."""
    data = pydicom.dcmread(write_series(path.parent / f"of-{path.name}", numbers()[:1])[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, keyword)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    data.NumberOfFrames = len(order)
    data.PixelData = numbers()[order].tobytes()
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.9], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for z in order:
        position, own = Dataset(), Dataset()
        position.ImagePositionPatient = [-40.0, 12.0, 30.0 + z * STEP]
        own.PlanePositionSequence = [position]
        if change:
            change(z, own)
        data.PerFrameFunctionalGroupsSequence.append(own)
    data.save_as(path, enforce_file_format=True)
