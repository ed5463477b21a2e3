"""One update of the weights, as fast as this device does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.losses import Loss, deep_supervision_loss
from metaseg_cli.core.models.network import Network
from metaseg_cli.core.training.numerics import Numerics
from metaseg_cli.errors import InputError, first_line

_SYNCHRONISED = 10  # every so many steps a GPU is waited for, to see where the time goes

PHASES = ("loading", "augmentation", "forward", "backward")


@dataclass
class Stopwatch:
    """Where the time of the steps goes, in seconds."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    steps: int = 0
    _counting: bool = True

    def next_step(self) -> None:
        """On a GPU only every tenth step is watched: waiting for it in all of them would slow it down."""
        self._counting = self.device.type == "cpu" or self.steps % _SYNCHRONISED == 0
        self.steps += 1

    @contextmanager
    def watching(self, phase: str) -> Iterator[None]:
        """Add the time of the block to *phase*."""
        began = time.perf_counter()
        yield
        if self._counting:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[phase] += time.perf_counter() - began

    def milliseconds_per_step(self) -> dict[str, float]:
        """Mean of each phase."""
        watched = self.steps if self.device.type == "cpu" else -(-self.steps // _SYNCHRONISED)
        return {phase: 1000 * s / max(1, watched) for phase, s in self.seconds.items()}


class Stepper:
    """Forward, loss, backward and update; in pieces when the batch does not fit into memory at once."""

    def __init__(
        self,
        model: Network,
        parallel: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        numerics: Numerics,
        *,
        clip: float,
        pieces: int,
        say: Callable[[str], None],
        compiled: bool,
    ) -> None:
        self.model, self.parallel, self.loss, self.optimizer = model, parallel, loss, optimizer
        self.numerics, self.clip, self.pieces, self.say = numerics, clip, pieces, say
        self.device = next(model.parameters()).device
        # Half precision has too few exponents for small gradients: they are scaled up and down again.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=numerics.precision == "fp16")
        self._network: nn.Module = torch.compile(parallel) if compiled else parallel  # type: ignore[assignment]
        self._compiled = compiled

    def __call__(self, image: Tensor, target: Tensor, watch: Stopwatch) -> tuple[float, bool]:
        """Update from *image* ``(B, C, …)`` and *target*; returns the loss and whether it was finite and used."""
        while True:
            try:
                value = self._gradients(image, target, watch)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_memory(error) or isinstance(self.parallel, DistributedDataParallel):
                    raise
                if self.pieces >= len(image):
                    raise InputError(
                        "a single patch does not fit into memory", remedy="take a smaller --patch or fewer --widths"
                    ) from error
                self.pieces = min(2 * self.pieces, len(image))
                self.say(f"out of memory: each batch now goes through the network in {self.pieces} pieces")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        with watch.watching("backward"):
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
            finite = bool(torch.isfinite(norm))  # the same on every process: the gradients are
            if finite or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)  # leaves out steps that overflowed by itself
                self.scaler.update()
        return value, finite

    def _gradients(self, image: Tensor, target: Tensor, watch: Stopwatch) -> float:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        pieces = list(zip(image.chunk(self.pieces), target.chunk(self.pieces), strict=True))
        for number, (x, y) in enumerate(pieces, start=1):
            share = len(x) / len(image)
            with self._waiting_for_gradients(number == len(pieces)):
                with watch.watching("forward"):
                    outputs = self._forward(x.contiguous(memory_format=self.numerics.layout(x.dim() - 2)))
                    loss = deep_supervision_loss(outputs, y, self.loss, self.model.head_weights)
                with watch.watching("backward"):
                    self.scaler.scale(loss * share).backward()
                    value += float(loss.detach()) * share  # waits for the device
        return value

    def _forward(self, x: Tensor) -> Tensor | list[Tensor]:
        try:
            with autocast(self.device, self.numerics.precision):
                outputs: Tensor | list[Tensor] = self._network(x)
            return outputs
        except Exception as error:
            if not self._compiled or _is_memory(error):
                raise
            self.say(f"torch.compile does not work here ({first_line(error)}); going on without it")
            self._compiled, self._network = False, self.parallel
            return self._forward(x)

    def _waiting_for_gradients(self, last: bool) -> AbstractContextManager[None]:
        # Gradients are exchanged once, with the last piece.
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return nullcontext()


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
