"""One case from its files to masks, pictures and rows: read, look, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from metaseg_cli.commands.predict_inputs import scan_for
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.datasets.names import PREDICTED_MASK, predicted_name
from metaseg_cli.core.images import (
    Volume,
    can_write_seg,
    dicom_files,
    is_dicom,
    is_image_file,
    is_picture,
    suffix_of,
    turn_to_canonical,
    turned,
    write_mask,
    write_rtstruct,
    write_seg,
    write_volume,
)
from metaseg_cli.core.inference.device import free_memory
from metaseg_cli.core.inference.memory import resident
from metaseg_cli.core.inference.predictor import Input, Model, Prediction, load_model
from metaseg_cli.core.measurements import sum_of_diameters
from metaseg_cli.core.metrics import find_lesions
from metaseg_cli.errors import InputError, MetasegError, Problem
from metaseg_cli.reports import figures

_SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "png": ".png"}
_MOST_NUMBERED = 100  # lesions in a picture; more of them hide it
Result = TypeVar("Result")
_OF_SERIES = {"dicom-seg": "DICOM SEG", "rtstruct": "RTSTRUCT"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case to predict, as it travels to a worker."""

    source: CaseSource
    name: str
    model: Path
    changed: float  # of the model file: a worker must not go on with an older one
    config: PredictConfig
    keep: bool


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """What was found in one scan, and where it was written. ``prediction`` is kept on demand only: it is large."""

    source: Path
    sequences: dict[str, str]
    mask: Path
    segmentation: Path | None  # DICOM SEG or RTSTRUCT
    overlay: Path | None
    overview: Path | None
    maps: dict[str, tuple[Path, ...]]  # probability, uncertainty, disagreement: a file for each region
    spacing_mm: tuple[float, float, float] | None
    backend: str  # the program that ran the network
    lesions: tuple[dict[str, Any], ...]
    sum_of_diameters_mm: dict[str, float]  # RANO-BM's, of each region; empty where the scan has no spacing
    notes: tuple[str, ...] = ()
    prediction: Prediction | None = None


@dataclass(frozen=True)
class Read:
    """A case that is ready for the network, and where its results go."""

    job: Job
    model: Model
    scan: Any
    series: Sequence[Path]
    suffix: str
    mask: Path
    segmentation: Path | None
    given: Input


@lru_cache(maxsize=1)
def _model(path: Path, changed: float, config: PredictConfig) -> Model:
    del changed
    return load_model(
        path,
        config.device,
        tta=config.tta,
        fusion=config.fusion,
        depth=config.depth,
        max_memory=config.max_bytes() or _half_of_what_is_free(),
        backend=config.backend,
    )


def _half_of_what_is_free() -> int | None:
    free = free_memory(torch.device("cpu"))
    return None if free is None else resident() + free // 2


def model_of(path: Path, changed: float, config: PredictConfig) -> Model:
    """The model as *config* wants it, loaded once in each process."""
    same = dataclasses.replace(config, inputs=("any",), out=Path(), overwrite=False)
    return _model(path, changed, same)


def read(job: Job) -> Read | Problem:
    """Read and preprocess; everything that can be known to fail fails here, before the network runs."""
    return _tried(job, lambda: _read(job))


def look(one: Read | Problem) -> tuple[Read, Prediction] | Problem:
    """Ask the network."""
    if isinstance(one, Problem):
        return one
    return _tried(one.job, lambda: (one, _looked(one)))


def write(one: tuple[Read, Prediction] | Problem) -> PredictedScan | Problem:
    """Write masks, maps and pictures."""
    if isinstance(one, Problem):
        return one
    return _tried(one[0].job, lambda: _written(*one))


def _tried(job: Job, function: Callable[[], Result]) -> Result | Problem:
    scan = job.source.first_file
    try:
        return function()
    except MetasegError as error:
        where = error.where if isinstance(error.where, Path) else scan
        return Problem(file=where, reason=error.what, remedy=error.remedy)
    except OSError as error:
        return Problem(file=scan, reason=f"not written: {error.strerror}", remedy="check --out")


def _read(job: Job) -> Read:
    config, source, name = job.config, job.source, job.name
    first = source.first_file
    # A picture or volume comes back as what it was; a DICOM series as NIfTI and as SEG.
    model = model_of(job.model, job.changed, config)
    scan = scan_for(model.card, source)
    series = _series(next(iter(scan.values())) if isinstance(scan, Mapping) else (scan,))
    if config.format in _OF_SERIES and not series:
        raise InputError("it is no DICOM series", where=first, remedy="take another --format")
    suffix = _SUFFIXES.get(config.format) or (suffix_of(first) if is_image_file(first) else ".nii.gz")
    if suffix == ".png" and not is_picture(first):
        raise InputError("a volume does not fit into a PNG", where=first, remedy="take --format nifti")
    mask_name = predicted_name(name, PREDICTED_MASK)
    segmentation = config.out / f"{mask_name}.dcm" if series and config.format in ("auto", *_OF_SERIES) else None
    mask = config.out / f"{mask_name}{suffix}"
    if segmentation is not None and config.format in _OF_SERIES:
        mask = segmentation
    if not config.overwrite:
        overlay = _picture(job, "overlay") if config.overlay else None
        for path in (mask, *(p for p in (segmentation, overlay) if p is not None)):
            if path.exists():
                raise InputError(f"{path} exists already", where=first, remedy="pass --overwrite, or another --out")
    return Read(job, model, scan, series, suffix, mask, segmentation, model.read(scan))


def _looked(one: Read) -> Prediction:
    config = one.job.config
    answer = one.model.look(one.given, disagreement=config.uncertainty and one.model.looks > 1)
    return one.model.interpret(
        one.given.volume, answer, config.threshold, postprocess=config.postprocess, fill_holes=config.fill_holes
    )


def _picture(job: Job, what: str) -> Path:
    return job.config.out / f"{predicted_name(job.name, what)}.png"


def _written(one: Read, prediction: Prediction) -> PredictedScan:
    job, config, source = one.job, one.job.config, one.job.source
    image, regions, first = prediction.source, one.model.card.regions, one.job.source.first_file
    maps = _write_maps(one, prediction)
    overlay = _picture(job, "overlay") if config.overlay else None
    volume = image.shape[0] > 1 and not is_picture(image.source)
    overview = _picture(job, "overview") if config.overlay and volume else None
    if overlay is not None:
        _save_pictures(overlay, overview, prediction)
    notes = list(prediction.notes)
    if one.segmentation is not None and (config.format in _OF_SERIES or can_write_seg()):
        segments = _segments(prediction, regions, per_lesion=config.per_lesion)
        try:
            if config.format == "rtstruct":
                write_rtstruct(one.segmentation, segments, one.series, image)
            else:
                write_seg(one.segmentation, segments, one.series)
        except InputError as error:
            if config.format in _OF_SERIES:
                raise
            notes.append(f"no DICOM SEG: {error.what}")
    # The mask last: where it stands, the scan is done.
    if one.mask != one.segmentation:
        write_mask(one.mask, prediction.mask, image)
    used = one.scan if isinstance(one.scan, Mapping) else {next(iter(source.sequences)): (one.scan,)}
    return PredictedScan(
        source=first if len(source.files) == 1 or first.is_dir() or is_image_file(first) else first.parent,
        sequences={n: str(files[0] if len(files) == 1 else files[0].parent) for n, files in used.items()},
        mask=one.mask,
        segmentation=one.segmentation if one.segmentation is not None and one.segmentation.exists() else None,
        overlay=overlay,
        overview=overview,
        maps=maps,
        spacing_mm=image.spacing_mm,
        backend=prediction.backend,
        lesions=tuple(lesion_rows(first, prediction)),
        sum_of_diameters_mm={
            region: round(sum_of_diameters(found), 2) for region, found in prediction.measurements.items()
        }
        if image.spacing_mm
        else {},
        notes=tuple(notes),
        prediction=prediction if job.keep else None,
    )


def _write_maps(one: Read, prediction: Prediction) -> dict[str, tuple[Path, ...]]:
    """Probabilities, and how sure they are, a file for each region."""
    config, regions = one.job.config, one.model.card.regions
    wanted: dict[str, NDArray[np.float32] | None] = {
        "probability": prediction.probabilities if config.probabilities else None,
        "uncertainty": prediction.uncertainty if config.uncertainty else None,
        "disagreement": prediction.disagreement,
    }
    to = ".png" if one.suffix in (".jpg", ".jpeg", ".bmp") else one.suffix
    written: dict[str, tuple[Path, ...]] = {}
    for what, values in wanted.items():
        files = []
        for region, layer in zip(regions, values if values is not None else (), strict=values is not None):
            name = predicted_name(one.job.name, what, region if len(regions) > 1 else "")
            files.append(config.out / f"{name}{to}")
            write_volume(files[-1], layer, prediction.source)
        written[what] = tuple(files)
    return written


def _series(files: Sequence[Path]) -> Sequence[Path]:
    """The files of the DICOM series that *files* are, or lie in; none for other formats."""
    if files[0].is_dir():
        return dicom_files(files[0])
    return files if suffix_of(files[0]) != ".zip" and not is_image_file(files[0]) and is_dicom(files[0]) else ()


def _segments(
    prediction: Prediction, regions: Mapping[str, tuple[int, ...]], *, per_lesion: bool
) -> list[tuple[str, NDArray[np.bool_]]]:
    """What a SEG holds: a segment for each region, or for each lesion."""
    masks = dict(zip(regions, prediction.masks, strict=True))
    if not per_lesion:
        return list(masks.items())
    return [
        (f"{name} {lesion.number}", numbers == lesion.number)
        for name, mask in masks.items()
        for numbers, lesions in (find_lesions(mask),)
        for lesion in lesions
    ] or list(masks.items())


def _save_pictures(overlay: Path, overview: Path | None, prediction: Prediction) -> None:
    """Outlined and numbered lesions, a volume's slices as radiologists see them: axial, the right side on the left.

    *overview* shows a volume from three sides.
    """
    image, mask = prediction.source, prediction.mask
    found = next(iter(prediction.lesions.values()), [])
    largest = sorted(found, key=lambda lesion: -lesion.voxels)[:_MOST_NUMBERED]
    numbered = [(lesion.number, lesion.centroid_voxel) for lesion in largest]
    if not is_picture(image.source) and image.shape[0] > 1:
        turn = turn_to_canonical(image)
        numbered = [(n, _turned_point(centre, image, turned(image, turn))) for n, centre in numbered]
        image, mask = turned(image, turn), turn.apply(mask)
    lesions = [(number, *centre, "") for number, centre in numbered]
    figures.save_overlay(overlay, image.shown, mask > 0, lesions)
    if overview is not None:
        figures.save_overview(overview, image.shown, mask > 0, lesions, image.spacing_mm)


def _turned_point(zyx: tuple[float, float, float], before: Volume, after: Volume) -> tuple[float, float, float]:
    """A voxel's coordinates in the turned volume."""
    index = np.linalg.inv(after.affine) @ before.affine @ np.array([*zyx[::-1], 1.0])
    return (float(index[2]), float(index[1]), float(index[0]))


def lesion_rows(scan: Path, prediction: Prediction) -> list[dict[str, Any]]:
    """One row per lesion, as ``lesions.csv`` has them; sizes in mm where the scan says its spacing, else in pixels."""
    unit = "mm" if prediction.source.spacing_mm else "px"
    affine = prediction.source.affine if prediction.source.spacing_mm else None
    return [
        {
            "scan": str(scan),
            "region": region,
            "lesion": lesion.number,
            "voxels": lesion.voxels,
            "volume_mm3": lesion.volume_mm3,
            f"diameter_{unit}": round(lesion.equivalent_diameter, 2),
            f"longest_axial_{unit}": round(lengths.longest, 2),
            f"perpendicular_{unit}": round(lengths.perpendicular, 2),
            f"feret_{unit}": round(lengths.feret, 2),
            "axial_slices": lengths.slices[1] - lengths.slices[0] + 1,
            "measurable": lengths.measurable if unit == "mm" else None,
            "z": round(lesion.centroid_voxel[0], 1),
            "y": round(lesion.centroid_voxel[1], 1),
            "x": round(lesion.centroid_voxel[2], 1),
            **_place_mm(lesion.centroid_voxel, affine),
            "confidence": None if lesion.confidence is None else round(lesion.confidence, 3),
        }
        for region, found in prediction.lesions.items()
        for lesion, lengths in zip(found, prediction.measurements[region], strict=True)
    ]


def _place_mm(zyx: tuple[float, float, float], affine: NDArray[np.float64] | None) -> dict[str, float]:
    """Patient coordinates (LPS), as DICOM has them; none for pictures."""
    if affine is None:
        return {}
    place = affine @ np.array([*zyx[::-1], 1.0])
    return {name: round(float(value), 2) for name, value in zip(("x_mm", "y_mm", "z_mm"), place, strict=False)}
