"""What to make of a network's probabilities, chosen on cases that it did not learn from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from metaseg_cli.core.cache import CaseRecord
from metaseg_cli.core.postprocessing import Postprocessing, voxel_size
from metaseg_cli.core.training.validation import (
    LOGIT_EDGES,
    MIDDLE,
    THRESHOLDS,
    CaseFindings,
    Pool,
    SizeClassScore,
    ValidationScore,
    combined,
    score_by_size,
)

_SIZES = (2, 4, 8, 16, 32, 64)  # smallest lesions to try, in voxels
_SEEDS = (0.6, 0.7, 0.8, 0.9, 0.95)
_SPARING = (0.7, 0.8, 0.9)
# What one setting more must gain: few lesions decide, and most of what they favour is chance.
_PRICE = 0.003


def choose_postprocessing(
    cases: Sequence[CaseFindings], training_lesions: Sequence[float], *, thorough: bool = True
) -> tuple[tuple[Postprocessing, ...], ValidationScore]:
    """The settings of each region with the best score on *cases*; not *thorough*: threshold and smallest lesion only.

    Nothing as large as the smallest tenth of *training_lesions* (sizes as ``Postprocessing`` has them) is dropped for
    its size: a filter that gains precision by deleting small metastases would look good and do harm.
    """
    voxel = float(np.median([case.voxel for case in cases]))
    limit = float(np.quantile(training_lesions, 0.1)) if len(training_lesions) else 0.0
    sizes = [0.0, *(n * voxel for n in _SIZES if n * voxel <= limit * (1 + 1e-6))]
    chosen, counts = [], []
    for region in range(len(cases[0].regions)):
        best = None
        # From the middle outwards and the plainest first, so that a tie keeps the plainer setting.
        for threshold in sorted(THRESHOLDS, key=lambda t: abs(t - MIDDLE)):
            pool = Pool(cases, region, threshold)
            for settings, price in _candidates(threshold, sizes, thorough=thorough):
                found = pool.counts(pool.kept(settings))
                value = combined([found], len(cases)).score - price
                if best is None or value > best[0] + 1e-4:
                    best = (value, settings, found)
        assert best is not None
        chosen.append(best[1])
        counts.append(best[2])
    return tuple(chosen), combined(counts, len(cases))


def _candidates(threshold: float, sizes: Sequence[float], *, thorough: bool) -> Iterator[tuple[Postprocessing, float]]:
    """Settings of one threshold, and what each must gain over the plainest."""
    seeds = [0.0, *(s for s in _SEEDS if s > threshold)] if thorough else [0.0]
    for seed, size in itertools.product(seeds, sizes):
        for sparing in (1.0, *(s for s in _SPARING if thorough and size and s > threshold)):
            extra = (seed > 0) + (sparing < 1)
            yield Postprocessing(threshold=threshold, seed=seed, smallest_lesion=size, sparing=sparing), extra * _PRICE


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen on validation cases: for calibrated probabilities, by region; *score* is None without any case.

    ``by_size`` says how many lesions of which size are found that way.
    """

    postprocessing: dict[str, Postprocessing]
    temperature: float
    score: ValidationScore | None
    by_size: tuple[SizeClassScore, ...]


def tune(cases: Sequence[CaseFindings], training_lesions: Sequence[float], regions: Iterable[str]) -> Tuned:
    """Choose post-processing and temperature; the defaults where there is no case."""
    if not cases:
        return Tuned(
            postprocessing={name: Postprocessing() for name in regions}, temperature=1.0, score=None, by_size=()
        )
    settings, score = choose_postprocessing(cases, training_lesions)
    temperature = choose_temperature(cases)
    return Tuned(
        postprocessing={name: each.calibrated(temperature) for name, each in zip(regions, settings, strict=True)},
        temperature=temperature,
        score=score,
        by_size=tuple(score_by_size(cases, settings)),
    )


def lesion_sizes(cases: Iterable[CaseRecord]) -> list[float]:
    """Of all reference lesions of *cases*, as ``Postprocessing`` has them."""
    return [
        voxels * voxel_size(case.spacing_mm, flat=case.shape[0] == 1) for case in cases for voxels in case.lesion_voxels
    ]


def choose_temperature(cases: Sequence[CaseFindings]) -> float:
    """The T for which sigmoid(logit/T) has the least cross-entropy on *cases* (Guo et al. 2017), 0.25 … 4."""
    background, foreground = np.sum([r.logits for case in cases for r in case.regions], axis=0)
    if not foreground.sum() or not background.sum():
        return 1.0
    middles = (LOGIT_EDGES[:-1] + LOGIT_EDGES[1:]) / 2

    def cross_entropy(log_temperature: float) -> float:
        scaled = middles / np.exp(log_temperature)
        return float(foreground @ np.logaddexp(0, -scaled) + background @ np.logaddexp(0, scaled))

    found = optimize.minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return float(np.exp(found.x))
