"""FROC and average precision against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest

from metaseg_cli.core.metrics.froc import Candidates, find_candidates, froc


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
