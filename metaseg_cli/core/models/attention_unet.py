"""Attention U-Net (Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg_cli.core.models.blocks import (
    ConvBlock,
    ConvConfig,
    conv,
    crop_to,
    pad_to_multiple,
    pool,
    resize,
    strided_conv,
    total_stride,
    up_conv,
)
from metaseg_cli.core.models.network import Network, Stride


class AttentionGate(nn.Module):
    """Additive attention on the coarser grid: α = sigmoid(ψᵀ·ReLU(θ·x + φ·g + b)), output α·x (eqs. 1 and 2).

    Everything but the last product runs at the resolution of the gating signal, a quarter (2D) or an eighth (3D)
    of the voxels, which is what keeps the gate cheap.
    """

    def __init__(self, config: ConvConfig, skip: int, gating: int, stride: Stride) -> None:
        super().__init__()
        self.theta = strided_conv(config, skip, skip, stride)
        self.phi = conv(config, gating, skip, kernel=1)
        self.psi = conv(config, skip, 1, kernel=1)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the skip *x* ``(B, F, …)`` by *g* ``(B, G, …/stride)``; return it and α ``(B, 1, …)``."""
        alpha = torch.sigmoid(self.psi(F.relu(self.theta(x) + self.phi(g), inplace=True)))
        alpha = resize(alpha, x.shape[2:])
        return x * alpha, alpha


class AttentionUNet(Network):
    """An encoder and a decoder whose skip connections, except the finest, pass attention gates.

    The gate of a level is steered by the decoder's map one level below; the deepest by the bottleneck.
    """

    def __init__(
        self,
        config: ConvConfig,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        strides: Sequence[Stride],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.stride = total_stride(strides)
        self.deep_supervision = deep_supervision
        levels = range(len(widths) - 1)
        inputs = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(ConvBlock(config, i, o) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.ModuleList(pool(config, s) for s in strides)
        self.up = nn.ModuleList(up_conv(config, widths[i + 1], widths[i], strides[i]) for i in levels)
        self.gate = nn.ModuleList(AttentionGate(config, widths[i], widths[i + 1], strides[i]) for i in levels if i > 0)
        self.decoder = nn.ModuleList(ConvBlock(config, 2 * widths[i], widths[i], convolutions=1) for i in levels)
        heads = levels if deep_supervision else [0]
        self.heads = nn.ModuleList(conv(config, widths[i], out_channels, kernel=1) for i in heads)
        # Each coarser head counts half of the next finer one; the finest is last.
        weights = [0.5**i for i in reversed(range(len(self.heads)))]
        self.head_weights = tuple(w / sum(weights) for w in weights)

    def _decode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return decoder maps and attention maps of the padded input *x*, both finest first."""
        skips = [self.encoder[0](x)]
        for shrink, block in zip(self.pool, self.encoder[1:], strict=True):
            skips.append(block(shrink(skips[-1])))
        below = skips.pop()
        maps: list[Tensor] = []
        alphas: list[Tensor] = []
        for level in reversed(range(len(skips))):
            skip = skips[level]
            if level > 0:
                skip, alpha = self.gate[level - 1](skip, below)
                alphas.insert(0, alpha)
            below = self.decoder[level](torch.cat([skip, self.up[level](below)], dim=1))
            maps.insert(0, below)
        return maps, alphas

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, …)`` → logits ``(B, regions, …)``; in training with deep supervision one per level, finest last."""
        size = x.shape[2:]
        padded = pad_to_multiple(x, self.stride)
        maps, _ = self._decode(padded)
        if not (self.training and self.deep_supervision):
            return crop_to(self.heads[0](maps[0]), size)
        logits = [head(features) for head, features in zip(self.heads, maps, strict=True)]
        return [crop_to(resize(each, padded.shape[2:]), size) for each in reversed(logits)]

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return α of every gate, finest first, each ``(B, 1, …)`` in 0 … 1 at the input's size."""
        _, alphas = self._decode(pad_to_multiple(x, self.stride))
        full = [resize(alpha, pad_to_multiple(x, self.stride).shape[2:]) for alpha in alphas]
        return [crop_to(alpha, x.shape[2:]) for alpha in full]
