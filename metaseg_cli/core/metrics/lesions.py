"""Lesions: connected components, which of them were found, and what each is like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

POLICY = {
    "lesion_precision": "no lesion on either side: 1; nothing predicted but lesions in the reference: 0",
    "lesion_recall": "no lesion on either side: 1; no lesion in the reference but some predicted: 0",
    "lesion_f1": "no lesion on either side: 1; on one side only: 0",
}


@dataclass(frozen=True)
class Matching:
    """Which lesions were found: ``found[i]`` of reference lesion i + 1, ``false[j]`` of predicted lesion j + 1."""

    found: tuple[bool, ...]
    false: tuple[bool, ...]

    @property
    def lesion_tp(self) -> int:
        """Reference lesions that a predicted voxel touches."""
        return sum(self.found)

    @property
    def lesion_fn(self) -> int:
        """Reference lesions that none touches."""
        return len(self.found) - self.lesion_tp

    @property
    def lesion_fp(self) -> int:
        """Predicted lesions that touch no reference lesion."""
        return sum(self.false)

    def scores(self) -> dict[str, float]:
        """Counts, and lesion precision, recall and F1 by ``POLICY``."""
        return {
            "lesions_reference": len(self.found),
            "lesions_predicted": len(self.false),
            **lesion_scores(self.lesion_tp, self.lesion_fp, self.lesion_fn),
        }


def lesion_scores(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Lesion precision, recall and F1 of counts, which may be those of several cases added up."""
    silent = tp + fp + fn == 0
    return {
        "lesion_tp": tp,
        "lesion_fp": fp,
        "lesion_fn": fn,
        "lesion_precision": 1.0 if silent else tp / (tp + fp) if tp + fp else 0.0,
        "lesion_recall": 1.0 if silent else tp / (tp + fn) if tp + fn else 0.0,
        "lesion_f1": 1.0 if silent else 2 * tp / (2 * tp + fp + fn),
    }


def label_lesions(mask: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Components of ``(Z, Y, X)`` by 26 neighbours, of ``(Y, X)`` by 8; numbered from 1."""
    foreground = mask != 0
    if not foreground.any():
        return np.zeros(mask.shape, np.int32), 0
    # Lesions are few and small: labelling the box around them takes a fraction of the whole volume's time.
    box = tuple(
        slice(int(line.argmax()), line.size - int(line[::-1].argmax()))
        for line in (foreground.any(axis=tuple(a for a in range(mask.ndim) if a != axis)) for axis in range(mask.ndim))
    )
    labels = np.zeros(mask.shape, np.int32)
    labels[box], count = ndimage.label(foreground[box], structure=np.ones((3,) * mask.ndim))
    return labels, int(count)


def match_lesions(reference: NDArray[Any], prediction: NDArray[Any]) -> Matching:
    """A reference lesion is found when any predicted voxel lies on it; a prediction that lies on none is false."""
    r, r_count = label_lesions(reference)
    p, p_count = label_lesions(prediction)
    found = np.zeros(r_count + 1, bool)
    hits = np.zeros(p_count + 1, bool)
    if r_count and p_count:
        both = (r > 0) & (p > 0)
        found[r[both]] = True
        hits[p[both]] = True
    return Matching(tuple(bool(f) for f in found[1:]), tuple(not h for h in hits[1:]))


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
    if mask.ndim == 2:
        mask = mask[None]
        probability = None if probability is None else probability.reshape(mask.shape)
    labels, count = label_lesions(mask)
    if not count:
        return []
    where = labels.nonzero()
    owner = labels[where] - 1
    sizes = np.bincount(owner, minlength=count)
    centroids = np.stack([np.bincount(owner, weights=axis, minlength=count) / sizes for axis in where], axis=1)
    confidences = None
    if probability is not None:
        confidences = np.bincount(owner, weights=probability[where], minlength=count) / sizes
    boxes = ndimage.find_objects(labels)
    voxel = math.prod(spacing_mm) if spacing_mm else 1.0
    area = voxel / spacing_mm[0] if spacing_mm else 1.0
    flat = mask.shape[0] == 1
    lesions = []
    for number, i in enumerate(np.argsort(-sizes, kind="stable"), start=1):
        n = int(sizes[i])
        z, y, x = (float(c) for c in centroids[i])
        in_z, in_y, in_x = ((int(s.start), int(s.stop)) for s in boxes[i])
        lesions.append(
            Lesion(
                number=number,
                voxels=n,
                volume_mm3=n * voxel if spacing_mm else None,
                equivalent_diameter=equivalent_diameter(n * (area if flat else voxel), flat=flat),
                centroid_voxel=(z, y, x),
                box=(in_z, in_y, in_x),
                confidence=None if confidences is None else float(confidences[i]),
            )
        )
    return lesions
