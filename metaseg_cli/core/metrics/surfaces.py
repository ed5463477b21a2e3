"""Distances between the surfaces of two masks, in mm, or in voxels where there is no spacing.

Two surfaces are in use, and they give different numbers. *Surfels* are the pieces of a marching-cubes surface between
voxel centres, each with its area (Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of
head and neck anatomy"); this is the default. *Border voxels* are voxels of the mask that one of their face neighbours
does not belong to, and all count alike (panoptica, MONAI, medpy).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from metaseg_cli.core.detection import bounding_box

# The surface through a cell of 2 × 2 × 2 (2 × 2) voxel centres, for one of each kind of occupied corners; corner
# (z, y, x) is bit 4z + 2y + x. Each piece as its normal and its area, in eighths (halves) of a face of the cell.
# Rotations, reflections and exchanging inside for outside give all 256 (16).
_CELLS_3D: dict[int, dict[tuple[int, ...], int]] = {
    0b0000_0001: {(1, 1, 1): 1},
    0b0000_0011: {(1, 1, 0): 4},
    0b0000_0110: {(1, 1, 1): 2},
    0b0001_1000: {(1, 1, 1): 2},
    0b0000_0111: {(1, 0, 0): 4, (1, 1, 1): 3},
    0b0001_0110: {(1, 1, 1): 3},
    0b0001_1001: {(0, 1, 1): 4, (1, 1, 1): 1},
    0b0000_1111: {(1, 0, 0): 8},
    0b0001_0111: {(1, 1, 1): 6},
    0b0001_1011: {(1, 1, 1): 4, (0, 1, 1): 2, (1, 0, 1): 2},
    0b0001_1110: {(1, 0, 0): 4, (1, 1, 1): 4},
    0b0011_1100: {(1, 1, 0): 8},
    0b0110_1001: {(1, 1, 1): 4},
}
_CELLS_2D: dict[int, dict[tuple[int, ...], int]] = {
    0b0001: {(1, 1): 1},
    0b0011: {(1, 0): 2},
    0b0110: {(1, 1): 2},
}


_DENSE = 500_000  # points of both surfaces above which a distance transform is faster than a tree: measured


@dataclass(frozen=True)
class Surface:
    """*points* ``(N, dims)``: indices on a grid of the mask's spacing; *weights* ``(N,)``: area, or 1 each."""

    points: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """The distance from each piece of one surface to the nearest of the other, ascending, and the weights."""

    reference: NDArray[np.float64]
    reference_weights: NDArray[np.float64]
    prediction: NDArray[np.float64]
    prediction_weights: NDArray[np.float64]

    @property
    def _empty(self) -> int:
        """Return how many of the two masks are empty."""
        return (not len(self.reference)) + (not len(self.prediction))

    def hd(self) -> float:
        """Return the Hausdorff distance: the largest distance in either direction."""
        if self._empty:
            return 0.0 if self._empty == 2 else math.inf
        return float(max(self.reference[-1], self.prediction[-1]))

    def hd95(self) -> float:
        """Return the larger of both directions' 95th percentiles, weighted by area."""
        if self._empty:
            return 0.0 if self._empty == 2 else math.inf
        return max(
            _percentile(self.reference, self.reference_weights, 0.95),
            _percentile(self.prediction, self.prediction_weights, 0.95),
        )

    def hd95_pooled(self) -> float:
        """Return the 95th percentile of both directions' distances together, interpolated, without weights."""
        if self._empty:
            return 0.0 if self._empty == 2 else math.inf
        return float(np.percentile(np.concatenate([self.reference, self.prediction]), 95))

    def assd(self) -> float:
        """Return the average symmetric surface distance: the mean over both directions of the mean distance."""
        if self._empty:
            return 0.0 if self._empty == 2 else math.inf
        means = (
            np.sum(self.reference * self.reference_weights) / np.sum(self.reference_weights),
            np.sum(self.prediction * self.prediction_weights) / np.sum(self.prediction_weights),
        )
        return float(np.mean(means))

    def nsd(self, tolerance: float) -> float:
        """Return the normalised surface Dice: the fraction of both surfaces within *tolerance* of the other one."""
        if self._empty:
            return 1.0 if self._empty == 2 else 0.0
        near = (
            self.reference_weights[self.reference <= tolerance].sum()
            + self.prediction_weights[self.prediction <= tolerance].sum()
        )
        return float(near / (self.reference_weights.sum() + self.prediction_weights.sum()))

    def nsd_of_shares(self, tolerance: float) -> float:
        """Return the mean of the two directions' fractions, as panoptica computes it."""
        if self._empty:
            return 1.0 if self._empty == 2 else 0.0
        return float(np.mean([np.mean(self.reference <= tolerance), np.mean(self.prediction <= tolerance)]))


def surface_distances(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: tuple[float, ...] | None = None,
    *,
    border_voxels: bool = False,
) -> SurfaceDistances:
    """Measure masks ``(Z, Y, X)`` or ``(Y, X)`` with a *spacing* per axis (None: 1), by surfels or border voxels."""
    unit = spacing or (1.0,) * reference.ndim
    surfaces = [_border(mask) if border_voxels else _surfels(mask, unit) for mask in (reference, prediction)]
    return distances_between(surfaces[0], surfaces[1], unit)


def distances_between(reference: Surface, prediction: Surface, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Return the distances between two surfaces on one grid."""
    there, there_weights = _directed(reference, prediction, spacing)
    back, back_weights = _directed(prediction, reference, spacing)
    return SurfaceDistances(there, there_weights, back, back_weights)


def _directed(
    start: Surface, goal: Surface, spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not len(start.points):
        return np.zeros(0), np.zeros(0)
    if not len(goal.points):
        return np.full(len(start.points), np.inf), start.weights
    if len(start.points) + len(goal.points) > _DENSE:
        distances = _by_transform(start.points, goal.points, spacing)
    else:
        # The tree finds the neighbour; the distance is then computed from whole steps on the grid, so that a distance
        # that equals a tolerance is exactly that.
        _, nearest = KDTree(goal.points * spacing).query(start.points * spacing)
        steps = (start.points - goal.points[nearest]) * spacing
        distances = np.sqrt((steps * steps).sum(axis=1))
    order = np.lexsort((start.weights, distances))
    return distances[order], start.weights[order]


def _by_transform(start: NDArray[np.int64], goal: NDArray[np.int64], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Do the same by a distance transform of the box around both, which is faster for many points."""
    low = np.minimum(start.min(axis=0), goal.min(axis=0))
    high = np.maximum(start.max(axis=0), goal.max(axis=0))
    free = np.ones(high - low + 1, bool)
    free[tuple((goal - low).T)] = False
    distances: NDArray[np.float64] = ndimage.distance_transform_edt(free, sampling=spacing)[tuple((start - low).T)]
    return distances


def _percentile(distances: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    reached = np.cumsum(weights) / np.sum(weights)
    return float(distances[min(int(np.searchsorted(reached, share)), len(distances) - 1)])


def _surfels(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> Surface:
    box = bounding_box(mask)
    if box is None:
        return Surface(np.zeros((0, mask.ndim), np.int64), np.zeros(0))
    padded = np.pad(mask[box], 1).view(np.uint8)
    cells = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        part = padded[tuple(slice(c, c + n) for c, n in zip(corner, cells.shape, strict=True))]
        cells |= part << np.uint8(bit)
    found = np.flatnonzero((cells != 0) & (cells != 2 ** (2**mask.ndim) - 1))
    points = np.stack(np.unravel_index(found, cells.shape), axis=1) + [s.start for s in box]
    return Surface(points, _areas(spacing)[cells.ravel()[found]])


def _border(mask: NDArray[np.bool_]) -> Surface:
    box = bounding_box(mask)
    if box is None:
        return Surface(np.zeros((0, mask.ndim), np.int64), np.zeros(0))
    crop = mask[box]
    points = np.argwhere(crop & ~ndimage.binary_erosion(crop)) + [s.start for s in box]
    return Surface(points, np.ones(len(points)))


@lru_cache(maxsize=64)
def _areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area of the surface in a cell, by the bits of its occupied corners."""
    dims = len(spacing)
    part = 1 / 8 if dims == 3 else 1 / 2
    faces = np.prod(spacing) / np.array(spacing)
    areas = np.zeros(2 ** (2**dims))
    corners = list(itertools.product((0, 1), repeat=dims))
    for code, pieces in (_CELLS_3D if dims == 3 else _CELLS_2D).items():
        occupied = [corner for bit, corner in enumerate(corners) if code >> bit & 1]
        for order in itertools.permutations(range(dims)):
            area = sum(
                part * count * math.hypot(*(normal[a] * face for a, face in zip(order, faces, strict=True)))
                for normal, count in pieces.items()
            )
            for mirrored in itertools.product((0, 1), repeat=dims):
                turned = [tuple(c[a] ^ m for a, m in zip(order, mirrored, strict=True)) for c in occupied]
                same = sum(1 << corners.index(corner) for corner in turned)
                areas[same] = areas[len(areas) - 1 - same] = area
    return areas
