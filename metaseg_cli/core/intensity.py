"""Intensities: what is head and what is background, and how images are normalised. Free of torch.

There are two scales, and each question about background is asked on one of them:

- in the numbers of the file, ``head_mask`` finds the head before anything is normalised;
- in normalised numbers (deviation 1 inside the head), a voxel, a patch or a window is tested against the limits below.
  A cropped case may hold no frame of background to measure, so these limits are fixed.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Normalisation = Literal["slice", "case"]

# Normalisation. Statistics come from between these percentiles, so that a few hot voxels do not set the scale …
STATISTICS_PERCENTILES = (0.5, 99.5)  # as nnU-Net clips CT (Isensee et al. 2021)
# … but bright lesions keep their contrast: only what lies this many deviations out is clipped.
CLIP_DEVIATIONS = 8.0
_ROUNDING = 1e-6  # a deviation this small beside the values is rounding, not contrast
_EXPONENT = 24  # powers of two beyond which squares of float32 lose digits: its mantissa has 24 bits

# Background in the numbers of the file.
_FRAME_TOLERANCE = 0.05  # of the image's range: noise around the median of the frame
_LEAST_FRAME = 0.5  # share of the frame that looks like background; below it the head fills the image
_LEAST_HEAD = 0.01  # share of the image; below it what was found is noise, and the whole image counts

# Background in normalised numbers.
ABOVE_BACKGROUND = 0.1  # a voxel of the head lies more than this above the lowest value of its image or patch
EMPTY_PATCH_DEVIATION = 0.15  # a patch that varies less holds no head, where the deviation is 1
EMPTY_WINDOW_RANGE = 0.02  # of the image's range: no window with anatomy in it varies so little. Stricter than the
# limit for patches, because a window that is skipped is predicted as free of lesions.

# Black and white of a picture, by percentiles of the image. White lies above the upper percentile of the statistics, so
# that enhancing lesions, a few voxels in a thousand, are not all white.
DISPLAY_PERCENTILES = (0.5, 99.8)


def head_mask(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which voxels of ``(C, Z, Y, X)`` are not background; all of them when there is no background.

    Background is what most of the in-plane frame looks like in every channel, within 5 % of the image's range.
    """
    _, z, y, x = image.shape
    inside = np.zeros((z, y, x), dtype=bool)
    for channel in image:
        frame = np.concatenate(
            [channel[:, 0].ravel(), channel[:, -1].ravel(), channel[:, :, 0].ravel(), channel[:, :, -1].ravel()]
        )
        background = np.median(frame)
        low, high = np.percentile(channel[:, ::2, ::2], STATISTICS_PERCENTILES)
        tolerance = _FRAME_TOLERANCE * (high - low)
        if np.mean(np.abs(frame - background) <= tolerance) < _LEAST_FRAME:
            return np.ones((z, y, x), dtype=bool)
        for plane in range(z):  # plane by plane: one copy of the volume is large enough
            inside[plane] |= np.abs(channel[plane] - background) > tolerance
    if inside.mean() < _LEAST_HEAD:
        return np.ones((z, y, x), dtype=bool)
    return inside


def head_of_normalised(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the voxels ``(Z, Y, X)`` that any channel of a normalised image shows above its background."""
    lowest = image.reshape(len(image), -1).min(axis=1).reshape(-1, 1, 1, 1)
    return np.asarray((image > lowest + ABOVE_BACKGROUND).any(axis=0))


def normalise(values: NDArray[Any], per: Normalisation) -> NDArray[np.float32]:
    """Scale ``(C, Z, Y, X)`` of any type to zero mean and unit deviation inside the head, channel by channel.

    *per* "case" takes one statistic per channel of the whole volume; "slice" one per slice, for pictures, which must
    look the same to the network whether they come alone or as a stack. A constant channel becomes 0.
    """
    image = as_float32(values)
    if per == "slice" and image.shape[1] > 1:
        return np.concatenate([normalise(image[:, z : z + 1], "case") for z in range(image.shape[1])], axis=1)
    normalise_in_place(image, head_mask(image))
    return image


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Convert to float32; channels of very small or large values are divided by a power of two, which z-scores undo."""
    image = np.empty(values.shape, np.float32)
    for channel, numbers in zip(image, values, strict=True):
        peak = max(abs(float(numbers.min())), abs(float(numbers.max())))
        exponent = math.frexp(peak)[1]
        if peak and abs(exponent) > _EXPONENT:
            numbers = np.ldexp(numbers.astype(np.float64), -exponent)  # noqa: PLW2901
        channel[...] = numbers
    return image


def normalise_in_place(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> None:
    """Normalise each channel by the statistics of the voxels *inside*, without copies of the volume."""
    for channel in image:
        head = channel[inside]
        low, high = np.percentile(head, STATISTICS_PERCENTILES, overwrite_input=True)
        np.clip(head, low, high, out=head)
        mean = head.mean()
        deviation = _deviation(head, float(mean))
        if deviation <= _ROUNDING * max(abs(float(low)), abs(float(high))):
            channel[...] = 0
        else:
            np.subtract(channel, mean, out=channel)
            np.divide(channel, np.float32(deviation), out=channel)
            np.clip(channel, -CLIP_DEVIATIONS, CLIP_DEVIATIONS, out=channel)


def _deviation(values: NDArray[np.float32], mean: float) -> float:
    pieces = np.array_split(values, max(1, len(values) // 2**20))
    total = sum(float(np.square(piece - mean).sum(dtype=float)) for piece in pieces)
    return math.sqrt(total / max(1, len(values)))
