"""Which sequences a case has, told to a network as further input channels."""

from __future__ import annotations

import torch
from torch import Tensor


def with_presence(image: Tensor, present: Tensor) -> Tensor:
    """*image* ``(B, C·(2k + 1), *spatial)``, *present* ``(B, C)`` bool → C channels more.

    A missing sequence is 0 in the image, which is also its mean where it is there; the added channels, 1 or 0
    throughout, tell the two apart.
    """
    there = present.to(image).view(*present.shape, *(1,) * (image.dim() - 2))
    return torch.cat([image, there.expand(*present.shape, *image.shape[2:])], dim=1)
