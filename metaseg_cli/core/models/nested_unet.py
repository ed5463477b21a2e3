"""Nested U-Net, U-Net++ (Zhou et al. 2018, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaseg_cli.core.models.blocks import (
    ConvBlock,
    ConvConfig,
    conv,
    crop_to,
    pad_to_multiple,
    pool,
    total_stride,
    up_conv,
)
from metaseg_cli.core.models.network import Network, Stride
from metaseg_cli.errors import ConfigError


class NestedUNet(Network):
    """Node x(i, j) of level i and column j takes all earlier nodes of its level and the upsampled one below it.

        x(0,0) ─ x(0,1) ─ x(0,2) ─ x(0,3)      one 1×1 head on each of x(0,1) …: deep supervision,
        x(1,0) ─ x(1,1) ─ x(1,2)               and the network may be cut behind any of them
        x(2,0) ─ x(2,1)
        x(3,0)

    Prediction is the last head alone, the authors' fast mode. The mean of all heads, their accurate mode, was
    measured to be worse (docs/decisions/nested-unet-last-head.md): the first columns see too little around a voxel.
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
        self._built_from = (config, in_channels, out_channels, tuple(widths), tuple(strides))
        self.deep_supervision = deep_supervision
        self.depth = len(widths) - 1
        self.stride = total_stride(strides)
        self.pool = nn.ModuleList(pool(config, s) for s in strides)
        self.up = nn.ModuleDict()
        self.node = nn.ModuleDict()
        for level, width in enumerate(widths):
            below = in_channels if level == 0 else widths[level - 1]
            self.node[f"{level}_0"] = ConvBlock(config, below, width)
            for column in range(1, self.depth - level + 1):
                self.up[f"{level}_{column}"] = up_conv(config, widths[level + 1], width, strides[level])
                self.node[f"{level}_{column}"] = ConvBlock(config, (column + 1) * width, width)
        heads = self.depth if deep_supervision else 1
        self.heads = nn.ModuleList(conv(config, widths[0], out_channels, kernel=1) for _ in range(heads))
        # All heads have the finest grid, and any may become the last one: they count alike.
        self.head_weights = (1 / heads,) * heads

    def _finest_row(self, x: Tensor) -> list[Tensor]:
        """Return x(0,1) … x(0,depth) of the padded input *x*."""
        rows = [[self.node["0_0"](x)]]  # rows[0] is the finest
        for level in range(1, self.depth + 1):
            rows.append([self.node[f"{level}_0"](self.pool[level - 1](rows[-1][0]))])
        for column in range(1, self.depth + 1):
            for level in range(self.depth - column + 1):
                below = self.up[f"{level}_{column}"](rows[level + 1][column - 1])
                rows[level].append(self.node[f"{level}_{column}"](torch.cat([*rows[level], below], dim=1)))
        return rows[0][1:]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, …)`` → logits ``(B, regions, …)``; in training with deep supervision one per head, deepest last."""
        finest = self._finest_row(pad_to_multiple(x, self.stride))
        if self.training and self.deep_supervision:
            return [crop_to(head(each), x.shape[2:]) for head, each in zip(self.heads, finest, strict=True)]
        return crop_to(self.heads[-1](finest[-1]), x.shape[2:])

    def pruned(self, depth: int) -> NestedUNet:
        """Return the network cut behind x(0, *depth*), with the same weights and without the other nodes.

        Raises ConfigError outside 1 … ``depth``, and for a network without deep supervision, whose inner columns
        have no head.
        """
        if not 1 <= depth <= self.depth:
            raise ConfigError(f"depth must be 1 … {self.depth}, got {depth}")
        if depth == self.depth:
            return self
        if not self.deep_supervision:
            raise ConfigError("only a nested-unet trained with deep supervision can be pruned")
        config, inputs, outputs, widths, strides = self._built_from
        small = NestedUNet(config, inputs, outputs, widths[: depth + 1], strides[:depth], True)
        kept = self.state_dict()
        small.load_state_dict({name: kept[name] for name in small.state_dict()})
        reference = next(self.parameters())
        return small.to(reference.device, reference.dtype).train(self.training)
