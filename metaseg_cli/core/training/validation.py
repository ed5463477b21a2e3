"""How good a network is on whole cases it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.metrics import Confusion, confusion, match_lesions
from metaseg_cli.core.postprocessing import Postprocessing, to_mask

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
    model: nn.Module, prepared: Prepared, record: CaseRecord, *, dims: int, patch: Sequence[int], device: torch.device, precision: str
) -> CaseProbabilities:
    """Run *model* over one whole prepared case."""
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).to(device).float()
    probabilities = predict_probabilities(
        model, image, dims=dims, patch=patch[-dims:], regions=len(prepared.regions), precision=precision
    )
    reference = region_masks(prepared.label(record), prepared.regions)
    return CaseProbabilities(record.patient, probabilities.numpy().astype(np.float16), reference)


def score_cases(cases: Sequence[CaseProbabilities], settings: Postprocessing) -> ValidationScore:
    """Scores of the masks that *settings* make of the probabilities; regions and patients count alike."""
    pooled: dict[tuple[str, int], Confusion] = {}
    tp = fp = fn = 0
    for case in cases:
        for region, (probability, reference) in enumerate(zip(case.probabilities, case.reference, strict=True)):
            mask = to_mask(probability, settings)
            key = (case.patient, region)
            one = confusion(reference, mask)
            pooled[key] = pooled[key] + one if key in pooled else one
            found = match_lesions(reference, mask)
            tp, fp, fn = tp + found.lesion_tp, fp + found.lesion_fp, fn + found.lesion_fn
    dice = float(np.mean([c.scores()["dice"] for c in pooled.values()]))
    recall = tp / (tp + fn) if tp + fn else 1.0
    precision = tp / (tp + fp) if tp + fp else float(fn == 0)
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
    return ValidationScore(dice=dice, lesion_recall=recall, lesion_precision=precision, lesion_f1=f1)


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
        for size in sizes:
            settings = Postprocessing(threshold=threshold, smallest_lesion_voxels=size)
            score = score_cases(cases, settings)
            if best is None or score.score > best[1].score + 1e-4:
                best = (settings, score)
    assert best is not None
    return best
