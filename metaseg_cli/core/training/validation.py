"""How good a network is on whole cases it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.metrics import Confusion, label_lesions, lesion_scores
from metaseg_cli.core.postprocessing import Postprocessing

_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True, kw_only=True)
class ValidationScore:
    """*dice*: mean over patients, each patient's voxels pooled; lesion scores pooled over all cases."""

    dice: float
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float

    @property
    def score(self) -> float:
        """By which the best model is chosen: the mean of Dice and lesion F1."""
        return (self.dice + self.lesion_f1) / 2


@dataclass(frozen=True)
class CaseProbabilities:
    """A validation case's probabilities ``(R, Z, Y, X)`` float16 and reference masks of the same shape."""

    patient: str
    probabilities: NDArray[np.float16]
    reference: NDArray[np.bool_]


def probabilities_of(
    model: nn.Module,
    prepared: Prepared,
    record: CaseRecord,
    *,
    dims: int,
    patch: Sequence[int],
    device: torch.device,
    precision: str,
    presence: bool = False,
) -> CaseProbabilities:
    """Run *model* over one whole prepared case."""
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).to(device).float()
    probabilities = predict_probabilities(
        model,
        image,
        dims=dims,
        patch=patch[-dims:],
        regions=len(prepared.regions),
        precision=precision,
        present=torch.from_numpy(prepared.present(record)) if presence else None,
    )
    reference = region_masks(prepared.label(record), prepared.regions)
    return CaseProbabilities(record.patient, probabilities.numpy().astype(np.float16), reference)


def score_cases(cases: Sequence[CaseProbabilities], settings: Postprocessing) -> ValidationScore:
    """Scores of the masks that *settings* make of the probabilities; regions and patients count alike."""
    found = [_components(case, settings.threshold) for case in cases]
    return _score(cases, found, settings.smallest_lesion_voxels)


@dataclass(frozen=True)
class _Components:
    """The predicted components of one region of one case: enough to score any smallest size without labelling again."""

    voxels: NDArray[np.int64]  # of each component
    hits: NDArray[np.int64]  # of them on the reference
    touching: NDArray[np.integer[Any]]  # pairs (component, reference lesion) that share a voxel, shape (n, 2)
    reference_voxels: int
    reference_lesions: int


def _components(case: CaseProbabilities, threshold: float) -> list[_Components]:
    result = []
    for probability, reference in zip(case.probabilities, case.reference, strict=True):
        predicted, count = label_lesions(probability >= threshold)
        truth, lesions = label_lesions(reference)
        inside = predicted > 0
        p, r = predicted[inside], truth[inside]
        result.append(
            _Components(
                voxels=np.bincount(p, minlength=count + 1)[1:],
                hits=np.bincount(p[r > 0], minlength=count + 1)[1:],
                touching=np.unique(np.column_stack([p[r > 0], r[r > 0]]), axis=0) - 1,
                reference_voxels=int(np.count_nonzero(reference)),
                reference_lesions=lesions,
            )
        )
    return result


def _score(cases: Sequence[CaseProbabilities], found: Sequence[list[_Components]], smallest: int) -> ValidationScore:
    pooled: dict[tuple[str, int], Confusion] = {}
    tp = fp = fn = 0
    for case, regions in zip(cases, found, strict=True):
        for region, one in enumerate(regions):
            kept = one.voxels >= max(1, smallest)
            hits, voxels = int(one.hits[kept].sum()), int(one.voxels[kept].sum())
            counts = Confusion(tp=hits, fp=voxels - hits, fn=one.reference_voxels - hits)
            key = (case.patient, region)
            pooled[key] = pooled.get(key, Confusion()) + counts
            pairs = one.touching[kept[one.touching[:, 0]]]
            hit = len(np.unique(pairs[:, 1]))
            tp, fn = tp + hit, fn + one.reference_lesions - hit
            fp += int(kept.sum()) - len(np.unique(pairs[:, 0]))
    lesions = lesion_scores(tp, fp, fn)
    return ValidationScore(
        dice=float(np.mean([c.scores()["dice"] for c in pooled.values()])),
        lesion_recall=lesions["lesion_recall"],
        lesion_precision=lesions["lesion_precision"],
        lesion_f1=lesions["lesion_f1"],
    )


def choose_postprocessing(
    cases: Sequence[CaseProbabilities], training_lesions: Sequence[int]
) -> tuple[Postprocessing, ValidationScore]:
    """The threshold and smallest lesion with the best score on *cases*.

    Nothing as large as the smallest tenth of the training lesions is ever dropped: a filter that gains precision
    by deleting small metastases would look good and do harm.
    """
    limit = int(np.quantile(training_lesions, 0.1)) if len(training_lesions) else 0
    sizes = [0] + [s for s in (2, 4, 8, 16, 32, 64) if s <= limit]
    best: tuple[Postprocessing, ValidationScore] | None = None
    # From the middle outwards and from no filter up, so that a tie keeps the plainer setting.
    for threshold in sorted(_THRESHOLDS, key=lambda t: abs(t - 0.5)):
        found = [_components(case, threshold) for case in cases]
        for size in sizes:
            score = _score(cases, found, size)
            if best is None or score.score > best[1].score + 1e-4:
                best = (Postprocessing(threshold=threshold, smallest_lesion_voxels=size), score)
    assert best is not None
    return best
