"""Write a trained model as ONNX, compared with torch before the file gets its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import ExportConfig
from metaseg_cli.core.atomic import make_folder, temporary_folder, translate_write_errors
from metaseg_cli.core.images import read_scan
from metaseg_cli.core.inference.export import export_onnx, greatest_difference, is_description
from metaseg_cli.core.inference.predictor import Model, load_model
from metaseg_cli.core.intensity import normalise
from metaseg_cli.core.paths import check_openable
from metaseg_cli.core.preprocessing import preprocess
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import ExportResult
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom
from metaseg_cli.errors import InputError

_TOLERANCE = 1e-3


def export(config: ExportConfig, progress: Progress) -> ExportResult:
    """Run ``metaseg export``. Raises MetasegError; a file that does not agree with torch is not kept."""
    source = find_model(config.model)
    path = config.out or source.with_suffix(".onnx")
    if path.suffix != ".onnx":
        raise InputError("the file must end in .onnx", where=path, remedy=f"name it {path.with_suffix('.onnx').name}")
    about = path.with_suffix(".json")
    for each in (path, about):
        left_by_a_kill = each == about and not path.exists() and is_description(about)
        if each.exists() and not config.overwrite and not left_by_a_kill:
            raise InputError("it exists already", where=each, remedy="pass --overwrite, or another --out")
    make_folder(path.parent)
    model = load_model(source, "cpu")
    image, name = _example(model, config.check)
    progress.start("exporting", 2)
    with temporary_folder("export", path) as folder:
        made = folder / path.name
        export_onnx(model, made)
        progress.advance(1, "written")
        difference = greatest_difference(model, made, image)
        progress.advance(1, "compared with torch")
        if not difference <= _TOLERANCE:
            raise InputError(
                f"ONNX Runtime's probabilities differ from torch's by up to {difference:.2g}",
                where=path,
                remedy="try other versions of onnxscript and onnxruntime",
            )
        with translate_write_errors(path):
            path.unlink(missing_ok=True)  # an older one must not lie beside the new description
            for part in (about, path):  # where the .onnx exists, the export is complete
                (folder / part.name).replace(part)
    return ExportResult(model=source, onnx=path, description=about, difference=difference, checked_on=name)


def _example(model: Model, scan: Path | None) -> tuple[NDArray[np.float32], str]:
    """Return an input ``(1, C, *spatial)`` of the network, from the middle of *scan* or of a phantom, and its name."""
    card = model.card
    if scan is None:
        phantom = make_phantom(1, PhantomSettings(shape=(24, 120, 104), spacing_mm=(2.0, 1.6, 1.6)))
        image, name = normalise(phantom.image, "case"), "a phantom"
    else:
        check_openable(scan)
        image, name = preprocess(read_scan([scan]), model.preprocessing)[0], str(scan)
    middle = image.shape[1] // 2
    if card.dims == 2:
        image = image[:, middle]
    else:
        low = [max(0, (n - p) // 2) for n, p in zip(image.shape[1:], card.patch, strict=True)]
        image = image[(slice(None), *(slice(a, a + p) for a, p in zip(low, card.patch, strict=True)))]
    # Adjacent slices and the channels of modality availability are filled with copies.
    channels = [image[i % len(image)] for i in range(card.in_channels)]
    return np.stack(channels)[None], name
