"""Free-response curves: how many lesions are found at how many false ones per case, as confidence falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.detection import describe_labels, label_lesions, overlaps
from metaseg_cli.core.results.scores import FrocCurve

# False lesions per case at which recall is averaged, as in LUNA16 (Setio et al. 2017).
FROC_AT = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
CANDIDATE_THRESHOLD = 0.5  # the probability from which a component is a candidate


@dataclass(frozen=True)
class Candidates:
    """Predicted components of one case: their confidence, and the reference lesions that each overlaps."""

    confidence: tuple[float, ...]
    hits: tuple[tuple[int, ...], ...]
    lesions: int  # of the reference


def find_candidates(
    reference: NDArray[np.bool_],
    probability: NDArray[np.floating[Any]],
    threshold: float = CANDIDATE_THRESHOLD,
    *,
    per_slice: bool = False,
) -> Candidates:
    """Return the components of *probability* ``(Z, Y, X)`` at *threshold* and what they overlap.

    *per_slice*: the slices are pictures, and lesions lie in one.
    """
    truth, lesions = label_lesions(reference, per_slice=per_slice)
    labels, count = label_lesions(probability >= threshold, per_slice=per_slice)
    hits: list[list[int]] = [[] for _ in range(count)]
    for component, lesion in overlaps(labels, truth)[0]:
        hits[component - 1].append(int(lesion))
    components = describe_labels(labels, count, probability=probability)
    return Candidates(tuple(each.confidence or 0.0 for each in components), tuple(map(tuple, hits)), lesions)


@dataclass(frozen=True)
class Froc:
    """The free-response curve as the lowest accepted confidence falls, and the average precision."""

    curve: FrocCurve
    average_precision: float


def froc(cases: Sequence[Candidates]) -> Froc | None:
    """Return the free-response curve of all *cases*, None without any reference lesion.

    ``score`` is the mean recall at the numbers of false lesions in ``FROC_AT``. Average precision sums the precision at
    each gain of recall; a second component on a lesion that is found already counts neither way.
    """
    lesions = sum(case.lesions for case in cases)
    if not lesions:
        return None
    ranked = sorted(
        (
            (confidence, number, hits)
            for number, case in enumerate(cases)
            for confidence, hits in zip(case.confidence, case.hits, strict=True)
        ),
        key=lambda row: -row[0],
    )
    found: set[tuple[int, int]] = set()
    false = true = 0
    average_precision = 0.0
    points = [(0.0, 0.0)]
    for i, (confidence, number, hits) in enumerate(ranked):
        gained = {(number, lesion) for lesion in hits} - found
        false += not hits
        true += bool(gained)
        found |= gained
        # Components of the same confidence are accepted together.
        if i + 1 == len(ranked) or ranked[i + 1][0] != confidence:
            recall = len(found) / lesions
            average_precision += (recall - points[-1][1]) * true / max(1, true + false)
            points.append((false / len(cases), recall))
    false_per_case, recalls = zip(*points, strict=True)
    score = float(np.mean([max(r for f, r in points if f <= limit) for limit in FROC_AT]))
    return Froc(FrocCurve(false_per_case=false_per_case, recall=recalls, score=score), average_precision)
