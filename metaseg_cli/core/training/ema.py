"""Exponential moving average of the weights: what is validated, kept and predicted with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from metaseg_cli.core.models.network import Network


class EmaModel:
    """A copy of a network that follows it slowly, running statistics of its norms included.

    The first steps are followed faster, with the decay (1 + n)/(10 + n) of TensorFlow's ``ExponentialMovingAverage``,
    so that the initial weights are soon forgotten.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Network) -> None:
        """Take one step towards *model*."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, current, 1 - decay)
