"""Apply a network to an image of any size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.inference.ensemble import Views
from metaseg_cli.core.inference.windows import LARGEST, Tiling, tile
from metaseg_cli.core.models.presence import with_presence

_SLICE_BATCH = 4 * 256 * 256  # pixels at once: enough to keep two cores busy, little memory


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to the number format that *precision* names; nothing for "fp32"."""
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, formats[precision]) if precision in formats else contextlib.nullcontext()


def with_neighbours(image: Tensor, context: int, slices: slice = slice(None)) -> Tensor:
    """``(C, Z, Y, X)`` → ``(C·(2·context + 1), S, Y, X)``: each sequence's slices z − context … z + context.

    For every z of *slices*; beyond the ends the last slice is repeated.
    """
    if not context:
        return image[:, slices]
    _, z, y, x = image.shape
    wanted = torch.arange(z)[slices]
    where = (wanted[:, None] + torch.arange(-context, context + 1)).clamp(0, z - 1)
    # (C, S, 2k + 1, Y, X) → (C, 2k + 1, S, Y, X) → channels
    return image[:, where.to(image.device)].transpose(1, 2).reshape(-1, len(wanted), y, x)


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module,
    image: Tensor,
    *,
    dims: int,
    patch: Sequence[int],
    regions: int,
    largest: int | None = None,
    context: int = 0,
    precision: str = "fp32",
    present: Tensor | None = None,
    views: Views | None = None,
) -> Tensor:
    """*image* ``(C, Z, Y, X)`` normalised, on the model's device → probabilities ``(R, Z, Y, X)`` float32 on the CPU.

    *present* ``(C,)`` goes to models that are told which sequences are there; *context* neighbour slices on each side
    to 2D models that want them; *views* says how often each place is looked at (None: once), and whether the answers'
    deviations follow as R more layers.

    A 2D network sees whole slices up to ``LARGEST`` pixels. What is larger, and volumes for a 3D network, go window by
    window (see ``tile``): of the size of *patch*, or of up to *largest* voxels. Where there is nothing but background,
    the probability is 0 and the network is not asked.
    """
    model.eval()
    views = views or Views()
    layers = 2 * regions if views.spread else regions
    there = None if present is None else present.to(image.device)
    look = _Look(model, views, precision, there, _flat(image))
    if dims == 2:
        return _slices(look, image, patch, largest, layers, context)
    return _windows(look, image, tile(image.shape[1:], patch, largest), layers)


@dataclass(frozen=True)
class _Look:
    """All that is the same for every window."""

    model: nn.Module
    views: Views
    precision: str
    present: Tensor | None
    flat: Tensor  # (C,): what varies less than this is background

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` → ``(B, R, *spatial)``: values of ``Views``."""
        if self.present is not None:
            x = with_presence(x, self.present.expand(len(x), -1))
        with autocast(x.device, self.precision):
            return self.views.values(self.model, x)

    def is_background(self, image: Tensor) -> bool:
        """Whether ``(C, …)`` shows nothing."""
        values = image.flatten(1)
        flat = self.flat.repeat_interleave(len(image) // len(self.flat))  # neighbour slices are channels too
        return bool((values.amax(1) - values.amin(1) <= flat).all())


def _flat(image: Tensor) -> Tensor:
    """For each channel a fiftieth of its range: no window with anatomy in it varies so little."""
    values = image.flatten(1)
    return 0.02 * (values.amax(1) - values.amin(1))


def _slices(
    look: _Look, image: Tensor, patch: Sequence[int], largest: int | None, regions: int, context: int
) -> Tensor:
    _, depth, y, x = image.shape
    result = torch.zeros(regions, depth, y, x)
    tiling = tile((y, x), patch, largest or LARGEST)
    if tiling.shape != (y, x):
        for z in range(depth):
            result[:, z] = _windows(look, with_neighbours(image, context, slice(z, z + 1))[:, 0], tiling, regions)
        return result
    batch = max(1, _SLICE_BATCH // (y * x))
    for z in range(0, depth, batch):
        part = with_neighbours(image, context, slice(z, z + batch))
        if not look.is_background(image[:, z : z + batch]):
            values = look(part.transpose(0, 1).contiguous(memory_format=torch.channels_last))
            result[:, z : z + batch] = look.views.probabilities(values.transpose(0, 1)).cpu()
    return result


def _windows(look: _Look, image: Tensor, tiling: Tiling, regions: int) -> Tensor:
    """*image* ``(C, *spatial)`` → probabilities ``(R, *spatial)``, values averaged over windows that overlap.

    Sums are kept only for the slab along the first axis that windows still reach.
    """
    size, window = tiling.size, tiling.shape
    weight = tiling.weight.to(image.device)
    result = torch.zeros(regions, *size)
    total = torch.zeros(regions, window[0], *size[1:], device=image.device)
    weights = torch.zeros(window[0], *size[1:], device=image.device)
    for start, following in itertools.pairwise([*tiling.starts[0], size[0]]):
        for across in tiling.boxes(first_axis=1):
            part = image[(slice(None), slice(start, start + window[0]), *across)]
            if look.is_background(part):
                continue
            total[(slice(None), slice(None), *across)] += look(part.unsqueeze(0))[0] * weight
            weights[(slice(None), *across)] += weight
        done = following - start  # planes that no later window reaches
        for plane in range(done):  # one by one: a slab is large enough once
            weight_here = weights[plane]
            values = look.views.probabilities(total[:, plane] / weight_here.clamp_min(torch.finfo().tiny))
            result[:, start + plane] = (values * (weight_here > 0)).cpu()
        for sums, axis in ((total, 1), (weights, 0)):
            kept = sums.narrow(axis, done, window[0] - done).clone()
            sums.narrow(axis, 0, window[0] - done).copy_(kept)
            sums.narrow(axis, window[0] - done, done).zero_()
    return result
