"""Run a network with another program, OpenVINO or ONNX Runtime, which is often faster than torch on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg_cli.core.choices import BACKENDS, NORMS
from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.model_file import Ensemble, ModelCard
from metaseg_cli.core.models.blocks import crop_to, pad_to_multiple
from metaseg_cli.core.models.network import Network
from metaseg_cli.errors import ConfigError, InputError, first_line, install_hint

_LARGEST_DIFFERENCE = 0.001  # of probabilities on the reference window
_LONGEST_SIDE = {2: 256, 3: 64}  # of the reference window: as much as a moment's computing
_COARSE = 8  # the reference window's large structures: one random value per this many voxels
_BRIGHT = (0.6, 4.0)  # its metastases: voxels above this value of a smooth random map become as bright as this

Run = Callable[[Tensor], Tensor]
Converter = Callable[[Network, ModelCard, str], Run]


class AcceleratedNetwork(nn.Module):
    """A network whose windows run through the backend that is *wanted*.

    "auto" takes what ``automatic_backend`` names, if its probabilities on ``reference_window`` are torch's to within
    0.001, and torch otherwise. No clock and no scan has a say: the same model gives the same masks on the same machine,
    whatever was predicted before. ``used`` is the program, ``note`` says why it is not the one that is usual.
    """

    def __init__(self, network: Network, card: ModelCard, wanted: str, precision: str) -> None:
        super().__init__()
        self.network, self.card, self.wanted, self.precision = network, card, wanted, precision
        self.used, self.note = "torch", ""
        self._run: Run | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, …)`` → logits ``(B, regions, …)`` float32; for prediction only."""
        self.decide()
        assert self._run is not None
        return self._run(x)

    @torch.inference_mode()
    def decide(self) -> str:
        """Choose the program, unless that is done, and return its name. Raises InputError for one that cannot run."""
        if self._run is None:
            name = automatic_backend(self.card) if self.wanted == "auto" else self.wanted
            self.used, self._run = "torch", self._by_torch
            if name != "torch" and self.wanted != "auto":
                self._run, self.used = self._converted(name), name
            elif name != "torch":
                self._try(name)
        return self.used

    def take_torch(self, note: str) -> None:
        """Compute with torch from now on; *note* says why."""
        self.used, self.note, self._run = "torch", note, self._by_torch

    def _try(self, name: str) -> None:
        """Take the backend *name* if it can run the network and agrees with torch."""
        try:
            run = self._converted(name)
            window = reference_window(self.card)
            with autocast(window.device, self.precision):
                difference = largest_difference(self._by_torch(window), run(window), self.card)
        except InputError as error:
            self.take_torch(f"{error.what}: torch computed the masks")
            return
        if difference <= _LARGEST_DIFFERENCE:
            self._run, self.used = run, name
        else:
            self.take_torch(
                f"torch computed the masks: probabilities by {name} differ by {difference:.2g}, more than "
                f"{_LARGEST_DIFFERENCE:g}"
            )

    def _by_torch(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.float()

    def _converted(self, name: str) -> Run:
        multiple = self.network.stride
        try:
            with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
                # Tracing warns of what depends on sizes: the padding, which is 0 for an image padded here.
                warnings.simplefilter("ignore")
                run = _converter(name)(self.network, self.card, self.precision)
        except Exception as error:  # whatever another program raises, it cannot run this network
            raise InputError(
                f"{name} cannot run this network ({first_line(error)})", remedy="take --backend torch"
            ) from error
        return lambda image: crop_to(run(pad_to_multiple(image, multiple)), image.shape[2:])


def accelerate(network: nn.Module, card: ModelCard, wanted: str, precision: str, device: torch.device) -> nn.Module:
    """Run *network*, or each of an ensemble, through the backend *wanted*; a GPU takes torch. Raises ConfigError."""
    if wanted != "auto" and wanted not in BACKENDS:
        raise ConfigError(f"there is no backend {wanted!r}", remedy=f"take one of {', '.join(('auto', *BACKENDS))}")
    if wanted != "auto" and BACKENDS[wanted].implementation:
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


def decide_together(members: list[AcceleratedNetwork]) -> None:
    """Choose one program for all networks of an ensemble: where one needs torch, all take it."""
    for member in members:
        if member.decide() == "torch" and member.note:
            for each in members:
                each.take_torch(member.note)
            return


def automatic_backend(card: ModelCard) -> str:
    """Return the program that "auto" means for a network: by what is installed and by its norm, not by a clock.

    Statistics over a window are summed by several threads, in another order for another number of them: where the norm
    takes such statistics, torch, whose sums are the same for any number, stays.
    """
    names = [name for name, each in BACKENDS.items() if each.automatic and _installed(name)]
    return names[0] if names and not NORMS[card.norm].window_statistics else "torch"


def reference_window(card: ModelCard) -> Tensor:
    """Return the window ``(1, C, …)`` on which backends are compared, the same one for the same model.

    Of the size of the patch at most, with smooth structures, noise and bright spots in the range of normalised images.
    """
    size = [min(length, _LONGEST_SIDE[card.dims]) for length in card.patch[-card.dims :]]
    random = torch.Generator().manual_seed(0)
    coarse = [-(-length // _COARSE) + 1 for length in size]
    mode = "bilinear" if card.dims == 2 else "trilinear"

    def smooth(channels: int) -> Tensor:
        values = torch.randn(1, channels, *coarse, generator=random)
        return F.interpolate(values, size=size, mode=mode, align_corners=True)

    image = smooth(card.in_channels) + 0.1 * torch.randn(1, card.in_channels, *size, generator=random)
    least, brightness = _BRIGHT
    return torch.where(smooth(1) > least, image + brightness, image)


def largest_difference(ours: Tensor, theirs: Tensor, card: ModelCard) -> float:
    """Return by how much the probabilities that follow from logits ``(B, R, …)`` differ at most; NaN counts as 1."""
    ours, theirs = (torch.sigmoid(logits / card.temperature) for logits in (ours, theirs))
    return float(torch.nan_to_num((ours - theirs).abs(), nan=1.0).max())


def _converter(name: str) -> Converter:
    module, _, function = BACKENDS[name].implementation.partition(":")
    found: Converter = getattr(importlib.import_module(module), function)
    return found


def _installed(name: str) -> bool:
    # A package that is imported already may have no spec, a missing one has none either.
    return all(importlib.util.find_spec(each) is not None for each in BACKENDS[name].packages)
