"""From the matrix in a file's header to spacing, origin and direction; grids without right angles are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.errors import InputError

_SHEAR = 0.02  # cosine between axes: up to this a matrix is a rounded rotation …
_ROUNDING = 1e-3  # … and up to this it needs no note
_SIZES_MM = (1e-3, 1e3)  # voxels outside this are an error in the header


def grid_of(
    affine: NDArray[np.float64], shape: tuple[int, int, int], path: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, ...], list[str]]:
    """Split a 4×4 matrix into spacing (z, y, x), origin (x, y, z) and direction (row-major 3×3), in mm, with notes.

    *shape* is ``(Z, Y, X)``: a single slice whose third axis is missing gets the normal of the other two. Raises
    InputError for a matrix that does not say where voxels lie, or whose axes are sheared.
    """
    matrix = np.array(affine, dtype=float)
    if not np.isfinite(matrix).all():
        raise _nowhere(path)
    notes: list[str] = []
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if shape[0] == 1 and lengths[2] == 0 and lengths[:2].all():
        normal = np.cross(matrix[:3, 0], matrix[:3, 1])
        if normal.any():
            matrix[:3, 2] = normal / np.linalg.norm(normal)
            lengths[2] = 1.0
            notes.append("one slice without a thickness: taken as 1 mm")
    if not lengths.all():
        raise _nowhere(path)
    if lengths.min() < _SIZES_MM[0] or lengths.max() > _SIZES_MM[1]:
        sizes = "×".join(f"{length:g}" for length in lengths)
        raise InputError(f"its voxels would be {sizes} mm", where=path, remedy="correct its header")
    cosines = matrix[:3, :3] / lengths
    shear = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if not shear <= _SHEAR:
        raise InputError(
            f"its axes are not at right angles (sheared by {shear:.2f})",
            where=path,
            remedy="resample it to a straight grid first",
        )
    if shear > _ROUNDING:
        notes.append(f"its axes are not quite at right angles (sheared by {shear:.4f}): taken as rounded")
    if shear > 1e-6:
        u, _, v = np.linalg.svd(cosines)
        cosines = u @ v
    x, y, z = (float(length) for length in lengths)
    ox, oy, oz = (float(value) for value in matrix[:3, 3])
    return (z, y, x), (ox, oy, oz), tuple(float(value) for value in cosines.ravel()), notes


def _nowhere(path: Path) -> InputError:
    return InputError(
        "its header does not say where it lies", where=path, remedy="convert it again from the original images"
    )
