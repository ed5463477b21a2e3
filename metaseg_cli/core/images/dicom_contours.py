"""The contours of one RTSTRUCT structure, checked and filled on an image's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.geometry import extended
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_ONE_PLANE = 0.05  # slices: contours closer than this lie in one plane
_ON_SLICE = 0.1  # slices: a plane closer than this to a slice was drawn on it
_NAME_SERIES = "name the series that they were drawn on"


@dataclass(frozen=True)
class Structure:
    """Closed planar contours as points ``(n, 3)`` in voxel indices (x, y, z), and the kinds of those excluded."""

    name: str
    contours: tuple[NDArray[Any], ...]
    excluded: Counter[str]


def read_structure(item: Any, name: str, image: Volume, path: Path) -> Structure:
    """Return the contours of an item of the ROI Contour Sequence. Raises InputError for damaged or tilted ones."""
    to_index = np.linalg.inv(image.affine)
    # Keyed by their points in any order: a contour that is there twice would cut itself out.
    contours: dict[bytes, NDArray[Any]] = {}
    excluded: Counter[str] = Counter()
    for contour in item.get("ContourSequence") or []:
        kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR")
        points = _points(contour, name, path)
        if kind not in _CLOSED or len(points) < 3:
            excluded[kind if kind not in _CLOSED else f"{kind} of {len(points)} points"] += 1
            continue
        index = (to_index @ np.column_stack([points, np.ones(len(points))]).T)[:3].T
        if np.ptp(index[:, 2]) > 0.5:
            raise InputError(
                f"the contours of {name} are not drawn on the image's slices: they are tilted against them",
                where=path,
                remedy=_NAME_SERIES,
            )
        low, high = index.min(axis=0), index.max(axis=0)
        if (low < -1.5).any() or (high > np.array(image.shape[::-1]) + 0.5).any():
            raise InputError(f"the contours of {name} lie outside the image", where=path, remedy=_NAME_SERIES)
        contours[np.unique(points.round(3), axis=0).tobytes()] = index
    return Structure(name, tuple(contours.values()), excluded)


def extended_to(items: Sequence[Any], image: Volume, path: Path) -> Volume:
    """Return *image* with voxels of 0 around it so far as the contours of *items* reach. Raises InputError."""
    points = [_points(c, "a structure", path) for item in items for c in item.get("ContourSequence") or []]
    every = np.concatenate([np.empty((0, 3)), *points])
    if not len(every):
        return image
    index = (np.linalg.inv(image.affine) @ np.column_stack([every, np.ones(len(every))]).T)[2::-1].T  # z y x
    before = np.maximum(np.ceil(-index.min(axis=0) - 0.5), 0).astype(np.int64)
    after = np.maximum(np.ceil(index.max(axis=0) + 0.5 - image.shape), 0).astype(np.int64)
    larger = extended(image, before, after)
    return image if larger is None else larger


def _points(contour: Any, name: str, path: Path) -> NDArray[np.float64]:
    data = contour.get("ContourData")
    values = [] if data is None else data if not isinstance(data, (str, float)) else [data]
    numbers = np.array([float(v) for v in values])
    said = contour.get("NumberOfContourPoints")
    wrong = ""
    if len(numbers) % 3:
        wrong = f"{len(numbers)} coordinates, which are not three for each point"
    elif not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e5:
        wrong = "coordinates that are not millimetres"
    elif said not in (None, "") and int(said) != len(numbers) // 3:
        wrong = f"{len(numbers) // 3} points where it promises {said}"
    if wrong:
        raise InputError(f"a contour of {name} has {wrong}", where=path, remedy="export the structure set again")
    return numbers.reshape(-1, 3)


def fill_contours(
    structures: Sequence[Structure], image: Volume, path: Path
) -> tuple[list[NDArray[np.bool_]], list[str]]:
    """Return the voxels ``(Z, Y, X)`` whose centres lie inside each structure's contours, and notes on their planes.

    Within one plane a contour inside another one cuts a hole; planes are united. A plane between slices counts for
    the slices within half the distance of the planes (of slices, where planes are closer), halves rounded up, so that a
    lesion stays solid. Slices between planes that are farther apart stay empty, with a note. Raises InputError.
    """
    planes = [_planes(structure) for structure in structures]
    levels = np.array(sorted({level for each in planes for level, _ in each}))
    between = bool((np.abs(levels - np.round(levels)) > _ON_SLICE).any())
    apart = np.diff(levels)
    nearest = float(apart[apart > _ONE_PLANE].min(initial=np.inf))
    reach = nearest / 2 if between and 1 < nearest < 2 else 0.5
    notes = []
    if between:
        notes.append("contours lie between the image's slices: each counts for the slices nearest to it")
    masks = []
    for structure, own in zip(structures, planes, strict=True):
        mask = np.zeros(image.shape, bool)
        for level, contours in own:
            mask[_slices_of(level, reach, between, structure.name, image, path)] |= _even_odd(contours, image)
        if structure.contours and not mask.any():
            mask[_voxel_in(structure.contours, image)] = True
            notes.append(f"{structure.name} is smaller than a voxel: the one that it lies in was taken")
        masks.append(mask)
        if note := _gaps(structure.name, [level for level, _ in own], mask):
            notes.append(note)
    return masks, notes


def _planes(structure: Structure) -> list[tuple[float, list[NDArray[Any]]]]:
    """Group contours by the plane that they lie in, given as a level in slices."""
    found: list[tuple[float, list[NDArray[Any]]]] = []
    for contour in sorted(structure.contours, key=lambda c: float(c[:, 2].mean())):
        level = float(contour[:, 2].mean())
        if found and level - found[-1][0] <= _ONE_PLANE:
            found[-1][1].append(contour)
        else:
            found.append((level, [contour]))
    return found


def _slices_of(level: float, reach: float, between: bool, name: str, image: Volume, path: Path) -> slice:
    """Return the slices that a plane counts for."""
    first = int(np.floor(level - reach + 1e-3)) + 1 if between else int(np.round(level))
    last = int(np.floor(level + reach + 1e-3)) if between else first
    if last < 0 or first > image.shape[0] - 1:
        raise InputError(f"the contours of {name} lie outside the image", where=path, remedy=_NAME_SERIES)
    return slice(max(first, 0), last + 1)


def _voxel_in(contours: Sequence[NDArray[Any]], image: Volume) -> tuple[int, ...]:
    """Return the voxel (z, y, x) that holds the centre of the first of *contours*."""
    middle = np.round(contours[0].mean(axis=0)[::-1]).astype(int)
    return tuple(int(v) for v in np.clip(middle, 0, np.array(image.shape) - 1))


def _even_odd(contours: Sequence[NDArray[Any]], image: Volume) -> NDArray[np.bool_]:
    """Fill contours of one plane, the largest first: one inside what is filled cuts a hole, any other is added."""
    size = image.shape[1:]
    parts = sorted((_inside(contour[:, [1, 0]], size) for contour in contours), key=lambda p: -int(p.sum()))
    plane = np.zeros(size, bool)
    for part in parts:
        if (part & ~plane).any():
            plane |= part
        else:
            plane &= ~part
    return plane


def _inside(points: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels ``(Y, X)`` whose centres lie inside *points* (row, column), testing only their bounding box."""
    from skimage.draw import polygon2mask

    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, None)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, size)
    inside = np.zeros(size, bool)
    if (high > low).all():
        inside[low[0] : high[0], low[1] : high[1]] = polygon2mask(tuple(high - low), points - low)
    return inside


def _gaps(name: str, levels: Sequence[float], mask: NDArray[np.bool_]) -> str:
    """Return a note on slices between a structure's planes that no plane counts for."""
    drawn = mask.any(axis=(1, 2))
    if len(levels) < 2 or not drawn.any():
        return ""
    slices = np.flatnonzero(drawn)
    steps = np.diff(slices)
    if len(steps) > 1 and (steps == steps[0]).all() and steps[0] > 1:
        which = {2: "second", 3: "third"}.get(int(steps[0]), f"{steps[0]}th")
        return f"{name} is drawn on every {which} slice only: the slices between are empty"
    single = int((steps == 2).sum())
    return f"{name}: {single} slice(s) between two of its contours are empty" if single else ""
