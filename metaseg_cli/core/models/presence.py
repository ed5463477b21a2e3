"""Which sequences a case has, told to a network as further input channels."""

from __future__ import annotations

import torch
from torch import Tensor


def with_presence(image: Tensor, present: Tensor) -> Tensor:
    """*image* ``(B, C, *spatial)``, *present* ``(B, C)`` bool → ``(B, 2 C, *spatial)``.

    A missing sequence is 0 in the image, which is also its mean where it is there; the second half of the channels, 1
    or 0 throughout, tells the two apart.
    """
    there = present.to(image).view(*present.shape, *(1,) * (image.dim() - 2))
    return torch.cat([image, there.expand_as(image)], dim=1)
