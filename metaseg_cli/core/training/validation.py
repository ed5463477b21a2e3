"""How good a network is on whole cases it does not learn from, and what to make of its probabilities.

Whole volumes of probabilities are never kept: each case is reduced to its findings, which are small, can be sent
between processes, and are enough to try every threshold and smallest size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from metaseg_cli.core.metrics import Confusion, equivalent_diameter, label_lesions, lesion_scores
from metaseg_cli.core.postprocessing import Postprocessing

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MIDDLE = 0.5
# Upper ends of the size classes in mm (pixels where there is no spacing).
SIZE_CLASSES = (3.0, 5.0, 10.0, np.inf)
_LOGIT_EDGES = np.linspace(-16, 16, 321)


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
        """By which the best model is chosen: the mean of Dice and lesion F1."""
        return (self.dice + self.lesion_f1) / 2


@dataclass(frozen=True)
class Components:
    """The predicted components of one region of one case at one threshold."""

    voxels: NDArray[np.int64]  # of each component
    hits: NDArray[np.int64]  # of them on the reference
    touching: NDArray[np.integer[Any]]  # pairs (component, reference lesion) that share a voxel, shape (n, 2)


@dataclass(frozen=True)
class RegionFindings:
    """One region of one case."""

    lesion_voxels: NDArray[np.int64]  # of each reference lesion
    at: dict[float, Components]  # by threshold
    logits: NDArray[np.int64]  # (2, bins): how many background and foreground voxels have which logit


@dataclass(frozen=True)
class CaseFindings:
    """What a network found in one case. *voxel* is its volume in mm³ (2D: area in mm²; 1 without spacing)."""

    case: str
    patient: str
    voxel: float
    flat: bool
    regions: tuple[RegionFindings, ...]


@dataclass(frozen=True, kw_only=True)
class SizeClassScore:
    """How many reference lesions there are of one size, and how many of them were found."""

    up_to: float  # diameter; infinite for the last class
    lesions: int
    found: int


def findings(
    case: str,
    patient: str,
    spacing_mm: tuple[float, float, float] | None,
    probabilities: NDArray[np.floating[Any]],
    reference: NDArray[np.bool_],
) -> CaseFindings:
    """Reduce *probabilities* and *reference*, both ``(R, Z, Y, X)``, to what every later question needs."""
    flat = reference.shape[1] == 1
    spacing = spacing_mm or (1.0, 1.0, 1.0)
    return CaseFindings(
        case=case,
        patient=patient,
        voxel=float(np.prod(spacing[1:] if flat else spacing)),
        flat=flat,
        regions=tuple(_region(p, r) for p, r in zip(probabilities, reference, strict=True)),
    )


def _region(probability: NDArray[np.floating[Any]], reference: NDArray[np.bool_]) -> RegionFindings:
    truth, lesions = label_lesions(reference)
    at = {}
    for threshold in THRESHOLDS:
        predicted, count = label_lesions(probability >= threshold)
        inside = predicted > 0
        p, r = predicted[inside], truth[inside]
        at[threshold] = Components(
            voxels=np.bincount(p, minlength=count + 1)[1:],
            hits=np.bincount(p[r > 0], minlength=count + 1)[1:],
            touching=np.unique(np.column_stack([p[r > 0], r[r > 0]]), axis=0) - 1,
        )
    sizes = np.bincount(truth[truth > 0], minlength=lesions + 1)[1:]
    return RegionFindings(sizes, at, _histograms(probability, truth > 0))


def _histograms(probability: NDArray[np.floating[Any]], foreground: NDArray[np.bool_]) -> NDArray[np.int64]:
    clipped = np.clip(probability.astype(np.float32), 1e-7, 1 - 1e-7)
    logit = np.log(clipped) - np.log1p(-clipped)
    return np.stack([np.histogram(logit[where], _LOGIT_EDGES)[0] for where in (~foreground, foreground)])


def score_cases(cases: Sequence[CaseFindings], settings: Postprocessing) -> ValidationScore:
    """Scores of the masks that *settings* make; regions and patients count alike. The threshold must be known."""
    pooled: dict[tuple[str, int], Confusion] = {}
    tp = fp = fn = 0
    for case in cases:
        for number, region in enumerate(case.regions):
            kept, hit = _kept(region, settings)
            one = region.at[settings.threshold]
            hits, voxels = int(one.hits[kept].sum()), int(one.voxels[kept].sum())
            counts = Confusion(tp=hits, fp=voxels - hits, fn=int(region.lesion_voxels.sum()) - hits)
            key = (case.patient, number)
            pooled[key] = pooled.get(key, Confusion()) + counts
            tp, fn = tp + int(hit.sum()), fn + int((~hit).sum())
            pairs = one.touching[kept[one.touching[:, 0]]]
            fp += int(kept.sum()) - len(np.unique(pairs[:, 0]))
    lesions = lesion_scores(tp, fp, fn)
    return ValidationScore(
        dice=float(np.mean([c.scores()["dice"] for c in pooled.values()])),
        lesion_recall=lesions["lesion_recall"],
        lesion_precision=lesions["lesion_precision"],
        lesion_f1=lesions["lesion_f1"],
        false_positives_per_case=fp / max(1, len(cases)),
    )


def _kept(region: RegionFindings, settings: Postprocessing) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which components stay, and which reference lesions those touch."""
    one = region.at[settings.threshold]
    kept = one.voxels >= max(1, settings.smallest_lesion_voxels)
    hit = np.zeros(len(region.lesion_voxels), dtype=bool)
    hit[one.touching[kept[one.touching[:, 0]], 1]] = True
    return kept, hit


def score_by_size(cases: Sequence[CaseFindings], settings: Postprocessing) -> list[SizeClassScore]:
    """Lesions and found ones by the equivalent diameter of the reference lesion."""
    counts = np.zeros((len(SIZE_CLASSES), 2), int)
    for case in cases:
        for region in case.regions:
            _, hit = _kept(region, settings)
            for voxels, found in zip(region.lesion_voxels, hit, strict=True):
                diameter = equivalent_diameter(float(voxels) * case.voxel, flat=case.flat)
                which = int(np.searchsorted(SIZE_CLASSES, diameter, side="left"))
                counts[which] += (1, int(found))
    return [
        SizeClassScore(up_to=float(end), lesions=int(n), found=int(f))
        for end, (n, f) in zip(SIZE_CLASSES, counts, strict=True)
    ]


def choose_postprocessing(
    cases: Sequence[CaseFindings], training_lesions: Sequence[int]
) -> tuple[Postprocessing, ValidationScore]:
    """The threshold and smallest lesion with the best score on *cases*.

    Nothing as large as the smallest tenth of the training lesions is ever dropped: a filter that gains precision
    by deleting small metastases would look good and do harm.
    """
    limit = int(np.quantile(training_lesions, 0.1)) if len(training_lesions) else 0
    sizes = [0] + [s for s in (2, 4, 8, 16, 32, 64) if s <= limit]
    best: tuple[Postprocessing, ValidationScore] | None = None
    # From the middle outwards and from no filter up, so that a tie keeps the plainer setting.
    for threshold in sorted(THRESHOLDS, key=lambda t: abs(t - MIDDLE)):
        for size in sizes:
            settings = Postprocessing(threshold=threshold, smallest_lesion_voxels=size)
            score = score_cases(cases, settings)
            if best is None or score.score > best[1].score + 1e-4:
                best = (settings, score)
    assert best is not None
    return best


def choose_temperature(cases: Sequence[CaseFindings]) -> float:
    """The T for which sigmoid(logit/T) has the least cross-entropy on *cases* (Guo et al. 2017), 0.25 … 4."""
    background, foreground = np.sum([r.logits for case in cases for r in case.regions], axis=0)
    if not foreground.sum() or not background.sum():
        return 1.0
    middles = (_LOGIT_EDGES[:-1] + _LOGIT_EDGES[1:]) / 2

    def cross_entropy(log_temperature: float) -> float:
        scaled = middles / np.exp(log_temperature)
        return float(foreground @ np.logaddexp(0, -scaled) + background @ np.logaddexp(0, scaled))

    found = optimize.minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return float(np.exp(found.x))
