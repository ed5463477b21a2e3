"""One image seen several times, by several networks or mirrored, and the answers made one."""

from __future__ import annotations

import itertools
import math
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
    *threshold*.
    """

    flips: bool = False
    fusion: str = "mean"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.fusion not in ("mean", "max", "vote"):
            raise ConfigError(f"there is no fusion {self.fusion!r}", remedy="take mean, max or vote")

    def values(self, model: nn.Module, x: Tensor) -> Tensor:
        """*x* ``(B, C, *spatial)`` → ``(B, R, *spatial)`` float32: logits, or shares for "vote"."""
        looks = torch.stack([logits.float() for logits in self._looks(model, x)])
        if self.fusion == "max":
            return looks.amax(0)
        if self.fusion == "vote":
            least = math.log(self.threshold / (1 - self.threshold)) if 0 < self.threshold < 1 else math.inf
            return (looks >= least).float().mean(0)
        return looks.mean(0)

    def probabilities(self, values: Tensor) -> Tensor:
        """What ``values`` gave, averaged over windows, as numbers from 0 to 1."""
        return values if self.fusion == "vote" else torch.sigmoid(values)

    def _looks(self, model: nn.Module, x: Tensor) -> Iterator[Tensor]:
        members = list(model.members) if isinstance(model, Ensemble) else [model]
        axes = range(2, x.dim())
        subsets = (s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)) if self.flips else [()]
        for mirrored in subsets:
            seen = x.flip(mirrored) if mirrored else x
            for member in members:
                yield member(seen).flip(mirrored) if mirrored else member(seen)
