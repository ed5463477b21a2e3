"""What a training works on and with, as values that its parts share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.choices import NETWORKS
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FoldData:
    """The cases of a prepared folder that train and that validate one fold."""

    prepared: Prepared
    fold: int
    training: tuple[CaseRecord, ...]
    validation: tuple[CaseRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained: settings, data, the plan that was made for both, and the card of the model that results."""

    config: TrainConfig
    data: FoldData
    plan: Plan
    card: ModelCard

    @property
    def steps(self) -> int:
        """Steps of all epochs together."""
        return self.config.epochs * self.plan.steps_per_epoch

    @property
    def final_validations(self) -> int:
        """How many validations must still fit when training ends.

        The last epoch's and the one that selects the post-processing; the depths of a prunable network, which compute
        less each, cost about one more.
        """
        return 3 if NETWORKS[self.card.name].prunable else 2


@dataclass
class StopRequest:
    """Whether the training shall end after its current step; set by a signal handler."""

    requested: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where it is trained: the device, the processes that share the work, the time they have, and who is told."""

    device: torch.device
    group: ProcessGroup
    budget: Budget
    stop: StopRequest
    progress: Progress
