"""Run a network with OpenVINO, converted through TorchScript; what it compiled is kept for the next call."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaseg_cli.core.digests import key_of
from metaseg_cli.core.inference.compiled_cache import keep_bytes, kept_bytes
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.models.network import Network


def convert(network: Network, card: ModelCard, precision: str) -> Callable[[Tensor], Tensor]:
    """Convert *network* for windows of any size.

    One program for all sizes: measured, one that knows its size is up to a quarter faster, but in bf16 it rounds in
    other places, and masks would depend on which size came first. What a call compiled and what another one finds in
    the cache are the same bytes, so that the first call gives what the others give.
    """
    core = _core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    name = f"{_fingerprint(network, settings, core)}.openvino"
    compiled = _imported(kept_bytes(name), settings, core)
    if compiled is None:
        compiled = _compile(network, card, settings, core)
        exported = _exported(compiled)
        again = _imported(exported, settings, core)
        if again is not None and exported is not None:
            compiled = again
            keep_bytes(name, exported)
    request = compiled.create_infer_request()

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: image.contiguous().numpy()}, share_inputs=True)[0])

    return run


def _compile(network: Network, card: ModelCard, settings: dict[str, Any], core: Any) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The trace does not depend on sizes: a small image does as well as a large one.
    small = torch.zeros(2, card.in_channels, *(step * (2 + i) for i, step in enumerate(network.stride)))
    decoder = TorchScriptPythonDecoder(torch.jit.trace(network, small, check_trace=False))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, card.in_channels, *[-1] * card.dims])
    return core.compile_model(model, "CPU", settings)


def _fingerprint(network: Network, settings: dict[str, Any], core: Any) -> str:
    """Return a text that changes with anything that the compiled network depends on."""
    import openvino

    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    machine = [str(core.get_property("CPU", each)) for each in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    return key_of([repr(network), shapes, digest.hexdigest(), settings, openvino.__version__, machine])[:40]


def _exported(compiled: Any) -> bytes | None:
    try:
        found = compiled.export_model()
    except Exception:  # a plug-in that cannot: the network runs as it was compiled
        return None
    return bytes(found) if isinstance(found, bytes) else bytes(found.getvalue())


def _imported(blob: bytes | None, settings: dict[str, Any], core: Any) -> Any:
    """Return the compiled network of *blob*, None where there is none or OpenVINO does not take it."""
    if blob is None:
        return None
    try:
        return core.import_model(io.BytesIO(blob), "CPU", settings)
    except Exception:  # of another build, or of another machine that calls itself the same
        return None


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
