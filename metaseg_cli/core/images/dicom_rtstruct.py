"""Masks out as DICOM RTSTRUCT: outlines on the slices of the series that they were found in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.dicom import quiet
from metaseg_cli.core.images.dicom_seg import source_images
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.regions import region_kind
from metaseg_cli.errors import decoding

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY = "1.2.840.10008.3.1.2.3.1"
# Distinct on grey; the first is that of lesions in our pictures.
_COLOURS = ((255, 92, 51), (64, 220, 130), (86, 156, 255), (255, 206, 64), (200, 120, 255), (64, 220, 220))
_NO_TUMOUR = ("oedema", "cavity")  # regions that are no gross tumour volume
_FROM_SOURCE = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
)

Ring = NDArray[np.float64]  # points (row, column), closed without repeating the first


def write_rtstruct(
    path: Path, structures: Sequence[tuple[str, NDArray[np.bool_]]], files: Sequence[Path], image: Volume
) -> None:
    """Write named masks ``(Z, Y, X)`` on *image*, read from the series *files*, as targets (GTV) of one structure set.

    Whole or not at all. Raises InputError when the series lacks what it must repeat of it.
    """
    what = "the series does not give what an RTSTRUCT must repeat of it"
    with decoding(files[0], what, remedy="take --format nifti"), quiet():
        data = _structure_set(structures, files, image)
    atomic_write(path, lambda to: data.save_as(to, enforce_file_format=True))


def _structure_set(structures: Sequence[tuple[str, NDArray[np.bool_]]], files: Sequence[Path], image: Volume) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    sources, order = source_images(files)
    first, now = sources[0], datetime.now()
    slices = [_reference(sources, order, z) for z in range(image.shape[0])]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = _RTSTRUCT, generate_uid()
    data.SpecificCharacterSet = "ISO_IR 192"
    for name in _FROM_SOURCE:
        setattr(data, name, first.get(name, ""))
    frame = data.FrameOfReferenceUID = first.FrameOfReferenceUID
    data.Modality, data.SeriesInstanceUID, data.OperatorsName = "RTSTRUCT", generate_uid(), ""
    data.SeriesNumber, data.SeriesDescription = int(first.get("SeriesNumber") or 0) + 901, "metaseg"
    data.InstanceNumber = 1
    data.Manufacturer = data.ManufacturerModelName = "metaseg"
    data.SoftwareVersions = metaseg_cli.__version__
    data.StructureSetLabel = "METASTASES"
    data.StructureSetDescription = "Brain metastases; for research, not a medical device"
    data.StructureSetDate, data.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.InstanceCreationDate, data.InstanceCreationTime = data.StructureSetDate, data.StructureSetTime
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=list(slices))
    study = _item(
        ReferencedSOPClassUID=_STUDY,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    data.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    rois, contours, observations = [], [], []
    for number, (name, mask) in enumerate(structures, start=1):
        rois.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame,
                ROIName=name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        drawn = _item(ROIDisplayColor=list(_COLOURS[(number - 1) % len(_COLOURS)]), ReferencedROINumber=number)
        outlines = list(_outlines(mask, image, slices))
        if outlines:
            drawn.ContourSequence = outlines
        contours.append(drawn)
        observations.append(
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="" if region_kind(name) in _NO_TUMOUR else "GTV",
                ROIInterpreter="",
            )
        )
    data.StructureSetROISequence, data.ROIContourSequence = rois, contours
    data.RTROIObservationsSequence = observations
    return data


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _reference(sources: Sequence[Any], order: NDArray[np.int64], z: int) -> Any:
    """Return a reference to the image, or to the frame, that slice *z* came from."""
    which = int(np.flatnonzero(order == z)[0])
    source = sources[which if len(sources) > 1 else 0]
    item = _item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
    if len(sources) == 1 and len(order) > 1:
        item.ReferencedFrameNumber = which + 1
    return item


def _outlines(mask: NDArray[np.bool_], image: Volume, slices: Sequence[Any]) -> Any:
    """Yield the contour items of all slices, in the patient's coordinates."""
    number = 0
    for z in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        for ring in outlines(mask[z]):
            number += 1
            index = np.column_stack([ring[:, 1], ring[:, 0], np.full(len(ring), z), np.ones(len(ring))])
            points = (image.affine @ index.T)[:3].T
            yield _item(
                ContourImageSequence=[slices[z]],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourNumber=number,
                ContourData=[f"{value:.4f}" for value in points.ravel()],
            )


# -- outlines --------------------------------------------------------------------------------------------------------


def outlines(mask: NDArray[np.bool_]) -> list[Ring]:
    """Return rings midway between the pixels inside and outside ``(Y, X)``, so that filling them gives the mask again.

    A hole is joined to the outline around it by a channel without width ("keyhole", DICOM PS3.3 C.8.8.6.3), which
    crosses no pixel's centre.
    """
    from skimage.measure import find_contours

    rings = [ring[:-1] - 1 for ring in find_contours(np.pad(mask, 1).astype(np.uint8), 0.5)]
    # find_contours goes round holes the other way.
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    holes = sorted((ring for ring in rings if _signed_area(ring) < 0), key=lambda ring: -float(ring[:, 1].min()))
    # From the rightmost hole on: the ring that it meets on its left reaches farther to the left than itself.
    for i, hole in enumerate(holes):
        candidates = [*outer, *holes[i + 1 :]]
        which, joined = _joined(hole, candidates)
        if which < len(outer):
            outer[which] = joined
        else:
            holes[i + 1 + which - len(outer)] = joined
    return outer


def _signed_area(ring: Ring) -> float:
    y, x = ring.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _joined(hole: Ring, others: Sequence[Ring]) -> tuple[int, Ring]:
    """Return which of *others* is next on the left of *hole*, and both as one ring."""
    row = float(hole[hole[:, 1].argmin(), 0]) + 0.25  # vertices lie on halves, centres of pixels on whole numbers
    column, at = min(_crossings(hole, row))
    nearest, which, where = max(
        (c, i, k) for i, other in enumerate(others) for c, k in _crossings(other, row) if c < column
    )
    here, there = np.array([[row, column]]), np.array([[row, nearest]])
    other = others[which]
    round_hole = np.concatenate([here, np.roll(hole, -(at + 1), axis=0), here])
    return which, np.concatenate([other[: where + 1], there, round_hole, there, other[where + 1 :]])


def _crossings(ring: Ring, row: float) -> list[tuple[float, int]]:
    """Return where *ring* crosses *row*: the column, and after which point."""
    following = np.roll(ring, -1, axis=0)
    found = np.flatnonzero((ring[:, 0] - row) * (following[:, 0] - row) < 0)
    share = (row - ring[found, 0]) / (following[found, 0] - ring[found, 0])
    columns = ring[found, 1] + share * (following[found, 1] - ring[found, 1])
    return [(float(column), int(k)) for column, k in zip(columns, found, strict=True)]
