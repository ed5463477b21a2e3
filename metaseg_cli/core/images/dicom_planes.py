"""Planes in space: slices put in order by their positions, and the frames of multi-frame objects (PS3.3 C.7.6.2, .16).

Geometry comes from each plane's position and orientation, never from file order or slice thickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.dicom import DRIFT_MM, SAME_SLICE_MM, UNEVEN, quiet
from metaseg_cli.errors import InputError, decoding

_ROUNDING = 1e-3  # of direction cosines; of pixel spacings, relative to them
_DRIFT = 0.02  # of a step, besides DRIFT_MM: a shift across the normal that rounding explains
_MOST_SLICES, _MOST_MM = 5_000, 2_500  # beyond these, positions are damaged: no patient is longer


@dataclass(frozen=True, kw_only=True)
class Planes:
    """Parallel planes put in order: ``slots[i]`` is the slice, 0 … n − 1, in which plane *i* lies.

    ``spacing_mm`` is the distance (z, y, x) of slices, rows and columns; ``direction`` is row-major with the columns
    row, column, normal.
    """

    slots: NDArray[np.int64]
    slices: int
    spacing_mm: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PlaneHeaders:
    """What the headers of N planes say, in the patient's coordinates (mm).

    *step_mm* is the file's own statement on the distance of slices, used where it cannot be measured. *names* and
    *where* are for messages.
    """

    positions: Sequence[Sequence[float]]  # (N, 3)
    orientations: Sequence[Sequence[float]]  # (N, 6)
    in_plane: Sequence[Sequence[float]]  # (N, 2): pixel spacing of rows and columns
    step_mm: float | None
    names: Sequence[str]
    where: Path


def arrange_planes(headers: PlaneHeaders, *, gaps_allowed: bool = False) -> Planes:
    """Sort planes along their normal; several planes may share one position.

    A gap is an error that names its neighbours, unless *gaps_allowed* (a sparse SEG). Raises InputError.
    """
    spacing = _one_spacing(headers)
    row, column = _axes(headers)
    normal = np.cross(row, column)
    points = np.array(headers.positions, dtype=float)
    along = points @ normal
    step, slots = _slots(along, headers, gaps_allowed=gaps_allowed)
    origin = points[np.argmin(along)]
    _check_drift(points - origin, normal, step, headers.where)
    return Planes(
        slots=slots,
        slices=int(slots.max()) + 1,
        spacing_mm=(step, *spacing),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(v) for v in np.column_stack([row, column, normal]).ravel()),
    )


def _slots(along: NDArray[np.float64], headers: PlaneHeaders, *, gaps_allowed: bool) -> tuple[float, NDArray[np.int64]]:
    """Return the distance of slices, and the slice of each plane, by the planes' positions *along* the normal."""
    order = np.argsort(along, kind="stable")
    new = np.concatenate([[True], np.diff(along[order]) > SAME_SLICE_MM])
    levels = along[order][new]
    step, counts = float(headers.step_mm or 1.0), np.zeros(0)
    if len(levels) > 1:
        firsts = [headers.names[i] for i in order[new]]
        known = headers.step_mm if gaps_allowed else None
        step, counts = _steps(levels, known, firsts, headers.where, gaps_allowed=gaps_allowed)
    slot_of_level = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    slots = np.empty(len(along), np.int64)
    slots[order] = slot_of_level[np.cumsum(new) - 1]
    return step, slots


def _check_drift(offsets: NDArray[np.float64], normal: NDArray[np.float64], step: float, where: Path) -> None:
    """Raise InputError where slices are shifted against one another across the normal."""
    drift = np.abs(offsets - np.outer(offsets @ normal, normal)).max()
    if drift > DRIFT_MM + _DRIFT * step:
        raise InputError(
            f"its slices are shifted against one another by up to {drift:.1f} mm (gantry tilt)",
            where=where,
            remedy="resample it to a straight grid first",
        )


def _one_spacing(headers: PlaneHeaders) -> tuple[float, float]:
    spacings, names = np.array(headers.in_plane, dtype=float), headers.names
    other = np.abs(spacings - spacings[0]).max(axis=1) > _ROUNDING * spacings[0].min()
    if other.any():
        i = int(np.argmax(other))
        raise InputError(
            f"its pixel spacing differs: {spacings[0, 0]:g}×{spacings[0, 1]:g} mm in {names[0]}, "
            f"{spacings[i, 0]:g}×{spacings[i, 1]:g} mm in {names[i]}",
            where=headers.where,
            remedy="give each spacing its own folder, or export the series again",
        )
    return float(spacings[0, 0]), float(spacings[0, 1])


def _axes(headers: PlaneHeaders) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors along rows and columns of pixels, which all planes share."""
    facing, where = np.array(headers.orientations, dtype=float), headers.where
    if np.abs(facing - facing[0]).max() > _ROUNDING:
        count = len(np.unique(np.round(facing, 2), axis=0))
        how = f"{count} orientations" if count > 1 else "slightly different orientations"
        raise InputError(f"its images lie in {how}", where=where, remedy="name one stack of slices")
    row, column = facing[0, :3], facing[0, 3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if abs(float(row @ column)) > 1e-2 or np.abs(lengths - 1).max() > 0.1:
        raise InputError("its orientation is not a pair of perpendicular axes", where=where, remedy="export it again")
    row, column = row / lengths[0], column / lengths[1]
    return row, column


def _steps(
    levels: NDArray[np.float64], step_mm: float | None, firsts: Sequence[str], where: Path, *, gaps_allowed: bool
) -> tuple[float, NDArray[np.float64]]:
    """Return the distance of slices, and how many of them lie between each level and the next."""
    distances = np.diff(levels)
    step = step_mm or float(np.median(distances))
    counts = np.round(distances / step)
    uneven = (np.abs(distances - counts * step) > UNEVEN * step + 0.005) | (counts < 1)
    if uneven.any():
        i = int(np.argmax(uneven))
        raise InputError(
            f"its slices are unevenly spaced: {distances[i]:.2f} mm between {firsts[i]} and {firsts[i + 1]}, "
            f"{step:.2f} mm elsewhere",
            where=where,
            remedy="export the whole series again",
        )
    if counts.sum() >= _MOST_SLICES or levels[-1] - levels[0] > _MOST_MM:
        raise InputError(
            f"its planes lie {levels[-1] - levels[0]:.0f} mm apart, {step:g} mm from slice to slice",
            where=where,
            remedy="export it again",
        )
    if (counts > 1).any() and not gaps_allowed:
        gaps = [f"{int(counts[i]) - 1} between {firsts[i]} and {firsts[i + 1]}" for i in np.flatnonzero(counts > 1)[:3]]
        raise InputError(
            f"{int(counts.sum()) - len(counts)} slice(s) are missing: {', '.join(gaps)}",
            where=where,
            remedy="export the whole series again",
        )
    return float((levels[-1] - levels[0]) / counts.sum()), counts


# -- multi-frame objects ---------------------------------------------------------------------------------------------


def frame_groups(data: Any) -> list[list[Any]]:
    """Return for each frame its functional groups: its own, then the shared ones (PS3.3 C.7.6.16)."""
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    return [[group, *shared] for group in own]


def frame_value(groups: list[Any], sequence: str, keyword: str) -> Any:
    """Return the attribute *keyword* of a frame's *sequence*, or None."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return None


def frame_planes(data: Any, path: Path, *, gaps_allowed: bool) -> Planes:
    """Return how the frames of a multi-frame object are arranged. Raises InputError."""
    with decoding(path, "its frames are described wrongly"), quiet():
        groups, frames = frame_groups(data), int(data.get("NumberOfFrames") or 1)
        if len(groups) != frames:
            what = f"it has {frames} frames but describes {len(groups)}"
            if not groups:
                what = "a multi-frame image whose frames do not say where they lie"
            raise InputError(what, where=path, remedy="export the original series")
        positions = [_numbers(g, "PlanePositionSequence", "ImagePositionPatient", 3) for g in groups]
        orientations = [_numbers(g, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for g in groups]
        in_plane = [_numbers(g, "PixelMeasuresSequence", "PixelSpacing", 2) for g in groups]
        measures = ("SpacingBetweenSlices", "SliceThickness")
        steps = [frame_value(groups[0], "PixelMeasuresSequence", keyword) for keyword in measures]
        step = next((float(s) for s in steps if s and 0 < float(s) < 1e4), None)
    bad = [i for i, each in enumerate(zip(positions, orientations, in_plane, strict=True)) if None in each]
    if bad:
        raise InputError(
            f"frame {bad[0] + 1} does not say where it lies (position, orientation, pixel spacing)",
            where=path,
            remedy="export the original series",
        )
    names = [f"frame {i + 1}" for i in range(len(groups))]
    headers = PlaneHeaders(
        positions=[p for p in positions if p],
        orientations=[o for o in orientations if o],
        in_plane=[s for s in in_plane if s],
        step_mm=step,
        names=names,
        where=path,
    )
    return arrange_planes(headers, gaps_allowed=gaps_allowed)


def _numbers(groups: list[Any], sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return *count* finite numbers (of a spacing: positive ones); None for anything else."""
    value = frame_value(groups, sequence, keyword)
    numbers = tuple(float(v) for v in value) if value is not None and not isinstance(value, (str, float)) else ()
    sound = len(numbers) == count and all(abs(v) < 1e6 for v in numbers)
    return numbers if sound and (keyword != "PixelSpacing" or min(numbers) > 0) else None
