"""Segment scans with a trained model and write masks, overlays and the table of lesions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import metaseg_cli
from metaseg_cli.commands.runs import find_model
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.datasets import Problem, scans_in
from metaseg_cli.core.images import is_image_file, read_image, stem_of, suffix_of, write_mask, write_volume
from metaseg_cli.core.inference.predictor import Model, Prediction, load_model
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.whole_file import write_text_whole
from metaseg_cli.errors import InputError, MetasegError
from metaseg_cli.reports import figures

_OUR_ENDINGS = ("_mask", "_overlay", "_probability")


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """What was found in one scan, and where it was written."""

    source: Path
    mask: Path
    overlay: Path | None
    probability: tuple[Path, ...]
    prediction: Prediction
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """All scans of one call; ``problems`` are those that gave no mask."""

    model: Path
    card: ModelCard
    out: Path
    threshold: float
    scans: tuple[PredictedScan, ...]
    problems: tuple[Problem, ...] = field(default=())


def predict(config: PredictConfig, progress: Progress) -> PredictResult:
    """Run ``metaseg predict``. One bad scan never stops the others; raises only where nothing can be done at all."""
    path = find_model(config.model)
    scans, problems = _scans(config.inputs)
    model = load_model(path, config.device)
    progress.say(f"model {path}: {model.card.name}, {model.card.dims}D, {', '.join(model.card.sequences)}")
    config.out.mkdir(parents=True, exist_ok=True)
    done: list[PredictedScan] = []
    names = _output_names(scans)
    progress.start("predicting", len(scans))
    for scan in scans:
        try:
            done.append(_predict_one(model, scan, names[scan], config))
        except MetasegError as error:
            problems.append(Problem(file=scan, reason=error.what, remedy=error.remedy))
        except OSError as error:
            problems.append(Problem(file=scan, reason=f"not written: {error.strerror}", remedy="check --out"))
        progress.advance(1, scan.name)
    result = PredictResult(
        model=path,
        card=model.card,
        out=config.out,
        threshold=model.card.threshold if config.threshold is None else config.threshold,
        scans=tuple(done),
        problems=tuple(problems),
    )
    if done:
        _write_tables(result)
    return result


def at_threshold(model: Model, prediction: Prediction, threshold: float) -> Prediction:
    """The same scan at another threshold, without running the network again."""
    return model.interpret(prediction.source, prediction.probabilities, threshold)


def _scans(inputs: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """The image files that *inputs* mean, in order and once each; folders stand for the images under them."""
    scans: list[Path] = []
    problems: list[Problem] = []
    for path in inputs:
        if path.is_dir():
            inside = [p for p in scans_in(path) if not stem_of(p).endswith(_OUR_ENDINGS)]
            if not inside:
                problems.append(Problem(file=path, reason="no image in this folder", remedy="name a folder with scans"))
            scans += inside
        elif path.exists() and not is_image_file(path):
            problems.append(
                Problem(
                    file=path,
                    reason="not an image format that metaseg reads",
                    remedy="PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MHA",
                )
            )
        elif not path.exists():
            problems.append(Problem(file=path, reason="no such file", remedy="check the path"))
        else:
            scans.append(path)
    return list(dict.fromkeys(scans)), problems


def _output_names(scans: Sequence[Path]) -> dict[Path, str]:
    """One stem per scan; scans of the same name from several folders get their folder's name in front."""
    stems: dict[str, list[Path]] = {}
    for scan in scans:
        stems.setdefault(stem_of(scan).lower(), []).append(scan)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for group in stems.values():
        for scan in group:
            name = stem_of(scan) if len(group) == 1 else f"{scan.resolve().parent.name}_{stem_of(scan)}"
            number, unique = 2, name
            while unique.lower() in taken:
                unique, number = f"{name}_{number}", number + 1
            taken.add(unique.lower())
            names[scan] = unique
    return names


def _predict_one(model: Model, scan: Path, name: str, config: PredictConfig) -> PredictedScan:
    mask = config.out / f"{name}_mask{suffix_of(scan)}"
    overlay = config.out / f"{name}_overlay.png"
    if not config.overwrite:
        for path in (mask, *((overlay,) if config.overlay else ())):
            if path.exists():
                raise InputError(f"{path} exists already", where=scan, remedy="pass --overwrite, or another --out")
    image = read_image(scan)
    prediction = model.predict(image, config.threshold)
    probabilities: list[Path] = []
    if config.probabilities:
        for region, probability in zip(model.card.regions, prediction.probabilities, strict=True):
            ending = f"_{region}" if len(model.card.regions) > 1 else ""
            suffix = ".png" if suffix_of(scan) in (".jpg", ".jpeg", ".bmp") else suffix_of(scan)
            path = config.out / f"{name}_probability{ending}{suffix}"
            write_volume(path, probability, image)
            probabilities.append(path)
    if config.overlay:
        _save_overlay(overlay, prediction)
    # The mask last: where it stands, the scan is done.
    write_mask(mask, prediction.mask, image)
    return PredictedScan(
        source=scan,
        mask=mask,
        overlay=overlay if config.overlay else None,
        probability=tuple(probabilities),
        prediction=prediction,
        notes=image.notes,
    )


def _save_overlay(path: Path, prediction: Prediction) -> None:
    numbered = [
        (lesion.number, *lesion.centroid_voxel, "")
        for lesions in list(prediction.lesions.values())[:1]
        for lesion in lesions
    ]
    figures.save_overlay(path, prediction.source.array, prediction.mask > 0, numbered)


def lesion_rows(scan: Path, prediction: Prediction) -> list[dict[str, Any]]:
    """One row per lesion, as ``lesions.csv`` has them; sizes in mm where the scan says its spacing, else in pixels."""
    unit = "mm" if prediction.source.spacing_mm else "px"
    return [
        {
            "scan": str(scan),
            "region": region,
            "lesion": lesion.number,
            "voxels": lesion.voxels,
            "volume_mm3": lesion.volume_mm3,
            f"diameter_{unit}": round(lesion.equivalent_diameter, 2),
            "z": round(lesion.centroid_voxel[0], 1),
            "y": round(lesion.centroid_voxel[1], 1),
            "x": round(lesion.centroid_voxel[2], 1),
            "confidence": None if lesion.confidence is None else round(lesion.confidence, 3),
        }
        for region, found in prediction.lesions.items()
        for lesion in found
    ]


def as_document(result: PredictResult) -> dict[str, Any]:
    """The result as ``predictions.json`` and ``--json`` have it."""
    return {
        "schema": 1,
        "program": f"metaseg {metaseg_cli.__version__}",
        "out": str(result.out),
        "model": str(result.model),
        "architecture": result.card.name,
        "threshold": result.threshold,
        "smallest_lesion_voxels": result.card.smallest_lesion_voxels,
        "regions": {name: list(values) for name, values in result.card.regions.items()},
        "scans": [
            {
                "scan": str(scan.source),
                "mask": str(scan.mask),
                "overlay": str(scan.overlay) if scan.overlay else None,
                "probability": [str(p) for p in scan.probability],
                "spacing_mm": scan.prediction.source.spacing_mm,
                "notes": list(scan.notes),
                "lesions": lesion_rows(scan.source, scan.prediction),
            }
            for scan in result.scans
        ],
        "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in result.problems],
    }


def _write_tables(result: PredictResult) -> None:
    columns = [
        "scan",
        "region",
        "lesion",
        "voxels",
        "volume_mm3",
        "diameter_mm",
        "diameter_px",
        "z",
        "y",
        "x",
        "confidence",
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(row for scan in result.scans for row in lesion_rows(scan.source, scan.prediction))
    write_text_whole(result.out / "lesions.csv", text.getvalue())
    write_text_whole(result.out / "predictions.json", json.dumps(as_document(result), indent=1, allow_nan=False))
