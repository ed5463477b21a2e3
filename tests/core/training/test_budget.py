"""The time of a run over its sessions: what is kept for the end, and that a run ends in time on any machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.commands.train import train
from metaseg_cli.config import PrepareConfig, TrainConfig
from metaseg_cli.core.cache import CaseRecord
from metaseg_cli.core.inference import sliding_window
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures
from metaseg_cli.core.training import full_volume, validation
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.result import TrainResult
from metaseg_cli.core.training.state import TrainingState
from metaseg_cli.core.training.step import TrainStep
from metaseg_cli.core.training.validation import spread
from metaseg_cli.errors import Interrupted
from tests.common import tiny_training


def test_a_resumed_run_goes_on_counting_and_keeps_time_for_the_last_validations() -> None:
    now = [100.0]
    budget = Budget(1.0, lambda: now[0])
    budget.step_took(1.0)
    budget.validation_took(16.0, 1000)
    budget.voxels_at_end = 1000  # 16 s, and a quarter more to be safe
    now[0] += 30.0
    written = TrainingState(step=7).to_json(budget)
    assert (json.loads(written)["seconds"], json.loads(written)["reserved"]) == (30.0, 21.0)  # and a step
    later = Budget(1.0, lambda: now[0])
    assert TrainingState.from_json(written, later).step == 7
    assert (later.elapsed(), later.remaining(), later.fraction()) == (30.0, 30.0, 0.5)
    late = Budget(0.6, lambda: now[0])  # what the end needs is granted
    TrainingState.from_json(written, late)
    assert late.remaining() == 21.0
    endless = Budget(None, lambda: now[0])
    assert (endless.remaining(), endless.fraction(), endless.reserve()) == (None, 0.0, 0.0)


def test_more_is_kept_when_steps_become_slower_and_when_a_validation_was_longer_than_expected() -> None:
    budget = Budget(10.0, lambda: 0.0)
    for _ in range(5):
        budget.step_took(1.0)
    budget.validation_took(10.0, 1000)
    budget.voxels_at_end = 2000
    assert budget.reserve() == 25.0 + 1.0
    for _ in range(3):
        budget.step_took(4.0)
    assert budget.reserve() == 100.0 + 4.0
    budget.validation_took(60.0, 1000, expected=budget.validation_seconds_per_voxel())  # 40 were expected
    assert budget.validation_seconds(1000) == pytest.approx(1.25 * 1.5 * 60)
    for _ in range(3):
        budget.step_took(400.0)
    assert budget.reserve() == 300.0 + 400.0  # half of the time at most, and a step


def test_every_beginning_of_the_order_is_spread_over_patients_and_amounts_of_lesion() -> None:
    def record(number: int) -> CaseRecord:
        patient, lesion = number // 8, number % 8
        empty: dict[str, Any] = dict.fromkeys(("file", "content", "key", "shard"), "")
        empty |= {"spacing_mm": None, "source_spacing_mm": None, "sequences": (), "labels": (), "images": ()}
        return CaseRecord(case=f"{number:02}", patient=str(patient), shape=(1, 8, 8), lesion_voxels=(lesion,), **empty)

    records = [record(number) for number in range(24)]
    order = spread(records)
    assert sorted(order, key=lambda each: each.case) == records
    assert {each.patient for each in order[:3]} == {"0", "1", "2"}
    assert {each.lesion_voxels[0] for each in order[:6]} == {7, 3}  # most of a patient, then the middle
    assert spread(records[::-1]) == order
    assert spread([]) == []


class Machine:
    """A machine with a clock of its own: a step, a slice and the rest take the seconds that it is given."""

    def __init__(self, step: float, case_slice: float, first_step: float = 0.0, slow_from: float = 1e9) -> None:
        self.now, self.step, self.case_slice, self.slow_from = 1000.0, step, case_slice, 1000.0 + slow_from
        self.first_step = first_step
        self.ends: list[float] = []

    def clock(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds * (10 if self.now > self.slow_from else 1)

    def install(self, monkeypatch: pytest.MonkeyPatch, *, checkpoints: bool = False) -> None:
        window, detect = sliding_window._WindowInference.__call__, full_volume.detect

        def slow_window(inference: Any, x: Any) -> Any:
            self.takes(self.case_slice * len(x))
            return window(inference, x)

        def slow_step(*_: Any) -> tuple[float, bool]:
            self.takes(self.first_step + self.step)
            self.first_step = 0.0
            return 0.5, True

        def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                self.takes(seconds)
                return function(*given, **named)

            return call

        monkeypatch.setattr(sliding_window, "_SLICE_BATCH", 64 * 64)
        monkeypatch.setattr(sliding_window._WindowInference, "__call__", slow_window)
        monkeypatch.setattr(TrainStep, "__call__", slow_step)
        monkeypatch.setattr(full_volume, "detect", slow(detect, 0.01))
        monkeypatch.setattr(validation, "best_threshold_score", slow(validation.best_threshold_score, 0.05))
        monkeypatch.setattr(validation, "select_postprocessing", slow(validation.select_postprocessing, 0.5))
        monkeypatch.setattr("metaseg_cli.core.training.trainer.save_model", slow(lambda *_: None, 0.5))
        if not checkpoints:
            monkeypatch.setattr("metaseg_cli.core.training.trainer.save_checkpoint", lambda *_: None)
        monkeypatch.setattr("metaseg_cli.core.training.run_writer.RunWriter.previews", lambda *_: None)
        monkeypatch.setattr("metaseg_cli.core.training.run_writer.RunWriter.history", slow(lambda *_: None, 0.5))


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Arrays are tiny here: threads would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared slices of ten patients in two folds: five validate."""
    folder = tmp_path_factory.mktemp("many")
    settings = PhantomSettings(shape=(6, 64, 64), lesions=(2, 4), diameter_mm=(8.0, 20.0))
    write_phantom_pictures(folder / "raw", 10, 6, settings, seed=3)
    prepare(PrepareConfig(raw=folder / "raw", out=folder / "out", folds=2, workers=1), Silent())
    return folder / "out"


def run(machine: Machine, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainResult, list[str]]:
    machine.install(monkeypatch)
    listening = Listening()
    return train(config, listening, machine.clock), listening.said


MACHINES = {
    "fast": Machine(2.0, 0.01),
    "slow validation": Machine(1.0, 5.0),
    "very slow validation": Machine(1.0, 12.0),
    "slow first step": Machine(0.5, 0.5, first_step=45.0),
    "slower from the middle on": Machine(2.0, 0.3, slow_from=45.0),
    "slower at the end": Machine(2.0, 0.3, slow_from=75.0),
    "slower amid the last validations": Machine(2.0, 0.3, slow_from=78.0),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_run_ends_in_time(name: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_training(
        many, tmp_path, max_minutes=1.5, epochs=1000, steps_per_epoch=20, precision="fp32", memory_format="contiguous"
    )
    machine = MACHINES[name]
    began = machine.now
    result, said = run(machine, config, monkeypatch)
    assert machine.now - began <= 1.1 * 90 + 20, name
    assert result.scores
    assert result.validation_cases >= 1
    reduced = [line for line in said if "scored on" in line]
    if name == "fast":
        assert (result.validation_cases, reduced) == (5, [])
        assert machine.now - began > 0.85 * 90
    elif "slow validation" in name:
        assert reduced


@pytest.mark.parametrize(
    ("step", "case_slice", "folds"), [(2.0, 0.01, 2), (2.0, 4.0, 2), (100.0, 1.0, 1)], ids=["fast", "slow", "too slow"]
)
def test_all_folds_together_end_in_time(
    step: float, case_slice: float, folds: int, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaseg_cli.core.training.cross_validation._write_ensemble", lambda *_: None)
    config = tiny_training(
        many,
        tmp_path,
        max_minutes=2.0,
        fold="all",
        epochs=1000,
        steps_per_epoch=20,
        precision="fp32",
        memory_format="contiguous",
    )
    machine = Machine(step, case_slice)
    result, said = run(machine, config, monkeypatch)
    assert len(result.folds) == folds
    assert any("--resume" in line for line in said) == (folds == 1)
    assert 0.8 * 120 <= machine.now - 1000.0 <= 1.1 * 120 + 20
    assert result.validation_cases == 10 if case_slice < 1 else result.validation_cases >= folds


def test_a_resumed_run_of_all_folds_counts_the_minutes_of_the_folds_that_are_finished() -> None:
    now = itertools.count(0.0, 0.0)
    budget = Budget(10.0, lambda: next(now))
    budget.previous_sessions = 240.0
    part = budget.part(1 / 3, kept=0.05)
    assert part.limit == pytest.approx((600 - 240 - 30) / 3)
    assert not Budget(None).part(1 / 3, kept=0.05).limited


def test_a_reduced_validation_is_the_same_after_a_stop(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs before and after the stop are compared by the same slices; the minutes go on counting."""
    config = tiny_training(
        many, tmp_path, max_minutes=2.0, epochs=1000, precision="fp32", memory_format="contiguous", hard_share=0.0
    )
    machine = Machine(1.0, 2.0)
    with monkeypatch.context() as patched:
        machine.install(patched, checkpoints=True)

        class Stopping(Silent):
            def advance(self, steps: int = 1, note: str = "") -> None:
                if machine.now > 1040.0:
                    os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted) as stopped:
            train(config, Stopping(), machine.clock)
        saved = torch.load(Path(str(stopped.value.where)) / "checkpoint.pt", weights_only=True)
        parts = json.loads(saved["validated"])
        assert parts
        assert sum(last - first for _, first, last in parts) < 30
        began, listening = machine.now, Listening()
        result = train(TrainConfig(resume=Path(str(stopped.value.where))), listening, machine.clock)
    assert result.validation_cases == len(parts)
    assert not [line for line in listening.said if "scored on" in line]
    assert (began - 1000.0) + (machine.now - began) <= 1.1 * 120 + 20
