"""Apply a network to an image of any size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metaseg_cli.core.inference.tta import TestTimeAugmentation
from metaseg_cli.core.inference.windows import LARGEST, Tiling, largest_window, tile
from metaseg_cli.core.intensity import EMPTY_WINDOW_RANGE
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.models.availability import with_availability

AfterWindow = Callable[[int, int], None]

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


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How a network is applied to an image.

    *context* adjacent slices on each side go to 2D models. *patch* ``(*spatial)`` is the patch of the training;
    windows are of its size, or of up to *largest* voxels. *tta* says which passes are made.
    """

    dims: int
    patch: tuple[int, ...]
    regions: int
    largest: int | None = None
    context: int = 0
    precision: str = "fp32"
    tta: TestTimeAugmentation = field(default_factory=TestTimeAugmentation)

    @classmethod
    def of(cls, card: ModelCard, precision: str) -> InferenceSettings:
        """Return the settings of the model of *card*, in a single pass."""
        return cls(
            dims=card.dims,
            patch=card.patch[-card.dims :],
            regions=card.out_channels,
            largest=largest_window(card.norm),
            context=card.context,
            precision=precision,
        )

    @property
    def layers(self) -> int:
        """Channels of the result: a probability per region, and with *tta.std* its standard deviation."""
        return 2 * self.regions if self.tta.std else self.regions


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module,
    image: Tensor,
    settings: InferenceSettings,
    available: Tensor | None = None,
    after_window: AfterWindow | None = None,
) -> Tensor:
    """Predict *image* ``(C, Z, Y, X)``, normalised, on the model's device → ``(layers, Z, Y, X)`` float32 on the CPU.

    *available* ``(C,)`` tells models with modality availability which sequences the case has. *after_window* hears how
    many windows are done, and of how many.

    A 2D network sees whole slices up to ``LARGEST`` pixels. Larger slices, and volumes for a 3D network, are predicted
    window by window (see ``tile``). Windows that hold background alone get the probability 0 without a pass through the
    network.
    """
    model.eval()
    on_device = None if available is None else available.to(image.device)
    inference = _WindowInference(model, settings, on_device, _background_range(image))
    if settings.dims == 2:
        return _slices(inference, image, after_window)
    tiling = tile(image.shape[1:], settings.patch, settings.largest)
    return _windows(inference, image, tiling, _Count(tiling.windows, after_window))


@dataclass(frozen=True)
class _WindowInference:
    """What all windows of one image share."""

    model: nn.Module
    settings: InferenceSettings
    available: Tensor | None
    background_range: Tensor  # (C,): a window whose values vary less than this is background

    def __call__(self, x: Tensor) -> Tensor:
        """Run the network on ``(B, C, *spatial)`` → ``(B, R, *spatial)``, as ``TestTimeAugmentation.infer`` does."""
        if self.available is not None:
            x = with_availability(x, self.available.expand(len(x), -1))
        with autocast(x.device, self.settings.precision):
            return self.settings.tta.infer(self.model, x)

    def is_background(self, image: Tensor) -> bool:
        """Return whether a window ``(C, …)`` shows no anatomy."""
        values = image.flatten(1)
        most = self.background_range.repeat_interleave(len(image) // len(self.background_range))  # adjacent slices too
        return bool((values.amax(1) - values.amin(1) <= most).all())


def _background_range(image: Tensor) -> Tensor:
    """Return for each channel the range of values below which a window is background."""
    values = image.flatten(1)
    return EMPTY_WINDOW_RANGE * (values.amax(1) - values.amin(1))


class _Count:
    """Tells a listener how many of *total* windows are done."""

    def __init__(self, total: int, listener: AfterWindow | None) -> None:
        self.total, self.done, self._listener = total, 0, listener

    def add(self) -> None:
        """Count one window more."""
        self.done += 1
        if self._listener is not None:
            self._listener(self.done, self.total)


def _slices(inference: _WindowInference, image: Tensor, after_window: AfterWindow | None) -> Tensor:
    _, depth, y, x = image.shape
    settings = inference.settings
    result = torch.zeros(settings.layers, depth, y, x)
    tiling = tile((y, x), settings.patch, settings.largest or LARGEST)
    if tiling.shape != (y, x):
        count = _Count(depth * tiling.windows, after_window)
        for z in range(depth):
            result[:, z] = _windows(
                inference, with_neighbours(image, settings.context, slice(z, z + 1))[:, 0], tiling, count
            )
        return result
    batch = max(1, _SLICE_BATCH // (y * x))
    count = _Count(-(-depth // batch), after_window)
    for z in range(0, depth, batch):
        part = with_neighbours(image, settings.context, slice(z, z + batch))
        if not inference.is_background(image[:, z : z + batch]):
            values = inference(part.transpose(0, 1).contiguous(memory_format=torch.channels_last))
            result[:, z : z + batch] = settings.tta.probabilities(values.transpose(0, 1)).cpu()
        count.add()
    return result


def _windows(inference: _WindowInference, image: Tensor, tiling: Tiling, count: _Count) -> Tensor:
    """Predict *image* ``(C, *spatial)`` → ``(R, *spatial)``, logits averaged over windows that overlap.

    Sums are kept only for the slab along the first axis that later windows still reach.
    """
    settings, size, window = inference.settings, tiling.size, tiling.shape
    weight = tiling.weight.to(image.device)
    result = torch.zeros(settings.layers, *size)
    total = torch.zeros(settings.layers, window[0], *size[1:], device=image.device)
    weights = torch.zeros(window[0], *size[1:], device=image.device)
    for start, following in itertools.pairwise([*tiling.starts[0], size[0]]):
        for across in tiling.boxes(first_axis=1):
            part = image[(slice(None), slice(start, start + window[0]), *across)]
            if not inference.is_background(part):
                total[(slice(None), slice(None), *across)] += inference(part.unsqueeze(0))[0] * weight
                weights[(slice(None), *across)] += weight
            count.add()
        done = following - start  # planes that no later window reaches
        for plane in range(done):  # one by one: a slab is large enough once
            weight_here = weights[plane]
            values = settings.tta.probabilities(total[:, plane] / weight_here.clamp_min(torch.finfo().tiny))
            result[:, start + plane] = (values * (weight_here > 0)).cpu()
        for sums, axis in ((total, 1), (weights, 0)):
            kept = sums.narrow(axis, done, window[0] - done).clone()
            sums.narrow(axis, 0, window[0] - done).copy_(kept)
            sums.narrow(axis, window[0] - done, done).zero_()
    return result
