"""Test-time augmentation and ensembles: several passes over one image, fused into one prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaseg_cli.core.choices import FUSIONS
from metaseg_cli.core.model_file import Ensemble
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TestTimeAugmentation:
    """Which passes are made over an image, and how their logits are fused.

    *flips* adds every mirror image (4 passes in 2D, 8 in 3D). *fusion* of networks and mirror images is "mean" of the
    logits; "max", which keeps a small lesion that one pass finds; or "vote", the share of passes whose probability
    reaches the *thresholds* of the regions. Logits are divided by *temperature*. *std* adds the standard deviation of
    the probabilities over the passes.
    """

    __test__: ClassVar[bool] = False  # pytest would collect a class of this name

    flips: bool = False
    fusion: str = "mean"
    thresholds: tuple[float, ...] = (0.5,)
    temperature: float = 1.0
    std: bool = False

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ConfigError(f"there is no fusion {self.fusion!r}", remedy=f"take one of {', '.join(FUSIONS)}")

    def n_passes(self, dims: int, members: int) -> int:
        """Return the number of passes that are fused: *members* of an ensemble times mirror images."""
        return members * (2**dims if self.flips else 1)

    def infer(self, network: nn.Module, x: Tensor) -> Tensor:
        """Run all passes over *x* ``(B, C, *spatial)`` → ``(B, R, *spatial)`` float32: logits, or shares for "vote".

        With *std*, 2·R channels: the standard deviations follow.
        """
        logits = torch.stack([each.float() for each in self._passes(network, x)])
        fused = self._fused(logits)
        if self.std:
            fused = torch.cat([fused, torch.sigmoid(logits / self.temperature).std(0, correction=0)], dim=1)
        return fused

    def probabilities(self, values: Tensor) -> Tensor:
        """Turn ``(R, *spatial)`` of ``infer``, averaged over windows, into numbers from 0 to 1."""
        if self.std:
            fused, deviations = values.chunk(2)
            return torch.cat([self._as_probabilities(fused), deviations])
        return self._as_probabilities(values)

    def _passes(self, network: nn.Module, x: Tensor) -> Iterator[Tensor]:
        members = list(network.members) if isinstance(network, Ensemble) else [network]
        axes = range(2, x.dim())
        subsets = (s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)) if self.flips else [()]
        for mirrored in subsets:
            image = x.flip(mirrored) if mirrored else x
            for member in members:
                yield member(image).flip(mirrored) if mirrored else member(image)

    def _fused(self, logits: Tensor) -> Tensor:
        """Fuse the passes of ``(P, B, R, *spatial)``."""
        if self.fusion == "max":
            return logits.amax(0)
        if self.fusion == "vote":
            least = self.temperature * torch.tensor(self.thresholds, device=logits.device).logit()
            return (logits >= least.reshape(-1, *[1] * (logits.dim() - 3))).float().mean(0)
        return logits.mean(0)

    def _as_probabilities(self, values: Tensor) -> Tensor:
        return values if self.fusion == "vote" else torch.sigmoid(values / self.temperature)
