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
from metaseg_cli.core.models.attention_unet import AttentionUNet
from metaseg_cli.core.models.nested_unet import NestedUNet

_CLEARLY = 0.8  # another setting must take at most this share of the usual one's time
_WORTHWHILE = 0.02  # seconds of a pass below which nothing is compared: chance would decide, for no gain
_ROUNDS = 4


@dataclass(frozen=True)
class Setting:
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


def choose_setting(
    model: AttentionUNet | NestedUNet, patch: Tensor, norm: str, config: TrainConfig
) -> tuple[Setting, dict[Setting, float]]:
    """The setting for *model* on patches such as *patch* ``(B, C, …)``, and the seconds of all that were measured.

    What *config* names is not measured. Raises ConfigError for a precision that the device does not have.
    """
    usual = choose_precision(config.precision, patch.device)
    by_norm = memory_format(patch.dim() - 2, norm) != torch.contiguous_format
    channels_last = by_norm if config.layout == "auto" else config.layout == "channels-last"
    candidates = [Setting(usual, channels_last)]
    if config.layout == "auto":
        candidates.append(Setting(usual, not channels_last))
    if config.precision == "auto" and usual != "fp32":
        candidates.append(Setting("fp32", channels_last))
    return _fastest(model, patch, candidates)


def _fastest(
    model: AttentionUNet | NestedUNet, image: Tensor, candidates: Sequence[Setting]
) -> tuple[Setting, dict[Setting, float]]:
    """The setting whose forward and backward pass is fastest.

    The first, the usual one, stays unless another is clearly faster: the same command must not take another course
    because the machine was busy for a moment. The weights are left as they were.
    """
    # The running statistics of the norms will see this image.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    settings, usual = list(candidates), candidates[0]
    seconds = dict.fromkeys(settings, float("inf"))
    for number in range(_ROUNDS):  # by turns, so that a busy moment meets all of them
        for setting in settings:
            took = _pass(model, image, setting)
            if number > 0:  # the first one warms up
                seconds[setting] = min(seconds[setting], took)
        if seconds[usual] < _WORTHWHILE:
            settings = [usual]
    model.load_state_dict(weights)
    seconds = {setting: seconds[setting] for setting in settings}
    best = min(seconds, key=lambda s: seconds[s] if s == usual else seconds[s] / _CLEARLY)
    return best, seconds


def _pass(model: AttentionUNet | NestedUNet, image: Tensor, setting: Setting) -> float:
    """Seconds of a forward and backward pass."""
    layout = setting.layout(image.dim() - 2)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    laid_out = image.contiguous(memory_format=layout)
    began = time.perf_counter()
    with autocast(image.device, setting.precision):
        outputs = model(laid_out)
    torch.stack([each.float().mean() for each in outputs]).sum().backward()
    model.zero_grad(set_to_none=True)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - began
