"""Lesions as connected components: where they are, what each is like, and which overlap. Free of torch.

What counts as one lesion, its confidence, the size classes and the score by which models are selected are defined here
and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_VOXELS_AT_ONCE = 4_000_000  # whose coordinates are in memory together: about 100 MB


def selection_score(dice: float, lesion_f1: float, small_lesion_recall: float) -> float:
    """Return the score by which epochs and depths are selected: the mean of Dice, lesion F1 and the small ones' recall.

    *small_lesion_recall* is that of the smaller half of the lesions: a few large ones decide Dice, all count alike in
    F1, and those that are missed are small.
    """
    return (dice + lesion_f1 + small_lesion_recall) / 3


@dataclass(frozen=True)
class SizeRange:
    """Equivalent diameters from *low* up to, but without, *high*, in mm (pixels where there is no spacing)."""

    low: float
    high: float

    def __contains__(self, diameter: float) -> bool:
        return self.low <= diameter < self.high

    def __str__(self) -> str:
        if self.low == 0:
            return f"<{self.high:g}"
        return f"≥{self.low:g}" if math.isinf(self.high) else f"{self.low:g}–{self.high:g}"


# 3 mm is about three voxels of a usual scan; 10 mm is RANO-BM's smallest measurable diameter, 5 mm what it allows with
# slices of at most 1.5 mm (Lin et al. 2015).
SIZE_CLASSES = (SizeRange(0, 3), SizeRange(3, 5), SizeRange(5, 10), SizeRange(10, math.inf))


def smaller_half(sizes: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return which of *sizes* ``(n,)`` belong to the smaller half: up to their median."""
    return sizes <= np.median(sizes) if len(sizes) else np.zeros(0, bool)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the smallest box around the foreground, None when there is none."""
    box = []
    for axis in range(mask.ndim):
        line = np.asarray(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not line.any():
            return None
        box.append(slice(int(line.argmax()), line.size - int(line[::-1].argmax())))
    return tuple(box)


def label_lesions(
    mask: NDArray[Any], neighbours: int | None = None, *, per_slice: bool = False
) -> tuple[NDArray[np.int32], int]:
    """Number the components of ``(Z, Y, X)`` by 26 *neighbours* (or 6 or 18), of ``(Y, X)`` by 8 (or 4), from 1.

    *per_slice*: the slices of ``(Z, Y, X)`` are pictures of their own, and so are their components (8 neighbours).
    """
    foreground = mask != 0
    box = bounding_box(foreground)
    labels = np.zeros(mask.shape, np.int32)
    if box is None:
        return labels, 0
    # Lesions are few and small: labelling the box around them takes a fraction of the whole volume's time.
    element = neighbourhood(mask.ndim, neighbours)
    if per_slice and mask.ndim == 3:
        element[[0, 2]] = False
    labels[box], count = ndimage.label(foreground[box], structure=element)
    return labels, int(count)


def neighbourhood(dims: int, neighbours: int | None = None) -> NDArray[np.bool_]:
    """Return the structuring element of 6, 18 or 26 *neighbours* (2D: 4 or 8); None: all."""
    steps = {None: dims, 6: 1, 18: 2, 26: 3, 4: 1, 8: 2}[neighbours]
    element: NDArray[np.bool_] = ndimage.generate_binary_structure(dims, min(steps, dims))
    return element


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected lesion. Lengths are in mm when the scan has a spacing, else in pixels.

    ``confidence`` is the mean probability over its voxels.
    """

    number: int
    voxels: int
    volume_mm3: float | None
    equivalent_diameter: float  # of the sphere (2D: circle) of the same size
    centroid_voxel: tuple[float, float, float]  # z, y, x
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and one past the last index per axis
    confidence: float | None


def equivalent_diameter(size: float, *, flat: bool) -> float:
    """Return the diameter of the sphere of volume *size*, or, *flat*, of the circle of area *size*."""
    return 2 * math.sqrt(size / math.pi) if flat else (6 * size / math.pi) ** (1 / 3)


def describe_lesions(
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float] | None = None,
    probability: NDArray[np.floating[Any]] | None = None,
) -> list[Lesion]:
    """Return the lesions of ``(Z, Y, X)`` or ``(Y, X)``, largest first, numbered from 1; *spacing_mm* is (z, y, x)."""
    return find_lesions(mask, spacing_mm, probability)[1]


def find_lesions(
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float] | None = None,
    probability: NDArray[np.floating[Any]] | None = None,
) -> tuple[NDArray[np.int32], list[Lesion]]:
    """Return a map ``(Z, Y, X)`` of the numbers of the lesions, and the lesions, largest first."""
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
    """Return the lesions 1 … *count* of a label map ``(Z, Y, X)``, in their order."""
    if not count:
        return []
    sizes, sums = np.zeros(count, np.int64), np.zeros((3, count))
    confidence = None if probability is None else np.zeros(count)
    slab = max(1, _VOXELS_AT_ONCE // labels[0].size)
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


def overlaps(first: NDArray[np.int32], second: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which components of two label maps share voxels, ``(n, 2)`` numbers in order, and how many, ``(n,)``."""
    both = (first > 0) & (second > 0)
    a, b = first[both].astype(np.int64), second[both].astype(np.int64)
    base = int(b.max(initial=0)) + 1
    keys, voxels = np.unique(a * base + b, return_counts=True)
    return np.column_stack(np.divmod(keys, base)), voxels.astype(np.int64)


@dataclass(frozen=True)
class ComponentValues:
    """Of the components 1 … n of a mask, what post-processing decides by.

    ``logit_confidence`` is the sigmoid of the mean logit. Unlike ``Lesion.confidence``, the mean probability, it moves
    with the thresholds when probabilities are calibrated: dividing all logits by a temperature divides their mean.
    """

    voxels: NDArray[np.int64]
    peak: NDArray[np.float32]  # highest probability
    logit_confidence: NDArray[np.float64]


def component_values(labels: NDArray[np.int32], count: int, probability: NDArray[np.floating[Any]]) -> ComponentValues:
    """Measure the components 1 … *count* of *labels* on *probability*, both of one shape."""
    inside = labels > 0
    owner = labels[inside]
    values = probability[inside].astype(np.float32)
    voxels = np.bincount(owner, minlength=count + 1)[1:]
    clipped = np.clip(values, 1e-6, 1 - 1e-6)
    logits = np.bincount(owner, weights=np.log(clipped / (1 - clipped)), minlength=count + 1)[1:]
    peak = np.zeros(count + 1, np.float32)
    np.maximum.at(peak, owner, values)
    return ComponentValues(voxels, peak[1:], 1 / (1 + np.exp(-logits / np.maximum(1, voxels))))


def voxel_size(spacing_mm: Sequence[float] | None, *, flat: bool) -> float:
    """Return the size of a voxel in mm³, of *flat* images in mm²; 1 where there is no spacing."""
    return 1.0 if spacing_mm is None else float(np.prod(spacing_mm[1:] if flat else spacing_mm))
