"""Which lesions were found, and how well each of them was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.detection import SIZE_CLASSES, Lesion, describe_labels, label_lesions, neighbourhood, overlaps
from metaseg_cli.core.metrics.surfaces import surface_distances
from metaseg_cli.core.results import SizeClassScores


def _diameter(lesion: Lesion) -> float:
    return lesion.equivalent_diameter


def _volume(lesion: Lesion) -> float:
    return math.inf if lesion.volume_mm3 is None else lesion.volume_mm3


# Size classes: what is measured (diameter in mm, or pixels; volume in mm³), from, and up to.
_SIZES: tuple[tuple[str, Callable[[Lesion], float], float, float], ...] = (
    *((str(each), _diameter, each.low, each.high) for each in SIZE_CLASSES),
    ("<27 mm³", _volume, 0, 27),
    ("<100 mm³", _volume, 0, 100),
)

_ANY_OVERLAP = 1e-6
_PQ_IOU = 0.5


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


def match_lesions(reference: NDArray[Any], prediction: NDArray[Any]) -> Matching:
    """A reference lesion is found when any predicted voxel lies on it; a prediction that lies on none is false."""
    r, r_count = label_lesions(reference)
    p, p_count = label_lesions(prediction)
    found = np.zeros(r_count + 1, bool)
    hits = np.zeros(p_count + 1, bool)
    pairs, _ = overlaps(r, p)
    found[pairs[:, 0]] = True
    hits[pairs[:, 1]] = True
    return Matching(tuple(bool(f) for f in found[1:]), tuple(not h for h in hits[1:]))


def lesion_scores(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Return lesion precision, recall and F1 of counts, which may be those of several cases added up."""
    both_empty = tp + fp + fn == 0
    return {
        "lesion_tp": tp,
        "lesion_fp": fp,
        "lesion_fn": fn,
        "lesion_precision": 1.0 if both_empty else tp / (tp + fp) if tp + fp else 0.0,
        "lesion_recall": 1.0 if both_empty else tp / (tp + fn) if tp + fn else 0.0,
        "lesion_f1": 1.0 if both_empty else 2 * tp / (2 * tp + fp + fn),
    }


@dataclass(frozen=True, kw_only=True)
class ScoredLesion:
    """A reference lesion and what was predicted for it; *matched* are numbers of predicted lesions.

    ``hd95`` (mm, or pixels without a spacing) is infinite and ``dice`` and ``nsd`` (by tolerance) are 0 when there is
    none. Not ``counted``: smaller than what the protocol counts.
    """

    lesion: Lesion
    matched: tuple[int, ...]
    dice: float
    hd95: float
    nsd: dict[float, float]
    counted: bool = True

    @property
    def found(self) -> bool:
        """Whether anything was predicted for it."""
        return bool(self.matched)


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """Reference lesions of one size, those of them that were found, false lesions of that size, and the sum of Dice."""

    lesions: int = 0
    found: int = 0
    false: int = 0
    dice_sum: float = 0.0

    def __add__(self, other: SizeClass) -> SizeClass:
        return SizeClass(
            lesions=self.lesions + other.lesions,
            found=self.found + other.found,
            false=self.false + other.false,
            dice_sum=self.dice_sum + other.dice_sum,
        )

    def scores(self) -> SizeClassScores:
        """Return counts, recall, F1 and mean Dice, where a missed lesion counts as 0."""
        total = self.lesions + self.found + self.false
        return SizeClassScores(
            lesions=self.lesions,
            found=self.found,
            false=self.false,
            recall=self.found / self.lesions if self.lesions else None,
            f1=2 * self.found / total if total else None,
            dice=self.dice_sum / self.lesions if self.lesions else None,
        )


@dataclass(frozen=True, kw_only=True)
class LesionComparison:
    """All lesions of two masks under one protocol; ``false`` are numbers of predicted lesions."""

    reference: tuple[ScoredLesion, ...]
    prediction: tuple[Lesion, ...]
    false: tuple[int, ...]
    ious: tuple[float, ...]  # of every pair that overlaps by more than half
    protocol: Protocol

    @property
    def counted(self) -> tuple[ScoredLesion, ...]:
        """The reference lesions that enter counts and means."""
        return tuple(each for each in self.reference if each.counted)

    @property
    def counts(self) -> tuple[int, int, int]:
        """True positives, false positives, false negatives."""
        tp = sum(each.found for each in self.counted)
        return tp, len(self.false), len(self.counted) - tp

    def by_size(self) -> dict[str, SizeClass]:
        """Return detection and overlap by diameter and, where it is known, by volume."""
        false = [self.prediction[number - 1] for number in self.false]
        rows = {}
        for name, size_of, low, high in _SIZES:
            mine = [each for each in self.counted if low <= size_of(each.lesion) < high]
            rows[name] = SizeClass(
                lesions=len(mine),
                found=sum(each.found for each in mine),
                false=sum(low <= size_of(lesion) < high for lesion in false),
                dice_sum=sum(each.dice for each in mine),
            )
        return rows


def compare_lesions(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float] | None,
    protocol: Protocol,
    tolerances: Sequence[float],
    probability: NDArray[np.floating[Any]] | None = None,
    *,
    flat: bool,
) -> LesionComparison:
    """Compare the lesions of masks ``(Z, Y, X)``; *flat*: of one slice, in 2D. *tolerances* in mm or pixels."""
    r_mask, p_mask = (reference[0], prediction[0]) if flat else (reference, prediction)
    spacing = None if spacing_mm is None else spacing_mm[1:] if flat else spacing_mm
    r, r_count = (
        _merged(r_mask, protocol) if protocol.dilation else label_lesions(r_mask, protocol.neighbours(r_mask.ndim))
    )
    p, p_count = label_lesions(p_mask, protocol.neighbours(p_mask.ndim))
    maps = _LesionMaps(
        reference=r,
        prediction=p,
        reference_lesions=describe_labels(r.reshape(reference.shape), r_count, spacing_mm),
        predicted_lesions=describe_labels(p.reshape(reference.shape), p_count, spacing_mm, probability),
        overlaps=_shared_voxels(r, p),
    )
    matched = _matched(maps, protocol)
    taken = {other for others in matched.values() for other in others}
    ious = (maps.iou(*pair) for pair in maps.overlaps)
    return LesionComparison(
        reference=tuple(
            _scored(lesion, matched.get(lesion.number, ()), maps, spacing, protocol, tolerances)
            for lesion in maps.reference_lesions
        ),
        prediction=tuple(maps.predicted_lesions),
        false=tuple(lesion.number for lesion in maps.predicted_lesions if lesion.number not in taken),
        ious=tuple(iou for iou in ious if iou > _PQ_IOU),
        protocol=protocol,
    )


@dataclass(frozen=True, kw_only=True)
class _LesionMaps:
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


def _matched(maps: _LesionMaps, protocol: Protocol) -> dict[int, tuple[int, ...]]:
    """Return the predicted lesions of each reference lesion that was found."""
    if protocol.matching == "one-to-one":
        dice = {pair: maps.dice(pair[0], [pair[1]]) for pair in maps.overlaps}
        return _one_to_one(len(maps.reference_lesions), len(maps.predicted_lesions), dice)
    if protocol.dilation:
        return _touching(maps.reference, maps.prediction, maps.reference_lesions, protocol)
    return _owners(maps.overlaps)


def _scored(
    lesion: Lesion,
    matched: tuple[int, ...],
    maps: _LesionMaps,
    spacing: tuple[float, ...] | None,
    protocol: Protocol,
    tolerances: Sequence[float],
) -> ScoredLesion:
    hd95, nsd = math.inf, dict.fromkeys(tolerances, 0.0)
    if matched:
        first_axis = 3 - maps.reference.ndim
        box = _box_around([lesion, *(maps.predicted_lesions[other - 1] for other in matched)])[first_axis:]
        predicted = maps.prediction[box]
        distances = surface_distances(
            maps.reference[box] == lesion.number,
            np.isin(predicted, matched) if len(matched) > 1 else predicted == matched[0],
            spacing,
            border_voxels=protocol.border_voxels,
        )
        hd95 = distances.hd95_pooled() if protocol.border_voxels else distances.hd95()
        near = distances.nsd_of_shares if protocol.border_voxels else distances.nsd
        nsd = {tolerance: near(tolerance) for tolerance in tolerances}
    return ScoredLesion(
        lesion=lesion,
        matched=matched,
        dice=maps.dice(lesion.number, matched),
        hd95=hd95,
        nsd=nsd,
        counted=_size(lesion) > protocol.smallest_lesion_mm3,
    )


def _merged(mask: NDArray[np.bool_], protocol: Protocol) -> tuple[NDArray[np.int32], int]:
    """Label lesions; those whose dilations touch get one number."""
    element = neighbourhood(mask.ndim, 18)
    wide, count = label_lesions(
        ndimage.binary_dilation(mask, element, iterations=protocol.dilation), protocol.neighbours(mask.ndim)
    )
    return np.where(mask, wide, 0).astype(np.int32), count


def _shared_voxels(r: NDArray[np.int32], p: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """Return the voxels that each pair of a reference and a predicted lesion has in common."""
    pairs, voxels = overlaps(r, p)
    return {(int(i), int(j)): int(n) for (i, j), n in zip(pairs, voxels, strict=True)}


def _owners(overlaps: dict[tuple[int, int], int]) -> dict[int, tuple[int, ...]]:
    matched: dict[int, tuple[int, ...]] = {}
    for i, j in overlaps:
        matched[i] = (*matched.get(i, ()), j)
    return matched


def _touching(
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


def _box_around(lesions: Sequence[Lesion]) -> tuple[slice, ...]:
    starts = np.min([[side[0] for side in lesion.box] for lesion in lesions], axis=0)
    stops = np.max([[side[1] for side in lesion.box] for lesion in lesions], axis=0)
    return tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))


def comparison_scores(
    comparison: LesionComparison, unit: str, tolerances: Sequence[float], penalty: float
) -> dict[str, float]:
    """Return counts, detection and lesion-wise scores; *penalty* (mm or pixels) is the distance of an unmatched one."""
    tp, fp, fn = comparison.counts
    counts = {
        "lesions_reference": len(comparison.counted),
        "lesions_predicted": len(comparison.prediction),
        **lesion_scores(tp, fp, fn),
    }
    if comparison.protocol.split_mm3 is not None:
        return {**counts, **_split_scores(comparison, unit, tolerances, penalty)}
    result = {**counts, **_lesion_wise(comparison.counted, fp, unit, tolerances, penalty)}
    if comparison.protocol.dilation or comparison.protocol.smallest_lesion_mm3:
        return result  # panoptic quality knows neither merged lesions nor lesions that do not count
    paired = len(comparison.ious)
    both_empty = not comparison.counted and not comparison.prediction
    sq = 1.0 if both_empty else sum(comparison.ious) / paired if paired else 0.0
    rq = 1.0 if both_empty else 2 * paired / (len(comparison.counted) + len(comparison.prediction))
    return {**result, "pq": sq * rq, "sq": sq, "rq": rq}


def _lesion_wise(
    lesions: Sequence[ScoredLesion], false: int, unit: str, tolerances: Sequence[float], penalty: float
) -> dict[str, float]:
    """Return means over reference lesions and false ones, which count as 0, or *penalty*."""
    n = len(lesions) + false
    distance = sum(each.hd95 if each.found else penalty for each in lesions) + false * penalty
    return {
        "lesion_wise_dice": sum(each.dice for each in lesions) / n if n else 1.0,
        f"lesion_wise_hd95_{unit}": distance / n if n else 0.0,
        **{f"lesion_wise_nsd_{t:g}{unit}": sum(each.nsd[t] for each in lesions) / n if n else 1.0 for t in tolerances},
    }


def _split_scores(
    comparison: LesionComparison, unit: str, tolerances: Sequence[float], penalty: float
) -> dict[str, float]:
    """Return overlap of the large lesions, detection of small and large ones, and the quality of all pairs."""
    tp, fp, fn = comparison.counts
    hits = [each for each in comparison.counted if each.found]
    split = comparison.protocol.split_mm3 or 0.0
    large = [e for e in comparison.counted if _size(e.lesion) >= split]
    small = [e for e in comparison.counted if _size(e.lesion) < split]
    nothing = tp + fp + fn == 0
    rq = math.nan if nothing else 2 * tp / (2 * tp + fp + fn)
    sq = math.nan if nothing else float(np.mean([e.dice for e in hits])) if hits else 0.0
    result = (
        _lesion_wise(large, fp, unit, tolerances, penalty)
        if large
        else dict.fromkeys(_lesion_wise([], 0, unit, tolerances, penalty), math.nan)
    )
    # The challenge scores 0 where there is no large lesion, and nothing where there is no small one.
    for name, group, none in (("small", small, math.nan), ("large", large, 0.0)):
        found = sum(e.found and e.dice >= comparison.protocol.hit_dice for e in group)
        result[f"lesion_f1_{name}"] = 2 * found / (found + len(group) + fp) if group else none
    return {
        **result,
        "pq": sq * rq,
        "sq": sq,
        "rq": rq,
        f"sq_hd95_{unit}": math.nan if nothing else float(np.mean([e.hd95 for e in hits])) if hits else math.inf,
        **{
            f"sq_nsd_{t:g}{unit}": math.nan if nothing else float(np.mean([e.nsd[t] for e in hits])) if hits else 0.0
            for t in tolerances
        },
    }


def _size(lesion: Lesion) -> float:
    return float(lesion.voxels) if lesion.volume_mm3 is None else lesion.volume_mm3
