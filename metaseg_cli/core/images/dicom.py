"""DICOM images: one series from its files, whatever their order; single images; enhanced multi-frame objects.

Geometry comes from each plane's position and orientation (PS3.3 C.7.6.2), never from file order or slice thickness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError, first_line

_SUFFIXES = (".dcm", ".dicom", ".ima")
_TAGS = [
    "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
    "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "InstanceNumber", "AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier",
    "ImageType",
]  # fmt: skip
_UNEVEN = 0.05  # of a step: what rounding of positions explains


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, for other and missing suffixes, by the letters DICM at byte 128."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files anywhere under *folder*, hidden ones and DICOMDIR left out, in order of their names."""
    files = (p for p in sorted(folder.rglob("*")) if not p.name.startswith(".") and p.name != "DICOMDIR")
    return [p for p in files if p.is_file() and is_dicom(p)]


def header(path: Path, tags: Sequence[str] | None = None) -> Any:
    """The data set without its pixels; only *tags* when given. Raises InputError."""
    import pydicom

    try:
        return pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=list(tags) if tags else None, force=path.suffix != ""
        )
    except (OSError, ValueError, TypeError, AttributeError, pydicom.errors.InvalidDicomError) as error:
        raise InputError(f"not a DICOM file ({error})", where=path, remedy="replace or remove it") from error


def read_dicom(files: Sequence[Path], *, geometry_only: bool = False) -> Volume:
    """One series as a volume, its slices sorted by position; several images per position become channels.

    Objects that are no images (SEG, RTSTRUCT) are passed over. *geometry_only* leaves the pixels, all 0 then, alone.
    Raises InputError for several series, missing or uneven slices (each named), and what cannot be decoded.
    """
    headers = [(path, header(path, _TAGS)) for path in files]
    images = [(path, h) for path, h in headers if "Rows" in h and h.get("Modality") not in ("SEG", "RTSTRUCT")]
    if not images:
        raise InputError("no DICOM image", where=files[0], remedy="name a series of images")
    images, notes = _without_copies(images)
    series = Counter(str(h.get("SeriesInstanceUID", "")) for _, h in images)
    where = images[0][0] if len(images) == 1 else images[0][0].parent
    if len(series) > 1:
        named = {
            str(h.get("SeriesInstanceUID", "")): str(h.get("SeriesDescription", "without name")) for _, h in images
        }
        several = ", ".join(f"{named[uid]} ({count} files)" for uid, count in series.items())
        raise InputError(f"it holds {len(series)} series: {several}", where=where, remedy="give each its own folder")
    if any("MOSAIC" in (h.get("ImageType") or ()) for _, h in images):
        raise InputError("a Siemens mosaic, slices tiled in one image", where=where, remedy="convert it with dcm2niix")
    if any(int(h.get("NumberOfFrames") or 1) > 1 for _, h in images):
        if len(images) > 1:
            raise InputError(f"a series of {len(images)} multi-frame objects", where=where, remedy="name one of them")
        return _read_multi_frame(images[0][0], notes)
    read = _no_pixels if geometry_only else _pixels
    return _read_slices(images, where, notes, read)


def slice_headers(files: Sequence[Path]) -> list[Any]:
    """The data set, without pixels, of one image for each slice of ``read_dicom(files)``, in its order.

    A multi-frame object is its only one. Raises InputError.
    """
    every = (header(path) for path in files)
    heads = [h for h in every if "Rows" in h and h.get("Modality") not in ("SEG", "RTSTRUCT")]
    if len(heads) == 1:
        return heads
    planes = _planes_of(heads, [str(h.get("SOPInstanceUID", "")) for h in heads], files[0].parent)
    first: dict[int, Any] = {}
    for slot, head in zip(planes.slots.tolist(), heads, strict=True):
        first.setdefault(slot, head)
    return [first[slot] for slot in range(planes.slices)]


def _without_copies(images: list[tuple[Path, Any]]) -> tuple[list[tuple[Path, Any]], list[str]]:
    first: dict[str, tuple[Path, Any]] = {}
    for path, head in images:
        first.setdefault(str(head.get("SOPInstanceUID", path)), (path, head))
    copies = len(images) - len(first)
    return list(first.values()), [f"{copies} copies of images were passed over"] if copies else []


# -- planes in space -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Planes:
    """Parallel planes put in order: ``slots[i]`` is the slice, 0 … n − 1, in which plane *i* lies.

    ``spacing_z`` is the distance of slices in mm, ``direction`` row-major with the columns row, column, normal.
    """

    slots: NDArray[np.int64]
    slices: int
    spacing_z: float
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


def arrange_planes(
    positions: Sequence[Sequence[float]],
    orientations: Sequence[Sequence[float]],
    step_mm: float | None,
    names: Sequence[str],
    where: Path,
    *,
    gaps_allowed: bool = False,
) -> Planes:
    """Sort planes along their normal; several planes may share one position.

    *step_mm* is the file's own word on the distance of slices, taken where it cannot be measured. A gap is an error
    that names its neighbours, unless *gaps_allowed* (a sparse SEG). Raises InputError.
    """
    facing = np.array(orientations, dtype=float)
    if np.abs(facing - facing[0]).max() > 1e-3:
        count = len(np.unique(np.round(facing, 2), axis=0))
        raise InputError(f"its images lie in {count} orientations", where=where, remedy="name one stack of slices")
    row, column = facing[0, :3], facing[0, 3:]
    if abs(float(row @ column)) > 1e-2 or min(np.linalg.norm(row), np.linalg.norm(column)) < 0.9:
        raise InputError("its orientation is no pair of perpendicular axes", where=where, remedy="export it again")
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    points = np.array(positions, dtype=float)
    along = points @ normal
    order = np.argsort(along, kind="stable")
    # Planes nearer than a hundredth of a millimetre are one slice.
    new = np.concatenate([[True], np.diff(along[order]) > 0.01])
    levels = along[order][new]
    step, counts = float(step_mm or 1.0), np.zeros(0)
    if len(levels) > 1:
        distances = np.diff(levels)
        if not (gaps_allowed and step_mm):
            step = float(np.median(distances))
        counts = np.round(distances / step)
        uneven = np.abs(distances - counts * step) > _UNEVEN * step + 0.005
        firsts = [names[i] for i in order[new]]
        if uneven.any() or (counts < 1).any():
            i = int(np.argmax(uneven | (counts < 1)))
            raise InputError(
                f"its slices are unevenly spaced: {distances[i]:.2f} mm between {firsts[i]} and {firsts[i + 1]}, "
                f"{step:.2f} mm elsewhere",
                where=where,
                remedy="export the whole series again",
            )
        if (counts > 1).any() and not gaps_allowed:
            gaps = [
                f"{int(counts[i]) - 1} between {firsts[i]} and {firsts[i + 1]}" for i in np.flatnonzero(counts > 1)[:3]
            ]
            raise InputError(
                f"{int(counts.sum()) - len(counts)} slice(s) are missing: {', '.join(gaps)}",
                where=where,
                remedy="export the whole series again",
            )
        step = float((levels[-1] - levels[0]) / counts.sum())
    slot_of_level = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    slots = np.empty(len(points), np.int64)
    slots[order] = slot_of_level[np.cumsum(new) - 1]
    origin = points[order[0]]
    drift = points - origin - np.outer(along - along[order[0]], normal)
    if np.abs(drift).max() > 0.2 + 0.02 * step:
        raise InputError(
            f"its slices are shifted against one another by up to {np.abs(drift).max():.1f} mm (gantry tilt)",
            where=where,
            remedy="resample it to a straight grid first",
        )
    return Planes(
        slots=slots,
        slices=int(slot_of_level[-1]) + 1,
        spacing_z=step,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(v) for v in np.column_stack([row, column, normal]).ravel()),
    )


# -- series of single images -----------------------------------------------------------------------------------------


def _read_slices(
    images: list[tuple[Path, Any]], where: Path, notes: list[str], pixels: Callable[[Path], NDArray[Any]]
) -> Volume:
    # Images that share a position lie in this order, which then numbers the channels.
    images = sorted(
        images,
        key=lambda pair: [
            float(pair[1].get(tag) or 0)
            for tag in ("EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
        ],
    )
    heads = [head for _, head in images]
    sizes = Counter((int(h.Rows), int(h.Columns)) for h in heads)
    if len(sizes) > 1:
        several = ", ".join(f"{columns}×{rows} ({n} images)" for (rows, columns), n in sizes.items())
        raise InputError(f"its images differ in size: {several}", where=where, remedy="give each size its own folder")
    in_plane = heads[0].get("PixelSpacing")
    if any(h.get("ImagePositionPatient") is None or h.get("ImageOrientationPatient") is None for h in heads):
        if len(images) > 1:
            raise InputError(
                "its images do not say where in the patient they lie", where=where, remedy="export the original series"
            )
        array = pixels(images[0][0])[:, None]
        thickness = float(heads[0].get("SliceThickness") or 1.0)
        spacing = (thickness, float(in_plane[0]), float(in_plane[1])) if in_plane else None
        return Volume(array=array, spacing_mm=spacing, source=images[0][0], notes=tuple(notes))
    if not in_plane:
        raise InputError("its images have no pixel spacing", where=where, remedy="export the original series")
    planes = _planes_of(heads, [path.name for path, _ in images], where)
    each = [pixels(path) for path, _ in images]
    array, more = _stacked(each, planes, where)
    if pixels is _no_pixels:
        array = np.broadcast_to(np.uint8(0), (*array.shape[:2], int(heads[0].Rows), int(heads[0].Columns)))
    return _placed(array, planes, in_plane, where, (*notes, *more))


def _planes_of(heads: Sequence[Any], names: Sequence[str], where: Path) -> Planes:
    """Where single images lie, by their headers."""
    return arrange_planes(
        [h.ImagePositionPatient for h in heads],
        [h.ImageOrientationPatient for h in heads],
        float(heads[0].get("SpacingBetweenSlices") or heads[0].get("SliceThickness") or 1.0),
        names,
        where,
    )


def _placed(
    array: NDArray[Any], planes: Planes, in_plane: Sequence[float], where: Path, notes: Sequence[str]
) -> Volume:
    """*array* ``(C, Z, Y, X)`` where *planes* lie, its pixels *in_plane* mm (row, column) apart."""
    return Volume(
        array=array,
        spacing_mm=(planes.spacing_z, float(in_plane[0]), float(in_plane[1])),
        source=where,
        origin_mm=planes.origin,
        direction=planes.direction,
        notes=tuple(notes),
    )


def _stacked(each: list[NDArray[Any]], planes: Planes, where: Path) -> tuple[NDArray[Any], list[str]]:
    """Images ``(C, Y, X)`` in their slots → ``(C, Z, Y, X)``; *k* images in every slot make *k* times the channels."""
    per_slot: list[list[NDArray[Any]]] = [[] for _ in range(planes.slices)]
    for slot, image in zip(planes.slots, each, strict=True):
        per_slot[slot].append(image)
    counts = sorted({len(images) for images in per_slot})
    if len(counts) > 1:
        raise InputError(
            f"{counts[0]} to {counts[-1]} images share one position",
            where=where,
            remedy="keep one image per slice: separate echoes, time points and reconstructions",
        )
    array = np.stack([np.concatenate(images) for images in per_slot], axis=1)
    notes = [f"{counts[0]} images at each position: read as channels"] if counts[0] > 1 else []
    return array, notes


def _no_pixels(path: Path) -> NDArray[Any]:
    return np.zeros((1, 1, 1), np.uint8)


def _pixels(path: Path) -> NDArray[Any]:
    """``(C, Y, X)`` rescaled to the numbers that the scanner means. GDCM decodes every compressed syntax."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
        raise InputError(f"cannot be decoded ({reason})", where=path, remedy="export it again") from None
    array = sitk.GetArrayFromImage(image)
    array = array[0] if array.shape[0] == 1 else array
    array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    return np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float64 else array)


# -- enhanced multi-frame --------------------------------------------------------------------------------------------


def frame_groups(data: Any) -> list[list[Any]]:
    """For each frame its functional groups: its own, then those that all frames share (PS3.3 C.7.6.16)."""
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    return [[group, *shared] for group in own]


def frame_value(groups: list[Any], sequence: str, keyword: str) -> Any:
    """The attribute *keyword* of a frame's *sequence*, or None."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return None


def frame_planes(data: Any, groups: list[list[Any]], where: Path, *, gaps_allowed: bool) -> tuple[Planes, Any]:
    """The frames' arrangement and their pixel spacing (y, x) in mm. Raises InputError."""
    positions = [frame_value(g, "PlanePositionSequence", "ImagePositionPatient") for g in groups]
    orientations = [frame_value(g, "PlaneOrientationSequence", "ImageOrientationPatient") for g in groups]
    in_plane = frame_value(groups[0], "PixelMeasuresSequence", "PixelSpacing") if groups else None
    if not groups or in_plane is None or any(p is None for p in positions) or any(o is None for o in orientations):
        raise InputError("its frames do not say where they lie", where=where, remedy="export the original series")
    step = frame_value(groups[0], "PixelMeasuresSequence", "SpacingBetweenSlices")
    step = step or frame_value(groups[0], "PixelMeasuresSequence", "SliceThickness")
    names = [f"frame {i + 1}" for i in range(len(groups))]
    planes = arrange_planes(
        positions, orientations, float(step) if step else None, names, where, gaps_allowed=gaps_allowed
    )
    return planes, in_plane


def decoded_frames(data: Any, path: Path) -> NDArray[Any]:
    """The stored numbers of all frames ``(N, Y, X)``. Raises InputError when no decoder is at hand."""
    try:
        frames: NDArray[Any] = data.pixel_array
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        syntax = data.file_meta.TransferSyntaxUID.name
        raise InputError(
            f"cannot be decoded ({syntax}: {first_line(error)})",
            where=path,
            remedy="export it uncompressed, or install python-gdcm",
        ) from error
    return frames.reshape(-1, int(data.Rows), int(data.Columns))


def full_data(path: Path) -> Any:
    """The whole data set. Raises InputError."""
    import pydicom

    try:
        return pydicom.dcmread(path)
    except (OSError, ValueError, AttributeError, pydicom.errors.InvalidDicomError) as error:
        raise InputError(f"not a DICOM file ({error})", where=path, remedy="replace or remove it") from error


def _read_multi_frame(path: Path, notes: list[str]) -> Volume:
    data = full_data(path)
    groups = frame_groups(data)
    if not groups:
        raise InputError(
            "a multi-frame image whose frames do not say where they lie",
            where=path,
            remedy="export the original series",
        )
    planes, in_plane = frame_planes(data, groups, path, gaps_allowed=False)
    frames = decoded_frames(data, path)
    if len(frames) != len(groups):
        raise InputError(f"it has {len(frames)} frames but describes {len(groups)}", where=path, remedy="export again")
    slope = [
        frame_value(g, "PixelValueTransformationSequence", "RescaleSlope") or data.get("RescaleSlope") or 1
        for g in groups
    ]
    intercept = [
        frame_value(g, "PixelValueTransformationSequence", "RescaleIntercept") or data.get("RescaleIntercept") or 0
        for g in groups
    ]
    values = frames.astype(np.float32)
    values *= np.array(slope, dtype=np.float32)[:, None, None]
    values += np.array(intercept, dtype=np.float32)[:, None, None]
    array, more = _stacked(list(values[:, None]), planes, path)
    return _placed(array, planes, in_plane, path, (*notes, *more))
