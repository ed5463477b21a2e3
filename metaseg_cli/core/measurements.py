"""How large a lesion is, as radiologists measure it (RANO-BM: Lin et al. 2015, Lancet Oncology 16:e270)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

# A measurable lesion (RANO-BM, Lin et al. 2015): its longest axial diameter is at least 10 mm and twice the distance of
# slices, the diameter perpendicular to it at least 5 mm, and it is visible on two axial slices or more.
MEASURABLE_MM = 10.0
MEASURABLE_PERPENDICULAR_MM = 5.0
MEASURABLE_SLICES = 2
MEASURABLE_SPACINGS = 2.0
_ROUNDING_MM = 1e-6  # 20 voxels of 0.5 mm are 10 mm, however floating-point numbers add up


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Lengths in mm, or in pixels where there is no spacing.

    ``longest`` is the longest diameter on any axial slice, ``perpendicular`` the longest one perpendicular to it on
    that ``slice``; ``feret`` the longest in space. ``slices`` are the first and the last that show the lesion,
    ``slice_spacing`` is the distance between their centres.
    """

    longest: float
    perpendicular: float
    slice: int
    feret: float
    slices: tuple[int, int]
    slice_spacing: float = 1.0

    @property
    def slice_count(self) -> int:
        """Return the number of axial slices from the first to the last that show the lesion."""
        return self.slices[1] - self.slices[0] + 1

    @property
    def measurable(self) -> bool:
        """Return whether RANO-BM would accept it as a target; lengths must be in mm."""
        longest = max(MEASURABLE_MM, MEASURABLE_SPACINGS * self.slice_spacing)
        return (
            self.longest >= longest - _ROUNDING_MM
            and self.perpendicular >= MEASURABLE_PERPENDICULAR_MM - _ROUNDING_MM
            and self.slice_count >= MEASURABLE_SLICES
        )


def measure(lesion: NDArray[np.bool_], spacing: tuple[float, float, float] | None = None) -> Measurement:
    """Measure one lesion ``(Z, Y, X)`` whose slices are axial; slice numbers count from its first. Raises ValueError.

    Its outline runs midway between the voxels inside and outside, so that a voxel is as long as its spacing.
    """
    if not lesion.any():
        raise ValueError("an empty mask has no size")
    unit = spacing or (1.0, 1.0, 1.0)
    shown = np.flatnonzero(lesion.any(axis=(1, 2)))
    longest, perpendicular, at = 0.0, 0.0, int(shown[0])
    for z in shown:
        length, width = _diameters(_outline(lesion[z], unit[1:]))
        if length > longest:
            longest, perpendicular, at = length, width, int(z)
    space = _outline(lesion, unit) if len(lesion) > 1 else _outline(lesion[0], unit[1:])
    return Measurement(
        longest=longest,
        perpendicular=perpendicular,
        slice=at,
        feret=float(pdist(space[ConvexHull(space).vertices]).max()),
        slices=(int(shown[0]), int(shown[-1])),
        slice_spacing=unit[0],
    )


def sum_of_diameters(measurements: list[Measurement], targets: int = 5) -> float:
    """Return the sum of the longest diameters of up to *targets* measurable lesions, in mm, as RANO-BM has it."""
    return float(sum(sorted((m.longest for m in measurements if m.measurable), reverse=True)[:targets]))


def _outline(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return points ``(N, dims)`` midway between each foreground voxel and each face neighbour outside."""
    padded = np.pad(mask, 1)
    points = []
    for axis in range(mask.ndim):
        step = np.diff(padded.view(np.int8), axis=axis)
        edges = np.argwhere(step != 0).astype(float)
        edges[:, axis] += 0.5
        points.append(edges)
    return np.concatenate(points) * spacing


def _diameters(outline: NDArray[np.float64]) -> tuple[float, float]:
    """Return the longest diameter of points ``(N, 2)`` and the longest chord of their hull perpendicular to it."""
    corners = outline[ConvexHull(outline).vertices]
    distances = squareform(pdist(corners))
    i, j = np.unravel_index(int(distances.argmax()), distances.shape)
    longest = float(distances[i, j])
    along = (corners[j] - corners[i]) / longest
    u = (corners - corners[i]) @ along
    v = (corners - corners[i]) @ np.array([-along[1], along[0]])
    # The hull's width is a concave function of u, greatest at a corner; both of its sides are chains from i to j.
    sides = []
    for side in (v >= 0, v <= 0):
        order = np.argsort(u[side], kind="stable")
        sides.append(np.interp(u, u[side][order], v[side][order]))
    return longest, float(np.max(sides[0] - sides[1]))
