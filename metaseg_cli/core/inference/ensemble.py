"""One image seen several times, by several networks or mirrored, and the answers made one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.model_file import Ensemble
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Views:
    """How often the networks look, and how their answers become one.

    *flips* shows every mirror image too (4 in 2D, 8 in 3D). *fusion* of networks and mirror images: "mean" of the
    logits; "max", which keeps a small lesion that one of them sees; "vote", the share of them whose probability reaches
    the *thresholds* of the regions. Logits are divided by *temperature*.
    """

    flips: bool = False
    fusion: str = "mean"
    thresholds: tuple[float, ...] = (0.5,)
    temperature: float = 1.0
    spread: bool = False  # how far the answers lie apart is wanted too

    def __post_init__(self) -> None:
        if self.fusion not in ("mean", "max", "vote"):
            raise ConfigError(f"there is no fusion {self.fusion!r}", remedy="take mean, max or vote")

    def values(self, model: nn.Module, x: Tensor) -> Tensor:
        """*x* ``(B, C, *spatial)`` → ``(B, R, *spatial)`` float32: logits, or shares for "vote".

        With ``spread``, ``2·R`` channels: then the standard deviation of the answers' probabilities.
        """
        looks = torch.stack([logits.float() for logits in self._looks(model, x)])
        values = self._fused(looks)
        if self.spread:
            values = torch.cat([values, torch.sigmoid(looks / self.temperature).std(0, correction=0)], dim=1)
        return values

    def _fused(self, looks: Tensor) -> Tensor:
        if self.fusion == "max":
            return looks.amax(0)
        if self.fusion == "vote":
            least = self.temperature * torch.tensor(self.thresholds, device=looks.device).logit()
            return (looks >= least.reshape(-1, *[1] * (looks.dim() - 3))).float().mean(0)
        return looks.mean(0)

    def probabilities(self, values: Tensor) -> Tensor:
        """What ``values`` gave for ``(R, *spatial)``, averaged over windows, as numbers from 0 to 1."""
        if self.spread:
            answers, deviations = values.chunk(2)
            return torch.cat([self._as_probabilities(answers), deviations])
        return self._as_probabilities(values)

    def _as_probabilities(self, values: Tensor) -> Tensor:
        return values if self.fusion == "vote" else torch.sigmoid(values / self.temperature)

    def _looks(self, model: nn.Module, x: Tensor) -> Iterator[Tensor]:
        members = list(model.members) if isinstance(model, Ensemble) else [model]
        axes = range(2, x.dim())
        subsets = (s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)) if self.flips else [()]
        for mirrored in subsets:
            seen = x.flip(mirrored) if mirrored else x
            for member in members:
                yield member(seen).flip(mirrored) if mirrored else member(seen)
