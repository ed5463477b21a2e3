"""Paired differences and ranks against independent formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metaseg_cli.core.metrics.paired_comparison import holm, paired_differences, rank_frequencies


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
