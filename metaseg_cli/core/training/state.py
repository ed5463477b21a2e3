"""Where a training is, epoch by epoch, and what it ends with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.precision import ComputeFormat
from metaseg_cli.core.training.select_postprocessing import SelectedPostprocessing
from metaseg_cli.core.typed_json import parsed


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of ``history.csv``.

    Scores are those of the EMA model on the validation fold, with the threshold that suits this epoch best.
    """

    epoch: int
    loss: float
    dice: float
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float
    score: float
    learning_rate: float
    seconds: float
    images_per_second: float
    small_lesion_recall: float = math.nan  # of the smaller half of the lesions; none in runs of older versions


@dataclass
class TrainingState:
    """Counts of a run; ``loss_sum`` and ``loss_count`` are of the steps since the last validation."""

    step: int = 0
    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    def to_json(self, budget: Budget) -> str:
        """Return it as the checkpoint keeps it, with the times of *budget*."""
        times = {"seconds": budget.elapsed(), "reserved": budget.reserve()}
        return json.dumps({**asdict(self), **times})

    @classmethod
    def from_json(cls, text: str, budget: Budget) -> TrainingState:
        """Read what ``to_json`` wrote; *budget* continues where that session ended. Raises ValueError and KeyError."""
        values: dict[str, Any] = parsed(text)
        history = [EpochRecord(**_numbers(row)) for row in values.pop("history")]
        seconds, reserved = float(values.pop("seconds")), float(values.pop("reserved"))
        state = cls(**_numbers(values), history=history)
        budget.resume(seconds, reserved)
        return state


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Convert counts to int and the rest to float; scores are NaN where nothing validates, so none is checked."""
    whole = ("step", "epoch", "best_epoch", "loss_count")
    return {name: int(value) if name in whole else float(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished training: its last state, and what was chosen on the validation cases."""

    state: TrainingState
    selected: SelectedPostprocessing
    milliseconds_per_step: dict[str, float]
    compute: ComputeFormat
    validation_cases: int  # on which it was chosen: fewer than there are where time was short
    stopped: str
