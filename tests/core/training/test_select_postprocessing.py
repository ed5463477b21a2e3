"""The search for post-processing and temperature."""

from __future__ import annotations

import numpy as np
import pytest

from metaseg_cli.core.training.detections import detect
from metaseg_cli.core.training.select_postprocessing import choose_temperature, search_postprocessing


def test_the_filter_never_reaches_the_size_of_small_training_lesions() -> None:
    probability = np.zeros((1, 1, 30, 30), np.float16)
    reference = np.zeros((1, 1, 30, 30), bool)
    reference[0, 0, 2:12, 2:12] = True
    probability[reference] = 0.9
    for i in range(4):
        probability[0, 0, 25, 5 + 5 * i] = 0.9
    cases = [detect("c", "p", None, probability, reference)]
    assert search_postprocessing(cases, [100] * 20)[0][0].min_size >= 2
    assert search_postprocessing(cases, [1, 2, 3])[0][0].min_size == 0


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (1, 8, 64, 64))
    reference = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    overconfident = 1 / (1 + np.exp(-2.5 * logit))
    assert choose_temperature([detect("c", "p", None, overconfident, reference)]) == pytest.approx(2.5, rel=0.05)
