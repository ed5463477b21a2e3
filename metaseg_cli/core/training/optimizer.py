"""The optimiser."""

from __future__ import annotations

import torch
from torch import nn

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.choices import OPTIMIZERS

_MOMENTUM = 0.99  # of SGD: nnU-Net (Isensee et al. 2021)


def base_learning_rate(config: TrainConfig) -> float:
    """Return the rate that ``learning_rate_factor`` is a factor on."""
    return config.learning_rate or OPTIMIZERS[config.optimizer].learning_rate


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build AdamW, or SGD with Nesterov momentum, as *config* says."""
    decay = OPTIMIZERS[config.optimizer].weight_decay if config.weight_decay is None else config.weight_decay
    # Norms and biases are not decayed: shrinking them towards 0 has no meaning.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}]
    rate = base_learning_rate(config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)
