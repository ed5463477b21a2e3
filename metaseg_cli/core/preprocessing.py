"""From the numbers in a file to the numbers a network sees. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Normalisation = Literal["slice", "case"]

# Statistics come from between these percentiles, so that a few hot voxels do not set the scale …
_STATISTICS_PERCENTILES = (0.5, 99.5)
# … but bright lesions keep their contrast: only what lies this many deviations out is cut.
_LIMIT = 8.0


def head_mask(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which voxels of ``(C, Z, Y, X)`` are not background; all of them when there is no background.

    Background is what most of the in-plane frame looks like in every channel, within 5 % of the image's range.
    """
    _, z, y, x = image.shape
    inside = np.zeros((z, y, x), dtype=bool)
    for channel in image:
        frame = np.concatenate(
            [channel[:, 0].ravel(), channel[:, -1].ravel(), channel[:, :, 0].ravel(), channel[:, :, -1].ravel()]
        )
        background = np.median(frame)
        low, high = np.percentile(channel[:, ::2, ::2], (0.5, 99.5))
        tolerance = 0.05 * (high - low)
        if np.mean(np.abs(frame - background) <= tolerance) < 0.5:
            return np.ones((z, y, x), dtype=bool)
        inside |= np.abs(channel - background) > tolerance
    if inside.mean() < 0.01:
        return np.ones((z, y, x), dtype=bool)
    return inside


def normalise(values: NDArray[Any], per: Normalisation) -> NDArray[np.float32]:
    """``(C, Z, Y, X)`` of any type → float32 with zero mean and unit deviation inside the head, channel by channel.

    *per* "case" takes one statistic per channel of the whole volume; "slice" one per slice, for pictures, which must
    look the same to the network whether they come alone or as a stack. A constant channel becomes 0.
    """
    image = values.astype(np.float32)
    if per == "slice" and image.shape[1] > 1:
        return np.concatenate([normalise(image[:, z : z + 1], "case") for z in range(image.shape[1])], axis=1)
    inside = head_mask(image)
    result = np.empty_like(image)
    for channel, out in zip(image, result, strict=True):
        head = channel[inside]
        low, high = np.percentile(head, _STATISTICS_PERCENTILES)
        typical = np.clip(head, low, high)
        deviation = float(typical.std())
        if deviation < 1e-6 * max(1.0, abs(float(high))):
            out[...] = 0
        else:
            np.clip((channel - typical.mean()) / deviation, -_LIMIT, _LIMIT, out=out)
    return result
