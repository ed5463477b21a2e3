"""FROC, average precision, calibration and comparisons against independent formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metaseg_cli.core.metrics.curves import Candidates, calibration, count_calibration, find_candidates, froc
from metaseg_cli.core.metrics.paired_comparison import holm, paired_differences, rank_frequencies


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        hit = rng.random(30) < 0.4
        confidence = rng.integers(0, 12, 30) / 12
        case = Candidates(tuple(confidence), tuple((i,) if h else () for i, h in enumerate(hit)), int(hit.sum()))
        curve = froc([case])
        assert curve is not None
        assert curve.average_precision == pytest.approx(average_precision_score(hit, confidence))


def test_the_free_response_curve_by_hand() -> None:
    one = Candidates((0.9, 0.8, 0.7), ((1,), (), (1, 2)), 2)
    two = Candidates((0.85, 0.6), ((), (1,)), 2)
    curve = froc([one, two])
    assert curve is not None
    assert list(zip(curve.curve.false_per_case, curve.curve.recall, strict=True)) == [
        (0, 0), (0, 0.25), (0.5, 0.25), (1.0, 0.25), (1.0, 0.5), (1.0, 0.75)
    ]  # fmt: skip
    assert curve.curve.score == pytest.approx((0.25 * 3 + 0.75 * 4) / 7)
    assert froc([Candidates((0.5,), ((),), 0)]) is None


def test_candidates_have_the_mean_probability_of_their_component() -> None:
    probability = np.zeros((1, 10, 10))
    probability[0, 1, 1:3] = (0.6, 0.8)
    probability[0, 7, 7] = 0.95
    reference = np.zeros((1, 10, 10), bool)
    reference[0, 1, 2] = True
    found = find_candidates(reference, probability)
    assert found.confidence == pytest.approx((0.7, 0.95))
    assert found.hits == ((1,), ())
    assert found.lesions == 1


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


def test_holm_is_that_of_statsmodels() -> None:
    # statsmodels.stats.multitest.multipletests(…, method="holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_paired_differences_find_what_is_there() -> None:
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(2)
    base = rng.random(30)
    values: dict[str, dict[str, Any]] = {
        "a": {"dice": base + 0.1, "hd95_mm": 5 - base},
        "b": {"dice": base + rng.normal(0, 0.01, 30), "hd95_mm": 5 - base},
    }
    dice, distance = paired_differences("metastasis", values, lower_is_better=["hd95_mm"])
    assert dice.mean == pytest.approx(0.1, abs=0.01)
    assert dice.ci95_low < dice.mean < dice.ci95_high
    assert dice.p == pytest.approx(wilcoxon(values["a"]["dice"], values["b"]["dice"]).pvalue)
    assert dice.p_holm == pytest.approx(2 * dice.p)
    assert (dice.wins, dice.losses) == (30, 0)
    assert (distance.p, distance.ties) == (1.0, 30)
    (alone,) = paired_differences("metastasis", {"a": {"dice": [0.5]}, "b": {"dice": [0.4]}})
    assert np.isnan([alone.ci95_low, alone.ci95_high]).all()


def test_ranks_are_shares_of_resamples() -> None:
    rng = np.random.default_rng(3)
    base: Any = rng.random(20)
    shares = rank_frequencies({"good": base + 0.2, "even": base, "same": base})
    assert shares["good"] == [1, 0, 0]
    assert shares["even"] == shares["same"] == [0, 1, 0]
    assert rank_frequencies({"near": base, "far": base + 1}, lower_is_better=True)["near"] == [1, 0]
