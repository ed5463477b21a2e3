"""Windows of sliding-window inference: where they lie, and the weight of each of their voxels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metaseg_cli.core.choices import NORMS

# Voxels per window: as many as keep two cores busy; a GPU holds them too.
LARGEST = 64 * 128 * 128


@dataclass(frozen=True)
class Tiling:
    """Windows of one *shape* over an image of *size*; ``starts`` are their first voxels along each axis.

    *patch* is the patch size of the training.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def windows(self) -> int:
        """The number of windows."""
        return int(np.prod([len(s) for s in self.starts]))

    @property
    def voxels(self) -> int:
        """Voxels that the network computes in all windows."""
        return int(np.prod(self.shape)) * self.windows

    def boxes(self, first_axis: int = 0) -> Iterator[tuple[slice, ...]]:
        """Yield every window, along the axes from *first_axis* on."""
        shape = self.shape[first_axis:]
        for corner in itertools.product(*self.starts[first_axis:]):
            yield tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))

    @cached_property
    def weight(self) -> Tensor:
        """Weight of each voxel: 1 from half a patch inside the border on, then the flank of a Gaussian.

        Its sigma is 1/8 of the patch: a window of the size of a patch has nnU-Net's Gaussian (Isensee et al. 2021). The
        weight is at least 0.001.
        """
        weight = torch.ones(())
        for n, patch in zip(self.shape, self.patch, strict=True):
            known = min(n, patch)
            place = torch.arange(n) + 0.5
            missing = (known / 2 - torch.minimum(place, n - place)).clamp_min(0)
            weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (missing / (known / 8)) ** 2)
        return weight.clamp_min(1e-3)


def tile(size: Sequence[int], patch: Sequence[int], largest: int | None = None) -> Tiling:
    """Return windows over an image of *size* for a network that was trained on *patch*.

    Neighbours overlap by at least half a patch, so that every voxel is predicted as far from a border as in training.
    Windows are patches, unless *largest* voxels are allowed: then multiples of half a patch with the least to compute.
    """
    exact = _tiling(size, patch, patch)
    if largest is None:
        return exact
    sides = [_sides(n, p) for n, p in zip(size, patch, strict=True)]
    tilings = (_tiling(size, shape, patch) for shape in itertools.product(*sides) if np.prod(shape) <= largest)
    return min((exact, *tilings), key=lambda t: (t.voxels, -np.prod(t.shape)))


def largest_window(norm: str) -> int | None:
    """Return the limit for ``tile``: None where *norm* makes a voxel depend on the statistics of its window."""
    return None if NORMS[norm].window_statistics else LARGEST


def _sides(length: int, patch: int) -> list[int]:
    """Return the patch length, and its multiples by 1.5, 2, …, up to the image."""
    if length <= patch:
        return [length]
    half = max(1, patch // 2)
    return [*range(patch, min(length, 16 * patch), half), length]


def _tiling(size: Sequence[int], shape: Sequence[int], patch: Sequence[int]) -> Tiling:
    fitting = tuple(min(n, length) for n, length in zip(shape, size, strict=True))
    starts = tuple(_starts(*each) for each in zip(size, fitting, patch, strict=True))
    return Tiling(tuple(size), fitting, tuple(patch), starts)


def _starts(length: int, window: int, patch: int) -> tuple[int, ...]:
    """Return where windows begin: evenly spread, each sharing at least half a patch with the next."""
    if length <= window:
        return (0,)
    step = window - min(window, patch) / 2
    steps = int(-(-(length - window) // step))
    return tuple(round(i * (length - window) / steps) for i in range(steps + 1))
