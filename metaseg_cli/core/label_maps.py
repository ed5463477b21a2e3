"""From masks of regions, which may overlap, to one label map, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def to_label_map(masks: NDArray[np.bool_], regions: Mapping[str, tuple[int, ...]]) -> NDArray[np.uint8]:
    """Paint region masks ``(R, Z, Y, X)`` into one label map ``(Z, Y, X)``.

    A voxel gets the label that stands for just the regions it lies in (the smallest of several). Where no label does,
    narrower regions are painted over wider ones: each with the one label that none of its sub-regions owns, or else
    with its first value.
    """
    label = np.zeros(masks.shape[1:], np.uint8)
    order = sorted(zip(masks, regions.values(), strict=True), key=lambda pair: -(len(pair[1]) or 256))
    for mask, values in order:
        own = set(values).difference(*(set(v) for v in regions.values() if set(v) < set(values)))
        label[mask] = min(own or values or (1,))
    inside = masks.any(axis=0)
    found, painted = masks[:, inside], label[inside]
    for value in sorted({v for values in regions.values() for v in values}, reverse=True):
        member = np.array([not values or value in values for values in regions.values()])
        painted[(found == member[:, None]).all(axis=0)] = value
    label[inside] = painted
    return label


def region_masks(label: NDArray[np.uint8], regions: Mapping[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    """Split a label map ``(…)`` into a mask per region ``(R, …)``; a region without values is every non-zero label."""
    return np.stack([np.isin(label, values) if values else label > 0 for values in regions.values()])
