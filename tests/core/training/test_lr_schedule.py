"""The learning rate over a run."""

from __future__ import annotations

import pytest

from metaseg_cli.core.training.lr_schedule import learning_rate_factor


def test_the_schedule_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(s / 100, s, schedule="poly", warmup_steps=10) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[-1] < 0.05
    assert learning_rate_factor(0.5, 50, schedule="cosine", warmup_steps=0) == pytest.approx(0.5)
