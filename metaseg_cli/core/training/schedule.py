"""The optimiser, and its learning rate over a run whose end is a number of steps, a number of minutes, or both."""

from __future__ import annotations

import math

import torch
from torch import nn

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.choices import OPTIMIZERS, SCHEDULES
from metaseg_cli.errors import ConfigError


def learning_rate_factor(progress: float, step: int, *, schedule: str, warmup_steps: int) -> float:
    """Factor on the base rate. *progress* is the share of the run that is over (0 … 1), by steps or by time.

    A linear warm-up over the first *warmup_steps*, then (1 − progress)^0.9, half a cosine, or nothing.
    """
    rest = max(0.0, 1.0 - progress)
    factors = {"poly": rest**0.9, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - rest))), "constant": 1.0}
    if schedule not in factors:
        raise ConfigError(f"unknown schedule {schedule!r}", remedy=f"take one of {', '.join(SCHEDULES)}")
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * max(factors[schedule], 1e-3)


def base_rate(config: TrainConfig) -> float:
    """What ``learning_rate_factor`` is a factor on."""
    return config.learning_rate or OPTIMIZERS[config.optimizer].learning_rate


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum, as *config* says."""
    # Norms and biases are not decayed: shrinking them towards 0 has no meaning.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    decay = OPTIMIZERS[config.optimizer].weight_decay if config.weight_decay is None else config.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=base_rate(config), fused=True)
    return torch.optim.SGD(groups, lr=base_rate(config), momentum=0.99, nesterov=True)
