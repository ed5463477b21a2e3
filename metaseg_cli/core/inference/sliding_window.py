"""Apply a network to an image of any size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.inference.tta import TestTimeAugmentation
from metaseg_cli.core.inference.windows import LARGEST, Tiling, tile
from metaseg_cli.core.intensity import EMPTY_WINDOW_RANGE
from metaseg_cli.core.models.availability import with_availability

_SLICE_BATCH = 4 * 256 * 256  # pixels per batch: enough to keep two cores busy, little memory


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return autocast to the number format of *precision*; a context that does nothing for "fp32"."""
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, formats[precision]) if precision in formats else contextlib.nullcontext()


def with_neighbours(image: Tensor, context: int, slices: slice = slice(None)) -> Tensor:
    """Add adjacent slices as channels: ``(C, Z, Y, X)`` → ``(C·(2·context + 1), S, Y, X)``, z − context … z + context.

    Beyond the ends the last slice is repeated.
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
    available: Tensor | None = None,
    tta: TestTimeAugmentation | None = None,
) -> Tensor:
    """Predict *image* ``(C, Z, Y, X)``, normalised, on the model's device → ``(R, Z, Y, X)`` float32 on the CPU.

    *available* ``(C,)`` tells models with modality availability which sequences the case has. 2D models with adjacent
    slices get *context* of them on each side. *tta* says which passes are made (None: one), and whether the standard
    deviation of their probabilities follows as R more layers.

    A 2D network sees whole slices up to ``LARGEST`` pixels. Larger slices, and volumes for a 3D network, are predicted
    window by window (see ``tile``): of the size of *patch*, or of up to *largest* voxels. Windows that hold background
    alone get the probability 0 without a pass through the network.
    """
    model.eval()
    tta = tta or TestTimeAugmentation()
    layers = 2 * regions if tta.std else regions
    on_device = None if available is None else available.to(image.device)
    inference = _WindowInference(model, tta, precision, on_device, _background_range(image))
    if dims == 2:
        return _slices(inference, image, patch, largest, layers, context)
    return _windows(inference, image, tile(image.shape[1:], patch, largest), layers)


@dataclass(frozen=True)
class _WindowInference:
    """What all windows of one image share."""

    model: nn.Module
    tta: TestTimeAugmentation
    precision: str
    available: Tensor | None
    background_range: Tensor  # (C,): a window whose values vary less than this is background

    def __call__(self, x: Tensor) -> Tensor:
        """Run the network on ``(B, C, *spatial)`` → ``(B, R, *spatial)``, as ``TestTimeAugmentation.infer`` does."""
        if self.available is not None:
            x = with_availability(x, self.available.expand(len(x), -1))
        with autocast(x.device, self.precision):
            return self.tta.infer(self.model, x)

    def is_background(self, image: Tensor) -> bool:
        """Return whether a window ``(C, …)`` shows no anatomy."""
        values = image.flatten(1)
        most = self.background_range.repeat_interleave(len(image) // len(self.background_range))  # adjacent slices too
        return bool((values.amax(1) - values.amin(1) <= most).all())


def _background_range(image: Tensor) -> Tensor:
    """Return for each channel the range of values below which a window is background."""
    values = image.flatten(1)
    return EMPTY_WINDOW_RANGE * (values.amax(1) - values.amin(1))


def _slices(
    inference: _WindowInference, image: Tensor, patch: Sequence[int], largest: int | None, regions: int, context: int
) -> Tensor:
    _, depth, y, x = image.shape
    result = torch.zeros(regions, depth, y, x)
    tiling = tile((y, x), patch, largest or LARGEST)
    if tiling.shape != (y, x):
        for z in range(depth):
            result[:, z] = _windows(inference, with_neighbours(image, context, slice(z, z + 1))[:, 0], tiling, regions)
        return result
    batch = max(1, _SLICE_BATCH // (y * x))
    for z in range(0, depth, batch):
        part = with_neighbours(image, context, slice(z, z + batch))
        if not inference.is_background(image[:, z : z + batch]):
            values = inference(part.transpose(0, 1).contiguous(memory_format=torch.channels_last))
            result[:, z : z + batch] = inference.tta.probabilities(values.transpose(0, 1)).cpu()
    return result


def _windows(inference: _WindowInference, image: Tensor, tiling: Tiling, regions: int) -> Tensor:
    """Predict *image* ``(C, *spatial)`` → ``(R, *spatial)``, logits averaged over windows that overlap.

    Sums are kept only for the slab along the first axis that later windows still reach.
    """
    size, window = tiling.size, tiling.shape
    weight = tiling.weight.to(image.device)
    result = torch.zeros(regions, *size)
    total = torch.zeros(regions, window[0], *size[1:], device=image.device)
    weights = torch.zeros(window[0], *size[1:], device=image.device)
    for start, following in itertools.pairwise([*tiling.starts[0], size[0]]):
        for across in tiling.boxes(first_axis=1):
            part = image[(slice(None), slice(start, start + window[0]), *across)]
            if inference.is_background(part):
                continue
            total[(slice(None), slice(None), *across)] += inference(part.unsqueeze(0))[0] * weight
            weights[(slice(None), *across)] += weight
        done = following - start  # planes that no later window reaches
        for plane in range(done):  # one by one: a slab is large enough once
            weight_here = weights[plane]
            values = inference.tta.probabilities(total[:, plane] / weight_here.clamp_min(torch.finfo().tiny))
            result[:, start + plane] = (values * (weight_here > 0)).cpu()
        for sums, axis in ((total, 1), (weights, 0)):
            kept = sums.narrow(axis, done, window[0] - done).clone()
            sums.narrow(axis, 0, window[0] - done).copy_(kept)
            sums.narrow(axis, window[0] - done, done).zero_()
    return result
