"""Headers of images as checked numbers, and which images form a series."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaseg_cli.core.dicom.files import quiet, read_data_set, read_header
from metaseg_cli.errors import InputError, decoding

_TAGS = [
    "SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "SeriesDescription", "Modality", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "InstanceNumber",
    "AcquisitionNumber", "EchoNumbers", "EchoTime", "TemporalPositionIdentifier", "ImageType",
]  # fmt: skip
_NO_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE")
UNEVEN = 0.05  # of a step: a deviation up to this is explained by rounding of positions
SAME_SLICE_MM = 0.01  # planes nearer than this are one slice
DRIFT_MM = 0.2  # a shift across the normal up to this is explained by rounding


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What places and names one image. Lengths in mm; ``in_plane`` is the spacing (row, column)."""

    path: Path
    instance: str  # SOPInstanceUID
    study: str
    series: str
    frame_of_reference: str
    description: str
    rows: int
    columns: int
    frames: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    in_plane: tuple[float, ...] | None
    thickness: float | None
    spacing_between: float | None
    number: float  # InstanceNumber
    acquisition: float
    echo: float
    echo_time: float
    time_point: float
    image_type: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns


def image_header(path: Path) -> ImageHeader | None:
    """Return the header of an image; None for other DICOM objects (SEG, RTSTRUCT, DICOMDIR).

    Raises InputError for files that are not DICOM, and for invalid values.
    """
    return header_of(read_header(path, _TAGS), path)


def header_of(data: Any, path: Path) -> ImageHeader | None:
    """Return ``image_header`` of a data set that was already read from *path*."""
    with decoding(path, "its header is damaged"), quiet():
        if "Rows" not in data or text_of(data, "Modality") in _NO_IMAGES:
            return None
        rows, columns = int(data.Rows), int(data.Columns)
        if rows < 1 or columns < 1:
            raise InputError(f"its size is {columns}×{rows}", where=path, remedy="export it again")
        return ImageHeader(
            path=path,
            instance=text_of(data, "SOPInstanceUID"),
            study=text_of(data, "StudyInstanceUID"),
            series=text_of(data, "SeriesInstanceUID"),
            frame_of_reference=text_of(data, "FrameOfReferenceUID"),
            description=text_of(data, "SeriesDescription"),
            rows=rows,
            columns=columns,
            frames=int(data.get("NumberOfFrames") or 1),
            position=_numbers(data, "ImagePositionPatient", 3, path),
            orientation=_numbers(data, "ImageOrientationPatient", 6, path),
            in_plane=spacing_of(data, path),
            thickness=_length(data, "SliceThickness"),
            spacing_between=_length(data, "SpacingBetweenSlices"),
            number=_number(data, "InstanceNumber"),
            acquisition=_number(data, "AcquisitionNumber"),
            echo=_number(data, "EchoNumbers"),
            echo_time=_number(data, "EchoTime"),
            time_point=_number(data, "TemporalPositionIdentifier"),
            image_type=tuple(str(word) for word in _several(data.get("ImageType"))),
        )


def text_of(data: Any, keyword: str) -> str:
    """Return a value as text; empty where it is missing or unreadable."""
    with quiet():
        try:
            value = data.get(keyword)
        except Exception:  # pydicom decodes values on access
            return ""
        return "" if value is None else str(value).strip()


def spacing_of(data: Any, path: Path) -> tuple[float, ...] | None:
    """Return PixelSpacing (row, column) in mm. Raises InputError for what is not a distance."""
    spacing = _numbers(data, "PixelSpacing", 2, path)
    if spacing is not None and min(spacing) <= 0:
        raise InputError(f"its pixel spacing is {spacing[0]:g}×{spacing[1]:g} mm", where=path, remedy="export it again")
    return spacing


def _several(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else (value,)


def _numbers(data: Any, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    value = _several(data.get(keyword))
    if not len(value):
        return None
    numbers = tuple(float(v) for v in value)
    if len(numbers) != count or not all(math.isfinite(v) and abs(v) < 1e6 for v in numbers):
        shown = "\\".join(f"{v:g}" for v in numbers[:8])
        raise InputError(f"its {keyword} is {shown}", where=path, remedy="export it again")
    return numbers


def _number(data: Any, keyword: str) -> float:
    """Return a number used only for sorting and naming: 0 where it is missing or invalid."""
    try:
        value = float(_several(data.get(keyword))[0])
    except (IndexError, TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) else 0.0


def _length(data: Any, keyword: str) -> float | None:
    value = _number(data, keyword)
    return value if 0 < value < 1e4 else None


# -- copies and series -----------------------------------------------------------------------------------------------


def remove_copies(images: Sequence[ImageHeader]) -> tuple[list[ImageHeader], int]:
    """Remove duplicates from *images*; also return how many were removed.

    A copy has the same SOPInstanceUID, position, number and pixels: careless anonymisers give one UID to a whole
    series.
    """
    kept: dict[tuple[object, ...], list[ImageHeader]] = defaultdict(list)
    copies = 0
    for image in images:
        same = kept[(image.instance or image.path, image.position, image.number, image.echo_time, image.time_point)]
        if same and any(_pixel_bytes(image.path) == _pixel_bytes(other.path) for other in same):
            copies += 1
        else:
            same.append(image)
    return [image for same in kept.values() for image in same], copies


def _pixel_bytes(path: Path) -> bytes:
    data = read_data_set(path)
    with decoding(path, "its pixels cannot be read"):
        return bytes(data.get("PixelData") or b"")


def group_series(images: Sequence[ImageHeader]) -> list[list[ImageHeader]]:
    """Group *images* by series, the first one's first. Images of different descriptions are never one series.

    Some scanners and anonymisers give every slice its own SeriesInstanceUID: series of one description, size, spacing
    and orientation that together form one regular stack, one image per position, count as one.
    """
    by_uid: dict[tuple[str, str], list[ImageHeader]] = defaultdict(list)
    for image in images:
        by_uid[image.series, image.description].append(image)
    if len(by_uid) == 1:
        return list(by_uid.values())
    kin: dict[tuple[object, ...], list[list[ImageHeader]]] = defaultdict(list)
    for group in by_uid.values():
        kin[_kind(group)].append(group)
    found: list[list[ImageHeader]] = []
    for groups in kin.values():
        united = [image for group in groups for image in group]
        found += [united] if len(groups) > 1 and _one_stack(united) else groups
    return found


def _kind(group: Sequence[ImageHeader]) -> tuple[object, ...]:
    first = group[0]
    facing = tuple(round(v, 2) + 0.0 for v in first.orientation or ())
    spacing = tuple(round(v, 3) for v in first.in_plane or ())
    return (first.description, first.size, spacing, facing, first.image_type, first.echo_time, first.frames)


def _one_stack(images: Sequence[ImageHeader]) -> bool:
    """Return whether images of several series are the slices of one volume. Two are too few to tell."""
    if len(images) < 3 or any(i.position is None or i.orientation is None or i.frames > 1 for i in images):
        return False
    # One study and one frame of reference; or one per image, where each UID was invented.
    for uids in ({i.study for i in images}, {i.frame_of_reference for i in images}):
        if len(uids) not in (1, len(images)):
            return False
    facing = np.array(images[0].orientation, dtype=float).reshape(2, 3)
    normal = np.cross(facing[0], facing[1])
    points = np.array([i.position for i in images], dtype=float)
    along = points @ normal
    points = points[np.argsort(along)]
    steps = np.diff(np.sort(along))
    step = float(np.median(steps))
    drift = points - points[0] - np.outer(np.sort(along) - along.min(), normal)
    even = bool((np.abs(steps - step) <= UNEVEN * step).all())
    return step > SAME_SLICE_MM and even and float(np.abs(drift).max()) < DRIFT_MM
