"""From probabilities to masks. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import remove_small_objects


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What is done to a region's probabilities; chosen on the validation fold and kept in the model file."""

    threshold: float = 0.5
    smallest_lesion_voxels: int = 0


def to_mask(probability: NDArray[np.float32], settings: Postprocessing) -> NDArray[np.bool_]:
    """``(Z, Y, X)`` probabilities → mask: the threshold, then components below the smallest size are dropped."""
    mask: NDArray[np.bool_] = probability >= settings.threshold
    if settings.smallest_lesion_voxels > 1 and mask.any():
        mask = remove_small_objects(mask, max_size=settings.smallest_lesion_voxels - 1, connectivity=3)
    return mask


def to_label_map(masks: NDArray[np.bool_], regions: dict[str, tuple[int, ...]]) -> NDArray[np.uint8]:
    """Region masks ``(R, Z, Y, X)`` → one label map: regions of many label values first, the narrower ones over them.

    A region is painted with the one label value that none of its sub-regions owns, or else with its first value.
    """
    label = np.zeros(masks.shape[1:], np.uint8)
    order = sorted(zip(masks, regions.values(), strict=True), key=lambda pair: -(len(pair[1]) or 256))
    for mask, values in order:
        own = set(values).difference(*(set(v) for v in regions.values() if set(v) < set(values)))
        label[mask] = min(own or values or (1,))
    return label
