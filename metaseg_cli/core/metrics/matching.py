"""Which predicted lesions belong to which reference lesion, by the rules of a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.detection import Lesion, describe_labels, label_lesions, neighbourhood, overlaps

_ANY_OVERLAP = 1e-6  # the Dice from which a pair may match one to one


@dataclass(frozen=True, kw_only=True)
class LesionMaps:
    """Label maps ``(Z, Y, X)`` or ``(Y, X)``, their lesions by number, and the voxels that pairs have in common."""

    reference: NDArray[np.int32]
    prediction: NDArray[np.int32]
    reference_lesions: list[Lesion]
    predicted_lesions: list[Lesion]
    overlaps: dict[tuple[int, int], int]

    def dice(self, number: int, others: Iterable[int]) -> float:
        """Return the Dice of a reference lesion and several predicted ones together."""
        others = list(others)
        both = sum(self.overlaps.get((number, other), 0) for other in others)
        predicted = sum(self.predicted_lesions[other - 1].voxels for other in others)
        return 2 * both / (self.reference_lesions[number - 1].voxels + predicted)

    def iou(self, number: int, other: int) -> float:
        """Return the intersection over union of a reference lesion and a predicted one that overlap."""
        both = self.overlaps[number, other]
        return both / (self.reference_lesions[number - 1].voxels + self.predicted_lesions[other - 1].voxels - both)


def label_both(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float] | None,
    protocol: Protocol,
    probability: NDArray[np.floating[Any]] | None = None,
) -> LesionMaps:
    """Label the lesions of two masks ``(Z, Y, X)`` of a volume, or ``(Y, X)`` of a slice, and describe them."""
    r, r_count = (
        _merged(reference, protocol)
        if protocol.dilation
        else label_lesions(reference, protocol.neighbours(reference.ndim))
    )
    p, p_count = label_lesions(prediction, protocol.neighbours(prediction.ndim))
    pairs, voxels = overlaps(r, p)
    volume = r.shape if r.ndim == 3 else (1, *r.shape)
    return LesionMaps(
        reference=r,
        prediction=p,
        reference_lesions=describe_labels(r.reshape(volume), r_count, spacing_mm),
        predicted_lesions=describe_labels(p.reshape(volume), p_count, spacing_mm, probability),
        overlaps={(int(i), int(j)): int(n) for (i, j), n in zip(pairs, voxels, strict=True)},
    )


def match(maps: LesionMaps, protocol: Protocol) -> dict[int, tuple[int, ...]]:
    """Return the predicted lesions of each reference lesion that was found."""
    if protocol.matching == "one-to-one":
        dice = {pair: maps.dice(pair[0], [pair[1]]) for pair in maps.overlaps}
        return _one_to_one(len(maps.reference_lesions), len(maps.predicted_lesions), dice)
    if protocol.dilation:
        return _near(maps.reference, maps.prediction, maps.reference_lesions, protocol)
    return _overlapping(maps.overlaps)


def _merged(mask: NDArray[np.bool_], protocol: Protocol) -> tuple[NDArray[np.int32], int]:
    """Label lesions; those whose dilations touch get one number."""
    element = neighbourhood(mask.ndim, 18)
    wide, count = label_lesions(
        ndimage.binary_dilation(mask, element, iterations=protocol.dilation), protocol.neighbours(mask.ndim)
    )
    return np.where(mask, wide, 0).astype(np.int32), count


def _overlapping(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    matched: dict[int, tuple[int, ...]] = {}
    for i, j in pairs:
        matched[i] = (*matched.get(i, ()), j)
    return matched


def _near(
    r: NDArray[np.int32], p: NDArray[np.int32], lesions: Sequence[Lesion], protocol: Protocol
) -> dict[int, tuple[int, ...]]:
    """Return the predicted lesions that overlap the dilation of each reference lesion."""
    matched = {}
    element = neighbourhood(r.ndim, 18)
    for lesion in lesions:
        place = tuple(
            slice(max(0, start - protocol.dilation), min(length, stop + protocol.dilation))
            for (start, stop), length in zip(lesion.box[3 - r.ndim :], r.shape, strict=True)
        )
        wide = ndimage.binary_dilation(r[place] == lesion.number, element, iterations=protocol.dilation)
        near = np.unique(p[place][wide])
        if near.any():
            matched[lesion.number] = tuple(int(n) for n in near if n)
    return matched


def _one_to_one(r_count: int, p_count: int, dice: dict[tuple[int, int], float]) -> dict[int, tuple[int, ...]]:
    """Return the pairs with the largest sum of Dice, each lesion in one pair at most."""
    pairs = [(i - 1, j - 1, value) for (i, j), value in dice.items() if value >= _ANY_OVERLAP]
    if not pairs:
        return {}
    rows, columns, values = (np.array(each) for each in zip(*pairs, strict=True))
    # Lesions that no chain of overlaps connects cannot compete: each such group is a small problem of its own.
    size = r_count + p_count
    _, group = connected_components(coo_array((np.ones(len(rows)), (rows, r_count + columns)), shape=(size, size)))
    matched: dict[int, tuple[int, ...]] = {}
    order = np.argsort(group[rows], kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[rows][order])) + 1):
        mine, at = np.unique(rows[members], return_inverse=True)
        theirs, beside = np.unique(columns[members], return_inverse=True)
        cost = np.full((len(mine), len(theirs)), 1.0 + _ANY_OVERLAP)
        cost[at, beside] = 1 - values[members]
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            if cost[i, j] < 1:
                matched[int(mine[i]) + 1] = (int(theirs[j]) + 1,)
    return matched
