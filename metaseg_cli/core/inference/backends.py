"""Run a network with another program, OpenVINO or ONNX Runtime, which is often faster than torch on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaseg_cli.core.choices import BACKENDS
from metaseg_cli.core.model_file import Ensemble, ModelCard
from metaseg_cli.core.models.blocks import crop_to, pad_to_multiple
from metaseg_cli.core.models.network import Network
from metaseg_cli.errors import ConfigError, InputError, first_line, install_hint

_REPAYS = 4.0  # a conversion is tried where torch would compute this many times as long as the conversion takes
_LARGEST_DIFFERENCE = 0.05  # of probabilities: two programs that compute in bf16 differ by rounding
_OTHER_VOXELS = 0.01  # share of the foreground that may differ, …
_LEAST_OTHER_VOXELS = 3  # … and voxels that always may
_WARM = 0.3  # seconds: a shorter first pass is mostly start-up and is repeated

Run = Callable[[Tensor], Tensor]
Converter = Callable[[Network, ModelCard, str, Tensor], Run]


class AcceleratedNetwork(nn.Module):
    """A network whose windows run through the backend that is *wanted*.

    "auto" decides at the first window: torch computes it, and where enough windows follow to repay the conversion
    (``expect``), so do the other installed programs, the quickest to convert first. The first that is faster than torch
    and agrees with it runs the other windows. ONNX Runtime takes, measured, twice OpenVINO's time and memory.
    """

    def __init__(self, network: Network, card: ModelCard, wanted: str, precision: str) -> None:
        super().__init__()
        self.network, self.card, self.wanted, self.precision = network, card, wanted, precision
        self.used = "torch"
        self._expected = 0.0
        self._run: Run | None = None

    def expect(self, voxels: float) -> None:
        """Announce how many voxels are still to be computed, as far as is known."""
        self._expected = voxels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, …)`` → logits ``(B, regions, …)`` float32; for prediction only."""
        if self._run is not None:
            return self._run(x)
        if self.wanted == "torch":
            return self._by_torch(x)
        if self.wanted != "auto":
            self._run, self.used = self._converted(self.wanted, x), self.wanted
            return self._run(x)
        ours, seconds = _timed(self._by_torch, x)
        follows = seconds * (self._expected / x[:, 0].numel() - 1)
        affordable = [n for n in _converting() if _installed(n) and follows > _REPAYS * BACKENDS[n].conversion_seconds]
        if not affordable:
            return ours  # the next scan may be larger
        self._run = self._by_torch
        for name in affordable:
            try:
                run = self._converted(name, x)
                theirs, taken = _timed(run, x)
            except InputError:
                continue
            if taken < seconds and agree(ours, theirs, self.card):
                self._run, self.used = run, name
                return theirs
        return ours

    def _by_torch(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.float()

    def _converted(self, name: str, x: Tensor) -> Run:
        multiple = self.network.stride
        try:
            with warnings.catch_warnings(), torch.autocast(x.device.type, enabled=False):
                # Tracing warns of what depends on sizes: the padding, which is 0 for an image padded here.
                warnings.simplefilter("ignore")
                run = _converter(name)(self.network, self.card, self.precision, pad_to_multiple(x, multiple))
        except Exception as error:  # whatever another program raises, it cannot run this network
            raise InputError(
                f"{name} cannot run this network ({first_line(error)})", remedy="take --backend torch"
            ) from error
        return lambda image: crop_to(run(pad_to_multiple(image, multiple)), image.shape[2:])


def accelerate(network: nn.Module, card: ModelCard, wanted: str, precision: str, device: torch.device) -> nn.Module:
    """Run *network*, or each of an ensemble, through the backend *wanted*; a GPU takes torch. Raises ConfigError."""
    if wanted != "auto" and wanted not in BACKENDS:
        raise ConfigError(f"there is no backend {wanted!r}", remedy=f"take one of {', '.join(('auto', *BACKENDS))}")
    if wanted in _converting():
        if not _installed(wanted):
            raise ConfigError(
                f"--backend {wanted} requires {' and '.join(BACKENDS[wanted].packages)}",
                remedy=install_hint("export"),
            )
        if device.type != "cpu":
            raise ConfigError(f"--backend {wanted} runs on a CPU", remedy="take --device cpu, or --backend torch")
    if device.type != "cpu":
        return network
    if isinstance(network, Ensemble):
        return Ensemble([accelerate(member, card, wanted, precision, device) for member in network.members])
    assert isinstance(network, Network)
    return AcceleratedNetwork(network, card, wanted, precision)


def agree(ours: Tensor, theirs: Tensor, card: ModelCard) -> bool:
    """Return whether logits ``(B, R, …)`` give the same probabilities and masks, but for rounding."""
    ours, theirs = (torch.sigmoid(logits / card.temperature) for logits in (ours, theirs))
    if not bool(((ours - theirs).abs() <= _LARGEST_DIFFERENCE).all()):
        return False
    threshold = torch.tensor([each.threshold for each in card.of_regions()]).reshape(-1, *[1] * (ours.dim() - 2))
    first, second = ours >= threshold, theirs >= threshold
    return int((first ^ second).sum()) <= max(_LEAST_OTHER_VOXELS, _OTHER_VOXELS * int(first.sum()))


def _timed(run: Run, x: Tensor) -> tuple[Tensor, float]:
    """Return what *run* makes of *x*, and the seconds it takes when warm."""
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        logits = run(x)
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > _WARM:
            break
    return logits, seconds


def _converting() -> list[str]:
    """Return the backends that convert the network, the quickest first."""
    names = [name for name, each in BACKENDS.items() if each.implementation]
    return sorted(names, key=lambda name: BACKENDS[name].conversion_seconds)


def _converter(name: str) -> Converter:
    module, _, function = BACKENDS[name].implementation.partition(":")
    found: Converter = getattr(importlib.import_module(module), function)
    return found


def _installed(name: str) -> bool:
    # A package that is imported already may have no spec, a missing one has none either.
    return all(importlib.util.find_spec(each) is not None for each in BACKENDS[name].packages)
