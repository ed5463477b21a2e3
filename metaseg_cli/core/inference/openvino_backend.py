"""Run a network with OpenVINO, converted through TorchScript."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.models.network import Network


def convert(network: Network, card: ModelCard, precision: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Convert *network* for windows of the size of *x* ``(B, C, …)``; other sizes are compiled when they come."""
    core = _core()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The trace does not depend on sizes: a small image does as well as a large one.
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
    # Windows of one size are the rule, and a model that knows the size is, measured, up to a quarter faster.
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
    """Return OpenVINO's core, one for the life of the process.

    On CPUs with matrix registers (AMX) each core installs a signal stack of its own. When several are destroyed, the
    last may restore the stack of one that no longer exists, and the next Ctrl-C would crash the process.
    """
    # Importing it sends telemetry to its makers, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()
