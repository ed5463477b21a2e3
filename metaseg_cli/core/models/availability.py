"""Modality availability: which sequences a case has, told to a network as further input channels."""

from __future__ import annotations

import torch
from torch import Tensor


def with_availability(image: Tensor, available: Tensor) -> Tensor:
    """Append C channels to *image* ``(B, C·(2k + 1), *spatial)``: 1 where *available* ``(B, C)`` bool says so, else 0.

    A missing sequence is 0 in the image, which is also its mean where it is available; the added channels tell the two
    apart.
    """
    flags = available.to(image).view(*available.shape, *(1,) * (image.dim() - 2))
    return torch.cat([image, flags.expand(*available.shape, *image.shape[2:])], dim=1)
