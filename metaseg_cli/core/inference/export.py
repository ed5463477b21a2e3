"""Export a model for programs without torch: an ONNX file, and a description of the steps before and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaseg_cli import PROGRAM
from metaseg_cli.core.atomic import atomic_write, atomic_write_text
from metaseg_cli.core.inference.onnx_file import INPUT, OUTPUT, write_onnx
from metaseg_cli.core.inference.predictor import Model
from metaseg_cli.core.intensity import CLIP_DEVIATIONS, STATISTICS_PERCENTILES
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.typed_json import as_json, read_json
from metaseg_cli.errors import ConfigError, InputError, install_hint

_KEPT = (  # of the card, as they stand
    *("name", "dims", "sequences", "regions", "context", "presence", "patch", "preprocessing"),
    *("temperature", "operating_point", "postprocessing"),
)


def export_onnx(model: Model, path: Path) -> None:
    """Write *path* ``.onnx`` with free batch and image sizes, and ``.json`` beside it.

    Raises ConfigError when the packages of the extra ``export`` are missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("export needs onnx and onnxscript", remedy=install_hint("export")) from error
    atomic_write(path, lambda to: write_onnx(model.torch_network, model.card, to))
    atomic_write_text(path.with_suffix(".json"), json.dumps(description(model.card), indent=1))


def description(card: ModelCard) -> dict[str, Any]:
    """Return what the ``.json`` says: the card, and the steps in words."""
    channels = [
        f"{sequence}{f' slice {offset:+d}' if offset else ''}"
        for sequence in card.sequences
        for offset in range(-card.context, card.context + 1)
    ]
    if card.presence:
        channels += [f"1 where {sequence} is there, else 0" for sequence in card.sequences]
    low, high = STATISTICS_PERCENTILES
    return {
        "schema": 1,
        "program": PROGRAM,
        "input": {"name": INPUT, "layout": "batch, channel, " + ", ".join("zyx"[-card.dims :]), "channels": channels},
        "output": {"name": OUTPUT, "channels": list(card.regions), "value": "logit: sigmoid gives the probability"},
        **{name: as_json(getattr(card, name)) for name in _KEPT},
        "steps": [
            "bring the scan to the orientation and spacing of 'preprocessing' (None: as it is)",
            f"per channel: mean and deviation of the head's voxels, clipped to the percentiles {low:g} and {high:g}; "
            f"subtract, divide, clip to {-CLIP_DEVIATIONS:g} … {CLIP_DEVIATIONS:g}",
            "run the network; divide by 'temperature'; sigmoid",
            "for each region, as its 'postprocessing' says: a voxel counts from 'threshold' on; of the components (26 "
            "neighbours; in 2D, and with 'per_slice' in each slice, 8) drop those whose highest probability is below "
            "'seed', and those smaller than 'smallest_lesion' (mm³, of pictures mm², voxels without a spacing) unless "
            "the sigmoid of their mean logit reaches 'sparing' (1: never); with 'fill_holes' fill what they enclose",
        ],
    }


def is_description(path: Path) -> bool:
    """Return whether *path* is a file that ``export_onnx`` put beside a model."""
    try:
        written = read_json(path, remedy="")
    except InputError:
        return False
    return str(written.get("program")).startswith("metaseg ") and "steps" in written


def greatest_difference(model: Model, path: Path, image: NDArray[np.float32]) -> float:
    """Return the largest difference of probabilities between torch and ONNX Runtime on *image* ``(B, C, …)``.

    Raises ConfigError when onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("the check needs onnxruntime", remedy=install_hint("export")) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run([OUTPUT], {INPUT: image})
    with torch.inference_mode():
        ours = model.torch_network(torch.from_numpy(image)).float()
    return float((torch.sigmoid(ours) - torch.sigmoid(torch.from_numpy(theirs))).abs().max())
