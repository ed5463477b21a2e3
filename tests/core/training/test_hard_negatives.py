"""False positives on training cases."""

from __future__ import annotations

import numpy as np

from metaseg_cli.core.sampling import PatchCentre
from metaseg_cli.core.training.hard_negatives import false_positive_centres


def test_false_lesions_are_found_and_true_ones_are_not() -> None:
    probability = np.zeros((1, 1, 30, 30), np.float32)
    reference = np.zeros((1, 1, 30, 30), bool)
    reference[0, 0, 2:8, 2:8] = True
    probability[0, 0, 5:10, 5:10], probability[0, 0, 20:23, 20:23] = 0.9, 0.8
    assert false_positive_centres(3, probability, reference) == [PatchCentre(3, (0, 21, 21))]
