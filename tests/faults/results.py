"""What a call left behind: is every file whole, and is it what an undisturbed call leaves?"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  makes LZ4 known to h5py
import nibabel
import numpy as np
import SimpleITK as sitk
import torch
import yaml
from PIL import Image
from safetensors import safe_open

OWN = re.compile(r"[a-z-]+-\d{8}-\d{6}(-\d+)?")  # a run is named after the moment that it began
_TIMES = {
    *("minutes", "seconds", "images_per_second", "milliseconds_per_step", "temperature_seconds"),
    *("key", "stopped", "program", "settings_seconds", "id"),
}
_NOT_COMPARED = {"log.txt", "environment.json", "checkpoint.pt", "checkpoint.before.pt", "errors.log"}
LEFTOVERS = re.compile(r"^\.?metaseg-(?!demo$)|^\.predictions$|^\.lock$|^\.out_of_fold|^tmp")


def files_of(folder: Path) -> list[Path]:
    """Every file under *folder* that is neither hidden nor in something hidden."""
    if not folder.exists():
        return []
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def leftovers(*folders: Path) -> list[str]:
    """Temporary files and folders under *folders*."""
    return [str(p) for folder in folders if folder.exists() for p in folder.rglob("*") if LEFTOVERS.match(p.name)]


def broken(folder: Path) -> list[str]:
    """What of *folder* cannot be read whole, and why."""
    faults = []
    for path in files_of(folder):
        try:
            content(path)
        except Exception as error:
            faults.append(f"{path} is not whole: {type(error).__name__} {str(error)[:200]}")
    return faults


def canonical(folder: Path) -> dict[str, str]:
    """Name → digest of what a file says, without times."""
    return {
        OWN.sub("RUN", str(path.relative_to(folder))): hashlib.sha256(repr(content(path)).encode()).hexdigest()
        for path in files_of(folder)
        if path.name not in _NOT_COMPARED
    }


def content(path: Path) -> Any:
    """What *path* says, read to its last byte. Raises whatever its reader does."""
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        return _digest(np.asarray(image.dataobj)), image.header.binaryblock
    if name.endswith((".nrrd", ".mha", ".mhd")):
        other = sitk.ReadImage(str(path))
        return _digest(sitk.GetArrayFromImage(other)), other.GetSpacing(), other.GetOrigin(), other.GetDirection()
    readers = {
        ".png": _picture,
        ".csv": _table,
        ".json": lambda p: _without_times(json.loads(_text(p))),
        ".html": _page,
        ".yaml": lambda p: yaml.safe_load(_text(p)),
        ".safetensors": _tensors,
        ".h5": _hdf5,
        ".pt": lambda p: sorted(torch.load(p, map_location="cpu", weights_only=True)),
        ".onnx": _onnx,
    }
    reader = readers.get(path.suffix)
    return reader(path) if reader else path.read_bytes()


def _text(path: Path) -> str:
    return OWN.sub("RUN", path.read_text(encoding="utf-8"))


def _digest(array: Any) -> str:
    return f"{array.shape} {array.dtype} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def _picture(path: Path) -> str:
    with Image.open(path) as image:
        return _digest(np.asarray(image))


def _page(path: Path) -> str:
    text = _text(path)
    if not text.rstrip().endswith("</html>"):
        raise ValueError("the page has no end")
    return text


def _table(path: Path) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(_text(path))))
    if not rows or len({len(row) for row in rows}) > 1 or not path.read_bytes().endswith(b"\n"):
        raise ValueError("rows of different lengths")
    kept = [i for i, name in enumerate(rows[0]) if name not in _TIMES]
    return [[row[i] for i in kept] for row in rows]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in sorted(value.items()) if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _tensors(path: Path) -> Any:
    with safe_open(path, "pt") as file:
        weights = {name: _digest(file.get_tensor(name).numpy()) for name in sorted(file.keys())}
        return weights, sorted(file.metadata().items())


def _hdf5(path: Path) -> Any:
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        if "cases" in file:  # the index, whose links must lead somewhere
            return {name: sorted(file["cases"][name]) for name in file["cases"]}

        def visit(name: str, node: Any) -> None:
            values = _digest(node[()]) if isinstance(node, h5py.Dataset) else ""
            found[name] = (values, sorted((k, repr(np.asarray(v).tolist())) for k, v in node.attrs.items()))

        file.visititems(visit)
    return sorted(found.items())


def _onnx(path: Path) -> Any:
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    return [_digest(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer]
