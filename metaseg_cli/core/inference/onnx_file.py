"""A network as an ONNX file."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.models.blocks import total_stride

INPUT, OUTPUT = "image", "logits"


def write_onnx(network: nn.Module, card: ModelCard, path: Path) -> None:
    """Write *network* to *path*, with free batch and image sizes. Requires onnx and onnxscript."""
    # No two sizes are equal, or the exporter would unify them; none is a multiple of the stride, or it would omit the
    # padding.
    multiple = total_stride(card.strides)
    size = [step * max(2, -(-16 // step)) + 2 * i * step + 1 + i for i, step in enumerate(multiple)]
    example = torch.randn(2, card.in_channels, *size)
    free = (0, *range(2, 2 + card.dims))
    plain = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain,
            (example,),
            str(path),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(dict.fromkeys(free, torch.export.Dim.DYNAMIC),),
            external_data=False,
            verbose=False,
        )
