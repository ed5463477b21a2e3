"""Read masks as people save them, as label maps; write them so that they read back the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.atomic import atomic_write, temporary_folder, translate_write_errors
from metaseg_cli.core.detection import label_lesions
from metaseg_cli.core.dicom import is_dicom
from metaseg_cli.core.formats import LOSSY, TWO_FILES, is_image_file, is_picture, suffix_of
from metaseg_cli.core.images.dicom_masks import modality_of, read_rtstruct, read_seg
from metaseg_cli.core.images.pictures import decode_picture, save_picture
from metaseg_cli.core.images.reading import read_image
from metaseg_cli.core.images.seg_nrrd import lesion_layers, segments_of
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.images.volumes import save_volume
from metaseg_cli.core.paths import check_openable
from metaseg_cli.errors import InputError

_SMALL_LABEL = 31  # grey levels up to this are labels, above it brightness
_LARGEST_LABEL = 2**31  # floats beyond this are not label numbers
_FEW = 8  # levels that people number labels with; more are edges or noise
_FEW_COLOURS = 16  # a picture of more has edges between colours, or noise
_NOISE = 32  # grey levels: compression noise of a black JPEG stays well below this


def read_mask(
    path: Path,
    image: Volume | None = None,
    structures: Sequence[str] = (),
    regions: Sequence[str] = (),
    *,
    whole: bool = False,
) -> Volume:
    """Return a mask as a label map ``(1, Z, Y, X)`` uint8; ``notes`` say what its numbers were taken to mean.

    0/1, 0/255, small label values, palette, colour and JPEG-compressed masks are understood, those in an alpha channel
    whose colour is constant, and DICOM SEG, RTSTRUCT and Slicer's ``.seg.nrrd``, whose overlapping segments make
    several layers ``(L, Z, Y, X)``. Of these the lesions are taken, by their names, with what belongs to the *regions*
    that are named, or only the *structures* that are named. An RTSTRUCT is drawn on *image*'s grid,
    which is extended to hold the *whole* of it where that is asked for. Raises InputError.
    """
    check_openable(path)
    notes: list[str] = []
    if path.is_file() and not is_image_file(path) and is_dicom(path):
        kind = modality_of(path)
        if kind == "RTSTRUCT":
            if image is None:
                raise InputError(
                    "contours, which need the image they were drawn on", where=path, remedy="convert them to a mask"
                )
            return read_rtstruct(path, image, structures, regions, whole=whole)
        if kind == "SEG":
            return read_seg(path, structures, regions)
    if is_picture(path) and path.is_file() and path.stat().st_size:
        return _from_picture(path)
    volume = read_image(path)
    notes += volume.notes
    if segments := segments_of(path):
        array, said, named = lesion_layers(volume.array, segments, structures, path, regions)
        label = np.stack([_labels(layer, path, notes, named=True) for layer in array])
        return dataclasses.replace(volume, array=label, notes=(*notes, *said), segments=named)
    if volume.array.shape[0] != 1:
        raise InputError(f"a mask with {volume.array.shape[0]} channels", where=path, remedy="save one label map")
    label = _labels(volume.array[0], path, notes)
    return dataclasses.replace(volume, array=label[None], notes=tuple(notes))


def _from_picture(path: Path) -> Volume:
    picture = decode_picture(path)
    notes = list(picture.notes)
    colours = picture.colours()
    channels = colours.shape[0]
    if picture.alpha is not None and all(map(_is_constant, colours)) and _says_something(picture.alpha):
        notes.append("the mask was taken from the alpha channel: its colour is one and the same everywhere")
        label = _labels(picture.alpha, path, notes, lossy=picture.lossy)
    elif picture.palette is not None:
        label = _from_palette(picture.array[0], colours, notes)
    elif channels == 3:
        label = _labels(_from_colour(colours, notes, lossy=picture.lossy)[0], path, notes, lossy=picture.lossy)
    elif channels == 1:
        label = _labels(colours[0], path, notes, lossy=picture.lossy)
    else:
        raise InputError(f"a mask with {channels} channels", where=path, remedy="save one label map")
    return Volume(
        array=label[None], spacing_mm=None, source=path, exif_orientation=picture.orientation, notes=tuple(notes)
    )


def _is_constant(array: NDArray[Any]) -> bool:
    return bool(array.min() == array.max())


def _says_something(alpha: NDArray[Any]) -> bool:
    """Return whether the alpha channel holds the mask: opaque and transparent parts, or all transparent."""
    return not _is_constant(alpha) or not alpha.any()


def _from_palette(
    index: NDArray[np.unsignedinteger[Any]], colours: NDArray[Any], notes: list[str]
) -> NDArray[np.uint8]:
    """Take palette indices as labels when index 0 is the black background; otherwise black is the background."""
    black = colours.max(axis=0) == 0
    if int(index.max()) < 256 and (not index[~black].size or (index[black] == 0).all()):
        values = np.unique(index)
        if len(values) == 2 and values[0] == 0 and values[1] > _SMALL_LABEL:
            return (index > 0).astype(np.uint8)
        if values[-1] > 1:
            notes.append("palette mask: the colour numbers are the labels")
        return index.astype(np.uint8)
    notes.append("palette mask: black is background, every other colour is lesion")
    return (~black).astype(np.uint8)


def _from_colour(array: NDArray[Any], notes: list[str], *, lossy: bool) -> NDArray[Any]:
    """Reduce ``(3, Z, Y, X)`` to ``(1, Z, Y, X)``: the brightest channel, to which the threshold at half applies."""
    grey = array.max(axis=0, keepdims=True)
    if (array[0] == array[1]).all() and (array[1] == array[2]).all():
        return grey
    top = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
    if not lossy and len(np.unique(array.reshape(3, -1), axis=1).T) <= _FEW_COLOURS:
        notes.append("mask in colour: black is background, every colour is lesion")
        return np.where(grey > 0, top, 0).astype(array.dtype)
    notes.append("mask in colour: black is background, every colour is lesion (threshold at half)")
    return np.where(grey * 2.0 >= max(1, min(top, int(grey.max()))), top, 0).astype(array.dtype)


def _labels(
    array: NDArray[Any], path: Path, notes: list[str], *, named: bool = False, lossy: bool = False
) -> NDArray[np.uint8]:
    """Turn ``(Z, Y, X)`` of any numbers into uint8 labels; numbers that the header has *named* stay as they are."""
    if array.dtype.kind == "f":
        rounded = np.round(array)
        if np.abs(array - rounded).max(initial=0) > 1e-3:
            if array.min() >= 0 and array.max() <= 1:
                notes.append("mask of probabilities: threshold at 0.5")
                return (array >= 0.5).astype(np.uint8)
            raise InputError("its values are neither labels nor probabilities", where=path, remedy="save whole numbers")
        if np.abs(rounded).max(initial=0) > _LARGEST_LABEL:
            raise InputError("its values are too large to be labels", where=path, remedy="save labels from 0 to 255")
        array = rounded.astype(np.int64)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < 0:
        raise InputError(f"it holds negative labels (down to {low})", where=path, remedy="save labels from 0 up")
    if high <= 1 or (named and high <= 255):
        return array.astype(np.uint8)
    if lossy and high < _NOISE:
        notes.append(f"nothing above compression noise (below {_NOISE} of 255): empty mask")
        return np.zeros(array.shape, np.uint8)
    if not lossy and high <= _SMALL_LABEL:
        return array.astype(np.uint8)
    values = np.unique(array)
    if not is_picture(path) and high <= 255 and len(values) > 2:
        if _has_ignore_label(values):
            notes.append("label 255 beside small labels, which often means 'ignore': kept as a label")
        return array.astype(np.uint8)
    return _from_levels(array, values, path, notes, lossy=lossy)


def _has_ignore_label(values: NDArray[Any]) -> bool:
    """Return whether 255 stands beside small labels: many programs mark voxels to ignore with it."""
    return len(values) > 2 and int(values[-1]) in (255, 65535) and int(values[-2]) <= _SMALL_LABEL and values[0] == 0


def _from_levels(
    array: NDArray[Any], values: NDArray[Any], path: Path, notes: list[str], *, lossy: bool
) -> NDArray[np.uint8]:
    """Turn grey levels, *values* in all, into labels, or into one label by a threshold at half."""
    low, high = int(values[0]), int(values[-1])
    if len(values) <= 2 and low in (0, high) and (not lossy or high > 127):
        return (array > 0).astype(np.uint8)  # 0/255, 0/65535, 0/any one number
    few = not lossy and len(values) <= _FEW and low == 0
    if few and np.ptp(np.diff(values)) <= 1 + high // 100:
        notes.append(f"evenly spaced grey levels {', '.join(map(str, values))} are the labels 0 to {len(values) - 1}")
        return np.searchsorted(values, array).astype(np.uint8)
    if few and _has_ignore_label(values):
        raise InputError(
            f"it holds the labels {', '.join(map(str, values[:-1]))} and {high}, which may mean lesion or 'ignore'",
            where=path,
            remedy=f"replace {high} by a label, or by 0",
        )
    if not is_picture(path) and high > 255:
        raise InputError(f"it holds labels up to {high}", where=path, remedy="use labels from 0 to 255")
    top = np.iinfo(array.dtype).max if array.dtype in (np.uint8, np.uint16) else high
    if high < top / 4:
        top = high
    found = array * 2.0 >= top
    faint = _faint_parts(array >= (top * _NOISE / 255 if lossy else 1), found)
    if faint and few:
        raise InputError(
            f"its grey levels, {', '.join(map(str, values))}, are neither evenly spaced labels nor edges of one lesion",
            where=path,
            remedy="save labels as 0, 1, 2 …, or one lesion label as 0 and 255",
        )
    notes.append(f"mask with many grey levels (compressed?): threshold at half of {top}")
    if faint:
        notes.append(f"{faint} separate part(s) of a mask, darker than the threshold, were left out")
    return found.astype(np.uint8)


def _faint_parts(drawn: NDArray[np.bool_], found: NDArray[np.bool_]) -> int:
    """Return how many connected parts of *drawn* have no voxel in *found*."""
    labels, count = label_lesions(drawn)
    return count - len(set(np.unique(labels[found]).tolist()) - {0})


def write_mask(path: Path, mask: NDArray[np.uint8], like: Volume) -> None:
    """Write labels ``(Z, Y, X)`` in the format of *path*'s suffix with *like*'s geometry; whole or not at all.

    In a picture a mask of 0 and 1 becomes 0 and 255, which people can see; ``read_mask`` gives 1 back.
    """
    if is_picture(path):
        shown = mask * np.uint8(255) if mask.max(initial=0) <= 1 else mask
        if mask.max(initial=0) > 1 and suffix_of(path) in LOSSY:
            raise InputError("JPEG cannot hold several labels", where=path, remedy="use PNG images")
        atomic_write(path, lambda to: save_picture(to, list(shown), like.exif_orientation))
    else:
        _save_volume_whole(path, mask, like)


def write_volume(path: Path, array: NDArray[np.float32], like: Volume) -> None:
    """Write numbers 0 … 1 ``(Z, Y, X)``: float in TIFF and volumes, 16 bits (0 … 65535) in PNG."""
    if suffix_of(path) == ".png":
        scaled = np.round(array * 65535).astype(np.uint16)
        atomic_write(path, lambda to: save_picture(to, list(scaled), like.exif_orientation))
    elif is_picture(path):
        atomic_write(path, lambda to: save_picture(to, list(array), like.exif_orientation))
    else:
        _save_volume_whole(path, array.astype(np.float32), like)


def _save_volume_whole(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write whole or not at all; of formats in two files, the voxels first and the header last."""
    if suffix_of(path) not in TWO_FILES:
        atomic_write(path, lambda to: save_volume(to, array, like))
        return
    # The header names its companion, so both are written under their final names, elsewhere. An older header goes
    # first: it must not lie beside new voxels.
    with translate_write_errors(path), temporary_folder("volume", path) as folder:
        save_volume(folder / path.name, array, like)
        path.unlink(missing_ok=True)
        for part in sorted(folder.iterdir(), key=lambda p: p.name == path.name):
            part.replace(path.with_name(part.name))
