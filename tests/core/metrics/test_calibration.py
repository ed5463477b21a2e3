"""Calibration against sorted voxels."""

from __future__ import annotations

import numpy as np
import pytest

from metaseg_cli.core.metrics.calibration import calibration, count_calibration


def test_calibration_is_that_of_sorted_voxels() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random((15, 40, 50)) ** 3
    reference = rng.random(probability.shape) < probability**1.5
    everywhere = np.ones(probability.shape, bool)
    halves = [slice(0, 7), slice(7, 15)]
    counts = [count_calibration(reference[h], probability[h], everywhere[h]) for h in halves]
    ours = calibration(counts[0] + counts[1])
    order = np.argsort(probability.ravel())
    p, y = (np.array_split(a.ravel()[order], 15) for a in (probability, reference))
    expected = sum(abs(a.mean() - b.mean()) * len(a) for a, b in zip(p, y, strict=True)) / probability.size
    assert ours is not None
    assert sum(ours.curves.equal_mass.voxels) == sum(ours.curves.equal_width.voxels) == probability.size
    assert ours.ece == pytest.approx(expected, abs=1e-3)  # the edges of bins lie on a fine grid
    assert calibration(count_calibration(reference, probability, ~everywhere)) is None
    tenths = np.floor(probability * 10)
    shown = ours.curves.equal_width
    assert shown.voxels == tuple((tenths == i).sum() for i in range(10))
    assert shown.observed == pytest.approx([reference[tenths == i].mean() for i in range(10)])
    assert shown.predicted == pytest.approx([probability[tenths == i].mean() for i in range(10)])


def test_a_calibrated_network_has_no_error() -> None:
    probability = np.full((1, 100, 100), 0.25)
    reference = np.zeros(probability.shape, bool)
    reference.ravel()[::4] = True
    found = calibration(count_calibration(reference, probability, probability > 0))
    assert found is not None
    assert found.ece == pytest.approx(0, abs=1e-12)
