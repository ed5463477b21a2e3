"""Hand a prediction to the viewer: arrays once, as bytes, and the rest as a small JSON value at each rerun."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from metaseg_cli.core.images import axial_view
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.reports.region_colours import region_colours

_IMPORT = re.compile(r"^import .*\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)
_STEPS = 65535  # of brightness that the browser tells apart


@dataclass(frozen=True)
class ViewerArrays:
    """One scan at one threshold as the browser takes it, all arrays in the axial view.

    ``carriers`` are bytes by the slot they fill, ``data`` is the viewer's JSON value without its focus.
    """

    carriers: dict[str, bytes]
    data: dict[str, Any]


def viewer_arrays(scan: str, prediction: Prediction, threshold: float, slider: float) -> ViewerArrays:
    """Pack *prediction*, known to the browser as *scan*.

    *threshold* is that of its mask, *slider* what the page's control shows: elsewhere the browser draws a preview.
    """
    volume = prediction.source
    view = axial_view(volume)
    turned: Callable[[NDArray[Any]], NDArray[Any]] = view.apply if view else lambda array: array
    axes = view.axes if view else (0, 1, 2)
    regions = list(prediction.lesions)
    index = regions.index(prediction.index_region)
    colours = region_colours(regions, prediction.index_region)
    image = turned(volume.array)
    in_colour = not volume.sequences and len(image) == 3
    shown = image if in_colour else image[:4]
    mask = f"{scan} at {threshold}"
    probability = np.round(turned(prediction.probabilities[index]) * 255).astype(np.uint8)
    carriers = {f"image{i}": _image_bytes(f"image{i}", scan, channel) for i, channel in enumerate(shown)}
    carriers["probability"] = _packed({"slot": "probability", "id": scan, "type": "uint8"}, probability)
    carriers["mask"] = _packed({"slot": "mask", "id": mask, "type": "uint8"}, _layers(turned(prediction.masks), index))
    spacing = volume.spacing_mm
    return ViewerArrays(
        carriers,
        {
            "scan": scan,
            "mask": mask,
            "slots": {
                "images": [name for name in carriers if name.startswith("image")],
                "probability": "probability",
                "mask": "mask",
            },
            "shape": list(image.shape[1:]),
            "spacing": [spacing[axis] for axis in axes] if spacing else [1.0, 1.0, 1.0],
            "unit": "mm" if spacing else "px",
            "oriented": view is not None,
            "picture": image.shape[1] == 1,
            "colours": in_colour,
            "channel": volume.sequences.index("t1c") if "t1c" in volume.sequences[:4] else 0,
            "regions": [{"name": name, "colour": list(colours[name])} for name in regions],
            "index": index + 1,
            "threshold": threshold,
            "slider": slider,
            "voxels": int(np.count_nonzero(prediction.mask)),
            "lesions": _lesions(prediction),
        },
    )


def show_viewer(arrays: ViewerArrays, focus: int | None) -> None:
    """Draw the viewer; a new *focus* is the number of the lesion to go to."""
    carrier, viewer = _components()
    with st.container(key="carriers"):
        for slot, content in arrays.carriers.items():
            carrier(key=f"carrier_{slot}", data=content)
    viewer(key="viewer", data={**arrays.data, "focus": focus})


def _image_bytes(slot: str, scan: str, channel: NDArray[Any]) -> bytes:
    values = channel.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    step = (high - low) / _STEPS or 1.0
    stored = np.round((values - low) / step).astype("<u2")
    return _packed({"slot": slot, "id": scan, "type": "uint16", "low": low, "step": step}, stored)


def _layers(masks: NDArray[np.bool_], index: int) -> NDArray[np.uint8]:
    """Return the number, from 1, of the region to be seen in each voxel: of those that overlap the smallest.

    Where two have the same voxels, the index region.
    """
    numbers = np.zeros(masks.shape[1:], np.uint8)
    order = sorted(range(len(masks)), key=lambda i: (-np.count_nonzero(masks[i]), i == index))
    for i in order:
        numbers[masks[i]] = i + 1
    return numbers


def _packed(header: dict[str, object], values: NDArray[Any]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + np.ascontiguousarray(values).tobytes()


def _lesions(prediction: Prediction) -> list[dict[str, Any]]:
    """Return number, a voxel of it and box ``[start, stop]`` per axis of each lesion of the index region, as shown."""
    view, shape = axial_view(prediction.source), prediction.source.shape
    axes, flipped = (view.axes, view.flipped) if view else ((0, 1, 2), ())
    found = []
    for lesion in prediction.lesions[prediction.index_region]:
        box, at = [], []
        for i, axis in enumerate(axes):
            start, stop = (int(side) for side in lesion.box[axis])
            centre = int(np.clip(round(lesion.centroid_voxel[axis]), start, stop - 1))
            size = shape[axis]
            box.append([size - stop, size - start] if i in flipped else [start, stop])
            at.append(size - 1 - centre if i in flipped else centre)
        found.append({"number": lesion.number, "at": at, "box": box})
    return found


def script(entry: str, modules: Sequence[str] = ("planes", "store", "paint")) -> str:
    """Join *modules* and *entry* to the one script that a component takes."""
    folder = files(__package__)
    texts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in (*modules, entry)]
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


@cache
def _components() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return _component("metaseg_carrier", "carrier"), _component("metaseg_viewer", "viewer")


def _component(name: str, entry: str) -> Callable[..., Any]:
    """Register a component in the page's own tree, so that keys and styles reach it, on any release of Streamlit."""
    style = (files(__package__) / "viewer.css").read_text(encoding="utf-8") if entry == "viewer" else None
    make: Callable[..., Any] = st.components.v2.component
    if "isolate_styles" in inspect.signature(make).parameters:
        made: Callable[..., Any] = make(name, js=script(entry), css=style, isolate_styles=False)
        return made
    mount: Callable[..., Any] = make(name, js=script(entry), css=style)  # until 1.51 the mount call took it
    return lambda **given: mount(isolate_styles=False, **given)
