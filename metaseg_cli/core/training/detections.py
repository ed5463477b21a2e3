"""What a network detects in full volumes, and how good that is under any post-processing.

Full volumes of probabilities are never kept: each case is reduced to its detections, which are small, can be sent
between processes, and are enough to try every threshold and minimum size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.detection import (
    SIZE_CLASSES,
    ComponentValues,
    component_values,
    equivalent_diameter,
    label_lesions,
    overlaps,
    selection_score,
    smaller_half,
    voxel_size,
)
from metaseg_cli.core.metrics import lesion_scores
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.results.operating_points import SizeClassScore

# Thresholds that are tried; more of them, or finer ones, would fit the few lesions of a fold and no others.
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DEFAULT_THRESHOLD = 0.5
_LEAST_PROBABILITY = 1e-7  # about what float32 tells from 1; its logit is −16.1
LOGIT_EDGES = np.linspace(-16, 16, 321)


@dataclass(frozen=True, kw_only=True)
class ValidationScore:
    """*dice*: mean over patients, each patient's voxels pooled; lesion scores pooled over all cases."""

    dice: float
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float
    small_lesion_recall: float  # of the smaller half of the lesions
    false_positives_per_case: float = 0.0

    @property
    def score(self) -> float:
        """By which the best model is selected."""
        return selection_score(self.dice, self.lesion_f1, self.small_lesion_recall)


@dataclass(frozen=True)
class ThresholdedRegion:
    """The predicted components of one region of one case at one threshold."""

    components: ComponentValues
    hits: NDArray[np.int64]  # of their voxels, on the reference
    overlaps: NDArray[np.integer[Any]]  # pairs (component, reference lesion) that share a voxel, shape (n, 2)


@dataclass(frozen=True)
class RegionDetections:
    """One region of one case."""

    lesion_voxels: NDArray[np.int64]  # of each reference lesion
    at: dict[float, ThresholdedRegion]  # by threshold
    logits: NDArray[np.int64]  # (2, bins): how many background and foreground voxels have which logit


@dataclass(frozen=True)
class CaseDetections:
    """What a network detects in one case. *voxel* is its volume in mm³ (2D: area in mm²; 1 without spacing).

    *flat*: its lesions are components of single slices. *per_slice*: so they are wherever the model is used.
    """

    case: str
    patient: str
    voxel: float
    flat: bool
    regions: tuple[RegionDetections, ...]
    per_slice: bool = False


def detect(
    case: str,
    patient: str,
    spacing_mm: tuple[float, float, float] | None,
    probabilities: NDArray[np.floating[Any]],
    reference: NDArray[np.bool_],
    *,
    per_slice: bool = False,
) -> CaseDetections:
    """Reduce *probabilities* and *reference*, both ``(R, Z, Y, X)``, to what every later question needs.

    *per_slice*: lesions are components of single slices, as where pictures are predicted one by one.
    """
    flat = per_slice or reference.shape[1] == 1
    return CaseDetections(
        case=case,
        patient=patient,
        voxel=voxel_size(spacing_mm, flat=flat),
        flat=flat,
        regions=tuple(_detect_region(p, r, per_slice) for p, r in zip(probabilities, reference, strict=True)),
        per_slice=per_slice,
    )


def _detect_region(
    probability: NDArray[np.floating[Any]], reference: NDArray[np.bool_], per_slice: bool
) -> RegionDetections:
    truth, lesions = label_lesions(reference, per_slice=per_slice)
    at = {}
    for threshold in THRESHOLDS:
        predicted, count = label_lesions(probability >= threshold, per_slice=per_slice)
        pairs, voxels = overlaps(predicted, truth)
        at[threshold] = ThresholdedRegion(
            components=component_values(predicted, count, probability),
            hits=np.bincount(pairs[:, 0], weights=voxels, minlength=count + 1)[1:].astype(np.int64),
            overlaps=pairs - 1,
        )
    sizes = np.bincount(truth[truth > 0], minlength=lesions + 1)[1:]
    return RegionDetections(sizes, at, _logit_histograms(probability, truth > 0))


def _logit_histograms(probability: NDArray[np.floating[Any]], foreground: NDArray[np.bool_]) -> NDArray[np.int64]:
    clipped = np.clip(probability.astype(np.float32), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    logit = np.log(clipped) - np.log1p(-clipped)
    return np.stack([np.histogram(logit[where], LOGIT_EDGES)[0] for where in (~foreground, foreground)])


@dataclass(frozen=True)
class PatientCounts:
    """What post-processing gives in one region, one number per patient: Dice, and lesions.

    ``tp`` are reference lesions that were found, ``lesions`` all of them; ``small_tp`` and ``small`` are those of the
    smaller half.
    """

    dice: NDArray[np.float64]
    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    lesions: NDArray[np.float64]
    small_tp: NDArray[np.float64]
    small: NDArray[np.float64]


class DetectionTable:
    """All components of one region at one threshold, of all cases; thousands of settings are tried on it."""

    def __init__(self, cases: Sequence[CaseDetections], region: int, threshold: float) -> None:
        patients = {patient: number for number, patient in enumerate(dict.fromkeys(case.patient for case in cases))}
        regions = [case.regions[region] for case in cases]
        at = [each.at[threshold] for each in regions]
        first = np.cumsum([0, *(len(each.hits) for each in at)])
        first_lesion = np.cumsum([0, *(len(each.lesion_voxels) for each in regions)])
        self.patients = len(patients)
        self.voxels = _concatenated([each.components.voxels for each in at])
        self.peak = _concatenated([each.components.peak for each in at])
        self.confidence = _concatenated([each.components.logit_confidence for each in at])
        self.hits = _concatenated([each.hits for each in at])
        # A slice among volumes says nothing about the volume of what it shows, see ``postprocessing.to_mask``.
        self.size = _concatenated(
            [
                np.full(len(each.hits), np.inf)
                if case.flat and not case.per_slice
                else each.components.voxels * case.voxel
                for each, case in zip(at, cases, strict=True)
            ]
        )
        owner = np.array([patients[case.patient] for case in cases])
        self.patient = np.repeat(owner, np.diff(first))
        shifts = np.column_stack([first, first_lesion])
        self.overlaps = _concatenated([each.overlaps + shift for each, shift in zip(at, shifts, strict=False)])
        self.false = np.ones(len(self.hits), bool)  # components that lie on no lesion
        self.false[self.overlaps[:, 0]] = False
        self.lesions = int(first_lesion[-1])
        self.lesion_patient = np.repeat(owner, np.diff(first_lesion))
        self.lesion_size = _concatenated(
            [each.lesion_voxels * case.voxel for each, case in zip(regions, cases, strict=True)]
        )
        self.diameter = np.array(
            [
                equivalent_diameter(float(voxels) * case.voxel, flat=case.flat)
                for each, case in zip(regions, cases, strict=True)
                for voxels in each.lesion_voxels
            ]
        )
        self.smaller_half = smaller_half(self.lesion_size)
        self.reference = np.bincount(
            owner, weights=[each.lesion_voxels.sum() for each in regions], minlength=len(patients)
        )

    def kept(self, settings: Postprocessing) -> NDArray[np.bool_]:
        """Return which components *settings* keep."""
        return settings.keep_mask(self.size, self.peak, self.confidence)

    def most_confident(self, most_false: float) -> NDArray[np.bool_]:
        """Return the components that are kept when they are accepted by confidence until *most_false* are false."""
        order = np.argsort(-self.confidence, kind="stable")
        kept = np.zeros(len(order), bool)
        kept[order[: int(np.searchsorted(np.cumsum(self.false[order]), most_false + 1e-9, side="right"))]] = True
        return kept

    def found(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which reference lesions the *kept* components touch."""
        found = np.zeros(self.lesions, bool)
        found[self.overlaps[kept[self.overlaps[:, 0]], 1]] = True
        return found

    def counts(self, kept: NDArray[np.bool_]) -> PatientCounts:
        """Return what the *kept* components give each patient."""
        hits = self._per_patient(self.patient, self.hits * kept)
        both = self._per_patient(self.patient, self.voxels * kept) + self.reference
        false = kept & self.false
        found = self.found(kept)
        return PatientCounts(
            dice=np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0),
            tp=self._per_patient(self.lesion_patient, found),
            fp=self._per_patient(self.patient, false),
            lesions=self._per_patient(self.lesion_patient, np.ones(self.lesions)),
            small_tp=self._per_patient(self.lesion_patient, found & self.smaller_half),
            small=self._per_patient(self.lesion_patient, self.smaller_half),
        )

    def by_size(self, kept: NDArray[np.bool_]) -> tuple[SizeClassScore, ...]:
        """Return how many lesions the *kept* components find, by the equivalent diameter of the reference lesion."""
        found = self.found(kept)
        classes = [(each, (self.diameter >= each.low) & (self.diameter < each.high)) for each in SIZE_CLASSES]
        return tuple(
            SizeClassScore(
                up_to=each.high if math.isfinite(each.high) else None,
                lesions=int(own.sum()),
                found=int(found[own].sum()),
            )
            for each, own in classes
        )

    def _per_patient(self, owner: NDArray[np.integer[Any]], weights: NDArray[Any]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(owner, weights=weights, minlength=self.patients).astype(float)
        return sums


def _concatenated(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.asarray(part) for part in parts])


def score_cases(cases: Sequence[CaseDetections], settings: Sequence[Postprocessing]) -> ValidationScore:
    """Score the masks that *settings*, one for each region, make; regions and patients count alike.

    Their thresholds must be among ``THRESHOLDS``.
    """
    tables = [DetectionTable(cases, region, each.threshold) for region, each in enumerate(settings)]
    return pooled_score([table.counts(table.kept(s)) for table, s in zip(tables, settings, strict=True)], len(cases))


def pooled_score(regions: Sequence[PatientCounts], cases: int) -> ValidationScore:
    """Return one score of several regions in the same *cases*. Without a small lesion, their recall is 1."""
    names = ("tp", "fp", "lesions", "small_tp", "small")
    tp, fp, lesions, small_tp, small = (int(sum(getattr(each, name).sum() for each in regions)) for name in names)
    scores = lesion_scores(tp, fp, lesions - tp)
    return ValidationScore(
        dice=float(np.mean([dice for region in regions for dice in region.dice])),
        lesion_recall=scores["lesion_recall"],
        lesion_precision=scores["lesion_precision"],
        lesion_f1=scores["lesion_f1"],
        small_lesion_recall=small_tp / small if small else 1.0,
        false_positives_per_case=fp / max(1, cases),
    )


def score_by_size(cases: Sequence[CaseDetections], settings: Sequence[Postprocessing]) -> list[SizeClassScore]:
    """Return how many lesions of all regions were found, by the equivalent diameter of the reference lesion."""
    tables = [DetectionTable(cases, number, each.threshold) for number, each in enumerate(settings)]
    per_region = [table.by_size(table.kept(each)) for table, each in zip(tables, settings, strict=True)]
    return [
        SizeClassScore(
            up_to=classes[0].up_to,
            lesions=sum(each.lesions for each in classes),
            found=sum(each.found for each in classes),
        )
        for classes in zip(*per_region, strict=True)
    ]
