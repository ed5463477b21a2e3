"""Post-processing search: what to make of a network's probabilities, chosen on cases it was not trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from metaseg_cli.core.cache import CaseRecord
from metaseg_cli.core.detection import voxel_size
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.training.detections import (
    DEFAULT_THRESHOLD,
    LOGIT_EDGES,
    THRESHOLDS,
    CaseDetections,
    DetectionTable,
    SizeClassScore,
    ValidationScore,
    pooled_score,
    score_by_size,
)

# The grid that is searched, coarse as few lesions decide: minimum sizes in voxels, highest probabilities of a component
# (hysteresis), and confidences from which a component stays however small it is.
_MIN_SIZES = (2, 4, 8, 16, 32, 64)
_HIGH_THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95)
_KEEP_CONFIDENCES = (0.7, 0.8, 0.9)
# What each setting beyond threshold and size must gain in score: few lesions decide, and most of what they favour is
# chance.
_COMPLEXITY_PENALTY = 0.003
# A filter may reach the size of the smallest tenth of the training lesions and no further.
_SMALLEST_LESIONS = 0.1
_LEAST_GAIN = 1e-4  # of a score, below which two settings tie and the plainer one stays
_TEMPERATURES = (0.25, 4.0)  # beyond these the validation cases are too few to say


@dataclass(frozen=True, kw_only=True)
class SelectedPostprocessing:
    """What was chosen on validation cases, by region, for calibrated probabilities; *score* is None without any case.

    ``by_size`` says how many lesions of which size are found that way.
    """

    postprocessing: dict[str, Postprocessing]
    temperature: float
    score: ValidationScore | None
    by_size: tuple[SizeClassScore, ...]


def select_postprocessing(
    cases: Sequence[CaseDetections], training_lesions: Sequence[float], regions: Iterable[str]
) -> SelectedPostprocessing:
    """Choose post-processing and temperature; the defaults where there is no case."""
    if not cases:
        defaults = {name: Postprocessing() for name in regions}
        return SelectedPostprocessing(postprocessing=defaults, temperature=1.0, score=None, by_size=())
    settings, score = search_postprocessing(cases, training_lesions)
    temperature = choose_temperature(cases)
    return SelectedPostprocessing(
        postprocessing={name: each.calibrated(temperature) for name, each in zip(regions, settings, strict=True)},
        temperature=temperature,
        score=score,
        by_size=tuple(score_by_size(cases, settings)),
    )


def search_postprocessing(
    cases: Sequence[CaseDetections], training_lesions: Sequence[float], *, thorough: bool = True
) -> tuple[tuple[Postprocessing, ...], ValidationScore]:
    """Return the settings of each region with the best score on *cases*; not *thorough*: threshold and minimum size.

    No minimum size reaches beyond the smallest tenth of *training_lesions* (sizes as ``Postprocessing`` has them): a
    filter that gains precision by deleting small metastases would score well and do harm.
    """
    voxel = float(np.median([case.voxel for case in cases]))
    limit = float(np.quantile(training_lesions, _SMALLEST_LESIONS)) if len(training_lesions) else 0.0
    sizes = [0.0, *(n * voxel for n in _MIN_SIZES if n * voxel <= limit * (1 + 1e-6))]
    chosen, counts = [], []
    for region in range(len(cases[0].regions)):
        best = None
        # From the default outwards and the plainest first, so that a tie keeps the plainer setting.
        for threshold in sorted(THRESHOLDS, key=lambda t: abs(t - DEFAULT_THRESHOLD)):
            table = DetectionTable(cases, region, threshold)
            for settings, penalty in _grid(threshold, sizes, thorough=thorough):
                found = table.counts(table.kept(settings))
                value = pooled_score([found], len(cases)).score - penalty
                if best is None or value > best[0] + _LEAST_GAIN:
                    best = (value, settings, found)
        assert best is not None
        chosen.append(best[1])
        counts.append(best[2])
    return tuple(chosen), pooled_score(counts, len(cases))


def _grid(threshold: float, sizes: Sequence[float], *, thorough: bool) -> Iterator[tuple[Postprocessing, float]]:
    """Yield the settings of one threshold, and what each must gain over the plainest."""
    highs = [0.0, *(t for t in _HIGH_THRESHOLDS if t > threshold)] if thorough else [0.0]
    for high, size in itertools.product(highs, sizes):
        for confidence in (1.0, *(c for c in _KEEP_CONFIDENCES if thorough and size and c > threshold)):
            settings = Postprocessing(
                threshold=threshold, high_threshold=high, min_size=size, keep_confidence=confidence
            )
            yield settings, ((high > 0) + (confidence < 1)) * _COMPLEXITY_PENALTY


def lesion_sizes(cases: Iterable[CaseRecord]) -> list[float]:
    """Return the sizes of all reference lesions of *cases*, as ``Postprocessing`` has them."""
    return [
        voxels * voxel_size(case.spacing_mm, flat=case.shape[0] == 1) for case in cases for voxels in case.lesion_voxels
    ]


def choose_temperature(cases: Sequence[CaseDetections]) -> float:
    """Return the T for which sigmoid(logit/T) has the least cross-entropy on *cases* (Guo et al. 2017), 0.25 … 4."""
    background, foreground = np.sum([r.logits for case in cases for r in case.regions], axis=0)
    if not foreground.sum() or not background.sum():
        return 1.0
    middles = (LOGIT_EDGES[:-1] + LOGIT_EDGES[1:]) / 2

    def cross_entropy(log_temperature: float) -> float:
        scaled = middles / np.exp(log_temperature)
        return float(foreground @ np.logaddexp(0, -scaled) + background @ np.logaddexp(0, scaled))

    bounds = (np.log(_TEMPERATURES[0]), np.log(_TEMPERATURES[1]))
    found = optimize.minimize_scalar(cross_entropy, bounds=bounds, method="bounded")
    return float(np.exp(found.x))
