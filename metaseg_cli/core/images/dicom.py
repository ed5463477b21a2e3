"""DICOM images: one series from its files, whatever their order; single images; enhanced multi-frame objects."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.dicom import (
    ImageHeader,
    group_series,
    header_of,
    image_header,
    quiet,
    read_data_set,
    read_header,
    remove_copies,
    text_of,
)
from metaseg_cli.core.images.dicom_pixels import apply_modality_table, rescale, stored_frames
from metaseg_cli.core.images.dicom_planes import (
    PlaneHeaders,
    Planes,
    arrange_planes,
    frame_groups,
    frame_planes,
    frame_value,
)
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError, decoding

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Series:
    """The images of one series, in the order that numbers the channels where several share a position."""

    images: list[ImageHeader]
    where: Path  # the file, or the folder
    notes: tuple[str, ...]

    @property
    def first(self) -> ImageHeader:
        """One of them, for what all share."""
        return self.images[0]

    @property
    def frame_of_reference(self) -> str:
        """The UID of its images; empty where an anonymiser gave each image its own."""
        uids = {image.frame_of_reference for image in self.images}
        return uids.pop() if len(uids) == 1 else ""


def read_dicom(files: Sequence[Path], *, geometry_only: bool = False) -> Volume:
    """Read one series as a volume, its slices sorted by position; several images per position become channels.

    Objects other than images (SEG, RTSTRUCT) are skipped. With *geometry_only* pixels are not read and all 0.
    Raises InputError for several series, missing or uneven slices (each named), and what cannot be decoded.
    """
    loaded: dict[Path, Any] = {}
    series = _one_series(files, None if geometry_only else loaded)
    if _is_multi_frame(series):
        return _read_multi_frame(series, loaded.get(series.first.path))
    if len(series.images) == 1 and (series.first.position is None or series.first.orientation is None):
        return _read_unplaced(series)
    planes = _planes_of(series)
    if geometry_only:
        channels = len(series.images) // planes.slices
        array: NDArray[Any] = np.broadcast_to(np.uint8(0), (channels, planes.slices, *series.first.size))
        return _placed(array, planes, series)
    frames = [_values(image.path, loaded.pop(image.path)) for image in series.images]
    tags = [
        (image.echo_time, image.time_point, image.acquisition, "\\".join(image.image_type)) for image in series.images
    ]
    array, notes = _stacked([frame for frame, _ in frames], planes, series.where, tags)
    doubts = dict.fromkeys(note for _, more in frames for note in more)
    return _placed(array, planes, series, (*notes, *doubts))


def slice_headers(files: Sequence[Path]) -> tuple[list[Any], Planes | None]:
    """Return a data set without pixels per slice of ``read_dicom(files)``, in its order, and how the slices lie.

    A multi-frame object is the only one, and comes with its pixels. Raises InputError.
    """
    series = _one_series(files)
    if _is_multi_frame(series):
        data = read_data_set(series.first.path)
        return [data], frame_planes(data, series.first.path, gaps_allowed=False)
    if series.first.position is None or series.first.orientation is None or series.first.in_plane is None:
        return [read_header(series.first.path)], None
    planes = _planes_of(series)
    first: dict[int, Path] = {}
    for slot, image in zip(planes.slots.tolist(), series.images, strict=True):
        first.setdefault(slot, image.path)
    return [read_header(first[slot]) for slot in range(planes.slices)], planes


def _header(path: Path, loaded: dict[Path, Any] | None) -> ImageHeader | None:
    """Return the header of an image, None for other objects. Its data set is put into *loaded*, to be read once."""
    if loaded is None:
        return image_header(path)
    try:
        data = read_data_set(path)
    except InputError:
        if image_header(path) is None:  # a damaged report beside the images does not concern them
            return None
        raise
    header = header_of(data, path)
    if header is not None:
        loaded[path] = data
    return header


def _one_series(files: Sequence[Path], loaded: dict[Path, Any] | None = None) -> Series:
    """Return the images among *files*. Raises InputError for no image, several series, or what cannot be one volume."""
    headers = [header for path in files if (header := _header(path, loaded)) is not None]
    if not headers:
        raise _no_image(files)
    images, copies = remove_copies(headers)
    notes = [f"{copies} copies of images were skipped"] if copies else []
    if len({i.instance for i in images}) < len(images) and images[0].instance:
        notes.append("images share one SOPInstanceUID (anonymised carelessly?): told apart by their positions")
    series = group_series(images)
    where = images[0].path if len(images) == 1 else Path(os.path.commonpath([i.path.parent for i in images]))
    if len(series) > 1:
        several = ", ".join(f"{s[0].description or 'without name'} ({len(s)} files)" for s in series[:8])
        more = ", …" if len(series) > 8 else ""
        raise InputError(
            f"it holds {len(series)} series: {several}{more}", where=where, remedy="give each its own folder"
        )
    images, first = series[0], series[0][0]
    uids = len({i.series for i in images})
    if uids > 1:
        notes.append(f"{uids} SeriesInstanceUIDs, whose images form one stack: read as one series")
    if any("MOSAIC" in i.image_type for i in images):
        raise InputError("a Siemens mosaic, slices tiled in one image", where=where, remedy="convert it with dcm2niix")
    if len(images) > 1 and any(i.frames > 1 for i in images):
        raise InputError(f"a series of {len(images)} multi-frame objects", where=where, remedy="name one of them")
    sizes = Counter(i.size for i in images)
    if len(sizes) > 1:
        several = ", ".join(f"{columns}×{rows} ({n} images)" for (rows, columns), n in sizes.items())
        raise InputError(f"its images differ in size: {several}", where=where, remedy="give each size its own folder")
    frames = {i.frame_of_reference for i in images}
    if len(frames) not in (1, len(images)):
        raise InputError(
            f"its images lie in {len(frames)} frames of reference", where=where, remedy="give each its own folder"
        )
    if first.frames == 1 and len(images) > 1 and any(i.position is None or i.orientation is None for i in images):
        raise InputError(
            "its images do not say where in the patient they lie", where=where, remedy="export the original series"
        )
    order = sorted(images, key=lambda i: (i.echo, i.echo_time, i.time_point, i.acquisition, i.image_type, i.number))
    return Series(order, where, tuple(notes))


def _is_multi_frame(series: Series) -> bool:
    """Return whether the only object describes its frames, even a single one, in functional groups."""
    first = series.first
    if first.frames > 1 or first.position is not None or len(series.images) > 1:
        return first.frames > 1
    return "PerFrameFunctionalGroupsSequence" in read_header(first.path, ["PerFrameFunctionalGroupsSequence"])


def _no_image(files: Sequence[Path]) -> InputError:
    kinds = {text_of(head, "Modality") for path in files[:8] for head in [read_header(path, ["Modality"])]}
    meta = read_header(files[0], ["DirectoryRecordSequence"])
    if text_of(meta.file_meta, "MediaStorageSOPClassUID") == _MEDIA_DIRECTORY or "DirectoryRecordSequence" in meta:
        return InputError(
            "a DICOMDIR, a table of contents, not an image", where=files[0], remedy="name the folder of the images"
        )
    named = ", ".join(sorted(kinds - {""}))
    what = f"not a DICOM image (it holds {named})" if named else "not a DICOM image: the header has no Rows"
    return InputError(what, where=files[0], remedy="name a series of images")


def _planes_of(series: Series) -> Planes:
    """Arrange single images by their headers."""
    if any(i.in_plane is None for i in series.images):
        raise InputError("its images have no pixel spacing", where=series.where, remedy="export the original series")
    headers = PlaneHeaders(
        positions=[i.position for i in series.images if i.position],
        orientations=[i.orientation for i in series.images if i.orientation],
        in_plane=[i.in_plane for i in series.images if i.in_plane],
        step_mm=series.first.spacing_between or series.first.thickness,
        names=[i.path.name for i in series.images],
        where=series.where,
    )
    return arrange_planes(headers)


def _placed(array: NDArray[Any], planes: Planes, series: Series, notes: Sequence[str] = ()) -> Volume:
    """Place *array* ``(C, Z, Y, X)`` where *planes* lie."""
    return Volume(
        array=array,
        spacing_mm=planes.spacing_mm,
        source=series.where,
        origin_mm=planes.origin,
        direction=planes.direction,
        frame_of_reference=series.frame_of_reference,
        notes=(*series.notes, *notes),
    )


def _read_unplaced(series: Series) -> Volume:
    """Read a single image that does not say where it lies."""
    image = series.first
    array, notes = _values(image.path, read_data_set(image.path))
    spacing = (image.thickness or 1.0, image.in_plane[0], image.in_plane[1]) if image.in_plane else None
    return Volume(array=array[:, None], spacing_mm=spacing, source=image.path, notes=(*series.notes, *notes))


def _values(path: Path, data: Any) -> tuple[NDArray[Any], list[str]]:
    """Return ``(C, Y, X)`` of one image, in the numbers that the scanner means, and what was assumed."""
    frames = stored_frames(data, path)
    with decoding(path, "its rescaling is damaged"), quiet():
        if data.get("ModalityLUTSequence"):
            return apply_modality_table(frames, data)[0], []
        slope, intercept, notes = _rescale(data.get("RescaleSlope"), data.get("RescaleIntercept"), path)
    return rescale(frames, [slope], [intercept])[0], notes


def _rescale(slope: Any, intercept: Any, path: Path) -> tuple[float, float, list[str]]:
    """Return slope and intercept as numbers. A slope of 0, which would erase the image, is taken as 1, with a note."""
    numbers = [1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept)]
    if not np.isfinite(np.array(numbers, np.float32)).all():
        raise InputError(f"its rescale slope is {slope}, intercept {intercept}", where=path, remedy="export it again")
    if numbers[0] == 0:
        return 1.0, numbers[1], ["a rescale slope of 0 was taken as 1"]
    return numbers[0], numbers[1], []


# -- several images at one position ----------------------------------------------------------------------------------


_NAMES = ("echo time {:g} ms", "time point {:g}", "acquisition {:g}", "image type {}")
ImageTags = tuple[float, float, float, str]  # what distinguishes images of one position, in the order of _NAMES


def _stacked(
    each: Sequence[NDArray[Any]], planes: Planes, where: Path, tags: Sequence[ImageTags]
) -> tuple[NDArray[Any], list[str]]:
    """Stack images ``(C, Y, X)`` by slots → ``(C, Z, Y, X)``; *k* images in every slot make *k* times the channels."""
    per_slot: list[list[int]] = [[] for _ in range(planes.slices)]
    for number, slot in enumerate(planes.slots.tolist()):
        per_slot[slot].append(number)
    counts = sorted({len(numbers) for numbers in per_slot})
    if len(counts) > 1:
        raise InputError(
            f"{counts[0]} to {counts[-1]} images share one position",
            where=where,
            remedy="keep one image per slice: separate echoes, time points and reconstructions",
        )
    channels = {image.shape[0] for image in each}
    if len(channels) > 1:
        raise InputError("some of its images are grey, some in colour", where=where, remedy="keep images of one kind")
    array = np.stack([np.concatenate([each[i] for i in numbers]) for numbers in per_slot], axis=1)
    if counts[0] == 1:
        return array, []
    named = _channel_names([[tags[numbers[k]] for numbers in per_slot] for k in range(counts[0])])
    return array, [f"{counts[0]} images at each position, read as channels: {', '.join(named)}"]


def _channel_names(tags: Sequence[Sequence[ImageTags]]) -> list[str]:
    """Name the channels by the first tag that has one value in each channel and another one in every other."""
    for kind, name in enumerate(_NAMES):
        values = [{tag[kind] for tag in channel} for channel in tags]
        if all(len(v) == 1 for v in values) and len(set.union(*values)) == len(tags):
            return [name.format(next(iter(v))) for v in values]
    return [f"image {k + 1} by number (no tag tells them apart)" for k in range(len(tags))]


# -- enhanced multi-frame --------------------------------------------------------------------------------------------


def _read_multi_frame(series: Series, loaded: Any | None) -> Volume:
    """Read the object *loaded*; where it was not loaded, its grid alone, with voxels that are all 0."""
    path = series.first.path
    data = read_data_set(path) if loaded is None else loaded
    planes = frame_planes(data, path, gaps_allowed=False)
    if loaded is None:
        channels = len(planes.slots) // planes.slices
        return _placed(np.broadcast_to(np.uint8(0), (channels, planes.slices, *series.first.size)), planes, series)
    frames = stored_frames(data, path)
    with decoding(path, "its frames are described wrongly"), quiet():
        groups = frame_groups(data)
        tags = [_frame_tags(group) for group in groups]
        each = [
            _rescale(_of_frame(g, data, "RescaleSlope"), _of_frame(g, data, "RescaleIntercept"), path) for g in groups
        ]
    values = rescale(frames, [slope for slope, _, _ in each], [intercept for _, intercept, _ in each])
    order = sorted(range(len(tags)), key=lambda i: tags[i])
    planes_in_order = dataclasses.replace(planes, slots=planes.slots[order])
    array, notes = _stacked([values[i] for i in order], planes_in_order, path, [tags[i] for i in order])
    doubts = dict.fromkeys(note for _, _, more in each for note in more)
    return _placed(array, planes, series, (*notes, *doubts))


def _of_frame(groups: list[Any], data: Any, keyword: str) -> Any:
    """Return a frame's own slope or intercept, which may be 0; the whole object's where it has none."""
    own = frame_value(groups, "PixelValueTransformationSequence", keyword)
    return data.get(keyword) if own is None else own


def _frame_tags(groups: list[Any]) -> ImageTags:
    where = (
        ("MREchoSequence", "EffectiveEchoTime"),
        ("FrameContentSequence", "TemporalPositionIndex"),
        ("FrameContentSequence", "FrameAcquisitionNumber"),
    )
    echo, time, acquisition = (float(frame_value(groups, *place) or 0) for place in where)
    kind = frame_value(groups, "MRImageFrameTypeSequence", "FrameType") or ""
    return echo, time, acquisition, kind if isinstance(kind, str) else "\\".join(kind)
