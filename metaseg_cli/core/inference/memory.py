"""How much memory prediction needs, and which windows fit into the available memory."""

from __future__ import annotations

import numpy as np
from torch import nn

from metaseg_cli.core.choices import NETWORKS
from metaseg_cli.core.counts import sizes_with_axes
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.errors import ConfigError

_SMALLEST = {2: 64, 3: 32}  # shortest side of a window: smaller ones show too little of the surroundings
_SPARE = 64 * 2**20  # bytes for what is not modelled
PROGRAM_BYTES = 500 * 10**6  # measured: resident memory with torch, OpenVINO and the readers loaded, rounded up
WEIGHT_COPIES = 3  # torch's, the backend's, and one while it is converted
IMAGE_COPIES = 2  # as read, and as the network sees it


def bytes_per_voxel(card: ModelCard, precision: str, n_passes: int) -> float:
    """Return the memory per voxel of a window; the logits of *n_passes* are kept until they are fused."""
    number = 4 if precision == "fp32" else 2
    maps = NETWORKS[card.name].inference_maps * card.widths[0]
    return maps * number + 4 * (card.in_channels + card.out_channels * (n_passes + 2))


def fitting_windows(
    card: ModelCard, largest: int | None, precision: str, n_passes: int, left: int
) -> tuple[tuple[int, ...], int | None]:
    """Return the patch and the largest window (in voxels) that fit into *left* bytes, at most the usual ones.

    Raises ConfigError when not even the smallest useful window fits, or when the network's norm allows no other than
    the patch.
    """
    patch = list(card.patch[-card.dims :])
    voxels = int(max(0, left - _SPARE) / bytes_per_voxel(card, precision, n_passes))
    while np.prod(patch) > voxels and largest is not None and max(patch) >= 2 * _SMALLEST[card.dims]:
        patch[int(np.argmax(patch))] //= 2
    if np.prod(patch) > voxels:
        needed = np.prod(patch) * bytes_per_voxel(card, precision, n_passes) + _SPARE - left
        raise ConfigError(
            f"--max-memory is too small: windows of {sizes_with_axes(patch)} voxels need {needed / 1e9:.1f} GB more",
            remedy="allow more, or close other programs",
        )
    return tuple(patch), None if largest is None else min(largest, voxels)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of the weights of *network*."""
    return sum(each.numel() * each.element_size() for each in network.parameters())
