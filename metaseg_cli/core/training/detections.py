"""What a network detects in full volumes, and how good that is under any post-processing.

Full volumes of probabilities are never kept: each case is reduced to its detections, which are small, can be sent
between processes, and are enough to try every threshold and minimum size.
"""

from __future__ import annotations

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
    voxel_size,
)
from metaseg_cli.core.metrics import lesion_scores
from metaseg_cli.core.postprocessing import Postprocessing

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
    false_positives_per_case: float = 0.0

    @property
    def score(self) -> float:
        """By which the best model is selected."""
        return selection_score(self.dice, self.lesion_f1)


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
    """What a network detects in one case. *voxel* is its volume in mm³ (2D: area in mm²; 1 without spacing)."""

    case: str
    patient: str
    voxel: float
    flat: bool
    regions: tuple[RegionDetections, ...]


@dataclass(frozen=True, kw_only=True)
class SizeClassScore:
    """How many reference lesions there are of one size, and how many of them were found."""

    up_to: float  # the diameter at which the next class begins; infinite for the last one
    lesions: int
    found: int


def detect(
    case: str,
    patient: str,
    spacing_mm: tuple[float, float, float] | None,
    probabilities: NDArray[np.floating[Any]],
    reference: NDArray[np.bool_],
) -> CaseDetections:
    """Reduce *probabilities* and *reference*, both ``(R, Z, Y, X)``, to what every later question needs."""
    flat = reference.shape[1] == 1
    return CaseDetections(
        case=case,
        patient=patient,
        voxel=voxel_size(spacing_mm, flat=flat),
        flat=flat,
        regions=tuple(_detect_region(p, r) for p, r in zip(probabilities, reference, strict=True)),
    )


def _detect_region(probability: NDArray[np.floating[Any]], reference: NDArray[np.bool_]) -> RegionDetections:
    truth, lesions = label_lesions(reference)
    at = {}
    for threshold in THRESHOLDS:
        predicted, count = label_lesions(probability >= threshold)
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


class DetectionTable:
    """All components of one region at one threshold, of all cases; thousands of settings are tried on it."""

    def __init__(self, cases: Sequence[CaseDetections], region: int, threshold: float) -> None:
        patients = {patient: number for number, patient in enumerate(dict.fromkeys(case.patient for case in cases))}
        regions = [case.regions[region] for case in cases]
        at = [each.at[threshold] for each in regions]
        first = np.cumsum([0, *(len(each.hits) for each in at)])
        first_lesion = np.cumsum([0, *(len(each.lesion_voxels) for each in regions)])
        self.voxels = _concatenated([each.components.voxels for each in at])
        self.peak = _concatenated([each.components.peak for each in at])
        self.confidence = _concatenated([each.components.logit_confidence for each in at])
        self.hits = _concatenated([each.hits for each in at])
        self.size = _concatenated([each.components.voxels * case.voxel for each, case in zip(at, cases, strict=True)])
        owner = np.array([patients[case.patient] for case in cases])
        self.patient = np.repeat(owner, np.diff(first))
        shifts = np.column_stack([first, first_lesion])
        self.overlaps = _concatenated([each.overlaps + shift for each, shift in zip(at, shifts, strict=False)])
        self.lesions = int(first_lesion[-1])
        self.reference = np.bincount(
            owner, weights=[each.lesion_voxels.sum() for each in regions], minlength=len(patients)
        )

    def kept(self, settings: Postprocessing) -> NDArray[np.bool_]:
        """Return which components *settings* keep."""
        return settings.keep_mask(self.size, self.peak, self.confidence)

    def found(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which reference lesions the *kept* components touch."""
        found = np.zeros(self.lesions, bool)
        found[self.overlaps[kept[self.overlaps[:, 0]], 1]] = True
        return found

    def counts(self, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int, int, int]:
        """Return Dice of each patient, then true-positive, false-positive and missed lesions."""
        own = self.patient[kept]
        patients = len(self.reference)
        hits = np.bincount(own, weights=self.hits[kept], minlength=patients)
        both = np.bincount(own, weights=self.voxels[kept], minlength=patients) + self.reference
        dice = np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
        tp = int(self.found(kept).sum())
        true = len(np.unique(self.overlaps[kept[self.overlaps[:, 0]], 0]))
        return dice, tp, int(kept.sum()) - true, self.lesions - tp


def _concatenated(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.asarray(part) for part in parts])


def score_cases(cases: Sequence[CaseDetections], settings: Sequence[Postprocessing]) -> ValidationScore:
    """Score the masks that *settings*, one for each region, make; regions and patients count alike.

    Their thresholds must be among ``THRESHOLDS``.
    """
    tables = [DetectionTable(cases, region, each.threshold) for region, each in enumerate(settings)]
    return pooled_score([table.counts(table.kept(s)) for table, s in zip(tables, settings, strict=True)], len(cases))


def pooled_score(regions: Sequence[tuple[NDArray[np.float64], int, int, int]], cases: int) -> ValidationScore:
    """Return one score of what ``DetectionTable.counts`` says of each region."""
    tp, fp, fn = (sum(int(region[i]) for region in regions) for i in (1, 2, 3))
    lesions = lesion_scores(tp, fp, fn)
    return ValidationScore(
        dice=float(np.mean([dice for region in regions for dice in region[0]])),
        lesion_recall=lesions["lesion_recall"],
        lesion_precision=lesions["lesion_precision"],
        lesion_f1=lesions["lesion_f1"],
        false_positives_per_case=fp / max(1, cases),
    )


def score_by_size(cases: Sequence[CaseDetections], settings: Sequence[Postprocessing]) -> list[SizeClassScore]:
    """Return how many lesions were found, by the equivalent diameter of the reference lesion."""
    counts = np.zeros((len(SIZE_CLASSES), 2), int)
    for case in cases:
        for number, (region, each) in enumerate(zip(case.regions, settings, strict=True)):
            table = DetectionTable([case], number, each.threshold)
            for voxels, found in zip(region.lesion_voxels, table.found(table.kept(each)), strict=True):
                diameter = equivalent_diameter(float(voxels) * case.voxel, flat=case.flat)
                which = next(i for i, size_class in enumerate(SIZE_CLASSES) if diameter in size_class)
                counts[which] += (1, int(found))
    return [
        SizeClassScore(up_to=float(size_class.high), lesions=int(n), found=int(f))
        for size_class, (n, f) in zip(SIZE_CLASSES, counts, strict=True)
    ]
