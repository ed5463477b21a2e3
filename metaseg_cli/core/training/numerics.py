"""Number format and memory layout of the convolutions: what is usual for the device, or faster when measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.inference.device import choose_precision, memory_format
from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.models.network import Network

_CLEARLY = 0.8  # others must take at most this share of the usual one's time
_WORTHWHILE = 0.02  # seconds of a pass below which nothing is compared: chance would decide, for no gain
_ROUNDS = 4


@dataclass(frozen=True)
class Numerics:
    """Number format and memory layout of the convolutions."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision} {'channels last' if self.channels_last else 'contiguous'}"

    def layout(self, dims: int) -> torch.memory_format:
        """As torch names it."""
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if dims == 2 else torch.channels_last_3d


def choose_numerics(
    model: Network, patch: Tensor, norm: str, config: TrainConfig
) -> tuple[Numerics, dict[Numerics, float]]:
    """The numerics for *model* on patches such as *patch* ``(B, C, …)``, and the seconds of all that were measured.

    What *config* names is not measured. Raises ConfigError for a precision that the device does not have.
    """
    usual = choose_precision(config.precision, patch.device)
    by_norm = memory_format(patch.dim() - 2, norm) != torch.contiguous_format
    channels_last = by_norm if config.layout == "auto" else config.layout == "channels-last"
    candidates = [Numerics(usual, channels_last)]
    if config.layout == "auto":
        candidates.append(Numerics(usual, not channels_last))
    if config.precision == "auto" and usual != "fp32":
        candidates.append(Numerics("fp32", channels_last))
    return _fastest(model, patch, candidates)


def _fastest(model: Network, image: Tensor, candidates: Sequence[Numerics]) -> tuple[Numerics, dict[Numerics, float]]:
    """Those whose forward and backward pass is fastest.

    The first, the usual one, stays unless another is clearly faster: the same command must not take another course
    because the machine was busy for a moment. The weights are left as they were.
    """
    # The running statistics of the norms will see this image.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    compared, usual = list(candidates), candidates[0]
    seconds = dict.fromkeys(compared, float("inf"))
    for number in range(_ROUNDS):  # by turns, so that a busy moment meets all of them
        for numerics in compared:
            took = _pass(model, image, numerics)
            if number > 0:  # the first one warms up
                seconds[numerics] = min(seconds[numerics], took)
        if seconds[usual] < _WORTHWHILE:
            compared = [usual]
    model.load_state_dict(weights)
    seconds = {numerics: seconds[numerics] for numerics in compared}
    best = min(seconds, key=lambda s: seconds[s] if s == usual else seconds[s] / _CLEARLY)
    return best, seconds


def _pass(model: Network, image: Tensor, numerics: Numerics) -> float:
    """Seconds of a forward and backward pass."""
    layout = numerics.layout(image.dim() - 2)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    laid_out = image.contiguous(memory_format=layout)
    began = time.perf_counter()
    with autocast(image.device, numerics.precision):
        outputs = model(laid_out)
    torch.stack([each.float().mean() for each in outputs]).sum().backward()
    model.zero_grad(set_to_none=True)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - began
