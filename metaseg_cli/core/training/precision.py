"""Number format and memory format of the convolutions: what is usual for the device, or faster when measured."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.inference.device import choose_precision, memory_format
from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.models.network import Network

# The same command must not give another result because the machine was busy for a moment: another format must take at
# most this share of the usual one's time, and none is compared where a pass is shorter than the second (in seconds).
_CLEARLY_FASTER = 0.8
_WORTH_COMPARING = 0.02
_ROUNDS = 4  # the first one warms up


@dataclass(frozen=True)
class ComputeFormat:
    """Number format and memory format of the convolutions."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision} {'channels last' if self.channels_last else 'contiguous'}"

    def memory_format(self, dims: int) -> torch.memory_format:
        """Return the memory format as torch names it."""
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if dims == 2 else torch.channels_last_3d


def choose_compute_format(
    model: Network, patch: Tensor, norm: str, config: TrainConfig, most_seconds: float = math.inf
) -> tuple[ComputeFormat, str]:
    """Return the format for *model* on patches like *patch* ``(B, C, …)``, and why it is that one.

    What *config* names is not measured, and nothing where that takes more than *most_seconds*. Raises ConfigError for a
    precision that the device does not have.
    """
    usual = choose_precision(config.precision, patch.device)
    by_norm = memory_format(patch.dim() - 2, norm) != torch.contiguous_format
    channels_last = by_norm if config.memory_format == "auto" else config.memory_format == "channels-last"
    candidates = [ComputeFormat(usual, channels_last)]
    if config.memory_format == "auto":
        candidates.append(ComputeFormat(usual, not channels_last))
    if config.precision == "auto" and usual != "fp32":
        candidates.append(ComputeFormat("fp32", channels_last))
    if len(candidates) == 1:  # nothing to choose between: no pass is made
        return candidates[0], "as asked"
    seconds = _measured(model, patch, candidates, most_seconds) if most_seconds > 0 else {}
    if not seconds:
        return candidates[0], "usual here; comparing takes too long"
    best = min(seconds, key=lambda c: seconds[c] if c == candidates[0] else seconds[c] / _CLEARLY_FASTER)
    return best, "measured " + ", ".join(f"{each} {1000 * t:.0f} ms" for each, t in seconds.items())


def _measured(
    model: Network, image: Tensor, candidates: Sequence[ComputeFormat], most_seconds: float
) -> dict[ComputeFormat, float]:
    """Return the seconds of a forward and backward pass; the first of *candidates* is the usual one.

    Empty where *most_seconds* do not suffice. The weights are left as they were.
    """
    # The running statistics of the norms will see this image.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    compared, usual = list(candidates), candidates[0]
    seconds = dict.fromkeys(compared, float("inf"))
    spent = 0.0
    for number in range(_ROUNDS):  # by turns, so that a busy moment meets all of them
        for compute in compared:
            took = _time_of_pass(model, image, compute)
            spent += took
            if spent > most_seconds:
                model.load_state_dict(weights)
                return {}
            if number > 0:
                seconds[compute] = min(seconds[compute], took)
        if seconds[usual] < _WORTH_COMPARING:
            compared = [usual]
    model.load_state_dict(weights)
    return {compute: seconds[compute] for compute in compared}


def _time_of_pass(model: Network, image: Tensor, compute: ComputeFormat) -> float:
    """Return the seconds of a forward and backward pass."""
    layout = compute.memory_format(image.dim() - 2)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    laid_out = image.contiguous(memory_format=layout)
    began = time.perf_counter()
    with autocast(image.device, compute.precision):
        outputs = model(laid_out)
    torch.stack([each.float().mean() for each in outputs]).sum().backward()
    model.zero_grad(set_to_none=True)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - began
