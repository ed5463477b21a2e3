"""Lesions: connected components, and what each of them is like."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.metrics.surfaces import bounding_box

_AT_ONCE = 4_000_000  # voxels whose coordinates are held in memory


def label_lesions(mask: NDArray[Any], neighbours: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Components of ``(Z, Y, X)`` by 26 *neighbours* (or 6 or 18), of ``(Y, X)`` by 8 (or 4); numbered from 1."""
    foreground = mask != 0
    box = bounding_box(foreground)
    labels = np.zeros(mask.shape, np.int32)
    if box is None:
        return labels, 0
    # Lesions are few and small: labelling the box around them takes a fraction of the whole volume's time.
    labels[box], count = ndimage.label(foreground[box], structure=neighbourhood(mask.ndim, neighbours))
    return labels, int(count)


def neighbourhood(dims: int, neighbours: int | None = None) -> NDArray[np.bool_]:
    """The element of the *neighbours* (6, 18, 26; 4, 8 in 2D) of a voxel; None: all."""
    steps = {None: dims, 6: 1, 18: 2, 26: 3, 4: 1, 8: 2}[neighbours]
    element: NDArray[np.bool_] = ndimage.generate_binary_structure(dims, min(steps, dims))
    return element


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected lesion. Lengths are in mm when the scan has a spacing, else in pixels."""

    number: int
    voxels: int
    volume_mm3: float | None
    equivalent_diameter: float  # of the sphere (2D: circle) of the same size
    centroid_voxel: tuple[float, float, float]  # z, y, x
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and one past the last index per axis
    confidence: float | None  # mean probability over the lesion


def equivalent_diameter(size: float, *, flat: bool) -> float:
    """Of the sphere of volume *size*, or, *flat*, of the circle of area *size*."""
    return 2 * math.sqrt(size / math.pi) if flat else (6 * size / math.pi) ** (1 / 3)


def describe_lesions(
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float] | None = None,
    probability: NDArray[np.floating[Any]] | None = None,
) -> list[Lesion]:
    """The lesions of ``(Z, Y, X)`` or ``(Y, X)``, largest first, numbered from 1; *spacing_mm* is always (z, y, x)."""
    return find_lesions(mask, spacing_mm, probability)[1]


def find_lesions(
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float] | None = None,
    probability: NDArray[np.floating[Any]] | None = None,
) -> tuple[NDArray[np.int32], list[Lesion]]:
    """The same, with a map ``(Z, Y, X)`` of their numbers."""
    labels, count = label_lesions(mask if mask.ndim == 3 else mask[None])
    ranked = sorted(describe_labels(labels, count, spacing_mm, probability), key=lambda lesion: -lesion.voxels)
    number = np.zeros(count + 1, np.int32)
    number[[lesion.number for lesion in ranked]] = np.arange(1, count + 1)
    return number[labels], [replace(lesion, number=n) for n, lesion in enumerate(ranked, start=1)]


def describe_labels(
    labels: NDArray[np.int32],
    count: int,
    spacing_mm: tuple[float, float, float] | None = None,
    probability: NDArray[np.floating[Any]] | None = None,
) -> list[Lesion]:
    """The lesions 1 … *count* of a label map ``(Z, Y, X)``, in their order."""
    if not count:
        return []
    sizes, sums = np.zeros(count, np.int64), np.zeros((3, count))
    confidence = None if probability is None else np.zeros(count)
    slab = max(1, _AT_ONCE // labels[0].size)
    for first in range(0, len(labels), slab):
        part = labels[first : first + slab]
        where = part.nonzero()
        owner = part[where] - 1
        here = np.bincount(owner, minlength=count)
        sizes += here
        sums += [np.bincount(owner, weights=axis, minlength=count) for axis in where]
        sums[0] += first * here
        if confidence is not None and probability is not None:
            values = probability.reshape(labels.shape)[first : first + slab][where]
            confidence += np.bincount(owner, weights=values, minlength=count)
    centroids = (sums / sizes).T
    voxel = math.prod(spacing_mm) if spacing_mm else 1.0
    area = voxel / spacing_mm[0] if spacing_mm else 1.0
    flat = labels.shape[0] == 1
    lesions = []
    for i, place in enumerate(ndimage.find_objects(labels, count)):
        n = int(sizes[i])
        z, y, x = (float(c) for c in centroids[i])
        in_z, in_y, in_x = ((int(s.start), int(s.stop)) for s in place)
        lesions.append(
            Lesion(
                number=i + 1,
                voxels=n,
                volume_mm3=n * voxel if spacing_mm else None,
                equivalent_diameter=equivalent_diameter(n * (area if flat else voxel), flat=flat),
                centroid_voxel=(z, y, x),
                box=(in_z, in_y, in_x),
                confidence=None if confidence is None else float(confidence[i] / n),
            )
        )
    return lesions
