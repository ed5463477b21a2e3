"""The same network by another program, OpenVINO or ONNX Runtime: on a processor they are often faster than torch."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaseg_cli.core.atomic import temporary_folder
from metaseg_cli.core.inference.onnx_file import INPUT, OUTPUT, write_onnx
from metaseg_cli.core.model_file import Ensemble, ModelCard
from metaseg_cli.core.models.blocks import crop_to, pad_to_multiple
from metaseg_cli.core.models.network import Network
from metaseg_cli.errors import ConfigError, InputError, first_line

BACKENDS = ("auto", "torch", "onnx", "openvino")
_REPAYS = 4.0  # a conversion is tried where torch would compute so many times as long as it takes
_FARTHEST = 0.05  # by which the probabilities of two programs that compute in bf16 may differ
_OTHER_VOXELS = 0.01  # share of the foreground that may differ, but always three voxels
_WARM = 0.3  # seconds: a first pass that is quicker says little, it is repeated

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Backend:
    package: str
    seconds: float  # that converting takes, about
    convert: Callable[[Network, ModelCard, str, Tensor], Run]


class Accelerated(nn.Module):
    """A network whose windows go through whichever backend is *wanted*.

    "auto" decides at the first window: torch computes it, and where enough follows to repay the conversion
    (``expect``), so does another program that is installed; it goes on where it is faster and agrees with torch.
    OpenVINO is asked first: ONNX Runtime, measured, takes twice its time and its memory.
    """

    def __init__(self, network: Network, card: ModelCard, wanted: str, precision: str) -> None:
        super().__init__()
        self.network, self.card, self.wanted, self.precision = network, card, wanted, precision
        self.used = "torch"
        self._expected = 0.0
        self._run: Run | None = None

    def expect(self, voxels: float) -> None:
        """How many voxels are still to be computed, so far as is known."""
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
        affordable = [n for n, each in _BACKENDS.items() if _installed(n) and follows > _REPAYS * each.seconds]
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
                # Tracing warns of what depends on sizes: the padding, of which there is none after this one.
                warnings.simplefilter("ignore")
                run = _BACKENDS[name].convert(self.network, self.card, self.precision, pad_to_multiple(x, multiple))
        except Exception as error:  # whatever another program raises means the same
            raise InputError(
                f"{name} does not take this network ({first_line(error)})", remedy="take --backend torch"
            ) from error
        return lambda image: crop_to(run(pad_to_multiple(image, multiple)), image.shape[2:])


def accelerated(network: nn.Module, card: ModelCard, wanted: str, precision: str, device: torch.device) -> nn.Module:
    """*network*, or each member of an ensemble, behind the backend *wanted*; a GPU has torch. Raises ConfigError."""
    if wanted not in BACKENDS:
        raise ConfigError(f"there is no backend {wanted!r}", remedy=f"take one of {', '.join(BACKENDS)}")
    if wanted in _BACKENDS and not _installed(wanted):
        raise ConfigError(
            f"--backend {wanted} wants {_BACKENDS[wanted].package}", remedy="pip install 'metaseg-cli[export]'"
        )
    if device.type != "cpu":
        if wanted in _BACKENDS:
            raise ConfigError(f"--backend {wanted} computes on a processor", remedy="take --device cpu, or torch")
        return network
    if isinstance(network, Ensemble):
        return Ensemble([accelerated(member, card, wanted, precision, device) for member in network.members])
    assert isinstance(network, Network)
    return Accelerated(network, card, wanted, precision)


def agree(ours: Tensor, theirs: Tensor, card: ModelCard) -> bool:
    """Whether two answers ``(B, R, …)`` are the same but for rounding: probabilities, and masks at the thresholds."""
    ours, theirs = (torch.sigmoid(logits / card.temperature) for logits in (ours, theirs))
    if not bool(((ours - theirs).abs() <= _FARTHEST).all()):
        return False
    threshold = torch.tensor([each.threshold for each in card.of_regions()]).reshape(-1, *[1] * (ours.dim() - 2))
    first, second = ours >= threshold, theirs >= threshold
    return int((first ^ second).sum()) <= max(3, _OTHER_VOXELS * int(first.sum()))


def _timed(run: Run, x: Tensor) -> tuple[Tensor, float]:
    """The answer, and the seconds it takes when warm."""
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        answer = run(x)
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > _WARM:
            break
    return answer, seconds


def _installed(name: str) -> bool:
    # A package that is imported already may have no spec, a missing one has none either.
    return all(importlib.util.find_spec(each) is not None for each in _BACKENDS[name].package.split(" and "))


def _openvino(network: Network, card: ModelCard, precision: str, x: Tensor) -> Run:
    """Through TorchScript, which takes half a second."""
    core = _core()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Sizes are no part of what is traced: a small image does as well as a large one.
    small = torch.zeros(2, card.in_channels, *(step * (2 + i) for i, step in enumerate(network.stride)))
    decoder = TorchScriptPythonDecoder(torch.jit.trace(network, small, check_trace=False))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }

    def compiled(shape: list[int]) -> Any:
        model.reshape(shape)
        return core.compile_model(model, "CPU", settings).create_infer_request()

    first = tuple(x.shape)
    # Windows of one size are the rule, and a model that knows the size is up to a quarter faster.
    usual, of_any_size = compiled(list(first)), None

    def run(image: Tensor) -> Tensor:
        nonlocal of_any_size
        request = usual
        if tuple(image.shape) != first:
            of_any_size = of_any_size or compiled([-1, card.in_channels, *[-1] * card.dims])
            request = of_any_size
        return torch.from_numpy(request.infer({0: image.contiguous().numpy()}, share_inputs=True)[0])

    return run


@functools.cache
def _core() -> Any:
    """OpenVINO itself, one for the life of the process.

    On processors with matrix registers (AMX) each one gives signals a stack of its own, and of several that come to
    their end the last may put back the stack of one that is gone: the next Ctrl-C would crash the process.
    """
    # Its import alone reports to its makers; without this package it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _onnx(network: Network, card: ModelCard, precision: str, x: Tensor) -> Run:
    import onnxruntime

    del precision, x  # it computes in float32, and the sizes are free
    with temporary_folder("onnx") as folder:
        path = folder / "model.onnx"
        write_onnx(network, card, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = False  # it never gives memory back
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.contiguous().numpy()})[0])


_BACKENDS = {
    "openvino": _Backend("openvino", 0.7, _openvino),
    "onnx": _Backend("onnxruntime and onnxscript", 12.0, _onnx),
}
