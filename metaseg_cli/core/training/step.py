"""One update of the weights, as fast as this device does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.inference.sliding_window import autocast
from metaseg_cli.core.losses import build_loss, deep_supervision_loss
from metaseg_cli.core.models.network import Network
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.optimizer import build_optimizer
from metaseg_cli.core.training.precision import ComputeFormat
from metaseg_cli.errors import InputError, first_line

_TIMED_ON_GPU = 10  # every tenth step waits for the GPU and is timed: waiting in all of them would slow training down

PHASES = ("loading", "augmentation", "forward", "backward")


@dataclass
class StepTimer:
    """Seconds that the phases of the steps take."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    steps: int = 0
    _timing: bool = True

    def next_step(self) -> None:
        """Begin a step; on a GPU only some are timed."""
        self._timing = self.device.type == "cpu" or self.steps % _TIMED_ON_GPU == 0
        self.steps += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase *name*."""
        began = time.perf_counter()
        yield
        if self._timing:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - began

    def milliseconds_per_step(self) -> dict[str, float]:
        """Return the mean of each phase."""
        timed = self.steps if self.device.type == "cpu" else -(-self.steps // _TIMED_ON_GPU)
        return {phase: 1000 * s / max(1, timed) for phase, s in self.seconds.items()}


class TrainStep:
    """Forward, loss, backward and update; in micro-batches when the batch does not fit into memory at once."""

    def __init__(
        self,
        model: Network,
        config: TrainConfig,
        compute: ComputeFormat,
        group: ProcessGroup,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.compute, self.say = model, compute, say
        self.device = next(model.parameters()).device
        self.loss = build_loss(config.loss, gamma=config.focal_gamma, alpha=config.focal_alpha)
        self.optimizer = build_optimizer(model, config)
        self.max_norm = config.clip or float("inf")
        self.micro_batches = config.accumulate
        # Half precision has too few exponents for small gradients: they are scaled up and down again.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "fp16")
        self.timer = StepTimer(self.device)
        self._parallel = group.wrap_ddp(model)
        self._compiled = config.compile
        self._network: nn.Module = (
            torch.compile(self._parallel) if config.compile else self._parallel  # type: ignore[assignment]
        )

    def __call__(self, image: Tensor, target: Tensor) -> tuple[float, bool]:
        """Update from *image* ``(B, C, …)`` and *target*; return the loss and whether it was finite and used."""
        value = self._backward_within_memory(image, target)
        with self.timer.phase("backward"):
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
            finite = bool(torch.isfinite(norm))  # the same on every process: the gradients are
            if finite or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)  # skips steps that overflowed by itself
                self.scaler.update()
        return value, finite

    def set_learning_rate(self, rate: float) -> None:
        """Use *rate* from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def learning_rate(self) -> float:
        """The rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _backward_within_memory(self, image: Tensor, target: Tensor) -> float:
        """Compute the gradients, in twice as many micro-batches each time memory runs out; return the loss."""
        try:
            return self._backward(image, target)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # Processes that split their batches differently would wait for each other for ever.
            if not _is_out_of_memory(error) or isinstance(self._parallel, DistributedDataParallel):
                raise
            if self.micro_batches >= len(image):
                raise InputError(
                    "a single patch does not fit into memory", remedy="take a smaller --patch or fewer --widths"
                ) from error
        self.micro_batches = min(2 * self.micro_batches, len(image))
        self.say(f"out of memory: each batch is now processed in {self.micro_batches} micro-batches")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._backward_within_memory(image, target)

    def _backward(self, image: Tensor, target: Tensor) -> float:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        layout = self.compute.memory_format(image.dim() - 2)
        value = 0.0
        parts = list(zip(image.chunk(self.micro_batches), target.chunk(self.micro_batches), strict=True))
        for number, (x, y) in enumerate(parts, start=1):
            fraction = len(x) / len(image)
            with self._without_gradient_exchange(number < len(parts)):
                with self.timer.phase("forward"):
                    outputs = self._forward(x.contiguous(memory_format=layout))
                    loss = deep_supervision_loss(outputs, y, self.loss, self.model.head_weights)
                with self.timer.phase("backward"):
                    self.scaler.scale(loss * fraction).backward()
                    value += float(loss.detach()) * fraction  # waits for the device
        return value

    def _forward(self, x: Tensor) -> Tensor | list[Tensor]:
        try:
            with autocast(self.device, self.compute.precision):
                outputs: Tensor | list[Tensor] = self._network(x)
            return outputs
        except Exception as error:
            if not self._compiled or _is_out_of_memory(error):
                raise
            self.say(f"torch.compile does not work here ({first_line(error)}); continuing without it")
            self._compiled, self._network = False, self._parallel
            return self._forward(x)

    def _without_gradient_exchange(self, skip: bool) -> AbstractContextManager[None]:
        # Processes exchange gradients once, with the last micro-batch.
        if skip and isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
