"""DICOM SEG and RTSTRUCT as label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.dicom import decoded_frames, frame_groups, frame_planes, frame_value, full_data, header
from metaseg_cli.core.images.structure_names import Structure, choose
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError


def modality_of(path: Path) -> str:
    """ "SEG", "RTSTRUCT", or another modality of a DICOM file."""
    return str(header(path, ["Modality"]).get("Modality", ""))


def read_seg(path: Path, wanted: Sequence[str] = ()) -> Volume:
    """A DICOM SEG (binary, fractional, label map) on its own grid: label values ``(L, Z, Y, X)`` uint8.

    A label is its segment's number. Segments that overlap need several layers L: each takes the first in which it
    overlaps nothing. Slices without a frame are empty, or hold the file's Pixel Padding Value where it names one. Of
    segments with lesions and anatomy the lesions are taken, or those that *wanted* names. Raises InputError.
    """
    data = full_data(path)
    kind = str(data.get("SegmentationType", ""))
    groups = frame_groups(data)
    planes, in_plane = frame_planes(data, groups, path, gaps_allowed=True)
    frames = decoded_frames(data, path)
    names = {int(s.SegmentNumber): str(s.get("SegmentLabel", "")) for s in data.SegmentSequence}
    taken, left_out = choose(_segments(data), wanted, path, segmentation=True)
    shape = (planes.slices, int(data.Rows), int(data.Columns))
    notes = ["segments " + ", ".join(f"{n} = {name}" for n, name in sorted(names.items()) if n in taken), *left_out]
    if kind == "LABELMAP":
        label = np.full(shape, int(data.get("PixelPaddingValue", 0)), np.int64)
        padding = int(data.get("PixelPaddingValue", 0))
        label[planes.slots] = np.where(np.isin(frames, [*taken, padding]), frames, 0) if left_out else frames
        layers = label[None]
        if "PixelPaddingValue" in data and len(set(planes.slots.tolist())) < planes.slices:
            notes.append(f"slices without a frame hold the padding value {data.PixelPaddingValue}")
    else:
        if kind == "FRACTIONAL":
            most = float(data.get("MaximumFractionalValue", 255))
            frames = frames * 2.0 >= most
            notes.append("fractional segments: threshold at half")
        masks: dict[int, NDArray[np.bool_]] = {}
        for frame, slot, group in zip(frames, planes.slots, groups, strict=True):
            number = frame_value(group, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
            if int(number) not in taken:
                continue
            masks.setdefault(int(number), np.zeros(shape, bool))[slot] |= frame > 0
        layers = _layered(masks, shape)
    if layers.max(initial=0) > 255:
        raise InputError(f"it holds segments up to {layers.max()}", where=path, remedy="use numbers from 1 to 255")
    if len(layers) > 1:
        notes.append(f"segments overlap: {len(layers)} layers")
    return Volume(
        array=layers.astype(np.uint8),
        spacing_mm=(planes.spacing_z, float(in_plane[0]), float(in_plane[1])),
        source=path,
        origin_mm=planes.origin,
        direction=planes.direction,
        notes=tuple(notes),
    )


def _segments(data: Any) -> list[Structure]:
    """The segments of a SEG but the background, with the meaning of their coded type."""
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


def padding_value(path: Path) -> int:
    """What a SEG stores where no segment was looked for: never a label. 0 when the file names none."""
    return int(header(path, ["PixelPaddingValue"]).get("PixelPaddingValue", 0) or 0)


def _layered(masks: dict[int, NDArray[np.bool_]], shape: tuple[int, int, int]) -> NDArray[np.int64]:
    layers = [np.zeros(shape, np.int64)]
    for number, mask in sorted(masks.items()):
        for layer in layers:
            if not (layer[mask] > 0).any():
                break
        else:
            layer = np.zeros(shape, np.int64)
            layers.append(layer)
        layer[mask] = number
    return np.stack(layers)


def read_rtstruct(path: Path, image: Volume, wanted: Sequence[str] = ()) -> Volume:
    """The contours of an RTSTRUCT filled on *image*'s grid: ``(L, Z, Y, X)`` uint8, labels 1, 2 … in ROI order.

    A voxel belongs to a structure when its centre lies inside the contour; a contour inside another one cuts a hole.
    Only lesions are taken, by their names and types, or the structures that *wanted* names. Raises InputError.
    """
    from skimage.draw import polygon2mask

    data = full_data(path)
    if image.spacing_mm is None:
        raise InputError("contours in millimetres, but the image has no spacing", where=path, remedy="name its series")
    names = {int(r.ROINumber): str(r.get("ROIName", "")) for r in data.get("StructureSetROISequence") or []}
    kinds = {
        int(o.ReferencedROINumber): str(o.get("RTROIInterpretedType", ""))
        for o in data.get("RTROIObservationsSequence") or []
    }
    drawn = {int(r.ReferencedROINumber): r for r in data.get("ROIContourSequence") or [] if r.get("ContourSequence")}
    if not drawn:
        raise InputError("it holds no contour", where=path, remedy="name another structure set")
    structures = [Structure(number=n, name=names.get(n, ""), type=kinds.get(n, "")) for n in sorted(drawn)]
    taken, left_out = choose(structures, wanted, path, segmentation=False)
    to_index = np.linalg.inv(image.affine)
    masks: dict[int, NDArray[np.bool_]] = {}
    z_size, y_size, x_size = image.shape
    for label, number in enumerate(taken, start=1):
        mask = masks[label] = np.zeros(image.shape, bool)
        for contour in drawn[number].ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            if contour.get("ContourGeometricType", "CLOSED_PLANAR") != "CLOSED_PLANAR" or len(points) < 3:
                continue
            index = (to_index @ np.column_stack([points, np.ones(len(points))]).T)[:3]
            x, y, z = index
            if np.ptp(z) > 0.5:
                raise InputError(
                    f"the contours of {names.get(number, number)} are not drawn on the image's slices",
                    where=path,
                    remedy="name the series that they were drawn on",
                )
            at = int(np.round(z.mean()))
            if not 0 <= at < z_size:
                raise InputError(
                    f"the contours of {names.get(number, number)} lie outside the image",
                    where=path,
                    remedy="name the series that they were drawn on",
                )
            mask[at] ^= polygon2mask((y_size, x_size), np.column_stack([y, x]))
    notes = ["structures " + ", ".join(f"{i} = {names.get(n, n)}" for i, n in enumerate(taken, start=1)), *left_out]
    layers = _layered(masks, image.shape)
    return dataclasses.replace(image, array=layers.astype(np.uint8), source=path, notes=tuple(notes))
