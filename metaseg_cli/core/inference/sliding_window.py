"""Apply a network to an image of any size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.inference.ensemble import Views
from metaseg_cli.core.models.presence import with_presence

# A 2D slice up to this many pixels goes through the network in one piece.
_WHOLE_SLICE = 1024 * 1024
_WHOLE_SLICE_BATCH = 4 * 256 * 256  # pixels at once: enough to keep two cores busy, little memory


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
    context: int = 0,
    precision: str = "fp32",
    present: Tensor | None = None,
    views: Views | None = None,
) -> Tensor:
    """*image* ``(C, Z, Y, X)`` normalised, on the model's device → probabilities ``(R, Z, Y, X)`` float32 on the CPU.

    *present* ``(C,)`` goes to models that are told which sequences are there; *context* neighbour slices on each side
    to 2D models that want them; *views* says how often each place is looked at (None: once).

    A 2D network sees whole slices; pictures above a megapixel, and volumes for a 3D network, go window by window
    (*patch*, half overlapping, Gaussian weights as in Isensee et al. 2021). Where there is nothing but background, the
    probability is 0 and the network is not asked.
    """
    model.eval()
    there = None if present is None else present.to(image.device)
    look = _Look(model, views or Views(), precision, there, _flat(image))
    if dims == 2:
        return _slices(look, image, regions, context)
    return _windows(look, image, tuple(patch), regions)


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


def _slices(look: _Look, image: Tensor, regions: int, context: int) -> Tensor:
    _, depth, y, x = image.shape
    result = torch.zeros(regions, depth, y, x)
    if y * x > _WHOLE_SLICE:
        for z in range(depth):
            result[:, z] = _windows(look, with_neighbours(image, context, slice(z, z + 1))[:, 0], (512, 512), regions)
        return result
    batch = max(1, _WHOLE_SLICE_BATCH // (y * x))
    for z in range(0, depth, batch):
        part = with_neighbours(image, context, slice(z, z + batch))
        if not look.is_background(image[:, z : z + batch]):
            values = look(part.transpose(0, 1).contiguous(memory_format=torch.channels_last))
            result[:, z : z + batch] = look.views.probabilities(values).transpose(0, 1).cpu()
    return result


def _windows(look: _Look, image: Tensor, patch: Sequence[int], regions: int) -> Tensor:
    """*image* ``(C, *spatial)`` → probabilities ``(R, *spatial)``, values averaged over half-overlapping windows.

    Sums are kept only for the slab along the first axis that windows still reach.
    """
    size = image.shape[1:]
    window = [min(p, n) for p, n in zip(patch, size, strict=True)]
    weight = _gaussian(window).to(image.device)
    result = torch.zeros(regions, *size)
    total = torch.zeros(regions, window[0], *size[1:], device=image.device)
    weights = torch.zeros(window[0], *size[1:], device=image.device)
    starts = _starts(size[0], window[0])
    for start, following in itertools.pairwise([*starts, size[0]]):
        for across in _boxes(size[1:], window[1:]):
            part = image[(slice(None), slice(start, start + window[0]), *across)]
            if look.is_background(part):
                continue
            total[(slice(None), slice(None), *across)] += look(part.unsqueeze(0))[0] * weight
            weights[(slice(None), *across)] += weight
        done = following - start  # planes that no later window reaches
        seen = weights[:done] > 0
        values = look.views.probabilities(total[:, :done] / weights[:done].clamp_min(torch.finfo().tiny))
        result[:, start:following] = (values * seen).cpu()
        for sums, axis in ((total, 1), (weights, 0)):
            kept = sums.narrow(axis, done, window[0] - done).clone()
            sums.narrow(axis, 0, window[0] - done).copy_(kept)
            sums.narrow(axis, window[0] - done, done).zero_()
    return result


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin: at most half a window apart, evenly spread, covering everything."""
    steps = -(-2 * (length - window) // window) if length > window else 0
    return [round(i * (length - window) / steps) for i in range(steps + 1)] if steps else [0]


def _boxes(size: Sequence[int], window: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    for corner in itertools.product(*(_starts(n, w) for n, w in zip(size, window, strict=True))):
        yield tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))


def _gaussian(window: Sequence[int]) -> Tensor:
    """Weight of a window's voxels: a Gaussian of sigma 1/8 of the window, never below a thousandth."""
    weight = torch.ones(())
    for w in window:
        offset = torch.arange(w) - (w - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (offset / (w / 8)) ** 2)
    return weight.clamp_min(1e-3)
