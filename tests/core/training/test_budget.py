"""The time of a run over its sessions."""

from __future__ import annotations

import json
from types import SimpleNamespace

from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.state import TrainingState
from metaseg_cli.core.training.trainer import Trainer


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


def test_the_first_step_says_how_long_the_last_validations_take() -> None:
    """A step of 3 s trains 4 patches of 32 × 32: a forward pass of 1 s. Validation has 8 times the voxels, twice."""
    case = SimpleNamespace(shape=(4, 64, 64))
    reserved: list[float] = []
    trainer = SimpleNamespace(
        data=SimpleNamespace(validation=(case, case)),
        group=SimpleNamespace(size=1),
        plan=SimpleNamespace(batch_size=4, patch=(1, 32, 32)),
        _reserve_time_for_validation=lambda seconds: reserved.append(2 * seconds),
    )
    Trainer._reserve_time_by_step(trainer, 3.0)  # type: ignore[arg-type]
    assert reserved == [16.0]
