"""Read DICOM SEG and RTSTRUCT as label maps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.dicom import quiet, read_data_set, read_header, text_of
from metaseg_cli.core.images.dicom_contours import extended_to, fill_contours, read_structure
from metaseg_cli.core.images.dicom_pixels import stored_frames
from metaseg_cli.core.images.dicom_planes import frame_groups, frame_planes, frame_value
from metaseg_cli.core.images.structure_names import Structure, choose
from metaseg_cli.core.images.volume import NamedSegment, Volume
from metaseg_cli.errors import COPY_AGAIN, InputError, decoding

_AGAIN = "export it again"
_MOST_VOXELS = 2**30  # of a SEG: a thousand slices of a thousand by a thousand


def modality_of(path: Path) -> str:
    """Return the modality of a DICOM file: SEG, RTSTRUCT, or another."""
    return text_of(read_header(path, ["Modality"]), "Modality")


def padding_value(path: Path) -> int:
    """Return what a SEG stores where no segment was searched for, never a label; 0 when the file names none."""
    data = read_header(path, ["PixelPaddingValue"])
    with decoding(path, "its header is damaged"), quiet():
        return int(data.get("PixelPaddingValue", 0) or 0)


# -- SEG -------------------------------------------------------------------------------------------------------------


def read_seg(path: Path, wanted: Sequence[str] = (), regions: Sequence[str] = ()) -> Volume:
    """Return a DICOM SEG (binary, fractional, label map) on its own grid: label values ``(L, Z, Y, X)`` uint8.

    A label is its segment's number. Segments that overlap need several layers L: each takes the first in which it
    overlaps nothing. Slices without a frame are empty, or hold the file's Pixel Padding Value where it names one. Of
    segments with lesions and anatomy the lesions are taken and what belongs to *regions*, or those that *wanted* names.
    Raises InputError.
    """
    data = read_data_set(path)
    planes = frame_planes(data, path, gaps_allowed=True)
    frames = stored_frames(data, path)[:, 0]
    shape = (planes.slices, *frames.shape[1:])
    if np.prod(shape, dtype=np.float64) > _MOST_VOXELS:
        raise InputError(
            f"its frames span {planes.slices} slices of {shape[2]}×{shape[1]} pixels", where=path, remedy=_AGAIN
        )
    with decoding(path, "its segments are described wrongly"), quiet():
        names = _segment_names(data, path)
        taken, excluded = choose(_segments(data), wanted, path, segmentation=True, regions=regions)
        kind = text_of(data, "SegmentationType")
        notes = ["segments " + ", ".join(f"{n} = {name}" for n, name in sorted(names.items()) if n in taken), *excluded]
        seg = _SegFrames(data=data, path=path, frames=frames, slots=planes.slots, shape=shape, names=names)
        if kind == "LABELMAP":
            layers = _label_map(seg, notes)
            kept = [*taken, int(data.get("PixelPaddingValue", 0) or 0)]
            layers = np.where(np.isin(layers, kept), layers, 0).astype(np.uint8) if excluded else layers
        elif kind in ("BINARY", "FRACTIONAL"):
            layers = _layers_of_segments(seg, _marked(seg, kind, notes), taken, notes)
        else:
            raise InputError(f"a segmentation of unknown type {kind!r}", where=path, remedy=_AGAIN)
    if len(layers) > 1:
        notes.append(f"segments overlap: {len(layers)} layers")
    return Volume(
        array=layers,
        spacing_mm=planes.spacing_mm,
        source=path,
        origin_mm=planes.origin,
        direction=planes.direction,
        frame_of_reference=text_of(data, "FrameOfReferenceUID"),
        notes=tuple(notes),
        segments=tuple(NamedSegment(name=name, value=n) for n, name in sorted(names.items()) if n in taken),
    )


def _segment_names(data: Any, path: Path) -> dict[int, str]:
    """Return the declared segments. Raises InputError for none, for repeated numbers, and for numbers above 255."""
    numbers = Counter(int(s.SegmentNumber) for s in data.get("SegmentSequence") or [])
    twice = [n for n, count in numbers.items() if count > 1]
    beyond = [n for n in numbers if not 0 <= n <= 255]
    if not numbers or twice or beyond:
        what = "it declares no segment"
        if numbers:
            what = f"it declares segment {twice[0]} twice" if twice else f"it holds segments up to {max(beyond)}"
        raise InputError(what, where=path, remedy="use numbers from 1 to 255" if beyond else _AGAIN)
    return {int(s.SegmentNumber): text_of(s, "SegmentLabel") for s in data.SegmentSequence}


def _segments(data: Any) -> list[Structure]:
    """Return the segments of a SEG except the background, with the meaning of their coded type."""
    return [
        Structure(
            number=int(s.SegmentNumber),
            name=str(s.get("SegmentLabel", "")),
            concept=" ".join(
                str(code.get("CodeMeaning", "")) for code in s.get("SegmentedPropertyTypeCodeSequence") or []
            ),
        )
        for s in data.SegmentSequence
        if int(s.SegmentNumber)
    ]


@dataclass(frozen=True, kw_only=True)
class _SegFrames:
    """The frames ``(N, Y, X)`` of a SEG, the slice of each, and the declared segments by number."""

    data: Any
    path: Path
    frames: NDArray[Any]
    slots: NDArray[np.int64]
    shape: tuple[int, int, int]
    names: dict[int, str]


def _label_map(seg: _SegFrames, notes: list[str]) -> NDArray[np.uint8]:
    """Return the one layer of a label map; slices without a frame hold the padding value. Raises InputError."""
    padding = int(seg.data.get("PixelPaddingValue", 0) or 0)
    unknown = sorted(set(np.unique(seg.frames).tolist()) - {*seg.names, 0, padding})
    if unknown or not 0 <= padding <= 255:
        what = f"it holds label {unknown[0]}, which it does not declare" if unknown else f"its padding is {padding}"
        raise InputError(what, where=seg.path, remedy=_AGAIN)
    if len(set(seg.slots.tolist())) < len(seg.slots):
        raise InputError("several frames of its label map share one slice", where=seg.path, remedy=_AGAIN)
    label = np.full(seg.shape, padding, np.uint8)
    label[seg.slots] = seg.frames
    if "PixelPaddingValue" in seg.data and len(seg.slots) < seg.shape[0]:
        notes.append(f"slices without a frame hold the padding value {padding}")
    return label[None]


def _marked(seg: _SegFrames, kind: str, notes: list[str]) -> NDArray[np.bool_]:
    """Return which voxels of the frames are marked; fractions count from one half. Raises InputError."""
    if kind == "BINARY":
        if seg.frames.max(initial=0) > 1:
            what = f"a binary segmentation that holds {seg.frames.max()}"
            raise InputError(what, where=seg.path, remedy=_AGAIN)
        return seg.frames > 0
    most = float(seg.data.get("MaximumFractionalValue", 255))
    if not most > 0 or seg.frames.max(initial=0) > most:
        what = f"its fractions go up to {seg.frames.max()} of {most:g}"
        raise InputError(what, where=seg.path, remedy=_AGAIN)
    notes.append("fractional segments: threshold at half")
    return seg.frames * 2.0 >= most


def _layers_of_segments(
    seg: _SegFrames, marked: NDArray[np.bool_], taken: Sequence[int], notes: list[str]
) -> NDArray[np.uint8]:
    """Return the segments *taken* as layers ``(L, Z, Y, X)``. Raises InputError for undeclared ones."""
    masks: dict[int, NDArray[np.bool_]] = {}
    for number, (frame, slot, group) in enumerate(zip(marked, seg.slots, frame_groups(seg.data), strict=True), start=1):
        segment = frame_value(group, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if segment is None or int(segment) not in seg.names:
            what = "no segment" if segment is None else f"segment {segment}, which it does not declare"
            raise InputError(f"frame {number} belongs to {what}", where=seg.path, remedy=_AGAIN)
        if int(segment) in taken:
            masks.setdefault(int(segment), np.zeros(seg.shape, bool))[slot] |= frame
    empty = [f"{n} = {name}" for n, name in sorted(seg.names.items()) if n in taken and n not in masks]
    if empty:
        notes.append(f"segments without a frame: {', '.join(empty)}")
    return _layered(masks, seg.shape)


def _layered(masks: dict[int, NDArray[np.bool_]], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Put each mask into the first layer in which it overlaps nothing."""
    layers = [np.zeros(shape, np.uint8)]
    for number, mask in sorted(masks.items()):
        for layer in layers:
            if not (layer[mask] > 0).any():
                break
        else:
            layer = np.zeros(shape, np.uint8)
            layers.append(layer)
        layer[mask] = number
    return np.stack(layers)


# -- RTSTRUCT --------------------------------------------------------------------------------------------------------


def read_rtstruct(
    path: Path, image: Volume, wanted: Sequence[str] = (), regions: Sequence[str] = (), *, whole: bool = False
) -> Volume:
    """Return the contours of an RTSTRUCT filled on *image*'s grid: ``(L, Z, Y, X)`` uint8, labels 1, 2 … in ROI order.

    A voxel belongs to a structure when its centre lies inside the contour; a contour inside another one cuts a hole.
    Lesions are taken, by their names and types, and what belongs to *regions*, or the structures that *wanted* names.
    Contours outside the image are refused, unless the grid is to be extended to hold the *whole* of them. Raises
    InputError.
    """
    data = read_data_set(path)
    if image.spacing_mm is None:
        raise InputError("contours in millimetres, but the image has no spacing", where=path, remedy="name its series")
    with decoding(path, "its structures are described wrongly"), quiet():
        _check_structure_set(data, image, path)
        names = {int(r.ROINumber): str(r.get("ROIName", "")) for r in data.get("StructureSetROISequence") or []}
        kinds = {
            int(o.ReferencedROINumber): str(o.get("RTROIInterpretedType", ""))
            for o in data.get("RTROIObservationsSequence") or []
        }
        drawn = {
            int(r.ReferencedROINumber): r for r in data.get("ROIContourSequence") or [] if r.get("ContourSequence")
        }
        if not drawn:
            raise InputError("it holds no contour", where=path, remedy="name another structure set")
        structures = [Structure(number=n, name=names.get(n, ""), type=kinds.get(n, "")) for n in sorted(drawn)]
        taken, excluded = choose(structures, wanted, path, segmentation=False, regions=regions)
        _check_frames(data, taken, image, path)
        if len(taken) > 255:
            raise InputError(f"it holds {len(taken)} structures", where=path, remedy="export at most 255 targets")
        if whole:
            image = extended_to([drawn[n] for n in taken], image, path)
        contours = [read_structure(drawn[n], names.get(n) or str(n), image, path) for n in taken]
        if not any(structure.contours for structure in contours):
            kinds_found = ", ".join(sorted({kind for structure in contours for kind in structure.excluded}))
            raise InputError(f"it holds no closed contour ({kinds_found})", where=path, remedy="outline the lesions")
        masks, on_planes = fill_contours(contours, image, path)
    notes = [
        "structures " + ", ".join(f"{i} = {s.name}" for i, s in enumerate(contours, start=1)),
        *excluded,
        *on_planes,
    ]
    if undrawn := [name or str(n) for n, name in sorted(names.items()) if n not in drawn]:
        notes.append(f"structures without contours: {', '.join(undrawn)}")
    for structure in contours:
        for kind, count in structure.excluded.items():
            notes.append(f"{structure.name}: {count} contour(s) were left out, being {kind}")
    layers = _layered(dict(enumerate(masks, start=1)), image.shape)
    named = tuple(NamedSegment(name=s.name, value=i) for i, s in enumerate(contours, start=1))
    return dataclasses.replace(image, array=layers, source=path, notes=tuple(notes), segments=named)


def _check_structure_set(data: Any, image: Volume, path: Path) -> None:
    """Check that its three parts exist, each structure once, in the image's coordinates. Raises InputError."""
    parts = ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence")
    missing = [keyword for keyword in parts if keyword not in data]
    if missing:
        raise InputError(f"a structure set without its {missing[0]}: truncated?", where=path, remedy=COPY_AGAIN)
    for sequence, keyword in zip(parts[:2], ("ROINumber", "ReferencedROINumber"), strict=True):
        count = Counter(int(item.get(keyword)) for item in data.get(sequence) or [])
        if twice := [n for n, times in count.items() if times > 1]:
            raise InputError(f"structure {twice[0]} is there twice", where=path, remedy="export it again")
    referenced = data.get("ReferencedFrameOfReferenceSequence") or []
    frames = {text_of(item, "FrameOfReferenceUID") for item in referenced} - {""}
    if frames and image.frame_of_reference and image.frame_of_reference not in frames:
        raise _other_frame("its contours lie", path)


def _check_frames(data: Any, taken: Sequence[int], image: Volume, path: Path) -> None:
    """Raise InputError where a structure of *taken* lies in another frame of reference; a set may hold several."""
    for roi in data.get("StructureSetROISequence") or []:
        frame = text_of(roi, "ReferencedFrameOfReferenceUID")
        if int(roi.ROINumber) in taken and frame and image.frame_of_reference not in ("", frame):
            raise _other_frame(f"{text_of(roi, 'ROIName') or 'a structure'} lies", path)


def _other_frame(what: str, path: Path) -> InputError:
    return InputError(
        f"{what} in another frame of reference than the image",
        where=path,
        remedy="name the series that it was drawn on, or transfer it to this one in the planning program",
    )
