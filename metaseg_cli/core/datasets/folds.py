"""Folds that never split a patient."""

from __future__ import annotations

import random
from collections.abc import Sequence


def split_folds(patients: Sequence[str], burden: Sequence[float], folds: int, seed: int = 0) -> list[int]:
    """Return a fold 0 … *folds* − 1 for each case, given its patient and lesion burden (foreground voxels).

    Patients are sorted by burden and dealt out in rounds, each round in random order: every fold gets light and
    heavy ones, and fold sizes differ by at most one patient. With fewer patients than folds there are as many
    folds as patients; one patient alone makes one fold.
    """
    total: dict[str, float] = {}
    for patient, amount in zip(patients, burden, strict=True):
        total[patient] = total.get(patient, 0.0) + amount
    folds = min(folds, len(total))
    rng = random.Random(seed)
    ordered = sorted(total, key=lambda p: (-total[p], p))
    fold_of: dict[str, int] = {}
    for start in range(0, len(ordered), max(folds, 1)):
        numbers = list(range(folds))
        rng.shuffle(numbers)
        fold_of.update(zip(ordered[start : start + folds], numbers, strict=False))
    return [fold_of[patient] for patient in patients]
