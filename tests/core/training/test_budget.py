"""The time of a run over its sessions."""

from __future__ import annotations

import json

from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.state import TrainingState


def test_a_resumed_run_goes_on_counting_and_keeps_time_for_the_last_validations() -> None:
    now = [100.0]
    budget = Budget(1.0, lambda: now[0])
    budget.validation_reserve = 20.0
    now[0] += 30.0
    written = TrainingState(step=7).to_json(budget)
    assert (json.loads(written)["seconds"], json.loads(written)["reserved"]) == (30.0, 20.0)
    later = Budget(1.0, lambda: now[0])
    assert TrainingState.from_json(written, later).step == 7
    assert (later.previous_sessions, later.validation_reserve) == (30.0, 20.0)
    assert (later.elapsed(), later.remaining(), later.fraction()) == (30.0, 30.0, 0.75)
    assert not later.is_spent(39.0)
    assert later.is_spent(40.0)
    endless = Budget(None, lambda: now[0])
    assert (endless.remaining(), endless.fraction(), endless.is_spent(1e9)) == (None, 0.0, False)
