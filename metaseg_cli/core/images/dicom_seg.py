"""Write masks as DICOM SEG, on the slices of the series in which they were found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.dicom import quiet
from metaseg_cli.core.images.dicom import slice_headers
from metaseg_cli.core.images.dicom_planes import frame_groups
from metaseg_cli.core.regions import CONCEPTS, region_kind
from metaseg_cli.errors import InputError, decoding

# Type 2 of the modules that a SEG repeats of its series (PS3.3 C.7.1.1, C.7.2.1).
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def write_seg(path: Path, segments: Sequence[tuple[str, NDArray[np.bool_]]], files: Sequence[Path]) -> None:
    """Write named masks ``(Z, Y, X)``, as ``read_dicom(files)`` has its slices, as binary segments of one SEG object.

    Each segment is coded by what its name says (metastasis, enhancing lesion, oedema: ``regions.CONCEPTS``), found by
    an algorithm. Whole or not at all. Raises InputError when the series lacks what a SEG must repeat of it.
    """
    what = "the series does not give what a DICOM SEG must repeat of it"
    with decoding(files[0], what, remedy="take --format nifti"), quiet():
        segmentation = _segmentation(segments, files)
    atomic_write(path, segmentation.save_as)


def _segmentation(segments: Sequence[tuple[str, NDArray[np.bool_]]], files: Sequence[Path]) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources, order = source_images(files)
    pixels = np.stack([mask for _, mask in segments], axis=-1)[order].astype(np.uint8)
    program = hd.AlgorithmIdentificationSequence(
        name="metaseg", version=metaseg_cli.__version__, family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=concept_of(label),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=program,
        )
        for number, (label, _) in enumerate(segments, start=1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="metaseg",
        manufacturer_model_name="metaseg",
        software_versions=metaseg_cli.__version__,
        device_serial_number="0",
        content_label="METASTASES",
        content_description="Brain metastases; for research, not a medical device",
        series_description="metaseg",
        omit_empty_frames=bool(pixels.any()),
    )


def concept_of(label: str) -> Any:
    """Return the coded concept of a segment of this name."""
    from pydicom.sr.codedict import codes

    concept = CONCEPTS[region_kind(label)]
    return getattr(getattr(codes, concept.scheme), concept.keyword)


def _repaired(data: Any) -> Any:
    """Repair *data* where it breaks the standard: drop invalid ages, empty invalid dates and times.

    What must exist, if only empty, and was removed by an anonymiser is added empty.
    """
    for keyword in _MAY_BE_EMPTY:
        if keyword not in data:
            setattr(data, keyword, "")
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    for element in list(data):
        if element.VR in ("AS", "DA", "TM", "DT") and element.value:
            try:
                validate_value(element.VR, str(element.value), RAISE)
            except ValueError:
                if element.VR == "AS":
                    del data[element.tag]
                else:
                    element.value = ""
    return data


def source_images(files: Sequence[Path]) -> tuple[list[Any], NDArray[np.int64]]:
    """Return the images that the masks lie on, and for each of them, or each frame, the slice of the masks.

    Orientations and pixel spacings that differ by rounding are made equal, as readers require. Raises InputError
    for a series whose images cannot be referred to.
    """
    headers, planes = slice_headers(files)
    headers = [_repaired(header) for header in headers]
    _check_references(headers, files[0])
    if planes is None:
        return headers, np.arange(len(headers))
    _equalise(headers)
    groups = frame_groups(headers[0]) if len(headers) == 1 else []
    if not groups:
        return headers, np.arange(len(headers))
    for part in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        _equalise([item for own in groups for group in own for item in group.get(part) or []])
    if len(planes.slots) != planes.slices:
        raise InputError("several frames share one position", where=files[0], remedy="take --format nifti")
    return headers, planes.slots


def _check_references(headers: Sequence[Any], where: Path) -> None:
    for keyword, wanted in (("SOPInstanceUID", len(headers)), ("SeriesInstanceUID", 1), ("StudyInstanceUID", 1)):
        found = {str(header.get(keyword)) for header in headers}
        if len(found) != wanted:
            raise InputError(
                f"its {len(headers)} slices have {len(found)} {keyword}s instead of {wanted}, so that nothing can "
                "refer to them",
                where=where,
                remedy="take --format nifti, or export the original series",
            )


def _equalise(items: Sequence[Any]) -> None:
    """Write the first item's orientation and spacing over those of the others, which differ by rounding at most."""
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        those = [item for item in items if keyword in item]
        for item in those[1:]:
            if item.get(keyword) != those[0].get(keyword):
                setattr(item, keyword, list(those[0].get(keyword)))
