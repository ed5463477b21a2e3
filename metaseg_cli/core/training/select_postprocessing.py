"""Post-processing search: what to make of a network's probabilities, chosen on cases it was not trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from metaseg_cli.core.choices import DEFAULT_OPERATING_POINT, OPERATING_POINTS, OperatingRule
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.results.operating_points import FrocPoint, OperatingPoint, RegionPoint, SizeClassScore
from metaseg_cli.core.training.detections import (
    DEFAULT_THRESHOLD,
    LOGIT_EDGES,
    THRESHOLDS,
    CaseDetections,
    DetectionTable,
    PatientCounts,
    ValidationScore,
    pooled_score,
    score_by_size,
)

# Highest probabilities that a component may have to reach (hysteresis): coarse, as few lesions decide.
_HIGH_THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_TEMPERATURES = (0.25, 4.0)  # beyond these the validation cases are too few to say
_RESAMPLES = 1000  # of patients, for intervals
_TIE = 1e-9
# False lesions per case for which the card says how many lesions are found.
_FALSE_PER_CASE = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class SelectedPostprocessing:
    """What was chosen on validation cases, for calibrated probabilities, at each operating point.

    ``score`` and ``by_size``, how many lesions of which size are found, are those of the operating point that is the
    model's default; *score* is None without any case. ``froc`` is of each region.
    """

    operating_points: dict[str, OperatingPoint]
    default: str
    temperature: float
    score: ValidationScore | None
    by_size: tuple[SizeClassScore, ...] = ()
    froc: dict[str, tuple[FrocPoint, ...]] = field(default_factory=dict)

    @property
    def postprocessing(self) -> dict[str, Postprocessing]:
        """The post-processing of each region at the default operating point."""
        return self.operating_points[self.default].postprocessing


@dataclass(frozen=True)
class _Candidate:
    """One setting of one region, and what it gives."""

    settings: Postprocessing
    counts: PatientCounts

    @property
    def dice(self) -> float:
        return float(self.counts.dice.mean())

    @property
    def lesion_recall(self) -> float:
        return float(self.counts.tp.sum() / max(1.0, self.counts.lesions.sum()))

    @property
    def lesion_f1(self) -> float:
        return float(_f1(self.counts.tp.sum(), self.counts.fp.sum(), self.counts.lesions.sum()))


def select_postprocessing(
    cases: Sequence[CaseDetections],
    smallest_lesions: Mapping[str, float],
    regions: Sequence[str],
    default: str = DEFAULT_OPERATING_POINT,
) -> SelectedPostprocessing:
    """Choose post-processing for every operating point, and the temperature; the plainest where there is no case.

    *smallest_lesions* are those of the training cases, by region: no filter by size reaches beyond them.
    """
    if not cases:
        plain = {name: Postprocessing() for name in regions}
        points = {name: OperatingPoint(postprocessing=plain) for name in OPERATING_POINTS}
        return SelectedPostprocessing(operating_points=points, default=default, temperature=1.0, score=None)
    temperature = choose_temperature(cases)
    candidates = {
        name: _candidates(cases, number, smallest_lesions.get(name, 0.0)) for number, name in enumerate(regions)
    }
    points, chosen = {}, {}
    for point, rule in OPERATING_POINTS.items():
        best = {name: _best(each, rule, len(cases)) for name, each in candidates.items()}
        chosen[point] = best
        points[point] = OperatingPoint(
            postprocessing={name: each.settings.calibrated(temperature) for name, each in best.items()},
            validation={name: _described(cases, number, each) for number, (name, each) in enumerate(best.items())},
        )
    own = chosen[default]
    return SelectedPostprocessing(
        operating_points=points,
        default=default,
        temperature=temperature,
        score=pooled_score([each.counts for each in own.values()], len(cases)),
        by_size=tuple(score_by_size(cases, [each.settings for each in own.values()])),
        froc={name: _froc(cases, number) for number, name in enumerate(regions)},
    )


def validation_of(selected: SelectedPostprocessing) -> dict[str, float]:
    """Return what the model card keeps of the score."""
    score = selected.score
    if score is None:
        return {}
    return {
        "dice": score.dice,
        "lesion_f1": score.lesion_f1,
        "small_lesion_recall": score.small_lesion_recall,
        "score": score.score,
    }


def best_threshold_score(cases: Sequence[CaseDetections]) -> ValidationScore:
    """Return the best score at one threshold per region: what an epoch is worth before any filter is tuned to it."""
    best = []
    for region in range(len(cases[0].regions)):
        found = []
        for threshold in _thresholds():
            table = DetectionTable(cases, region, threshold)
            found.append(table.counts(np.ones(len(table.hits), bool)))
        best.append(max(found, key=lambda counts: pooled_score([counts], len(cases)).score))
    return pooled_score(best, len(cases))


def _thresholds() -> list[float]:
    """Return the thresholds from the default outwards, so that a tie keeps the plainer one."""
    return sorted(THRESHOLDS, key=lambda threshold: abs(threshold - DEFAULT_THRESHOLD))


def _candidates(cases: Sequence[CaseDetections], region: int, smallest_lesion: float) -> list[_Candidate]:
    """Return every setting that is tried for a region, the plainest first."""
    tables = {threshold: DetectionTable(cases, region, threshold) for threshold in THRESHOLDS}
    settings = sorted(
        _grid(smallest_lesion, per_slice=cases[0].per_slice),
        key=lambda each: (
            (each.high_threshold > 0) + (each.min_size > 0),
            abs(each.threshold - DEFAULT_THRESHOLD),
            each.high_threshold,
        ),
    )
    return [_Candidate(each, tables[each.threshold].counts(tables[each.threshold].kept(each))) for each in settings]


def _grid(smallest_lesion: float, *, per_slice: bool) -> Iterator[Postprocessing]:
    """Yield the settings that are tried. A filter by size drops nothing as large as the smallest training lesion."""
    for threshold, size in itertools.product(THRESHOLDS, {0.0, smallest_lesion}):
        for high in (0.0, *(each for each in _HIGH_THRESHOLDS if each > threshold)):
            yield Postprocessing(threshold=threshold, high_threshold=high, min_size=size, per_slice=per_slice)


def _best(candidates: Sequence[_Candidate], rule: OperatingRule, cases: int) -> _Candidate:
    """Return the plainest of the *candidates*, which come in that order, that cannot be told apart from the best one.

    Two can be told apart where the 95 % interval of their difference, patients resampled, leaves out zero.
    """
    allowed = _allowed(candidates, rule, cases)
    dice = [each.dice for each in allowed]
    if rule.most_false is None:
        goals = [[each.lesion_f1 for each in allowed], dice]
        resampled = [_resampled_f1(allowed), _resampled_dice(allowed)]
    else:
        goals = [[each.lesion_recall for each in allowed], dice]
        resampled = [_resampled_recall(allowed), _resampled_dice(allowed)]
    best = max(range(len(allowed)), key=lambda i: (*(round(goal[i], 9) for goal in goals), -i))
    for i in range(best):
        if not any(
            goal[best] > goal[i] + _TIE and np.percentile(values[:, best] - values[:, i], 2.5) > 0
            for goal, values in zip(goals, resampled, strict=True)
        ):
            return allowed[i]
    return allowed[best]


def _allowed(candidates: Sequence[_Candidate], rule: OperatingRule, cases: int) -> list[_Candidate]:
    """Return those that keep to the *rule*; where none does, those with the fewest false lesions."""
    false = [each.counts.fp.sum() / cases for each in candidates]
    most = np.inf if rule.most_false is None else max(rule.most_false, min(false))
    few = [each for each, n in zip(candidates, false, strict=True) if n <= most + _TIE]
    if not rule.as_good_as_plain:
        return few
    plain = candidates[0]
    good = [each for each in few if each.dice >= plain.dice - _TIE and each.lesion_f1 >= plain.lesion_f1 - _TIE]
    return good or few


def _f1(tp: Any, fp: Any, lesions: Any) -> Any:
    """Return lesion F1 of counts or arrays of them; 1 where there is nothing and nothing was found."""
    whole = tp + fp + lesions
    return np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 1.0)


def _weights(patients: int) -> NDArray[np.float64]:
    """Return how often each patient is drawn in each resample, ``(resamples, patients)``; always the same."""
    drawn = np.random.default_rng(0).integers(0, patients, size=(_RESAMPLES, patients))
    return np.stack([np.bincount(row, minlength=patients) for row in drawn]).astype(float)


def _sums(candidates: Sequence[_Candidate], name: str) -> NDArray[np.float64]:
    """Return the sum of a count over the patients of each resample, ``(resamples, candidates)``."""
    values = np.stack([getattr(each.counts, name) for each in candidates], axis=1)
    return _weights(len(values)) @ values


def _resampled_recall(candidates: Sequence[_Candidate]) -> NDArray[np.float64]:
    return _sums(candidates, "tp") / np.maximum(1, _sums(candidates, "lesions"))


def _resampled_f1(candidates: Sequence[_Candidate]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = _f1(*(_sums(candidates, name) for name in ("tp", "fp", "lesions")))
    return values


def _resampled_dice(candidates: Sequence[_Candidate]) -> NDArray[np.float64]:
    return _sums(candidates, "dice") / len(candidates[0].counts.dice)


def _described(cases: Sequence[CaseDetections], region: int, chosen: _Candidate) -> RegionPoint:
    counts, table = chosen.counts, DetectionTable(cases, region, chosen.settings.threshold)
    false = _sums([chosen], "fp")[:, 0] / len(cases)
    return RegionPoint(
        lesion_recall=chosen.lesion_recall,
        lesion_recall_ci95=_interval(_resampled_recall([chosen])[:, 0], len(counts.dice)),
        false_per_case=float(counts.fp.sum()) / len(cases),
        false_per_case_ci95=_interval(false, len(counts.dice)),
        lesion_f1=chosen.lesion_f1,
        dice=chosen.dice,
        by_size=table.by_size(table.kept(chosen.settings)),
    )


def _interval(values: NDArray[np.float64], patients: int) -> tuple[float, float] | None:
    if patients == 1:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _froc(cases: Sequence[CaseDetections], region: int) -> tuple[FrocPoint, ...]:
    """Return what is found at each of ``_FALSE_PER_CASE`` when components are accepted by falling confidence.

    Of all thresholds the one that finds the most lesions; a component that lies on a lesion is never a false one.
    """
    best: dict[float, FrocPoint] = {}
    for threshold in _thresholds():
        table = DetectionTable(cases, region, threshold)
        for limit in _FALSE_PER_CASE:
            kept = table.most_confident(limit * len(cases))
            recall = float(table.found(kept).sum() / max(1, table.lesions))
            if limit not in best or recall > best[limit].lesion_recall + _TIE:
                best[limit] = FrocPoint(false_per_case=limit, lesion_recall=recall, by_size=table.by_size(kept))
    return tuple(best.values())


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
