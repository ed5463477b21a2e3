"""The moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch

from metaseg_cli.core.training.ema import EmaModel


def test_the_average_follows_slowly_and_first_quickly() -> None:
    model: Any = torch.nn.Linear(2, 2)
    averaged = EmaModel(model, decay=0.9)
    start = averaged.model.weight.clone()
    with torch.no_grad():
        model.weight += 1
    averaged.update(model)
    torch.testing.assert_close(averaged.model.weight, start + 1 - 2 / 11)
    for _ in range(200):
        averaged.update(model)
    torch.testing.assert_close(averaged.model.weight, model.weight.detach())
