"""From the files of a case to its arrays: read, checked, and resampled to one grid."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.cache.records import CacheSettings
from metaseg_cli.core.datasets.case_source import CaseSource
from metaseg_cli.core.formats import is_image_file
from metaseg_cli.core.images import (
    Volume,
    as_grey,
    describe_difference,
    inverted_mask,
    is_constant,
    is_dicom,
    on_grid_of,
    orient_like_image,
    padding_value,
    read_image,
    read_mask,
    read_scan,
    resample_to,
    same_grid,
    size_text,
)
from metaseg_cli.core.images.region_layers import flatten, unite_regions
from metaseg_cli.core.label_maps import region_masks
from metaseg_cli.errors import InputError, Problem


@dataclass(frozen=True, kw_only=True)
class ReadCase:
    """A case, or those of its slices that have one size; the image's channels are the available sequences.

    ``per_slice``: each slice is a file of its own.
    """

    image: Volume
    label: NDArray[np.uint8] | None
    sequences: tuple[str, ...]
    hashes: tuple[str, ...]
    per_slice: bool


_Picture = tuple[Volume, Volume | None]  # with its mask


def read_case(source: CaseSource, settings: CacheSettings) -> tuple[list[ReadCase], list[Problem], list[str]]:
    """Read a case; several where slices differ in size. Problems say what was excluded and why."""
    problems: list[Problem] = []
    notes: list[str] = []
    cases = (_read_slices if source.slices else _read_volumes)(source, settings, problems, notes)
    return cases, problems, notes


@dataclass(frozen=True, kw_only=True)
class OriginalScan:
    """The scan of a case, or one of its pictures, as its files hold it.

    *scan* is one volume per sequence, each on its own grid, or a picture with all its channels. *masks*
    ``(R, Z, Y, X)`` are the regions of the original mask, on the grid of *reference*, which is one of them.
    """

    scan: dict[str, Volume] | Volume
    reference: Volume
    masks: NDArray[np.bool_]


def read_originals(
    source: CaseSource, settings: CacheSettings, sequences: Sequence[str], images: Sequence[str]
) -> list[OriginalScan]:
    """Read a case with a mask as ``read_case`` does, but keep every grid: its scan, or its pictures in order.

    *sequences* are those that the case was prepared with, *images* the hashes of its images, which tell its pictures
    from others of the same source that have another size. Raises InputError.
    """
    problems: list[Problem] = []
    if source.slices:
        for group in _groups_of_pictures(source, settings, problems, []):
            if _hashes(group) == tuple(images):
                return [
                    OriginalScan(scan=image, reference=image, masks=region_masks(mask.array[0], settings.regions))
                    for image, mask in group
                    if mask is not None
                ]
        found: dict[str, Volume] = {}
    else:
        found = _sequences(source, settings, problems, [])
        scans = {name: found[name] for name in sequences if name in found}
        if len(scans) == len(sequences):
            reference, masks = _masks_and_base(source, scans, settings)
            return [OriginalScan(scan=scans, reference=reference, masks=unite_regions(masks, settings.regions))]
    first = problems[0] if problems else None
    raise InputError(
        first.reason if first else "its images are not those that were prepared",
        where=first.file if first else source.first_file,
        remedy=first.remedy if first else "prepare the folder again",
    )


def _problem(error: InputError, otherwise: Path) -> Problem:
    where = error.where if isinstance(error.where, Path) else otherwise
    return Problem(file=where, reason=error.what, remedy=error.remedy)


# -- slices ----------------------------------------------------------------------------------------------------------


def _read_slices(
    source: CaseSource, settings: CacheSettings, problems: list[Problem], notes: list[str]
) -> list[ReadCase]:
    cases = []
    for group in _groups_of_pictures(source, settings, problems, notes):
        first = group[0][0]
        whole = dataclasses.replace(_bare(first), array=np.concatenate([image.array for image, _ in group], axis=1))
        labels = [mask.array[0] for _, mask in group if mask is not None]
        label = np.concatenate(labels, axis=0) if labels else None
        apart = all(image.shape[0] == 1 for image, _ in group)
        cases.append(
            ReadCase(image=whole, label=label, sequences=settings.sequences, hashes=_hashes(group), per_slice=apart)
        )
    return cases


def _bare(image: Volume) -> Volume:
    return Volume(array=image.array, spacing_mm=image.spacing_mm, source=image.source)


def _groups_of_pictures(
    source: CaseSource, settings: CacheSettings, problems: list[Problem], notes: list[str]
) -> list[list[_Picture]]:
    """Return the pictures of a case with their masks, those of one size together; constant ones are no group."""
    by_shape: dict[tuple[int, ...], list[_Picture]] = {}
    for index in range(len(next(iter(source.sequences.values())))):
        paths = [files[index] for files in source.sequences.values()]
        mask_paths = source.masks_of(index)
        try:
            image = _channels_of_slice(paths, settings)
            mask = _united(mask_paths, image, settings, problems) if mask_paths else None
            if mask is not None and mask.shape != image.shape:
                raise InputError(
                    f"the mask's size ({size_text(mask.shape)}) is not the image's ({size_text(image.shape)}: "
                    f"{paths[0].name})",
                    where=mask.source,
                    remedy="give every image a mask on its own grid",
                )
        except InputError as error:
            problems.append(_problem(error, paths[0]))
            continue
        notes += image.notes + (mask.notes if mask is not None else ())
        by_shape.setdefault(image.array.shape, []).append((image, mask))
    masks = [(mask.source, mask.array[0]) for parts in by_shape.values() for _, mask in parts if mask is not None]
    problems += _inverted(masks, settings)
    groups = []
    for group in by_shape.values():
        first = group[0][0]
        value = first.array.flat[0]
        if all((image.array == value).all() for image, _ in group):
            problems.append(_constant(first.source, float(value)))
        else:
            groups.append(group)
    return groups


def _hashes(group: Sequence[_Picture]) -> tuple[str, ...]:
    return tuple(_hash(image.array) for image, _ in group if not is_constant(image.array))


def _united(paths: Sequence[Path], image: Volume, settings: CacheSettings, problems: list[Problem]) -> Volume:
    """Unite the masks of one image into one layer: where the first has no label, the next one's counts.

    Segments with the names of regions get their labels. Raises InputError.
    """
    masks = _masks(paths, image, settings, problems)
    label, notes = _flattened(masks, settings)
    return dataclasses.replace(masks[0], array=label[None], notes=notes)


def _flattened(masks: Sequence[Volume], settings: CacheSettings) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return one label map, and all notes on the masks that it unites."""
    label, lost = flatten(masks, settings.regions)
    return label, (*(note for mask in masks for note in mask.notes), *lost)


def _masks(paths: Sequence[Path], image: Volume, settings: CacheSettings, problems: list[Problem]) -> list[Volume]:
    """Read the masks of one image, which lie on one grid. Raises InputError."""
    masks = []
    for path in paths:
        mask, doubt = orient_like_image(_mask(path, image, settings), image)
        masks.append(mask)
        problems += _turned(path, doubt)
        if not same_grid(mask, masks[0]):
            raise InputError(
                f"it does not lie on the grid of {masks[0].source.name}, another mask of the same image",
                where=mask.source,
                remedy="bring the masks of an image onto its grid",
            )
    return masks


def _mask(path: Path, image: Volume, settings: CacheSettings) -> Volume:
    """Read one mask; what a DICOM label map calls padding becomes background. Raises InputError."""
    mask = read_mask(path, image, settings.structures, list(settings.regions))
    padding = padding_value(path) if not is_image_file(path) and is_dicom(path) else 0
    if not padding:
        return mask
    note = f"padding value {padding} in masks: read as background"
    array = np.where(mask.array == padding, 0, mask.array).astype(np.uint8)
    return dataclasses.replace(mask, array=array, notes=(*mask.notes, note))


def _channels_of_slice(paths: Sequence[Path], settings: CacheSettings) -> Volume:
    volumes = [read_image(path) for path in paths]
    if settings.grey or len(volumes) > 1:
        volumes = [as_grey(volume) for volume in volumes]
    first = volumes[0]
    for volume in volumes[1:]:
        if volume.shape != first.shape:
            raise InputError(
                f"its size ({size_text(volume.shape)}) is not that of {first.source.name} ({size_text(first.shape)})",
                where=volume.source,
                remedy="bring the sequences of a case onto one grid",
            )
    array = np.concatenate([volume.array for volume in volumes])
    if array.shape[0] != len(settings.sequences):
        raise InputError(
            f"it has {array.shape[0]} channel(s), the others {len(settings.sequences)}: "
            f"{', '.join(settings.sequences)}",
            where=first.source,
            remedy="keep images of one kind in one folder",
        )
    return dataclasses.replace(first, array=array)


# -- volumes ---------------------------------------------------------------------------------------------------------


def _read_volumes(
    source: CaseSource, settings: CacheSettings, problems: list[Problem], notes: list[str]
) -> list[ReadCase]:
    scans = _sequences(source, settings, problems, notes)
    if not scans:
        return []
    try:
        base, label = _mask_and_base(source, scans, settings, notes)
    except InputError as error:
        problems.append(_problem(error, source.first_file))
        return []
    if label is not None:
        problems += _inverted([(source.masks[0], label)], settings)
    kept: dict[str, Volume] = {}
    for name, scan in scans.items():
        try:
            kept[name] = resample_to(scan, base)
            notes += kept[name].notes[len(scan.notes) :]
        except InputError as error:
            problems.append(_problem(error, scan.source))
    image = Volume(
        array=np.concatenate([scan.array for scan in kept.values()]),
        spacing_mm=base.spacing_mm,
        source=base.source,
        origin_mm=base.origin_mm,
        direction=base.direction,
    )
    hashes = tuple(_hash(scans[name].array) for name in kept)
    flat = image.shape[0] == 1
    return [ReadCase(image=image, label=label, sequences=tuple(kept), hashes=hashes, per_slice=flat)]


def _sequences(
    source: CaseSource, settings: CacheSettings, problems: list[Problem], notes: list[str]
) -> dict[str, Volume]:
    """Return the sequences of a case that can be used, each on its own grid."""
    scans: dict[str, Volume] = {}
    for name, files in source.sequences.items():
        if not source.channels and name not in settings.sequences:
            continue
        try:
            scan = read_scan(files)
            notes += scan.notes
            scans |= _named_channels(scan, name, source, settings)
        except InputError as error:
            problems.append(_problem(error, files[0]))
    for name in [n for n, scan in scans.items() if is_constant(scan.array)]:
        scan = scans.pop(name)
        problems.append(_constant(scan.source, float(scan.array.flat[0])))
    return {name: scans[name] for name in settings.sequences if name in scans}


def _named_channels(scan: Volume, name: str, source: CaseSource, settings: CacheSettings) -> dict[str, Volume]:
    """Split a file of several channels into one volume per sequence. Raises InputError when their number differs."""
    channels = scan.array.shape[0]
    names = source.channels or ((name,) if channels == 1 else tuple(f"{name}_{i}" for i in range(channels)))
    if len(names) != channels or not set(names) & set(settings.sequences):
        raise InputError(
            f"it has {channels} channel(s), the others {len(settings.sequences)}: {', '.join(settings.sequences)}",
            where=scan.source,
            remedy="keep images of one kind in one folder",
        )
    parts = {}
    for number, each in enumerate(names):
        if each in settings.sequences:
            parts[each] = dataclasses.replace(scan, array=scan.array[number : number + 1])
    return parts


def _mask_and_base(
    source: CaseSource, scans: dict[str, Volume], settings: CacheSettings, notes: list[str]
) -> tuple[Volume, NDArray[np.uint8] | None]:
    """Return the sequence whose grid the case has, and the label map on it. Raises InputError when no grid fits."""
    if not source.masks:
        return next(iter(scans.values())), None
    base, masks = _masks_and_base(source, scans, settings)
    label, said = _flattened(masks, settings)
    notes += said
    return base, label


def _masks_and_base(
    source: CaseSource, scans: dict[str, Volume], settings: CacheSettings
) -> tuple[Volume, list[Volume]]:
    """Return the first sequence on whose grid the masks lie, and the masks on it. Raises InputError when none fits."""
    for scan in scans.values():
        masks = _masks(source.masks_of(0), scan, settings, [])
        placed = [each for mask in masks if (each := on_grid_of(mask, scan)) is not None]
        if len(placed) == len(masks):
            return scan, placed
    raise InputError(
        f"the mask does not lie on its image's grid: {describe_difference(masks[0], next(iter(scans.values())))}",
        where=source.masks[0],
        remedy="resample the mask onto the image, or correct its header where the voxels match",
    )


# -- warnings --------------------------------------------------------------------------------------------------------


def _inverted(masks: Sequence[tuple[Path, NDArray[np.uint8]]], settings: CacheSettings) -> list[Problem]:
    """Return one warning for all masks of a case that may be inverted."""
    found = [(path, why) for path, label in masks if (why := inverted_mask(label, settings.foreground))]
    if not found:
        return []
    (first, why), more = found[0], len(found) - 1
    others = f", and {more} more of this case" if more else ""
    reason = f"the mask {why}{others}: is it inverted?"
    return [Problem(file=first, reason=reason, remedy="save lesions as 255 and background as 0", left_out=False)]


def _turned(mask: Path, doubt: str | None) -> list[Problem]:
    if doubt is None:
        return []
    remedy = "save image and mask upright, without EXIF orientation"
    return [Problem(file=mask, reason=doubt, remedy=remedy, left_out=False)]


# -- hashes and problems ---------------------------------------------------------------------------------------------


def _constant(path: Path, value: float) -> Problem:
    return Problem(file=path, reason=f"constant: every voxel is {value:g}", remedy="replace or remove it")


def _hash(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(str(array.shape).encode())
    numbers = array.astype(np.float32 if array.dtype.kind == "f" else np.int64, order="C")
    digest.update(numbers.data)
    return digest.hexdigest()[:16]
