"""From probabilities to masks. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.detection import bounding_box, component_values, label_lesions, voxel_size
from metaseg_cli.core.typed_json import stored_as

_ROUNDING = 1 - 1e-6  # a lesion of exactly the minimum size stays, whatever the rounding of its volume


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What is done to a region's probabilities; selected on validation cases, kept in the model file.

    A voxel counts from *threshold* on, if its component reaches *high_threshold* somewhere (hysteresis; 0: any
    component). A component smaller than *min_size* (mm³, in pictures mm²; voxels where there is no spacing) is dropped,
    unless its ``logit_confidence`` reaches *keep_confidence* (1: never). There is no opening: it would delete small
    metastases. *per_slice*: the model was trained on pictures, each slice is one, and its components are measured by
    themselves (in mm² or pixels).

    Model files and documents store three of the fields under other keys.
    """

    threshold: float = 0.5
    high_threshold: float = field(default=0.0, metadata=stored_as("seed"))
    min_size: float = field(default=0.0, metadata=stored_as("smallest_lesion"))
    keep_confidence: float = field(default=1.0, metadata=stored_as("sparing"))
    fill_holes: bool = False
    per_slice: bool = False

    def keep_mask(
        self, size: NDArray[np.floating], peak: NDArray[np.floating], confidence: NDArray[np.floating]
    ) -> NDArray[np.bool_]:
        """Return which components stay, by size (in the unit of ``min_size``), highest probability and confidence."""
        large = (size >= _ROUNDING * self.min_size) | (
            (confidence >= self.keep_confidence) & (self.keep_confidence < 1)
        )
        stays: NDArray[np.bool_] = large & (peak >= self.high_threshold)
        return stays

    def with_threshold(self, threshold: float) -> Postprocessing:
        """Return the same with a threshold that the user chose: every component counts, whatever its highest point."""
        return replace(self, threshold=threshold, high_threshold=0.0)

    def calibrated(self, temperature: float) -> Postprocessing:
        """Return what does the same to probabilities whose logits were divided by *temperature*."""

        def moved(value: float) -> float:
            return _sigmoid(math.log(value / (1 - value)) / temperature) if 0 < value < 1 else value

        return replace(
            self,
            threshold=moved(self.threshold),
            high_threshold=moved(self.high_threshold),
            keep_confidence=moved(self.keep_confidence),
        )


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def to_mask(
    probability: NDArray[np.floating], settings: Postprocessing, spacing_mm: Sequence[float] | None = None
) -> NDArray[np.bool_]:
    """Return the mask of probabilities ``(Z, Y, X)``; components have 26 neighbours (one slice, or per slice: 8).

    The minimum size of a model for volumes is in mm³ and says nothing about one slice: it is not applied there.
    """
    mask: NDArray[np.bool_] = probability >= settings.threshold
    flat = settings.per_slice or len(mask) == 1
    if flat and not settings.per_slice and spacing_mm is not None:
        settings = replace(settings, min_size=0.0)
    filtered = settings.min_size > 0 or settings.high_threshold > settings.threshold
    box = bounding_box(mask)
    if box is None or not (filtered or settings.fill_holes):
        return mask
    if filtered:
        labels, count = label_lesions(mask[box], per_slice=settings.per_slice)
        values = component_values(labels, count, probability[box])
        size = values.voxels * voxel_size(spacing_mm, flat=flat)
        mask[box] = np.concatenate([[False], settings.keep_mask(size, values.peak, values.logit_confidence)])[labels]
    if settings.fill_holes:
        # A slice has no inside in space: there holes are what the outline encloses.
        inside = mask[box]
        mask[box] = (
            np.stack([ndimage.binary_fill_holes(each) for each in inside])
            if flat
            else ndimage.binary_fill_holes(inside)
        )
    return mask
