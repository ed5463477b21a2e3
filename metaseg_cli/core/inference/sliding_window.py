"""Apply a network to an image of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from metaseg_cli.core.models.presence import with_presence

# A 2D slice up to this many pixels goes through the network in one piece.
_WHOLE_SLICE = 1024 * 1024
_WHOLE_SLICE_BATCH = 4 * 256 * 256  # pixels at once: enough to keep two cores busy, little memory


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to the number format that *precision* names; nothing for "fp32"."""
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, formats[precision]) if precision in formats else contextlib.nullcontext()


def with_neighbours(image: Tensor, context: int) -> Tensor:
    """``(C, Z, Y, X)`` → ``(C·(2·context + 1), Z, Y, X)``: each sequence's slices z − context … z + context.

    Beyond the ends the last slice is repeated.
    """
    if not context:
        return image
    _, z, y, x = image.shape
    where = (torch.arange(z)[:, None] + torch.arange(-context, context + 1)).clamp(0, z - 1)
    # (C, Z, 2k + 1, Y, X) → (C, 2k + 1, Z, Y, X) → channels
    return image[:, where.to(image.device)].transpose(1, 2).reshape(-1, z, y, x)


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
) -> Tensor:
    """*image* ``(C, Z, Y, X)`` normalised, on the model's device → probabilities ``(R, Z, Y, X)`` float32 on the CPU.

    *present* ``(C,)`` goes to models that are told which sequences are there; *context* neighbour slices on each side
    to 2D models that want them.

    A 2D network sees whole slices; pictures above a megapixel, and volumes for a 3D network, go window by window
    (*patch*, half overlapping, Gaussian weights as in Isensee et al. 2021).
    """
    model.eval()
    image = with_neighbours(image, context)
    if present is not None:
        image = with_presence(image[None], present[None].to(image.device))[0]
    if dims == 2:
        return _slices(model, image, regions, precision)
    return torch.sigmoid(_windows(model, image, tuple(patch), regions, precision)).cpu()


def _slices(model: nn.Module, image: Tensor, regions: int, precision: str) -> Tensor:
    _, depth, y, x = image.shape
    result = torch.empty(regions, depth, y, x)
    if y * x > _WHOLE_SLICE:
        for z in range(depth):
            logits = _windows(model, image[:, z], (512, 512), regions, precision)
            result[:, z] = torch.sigmoid(logits).cpu()
        return result
    batch = max(1, _WHOLE_SLICE_BATCH // (y * x))
    for z in range(0, depth, batch):
        x_in = image[:, z : z + batch].transpose(0, 1).contiguous(memory_format=torch.channels_last)
        with autocast(image.device, precision):
            logits = model(x_in)
        result[:, z : z + batch] = torch.sigmoid(logits.float()).transpose(0, 1).cpu()
    return result


def _windows(model: nn.Module, image: Tensor, patch: Sequence[int], regions: int, precision: str) -> Tensor:
    """*image* ``(C, *spatial)`` → logits ``(R, *spatial)`` averaged over half-overlapping windows."""
    size = image.shape[1:]
    window = [min(p, n) for p, n in zip(patch, size, strict=True)]
    weight = _gaussian(window).to(image.device)
    total = torch.zeros(regions, *size, device=image.device)
    weights = torch.zeros(size, device=image.device)
    for box in _boxes(size, window):
        with autocast(image.device, precision):
            logits = model(image[(slice(None), *box)].unsqueeze(0))[0]
        total[(slice(None), *box)] += logits.float() * weight
        weights[box] += weight
    return total / weights


def _boxes(size: Sequence[int], window: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Windows at most half a window apart, evenly spread, covering everything."""
    starts = []
    for length, w in zip(size, window, strict=True):
        steps = max(1, -(-2 * (length - w) // w)) if length > w else 0
        starts.append([round(i * (length - w) / steps) for i in range(steps + 1)] if steps else [0])
    for corner in torch.cartesian_prod(*[torch.tensor(s) for s in starts]).view(-1, len(starts)).tolist():
        yield tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))


def _gaussian(window: Sequence[int]) -> Tensor:
    """Weight of a window's voxels: a Gaussian of sigma 1/8 of the window, never below a thousandth."""
    weight = torch.ones(())
    for w in window:
        offset = torch.arange(w) - (w - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (offset / (w / 8)) ** 2)
    return weight.clamp_min(1e-3)
