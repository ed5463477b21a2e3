"""Where a network sees lesions that are none, on cases it learns from, so that it meets those places again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.metrics import label_lesions
from metaseg_cli.core.sampling import Place

_MOST_PER_CASE = 8


def false_places(
    case: int, probabilities: NDArray[np.floating[Any]], reference: NDArray[np.bool_], threshold: float = 0.5
) -> list[Place]:
    """Middles of predicted components that touch no reference lesion, the most confident ones first.

    *probabilities* and *reference* are ``(R, Z, Y, X)``; *case* is the case's number among those sampled from.
    """
    places: list[tuple[float, Place]] = []
    for probability, truth in zip(probabilities, reference, strict=True):
        labels, count = label_lesions(probability >= threshold)
        if not count:
            continue
        numbers = np.arange(1, count + 1)
        false = numbers[ndimage.maximum(truth, labels, numbers) == 0]
        if not len(false):
            continue
        confidence = np.atleast_1d(ndimage.mean(probability, labels, false))
        centres = np.atleast_2d(ndimage.center_of_mass(labels > 0, labels, false))
        for value, (z, y, x) in zip(confidence, centres, strict=True):
            places.append((-float(value), Place(case, (round(z), round(y), round(x)))))
    return [place for _, place in sorted(places, key=lambda pair: (pair[0], pair[1].centre))[:_MOST_PER_CASE]]
