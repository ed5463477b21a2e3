"""Segment a picture with an exported 2D model, by numpy, Pillow and ONNX Runtime alone: no torch, no metaseg.

python examples/onnx_client.py MODEL.onnx PICTURE.png MASK.png

``MODEL.json`` must lie beside the model. Without arguments it trains a model on phantoms, exports it, and compares the
masks; that part needs metaseg.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def head_of(image: np.ndarray) -> np.ndarray:
    """Voxels of ``(C, Y, X)`` that are not like the frame of the picture; all of them when it has no background."""
    inside = np.zeros(image.shape[1:], bool)
    for channel in image:
        frame = np.concatenate([channel[0], channel[-1], channel[:, 0], channel[:, -1]])
        background = np.median(frame)
        low, high = np.percentile(channel[::2, ::2], (0.5, 99.5))
        tolerance = 0.05 * (high - low)
        if np.mean(np.abs(frame - background) <= tolerance) < 0.5:
            return np.ones_like(inside)
        inside |= np.abs(channel - background) > tolerance
    return inside if inside.mean() >= 0.01 else np.ones_like(inside)


def normalised(image: np.ndarray) -> np.ndarray:
    """``(C, Y, X)`` with zero mean and unit deviation inside the head."""
    inside, result = head_of(image), np.zeros_like(image)
    for channel, out in zip(image, result, strict=True):
        head = channel[inside]
        typical = np.clip(head, *np.percentile(head, (0.5, 99.5)))
        if typical.std() > 0:
            out[...] = np.clip((channel - typical.mean()) / typical.std(), -8, 8)
    return result


def mask_of(probability: np.ndarray, settings: dict) -> np.ndarray:
    """What *settings*, a region's post-processing, make of ``(Y, X)``; components have 8 neighbours."""
    mask = probability >= settings["threshold"]
    kept, left = np.zeros_like(mask), {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        component, border = [], [left.pop()]
        while border:
            y, x = border.pop()
            component.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        where = tuple(np.transpose(component))
        inside = np.clip(probability[where], 1e-6, 1 - 1e-6)
        confidence = 1 / (1 + np.exp(-np.mean(np.log(inside / (1 - inside)))))
        large = len(component) >= settings["smallest_lesion"]
        if (large or 1 > settings["sparing"] <= confidence) and inside.max() >= settings["seed"]:
            kept[where] = True
    return kept


def description_of(model: Path) -> dict:
    """What ``metaseg export`` wrote beside *model*; the program ends where it is not that of a 2D model."""
    beside = model.with_suffix(".json")
    if not model.is_file():
        sys.exit(f"{model}: no such file; name a model that metaseg export wrote")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        dims, colours = about["dims"], len(about["sequences"])
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{beside}: not the description of an exported model; metaseg export writes it beside the model")
    if dims != 2:
        sys.exit(f"{model}: a {dims}D model; this client segments pictures with 2D models")
    if colours not in (1, 3):
        sys.exit(f"{model}: it takes {', '.join(about['sequences'])}; this client has pictures in grey or colour")
    return about


def picture_of(path: Path, colours: int) -> np.ndarray:
    """The picture as ``(C, Y, X)``; the program ends where the file is not a picture."""
    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                sys.exit(f"{path}: it holds {opened.n_frames} pictures; name a file of one")
            pixels = np.asarray(opened.convert("L" if colours == 1 else "RGB"), np.float32)
    except FileNotFoundError:
        sys.exit(f"{path}: no such file")
    except (OSError, ValueError, SyntaxError):
        sys.exit(f"{path}: not a picture that Pillow reads; save a slice of a volume as PNG, or use metaseg predict")
    return pixels[None] if colours == 1 else pixels.transpose(2, 0, 1)


def segment(model: Path, picture: Path) -> np.ndarray:
    """The mask ``(Y, X)`` of the first region."""
    about = description_of(model)
    image = picture_of(picture, len(about["sequences"]))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {about["input"]["name"]: normalised(image)[None]})
    probability = 1 / (1 + np.exp(-logits[0, 0] / about["temperature"]))
    return mask_of(probability, next(iter(about["postprocessing"].values())))


def example(folder: Path) -> None:
    """Train, export, and see that both give one mask."""
    import metaseg_cli
    from metaseg_cli.commands.export import export
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.commands.train import train
    from metaseg_cli.config import ExportConfig, PrepareConfig, TrainConfig
    from metaseg_cli.core.progress import Silent
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures

    write_phantom_pictures(
        folder / "raw", 4, 4, PhantomSettings(shape=(4, 96, 96), lesions=(2, 5), diameter_mm=(8, 25)), seed=1
    )
    prepare(PrepareConfig(raw=folder / "raw", out=folder / "prepared", workers=1), Silent())
    settings = TrainConfig(data=folder / "prepared", out=folder / "runs", epochs=15, widths=(8, 16, 32), patch=(64,))
    run = train(settings, Silent())
    exported = export(ExportConfig(model=str(run.model), overwrite=True), Silent())
    model = metaseg_cli.load_model(run.model)
    model.precision = "fp32"  # ONNX computes in single precision
    for scan in sorted((folder / "raw").glob("*/*_02.png")):
        ours, theirs = model.predict(scan).mask[0] > 0, segment(exported.onnx, scan)
        differing = np.mean(ours != theirs)
        print(f"{scan.name}: {theirs.sum()} pixels, {differing:.2%} differ from metaseg's")
        assert differing < 0.001


if __name__ == "__main__":
    if len(sys.argv) == 4:
        mask = segment(Path(sys.argv[1]), Path(sys.argv[2]))
        Image.fromarray(mask.astype(np.uint8) * 255).save(sys.argv[3])
    elif len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    else:
        example(Path(sys.argv[1]) / "onnx" if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="metaseg-")))
