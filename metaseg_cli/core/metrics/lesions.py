"""Which lesions were found, and how well each of them was segmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.detection import SIZE_CLASSES, Lesion, label_lesions, overlaps
from metaseg_cli.core.metrics.matching import LesionMaps, label_both, match
from metaseg_cli.core.metrics.surfaces import surface_distances
from metaseg_cli.core.results.scores import SizeClassScores


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

_PQ_IOU = 0.5


@dataclass(frozen=True)
class Matching:
    """Which lesions were found: ``found[i]`` of reference lesion i + 1, ``false[j]`` of predicted lesion j + 1."""

    found: tuple[bool, ...]
    false: tuple[bool, ...]

    @property
    def lesion_tp(self) -> int:
        """Return the number of reference lesions that were found."""
        return sum(self.found)

    @property
    def lesion_fn(self) -> int:
        """Return the number of reference lesions that were missed."""
        return len(self.found) - self.lesion_tp

    @property
    def lesion_fp(self) -> int:
        """Return the number of predicted lesions that overlap no reference lesion."""
        return sum(self.false)


def match_lesions(reference: NDArray[Any], prediction: NDArray[Any]) -> Matching:
    """Match by any overlap: a reference lesion is found when a predicted voxel lies on it, else missed."""
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

    ``hd95`` (mm, or pixels without a spacing) is infinite and ``dice`` and ``nsd`` (by tolerance) are 0 for a missed
    lesion. Not ``counted``: smaller than what the protocol counts.
    """

    lesion: Lesion
    matched: tuple[int, ...]
    dice: float
    hd95: float
    nsd: dict[float, float]
    counted: bool = True

    @property
    def found(self) -> bool:
        """Return whether anything was predicted for it."""
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
        """Return the reference lesions that enter counts and means."""
        return tuple(each for each in self.reference if each.counted)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return true positives, false positives and false negatives."""
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
    r, p = (reference[0], prediction[0]) if flat else (reference, prediction)
    spacing = None if spacing_mm is None else spacing_mm[1:] if flat else spacing_mm
    maps = label_both(r, p, spacing_mm, protocol, probability)
    matched = match(maps, protocol)
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


def compare_lesions_per_slice(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float] | None,
    protocol: Protocol,
    tolerances: Sequence[float],
    probability: NDArray[np.floating[Any]] | None = None,
) -> LesionComparison:
    """Compare masks ``(Z, Y, X)`` whose slices are pictures of their own: in 2D each, lesions numbered through."""
    found: list[Lesion] = []
    expected: list[ScoredLesion] = []
    false: list[int] = []
    ious: list[float] = []
    for z in map(int, np.flatnonzero((reference | prediction).any(axis=(1, 2)))):
        own = slice(z, z + 1)
        part = compare_lesions(
            reference[own],
            prediction[own],
            spacing_mm,
            protocol,
            tolerances,
            None if probability is None else probability[own],
            flat=True,
        )
        before = len(found)
        expected += [
            replace(
                each,
                lesion=_in_slice(each.lesion, z, len(expected)),
                matched=tuple(number + before for number in each.matched),
            )
            for each in part.reference
        ]
        found += [_in_slice(each, z, before) for each in part.prediction]
        false += [number + before for number in part.false]
        ious += part.ious
    return LesionComparison(
        reference=tuple(expected),
        prediction=tuple(found),
        false=tuple(false),
        ious=tuple(ious),
        protocol=protocol,
    )


def _in_slice(lesion: Lesion, z: int, before: int) -> Lesion:
    """Return a lesion of a single slice as one of slice *z*, with *before* others numbered before its slice."""
    _, y, x = lesion.centroid_voxel
    return replace(
        lesion, number=lesion.number + before, centroid_voxel=(float(z), y, x), box=((z, z + 1), *lesion.box[1:])
    )


def _scored(
    lesion: Lesion,
    matched: tuple[int, ...],
    maps: LesionMaps,
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
    for name, group, score_if_empty in (("small", small, math.nan), ("large", large, 0.0)):
        found = sum(e.found and e.dice >= comparison.protocol.hit_dice for e in group)
        result[f"lesion_f1_{name}"] = 2 * found / (found + len(group) + fp) if group else score_if_empty
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
