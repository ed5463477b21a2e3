"""From a scan to what a network sees, and from a network's answer back to the scan's voxels. Free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.detection import label_lesions
from metaseg_cli.core.images import Reorientation, Volume, reorient, to_canonical
from metaseg_cli.core.intensity import Normalisation, as_float32, head_mask, normalise, normalise_in_place
from metaseg_cli.core.typed_json import build

_MARGIN = 4  # voxels around the head that the crop leaves
_SAME_SPACING = 0.01  # a spacing this near the target, relatively, is not resampled
_ANISOTROPIC = 3.0  # nnU-Net's limit (Isensee et al. 2021)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How scans become network input; kept in the prepared folder and in the model file.

    *spacing_mm* is the grid's ``(z, y, x)``; None keeps every scan's own. *oriented* scans are brought to the canonical
    orientation and cropped to the head; pictures are not.
    """

    normalisation: Normalisation = "case"
    oriented: bool = False
    spacing_mm: tuple[float, float, float] | None = None

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Preprocessing:
        """Invert ``record``, also after JSON."""
        return build(cls, json.loads(json.dumps(values)))

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GridMapping:
    """Where the network's grid lies in the scan: reoriented, then cropped to ``box``, then resampled to ``shape``."""

    reorientation: Reorientation | None
    reoriented_shape: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)`` between crop and resampling."""
        z, y, x = (stop - start for start, stop in self.box)
        return (z, y, x)

    @property
    def cropped_spacing_mm(self) -> tuple[float, float, float] | None:
        """The scan's own ``(z, y, x)`` in the canonical orientation: before resampling."""
        if self.spacing_mm is None:
            return None
        z, y, x = (s * n / c for s, n, c in zip(self.spacing_mm, self.shape, self.cropped_shape, strict=True))
        return (z, y, x)

    @property
    def extent_mm(self) -> tuple[float, float, float] | None:
        """``(z, y, x)`` of the crop: the head, as far as the scan shows it."""
        if self.spacing_mm is None:
            return None
        z, y, x = (s * n for s, n in zip(self.spacing_mm, self.shape, strict=True))
        return (z, y, x)

    def label(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map a label map ``(Z, Y, X)`` of the scan to the network's grid."""
        (z0, z1), (y0, y1), (x0, x1) = self.box
        straight = self.reorientation.apply(label) if self.reorientation else label
        return resample_label(straight[z0:z1, y0:y1, x0:x1], self.shape, self.spacing_mm)

    def invert(self, values: NDArray[np.float32], outside: float = 0.0) -> NDArray[np.float32]:
        """Map numbers ``(R, Z, Y, X)`` from the network's grid to the scan's; *outside* fills what was cropped away."""
        cropped = values
        if self.cropped_shape != self.shape:
            cropped = resample(values, self.cropped_shape, self.spacing_mm, order=1)
        (z0, z1), (y0, y1), (x0, x1) = self.box
        if self.cropped_shape == self.reoriented_shape:
            whole = cropped
        else:
            whole = np.full((values.shape[0], *self.reoriented_shape), outside, np.float32)
            whole[:, z0:z1, y0:y1, x0:x1] = cropped
        return np.ascontiguousarray(self.reorientation.invert(whole) if self.reorientation else whole)


def preprocess(
    volume: Volume, settings: Preprocessing, keep: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.float32], GridMapping]:
    """Turn *volume* into network input ``(C, Z, Y, X)``, and return how that grid maps to the scan's.

    Voxels where *keep* ``(Z, Y, X)`` is not zero (the mask, in training) are never cropped away.
    """
    if not settings.oriented:
        image = normalise(volume.array, settings.normalisation)
        z, y, x = volume.shape
        box = ((0, z), (0, y), (0, x))
        return image, GridMapping(
            reorientation=None, reoriented_shape=(z, y, x), box=box, shape=(z, y, x), spacing_mm=volume.spacing_mm
        )
    reorientation = to_canonical(volume)
    straight = reorient(volume, reorientation)
    image = as_float32(straight.array)
    head = head_mask(image)
    box = _box_around(head if keep is None else head | (reorientation.apply(keep) > 0))
    inside = (slice(*box[0]), slice(*box[1]), slice(*box[2]))
    image = np.ascontiguousarray(image[(slice(None), *inside)])
    normalise_in_place(image, head[inside])
    shape = _target_shape(image.shape[1:], straight.spacing_mm, settings.spacing_mm)
    spacing = straight.spacing_mm
    if shape != image.shape[1:] and spacing is not None:
        image = resample(image, shape, spacing, order=3)
        new = [s * (b - a) / n for s, (a, b), n in zip(spacing, box, shape, strict=True)]
        spacing = (new[0], new[1], new[2])
    mapping = GridMapping(
        reorientation=reorientation, reoriented_shape=straight.shape, box=box, shape=shape, spacing_mm=spacing
    )
    return image, mapping


def _box_around(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    edges = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, mask.shape[axis])
        edges.append((max(0, low - _MARGIN), min(mask.shape[axis], high + _MARGIN)))
    return (edges[0], edges[1], edges[2])


def _target_shape(
    shape: tuple[int, ...], spacing: tuple[float, float, float] | None, wanted: tuple[float, float, float] | None
) -> tuple[int, int, int]:
    z, y, x = shape
    if spacing is None or wanted is None:
        return (z, y, x)
    sizes = [
        n if abs(s / w - 1) <= _SAME_SPACING or n == 1 else max(1, round(n * s / w))
        for n, s, w in zip(shape, spacing, wanted, strict=True)
    ]
    return (sizes[0], sizes[1], sizes[2])


# -- resampling ------------------------------------------------------------------------------------------------------


def is_anisotropic(spacing_mm: tuple[float, float, float] | None) -> bool:
    """Return whether slices lie more than three times as far apart as the pixels of the coarser in-plane axis."""
    return spacing_mm is not None and spacing_mm[0] > _ANISOTROPIC * max(spacing_mm[1:])


def resample(
    values: NDArray[np.float32], shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None, order: int
) -> NDArray[np.float32]:
    """Resample ``(C, Z, Y, X)`` to *shape* over the same field of view.

    Splines of *order* along each axis (1 linear, 3 cubic); the nearest slice through the plane where the voxels, of
    *spacing_mm*, are anisotropic: between thick slices nothing is known.
    """
    result = values
    for axis, (old, new) in enumerate(zip(values.shape[1:], shape, strict=True)):
        if old != new:
            along = 0 if axis == 0 and is_anisotropic(spacing_mm) else order
            # One matrix per axis: a spline is linear in its samples, and a matrix product is what processors do best.
            product = np.tensordot(_weights(old, new, along), result, axes=(1, axis + 1))
            result = np.moveaxis(product, 0, axis + 1)
    return np.ascontiguousarray(result)


@lru_cache(maxsize=64)
def _weights(old: int, new: int, order: int) -> NDArray[np.float32]:
    """Return scipy's spline of *order*, edges aligned, as a matrix ``(new, old)``; smoothed first when it shrinks."""
    samples = np.eye(old)
    factor = old / new
    if factor > 1 and order > 0:
        samples = ndimage.gaussian_filter1d(samples, (factor - 1) / 2, axis=0, mode="nearest")
    weights = ndimage.zoom(samples, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return np.asarray(weights, dtype=np.float32)


def resample_label(
    label: NDArray[np.uint8], shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None
) -> NDArray[np.uint8]:
    """Resample a label map ``(Z, Y, X)``: each label is interpolated, and the strongest one taken.

    A component that would vanish (a lesion smaller than the new voxels) keeps the voxel at its centre.
    """
    if label.shape == shape:
        return np.ascontiguousarray(label)
    values = [int(v) for v in np.unique(label)]
    if values == [0]:
        return np.zeros(shape, np.uint8)
    strength = np.stack([resample((label == v).astype(np.float32)[None], shape, spacing_mm, 1)[0] for v in values])
    result = np.array(values, np.uint8)[strength.argmax(axis=0)]
    _keep_small_lesions(label, result)
    return result


def _keep_small_lesions(label: NDArray[np.uint8], resampled: NDArray[np.uint8]) -> None:
    """Set the centre voxel of each component of *label* that vanished from *resampled*."""
    labels, _ = label_lesions(label)
    scale = np.array(resampled.shape) / label.shape
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        low = np.floor([s.start * f for s, f in zip(box, scale, strict=True)]).astype(int)
        high = np.ceil([s.stop * f for s, f in zip(box, scale, strict=True)]).astype(int)
        if not resampled[tuple(slice(a, max(b, a + 1)) for a, b in zip(low, high, strict=True))].any():
            inside = np.argwhere(labels[box] == number) + [s.start for s in box]
            middle = inside[len(inside) // 2]
            to = np.minimum(((middle + 0.5) * scale).astype(int), np.array(resampled.shape) - 1)
            resampled[tuple(to)] = label[tuple(middle)]
