"""Overlap of two masks, voxel by voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Confusion:
    """Voxel counts; adding those of a patient's cases pools them."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def scores(self) -> dict[str, float]:
        """Return dice, iou, precision, recall and specificity, with the values for empty masks of ``table.METRICS``."""
        both_empty = self.tp + self.fp + self.fn == 0
        return {
            "dice": 1.0 if both_empty else 2 * self.tp / (2 * self.tp + self.fp + self.fn),
            "iou": 1.0 if both_empty else self.tp / (self.tp + self.fp + self.fn),
            "precision": 1.0 if both_empty else self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0,
            "recall": 1.0 if both_empty else self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0,
            "specificity": self.tn / (self.tn + self.fp) if self.tn + self.fp else 1.0,
        }


def confusion(reference: NDArray[Any], prediction: NDArray[Any]) -> Confusion:
    """Count the voxels of two masks of one shape; every non-zero value is foreground."""
    r, p = reference != 0, prediction != 0
    both, in_r, in_p = int(np.count_nonzero(r & p)), int(np.count_nonzero(r)), int(np.count_nonzero(p))
    return Confusion(tp=both, fp=in_p - both, fn=in_r - both, tn=r.size - in_r - in_p + both)


def volumes(
    reference: NDArray[Any], prediction: NDArray[Any], spacing_mm: tuple[float, ...] | None
) -> dict[str, float]:
    """Return the volumes of both masks in ml, or in voxels where there is no spacing."""
    counts = {"reference": float(np.count_nonzero(reference)), "prediction": float(np.count_nonzero(prediction))}
    if spacing_mm is None:
        return {f"volume_px_{name}": count for name, count in counts.items()}
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {f"volume_ml_{name}": count * voxel_ml for name, count in counts.items()}
