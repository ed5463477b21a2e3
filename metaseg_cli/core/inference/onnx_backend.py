"""Run a network with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metaseg_cli.core.atomic import temporary_folder
from metaseg_cli.core.inference.onnx_file import INPUT, OUTPUT, write_onnx
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.models.network import Network


def convert(network: Network, card: ModelCard, precision: str) -> Callable[[Tensor], Tensor]:
    """Convert *network*; it computes in float32 whatever *precision* says, and takes any size."""
    import onnxruntime

    del precision
    with temporary_folder("onnx") as folder:
        path = folder / "model.onnx"
        write_onnx(network, card, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = False  # an arena is never given back
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.contiguous().numpy()})[0])
