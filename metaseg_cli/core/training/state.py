"""Where a training stands, epoch by epoch, and what it ends with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.numerics import Numerics
from metaseg_cli.core.training.tuning import Tuned
from metaseg_cli.core.training.validation import CaseFindings
from metaseg_cli.core.typed_json import parsed


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of ``history.csv``.

    Scores are of the averaged weights on the validation fold, with the threshold and smallest lesion that suit this
    epoch best: what the epoch would give as the final model.
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


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    reserved: float = 0.0  # seconds that the last validations need
    best_score: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    def as_json(self, budget: Budget) -> str:
        """As the checkpoint keeps it, with what *budget* has counted."""
        return json.dumps({**asdict(self), "seconds": budget.elapsed(), "reserved": budget.reserved})

    @classmethod
    def from_json(cls, text: str) -> State:
        """The inverse of ``as_json``."""
        values: dict[str, Any] = parsed(text)
        history = [EpochRecord(**_numbers(row)) for row in values.pop("history")]
        return cls(**_numbers(values), history=history)


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers and others; scores are NaN where nothing validates, so they are converted and not checked."""
    whole = ("step", "epoch", "best_epoch", "loss_count")
    return {name: int(value) if name in whole else float(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training: its last state, and what was chosen on the validation cases."""

    state: State
    tuned: Tuned
    findings: tuple[CaseFindings, ...]
    milliseconds: dict[str, float]
    numerics: Numerics
    stopped: str
