"""What training and prediction need of a network, whichever it is."""

from __future__ import annotations

import abc
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Stride = tuple[int, ...]


class Network(nn.Module, abc.ABC):
    """The interface of every network; a class and not a Protocol because torch's functions take ``nn.Module`` only.

    Built as ``(config: ConvConfig, in_channels, out_channels, widths, strides, deep_supervision)``. Parameters of the
    heads are named ``heads.*``, so that they can be matched to regions when training starts from another model.
    """

    stride: Stride  # by how much the coarsest grid is coarser than the input, per axis
    heads: nn.ModuleList  # 1×1 convolutions that give logits; they start from the foreground prior
    head_weights: tuple[float, ...]  # of each output in train mode, in the loss; their sum is 1
    deep_supervision: bool  # whether every output of train mode has a head of its own

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, …)`` of any size → logits ``(B, regions, …)``; in training with deep supervision a list of them.

        The list has one for each of ``head_weights``, the one that predicts last.
        """


@runtime_checkable
class Prunable(Protocol):
    """A network that can be cut behind a shallower depth, to predict faster, if trained with deep supervision."""

    depth: int

    def pruned(self, depth: int) -> Network:
        """Return the network cut behind *depth* (1 … ``depth``), with the same weights. Raises ConfigError."""
        ...
