"""Where voxels lie in the patient: reorienting grids and back, comparing and matching them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError

_SAME_PLACE = 0.1  # of a voxel: headers round positions, and a mask may not move visibly
_MOST_VOXELS = 2**29  # of a grid that is extended: a misplaced mask must not fill the memory
_COVERAGE_POINTS = 32  # per axis, which gives the covered share to about 3 %


@dataclasses.dataclass(frozen=True)
class Reorientation:
    """A permutation and reversal of the axes of ``(…, Z, Y, X)``.

    Axis *i* of the result is axis ``axes[i]`` of the original; then the axes in ``flipped`` are reversed.
    """

    axes: tuple[int, int, int]
    flipped: tuple[int, ...]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Reorient *array* ``(…, Z, Y, X)``; returns a view."""
        lead = array.ndim - 3
        reoriented = array.transpose(*range(lead), *(lead + a for a in self.axes))
        return np.flip(reoriented, tuple(lead + a for a in self.flipped))

    def invert(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo ``apply``; returns a view."""
        lead = array.ndim - 3
        straight = np.flip(array, tuple(lead + a for a in self.flipped))
        return straight.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.axes)))


def to_canonical(volume: Volume) -> Reorientation:
    """Reorientation to LPS+: x to the patient's left, y to the back, z to the head, as nearly as axes allow."""
    direction = np.array(volume.direction).reshape(3, 3)
    # best[j]: the index axis (0 x, 1 y, 2 z) that runs most along patient axis j
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(direction[j, p[j]]) for j in range(3)))
    axes = tuple(2 - best[2 - a] for a in range(3))
    flipped = tuple(a for a in range(3) if direction[2 - a, best[2 - a]] < 0)
    return Reorientation(axes=(axes[0], axes[1], axes[2]), flipped=flipped)


def axial_view(volume: Volume) -> Reorientation | None:
    """Reorientation to axial slices as people look at them; None for pictures, which stay as they are stored."""
    return None if is_picture(volume.source) or volume.shape[0] == 1 else to_canonical(volume)


def reorient(volume: Volume, reorientation: Reorientation) -> Volume:
    """Reorient *volume*; every voxel stays where it was in the patient."""
    affine = volume.affine
    columns = [affine[:3, 2 - reorientation.axes[2 - k]] for k in range(3)]
    origin = affine[:3, 3].copy()
    spacing = volume.spacing_mm or (1.0, 1.0, 1.0)
    size = [volume.shape[reorientation.axes[2 - k]] for k in range(3)]
    for axis in reorientation.flipped:
        k = 2 - axis
        origin += columns[k] * (size[k] - 1)
        columns[k] = -columns[k]
    new_spacing = tuple(spacing[a] for a in reorientation.axes)
    direction = np.column_stack([c / s for c, s in zip(columns, reversed(new_spacing), strict=True)])
    return dataclasses.replace(
        volume,
        array=reorientation.apply(volume.array),
        spacing_mm=None if volume.spacing_mm is None else (new_spacing[0], new_spacing[1], new_spacing[2]),
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(v) for v in direction.ravel()),
        nifti_header=None,
    )


def corners_mm(volume: Volume) -> NDArray[np.float64]:
    """Return the patient coordinates of the eight corner voxels' centres, ``(8, 3)``, in order of their indices."""
    z, y, x = volume.shape
    index = np.array([(i, j, k, 1) for k in (0, z - 1) for j in (0, y - 1) for i in (0, x - 1)], dtype=float)
    return np.asarray((index @ volume.affine.T)[:, :3])


def distance_mm(a: Volume, b: Volume) -> float:
    """Return the largest distance between corresponding corner voxels of two grids of one shape."""
    return float(np.linalg.norm(corners_mm(a) - corners_mm(b), axis=1).max())


def same_grid(a: Volume, b: Volume) -> bool:
    """Return whether every voxel of *a* is within a tenth of a voxel of *b*'s; pictures are compared by size alone."""
    if a.shape != b.shape:
        return False
    if a.spacing_mm is None or b.spacing_mm is None:
        return True
    return distance_mm(a, b) <= _SAME_PLACE * min(a.spacing_mm)


def on_grid_of(mask: Volume, image: Volume) -> Volume | None:
    """Return *mask* on *image*'s grid where its voxels are some of the image's, perhaps in another order; else None.

    A mask in another orientation, or cropped, or with only some slices (DICOM SEG), loses nothing by this.
    """
    if same_grid(mask, image):
        return mask
    placed = _on_lattice_of(mask, image)
    if placed is None:
        return None
    array, start = placed
    stop = start + array.shape[1:]
    if (stop <= 0).any() or (start >= np.array(image.shape)).any():
        return None
    inside = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(start, stop, image.shape, strict=True))
    taken = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, start, strict=True))
    whole = np.zeros((array.shape[0], *image.shape), array.dtype)
    whole[(slice(None), *inside)] = array[(slice(None), *taken)]
    if np.count_nonzero(whole) < np.count_nonzero(array):
        return None  # some of it lies outside the image
    return _as_mask_on(image, whole, mask)


def on_one_grid(mask: Volume, other: Volume) -> tuple[Volume, Volume] | None:
    """Return both masks on the smallest grid that holds both, in *other*'s orientation; None without a common lattice.

    A mask may hold only the slices, or the box, of its lesions: what it does not reach is background, and nothing of
    either is cut off.
    """
    if same_grid(mask, other):
        return mask, other
    placed = _on_lattice_of(mask, other)
    if placed is None:
        return None
    array, start = placed
    before = np.maximum(-start, 0)
    whole = extended(other, before, np.maximum(start + array.shape[1:] - other.shape, 0))
    if whole is None:
        return None
    values = np.zeros((array.shape[0], *whole.shape), array.dtype)
    inside = tuple(slice(a, a + n) for a, n in zip(start + before, array.shape[1:], strict=True))
    values[(slice(None), *inside)] = array
    return _as_mask_on(whole, values, mask), whole


def extended(volume: Volume, before: NDArray[np.int64], after: NDArray[np.int64]) -> Volume | None:
    """Return *volume* padded with zeros by *before* and *after* voxels (z, y, x); None where it would be too large."""
    if not before.any() and not after.any():
        return volume
    shape = np.array(volume.shape, dtype=float) + before + after
    if shape.prod() > max(_MOST_VOXELS, np.prod(volume.shape)):
        return None
    sides = [(0, 0), *((int(a), int(b)) for a, b in zip(before, after, strict=True))]
    corner = volume.affine @ np.array([*(-before[::-1]), 1.0])
    return dataclasses.replace(
        volume,
        array=np.pad(volume.array, sides),
        origin_mm=(float(corner[0]), float(corner[1]), float(corner[2])),
        nifti_header=None,
    )


def _on_lattice_of(mask: Volume, image: Volume) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    """Return *mask*'s voxels in *image*'s orientation, and the index (z, y, x) of the first; None between voxels."""
    if mask.spacing_mm is None or image.spacing_mm is None:
        return None
    to = np.linalg.inv(image.affine) @ mask.affine  # mask index → image index
    for k, size in enumerate(reversed(mask.shape)):
        if size == 1:
            to[:3, k] /= np.abs(to[:3, k]).max()  # how thick a single slice is does not matter
    steps = np.round(to[:3, :3])
    if not (np.abs(steps).sum(axis=0) == 1).all() or not (np.abs(steps).sum(axis=1) == 1).all():
        return None
    mine = (np.linalg.inv(image.affine) @ np.column_stack([corners_mm(mask), np.ones(8)]).T)[:3].T  # (8, 3) x y z
    if np.abs(mine - np.round(mine)).max() > _SAME_PLACE:
        return None
    source = [int(np.abs(steps[j]).argmax()) for j in range(3)]  # image axis j runs along mask axis source[j]
    axes = tuple(2 - source[2 - a] for a in range(3))
    flipped = tuple(a for a in range(3) if steps[2 - a, source[2 - a]] < 0)
    array = Reorientation(axes=(axes[0], axes[1], axes[2]), flipped=flipped).apply(mask.array)
    return array, np.round(mine.min(axis=0)).astype(np.int64)[::-1]


def _as_mask_on(grid: Volume, array: NDArray[Any], mask: Volume) -> Volume:
    return dataclasses.replace(
        grid,
        array=array,
        source=mask.source,
        notes=mask.notes,
        exif_orientation=mask.exif_orientation,
        segments=mask.segments,
    )


def coverage(volume: Volume, grid: Volume) -> float:
    """Return the share of *grid*'s box that lies inside *volume*'s field of view, sampled on 32³ points."""
    count = _COVERAGE_POINTS
    fractions = [(np.arange(count) + 0.5) / count * n - 0.5 for n in reversed(grid.shape)]
    x, y, z = np.meshgrid(*fractions, indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), z.ravel(), np.ones(x.size)])
    index = (np.linalg.inv(volume.affine) @ grid.affine @ points)[:3]
    size = np.array(volume.shape[::-1])[:, None]
    return float(((index >= -0.5) & (index <= size - 0.5)).all(axis=0).mean())


def resample(volume: Volume, grid: Volume, *, labels: bool = False) -> Volume:
    """Resample *volume* to *grid*'s voxels by linear interpolation; its darkest value where it was not scanned.

    *labels* take the nearest voxel's, and 0 where there is none.
    """
    import SimpleITK as sitk

    if labels:
        return _placed_on(grid, volume, [_nearest(channel, volume, grid) for channel in volume.array])
    channels = []
    for channel in volume.array:
        image = as_itk(channel.astype(np.float32), volume)
        target = as_itk(np.zeros(grid.shape, np.uint8), grid)
        fill = float(channel.min())
        channels.append(sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear, fill)))
    return _placed_on(grid, volume, channels)


def _nearest(labels: NDArray[np.uint8], volume: Volume, grid: Volume) -> NDArray[np.uint8]:
    import SimpleITK as sitk

    image, target = as_itk(labels, volume), as_itk(np.zeros(grid.shape, np.uint8), grid)
    placed: NDArray[np.uint8] = sitk.GetArrayFromImage(
        sitk.Resample(image, target, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    )
    return placed


def _placed_on(grid: Volume, volume: Volume, channels: Sequence[NDArray[Any]]) -> Volume:
    return dataclasses.replace(
        volume,
        array=np.stack(channels),
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        nifti_header=None,
    )


_LEAST_COVERAGE = 0.25  # share of a grid's field of view; a scan that covers less is refused
_WHOLE_COVERAGE = 0.95  # a scan that covers less gets a note


def resample_to(volume: Volume, grid: Volume) -> Volume:
    """Return *volume* on *grid*, placed by its geometry alone, with a note if it was resampled.

    Raises InputError when it covers too little of the grid, or has no spacing.
    """
    if same_grid(volume, grid):
        return volume
    if volume.spacing_mm is None or grid.spacing_mm is None:
        raise InputError(
            f"{describe_difference(volume, grid)}, and without spacing it cannot be placed",
            where=volume.source,
            remedy="bring the sequences of a case onto one grid first",
        )
    share = coverage(volume, grid)
    if share < _LEAST_COVERAGE:
        raise InputError(
            f"its field of view covers only {share:.0%} of {grid.source.name}'s",
            where=volume.source,
            remedy="register it first, or leave this sequence out",
        )
    note = "a sequence lay on another grid: resampled onto the first one's"
    if share < _WHOLE_COVERAGE:
        note = f"a sequence covers {share:.0%} of the first one's field of view: resampled onto it"
    resampled = resample(volume, grid)
    return dataclasses.replace(resampled, notes=(*volume.notes, note))


def as_itk(array: NDArray[Any], like: Volume) -> Any:
    """Return ``(Z, Y, X)`` as a SimpleITK image on *like*'s grid."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    if like.spacing_mm is not None:
        image.SetSpacing(like.spacing_mm[::-1])
    image.SetOrigin(like.origin_mm)
    image.SetDirection(like.direction)
    return image


def describe_difference(a: Volume, b: Volume) -> str:
    """Describe in a few words, with millimetres, why two grids differ; *a* is the wrong one."""
    if a.shape != b.shape:
        return f"its size ({size_text(a.shape)}) is not {b.source.name}'s ({size_text(b.shape)})"
    assert a.spacing_mm is not None
    assert b.spacing_mm is not None
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-2):
        return (
            f"its spacing ({spacing_text(a.spacing_mm)} mm) is not {b.source.name}'s ({spacing_text(b.spacing_mm)} mm)"
        )
    apart = f"its corners lie up to {distance_mm(a, b):.1f} mm from {b.source.name}'s"
    ours, theirs = np.array(a.direction).reshape(3, 3), np.array(b.direction).reshape(3, 3)
    names = ("left and right", "front and back", "top and bottom")
    mirrored = [names[int(np.abs(theirs[:, k]).argmax())] for k in range(3) if ours[:, k] @ theirs[:, k] < -0.9]
    return f"{' and '.join(mirrored)} flipped: {apart}" if mirrored else apart


def size_text(shape: tuple[int, ...]) -> str:
    """Format ``(Z, Y, X)`` as X×Y×Z, or X×Y for one slice."""
    z, y, x = shape
    return f"{x}×{y}" if z == 1 else f"{x}×{y}×{z}"


def spacing_text(spacing_mm: tuple[float, ...]) -> str:
    """Format ``(z, y, x)`` as X×Y×Z with two decimals."""
    return "×".join(f"{s:.2f}" for s in reversed(spacing_mm))
